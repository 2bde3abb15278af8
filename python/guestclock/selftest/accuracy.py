"""The accuracy of a restore through prepare, apply and release, as the guest itself reads it.

A guest reads its counters, each read between two of the host's. It is saved, restored into another machine by a VMM
that is held up between the steps, and reads them again. All judged figures come of those reads, and of the host's
counter around the calls; of the report the judge takes its bound, and the ticks until its call returned.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

from guestclock._core import Advance, CatchUp, Freeze, HostCounter, KvmVm
from guestclock.demo.kvm_vmm import DOORBELL, PC, RAM, Machine
from guestclock.payload import Command, Doorbell, Guest, Kind, image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from guestclock._core import GuestVm
    from guestclock.types import Policy

Method: TypeAlias = Literal["offset", "by value"]
Interval: TypeAlias = tuple[int, int]
"""From the least to the most that something can be."""
Offsets: TypeAlias = tuple[Interval, Interval]
"""Offsets of a vCPU's virtual counter and of its physical one."""

VCPUS: Final = 2
SAMPLES: Final = 8
DELAYS_MS: Final = (1, 10, 100)
LIMIT_MS: Final = 500
"""Longest time from the last sample to the return of the call, and widest interval, that still show anything. An
emulated machine takes tens of milliseconds."""
G: Final = 10**12
"""Value of both guest counters before the save, where the VM has opted in."""
MS: Final = 10**6
"""In nanoseconds."""
POLICIES: Final[tuple[Policy, ...]] = (Freeze(), Advance(), Advance(5 * MS), CatchUp(MS, 10 * MS))


class Seat(Protocol):
    """A machine with a guest in it."""

    vm: GuestVm

    def seen(self) -> list[Offsets]:
        """Return the offsets of each vCPU's counters, by what its guest reads."""


class Bench(Protocol):
    """A host that guests are measured on."""

    frequency_hz: int

    def read(self) -> int:
        """Return the host's count."""

    def wait(self, ms: int) -> None:
        """Let time go by."""

    def machine(self) -> AbstractContextManager[Seat]:
        """Return a new machine, whose VM never opted in."""


@dataclass(frozen=True, slots=True)
class Row:
    """One restore. Everything in host ticks."""

    policy: str
    method: Method
    delay_ms: int
    """Delay between the plan and `apply`, and again before `release`."""
    held_up: Interval
    """From the plan to the call that released."""
    behind: Interval
    """Lag of the guest's virtual counter behind the policy's promise."""
    physical_behind: Interval
    """The same of its physical counter; of a kernel that can't set it, nothing is promised: from 0 to 0."""
    vcpu_skew: Interval
    """Lag of vCPU 1's virtual counter behind vCPU 0's."""
    seen: Interval
    """Guest time that went by from before the checkpoint's call to the return of the release: under `Freeze` the guest
    reads nothing of the delays."""
    until_return: int
    """From the last sample to the return of the release, by the report: the part of it that `Freeze` can't hide."""
    bound: int
    """Error bound of the report."""
    calls: int
    """Time within the calls that save and release, by the host's counter around them."""
    wrong: str | None
    """The first thing that isn't as it has to be."""


def less(one: Interval, other: Interval) -> Interval:
    """Return the difference of two things of which only intervals are known."""
    return one[0] - other[1], one[1] - other[0]


def holds(interval: Interval, within: int = 0) -> bool:
    """Return whether the truth may be 0, or within so much of it."""
    return interval[0] <= within and -within <= interval[1]


def restored(bench: Bench, policy: Policy, method: Method, delay_ms: int) -> Row:
    """Save a guest, restore it into another machine by a VMM that is held up, and judge by what the guest reads."""
    with bench.machine() as source:
        if method == "offset":
            source.vm.opt_in(offset=bench.read() - G)
        there = source.seen()
        before_save = bench.read()
        checkpoint = source.vm.checkpoint()
        saved = before_save, bench.read()
    with bench.machine() as target:
        planned = bench.read()
        with target.vm.restoring(checkpoint, policy) as steps:
            bench.wait(delay_ms)
            steps.apply()
            bench.wait(delay_ms)
            before_release = bench.read()
            report = steps.release()
            released = before_release, bench.read()
        here = target.seen()
    paused = less(released, saved)
    hidden = [less(after, before) for after, before in zip(here[0], there[0], strict=True)]
    promised = _promised(policy, paused, bench.frequency_hz)
    only_virtual = report.method == "virtual-only"
    row = Row(
        repr(policy),
        method,
        delay_ms,
        held_up=(released[0] - planned, released[1] - planned),
        behind=less(hidden[0], promised),
        physical_behind=(0, 0) if only_virtual else less(hidden[1], promised),
        vcpu_skew=less(here[1][0], here[0][0]),
        seen=less((released[1] - saved[0],) * 2, hidden[0]),
        until_return=report.returned_at - report.released_at,
        bound=report.error_bound_ticks,
        calls=saved[1] - saved[0] + released[1] - released[0],
        wrong=None,
    )
    limit = LIMIT_MS * MS * bench.frequency_hz // 10**9
    return _judged(row, limit)


