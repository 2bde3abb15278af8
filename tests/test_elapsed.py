"""How much time has passed, who vouches for it, and whether one counter can tell: on injected instants."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestclock import Advance, CatchUp, Checkpoint, Elapsed, Freeze, HostCounter, ModelVm, Stamp, SyncBound
from guestclock.errors import ClocksDisagree, ClockWentBackwards, ElapsedTooLong, ElapsedUnknown
from vms import HZ, NS, SECOND, START_NS, host, owned

DAY = 86_400 * SECOND
MACHINE = "0123456789abcdef0123456789abcdef"
BOOT = "fedcba9876543210fedcba9876543210"


def instant(after_ns: int = 0, *, count: int = 10**12, **changes: Any) -> Stamp:
    """A host's clocks: both synchronised and known, by the kernel alone."""
    known = Stamp(
        count=count,
        frequency_hz=HZ,
        source="cntvct_el0",
        realtime_ns=START_NS + after_ns,
        width_ns=100,
        tai_offset_s=37,
        synchronized=True,
        max_error_ns=1000,
        leap="none",
        machine_id=MACHINE,
        boot_id=BOOT,
    )
    return replace(known, **changes)


def saved(at: Stamp, **options: Any) -> Checkpoint:
    return owned(host(at.count)).checkpoint(now=at, **options)


def elsewhere(after_ns: int, **changes: Any) -> Stamp:
    return instant(after_ns, count=5, machine_id="f" * 32, boot_id="e" * 32, **changes)


def advanced(checkpoint: Checkpoint, now: Stamp, **options: Any) -> dict[str, Any]:
    return ModelVm(2, counter=host(now.count)).plan(checkpoint, Advance(), now=now, **options).to_dict()


# The stamp.


def test_the_bound_of_a_cross_timestamp() -> None:
    here = instant()
    assert (here.error_bound_ns, here.vouched) == (1100, "kernel-unverified")
    assert here.tai_ns == START_NS + 37 * SECOND
    declared = replace(here, sync=SyncBound(500, age_ns=SECOND, holdover_ppb=30))
    assert (declared.error_bound_ns, declared.vouched) == (100 + 500 + 30, "declared")
    by_chrony = replace(here, sync=SyncBound(500, age_ns=1, holdover_ppb=1, quality="chrony"))
    # Rounded up.
    assert (by_chrony.error_bound_ns, by_chrony.vouched) == (601, "chrony")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"synchronized": False, "max_error_ns": None}, "isn't synchronised"),
        ({"synchronized": None, "max_error_ns": None}, "nobody says"),
        ({"max_error_ns": None}, "nobody says"),
        ({"max_error_ns": 16 * SECOND}, "16 s"),
    ],
)
def test_what_nobody_vouches_for_has_no_bound(changes: dict[str, Any], why: str) -> None:
    unknown = instant(**changes)
    assert unknown.error_bound_ns is None
    assert why in unknown.vouched
    assert instant(max_error_ns=16 * SECOND - 1).error_bound_ns == 16 * SECOND + 99
    # On either side it is refused, with what is known of both.
    for there, here in ((unknown, elsewhere(SECOND)), (instant(), elsewhere(SECOND, **changes))):
        with pytest.raises(ElapsedUnknown) as caught:
            advanced(saved(there), here)
        known, not_known = caught.value.saved, caught.value.host
        if there is unknown:
            known, not_known = not_known, known
        assert known == "within 1000 ns (kernel-unverified)"
        assert why in not_known
        assert why in str(caught.value)
        assert advanced(saved(there), here, elapsed=Elapsed.by_wall_clocks(error_ns=7 * NS))["added_ticks"] == HZ
        # Freeze doesn't ask.
        assert ModelVm(2, counter=host(here.count)).restore(saved(there), now=here).added_ticks == 0


def test_who_knows_better_than_the_kernel_is_believed() -> None:
    sync = SyncBound(500, tai_offset_s=37)
    blank: dict[str, Any] = {"synchronized": False, "max_error_ns": None, "tai_offset_s": None}
    there = saved(instant(**blank), sync=sync)
    assert (there.stamp.sync, there.stamp.tai_offset_s) == (sync, 37)
    found = advanced(Checkpoint.from_bytes(there.to_bytes()), elsewhere(SECOND, **blank), sync=sync)
    assert found["added_ticks"] == HZ
    assert sum("says that the wall clock" in warning["text"] for warning in found["warnings"]) == 2


def test_the_host_counters_cross_timestamp() -> None:
    here = HostCounter().stamp()
    assert (here.tai_ns is None) == (here.tai_offset_s is None)
    assert (here.error_bound_ns is None) == (here.vouched != "kernel-unverified")
    assert here.sync is None
    assert (here.rate_ppb is None) == (not here.synchronized)


# The bound, term by term.


