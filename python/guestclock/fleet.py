"""Fleets: the verbs of one VM for many, whatever their backends, on one host counter.

A `Fleet` goes by names: they are its keys, and its checkpoints store them. The work on each VM is that VM's own verb,
so a fleet of one does what its VM does.
"""

from __future__ import annotations

import reprlib
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias, TypeVar

from guestclock._core import (
    Checkpoint,
    ClockBank,
    Freeze,
    GuestVm,
    Plan,
    Report,
    Restore,
    _cancel,
    _each_checkpoint,
    _each_pause,
    _each_plan,
    _each_restore,
    _each_resume,
    _each_step,
    _each_verify,
    _vm_name,
)
from guestclock.errors import (
    FleetInterrupted,
    FleetRefused,
    GuestClockError,
    Interrupted,
    Misuse,
    NamesDiffer,
    OtherInstant,
)
from guestclock.live import live
from guestclock.pacing import fleet_steps
from guestclock.types import Verified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import Self, Unpack

    import numpy as np
    from numpy.typing import NDArray

    from guestclock._core import Pause, Step, _PausedSet, _SetPlan, _SetReport
    from guestclock.types import Mismatch, OptionKeywords, Options, Policy, Stamp, SyncBound, Views

_Made = TypeVar("_Made")
_Value = TypeVar("_Value")

_Outcomes: TypeAlias = "tuple[dict[int, Report | None], dict[int, Exception]]"
"""Reports of VMs that were released, and None of others; and the errors: each by the VM's place."""
By: TypeAlias = Literal["name", "position"]
"""Rule by which a checkpoint's VMs are matched with a fleet's."""
OnFailure: TypeAlias = Literal["finish", "stop"]
"""Fate of the other VMs where one fails: they finish, or they are given up."""

