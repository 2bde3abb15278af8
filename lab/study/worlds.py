"""Random migrations, each drawn from a seed and its number alone."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Any, Final

from guestclock import Advance, CatchUp, Elapsed, Freeze
from study.corners import FREQUENCIES
from study.dice import Drawing
from study.hosts import PPB, RATE_PPB, SECOND, Host, LeapSecond, Oscillator
from study.lies import TRUTH
from study.migration import Migration

if TYPE_CHECKING:
    from collections.abc import Callable

    from study.hosts import Instant, Vouched
    from study.lies import Lie

_DAY_NS: Final = 86_400 * SECOND
_YEAR_NS: Final = 365 * _DAY_NS
_LEAP: Final = LeapSecond(1_483_228_836 * SECOND, 36)
"""The last one so far, at the end of 2016. Of every five pauses one is across it."""
_OTHER_CLOCKS: Final = {"declared": 40, "kernel": 6, "assumed": 8, "capped": 8, "catch-up": 6}
_BASES: Final = _OTHER_CLOCKS | {"told": 8, "freeze": 6, "one-counter": 10, "one-counter-capped": 2, "stepped": 2}
"""Frequency of each basis, in parts of 100."""
_BROKEN: Final = 4
"""The same, for a world in which a premise doesn't hold that guestclock can check."""


def draw(seed: int, number: int, lie: Lie = TRUTH) -> Migration:
    """Return the migration of that number."""
    return _Draw(random.Random(f"{seed}/{number}"), lie).migration()  # noqa: S311 - nothing is kept secret


