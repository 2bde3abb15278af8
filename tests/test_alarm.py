"""`DeadlineAlarm`: the descriptor as a hint, `expire` as the authority.

A counter that is moved by hand makes every wake exact. Of real counters only what always holds is asked.
"""

from __future__ import annotations

import gc
import os
import select
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from guestclock import Advance, Fleet, HostCounter, ManualCounter, ModelVm, MonotonicCounter, Reg, Timer
from guestclock.errors import AlarmInUse
from guestclock.model import ClockBank, DeadlineAlarm, DeadlineQueue, ScaledCounter
from guestclock.testing import Fault, FaultyVm
from guestclock.types import Counter, Lateness

SECOND = 10**9
NO_DEADLINE = 2**64 - 1

Expired = tuple[NDArray[np.int64], NDArray[np.uint64]]

REAL: dict[str, Callable[[], Counter]] = {
    "host": HostCounter,
    "raw": lambda: HostCounter(source="clock_monotonic_raw"),
    "monotonic": MonotonicCounter,
    "scaled": lambda: ScaledCounter(HostCounter(), frequency_hz=24_000_000),
    "slow": lambda: ScaledCounter(MonotonicCounter(), frequency_hz=1000),
}


@pytest.fixture(params=sorted(REAL))
def real(request: pytest.FixtureRequest) -> Counter:
    return REAL[request.param]()


@pytest.fixture
def counter() -> ManualCounter:
    return ManualCounter(1000)


@pytest.fixture
def queue() -> DeadlineQueue:
    """A VM whose guest reads what the host does, with 8 timers."""
    queue = DeadlineQueue()
    assert (queue.add_group(8), queue.timers(0)) == (0, range(8))
    return queue


@pytest.fixture
def alarm(queue: DeadlineQueue, counter: ManualCounter) -> Iterator[DeadlineAlarm[Expired]]:
    with DeadlineAlarm(queue, counter) as alarm:
        yield alarm


class Source:
    """What anybody can write in Python: one deadline, which it may keep to itself."""

    def __init__(self, deadline: int = NO_DEADLINE, *, withhold: bool = False) -> None:
        self.deadline = deadline
        self.withhold = withhold
        self.asked: list[int] = []

    def next_deadline(self, now: int) -> int:
        return max(self.deadline, now)

    def expire(self, now: int) -> tuple[NDArray[np.uint64]]:
        self.asked.append(now)
        if self.deadline > now or self.withhold:
            return (np.empty(0, np.uint64),)
        passed, self.deadline = self.deadline, NO_DEADLINE
        return (np.array([passed], np.uint64),)


def readable(alarm: DeadlineAlarm[tuple[object, ...]]) -> bool:
    return bool(select.select([alarm], [], [], 0)[0])


def wait(alarm: DeadlineAlarm[tuple[object, ...]]) -> None:
    assert select.select([alarm], [], []) == ([alarm], [], [])


def taken(alarm: DeadlineAlarm[Expired]) -> list[tuple[int, int]]:
    timers, deadlines = alarm.expire()
    return list(zip(deadlines.tolist(), timers.tolist(), strict=True))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def wakes_in_ns(alarm: DeadlineAlarm[tuple[object, ...]]) -> int:
    return alarm.wakes_in_ns or 0


def ticks(counter: Counter, ns: int) -> int:
    return counter.frequency_hz * ns // SECOND


def test_a_counter_that_never_moves_wakes_nobody(queue: DeadlineQueue, alarm: DeadlineAlarm[Expired]) -> None:
    for step in range(1, 100):
        queue.arm(step % 8, 1001 + step)
        queue.set_offset(0, -(step % 2))
        queue.disarm(step % 5)
        assert not readable(alarm)
    assert alarm.wakes_in_ns is None


