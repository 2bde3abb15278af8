"""A small VMM in Python on KVM: an arm64 guest with two vCPUs that is saved by one process and restored by another.

    python examples/kvm_vmm.py save saved-vm
    python examples/kvm_vmm.py restore saved-vm --policy advance

The guest is guestclock's payload: on each vCPU it reads its counters, sets an alarm, sleeps, and is woken by the
timer's interrupt, round after round. It is saved with alarms set, so that the interrupts of alarms set in the first
process are taken in the second.

The VMM reads time from the host's counter, outside guestclock, immediately around the guest's reads and around the
checkpoint and the release. `vm.json` and `restored.json` hold those readings, for a judge.

`Machine` has everything that is asked of KVM; `Vmm` does what a VMM does with guestclock.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import struct
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from guestclock import Advance, Checkpoint, Freeze, KvmVm, Reg, Timer
from guestclock.payload import Doorbell, Guest, Kind, image

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

KVM_CAP_ARM_VM_IPA_SIZE: Final = 165
KVM_CAP_COUNTER_OFFSET: Final = 227
KVM_CAP_ARM_EL2: Final = 240
KVM_DEV_TYPE_ARM_VGIC_V3: Final = 7

# The reasons why KVM_RUN returns: KVM_EXIT_* there.
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

# The layout of guest-physical memory in this VMM.
RAM: Final = 0x4000_0000
GIC_DISTRIBUTOR: Final = 0x0800_0000
GIC_REDISTRIBUTORS: Final = 0x080A_0000
"""A redistributor of 128 KiB for each vCPU."""
DOORBELL: Final = 0x0A00_0000
"""No memory: a store there comes out of KVM_RUN."""


def core_reg(word: int, bits: int = 64) -> int:
    """Returns the id of a register in struct kvm_regs, which stands at that 32-bit word (KVM_REG_ARM_CORE_REG)."""
    return 0x6000_0000_0010_0000 | ({32: 2, 64: 3, 128: 4}[bits] << 52) | word


X: Final = [core_reg(2 * n) for n in range(31)]
"""The ids of x0 to x30."""
PC: Final = core_reg(64)
PSTATE: Final = core_reg(66)
MPIDR_EL1: Final = 0x6030_0000_0013_C005
"""ARM64_SYS_REG(3, 0, 0, 0, 5)"""


@dataclass(frozen=True, slots=True)
class Exit:
    """A vCPU's exit from KVM_RUN: its reason, and address and data if that is an access to no memory."""

    reason: int
    address: int = 0
    data: int = 0
    is_write: bool = False


