"""What holds on the model and on KVM alike: one suite, run on both, over the host's own time."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from guestclock import Advance, CatchUp, Checkpoint, Elapsed, Freeze, KvmVm, Reg, SyncBound, Timer
from guestclock.errors import (
    CapabilityMissing,
    CounterSkew,
    KvmError,
    Misuse,
    OtherInstant,
    OutOfOrder,
    ReadBackMismatch,
    RestoreOpen,
    StalePlan,
    TopologyMismatch,
    UnknownRegister,
    VcpuRunning,
)
from rigs import KVM, REAL, RIGS, Rig, meet, within

Make = Callable[[int], AbstractContextManager[Rig]]
VIEWS = ("cntvct", "cntpct")
COUNTS = {"cntvct": Reg.TIMER_CNT, "cntpct": Reg.PTIMER_CNT}
MASKED = 3
"""ENABLE and IMASK."""


@pytest.fixture(params=RIGS)
def make(request: pytest.FixtureRequest) -> Make:
    """A way to make VMs of one kind."""
    return RIGS[request.param]


@pytest.fixture
def rig(make: Make) -> Any:
    """A VM with two vCPUs."""
    with make(2) as made:
        yield made


def test_a_leg_of_the_testbed_has_kvm() -> None:
    assert (REAL.keys() <= RIGS.keys()) is KVM


@pytest.mark.skipif(platform.machine() == "aarch64", reason="here it can be had")
def test_elsewhere_kvm_is_refused_at_once() -> None:
    """Before the descriptors are looked at."""
    with pytest.raises(CapabilityMissing, match=r"needs arm64's KVM.*`ModelVm` models it anywhere") as caught:
        KvmVm(-1, [object()])  # type: ignore[list-item]
    assert caught.value.capability == "kvm"


def opted_in(rig: Rig, cntvct: int = 1_000_000_000) -> int:
    """Opt in, so that the guest's counters read about this now. Returns the offset."""
    if not rig.vm.capabilities.counter_offset:
        pytest.skip("this kernel has no VM-wide offset")
    offset = (rig.host() - cntvct) % 2**64
    rig.vm.set_counter_offset(offset)
    return offset


def has_physical(rig: Rig) -> bool:
    return Reg.PTIMER_CNT in rig.vm.reg_list(0)


def test_a_new_vms_counters(make: Make) -> None:
    """CNTPCT is the host's; CNTVCT counts from the creation of the last vCPU, and with EL2 it is the host's too."""
    with make(1) as rig:
        assert within(0, *rig.offset("cntpct"))
        if rig.vm.nested:
            assert within(0, *rig.offset("cntvct"))
            return
        _, guest, _ = rig.read("cntvct")
        assert guest < 30 * rig.vm.frequency_hz
        assert not rig.vm.opted_in


def test_a_vcpu_created_late_moves_an_unowned_vms_counters(make: Make) -> None:
    with make(1) as rig:
        if rig.machine is not None and rig.machine.gic_fd is not None:
            pytest.skip("KVM creates no vCPU once there is a vGIC")
        if rig.vm.nested:
            pytest.skip("with EL2 the counters begin at the host's, and stay there")
        before = rig.host()
        rig.create_vcpu()
        after = rig.host()
        for vcpu in (0, 1):
            low, high = rig.offset("cntvct", vcpu)
            assert meet((low, high), (before, after)), "it begins between the two"
            assert within(0, *rig.offset("cntpct", vcpu))
        offset = opted_in(rig)
        rig.create_vcpu()
        for vcpu in range(3):
            for view in VIEWS:
                assert within(offset, *rig.offset(view, vcpu)), "once owned it doesn't"


@pytest.mark.parametrize("view", VIEWS)
def test_a_counter_set_by_value_moves_the_whole_vm(rig: Rig, view: str) -> None:
    if view == "cntpct" and not has_physical(rig):
        with pytest.raises(UnknownRegister):
            rig.vm.set_one_reg(0, Reg.PTIMER_CNT, 5)
        return
    other = next(name for name in VIEWS if name != view)
    unmoved = rig.offset(other)
    for vcpu, value in ((0, 10**12), (1, 2**64 - 5)):
        before = rig.host()
        rig.vm.set_one_reg(vcpu, COUNTS[view], value)
        after = rig.host()
        for seen in (0, 1):
            low, high = rig.offset(view, seen)
            assert meet((low, high), (before - value, after - value))
    if rig.vm.nested:
        assert not within(0, *rig.offset(other)), "with EL2 both have one offset"
    else:
        assert meet(unmoved, rig.offset(other))


