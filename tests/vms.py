"""Hosts and VMs for the tests, and all that can be seen of a VM."""

from __future__ import annotations

import time
from typing import Any

from guestclock import ManualCounter, ModelVm, Reg, Stamp, Timer
from guestclock.errors import UnknownRegister, VcpuRunning
from guestclock.model import sysreg
from guestclock.testing import TracedVm

HZ = 62_500_000
NS = 16
"""Nanoseconds in a tick."""
SECOND = 10**9
START_NS = 1_750_000_000 * SECOND
TIMER_REGS = {
    Timer.VTIMER: (Reg.TIMER_CVAL, Reg.TIMER_CTL),
    Timer.PTIMER: (Reg.PTIMER_CVAL, Reg.PTIMER_CTL),
    Timer.HVTIMER: (Reg.CNTHV_CVAL_EL2, Reg.CNTHV_CTL_EL2),
    Timer.HPTIMER: (Reg.CNTHP_CVAL_EL2, Reg.CNTHP_CTL_EL2),
}
"""Each timer's CVAL and CTL."""


BOOT_ID = "b0" * 16
"""Boot id of the host that most tests are on."""


def host(
    count: int = 10**12, realtime_ns: int = START_NS, hz: int = HZ, boot_id: str | None = BOOT_ID
) -> ManualCounter:
    """The counter of a host: of one boot, unless another boot id is given, or None for a random one."""
    return ManualCounter(count, frequency_hz=hz, realtime_ns=realtime_ns, boot_id=boot_id)


class Running:
    """A counter of the caller's own, by Python's clocks, of a host that never slept."""

    frequency_hz = HZ
    source = "python"

    def __init__(self, boot_id: str | None = BOOT_ID) -> None:
        self.boot_id = boot_id

    def read(self) -> int:
        return time.monotonic_ns() // NS

    def stamp(self) -> Stamp:
        ns, realtime_ns, after_ns = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        count, width_ns = ns // NS, after_ns - ns + NS
        facts = (None, None, None, "unknown", None, self.boot_id)
        return Stamp(
            count, HZ, self.source, realtime_ns, width_ns, *facts, boottime_ns=ns, slept_ns=0, slept_width_ns=width_ns
        )


def texts(vm: TracedVm) -> list[str]:
    """The calls of a VM that is traced."""
    return [str(call) for call in vm.calls]


def owned(counter: ManualCounter, vcpus: int = 2, cntvct: int = 1000, **options: Any) -> ModelVm:
    """A VM that has opted in and whose guest reads `cntvct` now."""
    vm = ModelVm(vcpus, counter=counter, **options)
    vm.set_counter_offset((counter.read() - cntvct) % 2**64)
    return vm


def busy(vm: ModelVm) -> ModelVm:
    """The same, its vCPUs' registers each with a value of its own."""
    for vcpu in range(vm.vcpus):
        for number, reg in enumerate(vm.reg_list(vcpu)):
            vm.set_one_reg(vcpu, reg, 2**62 + 100 * vcpu + 8 * number + 3)
    return vm


def state(vm: ModelVm) -> dict[str, Any]:
    """All that can be seen of a VM, at a host count of 0."""
    irqs = [vm.irq(timer) for timer in (Timer.VTIMER, Timer.PTIMER)]
    return {
        "owned": vm.opted_in,
        "owed": vm.backlog_ticks,
        "irqs": irqs,
        "vcpus": [vcpu_state(vm, vcpu) for vcpu in range(vm.vcpus)],
    }


def vcpu_state(vm: ModelVm, vcpu: int) -> dict[str, Any]:
    timers: dict[Timer, object] = {}
    for timer in Timer:
        try:
            timers[timer] = vm.timer(vcpu, timer, now=0)
        except UnknownRegister:
            timers[timer] = "isn't there"
    try:
        regs: object = [(reg, vm.get_one_reg(vcpu, reg, now=0)) for reg in vm.reg_list(vcpu)]
    except VcpuRunning:
        regs = "in the guest"
    return {
        "counts": (vm.cntvct(vcpu, 0), vm.cntpct(vcpu, 0)),
        "cntkctl": vm.read_sysreg(vcpu, *sysreg("CNTKCTL_EL1"), now=0),
        "timers": timers,
        "deadline": vm.next_deadline(vcpu, now=0),
        "reg_list": vm.reg_list(vcpu),
        "regs": regs,
    }
