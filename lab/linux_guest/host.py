"""One of two hosts between which a guest is migrated: the half of `make migrate-test` that runs in a machine.

The first host boots the guest and asks the second one to take it and to give it back, so many times. Its wall clock is
the truth here; the second one's is set apart from it, by an amount that both vouch for. In the end it leaves the guest
in the shared memory, restarts, and goes on with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from guestclock import Advance, Checkpoint, HostCounter, Reg
from guestclock.types import SyncBound
from kvm_vmm import KVM_SET_USER_MEMORY_REGION, RAM
from linux_guest import account, campaign
from linux_guest.session import ask
from linux_guest.shared import MEMORY, Shared
from linux_vmm import CHUNK, RAM_SIZE, VMCLOCK, LinuxVm

if TYPE_CHECKING:
    from collections.abc import Callable

KVM_GET_DIRTY_LOG: Final = 0x4010_AE42
KVM_MEM_LOG_DIRTY_PAGES: Final = 1
PAGE: Final = 4096

APART_NS: Final = 50_000_000
"""Nanoseconds by which the second host's wall clock is ahead of the first one's."""
ASKS: Final = 50
"""Number of times that a host asks the other one for the time; the best answer counts."""
OUT: Final = Path(os.environ.get("GUESTCLOCK_OUT", "out"))


class Host:
    """A host: its end of the shared memory, and the bound of its wall clock."""

    def __init__(self, mine: int, *, again: bool = False) -> None:
        self.shared = Shared(mine, again=again)
        self.counter = HostCounter(sync=lambda: self.bound)
        self.bound: SyncBound | None = None
        self.anchor = (0, 0)
        """Bounds of this host's wall clock less the counter of the guest that it has."""
        self.ahead_ns = (0, 0)
        """Bounds of how far the other host's wall clock is ahead of this one's."""

    def compare(self) -> None:
        """Measures how far the other host's wall clock is ahead: the bounds that all answers have in common."""
        low, high = -(2**63), 2**63
        for _ in range(ASKS):
            before = time.time_ns()
            self.shared.send({"time": True})
            there = self.shared.receive()["time"]
            low, high = max(low, there - time.time_ns()), min(high, there - before)
        self.ahead_ns = (low, high)

    def memory_to_shared(self, vm: LinuxVm) -> None:
        """Copies a running guest's memory, with KVM keeping account of what it writes meanwhile."""
        region(vm, KVM_MEM_LOG_DIRTY_PAGES)
        for start in range(0, RAM_SIZE, CHUNK):
            self.shared.memory[MEMORY + start : MEMORY + start + CHUNK] = vm.machine.ram[start : start + CHUNK]

    def rest_to_shared(self, vm: LinuxVm) -> int:
        """Copies the pages that a stopped guest wrote since, and returns their number."""
        pages = dirty(vm)
        for page in pages:
            start = page * PAGE
            self.shared.memory[MEMORY + start : MEMORY + start + PAGE] = vm.machine.ram[start : start + PAGE]
        return len(pages)

    def give(self, vm: LinuxVm) -> dict[str, Any]:
        """Stops the guest, whose memory has gone ahead, and returns what the other host needs besides."""
        before = reading(vm, self.anchor)
        self.memory_to_shared(vm)
        vm.pause()
        stopped_ns = time.time_ns()
        checkpoint = vm.clock.checkpoint(vmclock_address=VMCLOCK)
        pages = self.rest_to_shared(vm)
        letter = {
            "state": vm.state(),
            "time": checkpoint.to_bytes().hex(),
            "stopped_ns": stopped_ns,
            "pages": pages,
            "before": before,
        }
        vm.close()
        return letter

    def take(self, letter: dict[str, Any]) -> tuple[LinuxVm, dict[str, Any]]:
        """Goes on with the guest, and returns its account of the migration."""
        vm = LinuxVm(counter=self.counter)
        vm.machine.ram[:] = self.shared.memory[MEMORY : MEMORY + RAM_SIZE]
        checkpoint = Checkpoint.from_bytes(bytes.fromhex(letter["time"]))
        vm.take_over(letter["state"], checkpoint, Advance(), intent="live-migration")
        self.anchor = anchored(vm)
        vm.resume()
        resumed_ns = time.time_ns()
        here = self.counter.stamp()
        return vm, {
            "before": letter["before"],
            "after": reading(vm, self.anchor),
            "stopped_ns": letter["stopped_ns"],
            "resumed_ns": resumed_ns,
            "pages": letter["pages"],
            "elapsed_by": vm.report.elapsed_by,
            "error_bound_ns": vm.report.error_bound_ns,
            "added_ns": vm.report.added_ns,
            "warnings": [each.code for each in vm.report.warnings],
            "same_machine": here.machine_id == checkpoint.stamp.machine_id,
            "same_boot": here.boot_id == checkpoint.stamp.boot_id,
            "counts": [checkpoint.stamp.count, here.count],
        }


def anchored(vm: LinuxVm) -> tuple[int, int]:
    """Bounds of this host's wall clock less the guest's counter, in nanoseconds, by KVM. All vCPUs are out."""
    low, high = -(2**63), 2**63
    for _ in range(ASKS):
        before = time.time_ns()
        count = campaign.to_ns(vm.machine.get_one_reg(0, Reg.TIMER_CNT))
        low, high = max(low, before - count), min(high, time.time_ns() - count)
    return low, high