@pytest.mark.parametrize("offset", [0, 1, 10**12, 2**63, 2**64 - 1, -1, -(10**12), -(2**63)])
def test_one_offset_for_both_counters_of_all_vcpus(rig: Rig, offset: int) -> None:
    opted_in(rig)
    rig.vm.set_counter_offset(offset)
    assert rig.vm.opted_in
    for vcpu in (0, 1):
        for view in VIEWS:
            assert within(offset % 2**64, *rig.offset(view, vcpu))
            now = rig.host()
            if not rig.vm.nested:
                assert getattr(rig.vm, view)(vcpu, now=now) == (now - offset) % 2**64
    for reg in COUNTS.values():
        rig.vm.set_one_reg(1, reg, 77)
    for view in VIEWS:
        assert within(offset % 2**64, *rig.offset(view)), "a count that is set is ignored"


def test_without_the_ioctl_there_is_no_offset(rig: Rig) -> None:
    if rig.vm.capabilities.counter_offset:
        assert has_physical(rig), "they came together"
        return
    with pytest.raises(KvmError) as caught:
        rig.vm.set_counter_offset(5)
    assert caught.value.errno == 22
    assert not rig.vm.opted_in


@pytest.mark.parametrize("value", [0, 1, 2**32, 2**56, 2**63, 2**64 - 1, 0x0123_4567_89AB_CDEF])
def test_compare_values_come_back_bit_by_bit(rig: Rig, value: int) -> None:
    for reg in (Reg.TIMER_CVAL, Reg.PTIMER_CVAL):
        if reg in rig.vm.reg_list(1):
            rig.vm.set_one_reg(1, reg, value)
            assert rig.vm.get_one_reg(1, reg) == value
            assert rig.vm.get_one_reg(0, reg) == 0, "a timer is its vCPU's own"


@pytest.mark.parametrize("ctl", range(4))
def test_controls_come_back_without_istatus(rig: Rig, ctl: int) -> None:
    for reg in (Reg.TIMER_CTL, Reg.PTIMER_CTL):
        if reg in rig.vm.reg_list(0):
            rig.vm.set_one_reg(0, reg, ctl | 4)
            assert rig.vm.get_one_reg(0, reg) & 3 == ctl


def test_a_timer_as_the_guest_sees_it(rig: Rig) -> None:
    offset = opted_in(rig)
    due = rig.vm.cntvct(0) + 3600 * rig.vm.frequency_hz
    rig.vm.set_one_reg(0, Reg.TIMER_CVAL, due)
    rig.vm.set_one_reg(0, Reg.TIMER_CTL, 1)
    timer = rig.vm.timer(0, Timer.VTIMER)
    assert (timer.ctl, timer.cval, timer.istatus, timer.line) == (1, due, False, False)
    if not rig.vm.nested:
        assert timer.deadline == rig.vm.next_deadline(0) == (due + offset) % 2**64
    rig.vm.set_one_reg(0, Reg.TIMER_CVAL, 0)
    timer = rig.vm.timer(0, Timer.VTIMER)
    assert (timer.ctl, timer.istatus, timer.line) == (5, True, True)
    rig.vm.set_one_reg(0, Reg.TIMER_CTL, MASKED)
    assert rig.vm.timer(0, Timer.VTIMER).line is False
    assert rig.vm.next_deadline(1) is None


def test_a_register_that_is_not_there(rig: Rig) -> None:
    for reg in (0x603000000013DF18, 0x603000000013DF00):  # CNTV_TVAL_EL0, CNTFRQ_EL0
        with pytest.raises(UnknownRegister) as caught:
            rig.vm.get_one_reg(0, reg)
        assert (caught.value.errno, caught.value.reg) == (2, reg)
    for call in (lambda: rig.vm.cntvct(2), lambda: rig.vm.get_one_reg(2, Reg.TIMER_CVAL), lambda: rig.vm.reg_list(2)):
        with pytest.raises(IndexError):
            call()


