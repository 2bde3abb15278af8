"""Guests with EL2: CNTVOFF_EL2 is each vCPU's own, the VM has one offset, and a restore gets both right."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from golden import make
from guestclock import Advance, Checkpoint, Freeze, ManualCounter, ModelVm, Reg, Timer
from guestclock.errors import KvmError, TopologyMismatch, UnknownRegister, UnknownState
from guestclock.model import sysreg

START = 10**12
u64s = st.integers(0, 2**64 - 1)
policies = st.sampled_from([Freeze(), Advance()])


def host() -> ManualCounter:
    return ManualCounter(START)


def nested(counter: ManualCounter, vcpus: int = 2, **options: Any) -> ModelVm:
    return ModelVm(vcpus, counter=counter, nested=True, **options)


def test_the_default_offset_is_zero() -> None:
    vm = nested(host())
    assert vm.cntvct(0) == vm.cntpct(1) == START
    assert vm.nested
    assert vm.kernel == "7.3"


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_not_every_kernel_can(kernel: str) -> None:
    assert not ModelVm(1, counter=host(), kernel=kernel).capabilities.nested
    with pytest.raises(KvmError, match="KVM_CAP_ARM_EL2") as caught:
        nested(host(), kernel=kernel)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("reg", [Reg.TIMER_CNT, Reg.PTIMER_CNT])
def test_setting_either_count_moves_both_counters(reg: Reg) -> None:
    vm = nested(host())
    vm.set_one_reg(1, reg, 700)
    assert [(vm.cntvct(vcpu), vm.cntpct(vcpu)) for vcpu in range(2)] == [(700, 700)] * 2


def test_cntvoff_is_each_vcpus_own_and_reading_the_virtual_count_subtracts_it() -> None:
    vm = nested(host())
    vm.set_counter_offset(START - 5000)
    vm.set_one_reg(0, Reg.CNTVOFF_EL2, 1000)
    assert (vm.cntvct(0), vm.cntpct(0)) == (4000, 5000)
    assert (vm.cntvct(1), vm.cntpct(1)) == (5000, 5000)
    assert vm.get_one_reg(0, Reg.TIMER_CNT) == 4000
    assert vm.get_one_reg(0, Reg.PTIMER_CNT) == 5000
    # Setting a count doesn't look at it.
    other = nested(host())
    other.set_one_reg(0, Reg.CNTVOFF_EL2, 1000)
    other.set_one_reg(0, Reg.TIMER_CNT, 4000)
    assert (other.cntvct(0), other.cntpct(0)) == (3000, 4000)


def test_the_el2_timers_compare_without_cntvoff() -> None:
    vm = nested(host())
    vm.set_counter_offset(START - 5000)
    vm.set_one_reg(0, Reg.CNTVOFF_EL2, 1000)
    for cval, ctl in (
        (Reg.TIMER_CVAL, Reg.TIMER_CTL),
        (Reg.PTIMER_CVAL, Reg.PTIMER_CTL),
        (Reg.CNTHV_CVAL_EL2, Reg.CNTHV_CTL_EL2),
        (Reg.CNTHP_CVAL_EL2, Reg.CNTHP_CTL_EL2),
    ):
        vm.set_one_reg(0, cval, 5000)
        vm.set_one_reg(0, ctl, 1)
    assert {timer: vm.timer(0, timer).line for timer in Timer} == {
        Timer.VTIMER: False,
        Timer.PTIMER: True,
        Timer.HVTIMER: True,
        Timer.HPTIMER: True,
    }
    assert vm.timer(0, Timer.VTIMER).deadline == START + 1000


def test_init_resets_what_is_the_vcpus_own_and_keeps_the_vms_offset() -> None:
    vm = nested(host())
    vm.set_counter_offset(START - 5000)
    for reg in (Reg.CNTVOFF_EL2, Reg.CNTHCTL_EL2, Reg.CNTKCTL_EL1, Reg.CNTHP_CTL_EL2, Reg.CNTHV_CVAL_EL2):
        vm.set_one_reg(0, reg, 3)
    vm.init_vcpu(0)
    assert {vm.get_one_reg(0, reg) for reg in vm.reg_list(0)} == {0, 5000}
    assert (vm.cntvct(0), vm.cntpct(0)) == (5000, 5000)


def test_a_hypervisors_own_write_of_cntvoff_is_for_its_guest_at_once() -> None:
    vm = nested(host())
    with vm.running(0):
        vm.write_sysreg(0, *sysreg("CNTVOFF_EL2"), 1000, el=2)
        assert (vm.cntvct(0), vm.cntpct(0)) == (START - 1000, START)
        # Its own view of the virtual counter is without it.
        vm.write_sysreg(0, *sysreg("CNTHCTL_EL2"), 1 << 10, el=2)
        assert vm.read_sysreg(0, *sysreg("CNTVCT_EL0"), el=2) == START
        assert vm.read_sysreg(0, *sysreg("CNTVCT_EL0"), el=1) == START - 1000
    assert vm.get_one_reg(0, Reg.CNTVOFF_EL2) == 1000


@pytest.mark.parametrize("e2h0", [False, True])
def test_a_hypervisor_reads_the_virtual_counter_without_its_own_offset(e2h0: bool) -> None:
    """Seen with E2H 1. With E2H 0 the architecture says otherwise, and KVM's code doesn't (docs/model.md)."""
    vm = nested(host(), e2h0=e2h0)
    vm.set_one_reg(0, Reg.CNTVOFF_EL2, 1000)
    assert vm.read_sysreg(0, *sysreg("CNTVCT_EL0"), el=2) == START
    assert vm.read_sysreg(0, *sysreg("CNTVCT_EL0"), el=1) == START - 1000


@pytest.mark.parametrize(("e2h0", "shift"), [(True, 0), (False, 10)])
def test_what_a_hypervisor_lets_its_guest_use(e2h0: bool, shift: int) -> None:
    """EL1PCTEN and EL1PCEN are in bits 0 and 1 of CNTHCTL_EL2, or with E2H in bits 10 and 11."""
    vm = nested(host(), e2h0=e2h0)
    for bits in range(4):
        # The other bits of both layouts are set: they gate nothing here.
        vm.set_one_reg(0, Reg.CNTHCTL_EL2, bits << shift | 0b11 << (10 - shift))
        for name, gate in (("CNTPCT_EL0", 1), ("CNTP_CTL_EL0", 2)):
            expected = "allowed" if bits & gate else "trap-to-el2"
            assert vm.access(0, *sysreg(name), el=1) == expected
            assert vm.access(0, *sysreg(name), el=2) == "allowed"


def test_without_vhe_there_is_no_el2_virtual_timer() -> None:
    vm = nested(host(), e2h0=True)
    listed = {Reg(reg) for reg in vm.reg_list(0)}
    assert Reg.CNTHP_CTL_EL2 in listed
    assert Reg.CNTHV_CTL_EL2 not in listed
    assert listed | {Reg.CNTHV_CTL_EL2, Reg.CNTHV_CVAL_EL2} == {Reg(reg) for reg in nested(host()).reg_list(0)}
    with pytest.raises(UnknownRegister):
        vm.timer(0, Timer.HVTIMER)
    with pytest.raises(UnknownRegister):
        vm.get_one_reg(0, Reg.CNTHV_CVAL_EL2)
    with pytest.raises(ValueError, match="nested"):
        ModelVm(1, counter=host(), e2h0=True)


@given(
    offset=u64s,
    cntvoff=st.lists(u64s, min_size=2, max_size=2),
    pause=st.integers(0, 2**40),
    policy=policies,
    e2h0=st.booleans(),
    opted_in=st.booleans(),
    cval=u64s,
)
def test_a_restore_is_exact(
    offset: int, cntvoff: list[int], pause: int, policy: Freeze | Advance, e2h0: bool, opted_in: bool, cval: int
) -> None:
    counter = host()
    source = nested(counter, e2h0=e2h0)
    if opted_in:
        source.set_counter_offset(offset)
    else:
        source.set_one_reg(0, Reg.PTIMER_CNT, offset)
    for vcpu, value in enumerate(cntvoff):
        source.set_one_reg(vcpu, Reg.CNTVOFF_EL2, value)
        source.set_one_reg(vcpu, Reg.CNTHP_CVAL_EL2, cval)
        source.set_one_reg(vcpu, Reg.CNTHP_CTL_EL2, vcpu)
    before = [(source.cntvct(vcpu), source.cntpct(vcpu)) for vcpu in range(2)]
    checkpoint = Checkpoint.from_bytes(source.checkpoint().to_bytes())
    # The VM's counter, without any vCPU's own offset.
    assert checkpoint.cntvct == checkpoint.cntpct == before[0][1]
    counter.advance(pause)
    vm = nested(counter, e2h0=e2h0)
    report = vm.restore(checkpoint, policy)
    added = 0 if policy == Freeze() else pause
    assert report.method == ("offset" if opted_in else "by-value")
    assert [(vm.cntvct(vcpu), vm.cntpct(vcpu)) for vcpu in range(2)] == [
        ((virtual + added) % 2**64, (physical + added) % 2**64) for virtual, physical in before
    ]
    counts = (Reg.TIMER_CNT, Reg.PTIMER_CNT)
    for vcpu in range(2):
        for reg in set(vm.reg_list(vcpu)) - set(counts):
            assert vm.get_one_reg(vcpu, reg) == source.get_one_reg(vcpu, reg)


@pytest.mark.parametrize("opted_in", [True, False])
def test_pausing_in_place(opted_in: bool) -> None:
    counter = host()
    vm = nested(counter)
    if opted_in:
        vm.set_counter_offset(100)
    vm.set_one_reg(0, Reg.CNTVOFF_EL2, 1000)
    before = [(vm.cntvct(vcpu), vm.cntpct(vcpu)) for vcpu in range(2)]
    with vm.pause():
        counter.advance(10**6)
    assert [(vm.cntvct(vcpu), vm.cntpct(vcpu)) for vcpu in range(2)] == before
    assert vm.opted_in is opted_in


def test_replaying_registers_loses_cntvoff_and_a_restore_cannot() -> None:
    """What happens to a VMM that saves and replays KVM_GET_REG_LIST, in its order."""
    counter = host()
    source = nested(counter, vcpus=1)
    source.set_one_reg(0, Reg.TIMER_CNT, 5000)
    source.set_one_reg(0, Reg.CNTVOFF_EL2, 1000)
    assert (source.cntvct(0), source.cntpct(0)) == (4000, 5000)
    replayed = nested(counter, vcpus=1)
    for reg in source.reg_list(0):
        replayed.set_one_reg(0, reg, source.get_one_reg(0, reg))
    # The virtual count, already less CNTVOFF_EL2, was set last and moved both; then CNTVOFF_EL2 was subtracted again.
    assert (replayed.cntvct(0), replayed.cntpct(0)) == (3000, 4000)
    # A restore has the offset before and after whatever is replayed.
    vm = nested(counter, vcpus=1)
    steps = vm.restoring(source.checkpoint()).__enter__()
    for reg in source.reg_list(0):
        vm.set_one_reg(0, reg, source.get_one_reg(0, reg))
    steps.apply()
    steps.release()
    assert (vm.cntvct(0), vm.cntpct(0)) == (4000, 5000)


def test_nested_state_on_a_plain_vm_and_the_reverse_are_refused() -> None:
    counter = host()
    plain = ModelVm(2, counter=counter, kernel="7.3")
    plain.set_counter_offset(0)
    e2h0 = nested(counter, e2h0=True)
    guest = nested(counter)
    timers = "timers besides the physical one on each vCPU"
    for source, target, what, saved, here in (
        (guest, plain, "vCPUs with EL2", 2, 0),
        (plain, guest, "vCPUs with EL2", 0, 2),
        (guest, e2h0, timers, 3, 2),
        (e2h0, guest, timers, 2, 3),
    ):
        with pytest.raises(TopologyMismatch) as caught:
            target.plan(source.checkpoint())
        assert (caught.value.what, caught.value.saved, caught.value.host) == (what, saved, here)


def unknown_register() -> Checkpoint:
    (bare,) = make.BARE["groups"]
    group = bare | {"registers": bare["registers"] | {make.UNNAMED: 7}}
    return Checkpoint.from_bytes(make.encode(make.BARE | {"groups": [group]}))


def test_a_register_that_nobody_knows_is_carried_and_needs_a_vm_that_has_it() -> None:
    checkpoint = unknown_register()
    assert checkpoint.vcpu_columns()["0x603000000013e730"].tolist() == [7]
    with pytest.raises(TopologyMismatch) as caught:
        ModelVm(1, counter=host()).plan(checkpoint)
    assert (caught.value.saved, caught.value.host) == (1, 0)


def test_strict_refuses_what_is_not_known() -> None:
    checkpoint = Checkpoint.from_bytes(make.encode(make.BARE | {"later": 1}))
    vm = ModelVm(1, counter=host())
    assert any("later" in warning.text for warning in vm.plan(checkpoint).warnings)
    with pytest.raises(UnknownState, match="later") as caught:
        vm.plan(checkpoint, strict=True)
    assert "later" in caught.value.what


def test_the_first_run_takes_from_cnthctl_what_no_guest_has() -> None:
    vm = ModelVm(2, counter=host(), nested=True)
    vm.set_one_reg(1, Reg.CNTHCTL_EL2, 2**64 - 1)
    assert vm.get_one_reg(1, Reg.CNTHCTL_EL2) == 2**64 - 1
    with vm.running(0):
        pass
    assert vm.get_one_reg(1, Reg.CNTHCTL_EL2) == 0x3EFFF
    vm.set_one_reg(1, Reg.CNTHCTL_EL2, 2**63 + 1)
    vm.init_vcpu(0)
    assert vm.get_one_reg(1, Reg.CNTHCTL_EL2) == 1