def reading(vm: LinuxVm, anchor: tuple[int, int]) -> dict[str, Any]:
    """The guest's reading of its clocks, and this host's wall clock around it: by the counts that the guest read."""
    text = ask(vm, "guest-probe clocks; guest-probe report").text
    (clocks,) = account.clocks(text)
    watchers = account.watchers(text)
    return {
        "asked_ns": campaign.to_ns(clocks.realtime.before) + anchor[0],
        "answered_ns": campaign.to_ns(clocks.realtime.after) + anchor[1],
        "realtime_ns": clocks.realtime.ns,
        "monotonic": [clocks.monotonic.low, clocks.monotonic.high],
        "realtime_less_monotonic": [
            clocks.realtime.low - clocks.monotonic.high,
            clocks.realtime.high - clocks.monotonic.low,
        ],
        "back": sum(watcher.back for watcher in watchers),
        "looks": [watcher.looks for watcher in watchers],
        "gap_ns": max(watcher.gap_ns for watcher in watchers),
    }


def region(vm: LinuxVm, flags: int) -> None:
    """Sets the flags of the guest's memory."""
    import fcntl

    start = ctypes.addressof(ctypes.c_char.from_buffer(vm.machine.ram))
    fcntl.ioctl(vm.machine.vm_fd, KVM_SET_USER_MEMORY_REGION, struct.pack("=2I3Q", 0, flags, RAM, RAM_SIZE, start))


def dirty(vm: LinuxVm) -> list[int]:
    """The numbers of the pages that the guest wrote since this was asked last, or since logging began."""
    import fcntl

    bitmap = ctypes.create_string_buffer(RAM_SIZE // PAGE // 8)
    fcntl.ioctl(vm.machine.vm_fd, KVM_GET_DIRTY_LOG, struct.pack("=2IQ", 0, 0, ctypes.addressof(bitmap)))
    return [8 * byte + bit for byte, bits in enumerate(bitmap.raw) if bits for bit in range(8) if bits >> bit & 1]


def first(host: Host, kernel: Path, rounds: int) -> None:
    """The first host: there and back, `rounds` times, and then a guest that is left behind."""
    host.compare()
    host.shared.send({"step": APART_NS - sum(host.ahead_ns) // 2})
    host.shared.receive()
    host.compare()
    host.bound = SyncBound(0)
    host.shared.send({"bound": max(map(abs, host.ahead_ns))})
    host.shared.receive()
    say(f"the second host is ahead by {host.ahead_ns[0]} to {host.ahead_ns[1]} ns")
    vm = campaign.boot(kernel.read_bytes(), counter=host.counter)
    ask(vm, f"guest-probe set {time.time_ns()}")
    vm.pause()
    host.anchor = anchored(vm)
    vm.resume()
    rows: list[dict[str, Any]] = []
    for turn in range(rounds):
        host.shared.send({"guest": host.give(vm)})
        there = host.shared.receive()["account"]
        host.shared.send({"back": True})
        vm, here = host.take(host.shared.receive()["guest"])
        rows += [{"to": "second", **there}, {"to": "first", **here}]
        say(f"{2 * turn + 2} migrations")
    host.compare()
    ahead = host.ahead_ns
    host.shared.keep(host.give(vm))
    document = {"ahead_ns": ahead, "rows": rows}
    (OUT / "migrations.json").write_text(json.dumps(document, indent=1))


def again(host: Host) -> None:
    """The first host after its restart: its clock is compared with the second one's, and the guest goes on."""
    host.compare()
    low, high = host.ahead_ns
    # The second host is ahead of the truth by APART_NS, within what it vouches for: this one is off by the rest.
    host.bound = SyncBound(max(abs(APART_NS - low), abs(APART_NS - high)) + high - low)
    _, row = host.take(host.shared.kept())
    host.shared.send({"end": True})
    (OUT / "rebooted.json").write_text(json.dumps({"ahead_ns": [low, high], "row": {"to": "again", **row}}, indent=1))


def second() -> None:
    """The second host: it does what it is asked to."""
    host = Host(1)
    vm: LinuxVm | None = None
    while True:
        match host.shared.receive(seconds=3000):
            case {"time": True}:
                host.shared.send({"time": time.time_ns()})
            case {"step": int(ns)}:
                time.clock_settime_ns(time.CLOCK_REALTIME, time.time_ns() + ns)
                host.shared.send({})
            case {"bound": int(ns)}:
                host.bound = SyncBound(ns)
                host.shared.send({})
            case {"guest": letter}:
                vm, row = host.take(letter)
                host.shared.send({"account": row})
            case {"back": True} if vm:
                host.shared.send({"guest": host.give(vm)})
                vm = None
            case {"end": True}:
                return


def say(text: str) -> None:
    """Tells how far it is."""
    print(text, flush=True)


def main() -> None:
    """Is the host that the command line names. Where the first one fails, the second one ends too."""
    match sys.argv[1:]:
        case ["second"]:
            second()
            return
        case ["first", kernel, rounds]:
            host = Host(0)
            work: Callable[[Host], None] = partial(first, kernel=Path(kernel), rounds=int(rounds))
        case ["again"]:
            host, work = Host(0, again=True), again
        case _:
            sys.exit("usage: host.py first KERNEL ROUNDS | again | second")
    try:
        work(host)
    except BaseException:
        host.shared.send({"end": True})
        raise


if __name__ == "__main__":
    main()
