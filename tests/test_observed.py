"""What was observed on running kernels, on the model: one test a row, by the row's letter.

The rows are those of arm64 KVM in an emulated machine (Linux 6.1, 6.12, 7.2 and 7.3). "Offset" is the host's counter
minus the guest's, in ticks.
"""

from __future__ import annotations

import errno

import pytest

from guestclock import ManualCounter, ModelVm, Reg, _core
from guestclock.errors import KvmError, UnknownRegister, VcpuRunning
from guestclock.model import sysreg

KERNELS = ("6.1", "6.12", "7.3")
WITH_OFFSET = ("6.12", "7.3")
kernels = pytest.mark.parametrize("kernel", KERNELS)
with_offset = pytest.mark.parametrize("kernel", WITH_OFFSET)

START = 10**12


def host() -> ManualCounter:
    return ManualCounter(START)


def offsets(vm: ModelVm) -> set[tuple[int, int]]:
    """The virtual and physical offsets that its vCPUs have: one pair, if all agree."""
    return {(-vm.cntvct(vcpu, 0) % 2**64, -vm.cntpct(vcpu, 0) % 2**64) for vcpu in range(vm.vcpus)}


@kernels
def test_a_default(kernel: str) -> None:
    counter = host()
    vm = ModelVm(2, counter=counter, kernel=kernel)
    assert offsets(vm) == {(START, 0)}
    counter.advance(500)
    assert (vm.cntvct(0), vm.cntpct(0)) == (500, START + 500)  # they go on while the VM is stopped
    vm.create_vcpu()
    assert offsets(vm) == {(START + 500, 0)}  # a late vCPU moved every vCPU's virtual counter


@kernels
def test_a_init_again_keeps_the_offset_and_turns_timers_off(kernel: str) -> None:
    vm = ModelVm(1, counter=host(), kernel=kernel)
    vm.set_one_reg(0, Reg.TIMER_CVAL, 2**64 - 1)
    vm.set_one_reg(0, Reg.TIMER_CTL, 3)
    before = offsets(vm)
    vm.init_vcpu(0)
    assert offsets(vm) == before
    assert vm.get_one_reg(0, Reg.TIMER_CTL) & 3 == 0
    assert vm.get_one_reg(0, Reg.TIMER_CVAL) == (0 if kernel == "7.3" else 2**64 - 1)


@kernels
def test_b_set_timer_cnt(kernel: str) -> None:
    counter = host()
    vm = ModelVm(2, counter=counter, kernel=kernel)
    vm.set_one_reg(0, Reg.TIMER_CNT, 700)
    assert offsets(vm) == {(START - 700, 0)}
    vm.set_one_reg(1, Reg.TIMER_CNT, 900)
    assert offsets(vm) == {(START - 900, 0)}


@kernels
def test_b_a_vcpu_inside_its_guest_jumps_only_at_its_next_load(kernel: str) -> None:
    vm = ModelVm(2, counter=host(), kernel=kernel)
    with vm.running(1):
        vm.set_one_reg(0, Reg.TIMER_CNT, 700)
        assert (vm.cntvct(0), vm.cntvct(1)) == (700, 0)
    assert vm.cntvct(1) == 700


@with_offset
def test_c_set_ptimer_cnt(kernel: str) -> None:
    vm = ModelVm(2, counter=host(), kernel=kernel)
    vm.set_one_reg(1, Reg.PTIMER_CNT, 300)
    assert offsets(vm) == {(START, START - 300)}
    vm.create_vcpu()
    assert offsets(vm) == {(START, 0)}  # both are reset


def test_c_there_is_no_ptimer_cnt_on_6_1() -> None:
    vm = ModelVm(1, counter=host(), kernel="6.1")
    for reg in (Reg.PTIMER_CNT, Reg.PTIMER_CTL, Reg.PTIMER_CVAL):
        with pytest.raises(UnknownRegister) as caught:
            vm.get_one_reg(0, reg)
        assert caught.value.errno == errno.ENOENT
        with pytest.raises(UnknownRegister):
            vm.set_one_reg(0, reg, 1)


