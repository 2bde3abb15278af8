"""The steady state of many timers, kept by the deadline queue, by heapq, and by a numpy scan.

Each step takes what is due, about 64 timers, and arms them again, moves 3, cancels 3, arms the 3 that the step before
cancelled, and asks for the next deadline. All three take the same steps and come to the same results.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FIRING = 64
MOVED = CANCELLED = 3
TOUCHED = 2 * FIRING + MOVED + 2 * CANCELLED
"""Timer operations in a step: fire, arm again, move, cancel, and arm after a cancel."""
# Deadlines lie up to a second ahead of 1 GHz.
FARTHEST = 1 << 30
TURNS = 512
NO_DEADLINE = 2**64 - 1


class Kept(Protocol):
    """One way to keep timers."""

    def step(self) -> tuple[int, Any]: ...


class Work:
    """Input of each turn. The turns repeat, time goes on."""

    def __init__(self, timers: int) -> None:
        import numpy as np

        self.timers = timers
        self.ticks = FIRING * (FARTHEST // 2) // timers
        self.begin = 1 << 40
        chance = np.random.default_rng(20261122)
        # Seen from a random instant, what is left of a uniform distance lies nearer.
        first = chance.integers(1, FARTHEST, (2, timers), np.uint64).min(0)
        self.first = first + np.uint64(self.begin)
        # More than ever fire in one step. Lists of arrays: a row of a matrix takes longer to get at.
        self.again = list(chance.integers(1, FARTHEST, (TURNS, 8 * FIRING), np.uint64))
        cancelled = chance.integers(0, timers, (TURNS, CANCELLED))
        self.cancelled = list(cancelled)
        moved = np.concatenate([chance.integers(0, timers, (TURNS, MOVED)), np.roll(cancelled, 1, 0)], axis=1)
        self.moved = list(moved)
        self.moves = list(chance.integers(1, FARTHEST, moved.shape, np.uint64))


class Queue:
    """guestclock's queue: VMs of so many timers each, or all in one."""

    def __init__(self, work: Work, vm: int = 8) -> None:
        import numpy as np

        from guestclock.model import DeadlineQueue

        self.work, self.turn, self.now, self.count = work, 0, work.begin, np.array(work.begin, np.uint64)
        self.queue = DeadlineQueue()
        for _ in range(work.timers // vm):
            self.queue.add_group(vm)
        self.queue.next_deadline(self.now)
        self.queue.arm_many(np.arange(work.timers), work.first)

    def step(self) -> tuple[int, NDArray[np.int64]]:
        work, queue, turn = self.work, self.queue, self.turn % TURNS
        self.turn += 1
        self.now += work.ticks
        self.count[()] = self.now
        fired, _ = queue.expire(self.now)
        queue.arm_many(fired, work.again[turn][: fired.size] + self.count)
        queue.arm_many(work.moved[turn], work.moves[turn] + self.count)
        queue.disarm_many(work.cancelled[turn])
        return queue.next_deadline(self.now), fired


class Heap:
    """heapq, with lazy deletion. One int an entry, deadline and id, which compares faster than a tuple."""

    BITS = 20

    def __init__(self, work: Work) -> None:
        self.turn, self.now, self.ticks = 0, work.begin, work.ticks
        self.again, self.moves, self.moved, self.cancelled = (
            [turn.tolist() for turn in turns] for turns in (work.again, work.moves, work.moved, work.cancelled)
        )
        self.live = [deadline << self.BITS | timer for timer, deadline in enumerate(work.first.tolist())]
        self.heap = self.live.copy()
        heapq.heapify(self.heap)

    def step(self) -> tuple[int, list[int]]:
        turn, live, heap, bits = self.turn % TURNS, self.live, self.heap, self.BITS
        push, pop, mask = heapq.heappush, heapq.heappop, (1 << bits) - 1
        self.turn += 1
        self.now = now = self.now + self.ticks
        fired = []
        end = (now + 1) << bits
        while heap[0] < end:
            entry = pop(heap)
            timer = entry & mask
            if live[timer] == entry:
                live[timer] = 0
                fired.append(timer)
        for timer, distance in zip(fired, self.again[turn], strict=False):
            live[timer] = entry = now + distance << bits | timer
            push(heap, entry)
        for timer, distance in zip(self.moved[turn], self.moves[turn], strict=True):
            live[timer] = entry = now + distance << bits | timer
            push(heap, entry)
        for timer in self.cancelled[turn]:
            live[timer] = 0
        while live[heap[0] & mask] != heap[0]:
            pop(heap)
        return heap[0] >> bits, fired


class Scan:
    """A numpy column, read from end to end, into arrays that are there already."""

    def __init__(self, work: Work) -> None:
        import numpy as np

        self.np, self.work, self.turn, self.now = np, work, 0, work.begin
        self.count = np.array(work.begin, np.uint64)
        self.deadlines = work.first.copy()
        self.due = np.empty(work.timers, np.bool_)

    def step(self) -> tuple[int, NDArray[np.int64]]:
        np, work, deadlines, turn = self.np, self.work, self.deadlines, self.turn % TURNS
        self.turn += 1
        self.now += work.ticks
        self.count[()] = self.now
        timers = np.flatnonzero(np.less_equal(deadlines, self.count, out=self.due))
        # The ids are in order already, and a stable sort leaves them so among equals.
        fired = timers[deadlines[timers].argsort(kind="stable")]
        deadlines[fired] = work.again[turn][: fired.size] + self.count
        deadlines[work.moved[turn]] = work.moves[turn] + self.count
        deadlines[work.cancelled[turn]] = NO_DEADLINE
        return int(deadlines.min()), fired


def agreed(*kept: Kept, steps: int = 100) -> None:
    """Take steps on all of them, and see that they come to the same."""
    for _ in range(steps):
        (deadline, fired), *others = (one.step() for one in kept)
        for other_deadline, other_fired in others:
            if deadline != other_deadline or list(fired) != list(other_fired):
                raise AssertionError("the queue and its siblings come to different results")
