"""The timers after a restore: what is told of them is what the restored VM says, and where a saved vGIC disagrees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestclock import Advance, Checkpoint, Elapsed, Freeze, ModelVm, Reg, Report, Timer
from guestclock.types import LatchMismatch, Policy, TimerStatus
from vms import HZ, SECOND, TIMER_REGS, host, owned

KERNELS = ["6.1", "6.12", "7.3"]
ENABLE, IMASK = 1, 2
near = st.one_of(st.integers(0, 3000), st.integers(2**64 - 3000, 2**64 - 1), st.integers(0, 2**64 - 1))
"""Counts and CVALs: near one another often enough for deadlines to lie between."""


def source(kernel: str, *, nested: bool, cntvct: int, timers: list[tuple[int, int]], cntvoff: int) -> ModelVm:
    """A VM of two vCPUs, the second of which has these timers (CVAL and CTL)."""
    counter = host()
    vm = ModelVm(2, counter=counter, kernel=kernel, nested=nested)
    if vm.capabilities.counter_offset:
        vm.set_counter_offset((counter.read() - cntvct) % 2**64)
    else:
        vm.set_one_reg(0, Reg.TIMER_CNT, cntvct)
    if nested:
        vm.set_one_reg(1, Reg.CNTVOFF_EL2, cntvoff)
    for timer, (cval, ctl) in zip(Timer, timers, strict=True):
        if TIMER_REGS[timer][0] in vm.reg_list(1):
            vm.set_one_reg(1, TIMER_REGS[timer][0], cval)
            vm.set_one_reg(1, TIMER_REGS[timer][1], ctl)
    return vm


def due(*, irq_timers: dict[Timer, int]) -> Report:
    """The report of a Freeze whose timers are on with these CVALs, at the count 1000 of one vCPU."""
    vm = owned(host(), vcpus=1)
    for timer, cval in irq_timers.items():
        vm.set_one_reg(0, TIMER_REGS[timer][0], cval)
        vm.set_one_reg(0, TIMER_REGS[timer][1], ENABLE)
    return ModelVm(1, counter=host()).restore(vm.checkpoint(), Freeze())


@pytest.mark.parametrize(("kernel", "nested"), [*((kernel, False) for kernel in KERNELS), ("7.3", True)])
@given(
    cntvct=near,
    cntvoff=near,
    timers=st.lists(st.tuples(near, st.integers(0, 3)), min_size=4, max_size=4),
    pause=st.integers(0, 5000),
    policy=st.sampled_from([Freeze(), Advance(), Advance(max_ns=20_000)]),
)
def test_it_is_what_the_restored_vm_says(
    kernel: str, nested: bool, cntvct: int, cntvoff: int, timers: list[tuple[int, int]], pause: int, policy: Policy
) -> None:
    vm = source(kernel, nested=nested, cntvct=cntvct, timers=timers, cntvoff=cntvoff)
    before = {(vcpu, timer): vm.timer(vcpu, timer) for vcpu in range(2) for timer in Timer if timer < 2 or nested}
    saved = vm.checkpoint()
    counter = host(vm.counter.read() + pause, vm.counter.stamp().realtime_ns + pause * SECOND // HZ)
    target = ModelVm(2, counter=counter, kernel=kernel, nested=nested)
    intended = target.plan(saved, policy, elapsed=Elapsed.by_counter())
    report = target.restore(saved, policy, elapsed=Elapsed.by_counter())
    told = report.timers()
    assert told == intended.timers(), "the counter stood still"
    assert [(each.vcpu, each.timer) for each in told] == [
        (vcpu, timer) for vcpu in range(2) for timer in Timer if TIMER_REGS[timer][0] in target.reg_list(0)
    ]
    for each in told:
        here = target.timer(each.vcpu, each.timer, now=report.released_at)
        on = bool(here.ctl & ENABLE)
        count = target.cntvct if each.timer is Timer.VTIMER else target.cntpct
        assert each.guest_count == count(each.vcpu, report.released_at)
        assert (each.line, each.cval, each.ctl) == (here.line, here.cval, here.ctl & (ENABLE | IMASK))
        assert each.overdue_ticks == (each.guest_count - each.cval if on and here.istatus else None)
        assert each.passed_in_pause == (on and here.istatus and not before[each.vcpu, each.timer].istatus)


@given(cntvct=near, timers=st.lists(st.tuples(near, st.integers(0, 3)), min_size=4, max_size=4), cntvoff=near)
def test_a_checkpoints_timers_are_its_vms(cntvct: int, timers: list[tuple[int, int]], cntvoff: int) -> None:
    vm = source("7.3", nested=True, cntvct=cntvct, timers=timers, cntvoff=cntvoff)
    for each in vm.checkpoint().timers():
        here = vm.timer(each.vcpu, each.timer)
        assert (each.line, each.cval, each.passed_in_pause) == (here.line, here.cval, False)


def test_which_deadlines_passed_in_the_pause() -> None:
    vm = owned(host(), vcpus=1)
    vm.set_one_reg(0, Reg.TIMER_CVAL, 1500)
    vm.set_one_reg(0, Reg.TIMER_CTL, ENABLE)
    saved = vm.checkpoint()
    frozen = ModelVm(1, counter=host(10**12 + 600)).restore(saved, Freeze())
    on = TimerStatus(0, Timer.VTIMER, ENABLE, 1500, 1000, line=False, overdue_ticks=None, passed_in_pause=False)
    assert frozen.timers() == [on, on._replace(timer=Timer.PTIMER, ctl=0, cval=0)]
    advanced = ModelVm(1, counter=host(10**12 + 600)).restore(saved, Advance(), elapsed=Elapsed.by_counter())
    assert advanced.timers()[0] == on._replace(guest_count=1600, line=True, overdue_ticks=100, passed_in_pause=True)
    assert advanced.resumed_at(10**12 + 700).timers() == advanced.timers(), "at the release"


def test_a_timer_that_is_not_restored_is_not_told() -> None:
    vm = ModelVm(1, counter=host(), kernel="6.12")
    report = ModelVm(1, counter=host(), kernel="6.1").restore(vm.checkpoint())
    assert report.method == "virtual-only"
    assert [each.timer for each in report.timers()] == [Timer.VTIMER]
    assert report.latch_mismatches([1 << 30]) == [], "it is as it was, and nobody asked how"


def test_a_pause_in_place_reads_no_timers() -> None:
    vm = owned(host())
    with vm.pause() as pause:
        pass
    assert pause.report.timers() == []
    assert pause.report.latch_mismatches([1 << 27, 1 << 27]) == []


def test_a_latch_that_disagrees_with_its_line_is_listed() -> None:
    report = due(irq_timers={Timer.VTIMER: 2000, Timer.PTIMER: 900})
    assert report.latch_mismatches([1 << 30], userspace_gic=True) == []
    assert report.latch_mismatches([0], userspace_gic=True) == [
        LatchMismatch(0, Timer.PTIMER, 30, line=True, pending=False)
    ]
    assert report.latch_mismatches([1 << 27 | 1 << 30 | 1 << 5], userspace_gic=True) == [
        LatchMismatch(0, Timer.VTIMER, 27, line=False, pending=True)
    ]


def test_a_line_that_kvm_raises_itself_is_not_listed() -> None:
    """Nearly every restored Linux guest has an overdue timer: it mustn't drown what is harmful."""
    report = due(irq_timers={Timer.VTIMER: 2000, Timer.PTIMER: 900})
    assert report.latch_mismatches([0]) == []
    assert report.latch_mismatches([1 << 27]) == [LatchMismatch(0, Timer.VTIMER, 27, line=False, pending=True)]