FAILURES: Final = (GuestClockError, OSError)
"""Errors that are one VM's: any other is the caller's, and ends the whole call."""


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
        self._bank: _OfBank | None = None
        self._vms: Mapping[str, GuestVm]
        if isinstance(vms, ClockBank):
            self._vms = self._bank = _OfBank(vms, names)
        elif names is not None:
            raise TypeError("names= is for a bank's VMs: a mapping has its keys")
        else:
            self._vms = _checked(vms)

    @property
    def is_of_bank(self) -> bool:
        """True if the VMs are a bank's, so that all of them are saved, restored and paused by one pass."""
        return self._bank is not None

    def __getitem__(self, name: str) -> GuestVm:
        return self._vms[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._vms)

    def __len__(self) -> int:
        return len(self._vms)

    def __repr__(self) -> str:
        return f"<Fleet of {_some(self._vms)}>" if self._vms else "<Fleet of no VMs>"

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
        A VM whose stop isn't given has stopped at its own sample, so that a restore under `Freeze` costs no VM the time
        that the others' saves took. `vmclock_address` and `stolen_time` are by name; see `GuestVm.checkpoint` for all
        five. Nothing is changed.

        The error of a VM (VcpuRunning, RestoreOpen, KvmError) has a note that names it. ValueError where the VMs'
        counters aren't shown to be one; NamesDiffer for a name that the fleet hasn't got.
        """
        addresses, records = _by_name(vmclock_address), _by_name(stolen_time)
        for given in (stopped_at, addresses, records):
            if isinstance(given, Mapping) and given:
                self._chosen(given)
        if self._bank is not None and not addresses and not records:
            return self._bank.checkpoint(self._some(only), stopped_at, now, sync)
        names = self._chosen(only)
        stops = stopped_at if isinstance(stopped_at, Mapping) else dict.fromkeys(names, stopped_at)
        vms = [(self[name], name, stops.get(name), addresses.get(name), records.get(name)) for name in names]
        made, failed = _each_checkpoint(vms, now, sync, threads)
        _raise_first(names, failed)
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
            # Where one is refused, each is looked at alone.
            with suppress(*FAILURES):
                return self._bank.plan(checkpoint, matched, policy, options, now, keywords)
        saved = _saved(checkpoint, matched)
        vms = [self[name] for name in saved]
        planned = _each_plan(vms, list(saved.values()), policy, options, now, keywords, threads)
        made, refused = _sorted(list(saved), planned)
        return FleetPlan(policy or Freeze(), list(saved), made, refused)

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
            _checked_word(on_failure)
            matched = None if only is None and by == "name" else self._matched(checkpoint, only, by)
            if matched is None and not self._bank.has_just(checkpoint):
                matched = self._matched(checkpoint, only, by)
            try:
                report = self._bank.restore(checkpoint, matched, policy, options, now, keywords)
            except FAILURES as error:
                planned = self.plan(
                    checkpoint, policy, only=only, by=by, options=options, now=now, threads=threads, **keywords
                )
                if planned.refused:
                    refused = _refused(planned.accepted, planned.refused)
                    _watched_failure("restore", refused)
                    raise refused from error
                _watched_failure("restore", error)
                raise
            _watched_end("restore", report, policy)
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
    ) -> tuple[FleetRestore, _Outcomes, str]:
        """Plans, and makes these steps in the same call: with what came of them, and the last."""
        _checked_word(on_failure)
        saved = _saved(checkpoint, self._matched(checkpoint, only, by))
        names, vms, stop = list(saved), [self[name] for name in saved], on_failure == "stop"
        restores, outcomes, last = _each_restore(
            vms, list(saved.values()), policy, options, now, keywords, stages, threads, stop
        )
        if len(restores) < len(names):
            accepted, refused = _sorted(names, outcomes)
            raise _refused(list(accepted), refused)
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
        of: Mapping[str, Report | Checkpoint] = given or {} if not isinstance(given, Checkpoint) else _named(given)
        looked = _each_verify([self[name] for name in names], [of.get(name) for name in names], now, threads)
        return FleetVerified(*_sorted(names, looked))

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
            return self._bank.pause(self._some(only), policy, views)
        names = self._chosen(only)
        paused, failed = _each_pause([self[name] for name in names], policy, views, threads)
        if failed:
            for pause in paused.values():
                with suppress(GuestClockError):
                    _cancel(pause)
            _raise_first(names, failed)
        return FleetPause({names[at]: pause for at, pause in paused.items()}, threads)

    def catch_up(
        self, *, only: Iterable[str] | None = None, sleep: Callable[[float], object] | None = None
    ) -> Iterator[tuple[str, Step]]:
        """Yields the steps that pay the VMs' backlogs back, each with its VM's name, when it is due.

        For each, stop that VM's vCPUs, `apply` it, and let them go on. The iterator waits and ends as that of
        `GuestVm.catch_up` does, for the VM whose step is due first.
        """
        return fleet_steps({name: self[name] for name in self._chosen(only)}, sleep)

    def _some(self, only: Iterable[str] | None) -> list[str] | None:
        """The names to work on, in the fleet's order; None for all."""
        return None if only is None else self._chosen(only)

    def _chosen(self, only: Iterable[str] | None) -> list[str]:
        """The names to work on, in the fleet's order."""
        if only is None:
            return list(self._vms)
        names = [only] if isinstance(only, str) else list(only)
        unknown = [name for name in dict.fromkeys(names) if name not in self._vms]
        _differ(unknown=unknown, equal=_equal(names))
        chosen = set(names)
        return [name for name in self._vms if name in chosen]

    def _matched(self, checkpoint: Checkpoint, only: Iterable[str] | None, by: By) -> dict[str, str]:
        """The name of the saved VM for each name, in the fleet's order."""
        if not isinstance(checkpoint, Checkpoint):
            raise TypeError(f"{reprlib.repr(checkpoint)} isn't a Checkpoint")
        names, saved = self._chosen(only), {name: name for name in checkpoint.names}
        if by == "position":
            _differ(missing=list(self._vms)[len(saved) :], extra=list(saved)[len(self._vms) :])
            saved = dict(zip(self._vms, saved, strict=True))
        elif by != "name":
            raise ValueError(f"no by={reprlib.repr(by)}: name or position")
        extra = [name for name in saved if name not in self._vms] if only is None else []
        _differ(missing=[name for name in names if name not in saved], extra=extra)
        return {name: saved[name] for name in names}


