"""Objects that live in one process: no pickle or copy holds one, and each says what to take instead."""

from __future__ import annotations

import copyreg
from typing import TYPE_CHECKING, Any, Final, TypeVar

from guestclock._core import (
    ClockBank,
    DeadlineAlarm,
    DeadlineQueue,
    FaultyVm,
    HostCounter,
    KvmVm,
    ManualCounter,
    ModelVm,
    MonotonicCounter,
    Pause,
    Restore,
    Running,
    ScaledCounter,
    Step,
    StolenTime,
    TracedVm,
    VmClock,
    VmClockUpdate,
    _PausedSet,
    _SetPlan,
    _SetReport,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_Class = TypeVar("_Class", bound=type)


def live(instead: str) -> Callable[[_Class], _Class]:
    """Make a class whose objects refuse pickle and copy, with a sentence that says what to take instead."""

    def decorate(cls: _Class) -> _Class:
        def refuse(_: object) -> tuple[Any, ...]:
            raise TypeError(f"a {cls.__name__} lives in this process, and no pickle or copy holds it: {instead}")

        copyreg.pickle(cls, refuse)
        return cls

    return decorate


_VM: Final = "take its checkpoint(), and restore that into a VM made there"
_COUNTER: Final = "take its stamp(), and make a counter there"
_PAGE: Final = "it is a view of the guest's memory, so make one of the same page there"
_ALARM: Final = "take the deadlines, and arm a queue with them there"
for _class, _instead in {
    ModelVm: _VM,
    KvmVm: _VM,
    TracedVm: _VM,
    FaultyVm: _VM,
    ClockBank: "take Fleet(bank).checkpoint(), and restore that into a bank made there",
    Restore: "take its plan or its report",
    Pause: "take its report, after resume()",
    Running: "make one where the vCPU runs",
    Step: "take the VM's next_step() where the VM is",
    HostCounter: _COUNTER,
    MonotonicCounter: _COUNTER,
    ManualCounter: _COUNTER,
    ScaledCounter: _COUNTER,
    DeadlineQueue: _ALARM,
    DeadlineAlarm: _ALARM,
    StolenTime: _PAGE,
    VmClock: _PAGE,
    VmClockUpdate: "take the ClockEquation that it publishes",
    _PausedSet: "take the report of its resume()",
    _SetPlan: "take the FleetPlan that it is in",
    _SetReport: "take the FleetReport that it is in",
}.items():
    live(_instead)(_class)