class Machine:
    """A virtual machine on KVM: its memory, vCPUs and interrupt controller. No error but OSError, with KVM's errno.

    vcpus: the number of vCPUs to create and initialise at once; `create_vcpu` adds one.
    nested: the vCPUs have EL2.
    gic: with a vGICv3 in the kernel, for these vCPUs: KVM creates no vCPU after it. Or call `add_gic` later.
    features: further KVM_ARM_VCPU_* bits.
    ram: the guest's memory, which the machine closes; anonymous memory of 2 MiB if there is none.
    """

    def __init__(
        self, vcpus: int = 2, *, nested: bool = False, gic: bool = True, features: int = 0, ram: mmap.mmap | None = None
    ) -> None:
        self.features = KVM_ARM_VCPU_PSCI_0_2 | (KVM_ARM_VCPU_HAS_EL2 if nested else 0) | features
        self.vcpu_fds: list[int] = []
        self.gic_fd: int | None = None
        self._runs: list[mmap.mmap] = []
        self.ram = mmap.mmap(-1, 0x20_0000) if ram is None else ram
        self.kvm_fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        try:
            # A VM has addresses of 40 bits unless it is asked for less, as on hosts that haven't got so many.
            bits = fcntl.ioctl(self.kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_ARM_VM_IPA_SIZE)
            self.vm_fd = fcntl.ioctl(self.kvm_fd, KVM_CREATE_VM, bits if 0 < bits < 40 else 0)
        except OSError:
            os.close(self.kvm_fd)
            raise
        try:
            self._run_size = fcntl.ioctl(self.kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0)
            start = ctypes.addressof(ctypes.c_char.from_buffer(self.ram))
            region = struct.pack("=2I3Q", 0, 0, RAM, len(self.ram), start)
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
        """Tears the machine down. Memory and descriptors are gone afterwards; a second call does nothing."""
        for run in self._runs:
            run.close()
        for fd in (*self.vcpu_fds, self.gic_fd, self.vm_fd, self.kvm_fd):
            if fd is not None and fd >= 0:
                os.close(fd)
        self._runs, self.vcpu_fds, self.gic_fd, self.vm_fd, self.kvm_fd = [], [], None, -1, -1
        self.ram.close()

    def create_vcpu(self) -> int:
        """Creates one more vCPU and returns its number. `init_vcpu` makes it ready to run."""
        vcpu = len(self.vcpu_fds)
        self.vcpu_fds.append(fcntl.ioctl(self.vm_fd, KVM_CREATE_VCPU, vcpu))
        self._runs.append(mmap.mmap(self.vcpu_fds[vcpu], self._run_size))
        return vcpu

    def init_vcpu(self, vcpu: int) -> None:
        """Initialises or resets a vCPU: it is on, whatever its number, at EL1 (or EL2) with interrupts masked."""
        target = bytearray(32)
        fcntl.ioctl(self.vm_fd, KVM_ARM_PREFERRED_TARGET, target)
        struct.pack_into("=I", target, 4, self.features)
        fcntl.ioctl(self.vcpu_fds[vcpu], KVM_ARM_VCPU_INIT, target)

    def add_gic(self) -> None:
        """Creates the vGICv3 and initialises it."""
        device = bytearray(struct.pack("=3I", KVM_DEV_TYPE_ARM_VGIC_V3, 0, 0))
        fcntl.ioctl(self.vm_fd, KVM_CREATE_DEVICE, device)
        fd = self.gic_fd = int(struct.unpack("=3I", device)[1])
        set_attr(fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, GIC_DISTRIBUTOR)
        set_attr(fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, GIC_REDISTRIBUTORS)
        set_attr(fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, None)

    def check_extension(self, capability: int) -> int:
        """KVM's answer for a KVM_CAP_* on this VM: 0 if it lacks the capability."""
        return fcntl.ioctl(self.vm_fd, KVM_CHECK_EXTENSION, capability)

    def set_counter_offset(self, offset: int, reserved: int = 0) -> None:
        """Subtracts `offset` from the host's counter in both views of all vCPUs, and so opts the VM in for good."""
        fcntl.ioctl(self.vm_fd, KVM_ARM_SET_COUNTER_OFFSET, struct.pack("=2Q", offset % 2**64, reserved))

    def get_one_reg(self, vcpu: int, reg: int) -> int:
        """Reads a register; its width is in its id."""
        value = ctypes.create_string_buffer(_size(reg))
        fcntl.ioctl(self.vcpu_fds[vcpu], KVM_GET_ONE_REG, struct.pack("=2Q", reg, ctypes.addressof(value)))
        return int.from_bytes(value.raw, "little")

    def set_one_reg(self, vcpu: int, reg: int, value: int) -> None:
        """Writes a register; its width is in its id."""
        data = ctypes.create_string_buffer(value.to_bytes(_size(reg), "little"), _size(reg))
        fcntl.ioctl(self.vcpu_fds[vcpu], KVM_SET_ONE_REG, struct.pack("=2Q", reg, ctypes.addressof(data)))

    def reg_list(self, vcpu: int) -> list[int]:
        """The ids of a vCPU's registers, in the kernel's order."""
        # fcntl copies a buffer of up to 1024 bytes; the kernel gets this one itself, with room for every register.
        listed = (ctypes.c_uint64 * 4096)(4095)
        fcntl.ioctl(self.vcpu_fds[vcpu], KVM_GET_REG_LIST, listed)
        return list(listed[1 : 1 + listed[0]])

    def run(self, vcpu: int) -> Exit:
        """Enters the guest until it comes out; other threads go on. A signal alone doesn't end it (`kick`)."""
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

    def answer(self, vcpu: int, value: int) -> None:
        """Gives the guest what it loads from no memory, after an exit for that. The next `run` finishes the load."""
        struct.pack_into("=Q", self._runs[vcpu], _MMIO + 8, value)

    def kick(self, vcpu: int) -> None:
        """Makes the vCPU's `run` return KVM_EXIT_INTR: at its next entry, or at once when its thread gets a signal."""
        self._runs[vcpu][_IMMEDIATE_EXIT] = 1

    def gic_reg(self, group: int, vcpu: int, offset: int, *, value: int | None = None) -> int:
        """Reads a register of the vGIC, or writes `value` to it. `group` is a KVM_DEV_ARM_VGIC_GRP_*.

        The distributor's registers don't depend on the vCPU. EBUSY while any vCPU is in KVM_RUN.
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
        """Sets the interrupt id of a timer: for the whole VM, and before any vCPU has run."""
        set_attr(self.vcpu_fds[vcpu], KVM_ARM_VCPU_TIMER_CTRL, timer, intid, size=4)


def get_attr(fd: int, group: int, attribute: int, *, size: int = 8) -> int:
    """Reads a device attribute of `size` bytes (KVM_GET_DEVICE_ATTR)."""
    data = ctypes.create_string_buffer(size)
    fcntl.ioctl(fd, KVM_GET_DEVICE_ATTR, struct.pack("=2I2Q", 0, group, attribute, ctypes.addressof(data)))
    return int.from_bytes(data.raw, "little")


def set_attr(fd: int, group: int, attribute: int, value: int | None, *, size: int = 8) -> None:
    """Writes a device attribute of `size` bytes; with None, an attribute that is an action (KVM_SET_DEVICE_ATTR)."""
    data = ctypes.create_string_buffer((value or 0).to_bytes(size, "little"), size)
    address = 0 if value is None else ctypes.addressof(data)
    fcntl.ioctl(fd, KVM_SET_DEVICE_ATTR, struct.pack("=2I2Q", 0, group, attribute, address))


def _size(reg: int) -> int:
    return 1 << (reg >> 52 & 15)  # KVM_REG_SIZE


VCPUS: Final = 2
ROUND: Final = 8
"""Samples that the guest takes in a row: a judge uses the one that was bracketed most tightly."""
PATIENCE_S: Final = 100
"""Time after which a guest that still sleeps has lost its alarm's interrupt."""
MAX_ROUNDS: Final = 100
"""Limit on the rounds of both processes together: the log holds no more."""

