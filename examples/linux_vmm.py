"""A VMM in Python on KVM that boots a real Linux kernel, saves it, and goes on with it in another process.

    python examples/linux_vmm.py boot kernel initramfs saved-vm --append quiet --until ready
    python examples/linux_vmm.py restore saved-vm --policy advance --send "date" --seconds 3

The guest has two vCPUs, an interrupt controller (vGICv3), firmware calls (PSCI) and the architected timer, all in KVM;
a serial line (PL011), a vmclock page and a device tree, which are here. Each vCPU has one thread for the VM's life: KVM
measures the guest's stolen time by that thread, and a new thread's account starts at zero.

A saved VM is a folder: `memory`, `state.json`, and `time`, the guest's time by guestclock. A restored VM has the memory
file as its own from the first page that it writes, so a saved VM can be restored any number of times.

KVM's ioctls are those of kvm_vmm.py, next to this file. The device tree is written with the package `fdt`.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import mmap
import os
import queue
import signal
import struct
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from guestclock import Advance, CatchUp, Checkpoint, Freeze, HostCounter, KvmVm, Plan, Report
from guestclock.guest import VmClock, find_pages, keep_fresh
from kvm_vmm import (
    GIC_DISTRIBUTOR,
    GIC_REDISTRIBUTORS,
    GICD,
    GICR,
    ICC,
    KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS,
    KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
    KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
    KVM_EXIT_INTR,
    KVM_EXIT_MMIO,
    PC,
    RAM,
    TIME,
    Machine,
    X,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from guestclock.types import Intent

Policy = Freeze | Advance | CatchUp

KVM_GET_MP_STATE: Final = 0x8004_AE98
KVM_SET_MP_STATE: Final = 0x4004_AE99
KVM_GET_VCPU_EVENTS: Final = 0x8040_AE9F
KVM_SET_VCPU_EVENTS: Final = 0x4040_AEA0
KVM_IRQ_LINE: Final = 0x4008_AE61
KVM_MP_STATE_STOPPED: Final = 5
KVM_EXIT_SYSTEM_EVENT: Final = 24
KVM_ARM_IRQ_TYPE_SPI: Final = 1
KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO: Final = 7

VCPUS: Final = 2
RAM_SIZE: Final = 0x0A00_0000
CHUNK: Final = 0x1_0000
UART: Final = 0x0900_0000
UART_SPI: Final = 1
"""The serial line's interrupt, as the device tree counts: 32 less than the interrupt controller does."""
VMCLOCK: Final = RAM + RAM_SIZE - 0x1000
"""The vmclock page: the last one of the memory, which is kept from the guest's allocator."""
VMCLOCK_SPI: Final = 2


def device_tree(bootargs: str, initrd: range) -> bytes:
    """The description of this VM for its kernel."""
    import fdt

    cpu = {"device_type": "cpu", "compatible": "arm,armv8", "enable-method": "psci"}
    nodes: dict[str, dict[str, Any]] = {
        "/": {"#address-cells": 2, "#size-cells": 2, "interrupt-parent": 1, "compatible": "linux,dummy-virt"},
        "/chosen": {
            "bootargs": bootargs,
            "stdout-path": "/uart",
            "linux,initrd-start": [0, initrd.start],
            "linux,initrd-end": [0, initrd.stop],
        },
        "/memory@40000000": {"device_type": "memory", "reg": [0, RAM, 0, VMCLOCK - RAM]},
        "/cpus": {"#address-cells": 1, "#size-cells": 0},
        **{f"/cpus/cpu@{vcpu}": {**cpu, "reg": vcpu} for vcpu in range(VCPUS)},
        "/psci": {"compatible": ["arm,psci-1.0", "arm,psci-0.2"], "method": "hvc"},
        "/interrupts": {
            "compatible": "arm,gic-v3",
            "interrupt-controller": None,
            "#interrupt-cells": 3,
            "phandle": 1,
            "reg": [0, GIC_DISTRIBUTOR, 0, 0x1_0000, 0, GIC_REDISTRIBUTORS, 0, VCPUS * 0x2_0000],
        },
        # The timers' interrupts, as private ones: secure, physical, virtual, hypervisor's.
        "/timer": {
            "compatible": "arm,armv8-timer",
            "always-on": None,
            "interrupts": [1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4],
        },
        "/clock": {"compatible": "fixed-clock", "#clock-cells": 0, "clock-frequency": 24_000_000, "phandle": 2},
        "/uart": {
            "compatible": ["arm,pl011", "arm,primecell"],
            "reg": [0, UART, 0, 0x1000],
            "interrupts": [0, UART_SPI, 4],
            "clocks": [2, 2],
            "clock-names": ["uartclk", "apb_pclk"],
        },
        "/vmclock": {
            "compatible": "amazon,vmclock",
            "reg": [0, VMCLOCK, 0, 0x1000],
            "interrupts": [0, VMCLOCK_SPI, 1],
        },
    }
    tree = fdt.FDT()
    for path, properties in nodes.items():
        for name, value in properties.items():
            tree.set_property(name, value, path)
    return bytes(tree.to_dtb(version=17))


