"""Time between two checkpoints, on the host and in the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

from guestclock._core import _RATE_TOLERANCE_PPM
from guestclock.inspection.checkpoint import stamp
from guestclock.inspection.words import signed, to_ns
from guestclock.stop import cntvct_at_the_stop

if TYPE_CHECKING:
    from guestclock._core import Checkpoint
    from guestclock.types import Stamp


class Elapsed(TypedDict):
    """From one checkpoint to another. Negative where it went backwards."""

    host_ns: int | None
    """None where a host isn't known."""
    host_by: Literal["counter", "wall clock"] | None
    """The counter, where both were taken by it in one boot, and the host didn't sleep."""
    guest_ticks: int
    """Guest's time, by CNTVCT_EL0 at both stops where they are known, modulo 2^64."""
    guest_ns: int | None
    """None where the frequencies differ."""
    hidden_ns: int | None
    """Host's time that the guest didn't see: the pauses. Negative where it saw more than there was."""
    known_to_ns: int | None
    """Distance of that from the truth at most, if the clocks were right."""


def elapsed(one: Checkpoint, other: Checkpoint) -> Elapsed:
    """Return what passed from `one` to `other`."""
    hz = one.frequency_hz
    guest_ticks = signed(cntvct_at_the_stop(other) - cntvct_at_the_stop(one))
    passed: Elapsed = {
        "host_ns": None,
        "host_by": None,
        "guest_ticks": guest_ticks,
        "guest_ns": to_ns(guest_ticks, hz) if hz == other.frequency_hz else None,
        "hidden_ns": None,
        "known_to_ns": None,
    }
    if stamp(one) is not None and stamp(other) is not None:
        host_ns, error_ns, passed["host_by"] = _host(one.stamp, other.stamp)
        passed["host_ns"] = host_ns
        if passed["guest_ns"] is not None:
            passed["hidden_ns"] = host_ns - passed["guest_ns"]
            # Three roundings to a nanosecond.
            width_ticks = one.virtual_width_ticks + other.virtual_width_ticks
            passed["known_to_ns"] = error_ns + to_ns(width_ticks, hz) + 3
    return passed


def _host(one: Stamp, other: Stamp) -> tuple[int, int, Literal["counter", "wall clock"]]:
    """Return how long by the host, how far that may be off, and by which of its clocks."""
    if _same_counter(one, other):
        return to_ns(signed(other.count - one.count), one.frequency_hz), 0, "counter"
    ns = other.realtime_ns - one.realtime_ns
    return ns, one.width_ns + other.width_ns + abs(ns) * _RATE_TOLERANCE_PPM // 1_000_000, "wall clock"


def _same_counter(one: Stamp, other: Stamp) -> bool:
    """True if it was one counter, which counted all the time: in one boot, and with no sleep of the host in between."""

    def name(stamp: Stamp) -> tuple[object, ...]:
        return stamp.source, stamp.frequency_hz, stamp.boot_id

    return (
        name(one) == name(other)
        and one.boot_id is not None
        and not one.source.endswith("_local")
        and _awake(one, other)
    )


def _awake(one: Stamp, other: Stamp) -> bool:
    """True if the host may have slept as long before the one as before the other."""
    if one.slept_ns is None or other.slept_ns is None:
        return True
    apart = other.slept_ns - one.slept_ns
    return -(other.slept_width_ns or 0) <= apart <= (one.slept_width_ns or 0)
