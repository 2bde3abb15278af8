"""One boot, some snapshots of it, and any number of restores of each: what the guest says of every one of them.

Every restore is made in a process of its own, forked from one that has imported all that it takes.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import time
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from guestclock import CatchUp, Elapsed, Freeze, HostCounter
from linux_guest import account, initramfs
from linux_guest.session import HOST_HZ, Answer, ask, host_ticks
from linux_vmm import LinuxVm, Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MARK: Final = "guestclock: the pause is here"
PERIOD_MS: Final = 100
"""The watchers' period."""
NS_PER_S: Final = 1_000_000_000
READINGS: Final = 4
"""Number of times that a restored guest reads its clocks; the last is judged."""
BOOT_S: Final = 1500
COUNTS: Final = "grep arch_timer /proc/interrupts"
LOOP: Final = "(while :; do :; done) &"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A saved VM, and what its guest and its VMM read before that."""

    directory: Path
    busy: bool
    clocks: account.Clocks
    read: Answer
    interrupts: int
    stopped_at: int
    kernel: str


@dataclass(slots=True)
class Outcome:
    """A restored guest's account, and the VMM's readings. Counts are the host's, in ticks."""

    policy: Policy | None
    busy: bool
    before: account.Clocks
    after: account.Clocks
    watchers: list[account.Watcher]
    interrupts: int
    complaints: dict[str, list[str]]
    answer_ns: int
    """Time from a line typed right after the release to the shell's answer; in steps, the longest after any of them."""
    paused: tuple[int, int]
    """Bounds of the time from the stop to the release, by the VMM."""
    passed: tuple[int, int]
    """Bounds of the time between the guest's two readings of its clocks, by the VMM."""
    missed: tuple[int, int]
    """Bounds of the time that the guest missed: `paused`, or what the restore was told, and its own duration."""
    added: int
    """Ticks that guestclock says it added, of all steps together."""
    series: list[tuple[int, int, int]] = field(default_factory=list)
    """Readings of CLOCK_MONOTONIC after the release: the host's counter before and after, and nanoseconds."""
    limits: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    console: str = ""

    def moved(self, clock: str) -> int:
        """Nanoseconds that the clock moved by between the guest's two readings."""
        return int(getattr(self.after, clock).ns - getattr(self.before, clock).ns)


def boot(kernel: bytes, *, append: str = "", counter: HostCounter | None = None) -> LinuxVm:
    """Boots a guest to its shell, with the watchers running."""
    archive = initramfs.made(Path("/bin/busybox").read_bytes(), Path("/guest/probe").read_bytes())
    vm = LinuxVm(counter=counter)
    vm.load(kernel, archive, f"quiet nokaslr {append}")
    vm.resume()
    vm.uart.wait(initramfs.READY, seconds=BOOT_S)
    ask(vm, f"guest-probe watch {PERIOD_MS}")
    return vm


def snapshot(vm: LinuxVm, directory: Path, *, busy: bool) -> Snapshot:
    """Saves a running VM, after the guest has read its clocks; the VM is stopped afterwards."""
    (kernel,) = re.findall(r"^\d\S+ #\d.*$", ask(vm, "uname -rv").text, re.MULTILINE)
    told = ask(vm, f"guest-probe report; {COUNTS}; echo '{MARK}' >/dev/kmsg")
    read = ask(vm, "guest-probe clocks")
    vm.pause()
    stopped_at = host_ticks()
    vm.save(directory, stopped_at=stopped_at)
    (clocks,) = account.clocks(read.text)
    return Snapshot(directory, busy, clocks, read, account.interrupts(told.text), stopped_at, kernel)


