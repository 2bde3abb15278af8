"""A guest's own account of its clocks, as guest-probe writes it, and what two of them say of a pause between them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

NAMES: Final = ("monotonic", "boottime", "realtime", "raw")
NS_PER_S: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Reading:
    """One clock as the guest read it: `ns` at a count from `before` to `after`.

    `low` and `high` bound the clock less the counter, in nanoseconds, by many such readings.
    """

    ns: int
    before: int
    after: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Clocks:
    """A line of `guest-probe clocks`."""

    hz: int
    monotonic: Reading
    boottime: Reading
    realtime: Reading
    raw: Reading

    def moved_ns(self, since: Clocks, clock: str) -> tuple[int, int]:
        """Bounds of what the clock moved by against the counter since the earlier account."""
        was, now = getattr(since, clock), getattr(self, clock)
        return now.low - was.high, now.high - was.low

    def settled_ns(self, since: Clocks, clock: str) -> int:
        """The distance between the middles of the two bounds: as the same program reads, they are equally wide."""
        was, now = getattr(since, clock), getattr(self, clock)
        return int(now.low + now.high - was.low - was.high) // 2


@dataclass(frozen=True, slots=True)
class Watcher:
    """A line of `guest-probe report`: what the watcher on one CPU saw since the report before."""

    cpu: int
    period_ns: int
    looks: int
    back: int
    back_ns: int
    expired: int
    most_expired: int
    gap_ns: int
    gap_from_ns: int
    gap_from_count: int
    gap_to_count: int


@dataclass(frozen=True, slots=True)
class VmClockReading:
    """A line of `guest-probe vmclock`: the PTP clock at a count from `before` to `after`, or a negative errno.

    Then the page's disruption marker, VM generation and clock status.
    """

    error: int
    ns: int
    before: int
    after: int
    marker: int
    generation: int
    status: int


def clocks(text: str) -> list[Clocks]:
    """The lines of `guest-probe clocks` in what a guest wrote."""
    found = []
    for line in re.findall(r"^clocks (.*)$", text.replace("\r", ""), re.MULTILINE):
        fields = dict(field.split("=") for field in line.split())
        if fields["vdso"] != "1":
            raise ValueError("the guest's probe found no vDSO")
        readings = {name: Reading(*map(int, re.findall(r"-?\d+", fields[name]))) for name in NAMES}
        found.append(Clocks(int(fields["hz"]), **readings))
    return found


def watchers(text: str) -> list[Watcher]:
    """The lines of `guest-probe report` in what a guest wrote."""
    return [Watcher(**fields) for fields in _lines("watcher", text)]


def vmclock(text: str) -> VmClockReading:
    """The line of `guest-probe vmclock` in what a guest wrote."""
    (fields,) = _lines("vmclock", text)
    return VmClockReading(**fields)


def _lines(kind: str, text: str) -> list[dict[str, int]]:
    found = re.findall(rf"^{kind} (.*)$", text.replace("\r", ""), re.MULTILINE)
    return [{k: int(v) for k, v in (field.split("=") for field in line.split())} for line in found]


def interrupts(text: str) -> int:
    """The number of the timer's interrupts by a guest's /proc/interrupts, all CPUs together."""
    (line,) = re.findall(r"^ *\d+: +((?:\d+ +)+)GICv3 +\d+ +\w+ +arch_timer", text.replace("\r", ""), re.MULTILINE)
    return sum(map(int, line.split()))


def complaints(text: str) -> dict[str, list[str]]:
    """The kernel's messages about a jump, by the names that a plan has for their limits."""
    kinds = {
        "soft lockup": r"soft lockup - CPU",
        "RCU stall": r"rcu.*(detected stalls|self-detected stall|detected expedited stalls)",
        "workqueue lockup": r"workqueue lockup",
        "hung task": r"blocked for more than",
        "hrtimer": r"hrtimer: interrupt took",
    }
    lines = [line for line in text.replace("\r", "").splitlines() if re.match(r"\[ *\d+\.\d+\]", line)]
    return {kind: [line for line in lines if re.search(pattern, line)] for kind, pattern in kinds.items()}
