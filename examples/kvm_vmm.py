"""A small VMM in Python on KVM: an arm64 guest with two vCPUs that is saved by one process and restored by another."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from dataclasses import dataclass
from typing import Final

# The ioctls, from include/uapi/linux/kvm.h.
KVM_CREATE_VM: Final = 0xAE01
KVM_CHECK_EXTENSION: Final = 0xAE03
KVM_GET_VCPU_MMAP_SIZE: Final = 0xAE04
KVM_CREATE_VCPU: Final = 0xAE41
KVM_SET_USER_MEMORY_REGION: Final = 0x4020_AE46
KVM_RUN: Final = 0xAE80
KVM_GET_ONE_REG: Final = 0x4010_AEAB
KVM_SET_ONE_REG: Final = 0x4010_AEAC
KVM_ARM_VCPU_INIT: Final = 0x4020_AEAE
KVM_ARM_PREFERRED_TARGET: Final = 0x8020_AEAF
KVM_GET_REG_LIST: Final = 0xC008_AEB0
KVM_ARM_SET_COUNTER_OFFSET: Final = 0x4010_AEB5
KVM_CREATE_DEVICE: Final = 0xC00C_AEE0
KVM_SET_DEVICE_ATTR: Final = 0x4018_AEE1
KVM_GET_DEVICE_ATTR: Final = 0x4018_AEE2

KVM_CAP_COUNTER_OFFSET: Final = 227
KVM_CAP_ARM_EL2: Final = 240
KVM_DEV_TYPE_ARM_VGIC_V3: Final = 7

# Why KVM_RUN returned: KVM_EXIT_* there.
KVM_EXIT_MMIO: Final = 6
KVM_EXIT_INTR: Final = 10

# The rest from arch/arm64/include/uapi/asm/kvm.h. First the vCPU features, as bits of kvm_vcpu_init.features[0].
KVM_ARM_VCPU_POWER_OFF: Final = 1 << 0
KVM_ARM_VCPU_PSCI_0_2: Final = 1 << 2
KVM_ARM_VCPU_HAS_EL2: Final = 1 << 7
KVM_ARM_VCPU_HAS_EL2_E2H0: Final = 1 << 8

# Device attributes, by group.
KVM_DEV_ARM_VGIC_GRP_ADDR: Final = 0
KVM_VGIC_V3_ADDR_TYPE_DIST: Final = 2
KVM_VGIC_V3_ADDR_TYPE_REDIST: Final = 3
KVM_DEV_ARM_VGIC_GRP_DIST_REGS: Final = 1
KVM_DEV_ARM_VGIC_GRP_CTRL: Final = 4
KVM_DEV_ARM_VGIC_CTRL_INIT: Final = 0
KVM_DEV_ARM_VGIC_GRP_REDIST_REGS: Final = 5
KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS: Final = 6
KVM_ARM_VCPU_TIMER_CTRL: Final = 1

# struct kvm_run
_IMMEDIATE_EXIT: Final = 1
_EXIT_REASON: Final = 8
_MMIO: Final = 32

RAM: Final = 0x4000_0000
GIC_DISTRIBUTOR: Final = 0x0800_0000
GIC_REDISTRIBUTORS: Final = 0x080A_0000
"""One of 128 KiB for each vCPU."""


def core_reg(word: int, bits: int = 64) -> int:
    """Return the id of a register in struct kvm_regs, which stands at that 32-bit word (KVM_REG_ARM_CORE_REG)."""
    return 0x6000_0000_0010_0000 | ({32: 2, 64: 3, 128: 4}[bits] << 52) | word


X: Final = [core_reg(2 * n) for n in range(31)]
"""The ids of x0 to x30."""
SP: Final = core_reg(62)
PC: Final = core_reg(64)
PSTATE: Final = core_reg(66)
MPIDR_EL1: Final = 0x6030_0000_0013_C005
"""ARM64_SYS_REG(3, 0, 0, 0, 5)"""


@dataclass(frozen=True, slots=True)
class Exit:
    """Why a vCPU came out of KVM_RUN. Address and data are those of an access to no memory, if that is why."""

    reason: int
    address: int = 0
    data: int = 0
    is_write: bool = False


class Machine:
    """A virtual machine on KVM: its memory, vCPUs and interrupt controller. No error but OSError, with KVM's errno.

    vcpus: how many to create and initialise at once; `create_vcpu` adds one.
    nested: the vCPUs have EL2.
    gic: with a vGICv3 in the kernel, for these vCPUs: KVM creates no vCPU after it. Or call `add_gic` later.
    features: further KVM_ARM_VCPU_* bits.
    """

    def __init__(
        self, vcpus: int = 2, *, nested: bool = False, gic: bool = True, ram_size: int = 0x20_0000, features: int = 0
    ) -> None:
        self.features = KVM_ARM_VCPU_PSCI_0_2 | (KVM_ARM_VCPU_HAS_EL2 if nested else 0) | features
        self.vcpu_fds: list[int] = []
        self.gic_fd: int | None = None
        self._runs: list[mmap.mmap] = []
        self.ram = mmap.mmap(-1, ram_size)
        self.kvm_fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        try:
            self.vm_fd = fcntl.ioctl(self.kvm_fd, KVM_CREATE_VM, 0)
        except OSError:
            os.close(self.kvm_fd)
            raise
        try:
            self._run_size = fcntl.ioctl(self.kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0)
            start = ctypes.addressof(ctypes.c_char.from_buffer(self.ram))
            region = struct.pack("=2I3Q", 0, 0, RAM, ram_size, start)
            fcntl.ioctl(self.vm_fd, KVM_SET_USER_MEMORY_REGION, region)
            for _ in range(vcpus):
                self.create_vcpu()
            for vcpu in range(vcpus):
                self.init_vcpu(vcpu)
            if gic:
                self.add_gic()
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Tear the machine down. Memory and descriptors are gone afterwards; twice is once."""
        for run in self._runs:
            run.close()
        for fd in (*self.vcpu_fds, self.gic_fd, self.vm_fd, self.kvm_fd):
            if fd is not None and fd >= 0:
                os.close(fd)
        self._runs, self.vcpu_fds, self.gic_fd, self.vm_fd, self.kvm_fd = [], [], None, -1, -1
        self.ram.close()

    def create_vcpu(self) -> int:
        """Create one more vCPU and return its number. `init_vcpu` makes it ready to run."""
        vcpu = len(self.vcpu_fds)
        self.vcpu_fds.append(fcntl.ioctl(self.vm_fd, KVM_CREATE_VCPU, vcpu))
        self._runs.append(mmap.mmap(self.vcpu_fds[vcpu], self._run_size))
        return vcpu

    def init_vcpu(self, vcpu: int) -> None:
        """Initialise a vCPU, or reset one: it is on, whatever its number, at EL1 (or EL2) with interrupts masked."""
        target = bytearray(32)
        fcntl.ioctl(self.vm_fd, KVM_ARM_PREFERRED_TARGET, target)
        struct.pack_into("=I", target, 4, self.features)
        fcntl.ioctl(self.vcpu_fds[vcpu], KVM_ARM_VCPU_INIT, target)

    def add_gic(self) -> None:
        """Create the vGICv3 and initialise it."""
        device = bytearray(struct.pack("=3I", KVM_DEV_TYPE_ARM_VGIC_V3, 0, 0))
        fcntl.ioctl(self.vm_fd, KVM_CREATE_DEVICE, device)
        fd = self.gic_fd = int(struct.unpack("=3I", device)[1])
        set_attr(fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, GIC_DISTRIBUTOR)
        set_attr(fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, GIC_REDISTRIBUTORS)
        set_attr(fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, None)

    def check_extension(self, capability: int) -> int:
        """What this VM answers for a KVM_CAP_*: 0 where it hasn't got it."""
        return fcntl.ioctl(self.vm_fd, KVM_CHECK_EXTENSION, capability)

    def set_counter_offset(self, offset: int, reserved: int = 0) -> None:
        """Subtract `offset` from the host's counter in both views of all vCPUs. From then on the VM owns its offset."""
        fcntl.ioctl(self.vm_fd, KVM_ARM_SET_COUNTER_OFFSET, struct.pack("=2Q", offset % 2**64, reserved))

    def get_one_reg(self, vcpu: int, reg: int) -> int:
        """Read a register; its width is in its id."""
        value = ctypes.create_string_buffer(_size(reg))
        fcntl.ioctl(self.vcpu_fds[vcpu], KVM_GET_ONE_REG, struct.pack("=2Q", reg, ctypes.addressof(value)))
        return int.from_bytes(value.raw, "little")

    def set_one_reg(self, vcpu: int, reg: int, value: int) -> None:
        """Write a register; its width is in its id."""
        data = ctypes.create_string_buffer(value.to_bytes(_size(reg), "little"), _size(reg))
        fcntl.ioctl(self.vcpu_fds[vcpu], KVM_SET_ONE_REG, struct.pack("=2Q", reg, ctypes.addressof(data)))

    def reg_list(self, vcpu: int) -> list[int]:
        """The ids of a vCPU's registers, in the kernel's order."""
        # fcntl copies a buffer of up to 1024 bytes; this one the kernel gets itself, and with room for every register.
        listed = (ctypes.c_uint64 * 4096)(4095)
        fcntl.ioctl(self.vcpu_fds[vcpu], KVM_GET_REG_LIST, listed)
        return list(listed[1 : 1 + listed[0]])

    def run(self, vcpu: int) -> Exit:
        """Enter the guest until it comes out; other threads go on meanwhile. A signal alone doesn't end it (`kick`)."""
        run = self._runs[vcpu]
        while True:
            try:
                fcntl.ioctl(self.vcpu_fds[vcpu], KVM_RUN, 0)
            except InterruptedError:
                if not run[_IMMEDIATE_EXIT]:
                    continue
                run[_IMMEDIATE_EXIT] = 0
                return Exit(KVM_EXIT_INTR)
            (reason,) = struct.unpack_from("=I", run, _EXIT_REASON)
            if reason != KVM_EXIT_MMIO:
                return Exit(reason)
            address, data, size, is_write = struct.unpack_from("=QQI?", run, _MMIO)
            return Exit(reason, address, data % (1 << 8 * size), is_write)

    def kick(self, vcpu: int) -> None:
        """Have the vCPU's `run` return KVM_EXIT_INTR: at its next entry, or at once when its thread gets a signal."""
        self._runs[vcpu][_IMMEDIATE_EXIT] = 1

    def gic_reg(self, group: int, vcpu: int, offset: int, *, value: int | None = None) -> int:
        """Read a register of the vGIC, or write `value` to it: of a group of KVM_DEV_ARM_VGIC_GRP_*.

        The distributor's don't depend on the vCPU. EBUSY while any vCPU is in KVM_RUN.
        """
        if self.gic_fd is None:
            raise OSError(errno.ENXIO, "this machine has no vGIC")
        attribute = (vcpu & 0xF | (vcpu >> 4) << 8) << 32 | offset  # MPIDR_EL1 as KVM numbers its vCPUs
        size = 8 if group == KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS else 4
        if value is None:
            return get_attr(self.gic_fd, group, attribute, size=size)
        set_attr(self.gic_fd, group, attribute, value, size=size)
        return value

    def timer_irq(self, vcpu: int, timer: int) -> int:
        """The interrupt id of a vCPU's timer (KVM_ARM_VCPU_TIMER_IRQ_*)."""
        return get_attr(self.vcpu_fds[vcpu], KVM_ARM_VCPU_TIMER_CTRL, timer, size=4)

    def set_timer_irq(self, vcpu: int, timer: int, intid: int) -> None:
        """Set it: for the whole VM, and before any vCPU has run."""
        set_attr(self.vcpu_fds[vcpu], KVM_ARM_VCPU_TIMER_CTRL, timer, intid, size=4)


def get_attr(fd: int, group: int, attribute: int, *, size: int = 8) -> int:
    """Read a device attribute of so many bytes (KVM_GET_DEVICE_ATTR)."""
    data = ctypes.create_string_buffer(size)
    fcntl.ioctl(fd, KVM_GET_DEVICE_ATTR, struct.pack("=2I2Q", 0, group, attribute, ctypes.addressof(data)))
    return int.from_bytes(data.raw, "little")


def set_attr(fd: int, group: int, attribute: int, value: int | None, *, size: int = 8) -> None:
    """Write a device attribute of so many bytes; without a value, one that is an action (KVM_SET_DEVICE_ATTR)."""
    data = ctypes.create_string_buffer((value or 0).to_bytes(size, "little"), size)
    address = 0 if value is None else ctypes.addressof(data)
    fcntl.ioctl(fd, KVM_SET_DEVICE_ATTR, struct.pack("=2I2Q", 0, group, attribute, address))


def _size(reg: int) -> int:
    return 1 << (reg >> 52 & 15)  # KVM_REG_SIZE