def test_moving_the_counter_wakes(queue: DeadlineQueue, counter: ManualCounter, alarm: DeadlineAlarm[Expired]) -> None:
    queue.arm_many(np.array([0, 1, 2]), np.array([1010, 1005, 1020], np.uint64))
    counter.advance(9)
    assert readable(alarm)
    assert taken(alarm) == [(1005, 1)]
    assert not readable(alarm)
    counter.advance(11)
    counter.advance(10)
    assert readable(alarm)
    assert taken(alarm) == [(1010, 0), (1020, 2)]
    assert not readable(alarm)
    # Only a hint.
    counter.advance(1)
    assert readable(alarm)
    assert taken(alarm) == []
    assert not readable(alarm)


def test_a_rewound_counter_wakes(queue: DeadlineQueue, counter: ManualCounter, alarm: DeadlineAlarm[Expired]) -> None:
    queue.set_offset(0, 995)
    queue.arm(3, 10)
    assert not readable(alarm)
    # Before the guest's counter was 0 it reads nearly 2^64, which is past every compare value.
    counter.rewind(6)
    assert readable(alarm)
    assert [timer for _, timer in taken(alarm)] == [3]


def test_a_fault_that_takes_time_wakes(counter: ManualCounter, alarm: DeadlineAlarm[Expired]) -> None:
    vm = FaultyVm(ModelVm(counter=counter), [Fault("set_counter_offset", delay_ticks=5)])
    assert not readable(alarm)
    vm.set_counter_offset(0)
    assert counter.read() == 1005
    assert readable(alarm)


@pytest.mark.parametrize("change", ["arm", "arm_many", "set_offset", "set_offsets"])
def test_what_is_due_by_a_change_wakes(queue: DeadlineQueue, alarm: DeadlineAlarm[Expired], change: str) -> None:
    if change.startswith("arm"):
        changes = {
            "arm": lambda: queue.arm(2, 1000),
            "arm_many": lambda: queue.arm_many(np.array([2]), np.array([1000], np.uint64)),
        }
    else:
        queue.arm(2, 1100)
        changes = {
            "set_offset": lambda: queue.set_offset(0, -100),
            "set_offsets": lambda: queue.set_offsets(np.array([0]), np.array([2**64 - 100], np.uint64)),
        }
    assert not readable(alarm)
    changes[change]()
    assert readable(alarm)
    assert taken(alarm) == [(1000, 2)]


def test_what_is_due_beforehand_wakes(queue: DeadlineQueue, counter: ManualCounter) -> None:
    queue.arm(5, 999)
    with DeadlineAlarm(queue, counter) as alarm:
        assert readable(alarm)
    # Nobody has taken it, so it is still there.
    with DeadlineAlarm(queue, counter) as alarm:
        assert readable(alarm)
        assert taken(alarm) == [(999, 5)]


def test_a_bank_tells_its_alarms(counter: ManualCounter) -> None:
    """By whatever moves a deadline: the bank, a VM of it, or a restore."""
    bank = ClockBank(counter)
    handle = bank.add(2)
    vm, alarm = bank.vm(handle), DeadlineAlarm(bank)
    assert alarm.counter is counter

    def start(vm: ModelVm, *, after: int) -> None:
        vm.set_one_reg(0, Reg.TIMER_CVAL, vm.cntvct(0) + after)
        vm.set_one_reg(0, Reg.TIMER_CTL, 1)

    def set_timers() -> int:
        cval, ctl = np.array([vm.cntvct(1)], np.uint64), np.array([1], np.uint8)
        bank.set_timers(Timer.VTIMER, np.array([handle + 1]), cval, ctl)
        return handle + 1

    def set_registers() -> int:
        start(vm, after=0)
        return handle

    def set_offset() -> int:
        start(vm, after=500)
        assert not readable(alarm)
        vm.set_counter_offset(counter.read() - vm.cntvct(0) - 500)
        return handle

    def restored() -> int:
        source, target = ModelVm(counter=counter), bank.add()
        start(source, after=0)
        bank.vm(target).restore(source.checkpoint())
        return target

    def restored_together() -> int:
        source = ClockBank(counter)
        start(source.vm(source.add()), after=0)
        target = bank.add()
        names = ["one" if vm == target else str(vm) for vm in bank.vms()]
        Fleet(bank, names=names).restore(Fleet(source, names=["one"]).checkpoint(), only=["one"])
        return target

    def paused_together() -> int:
        """Its timer is due in the pause, which its guest sees the whole of."""
        one = bank.add()
        start(bank.vm(one), after=500)
        pause = Fleet(bank).pause(Advance(), only=[str(one)])
        assert not readable(alarm)
        # A counter that is moved by hand wakes its alarms, which find nothing.
        counter.advance(500)
        assert len(alarm.expire().vcpus) == 0
        assert not readable(alarm)
        pause.resume()
        return one

    with alarm:
        for change in (set_timers, set_registers, set_offset, restored, restored_together, paused_together):
            assert not readable(alarm)
            vcpu = change()
            assert readable(alarm)
            assert vcpu in alarm.expire().vcpus.tolist()
            assert not readable(alarm)
        # What is high stays high, and wakes nobody.
        assert bank.evaluate().line.any()
        assert not readable(alarm)
        counter.advance(1)
        assert alarm.expire().vcpus.tolist() == []
        assert not readable(alarm)