# The vGIC's state besides what kvm_vmm.py lists: the shared interrupts 32 to 63, of which the devices have two.
# ISENABLER and the like set bits and clear none, which is right for a VM that has just been made.
SHARED: Final = [
    *range(0x6100, 0x6200, 4),  # GICD_IROUTER32 to 63, of 64 bits each: before these are pending or active
    *(0x84, 0x104, 0x204, 0x304),  # GICD_IGROUPR1, ISENABLER1, ISPENDR1, ISACTIVER1
    *range(0x420, 0x440, 4),  # GICD_IPRIORITYR8 to 15
    *(0xC08, 0xC0C),  # GICD_ICFGR2 and 3
]


class Uart:
    """A PL011 (Arm DDI 0183) that sends at once, and hands the guest whatever was `send` to it.

    `raise_line` is called with the level of its interrupt line.
    """

    FIXED: Final = {0xFE0: 0x11, 0xFE4: 0x10, 0xFE8: 0x14, 0xFF0: 0x0D, 0xFF4: 0xF0, 0xFF8: 0x05, 0xFFC: 0xB1}
    """UARTPeriphID and UARTPCellID."""

    def __init__(self, raise_line: Any) -> None:
        self._raise_line = raise_line
        self._lock = threading.Lock()
        self._wrote = threading.Condition(self._lock)
        self.registers: dict[int, int] = {}
        self.input = bytearray()
        self.output = bytearray()
        self.echo = False

    def _raw(self) -> int:
        # UARTRIS: it can always send (bit 5), and receive while there is input (bit 4).
        return 0x20 | (0x10 if self.input else 0)

    def _update(self) -> None:
        self._raise_line(bool(self._raw() & self.registers.get(0x38, 0)))

    def write(self, offset: int, value: int) -> None:
        """Takes the guest's store to a register."""
        with self._lock:
            if offset == 0:  # UARTDR
                self.output.append(value & 0xFF)
                if self.echo:
                    os.write(1, bytes([value & 0xFF]))
                if value & 0xFF == ord("\n"):
                    self._wrote.notify_all()
            else:
                self.registers[offset] = value
                self._update()

    def read(self, offset: int) -> int:
        """The value of the guest's load from a register."""
        with self._lock:
            if offset == 0:
                value = self.input.pop(0) if self.input else 0
                self._update()
                return value
            if offset == 0x18:  # UARTFR: TXFE, and RXFE while there is no input
                return 0x80 | (0 if self.input else 0x10)
            if offset in {0x3C, 0x40}:  # UARTRIS, UARTMIS
                return self._raw() & (self.registers.get(0x38, 0) if offset == 0x40 else 0x7FF)
            return self.FIXED.get(offset, self.registers.get(offset, 0))

    def state(self) -> dict[str, Any]:
        """The state that a guest would miss in another VM: registers, and input that it hasn't read."""
        return {"registers": {str(k): v for k, v in self.registers.items()}, "input": self.input.hex()}

    def set_state(self, saved: dict[str, Any]) -> None:
        """Sets the state, and with it the interrupt line: the inverse of `state`."""
        with self._lock:
            self.registers = {int(k): v for k, v in saved["registers"].items()}
            self.input = bytearray.fromhex(saved["input"])
            self._update()

    def send(self, text: str) -> None:
        """Types `text` into the guest's console."""
        with self._lock:
            self.input += text.encode()
            self._update()

    def wait(self, text: str, *, after: int = 0, seconds: float = 60) -> int:
        """Waits until a whole line with `text` stands in the output after that place, and returns the place behind it.

        Raises TimeoutError after this many seconds of the host.
        """
        wanted, end = text.encode(), time.monotonic() + seconds
        with self._lock:
            while True:
                place = self.output.find(wanted, after)
                stop = self.output.find(b"\n", place) if place >= 0 else -1
                if stop >= 0:
                    return stop + 1
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"the guest didn't say {text!r}; it said {bytes(self.output[after:])!r}")
                self._wrote.wait(min(left, 1.0))


