"""The restore table, row by row, and the laws around it: on injected time, so to the tick."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from golden import make
from guestclock import Advance, Checkpoint, Elapsed, Freeze, ModelVm, MonotonicCounter, Reg, Timer
from guestclock.errors import (
    CapabilityMissing,
    ClockWentBackwards,
    CounterSkew,
    ElapsedUnknown,
    FrequencyMismatch,
    GuestClockError,
    Misuse,
    OutOfOrder,
    ReadBackMismatch,
    Refused,
    RestoreOpen,
    StalePlan,
    TopologyMismatch,
    VcpuRunning,
)
from guestclock.testing import Fault, FaultyVm
from vms import HZ, NS, SECOND, START_NS, host, owned, state

u64s = st.integers(0, 2**64 - 1)
pauses = st.integers(0, 2**40)
Policy = Freeze | Advance


# The table: what the guest's counters are at the release.


@given(count=u64s, cntvct=u64s, pause=pauses, elsewhere=u64s)
def test_freeze_goes_on_where_it_stopped(count: int, cntvct: int, pause: int, elsewhere: int) -> None:
    source = host(count)
    checkpoint = owned(source, cntvct=cntvct).checkpoint()
    for target in (source, host(elsewhere, realtime_ns=-(10**15))):
        target.advance(pause)
        vm = ModelVm(2, counter=target)
        report = vm.restore(checkpoint)
        assert report.method == "offset"
        assert (report.cntvct, report.cntpct, report.added_ticks) == (cntvct, cntvct, 0)
        assert vm.cntvct(0) == vm.cntpct(1) == cntvct
        target.advance(7)
        assert vm.cntvct(1) == (cntvct + 7) % 2**64
        assert report.error_bound_ticks == 0


@given(count=u64s, cntvct=u64s, pause=pauses, delay=pauses)
def test_advance_on_the_same_counter_is_exact_whatever_the_delay(
    count: int, cntvct: int, pause: int, delay: int
) -> None:
    counter = host(count)
    source = owned(counter, cntvct=cntvct)
    checkpoint = source.checkpoint()
    counter.advance(pause)
    vm = ModelVm(2, counter=counter)
    steps = vm.restoring(checkpoint, Advance(), elapsed=Elapsed.by_counter()).__enter__()
    counter.advance(delay)
    steps.apply()
    counter.advance(delay)
    report = steps.release()
    assert vm.cntvct(0) == source.cntvct(0)
    assert vm.cntpct(0) == source.cntpct(0)
    assert report.added_ticks == pause + 2 * delay
    assert report.error_bound_ticks == 0


@given(pause_ns=st.integers(0, 10**18), cntvct=u64s, elsewhere=u64s, assumed=st.integers(0, 10**9))
def test_advance_on_another_host_goes_by_the_wall_clock(
    pause_ns: int, cntvct: int, elsewhere: int, assumed: int
) -> None:
    checkpoint = owned(host(), cntvct=cntvct).checkpoint()
    target = host(elsewhere, realtime_ns=START_NS + pause_ns)
    vm = ModelVm(2, counter=target)
    word = Elapsed.by_wall_clocks(error_ns=assumed, refuse_over_ns=10**18)
    report = vm.restore(checkpoint, Advance(), elapsed=word)
    assert report.added_ticks == pause_ns * HZ // SECOND
    assert vm.cntvct(0) == (cntvct + pause_ns * HZ // SECOND) % 2**64
    assert report.error_bound_ticks == -(-assumed * HZ // SECOND) + 1


@given(pause=pauses, max_ns=st.integers(0, 2**44))
def test_advance_is_capped(pause: int, max_ns: int) -> None:
    counter = host()
    checkpoint = owned(counter, cntvct=5).checkpoint()
    counter.advance(pause)
    vm = ModelVm(2, counter=counter)
    report = vm.restore(checkpoint, Advance(max_ns=max_ns))
    most = max_ns * HZ // SECOND
    assert report.added_ticks == min(pause, most)
    assert report.capped == (pause > most)
    assert vm.cntvct(0) == vm.cntpct(0) == 5 + min(pause, most)


@pytest.mark.parametrize("policy", [Freeze(), Advance(), Advance(max_ns=80_000)])
def test_a_guest_that_never_opted_in_keeps_both_counters(policy: Policy) -> None:
    counter = host()
    source = ModelVm(2, counter=counter)
    counter.advance(1000)
    checkpoint = source.checkpoint()
    assert (checkpoint.cntvct, checkpoint.cntpct, checkpoint.opted_in) == (1000, counter.read(), False)
    saved = counter.read()
    counter.advance(100_000)
    vm = ModelVm(2, counter=counter)
    report = vm.restore(checkpoint, policy)
    added = {Freeze(): 0, Advance(): 100_000, Advance(max_ns=80_000): 5000}[policy]
    assert report.method == "by-value"
    assert not vm.opted_in
    assert (vm.cntvct(0), vm.cntpct(1)) == (1000 + added, saved + added)
    assert report.error_bound_ticks == 0


def test_nothing_opts_in_without_a_word() -> None:
    counter = host(0)
    checkpoint = ModelVm(1, counter=counter).checkpoint()
    assert (checkpoint.opted_in, checkpoint.cntvct, checkpoint.cntpct) == (False, 0, 0)
    counter.advance(50)
    vm = ModelVm(1, counter=counter)
    # Its counters are equal, and one offset would do: but nobody said so.
    assert vm.restore(checkpoint).method == "by-value"
    assert not vm.opted_in
    assert vm.cntvct(0) == vm.cntpct(0) == 0
    # The checkpoint of a VM that had opted in is the word.
    saved = owned(counter, 1).checkpoint()
    assert vm.restore(saved).method == "offset"
    assert vm.opted_in


def test_adopt_virtual_gives_up_the_physical_counter() -> None:
    counter = host()
    source = ModelVm(1, counter=counter)
    counter.advance(1000)
    vm = ModelVm(1, counter=counter)
    intended = vm.restoring(source.checkpoint(), views="adopt-virtual")
    assert any(
        f"CNTPCT_EL0 jumps by {1000 - counter.read()} ticks" in warning.text for warning in intended.plan.unsupported
    )
    steps = intended.__enter__()
    steps.apply()
    report = steps.release()
    assert vm.opted_in
    assert vm.cntvct(0) == vm.cntpct(0) == report.cntvct == report.cntpct == 1000


def test_a_kernel_without_physical_registers_restores_the_virtual_timer_only() -> None:
    counter = host()
    source = ModelVm(1, counter=counter)
    source.set_one_reg(0, Reg.PTIMER_CVAL, 77)
    counter.advance(1000)
    vm = ModelVm(1, counter=counter, kernel="6.1")
    intended = vm.plan(source.checkpoint())
    assert intended.method == "virtual-only"
    assert any("physical timer isn't restored" in fact.text for fact in intended.unsupported)
    vm.restore(source.checkpoint())
    assert (vm.cntvct(0), vm.cntpct(0)) == (1000, counter.read())
    # And what such a kernel saves can be restored where there is more.
    assert ModelVm(1, counter=counter).restore(vm.checkpoint()).method == "by-value"


def test_an_untouched_physical_counter_stays_untouched() -> None:
    """A stray offset of a few ticks would make CNTPCT_EL0 trap for good."""
    counter = host()
    checkpoint = ModelVm(1, counter=counter).checkpoint()
    counter.advance(50)
    vm = ModelVm(1, counter=counter)
    intended = vm.plan(checkpoint, Advance())
    assert not any("trap" in warning.text for warning in intended.warnings)
    vm.restore(checkpoint, Advance())
    assert vm.cntpct(0) == counter.read()


# Timers.


def test_timers_are_restored_bit_for_bit_but_istatus() -> None:
    counter = host()
    source = owned(counter, vcpus=3)
    for vcpu in range(3):
        source.set_one_reg(vcpu, Reg.TIMER_CVAL, 2**64 - 1 - vcpu)
        source.set_one_reg(vcpu, Reg.TIMER_CTL, vcpu)
        source.set_one_reg(vcpu, Reg.PTIMER_CVAL, 5 * vcpu)
        source.set_one_reg(vcpu, Reg.PTIMER_CTL, 0xABC0 + 7)
    checkpoint = source.checkpoint()
    assert checkpoint.cval(Timer.VTIMER).tolist() == [2**64 - 1, 2**64 - 2, 2**64 - 3]
    assert checkpoint.ctl(Timer.VTIMER).tolist() == [0, 1, 2]
    assert checkpoint.ctl(Timer.PTIMER).tolist() == [0xABC3] * 3
    vm = ModelVm(3, counter=counter)
    vm.restore(checkpoint)
    assert state(vm) == state(source)


def test_a_deadline_that_passed_in_the_pause_is_due_at_once() -> None:
    counter = host()
    source = owned(counter, cntvct=0)
    source.set_one_reg(0, Reg.TIMER_CVAL, 500)
    source.set_one_reg(0, Reg.TIMER_CTL, 1)
    checkpoint = source.checkpoint()
    counter.advance(600)
    for policy, left in ((Freeze(), 500), (Advance(), 0), (Advance(max_ns=400 * NS), 100)):
        vm = ModelVm(2, counter=counter)
        vm.restore(checkpoint, policy)
        assert vm.timer(0, Timer.VTIMER).line == (left == 0)
        assert vm.next_deadline(0) == counter.read() + left


# Order, gate and staleness.


def test_no_vcpu_runs_and_nothing_is_saved_until_the_release() -> None:
    counter = host()
    checkpoint = owned(counter).checkpoint()
    vm = ModelVm(2, counter=counter)
    steps = vm.restoring(checkpoint).__enter__()
    for step in (steps.apply, steps.release):
        with pytest.raises(RestoreOpen), vm.running(1):
            pass
        with pytest.raises(RestoreOpen):
            vm.checkpoint()
        step()
    with vm.running(1):
        pass


def test_counts_that_the_vmm_replays_and_late_vcpus_do_no_harm() -> None:
    counter = host()
    checkpoint = owned(counter, vcpus=2, cntvct=1000).checkpoint()
    vm = ModelVm(2, counter=counter)
    steps = vm.restoring(checkpoint).__enter__()
    vm.set_one_reg(0, Reg.TIMER_CNT, 42)
    vm.set_one_reg(1, Reg.PTIMER_CNT, 43)
    counter.advance(10)
    vm.create_vcpu()
    assert vm.opted_in
    assert {vm.cntvct(vcpu) for vcpu in range(3)} == {vm.cntpct(vcpu) for vcpu in range(3)} == {1010}
    steps.apply()
    steps.release()
    assert {vm.cntvct(vcpu) for vcpu in range(3)} == {vm.cntpct(vcpu) for vcpu in range(3)} == {1000}


def test_steps_come_in_order_and_once() -> None:
    counter = host()
    vm = ModelVm(2, counter=counter)
    steps = vm.restoring(owned(counter).checkpoint()).__enter__()
    with pytest.raises(OutOfOrder) as caught:
        steps.release()
    assert caught.value.called == "release"
    steps.apply()
    with pytest.raises(OutOfOrder):
        steps.apply()
    report = steps.release()
    for again in (steps.release, steps.apply, steps.__enter__):
        with pytest.raises(Misuse, match=r"release\(\) has ended this restore|entered once"):
            again()
    assert steps.report is report


def test_a_plan_is_stale_when_the_vm_changed_and_only_then() -> None:
    counter = host()
    vm = ModelVm(2, counter=counter)
    intended = vm.restoring(owned(counter).checkpoint())
    counter.advance(10**6)
    vm.cntvct(0)
    with intended:
        intended.apply()
        intended.release()
    intended = vm.restoring(owned(counter).checkpoint())
    vm.set_one_reg(0, Reg.TIMER_CVAL, 1)
    with pytest.raises(StalePlan):
        intended.__enter__()


def test_a_new_restore_takes_over_from_one_that_was_given_up() -> None:
    counter = host()
    checkpoint = owned(counter).checkpoint()
    vm = ModelVm(2, counter=counter)
    given_up = vm.restoring(checkpoint).__enter__()
    vm.restore(checkpoint)
    with pytest.raises(Misuse, match="came after this one"):
        given_up.apply()
    with vm.running(0):
        pass


def test_a_running_vcpu_stops_everything() -> None:
    counter = host()
    vm = owned(counter)
    checkpoint = vm.checkpoint()
    intended = vm.restoring(checkpoint)
    with vm.running(1):
        before = (vm.cntvct(0, 0), vm.cntvct(1, 0))
        for act in (vm.checkpoint, intended.__enter__, vm.pause, lambda: vm.set_counter_offset(0)):
            with pytest.raises((VcpuRunning, StalePlan)) as caught:
                act()
            if isinstance(caught.value, VcpuRunning):
                assert caught.value.vcpu == 1
        assert (vm.cntvct(0, 0), vm.cntvct(1, 0)) == before


# Refusals: both sides named, and the VM as it was.


def refused(kind: type[GuestClockError], checkpoint: Checkpoint, vm: ModelVm, **options: Any) -> Any:
    """The refusal, once it is seen that nothing was touched."""
    before = state(vm)
    with pytest.raises(kind) as caught:
        vm.restore(checkpoint, **options)
    assert isinstance(caught.value, Refused | CapabilityMissing)
    assert state(vm) == before
    for vcpu in range(vm.vcpus):
        with vm.running(vcpu):
            pass
    return caught.value


def test_another_frequency_is_refused() -> None:
    error = refused(FrequencyMismatch, owned(host()).checkpoint(), ModelVm(2, counter=host(hz=24_000_000)))
    assert (error.saved_hz, error.host_hz) == (HZ, 24_000_000)
    assert "62500000" in str(error)
    assert "24000000" in str(error)


def test_another_number_of_vcpus_is_refused() -> None:
    error = refused(TopologyMismatch, owned(host()).checkpoint(), ModelVm(3, counter=host()))
    assert (error.what, error.saved, error.host) == ("vCPUs", 2, 3)


@pytest.mark.parametrize("views", ["preserve", "refuse"])
def test_two_counters_are_refused_where_one_offset_is_owned(views: Literal["preserve", "refuse"]) -> None:
    counter = host()
    source = ModelVm(2, counter=counter)
    counter.advance(1000)
    error = refused(CounterSkew, source.checkpoint(), owned(counter), views=views)
    assert (error.cntvct, error.cntpct) == (1000, counter.read())


def test_adopting_needs_the_offset() -> None:
    counter = host()
    error = refused(
        CapabilityMissing,
        ModelVm(1, counter=counter).checkpoint(),
        ModelVm(1, counter=counter, kernel="6.1"),
        views="adopt-virtual",
    )
    assert error.capability == "counter_offset"


@pytest.mark.parametrize(("width_ticks", "apart"), [(0, 1), (20, 41), (0, 2**63)])
def test_two_counters_are_refused_where_the_guest_has_el2(width_ticks: int, apart: int) -> None:
    """KVM has one offset for both, so the counter set last would be right, and the other as far off as they were."""
    counter = host()
    source = owned(counter, nested=True)
    cntvct = source.checkpoint().cntvct
    checkpoint = other(source.checkpoint(), opted_in=0, physical_displacement_ticks=apart, **widths(width_ticks))
    error = refused(CounterSkew, checkpoint, ModelVm(2, counter=counter, nested=True))
    assert (error.cntvct, error.cntpct) == (cntvct, (cntvct + apart) % 2**64)
    assert "a guest with EL2 has one offset for both" in str(error)
    assert "preserve" not in str(error)


def test_two_counters_that_were_read_apart_are_one_where_the_guest_has_el2() -> None:
    counter = host()
    source = owned(counter, nested=True)
    checkpoint = other(source.checkpoint(), opted_in=0, physical_displacement_ticks=40, **widths(20))
    report = ModelVm(2, counter=counter, nested=True).restore(checkpoint)
    assert report.error_bound_ticks >= 40


def test_a_vm_without_vcpus_has_no_time() -> None:
    counter = host()
    source = ModelVm(0, counter=counter, name="early")
    source.set_counter_offset(counter.read() - 7)
    with pytest.raises(ValueError, match='the VM "early" has no vCPUs'):
        source.checkpoint()
    error = refused(TopologyMismatch, owned(counter).checkpoint(), ModelVm(0, counter=counter))
    assert (error.what, error.saved, error.host) == ("vCPUs", 2, 0)


def test_elapsed_time_that_nobody_vouches_for_is_refused() -> None:
    checkpoint = owned(host()).checkpoint()
    elsewhere = host(count=5, realtime_ns=START_NS + SECOND, boot_id=None)
    error = refused(ElapsedUnknown, checkpoint, ModelVm(2, counter=elsewhere), policy=Advance())
    assert "went forward: no" in error.evidence
    # A Freeze doesn't depend on it.
    ModelVm(2, counter=elsewhere).restore(checkpoint)


def test_a_wall_clock_that_went_backwards_is_refused() -> None:
    checkpoint = owned(host()).checkpoint()
    elsewhere = host(count=5, realtime_ns=START_NS - 1)
    error = refused(
        ClockWentBackwards,
        checkpoint,
        ModelVm(2, counter=elsewhere),
        policy=Advance(),
        elapsed=Elapsed.by_wall_clocks(error_ns=0),
    )
    assert (error.saved, error.host) == (START_NS, START_NS - 1)
    assert "wall clock" in error.clock


def test_a_counter_that_went_backwards_is_not_the_same() -> None:
    counter = host()
    checkpoint = owned(counter).checkpoint()
    counter.rewind(1)
    error = refused(
        ClockWentBackwards, checkpoint, ModelVm(2, counter=counter), policy=Advance(), elapsed=Elapsed.by_counter()
    )
    assert (error.saved, error.host) == (10**12, 10**12 - 1)
    assert "counter" in error.clock


# Is it the same counter?


@pytest.mark.parametrize(
    ("step_ns", "warned"),
    [(0, False), (SECOND // 2000, False), (SECOND // 1000, True), (-SECOND, True), (60 * SECOND, True)],
)
def test_a_wall_clock_that_was_stepped_is_warned_of(step_ns: int, warned: bool) -> None:
    counter = host()
    checkpoint = owned(counter).checkpoint()
    counter.advance(HZ)
    counter.step_realtime(step_ns)
    intended = ModelVm(2, counter=counter).plan(checkpoint, Advance())
    assert intended.same_counter
    assert [warning.code for warning in intended.warnings] == ["wall-clock-contradicts"] * warned
    evidence = intended.to_dict()["evidence"]
    assert isinstance(evidence, dict)
    assert evidence["disagreement_ns"] == abs(step_ns)


def test_the_callers_word_beats_evidence() -> None:
    counter = host()
    checkpoint = owned(counter).checkpoint()
    vm = ModelVm(2, counter=counter)
    assert vm.plan(checkpoint).same_counter
    assert not vm.plan(checkpoint, elapsed=Elapsed.by_wall_clocks()).same_counter
    assert "as the caller says (by the wall clocks)" in str(vm.plan(checkpoint, elapsed=Elapsed.by_wall_clocks()))


def test_a_counter_that_went_backwards_with_its_wall_clock_is_another() -> None:
    counter = host()
    checkpoint = owned(counter).checkpoint()
    counter.rewind(1)
    assert not ModelVm(2, counter=counter).plan(checkpoint).same_counter


def other(checkpoint: Checkpoint, *, stamp: Mapping[str, object] | None = None, **changes: Any) -> Checkpoint:
    """The checkpoint of one VM with some of its values changed, by another implementation of the format."""
    said = cbor2.loads(cbor2.loads(checkpoint.to_bytes())[2].value)
    said["stamp"] |= stamp or {}
    said["groups"][0] |= {key: value for key, value in changes.items() if value or key not in make.OFTEN_0}
    return Checkpoint.from_bytes(make.encode(said))


def widths(ticks: int) -> dict[str, Any]:
    return dict.fromkeys(("virtual_width_ticks", "physical_width_ticks"), ticks)


def test_another_kind_of_counter_is_another() -> None:
    counter = host()
    checkpoint = owned(counter).checkpoint()
    assert ModelVm(2, counter=counter).plan(other(checkpoint)).same_counter
    assert not ModelVm(2, counter=counter).plan(other(checkpoint, stamp={"source": "tsc"})).same_counter


def test_another_boots_counter_is_another_and_another_containers_is_not() -> None:
    counter = MonotonicCounter()
    checkpoint = ModelVm(1, counter=counter).checkpoint()
    known = checkpoint.stamp.boot_id is not None
    elsewhere = other(checkpoint, stamp={"boot_id": bytes(16)})
    assert not ModelVm(1, counter=counter).plan(elsewhere).same_counter
    container = other(checkpoint, stamp={"machine_id": bytes(16)})
    assert ModelVm(1, counter=counter).plan(container).same_counter is known
    assert ModelVm(1, counter=counter).plan(checkpoint).same_counter is known


# How sure it is.


def test_the_error_bound_holds_every_doubt() -> None:
    counter = host()
    checkpoint = owned(counter).checkpoint()
    target = host(5, realtime_ns=START_NS + SECOND)
    changed = other(checkpoint, stamp={"width_ns": 3 * NS}, **widths(70))
    word = Elapsed.by_wall_clocks(error_ns=5 * NS)
    bound = ModelVm(2, counter=target).restore(changed, Advance(), elapsed=word).error_bound_ticks
    # The saved counters, both brackets (by hand there is none), the wall clocks, and the rounding.
    assert bound == 70 + 3 + 0 + 5 + 1
    live = MonotonicCounter()
    assert live.stamp().width_ns > 0
    word = Elapsed.by_wall_clocks(error_ns=0, refuse_over_ns=2**63)
    bound = ModelVm(2, counter=live).restore(other(checkpoint), Advance(), elapsed=word).error_bound_ticks
    assert bound > 1
    assert ModelVm(2, counter=counter).restore(changed).error_bound_ticks == 70


def test_the_plan_decides_by_the_wall_clock_and_the_counter_goes_on_from_there() -> None:
    checkpoint = owned(host()).checkpoint()
    target = host(5)
    vm = ModelVm(2, counter=target)
    steps = vm.restoring(checkpoint, Advance(), elapsed=Elapsed.by_wall_clocks(error_ns=0)).__enter__()
    steps.apply()
    for step in (SECOND, -3 * SECOND):
        target.step_realtime(step)
    target.advance(HZ)
    report = steps.release()
    # An honest counter may be 500 ppm slow: one tick in 2000 is missing then. And a tick for rounding.
    assert (report.added_ticks, report.error_bound_ticks) == (HZ, -(-HZ // 1999) + 1)
    assert vm.cntvct(0) == 1000 + HZ


# Plans and reports.


def test_a_plan_touches_nothing_and_says_what_it_costs() -> None:
    counter = host()
    vm = ModelVm(2, counter=counter)
    before = state(vm)
    intended = vm.plan(owned(counter).checkpoint())
    assert state(vm) == before
    assert not any("for good" in warning.text for warning in intended.warnings)
    assert any("trap" in fact.text for fact in intended.degraded)
    assert "CNTVCT_EL0" in str(intended)
    # A view that is given up opts in a VM that nobody opted in.
    given_up = vm.plan(ModelVm(2, counter=counter).checkpoint(), views="adopt-virtual")
    assert any("for good" in warning.text for warning in given_up.warnings)


@pytest.mark.parametrize(
    ("cntvct", "arch_width", "warned"),
    [
        (2**56 - 1, 64, None),
        (2**56, 64, "2^56, and the hardware may have"),
        (2**63, 64, "2^56, and the hardware may have"),
        (2**56, 60, None),
        (2**60, 60, "2^60, and the hardware has"),
        # An offset that takes the guest ahead of its host is small, though its upper bits are set.
        (10**12 + 5, 64, None),
    ],
)
def test_a_plan_warns_of_counters_that_hardware_may_be_too_narrow_for(
    cntvct: int, arch_width: int, warned: str | None
) -> None:
    counter = host()
    intended = ModelVm(2, counter=counter, arch_width=arch_width).plan(owned(counter, cntvct=cntvct).checkpoint())
    found = [warning for warning in intended.warnings if "reaches 2^" in warning.text]
    assert len(found) == (warned is not None)
    assert all(warned in warning.text for warning in found if warned)


def test_what_the_guest_sees_at_both_ends_is_known_from_a_vmm_that_knows() -> None:
    counter = host()
    source = owned(counter)
    stopped = counter.read()
    counter.advance(30)
    checkpoint = source.checkpoint(stopped_at=stopped)
    report = ModelVm(2, counter=counter).restore(checkpoint)
    assert report.to_dict()["stopped_before_ticks"] == 30
    assert report.cntvct == 1000
    assert report.to_dict()["after_release_ticks"] is None
    assert "not known" in str(report)
    assert report.resumed_at(counter.advance(9)).to_dict()["after_release_ticks"] == 9
    with pytest.raises(ValueError, match="can't have resumed"):
        report.resumed_at(report.released_at - 1)


def test_a_report_has_the_count_of_its_return() -> None:
    at = host()
    vm = FaultyVm(ModelVm(1, counter=at), [Fault("set_counter_offset", nth=2, delay_ticks=77)])
    vm.opt_in()
    checkpoint = vm.checkpoint()
    report = vm.restore(checkpoint)
    assert report.returned_at - report.released_at == 77
    assert report.returned_at == at.read()
    assert report.to_dict()["returned_at"] == report.returned_at
    assert "until the return" in str(report)
    with vm.pause() as pause:
        at.advance(5)
    assert pause.report.returned_at == pause.report.released_at == at.read()


@given(now=u64s, cntvct=u64s)
def test_the_hosts_count_can_be_injected_everywhere(now: int, cntvct: int) -> None:
    counter = host(0)
    vm = ModelVm(1, counter=counter)
    vm.set_counter_offset((now - cntvct) % 2**64)
    try:
        checkpoint = vm.checkpoint(now=now)
    except OverflowError:
        # The wall clock there doesn't fit in 64 bits of nanoseconds.
        assert abs(now if now < 2**63 else now - 2**64) * NS > 2**62
    else:
        assert (checkpoint.stamp.count, checkpoint.cntvct) == (now, cntvct)
    assert vm.cntvct(0, now) == vm.cntpct(0, now=now) == cntvct
    assert vm.get_one_reg(0, Reg.TIMER_CNT, now=now) == cntvct


def test_injected_instants_make_a_restore_exact() -> None:
    counter = host()
    source = owned(counter, cntvct=0)
    checkpoint = source.checkpoint(now=10**12 + 50)
    assert (checkpoint.cntvct, checkpoint.stamp.realtime_ns) == (50, START_NS + 50 * NS)
    earlier = source.checkpoint(now=10**12 - 50)
    assert (earlier.cntvct, earlier.stamp.realtime_ns) == (2**64 - 50, START_NS - 50 * NS)
    vm = ModelVm(2, counter=counter)
    report = vm.restore(checkpoint, now=10**12 + 500)
    assert report.released_at == 10**12 + 500
    assert vm.cntvct(0, 10**12 + 500) == 50


# Pausing in place.


@pytest.mark.parametrize("opted_in", [True, False])
@pytest.mark.parametrize(("policy", "added"), [(None, 0), (Freeze(), 0), (Advance(), 900), (Advance(max_ns=160), 10)])
def test_paused_in_place(policy: Policy | None, added: int, opted_in: bool) -> None:
    counter = host()
    vm = owned(counter) if opted_in else ModelVm(2, counter=counter)
    vm.set_one_reg(0, Reg.TIMER_CVAL, 123)
    before = (vm.cntvct(0), vm.cntpct(0))
    with vm.pause(policy) as pause:
        counter.advance(900)
        with pytest.raises(RestoreOpen), vm.running(0):
            pass
        with pytest.raises(Misuse):
            _ = pause.report
        assert vm.checkpoint().vcpus == 2
    assert (vm.cntvct(0), vm.cntpct(0)) == (before[0] + added, before[1] + added)
    assert pause.report.added_ticks == added
    assert vm.opted_in is opted_in
    assert vm.get_one_reg(0, Reg.TIMER_CVAL) == 123
    with vm.running(0):
        pass


def test_a_pause_in_place_has_no_doubt_about_the_counter() -> None:
    counter = host()
    vm = owned(counter, cntvct=100)
    with vm.pause(Advance()) as pause:
        counter.advance(5)
        counter.step_realtime(-SECOND)
    assert vm.cntvct(0) == 105
    assert pause.report.error_bound_ticks == 0


def test_a_pause_ends_when_its_block_raises() -> None:
    counter = host()
    vm = owned(counter, cntvct=100)
    with pytest.raises(ZeroDivisionError), vm.pause():
        counter.advance(5)
        raise ZeroDivisionError
    assert vm.cntvct(0) == 100
    with vm.running(0):
        pass


def test_a_vcpu_initialised_again_after_apply_is_found_out_at_the_release() -> None:
    source = owned(counter := host())
    source.set_one_reg(1, Reg.TIMER_CVAL, 77_777)
    source.set_one_reg(1, Reg.TIMER_CTL, 1)
    saved = source.checkpoint()
    target = ModelVm(vcpus=2, counter=counter)
    begun = target.restoring(saved).__enter__()
    begun.apply()
    target.init_vcpu(1)
    with pytest.raises(ReadBackMismatch, match=r"initialised again.*call apply\(\) again") as caught:
        begun.release()
    assert (caught.value.vcpu, caught.value.wrote, caught.value.read) == (1, 1, 0)
    with pytest.raises(RestoreOpen), target.running(0):
        pass
    begun.apply()
    report = begun.release().to_dict()
    assert target.get_one_reg(1, Reg.TIMER_CTL) & 3 == 1
    # Two offsets, and four registers a vCPU: CVAL and CTL of two timers, twice here.
    written: Any = report["written"]
    assert (written["offset_writes"], written["register_writes"]) == (2, 2 * 4 * 2)
