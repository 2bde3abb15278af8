"""One unlucky migration or pause through the real library, and its judge.

**Truth.** Where the counter here is the checkpoint's, and it is believed, it was the guest's clock and defines it: the
guest has to have what it counted, and the nominal frequency times the TAI that passed while it stood still. Where
another clock is believed, the guest has to have the nominal frequency times all of the TAI. From the plan to the
release the same holds once more, with the clock that is believed there.

**The rule.** An error is beyond its bound only where a premise is broken which one of the report's assumptions
excludes, and which the report calls assumed. Refused is what the table of evidence refuses, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import numpy as np

from guestclock import Advance, CatchUp, Checkpoint, Fleet, Freeze, ManualCounter, ModelVm
from guestclock.errors import Refused
from guestclock.inspection.words import signed
from guestclock.model import ClockBank
from study.evidence import ROWS, Belief, ClockTable
from study.hosts import SECOND
from study.migration import as_read

if TYPE_CHECKING:
    from guestclock import Stamp
    from guestclock.types import Policy
    from study.life import Taken
    from study.luck import Unlucky

OF_CLOCKS: Final = frozenset(
    {
        "wall-clock-contradicts",
        "counted-through-sleep",
        "counter-stopped",
        "counter-was-reset",
        "kernel-unverified",
        "unsynchronized",
    }
)
"""The codes of warnings about a clock."""
FREEZE: Final = "freeze"
"""Row of `Freeze()`, which asks no clock."""
TITLES: Final = {**ROWS, FREEZE: "no clock needed: Freeze()"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict on one of them."""

    row: str
    """The row of evidence: a key of `TITLES`."""
    refused: str | None = None
    """The error's name."""
    warned: frozenset[str] = frozenset()
    """Codes of the warnings about clocks."""
    assumed: frozenset[str] = frozenset()
    """Codes of the assumptions that the report doesn't call proved."""
    error: Fraction = Fraction(0)
    """Ticks by which the guest is ahead of the truth: the larger error of its two counters."""
    bound_ticks: int = 0
    wrong: str | None = None
    """The finding; None where all is as it has to be."""

    @property
    def beyond(self) -> bool:
        """True if the error exceeds its bound."""
        return abs(self.error) > self.bound_ticks


def judge(drawn: Unlucky) -> Outcome:
    """Save, carry over and restore a guest, or pause it, and compare what it reads with the truth."""
    table = ClockTable(drawn.saved.stamp, drawn.steps[0].stamp, drawn.saved.clock.sync, drawn.steps[0].clock.sync)
    capped = isinstance(drawn.policy, Advance) and drawn.policy.max_ns is not None
    belief = table.believed(drawn.word, capped=capped, one_object=drawn.pause)
    frozen = isinstance(drawn.policy, Freeze)
    outcome = Outcome(FREEZE if frozen else belief.row)
    try:
        told = _paused(drawn) if drawn.pause else _restored(drawn)
    except Refused as refusal:
        outcome = replace(outcome, refused=type(refusal).__name__)
        if frozen or belief.refusal != outcome.refused:
            return replace(outcome, wrong=f"{outcome.refused}, where the table says {belief.refusal or belief.by}")
        return outcome
    passed = _passed(drawn, belief)
    given = passed if passed is None else _promised(drawn.policy, drawn.steps[0].stamp.frequency_hz, passed)
    if given is None:
        return replace(outcome, wrong=f"let pass, where the table says {belief.refusal}")
    errors = [Fraction(signed(count - drawn.guest) + told.backlog_ticks - given) for count in told.shown]
    outcome = replace(
        outcome,
        warned=told.warned,
        assumed=told.assumed,
        error=max(errors, key=abs),
        bound_ticks=told.bound_ticks,
    )
    return replace(outcome, wrong=_wrong(drawn, outcome, told, passed))


def _wrong(drawn: Unlucky, outcome: Outcome, told: _Told, passed: Fraction | None) -> str | None:
    excluded = {code for _, codes in drawn.broken for code in codes}
    if outcome.beyond and not excluded & outcome.assumed:
        return "beyond the bound"
    if told.behind_ns is None or passed is None or drawn.broken or not isinstance(drawn.policy, Freeze):
        return None
    behind_ns = passed * SECOND / drawn.steps[0].stamp.frequency_hz
    return "behind by something else" if abs(told.behind_ns - behind_ns) > told.behind_error_ns + 1 else None


