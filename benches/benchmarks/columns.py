"""The checkpoints that the benchmarks encode."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guestclock import Checkpoint

# KVM allows a VM 512 vCPUs on arm64.
VCPUS = (1, 64, 512)


def checkpoint(vcpus: int) -> Checkpoint:
    """A checkpoint whose every vCPU has both EL1 timers armed, each at another count."""
    from guestclock import ManualCounter, ModelVm, Reg

    vm = ModelVm(vcpus=vcpus, counter=ManualCounter(10**12))
    vm.set_counter_offset(12345)
    for vcpu in range(vcpus):
        for cval, ctl in ((Reg.TIMER_CVAL, Reg.TIMER_CTL), (Reg.PTIMER_CVAL, Reg.PTIMER_CTL)):
            vm.set_one_reg(vcpu, cval, 10**12 + vcpu)
            vm.set_one_reg(vcpu, ctl, 1)
    return vm.checkpoint()
