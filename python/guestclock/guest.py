"""Pages of a guest's memory that tell it about its time, and the wall clock that it is set to.

`VmClock` is the vmclock page, `ClockEquation` the equation that it carries, `StolenTime` a PV time record of a vCPU,
and `clock_settime` the arguments of a guest agent's call.
"""

from guestclock._core import ClockEquation, StolenTime, VmClock, VmClockUpdate, clock_settime

__all__ = ["ClockEquation", "StolenTime", "VmClock", "VmClockUpdate", "clock_settime"]