# guestclock saves and restores these; the VMM's own replay leaves them out.
TIME: Final = set(Reg) - {Reg.CNTKCTL_EL1, Reg.CNTHCTL_EL2}

# The vGIC's registers that this guest can tell apart (Arm IHI 0069). Its lines aren't among them: KVM raises a timer's.
GICD: Final = [0x0000]
"""GICD_CTLR"""
GICR: Final = [0x1_0080, 0x1_0100, 0x1_0200, 0x1_0300, *range(0x1_0400, 0x1_0420, 4), 0x1_0C04]
"""Registers of SGIs and PPIs: IGROUPR0, ISENABLER0, ISPENDR0, ISACTIVER0, IPRIORITYR0 to 7, ICFGR1"""
ICC: Final = [
    op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
    for op0, op1, crn, crm, op2 in (
        (3, 0, 12, 12, 5),  # ICC_SRE_EL1
        (3, 0, 12, 12, 4),  # ICC_CTLR_EL1
        (3, 0, 4, 6, 0),  # ICC_PMR_EL1
        (3, 0, 12, 8, 3),  # ICC_BPR0_EL1
        (3, 0, 12, 12, 3),  # ICC_BPR1_EL1
        (3, 0, 12, 8, 4),  # ICC_AP0R0_EL1
        (3, 0, 12, 9, 0),  # ICC_AP1R0_EL1
        (3, 0, 12, 12, 6),  # ICC_IGRPEN0_EL1
        (3, 0, 12, 12, 7),  # ICC_IGRPEN1_EL1
    )
]


