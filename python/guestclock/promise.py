"""The promise of each policy for a guest's clock across a pause, computed from the host's clock alone.

s0 and s1 are the host's counts at the guest's last reading before the pause and its first after. C0 is the count at the
checkpoint, or at the guest's stop where the checkpoint has it; C1 is the count at the release. Frozen, the guest's
clock runs for (C0 - s0) + (s1 - C1); advanced, for s1 - s0; advanced by at most a cap, for the first plus the cap or
for the second, whichever is less. Each count is known to lie in an interval. No gap shrinks as s1 or C0 grows, or grows
as s0 or C1 does, so the ends of a gap come from the ends of the counts.
"""

from __future__ import annotations

from dataclasses import dataclass

_NS_PER_S = 1_000_000_000


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


def expected_gap(
    policy: str,
    max_ns: int | None,
    frequency_hz: int,
    *,
    last_read: Interval,
    taken: Interval,
    released: Interval,
    first_read: Interval,
) -> Interval:
    """The ticks that a guest's counter may show between its last reading before the pause and its first after."""
    frozen = taken.minus(last_read).plus(first_read.minus(released))
    if policy == "freeze":
        return frozen
    advanced = first_read.minus(last_read)
    if max_ns is None:
        return advanced
    cap = _ticks(max_ns, frequency_hz)
    return Interval(min(advanced.low, frozen.low + cap), min(advanced.high, frozen.high + cap))


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
    return ns * frequency_hz // _NS_PER_S
