"""Parts beside `ModelVm` for an emulator or a simulator: many VMs as columns, deadlines, arithmetic on arrays.

`ClockBank` holds many model VMs as columns, `DeadlineQueue` has the deadlines of guests that keep their own registers,
and `DeadlineAlarm` waits for either. `ScaledCounter` is a counter at another frequency. `sysreg` names a register as a
guest's instruction does, for `ModelVm.access`, `ModelVm.read_sysreg` and `ModelVm.write_sysreg`.
"""

from enum import IntEnum

from guestclock import types as _types  # noqa: F401 - a first expiry has to find its records loaded
from guestclock._core import (
    NO_DEADLINE,
    ClockBank,
    DeadlineAlarm,
    DeadlineQueue,
    ScaledCounter,
    isa,
    ns_to_ticks,
    recompute_offsets,
    sysreg,
    ticks_to_ns,
)

__all__ = [
    "NO_DEADLINE",
    "Added",
    "ClockBank",
    "DeadlineAlarm",
    "DeadlineQueue",
    "ScaledCounter",
    "isa",
    "ns_to_ticks",
    "recompute_offsets",
    "sysreg",
    "ticks_to_ns",
]


class Added(IntEnum):
    """Rule by which `recompute_offsets` adds ticks to a guest's counter."""

    NOTHING = 0
    """Nothing: `Freeze`, and `CatchUp`, which owes it."""
    COUNTED = 1
    """The ticks since the checkpoint, on the same counter: `Advance`."""
    COUNTED_UP_TO = 2
    """The same, at most `max_ns`."""
    ELAPSED = 3
    """`elapsed_ns`, which two wall clocks or the caller said: `Advance` on another counter."""
    ELAPSED_UP_TO = 4
    """The same, at most `max_ns`."""
