"""`verify`: a look at a VM's clocks, which changes nothing and waits for nobody."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from guestclock import Advance, CatchUp, Fleet, Freeze, ManualCounter, ModelVm, Reg
from guestclock.errors import VcpuRunning
from guestclock.testing import Fault, FaultyVm, TracedVm
from guestclock.types import Mismatch, Verified

HZ = 62_500_000


def host() -> ManualCounter:
    return ManualCounter(10**12, frequency_hz=HZ)


def armed(vm: ModelVm) -> ModelVm:
    """The VM with a timer that is due on one vCPU, and one that isn't on the other."""
    for vcpu, cval in enumerate((5, 10**15)):
        vm.set_one_reg(vcpu, Reg.TIMER_CVAL, cval)
        vm.set_one_reg(vcpu, Reg.TIMER_CTL, 1)
    return vm


def opted_in(counter: ManualCounter, kernel: str = "6.12") -> ModelVm:
    vm = ModelVm(2, counter=counter, kernel=kernel)
    vm.opt_in()
    return armed(vm)


def codes(verified: Verified) -> list[tuple[str, int | None, str, int | None]]:
    return [(one.code, one.vcpu, one.clock, one.ahead_ticks) for one in verified.mismatches]


class TestAVm:
    @pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.3"])
    @pytest.mark.parametrize("opt_in", [True, False])
    def test_all_is_as_it_is_to_be(self, kernel: str, opt_in: bool) -> None:
        counter = host()
        owned = opt_in and kernel != "6.1"
        vm = opted_in(counter, kernel) if owned else armed(ModelVm(2, counter=counter, kernel=kernel))
        counter.advance(1000)
        verified = vm.verify()
        assert verified
        assert (verified.state, verified.looked_at, verified.vcpus) == ("open", counter.read(), 2)
        assert verified.virtual_offset == (10**12, 0)
        assert verified.physical_offset == (None if kernel == "6.1" else (10**12 if owned else 0, 0))
        assert verified.error_bound_ticks == 0
        assert verified.timers is (kernel != "7.3")
        assert str(verified) == "all clocks of 2 vCPUs are where they are to be, within 0 ticks"

    def test_a_guest_with_el2(self) -> None:
        counter = host()
        vm = ModelVm(2, counter=counter, nested=True)
        vm.opt_in()
        vm.set_one_reg(1, Reg.CNTVOFF_EL2, 77)
        verified = vm.verify()
        assert verified
        assert (verified.virtual_offset, verified.physical_offset) == (None, (10**12, 0))

    def test_nothing_is_written_and_nobody_is_waited_for(self) -> None:
        vm = opted_in(host())
        traced = TracedVm(vm)
        assert traced.verify()
        assert {call.operation for call in traced.calls} == {"stopped", "reg_list", "get_one_reg"}
        assert {call.verb for call in traced.calls} == {"verify"}
        # An EBUSY that would be waited out is told at once.
        busy = FaultyVm(vm, [Fault("stopped", errno=errno.EBUSY)], busy_retries=5)
        with pytest.raises(VcpuRunning):
            busy.verify()
        assert [str(call) for call in busy.calls] == [str(busy.calls[0])]
        with vm.running(1), pytest.raises(VcpuRunning):
            vm.verify()

    def test_a_vcpu_that_is_off_is_named(self) -> None:
        counter = host()
        wrong = Fault("get_one_reg 1 TIMER_CNT", flipped=1 << 8, times=None)
        vm = FaultyVm(opted_in(counter), [wrong])
        counter.advance(1000)
        assert codes(vm.verify()) == [("vm-offset", 1, "CNTVCT_EL0", -256)]
        assert vm.verify().virtual_offset is None
        vm = FaultyVm(armed(ModelVm(2, counter=counter)), [wrong])
        assert codes(vm.verify()) == [("other-vcpus", 1, "CNTVCT_EL0", 256)]

    def test_an_offset_that_was_set_elsewhere(self) -> None:
        counter = host()
        vm = opted_in(counter)
        under = FaultyVm(vm, [Fault("set_counter_offset", dropped=True)])
        under.set_counter_offset(10**12 - 9)
        assert vm.verify()
        counter.advance(50)
        report = vm.restore(vm.checkpoint(), Freeze())
        assert vm.verify(report)
        vm.set_counter_offset(10**12 - 9)
        assert vm.verify()
        found = vm.verify(report)
        assert not found
        assert codes(found) == [("report", 0, "CNTVCT_EL0", 9), ("report", 0, "CNTPCT_EL0", 9)]
        assert str(found).startswith("vCPU 0: CNTVCT_EL0 is at least 9 ticks ahead of where the report put it")

    @pytest.mark.parametrize("vcpu", [0, 1])
    def test_a_timer_whose_condition_is_not_as_its_registers_tell(self, vcpu: int) -> None:
        counter = host()
        counter.advance(1000)
        vm = opted_in(counter)
        counter.advance(1000)
        under = FaultyVm(vm, [Fault(f"get_one_reg {vcpu} TIMER_CTL", flipped=4)])
        assert codes(under.verify()) == [("condition", vcpu, "vtimer", None)]
        assert under.verify(), "the fault is over"

    def test_a_guest_with_a_backlog_is_where_its_report_and_its_steps_put_it(self) -> None:
        counter = host()
        vm = opted_in(counter)
        saved = vm.checkpoint()
        counter.advance(HZ)
        report = vm.restore(saved, CatchUp(10**8, 10**9))
        assert vm.verify(report)
        counter.advance_ns(2 * 10**9)
        for step in vm.catch_up():
            step.apply()
        assert vm.backlog_ticks < report.backlog_ticks
        assert vm.verify(report)

    def test_a_guest_is_not_before_its_checkpoint(self) -> None:
        counter = host()
        vm = opted_in(counter)
        counter.advance(500)
        saved = vm.checkpoint()
        assert vm.verify(saved)
        again = ModelVm(2, counter=counter)
        again.opt_in()
        assert codes(again.verify(saved)) == [
            ("checkpoint", None, "CNTVCT_EL0", -500),
            ("checkpoint", None, "CNTPCT_EL0", -500),
        ]
        again.restore(saved, Advance())
        counter.advance(3)
        assert again.verify(saved)
        with pytest.raises(TypeError):
            again.verify(3)  # type: ignore[arg-type]

    def test_in_a_pause_and_in_a_restore(self) -> None:
        counter = host()
        vm = opted_in(counter)
        saved = vm.checkpoint()
        with vm.pause():
            assert (vm.verify().state, bool(vm.verify())) == ("paused", True)
        with vm.restoring(saved) as r:
            assert (vm.verify().state, bool(vm.verify())) == ("restoring", True)
            r.apply()
            assert vm.verify(r.release())