def armed(rig: Rig) -> dict[Any, Any]:
    """Give every timer of every vCPU a state of its own."""
    for vcpu in range(rig.vm.vcpus):
        for n, reg in enumerate(rig.vm.reg_list(vcpu)):
            if reg in COUNTS.values() or reg in (Reg.CNTKCTL_EL1, Reg.CNTHCTL_EL2):
                continue
            is_ctl = Reg(reg).name.endswith(("_CTL", "CTL_EL2"))
            rig.vm.set_one_reg(vcpu, reg, MASKED if is_ctl else 10**15 + 1000 * vcpu + n)
    return timers(rig)


def timers(rig: Rig) -> dict[Any, Any]:
    """The state of every timer, ISTATUS apart."""
    told: dict[Any, Any] = {}
    for vcpu in range(rig.vm.vcpus):
        for reg in rig.vm.reg_list(vcpu):
            if reg not in COUNTS.values():
                value = rig.vm.get_one_reg(vcpu, reg)
                told[vcpu, reg] = value & 3 if "CTL" in Reg(reg).name and "CNTK" not in Reg(reg).name else value
    return told


def test_a_checkpoint_of_an_owned_vm_is_exact(rig: Rig) -> None:
    offset = opted_in(rig)
    armed(rig)
    before = rig.host()
    checkpoint = rig.vm.checkpoint()
    after = rig.host()
    assert before <= checkpoint.stamp.count <= after
    assert checkpoint.cntvct == checkpoint.cntpct == (checkpoint.stamp.count - offset) % 2**64
    assert (checkpoint.opted_in, checkpoint.vcpus) == (True, 2)
    assert (checkpoint.virtual_width_ticks, checkpoint.physical_width_ticks) == (0, 0)
    assert list(checkpoint.cval(Timer.VTIMER)) == [rig.vm.get_one_reg(vcpu, Reg.TIMER_CVAL) for vcpu in (0, 1)]
    assert list(checkpoint.ctl(Timer.VTIMER)) == [MASKED, MASKED]
    assert Checkpoint.from_bytes(checkpoint.to_bytes()) == checkpoint


def test_a_checkpoint_of_an_unowned_vm_lies_within_its_width(rig: Rig) -> None:
    brackets = {view: rig.offset(view) for view in VIEWS}
    checkpoint = rig.vm.checkpoint()
    widths = {"cntvct": checkpoint.virtual_width_ticks, "cntpct": checkpoint.physical_width_ticks}
    for view in VIEWS:
        offset = (checkpoint.stamp.count - getattr(checkpoint, view)) % 2**64
        low, high = brackets[view]
        assert within(offset, low - widths[view], high), (view, offset, low, high)
    assert not checkpoint.opted_in


def test_a_checkpoint_has_the_vms_name_and_its_facts(rig: Rig) -> None:
    saved = rig.vm.checkpoint(vmclock_address=0x4000_0000, stolen_time=[None, 0x4000_1000])
    assert rig.vm.name == saved.name == "rig"
    assert (saved.vmclock_address, saved.stolen_time) == (0x4000_0000, [None, 0x4000_1000])
    assert saved.interrupts is not None
    assert {Timer.VTIMER: 27, Timer.PTIMER: 30}.items() <= saved.interrupts.items()
    assert (len(saved.interrupts) == 4) == rig.vm.nested
    with pytest.raises(ValueError, match="3 addresses"):
        rig.vm.checkpoint(stolen_time=[1, 2, 3])


def test_a_restore_goes_on_from_the_stop(make: Make) -> None:
    with make(2) as source:
        offset = opted_in(source)
        stopped = source.host()
        checkpoint = source.vm.checkpoint(stopped_at=stopped)
        assert checkpoint.stopped_at == stopped
    for policy in (Freeze(), Advance()):
        with make(2) as target:
            report = target.vm.restore(checkpoint, policy, elapsed=Elapsed.by_counter())
            added = report.released_at - stopped if policy == Advance() else 0
            assert report.added_ticks == added
            assert report.cntvct == report.cntpct == (stopped - offset + added) % 2**64