def instruction(word: int) -> Any:
    """Returns a function of these instructions: ISB; `word`, an MRS to x0; RET."""
    # From a file, so that the kernel keeps the instruction cache right.
    fd = os.memfd_create("counter")
    os.write(fd, struct.pack("<3I", 0xD503_3FDF, word, 0xD65F_03C0))
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    address = libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, fd, 0)
    os.close(fd)
    # PYFUNCTYPE keeps the interpreter's lock: giving it up would put the other vCPU's thread between the count and its
    # use.
    return ctypes.PYFUNCTYPE(ctypes.c_uint64)(address)


class Vmm:
    """One virtual machine: KVM's machine, guestclock's `KvmVm` over it, its payload, and the VMM's own readings."""

    def __init__(self) -> None:
        self.host_ticks = instruction(0xD53B_E040)  # CNTVCT_EL0
        """The host's counter as the VMM reads it by itself."""
        self.host_hz: int = instruction(0xD53B_E000)()  # CNTFRQ_EL0
        # Create and initialise the vCPUs; then the vGIC, and the timers' interrupts, which need it.
        self.machine = Machine(VCPUS)
        for timer, intid in ((Timer.VTIMER, 27), (Timer.PTIMER, 30)):
            self.machine.set_timer_irq(0, timer, intid)
        self.vm = KvmVm(self.machine.vm_fd, self.machine.vcpu_fds, gic_fd=self.machine.gic_fd)
        self.guest = Guest(self.machine.ram)
        self.samples: list[list[list[list[int]]]] = [[] for _ in range(VCPUS)]
        """The host's counter just before and just after each sample: by vCPU, by sample, for CNTVCT and CNTPCT."""
        self.resumed_at = self.stopped_at = 0
        """The host's counter before the first vCPU went in, and after the last had come out."""
        self._failures: list[BaseException] = []

    def boot(self) -> None:
        """Puts the guest into memory, and starts both of its counters at zero together."""
        guest = image(vcpus=VCPUS, samples=ROUND, doorbell=DOORBELL, gicd=GIC_DISTRIBUTOR, gicr=GIC_REDISTRIBUTORS)
        self.machine.ram[: len(guest)] = guest
        for vcpu in range(VCPUS):
            self.machine.set_one_reg(vcpu, PC, RAM)
        # Opting in. Without it the guest's counters have two offsets, CNTVCT's from the creation of the last vCPU and
        # CNTPCT's zero, and both can be restored only by value. Older kernels (before 6.4) know no other way.
        if self.vm.capabilities.counter_offset:
            self.vm.opt_in()

    def run(self, rounds: int) -> None:
        """Lets all vCPUs go until each has set its alarm `rounds` times. RuntimeError if one never comes so far."""
        signal.signal(signal.SIGUSR1, lambda *_: None)  # Only to bring a thread out of KVM_RUN.
        threads = [threading.Thread(target=self._run_vcpu, args=(vcpu, rounds)) for vcpu in range(VCPUS)]
        self.resumed_at = self.host_ticks()
        for thread in threads:
            thread.start()
        for vcpu, thread in enumerate(threads):
            thread.join(PATIENCE_S)
            if thread.is_alive() and thread.ident:
                self.machine.kick(vcpu)
                signal.pthread_kill(thread.ident, signal.SIGUSR1)
                thread.join()
        if self._failures:
            raise self._failures[0]
        self.stopped_at = self.host_ticks()

    def _run_vcpu(self, vcpu: int, rounds: int) -> None:
        try:
            with self.vm.running(vcpu):
                while rounds:
                    rounds -= self._run_once(vcpu) == Doorbell.ALARM_SET
                # The store to the doorbell is done only when KVM is entered again, though not for the guest to run.
                self.machine.kick(vcpu)
                self.machine.run(vcpu)
        except BaseException as error:  # noqa: BLE001 - the thread that waits for this one raises it
            self._failures.append(error)

    def _run_once(self, vcpu: int) -> int:
        stop = self.machine.run(vcpu)
        now = self.host_ticks()
        bell = stop.data & 0xFF
        if stop.reason != KVM_EXIT_MMIO or stop.address != DOORBELL or bell in {Doorbell.FAULTED, Doorbell.PARKED}:
            log = self.guest.log().vcpus[vcpu]
            msg = (
                f"vCPU {vcpu} stopped unexpectedly: {stop}; its log ends with {log and (log.fault or log.records[-1:])}"
            )
            raise RuntimeError(msg)
        if bell == Doorbell.SAMPLE_BEGINS:
            self.samples[vcpu].append([[self.host_ticks(), 0], [0, 0]])
        elif bell == Doorbell.SAMPLE_ENDS:
            self.samples[vcpu][-1] = [[self.samples[vcpu][-1][0][0], now]] * 2
        return bell

    def registers(self, vcpu: int) -> dict[str, str]:
        """A vCPU's registers as KVM lists them, except counters and timers: those are in the checkpoint.

        This guest's vCPUs are always on and have no SError pending. For others a VMM would carry over that too
        (KVM_GET_MP_STATE, KVM_GET_VCPU_EVENTS).
        """
        listed = [reg for reg in self.machine.reg_list(vcpu) if reg not in TIME]
        return {hex(reg): hex(self.machine.get_one_reg(vcpu, reg)) for reg in listed}

    def set_registers(self, vcpu: int, saved: dict[str, str]) -> None:
        """Sets a vCPU's registers: the inverse of `registers`."""
        for reg, value in saved.items():
            self.machine.set_one_reg(vcpu, int(reg, 16), int(value, 16))

    def interrupts(self, vcpu: int, saved: list[int] | None = None) -> list[int]:
        """The state of the vGIC for a vCPU; with a saved state, sets the vGIC to it."""
        where = [
            *((KVM_DEV_ARM_VGIC_GRP_DIST_REGS, offset) for offset in GICD),
            *((KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, offset) for offset in GICR),
            *((KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, register) for register in ICC),
        ]
        values: list[int | None] = [None] * len(where) if saved is None else [*saved]
        return [
            self.machine.gic_reg(group, vcpu, offset, value=value)
            for (group, offset), value in zip(where, values, strict=True)
        ]

    def seen(self, vcpu: int) -> dict[str, Any]:
        """A vCPU's log so far. Raises RuntimeError unless it took one interrupt for each alarm except the last."""
        log = self.guest.log().vcpus[vcpu]
        if log is None:
            msg = f"vCPU {vcpu} never started"
            raise RuntimeError(msg)
        fired = [record for record in log.records if record.kind is Kind.FIRED]
        armed = sum(record.kind is Kind.ARMED for record in log.records)
        if len(fired) != armed - 1:
            msg = f"vCPU {vcpu} took {len(fired)} interrupts for {armed} alarms, of which one was still to ring"
            raise RuntimeError(msg)
        return {
            "cntfrq": log.frequency_hz,
            "samples": [[sample.cntvct, sample.cntpct] for sample in log.samples],
            "irqs": len(fired),
            "last_irq_ctl": fired[-1].ctl if fired else 0,
        }


