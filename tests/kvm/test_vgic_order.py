"""The order in which a VMM restores the vGIC: in another, an interrupt is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from blocks import KVM_PAGES, blocks
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


DEBUG = Path("/sys/kernel/debug/kvm")
SHARED = 40
"""A shared interrupt, which the saved guest's second vCPU handles."""


@contextmanager
def machine_of_the_page() -> Iterator[dict[str, Any]]:
    """What the page about the restore defines before its first function that saves, and a machine of two vCPUs."""
    (page,) = (page for page in KVM_PAGES if page.name == "restore-kvm.md")
    defined: dict[str, Any] = {}
    for block in blocks(page)[:2]:
        exec(block.content, defined)  # noqa: S102 - the page is ours
    machine = defined["Machine"](2)
    try:
        yield {**defined, "machine": machine}
    finally:
        machine.runs.clear()
        for fd in (*machine.vcpu_fds, machine.gic_fd, machine.vm_fd):
            os.close(fd)


def vcpu_that_has(interrupt: int, vm_fd: int) -> int:
    """The vCPU in whose list KVM has queued a shared interrupt, by its own account; -1 for none."""
    (folder,) = DEBUG.glob(f"{os.getpid()}-{vm_fd}")
    (line,) = (
        line.split()
        for line in (folder / "vgic-state").read_text().splitlines()
        if line.split()[:2] == ["SPI", str(interrupt)]
    )
    return int(line[-1])


@pytest.mark.skipif(not DEBUG.is_dir(), reason="no debugfs, which shows where KVM queues an interrupt")
@pytest.mark.parametrize("routed_first", [True, False], ids=["the page's order", "the routes last"])
def test_an_active_interrupt_stays_where_it_was_queued(routed_first: bool) -> None:
    """On the vCPU that handles it, if that is known when it becomes active, and else on vCPU 0 for good."""
    with machine_of_the_page() as page:
        attribute, gic = page["attribute"], page["machine"].gic_fd
        bit, router = 1 << SHARED % 32, 0x6000 + 8 * SHARED
        saved = {0x84: bit, 0x104: bit, 0x304: bit, router: 1}  # IGROUPR1, ISENABLER1, ISACTIVER1, IROUTER
        order = list(page["vgic"](2))
        if not routed_first:
            order.sort(key=lambda entry: entry[:2] == (page["DIST_REGS"], router))
        for group, attr, size in order:
            value = attribute(gic, group, attr, size=size)
            if group == page["DIST_REGS"]:
                value = saved.get(attr, value)
            attribute(gic, group, attr, value, size=size)
        assert attribute(gic, page["DIST_REGS"], router) == 1
        assert vcpu_that_has(SHARED, page["machine"].vm_fd) == (1 if routed_first else 0)
