"""Plan of a restore, into a model VM made for the purpose: nothing else is touched."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from guestclock._core import HostCounter, ManualCounter, ModelVm, ScaledCounter
from guestclock.errors import Refused
from guestclock.fleet import FleetPlan
from guestclock.fleet.outcomes import FAILURES
from guestclock.inspection.checkpoint import stamp
from guestclock.inspection.timers import TimerRecord, model_like, timers
from guestclock.units import S

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestclock._core import Checkpoint, Plan
    from guestclock.types import OptionKeywords, Options, Policy


class Target(TypedDict):
    """The VM that was planned for."""

    counter: str
    """clock_monotonic_raw and so on, of this host; manual for one that was described."""
    frequency_hz: int
    kernel: str
    vcpus: int
    nested: bool


class Refusal(TypedDict):
    """Why a restore would be refused."""

    error: str
    """The error's class."""
    message: str
    facts: dict[str, Any]
    """The error's attributes: the numbers of both sides."""


class DryRun(TypedDict):
    """`guestclock.plan/1`. One of `plan` and `refused` is None."""

    schema: str
    dry_run: bool
    """True: it is a model that was planned for, and nothing was restored."""
    target: Target
    plan: dict[str, Any] | None
    """`Plan.to_dict()`."""
    refused: Refusal | None
    timers: list[TimerRecord]
    """The timers that aren't off as the guest would find them, if it went on at the plan's instant."""


def target(
    checkpoint: Checkpoint,
    *,
    frequency_hz: int | None = None,
    elapsed_ns: int | None = None,
    kernel: str | None = None,
) -> ModelVm:
    """Return a model VM that is built as the checkpoint's was, for a dry run.

    It runs over this host's counter; or, given one of the two, over a counter of `frequency_hz` (by default the
    checkpoint's, with the guest's frequency made from it) on a host whose clocks went on for `elapsed_ns` since the
    checkpoint, by default until now by this host's wall clock. For a checkpoint of an unknown host, as another VMM's
    snapshot is, it runs over such a counter in any case. `kernel` is as `ModelVm` has it. ValueError,
    OverflowError or KvmError where there can't be such a VM.
    """
    if frequency_hz is None and elapsed_ns is None and stamp(checkpoint) is not None:
        return model_like(checkpoint, HostCounter(), kernel=kernel)
    saved, now_ns = checkpoint.stamp, time.time_ns()
    if stamp(checkpoint) is None:
        # Nothing can be so long after an instant that nobody knows.
        counter = ManualCounter(frequency_hz=frequency_hz or checkpoint.frequency_hz, realtime_ns=now_ns)
    else:
        hz = frequency_hz or saved.frequency_hz
        if elapsed_ns is None:
            elapsed_ns = now_ns - saved.realtime_ns
        count = (saved.count + elapsed_ns * hz // S) % 2**64
        # The host that is described is the checkpoint's own, as far as a counter can be.
        boot_id = saved.boot_id if saved.source == "manual" else None
        counter = ManualCounter(count, frequency_hz=hz, realtime_ns=saved.realtime_ns + elapsed_ns, boot_id=boot_id)
    if frequency_hz is None and counter.frequency_hz != checkpoint.frequency_hz:
        return model_like(checkpoint, ScaledCounter(counter, frequency_hz=checkpoint.frequency_hz), kernel=kernel)
    return model_like(checkpoint, counter, kernel=kernel)


def plan_each(
    saved: Mapping[str, Checkpoint], vms: Mapping[str, ModelVm], *, policy: Policy, options: Options | None = None
) -> FleetPlan:
    """Return the plan of each VM's checkpoint into the model VM of its name: of one host or of many."""
    planned: dict[str, Plan] = {}
    refused: dict[str, Exception] = {}
    for name, checkpoint in saved.items():
        try:
            planned[name] = vms[name].plan(checkpoint, policy, options=options)
        except FAILURES as error:
            refused[name] = error
    return FleetPlan(policy, list(saved), planned, refused)


def dry_run(
    checkpoint: Checkpoint,
    vm: ModelVm,
    *,
    policy: Policy,
    options: Options | None = None,
    **keywords: Unpack[OptionKeywords],
) -> DryRun:
    """Return what `vm.plan` says, or why it refuses: the arguments are its own."""
    document: DryRun = {
        "schema": "guestclock.plan/1",
        "dry_run": True,
        "target": {
            "counter": vm.counter.source,
            "frequency_hz": vm.frequency_hz,
            "kernel": vm.kernel,
            "vcpus": vm.vcpus,
            "nested": vm.nested,
        },
        "plan": None,
        "refused": None,
        "timers": [],
    }
    try:
        intended = vm.plan(checkpoint, policy, options=options, **keywords)
    except Refused as error:
        facts = {name: value for name, value in vars(error).items() if name not in {"message", "__notes__"}}
        document["refused"] = {"error": type(error).__name__, "message": str(error), "facts": facts}
        return document
    document["plan"] = intended.to_dict()
    document["timers"] = [record for record in timers(checkpoint, intended) if record["state"] != "off"]
    return document
