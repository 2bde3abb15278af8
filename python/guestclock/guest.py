"""Pages of a guest's memory that tell it about its time, and the wall clock that it is set to.

`VmClock` is the vmclock page, `ClockEquation` the equation that it carries, `StolenTime` a PV time record of a vCPU,
and `clock_settime` the arguments of a guest agent's call. `find_pages` finds a guest's pages by its checkpoint, and
`keep_fresh` renews a page's clock in a thread.
"""

from guestclock._core import ClockEquation, StolenTime, VmClock, VmClockUpdate, clock_settime
from guestclock.pages import GuestPages, find_pages, keep_fresh

__all__ = [
    "ClockEquation",
    "GuestPages",
    "StolenTime",
    "VmClock",
    "VmClockUpdate",
    "clock_settime",
    "find_pages",
    "keep_fresh",
]
