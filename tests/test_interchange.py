"""Register lists as other VMMs keep them, and checkpoints: each from the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestclock import Advance, Checkpoint, Elapsed, Freeze, ManualCounter, ModelVm, Reg, Timer
from guestclock.errors import ClockWentBackwards, ElapsedUnknown
from vms import HZ, NS, SECOND, START_NS, host, owned

U64 = st.integers(0, 2**64 - 1)
COUNTS = {Reg.TIMER_CNT, Reg.PTIMER_CNT}
CTLS = {Reg.TIMER_CTL, Reg.PTIMER_CTL, Reg.CNTHP_CTL_EL2, Reg.CNTHV_CTL_EL2}
ISTATUS = 4
LATER_REG = 0x6030_0000_0013_DF1D
"""A timer register that the table hasn't got: S3_3_C14_C3_5."""


def lists(vm: ModelVm, *, drift: int = 0) -> list[dict[int, int]]:
    """What a VMM saves: every register that KVM lists, `drift` ticks passing from one vCPU to the next."""
    now = vm.counter.read()
    return [
        {reg: vm.get_one_reg(vcpu, reg, now=now + vcpu * drift) for reg in vm.reg_list(vcpu)}
        for vcpu in range(vm.vcpus)
    ]


def taken(vm: ModelVm, **options: Any) -> Checkpoint:
    defaults: dict[str, Any] = {"frequency_hz": HZ, "host": vm.counter.stamp()}
    return Checkpoint.from_one_regs(lists(vm), **(defaults | options))


@st.composite
def vms(draw: st.DrawFn) -> ModelVm:
    """VMs of every kind, their registers anywhere, opted in or not."""
    kind: dict[str, Any] = draw(
        st.sampled_from(
            [
                {"kernel": "6.1"},
                {"kernel": "6.12"},
                {"kernel": "7.3"},
                {"kernel": "7.3", "nested": True},
                {"kernel": "7.3", "nested": True, "e2h0": True},
            ]
        )
    )
    vm = ModelVm(draw(st.integers(1, 3)), counter=host(count=draw(U64)), **kind)
    for vcpu in range(vm.vcpus):
        for reg in vm.reg_list(vcpu):
            vm.set_one_reg(vcpu, reg, draw(st.integers(0, 3) | U64 if reg in CTLS else U64))
    if kind["kernel"] != "6.1" and draw(st.booleans()):
        vm.set_counter_offset(draw(U64))
    return vm


@given(vms())
def test_a_list_makes_the_checkpoint_that_the_vm_makes(vm: ModelVm) -> None:
    own: Any = vm.checkpoint().to_dict()
    # Neither the interrupts nor that it had opted in are in the lists: without the offset nothing else is lost.
    (group,) = own["groups"]
    group["interrupts"] = None
    offset = (vm.counter.read() - vm.cntpct(0)) % 2**64 if vm.opted_in else None
    assert taken(vm, counter_offset=offset).to_dict() == own
    group["opted_in"] = [False]
    assert taken(vm).to_dict() == own


@given(vms())
def test_a_checkpoint_makes_the_list_that_the_vm_makes(vm: ModelVm) -> None:
    made = vm.checkpoint().to_one_regs(physical_count=True)
    left_out = {Reg.CNTKCTL_EL1, Reg.CNTHCTL_EL2}
    for vcpu, own in enumerate(lists(vm)):
        expected = {reg: value for reg, value in own.items() if reg not in left_out}
        for reg in expected.keys() & CTLS:
            expected[reg] &= ~ISTATUS
        assert made[vcpu] == expected
        assert Checkpoint.from_one_regs(made, frequency_hz=HZ, host=vm.counter.stamp()) == taken(vm)


@given(vms())
def test_a_list_set_in_its_order_restores_the_vm(vm: ModelVm) -> None:
    saved = vm.checkpoint()
    nested = Reg.CNTVOFF_EL2 in vm.reg_list(0)
    e2h0 = nested and Reg.CNTHV_CVAL_EL2 not in vm.reg_list(0)
    twin = ModelVm(vm.vcpus, counter=vm.counter, kernel=vm.kernel, nested=nested, e2h0=e2h0)
    for vcpu, registers in enumerate(saved.to_one_regs(physical_count=True)):
        for reg, value in registers.items():
            twin.set_one_reg(vcpu, reg, value)
    assert twin.checkpoint().to_one_regs(physical_count=True) == saved.to_one_regs(physical_count=True)
    assert [twin.cntvct(vcpu) for vcpu in range(vm.vcpus)] == [vm.cntvct(vcpu) for vcpu in range(vm.vcpus)]
    assert twin.cntpct(0) == vm.cntpct(0)


def test_the_exchanged_ids() -> None:
    # As the kernel's header has them: the count under CNTV_CVAL_EL0's encoding, CVAL under CNTVCT_EL0's.
    registers = {0x603000000013DF1A: 1000, 0x603000000013DF02: 2000, 0x603000000013DF19: 5}
    saved = Checkpoint.from_one_regs([registers], frequency_hz=HZ, host=host().stamp())
    assert (saved.cntvct, saved.cval(Timer.VTIMER).tolist(), saved.ctl(Timer.VTIMER).tolist()) == (1000, [2000], [1])
    assert saved.to_one_regs() == [registers | {0x603000000013DF19: 1}]


