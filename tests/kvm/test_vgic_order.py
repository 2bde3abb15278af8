"""The order in which a VMM restores the vGIC: with the distributor last, a timer that is due may never ring."""

from __future__ import annotations

import signal
import threading

import pytest

from guestclock import Freeze, Reg
from kvm.test_latches import KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, fired, lines, run_to_the_alarm, vmms
from kvm_vmm import (
    GICD,
    GICR,
    ICC,
    KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS,
    KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
    KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
    KVM_EXIT_INTR,
    Vmm,
)

__all__ = ["vmms"]

LINE = 1 << 27
"""The virtual timer's interrupt, 27, among the lines of a vCPU's private interrupts."""
PATIENCE_S = 5


def restored(source: Vmm, target: Vmm, *, distributor_first: bool, levels: bool) -> None:
    """Restore a guest whose alarm is due, with its vGIC in one order or the other."""
    source.machine.set_one_reg(0, Reg.TIMER_CVAL, 0)
    saved = source.vm.checkpoint()
    state = source.interrupts(0)
    where = [
        *((KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, offset) for offset in GICR),
        *((KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, register) for register in ICC),
    ]
    writes = [(group, offset, value) for (group, offset), value in zip(where, state[len(GICD) :], strict=True)]
    if levels:
        writes.append((KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, 0, LINE))
    distributor = (KVM_DEV_ARM_VGIC_GRP_DIST_REGS, GICD[0], state[0])
    writes.insert(0 if distributor_first else len(writes), distributor)
    with target.vm.restoring(saved, Freeze()) as opened:
        target.machine.ram[:] = source.machine.ram[:]
        for vcpu in range(2):
            target.set_registers(vcpu, source.registers(vcpu))
        for group, offset, value in writes:
            target.machine.gic_reg(group, 0, offset, value=value)
        opened.apply()
        opened.release()


@pytest.mark.parametrize(("distributor_first", "levels"), [(True, True), (True, False), (False, False)])
def test_the_alarm_rings(vmms: tuple[Vmm, Vmm], distributor_first: bool, levels: bool) -> None:
    """With the distributor first, or with the timers' lines left to KVM, which knows them."""
    restored(*vmms, distributor_first=distributor_first, levels=levels)
    run_to_the_alarm(vmms[1])
    assert [record.interrupt for record in fired(vmms[1])] == [27]


def test_with_the_line_restored_into_a_distributor_that_is_off_it_never_does(vmms: tuple[Vmm, Vmm]) -> None:
    """The interrupt was queued for nobody, and when the timer raises its line, KVM sees no change in it."""
    source, target = vmms
    restored(source, target, distributor_first=False, levels=True)
    machine, stops = target.machine, []
    signal.signal(signal.SIGUSR1, lambda *_: None)
    thread = threading.Thread(target=lambda: stops.append(machine.run(0).reason))
    thread.start()
    thread.join(PATIENCE_S)
    assert thread.is_alive()
    assert thread.ident
    machine.kick(0)
    signal.pthread_kill(thread.ident, signal.SIGUSR1)
    thread.join()
    # It slept: nothing came of an alarm that is overdue, enabled and not masked, with its line high.
    assert stops == [KVM_EXIT_INTR]
    assert fired(target) == []
    assert machine.get_one_reg(0, Reg.TIMER_CTL) & 3 == 1
    assert machine.get_one_reg(0, Reg.TIMER_CNT) >= machine.get_one_reg(0, Reg.TIMER_CVAL)
    assert lines(machine) & LINE
