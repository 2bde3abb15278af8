"""Every corner of the assumptions: each of them at both of its ends, in all combinations, for a set of frequencies.

A corner is built backwards, from what the wall clocks read to the instants at which they can have read it. So each
reading is off by exactly what is declared, and the elapsed time in ticks has exactly the fraction that rounding loses
least of, or most.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from math import gcd
from typing import TYPE_CHECKING, Final, TypeAlias

from guestclock import Advance, CatchUp, Elapsed, Freeze
from study.hosts import PPB, RATE_PPB, SECOND, Host, LeapSecond, Oscillator
from study.lies import TRUTH
from study.migration import Migration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from study.hosts import Instant, Vouched
    from study.lies import Lie

FREQUENCIES: Final = (
    1_000_000,
    19_200_000,
    24_000_000,
    25_000_000,
    54_000_000,
    62_500_000,
    83_333_333,
    100_000_000,
    121_875_000,
    1_000_000_000,
    1_050_000_000,
    2**32 - 1,
)
"""Those of real machines, 1 MHz, and the highest that a CNTFRQ_EL0 can state."""

Key: TypeAlias = tuple[str, int, int]
"""Class, frequency, and which of its parameters: one bound."""
Corner: TypeAlias = tuple[Key, Migration]

_READ_NS: Final = 1_483_228_836 * SECOND
"""Reading of CLOCK_TAI at the checkpoint: as the last leap second began, in 2016."""
_YEAR_NS: Final = 365 * 86_400 * SECOND
_GUEST: Final = 2**64 - 12_345
"""The guest's counter wraps in the pause."""
_TAKEN: Final = 2**64 - 10**12
_RELEASED: Final = 2**64 + 7
"""So do both hosts'. The second is ahead of the first, so that only the clocks say that it is another counter."""
_SIGNS: Final = (-1, 1)


@dataclass(frozen=True, slots=True)
class _Declared:
    """The values that one host declares."""

    max_error_ns: int = 0
    age_ns: int = 0
    holdover_ppb: int = 0
    width_ns: int = 0


