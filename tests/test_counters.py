"""Counters: those of the host against clocks read outside guestclock, and the one moved by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestclock import HostCounter, ManualCounter, ModelVm, MonotonicCounter, _core
from guestclock.errors import CapabilityMissing


def raw() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


def test_raw_is_the_clocks_nanoseconds() -> None:
    counter = HostCounter(source="clock_monotonic_raw")
    assert counter.frequency_hz == 10**9
    for _ in range(1000):
        before, count, after = raw(), counter.read(), raw()
        assert before <= count <= after


def test_the_default_is_unicorns_clock() -> None:
    counter = MonotonicCounter()
    assert counter.frequency_hz == 62_500_000
    for _ in range(1000):
        before, count, after = time.monotonic_ns() // 16, counter.read(), time.monotonic_ns() // 16
        assert before <= count <= after


@given(hz=st.one_of(st.integers(1, 2**64 - 1), st.sampled_from([24_000_000, 83_333_333, 1_050_000_000])))
def test_monotonic_ticks_are_exact_at_any_frequency(hz: int) -> None:
    counter = MonotonicCounter(frequency_hz=hz)
    before = time.monotonic_ns() * hz // 10**9
    count = counter.read()
    after = time.monotonic_ns() * hz // 10**9
    assert (count - before) % 2**64 <= after - before


@pytest.mark.parametrize("make", [HostCounter, MonotonicCounter, partial(MonotonicCounter, frequency_hz=24_000_000)])
def test_a_cross_timestamp_holds_what_it_says(make: Callable[[], HostCounter | MonotonicCounter]) -> None:
    counter = make()
    for _ in range(100):
        before = (counter.read(), time.time_ns())
        here = counter.stamp()
        after = (counter.read(), time.time_ns())
        assert before[0] <= here.count <= after[0]
        # The wall clock may be stepped under a test, so only where it wasn't.
        if before[1] <= after[1]:
            assert before[1] <= here.realtime_ns <= after[1]
        assert (here.frequency_hz, here.source) == (counter.frequency_hz, counter.source)
        assert 0 < here.width_ns <= (after[0] - before[0] + 2) * 10**9 // counter.frequency_hz + 1


def test_a_counter_that_is_not_here_says_why() -> None:
    missing = [source for source in ("cntvct_el0", "tsc") if not available(source)]
    assert missing, "no machine has both"
    for source in missing:
        with pytest.raises(CapabilityMissing, match=source) as caught:
            HostCounter(source=source)  # type: ignore[arg-type]
        assert caught.value.capability == source


def available(source: str) -> bool:
    try:
        HostCounter(source=source)  # type: ignore[arg-type]
    except CapabilityMissing:
        return False
    return True


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="sundial"):
        HostCounter(source="sundial")  # type: ignore[arg-type]
    for make in (MonotonicCounter, ManualCounter):
        with pytest.raises(ValueError, match="frequency_hz"):
            make(frequency_hz=0)
    with pytest.raises(OverflowError):
        ManualCounter(-1)
    with pytest.raises(TypeError):
        ModelVm(counter=time.monotonic_ns)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="32 bits"):
        ModelVm(counter=ManualCounter(frequency_hz=2**32))


@given(
    start=st.integers(0, 2**64 - 1),
    hz=st.integers(1, 2**40),
    moves=st.lists(st.tuples(st.booleans(), st.integers(0, 2**40)), max_size=20),
)
def test_a_manual_counters_wall_clock_moves_along(start: int, hz: int, moves: list[tuple[bool, int]]) -> None:
    counter = ManualCounter(start, frequency_hz=hz, realtime_ns=12345)
    moved = 0
    for forward, ticks in moves:
        moved += ticks if forward else -ticks
        count = counter.advance(ticks) if forward else counter.rewind(ticks)
        assert count == counter.read() == (start + moved) % 2**64
        # Rounded towards the start, so that going there and back is exact.
        ns = abs(moved) * 10**9 // hz
        expected = 12345 + (ns if moved >= 0 else -ns)
        assert counter.realtime_ns == max(-(2**63), min(2**63 - 1, expected))


def test_stepping_the_wall_clock_leaves_the_count() -> None:
    counter = ManualCounter(7, realtime_ns=100)
    assert counter.step_realtime(-40) == counter.realtime_ns == 60
    assert counter.read() == 7


@pytest.mark.parametrize(
    "make", [HostCounter, partial(MonotonicCounter, frequency_hz=5), partial(ManualCounter, 3, realtime_ns=-1)]
)
def test_repr_evaluates(make: Callable[[], object]) -> None:
    counter = make()
    names = {kind.__name__: kind for kind in (HostCounter, MonotonicCounter, ManualCounter)}
    assert repr(eval(repr(counter), names)) == repr(counter)  # noqa: S307 - that is what it is for


def test_read_cost_is_a_positive_number_of_nanoseconds() -> None:
    assert _core.read_cost_ns(HostCounter()) > 0
