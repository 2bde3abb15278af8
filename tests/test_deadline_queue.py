"""The deadline queue: against every timer looked at in Python's integers, and against heapq."""

from __future__ import annotations

import heapq
import random
import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

from guestclock import ManualCounter, ModelVm, Reg
from guestclock.model import DeadlineQueue

SIZE = 2**64
NO_DEADLINE = SIZE - 1

edges = st.sampled_from([0, 1, 2**32, 2**63, SIZE - 2, SIZE - 1])
u64s = st.one_of(st.integers(0, SIZE - 1), st.integers(0, 50), edges)
picks = st.integers(0, 10**6)


def ids(*timers: int) -> NDArray[np.int64]:
    return np.array(timers, np.int64)


def counts(*values: int) -> NDArray[np.uint64]:
    return np.array(values, np.uint64)


class AgainstTheModel(RuleBasedStateMachine):
    """Armed timers by id, each with its group and compare value."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = DeadlineQueue()
        self.now = 0
        self.offsets: dict[int, int] = {}
        self.armed: dict[int, tuple[int, int]] = {}

    def guest(self, group: int) -> int:
        return (self.now - self.offsets[group]) % SIZE

    def group(self, pick: int) -> int:
        return sorted(self.offsets)[pick % len(self.offsets)]

    def timer(self, pick: int) -> tuple[int, int]:
        group = self.group(pick)
        timers = self.queue.timers(group)
        return timers[pick // 7 % len(timers)], group

    @rule(timers=st.integers(1, 70), offset=u64s)
    def add(self, timers: int, offset: int) -> None:
        group = self.queue.add_group(timers, offset=offset)
        assert group not in self.offsets
        assert len(self.queue.timers(group)) == timers
        self.offsets[group] = offset

    @precondition(lambda self: self.offsets)
    @rule(pick=picks)
    def remove(self, pick: int) -> None:
        group = self.group(pick)
        self.queue.remove_group(group)
        del self.offsets[group]
        self.armed = {timer: held for timer, held in self.armed.items() if held[0] != group}

    @precondition(lambda self: self.offsets)
    @rule(changes=st.lists(st.tuples(picks, u64s), min_size=1, max_size=4))
    def set_offsets(self, changes: list[tuple[int, int]]) -> None:
        groups = [self.group(pick) for pick, _ in changes]
        if len(changes) == 1:
            # The same number as a signed one.
            self.queue.set_offset(groups[0], changes[0][1] - SIZE if changes[0][1] >= 2**63 else changes[0][1])
        else:
            self.queue.set_offsets(ids(*groups), counts(*(offset for _, offset in changes)))
        self.offsets.update(zip(groups, (offset for _, offset in changes), strict=True))
        assert self.queue.offset(groups[-1]) == changes[-1][1]

    @precondition(lambda self: self.offsets)
    @rule(changes=st.lists(st.tuples(picks, u64s, st.booleans()), min_size=1, max_size=12))
    def arm(self, changes: list[tuple[int, int, bool]]) -> None:
        timers, cvals = [], []
        for pick, cval, from_now in changes:
            timer, group = self.timer(pick)
            timers.append(timer)
            cvals.append((cval + self.guest(group)) % SIZE if from_now else cval)
            self.armed[timer] = (group, cvals[-1])
        if len(changes) == 1:
            self.queue.arm(timers[0], cvals[0])
        else:
            self.queue.arm_many(ids(*timers), counts(*cvals))

    @precondition(lambda self: self.offsets)
    @rule(chosen=st.lists(picks, min_size=1, max_size=5))
    def disarm(self, chosen: list[int]) -> None:
        timers = [self.timer(pick)[0] for pick in chosen]
        if len(timers) == 1:
            self.queue.disarm(timers[0])
        else:
            self.queue.disarm_many(ids(*timers))
        for timer in timers:
            self.armed.pop(timer, None)

    @rule(ticks=u64s)
    def move(self, ticks: int) -> None:
        """On; or back, where it is more than what is left of the range."""
        self.now = (self.now + ticks) % SIZE

    @rule()
    def next_deadline(self) -> None:
        waits = [max(cval - self.guest(group), 0) for group, cval in self.armed.values()]
        expected = min(self.now + min(waits), NO_DEADLINE - 1) if waits else NO_DEADLINE
        assert self.queue.next_deadline(self.now) == expected

    @rule()
    def expire(self) -> None:
        late = {timer: self.guest(group) - cval for timer, (group, cval) in self.armed.items()}
        expected = sorted((max(self.now - late[timer], 0), timer) for timer in late if late[timer] >= 0)
        timers, deadlines = self.queue.expire(self.now)
        assert (timers.dtype.name, deadlines.dtype.name) == ("int64", "uint64")
        assert timers.flags.owndata
        assert deadlines.flags.owndata
        assert list(zip(deadlines.tolist(), timers.tolist(), strict=True)) == expected
        for _, timer in expected:
            del self.armed[timer]

    @invariant()
    def it_holds_as_many(self) -> None:
        assert len(self.queue) == len(self.armed)


TestAgainstTheModel = AgainstTheModel.TestCase
TestAgainstTheModel.settings = settings(max_examples=settings().max_examples * 3 // 2, stateful_step_count=40)


@pytest.mark.parametrize("vm", [4, 8, 5000])
def test_it_fires_as_a_heap_does(vm: int) -> None:
    """A heap of (deadline, timer) with what was moved left in it, for 200 steps of 5000 timers."""
    random_ = random.Random(vm)  # noqa: S311 - a workload
    queue, now = DeadlineQueue(), 10**12
    offsets = {queue.add_group(vm, offset=offset): offset for offset in (1000 * vm for vm in range(5000 // vm))}
    timers = [timer for group in offsets for timer in queue.timers(group)]
    offset_of = {timer: offset for group, offset in offsets.items() for timer in queue.timers(group)}
    deadlines: dict[int, int] = {}
    heap: list[tuple[int, int]] = []

    def arm(chosen: list[int]) -> None:
        for timer in chosen:
            deadlines[timer] = now + random_.randrange(1, 1_000_000)
            heapq.heappush(heap, (deadlines[timer], timer))
        cvals = counts(*(deadlines[timer] - offset_of[timer] for timer in chosen))
        queue.arm_many(ids(*chosen), cvals)

    arm(timers)
    for _ in range(200):
        now += random_.randrange(30_000)
        expected = []
        while heap and heap[0][0] <= now:
            deadline, timer = heapq.heappop(heap)
            if deadlines.get(timer) == deadline:
                expected.append((deadline, timer))
                del deadlines[timer]
        fired, when = queue.expire(now)
        assert list(zip(when.tolist(), fired.tolist(), strict=True)) == expected
        arm([*fired.tolist(), *random_.sample(timers, 10)])
        cancelled = random_.sample(timers, 10)
        queue.disarm_many(ids(*cancelled))
        for timer in cancelled:
            deadlines.pop(timer, None)
        assert queue.next_deadline(now) == min(deadlines.values())


def test_it_is_the_model_vms_deadline() -> None:
    counter = ManualCounter(5)
    vm = ModelVm(counter=counter)
    for offset in (0, 3, 6, 2**63, SIZE - 1):
        for cval in (0, 2, 10, 2**63, SIZE - 2, SIZE - 1):
            vm.set_counter_offset(offset)
            vm.set_one_reg(0, Reg.TIMER_CVAL, cval)
            vm.set_one_reg(0, Reg.TIMER_CTL, 1)
            queue = DeadlineQueue()
            queue.arm(queue.timers(queue.add_group(2, offset=offset))[1], cval)
            assert queue.next_deadline(counter.read()) == vm.next_deadline(0)


def test_arrays_may_be_strided_and_are_copied() -> None:
    queue = DeadlineQueue()
    first = queue.timers(queue.add_group(20))
    timers = np.array(first, np.int64)
    cvals = np.arange(100, 120, dtype=np.uint64)
    queue.arm_many(timers[::-2], cvals[::2])
    timers[:], cvals[:] = 0, 0
    fired, deadlines = queue.expire(200)
    assert fired.tolist() == [*first][::-2]
    assert deadlines.tolist() == [*range(100, 120, 2)]


def test_what_is_refused_changes_nothing() -> None:
    queue = DeadlineQueue()
    group = queue.add_group(3)
    known = queue.timers(group)[0]
    queue.arm(known, 7)
    for unknown in (3, 64, 2**31, 2**40, -1):
        with pytest.raises(IndexError, match=str(unknown)):
            queue.arm_many(ids(known, unknown), counts(1, 1))
        with pytest.raises(IndexError, match=str(unknown)):
            queue.disarm_many(ids(known, unknown))
        with pytest.raises(IndexError, match=str(unknown)):
            queue.set_offsets(ids(group, unknown), counts(5, 5))
        for call in (queue.disarm, queue.timers, queue.offset, queue.remove_group):
            with pytest.raises(IndexError, match=str(unknown)):
                call(unknown)
    with pytest.raises(ValueError, match=r"2 for 1"):
        queue.arm_many(ids(known), counts(1, 1))
    with pytest.raises(ValueError, match="at least one"):
        queue.add_group(0)
    with pytest.raises(OverflowError):
        queue.add_group(2**32 - 1)
    with pytest.raises(OverflowError):
        queue.set_offset(group, SIZE)
    with pytest.raises(OverflowError):
        queue.arm(known, SIZE)
    assert (len(queue), queue.next_deadline(0), queue.offset(group)) == (1, 7, 0)


@pytest.mark.parametrize(
    "timers",
    [
        np.zeros(1, np.uint32),
        np.zeros(1, np.int32),
        np.zeros(1, ">i8"),
        np.zeros(1),
        np.zeros((1, 1), np.int64),
        np.frombuffer(bytes(9), np.int64, offset=1),
        [0],
    ],
    ids=str,
)
def test_other_arrays_are_refused(timers: NDArray[np.int64]) -> None:
    queue = DeadlineQueue()
    queue.add_group(1)
    with pytest.raises(TypeError, match="timers must be a one-dimensional, aligned numpy array of int64"):
        queue.arm_many(timers, counts(1))
    with pytest.raises(TypeError, match="cvals must be a one-dimensional, aligned numpy array of uint64"):
        queue.arm_many(ids(0), timers)  # type: ignore[arg-type]
    assert len(queue) == 0


def test_threads_share_it() -> None:
    """Large batches work without the GIL; each thread sees its own timers fire, once, in order."""
    queue, size, threads = DeadlineQueue(), 5000, 4
    owned = [np.array(queue.timers(queue.add_group(size)), np.int64) for _ in range(threads)]

    def work(timers: NDArray[np.int64]) -> None:
        for step in range(20):
            queue.arm_many(timers, np.arange(step, step + size, dtype=np.uint64))
            queue.disarm_many(timers[:100])

    started = [threading.Thread(target=work, args=(timers,)) for timers in owned]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    fired, deadlines = queue.expire(SIZE - 1)
    assert len(fired) == threads * (size - 100)
    assert len(set(fired.tolist())) == len(fired)
    assert np.all(deadlines[1:] >= deadlines[:-1])


def test_it_says_what_it_holds() -> None:
    queue = DeadlineQueue()
    small = queue.nbytes
    group = queue.add_group(1000)
    queue.arm_many(np.array(queue.timers(group), np.int64), np.arange(1000, dtype=np.uint64))
    assert repr(queue) == "<DeadlineQueue with 1000 timers armed>"
    assert 8000 < queue.nbytes - small < 20000
