"""Proof from an arm64 host with KVM that guestclock does there what its docs say, as one document.

`run` takes less than two minutes: what this kernel does, how accurate restores are by the guest's own reads
(`guestclock.selftest.accuracy`), and what each call costs. The document names no host: it can be sent to others.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict

from guestclock import doctor
from guestclock._core import Advance, Freeze, __version__
from guestclock.errors import CapabilityMissing
from guestclock.selftest import accuracy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from guestclock.selftest.accuracy import Bench, Row

SCHEMA: Final = "guestclock.selftest/1"
RUNS: Final = 30
"""Number of times that a call is made to see what it costs."""

_MIDR: Final = Path("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1")


class Cost(TypedDict):
    """Cost of a call, in nanoseconds by CLOCK_MONOTONIC, the read of that clock included."""

    call: str
    least_ns: int
    median_ns: int
    most_ns: int


class Document(TypedDict):
    """The document that `guestclock selftest` prints."""

    schema: str
    ok: bool
    """True if every restore was what its policy promises."""
    guestclock: str
    kernel: str
    midr_el1: str | None
    """The processor, by its Main ID Register, in hexadecimal; None where the kernel doesn't say."""
    host: list[dict[str, Any]]
    """Findings of `guestclock doctor`."""
    behaviours: dict[str, Any]
    """Behaviours of this KVM where kernels differ: `KvmVm.behaviours`."""
    capabilities: dict[str, Any]
    """Capabilities of a VM here, each with its reason."""
    frequency_hz: int
    accuracy: list[dict[str, Any]]
    """A row each restore, in ticks: `guestclock.selftest.accuracy.Row`."""
    costs: list[Cost]
    took_ms: int


def run(bench: Bench | None = None) -> Document:
    """Measure this host, or another bench. Raises CapabilityMissing, with the reason, where there is no arm64 KVM."""
    begun = time.monotonic_ns()
    bench = bench or _kvm()
    with bench.machine() as seat:
        behaviours = getattr(seat.vm, "behaviours", {})
        capabilities = asdict(seat.vm.capabilities)
    measured = list(accuracy.rows(bench))
    costs = list(_costs(bench))
    return {
        "schema": SCHEMA,
        "ok": all(row.wrong is None for row in measured),
        "guestclock": __version__,
        "kernel": platform.release(),
        "midr_el1": _MIDR.read_text().strip() if _MIDR.exists() else None,
        "host": [asdict(finding) for finding in doctor.examine()],
        "behaviours": behaviours,
        "capabilities": capabilities,
        "frequency_hz": bench.frequency_hz,
        "accuracy": [_plain(row) for row in measured],
        "costs": costs,
        "took_ms": (time.monotonic_ns() - begun) // 10**6,
    }


def _plain(row: Row) -> dict[str, Any]:
    """Return the row as JSON has it: an interval is a list."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(row).items()}


def _kvm() -> Bench:
    if platform.machine() != "aarch64":
        why = f"this machine is {platform.machine()}"
    elif not os.access("/dev/kvm", os.R_OK | os.W_OK):
        why = "/dev/kvm is there, but not for this user" if Path("/dev/kvm").exists() else "there is no /dev/kvm"
    else:
        return accuracy.KvmBench()
    msg = f"the self-test needs /dev/kvm on an arm64 machine: {why}"
    raise CapabilityMissing(msg, capability="kvm")


def _costs(bench: Bench) -> Iterator[Cost]:
    with bench.machine() as seat:
        vm = seat.vm
        yield _cost("HostCounter.read", bench.read)
        if vm.capabilities.counter_offset:
            vm.opt_in()
        checkpoint = vm.checkpoint()
        yield _cost("cntvct", lambda: vm.cntvct(0))
        yield _cost("checkpoint", vm.checkpoint)
        yield _cost("plan", lambda: vm.plan(checkpoint, Advance()))
        yield _cost("restore, Freeze()", lambda: vm.restore(checkpoint, Freeze()))
        yield _cost("restore, Advance()", lambda: vm.restore(checkpoint, Advance()))
        yield _cost("pause and resume", lambda: vm.pause().resume())


def _cost(call: str, made: Callable[[], object]) -> Cost:
    took = []
    for _ in range(RUNS):
        begun = time.monotonic_ns()
        made()
        took.append(time.monotonic_ns() - begun)
    took.sort()
    return {"call": call, "least_ns": took[0], "median_ns": took[RUNS // 2], "most_ns": took[-1]}