def test_counts_read_one_after_the_other_are_one_counter() -> None:
    vm = owned(host(), vcpus=3, cntvct=1000)
    saved = Checkpoint.from_one_regs(lists(vm, drift=10), frequency_hz=HZ, host=vm.counter.stamp())
    # The latest, so that no vCPU finds itself earlier than it was.
    assert (saved.cntvct, saved.cntpct) == (1020, 1020)
    assert (saved.virtual_width_ticks, saved.physical_width_ticks) == (20, 20)
    more = Checkpoint.from_one_regs(lists(vm, drift=10), frequency_hz=HZ, host=vm.counter.stamp(), width_ticks=7)
    assert (more.virtual_width_ticks, more.physical_width_ticks) == (27, 27)
    # Across the wrap, and with the later one first.
    first: dict[int, int] = {Reg.TIMER_CNT: 3, Reg.TIMER_CVAL: 0, Reg.TIMER_CTL: 0}
    second = first | {Reg.TIMER_CNT: 2**64 - 2}
    wrapped = Checkpoint.from_one_regs([first, second], frequency_hz=HZ, host=host().stamp())
    # Without a physical counter in the lists it is the host's.
    assert (wrapped.cntvct, wrapped.virtual_width_ticks, wrapped.physical_width_ticks) == (3, 5, 0)


def test_the_width_bounds_what_a_restore_makes_of_it() -> None:
    vm = owned(host(), vcpus=3, cntvct=1000)
    saved = Checkpoint.from_one_regs(lists(vm, drift=10), frequency_hz=HZ, host=vm.counter.stamp())
    for policy in (Freeze(), Advance()):
        report = ModelVm(3, counter=vm.counter).restore(saved, policy)
        assert report.error_bound_ticks == 20


def test_a_nested_guests_counters_are_one() -> None:
    vm = ModelVm(2, counter=host(), kernel="7.3", nested=True)
    vm.set_one_reg(0, Reg.CNTVOFF_EL2, 5_000)
    vm.set_one_reg(1, Reg.CNTVOFF_EL2, 2**64 - 7_000)
    assert vm.cntvct(0) != vm.cntvct(1)
    saved = Checkpoint.from_one_regs(lists(vm, drift=3), frequency_hz=HZ, host=vm.counter.stamp())
    assert saved.cntvct == saved.cntpct == vm.cntpct(0) + 3
    assert (saved.virtual_width_ticks, saved.physical_width_ticks) == (3, 3)
    assert saved.vcpu_columns()["cntvoff"].tolist() == [5_000, 2**64 - 7_000]


def test_other_registers_are_passed_over_and_unknown_timers_carried() -> None:
    vm = owned(host(), vcpus=1)
    (registers,) = lists(vm)
    x0, q0, pmu = 0x6030_0000_0010_0000, 0x6040_0000_0010_0054, 0x6030_0000_0013_DF7F
    busy = {x0: 1, q0: 2**128 - 1, pmu: 9, **registers, LATER_REG: 42}
    saved = Checkpoint.from_one_regs([busy], frequency_hz=HZ, host=vm.counter.stamp())
    said: Any = saved.to_dict()
    assert said["groups"][0]["registers"][LATER_REG] == [42]
    assert saved.vcpu_columns()["0x603000000013df1d"].tolist() == [42]
    (back,) = saved.to_one_regs()
    assert back[LATER_REG] == 42
    assert back.keys().isdisjoint({x0, q0, pmu})
    with pytest.raises(OverflowError):
        Checkpoint.from_one_regs([{**registers, Reg.TIMER_CVAL: 2**64}], frequency_hz=HZ, host=None)
    many = {0x6030_0000_0013_0000 | 3 << 14 | op1 << 11 | 14 << 7 | n: 0 for op1 in (1, 2, 6) for n in range(64)}
    with pytest.raises(ValueError, match=r"at most\s+64"):
        Checkpoint.from_one_regs([registers | many], frequency_hz=HZ, host=None)


@pytest.mark.parametrize("vcpu", [0, 1])
@pytest.mark.parametrize("kind", [{"kernel": "6.12"}, {"kernel": "7.3", "nested": True}])
def test_what_is_missing_is_named(vcpu: int, kind: dict[str, Any]) -> None:
    vm = ModelVm(2, counter=host(), **kind)
    for reg in vm.reg_list(0):
        if reg in {Reg.CNTKCTL_EL1, Reg.CNTHCTL_EL2}:
            continue
        registers = lists(vm)
        del registers[vcpu][reg]
        with pytest.raises(ValueError, match=rf"vCPU {vcpu}'s list has no {Reg(reg).name} \({reg:#018x}\)"):
            Checkpoint.from_one_regs(registers, frequency_hz=HZ, host=vm.counter.stamp())


