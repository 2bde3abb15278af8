"""The promise of each policy for a guest's clock across a pause, computed from the host's clock alone.

The guest's clock falls behind the host's counter by the time away, from the stop or the checkpoint to the release, less
what the policy gives. Each count is known to lie in an interval, and the ends of what is promised come from their ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from guestclock.units import S


@dataclass(frozen=True, slots=True)
class Interval:
    """Counts from `low` to `high`, both included."""

    low: int
    high: int

    @property
    def width(self) -> int:
        """Ticks from end to end: 0 for an exact count."""
        return self.high - self.low

    def plus(self, other: Interval) -> Interval:
        """The interval of the sums of a count from each."""
        return Interval(self.low + other.low, self.high + other.high)

    def minus(self, other: Interval) -> Interval:
        """The interval of the differences of a count from each."""
        return Interval(self.low - other.high, self.high - other.low)

    def distance(self, count: int) -> int:
        """Distance from `count` to the interval, in ticks; 0 inside."""
        return max(self.low - count, count - self.high, 0)


def expected_shift(
    policy: str,
    max_ns: int | None,
    frequency_hz: int,
    *,
    taken: Interval,
    released: Interval,
    step_ns: int = 0,
    steps: int = 0,
) -> Interval:
    """The ticks by which a guest's counter may be behind the host's after the pause, and after so many steps of it.

    A catch-up gives what an advance by at most `max_ns` gives, then `step_ns` a step, until nothing is left.
    """
    away = released.minus(taken)
    if policy == "freeze":
        return away
    if max_ns is None and policy == "advance":
        return Interval(0, 0)
    cap = _ticks(max_ns or 0, frequency_hz) + steps * _ticks(step_ns, frequency_hz)
    return Interval(max(0, away.low - cap), max(0, away.high - cap))


def _ticks(ns: int, frequency_hz: int) -> int:
    return ns * frequency_hz // S
