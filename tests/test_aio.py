"""`guestclock.aio.catch_up` and `guestclock.pacing.paced`: each step when it is due, by one rule."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestclock import Advance, CatchUp, Freeze, ManualCounter, Step, Vm, aio, plan, restore
from guestclock.errors import RestoreOpen, VcpuRunning
from guestclock.pacing import paced
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

    def steps(self, vm: Vm, sleeper: Sleeper) -> Iterator[Step]:
        if self.kind == "paced":
            yield from paced(vm.catch_up(), sleep=sleeper)
            return
        with asyncio.Runner() as runner:
            steps = aio.catch_up(vm, sleep=sleeper.in_a_loop)
            while (step := runner.run(after(steps))) is not None:
                yield step
            runner.run(steps.aclose())


async def after(steps: AsyncIterator[Step]) -> Step | None:
    return await anext(steps, None)


@pytest.fixture(params=["paced", "asyncio"])
def driver(request: pytest.FixtureRequest) -> Driver:
    return Driver(request.param)


def owing(pause_ns: int, policy: CatchUp) -> tuple[ManualCounter, Vm]:
    counter = host()
    checkpoint = owned(counter).checkpoint()
    counter.advance(pause_ns // NS)
    vm = Vm(2, counter=counter)
    restore(checkpoint, vm, policy=policy)
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
    assert vm.owed_ticks == 0
    assert list(driver.steps(vm, sleeper)) == []


@given(
    pause_ns=st.integers(0, 20 * SECOND),
    interval_ns=st.integers(1, 3 * SECOND),
    off_by_ns=st.lists(st.integers(-SECOND, 5 * SECOND), max_size=20),
)
def test_never_early_never_busy(pause_ns: int, interval_ns: int, off_by_ns: list[int]) -> None:
    for kind in ("paced", "asyncio"):
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
        assert vm.owed_ticks == 0
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
    pause = vm.paused()
    for step in driver.steps(vm, sleeper):
        tried.append(counter.read())
        if len(tried) == 1:
            with vm.running(0), pytest.raises(VcpuRunning):
                step.apply()
            pause.__enter__()
        elif len(tried) == 2:
            with pytest.raises(RestoreOpen):
                step.apply()
            # The interval begins anew where the guest goes on.
            pause.__exit__(None, None, None)
        else:
            step.apply()
    assert sleeper.slept == [SECOND, 10 * MS, SECOND, SECOND]
    assert (len(tried), vm.owed_ticks) == (4, 0)


def test_a_step_that_is_passed_over_keeps_its_debt(driver: Driver) -> None:
    counter, vm = owing(SECOND, CatchUp(SECOND, SECOND))
    sleeper = Sleeper(counter)
    steps = driver.steps(vm, sleeper)
    seen = [(step.due_at, step.ticks, step.owed_ticks) for step, _ in zip(steps, range(3), strict=False)]
    assert len(set(seen)) == 1
    assert set(sleeper.slept[1:]) == {10 * MS}
    assert vm.owed_ticks == SECOND // NS


def test_a_restore_in_between_changes_what_is_waited_for(driver: Driver) -> None:
    counter, vm = owing(SECOND, CatchUp(SECOND, SECOND))
    sleeper = Sleeper(counter)
    steps = driver.steps(vm, sleeper)
    first = next(steps)
    with vm.paused(CatchUp(2 * SECOND, 3 * SECOND)):
        counter.advance(SECOND // NS)
    resumed = counter.read()
    second = next(steps)
    assert second.owed_ticks == 2 * first.owed_ticks
    assert (counter.read() - resumed) * NS >= 3 * SECOND
    with vm.paused(Advance()):
        pass
    # That paid all of it at once.
    assert list(steps) == []


def test_a_cancelled_task_leaves_the_debt() -> None:
    counter, vm = owing(2 * SECOND, CatchUp(SECOND, SECOND))

    async def sleep(_seconds: float) -> None:
        if vm.owed_ticks == SECOND // NS:
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
    assert vm.owed_ticks == SECOND // NS
    # And somebody else goes on with it.
    assert [step.apply() for step in paced(vm.catch_up(), sleep=Sleeper(counter))] == [0]


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
    assert vm.owed_ticks == 0


def test_a_guest_that_is_owed_nothing_costs_no_sleep(driver: Driver) -> None:
    counter = host()
    vm = owned(counter)
    sleeper = Sleeper(counter)
    assert list(driver.steps(vm, sleeper)) == []
    plan(vm.checkpoint(), vm, policy=Freeze()).prepare()
    assert list(driver.steps(vm, sleeper)) == []
    assert sleeper.slept == []


def test_they_sleep_for_real_by_default() -> None:
    import time

    assert inspect.signature(paced).parameters["sleep"].default is time.sleep
    assert inspect.signature(aio.catch_up).parameters["sleep"].default is asyncio.sleep


def test_who_paces_without_a_loop_needs_no_asyncio() -> None:
    code = "import guestclock.pacing, json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "asyncio" not in json.loads(done.stdout)
