"""Where the process is at its limits, forks or ends: nothing is lost, nothing is locked, and the exit is clean."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from guestclock import ManualCounter, ModelVm
from guestclock.errors import Misuse
from guestclock.fleet.verbs import Fleet
from guestclock.model import ClockBank, DeadlineAlarm, DeadlineQueue


def python(script: str, *arguments: str, timeout: int = 100) -> str:
    """What a script prints, in a process of its own, which ends well and says nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        # Memory that is freed goes back to the system, so that a limit is one.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


# Memory: a count that the caller gives is reserved first.

LIMITED = """
import resource
from guestclock import ManualCounter
from guestclock.model import ClockBank, DeadlineQueue

def limited(call, megabytes):
    pages = int(open("/proc/self/statm").read().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (megabytes << 20), before[1]))
    try:
        return call()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
"""


@pytest.mark.parametrize("timers", [2**24, 2**30, 2**31])
def test_a_group_without_memory_is_refused(timers: int) -> None:
    python(
        LIMITED
        + textwrap.dedent(f"""
        queue = DeadlineQueue()
        kept = queue.add_group(3)
        queue.arm(1, 50)
        for megabytes in (1, 16, 64):
            try:
                limited(lambda: queue.add_group({timers}), megabytes)
            except MemoryError as error:
                assert "no memory for {timers} more timers" in str(error), error
            else:
                raise SystemExit("they fit")
        assert queue.timers(kept) == range(3) and len(queue) == 1
        assert queue.expire(60)[0].tolist() == [1]
        assert queue.add_group(9) >= 0
        """)
    )


@pytest.mark.parametrize(("vms", "vcpus"), [(2**18, 1), (2**22 - 8, 1), (2**19 - 8, 512), (2**16, 64)])
@pytest.mark.parametrize("queued", [False, True])
def test_vms_without_memory_are_refused(vms: int, vcpus: int, queued: bool) -> None:
    python(
        LIMITED
        + textwrap.dedent(f"""
        bank = ClockBank(ManualCounter(1))
        kept = bank.add(2)
        if {queued}:
            bank.next_deadline()
        for megabytes in (1, 8):
            try:
                limited(lambda: bank.add_many({vms}, {vcpus}), megabytes)
            except MemoryError as error:
                assert "no memory for {vms} VMs of {vcpus} vCPUs each" in str(error), error
            else:
                raise SystemExit("they fit")
        assert bank.vms().tolist() == [kept] and len(bank.vcpus()) == 2
        assert len(bank.add_many(3, 2)) == 3 and len(bank) == 4
        """)
    )


# Each timer once, in the order of the deadlines, whatever was refused meanwhile.
TAKEN = """
import numpy as np
from guestclock.model import DeadlineAlarm

def taken_whole(call, due, pending):
    refused, given = 0, []
    for megabytes in range(64):
        before = pending()
        try:
            expired = limited(call, megabytes)
        except MemoryError as error:
            assert len(str(error)) > 10, error
            assert pending() == before
            refused += 1
            continue
        assert {len(column) for column in expired} == {before - pending()}
        assert (np.diff(expired[-1].astype(np.int64)) >= 0).all()
        given.append(expired)
        if not pending():
            assert refused > 0, "it always fits"
            columns = [np.concatenate(columns) for columns in zip(*given)]
            assert {len(column) for column in columns} == {due}
            return columns
    raise SystemExit("it never fits")
"""


@pytest.mark.parametrize("groups", ["[200_000]", "[8] * 25_000", "[100_000, 50_000, *[16] * 3125]"])
@pytest.mark.parametrize("by_alarm", [False, True])
def test_timers_without_memory_stay_armed(groups: str, by_alarm: bool) -> None:
    python(
        LIMITED
        + TAKEN
        + textwrap.dedent(f"""
        queue = DeadlineQueue()
        for timers in {groups}:
            ids = queue.timers(queue.add_group(timers))
            queue.arm_many(np.arange(ids.start, ids.stop), np.arange(ids.start + 1, ids.stop + 1, dtype=np.uint64))
        counter = ManualCounter(10**9)
        alarm = DeadlineAlarm(queue, counter)
        call = alarm.expire if {by_alarm} else lambda: queue.expire(10**9)
        timers, deadlines = taken_whole(call, sum({groups}), lambda: len(queue))
        assert (np.unique(timers) + 1 == np.sort(deadlines)).all() and len(np.unique(timers)) == len(deadlines)
        """)
    )


