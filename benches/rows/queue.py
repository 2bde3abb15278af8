"""The deadline queue's steady state: a step fires about 64 timers, arms them again, moves and cancels some."""

from __future__ import annotations

import functools

from benchmarks import steady
from measure import Ratio, Side, Sides, at_least, at_most

HUNDRED_K, MILLION = 100_000, 1_000_000
work = functools.cache(steady.Work)


def queue(timers: int) -> steady.Kept:
    return steady.Queue(work(timers))


def step(label: str, kept: steady.Kept) -> Side:
    return Side(label, "kept.step()", {"kept": kept})


def beside(sibling: type[steady.Heap | steady.Scan], timers: int) -> Sides:
    steady.agreed(queue(timers), sibling(work(timers)))
    return Sides(step("queue", queue(timers)), step(sibling.__name__.lower(), sibling(work(timers))))


def grown() -> Sides:
    return Sides(step("queue, 1 M pending", queue(MILLION)), step("queue, 1 k", queue(1000)))


ROWS = (
    Ratio(
        "deadline queue beside heapq, 100 k",
        lambda: beside(steady.Heap, HUNDRED_K),
        at_least(any=7),
        elements=steady.TOUCHED,
    ),
    Ratio(
        "deadline queue beside a numpy scan, 100 k",
        lambda: beside(steady.Scan, HUNDRED_K),
        at_least(any=5),
        elements=steady.TOUCHED,
    ),
    Ratio("deadline queue, cost at 1 M / at 1 k", grown, at_most(2.0), elements=steady.TOUCHED),
)
