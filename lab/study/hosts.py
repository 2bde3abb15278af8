"""The simulated world: hosts with a counter and a wall clock, in exact fractions.

True time is TAI, in nanoseconds since 1970: an instant is an int or a Fraction of them. Nothing here uses guestclock's
arithmetic.

The instant of a count is the one at which the counter came to it. The wall clock is what CLOCK_REALTIME reads, whole
nanoseconds rounded down, at an instant up to `width_ns` before or after that of the count.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from guestclock import Stamp, SyncBound

if TYPE_CHECKING:
    from typing import Any

SECOND: Final = 10**9
"""In nanoseconds."""
PPB: Final = 10**9
RATE_PPB: Final = 500_000
"""Largest error of an honest counter's rate: the most that the kernel slews by (MAXFREQ in
include/linux/timex.h)."""

Instant: TypeAlias = int | Fraction
Vouched: TypeAlias = Literal["declared", "kernel", "nobody"]


@dataclass(frozen=True, slots=True)
class Oscillator:
    """A counter that never stops: two hosts with the same one are the same machine, before and after."""

    frequency_hz: int
    """The nominal frequency."""
    rate_ppb: int
    """Error of the rate: positive where the counter runs fast."""
    count: int
    """A count, not reduced modulo 2^64..."""
    at: Instant
    """...and the instant at which it came to it."""

    def came_to(self, count: int) -> Fraction:
        """Return the instant of the count."""
        # In one step, as the sum of `at` and `lasts` is: a study takes a million of these.
        ticks, part = count - self.count, self.at.denominator
        each = self.frequency_hz * (PPB + self.rate_ppb)
        return Fraction(self.at.numerator * each + ticks * SECOND * PPB * part, each * part)

    def lasts(self, ticks: int) -> Fraction:
        """Return how long so many of its ticks really last, in nanoseconds."""
        return Fraction(ticks * SECOND * PPB, self.frequency_hz * (PPB + self.rate_ppb))

    def count_at(self, instant: Instant) -> int:
        """Return what it reads."""
        ticks = Fraction(instant - self.at) * self.frequency_hz * (PPB + self.rate_ppb) / (SECOND * PPB)
        return self.count + floor(ticks)


@dataclass(frozen=True, slots=True)
class LeapSecond:
    """The end of a day on which 23:59:59 is followed by another second, in UTC 23:59:60."""

    tai_ns: int
    """When that second begins."""
    before_s: int
    """TAI - UTC until then; a second more afterwards."""

    def of_kernel(self, tai_ns: int) -> tuple[int, str]:
        """Return TAI - UTC and the leap-second state, where CLOCK_TAI reads `tai_ns`.

        The kernel sets CLOCK_REALTIME back by a second as it would come to midnight, TAI - UTC up in the same moment,
        and CLOCK_TAI goes on (second_overflow in kernel/time/ntp.c, accumulate_nsecs_to_secs in timekeeping.c).
        """
        if tai_ns < self.tai_ns:
            return self.before_s, "insert" if tai_ns >= self.tai_ns - 86_400 * SECOND else "none"
        return self.before_s + 1, "in-progress" if tai_ns < self.tai_ns + SECOND else "passed"


@dataclass(frozen=True, slots=True)
class Host:
    """A host: its counter, its wall clock with its error, and what it says of that."""

    oscillator: Oscillator
    leap: LeapSecond
    machine_id: str
    boot_id: str
    synced_at: Instant
    """When its wall clock was last put right."""
    error_ns: Instant
    """Error that was left then: positive where the clock was ahead of UTC."""
    drift_ppb: Instant
    """Rate at which it has gained since."""
    max_error_ns: int
    """Declared bound of that error."""
    holdover_ppb: int
    """Declared bound of the drift."""
    width_ns: int = 0
    read_after_ns: Instant = 0
    """Time from the instant of the count to the reading of the wall clock; negative for before."""
    vouched: Vouched = "declared"
    knows_tai: bool = True

    def read_at(self, count: int) -> Fraction:
        """Return when the wall clock is read for the stamp at this count."""
        return self.oscillator.came_to(count) + self.read_after_ns

    def clock_tai_ns(self, count: int) -> int:
        """Return what CLOCK_TAI reads for the stamp at this count: instant and error, rounded down."""
        return self._clock_tai_ns(self.read_at(count))

    def _clock_tai_ns(self, read_at: Fraction) -> int:
        # read_at + error_ns + (read_at - synced_at) * drift_ppb / PPB, over one denominator and unreduced: fast.
        (at, at_part), (synced, synced_part) = _parts(read_at), _parts(self.synced_at)
        (error, error_part), (drift, drift_part) = _parts(self.error_ns), _parts(self.drift_ppb)
        still = (at * error_part + error * at_part) * synced_part * drift_part * PPB
        drifted = (at * synced_part - synced * at_part) * error_part * drift
        return (still + drifted) // (at_part * error_part * synced_part * drift_part * PPB)

    def age_ns(self, count: int) -> int:
        """Return how long ago the last synchronisation is when the wall clock is read, rounded up."""
        return self._age_ns(self.read_at(count))

    def _age_ns(self, read_at: Fraction) -> int:
        return max(0, ceil(read_at - self.synced_at))

    def sync(self, count: int) -> SyncBound | None:
        """Return what the host declares of its wall clock at this count, where it does."""
        if self.vouched != "declared":
            return None
        return SyncBound(self.max_error_ns, age_ns=self.age_ns(count), holdover_ppb=self.holdover_ppb)

    def stamp(self, count: int) -> Stamp:
        """Return the stamp at this count, as guestclock takes it."""
        read_at = self.read_at(count)
        tai_ns = self._clock_tai_ns(read_at)
        ahead_s, leap = self.leap.of_kernel(tai_ns)
        known: dict[str, Any] = {"synchronized": None, "max_error_ns": None}
        if self.vouched == "kernel":
            # The kernel makes it grow by itself.
            grown = -(-self._age_ns(read_at) * self.holdover_ppb // PPB)
            known = {"synchronized": True, "max_error_ns": self.max_error_ns + grown}
        elif self.vouched == "nobody":
            known["synchronized"] = False
        return Stamp(
            count=count % 2**64,
            frequency_hz=self.oscillator.frequency_hz,
            source="cntvct_el0",
            realtime_ns=tai_ns - ahead_s * SECOND,
            width_ns=self.width_ns,
            tai_offset_s=ahead_s if self.knows_tai else None,
            leap=leap,
            machine_id=self.machine_id,
            boot_id=self.boot_id,
            **known,
        )


def _parts(value: Instant) -> tuple[int, int]:
    return value.numerator, value.denominator