class TestAFleet:
    def test_each_is_compared_with_its_own(self) -> None:
        counter = host()
        fleet = Fleet({name: opted_in(counter) for name in "abc"})
        saved = fleet.checkpoint()
        counter.advance(7)
        report = fleet.restore(saved)
        verified = fleet.verify(report, threads=2)
        assert verified
        assert (list(verified), verified.failed, verified.mismatches) == (["a", "b", "c"], {}, {})
        fleet["b"].set_counter_offset(3)
        assert fleet.verify()
        verified = fleet.verify(report)
        assert not verified
        assert list(verified.mismatches) == ["b"]
        assert repr(verified) == "<FleetVerified of 3 VMs: 1 off, 0 failed>"
        assert fleet.verify(saved, only=["a", "c"])

    def test_one_that_runs_is_told_and_the_others_are_looked_at(self) -> None:
        fleet = Fleet({name: opted_in(host()) for name in "abc"})
        with fleet["b"].running(0):
            verified = fleet.verify()
        assert not verified
        assert (list(verified), list(verified.failed)) == (["a", "c"], ["b"])
        assert isinstance(verified.failed["b"], VcpuRunning)
        assert str(verified).startswith("b: VcpuRunning: ")


def test_the_records_are_values() -> None:
    off = Mismatch("report", "off", 0, "CNTVCT_EL0", 1)
    assert str(off) == "off"
    verified = ModelVm(1, counter=host()).verify()
    assert verified
    assert not replace(verified, mismatches=(off,))
    assert replace(verified, virtual_offset=None, physical_offset=None).error_bound_ticks == 2**64 - 1