@pytest.mark.parametrize("policy", [Freeze(), Advance(), Advance(max_ns=1_000)], ids=repr)
def test_a_restore_by_offset(make: Make, policy: Freeze | Advance) -> None:
    with make(2) as source:
        opted_in(source)
        state = armed(source)
        checkpoint = source.vm.checkpoint()
    with make(2) as target:
        planned = target.vm.restoring(checkpoint, policy)
        assert (planned.plan.method, planned.plan.same_counter) == ("offset", True)
        with planned as begun:
            begun.apply()
            report = begun.release()
        after = target.host()
        elapsed = report.released_at - checkpoint.stamp.count
        cap = (
            policy.max_ns * target.vm.frequency_hz // 10**9
            if isinstance(policy, Advance) and policy.max_ns
            else elapsed
        )
        added = 0 if isinstance(policy, Freeze) else min(cap, elapsed)
        assert report.added_ticks == added
        assert report.cntvct == report.cntpct == checkpoint.cntvct + added
        assert report.released_at <= after
        for vcpu in (0, 1):
            for view in VIEWS:
                if target.vm.nested and view == "cntvct":
                    continue
                before, guest, now = target.read(view, vcpu)
                assert within(
                    guest, report.cntvct + before - report.released_at, report.cntvct + now - report.released_at
                )
        assert timers(target) == state
        written: Any = report.to_dict()["written"]
        assert written["offset_writes"] == 2
        assert target.vm.nested or written["register_writes"] == 4 * 2


