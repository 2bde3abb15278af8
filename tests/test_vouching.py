"""Counters of a host that somebody vouches for: their stamps carry the bound, and it ages."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from guestclock import Advance, Elapsed, Fleet, Freeze, HostCounter, ModelVm, MonotonicCounter, Plan, Report, SyncBound
from guestclock.errors import ElapsedUnknown, NotSynchronised
from guestclock.model import ClockBank, ScaledCounter

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestclock.types import Counter

RAW: Final = "clock_monotonic_raw"
BOUND = SyncBound(100, age_ns=7, holdover_ppb=1_000, quality="chrony", tai_offset_s=37)


def boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Voucher:
    """A voucher that counts how often it is asked, and answers what it is told."""

    def __init__(self, *answers: SyncBound | Exception | None) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self) -> SyncBound | None:
        self.asked += 1
        answer = self.answers[min(self.asked, len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


def counters(sync: SyncBound | Callable[[], SyncBound | None] | None) -> list[Counter]:
    raw = HostCounter(source=RAW, sync=sync)
    return [raw, MonotonicCounter(sync=sync), ScaledCounter(raw, frequency_hz=24_000_000)]


@pytest.mark.parametrize("number", range(3))
def test_a_bound_ages_with_the_host(number: int) -> None:
    before = boottime_ns()
    counter = counters(BOUND)[number]
    after = boottime_ns()
    time.sleep(0.02)
    for _ in range(2):
        least = boottime_ns() - after
        stamp = counter.stamp()
        most = boottime_ns() - before
        sync = stamp.sync
        assert sync is not None
        # As slow as the kernel may slew the clock that it ages by: 500 ppm.
        assert 7 + least * 10_000 // 9_995 <= sync.age_ns <= 7 + most * 10_000 // 9_995 + 1
        assert sync == replace(BOUND, age_ns=sync.age_ns)
        assert stamp.tai_offset_s == 37
        assert stamp.vouched == "chrony"
    assert counters(None)[number].stamp().sync is None


def bounds(made: Plan | Report) -> dict[str, int]:
    """The terms of the error bound that are times."""
    said: dict[str, Any] = made.to_dict()
    return {term["what"]: term["ns"] for term in said["error_bound_terms"] if "ns" in term}


def test_who_vouches_belongs_to_the_host() -> None:
    vm = ModelVm(1, counter=HostCounter(source=RAW, sync=BOUND))
    vm.set_counter_offset(0)
    saved = vm.checkpoint()
    assert saved.stamp.sync is not None
    assert saved.stamp.sync.max_error_ns == 100
    report = ModelVm(1, counter=vm.counter).restore(saved, Advance(), elapsed=Elapsed.by_wall_clocks())
    terms = bounds(report)
    assert terms["wall clock at the checkpoint"] == terms["wall clock here"] == 100
    with pytest.raises(ElapsedUnknown):
        ModelVm(1, counter=HostCounter(source=RAW)).restore(saved, Advance(), elapsed=Elapsed.by_wall_clocks())


def test_a_calls_own_word_wins() -> None:
    voucher = Voucher(BOUND)
    vm = ModelVm(1, counter=HostCounter(source=RAW, sync=voucher))
    own = SyncBound(5, tai_offset_s=37)
    saved = vm.checkpoint(sync=own)
    assert saved.stamp.sync == own
    made = ModelVm(1, counter=vm.counter).plan(saved, Advance(), elapsed=Elapsed.by_wall_clocks(), sync=own)
    terms = bounds(made)
    assert terms["wall clock at the checkpoint"] == terms["wall clock here"] == 5
    assert voucher.asked == 0, "nobody had a use for the answer"


def test_a_callable_is_asked_for_each_stamp() -> None:
    voucher = Voucher(BOUND, None, replace(BOUND, max_error_ns=200), NotSynchronised("no", source="x", reason="no"))
    for counter in counters(voucher):
        found = [stamp.sync and stamp.sync.max_error_ns for stamp in (counter.stamp() for _ in range(4))]
        assert found == [100, None, 200, None]
        assert voucher.asked == 4
        voucher.asked = 0


def test_what_a_callable_raises_is_raised() -> None:
    counter = HostCounter(source=RAW, sync=Voucher(ZeroDivisionError("its own")))
    vm = ModelVm(1, counter=counter)
    for call in (counter.stamp, vm.checkpoint):
        with pytest.raises(ZeroDivisionError, match="its own"):
            call()
    with pytest.raises((TypeError, AttributeError)):
        HostCounter(source=RAW, sync=lambda: 5).stamp()  # type: ignore[arg-type, return-value]
    with pytest.raises((TypeError, AttributeError)):
        HostCounter(source=RAW, sync=5)  # type: ignore[arg-type]


def test_it_is_asked_where_the_answer_is_of_use() -> None:
    voucher = Voucher(BOUND)
    counter = HostCounter(source=RAW, sync=voucher)

    def asked() -> int:
        """How often since the last look."""
        times, voucher.asked = voucher.asked, 0
        return times

    vm = ModelVm(1, counter=counter)
    saved = vm.checkpoint()
    assert asked() == 1
    vm.checkpoint(now=saved.stamp)
    assert asked() == 0, "an injected stamp has its own bound"
    vm.checkpoint(now=counter.read())
    assert asked() == 1
    vm.restore(saved, Freeze())
    assert asked() == 0, "a freeze needs no clock"
    ModelVm(1, counter=counter).restore(saved, Advance(), elapsed=Elapsed.by_wall_clocks())
    assert asked() == 1
    with vm.pause(Advance()):
        pass
    assert asked() == 0
    bank = ClockBank(counter)
    bank.add(1)
    fleet = Fleet(bank)
    checkpoints = fleet.checkpoint()
    assert asked() == 1
    assert checkpoints.stamp.sync is not None
    fleet.restore(checkpoints, Advance(), elapsed=Elapsed.by_wall_clocks())
    assert asked() == 1
    fleet.restore(checkpoints)
    assert asked() == 0


def test_a_callable_may_use_the_vm() -> None:
    """No lock of the VM's is held while Python code runs."""
    seen: list[int] = []

    def voucher() -> SyncBound:
        thread = threading.Thread(target=lambda: seen.append(vm.timer(0, 0).cval))
        thread.start()
        thread.join(60)
        seen.append(vm.cntvct(0))
        return BOUND

    vm = ModelVm(1, counter=HostCounter(source=RAW, sync=voucher))
    saved = vm.checkpoint()
    assert len(seen) == 2
    vm.restore(saved, Advance(), elapsed=Elapsed.by_wall_clocks())
    assert len(seen) == 4


def test_a_counter_says_who_vouches() -> None:
    names = {kind.__name__: kind for kind in (HostCounter, MonotonicCounter, SyncBound)}
    for counter in (HostCounter(source=RAW, sync=BOUND), MonotonicCounter(sync=BOUND)):
        assert counter.sync == BOUND
        assert repr(eval(repr(counter), names)) == repr(counter)  # noqa: S307 - that is what it is for
    voucher = Voucher(BOUND)
    assert HostCounter(source=RAW, sync=voucher).sync is voucher
    assert HostCounter(source=RAW).sync is None