@with_offset
def test_d_set_counter_offset(kernel: str) -> None:
    vm = ModelVm(2, counter=host(), kernel=kernel)
    vm.set_counter_offset(1000)
    assert offsets(vm) == {(1000, 1000)}
    with vm.running(0):
        pass
    vm.set_counter_offset(0)  # the later wins, after running too, and zero is an offset
    assert offsets(vm) == {(0, 0)}
    vm.set_counter_offset(-5)
    assert offsets(vm) == {(2**64 - 5, 2**64 - 5)}


@with_offset
def test_d_an_offset_for_no_vcpus_survives_creation_late_vcpus_and_init(kernel: str) -> None:
    counter = host()
    vm = ModelVm(0, counter=counter, kernel=kernel)
    vm.set_counter_offset(1000)
    for _ in range(3):
        vm.init_vcpu(vm.create_vcpu())
        counter.advance(10)
    assert offsets(vm) == {(1000, 1000)}


@with_offset
def test_d_a_reserved_field_is_refused_and_changes_nothing(kernel: str) -> None:
    vm = ModelVm(1, counter=host(), kernel=kernel)
    before = offsets(vm)
    with pytest.raises(KvmError) as caught:
        vm.set_counter_offset(1000, reserved=1)
    assert caught.value.errno == errno.EINVAL
    assert offsets(vm) == before
    assert not vm.opted_in


@with_offset
def test_d_a_running_vcpu_makes_it_busy_and_latches_nothing(kernel: str) -> None:
    vm = ModelVm(2, counter=host(), kernel=kernel)
    before = offsets(vm)
    with vm.running(1):
        with pytest.raises(VcpuRunning) as caught:
            vm.set_counter_offset(1000)
        assert caught.value.errno == errno.EBUSY
    assert offsets(vm) == before
    vm.set_one_reg(0, Reg.TIMER_CNT, 5)  # so the flag isn't set
    assert vm.cntvct(0) == 5


def test_d_there_is_no_offset_on_6_1() -> None:
    vm = ModelVm(1, counter=host(), kernel="6.1")
    assert vm.capabilities.counter_offset.ok is False
    with pytest.raises(KvmError) as caught:
        vm.set_counter_offset(1000)
    assert caught.value.errno == errno.EINVAL
    assert not vm.opted_in


@with_offset
def test_e_counts_set_afterwards_do_nothing(kernel: str) -> None:
    vm = ModelVm(2, counter=host(), kernel=kernel)
    vm.set_counter_offset(1000)
    vm.set_one_reg(0, Reg.TIMER_CNT, 5)
    vm.set_one_reg(1, Reg.PTIMER_CNT, 6)
    assert offsets(vm) == {(1000, 1000)}


@with_offset
def test_f_counts_read_afterwards_are_the_host_less_the_offset(kernel: str) -> None:
    vm = ModelVm(2, counter=host(), kernel=kernel)
    vm.set_counter_offset(1000)
    assert vm.get_one_reg(1, Reg.TIMER_CNT) == vm.get_one_reg(0, Reg.PTIMER_CNT) == START - 1000


@with_offset
def test_g_counts_first_then_the_offset(kernel: str) -> None:
    vm = ModelVm(2, counter=host(), kernel=kernel)
    vm.set_one_reg(0, Reg.TIMER_CNT, 5)
    vm.set_one_reg(0, Reg.PTIMER_CNT, 6)
    vm.set_counter_offset(1000)
    assert offsets(vm) == {(1000, 1000)}


