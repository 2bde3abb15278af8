"""A counter at another frequency: against integers without bounds, and under a guest that was saved at another one."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from guestclock import (
    Advance,
    Checkpoint,
    Elapsed,
    Freeze,
    HostCounter,
    ManualCounter,
    ModelVm,
    MonotonicCounter,
    Timer,
)
from guestclock.errors import FrequencyMismatch
from guestclock.model import ScaledCounter
from guestclock.registers import Reg

GUEST_HZ = 24_000_000
HOST_HZ = 62_500_000
SECOND = 10**9

u64s = st.integers(0, 2**64 - 1)
frequencies = st.one_of(st.integers(1, 2**64 - 1), st.sampled_from([1, GUEST_HZ, HOST_HZ, 83_333_333, 1_050_000_000]))


def host(count: int = 0, realtime_ns: int = 0) -> ManualCounter:
    return ManualCounter(count, frequency_hz=HOST_HZ, realtime_ns=realtime_ns)


def saved(cntvct: int = 1000, deadline: int = 0) -> Checkpoint:
    """A guest of 24 MHz, as it was saved on its own host at a wall-clock time of 0."""
    counter = ManualCounter(12345, frequency_hz=GUEST_HZ)
    vm = ModelVm(counter=counter)
    vm.set_counter_offset(counter.read() - cntvct)
    vm.set_one_reg(0, Reg.TIMER_CVAL, deadline)
    vm.set_one_reg(0, Reg.TIMER_CTL, 1)
    return vm.checkpoint()


@given(count=u64s, inner_hz=frequencies, hz=frequencies)
def test_it_reads_the_whole_ticks(count: int, inner_hz: int, hz: int) -> None:
    counter = ScaledCounter(ManualCounter(count, frequency_hz=inner_hz), frequency_hz=hz)
    assert counter.read() == count * hz // inner_hz % 2**64
    assert counter.stamp().count == counter.read()


@given(count=u64s, wanted=u64s, inner_hz=frequencies, hz=frequencies)
def test_the_inner_count_is_the_first_that_reads_so_much(count: int, wanted: int, inner_hz: int, hz: int) -> None:
    counter = ScaledCounter(ManualCounter(count, frequency_hz=inner_hz), frequency_hz=hz)
    passes = count * hz // inner_hz // 2**64
    first = -(-(passes * 2**64 + wanted) * inner_hz // hz)
    assert counter.inner_count(wanted) == (first if first < 2**64 else None)


def test_a_guest_of_another_frequency_is_refused_and_told_the_way() -> None:
    with pytest.raises(FrequencyMismatch) as caught:
        ModelVm(counter=host()).plan(saved())
    error = caught.value
    assert (error.saved_hz, error.host_hz) == (GUEST_HZ, HOST_HZ)
    assert "each second for 2604 ms, a drift of +38500000/24000000, which is +1604166.667 ppm" in str(error)
    assert "ScaledCounter(counter, frequency_hz=24000000)" in str(error)


@pytest.mark.parametrize(
    ("saved_hz", "host_hz", "drift"),
    [
        (HOST_HZ, GUEST_HZ, "-38500000/62500000, which is -616000.000"),
        (10**9, 10**9 + 1, "+1/1000000000, which is +0.001"),
        (83_333_333, 83_333_334, "+1/83333333, which is +0.012"),
    ],
)
def test_the_drift_is_the_hosts_against_the_guests(saved_hz: int, host_hz: int, drift: str) -> None:
    checkpoint = ModelVm(counter=ManualCounter(frequency_hz=saved_hz)).checkpoint()
    with pytest.raises(FrequencyMismatch, match=re.escape(f"a drift of {drift} ppm")):
        ModelVm(counter=ManualCounter(frequency_hz=host_hz)).plan(checkpoint)


@given(cntvct=st.integers(0, 2**63), here=st.integers(0, 2**62), later=st.integers(0, 2**50))
def test_freeze_on_a_faster_host_is_exact(cntvct: int, here: int, later: int) -> None:
    inner = host(here)
    vm = ModelVm(counter=ScaledCounter(inner, frequency_hz=GUEST_HZ))
    report = vm.restore(saved(cntvct), Freeze())
    assert (report.cntvct, report.error_bound_ticks) == (cntvct, 0)
    assert report.released_at == here * GUEST_HZ // HOST_HZ
    assert vm.cntvct(0) == cntvct
    inner.advance(later)
    elapsed = (here + later) * GUEST_HZ // HOST_HZ - here * GUEST_HZ // HOST_HZ
    assert vm.cntvct(0) == vm.cntpct(0) == cntvct + elapsed


# Up to 366 days are believed.
@given(pause_ns=st.integers(0, 366 * 86_400 * SECOND), here=st.integers(0, 2**50), assumed=st.integers(0, 10**9))
def test_advance_goes_by_the_wall_clock(pause_ns: int, here: int, assumed: int) -> None:
    vm = ModelVm(counter=ScaledCounter(host(here, realtime_ns=pause_ns), frequency_hz=GUEST_HZ))
    report = vm.restore(saved(1000), Advance(), elapsed=Elapsed.by_wall_clocks(error_ns=assumed, refuse_over_ns=10**18))
    assert report.added_ticks == pause_ns * GUEST_HZ // SECOND
    assert vm.cntvct(0) == 1000 + report.added_ticks
    # The width is the tick of 24 MHz that rounding down hides, 41.7 ns.
    width_ns = 42
    assert report.error_bound_ticks == -(-(assumed + width_ns) * GUEST_HZ // SECOND) + 1


@given(
    here=st.integers(0, 2**50),
    pause=st.integers(0, 2**50),
    hz=st.integers(1, 2**32 - 1),
    inner_hz=st.integers(1, 2**32),
)
def test_a_scaled_counter_is_the_same_as_itself(here: int, pause: int, hz: int, inner_hz: int) -> None:
    inner = ManualCounter(here, frequency_hz=inner_hz)
    source = ModelVm(counter=ScaledCounter(inner, frequency_hz=hz))
    source.set_counter_offset(0)
    checkpoint = source.checkpoint()
    inner.advance(pause)
    # Half of the range and more is in the past, and the wall clock has an end.
    assume((here + pause) * hz // inner_hz < 2**63)
    assume(pause * SECOND // inner_hz < 2**62)
    vm = ModelVm(counter=ScaledCounter(inner, frequency_hz=hz))
    report = vm.restore(checkpoint, Advance())
    assert vm.cntvct(0) == source.cntvct(0)
    assert report.error_bound_ticks == 0


@given(ahead=st.integers(1, 2**40), here=st.integers(0, 2**50), phase=st.integers(0, 200))
def test_a_deadline_leads_back_to_the_inner_counter(ahead: int, here: int, phase: int) -> None:
    inner = host(here)
    counter = ScaledCounter(inner, frequency_hz=GUEST_HZ)
    vm = ModelVm(counter=counter)
    vm.restore(saved(1000, deadline=1000 + ahead))
    inner.advance(phase)
    deadline = vm.next_deadline(0)
    assert deadline is not None
    first = counter.inner_count(deadline)
    assert first is not None
    if first > inner.read():
        inner.advance(first - inner.read() - 1)
        assert not vm.timer(0, Timer.VTIMER).line
        inner.advance(1)
    assert vm.timer(0, Timer.VTIMER).line


def test_injected_counts_are_in_the_scaled_counters_ticks() -> None:
    inner = host(HOST_HZ)
    counter = ScaledCounter(inner, frequency_hz=GUEST_HZ)
    vm = ModelVm(counter=counter)
    vm.set_counter_offset(0)
    assert vm.cntvct(0) == vm.cntvct(0, now=counter.read()) == GUEST_HZ
    assert vm.cntvct(0, now=GUEST_HZ + 5) == GUEST_HZ + 5
    checkpoint = vm.checkpoint(now=2 * GUEST_HZ)
    assert (checkpoint.cntvct, checkpoint.stamp.realtime_ns, checkpoint.frequency_hz) == (
        2 * GUEST_HZ,
        SECOND,
        GUEST_HZ,
    )


@given(start=u64s, ticks=st.integers(0, 2**32), factor=st.integers(1, 2**32))
def test_a_whole_multiple_goes_on_where_the_inner_counter_wraps(start: int, ticks: int, factor: int) -> None:
    inner = ManualCounter(start, frequency_hz=7)
    counter = ScaledCounter(inner, frequency_hz=7 * factor)
    before = counter.read()
    inner.advance(ticks)
    assert (counter.read() - before) % 2**64 == ticks * factor % 2**64


@pytest.mark.parametrize("make", [HostCounter, MonotonicCounter, partial(MonotonicCounter, frequency_hz=1_000)])
def test_a_running_counter_lies_between_two_reads(make: Callable[[], HostCounter | MonotonicCounter]) -> None:
    inner = make()
    counter = ScaledCounter(inner, frequency_hz=GUEST_HZ)
    last = 0
    for _ in range(200):
        before, count, here, after = inner.read(), counter.read(), counter.stamp(), inner.read()
        scaled = [count * GUEST_HZ // inner.frequency_hz for count in (before, after)]
        assert scaled[0] <= count <= here.count <= scaled[1]
        assert last <= count
        last = count
        assert (here.source, here.frequency_hz) == (inner.source, GUEST_HZ)


def test_the_vm_has_the_counter_that_it_was_given() -> None:
    inner = host(5)
    counter = ScaledCounter(inner, frequency_hz=GUEST_HZ)
    vm = ModelVm(counter=counter)
    assert vm.counter is counter
    assert vm.frequency_hz == counter.frequency_hz == GUEST_HZ
    assert counter.counter is inner
    assert counter.source == "manual"
    assert (
        repr(counter) == "ScaledCounter(ManualCounter(5, frequency_hz=62500000, realtime_ns=0), frequency_hz=24000000)"
    )
    assert repr(eval(repr(counter))) == repr(counter)  # noqa: S307 - that is what it is for


def test_a_scaled_counter_is_scaled_again_from_its_own_ticks() -> None:
    counter = ScaledCounter(ScaledCounter(host(HOST_HZ + 1), frequency_hz=GUEST_HZ), frequency_hz=1_000_000)
    assert counter.read() == 1_000_000
    assert counter.inner_count(1_000_001) == GUEST_HZ + 24
    assert counter.stamp().width_ns == 42 + 1000


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="frequency_hz"):
        ScaledCounter(host(), frequency_hz=0)
    with pytest.raises(TypeError):
        ScaledCounter(host())  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        ScaledCounter(24_000_000, frequency_hz=1)  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        ScaledCounter(host(), frequency_hz=1).inner_count(-1)
    with pytest.raises(ValueError, match="32 bits"):
        ModelVm(counter=ScaledCounter(host(), frequency_hz=2**32))


def test_counters_of_counters_have_an_end() -> None:
    """Each read goes down to the innermost, and a process has only so much stack."""
    counter = ScaledCounter(host(), frequency_hz=GUEST_HZ)
    for deep in range(7):
        counter = ScaledCounter(counter, frequency_hz=HOST_HZ + deep)
    assert counter.read() == 0
    with pytest.raises(ValueError, match="innermost"):
        ScaledCounter(counter, frequency_hz=GUEST_HZ)
