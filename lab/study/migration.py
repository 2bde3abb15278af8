"""One migration through the real library, and its judge.

**Truth.** The guest's counter was `G` at the instant at which the host's came to `C0`. What it has to read at the
instant at which the target's counter comes to `C1`, of the release, is a real number:

- `Freeze()`: `G`.
- By one counter: `G + (C1 - C0)`. That counter was the guest's clock before, and defines it.
- By two wall clocks, or by the caller's word: `G + f * (TAI between the two instants)`, with `f` the nominal frequency.
- A cap holds it back to the whole ticks in `max_ns`. Under `CatchUp` the guest is judged with what it is owed.

The guest's counters are those that its vCPU reads at `C1`. Their distance from the truth is the error, and no more than
`report.error_bound_ticks` while the assumptions hold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from guestclock import Advance, CatchUp, Checkpoint, Elapsed, Freeze, ManualCounter, ModelVm, Reg
from guestclock.errors import Refused
from guestclock.inspection.words import signed
from study.hosts import SECOND

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guestclock import Stamp
    from guestclock.types import Policy
    from study.hosts import Host

STEPPED: Final = "wall-clock-contradicts"
"""Code of a plan's warning about a wall clock that was stepped on the same host."""


@dataclass(frozen=True, slots=True)
class Migration:
    """The events of a migration and the caller's options. Counts are the hosts' own, not reduced modulo 2^64."""

    there: Host
    here: Host
    guest: int
    """Value of the guest's counters at the checkpoint."""
    taken: int
    """The count of the checkpoint there."""
    steps: tuple[int, int, int, int]
    """The counts of plan, prepare, apply and release here."""
    policy: Policy
    elapsed: Elapsed | None = None
    width_ticks: int | None = None
    """None where the source owned its offset; else how far the readings of the guest's counters may be off..."""
    misread: tuple[int, int] = (0, 0)
    """...and how far they are: of the virtual counter and of the physical one."""
    refusal: str | None = None
    """The error that has to come of it, where a premise doesn't hold that guestclock can check; "a warning" for one."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict on one migration."""

    basis: str
    """Source of the guest's time: a key of `BASES`."""
    refused: str | None = None
    """The error's name, or "a warning"."""
    error: Fraction = Fraction(0)
    """Ticks by which the guest is ahead of the truth: the larger error of its two counters."""
    bound_ticks: int = 0

    @property
    def margin(self) -> Fraction:
        """The bound less the size of the error, in ticks."""
        return self.bound_ticks - abs(self.error)


BASES: Final = {
    "freeze": "Freeze()",
    "one-counter": "Advance(), one counter",
    "one-counter-capped": "Advance(max_ns), one counter",
    "declared": "Advance(), wall clocks, declared",
    "kernel": "Advance(), wall clocks, the kernels' word",
    "assumed": "Advance(), wall clocks, assumed",
    "capped": "Advance(max_ns), wall clocks, declared",
    "catch-up": "CatchUp(), wall clocks, declared",
    "told": "Advance(), told by the caller",
}
"""The classes of migrations, and what people call them."""


def judge(migration: Migration) -> Judged:
    """Save, carry over and restore a guest, and compare what it reads with the truth."""
    here = migration.here
    stamps = {count: here.stamp(count) for count in set(migration.steps)}
    planned, _, applied, release = (stamps[count] for count in migration.steps)
    saved = Checkpoint.from_bytes(_checkpoint(migration).to_bytes())
    vm = ModelVm(1, counter=ManualCounter(frequency_hz=here.oscillator.frequency_hz))
    if isinstance(migration.policy, CatchUp):
        # A backlog is paid back by the offset, and no VM opts in by itself.
        vm.opt_in(offset=0)
    try:
        restoring = vm.restoring(
            saved,
            migration.policy,
            elapsed=migration.elapsed,
            sync=here.sync(migration.steps[0]),
            now=planned,
        )
        basis = _basis(migration, same_counter=restoring.plan.same_counter)
        with restoring:
            restoring.apply(now=applied)
            report = restoring.release(now=release)
    except Refused as refusal:
        return Judged(_basis(migration, same_counter=False), type(refusal).__name__)
    passed = _passed(migration, basis)
    released = release.count
    shown = {vm.cntvct(0, now=released), vm.cntpct(0, now=released)}
    errors = [Fraction(signed(count - migration.guest) + report.backlog_ticks - passed) for count in shown]
    warned = any(warning.code == STEPPED for warning in restoring.plan.warnings)
    return Judged(
        basis,
        "a warning" if warned and migration.refusal == "a warning" else None,
        max(errors, key=abs),
        report.error_bound_ticks,
    )


def _checkpoint(migration: Migration) -> Checkpoint:
    there, taken = migration.there, migration.taken
    stamp, sync = there.stamp(taken), there.sync(taken)
    if migration.width_ticks is not None:
        return _read(migration, replace(stamp, sync=sync))
    vm = ModelVm(1, counter=ManualCounter(frequency_hz=there.oscillator.frequency_hz))
    vm.opt_in(offset=(taken - migration.guest) % 2**64)
    return vm.checkpoint(now=stamp, sync=sync)


def _read(migration: Migration, stamp: Stamp) -> Checkpoint:
    """Return the checkpoint of a guest whose VMM has read its counters, some time before or after the stamp."""
    width_ticks = migration.width_ticks or 0
    registers = as_read(migration.guest, migration.misread)
    return Checkpoint.from_one_regs([registers], frequency_hz=stamp.frequency_hz, host=stamp, width_ticks=width_ticks)


def as_read(guest: int, misread: Iterable[int]) -> dict[int, int]:
    """Return the registers that a VMM has read, with the errors of its reads of the two counters."""
    virtual, physical = ((guest + error) % 2**64 for error in misread)
    return {
        Reg.TIMER_CVAL: 0,
        Reg.TIMER_CTL: 0,
        Reg.PTIMER_CVAL: 0,
        Reg.PTIMER_CTL: 0,
        Reg.TIMER_CNT: virtual,
        Reg.PTIMER_CNT: physical,
    }


def _basis(migration: Migration, *, same_counter: bool) -> str:
    policy = migration.policy
    capped = isinstance(policy, Advance) and policy.max_ns is not None
    if isinstance(policy, Freeze):
        return "freeze"
    word = migration.elapsed.by if migration.elapsed else None
    if word == "given":
        return "told"
    if same_counter:
        return "one-counter-capped" if capped else "one-counter"
    if word == "wall-clocks":
        return "assumed"
    if isinstance(policy, CatchUp):
        return "catch-up"
    if capped:
        return "capped"
    return "kernel" if migration.there.vouched == "kernel" else "declared"


def _passed(migration: Migration, basis: str) -> Fraction | int:
    """Return the guest time that the policy promises, in ticks."""
    there, here, policy = migration.there.oscillator, migration.here.oscillator, migration.policy
    released = migration.steps[-1]
    passed: Fraction | int
    if basis == "freeze":
        return 0
    if basis in {"one-counter", "one-counter-capped"} and there is here:
        passed = released - migration.taken
    else:
        passed = _ticks(here.frequency_hz, here.came_to(released) - there.came_to(migration.taken))
    if isinstance(policy, Advance) and policy.max_ns is not None:
        passed = min(passed, policy.max_ns * here.frequency_hz // SECOND)
    return passed


def _ticks(frequency_hz: int, ns: Fraction) -> Fraction:
    return ns * frequency_hz / SECOND