class LinuxVm:
    """A VM with two vCPUs whose memory is `ram`. It isn't running when it is made."""

    plan: Plan
    report: Report
    released_after: int
    released_before: int
    """The host's counter around the release of a restored VM, as a VMM reads it."""

    def __init__(self, ram: mmap.mmap | None = None, *, counter: HostCounter | None = None) -> None:
        # Create and initialise the vCPUs, then the vGIC. The second vCPU is off until the guest asks PSCI for it.
        self.machine = Machine(VCPUS, ram=ram or mmap.mmap(-1, RAM_SIZE))
        self.mp_state(1, KVM_MP_STATE_STOPPED)
        self.uart = Uart(partial(self._line, UART_SPI))
        self.clock = KvmVm(self.machine.vm_fd, self.machine.vcpu_fds, gic_fd=self.machine.gic_fd, counter=counter)
        self._orders: list[queue.SimpleQueue[str]] = [queue.SimpleQueue() for _ in range(VCPUS)]
        self._out: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self.running = False
        self.is_off = threading.Event()
        signal.signal(signal.SIGUSR1, lambda *_: None)  # Only to bring a thread out of KVM_RUN.
        self._threads = [threading.Thread(target=self._vcpu, args=(n,), daemon=True) for n in range(VCPUS)]
        for thread in self._threads:
            thread.start()

    def load(self, kernel: bytes, initramfs: bytes, append: str = "") -> None:
        """Puts a kernel and its first file system into memory, as Documentation/arch/arm64/booting.rst has it."""
        if kernel[56:60] != b"ARMd":
            raise ValueError("this is no uncompressed arm64 kernel image")
        text_offset, image_size = struct.unpack_from("<2Q", kernel, 8)
        initrd = RAM + (text_offset + image_size + 0x1F_FFFF & ~0x1F_FFFF)
        tree = RAM + RAM_SIZE - 0x20_0000
        blob = device_tree(f"console=ttyAMA0 {append}", range(initrd, initrd + len(initramfs)))
        for address, content in ((RAM + text_offset, kernel), (initrd, initramfs), (tree, blob)):
            self.machine.ram[address - RAM : address - RAM + len(content)] = content
        # Before the guest runs: Linux's driver decides once, by the offset of TAI, whether this page has a clock.
        tai_offset_s = self.clock.counter.stamp().tai_offset_s
        VmClock.create(self.machine.ram, VMCLOCK - RAM, tai_offset_s=tai_offset_s, notification=True)
        self.machine.set_one_reg(0, PC, RAM + text_offset)
        self.machine.set_one_reg(0, X[0], tree)
        # Once, before the guest first runs: one offset for both counters of all vCPUs.
        self.clock.opt_in()

    def keep_fresh(self, **errors: int) -> keep_fresh:
        """Keeps the clock of the vmclock page, for a `with` block; the caller vouches for its errors."""
        page = VmClock(self.machine.ram, VMCLOCK - RAM)
        return keep_fresh(page, self.clock, notify=self.notify, **errors)

    def notify(self) -> None:
        """Tells the guest that the vmclock page has changed: an edge of its interrupt."""
        self._line(VMCLOCK_SPI, level=True)
        self._line(VMCLOCK_SPI, level=False)

    def resume(self) -> None:
        """Lets all vCPUs run."""
        self.running = True
        for orders in self._orders:
            orders.put("run")

    def pause(self) -> None:
        """Brings all vCPUs out of the guest, with no access to a device half done."""
        for vcpu, thread in enumerate(self._threads):
            self.machine.kick(vcpu)
            signal.pthread_kill(thread.ident or 0, signal.SIGUSR1)
        failures = [failure for _ in range(VCPUS) if (failure := self._out.get())]
        self.running = False
        if failures:
            raise failures[0]

    def close(self) -> None:
        """Ends the vCPUs' threads, and the VM."""
        if self.running:
            self.pause()
        for orders, thread in zip(self._orders, self._threads, strict=True):
            orders.put("")
            thread.join()
        self.machine.close()

    def _vcpu(self, vcpu: int) -> None:
        """A vCPU's thread: in the guest from each `resume` to the next `pause`."""
        while self._orders[vcpu].get():
            failure = None
            try:
                with self.clock.running(vcpu):
                    while self._run_once(vcpu):
                        pass
            except BaseException as error:  # noqa: BLE001 - the thread that pauses the VM raises it
                failure = error
            self._out.put(failure)

    def _run_once(self, vcpu: int) -> bool:
        """Runs a vCPU until it comes out, and serves its access to a device; False once it is to stay out."""
        stop = self.machine.run(vcpu)
        if stop.reason == KVM_EXIT_MMIO:
            # The access is finished by the next KVM_RUN. After a kick that returns at once, and the vCPU can be saved.
            if UART <= stop.address < UART + 0x1000:
                if stop.is_write:
                    self.uart.write(stop.address - UART, stop.data)
                else:
                    self.machine.answer(vcpu, self.uart.read(stop.address - UART))
            return True
        if stop.reason == KVM_EXIT_INTR:
            return False
        if stop.reason == KVM_EXIT_SYSTEM_EVENT:  # Powered off, or rebooted.
            self.is_off.set()
            return False
        raise RuntimeError(f"vCPU {vcpu} stopped unexpectedly: {stop}")

    def _line(self, spi: int, level: bool) -> None:  # noqa: FBT001
        irq = KVM_ARM_IRQ_TYPE_SPI << 24 | 32 + spi
        fcntl.ioctl(self.machine.vm_fd, KVM_IRQ_LINE, struct.pack("=2I", irq, level))

    def mp_state(self, vcpu: int, state: int | None = None) -> int:
        """Reads whether PSCI has the vCPU on, or sets it."""
        fd = self.machine.vcpu_fds[vcpu]
        if state is None:
            return int(struct.unpack("=I", fcntl.ioctl(fd, KVM_GET_MP_STATE, bytes(4)))[0])
        fcntl.ioctl(fd, KVM_SET_MP_STATE, struct.pack("=I", state))
        return state

    def vcpu_state(self, vcpu: int) -> dict[str, Any]:
        """A vCPU's state: its registers as KVM lists them, PSCI's state, a pending SError."""
        machine = self.machine
        return {
            "registers": {hex(reg): hex(machine.get_one_reg(vcpu, reg)) for reg in machine.reg_list(vcpu)},
            "mp_state": self.mp_state(vcpu),
            "events": fcntl.ioctl(machine.vcpu_fds[vcpu], KVM_GET_VCPU_EVENTS, bytes(64)).hex(),
        }

    def set_vcpu_state(self, vcpu: int, saved: dict[str, Any], *, leave_out: Collection[int]) -> None:
        """Sets a vCPU's state: the inverse of `vcpu_state`. guestclock sets the registers that are left out."""
        for reg, value in saved["registers"].items():
            if int(reg, 16) not in leave_out:
                self.machine.set_one_reg(vcpu, int(reg, 16), int(value, 16))
        self.mp_state(vcpu, saved["mp_state"])
        fcntl.ioctl(self.machine.vcpu_fds[vcpu], KVM_SET_VCPU_EVENTS, bytes.fromhex(saved["events"]))

    def vgic(self, saved: list[int] | None = None) -> list[int]:
        """The state of the vGIC; with a saved state, sets the vGIC to it.

        The distributor's CTLR comes first: what becomes pending while it is off is queued for nobody, and a timer whose
        interrupt is lost so never rings again. The timers' lines aren't in the state: KVM raises them itself.
        """
        where = [
            *((KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0, offset) for offset in GICD + SHARED),
            *((KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, vcpu, offset) for vcpu in range(VCPUS) for offset in GICR),
            *((KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, vcpu, register) for vcpu in range(VCPUS) for register in ICC),
        ]
        values: list[int | None] = [None] * len(where) if saved is None else [*saved]
        return [
            self.machine.gic_reg(group, vcpu, offset, value=value)
            for (group, vcpu, offset), value in zip(where, values, strict=True)
        ]

    def save(self, directory: Path, *, stopped_at: int | None = None) -> Checkpoint:
        """Saves the VM, whose vCPUs are all out, and returns the guest's saved time.

        The guest's clock stops at the host's count `stopped_at`, or at this call.
        """
        checkpoint = self.clock.checkpoint(stopped_at=stopped_at, vmclock_address=VMCLOCK)
        directory.mkdir(parents=True, exist_ok=True)
        checkpoint.save(directory / "time")
        (directory / "state.json").write_text(json.dumps(self.state()))
        with (directory / "memory").open("wb") as file:
            file.truncate(RAM_SIZE)
            for start in range(0, RAM_SIZE, CHUNK):
                # A hole where the guest never wrote.
                if (chunk := self.machine.ram[start : start + CHUNK]) != bytes(CHUNK):
                    file.seek(start)
                    file.write(chunk)
        return checkpoint

    @classmethod
    def restore(
        cls, directory: Path, policy: Policy | None, *, counter: HostCounter | None = None, **options: Any
    ) -> LinuxVm:
        """Makes a VM of a saved one, in this process or another; it isn't running yet. The saved one stays as it is."""
        with (directory / "memory").open("rb") as file:
            # The VM's own from the first page that it writes.
            this = cls(mmap.mmap(file.fileno(), RAM_SIZE, access=mmap.ACCESS_COPY), counter=counter)
        state = json.loads((directory / "state.json").read_text())
        this.take_over(state, Checkpoint.load(directory / "time"), policy, **options)
        return this

    def take_over(
        self,
        state: dict[str, Any],
        checkpoint: Checkpoint,
        policy: Policy | None,
        *,
        intent: Intent = "snapshot",
        **options: Any,
    ) -> None:
        """Puts another VM's state into this one, whose memory is there already.

        The vmclock page says so to the guest, and is unreliable until `keep_fresh` gives it a clock again. Without a
        policy all registers are set as KVM lists them, and the guest's clock is wherever that leaves it.
        """
        if policy is None:
            self._set_state(state, leave_out=set())
            return
        page = find_pages(checkpoint, self.machine.ram, base=RAM).vmclock
        if page is None:
            raise ValueError("this saved VM has no vmclock page, and its guest has a device for one")
        with page.update(intent), self.clock.restoring(checkpoint, policy, intent=intent, **options) as opened:
            self._set_state(state, leave_out=TIME)
            opened.apply()
            self.released_after = self.clock.counter.read()
            self.report = opened.release()
            self.released_before = self.clock.counter.read()
            self.plan = opened.plan
        self.notify()

    def state(self) -> dict[str, Any]:
        """The state of the vCPUs, the vGIC and the serial line, as JSON has it."""
        vcpus = [self.vcpu_state(vcpu) for vcpu in range(VCPUS)]
        return {"vcpus": vcpus, "vgic": self.vgic(), "uart": self.uart.state()}

    def _set_state(self, state: dict[str, Any], *, leave_out: Collection[int]) -> None:
        for vcpu, saved in enumerate(state["vcpus"]):
            self.set_vcpu_state(vcpu, saved, leave_out=leave_out)
        self.vgic(state["vgic"])
        self.uart.set_state(state["uart"])


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    booting = commands.add_parser("boot", help="boot a kernel, and save the VM once it has said something")
    booting.add_argument("kernel", type=Path)
    booting.add_argument("initramfs", type=Path)
    booting.add_argument("directory", type=Path, help="where the VM is saved")
    booting.add_argument("--append", default="", help="kernel arguments")
    booting.add_argument("--until", default="ready", help="save it when it writes a line with this (default: ready)")
    booting.add_argument("--seconds", type=float, default=300, help="how long to wait for that (default: 300)")
    restoring = commands.add_parser("restore", help="go on with the saved VM")
    restoring.add_argument("directory", type=Path)
    restoring.add_argument("--policy", choices=("freeze", "advance"), default="freeze")
    restoring.add_argument("--send", default="", help="a line to type into its console")
    restoring.add_argument("--seconds", type=float, default=10, help="how long it goes on (default: 10)")
    chosen = parser.parse_args()
    if chosen.command == "boot":
        vm = LinuxVm()
        vm.uart.echo = True
        vm.load(chosen.kernel.read_bytes(), chosen.initramfs.read_bytes(), chosen.append)
        with vm.keep_fresh():
            vm.resume()
            vm.uart.wait(chosen.until, seconds=chosen.seconds)
            vm.pause()
        vm.save(chosen.directory)
    else:
        vm = LinuxVm.restore(chosen.directory, Freeze() if chosen.policy == "freeze" else Advance())
        print(vm.report, file=sys.stderr)
        vm.uart.echo = True
        with vm.keep_fresh():
            vm.resume()
            vm.uart.send(chosen.send + "\n")
            vm.is_off.wait(chosen.seconds)
    vm.close()


if __name__ == "__main__":
    main()
