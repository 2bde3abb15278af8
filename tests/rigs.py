"""VMs to test on, of the model and of KVM, made and torn down alike: what `test_backends.py` runs on.

On KVM nothing can be injected: time is the host's, on the model too. So the host's counter is read before and after,
and what must hold is what holds for every instant between.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guestclock import HostCounter, KvmVm, ModelVm
from guestclock._core import _LINUX
from guestclock.testing import FaultyVm
from guestclock.types import GuestVm
from vms import Running

if TYPE_CHECKING:
    from kvm_vmm import Machine

IN_A_LEG = "GUESTCLOCK_LEG" in os.environ
"""The testbed's machine, or a native arm64 host: KVM has to be there, and its absence is a failure."""
KVM = IN_A_LEG or (platform.machine() == "aarch64" and os.access("/dev/kvm", os.R_OK | os.W_OK))


@dataclass
class Rig:
    """A VM, and what its VMM does to it behind guestclock's back."""

    vm: GuestVm
    create_vcpu: Callable[[], int]
    init_vcpu: Callable[[int], None]
    machine: Machine | None = None

    def host(self) -> int:
        """The host's counter."""
        return self.vm.counter.read()

    def read(self, view: str, vcpu: int = 0) -> tuple[int, int, int]:
        """The host's counter, the guest's, and the host's again."""
        before = self.host()
        guest = getattr(self.vm, view)(vcpu)
        return before, guest, self.host()

    def offset(self, view: str, vcpu: int = 0) -> tuple[int, int]:
        """The least and the most that a counter's offset can be, modulo 2^64."""
        before, guest, after = self.read(view, vcpu)
        return (before - guest) % 2**64, (after - guest) % 2**64


def within(value: int, low: int, high: int) -> bool:
    """Whether it lies from `low` to `high`, modulo 2^64."""
    return (value - low) % 2**64 <= (high - low) % 2**64


def meet(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two brackets of one thing have an instant in common, modulo 2^64."""
    return within(one[0], *other) or within(other[0], *one)


def model(kernel: str, *, nested: bool = False, faulty: bool = False) -> Callable[[int], Any]:
    """Rigs of the model, over this host's counter, or one of Python's off Linux; `faulty` ones without a fault."""

    @contextmanager
    def make(vcpus: int) -> Iterator[Rig]:
        vm = ModelVm(vcpus, counter=HostCounter() if _LINUX else Running(), kernel=kernel, nested=nested, name="rig")
        yield Rig(FaultyVm(vm, []) if faulty else vm, vm.create_vcpu, vm.init_vcpu)

    return make


def kvm(*, nested: bool = False, gic: bool = True) -> Callable[[int], Any]:
    """Rigs of this host's KVM."""

    @contextmanager
    def make(vcpus: int) -> Iterator[Rig]:
        from kvm_vmm import Machine

        machine = Machine(vcpus, nested=nested, gic=gic)
        try:
            vm = KvmVm(machine.vm_fd, machine.vcpu_fds, gic_fd=machine.gic_fd, name="rig")

            def create_vcpu() -> int:
                vcpu = machine.create_vcpu()
                machine.init_vcpu(vcpu)
                return vm.add_vcpu(machine.vcpu_fds[vcpu])

            yield Rig(vm, create_vcpu, machine.init_vcpu, machine)
        finally:
            machine.close()

    return make


MODELS = {
    "model-6.1": model("6.1"),
    "model-6.12": model("6.12"),
    "model-7.3": model("7.3"),
    "model-nested": model("7.3", nested=True),
    "model-faulty": model("6.12", faulty=True),
}
# Without a vGIC too, since KVM creates no vCPU once there is one.
REAL = {"kvm": kvm(), "kvm-without-vgic": kvm(gic=False)}
if os.environ.get("GUESTCLOCK_LEG") == "nested":
    REAL["kvm-nested"] = kvm(nested=True)
RIGS = MODELS | (REAL if KVM else {})