@kernels
@pytest.mark.parametrize("cval", [0, 1, 2**32, 2**63, 2**64 - 1])
def test_h_cval_round_trips(kernel: str, cval: int) -> None:
    vm = ModelVm(1, counter=host(), kernel=kernel)
    vm.set_one_reg(0, Reg.TIMER_CVAL, cval)
    assert vm.get_one_reg(0, Reg.TIMER_CVAL) == cval


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_h_ctl_is_computed(kernel: str) -> None:
    vm = ModelVm(1, counter=host(), kernel=kernel)
    assert vm.get_one_reg(0, Reg.TIMER_CTL) == 4  # a fresh vCPU: CVAL 0 has passed, though ENABLE is 0
    vm.set_one_reg(0, Reg.TIMER_CVAL, 1)
    vm.set_one_reg(0, Reg.TIMER_CTL, 0xFFFF_FFFF_FFFF_FFFF)
    assert vm.get_one_reg(0, Reg.TIMER_CTL) == 0xFFFF_FFFB  # 32 bits, and ISTATUS isn't what was written


def test_h_ctl_is_stored() -> None:
    counter = host()
    vm = ModelVm(1, counter=counter, kernel="7.3")
    assert vm.get_one_reg(0, Reg.TIMER_CTL) == 0
    vm.set_one_reg(0, Reg.TIMER_CTL, 5)
    counter.advance(1)
    assert vm.get_one_reg(0, Reg.TIMER_CTL) == 1  # expired, but it never ran
    with vm.running(0):
        pass
    assert vm.get_one_reg(0, Reg.TIMER_CTL) == 5
    vm.set_one_reg(0, Reg.TIMER_CTL, 2**64 - 1)
    assert vm.get_one_reg(0, Reg.TIMER_CTL) == 2**64 - 1 - 4


@kernels
def test_h_other_bits_of_ctl_live_until_the_first_run_and_the_guest_never_sees_them(kernel: str) -> None:
    vm = ModelVm(1, counter=host(), kernel=kernel)
    vm.set_one_reg(0, Reg.TIMER_CVAL, 2**63)
    vm.set_one_reg(0, Reg.TIMER_CTL, 0xF8)
    assert vm.get_one_reg(0, Reg.TIMER_CTL) == 0xF8
    assert vm.read_sysreg(0, *sysreg("CNTV_CTL_EL0")) == 0
    with vm.running(0):
        pass
    assert vm.get_one_reg(0, Reg.TIMER_CTL) == 0


@kernels
def test_h_a_run_leaves_istatus_until_ctl_is_set(kernel: str) -> None:
    vm = ModelVm(1, counter=host(), kernel=kernel)
    vm.set_one_reg(0, Reg.TIMER_CTL, 3)  # its time has come, since CVAL is 0
    with vm.running(0):
        pass
    vm.set_one_reg(0, Reg.TIMER_CVAL, 2**63)
    assert vm.get_one_reg(0, Reg.TIMER_CTL) == 7
    vm.set_one_reg(0, Reg.TIMER_CTL, 7)
    assert vm.get_one_reg(0, Reg.TIMER_CTL) == 3


@with_offset
def test_h_other_bits_of_an_emulated_timer_stay(kernel: str) -> None:
    vm = ModelVm(1, counter=host(), kernel=kernel, vhe=False)
    for reg in (Reg.TIMER_CTL, Reg.PTIMER_CTL):
        vm.set_one_reg(0, reg, 0xF8)
    with vm.running(0):
        pass
    assert vm.get_one_reg(0, Reg.TIMER_CTL) & 0xF8 == 0
    assert vm.get_one_reg(0, Reg.PTIMER_CTL) & 0xF8 == 0xF8
    with pytest.raises(ValueError, match="VHE"):
        ModelVm(1, kernel="7.3", nested=True, vhe=False)


@kernels
def test_h_what_is_not_there(kernel: str) -> None:
    vm = ModelVm(1, counter=host(), kernel=kernel)
    for name in ("CNTV_TVAL_EL0", "CNTP_TVAL_EL0", "CNTFRQ_EL0", "CNTVOFF_EL2", "CNTPOFF_EL2", "CNTVCTSS_EL0"):
        op0, op1, crn, crm, op2 = sysreg(name)
        reg = 0x6030000000130000 | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
        with pytest.raises(UnknownRegister) as caught:
            vm.get_one_reg(0, reg)
        assert (caught.value.errno, caught.value.reg) == (errno.ENOENT, reg)