def save(directory: Path, rounds: int) -> None:
    """Boots the guest, lets it run, and saves it with alarms set."""
    vmm = Vmm()
    vmm.boot()
    vmm.run(rounds)
    # A restore goes on from the stop, however long after it the checkpoint is taken.
    checkpoint = vmm.vm.checkpoint(stopped_at=vmm.stopped_at)
    directory.mkdir(parents=True, exist_ok=True)
    checkpoint.save(directory / "guest.time")
    (directory / "memory.bin").write_bytes(vmm.machine.ram)
    vcpus = [
        {
            "mode": f"vCPU {vcpu}",
            "round": ROUND,
            "counter": {"source": vmm.vm.counter.source, "frequency_hz": vmm.host_hz},
            "registers": vmm.registers(vcpu),
            "interrupts": vmm.interrupts(vcpu),
            "host": {"samples": vmm.samples[vcpu], "taken_at": [vmm.stopped_at] * 2},
            "irqs": vmm.seen(vcpu)["irqs"],
        }
        for vcpu in range(VCPUS)
    ]
    (directory / "vm.json").write_text(json.dumps({"vcpus": vcpus}, indent=1))
    vmm.machine.close()


def restore(directory: Path, policy: Freeze | Advance, rounds: int, *, plant_fault_ticks: int, verbose: bool) -> None:
    """Restores the guest in this process, lets it go on, and writes down what both sides saw."""
    state = json.loads((directory / "vm.json").read_text())["vcpus"]
    checkpoint = Checkpoint.load(directory / "guest.time")
    vmm = Vmm()
    with vmm.vm.restoring(checkpoint, policy) as opened:
        vmm.machine.ram[:] = (directory / "memory.bin").read_bytes()
        for vcpu, saved in enumerate(state):
            vmm.set_registers(vcpu, saved["registers"])
            vmm.interrupts(vcpu, saved["interrupts"])
        opened.apply()
        before = vmm.host_ticks()
        report = opened.release()
        after = vmm.host_ticks()
    if plant_fault_ticks:
        guest = vmm.machine.get_one_reg(0, Reg.TIMER_CNT)
        if vmm.vm.opted_in:
            vmm.machine.set_counter_offset(vmm.host_ticks() - guest - plant_fault_ticks)
        else:
            vmm.machine.set_one_reg(0, Reg.TIMER_CNT, (guest + plant_fault_ticks) % 2**64)
    vmm.run(rounds)
    report = report.resumed_at(vmm.resumed_at)
    vcpus = [
        {
            "guest": vmm.seen(vcpu),
            "host": {"samples": vmm.samples[vcpu], "released_at": [before, after]},
            "irqs": vmm.seen(vcpu)["irqs"] - saved["irqs"],
            "same_counter": opened.plan.same_counter,
            # By value, and on a kernel that can't set CNTPCT, that counter goes on as the host's does.
            "counters": ["cntvct"] if opened.plan.method == "virtual-only" else ["cntvct", "cntpct"],
            "plan": opened.plan.to_dict(),
            "report": report.to_dict(),
        }
        for vcpu, saved in enumerate(state)
    ]
    (directory / "restored.json").write_text(json.dumps({"vcpus": vcpus}, indent=1))
    # For `guestclock check-log`: the guest's memory with its log, and the VMM's readings of the host's counter.
    (directory / "memory.bin").write_bytes(vmm.machine.ram)
    pause = {
        "taken_at": state[0]["host"]["taken_at"],
        "released_at": [before, after],
        "policy": "freeze" if isinstance(policy, Freeze) else "advance",
        "max_ns": None if isinstance(policy, Freeze) else policy.max_ns,
    }
    seen = {
        "frequency_hz": vmm.host_hz,
        "vcpus": [
            [view for view, _ in saved["host"]["samples"] + samples]
            for saved, samples in zip(state, vmm.samples, strict=True)
        ],
        "pauses": [pause],
    }
    (directory / "host.json").write_text(json.dumps(seen, indent=1))
    vmm.machine.close()
    if verbose:
        print(opened.plan, report, sep="\n", file=sys.stderr)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    saver = commands.add_parser("save", help="boot a guest, run it and save it")
    restorer = commands.add_parser("restore", help="restore the saved guest and run it on")
    restorer.add_argument("--policy", choices=("freeze", "advance"), default="freeze")
    restorer.add_argument("--max-ns", type=int, help="with advance: the most time to add")
    restorer.add_argument("--plant-fault-ticks", type=int, default=0, help="restore wrongly, to see it found")
    restorer.add_argument("--verbose", action="store_true", help="print the plan and the report")
    for command in (saver, restorer):
        command.add_argument("directory", type=Path)
        command.add_argument(
            "--rounds",
            type=int,
            default=20,
            choices=range(1, MAX_ROUNDS // 2),
            metavar="N",
            help="alarms of each vCPU until it stops (20 ms each)",
        )
    options = parser.parse_args()
    if options.command == "save":
        save(options.directory, options.rounds)
        return
    policy = Freeze() if options.policy == "freeze" else Advance(max_ns=options.max_ns)
    restore(
        options.directory,
        policy,
        options.rounds,
        plant_fault_ticks=options.plant_fault_ticks,
        verbose=options.verbose,
    )


if __name__ == "__main__":
    main()