@dataclass(frozen=True, slots=True)
class _Case:
    """The parameters that a bound depends on."""

    there: _Declared = _Declared()
    here: _Declared = _Declared()
    width_ticks: int | None = None
    delay_ns: int = 0
    """From the plan to the release."""

    def delay(self, frequency_hz: int) -> int:
        """Return the same in ticks: a number of which the error of a rate that is 500 ppm slow is whole."""
        slow = PPB // RATE_PPB - 1
        return self.delay_ns * frequency_hz // SECOND // slow * slow

    @property
    def total_ns(self) -> int:
        """More than all that can be wrong."""
        sides = (self.there, self.here)
        drift = sum(side.age_ns * side.holdover_ppb // PPB + 1 for side in sides)
        return drift + sum(side.max_error_ns + side.width_ns for side in sides)


_CASES: Final = (
    _Case(),
    _Case(_Declared(1), _Declared(3, width_ns=7)),
    _Case(_Declared(20_000_000, 86_400 * SECOND, 50_000, 100_000), _Declared(250, width_ns=21)),
    _Case(
        _Declared(500, 10 * SECOND, 50_000, 41),
        _Declared(1_000_000, 3_600 * SECOND, 1_000, 1_000),
        width_ticks=25,
        delay_ns=10 * SECOND,
    ),
    # Hold-overs of no whole nanosecond.
    _Case(_Declared(7, 123_456_789, 333, 10), _Declared(11, 987_654_321, 77), width_ticks=3, delay_ns=SECOND),
)


def corners(lie: Lie = TRUTH, frequencies: tuple[int, ...] = FREQUENCIES) -> Iterator[Corner]:
    """Return all corners; those of one key have one bound."""
    for frequency_hz in frequencies:
        for number, case in enumerate(_CASES):
            for basis, migration in _of_case(frequency_hz, case, lie):
                yield (basis, frequency_hz, number), migration


def _of_case(frequency_hz: int, case: _Case, lie: Lie) -> Iterator[tuple[str, Migration]]:
    for elapsed_ns in _elapsed(frequency_hz, case):
        for migration in _two_clocks(frequency_hz, case, elapsed_ns, lie):
            yield "declared", migration
            # The rest of what these two clocks do is the same; it is enough to see it without a delay.
            if migration.steps[0] == migration.steps[-1]:
                yield "catch-up", replace(migration, policy=CatchUp(SECOND, 2 * SECOND))
                for max_ns in (elapsed_ns - 1, elapsed_ns, elapsed_ns + case.total_ns):
                    yield "capped", replace(migration, policy=Advance(max_ns))
        if not case.delay_ns:
            for migration in _two_clocks(frequency_hz, case, elapsed_ns, lie, vouched="kernel"):
                yield "kernel", migration
        for migration in _assumed(frequency_hz, case, elapsed_ns, lie):
            yield "assumed", migration
        for migration in _told(frequency_hz, case, elapsed_ns, lie):
            yield "told", migration
    for migration in _one_counter(frequency_hz, case):
        yield "one-counter", migration
        yield "one-counter-capped", replace(migration, policy=Advance(_YEAR_NS // 3))
        yield "freeze", replace(migration, policy=Freeze())


def _elapsed(frequency_hz: int, case: _Case) -> list[int]:
    """Elapsed times of which rounding to ticks loses nothing, and as much as it can; both short, and both of a year."""
    shared = gcd(frequency_hz, SECOND)
    # f * ns leaves remainders that are multiples of `shared`; the largest is all but that of a tick.
    modulus = SECOND // shared
    most = -pow(frequency_hz // shared, -1, modulus) % modulus if modulus > 1 else 0
    starts = [-(-start // modulus) * modulus for start in (2 * case.total_ns, _YEAR_NS)]
    return [start + rest for start in starts for rest in sorted({0, most})]


def _two_clocks(
    frequency_hz: int, case: _Case, elapsed_ns: int, lie: Lie, vouched: Vouched = "declared"
) -> Iterator[Migration]:
    leap = LeapSecond(_READ_NS + elapsed_ns // 2, 36)
    planned = _RELEASED - case.delay(frequency_hz)
    for signs in product(_signs(case.there), _signs(case.here), _misread(case)):
        there_signs, here_signs, misread = signs
        there = _host("1", Oscillator(frequency_hz, 0, _TAKEN, _READ_NS), case.there, there_signs, leap, vouched)
        for rate_ppb in (-RATE_PPB, 0, RATE_PPB) if case.delay_ns else (0,):
            oscillator = Oscillator(frequency_hz, rate_ppb, planned, _READ_NS + elapsed_ns)
            here = _host("2", oscillator, case.here, here_signs, leap, vouched, lie)
            yield Migration(
                there,
                here,
                _GUEST,
                _TAKEN,
                (planned, planned, planned, _RELEASED),
                Advance(),
                lie.word,
                width_ticks=case.width_ticks,
                misread=misread,
            )


def _assumed(frequency_hz: int, case: _Case, elapsed_ns: int, lie: Lie) -> Iterator[Migration]:
    """Two wall clocks that are both hours off, and apart by what the caller says at most."""
    assumed_ns, hours_ns = case.here.max_error_ns, 10_000 * SECOND
    there_apart, here_apart = replace(case.there, max_error_ns=0), replace(case.here, max_error_ns=assumed_ns)
    plain = replace(case, there=_still(there_apart), here=_still(here_apart), delay_ns=0)
    for migration in _two_clocks(frequency_hz, plain, elapsed_ns, lie, vouched="nobody"):
        there, here = (_earlier(host, hours_ns) for host in (migration.there, migration.here))
        word = Elapsed.by_wall_clocks(error_ns=assumed_ns)
        yield replace(migration, there=there, here=here, elapsed=word)


def _still(declared: _Declared) -> _Declared:
    return replace(declared, age_ns=0, holdover_ppb=0)


def _earlier(host: Host, ns: int) -> Host:
    """The same host with the same readings, each so much earlier: its wall clock is further ahead by that."""
    oscillator = replace(host.oscillator, at=host.oscillator.at - ns)
    return replace(host, oscillator=oscillator, synced_at=host.synced_at - ns, error_ns=host.error_ns + ns)


def _told(frequency_hz: int, case: _Case, elapsed_ns: int, lie: Lie) -> Iterator[Migration]:
    assumed_ns = case.here.max_error_ns
    there = _plain(Oscillator(frequency_hz, 0, _TAKEN, _READ_NS), "1")
    planned = _RELEASED - case.delay(frequency_hz)
    signs = _SIGNS if assumed_ns else (0,)
    for sign, rate_ppb, misread in product(signs, (-RATE_PPB, RATE_PPB), _misread(case)):
        planned_at = _READ_NS + elapsed_ns - sign * assumed_ns * lie.of("sync")
        here = _plain(Oscillator(frequency_hz, rate_ppb, planned, planned_at), "2")
        yield Migration(
            there,
            here,
            _GUEST,
            _TAKEN,
            (planned, planned, planned, _RELEASED),
            Advance(),
            elapsed=Elapsed.given(elapsed_ns, error_ns=assumed_ns),
            width_ticks=case.width_ticks,
            misread=misread,
        )


def _one_counter(frequency_hz: int, case: _Case) -> Iterator[Migration]:
    """A live update: of its wall clock only the rate matters, which is within 500 ppm of the counter's."""
    for rate_ppb, boot_id, misread in product((-RATE_PPB, 0, RATE_PPB), ("1", "2"), _misread(case)):
        host = _plain(Oscillator(frequency_hz, rate_ppb, _TAKEN, _READ_NS), "1")
        for ticks in (0, 1, frequency_hz * (_YEAR_NS // SECOND)):
            released = _TAKEN + ticks
            here = replace(host, boot_id=boot_id * 32)
            steps = (released, released, released, released)
            # After a kexec the boot id is another: that the counter went on is the caller's word.
            word = None if boot_id == "1" else Elapsed.by_counter()
            yield Migration(
                host, here, _GUEST, _TAKEN, steps, Advance(), word, width_ticks=case.width_ticks, misread=misread
            )


def _plain(oscillator: Oscillator, machine: str) -> Host:
    leap = LeapSecond(_READ_NS + SECOND, 36)
    return Host(oscillator, leap, machine * 32, "1" * 32, _READ_NS, 0, 0, 0, 0, vouched="nobody")


def _signs(declared: _Declared) -> list[tuple[int, int, int]]:
    """Signs of the error, the drift and the reading's place: 0 for what has no two ends."""
    drifts = declared.age_ns * declared.holdover_ppb
    error, drift, place = (_SIGNS if end else (0,) for end in (declared.max_error_ns, drifts, declared.width_ns))
    return list(product(error, drift, place))


def _misread(case: _Case) -> list[tuple[int, int]]:
    width = case.width_ticks or 0
    return [(sign * width, sign * width) for sign in (_SIGNS if width else (0,))]


def _host(
    machine: str,
    oscillator: Oscillator,
    declared: _Declared,
    signs: tuple[int, int, int],
    leap: LeapSecond,
    vouched: Vouched,
    lie: Lie = TRUTH,
) -> Host:
    """A host whose CLOCK_TAI reads exactly what the oscillator's instant says, by errors at the ends that `signs` says.

    True time is what gives way: at the oscillator's count it is as far from that reading as the errors are.
    """
    in_error, in_drift, in_place = signs
    error_ns = in_error * declared.max_error_ns * lie.of("sync")
    drift_ppb = in_drift * declared.holdover_ppb * lie.of("holdover")
    read_at: Instant = oscillator.at - error_ns - declared.age_ns * drift_ppb / PPB
    read_after_ns = in_place * declared.width_ns * lie.of("bracket")
    return Host(
        replace(oscillator, at=Fraction(read_at - read_after_ns)),
        leap,
        machine * 32,
        machine * 32,
        read_at - declared.age_ns,
        error_ns,
        drift_ppb,
        declared.max_error_ns,
        declared.holdover_ppb,
        declared.width_ns,
        read_after_ns,
        vouched,
    )
