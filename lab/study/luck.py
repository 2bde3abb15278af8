"""Migrations and pauses between hosts that are unlucky, or that lie: each drawn from a seed and its number alone.

Bad luck is what the table of evidence has rows for: a host that boots anew, sleeps, has its wall clock stepped, or sits
in a time namespace, golden images, containers, a stamp without a boot id. A *premise* is broken where something happens
that a report's assumptions exclude. `broken` says which assumptions that are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from guestclock import Advance, CatchUp, Elapsed, Freeze, SyncBound
from study.corners import FREQUENCIES
from study.dice import Drawing
from study.hosts import PPB, SECOND, Oscillator
from study.life import LEAP, Life, WallClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestclock.types import Policy
    from study.life import Meanwhile, Taken

_DAY_NS: Final = 86_400 * SECOND
_YEAR_NS: Final = 365 * _DAY_NS
_STEADY: Final = frozenset({"same-boot", "same-counter", "host-not-suspended"})
"""The assumptions that a counter has counted all the time."""
_STOPPED: Final = _STEADY | {"boot-time-counted-sleep"}
_LIES: Final = 1 / 3
"""Part of the worlds in which a premise is broken."""


@dataclass(frozen=True, slots=True)
class Unlucky:
    """One migration or pause, with the truth about it."""

    saved: Taken
    steps: tuple[Taken, ...]
    """Plan, prepare, apply and release; of a pause its end alone."""
    policy: Policy
    word: Elapsed | None
    guest: int
    """Value of the guest's counters at the checkpoint."""
    pause: bool
    """One counter object: the VM is paused and resumed where it is."""
    one_life: bool
    """The counter here is the checkpoint's: where it has counted all the time, it defines the guest's time."""
    width_ticks: int | None = None
    misread: tuple[int, int] = (0, 0)
    events: tuple[str, ...] = ()
    broken: tuple[tuple[str, frozenset[str]], ...] = ()
    """The premises that don't hold: a key of `PREMISES`, and the codes of the assumptions that exclude it."""


PREMISES: Final = {
    "suspended": "the host was itself suspended by a hypervisor before the plan",
    "suspended-later": "the same, from the plan to the release",
    "copied": "a copy of the host goes on with its boot id",
    "namespace": "a time namespace that nobody took off the stamps",
    "unseen-sleep": "a sleep that the kernel didn't count",
    "long-sleep": "sleeps that the kernel mistook by more than a second",
    "restarted": "a counter that restarts in a sleep, or stops in one and not in another",
    "stopped": "a counter that stopped or restarted, and the caller says that it counted on",
    "no-boot-time": "a sleep between stamps that don't say how long the host slept",
    "wall-clock": "a wall clock off by more than is vouched or claimed",
    "told-wrong": "a caller that is wrong about the time",
    "clocks-apart": "wall clocks that are further apart than the caller says",
    "leap": "a leap second between wall clocks that the caller believes, without TAI",
    "rate": "a counter 2000 ppm slow from the plan to the release",
    "misread": "a guest's counter that moved while it was read",
}
"""The premises that are broken, in words."""


def draw(seed: int, number: int) -> Unlucky:
    """Return the migration of that number."""
    return _Luck(random.Random(f"luck/{seed}/{number}")).migration()  # noqa: S311 - nothing is kept secret


