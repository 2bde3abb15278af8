"""A guest's pages, found by its checkpoint, and kept fresh by a thread. Nothing here waits for real time to pass."""

from __future__ import annotations

import errno
import mmap
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from guestclock import CatchUp, Checkpoint, Freeze, ManualCounter, ModelVm, S, Stamp, SyncBound
from guestclock.errors import NoSuchVm, PageOverwritten
from guestclock.guest import ClockEquation, StolenTime, VmClock, find_pages, keep_fresh

HZ = 62_500_000
NOW_NS = 1_750_000_000_123_456_789
BASE = 0x4000_0000
NEVER = 1 << 60


class Vouched:
    """A host's counter, for whose wall clock somebody vouches."""

    moves_by_itself = False
    source = "manual"
    frequency_hz = HZ

    def __init__(self, host: ManualCounter) -> None:
        self.host = host

    def read(self) -> int:
        return self.host.read()

    def stamp(self) -> Stamp:
        return replace(self.host.stamp(), sync=SyncBound(max_error_ns=1000))


@pytest.fixture
def memory() -> mmap.mmap:
    return mmap.mmap(-1, 2 * mmap.PAGESIZE)


@pytest.fixture
def host() -> ManualCounter:
    return ManualCounter(10**12, frequency_hz=HZ, realtime_ns=NOW_NS)


@pytest.fixture
def vm(host: ManualCounter) -> ModelVm:
    vm = ModelVm(vcpus=2, counter=Vouched(host))
    vm.opt_in()
    return vm


@pytest.fixture
def page(memory: mmap.mmap) -> VmClock:
    return VmClock.create(memory, tai_offset_s=37)


def test_pages_are_found_where_the_checkpoint_says(memory: mmap.mmap, vm: ModelVm) -> None:
    VmClock.create(memory, tai_offset_s=37)
    StolenTime(memory, 0x1040).add(5)
    saved = vm.checkpoint(vmclock_address=BASE, stolen_time=[None, BASE + 0x1040])
    found = find_pages(Checkpoint.from_bytes(saved.to_bytes()), memory, base=BASE)
    assert found.vmclock is not None
    assert found.vmclock.status == "unreliable"
    first, second = found.stolen_time
    assert first is None
    assert second is not None
    assert second.stolen_ns == 5
    assert find_pages(vm.checkpoint(), memory, base=BASE) == (None, [None, None], [])


def test_a_page_that_the_guest_has_overwritten_is_no_error(memory: mmap.mmap, vm: ModelVm) -> None:
    VmClock.create(memory, tai_offset_s=37)
    StolenTime(memory, 0x1000).add(5)
    saved = vm.checkpoint(vmclock_address=BASE, stolen_time=[BASE + 0x1040, BASE + 0x1000])
    memory[:4] = b"\xff" * 4
    memory[0x1040] = 1
    found = find_pages(saved, memory, base=BASE)
    assert (found.vmclock, found.stolen_time[0]) == (None, None)
    assert found.stolen_time[1] is not None
    assert [error.offset for error in found.overwritten] == [0, 0x1040]
    with pytest.raises(PageOverwritten, match=r"no vmclock page .* \(VmClock.create makes one\)"):
        VmClock(memory)
    # One that was found before is written again.
    VmClock.create(memory, tai_offset_s=37)
    page = VmClock(memory)
    memory[:112] = b"\xff" * 112
    with page.update():
        vm.restore(saved)
    assert VmClock(memory).status == "unreliable"


@pytest.mark.parametrize("address", [BASE - 8, BASE + 2 * mmap.PAGESIZE, 2**64 - 8])
def test_a_page_outside_of_the_memory_is_refused(memory: mmap.mmap, vm: ModelVm, address: int) -> None:
    with pytest.raises(ValueError, match=r"vmclock page at 0x[0-9a-f]+ isn't in this memory"):
        find_pages(vm.checkpoint(vmclock_address=address), memory, base=BASE)
    with pytest.raises(ValueError, match="stolen-time record of vCPU 1"):
        find_pages(vm.checkpoint(stolen_time=[None, address]), memory, base=BASE)


def test_a_page_is_fresh_from_the_blocks_beginning(page: VmClock, vm: ModelVm, host: ManualCounter) -> None:
    host.advance(1000)
    with keep_fresh(page, vm, every_ns=NEVER) as fresh:
        assert (page.status, fresh.problem, fresh.renewals) == ("synchronized", None, 1)
        assert page.counter_value == vm.cntvct(0) == 1000
        assert fresh.age_ns == 0
        host.advance(3 * HZ)
        assert fresh.age_ns == 3 * S
        assert fresh.renew() is True
        assert (fresh.age_ns, fresh.renewals) == (0, 2)
        assert page.counter_value == 3 * HZ + 1000
    assert page.disruption_marker == 0