@dataclass(frozen=True, slots=True)
class _Told:
    """A report's statements, and the guest's counters at the release."""

    shown: frozenset[int]
    backlog_ticks: int
    bound_ticks: int
    warned: frozenset[str]
    assumed: frozenset[str]
    behind_ns: int | None = None
    behind_error_ns: int = 0


def _restored(drawn: Unlucky) -> _Told:
    planned, _, applied, released = (step.stamp for step in drawn.steps)
    saved = Checkpoint.from_bytes(_checkpoint(drawn).to_bytes())
    vm = ModelVm(1, counter=ManualCounter(frequency_hz=planned.frequency_hz))
    if isinstance(drawn.policy, CatchUp):
        # A backlog is paid back by the offset, and no VM opts in by itself.
        vm.opt_in(offset=0)
    restoring = vm.restoring(saved, drawn.policy, elapsed=drawn.word, now=planned)
    with restoring:
        restoring.apply(now=applied)
        report = restoring.release(now=released)
    return _Told(
        frozenset({vm.cntvct(0, now=released.count), vm.cntpct(0, now=released.count)}),
        report.backlog_ticks,
        report.error_bound_ticks,
        frozenset(warning.code for warning in report.warnings) & OF_CLOCKS,
        frozenset(fact.code for fact in report.assumptions if fact.ground == "assumed"),
        report.behind_ns,
        report.behind_error_ns or 0,
    )


def _checkpoint(drawn: Unlucky) -> Checkpoint:
    stamp = drawn.saved.stamp
    if drawn.width_ticks is None:
        vm = ModelVm(1, counter=ManualCounter(frequency_hz=stamp.frequency_hz))
        vm.opt_in(offset=(stamp.count - drawn.guest) % 2**64)
        return vm.checkpoint(now=stamp)
    registers = as_read(drawn.guest, drawn.misread)
    return Checkpoint.from_one_regs(
        [registers], frequency_hz=stamp.frequency_hz, host=stamp, width_ticks=drawn.width_ticks
    )


class _At:
    """A counter that reads what a stamp says."""

    source: Final = "a stamp"

    def __init__(self, stamp: Stamp) -> None:
        self.now, self.frequency_hz = stamp, stamp.frequency_hz

    def read(self) -> int:
        return self.now.count

    def stamp(self) -> Stamp:
        return self.now


def _paused(drawn: Unlucky) -> _Told:
    host = _At(drawn.saved.stamp)
    bank = ClockBank(host)
    vms = bank.add_many(1)
    bank.set_offsets(vms, np.array([(host.read() - drawn.guest) % 2**64], dtype=np.uint64))
    pause = Fleet(bank).pause(drawn.policy)
    host.now = drawn.steps[0].stamp
    (report,) = pause.resume().values()
    return _Told(
        frozenset(np.ravel(bank.counts()).tolist()),
        report.backlog_ticks,
        report.error_bound_ticks,
        frozenset(warning.code for warning in report.warnings) & OF_CLOCKS,
        frozenset(fact.code for fact in report.assumptions if fact.ground == "assumed"),
    )


def _passed(drawn: Unlucky, belief: Belief) -> Fraction | None:
    """Return the ticks that have passed in truth; None where nobody knows them, and the table refuses."""
    saved, released = drawn.saved, drawn.steps[-1]
    if belief.by is None:
        return Fraction(0) if isinstance(drawn.policy, Freeze) else None
    passed = _between(saved, drawn.steps[0], by_counter=belief.by == "counter" and drawn.one_life)
    if drawn.pause:
        return passed
    here = ClockTable(drawn.steps[0].stamp, released.stamp, drawn.steps[0].clock.sync, released.clock.sync)
    later = here.believed(None, capped=False, one_object=True)
    return passed + _between(
        drawn.steps[0], released, by_counter=belief.by == "counter" and drawn.one_life and later.by == "counter"
    )


def _between(before: Taken, after: Taken, *, by_counter: bool) -> Fraction:
    if by_counter:
        return after.ideal - before.ideal
    return (after.at - before.at) * before.stamp.frequency_hz / SECOND


def _promised(policy: Policy, frequency_hz: int, passed: Fraction) -> Fraction:
    if isinstance(policy, Freeze):
        return Fraction(0)
    if isinstance(policy, Advance) and policy.max_ns is not None:
        return min(passed, Fraction(policy.max_ns * frequency_hz // SECOND))
    return passed