def test_a_counter_made_from_one_that_is_moved_by_hand(queue: DeadlineQueue) -> None:
    inner = ManualCounter(0, frequency_hz=1000)
    scaled = ScaledCounter(ScaledCounter(inner, frequency_hz=10), frequency_hz=100)
    queue.arm(0, 30)
    with DeadlineAlarm(queue, scaled) as alarm:
        assert not readable(alarm)
        inner.advance(299)
        assert readable(alarm)
        assert taken(alarm) == []
        inner.advance(1)
        assert readable(alarm)
        assert taken(alarm) == [(30, 0)]


@pytest.mark.parametrize("left_ns", [5 * SECOND, SECOND, SECOND // 4, 2**62])
def test_time_wakes_within_a_second(queue: DeadlineQueue, real: Counter, left_ns: int) -> None:
    with DeadlineAlarm(queue, real) as alarm:
        assert alarm.wakes_in_ns is None
        queue.arm(0, real.read() + ticks(real, left_ns))
        # Less with every moment, and then none.
        assert 0 <= wakes_in_ns(alarm) <= min(SECOND, left_ns)


def test_what_was_disarmed_wakes_once_and_no_more(queue: DeadlineQueue, real: Counter) -> None:
    with DeadlineAlarm(queue, real) as alarm:
        queue.arm(0, real.read() + ticks(real, 10**6))
        queue.disarm(0)
        wait(alarm)
        assert taken(alarm) == []
        assert (alarm.wakes_in_ns, readable(alarm)) == (None, False)


def test_it_is_set_for_the_earliest(queue: DeadlineQueue) -> None:
    counter = MonotonicCounter(frequency_hz=SECOND)
    with DeadlineAlarm(queue, counter) as alarm:
        queue.set_offset(0, 500 * 10**6)
        queue.arm(0, counter.read())
        # Half a second ahead in the guest's time, until the offset moves.
        assert wakes_in_ns(alarm) <= 500 * 10**6
        queue.set_offset(0, 0)
        wait(alarm)
        assert len(taken(alarm)) == 1


def test_no_real_counter_is_early(queue: DeadlineQueue, real: Counter) -> None:
    with DeadlineAlarm(queue, real) as alarm:
        start = real.read()
        deadlines = [start + ticks(real, ns) for ns in (10**6, 2 * 10**6, 2 * 10**6 + 500, 9 * 10**6, 0, 3 * 10**6)]
        for timer, deadline in enumerate(deadlines):
            queue.arm(timer, deadline)
        expired: list[tuple[int, int]] = []
        while len(expired) < len(deadlines):
            wait(alarm)
            batch = taken(alarm)
            assert all(deadline <= real.read() for deadline, _ in batch)
            expired += batch
        assert expired == sorted((deadline, timer) for timer, deadline in enumerate(deadlines))
        assert alarm.lateness.expired == len(deadlines)


def test_a_deadline_further_ahead_than_a_timer_is_set(queue: DeadlineQueue) -> None:
    """CLOCK_MONOTONIC_RAW isn't slewed and the timer is, so the last wake may be early, too."""
    counter = HostCounter()
    with DeadlineAlarm(queue, counter) as alarm:
        queue.arm(0, deadline := counter.read() + ticks(counter, SECOND + SECOND // 20))
        while not (expired := taken(alarm)):
            assert wakes_in_ns(alarm) <= SECOND
            wait(alarm)
        assert counter.read() >= deadline
        assert expired == [(deadline, 0)]


def test_another_threads_change_wakes_who_is_blocked(real: Counter) -> None:
    """2 000 timers of two threads, most of them due at once: a wake that is lost leaves this waiting."""
    queue = DeadlineQueue()
    groups = [queue.add_group(1000), queue.add_group(1000)]

    def arm(group: int) -> None:
        for timer in queue.timers(group):
            queue.arm(timer, real.read() + timer % 3 * ticks(real, 10_000))

    with DeadlineAlarm(queue, real) as alarm, select.epoll() as epoll:
        epoll.register(alarm, select.EPOLLIN)
        threads = [threading.Thread(target=arm, args=[group]) for group in groups]
        for thread in threads:
            thread.start()
        seen: set[int] = set()
        while len(seen) < 2000:
            assert epoll.poll() == [(alarm.fileno(), select.EPOLLIN)]
            for _, timer in taken(alarm):
                assert timer not in seen
                seen.add(timer)
        for thread in threads:
            thread.join()
    assert alarm.lateness.expired == 2000


def test_another_threads_advance_wakes_who_is_blocked(queue: DeadlineQueue, counter: ManualCounter) -> None:
    answered = threading.Semaphore(0)

    def move() -> None:
        for _ in range(500):
            counter.advance(1)
            answered.acquire()

    with DeadlineAlarm(queue, counter) as alarm:
        queue.arm(0, 1001)
        thread = threading.Thread(target=move)
        thread.start()
        for now in range(1001, 1501):
            wait(alarm)
            assert taken(alarm) == [(now, 0)]
            queue.arm(0, now + 1)
            answered.release()
        thread.join()


def test_all_alarms_of_a_queue_and_a_counter_are_told(queue: DeadlineQueue, counter: ManualCounter) -> None:
    other = ManualCounter(500)
    with (
        DeadlineAlarm(queue, counter) as one,
        DeadlineAlarm(queue, counter) as two,
        DeadlineAlarm(queue, other) as three,
    ):
        queue.arm(0, 1000)
        assert [readable(alarm) for alarm in (one, two, three)] == [True, True, False]
        assert taken(one) == [(1000, 0)]
        assert taken(two) == []
        counter.advance(1)
        assert [readable(alarm) for alarm in (one, two, three)] == [True, True, False]


def test_the_descriptor_is_the_contexts(queue: DeadlineQueue, counter: ManualCounter) -> None:
    queue.arm(0, 1001)
    with DeadlineAlarm(queue, counter) as alarm:
        fd = alarm.fileno()
        assert f"fd {fd}" in repr(alarm)
    assert alarm.closed
    assert repr(alarm) == f"<DeadlineAlarm of {queue!r} on {counter!r}, closed>"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    alarm.close()
    # The others go on without it, and its timer is still there.
    counter.advance(5)
    queue.arm(1, 1)
    for use in (alarm.fileno, alarm.expire, alarm.rearm, alarm.__enter__, lambda: alarm.wakes_in_ns):
        with pytest.raises(ValueError, match="this alarm is closed: make another one"):
            use()
    assert alarm.lateness.expired == 0
    assert len(queue) == 2
    left = DeadlineAlarm(queue, counter)
    with pytest.raises(ZeroDivisionError), left:
        raise ZeroDivisionError
    assert left.closed


def test_one_that_is_dropped_is_closed(queue: DeadlineQueue, counter: ManualCounter) -> None:
    alarm = DeadlineAlarm(queue, counter)
    fd = alarm.fileno()
    del alarm
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    queue.arm(0, 0)
    counter.advance(1)


def test_a_source_that_holds_its_alarm_is_collected(counter: ManualCounter) -> None:
    class Holder(Source):
        alarm: DeadlineAlarm[tuple[NDArray[np.uint64]]]

    source = Holder()
    source.alarm = DeadlineAlarm(source, counter)
    gone = weakref.ref(source)
    del source
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("make", [ManualCounter, HostCounter])
def test_the_descriptor_isnt_inherited_and_doesnt_block(queue: DeadlineQueue, make: type[HostCounter]) -> None:
    with DeadlineAlarm(queue, make()) as alarm:
        fd = alarm.fileno()
        assert not os.get_inheritable(fd)
        assert not os.get_blocking(fd)
        code = "import os, sys\ntry: os.fstat(int(sys.argv[1]))\nexcept OSError: print('closed')"
        done = subprocess.run(
            [sys.executable, "-c", code, str(fd)],
            close_fds=False,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout == "closed\n"
        with pytest.raises(BlockingIOError):
            os.read(fd, 8)


def test_there_is_one_consumer(counter: ManualCounter) -> None:
    class Curious(Source):
        alarm: DeadlineAlarm[tuple[NDArray[np.uint64]]]

        def expire(self, now: int) -> tuple[NDArray[np.uint64]]:
            with pytest.raises(AlarmInUse, match="expiries go to one"):
                self.alarm.expire()
            return super().expire(now)

    source = Curious(1000)
    with DeadlineAlarm(source, counter) as source.alarm:
        for expected in ([1000], []):
            assert source.alarm.expire()[0].tolist() == expected


def test_any_source_will_do(counter: ManualCounter) -> None:
    source = Source(1005)
    with DeadlineAlarm(source, counter) as alarm:
        assert alarm.source is source
        assert alarm.counter is counter
        assert not readable(alarm)
        source.deadline = 1000
        assert not readable(alarm)
        alarm.rearm()
        assert readable(alarm)
        assert alarm.expire()[0].tolist() == [1000]
        assert not readable(alarm)
        assert source.asked == [1000]


def test_a_deadline_that_is_kept_back_makes_no_busy_loop(counter: ManualCounter) -> None:
    with DeadlineAlarm(Source(999, withhold=True), counter) as alarm:
        assert readable(alarm)
        assert alarm.expire()[0].tolist() == []
        assert not readable(alarm)
        counter.advance(1)
        assert readable(alarm)
    with DeadlineAlarm(Source(0, withhold=True), HostCounter()) as alarm:
        # On a machine that stands still for a while the rest of the second may be short; this ends when it isn't.
        while wakes_in_ns(alarm) < SECOND // 2:
            wait(alarm)
            alarm.expire()


@pytest.mark.parametrize("failing", ["next_deadline", "expire"])
def test_a_source_that_fails_is_asked_again(failing: str) -> None:
    class Failing(Source):
        broken = False

        def next_deadline(self, now: int) -> int:
            if self.broken and failing == "next_deadline":
                raise ZeroDivisionError
            return super().next_deadline(now)

        def expire(self, now: int) -> tuple[NDArray[np.uint64]]:
            if self.broken and failing == "expire":
                raise ZeroDivisionError
            return super().expire(now)

    source = Failing(0)
    with DeadlineAlarm(source, HostCounter()) as alarm:
        source.broken = True
        wait(alarm)
        with pytest.raises(ZeroDivisionError):
            alarm.expire()
        source.broken = False
        # Within a second.
        wait(alarm)
        alarm.expire()


@pytest.mark.parametrize(
    "answer",
    [
        None,
        (),
        [np.empty(0, np.uint64)],
        ([5],),
        (np.empty(0, np.int64),),
        (np.empty((1, 1), np.uint64),),
        (np.empty(4, np.uint64)[::2],),
        (np.frombuffer(bytes(17), np.uint8)[1:].view(np.uint64),),
    ],
)
def test_deadlines_are_a_column(counter: ManualCounter, answer: object) -> None:
    class Odd(Source):
        def expire(self, now: int) -> tuple[NDArray[np.uint64]]:
            super().expire(now)
            return answer  # type: ignore[return-value]

    with DeadlineAlarm(Odd(), counter) as alarm, pytest.raises(TypeError, match="uint64: the deadlines"):
        alarm.expire()


def test_it_takes_a_source_and_a_counter(queue: DeadlineQueue, counter: ManualCounter) -> None:
    before = open_files()
    with pytest.raises(TypeError):
        DeadlineAlarm(queue, 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="has no next_deadline"):
        DeadlineAlarm(counter, counter)  # type: ignore[arg-type]
    assert open_files() == before


def test_lateness_is_counted(queue: DeadlineQueue, counter: ManualCounter, alarm: DeadlineAlarm[Expired]) -> None:
    assert str(alarm.lateness) == "nothing has expired"
    assert alarm.lateness == Lateness(62_500_000, 0, 0, ())
    for late in (0, 1, 5, 6):
        queue.arm(0, counter.read() - late)
        alarm.expire()
    lateness = alarm.lateness
    assert lateness == Lateness(frequency_hz=62_500_000, total_ticks=12, max_ticks=6, by_length=(1, 1, 0, 2))
    assert (lateness.expired, lateness.max_ns, lateness.mean_ns) == (4, 96, 48)
    assert [lateness.within_ns(percent) for percent in (0, 25, 26, 50, 51, 100)] == [0, 0, 16, 16, 96, 96]
    assert str(lateness) == (
        "4 expired, late by 48 ns on average, half by 16 ns at most, 99 % by 96 ns, the latest by 96 ns"
    )
    for percent in (-1, 101):
        with pytest.raises(ValueError, match="percent is from 0 to 100"):
            lateness.within_ns(percent)


@given(late=st.lists(st.integers(0, 2**40), min_size=1, max_size=50), percent=st.integers(0, 100))
def test_lateness_bounds_what_it_says(late: list[int], percent: int) -> None:
    counter, timer = ManualCounter(2**41, frequency_hz=SECOND), count()
    queue = DeadlineQueue()
    queue.add_group(len(late))
    with DeadlineAlarm(queue, counter) as alarm:
        for ticks_ in late:
            queue.arm(next(timer), counter.read() - ticks_)
        alarm.expire()
        lateness = alarm.lateness
    assert (lateness.expired, lateness.max_ns) == (len(late), max(late))
    assert lateness.mean_ns == -(-sum(late) // len(late))
    needed = -(-len(late) * percent // 100)
    exact = sorted(late)[max(needed, 1) - 1] if needed else 0
    assert exact <= lateness.within_ns(percent) <= 2 * exact


def test_no_descriptor_left_loses_nothing() -> None:
    """numpy is imported when a queue is made: not as its first result is handed over, where that can fail."""
    script = """
import resource
import sys
from guestclock import ManualCounter, ModelVm
from guestclock.model import ClockBank, DeadlineAlarm, DeadlineQueue

def without_descriptors(call):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        return call()
    except OSError as error:
        return error.strerror
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

checkpoint = ModelVm(counter=ManualCounter(10)).checkpoint()
assert "numpy" not in sys.modules
for call in (DeadlineQueue, ClockBank, checkpoint.columns, checkpoint.vcpu_columns, lambda: checkpoint.cval(0)):
    assert without_descriptors(call) == "Too many open files", call
queue = DeadlineQueue()
assert "numpy" in sys.modules
queue.add_group(1)
queue.arm(0, 7)
alarm = DeadlineAlarm(queue, ManualCounter(10))
timers, _ = without_descriptors(alarm.expire)
assert timers.tolist() == [0]
"""
    subprocess.run([sys.executable, "-c", script], check=True)