def test_the_thread_renews_it(page: VmClock, vm: ModelVm) -> None:
    renewed = threading.Semaphore(0)
    with keep_fresh(page, vm, every_ns=1000, notify=renewed.release) as fresh:
        for _ in range(5):
            assert renewed.acquire(timeout=60)
    assert fresh.renewals >= 5
    assert not any(thread.name == "guestclock-vmclock" for thread in threading.enumerate())


def test_a_host_without_an_honest_clock_has_none_for_its_guest(page: VmClock, vm: ModelVm) -> None:
    told: list[str] = []
    host = ManualCounter(0, frequency_hz=HZ, realtime_ns=NOW_NS)
    other = ModelVm(counter=host)
    other.opt_in()
    with keep_fresh(page, vm, every_ns=NEVER):
        assert page.status == "synchronized"
    with keep_fresh(page, other, every_ns=NEVER, notify=lambda: told.append(page.status)) as fresh:
        assert (page.status, fresh.age_ns, fresh.renewals) == ("unreliable", None, 0)
        assert fresh.problem is not None
        assert "synchronised" in fresh.problem
        assert fresh.renew() is False
    assert told == ["unreliable", "unreliable"]


def test_a_closed_vm_is_left_alone(page: VmClock, vm: ModelVm, host: ManualCounter) -> None:
    with keep_fresh(page, vm, every_ns=NEVER) as fresh:
        before = page.counter_value
        with vm.pause(Freeze()):
            host.advance(HZ)
            assert fresh.renew() is False
            assert (page.counter_value, page.status) == (before, "synchronized")
        assert fresh.renew() is True
        assert page.counter_value == before


class Raced:
    """A VM of which another thread applies a step as soon as its count has been read."""

    def __init__(self, vm: ModelVm, page: VmClock) -> None:
        self.vm, self.counter, self.page = vm, vm.counter, page
        self.stepping: list[threading.Thread] = []

    @property
    def state(self) -> str:
        return self.vm.state

    def cntvct(self, vcpu: int, now: Stamp) -> int:
        count = self.vm.cntvct(vcpu, now=now)
        if step := self.vm.next_step():

            def apply() -> None:
                while True:
                    try:
                        step.apply(self.page)
                    except RuntimeError:
                        continue  # The update took longer than a step waits for.
                    return

            self.stepping.append(threading.Thread(target=apply))
            self.stepping[-1].start()
            # A step that has to wait for the update doesn't end here, and any other has every chance to.
            self.stepping[-1].join(0.05)
        return count


