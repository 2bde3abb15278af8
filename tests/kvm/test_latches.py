"""The timers after a restore on a real kernel: their lines, their pending latches, and what the guest gets of both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from guestclock import Freeze, KvmVm, Reg, Timer
from guestclock.errors import CapabilityMissing, VcpuRunning
from guestclock.payload import Doorbell, Kind, Record, image
from guestclock.types import LatchMismatch
from kvm.spinning import spinning
from kvm_vmm import (
    DOORBELL,
    GIC_DISTRIBUTOR,
    GIC_REDISTRIBUTORS,
    GICD,
    GICR,
    KVM_CAP_ARM_EL2,
    KVM_EXIT_MMIO,
    PC,
    RAM,
    Machine,
    Vmm,
)
from vms import TIMER_REGS

KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO = 7
"""Its attribute 0 is the lines of the interrupts 0 to 31 (VGIC_LEVEL_INFO_LINE_LEVEL)."""
ISPENDR0 = len(GICD) + GICR.index(0x1_0200)
"""Its place in the interrupt state that the VMM saves."""
HOUR_S = 3600
ISTATUS = 1 << 2


@pytest.fixture
def vmms() -> Iterator[tuple[Vmm, Vmm]]:
    """A VMM whose guest, on vCPU 0, has set an alarm that rings in an hour, and one to restore it into."""
    with contextlib.ExitStack() as stack:
        source, target = Vmm(), Vmm()
        for vmm in (source, target):
            stack.callback(vmm.machine.close)
        guest = image(
            vcpus=1,
            samples=1,
            doorbell=DOORBELL,
            gicd=GIC_DISTRIBUTOR,
            gicr=GIC_REDISTRIBUTORS,
            period_ticks=HOUR_S * source.host_hz,
            psci="none",
        )
        source.machine.ram[: len(guest)] = guest
        source.machine.set_one_reg(0, PC, RAM)
        run_to_the_alarm(source)
        yield source, target


def run_to_the_alarm(vmm: Vmm) -> None:
    """Let vCPU 0 go until it has set its alarm."""
    bell = 0
    while bell != Doorbell.ALARM_SET:
        stop = vmm.machine.run(0)
        assert stop.reason == KVM_EXIT_MMIO, stop
        bell = stop.data & 0xFF
    load(vmm.machine)


def load(machine: Machine) -> None:
    """Load vCPU 0 without a step of its guest."""
    machine.kick(0)
    machine.run(0)


def lines(machine: Machine) -> int:
    """The levels that KVM has for the lines of vCPU 0's private interrupts, a bit each."""
    return machine.gic_reg(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, 0, 0)


def fired(vmm: Vmm) -> list[Record]:
    log = vmm.guest.log().vcpus[0]
    assert log is not None
    return [record for record in log.records if record.kind is Kind.FIRED]