def test_what_is_refused() -> None:
    vm = ModelVm(1, counter=host())
    stamp = vm.counter.stamp()
    with pytest.raises(ValueError, match="no vCPUs"):
        Checkpoint.from_one_regs([], frequency_hz=HZ, host=stamp)
    with pytest.raises(ValueError, match="frequency_hz is 0"):
        taken(vm, frequency_hz=0)
    with pytest.raises(ValueError, match="KVM can't rescale"):
        taken(vm, frequency_hz=HZ + 1)
    with pytest.raises(ValueError, match="the counters follow from the VM's offset"):
        taken(vm, host=None, counter_offset=5)
    with pytest.raises(ValueError, match=r"before 6\.4"):
        taken(ModelVm(1, counter=host(), kernel="6.1"), host=None)
    with pytest.raises(ValueError, match="host\\.source"):
        taken(vm, host=replace(stamp, source="\x1b[2J"))
    wrong: dict[str, Any] = {"leap": "TIME_INS", "machine_id": "abc", "boot_id": "+" + 31 * "0", "frequency_hz": 0}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=rf"host\.{name}"):
            taken(vm, host=replace(stamp, **{name: value}))
    with pytest.raises(OverflowError):
        taken(vm, counter_offset=2**64)
    assert taken(owned(host()), counter_offset=-5).cntvct == stamp.count + 5


def test_a_hosts_timestamp_comes_through_whole() -> None:
    stamp = replace(
        host().stamp(),
        source="cntvct_el0",
        width_ns=30,
        tai_offset_s=37,
        synchronized=True,
        max_error_ns=500_000,
        leap="insert",
        machine_id="5a" * 16,
        boot_id="00ff" * 8,
    )
    assert taken(ModelVm(1, counter=host()), host=stamp).stamp == stamp


def test_an_unknown_host_can_be_frozen_and_never_advanced() -> None:
    source = ModelVm(2, counter=host())
    saved = taken(source, host=None)
    assert Checkpoint.from_bytes(saved.to_bytes()) == saved
    assert saved.stamp.source == "unknown"
    for counter in (host(), host(count=0, realtime_ns=0), host(count=2**62, realtime_ns=2**62)):
        vm = ModelVm(2, counter=counter)
        with pytest.raises(ElapsedUnknown, match="nothing is known of that host's clocks"):
            vm.plan(saved, Advance(), elapsed=Elapsed.by_wall_clocks(error_ns=0))
        with pytest.raises(ClockWentBackwards, match="counter"):
            vm.plan(saved, Advance(), elapsed=Elapsed.by_counter())
        assert vm.restore(saved).cntvct == source.cntvct(0)
        # Whoever knows how long it is ago can say so.
        told = vm.restore(saved, Advance(), elapsed=Elapsed.given(SECOND, error_ns=10 * NS))
        assert (told.added_ticks, told.error_bound_ticks) == (HZ, 11)
    # Whoever knows the wall clock of the save, if no more, has an Advance by it.
    known = taken(source, host=replace(saved.stamp, realtime_ns=START_NS, width_ns=0))
    vm = ModelVm(2, counter=host(count=0, realtime_ns=START_NS + SECOND))
    assert vm.restore(known, Advance(), elapsed=Elapsed.by_wall_clocks(error_ns=0)).added_ticks == HZ


def test_a_snapshot_is_retimed() -> None:
    """The lists of a VMM that only restores by value, as they have to be five seconds later."""
    source = ModelVm(2, counter=host())
    source.set_one_reg(1, Reg.TIMER_CVAL, 7)
    saved = taken(source)
    later = ManualCounter(saved.stamp.count, frequency_hz=HZ)
    vm = ModelVm(2, counter=later)
    later.advance_ns(5 * SECOND)
    vm.restore(saved, Advance(), elapsed=Elapsed.by_counter())
    for old, new in zip(lists(source), vm.checkpoint().to_one_regs(physical_count=True), strict=True):
        for reg, value in new.items():
            assert value == (old[reg] & ~ISTATUS if reg in CTLS else old[reg] + 5 * HZ * (reg in COUNTS))


def test_columns_are_the_callers() -> None:
    vm = ModelVm(2, counter=host(), kernel="7.3", nested=True)
    vm.set_one_reg(1, Reg.PTIMER_CVAL, 2**64 - 1)
    vm.set_one_reg(0, Reg.CNTHV_CTL_EL2, 3)
    saved = vm.checkpoint()
    columns = saved.vcpu_columns()
    timers = ("vtimer", "ptimer", "hvtimer", "hptimer")
    registers = {f"{timer}_{part}" for timer in timers for part in ("cval", "ctl")} | {"cntvoff"}
    assert set(columns) == {"name", "vcpu"} | registers
    for name in registers:
        assert columns[name].dtype == np.uint64
        assert columns[name].shape == (2,)
        np.add(columns[name], np.uint64(1), out=columns[name])
    assert saved.vcpu_columns()["ptimer_cval"].tolist() == [0, 2**64 - 1]
    assert saved.vcpu_columns()["hvtimer_ctl"].tolist() == [3, 0]
    assert "cntvoff" not in ModelVm(1, counter=host()).checkpoint().vcpu_columns()
