"""Fleets of a bank's VMs: saved, planned, restored and paused by one pass over its columns, all of them or none."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from guestclock._core import Checkpoint, ClockBank, Freeze, GuestVm, Plan, Report, _vm_name
from guestclock.errors import Misuse
from guestclock.fleet.names import given_twice, listed, saved_by_name
from guestclock.fleet.outcomes import FAILURES
from guestclock.fleet.results import PLAN_COLUMNS, REPORT_COLUMNS, FleetPlan, FleetReport, column_of
from guestclock.fleet.stepwise import FleetPause, interrupted_pause
from guestclock.live import live

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from guestclock._core import _PausedSet, _SetPlan, _SetReport
    from guestclock.types import OptionKeywords, Options, Policy, Stamp, SyncBound, Views


class OfBank(Mapping[str, GuestVm]):
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
        if equal := given_twice(names):
            raise ValueError(f"given to two VMs: {listed(equal)}")
        self._handles = dict(zip(map(_vm_name, names), handles, strict=True))

    def __getitem__(self, name: str) -> GuestVm:
        return self._bank.vm(self._handles[name])

    def __contains__(self, name: object) -> bool:
        return name in self._handles

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
        """Saves VMs at one instant: all without `names`. Without its stop a VM has stopped at it, or at its pause."""
        stops: int | list[int | None] | None
        if isinstance(stopped_at, Mapping):
            stops = [stopped_at.get(name) for name in (self if names is None else names)]
        else:
            stops = stopped_at
        # The bank makes digits of its handles by itself.
        under = list(self) if names is None and not self._digits else names
        return self._bank._checkpoint(  # noqa: SLF001 - the native half of this class
            self._array(names), names=under, now=now, stopped_at=stops, sync=sync
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
        return BankReport(done, self._handles)

    def pause(self, names: list[str] | None, policy: Policy | None, views: Views) -> FleetPause:
        """Pauses VMs at one instant, all of them or none: all without `names`."""
        paused = self._bank._pause(policy, vms=self._array(names), views=views)  # noqa: SLF001 - as above
        return BankPause(paused, self._handles if names is None else names, self._handles, policy)

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
        return BankPlan(policy or Freeze(), planned, self._handles)

    def _into(self, checkpoint: Checkpoint, matched: Mapping[str, str]) -> tuple[Checkpoint, NDArray[np.int64]]:
        """Returns the checkpoint of just these VMs, and the handle that each goes into."""
        if len(matched) < len(checkpoint):
            checkpoint = Checkpoint.join(list(saved_by_name(checkpoint, matched).values()))
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


class BankPlan(FleetPlan):
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
        return {name: column_of(columns[name], kind) for name, kind in PLAN_COLUMNS.items()}


class BankReport(FleetReport):
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
        return {name: column_of(columns[name], kind) for name, kind in REPORT_COLUMNS.items()}


@live("take its report, after resume()")
class BankPause(FleetPause):
    """VMs of a bank that are paused from one instant on: all of them go on together, or none."""

    def __init__(
        self, paused: _PausedSet, names: Iterable[str], handles: Mapping[str, int], policy: Policy | None
    ) -> None:
        super().__init__({}, {})
        self._paused = paused
        self._policy = policy
        self._names = list(names)
        self._handles = handles
        self._done: FleetReport = FleetReport({})

    def _report(self) -> FleetReport:
        return self._done

    def resume(self, policy: Policy | None = None) -> FleetReport:
        """Ends the pause of all, at one instant. An error leaves all of them paused: call it again.

        VMs that were restored meanwhile have left the pause, as removed ones have, and the others go on: then
        FleetInterrupted names them, with an empty `retry`. Misuse where none is left.
        """
        try:
            done = self._paused.resume(policy)
        except FAILURES as error:
            watched_failure("pause", error)
            raise
        self._done, self._over = BankReport(done, self._handles), True
        watched_end("pause", self._done, policy or self._policy)
        overtaken = set(done.overtaken.tolist())
        left: dict[str, Exception] = {
            name: Misuse("another restore or pause of this VM came after this one, which is over: pause() again")
            for name in self._names
            if self._handles[name] in overtaken
        }
        if left:
            raise interrupted_pause(len(self._names), left, left, self._done)
        return self._done


def _is_watched(level: int) -> bool:
    """Returns whether anybody is told of a bank's restore: a monitor, or the logger, if `logging` is there at all."""
    logging = sys.modules.get("logging")
    logs = logging is not None and logging.getLogger("guestclock").isEnabledFor(level)
    return logs or "guestclock.tracing" in sys.modules


def watched_end(verb: Literal["restore", "pause"], report: FleetReport, policy: Policy | None) -> None:
    """Tells those who watch that a bank's VMs are restored, or go on."""
    if _is_watched(20):
        from guestclock import tracing

        tracing._of_bank(verb, report, repr(policy or Freeze()))  # noqa: SLF001 - for this module


def watched_failure(verb: Literal["restore", "pause"], error: Exception) -> None:
    """Tells those who watch that a bank's VMs are as they were."""
    if _is_watched(30):
        from guestclock import tracing

        tracing._failed(None, "", verb, error)  # noqa: SLF001 - for this module