def test_what_is_owed_is_paid_back_to_the_tick(make: Make) -> None:
    with make(2) as source:
        opted_in(source)
        sync = SyncBound(1000, age_ns=5, quality="chrony", tai_offset_s=37)
        checkpoint = source.vm.checkpoint(sync=sync)
        assert (checkpoint.stamp.sync, checkpoint.stamp.tai_offset_s) == (sync, 37)
    ms = checkpoint.frequency_hz // 1000
    policy = CatchUp(step_ns=1_000_000, interval_ns=1_000_000)
    with make(2) as target:
        with target.vm.restoring(checkpoint, policy, elapsed=Elapsed.by_counter()) as begun:
            begun.apply()
            while target.host() - checkpoint.stamp.count < 10 * ms:
                pass
            report = begun.release()
        owed = report.backlog_ticks
        assert owed == target.vm.backlog_ticks == report.released_at - checkpoint.stamp.count
        assert report.cntvct == checkpoint.cntvct
        steps = 0
        last = report.released_at
        for step in target.vm.catch_up():
            assert step.due_at - last >= ms
            while step.wait_ns():
                pass
            if steps == 0:
                with target.vm.running(1), pytest.raises(VcpuRunning):
                    step.apply()
                assert target.vm.backlog_ticks == owed
            # What the guest reads before and after it, and when.
            _, guest, seen = target.read("cntpct")
            left = step.apply()
            last, now, _ = target.read("cntpct")
            assert now - guest >= step.ticks
            assert left == target.vm.backlog_ticks == owed - step.ticks
            owed, steps = left, steps + 1
            last = seen
        # The source's own offset again: as if it had never been away.
        for view in VIEWS:
            if target.vm.nested and view == "cntvct":
                continue
            before, guest, after = target.read(view)
            been = checkpoint.cntvct - checkpoint.stamp.count
            assert within(guest, before + been, after + been)
        assert steps == -(-report.backlog_ticks // ms)
        with target.vm.running(0):
            pass


def test_relative_timers_go_along(make: Make) -> None:
    with make(2) as source:
        opted_in(source)
        source.vm.set_one_reg(0, Reg.TIMER_CVAL, 12345)
        source.vm.set_one_reg(1, Reg.TIMER_CVAL, 2**64 - 1)
        checkpoint = source.vm.checkpoint()
    with make(2) as target:
        report = target.vm.restore(checkpoint, Advance(), elapsed=Elapsed.by_counter(), timers="relative")
        shift = report.to_dict()["cval_shift_ticks"]
        assert isinstance(shift, int)
        # As of apply(), so not more than what was added in the end.
        assert 0 < shift <= report.added_ticks
        assert target.vm.get_one_reg(0, Reg.TIMER_CVAL) == 12345 + shift
        assert target.vm.get_one_reg(1, Reg.TIMER_CVAL) == 2**64 - 1
        assert report.timers()[0].cval == 12345 + shift


def test_a_restore_by_value_keeps_two_counters(make: Make) -> None:
    """What every stock VMM's guest needs: it never opted in."""
    with make(2) as source:
        if source.vm.nested:
            pytest.skip("with EL2 both counters have one offset")
        state = armed(source)
        checkpoint = source.vm.checkpoint()
    with make(2) as target:
        planned = target.vm.restoring(checkpoint, Advance())
        assert planned.plan.method == ("by-value" if has_physical(target) else "virtual-only")
        with planned as begun:
            begun.apply()
            report = begun.release()
        assert not target.vm.opted_in
        for view in VIEWS:
            before, guest, after = target.read(view)
            promised = getattr(checkpoint, view) - checkpoint.stamp.count
            bound = report.error_bound_ticks
            assert within(guest, promised + before - bound, promised + after + bound), (view, bound)
        with target.vm.running(0):
            pass
        assert timers(target) == state


def test_adopting_the_virtual_counter(make: Make) -> None:
    with make(2) as source:
        checkpoint = source.vm.checkpoint()
        can = bool(source.vm.capabilities.counter_offset)
    with make(2) as target:
        if not can:
            with pytest.raises(CapabilityMissing):
                target.vm.plan(checkpoint, views="adopt-virtual")
            return
        if checkpoint.cntvct != checkpoint.cntpct:
            with pytest.raises(CounterSkew):
                target.vm.plan(checkpoint, views="refuse")
        report = target.vm.restore(checkpoint, views="adopt-virtual")
        assert (report.method, report.cntvct, report.cntpct) == ("offset", checkpoint.cntvct, checkpoint.cntvct)
        assert target.vm.opted_in


def test_the_gate(rig: Rig) -> None:
    opted_in(rig)
    checkpoint = rig.vm.checkpoint()
    with rig.vm.running(1):
        for refused in (
            rig.vm.checkpoint,
            lambda: rig.vm.restore(checkpoint),
            lambda: rig.vm.set_counter_offset(0),
            lambda: rig.vm.get_one_reg(1, Reg.TIMER_CVAL),
            lambda: rig.vm.running(1).__enter__(),
        ):
            with pytest.raises(VcpuRunning) as caught:
                refused()
            assert (caught.value.errno, caught.value.vcpu) == (16, 1)
    with rig.vm.restoring(checkpoint) as begun:
        state: str = rig.vm.state
        assert state == "restoring"
        for closed in (rig.vm.running(0).__enter__, rig.vm.checkpoint, rig.vm.pause, rig.vm.opt_in):
            with pytest.raises(RestoreOpen):
                closed()
        with pytest.raises(OutOfOrder):
            begun.release()
        begun.apply()
        report = begun.release()
        with pytest.raises(Misuse, match="release\\(\\) has ended this restore"):
            begun.release()
    assert begun.report is report
    state = rig.vm.state
    assert state == "open"
    with rig.vm.running(0):
        pass


def test_a_plan_is_stale_once_the_vm_has_changed(rig: Rig) -> None:
    checkpoint = rig.vm.checkpoint()
    stale = rig.vm.restoring(checkpoint)
    rig.vm.set_one_reg(0, Reg.TIMER_CVAL, 5)
    with pytest.raises(StalePlan):
        stale.__enter__()


def test_another_number_of_vcpus_is_refused(make: Make) -> None:
    with make(1) as source:
        checkpoint = source.vm.checkpoint()
    with make(2) as target, pytest.raises(TopologyMismatch) as caught:
        target.vm.plan(checkpoint)
    assert (caught.value.saved, caught.value.host) == (1, 2)


def test_a_vcpu_initialised_again_is_caught(make: Make) -> None:
    with make(2) as source:
        opted_in(source)
        armed(source)
        checkpoint = source.vm.checkpoint()
    with make(2) as target, target.vm.restoring(checkpoint) as begun:
        begun.apply()
        target.init_vcpu(1)
        with pytest.raises(ReadBackMismatch) as caught:
            begun.release()
        assert (caught.value.vcpu, caught.value.state, caught.value.retry) == (1, "half-restored", "apply")
        begun.apply()
        begun.release()


@pytest.mark.parametrize("owned", [False, True])
def test_a_pause_in_place(rig: Rig, *, owned: bool) -> None:
    if owned:
        opted_in(rig)
    before, guest, _ = rig.read("cntvct")
    with rig.vm.pause(Freeze()) as pause:
        begun = rig.host()
        while rig.host() - begun < rig.vm.frequency_hz // 50:
            pass
    bound = pause.report.error_bound_ticks
    _, resumed, after = rig.read("cntvct")
    # The 20 ms in it aren't the guest's; whatever was before and after them is.
    assert resumed - guest <= after - before - rig.vm.frequency_hz // 50 + 2 * bound
    assert resumed >= guest - bound


def test_a_look_finds_the_clocks_where_they_are_and_changes_nothing(rig: Rig) -> None:
    armed(rig)
    before = [[rig.vm.get_one_reg(vcpu, reg) for reg in (Reg.TIMER_CVAL, Reg.TIMER_CTL)] for vcpu in (0, 1)]
    for opt_in in (False, True):
        if opt_in:
            opted_in(rig)
        begun = rig.host()
        verified = rig.vm.verify()
        assert verified, str(verified)
        assert begun <= verified.looked_at <= rig.host()
        assert (verified.state, verified.vcpus, verified.mismatches) == ("open", 2, ())
        for view, known in (("cntvct", verified.virtual_offset), ("cntpct", verified.physical_offset)):
            hidden = rig.vm.nested if view == "cntvct" else not has_physical(rig)
            assert (known is None) == hidden
            if known is not None:
                assert meet((known[0], (known[0] + known[1]) % 2**64), rig.offset(view, 1))
    after = [[rig.vm.get_one_reg(vcpu, reg) for reg in (Reg.TIMER_CVAL, Reg.TIMER_CTL)] for vcpu in (0, 1)]
    # ISTATUS may have come true meanwhile.
    assert [[cval, ctl & ~4] for cval, ctl in after] == [[cval, ctl & ~4] for cval, ctl in before]


def test_a_guest_is_where_its_report_put_it(rig: Rig) -> None:
    armed(rig)
    checkpoint = rig.vm.checkpoint()
    report = rig.vm.restore(checkpoint, Advance())
    verified = rig.vm.verify(report)
    assert verified, str(verified)
    assert rig.vm.verify(checkpoint)
    rig.vm.restore(checkpoint, Freeze())
    later = rig.vm.verify(report)
    assert {mismatch.code for mismatch in later.mismatches} == {"report"}
    assert all(mismatch.ahead_ticks is not None and mismatch.ahead_ticks < 0 for mismatch in later.mismatches)


@pytest.mark.parametrize("policy", [Freeze(), Advance()], ids=str)
@pytest.mark.parametrize("owned", [False, True])
def test_a_release_for_an_instant(rig: Rig, policy: Freeze | Advance, *, owned: bool) -> None:
    if owned:
        opted_in(rig)
    checkpoint = rig.vm.checkpoint()
    with rig.vm.restoring(checkpoint, policy) as r:
        early = checkpoint.stamp
        r.apply()
        stamp = rig.vm.counter.stamp()
        with pytest.raises(OtherInstant, match="after all have planned"):
            r.release(at=early)
        report = r.release(at=stamp)
    assert report.released_at == stamp.count
    assert report.added_ticks == (0 if policy == Freeze() else stamp.count - checkpoint.stamp.count)
    assert report.returned_at > stamp.count
    verified = rig.vm.verify(report)
    assert verified, str(verified)
    low, high = rig.offset("cntvct")
    if not rig.vm.nested:
        offset = (stamp.count - report.cntvct) % 2**64
        bound = report.error_bound_ticks
        assert within(offset, (low - bound) % 2**64, (high + bound) % 2**64)
