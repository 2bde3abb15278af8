"""`guestclock.aio.catch_up` and `GuestVm.catch_up`: each step when it is due, by one rule.

`guestclock.aio.expiries`: what expires on an alarm, once, to one consumer.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from guestclock import Advance, CatchUp, Freeze, HostCounter, ManualCounter, ModelVm, MonotonicCounter, aio
from guestclock.errors import AlarmInUse, CapabilityMissing, RestoreOpen, VcpuRunning
from guestclock.model import DeadlineAlarm, DeadlineQueue, ScaledCounter
from guestclock.types import Counter, Step
from vms import NS, SECOND, host, owned

MS = 10**6


class Sleeper:
    """Sleeps on a counter that is moved by hand, late by what is told, or short."""

    def __init__(self, counter: ManualCounter, off_by_ns: list[int] | None = None) -> None:
        self.counter = counter
        self.off_by_ns = off_by_ns or []
        self.slept: list[int] = []

    def __call__(self, seconds: float) -> None:
        ns = round(seconds * SECOND)
        off = self.off_by_ns[len(self.slept)] if len(self.slept) < len(self.off_by_ns) else 0
        self.slept.append(ns)
        self.counter.advance(max(ns + off, 0) // NS)

    async def in_a_loop(self, seconds: float) -> None:
        self(seconds)
        await asyncio.sleep(0)


class Driver:
    """The same test on both."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def steps(self, vm: ModelVm, sleeper: Sleeper | None) -> Iterator[Step]:
        if self.kind == "catch_up":
            yield from vm.catch_up(sleep=sleeper)
            return
        with asyncio.Runner() as runner:
            steps = aio.catch_up(vm, sleep=sleeper.in_a_loop if sleeper else None)
            while (step := runner.run(after(steps))) is not None:
                yield step
            runner.run(steps.aclose())


async def after(steps: AsyncIterator[Step]) -> Step | None:
    return await anext(steps, None)


@pytest.fixture(params=["catch_up", "asyncio"])
def driver(request: pytest.FixtureRequest) -> Driver:
    return Driver(request.param)