class _Draw(Drawing):
    """One migration in the making."""

    def __init__(self, dice: random.Random, lie: Lie) -> None:
        self.dice = dice
        self.lie = lie
        self.frequency_hz = self._frequency()
        self.pause_ns = self._log(_YEAR_NS)
        across = dice.random() < 1 / 5
        before = dice.randint(0, self.pause_ns) if across else dice.randint(-_YEAR_NS, 2 * _YEAR_NS)
        self.taken_at = _LEAP.tai_ns - before + Fraction(dice.randrange(1_000), 1_000)

    def migration(self) -> Migration:
        """Draw one."""
        weights = [*_BASES.values(), _BROKEN]
        basis = self.dice.choices([*_BASES, "broken"], weights)[0]
        if basis == "broken":
            return self.dice.choice(BROKEN)(self)
        if basis in _OTHER_CLOCKS:
            return self._of(self.two_hosts("kernel" if basis == "kernel" else "declared", basis), basis)
        if basis == "told":
            return self._told()
        if basis == "freeze":
            return replace(self.two_hosts("nobody", basis), policy=Freeze())
        drawn = self.one_machine()
        if basis == "stepped":
            # In between it was put right, within what it declares on either side: by so little that its counter agrees
            # even so, or by more. Where that shows less than no time, it depends on which.
            here = self._host(drawn.here.oscillator, drawn.here.machine_id, drawn.steps[0])
            stepped = replace(drawn, here=replace(here, boot_id=drawn.here.boot_id))
            return drawn if _refused_if_backwards(stepped).refusal else stepped
        return self._of(drawn, basis)

    # What can be drawn.

    def _frequency(self) -> int:
        if self.dice.random() < 9 / 10:
            return self.dice.choice(FREQUENCIES)
        return self.dice.randint(1_000_000, 1_200_000_000)

    def _rate(self) -> int:
        return self._within(RATE_PPB) if self.dice.random() < 1 / 5 else self.dice.randint(-100_000, 100_000)

    def _id(self) -> str:
        return f"{self.dice.getrandbits(128):032x}"

    # Hosts.

    def _host(self, oscillator: Oscillator, machine_id: str, count: int, vouched: Vouched = "declared") -> Host:
        """Draw a wall clock for this counter, as it was last put right before this count."""
        max_error_ns = self._log(10**8, 1)
        holdover_ppb = RATE_PPB if vouched == "kernel" else self.dice.choice((0, 100, 1_000, 50_000, 200_000))
        width_ns = self._log(10**6)
        # It reads whole nanoseconds, rounded down, and is within its bound so.
        error_ns = max(self._within(max_error_ns), 1 - max_error_ns)
        read_after_ns = self._within(width_ns)
        return Host(
            oscillator,
            _LEAP,
            machine_id,
            self._id(),
            # The kernel's word means nothing once it has grown to 16 s.
            floor(oscillator.came_to(count) + read_after_ns) - self._log(_DAY_NS // (24 if vouched == "kernel" else 1)),
            error_ns,
            self._within(holdover_ppb),
            max_error_ns,
            holdover_ppb,
            width_ns,
            read_after_ns,
            vouched,
        )

    def _counter(self, at: Instant, rate_ppb: int | None = None) -> Oscillator:
        rate = self._rate() if rate_ppb is None else rate_ppb
        return Oscillator(self.frequency_hz, rate, self.dice.getrandbits(self.dice.randrange(65)), at)

    def _lying(self, host: Host) -> Host:
        """The same host with that lie: it is as far off as it goes."""
        lie, sign = self.lie, self.dice.choice((-1, 1))
        if lie.factor == 1:
            return host
        if lie.about == "sync":
            return replace(host, error_ns=sign * host.max_error_ns * lie.factor)
        if lie.about == "holdover":
            return replace(host, drift_ppb=sign * host.holdover_ppb * lie.factor)
        if lie.about == "bracket":
            return replace(host, read_after_ns=sign * host.width_ns * lie.factor)
        return host

    # Migrations.

    def _steps(self, planned: int) -> tuple[int, int, int, int]:
        counts = [planned]
        for _ in range(3):
            counts.append(counts[-1] + self._log(10 * SECOND) * self.frequency_hz // SECOND)
        plan, prepare, apply, release = counts
        return plan, prepare, apply, release

    def _guest(self, *, offset_only: bool = False) -> dict[str, Any]:
        """Draw the guest's counter, and whether its VMM had to read it."""
        guest = {"guest": self.dice.getrandbits(self.dice.randrange(1, 65))}
        if self.dice.random() < 2 / 3:
            return guest
        width = self._log(1_000_000)
        virtual = self._within(width)
        # Two readings that are equal are restored by one offset, two others each by value.
        physical = virtual if offset_only or self.dice.random() < 1 / 2 else self._within(width)
        return guest | {"width_ticks": width, "misread": (virtual, physical)}

    def two_hosts(self, vouched: Vouched, basis: str = "declared") -> Migration:
        """Draw two machines of one frequency, and one guest that goes from the first to the second."""
        there = self._counter(self.taken_at)
        here = self._counter(self.taken_at + self._log(SECOND))
        planned = here.count_at(self.taken_at + self.pause_ns) + 1
        source = self._host(there, self._id(), there.count, vouched)
        target = self._lying(self._host(here, self._id(), planned, vouched))
        drawn = Migration(
            source,
            target,
            taken=there.count,
            steps=self._steps(planned),
            policy=Advance(),
            elapsed=self.lie.word,
            **self._guest(offset_only=basis == "catch-up"),
        )
        return drawn if basis == "freeze" else _refused_if_backwards(drawn)

    def one_machine(self) -> Migration:
        """Draw one machine before and after, perhaps with another kernel."""
        # What runs apart from the wall clock is the kernel's to slew, by 500 ppm at most.
        oscillator = self._counter(self.taken_at, self.dice.randint(-100_000, 100_000))
        host = self._host(oscillator, self._id(), oscillator.count)
        boot_id = self.dice.choice((host.boot_id, self._id()))
        planned = oscillator.count_at(self.taken_at + self.pause_ns) + 1
        return Migration(
            host,
            replace(host, boot_id=boot_id),
            taken=oscillator.count,
            steps=self._steps(planned),
            policy=Advance(),
            # After a kexec, that the counter went on is the caller's word.
            elapsed=None if boot_id == host.boot_id else Elapsed.by_counter(),
            **self._guest(),
        )

    def _of(self, drawn: Migration, basis: str) -> Migration:
        """The same under another policy, or with another word for its clocks."""
        if basis in {"capped", "one-counter-capped"}:
            max_ns = self.dice.choice((self._log(2 * _YEAR_NS), self.pause_ns, self.pause_ns + self._within(10**9)))
            return replace(drawn, policy=Advance(max(0, max_ns)))
        if basis == "catch-up":
            return replace(drawn, policy=CatchUp(self._log(SECOND, 1), self._log(SECOND, 1)))
        return self._assumed(drawn) if basis == "assumed" else drawn

    def _assumed(self, drawn: Migration) -> Migration:
        """Two clocks that nobody vouches for, hours off together, and apart by what is assumed at most."""
        assumed_ns, hours_ns = self._log(10**10, 1), self._within(10**13)
        apart_ns = self._within(assumed_ns - 1)
        if self.lie.about == "sync" and self.lie.factor != 1:
            apart_ns = floor(self.dice.choice((-1, 1)) * assumed_ns * self.lie.factor)
        there, here = (
            replace(host, vouched="nobody", drift_ppb=0, error_ns=error_ns)
            for host, error_ns in ((drawn.there, hours_ns), (drawn.here, hours_ns + apart_ns))
        )
        assumed = replace(
            drawn, there=there, here=here, elapsed=Elapsed.by_wall_clocks(error_ns=assumed_ns), refusal=None
        )
        return _refused_if_backwards(assumed)

    def _told(self) -> Migration:
        """A caller that knows how long it was, but for an error."""
        drawn = replace(self.two_hosts("nobody"), refusal=None)
        assumed_ns = self._log(10**10, 1)
        passed = drawn.here.oscillator.came_to(drawn.steps[0]) - drawn.there.oscillator.came_to(drawn.taken)
        error_ns = self._within(assumed_ns - 1)
        if self.lie.about == "sync" and self.lie.factor != 1:
            error_ns = floor(self.dice.choice((-1, 1)) * assumed_ns * self.lie.factor)
        told_ns = floor(passed) + error_ns
        # Nobody says that less than no time has passed.
        return replace(drawn, elapsed=Elapsed.given(max(0, told_ns), error_ns=assumed_ns))


def _refused_if_backwards(drawn: Migration) -> Migration:
    """Two clocks that are off may show less than no time, and that is refused."""
    shown = drawn.here.clock_tai_ns(drawn.steps[0]) - drawn.there.clock_tai_ns(drawn.taken)
    return replace(drawn, refusal="ClockWentBackwards") if shown < 0 else drawn


def _unsynchronised(draw: _Draw) -> Migration:
    return _on_one_side(draw, "ElapsedUnknown", vouched="nobody")


def _tai_unknown(draw: _Draw) -> Migration:
    """Over the end of a month, where a leap second may be: and there is one."""
    draw.taken_at = Fraction(_LEAP.tai_ns - draw.dice.randint(0, draw.pause_ns))
    return _on_one_side(draw, "ElapsedUnknown", knows_tai=False)


def _saturated(draw: _Draw) -> Migration:
    return _on_one_side(draw, "ElapsedUnknown", vouched="kernel", max_error_ns=16 * SECOND)


def _on_one_side(draw: _Draw, refusal: str, **changes: Any) -> Migration:
    drawn = draw.two_hosts("declared")
    if draw.dice.random() < 1 / 2:
        return replace(drawn, there=replace(drawn.there, **changes), refusal=refusal)
    return replace(drawn, here=replace(drawn.here, **changes), refusal=refusal)


def _other_frequency(draw: _Draw) -> Migration:
    drawn = draw.two_hosts("declared")
    oscillator = replace(drawn.here.oscillator, frequency_hz=drawn.here.oscillator.frequency_hz - 1)
    return replace(drawn, here=replace(drawn.here, oscillator=oscillator), refusal="FrequencyMismatch")


def _stepped_back(draw: _Draw) -> Migration:
    """The wall clock here is behind that of the checkpoint, whatever it declares."""
    drawn = draw.two_hosts("declared")
    behind_ns = 2 * draw.pause_ns + 100 * SECOND
    return replace(drawn, here=replace(drawn.here, error_ns=-behind_ns), refusal="ClockWentBackwards")


def _years_ahead(draw: _Draw) -> Migration:
    """A wall clock that was never set."""
    drawn = draw.two_hosts("declared")
    ahead_ns = 366 * _DAY_NS + 100 * SECOND
    return replace(drawn, here=replace(drawn.here, error_ns=ahead_ns), refusal="ElapsedTooLong")


def _counter_went_back(draw: _Draw) -> Migration:
    """Somebody says that it is the same counter, and it is behind the checkpoint's."""
    drawn = draw.two_hosts("declared")
    back = drawn.steps[-1] - drawn.taken + draw.dice.randint(1, 2**62)
    oscillator = replace(drawn.here.oscillator, count=drawn.here.oscillator.count - back)
    plan, prepare, apply, release = (count - back for count in drawn.steps)
    here = replace(drawn.here, oscillator=oscillator)
    return replace(
        drawn,
        here=here,
        steps=(plan, prepare, apply, release),
        elapsed=Elapsed.by_counter(),
        refusal="ClockWentBackwards",
    )


def _stepped(draw: _Draw, vouched: Vouched, refusal: str) -> Migration:
    """One machine, of which the wall clock was stepped in between by more than its rate can account for."""
    drawn = draw.one_machine()
    here = drawn.here
    apart_ns = draw.pause_ns * 2 * RATE_PPB // PPB + 100 * SECOND
    error_ns = here.error_ns + draw.dice.randint(apart_ns, 2 * apart_ns)
    stepped = replace(here, error_ns=error_ns, vouched=vouched, boot_id=drawn.there.boot_id)
    return replace(drawn, here=stepped, elapsed=None, refusal=refusal)


def _stepped_since(draw: _Draw) -> Migration:
    """The kernel knows of the step: it is unsynchronised since. The counter is believed, with a warning."""
    return _stepped(draw, "nobody", "a warning")


def _stepped_and_vouched_for(draw: _Draw) -> Migration:
    """The one who vouches for it doesn't know of the step: its counter contradicts him."""
    return _stepped(draw, "declared", "ClocksDisagree")


BROKEN: Final[tuple[Callable[[_Draw], Migration], ...]] = (
    _unsynchronised,
    _tai_unknown,
    _saturated,
    _other_frequency,
    _stepped_back,
    _years_ahead,
    _counter_went_back,
    _stepped_since,
    _stepped_and_vouched_for,
)