def in_a_child(work: Callable[[], Any]) -> Any:
    """Runs `work` in a forked process and returns its result. RuntimeError, with its traceback, if it fails."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if not child:
        try:
            sender.send((True, work()))
        except BaseException:  # noqa: BLE001 - the parent raises it
            sender.send((False, traceback.format_exc()))
        os._exit(0)
    sender.close()
    try:
        well, result = receiver.recv()
    except EOFError:
        well, result = False, "the process died"
    os.waitpid(child, 0)
    if not well:
        raise RuntimeError(result)
    return result


def restore(
    saved: Snapshot,
    policy: Policy | None,
    *,
    after_s: float = 0,
    given_ns: int | None = None,
    settle_s: float = 6,
) -> Outcome:
    """Restores a snapshot in this process, so many seconds later, and lets the guest go on and tell.

    With `given_ns` the restore is told that so much time has passed, in place of what has.
    """
    time.sleep(after_s)
    before = host_ticks()
    elapsed: dict[str, Any] = {} if given_ns is None else {"elapsed": Elapsed.given(given_ns, error_ns=0)}
    vm = LinuxVm.restore(saved.directory, policy, **elapsed)
    # Without guestclock the guest's clock goes on somewhere in the restore.
    released = (before, host_ticks()) if policy is None else (vm.released_after, vm.released_before)
    paused = missed = released[0] - saved.stopped_at, released[1] - saved.stopped_at
    if given_ns is not None:
        ticks = given_ns * HOST_HZ // NS_PER_S
        missed = ticks, ticks + released[1] - before
    if policy is None:
        return told(vm, saved, None, paused, missed, settle_s=settle_s)
    limits: Any = vm.plan.to_dict()["limits"]
    return told(vm, saved, policy, paused, missed, added=vm.report.added_ticks, limits=limits, settle_s=settle_s)


def in_place(saved: Snapshot, policy: Policy, *, pause_s: float, settle_s: float = 6) -> Outcome:
    """Restores a snapshot as it was, and then pauses the same VM where it is."""
    vm = LinuxVm.restore(saved.directory, Freeze())
    vm.resume()
    count = account.interrupts(ask(vm, f"guest-probe report; {COUNTS}; echo '{MARK}' >/dev/kmsg").text)
    read = ask(vm, "guest-probe clocks")
    (clocks,) = account.clocks(read.text)
    vm.pause()
    stopped_after = host_ticks()
    pause = vm.clock.pause()
    stopped_before = host_ticks()
    time.sleep(pause_s)
    released_after = host_ticks()
    report = pause.resume(policy)
    paused = (released_after - stopped_before, host_ticks() - stopped_after)
    here = replace(saved, clocks=clocks, read=read, interrupts=count)
    return told(vm, here, policy, paused, paused, added=report.added_ticks, settle_s=settle_s)


def told(
    vm: LinuxVm,
    saved: Snapshot,
    policy: Policy | None,
    paused: tuple[int, int],
    missed: tuple[int, int],
    *,
    added: int = 0,
    limits: Sequence[dict[str, Any]] = (),
    settle_s: float,
) -> Outcome:
    """Lets a restored guest go on, and gathers its account."""
    vm.resume()
    answer_ns = ask(vm, "echo").ns
    steps = 0
    if isinstance(policy, CatchUp):
        for step in vm.clock.catch_up():
            vm.pause()
            step.apply()
            added += step.ticks
            vm.resume()
            answer_ns = max(answer_ns, ask(vm, "echo").ns)
            steps += 1
    series = []
    for _ in range(READINGS):
        time.sleep(settle_s / READINGS)
        first = ask(vm, "guest-probe clocks")
        (clocks,) = account.clocks(first.text)
        series.append((first.asked_at, first.answered_at, clocks.monotonic.ns))
    rest = ask(
        vm,
        f"guest-probe report; {COUNTS}; dmesg | sed '1,/{MARK}/d' | grep -E 'lockup|stall|blocked|hrtimer|rcu'",
    )
    vm.pause()
    outcome = Outcome(
        policy=policy,
        busy=saved.busy,
        before=saved.clocks,
        after=clocks,
        watchers=account.watchers(rest.text),
        interrupts=account.interrupts(rest.text) - saved.interrupts,
        complaints=account.complaints(rest.text),
        answer_ns=answer_ns,
        paused=paused,
        missed=missed,
        passed=(first.asked_at - saved.read.answered_at, first.answered_at - saved.read.asked_at),
        added=added,
        series=series,
        limits=[*limits],
        steps=steps,
        console=bytes(vm.uart.output).decode(errors="replace").replace("\r", ""),
    )
    vm.close()
    return outcome


def to_ns(ticks: int) -> int:
    """Nanoseconds of the host's ticks."""
    return ticks * NS_PER_S // HOST_HZ