@pytest.mark.parametrize("frequencies", [[10**9], [10**9, 10**8]])
def test_a_banks_timers_without_memory_stay_armed(frequencies: list[int]) -> None:
    python(
        LIMITED
        + TAKEN
        + textwrap.dedent(f"""
        bank = ClockBank(ManualCounter(10**9))
        vms = [bank.add_many(60_000 // {len(frequencies)}, 2, frequency_hz=hz) for hz in {frequencies}]
        vcpus = bank.vcpus()
        cvals, ctls = np.arange(120_000, dtype=np.uint64) + 1, np.ones(120_000, np.uint8)
        bank.set_timers(0, vcpus, cvals, ctls)
        now = 2 * 10**9
        bank.next_deadline(now)
        left = [120_000]
        def expire():
            expired = bank.expire(now)
            left[0] -= len(expired.vcpus)
            return expired
        def pending():
            assert (bank.next_deadline(now) <= now) == (left[0] > 0)
            return left[0]
        taken, timers, deadlines = taken_whole(expire, 120_000, pending)
        assert sorted(taken) == sorted(vcpus)
        try:
            limited(lambda: [bank.cntvct(now) for _ in range(40)], 4)
        except MemoryError as error:
            assert "allocate" in str(error), error
        else:
            raise SystemExit("they fit")
        """)
    )


# Frequencies, which come from a file, are given back with the last VM that has them.


def test_frequencies_are_given_back() -> None:
    bank = ClockBank(ManualCounter(1, frequency_hz=10**9))
    kept = bank.add(1, frequency_hz=10**6)
    size = 0
    for hz in range(1000, 71_000):
        vm = bank.add(1, frequency_hz=hz)
        if hz == 1100:
            size = bank.nbytes
        bank.remove(vm)
    assert bank.nbytes <= size
    assert bank.vms().tolist() == [kept]
    assert bank.cntvct(10**9 + 1).tolist() == [10**6]


def test_a_frequencys_rows_are_its_own_after_another_had_them() -> None:
    bank = ClockBank(ManualCounter(0, frequency_hz=1000))
    bank.add(1)
    old = bank.add_many(3, 2, frequency_hz=500)
    bank.set_timers(0, old, np.array([1, 2, 3], np.uint64), np.array([1, 1, 1], np.uint8))
    assert len(bank.expire(10).vcpus) == 3
    bank.remove(old)
    new = bank.add(2, frequency_hz=2000, now=0)
    assert bank.cntvct(10).tolist() == [10, 20, 20]
    assert bank.next_deadline(10) == 2**64 - 1
    bank.set_timers(0, np.array([new + 1]), np.array([30], np.uint64), np.array([1], np.uint8))
    assert bank.expire(15).vcpus.tolist() == [new + 1]


# A pause has one `with` block.


def test_a_pause_is_entered_once() -> None:
    counter = ManualCounter(1000)
    bank = ClockBank(counter)
    bank.add_many(2)
    for pause in (Fleet(bank).pause(), ModelVm(1, counter=counter).pause()):
        with pause:
            with pytest.raises(Misuse, match="a `with` block already"), pause:
                pass
            counter.advance(5)
        assert pause.report is not None
        with pytest.raises(Misuse, match="the pause is over"), pause:
            pass


# A process's ends.

BUSY = """
import threading, time
import numpy as np
from guestclock import Checkpoint, ManualCounter, ModelVm
from guestclock.model import ClockBank, DeadlineQueue

bank = ClockBank()
bank.add_many(9000, 1)
queue = DeadlineQueue()
queue.add_group(20000)
ids, cvals = np.arange(20000), np.full(20000, 2**63, np.uint64)
checkpoint = Checkpoint.join([ModelVm(1, counter=ManualCounter(1), name=str(n)).checkpoint() for n in range(1)])
started = threading.Barrier(7)

def busy(call):
    started.wait()
    while True:
        call()

for call in (bank.evaluate, bank.cntvct, lambda: queue.arm_many(ids, cvals), lambda: queue.expire(5),
             lambda: checkpoint.save(path), lambda: Checkpoint.load(path)):
    threading.Thread(target=busy, args=(call,), daemon=True).start()
import sys
path = sys.argv[1]
checkpoint.save(path)
started.wait()
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("number", range(6))
def test_an_exit_with_busy_daemon_threads_is_clean(tmp_path: Path, number: int) -> None:
    python(BUSY, str(tmp_path / "guest.time"), str(0.01 * number))


FORKING = """
import os, sys, threading
import numpy as np
from guestclock import Checkpoint, ManualCounter, ModelVm
from guestclock.model import ClockBank, DeadlineQueue

bank = ClockBank(ManualCounter(10))
handles = bank.add_many(9000, 1)
queue = DeadlineQueue()
queue.add_group(20000)
ids, cvals = np.arange(20000), np.full(20000, 2**63, np.uint64)
over = threading.Event()

def busy(call):
    while not over.is_set():
        call()

offsets = np.zeros(9000, np.uint64)
threads = [threading.Thread(target=busy, args=(call,)) for call in (
    bank.evaluate, lambda: bank.set_offsets(handles, offsets), lambda: queue.arm_many(ids, cvals),
    lambda: queue.expire(5))]
for thread in threads:
    thread.start()