@given(
    widths=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    bounds=st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)),
    ages=st.tuples(st.integers(0, 10**14), st.integers(0, 10**14)),
    ppb=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    pause_ns=st.integers(0, 365 * DAY),
    wait=st.integers(0, 2**40),
)
def test_the_bound_is_the_sum_of_its_terms(
    widths: tuple[int, int],
    bounds: tuple[int, int],
    ages: tuple[int, int],
    ppb: tuple[int, int],
    pause_ns: int,
    wait: int,
) -> None:
    syncs = [SyncBound(*of) for of in zip(bounds, ages, ppb, strict=True)]
    checkpoint = saved(instant(width_ns=widths[0]), sync=syncs[0])
    vm = ModelVm(2, counter=host(5))
    now = elsewhere(pause_ns, width_ns=widths[1])
    restoring = vm.restoring(checkpoint, Advance(), sync=syncs[1], now=now)
    intended = restoring.plan
    drifted = [age * drift for age, drift in zip(ages, ppb, strict=True)]
    held = [-(-product // SECOND) for product in drifted]
    terms = {term["what"]: term.get("ns", term.get("ticks")) for term in intended.to_dict()["error_bound_terms"]}  # type: ignore[attr-defined]
    assert terms == {
        "reading the counters at the checkpoint": 0,
        "setting the counters by value": 0,
        "rounding the elapsed time": 1,
        "rate of the counter until the release": 0,
        "bracket at the checkpoint": widths[0],
        "bracket here": widths[1],
        "wall clock at the checkpoint": bounds[0],
        "wall clock here": bounds[1],
        "hold-over at the checkpoint": held[0],
        "hold-over here": held[1],
        "said by the caller": 0,
        "length of a sleep of the host": 0,
        "slew of the boot time": 0,
        "hidden by the cap": 0,
    }
    ns = sum(widths) + sum(bounds)
    # All that is time is rounded up once.
    assert intended.error_bound_ticks == -(-(ns * SECOND + sum(drifted)) * HZ // SECOND**2) + 1
    assert intended.error_bound_ns == -(-intended.error_bound_ticks * SECOND // HZ)
    # From the plan to the release this counter counts. Where it is 500 ppm slow, 1 tick of 2000 is missing.
    later = replace(now, count=now.count + wait, realtime_ns=now.realtime_ns + wait * NS)
    with restoring:
        restoring.apply(now=later)
        report = restoring.release(now=later)
    assert report.error_bound_ticks == intended.error_bound_ticks - -wait // 1999
    assert report.added_ticks == pause_ns // NS + wait


@pytest.mark.parametrize("beyond", [-1, 0, 1, 7, 8, 9, 10**6])
def test_what_lies_beyond_the_cap_is_no_error(beyond: int) -> None:
    """The elapsed time is sure to 8 ticks, its rounding among them: who is further past the cap is at the cap."""
    now = elsewhere(SECOND + beyond * NS, width_ns=0)
    checkpoint = saved(instant(width_ns=0))
    found = advanced(checkpoint, now, elapsed=Elapsed.by_wall_clocks(error_ns=7 * NS))
    assert found["error_bound_ticks"] == 8
    capped = (
        ModelVm(2, counter=host(5))
        .plan(checkpoint, Advance(max_ns=SECOND), elapsed=Elapsed.by_wall_clocks(error_ns=7 * NS), now=now)
        .to_dict()
    )
    assert capped["added_ticks"] == HZ + min(beyond, 0)
    assert capped["error_bound_ticks"] == max(8 - max(beyond, 0), 0)


def test_a_leap_second_is_no_time() -> None:
    # The kernel's clock goes back by a second at its end, and TAI - UTC up.
    leapt = elsewhere(9 * SECOND, tai_offset_s=38)
    assert advanced(saved(instant()), leapt)["added_ticks"] == 10 * HZ
    # Without TAI it can't be known, over the end of a month, and the assumptions say so.
    july_ns = 1_751_328_000 * SECOND
    before = instant(tai_offset_s=None, realtime_ns=july_ns - 5 * SECOND)
    leapt = elsewhere(0, tai_offset_s=38, realtime_ns=july_ns + 4 * SECOND)
    with pytest.raises(ElapsedUnknown, match="end of a month"):
        advanced(saved(before), leapt)
    blind = advanced(saved(before), leapt, elapsed=Elapsed.by_wall_clocks(error_ns=0))
    assert blind["added_ticks"] == 9 * HZ
    assert any(premise["code"] == "no-leap-second" for premise in blind["assumptions"])
    # Nor does it make another counter of the same.
    here = instant(9 * SECOND, count=10**12 + 10 * HZ, tai_offset_s=38)
    assert advanced(saved(instant()), here)["same_counter"] is True


def test_only_the_kernels_word_is_said_to_be_just_that() -> None:
    found = advanced(saved(instant()), elsewhere(SECOND))
    assert sum("nobody verified" in warning["text"] for warning in found["warnings"]) == 2
    found = advanced(saved(instant(), sync=SyncBound(1)), elsewhere(SECOND), sync=SyncBound(1, quality="clockbound"))
    assert not any("nobody verified" in warning["text"] for warning in found["warnings"])
    assert any("(clockbound)" in premise["text"] for premise in found["assumptions"])
    assert any("smeared" in premise["text"] for premise in found["assumptions"])


def test_the_step_in_rate_is_no_part_of_the_bound() -> None:
    checkpoint = saved(instant(rate_ppb=-3_820))
    assert checkpoint.stamp.rate_ppb == -3_820
    vm = ModelVm(2, counter=host(5))
    bounds = set()
    for rate_ppb, step in ((1_180, 5_000), (-3_820, 0), (None, None)):
        intended = vm.plan(checkpoint, Advance(), now=elsewhere(SECOND, rate_ppb=rate_ppb))
        assert intended.rate_step_ppb == step
        assert ("rate step          +5.000 ppm" in str(intended)) == (step == 5_000)
        bounds.add(intended.error_bound_ticks)
    assert len(bounds) == 1
    # One counter keeps its rate.
    assert ModelVm(2, counter=host()).plan(checkpoint, now=instant(SECOND, count=10**12 + HZ)).rate_step_ppb == 0


# Refusals.


def test_a_year_is_believed_and_more_is_for_the_caller() -> None:
    checkpoint = saved(instant())
    longest = 366 * DAY
    assert advanced(checkpoint, elsewhere(longest))["added_ns"] == longest
    with pytest.raises(ElapsedTooLong) as caught:
        advanced(checkpoint, elsewhere(longest + 1))
    assert (caught.value.elapsed_ns, caught.value.longest_ns) == (longest + 1, longest)
    with pytest.raises(ElapsedTooLong):
        advanced(checkpoint, elsewhere(3 * SECOND), elapsed=Elapsed.by_wall_clocks(refuse_over_ns=2 * SECOND))
    # The caller's own limit holds under a cap too, which only says what becomes of the rest.
    with pytest.raises(ElapsedTooLong):
        ModelVm(2, counter=host(elsewhere(0).count)).plan(
            checkpoint,
            Advance(SECOND),
            now=elsewhere(3 * SECOND),
            elapsed=Elapsed.by_wall_clocks(refuse_over_ns=2 * SECOND),
        )
    longer = Elapsed.by_wall_clocks(refuse_over_ns=2 * longest)
    assert advanced(checkpoint, elsewhere(longest + 16), elapsed=longer)["added_ns"] == longest + 16
    vm = ModelVm(2, counter=host(5))
    capped = vm.plan(checkpoint, Advance(max_ns=SECOND), now=elsewhere(2 * longest))
    assert capped.to_dict()["added_ticks"] == HZ
    with pytest.raises(ElapsedTooLong):
        vm.plan(checkpoint, CatchUp(1, 1), now=elsewhere(2 * longest))
    # One counter needs no wall clock to be believed.
    assert advanced(checkpoint, instant(2 * longest, count=10**12 + 2 * longest // NS))["added_ns"] == 2 * longest


def test_the_callers_word_is_taken() -> None:
    backwards = elsewhere(-SECOND)
    checkpoint = saved(instant())
    with pytest.raises(ClockWentBackwards, match=r"elapsed=Elapsed\.given"):
        advanced(checkpoint, backwards)
    vm = ModelVm(2, counter=host(5))
    told = Elapsed.given(3 * SECOND, error_ns=10 * NS)
    steps = vm.restoring(checkpoint, Advance(), now=backwards, elapsed=told).__enter__()
    # What passes from the plan on is counted.
    steps.apply(now=7)
    report = steps.release(now=5 + 2 * HZ)
    # An honest counter may be 500 ppm slow: of 2 s, 1 tick in 2000 is missing, 1 of those that were counted in 1999.
    assert (report.added_ticks, report.error_bound_ticks) == (5 * HZ, 10 + 1 + -(-2 * HZ // 1999))
    assert "elapsed-given" in [premise.code for premise in report.assumptions]
    # A counter that was rewound since counts nothing, and refuses nothing: the plan has decided.
    steps = ModelVm(2, counter=host(5)).restoring(checkpoint, Advance(), now=5, elapsed=told).__enter__()
    steps.apply(now=4)
    assert steps.release(now=4).added_ticks == 3 * HZ


@pytest.mark.parametrize("policy", [Freeze(), Advance()])
def test_on_one_counter_no_wall_clock_matters(policy: Freeze | Advance) -> None:
    checkpoint = saved(instant(synchronized=False, max_error_ns=None, tai_offset_s=None))
    here = instant(10**15, count=10**12 + HZ, synchronized=None, max_error_ns=None, tai_offset_s=None)
    report = ModelVm(2, counter=host()).restore(checkpoint, policy, elapsed=Elapsed.by_counter(), now=here)
    assert (report.added_ticks, report.error_bound_ticks) == (HZ if policy == Advance() else 0, 0)


# Is it the same counter? What really happens to hosts.


def test_a_kexec_keeps_the_counter_by_the_callers_word() -> None:
    """A live update: another kernel, so another boot id, on a counter that went on."""
    after = instant(2 * SECOND, count=10**12 + 2 * HZ, boot_id="1" * 32)
    told = advanced(saved(instant()), after, intent="live-update", elapsed=Elapsed.by_counter())
    assert (told["elapsed_by"], told["error_bound_ticks"], told["warnings"]) == ("counter", 0, [])
    found = advanced(saved(instant()), after, intent="live-update")
    assert (found["elapsed_by"], found["added_ticks"]) == ("wall-clocks", 2 * HZ)
    assert found["evidence"]["same_boot"] is False
    assert "live-update-elsewhere" in [warning["code"] for warning in found["warnings"]]


def test_a_host_that_was_suspended_by_its_hypervisor_is_an_assumption() -> None:
    """Its counter stood still for ten seconds, unknown to its kernel. Then its wall clock was put right."""
    after = instant(12 * SECOND, count=10**12 + 2 * HZ)
    found = advanced(saved(instant()), after)
    assert (found["elapsed_by"], found["added_ticks"]) == ("counter", 2 * HZ)
    assert [warning["code"] for warning in found["warnings"]] == ["wall-clock-contradicts"]
    # Before that is put right, nothing tells: this is what the assumption says.
    unaware = advanced(saved(instant()), instant(2 * SECOND, count=10**12 + 2 * HZ))
    assert (unaware["added_ticks"], unaware["warnings"]) == (2 * HZ, [])
    assert [(it["code"], it["ground"]) for it in unaware["assumptions"]] == [
        ("same-boot", "assumed"),
        ("not-slept", "assumed"),
    ]
    # Whoever vouches for both wall clocks contradicts the counter.
    with pytest.raises(ClocksDisagree, match=r"elapsed=Elapsed\.by_counter\(\)") as caught:
        advanced(saved(instant(), sync=SyncBound(1)), after, sync=SyncBound(1))
    error = caught.value
    assert (error.counter_ns, error.wall_clocks_ns) == (2 * SECOND, 12 * SECOND)
    assert error.allowed_ns == 2 + 200 + 2 + 12 * SECOND // 2000


@pytest.mark.parametrize("step_ns", [-3600 * SECOND, 3600 * SECOND])
def test_a_step_of_the_wall_clock_is_never_taken_for_time(step_ns: int) -> None:
    after = instant(2 * SECOND + step_ns, count=10**12 + 2 * HZ, synchronized=False, max_error_ns=None)
    found = advanced(saved(instant()), after)
    assert (found["added_ticks"], found["error_bound_ticks"]) == (2 * HZ, 0)
    assert [warning["code"] for warning in found["warnings"] if warning["code"] != "large-jump"] == [
        "wall-clock-contradicts"
    ]


# Timers that keep what was left to them.


@given(cval=st.integers(0, 2**64 - 1), pause=st.integers(0, 2**40))
def test_relative_timers_keep_what_was_left(cval: int, pause: int) -> None:
    counter = host()
    source = owned(counter)
    source.set_one_reg(1, 0x603000000013DF02, cval)
    checkpoint = source.checkpoint()
    counter.advance(pause)
    for timers, moved in (("absolute", 0), ("relative", pause)):
        vm = ModelVm(2, counter=counter)
        report = vm.restore(checkpoint, Advance(), timers=timers)  # type: ignore[arg-type]
        # Held at the end: what was never to fire stays so.
        assert vm.get_one_reg(1, 0x603000000013DF02) == min(cval + moved, 2**64 - 1)
        assert report.to_dict()["cval_shift_ticks"] == moved
    vm = ModelVm(2, counter=counter)
    vm.restore(checkpoint, Freeze(), timers="relative")
    assert vm.get_one_reg(1, 0x603000000013DF02) == cval


def test_relative_is_as_of_apply() -> None:
    counter = host()
    checkpoint = owned(counter).checkpoint()
    vm = ModelVm(2, counter=counter)
    steps = vm.restoring(checkpoint, Advance(), timers="relative").__enter__()
    counter.advance(10)
    steps.apply()
    counter.advance(5)
    report = steps.release()
    assert (report.added_ticks, report.to_dict()["cval_shift_ticks"]) == (15, 10)
    assert vm.get_one_reg(0, 0x603000000013DF02) == 10