class _ByName(Mapping[str, _Value], Generic[_Value]):
    """A value each VM, in the fleet's order."""

    def __init__(self, values: Mapping[str, _Value]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> _Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class FleetPlan(_ByName[Plan]):
    """A plan each VM that can be restored, by name, and the refusals of the others: a dry run."""

    def __init__(
        self,
        policy: Policy,
        names: Sequence[str],
        plans: Mapping[str, Plan],
        refused: Mapping[str, Exception],
    ) -> None:
        super().__init__(plans)
        self._names = list(names)
        self.policy = policy
        """The policy."""
        self.refused: dict[str, Exception] = dict(refused)
        """The error of each VM that can't be restored so: Refused, or a KvmError."""

    @property
    def accepted(self) -> list[str]:
        """Names of the VMs that can be restored so: for `only=`."""
        return list(self)

    def columns(self) -> dict[str, NDArray[Any]]:
        """One column for each fact, a row each VM: arrays of shape (VMs,), in the fleet's order.

        "name" (str), "accepted" (bool), "refused" (str: the error's class), "method", "evidence" (the clock that tells
        the time), "assumptions", "warnings" and "limits" (str: codes, and the limits of a Linux guest that the jump
        crosses, with commas between), "added_ticks" (guest ticks), "added_ns", "behind_ns", "behind_error_ns",
        "error_bound_ticks", "error_bound_ns" and "overdue" (timers that the guest finds overdue), all uint64, 2**64 - 1
        for more. A number that isn't known of some VMs is a masked array.
        """
        return _columns([self._row(name) for name in self._names], _PLAN_COLUMNS)

    def to_dict(self) -> dict[str, object]:
        """All of it as plain Python values, for JSON."""
        refused = {name: {"error": type(error).__name__, "message": str(error)} for name, error in self.refused.items()}
        return {"accepted": {name: plan.to_dict() for name, plan in self.items()}, "refused": refused}

    def _row(self, name: str) -> dict[str, Any]:
        if name in self.refused:
            return {"name": name, "accepted": False, "refused": type(self.refused[name]).__name__}
        said: dict[str, Any] = self[name].to_dict()
        return {
            **said,
            "name": name,
            "accepted": True,
            "evidence": said["elapsed_by"],
            "assumptions": _codes(said["assumptions"]),
            "warnings": _codes(said["warnings"]),
            "limits": ",".join(limit["name"] for limit in said["limits"] if limit["reached"] != "not crossed"),
            "overdue": len(said["overdue"]),
        }

    def __str__(self) -> str:
        """For people."""
        lines = [f"{name}: {type(error).__name__}: {error}" for name, error in self.refused.items()]
        lines += [f"{name}:\n{plan}" for name, plan in self.items()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<FleetPlan {self.policy!r}: {len(self)} accepted, {len(self.refused)} refused>"


class FleetReport(_ByName[Report]):
    """A report each VM, by name, of a restore or a pause's end."""

    def columns(self) -> dict[str, NDArray[Any]]:
        """One column for each fact, a row each VM: arrays of shape (VMs,), in the fleet's order.

        "name", "method", "evidence" (the clock that told the time) and "warnings" (codes, with commas between), all
        str; "capped" (bool); "released_at" (the host's count), "cntvct", "cntpct", "added_ticks" and "backlog_ticks"
        (guest ticks), "added_ns", "behind_ns", "behind_error_ns", "error_bound_ticks" and "error_bound_ns", all uint64,
        2**64 - 1 for more. A number that isn't known of some VMs is a masked array.
        """
        return _columns([self._row(name) for name in self], _REPORT_COLUMNS)

    def to_dict(self) -> dict[str, object]:
        """All of it as plain Python values, for JSON."""
        return {name: report.to_dict() for name, report in self.items()}

    def _row(self, name: str) -> dict[str, Any]:
        report = self[name]
        kinds = _REPORT_COLUMNS.items()
        row = {column: getattr(report, column) for column, kind in kinds if kind != "U" or column == "method"}
        return row | {
            "name": name,
            "evidence": report.elapsed_by,
            "warnings": ",".join(warning.code for warning in report.warnings),
        }

    def __str__(self) -> str:
        """For people."""
        return "\n".join(f"{name}:\n{report}" for name, report in self.items())

    def __repr__(self) -> str:
        return f"<FleetReport of {len(self)} VMs>"


class FleetVerified(_ByName[Verified]):
    """A `Verified` each VM that could be looked at, by name."""

    def __init__(self, verified: Mapping[str, Verified], failed: Mapping[str, Exception]) -> None:
        super().__init__(verified)
        self.failed: dict[str, Exception] = dict(failed)
        """The error of each VM that couldn't be looked at."""

    def __bool__(self) -> bool:
        """True where every VM was looked at, and is as it is to be."""
        return not self.failed and all(self.values())

    @property
    def mismatches(self) -> dict[str, tuple[Mismatch, ...]]:
        """The clocks that aren't where they are to be, of each VM that has one."""
        return {name: verified.mismatches for name, verified in self.items() if not verified}

    def __str__(self) -> str:
        """For people."""
        lines = [f"{name}: {type(error).__name__}: {error}" for name, error in self.failed.items()]
        return "\n".join(lines + [f"{name}: {verified}" for name, verified in self.items()])

    def __repr__(self) -> str:
        return f"<FleetVerified of {len(self)} VMs: {len(self.mismatches)} off, {len(self.failed)} failed>"


@live("take its plan, or the report of its release()")
class FleetRestore:
    """A restore of many VMs around what the VMM restores itself: the result of `Fleet.restoring`.

    Inside its `with` block: every VM's registers and vGIC, then `apply()`, then `release()`. Leaving the block without
    `release()`, by whatever way, gives up every VM that isn't released: see `Restore`.
    """

    def __init__(
        self, policy: Policy | None, restores: dict[str, Restore], on_failure: OnFailure, threads: int
    ) -> None:
        self.failed: dict[str, Exception] = {}
        """The error of each VM that has failed so far: it is given up, and the error says the state it is in."""
        self._policy = policy or Freeze()
        self._restores = restores
        self._open = dict(restores)
        self._reports: dict[str, Report] = {}
        self._on_failure = on_failure
        self._threads = threads

    @cached_property
    def plan(self) -> FleetPlan:
        """The plan."""
        plans = {name: restore.plan for name, restore in self._restores.items()}
        return FleetPlan(self._policy, list(plans), plans, {})

    def __enter__(self) -> Self:
        """Closes all VMs, then makes each one's first step. VcpuRunning or StalePlan before anything is written."""
        self._open = dict(self._restores)
        try:
            self._step("close", "prepare")
        except BaseException as error:
            self._give_up(error)
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Gives up every VM that isn't released."""
        self._give_up(exc)

    def apply(self, *, now: int | Stamp | None = None) -> None:
        """The second step, of every VM: its vCPUs' timers, CVAL before CTL, read back."""
        self._step("apply", now=now)

    def release(self, *, at: Stamp | None = None, now: int | Stamp | None = None) -> FleetReport:
        """The last step, of every VM: each one's own sample, then its counters; its vCPUs may run.

        With `at` all go on from the instant of that stamp: see `Restore.release`.
        OtherInstant where it can't be for `at`: call it again, for the VMs that aren't released yet.
        FleetInterrupted where a VM has failed in this step or before: `reports` has what the others got.
        """
        self._step("release", at=at, now=now)
        if self.failed:
            raise self._interrupted()
        return FleetReport(self._reports)

    def _step(self, *stages: str, at: Stamp | None = None, now: int | Stamp | None = None) -> None:
        restores, stop = list(self._open.values()), self._on_failure == "stop"
        self._took(*_each_step(restores, stages, self._threads, stop=stop, at=at, now=now))

    def _took(self, outcomes: _Outcomes, last: str) -> None:
        """Takes note of steps up to this one."""
        made, failed = _sorted(list(self._open), outcomes)
        if failed and last == "close":
            self._open = {name: self._open[name] for name in made}
            _raise_first(list(failed), dict(enumerate(failed.values())))
        for name, report in made.items():
            if report is not None:
                del self._open[name]
                self._reports[name] = report
        # A stamp that isn't right for a VM is no failure of the VM's: it can still be released.
        refused = {name: error for name, error in failed.items() if isinstance(error, OtherInstant)}
        failed = {name: error for name, error in failed.items() if name not in refused}
        for name, error in failed.items():
            self._open.pop(name).__exit__(type(error), error, error.__traceback__)
            self.failed[name] = error
        if failed and self._on_failure == "stop":
            name, error = next(iter(failed.items()))
            self._stop(last, name)
            raise self._interrupted() from error
        _raise_first(list(refused), dict(enumerate(refused.values())))

    def _ended(self, outcomes: _Outcomes, last: str) -> FleetReport:
        """The reports of a restore whose steps were all made in one call."""
        try:
            self._took(outcomes, last)
        except BaseException as error:
            self._give_up(error)
            raise
        if self.failed:
            raise self._interrupted()
        return FleetReport(self._reports)

    def _stop(self, step: str, failed: str) -> None:
        """Gives up the VMs that aren't released, since one has failed: each gets an error that says its state."""
        for name, restore in self._open.items():
            why = f"{step}: given up, since VM {failed!r} failed"
            error = Interrupted(why, state="as-it-was", step=step, retry="restore")
            restore.__exit__(Interrupted, error, None)
            self.failed[name] = error
        self._open.clear()

    def _give_up(self, error: BaseException | None) -> None:
        """Gives up the VMs that aren't released. `error`, on its way, gets a note of each that stays closed."""
        opened, self._open = self._open, {}
        for restore in opened.values():
            restore.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

    def _interrupted(self) -> FleetInterrupted:
        return FleetInterrupted(
            f"{len(self.failed)} of {len(self._restores)} VMs aren't restored ({_first(self.failed)})",
            state="partly",
            step="restore",
            retry="restore",
            failed=self.failed,
            _reports=FleetReport(self._reports),
        )

    def __repr__(self) -> str:
        return f"<FleetRestore of {_some(self._restores)}>"


@live("take its report, after resume()")
class FleetPause:
    """VMs that are paused in place: the result of `Fleet.pause`. A pause that is dropped leaves its VMs closed."""

    def __init__(self, pauses: dict[str, Pause], threads: int = 1) -> None:
        self._pauses = pauses
        self._threads = threads
        self._reports: dict[str, Report] = {}
        self._over = self._entered = False

    @property
    def report(self) -> FleetReport:
        """The report of the pause's end. Misuse before it."""
        return FleetReport({name: pause.report for name, pause in self._pauses.items()})

    def resume(self, policy: Policy | None = None) -> FleetReport:
        """Ends the pause of every VM under its policy, or under `policy` instead. The guests may run when it returns.

        A VM that fails stays paused, and the others go on: FleetInterrupted names it, and another `resume()` is about
        the VMs that are still paused. Misuse where all of it is over.
        """
        if self._over:
            raise Misuse("the pause is over, and its report is at hand (report): pause() again")
        waiting = {name: pause for name, pause in self._pauses.items() if name not in self._reports}
        made, failed = _sorted(list(waiting), _each_resume(list(waiting.values()), policy, self._threads))
        self._reports |= made
        if failed:
            raise FleetInterrupted(
                f"{len(failed)} of {len(self._pauses)} VMs are still paused ({_first(failed)})",
                state="partly",
                step="resume",
                retry="resume",
                failed=failed,
                _reports=FleetReport(self._reports),
            )
        self._over = True
        return self.report

    def __enter__(self) -> Self:
        if self._over:
            raise Misuse("the pause is over: pause() again")
        if self._entered:
            raise Misuse("the pause has a `with` block already, whose end resumes the VMs")
        self._entered = True
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Resumes every VM that is still paused, by its own policy."""
        if not self._over:
            self.resume()

    def __repr__(self) -> str:
        return f"<FleetPause of {_some(self._pauses)}>"


class _OfBank(Mapping[str, GuestVm]):
    """The VMs of a bank by their names. A view of a VM is made anew each time, so that none is kept."""

    def __init__(self, bank: ClockBank, names: Sequence[str] | None) -> None:
        self._bank = bank
        self._vms = bank.vms()
        handles: list[int] = self._vms.tolist()
        self._digits = names is None
        if names is None:
            names = list(map(str, handles))
        if len(names) != len(handles):
            raise ValueError(f"{len(names)} names are given for {len(handles)} VMs: give one for each, in their order")
        if equal := _equal(names):
            raise ValueError(f"given to two VMs: {_some(equal)}")
        self._handles = dict(zip(map(_vm_name, names), handles, strict=True))

    def __getitem__(self, name: str) -> GuestVm:
        return self._bank.vm(self._handles[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)

    def has_just(self, checkpoint: Checkpoint) -> bool:
        """Returns whether the checkpoint can only be of all these VMs, each named by its handle, or of others."""
        import numpy as np

        return self._digits and len(checkpoint) == len(self) and np.array_equal(self._bank.vms(), self._vms)

    def checkpoint(
        self,
        names: list[str] | None,
        stopped_at: int | Mapping[str, int] | None,
        now: int | Stamp | None,
        sync: SyncBound | None,
    ) -> Checkpoint:
        """Saves VMs at one instant: all without `names`. A VM whose stop isn't given has stopped at it."""
        import numpy as np

        stops: int | NDArray[np.uint64] | None
        if isinstance(stopped_at, Mapping):
            counts = [stopped_at.get(name) for name in (self if names is None else names)]
            if None in counts and now is None:
                now = self._bank.counter.read()
            if None in counts and not isinstance(now, int):
                raise ValueError("stopped_at= of some VMs of a bank goes with a count as now=, or with none")
            stops = np.array([now if count is None else count for count in counts], np.uint64)
        else:
            stops = stopped_at
        # The bank makes digits of its handles by itself.
        given = list(self) if names is None and not self._digits else names
        return self._bank._checkpoint(  # noqa: SLF001 - the native half of this class
            self._array(names), names=given, now=now, stopped_at=stops, sync=sync
        )

    def restore(
        self,
        checkpoint: Checkpoint,
        matched: Mapping[str, str] | None,
        policy: Policy | None,
        options: Options | None,
        now: int | Stamp | None,
        keywords: OptionKeywords,
    ) -> FleetReport:
        """Restores all VMs of the checkpoint, or those of `matched`, by one pass: all of them or none."""
        handles = None
        if matched is not None:
            if not matched:
                return FleetReport({})
            checkpoint, handles = self._into(checkpoint, matched)
        done = self._bank._restore(  # noqa: SLF001 - the native half of this class
            checkpoint, policy, vms=handles, options=options, now=now, **keywords
        )
        return _BankReport(done, self._handles)

    def pause(self, names: list[str] | None, policy: Policy | None, views: Views) -> FleetPause:
        """Pauses VMs at one instant, all of them or none: all without `names`."""
        paused = self._bank._pause(policy, vms=self._array(names), views=views)  # noqa: SLF001 - as above
        return _BankPause(paused, self._handles if names is None else names, self._handles, policy)

    def plan(
        self,
        checkpoint: Checkpoint,
        matched: Mapping[str, str],
        policy: Policy | None,
        options: Options | None,
        now: int | Stamp | None,
        keywords: OptionKeywords,
    ) -> FleetPlan:
        """Plans the restore of the VMs of `matched` by one pass: all of them or none."""
        if not matched:
            return FleetPlan(policy or Freeze(), [], {}, {})
        checkpoint, handles = self._into(checkpoint, matched)
        planned = self._bank._plan(  # noqa: SLF001 - the native half of this class
            checkpoint, policy, vms=handles, options=options, now=now, **keywords
        )
        return _BankPlan(policy or Freeze(), planned, self._handles)

    def _into(self, checkpoint: Checkpoint, matched: Mapping[str, str]) -> tuple[Checkpoint, NDArray[np.int64]]:
        """Returns the checkpoint of just these VMs, and the handle that each goes into."""
        if len(matched) < len(checkpoint):
            checkpoint = Checkpoint.join(list(_saved(checkpoint, matched).values()))
        into = {saved: name for name, saved in matched.items()}
        return checkpoint, self._array(into[name] for name in checkpoint.names)

    def _array(self, names: Iterable[str] | None) -> NDArray[np.int64]:
        import numpy as np

        if names is None:
            return self._vms
        return np.array([self._handles[name] for name in names], np.int64)


def _by_row(set_: _SetPlan | _SetReport, handles: Mapping[str, int]) -> dict[str, int]:
    """The row of each VM of a set, in the fleet's order."""
    rows = {handle: row for row, handle in enumerate(set_.vms.tolist())}
    return {name: rows[handle] for name, handle in handles.items() if handle in rows}


class _BankPlan(FleetPlan):
    """A plan each VM of a bank, all of them accepted: each VM's own is made when it is asked for."""

    def __init__(self, policy: Policy, planned: _SetPlan, handles: Mapping[str, int]) -> None:
        self._rows = _by_row(planned, handles)
        super().__init__(policy, list(self._rows), {}, {})
        self._planned = planned

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle has a plan each VM."""
        return FleetPlan, (self.policy, self._names, dict(self), {})

    def __getitem__(self, name: str) -> Plan:
        return self._planned.plan(self._rows[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns of `FleetPlan.columns`, without a plan each VM."""
        order = list(self._rows.values())
        columns: dict[str, Sequence[Any]] = {
            "name": list(self._rows),
            "accepted": [True] * len(order),
            "refused": [""] * len(order),
        }
        for name, values in self._planned.columns().items():
            columns[name] = [values[row] for row in order]
        return {name: _column(columns[name], kind) for name, kind in _PLAN_COLUMNS.items()}


class _BankReport(FleetReport):
    """A report each VM of a bank: columns, from which each VM's own is made when it is asked for."""

    def __init__(self, done: _SetReport, handles: Mapping[str, int]) -> None:
        super().__init__({})
        self._done = done
        self._handles = handles

    @cached_property
    def _rows(self) -> dict[str, int]:
        return _by_row(self._done, self._handles)

    def __getitem__(self, name: str) -> Report:
        return self._done.report(self._rows[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._done)

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle has a report each VM."""
        return FleetReport, (dict(self),)

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns of `FleetReport.columns`, without a report each VM."""
        order = list(self._rows.values())
        columns: dict[str, Sequence[Any]] = {"name": list(self._rows)}
        for name, values in self._done.columns().items():
            columns[name] = [values[row] for row in order]
        return {name: _column(columns[name], kind) for name, kind in _REPORT_COLUMNS.items()}


@live("take its report, after resume()")
class _BankPause(FleetPause):
    """VMs of a bank that are paused from one instant on: all of them go on together, or none."""

    def __init__(
        self, paused: _PausedSet, names: Iterable[str], handles: Mapping[str, int], policy: Policy | None
    ) -> None:
        super().__init__({})
        self._paused = paused
        self._policy = policy
        self._names = names
        self._handles = handles
        self._report: FleetReport | None = None

    @property
    def report(self) -> FleetReport:
        """The report of the pause's end. Misuse before it."""
        if self._report is None:
            raise Misuse("the pause isn't over: there is a report after resume()")
        return self._report

    def resume(self, policy: Policy | None = None) -> FleetReport:
        """Ends the pause of all, at one instant. An error leaves all of them paused: call it again."""
        try:
            self._report = _BankReport(self._paused.resume(policy), self._handles)
        except FAILURES as error:
            _watched_failure("pause", error)
            raise
        self._over = True
        _watched_end("pause", self._report, policy or self._policy)
        return self._report

    def __repr__(self) -> str:
        return f"<FleetPause of {_some(self._names)}>"


def _is_watched(level: int) -> bool:
    """Returns whether anybody is told of a bank's restore: a monitor, or the logger, if `logging` is there at all."""
    logging = sys.modules.get("logging")
    logs = logging is not None and logging.getLogger("guestclock").isEnabledFor(level)
    return logs or "guestclock.tracing" in sys.modules


def _watched_end(verb: Literal["restore", "pause"], report: FleetReport, policy: Policy | None) -> None:
    if _is_watched(20):
        from guestclock import tracing

        tracing._of_bank(verb, report, repr(policy or Freeze()))  # noqa: SLF001 - for this module


def _watched_failure(verb: Literal["restore", "pause"], error: Exception) -> None:
    if _is_watched(30):
        from guestclock import tracing

        tracing._failed(None, "", verb, error)  # noqa: SLF001 - for this module


def _checked(vms: Mapping[str, GuestVm]) -> dict[str, GuestVm]:
    """Returns the VMs, if each is one, and has one name."""
    if not isinstance(vms, Mapping):
        raise TypeError(f"a fleet is a mapping of names to VMs, or a ClockBank, and {reprlib.repr(vms)} is neither")
    names: dict[int, str] = {}
    for name, vm in vms.items():
        if not isinstance(vm, GuestVm):
            raise TypeError(f"the VM {reprlib.repr(name)} is a {type(vm).__name__}, and a fleet is of GuestVms")
        if (other := names.setdefault(id(vm), name)) != name:
            raise ValueError(f"{other!r} and {name!r} are one VM: give it one name")
    return {_vm_name(name): vm for name, vm in vms.items()}


def _by_name(values: Mapping[str, _Value] | None) -> Mapping[str, _Value]:
    if values is not None and not isinstance(values, Mapping):
        raise TypeError(f"{reprlib.repr(values)} isn't a mapping of names")
    return values or {}


def _checked_word(on_failure: str) -> None:
    if on_failure not in ("finish", "stop"):
        raise ValueError(f"no on_failure={reprlib.repr(on_failure)}: finish or stop")


def _refused(accepted: list[str], refused: dict[str, Exception]) -> FleetRefused:
    return FleetRefused(
        f"{len(refused)} of {len(accepted) + len(refused)} VMs are refused, and nothing was written "
        f"({_first(refused)}): restore the others with only=, or mend these",
        accepted=accepted,
        refused=refused,
    )


def _named(checkpoint: Checkpoint) -> dict[str, Checkpoint]:
    """The saved VM of each name."""
    return dict(zip(checkpoint.names, checkpoint, strict=True))


def _saved(checkpoint: Checkpoint, matched: Mapping[str, str]) -> dict[str, Checkpoint]:
    """The saved VM of each name."""
    saved = _named(checkpoint)
    return {name: saved[of] for name, of in matched.items()}


def _raise_first(names: Sequence[str], failed: Mapping[int, Exception]) -> None:
    """Raises the first error, if there is one, with a note that names its VM."""
    for at, error in failed.items():
        error.add_note(f"VM {names[at]!r} of the fleet")
        raise error


def _sorted(
    names: Sequence[str], outcomes: tuple[Mapping[int, _Made], Mapping[int, Exception]]
) -> tuple[dict[str, _Made], dict[str, Exception]]:
    """Returns the result of each VM by its name, and the errors of those that failed."""
    made, failed = outcomes
    for error in failed.values():
        if not isinstance(error, FAILURES):
            raise error
    return {names[at]: one for at, one in made.items()}, {names[at]: error for at, error in failed.items()}


def _equal(names: Sequence[str]) -> list[str]:
    return [name for name, times in Counter(names).items() if times > 1]


def _differ(
    *, missing: Sequence[str] = (), extra: Sequence[str] = (), unknown: Sequence[str] = (), equal: Sequence[str] = ()
) -> None:
    """Raises NamesDiffer where there is such a name."""
    said = [
        f"{what} {_some(names)}"
        for what, names in (
            ("the checkpoint has no", missing),
            ("the fleet has no", [*extra, *unknown]),
            ("given twice:", equal),
        )
        if names
    ]
    if said:
        way_out = "" if equal or unknown else ': name those that both have with only=, or say by="position"'
        raise NamesDiffer(
            "; ".join(said) + way_out,
            missing=list(missing),
            extra=list(extra),
            unknown=list(unknown),
            equal=list(equal),
        )


_SOME: Final = 8
"""Names in a message; an error's attributes have all."""


def _some(names: Iterable[str]) -> str:
    every = [reprlib.repr(name) for name in names]
    more = f" and {len(every) - _SOME} more" if len(every) > _SOME else ""
    return ", ".join(every[:_SOME]) + more


def _first(errors: Mapping[str, Exception]) -> str:
    """The first error, and how many there are besides."""
    name, error = next(iter(errors.items()))
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    return f"{name!r}: {type(error).__name__}: {error}{more}"


def _codes(diagnostics: Iterable[Mapping[str, str]]) -> str:
    return ",".join(diagnostic["code"] for diagnostic in diagnostics)


_PLAN_COLUMNS: Final = {
    "name": "U",
    "accepted": "bool",
    "refused": "U",
    "method": "U",
    "evidence": "U",
    "assumptions": "U",
    "warnings": "U",
    "limits": "U",
    "added_ticks": "uint64",
    "added_ns": "uint64",
    "behind_ns": "uint64",
    "behind_error_ns": "uint64",
    "error_bound_ticks": "uint64",
    "error_bound_ns": "uint64",
    "overdue": "uint64",
}
"""Columns of a plan, with their dtypes."""
_REPORT_COLUMNS: Final = {
    "name": "U",
    "method": "U",
    "evidence": "U",
    "warnings": "U",
    "capped": "bool",
    "released_at": "uint64",
    "cntvct": "uint64",
    "cntpct": "uint64",
    "added_ticks": "uint64",
    "added_ns": "uint64",
    "backlog_ticks": "uint64",
    "behind_ns": "uint64",
    "behind_error_ns": "uint64",
    "error_bound_ticks": "uint64",
    "error_bound_ns": "uint64",
}
"""Columns of a report, with their dtypes."""


def _columns(rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    return {column: _column([row.get(column) for row in rows], kind) for column, kind in kinds.items()}


def _column(values: Sequence[Any], kind: str) -> NDArray[Any]:
    """Returns an array of this dtype, and a masked one where a number is None."""
    import numpy as np

    missing = [value is None for value in values]
    filled = [("" if kind == "U" else 0) if value is None else value for value in values]
    if kind == "uint64":
        filled = [min(value, 2**64 - 1) for value in filled]
    array: NDArray[Any] = np.array(filled, kind)
    return np.ma.MaskedArray(array, missing) if kind == "uint64" and any(missing) else array