@pytest.mark.parametrize("pending", [False, True], ids=["clear", "pending"])
@pytest.mark.parametrize("due", [False, True], ids=["low", "high"])
def test_what_disagrees_and_what_comes_of_it(vmms: tuple[Vmm, Vmm], due: bool, pending: bool) -> None:
    source, target = vmms
    if due:
        source.machine.set_one_reg(0, Reg.TIMER_CVAL, 0)
    saved = source.vm.checkpoint()
    with target.vm.restoring(saved, Freeze()) as opened:
        target.machine.ram[:] = source.machine.ram[:]
        for vcpu in range(2):
            interrupts = source.interrupts(vcpu)
            assert interrupts[ISPENDR0] == 0
            # The second vCPU's physical timer is off. It never runs.
            interrupts[ISPENDR0] = (1 << 30 if vcpu else 1 << 27) * pending
            target.set_registers(vcpu, source.registers(vcpu))
            target.interrupts(vcpu, interrupts)
        opened.apply()
        report = opened.release()

    latches = target.vm.pending_latches()
    assert latches == [1 << 27, 1 << 30] if pending else [0, 0]
    irqs = {timer: target.vm.irq(timer) for timer in (Timer.VTIMER, Timer.PTIMER)}
    listed = report.latch_mismatches(latches, irqs=irqs, userspace_gic=True)
    assert report.latch_mismatches(latches, irqs=irqs) == [found for found in listed if found.pending]
    other = [] if report.method == "virtual-only" else [LatchMismatch(1, Timer.PTIMER, 30, line=False, pending=True)]
    assert listed == [
        *([LatchMismatch(0, Timer.VTIMER, 27, line=due, pending=pending)] if due != pending else []),
        *(other if pending else []),
    ]
    # Once the vCPU is loaded, KVM has the line as it was told, and the latch as it was.
    load(target.machine)
    assert report.timers()[0].line is due
    assert lines(target.machine) == due << 27
    assert target.vm.pending_latches() == latches

    if not due and not pending:
        return
    run_to_the_alarm(target)
    (record,) = fired(target)
    assert record.interrupt == 27
    # With the line low the interrupt is spurious: the guest finds that its timer's condition isn't met.
    assert bool(record.ctl & ISTATUS) is due
    assert (record.cntvct >= record.cval) is due
    # There is one, whatever it came of: the latch is gone with it, and the alarm set since rings in an hour.
    assert target.vm.pending_latches()[0] == 0


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("turn", range(6))
def test_the_lines_are_those_that_kvm_raises(nested: bool, turn: int) -> None:
    """Of every timer: due or not, off, on or masked. Under CNTVOFF_EL2 the virtual one has half an hour to go still."""
    with contextlib.ExitStack() as stack:
        if nested:
            bare = stack.enter_context(contextlib.closing(Machine(0, gic=False)))
            if not bare.check_extension(KVM_CAP_ARM_EL2):
                pytest.skip("this kernel offers no EL2 to guests")
        source, target = (stack.enter_context(contextlib.closing(Machine(1, nested=nested))) for _ in range(2))
        vm, other = (KvmVm(each.vm_fd, each.vcpu_fds, gic_fd=each.gic_fd) for each in (source, target))
        hour = HOUR_S * vm.frequency_hz
        if vm.capabilities.counter_offset:
            vm.set_counter_offset(vm.counter.read() - 10 * hour)
        else:
            vm.set_one_reg(0, Reg.TIMER_CNT, 10 * hour)
        if nested:
            vm.set_one_reg(0, Reg.CNTVOFF_EL2, hour)
        states = [(cval, ctl) for ctl in (1, 0, 3) for cval in (10 * hour - hour // 2, 11 * hour)]
        for timer, (cval_reg, ctl_reg) in TIMER_REGS.items():
            if cval_reg in vm.reg_list(0):
                cval, ctl = states[(turn + timer) % 6]
                vm.set_one_reg(0, cval_reg, cval)
                vm.set_one_reg(0, ctl_reg, ctl)
        report = other.restore(vm.checkpoint(), Freeze())
        load(target)
        told = report.timers()
        assert lines(target) == sum(each.line << other.irq(each.timer) for each in told)
        # No latch is set, so those that are listed are those whose line is high.
        listed = report.latch_mismatches(other.pending_latches(), userspace_gic=True)
        assert [each.timer for each in listed] == [each.timer for each in told if each.line]


def test_the_latches_of_a_vm_that_runs_are_not_to_be_had() -> None:
    with contextlib.closing(Machine(2)) as machine:
        vm = KvmVm(machine.vm_fd, machine.vcpu_fds, gic_fd=machine.gic_fd)
        with spinning(machine, 1), pytest.raises(VcpuRunning):
            vm.pending_latches()
        assert vm.pending_latches() == [0, 0]


def test_without_the_vgic_there_are_none() -> None:
    with contextlib.closing(Machine(1, gic=False)) as machine:
        vm = KvmVm(machine.vm_fd, machine.vcpu_fds)
        with pytest.raises(CapabilityMissing, match="gic_fd"):
            vm.pending_latches()


def test_the_timers_interrupt_ids() -> None:
    with contextlib.closing(Machine(2)) as machine:
        vm = KvmVm(machine.vm_fd, machine.vcpu_fds, gic_fd=machine.gic_fd)
        machine.set_timer_irq(0, Timer.PTIMER, 19)
        assert [vm.irq(Timer.VTIMER), vm.irq(Timer.PTIMER)] == [27, 19]