def test_the_interrupt_ids_are_the_vms_own() -> None:
    report = due(irq_timers={Timer.VTIMER: 900})
    assert report.latch_mismatches([1 << 19], irqs={Timer.VTIMER: 19}, userspace_gic=True) == []
    assert [each.irq for each in report.latch_mismatches([1 << 27], irqs={Timer.VTIMER: 19}, userspace_gic=True)] == [
        19
    ]


def test_the_interrupt_ids_are_the_checkpoints() -> None:
    vm = owned(host(), vcpus=1)
    vm.set_irq(Timer.VTIMER, 19)
    vm.set_irq(Timer.PTIMER, 20)
    vm.set_one_reg(0, TIMER_REGS[Timer.VTIMER][1], ENABLE)
    saved = Checkpoint.from_bytes(vm.checkpoint().to_bytes())
    assert saved.interrupts == {Timer.VTIMER: 19, Timer.PTIMER: 20}
    report = ModelVm(1, counter=host()).restore(saved)
    assert report.latch_mismatches([1 << 19], userspace_gic=True) == []
    assert report.latch_mismatches([1 << 27], userspace_gic=True) == [
        LatchMismatch(0, Timer.VTIMER, 19, line=True, pending=False)
    ]
    # The caller's word goes before the checkpoint's.
    assert [each.irq for each in report.latch_mismatches([1 << 19], irqs={Timer.VTIMER: 21}, userspace_gic=True)] == [
        21
    ]
    assert report.latch_mismatches([1 << 19], irqs={Timer.PTIMER: 21}, userspace_gic=True) == []
    # Without it, those that KVM begins with.
    unknown = Checkpoint.from_one_regs(saved.to_one_regs(), frequency_hz=saved.frequency_hz, host=saved.stamp)
    assert unknown.interrupts is None
    report = ModelVm(1, counter=host()).restore(unknown)
    assert [each.irq for each in report.latch_mismatches([0], userspace_gic=True)] == [27]


def test_all_timers_of_a_nested_guest_have_their_ids() -> None:
    vm = owned(host(), vcpus=1, nested=True)
    for timer in Timer:
        vm.set_one_reg(0, TIMER_REGS[timer][1], ENABLE)
    report = ModelVm(1, counter=host(), nested=True).restore(vm.checkpoint())
    assert [each.irq for each in report.latch_mismatches([0], userspace_gic=True)] == [27, 30, 28, 26]
    assert report.latch_mismatches([1 << 27 | 1 << 30 | 1 << 28 | 1 << 26], userspace_gic=True) == []


@pytest.mark.parametrize(
    ("pending", "irqs", "says"),
    [
        ([], None, "0 words, and 1 vCPUs"),
        ([0, 0], None, "2 words, and 1 vCPUs"),
        ([0], {Timer.VTIMER: 32}, "16 to 31"),
        ([0], {Timer.VTIMER: -1}, "16 to 31"),
        ([0], {9: 27}, "no attribute 9"),
    ],
)
def test_wrong_words_and_ids_are_refused(pending: list[int], irqs: dict[Timer, int] | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        due(irq_timers={}).latch_mismatches(pending, irqs=irqs)


@pytest.mark.parametrize("word", [-1, 1 << 32])
def test_a_word_has_32_bits(word: int) -> None:
    with pytest.raises(OverflowError):
        due(irq_timers={}).latch_mismatches([word])