def owing(pause_ns: int, policy: CatchUp) -> tuple[ManualCounter, ModelVm]:
    counter = host()
    checkpoint = owned(counter).checkpoint()
    counter.advance(pause_ns // NS)
    vm = ModelVm(2, counter=counter)
    vm.restore(checkpoint, policy)
    return counter, vm


def test_each_step_comes_when_it_is_due(driver: Driver) -> None:
    counter, vm = owing(5 * SECOND, CatchUp(step_ns=2 * SECOND, interval_ns=2 * SECOND + 500 * MS))
    start, sleeper = counter.read(), Sleeper(counter)
    at = []
    for step in driver.steps(vm, sleeper):
        assert step.wait_ns() == 0
        at.append((counter.read() - start) * NS)
        step.apply()
    assert at == [2_500 * MS, 5_000 * MS, 7_500 * MS]
    # At most a second at a time, and then the counter is asked.
    assert sleeper.slept == [SECOND, SECOND, 500 * MS] * 3
    assert vm.backlog_ticks == 0
    assert list(driver.steps(vm, sleeper)) == []


@given(
    pause_ns=st.integers(0, 20 * SECOND),
    interval_ns=st.integers(1, 3 * SECOND),
    off_by_ns=st.lists(st.integers(-SECOND, 5 * SECOND), max_size=20),
)
def test_never_early_never_busy(pause_ns: int, interval_ns: int, off_by_ns: list[int]) -> None:
    for kind in ("catch_up", "asyncio"):
        counter, vm = owing(pause_ns, CatchUp(step_ns=SECOND, interval_ns=interval_ns))
        sleeper = Sleeper(counter, list(off_by_ns))
        last, naps = counter.read(), 0
        for step in Driver(kind).steps(vm, sleeper):
            assert counter.read() >= step.due_at
            assert (counter.read() - last) * NS >= interval_ns
            # Also where the interval is over already.
            assert len(sleeper.slept) > naps
            last, naps = counter.read(), len(sleeper.slept)
            step.apply()
        assert vm.backlog_ticks == 0
        assert all(MS <= ns <= SECOND for ns in sleeper.slept)


def test_waking_up_early_is_no_reason_to_go_on(driver: Driver) -> None:
    counter, vm = owing(SECOND, CatchUp(SECOND, SECOND))
    # The first sleep passes in no time, and of the second a nanosecond's worth of ticks is missing.
    sleeper = Sleeper(counter, [-SECOND, -1])
    step = next(driver.steps(vm, sleeper))
    assert sleeper.slept == [SECOND, SECOND, MS]
    assert counter.read() >= step.due_at


def test_waking_up_late_gives_one_step_and_a_whole_interval(driver: Driver) -> None:
    counter, vm = owing(3 * SECOND, CatchUp(SECOND, SECOND))
    sleeper = Sleeper(counter, [10 * SECOND])
    at = []
    for step in driver.steps(vm, sleeper):
        at.append(counter.read())
        step.apply()
    assert [(later - one) * NS for one, later in pairwise(at)] == [SECOND, SECOND]


def test_an_interval_shorter_than_a_sleep_is_stretched(driver: Driver) -> None:
    counter, vm = owing(SECOND, CatchUp(step_ns=SECOND // 4, interval_ns=1))
    sleeper = Sleeper(counter)
    for step in driver.steps(vm, sleeper):
        step.apply()
    assert sleeper.slept == [MS] * 4


def test_a_step_that_fails_comes_again_after_a_while(driver: Driver) -> None:
    counter, vm = owing(SECOND, CatchUp(SECOND // 2, SECOND))
    sleeper = Sleeper(counter)
    tried: list[int] = []
    pauses = []
    for step in driver.steps(vm, sleeper):
        tried.append(counter.read())
        if len(tried) == 1:
            with vm.running(0), pytest.raises(VcpuRunning):
                step.apply()
            pauses.append(vm.pause())
        elif len(tried) == 2:
            with pytest.raises(RestoreOpen):
                step.apply()
            # The interval begins anew where the guest goes on.
            pauses[0].resume()
        else:
            step.apply()
    assert sleeper.slept == [SECOND, 10 * MS, SECOND, SECOND]
    assert (len(tried), vm.backlog_ticks) == (4, 0)


def test_a_step_that_is_passed_over_keeps_its_debt(driver: Driver) -> None:
    counter, vm = owing(SECOND, CatchUp(SECOND, SECOND))
    sleeper = Sleeper(counter)
    steps = driver.steps(vm, sleeper)
    seen = [(step.due_at, step.ticks, step.backlog_ticks) for step, _ in zip(steps, range(3), strict=False)]
    assert len(set(seen)) == 1
    assert set(sleeper.slept[1:]) == {10 * MS}
    assert vm.backlog_ticks == SECOND // NS


def test_a_restore_in_between_changes_what_is_waited_for(driver: Driver) -> None:
    counter, vm = owing(SECOND, CatchUp(SECOND, SECOND))
    sleeper = Sleeper(counter)
    steps = driver.steps(vm, sleeper)
    first = next(steps)
    with vm.pause(CatchUp(2 * SECOND, 3 * SECOND)):
        counter.advance(SECOND // NS)
    resumed = counter.read()
    second = next(steps)
    assert second.backlog_ticks == 2 * first.backlog_ticks
    assert (counter.read() - resumed) * NS >= 3 * SECOND
    with vm.pause(Advance()):
        pass
    # That paid all of it at once.
    assert list(steps) == []


def test_a_cancelled_task_leaves_the_debt() -> None:
    counter, vm = owing(2 * SECOND, CatchUp(SECOND, SECOND))

    async def sleep(_seconds: float) -> None:
        if vm.backlog_ticks == SECOND // NS:
            asleep.set()
            await asyncio.Event().wait()
        counter.advance(SECOND // NS)

    async def pay() -> None:
        async for step in aio.catch_up(vm, sleep=sleep):
            step.apply()

    asleep = asyncio.Event()

    async def main() -> None:
        task = asyncio.create_task(pay())
        await asleep.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert vm.backlog_ticks == SECOND // NS
    # And somebody else goes on with it.
    assert [step.apply() for step in vm.catch_up(sleep=Sleeper(counter))] == [0]


def test_others_in_the_loop_go_on() -> None:
    counter, vm = owing(3 * SECOND, CatchUp(SECOND, 1))
    sleeper = Sleeper(counter)
    order: list[str] = []

    async def pay(name: str) -> None:
        async for step in aio.catch_up(vm, sleep=sleeper.in_a_loop):
            order.append(name)
            step.apply()

    async def main() -> None:
        await asyncio.gather(pay("a"), pay("b"))

    asyncio.run(main())
    assert set(order) == {"a", "b"}
    assert vm.backlog_ticks == 0


def test_a_guest_that_is_owed_nothing_costs_no_sleep(driver: Driver) -> None:
    counter = host()
    vm = owned(counter)
    sleeper = Sleeper(counter)
    assert list(driver.steps(vm, sleeper)) == []
    with vm.restoring(vm.checkpoint(), Freeze()):
        assert list(driver.steps(vm, sleeper)) == []
    assert sleeper.slept == []


def test_they_sleep_for_real_by_default(driver: Driver) -> None:
    counter = MonotonicCounter()
    vm = ModelVm(1, counter=counter)
    vm.opt_in()
    with vm.pause(CatchUp(step_ns=SECOND, interval_ns=2 * MS)):
        pass
    start, taken = counter.read(), []
    for step in driver.steps(vm, None):
        taken.append(step.due_at)
        assert counter.read() >= step.due_at
        step.apply()
    assert taken == [due for due in taken if due > start - SECOND // NS]
    assert len(taken) == 1
    assert vm.backlog_ticks == 0


def test_a_signal_ends_the_wait() -> None:
    vm = ModelVm(1, counter=MonotonicCounter())
    vm.opt_in()
    with vm.pause(CatchUp(step_ns=SECOND, interval_ns=3600 * SECOND)):
        pass

    def interrupt(_number: int, _frame: object) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        with pytest.raises(InterruptedError):
            next(vm.catch_up())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert vm.backlog_ticks > 0


@pytest.mark.parametrize("scaled", [False, True])
def test_over_a_counter_moved_by_hand_the_iteration_ends_instead(driver: Driver, scaled: bool) -> None:
    hand = host()
    vm = ModelVm(1, counter=ScaledCounter(hand, frequency_hz=hand.frequency_hz * 2) if scaled else hand)
    vm.opt_in()
    with vm.pause(CatchUp(step_ns=SECOND, interval_ns=SECOND)):
        hand.advance(3 * SECOND // NS)
    counts = vm.counter.read(), vm.cntvct(0), vm.backlog_ticks
    assert list(driver.steps(vm, None)) == []
    assert (vm.counter.read(), vm.cntvct(0), vm.backlog_ticks) == counts
    # One step that is due, and none after it.
    hand.advance(SECOND // NS)
    assert [step.apply() for step in driver.steps(vm, None)] == [counts[2] * 2 // 3]
    # A step that is due and isn't taken doesn't come for ever.
    hand.advance(SECOND // NS)
    assert len(list(driver.steps(vm, None))) == 1


def test_who_paces_without_a_loop_needs_no_asyncio() -> None:
    code = "import guestclock.pacing, json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "asyncio" not in json.loads(done.stdout)


# expiries: in a loop that knows what it watches.


class Loop(asyncio.SelectorEventLoop):
    """Knows which descriptors it watches, and how often one of them woke it."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: set[int] = set()
        self.wakes = 0
        self.complaints: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, complaint: self.complaints.append(complaint))

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:  # type: ignore[override]
        def woken() -> None:
            self.wakes += 1
            callback(*args)

        super().add_reader(fd, woken)
        self.watched.add(fd)

    def remove_reader(self, fd: Any) -> bool:
        self.watched.discard(fd)
        return super().remove_reader(fd)


class NoReaders(asyncio.SelectorEventLoop):
    """As asyncio's proactor loop is."""

    def add_reader(self, *_: object) -> None:
        raise NotImplementedError


Expired = tuple[NDArray[np.int64], NDArray[np.uint64]]


class Rig:
    """A queue of 8 timers on a counter that is moved by hand, and a loop."""

    def __init__(self) -> None:
        self.counter = ManualCounter(1000)
        self.queue = DeadlineQueue()
        self.queue.add_group(8)
        self.alarm: DeadlineAlarm[Expired] = DeadlineAlarm(self.queue, self.counter)
        self.taken: list[list[int]] = []

    async def consume(self) -> None:
        async for timers, _ in aio.expiries(self.alarm):
            self.taken.append(timers.tolist())

    def run(self, main: Coroutine[Any, Any, None], make: Callable[[], Loop] = Loop) -> Loop:
        with self.alarm, asyncio.Runner(loop_factory=make) as runner:
            runner.run(main)
            loop = runner.get_loop()
            assert isinstance(loop, Loop)
            assert (loop.watched, loop.complaints) == (set(), [])
            return loop


def watching() -> Loop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    return loop


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def test_what_expires_is_given_when_it_does() -> None:
    rig = Rig()

    async def main() -> None:
        rig.queue.arm_many(np.array([0, 1, 2]), np.array([1005, 1003, 1010], np.uint64))
        task = asyncio.create_task(rig.consume())
        await turns()
        assert rig.taken == []
        rig.counter.advance(5)
        await turns()
        assert rig.taken == [[1], [0]]
        # Only a hint.
        rig.counter.advance(1)
        await turns()
        assert rig.taken == [[1], [0]]
        rig.queue.set_offset(0, -4)
        await turns()
        assert rig.taken == [[1], [0], [2]]
        task.cancel()

    rig.run(main())


def test_nothing_wakes_a_loop_whose_counter_stands() -> None:
    rig = Rig()

    async def main() -> None:
        task = asyncio.create_task(rig.consume())
        for step in range(100):
            rig.queue.arm(step % 8, 1001 + step)
            await turns(2)
        task.cancel()

    loop = rig.run(main())
    assert (loop.wakes, rig.taken) == (0, [])


def test_a_cancelled_task_takes_its_reader_along_and_nothing_else() -> None:
    rig = Rig()

    async def main() -> None:
        rig.queue.arm(3, 1001)
        task = asyncio.create_task(rig.consume())
        await turns()
        assert watching().watched == {rig.alarm.fileno()}
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert watching().watched == set()
        rig.counter.advance(1)
        timers, deadlines = await anext(aio.expiries(rig.alarm))
        assert (timers.tolist(), deadlines.tolist()) == ([3], [1001])

    rig.run(main())


@pytest.mark.parametrize("turns_between", range(6))
@pytest.mark.parametrize("again", ["the same", "another"])
def test_whenever_it_is_cancelled_nothing_is_lost(turns_between: int, again: str) -> None:
    """Eight timers expire one by one, and at some turn of the loop after each the task is cancelled."""
    rig = Rig()

    async def consume(expired: AsyncIterator[Expired]) -> None:
        async for timers, _ in expired:
            rig.taken.append(timers.tolist())
            await asyncio.sleep(0)

    async def main() -> None:
        expired = aio.expiries(rig.alarm)
        for timer in range(8):
            rig.queue.arm(timer, 1001 + timer)
            task = asyncio.create_task(consume(expired))
            await turns(2)
            rig.counter.advance(1)
            await turns(turns_between)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if again == "another":
                expired = aio.expiries(rig.alarm)
        task = asyncio.create_task(consume(expired))
        await turns(40)
        task.cancel()

    rig.run(main())
    assert [timer for batch in rig.taken for timer in batch] == list(range(8))


@pytest.mark.parametrize("at_most", [1, 3])
@pytest.mark.parametrize("goes_on", ["the iterator", "another", "expire"])
def test_a_body_that_is_cancelled_loses_nothing(at_most: int, goes_on: str) -> None:
    """Eight timers expire at once, and the body is cancelled while it sees to the first."""
    rig = Rig()
    everything = asyncio.Event()

    async def consume(expired: AsyncIterator[Expired], *, stuck: bool) -> None:
        async for timers, _ in expired:
            rig.taken.append(timers.tolist())
            if sum(map(len, rig.taken)) == 8:
                everything.set()
            if stuck:
                await asyncio.Event().wait()

    async def main() -> None:
        rig.queue.arm_many(np.arange(8), np.arange(1001, 1009, dtype=np.uint64))
        rig.counter.advance(10)
        expired = aio.expiries(rig.alarm, at_most=at_most)
        task = asyncio.create_task(consume(expired, stuck=True))
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert rig.taken == [list(range(at_most))]
        assert select.select([rig.alarm], [], [], 0) == ([rig.alarm], [], [])
        if goes_on == "expire":
            rig.taken.append(rig.alarm.expire()[0].tolist())
            assert len(rig.alarm.expire()[0]) == 0
            return
        task = asyncio.create_task(
            consume(expired if goes_on == "the iterator" else aio.expiries(rig.alarm), stuck=False)
        )
        await everything.wait()
        task.cancel()

    rig.run(main())
    assert [timer for batch in rig.taken for timer in batch] == list(range(8))
    assert sum(rig.alarm.lateness.by_length) == 8


def test_a_timeout_is_no_end() -> None:
    rig = Rig()

    async def main() -> None:
        expired = aio.expiries(rig.alarm)
        for timer in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(expired), 0)
            rig.queue.arm(timer, 1000)
            assert (await anext(expired))[0].tolist() == [timer]

    rig.run(main())


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("timeout", [-1, 0, 1e-9, 5e-4, 100])
def test_what_is_overdue_is_given_at_the_first_look(loop: str, timeout: float) -> None:
    """Whatever the timeout: it ends a wait alone."""
    counter, queue = ManualCounter(1000), DeadlineQueue()
    queue.add_group(8)

    async def main() -> None:
        with DeadlineAlarm(queue, counter) as alarm:
            queue.arm_many(np.arange(8), np.arange(901, 909, dtype=np.uint64))
            expired = aio.expiries(alarm)
            for timer in range(8):
                async with asyncio.timeout(timeout):
                    timers, _ = await anext(expired)
                assert timers.tolist() == [timer]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(min(timeout, 0.01)):
                    await anext(expired)
            # By a time that passes too, and after a wait that a timeout ended.
            queue.arm(3, 999)
            async with asyncio.timeout(timeout):
                assert (await anext(expired))[0].tolist() == [3]

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_guest_that_sets_its_timers_into_the_past_leaves_others_their_turn(loop: str) -> None:
    counter, queue = ManualCounter(1000), DeadlineQueue()
    queue.add_group(1)

    async def main() -> None:
        others = 0

        async def other() -> None:
            nonlocal others
            while True:
                others += 1
                await asyncio.sleep(0)

        with DeadlineAlarm(queue, counter) as alarm:
            task = asyncio.create_task(other())
            queue.arm(0, 900)
            given = 0
            async for _ in aio.expiries(alarm):
                given += 1
                queue.arm(0, 900)
                if others > 3:
                    break
                assert given < 1000, others
            task.cancel()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())


def test_a_loop_isnt_busy_while_what_expired_is_seen_to() -> None:
    rig = Rig()

    async def main() -> None:
        rig.queue.arm(0, 1000)
        async for _ in aio.expiries(rig.alarm):
            rig.queue.arm(1, 1000)
            # The descriptor is readable now, and would wake the loop at each turn.
            before = watching().wakes
            await turns(20)
            assert watching().watched == set()
            assert watching().wakes == before
            break

    rig.run(main())


def test_one_waits_at_a_time() -> None:
    rig = Rig()

    async def main() -> None:
        task = asyncio.create_task(rig.consume())
        await turns()
        for other in (rig.consume(), anext(aio.expiries(rig.alarm))):
            with pytest.raises(AlarmInUse):
                await other
        with pytest.raises(AlarmInUse):
            rig.alarm.expire()
        # The first one hasn't felt it.
        rig.queue.arm(0, 1000)
        await turns()
        assert rig.taken == [[0]]
        task.cancel()
        await asyncio.wait([task])
        assert rig.alarm.expire()[0].tolist() == []

    rig.run(main())


def test_it_ends_when_the_alarm_is_closed() -> None:
    rig = Rig()

    async def main() -> None:
        task = asyncio.create_task(rig.consume())
        await turns()
        fd = rig.alarm.fileno()
        rig.alarm.close()
        os.fstat(fd)
        await task
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        assert [expired async for expired in aio.expiries(rig.alarm)] == []

    rig.run(main())


def test_a_loop_without_readers_is_refused() -> None:
    rig = Rig()

    async def main() -> None:
        with pytest.raises(CapabilityMissing, match=r"NoReaders has no add_reader: run a loop that has one") as caught:
            await rig.consume()
        assert caught.value.capability == "add_reader"
        # And nobody waits on it.
        assert rig.alarm.expire()[0].tolist() == []

    with rig.alarm, asyncio.Runner(loop_factory=NoReaders) as runner:
        runner.run(main())


@pytest.mark.parametrize("make", [HostCounter, MonotonicCounter])
def test_on_a_real_counter_nothing_is_early(make: Callable[[], Counter]) -> None:
    counter = make()
    queue = DeadlineQueue()
    queue.add_group(8)
    hour, ms = 3600 * counter.frequency_hz, counter.frequency_hz // 1000
    seen: list[int] = []

    async def main() -> None:
        with DeadlineAlarm(queue, counter) as alarm:
            # An hour ahead in the guest's time, until the offset moves.
            start = counter.read()
            for timer in range(8):
                queue.arm(timer, start + hour + (8 - timer) * ms)
            asyncio.get_running_loop().call_soon(queue.set_offset, 0, -hour)
            async for timers, deadlines in aio.expiries(alarm):
                assert deadlines.max() <= counter.read()
                seen.extend(timers.tolist())
                if len(seen) == 8:
                    break

    asyncio.run(main())
    assert seen == [7, 6, 5, 4, 3, 2, 1, 0]
