"""Verbs of one VM for many, whatever their backends, on one host counter.

A `Fleet` goes by names: they are its keys, and its checkpoints store them. The work on each VM is that VM's own verb,
so a fleet of one does what its VM does.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from guestclock._core import (
    Checkpoint,
    ClockBank,
    Freeze,
    GuestVm,
    _cancel,
    _each_checkpoint,
    _each_pause,
    _each_plan,
    _each_restore,
    _each_verify,
)
from guestclock.errors import GuestClockError, NoSuchVm
from guestclock.fleet.bank import OfBank, watched_end, watched_failure
from guestclock.fleet.names import (
    by_name,
    checked,
    given_twice,
    in_order,
    listed,
    named,
    raise_where_names_differ,
    saved_by_name,
)
from guestclock.fleet.outcomes import (
    FAILURES,
    checked_on_failure,
    checked_threads,
    named_outcomes,
    raise_first,
    refusal,
)
from guestclock.fleet.results import FleetPlan, FleetReport, FleetVerified
from guestclock.fleet.stepwise import FleetPause, FleetRestore
from guestclock.live import live
from guestclock.pacing import fleet_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Unpack

    from guestclock._core import Report, Step
    from guestclock.fleet.names import By
    from guestclock.fleet.outcomes import OnFailure, Outcomes
    from guestclock.types import OptionKeywords, Options, Policy, Stamp, SyncBound, Views


@live("take its checkpoint(), and restore that into a fleet made there")
class Fleet(Mapping[str, GuestVm]):
    """VMs by their names, and the verbs of one VM for all of them: `Fleet({"web-1": vm, "web-2": other})`.

    A mapping in the order that it was given in, which is the order of all work. `only`, wherever it is taken, is an
    iterable of names, each once: the VMs that the call is about, by default all.

    `threads`, wherever it is taken, is the number of threads that share the work, at least 1: each VM's on one of them,
    in Rust, without the interpreter's lock. It is given up once for the whole call; where a VM's counter is a Python
    object, once for each step. On KVM a step is ioctls, so more threads than one pay where the kernel takes long.

    `Fleet(bank)` takes a `ClockBank` whole, with the VMs that it has now. `names` names them in the order of
    `bank.vms()`; without it each is named by the digits of its handle. Its checkpoints, restores and pauses are passes
    over columns: of all VMs at one instant, and of all of them or none.

    ValueError for a name that no checkpoint can store (at most 64 bytes of UTF-8, no control characters), and where two
    VMs have one name, or one VM two; TypeError for what isn't a `GuestVm`.
    """

    def __init__(self, vms: Mapping[str, GuestVm] | ClockBank, *, names: Sequence[str] | None = None) -> None:
        self._bank: OfBank | None = None
        self._vms: Mapping[str, GuestVm]
        if isinstance(vms, ClockBank):
            self._vms = self._bank = OfBank(vms, names)
        elif names is not None:
            raise TypeError("names= is for a bank's VMs: a mapping has its keys")
        else:
            self._vms = checked(vms)

    @property
    def is_of_bank(self) -> bool:
        """True if the VMs are a bank's, so that all of them are saved, restored and paused by one pass."""
        return self._bank is not None

    def __getitem__(self, name: str) -> GuestVm:
        return self._vms[name]

    def __contains__(self, name: object) -> bool:
        return name in self._vms

    def __iter__(self) -> Iterator[str]:
        return iter(self._vms)

    def __len__(self) -> int:
        return len(self._vms)

    def __repr__(self) -> str:
        return f"<Fleet of {listed(self._vms)}>" if self._vms else "<Fleet of no VMs>"

    def checkpoint(
        self,
        *,
        only: Iterable[str] | None = None,
        now: int | Stamp | None = None,
        stopped_at: int | Mapping[str, int] | None = None,
        sync: SyncBound | None = None,
        vmclock_address: Mapping[str, int] | None = None,
        stolen_time: Mapping[str, Sequence[int | None]] | None = None,
        threads: int = 1,
    ) -> Checkpoint:
        """Saves the VMs' guest time as one checkpoint of one instant, under the fleet's names.

        The instant is that of the last VM saved: the others' timelines are moved to it by the ticks that the counter
        took, exactly. `stopped_at` is the host's count when the last vCPU left its guest: one for all VMs, or by name.
        A VM whose stop isn't given has stopped at its pause, or at its own sample, so that a restore under `Freeze`
        costs no VM the time that the others' saves took. `vmclock_address` and `stolen_time` are by name; see
        `GuestVm.checkpoint` for all five. Nothing is changed.

        The error of a VM (VcpuRunning, RestoreOpen, KvmError) has a note that names it. ValueError where the VMs'
        counters aren't shown to be one; NamesDiffer for a name that the fleet hasn't got.
        """
        addresses, records = by_name(vmclock_address), by_name(stolen_time)
        for given in (stopped_at, addresses, records):
            if isinstance(given, Mapping) and given:
                self._chosen(given)
        if self._bank is not None and not addresses and not records:
            checked_threads(threads)
            return self._bank.checkpoint(self._some(only), stopped_at, now, sync)
        names = self._chosen(only)
        stops = stopped_at if isinstance(stopped_at, Mapping) else dict.fromkeys(names, stopped_at)
        there = self._all_there(names)
        vms = [(vm, name, stops.get(name), addresses.get(name), records.get(name)) for name, vm in there.items()]
        made, failed = _each_checkpoint(vms, now, sync, threads)
        raise_first(names, failed)
        return Checkpoint.join(list(made.values()))

    def plan(
        self,
        checkpoint: Checkpoint,
        policy: Policy | None = None,
        *,
        only: Iterable[str] | None = None,
        by: By = "name",
        options: Options | None = None,
        now: int | Stamp | None = None,
        threads: int = 1,
        **keywords: Unpack[OptionKeywords],
    ) -> FleetPlan:
        """Plans the restore of `checkpoint`, without touching anything: a plan each VM, or its refusal.

        VMs are matched by name: NamesDiffer lists those that only the fleet or only the checkpoint has. With
        `by="position"` the first VM of the fleet gets the checkpoint's first (`checkpoint.names`), and so on.
        For the rest see `GuestVm.plan`.
        """
        matched = self._matched(checkpoint, only, by)
        if self._bank is not None:
            checked_threads(threads)
            # Where one is refused, each is looked at alone.
            with suppress(*FAILURES):
                return self._bank.plan(checkpoint, matched, policy, options, now, keywords)
        saved = saved_by_name(checkpoint, matched)
        vms, removed = self._there(saved)
        planned = _each_plan(list(vms.values()), [saved[name] for name in vms], policy, options, now, keywords, threads)
        made, refused = named_outcomes(list(vms), planned)
        return FleetPlan(policy or Freeze(), list(saved), made, in_order(saved, removed | refused))

    def restore(
        self,
        checkpoint: Checkpoint,
        policy: Policy | None = None,
        *,
        only: Iterable[str] | None = None,
        by: By = "name",
        on_failure: OnFailure = "finish",
        options: Options | None = None,
        now: int | Stamp | None = None,
        threads: int = 1,
        **keywords: Unpack[OptionKeywords],
    ) -> FleetReport:
        """Restores `checkpoint`, with `plan`'s arguments: all guests may run when it returns.

        FleetRefused, before anything is written, where a VM is refused: `only=plan.accepted` restores the others. All
        VMs are closed before the first write; then each step is made for all of them. A VM that fails is given up, and
        named in a FleetInterrupted once the call is over: the others finish, or with `on_failure="stop"` those that
        aren't released yet are given up too. A bank's VMs are restored for one instant, all of them or none.
        """
        if self._bank is not None:
            checked_on_failure(on_failure)
            checked_threads(threads)
            matched = None if only is None and by == "name" else self._matched(checkpoint, only, by)
            if matched is None and not self._bank.has_just(checkpoint):
                matched = self._matched(checkpoint, only, by)
            try:
                report = self._bank.restore(checkpoint, matched, policy, options, now, keywords)
            except ValueError:
                # Of names that are no handles the bank asks for the handles.
                self._matched(checkpoint, only, by)
                raise
            except FAILURES as error:
                planned = self.plan(
                    checkpoint, policy, only=only, by=by, options=options, now=now, threads=threads, **keywords
                )
                if planned.refused:
                    refused = refusal(planned.accepted, planned.refused)
                    watched_failure("restore", refused)
                    raise refused from error
                watched_failure("restore", error)
                raise
            watched_end("restore", report, policy)
            return report
        stages = ("close", "prepare", "apply", "release")
        opened, outcomes, last = self._restoring(
            checkpoint, policy, only, by, on_failure, options, now, threads, keywords, stages
        )
        return opened._ended(outcomes, last)  # noqa: SLF001 - for this module

    def restoring(
        self,
        checkpoint: Checkpoint,
        policy: Policy | None = None,
        *,
        only: Iterable[str] | None = None,
        by: By = "name",
        on_failure: OnFailure = "finish",
        options: Options | None = None,
        now: int | Stamp | None = None,
        threads: int = 1,
        **keywords: Unpack[OptionKeywords],
    ) -> FleetRestore:
        """Restores `checkpoint` around what the VMM restores itself, with `restore`'s arguments: a context manager.

        The call plans, and raises FleetRefused. Entering the block closes all VMs, then makes each one's first step.
        Leaving it without `release()` gives all of them up: see `GuestVm.restoring`.
        """
        return self._restoring(checkpoint, policy, only, by, on_failure, options, now, threads, keywords, ())[0]

    def _restoring(
        self,
        checkpoint: Checkpoint,
        policy: Policy | None,
        only: Iterable[str] | None,
        by: By,
        on_failure: OnFailure,
        options: Options | None,
        now: int | Stamp | None,
        threads: int,
        keywords: OptionKeywords,
        stages: Sequence[str],
    ) -> tuple[FleetRestore, Outcomes, str]:
        """Plans, and makes these steps in the same call: with what came of them, and the last."""
        checked_on_failure(on_failure)
        saved = saved_by_name(checkpoint, self._matched(checkpoint, only, by))
        names, (vms, removed), stop = list(saved), self._there(saved), on_failure == "stop"
        if removed:
            planned = self.plan(
                checkpoint, policy, only=only, by=by, options=options, now=now, threads=threads, **keywords
            )
            raise refusal(planned.accepted, planned.refused)
        restores, outcomes, last = _each_restore(
            list(vms.values()), list(saved.values()), policy, options, now, keywords, stages, threads, stop
        )
        if len(restores) < len(names):
            accepted, refused = named_outcomes(names, outcomes)
            raise refusal(list(accepted), refused)
        opened = FleetRestore(policy, dict(zip(names, restores, strict=True)), on_failure, threads)
        return opened, outcomes, last

    def verify(
        self,
        given: FleetReport | Checkpoint | None = None,
        *,
        only: Iterable[str] | None = None,
        now: int | Stamp | None = None,
        threads: int = 1,
    ) -> FleetVerified:
        """Looks at the clocks of the VMs, changes nothing, and waits for nobody: a `Verified` each.

        With a report or a checkpoint each VM is compared with its own, by name, and a VM that it hasn't got with none.
        A VM that can't be looked at (VcpuRunning) is in `failed`. See `GuestVm.verify`.
        """
        names = self._chosen(only)
        if given is not None and not isinstance(given, FleetReport | Checkpoint):
            raise TypeError(f"{reprlib.repr(given)} is neither a FleetReport nor a Checkpoint")
        of: Mapping[str, Report | Checkpoint] = given or {} if not isinstance(given, Checkpoint) else named(given)
        vms, removed = self._there(names)
        looked = _each_verify(list(vms.values()), [of.get(name) for name in vms], now, threads)
        verified, failed = named_outcomes(list(vms), looked)
        return FleetVerified(verified, in_order(names, removed | failed))

    def pause(
        self,
        policy: Policy | None = None,
        *,
        only: Iterable[str] | None = None,
        views: Views = "preserve",
        threads: int = 1,
    ) -> FleetPause:
        """Pauses the VMs in place: none of their vCPUs can run until `resume()`, or the end of the `with` block.

        Each is paused from its own sample on; a bank's VMs all at one instant, or none. Where one can't be paused
        (VcpuRunning, RestoreOpen, a Refused), its error has a note that names it, and those before it go on as if they
        hadn't been paused: nothing is written.
        """
        if self._bank is not None:
            checked_threads(threads)
            return self._bank.pause(self._some(only), policy, views)
        names = self._chosen(only)
        paused, failed = _each_pause([self[name] for name in names], policy, views, threads)
        if failed:
            for pause in paused.values():
                with suppress(GuestClockError):
                    _cancel(pause)
            raise_first(names, failed)
        return FleetPause(self._vms, {names[at]: pause for at, pause in paused.items()}, threads)

    def catch_up(
        self, *, only: Iterable[str] | None = None, sleep: Callable[[float], object] | None = None
    ) -> Iterator[tuple[str, Step]]:
        """Yields the steps that pay the VMs' backlogs back, each with its VM's name, when it is due.

        For each, stop that VM's vCPUs, `apply` it, and let them go on. The iterator waits and ends as that of
        `GuestVm.catch_up` does, for the VM whose step is due first.
        """
        return fleet_steps(self._all_there(self._chosen(only)), sleep)

    def _there(self, names: Iterable[str]) -> tuple[dict[str, GuestVm], dict[str, Exception]]:
        """The VMs of these names, and the error of each that was removed from the fleet's bank."""
        vms: dict[str, GuestVm] = {}
        removed: dict[str, Exception] = {}
        for name in names:
            try:
                vms[name] = self[name]
            except NoSuchVm as error:
                removed[name] = error
        return vms, removed

    def _all_there(self, names: Iterable[str]) -> dict[str, GuestVm]:
        """The VMs of these names. NoSuchVm, with a note that names it, for one that was removed."""
        vms, removed = self._there(names)
        raise_first(list(removed), dict(enumerate(removed.values())))
        return vms

    def _some(self, only: Iterable[str] | None) -> list[str] | None:
        """The names to work on, in the fleet's order; None for all."""
        return None if only is None else self._chosen(only)

    def _chosen(self, only: Iterable[str] | None) -> list[str]:
        """The names to work on, in the fleet's order."""
        if only is None:
            return list(self._vms)
        names = [only] if isinstance(only, str) else list(only)
        unknown = [name for name in dict.fromkeys(names) if name not in self._vms]
        raise_where_names_differ(unknown=unknown, equal=given_twice(names))
        chosen = set(names)
        return [name for name in self._vms if name in chosen]

    def _matched(self, checkpoint: Checkpoint, only: Iterable[str] | None, by: By) -> dict[str, str]:
        """The name of the saved VM for each name, in the fleet's order."""
        if not isinstance(checkpoint, Checkpoint):
            raise TypeError(f"{reprlib.repr(checkpoint)} isn't a Checkpoint")
        names, saved = self._chosen(only), {name: name for name in checkpoint.names}
        if by == "position":
            raise_where_names_differ(missing=list(self._vms)[len(saved) :], extra=list(saved)[len(self._vms) :])
            saved = dict(zip(self._vms, saved, strict=True))
        elif by != "name":
            raise ValueError(f"no by={reprlib.repr(by)}: name or position")
        extra = [name for name in saved if name not in self._vms] if only is None else []
        raise_where_names_differ(missing=[name for name in names if name not in saved], extra=extra)
        return {name: saved[name] for name in names}