@pytest.mark.parametrize(
    ("kernel", "names"),
    [
        ("6.1", "TIMER_CTL TIMER_CNT TIMER_CVAL CNTKCTL_EL1"),
        ("6.12", "TIMER_CTL TIMER_CNT TIMER_CVAL PTIMER_CTL PTIMER_CNT PTIMER_CVAL CNTKCTL_EL1"),
        ("7.3", "CNTKCTL_EL1 PTIMER_CNT TIMER_CNT PTIMER_CTL PTIMER_CVAL TIMER_CTL TIMER_CVAL"),
    ],
)
def test_i_what_is_listed_and_in_what_order(kernel: str, names: str) -> None:
    vm = ModelVm(1, counter=host(), kernel=kernel)
    assert [Reg(reg).name for reg in vm.reg_list(0)] == names.split()


@with_offset
def test_j_why_an_offset(kernel: str) -> None:
    """Setting 64 vCPUs' counters one after the other leaves the VM's clock behind by the time that it took."""
    counter = host()
    vm = ModelVm(64, counter=counter, kernel=kernel)
    saved = 5000
    for vcpu in range(64):
        counter.advance(26)  # between computing the value and setting it
        vm.set_one_reg(vcpu, Reg.TIMER_CNT, saved)
    elapsed = counter.read() - START
    assert vm.cntvct(0) == saved  # it should have gone on since the first
    assert elapsed == 64 * 26
    # An offset loses nothing, however long it takes to be set.
    offset = START - saved
    counter.advance(10**6)
    vm.set_counter_offset(offset)
    assert vm.cntvct(63) == vm.cntpct(0) == saved + elapsed + 10**6


def test_k_a_physical_offset_traps_without_ecv() -> None:
    counter = host()
    vm = ModelVm(1, counter=counter)
    assert vm.capabilities.physical_offset_untrapped.ok is None
    source = ModelVm(1, counter=counter)
    source.set_counter_offset(1000)
    assert any("CNTPOFF_EL2" in fact.text for fact in vm.plan(source.checkpoint()).degraded)
    source.set_counter_offset(0)
    assert not any("CNTPOFF_EL2" in fact.text for fact in vm.plan(source.checkpoint()).degraded)


# What follows from the kernel's code.


@with_offset
def test_a_vcpu_created_after_counts_were_restored_moves_them_unless_the_vm_opted_in(kernel: str) -> None:
    for opted_in in (False, True):
        counter = host()
        vm = ModelVm(1, counter=counter, kernel=kernel)
        if opted_in:
            vm.set_counter_offset(START - 700)
        else:
            vm.set_one_reg(0, Reg.TIMER_CNT, 700)
            vm.set_one_reg(0, Reg.PTIMER_CNT, 700)
        counter.advance(50)
        vm.create_vcpu()
        expected = (750, 750) if opted_in else (0, counter.read())
        assert (vm.cntvct(0), vm.cntpct(0)) == expected


def test_the_swapped_ids() -> None:
    """TIMER_CNT has CNTV_CVAL_EL0's encoding, and TIMER_CVAL CNTVCT_EL0's; the physical ones are straight."""
    assert Reg.TIMER_CNT.value == 0x603000000013DF1A
    assert Reg.TIMER_CVAL.value == 0x603000000013DF02
    assert Reg.PTIMER_CNT.value == 0x603000000013DF01
    assert Reg.PTIMER_CVAL.value == 0x603000000013DF12
    assert sysreg("CNTVCT_EL0") == (3, 3, 14, 0, 2)
    assert _core.reg_id("TIMER_CVAL") == Reg.TIMER_CVAL
    vm = ModelVm(1, counter=host())
    vm.set_one_reg(0, 0x603000000013DF1A, 42)
    assert vm.read_sysreg(0, 3, 3, 14, 0, 2) == 42