for number in range(int(sys.argv[1])):
    child = os.fork()
    if child == 0:
        # Each object is there, whole, and not locked.
        ok = len(bank.cntvct()) == 9000 and bank.next_deadline() > 0 and queue.next_deadline(0) > 0
        queue.arm_many(ids, cvals)
        bank.remove(handles)
        os._exit(0 if ok else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0, (number, status)
over.set()
for thread in threads:
    thread.join()
print("done")
"""


def test_a_fork_finds_nothing_locked() -> None:
    assert python(FORKING, "40") == "done\n"


@pytest.mark.parametrize("over", ["a counter moved by hand", "time"])
def test_a_child_leaves_the_parents_wake(over: str) -> None:
    python(
        """
        import os, select, sys
        from guestclock import HostCounter, ManualCounter
        from guestclock.model import DeadlineAlarm, DeadlineQueue

        counter = HostCounter() if sys.argv[1] == "time" else ManualCounter(10)
        queue = DeadlineQueue()
        queue.add_group(2)
        alarm = DeadlineAlarm(queue, counter)
        queue.arm(0, counter.read() - 1)
        assert select.select([alarm], [], [], 10)[0]
        child = os.fork()
        if child == 0:
            # A descriptor of its own, readable at once; what is taken is the child's copy.
            ok = select.select([alarm], [], [], 10)[0] == [alarm] and alarm.expire()[0].tolist() == [0]
            queue.arm(1, counter.read() - 1)
            ok = ok and alarm.expire()[0].tolist() == [1]
            os._exit(0 if ok else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert select.select([alarm], [], [], 0)[0] == [alarm]
        assert alarm.expire()[0].tolist() == [0]
        # A consumer that waits in the parent isn't one in the child.
        from guestclock import _core
        _core._claim(alarm)
        child = os.fork()
        if child == 0:
            os._exit(0 if len(alarm.expire()[0]) == 0 else 1)
        assert os.waitpid(child, 0)[1] == 0
        _core._release(alarm)
        """,
        over,
    )


def test_a_fork_of_a_thread_that_others_wait_for() -> None:
    """Two threads fork at once, each again and again."""
    python(
        """
        import os, threading
        import numpy as np
        from guestclock import ManualCounter
        from guestclock.model import ClockBank

        bank = ClockBank(ManualCounter(10))
        bank.add_many(9000)

        def forks():
            for _ in range(20):
                bank.evaluate()
                child = os.fork()
                if child == 0:
                    os._exit(0 if len(bank.cntvct()) == 9000 else 1)
                assert os.waitpid(child, 0)[1] == 0

        threads = [threading.Thread(target=forks) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        """
    )


# Ids are looked for until they are found.


def test_an_id_that_couldnt_be_read_is_looked_for_again() -> None:
    if not Path("/proc/sys/kernel/random/boot_id").exists():
        pytest.skip("/proc isn't mounted")
    python(
        """
        import resource
        from guestclock import HostCounter
        counter = HostCounter()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
        assert counter.stamp().boot_id is None
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        assert counter.stamp().boot_id is not None
        """
    )


def test_an_alarm_whose_source_fails_can_be_taken_from_again() -> None:
    """The claim of a consumer ends with its call, whatever comes out of it."""

    class Source:
        fails: BaseException | None = None

        def next_deadline(self, now: int) -> int:
            return 2**64 - 1 if now else 0

        def expire(self, _now: int) -> tuple[object, ...]:
            if self.fails is not None:
                raise self.fails
            return (np.array([1]), np.array([2], np.uint64))

    source = Source()
    with DeadlineAlarm(source, ManualCounter(5)) as alarm:
        for error in (KeyboardInterrupt(), MemoryError(), SystemExit(3), ZeroDivisionError()):
            source.fails = error
            with pytest.raises(type(error)):
                alarm.expire()
            source.fails = None
            assert isinstance(alarm.expire()[1], np.ndarray)


def test_what_was_taken_before_a_failure_comes_again() -> None:
    class Source:
        expired = (np.array([3]), np.array([2], np.uint64))

        def next_deadline(self, _now: int) -> int:
            if self.expired is not Source.expired:
                raise ZeroDivisionError
            return 0

        def expire(self, _now: int) -> tuple[object, ...]:
            taken, self.expired = self.expired, (np.array([], np.int64), np.array([], np.uint64))
            return taken

    with DeadlineAlarm(Source(), ManualCounter(5)) as alarm:
        with pytest.raises(ZeroDivisionError):
            alarm.expire()
        assert select.select([alarm], [], [], 0)[0] == [alarm]
        timers = alarm.expire()[0]
        assert isinstance(timers, np.ndarray)
        assert timers.tolist() == [3]


def test_a_queue_has_no_group_of_more_timers_than_ids() -> None:
    queue = DeadlineQueue()
    with pytest.raises(OverflowError):
        queue.add_group(2**32 - 1)