def _promised(policy: Policy, paused: Interval, frequency_hz: int) -> Interval:
    """Return the ticks that the policy hides from the guest."""
    if not isinstance(policy, Advance):
        return paused
    if policy.max_ns is None:
        return 0, 0
    most = policy.max_ns * frequency_hz // 10**9
    return max(0, paused[0] - most), max(0, paused[1] - most)


def _judged(row: Row, limit: int) -> Row:
    wrong = None
    if not holds(row.behind, row.bound):
        wrong = "the virtual counter isn't where the policy has it"
    elif not holds(row.physical_behind, row.bound):
        wrong = "the physical counter isn't where the policy has it"
    elif not holds(row.vcpu_skew):
        wrong = "the vCPUs are apart"
    elif row.policy == repr(Freeze()) and row.seen[0] > row.calls + row.bound:
        wrong = "the guest sees more than the calls that saved and released it"
    elif row.until_return > limit:
        wrong = "the release returned long after its last sample"
    elif max(end - begin for begin, end in (row.behind, row.vcpu_skew)) > limit:
        wrong = "the intervals are too wide to show anything"
    return replace(row, wrong=wrong)


def rows(bench: Bench) -> Iterator[Row]:
    """Measure every policy by both methods, with every delay."""
    with bench.machine() as probe:
        methods: list[Method] = ["offset", "by value"] if probe.vm.capabilities.counter_offset else ["by value"]
    # The first of all is slow: pages are touched, and code is translated.
    restored(bench, Freeze(), methods[0], 0)
    for policy in POLICIES:
        for method in methods:
            if method == "by value" and isinstance(policy, CatchUp):
                continue  # A backlog is paid back by the offset.
            for delay_ms in DELAYS_MS:
                yield restored(bench, policy, method, delay_ms)


class KvmSeat:
    """A machine of two vCPUs on this host's KVM."""

    def __init__(self, machine: Machine, host: HostCounter) -> None:
        self._machine, self._host = machine, host
        self.vm: GuestVm = KvmVm(machine.vm_fd, machine.vcpu_fds, gic_fd=machine.gic_fd)

    def seen(self) -> list[Offsets]:
        """Return the offsets of each vCPU's counters, by what its guest reads."""
        return [seen(self._machine, self._host, vcpu) for vcpu in range(VCPUS)]


class KvmBench:
    """The host that this runs on, by its own counter."""

    def __init__(self) -> None:
        self._host = HostCounter()
        self.frequency_hz = self._host.frequency_hz

    def read(self) -> int:
        """Return the host's count."""
        return self._host.read()

    def wait(self, ms: int) -> None:
        """Let time go by."""
        time.sleep(ms / 1000)

    @contextmanager
    def machine(self) -> Iterator[Seat]:
        """Return a new machine, whose VM never opted in."""
        made = Machine(VCPUS)
        try:
            yield KvmSeat(made, self._host)
        finally:
            made.close()


def seen(made: Machine, host: HostCounter, vcpu: int) -> Offsets:
    """Return the offsets of both counters by what the vCPU's guest reads: of several samples, each in its bracket."""
    guest = image(vcpus=VCPUS, samples=SAMPLES, doorbell=DOORBELL, gicd=0, psci="none", command=Command.SAMPLE)
    made.ram[: len(guest)] = guest
    made.set_one_reg(vcpu, PC, RAM)
    brackets: list[Interval] = []
    begun = 0
    # A sample is in the log once the guest has gone on behind it.
    while len(brackets) <= SAMPLES:
        bell = made.run(vcpu).data & 0xFF
        if bell == Doorbell.SAMPLE_BEGINS:
            begun = host.read()
        elif bell == Doorbell.SAMPLE_ENDS:
            brackets.append((begun, host.read()))
    log = Guest(made.ram).log().vcpus[vcpu]
    if log is None:
        msg = f"the guest on vCPU {vcpu} left no log"
        raise RuntimeError(msg)
    samples = [record for record in log.records if record.kind is Kind.SAMPLED][:SAMPLES]
    known: list[Interval] = []
    for counts in ([record.cntvct for record in samples], [record.cntpct for record in samples]):
        rounds = [(low - count, high - count) for (low, high), count in zip(brackets[:SAMPLES], counts, strict=True)]
        known.append((max(low for low, _ in rounds), min(high for _, high in rounds)))
    return known[0], known[1]
