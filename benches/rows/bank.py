"""The bank's batch operations beside numpy."""

from __future__ import annotations

import itertools

import numpy as np

from benchmarks import fleet
from benchmarks.operations import conversion, evaluation, recomputation, recomputation_in_integers, turn
from measure import Ratio, Side, Sides, at_least, at_most


def counters(vcpus: int) -> Sides:
    """Cost of the vCPUs beyond the first, beside a copy. Time goes on by a tick a call."""
    (subject, sibling), less = beside_copy(vcpus), beside_copy(1)
    return Sides(subject, sibling, less)


def beside_copy(vcpus: int) -> tuple[Side, Side]:
    bank = fleet.Fleet(vcpus, 2).bank
    out, source = np.empty(vcpus, np.uint64), bank.cntvct(fleet.BEGIN)
    names = {"bank": bank, "ticks": itertools.count(fleet.BEGIN), "out": out, "copyto": np.copyto, "source": source}
    return (
        Side(f"bank.cntvct(): {vcpus:,} - 1", "bank.cntvct(next(ticks), out=out)", names),
        Side("np.copyto, alike", "copyto(out, source)", names),
    )


def looked_at() -> Sides:
    """A timer's write, after a look at each VM, whose view was dropped, and before any."""
    from guestclock import ManualCounter, Timer
    from guestclock.model import ClockBank

    def write(label: str, *, look: bool) -> Side:
        bank = ClockBank(ManualCounter(fleet.BEGIN, frequency_hz=10**9))
        vms = bank.add_many(100_000)
        if look:
            for vm in vms.tolist():
                bank.vm(vm)
        one, cval, ctl = bank.vcpus()[:1], np.array([7], np.uint64), np.array([1], np.uint8)
        names = {"bank": bank, "timer": Timer.VTIMER, "one": one, "cval": cval, "ctl": ctl}
        return Side(label, "bank.set_timers(timer, one, cval, ctl)", names)

    return Sides(write("after 100 000 looks", look=True), write("before", look=False))


def moved(vcpus: int, timers: int) -> int:
    """Two offsets, and CVAL and CTL of each timer, are read; two flags a timer, and a deadline, are written."""
    return vcpus * (2 * 8 + timers * (8 + 1) + timers * 2 + 8)


ROWS = (
    Ratio(
        "counters of 4 096 vCPUs, but for the call",
        lambda: counters(4096),
        at_most(2.0),
        elements=4095,
        moved=4095 * 16,
        by_isa=True,
    ),
    Ratio(
        "evaluate + next deadlines, 4 096 x 4",
        lambda: evaluation(4096, 4),
        at_least(avx2=3.5, avx512=7.0),
        elements=4096 * 4,
        moved=moved(4096, 4),
        by_isa=True,
    ),
    Ratio(
        "evaluate + next deadlines, 65 536 x 4",
        lambda: evaluation(65536, 4),
        at_least(avx2=8.0, avx512=12.0, bandwidth=0.6),
        elements=65536 * 4,
        moved=moved(65536, 4),
        by_isa=True,
    ),
    Ratio(
        "evaluate + next deadlines, 4 096 x 2",
        lambda: evaluation(4096, 2),
        at_least(),
        elements=4096 * 2,
        moved=moved(4096, 2),
        by_isa=True,
    ),
    Ratio("the same, re-arming timed: 4 096 x 4", lambda: turn(4096, 4), at_least(), elements=4096 * 4, by_isa=True),
    Ratio(
        "recompute offsets of 4 096 VMs",
        lambda: recomputation(4096),
        at_least(avx2=2.0, avx512=4.0),
        elements=4096,
        # Four columns of words, the policies and the frequencies' numbers are read, two columns of words are written.
        moved=4096 * (4 * 8 + 1 + 2 + 2 * 8),
        by_isa=True,
    ),
    Ratio(
        "recompute offsets of 4 096 VMs, beside ints",
        lambda: recomputation_in_integers(4096),
        at_least(any=100),
        elements=4096,
        by_isa=True,
    ),
    Ratio("a timer's write in 100 000 VMs, each looked at", looked_at, at_most(1.2)),
    Ratio(
        "ticks to ns, 4 096 rows",
        lambda: conversion(4096, to_ns=True),
        at_least(),
        elements=4096,
        # The counts and their frequencies are read.
        moved=4096 * 3 * 8,
        by_isa=True,
    ),
    Ratio(
        "ns to ticks, 4 096 rows",
        lambda: conversion(4096, to_ns=False),
        at_least(),
        elements=4096,
        moved=4096 * 3 * 8,
        by_isa=True,
    ),
)
