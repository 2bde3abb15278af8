"""The differential machine on a kernel that is pretended: tests/reference.py, doing what it is told at hidden instants.

What the oracle calls a divergence must be one, and each wrong rule must be.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from differential import trace
from differential.campaign import Outcome, matching, probe, run
from differential.generator import Shape
from differential.operations import Answer, Kind, Operation, Refused, Step
from differential.oracle import Divergence, Oracle, Tally
from guestclock import Reg
from reference import CNT, CNTVOFF, CTL, CVAL, ISTATUS, PHYSICAL, VIRTUAL, ReferenceVm, Vcpu, u64
from reference import Refused as ReferenceRefused

HZ = 62_500_000
Make = Callable[..., ReferenceVm]


class Leg(NamedTuple):
    kernel: Literal["6.1", "6.12", "7.3"]
    nested: bool = False
    vhe: bool = True

    def made(self, make: Make) -> ReferenceVm:
        return make(self.kernel, HZ, "vhe" if self.nested else "absent", vhe=self.vhe)

    def header(self, seed: int = 1) -> trace.Header:
        return trace.Header("pretended", "", self.kernel, self.vhe, self.nested, HZ, seed)


LINUX_6_1, LINUX_6_12, LINUX_7_3, NVHE, NESTED = LEGS = (
    Leg("6.1"),
    Leg("6.12"),
    Leg("7.3"),
    Leg("6.12", vhe=False),
    Leg("7.3", nested=True),
)
legs = pytest.mark.parametrize("leg", LEGS, ids=["6.1", "6.12", "7.3", "nvhe", "nested"])


class Pretended:
    """A kernel: what is done takes place some time after the caller has read the count, and takes some time."""

    def __init__(self, vm: ReferenceVm, seed: int = 0, now: int = 10**12) -> None:
        self.vm = vm
        self.now = now
        self.random = random.Random(seed)  # noqa: S311
        self.starting: set[int] = set()
        self.inside: set[int] = set()
        self.leaving: set[int] = set()

    def count(self) -> int:
        self.pass_time()
        return self.now

    def pass_time(self) -> None:
        # Now and then the host has something else to do.
        self.now = u64(self.now + self.random.choice([0, 1, self.random.randrange(2000), self.random.randrange(2000)]))
        if self.random.random() < 0.01:
            self.now = u64(self.now + self.random.randrange(10**6))

    def has_counter_offset(self) -> bool:
        return self.vm.has_offset_ioctl()

    def close(self) -> None:
        assert not self.starting | self.inside | self.leaving

    def do(self, operation: Operation) -> Answer:
        self.pass_time()
        self.threads_go_on()
        try:
            return self._do(operation)
        except ReferenceRefused as refused:
            return Refused(getattr(errno, refused.why))
        finally:
            self.pass_time()

    def threads_go_on(self) -> None:
        for vcpu in [*self.starting]:
            if self.random.random() < 0.5:
                self.enter(vcpu)
        for vcpu in [*self.leaving]:
            if self.random.random() < 0.5:
                self.leave(vcpu)
        for vcpu in [*self.inside, *self.leaving]:
            if self.random.random() < 0.2:
                self.vm.exit(vcpu, self.now)
                self.vm.enter(vcpu)

    def enter(self, vcpu: int) -> None:
        self.vm.enter(vcpu)
        self.starting.discard(vcpu)
        self.inside.add(vcpu)

    def leave(self, vcpu: int) -> None:
        self.vm.exit(vcpu, self.now)
        self.leaving.discard(vcpu)

    def _do(self, operation: Operation) -> Answer:  # noqa: C901
        vm, vcpu = self.vm, operation.vcpu
        match operation.kind:
            case Kind.CREATE:
                vm.create_vcpu(self.now)
            case Kind.INIT:
                vm.init_vcpu(vcpu)
            case Kind.OFFSET:
                if operation.reserved:
                    return Refused(errno.EINVAL)
                vm.set_counter_offset(operation.value)
            case Kind.GET:
                return vm.get_one_reg(vcpu, operation.reg, self.now)
            case Kind.SET:
                vm.set_one_reg(vcpu, operation.reg, operation.value, self.now)
            case Kind.LIST:
                return vm.reg_list()
            case Kind.START:
                self.starting.add(vcpu)
            case Kind.ENTERED if vcpu in self.starting:
                self.enter(vcpu)
            case Kind.SAMPLE:
                names = ("CNTVCT_EL0", "CNTPCT_EL0")
                return [vm.read_sysreg(vcpu, name, self.now) for name in names]
            case Kind.LEAVE:
                self.inside.discard(vcpu)
                self.leaving.add(vcpu)
            case Kind.LEFT if vcpu in self.leaving:
                self.leave(vcpu)
        return None


def campaign(
    leg: Leg, sequences: int, *, seed: int = 1, make: Make = ReferenceVm, writer: trace.Writer | None = None
) -> Outcome:
    """Random sequences on a kernel of this kind, a third of them with vCPUs that run."""
    regs = tuple(leg.made(ReferenceVm).reg_list())
    shapes = [Shape(regs), Shape(regs), Shape(regs, runs=True)]
    targets = iter(range(sequences))

    def new_target() -> Pretended:
        number = next(targets)
        # A host's counter may be anywhere, and some begin near its end.
        start = random.Random(f"{seed}/{number}").choice([10**12, 2**64 - 10**6, 2**63])  # noqa: S311
        return Pretended(leg.made(make), number, start)

    return run(new_target, leg.header(seed), shapes, sequences, writer)


@legs
def test_a_kernel_that_keeps_the_rules_is_never_accused(leg: Leg) -> None:
    outcome = campaign(leg, 500)
    assert outcome.divergences == []
    assert outcome.share <= 0.05
    assert outcome.tally.entered > 100
    assert (outcome.tally.busy > 30) == (leg is not LINUX_6_1)


class LateVcpuMovesNothing(ReferenceVm):
    def create_vcpu(self, now: int) -> None:
        before = list(self.offset)
        super().create_vcpu(now)
        if len(self.vcpus) > 1:
            self.offset = before


class OffsetNotSticky(ReferenceVm):
    def create_vcpu(self, now: int) -> None:
        super().create_vcpu(now)
        self.offset = [now, 0]


class OffsetOptsInToNothing(ReferenceVm):
    def set_counter_offset(self, offset: int) -> None:
        super().set_counter_offset(offset)
        self.opted_in = False


class OffsetForOneCounter(ReferenceVm):
    def set_counter_offset(self, offset: int) -> None:
        super().set_counter_offset(offset)
        self.offset[PHYSICAL] = 0


class OffsetAdded(ReferenceVm):
    def set_counter_offset(self, offset: int) -> None:
        super().set_counter_offset(-offset)


class OffsetWhileRunning(ReferenceVm):
    def set_counter_offset(self, offset: int) -> None:
        self.opted_in, self.offset = True, [u64(offset), u64(offset)]


class BusyOptsIn(ReferenceVm):
    def set_counter_offset(self, offset: int) -> None:
        try:
            super().set_counter_offset(offset)
        except ReferenceRefused:
            self.opted_in = True
            raise


class InitKeepsCtl(ReferenceVm):
    def init_vcpu(self, index: int) -> None:
        ctl = list(self.vcpus[index].ctl)
        super().init_vcpu(index)
        self.vcpus[index].ctl = ctl


class InitMovesCounters(ReferenceVm):
    def init_vcpu(self, index: int) -> None:
        super().init_vcpu(index)
        self.offset = [0, 0]


class OneViewForBoth(ReferenceVm):
    def set_one_reg(self, index: int, reg: int, value: int, now: int) -> None:
        super().set_one_reg(index, reg, value, now)
        if reg in CNT:
            self.offset = [self.offset[CNT.index(reg)]] * 2


class OtherView(ReferenceVm):
    def set_one_reg(self, index: int, reg: int, value: int, now: int) -> None:
        other = {CNT[VIRTUAL]: CNT[PHYSICAL], CNT[PHYSICAL]: CNT[VIRTUAL]}
        super().set_one_reg(index, other.get(reg, reg) if reg in self.reg_list() else reg, value, now)


class SetStoresIstatus(ReferenceVm):
    def set_one_reg(self, index: int, reg: int, value: int, now: int) -> None:
        super().set_one_reg(index, reg, value, now)
        if reg in CTL:
            self.vcpus[index].ctl[CTL.index(reg)] = value


class SlowClock(ReferenceVm):
    """Each reading is a few microseconds old: less than a bracket is wide, but for one after a narrow one."""

    def get_one_reg(self, index: int, reg: int, now: int) -> int:
        return super().get_one_reg(index, reg, now - 1500 if reg in CNT else now)


class NarrowCval(ReferenceVm):
    def set_one_reg(self, index: int, reg: int, value: int, now: int) -> None:
        super().set_one_reg(index, reg, value % 2**56 if reg in CVAL else value, now)


class WideCtl(ReferenceVm):
    def get_one_reg(self, index: int, reg: int, now: int) -> int:
        value = super().get_one_reg(index, reg, now)
        return self.vcpus[index].ctl[CTL.index(reg)] | value & ISTATUS if reg in CTL else value


class IstatusNeedsEnable(ReferenceVm):
    def get_one_reg(self, index: int, reg: int, now: int) -> int:
        value = super().get_one_reg(index, reg, now)
        return value & ~ISTATUS if reg in CTL and not value & 1 else value


class OtherTimersCounter(ReferenceVm):
    @staticmethod
    def view(timer: int) -> int:
        return 1 - ReferenceVm.view(timer)


class OtherOrder(ReferenceVm):
    def reg_list(self) -> list[int]:
        return sorted(super().reg_list())


class OtherErrno(ReferenceVm):
    def get_one_reg(self, index: int, reg: int, now: int) -> int:
        try:
            return super().get_one_reg(index, reg, now)
        except ReferenceRefused:
            raise ReferenceRefused("EINVAL") from None


class RunKeepsReservedBits(ReferenceVm):
    def enter(self, index: int) -> None:
        ctl = list(self.vcpus[index].ctl)
        super().enter(index)
        self.vcpus[index].ctl = ctl


class RunDropsReservedBits(ReferenceVm):
    def in_hardware(self) -> list[int]:
        return [*range(4)]


class RunMovesCounters(ReferenceVm):
    def enter(self, index: int) -> None:
        super().enter(index)
        loaded = self.vcpus[index].loaded
        assert loaded is not None
        loaded[VIRTUAL] = u64(loaded[VIRTUAL] + 10**6)


class GuestsDiffer(ReferenceVm):
    """An older offset after a newer one: entered with the first, loaded again with the second, and then the first."""

    def count(self, index: int, view: int, now: int) -> int:
        return super().count(index, view, now) if index == 0 else super().count(index, view, now + 10**7)


class CntvoffIgnored(ReferenceVm):
    def now_offset(self, vcpu: Vcpu, view: int) -> int:
        return super().now_offset(replace(vcpu, plain={CNTVOFF: 0}), view)


class CntvoffTwice(ReferenceVm):
    def now_offset(self, vcpu: Vcpu, view: int) -> int:
        own = vcpu.plain[CNTVOFF] if view == VIRTUAL and self.el2 != "absent" else 0
        return u64(super().now_offset(vcpu, view) + own)


BOTH = (LINUX_6_12, LINUX_7_3)
ALL = (LINUX_6_1, *BOTH)
COMPUTED = (LINUX_6_1, LINUX_6_12)
WRONG: list[tuple[Make, tuple[Leg, ...]]] = [
    (LateVcpuMovesNothing, ALL),
    (OffsetNotSticky, BOTH),
    (OffsetOptsInToNothing, BOTH),
    (OffsetForOneCounter, BOTH),
    (OffsetAdded, (*BOTH, NESTED)),
    (OffsetWhileRunning, (*BOTH, NESTED)),
    (BusyOptsIn, BOTH),
    (InitKeepsCtl, ALL),
    (InitMovesCounters, ALL),
    (OneViewForBoth, BOTH),
    (OtherView, BOTH),
    (SetStoresIstatus, (LINUX_7_3, NESTED)),
    (SlowClock, ALL),
    (NarrowCval, ALL),
    (WideCtl, COMPUTED),
    (IstatusNeedsEnable, COMPUTED),
    (OtherTimersCounter, (LINUX_6_12,)),
    (OtherOrder, COMPUTED),
    (OtherErrno, ALL),
    (RunKeepsReservedBits, ALL),
    (RunDropsReservedBits, (NVHE,)),
    (RunMovesCounters, ALL),
    (GuestsDiffer, ALL),
    (CntvoffIgnored, (NESTED,)),
    (CntvoffTwice, (NESTED,)),
]


@pytest.mark.parametrize(
    ("make", "leg"),
    [(make, leg) for make, wrong_on in WRONG for leg in wrong_on],
    ids=lambda value: value.__name__ if isinstance(value, type) else "-".join(map(str, value)),
)
def test_a_wrong_rule_is_seen(make: Make, leg: Leg) -> None:
    assert any(campaign(leg, 40, seed=seed, make=make).divergences for seed in range(10))


@legs
def test_a_kernel_is_told_by_what_it_does(leg: Leg) -> None:
    target = Pretended(leg.made(ReferenceVm))
    probed = probe(target.do, counter_offset=target.has_counter_offset())
    assert matching(probed, nested=leg.nested) == (leg.kernel, leg.vhe)
    with pytest.raises(Divergence, match="no preset"):
        matching(replace(probed, listed=[]), nested=leg.nested)


def oracle(leg: Leg = LINUX_6_12, *, vcpus: int = 1) -> Oracle:
    """One that has seen this many vCPUs created, at 1000."""
    judge = Oracle(leg.header(), Tally())
    for _ in range(vcpus):
        judge.judge(Step(Operation(Kind.CREATE), 1000, 1000, None))
    return judge


def get(reg: int, before: int, after: int, answer: Answer, vcpu: int = 0) -> Step:
    return Step(Operation(Kind.GET, vcpu, reg), before, after, answer)


def test_a_count_is_held_against_its_bracket_to_the_tick() -> None:
    for seen in range(4000, 4011):
        oracle().judge(get(Reg.TIMER_CNT, 5000, 5010, seen))
    for seen in (3999, 4011):
        with pytest.raises(Divergence):
            oracle().judge(get(Reg.TIMER_CNT, 5000, 5010, seen))


def test_what_was_seen_narrows_what_is_hidden() -> None:
    for seen in range(-3, 30):
        judge = oracle()
        judge.judge(Step(Operation(Kind.SET, 0, Reg.TIMER_CNT, 0), 2000, 2020, None))  # at 2000 to 2020
        judge.judge(get(Reg.TIMER_CNT, 3000, 3000, 985))  # at 2015
        judge.judge(get(Reg.PTIMER_CNT, 3000, 3000, 3000))  # nothing moved it
        step = get(Reg.TIMER_CNT, 4000, 4010, 1985 + seen)
        if 0 <= seen <= 10:
            judge.judge(step)
        else:
            with pytest.raises(Divergence):
                judge.judge(step)


def test_a_vcpu_in_its_guest_is_under_the_old_offset_or_the_new_and_never_goes_back() -> None:
    for samples, possible in {
        (100, 100): True,
        (100, 7): True,
        (7, 7): True,
        (7, 100): False,
        (50,): False,
    }.items():
        judge = oracle(vcpus=2)
        judge.judge(Step(Operation(Kind.SET, 0, Reg.TIMER_CNT, 100), 2000, 2000, None))
        judge.judge(Step(Operation(Kind.START, 1), 2000, 2000, None))
        judge.judge(Step(Operation(Kind.ENTERED, 1), 2000, 2000, None))
        judge.judge(Step(Operation(Kind.SET, 0, Reg.TIMER_CNT, 7), 2000, 2000, None))
        steps = [Step(Operation(Kind.SAMPLE, 1), 2000, 2000, [sample, 2000]) for sample in samples]
        if possible:
            for step in steps:
                judge.judge(step)
        else:
            with pytest.raises(Divergence):
                for step in steps:
                    judge.judge(step)


def test_where_a_vcpu_may_be_in_its_guest_the_offset_may_be_set_or_not() -> None:
    busy = Refused(errno.EBUSY)
    for answers, possible in {
        (None, busy, None): False,
        (None, busy, busy): True,
        (busy, busy, busy): True,
        (busy, None, busy): False,
    }.items():
        judge = oracle()
        at_start, inside, at_end = (Step(Operation(Kind.OFFSET, value=5), 2000, 2000, answer) for answer in answers)
        steps = [
            Step(Operation(Kind.START), 2000, 2000, None),
            at_start,
            Step(Operation(Kind.ENTERED), 2000, 2000, None),
        ]
        steps += [inside, Step(Operation(Kind.LEAVE), 2000, 2000, None), replace_answer(at_end, busy)]
        steps += [Step(Operation(Kind.LEFT), 2000, 2000, None), replace_answer(at_end, None if possible else busy)]
        if possible:
            for step in steps:
                judge.judge(step)
            assert judge.tally.several == 2
            owned = answers[0] is None
            judge.judge(get(Reg.PTIMER_CNT, 3000, 3000, 2995))
            assert owned or judge.tally.busy == 3
        else:
            with pytest.raises(Divergence):
                for step in steps:
                    judge.judge(step)


def replace_answer(step: Step, answer: Answer) -> Step:
    return step._replace(answer=answer)


def test_istatus_is_compared_away_from_its_deadline_only() -> None:
    margin = HZ // 100
    for ahead, compared in ((-margin - 1, True), (-margin + 1, False), (0, False), (margin, False), (margin + 1, True)):
        judge = oracle()
        judge.judge(Step(Operation(Kind.OFFSET, value=0), 1000, 1000, None))
        judge.judge(Step(Operation(Kind.SET, 0, Reg.TIMER_CVAL, 10**9), 1000, 1000, None))
        before = judge.tally.several
        judge.judge(get(Reg.TIMER_CTL, 10**9 - ahead, 10**9 - ahead, 4 if ahead <= 0 else 0))
        assert (judge.tally.several == before) == compared, ahead
        step = get(Reg.TIMER_CTL, 10**9 - ahead, 10**9 - ahead, 0 if ahead <= 0 else 4)
        if compared:
            with pytest.raises(Divergence):
                judge.judge(step)
        else:
            judge.judge(step)


@pytest.mark.parametrize("leg", [LINUX_6_12, LINUX_7_3], ids=["computed", "stored"])
@pytest.mark.parametrize("left", [0, 4])
def test_the_istatus_of_a_run_is_anyones_and_then_stays(leg: Leg, left: int) -> None:
    judge = oracle(leg)
    judge.judge(Step(Operation(Kind.SET, 0, Reg.TIMER_CVAL, 2**62), 10**9, 10**9, None))
    judge.judge(get(Reg.TIMER_CTL, 10**9, 10**9, 0))
    with pytest.raises(Divergence):
        judge.judge(get(Reg.TIMER_CTL, 10**9, 10**9, 4))
    for kind in (Kind.START, Kind.ENTERED, Kind.LEAVE, Kind.LEFT):
        judge.judge(Step(Operation(kind), 10**9, 10**9, None))
    several = judge.tally.several
    judge.judge(get(Reg.TIMER_CTL, 10**9, 10**9, left))
    assert judge.tally.several == several + 1
    judge.judge(get(Reg.TIMER_CTL, 10**9, 10**9, left))
    assert judge.tally.several == several + 1
    with pytest.raises(Divergence):
        judge.judge(get(Reg.TIMER_CTL, 10**9, 10**9, 4 - left))
    judge.judge(Step(Operation(Kind.SET, 0, Reg.TIMER_CTL, 4), 10**9, 10**9, None))
    judge.judge(get(Reg.TIMER_CTL, 10**9, 10**9, 0))


def test_a_trace_is_judged_as_the_kernel_was(tmp_path: Path) -> None:
    paths = [tmp_path / "one", tmp_path / "other"]
    for path in paths:
        with trace.write(path, LINUX_6_12.header()) as writer:
            outcome = campaign(LINUX_6_12, 20, make=OtherView, writer=writer)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    found, sequences = trace.read(paths[0])
    assert found == LINUX_6_12.header()
    again = Outcome()
    for steps in sequences:
        again.judge(found, steps)
    assert outcome.divergences
    assert again == outcome