@dataclass
class _Luck(Drawing):
    """One migration in the making."""

    dice: random.Random
    events: list[str] = field(default_factory=list)
    broken: dict[str, frozenset[str]] = field(default_factory=dict)
    hours_ns: int = 0
    """Error of a wall clock that nobody vouches for."""
    sleep_error_ns: int = 0
    """Error of the kernel's sum of sleeps."""

    def migration(self) -> Unlucky:
        dice = self.dice
        self.lies = dice.random() < _LIES
        self.hours_ns = self._within(10**13)
        self.mode: Meanwhile = dice.choice(("stops", "stops", "counts-on", "restarts"))
        self.boot_times = dice.random() < 7 / 8
        frequency_hz = dice.choice(FREQUENCIES)
        pause = dice.random() < 1 / 8
        away = not pause and dice.random() < 1 / 4
        policy = self._policy()
        life = self._life(frequency_hz)
        kind = dice.choice(("declared", "declared", "kernel", "nobody"))
        saved = self._take(life, kind)
        if away:
            life = self._elsewhere(life)
            life.wait(self._log(_YEAR_NS))
        for _ in range(dice.choice((0, 1, 1, 2))):
            life.wait(self._log(_YEAR_NS // 4))
            self._event(life, boots=not pause)
        if self.lies and not away:
            self._lie(life, pause=pause)
        life.wait(self._log(_YEAR_NS // 4))
        if pause:
            steps: tuple[Taken, ...] = (self._take(life, kind),)
            word = None
        else:
            word, planned = self._plan(life, saved, kind, away=away)
            steps = (planned, *self._until_release(life, kind))
        if word is None or word.by != "counter":
            self.broken.pop("stopped", None)
        drawn = Unlucky(saved, steps, policy, word, dice.getrandbits(dice.randrange(1, 65)), pause, not away)
        if not pause and dice.random() < 1 / 3:
            drawn = replace(drawn, **self._read(policy))
        return replace(drawn, events=tuple(self.events), broken=tuple(self.broken.items()))

    # What happens.

    def _event(self, life: Life, *, boots: bool) -> None:
        what = self.dice.choice(("sleep", "sleep", "step", "reboot", "namespace", "container"))
        if what == "sleep":
            self._sleep(life, self.mode)
        elif what == "step":
            self.events.append("a stepped wall clock")
            self.hours_ns += self._within(_DAY_NS)
        elif what == "reboot" and boots:
            kexec = self.dice.random() < 1 / 3
            self.events.append("a kexec" if kexec else "a reboot")
            boot_id = None if self.dice.random() < 1 / 8 else self._id()
            firmware_ns = self._log(300 * SECOND)
            life.boot(boot_id, "counts-on" if kexec else "restarts", firmware_ns=firmware_ns)
            if not kexec:
                self._break("stopped", {"same-counter"})
        elif what == "namespace" and boots:
            self.events.append("an unknown time namespace")
            life.source = "clock_monotonic_raw_local"
        else:
            self.events.append("another container")
            life.machine_id = None if self.dice.random() < 1 / 2 else self._id()

    def _sleep(self, life: Life, mode: Meanwhile, error_ns: int | None = None) -> None:
        """A sleep that the kernel measures by the counter, or by a clock of whole seconds."""
        self.events.append("a sleep")
        ns = self._log(30 * _DAY_NS, 1)
        if error_ns is None:
            # The kernel keeps the errors of many sleeps from adding up.
            wanted_ns = self._within(SECOND) if mode == "stops" or self.dice.random() < 1 / 4 else 0
            error_ns = wanted_ns - self.sleep_error_ns
        # A sleep that the kernel doesn't see at all is a premise of its own.
        taken_for_ns = max(ns + error_ns, 1_000_000)
        self.sleep_error_ns += taken_for_ns - ns
        life.sleep(ns, mode, taken_for_ns=taken_for_ns)
        if abs(self.sleep_error_ns) > SECOND:
            self._break("long-sleep", {"boot-time-counted-sleep", *_STEADY})
        if mode == "restarts":
            self._break("restarted", _STEADY)
        if mode != "counts-on":
            self._break("stopped", {"same-counter"})
        if not life.knows_boot_time:
            self._break("no-boot-time", {"not-slept", "same-counter", *_STEADY})

    def _until_release(self, life: Life, kind: str) -> list[Taken]:
        dice = self.dice
        steps = []
        unlucky = dice.randrange(12)
        self.sleep_error_ns = 0
        for step in range(3):
            if unlucky == step:
                self._sleep(life, self.mode)
            elif unlucky == step + 3 and self.lies:
                life.suspend(self._log(_DAY_NS, 1))
                self._break("suspended-later", {"nominal-rate-here", *_STOPPED})
            elif unlucky == step + 6 and self.lies:
                slow = replace(
                    life.oscillator, rate_ppb=-2_000_000, at=life.at, count=life.oscillator.count_at(life.at)
                )
                life.oscillator = slow
                self._break("rate", {"nominal-rate-here", *_STEADY})
            life.wait(self._log(10 * SECOND))
            steps.append(self._take(life, kind))
        return steps

    # What is broken on purpose.

    def _break(self, premise: str, codes: set[str] | frozenset[str]) -> None:
        self.broken[premise] = self.broken.get(premise, frozenset()) | codes

    def _lie(self, life: Life, *, pause: bool) -> None:
        lies: list[Callable[[Life], None]] = [self._suspended, self._unseen_sleep, self._long_sleep, self._restarted]
        if not pause:
            lies += [self._copied, self._namespace]
        self.dice.choice(lies)(life)

    def _suspended(self, life: Life) -> None:
        life.suspend(self._log(30 * _DAY_NS, 1))
        self._break("suspended", _STOPPED)

    def _copied(self, life: Life) -> None:
        """Another guest of the same snapshot, which has run for longer or less long."""
        life.suspend(self._log(_DAY_NS))
        count = life.oscillator.count_at(life.at) + self._within(_DAY_NS) * life.oscillator.frequency_hz // SECOND
        life.oscillator = replace(life.oscillator, count=max(count, 0), at=life.at)
        self._break("copied", _STOPPED)

    def _namespace(self, life: Life) -> None:
        """`unshare -T --monotonic --boottime`, and stamps that have both in them."""
        shift_s = self._within(100_000)
        life.shifted_ticks = shift_s * life.oscillator.frequency_hz
        life.boottime = max(life.boottime + shift_s * SECOND, Fraction(0))
        self._break("namespace", _STOPPED)

    def _unseen_sleep(self, life: Life) -> None:
        """A clock of whole seconds reads the same before and after."""
        ns = self._log(SECOND - 1, 1)
        life.sleep(ns, "stops", taken_for_ns=0)
        self.sleep_error_ns -= ns
        self._break("unseen-sleep", _STOPPED)

    def _long_sleep(self, life: Life) -> None:
        self._sleep(life, self.mode, error_ns=self.dice.choice((-1, 1)) * self.dice.randint(SECOND + 1, 100 * SECOND))

    def _restarted(self, life: Life) -> None:
        other: Meanwhile = self.dice.choice(("restarts", "stops", "counts-on"))
        self._sleep(life, other)
        if other != self.mode:
            self._break("restarted", _STEADY)

    # The plan, and the caller's word.

    def _plan(self, life: Life, saved: Taken, kind: str, *, away: bool) -> tuple[Elapsed | None, Taken]:
        dice = self.dice
        said = dice.choice((None,) * 6 + ("given", "counter", "wall-clocks", "vouched"))
        if said == "counter" and (not away or self.lies):
            if away:
                self._break("stopped", {"same-counter"})
            return Elapsed.by_counter(), self._take(life, kind)
        if said == "wall-clocks":
            return self._by_wall_clocks(life, saved)
        planned = self._take(life, kind)
        if said == "given":
            error_ns = self._log(10**10, 2)
            off_ns = self._within(error_ns - 1)
            if self.lies:
                off_ns = dice.choice((-1, 1)) * dice.randint(error_ns + 1, 3 * error_ns)
                self._break("told-wrong", {"elapsed-given"})
            told_ns = int(planned.at - saved.at) + off_ns
            return Elapsed.given(max(0, told_ns), error_ns=error_ns), planned
        return (Elapsed.by_wall_clocks() if said == "vouched" else None), planned

    def _by_wall_clocks(self, life: Life, saved: Taken) -> tuple[Elapsed, Taken]:
        """Two clocks that are off by anything, and by so much less than the caller says from each other."""
        error_ns = self._log(10**10, 2)
        off_ns = saved.clock.error_ns + self._within(error_ns - 2)
        if self.lies and self.dice.random() < 1 / 2:
            off_ns += self.dice.choice((-1, 1)) * 3 * error_ns
            self._break("clocks-apart", {"wall-clocks-agree"})
        planned = self._stamp(life, replace(self._clock("nobody"), error_ns=off_ns))
        tai = saved.clock.knows_tai and planned.clock.knows_tai
        if not tai and saved.ahead_s != planned.ahead_s:
            self._break("leap", {"no-leap-second"})
        return Elapsed.by_wall_clocks(error_ns=error_ns), planned

    def _read(self, policy: Policy) -> dict[str, Any]:
        width = self._log(1_000_000)
        virtual = self._within(width)
        physical = virtual if isinstance(policy, CatchUp) or self.dice.random() < 1 / 2 else self._within(width)
        if self.lies and self.dice.random() < 1 / 4:
            virtual = physical = self.dice.choice((-1, 1)) * (width + 1 + self._log(10**9))
            self._break("misread", {"counters-stood-still"})
        return {"width_ticks": width, "misread": (virtual, physical)}

    def _policy(self) -> Policy:
        dice = self.dice
        kind = dice.randrange(6)
        if kind == 0:
            return Freeze()
        if kind == 1:
            return Advance(self._log(_YEAR_NS))
        if kind == 2:
            return CatchUp(self._log(SECOND, 1), self._log(SECOND, 1), at_once_ns=self._log(_DAY_NS))
        return Advance()

    # Hosts and stamps.

    def _life(self, frequency_hz: int) -> Life:
        """A host somewhere in the years round a leap second, up for a while."""
        dice = self.dice
        across = dice.random() < 1 / 5
        before = dice.randint(0, _YEAR_NS // 4) if across else dice.randint(-_YEAR_NS, 2 * _YEAR_NS)
        at = LEAP.tai_ns - before + Fraction(dice.randrange(1_000), 1_000)
        source = dice.choice(("cntvct_el0", "clock_monotonic_raw"))
        boot_id = None if dice.random() < 1 / 16 else self._id()
        rate = dice.randint(-250_000, 250_000)
        life = Life(
            Oscillator(frequency_hz, rate, dice.getrandbits(dice.randrange(65)), at),
            at,
            boot_id,
            self._id(),
            source,
            # The kernel slews its clocks by 500 ppm of the counter at most.
            max(-500_000, min(500_000, rate + self._within(499_000))),
            knows_boot_time=self.boot_times,
        )
        life.wait(self._log(_YEAR_NS // 4))
        if dice.random() < 1 / 4:
            ns = self._log(_DAY_NS, 1)
            life.sleep(ns, self.mode, taken_for_ns=ns)
        return life

    def _elsewhere(self, there: Life) -> Life:
        """Another host; perhaps of one golden image with the first, and without a boot id."""
        here = self._life(there.oscillator.frequency_hz)
        here.oscillator = replace(here.oscillator, at=here.oscillator.at + there.at - here.at)
        here.at = there.at
        golden = self.dice.random() < 1 / 2
        self.events.append("a golden image" if golden else "another host")
        if golden:
            here.machine_id = there.machine_id
            here.boot_id = None if self.dice.random() < 1 / 2 else here.boot_id
        return here

    def _take(self, life: Life, kind: str) -> Taken:
        # One side in eight has another who vouches, or nobody.
        if self.dice.random() < 1 / 8:
            kind = self.dice.choice(("declared", "kernel", "nobody"))
        return self._stamp(life, self._clock(kind))

    def _stamp(self, life: Life, clock: WallClock) -> Taken:
        width_ns = self._log(10_000)
        return life.take(clock, boot_width_ns=width_ns, boot_late_ns=self.dice.randint(0, width_ns))

    def _clock(self, kind: str) -> WallClock:
        dice = self.dice
        width_ns = self._log(10**6)
        clock = WallClock(
            self.hours_ns, knows_tai=dice.random() < 4 / 5, width_ns=width_ns, read_after_ns=self._within(width_ns)
        )
        if kind == "nobody":
            return clock
        max_error_ns = self._log(10**9, 2)
        if kind == "kernel":
            bound_ns = max_error_ns
            clock = replace(clock, claimed_ns=bound_ns)
        else:
            age_ns, holdover_ppb = self._log(_DAY_NS), dice.choice((0, 100, 1_000, 50_000))
            bound_ns = max_error_ns + age_ns * holdover_ppb // PPB
            clock = replace(clock, sync=SyncBound(max_error_ns, age_ns=age_ns, holdover_ppb=holdover_ppb))
        error_ns = max(self._within(bound_ns), 1 - bound_ns)
        if self.lies and dice.random() < 1 / 6:
            error_ns = dice.choice((-1, 1)) * dice.randint(bound_ns + 1, 3 * bound_ns)
            self._break("wall-clock", {"wall-clock-within"})
        return replace(clock, error_ns=error_ns)

    def _id(self) -> str:
        return f"{self.dice.getrandbits(128):032x}"