def test_no_step_comes_between_a_count_and_its_equation(page: VmClock, vm: ModelVm, host: ManualCounter) -> None:
    saved = vm.checkpoint()
    host.advance(HZ)
    vm.restore(saved, CatchUp(300 * 10**6, 10**6))
    raced = Raced(vm, page)
    fresh = keep_fresh(page, raced, every_ns=NEVER)  # type: ignore[arg-type]
    while vm.backlog_ticks:
        host.advance(HZ // 1000)
        assert fresh.renew()
        for thread in raced.stepping:
            thread.join()
        # By its page the guest's clock is the host's still, at this very instant.
        assert page.counter_value == vm.cntvct(0)
    assert len(raced.stepping) == 4
    assert page.disruption_marker == 4


def test_another_threads_update_is_waited_for_and_ones_own_is_an_error(page: VmClock) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with page.update():
            inside.set()
            assert go_on.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(60)
    with pytest.raises(RuntimeError, match="for 100 ms in another"), page.update():
        pass
    go_on.set()
    holder.join()
    with page.update(), pytest.raises(RuntimeError, match="open already"), page.update():
        pass
    with page.update("clone"):
        pass
    assert page.vm_generation == 1


def test_a_vm_whose_count_cannot_be_told_is_refused_before_the_page_is_touched(memory: mmap.mmap) -> None:
    class Nobody:
        def __getattr__(self, name: str) -> object:
            raise ValueError("only now")

    page = VmClock.create(memory, tai_offset_s=37)
    before = memory[:]
    with pytest.raises(ValueError, match="only now"), keep_fresh(page, Nobody(), every_ns=NEVER):  # type: ignore[arg-type]
        pass
    with pytest.raises(ValueError, match="every_ns is 0"):
        keep_fresh(page, Nobody(), every_ns=0)  # type: ignore[arg-type]
    assert memory[:] == before


def seq_count(memory: mmap.mmap) -> int:
    """The counter of a page at the beginning of the memory that its guest's readers go by."""
    return int.from_bytes(memory[12:16], "little")


@pytest.mark.parametrize(
    ("argument", "value", "error", "said"),
    [
        ("every_ns", 1.5, TypeError, "every_ns is 1.5, which isn't an integer"),
        ("every_ns", float("nan"), TypeError, "every_ns is nan"),
        ("every_ns", float("inf"), TypeError, "every_ns is inf"),
        ("every_ns", True, TypeError, "every_ns is True"),
        ("every_ns", "1", TypeError, "every_ns is '1'"),
        ("every_ns", 0, ValueError, "every_ns is 0: give an integer from 1 to"),
        ("every_ns", -1, ValueError, "every_ns is -1"),
        ("every_ns", 10**20, ValueError, "every_ns is 100000000000000000000"),
        ("est_error_ns", 0.5, TypeError, "est_error_ns is 0.5"),
        ("max_error_ns", -1, ValueError, "max_error_ns is -1"),
        ("rate_est_error_ppb", 2**64, ValueError, "rate_est_error_ppb is 18446744073709551616"),
        ("rate_max_error_ppb", "x", TypeError, "rate_max_error_ppb is 'x'"),
    ],
)
def test_arguments_are_checked_at_the_call(
    page: VmClock, vm: ModelVm, argument: str, value: object, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        keep_fresh(page, vm, **{argument: value})  # type: ignore[arg-type]


def test_the_longest_wait_can_be_waited(page: VmClock, vm: ModelVm) -> None:
    with keep_fresh(page, vm, every_ns=2**63 - 1) as fresh:
        thread = fresh._thread
        assert thread is not None
        thread.join(0.05)
        assert thread.is_alive()


class Turns:
    """A thread's turns, as `notify` and the VM see them: each can be waited for."""

    def __init__(self) -> None:
        self.notified = threading.Semaphore(0)
        self.error: Exception | None = None

    def notify(self) -> None:
        self.notified.release()
        if self.error is not None:
            raise self.error

    def wait(self) -> None:
        # The one that is going on may have begun before.
        for _ in range(2):
            assert self.notified.acquire(timeout=60)


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never was so")


def test_anothers_long_update_puts_a_renewal_off(page: VmClock, vm: ModelVm) -> None:
    with keep_fresh(page, vm, every_ns=1000) as fresh:
        with page.update():
            wait_until(lambda: fresh.problem is not None)
            assert "for 100 ms in another" in str(fresh.problem)
            before = fresh.renewals
        wait_until(lambda: fresh.renewals > before + 1)
        assert fresh.problem is None
        assert page.status == "synchronized"


def test_a_failing_notify_ends_no_thread(page: VmClock, vm: ModelVm) -> None:
    turns = Turns()
    with keep_fresh(page, vm, every_ns=1000, notify=turns.notify) as fresh:
        turns.error = OSError(errno.EIO, "no interrupt")
        wait_until(lambda: fresh.problem is not None)
        before = fresh.renewals
        wait_until(lambda: fresh.renewals > before + 1)
        turns.error = None
        turns.wait()
        wait_until(lambda: fresh.problem is None)
    turns.error = OSError(errno.EIO, "no interrupt")
    with pytest.raises(OSError, match="no interrupt"), keep_fresh(page, vm, every_ns=1000, notify=turns.notify):
        pass
    # No block was entered, and nobody renews it.
    assert page.status == "unreliable"


class Failing:
    """A VM that can't be asked while there is an error."""

    def __init__(self, vm: ModelVm) -> None:
        self.vm, self.counter = vm, vm.counter
        self.error: Exception | None = None

    def ask(self) -> None:
        if self.error is not None:
            raise self.error

    @property
    def state(self) -> str:
        self.ask()
        return self.vm.state

    def cntvct(self, vcpu: int, now: Stamp) -> int:
        self.ask()
        return self.vm.cntvct(vcpu, now=now)


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyError("x"), ValueError("v"), NoSuchVm("gone")], ids=repr)
def test_a_page_that_cannot_be_renewed_has_no_clock(page: VmClock, vm: ModelVm, error: Exception) -> None:
    failing, turns = Failing(vm), Turns()
    with keep_fresh(page, failing, every_ns=1000, notify=turns.notify) as fresh:  # type: ignore[arg-type]
        assert page.status == "synchronized"
        failing.error = error
        wait_until(lambda: fresh.problem is not None)
        turns.wait()
        assert (page.status, fresh.age_ns) == ("unreliable", None)
        assert fresh.problem == (str(error) or "ZeroDivisionError")
        failing.error = None
        wait_until(lambda: fresh.problem is None)
        assert page.status == "synchronized"
    # Its counter went on all the while.
    assert page.disruption_marker == 0


def test_the_page_of_a_closed_vm_is_not_written(page: VmClock, vm: ModelVm, memory: mmap.mmap) -> None:
    with keep_fresh(page, vm, every_ns=NEVER) as fresh, vm.pause():
        before = seq_count(memory)
        assert fresh.renew() is False
        assert seq_count(memory) == before


def test_the_claims_are_the_callers(page: VmClock, vm: ModelVm, host: ManualCounter) -> None:
    with keep_fresh(page, vm, every_ns=NEVER, max_error_ns=50_000, rate_max_error_ppb=50_000):
        pass
    here = replace(host.stamp(), synchronized=True)
    claimed = ClockEquation(here, cntvct=0, max_error_ns=50_000, rate_max_error_ppb=50_000)
    assert claimed.max_error_ns_at(0) is not None
