"""The table of evidence, each row on a host that has really gone through it: docs/time-model.md."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestclock import (
    Advance,
    CatchUp,
    Checkpoint,
    Elapsed,
    Fleet,
    Freeze,
    HostCounter,
    ManualCounter,
    ModelVm,
    Reg,
    Stamp,
    SyncBound,
)
from guestclock.errors import ClocksDisagree, ClockWentBackwards, ElapsedUnknown, FrequencyMismatch, Refused
from guestclock.model import ClockBank
from guestclock.types import Reading
from study.evidence import ClockTable
from vms import HZ, NS, SECOND, START_NS, host, owned

if TYPE_CHECKING:
    from guestclock import Report
    from guestclock.types import Policy

DAY = 86_400 * SECOND
MILLISECOND = 10**6
OK = SyncBound(MILLISECOND)
KNOWS_TAI = SyncBound(MILLISECOND, tai_offset_s=37)


def a_host(count: int = 600 * HZ) -> ManualCounter:
    """A host that has just booted, with a boot id that no other has."""
    return host(count, boot_id=None)


def saved(at: ManualCounter, **options: Any) -> Checkpoint:
    """A checkpoint of a guest whose counters read 1000."""
    return Checkpoint.from_bytes(owned(at).checkpoint(**options).to_bytes())


def codes(of: Any) -> list[str]:
    return [warning.code for warning in of.warnings if warning.code != "large-jump"]


def advanced(checkpoint: Checkpoint, at: ManualCounter, policy: Policy | None = None, **options: Any) -> Report:
    """Restores into a VM that has opted in, over this counter."""
    vm = ModelVm(2, counter=at)
    vm.set_counter_offset(0)
    return vm.restore(checkpoint, policy or Advance(), **options)


# A1. A host that booted anew.


@pytest.mark.parametrize("counter", ["restarts", "counts-on"])
def test_a_rebooted_host_is_another_host(counter: Any) -> None:
    at = a_host()
    before = saved(at, sync=KNOWS_TAI)
    at.advance_ns(100 * SECOND)
    at.reboot(counter=counter)
    at.advance_ns(30 * DAY - 100 * SECOND)
    report = advanced(before, at, sync=KNOWS_TAI)
    assert (report.added_ns, report.elapsed_by, codes(report)) == (30 * DAY, "wall-clocks", [])
    assert report.error_bound_ns == 2 * MILLISECOND + NS
    # Nobody vouches: it's refused, and never taken for the same counter.
    with pytest.raises(ElapsedUnknown, match="same boot: no"):
        advanced(before, at)
    by_counter = advanced(before, at, elapsed=Elapsed.by_counter()) if counter == "counts-on" else None
    assert by_counter is None or (by_counter.added_ns, codes(by_counter)) == (30 * DAY, [])


def test_a_count_that_is_ahead_again_after_a_boot_is_anothers() -> None:
    """A1's numbers: the host booted 120 s before the checkpoint's instant by its count, and ran for 30 days."""
    common: dict[str, Any] = {
        "frequency_hz": HZ,
        "source": "cntvct_el0",
        "width_ns": 500,
        "tai_offset_s": 37,
        "synchronized": True,
        "max_error_ns": MILLISECOND,
        "leap": "none",
        "machine_id": "ab" * 16,
        "rate_ppb": 3000,
    }
    there = Stamp(count=600 * HZ, realtime_ns=START_NS, boot_id="01" * 16, **common)
    here = Stamp(count=(30 * 86_400 - 120) * HZ, realtime_ns=START_NS + 30 * DAY, boot_id="02" * 16, **common)
    guest = owned(ManualCounter(there.count)).checkpoint(now=there, sync=OK)
    for boot_id in ("02" * 16, None):
        now = replace(here, boot_id=boot_id)
        report = ModelVm(2, counter=ManualCounter(here.count)).restore(guest, Advance(), sync=OK, now=now)
        assert (report.added_ns, report.elapsed_by, codes(report)) == (30 * DAY, "wall-clocks", [])
        assert report.error_bound_ns == 2 * MILLISECOND + 1000 + 2 * NS - (2 * MILLISECOND + 1000) % NS


# A2. A wall clock that was stepped in a live update.


@pytest.mark.parametrize("step_s", [30, -30])
def test_a_stepped_wall_clock_moves_no_guest(step_s: int) -> None:
    at = a_host()
    for there, here in ((None, None), (OK, None), (None, OK)):
        before = saved(at, sync=there)
        at.advance_ns(SECOND // 2)
        at.step_realtime(step_s * SECOND)
        report = advanced(before, at, sync=here, intent="live-update")
        assert (report.added_ns, report.error_bound_ns) == (SECOND // 2, 0)
        assert (report.elapsed_by, codes(report)) == ("counter", ["wall-clock-contradicts"])
    vouched = saved(at, sync=OK)
    at.advance_ns(SECOND // 2)
    at.step_realtime(step_s * SECOND)
    with pytest.raises(ClocksDisagree) as caught:
        advanced(vouched, at, sync=OK)
    error = caught.value
    assert (error.counter_ns, error.wall_clocks_ns) == (SECOND // 2, SECOND // 2 + step_s * SECOND)
    assert error.allowed_ns == 2 + 2 * MILLISECOND + abs(error.wall_clocks_ns) // 2000
    assert advanced(vouched, at, sync=OK, elapsed=Elapsed.by_counter()).added_ns == SECOND // 2
    # Freeze has no use for a clock: nobody knows how far the guest falls behind.
    frozen = advanced(vouched, at, Freeze(), sync=OK)
    assert (frozen.behind_ns, frozen.behind_error_ns, codes(frozen)) == (None, None, [])


# A3. A host that slept.


def slept(counter: str) -> tuple[Checkpoint, Checkpoint, ManualCounter]:
    """A checkpoint, another that is vouched for, and the counter after 2 s awake and 4920 s of sleep."""
    at = a_host()
    plain, vouched = saved(at), saved(at, sync=OK)
    at.advance_ns(2 * SECOND)
    at.suspend(4920 * SECOND, counter=counter)  # type: ignore[arg-type]
    return plain, vouched, at


@pytest.mark.parametrize("counter", ["stops", "restarts"])
@pytest.mark.parametrize("policy", [Advance(), Advance(10**15), CatchUp(SECOND, SECOND), CatchUp(1, 1, at_once_ns=9)])
def test_a_sleep_that_the_counter_missed_is_in_the_boot_time(counter: str, policy: Policy) -> None:
    plain, vouched, at = slept(counter)
    slew_ns = -(-4922 * SECOND // 1999)
    for checkpoint, sync in ((plain, None), (vouched, None), (plain, OK)):
        report = advanced(checkpoint, at, policy, sync=sync)
        added_ns = report.added_ns + report.backlog_ticks * NS
        assert (added_ns, report.elapsed_by) == (4922 * SECOND, "boot-time")
        assert "counter-stopped" in codes(report)
        assert report.error_bound_ns == -(-(SECOND + slew_ns) // NS) * NS + NS
        terms = {term["what"]: (term.get("ns"), term["ground"]) for term in report.to_dict()["error_bound_terms"]}  # type: ignore[attr-defined]
        assert terms["length of a sleep of the host"] == (SECOND, "assumed")
        assert terms["slew of the boot time"] == (slew_ns, "assumed")
    report = advanced(vouched, at, policy, sync=OK)
    assert (report.added_ns + report.backlog_ticks * NS, report.elapsed_by) == (4922 * SECOND, "wall-clocks")
    assert "counter-stopped" in codes(report)
    assert report.error_bound_ns == 2 * MILLISECOND + NS


def test_a_counter_that_counted_through_a_sleep_is_exact() -> None:
    for checkpoint in slept("counts-on")[:2]:
        plain, _, at = slept("counts-on")
        report = advanced(plain, at)
        assert (report.added_ns, report.error_bound_ns, report.elapsed_by) == (4922 * SECOND, 0, "counter")
        assert codes(report) == ["counted-through-sleep"]
        evidence = report.to_dict()["evidence"]
        assert isinstance(evidence, dict)
        assert (evidence["slept_ns"], evidence["was_reset"]) == ([4920 * SECOND] * 2, False)
        assert checkpoint.stamp.slept_ns == 0


@pytest.mark.parametrize("counter", ["stops", "restarts", "counts-on"])
@pytest.mark.parametrize("policy", [Freeze(), Advance(), Advance(10**15), CatchUp(SECOND, SECOND)])
def test_a_pause_that_spans_a_sleep(counter: Any, policy: Policy) -> None:
    at = a_host()
    vm, bank = owned(at), ClockBank(at)
    bank.add_many(3, 2)
    bank.set_offsets(bank.vms(), bank.cntvct()[::2])
    one, many = vm.pause(policy), Fleet(bank).pause(policy)
    with one:
        at.advance_ns(2 * SECOND)
        at.suspend(4920 * SECOND, counter=counter)
    report, of_bank = one.report, many.resume()
    frozen = policy == Freeze()
    given_ns = report.added_ns + report.backlog_ticks * NS
    assert given_ns == (0 if frozen else 4922 * SECOND)
    by = "counter" if counter == "counts-on" else "boot-time"
    warned = [] if frozen else ["counted-through-sleep" if counter == "counts-on" else "counter-stopped"]
    assert (report.elapsed_by, [code for code in codes(report) if "step" not in code]) == (by, warned)
    assert report.behind_ns == (0 if isinstance(policy, Advance) else 4922 * SECOND)
    for each in of_bank.values():
        assert [code for code in codes(each) if "step" not in code] == warned
    assert set(of_bank.columns()["added_ticks"].tolist()) == {report.added_ticks}


def test_a_pause_is_never_refused_for_a_clock() -> None:
    at = a_host()
    vm = owned(at)
    with vm.pause(Advance()) as pause:
        at.step_realtime(-DAY)
        at.advance(5)
    assert (pause.report.added_ticks, codes(pause.report)) == (5, ["wall-clock-contradicts"])
    with vm.pause(Advance()) as pause:
        at.rewind(5)
    assert (pause.report.added_ticks, codes(pause.report)) == (0, ["counter-stopped"])


@pytest.mark.parametrize("counter", ["stops", "restarts"])
@pytest.mark.parametrize("policy", [Freeze(), Advance(), CatchUp(SECOND, SECOND)])
def test_a_host_that_sleeps_during_a_restore(counter: Any, policy: Policy) -> None:
    at = a_host()
    checkpoint = saved(at)
    at.advance_ns(SECOND)
    vm = ModelVm(2, counter=at)
    vm.set_counter_offset(0)
    steps = vm.restoring(checkpoint, policy).__enter__()
    at.advance_ns(2 * SECOND)
    at.suspend(30 * SECOND, counter=counter)
    steps.apply()
    at.advance_ns(4 * SECOND)
    report = steps.release()
    missed_ns = 37 * SECOND
    given_ns = report.added_ns + report.backlog_ticks * NS
    assert given_ns == (0 if policy == Freeze() else missed_ns)
    assert report.behind_ns == (0 if policy == Advance() else missed_ns)
    # Freeze gives the guest nothing of it.
    assert ("counter-stopped" in codes(report)) == (policy != Freeze())
    # A second, and the slew from the plan to the release.
    error_ns = SECOND + 36 * SECOND // 2000
    known_ns = report.behind_error_ns if policy == Freeze() else report.error_bound_ns
    assert known_ns is not None
    assert error_ns <= known_ns <= error_ns + 36 * SECOND // 2000
    assert policy != Freeze() or report.error_bound_ns == 0
    assert vm.cntvct(0) == report.cntvct


def test_the_clocks_that_tell_a_sleep_in_a_restore_are_assumed() -> None:
    at = a_host()

    def vouched(max_error_ns: int) -> Stamp:
        return replace(at.stamp(), sync=SyncBound(max_error_ns))

    checkpoint = owned(at).checkpoint(now=vouched(5))
    for policy in (Advance(), Freeze()):
        vm = ModelVm(2, counter=at)
        vm.set_counter_offset(0)
        steps = vm.restoring(checkpoint, policy, now=vouched(6)).__enter__()
        at.suspend(30 * SECOND)
        steps.apply(now=vouched(7))
        report = steps.release(now=vouched(8))
        if policy == Freeze():
            assert report.assumptions == []
            continue
        assert report.added_ns == 30 * SECOND
        said = [(it.code, it.text) for it in report.assumptions]
        assert [code for code, _ in said] == ["same-boot", "wall-clock-within", "wall-clock-within", "not-smeared"]
        assert "within 6 ns" in said[1][1]
        assert "within 8 ns" in said[2][1]


# A5. TAI.


def clock(at_ns: int, **changes: Any) -> Stamp:
    known = Stamp(
        count=10**12,
        frequency_hz=HZ,
        source="cntvct_el0",
        realtime_ns=at_ns,
        width_ns=100,
        tai_offset_s=None,
        synchronized=True,
        max_error_ns=1000,
        leap="none",
        machine_id="1" * 32,
        boot_id="2" * 32,
    )
    return replace(known, **changes)


AUGUST_NS = 1_755_000_000 * SECOND
"""12 August 2025, at noon."""
SEPTEMBER_NS = 1_756_684_800 * SECOND
"""The first instant of it."""


def test_ten_seconds_in_august_need_no_tai() -> None:
    checkpoint = owned(host()).checkpoint(now=clock(AUGUST_NS), sync=OK)
    vm = ModelVm(2, counter=host())
    here = clock(AUGUST_NS + 10 * SECOND, boot_id="3" * 32)
    report = vm.restore(checkpoint, Advance(), now=here, sync=OK)
    assert (report.added_ns, report.elapsed_by, codes(report)) == (10 * SECOND, "wall-clocks", [])
    # As it ends, a leap second may come, which neither clock tells of.
    for end_ns in (SEPTEMBER_NS - SECOND - MILLISECOND - 100, SEPTEMBER_NS, SEPTEMBER_NS + SECOND):
        late = owned(host()).checkpoint(now=clock(end_ns - 10 * SECOND), sync=OK)
        with pytest.raises(ElapsedUnknown, match="end of a month"):
            vm.plan(late, Advance(), now=clock(end_ns, boot_id="3" * 32), sync=OK)
        frozen = vm.plan(late, now=clock(end_ns, boot_id="3" * 32), sync=OK)
        assert (frozen.behind_ns, codes(frozen)) == (None, [])
        assumed = Elapsed.by_wall_clocks(error_ns=SECOND)
        report = vm.restore(late, Advance(), now=clock(end_ns, boot_id="3" * 32), sync=OK, elapsed=assumed)
        assert "no-leap-second" in [assumption.code for assumption in report.assumptions]


# A6. How far the guest falls behind.


def test_freeze_says_how_far_the_guest_falls_behind() -> None:
    at = a_host()
    stopped = at.read()
    at.advance(1000)
    vm = owned(at)
    checkpoint = vm.checkpoint(stopped_at=stopped)
    at.advance_ns(5 * SECOND)
    target = ModelVm(2, counter=at)
    intended = target.restoring(checkpoint)
    # With what passed from the stop to the checkpoint.
    assert (intended.plan.behind_ns, intended.plan.behind_error_ns) == (5 * SECOND + 1000 * NS, 0)
    steps = intended.__enter__()
    at.advance_ns(SECOND)
    steps.apply()
    report = steps.release()
    assert (report.behind_ns, report.behind_error_ns) == (6 * SECOND + 1000 * NS, 0)
    assert (report.error_bound_ns, report.warnings) == (0, [])
    fields = report.to_dict()
    assert (fields["behind_ns"], fields["behind_error_ns"], fields["elapsed_by"]) == (6 * SECOND + 16_000, 0, "counter")
    assert "falls behind by    6000016000 ns, within 0 ns" in str(report)
    # On another host, within its clocks' bound, or nobody knows.
    elsewhere = host(5, START_NS + 10 * SECOND, boot_id=None)
    known = ModelVm(2, counter=elsewhere).restore(checkpoint, elapsed=Elapsed.by_wall_clocks(error_ns=MILLISECOND))
    assert known.behind_ns is not None
    assert known.behind_error_ns == MILLISECOND + NS
    unknown = ModelVm(2, counter=elsewhere).restore(checkpoint)
    assert (unknown.behind_ns, unknown.behind_error_ns, unknown.elapsed_by, unknown.warnings) == (None, None, None, [])
    assert "falls behind by    not known" in str(unknown)
    # A capped Advance leaves the rest.
    capped = ModelVm(2, counter=at).restore(checkpoint, Advance(SECOND))
    assert capped.behind_ns == 5 * SECOND + 1000 * NS


# What isn't needed isn't asked.


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.3"])
@pytest.mark.parametrize("opted_in", [True, False])
def test_the_ordinary_cases_have_no_warnings(opted_in: bool, kernel: str) -> None:
    if opted_in and kernel == "6.1":
        return
    for counter in (HostCounter(), HostCounter(source="clock_monotonic_raw"), a_host()):
        vm = ModelVm(2, counter=counter, kernel=kernel)
        if opted_in:
            vm.set_counter_offset(vm.counter.read() - 1000)
        snapshot = Checkpoint.from_bytes(vm.checkpoint().to_bytes())
        for policy, intent in ((Freeze(), "snapshot"), (Advance(), "live-update"), (Freeze(), None)):
            target = ModelVm(2, counter=counter, kernel=kernel)
            intended = target.plan(snapshot, policy, intent=intent)  # type: ignore[arg-type]
            if snapshot.stamp.boot_id is None and policy == Advance():
                continue
            assert intended.warnings == []
            assert target.restore(snapshot, policy, intent=intent).warnings == []  # type: ignore[arg-type]
        for policy in (Freeze(), Advance()):
            with vm.pause(policy) as pause:
                pass
            assert pause.report.warnings == []
            assert [it.ground for it in pause.report.assumptions if it.code == "one-counter"] == ["proved"] * (
                policy == Advance()
            )


def test_a_checkpoint_says_what_it_lacks() -> None:
    at = a_host()
    assert [it.code for it in owned(at).checkpoint().lacks] == ["no-bound", "no-tai"]
    assert owned(at).checkpoint(sync=SyncBound(5, tai_offset_s=37)).lacks == []
    poor = owned(at).checkpoint(now=replace(clock(AUGUST_NS), boot_id=None))
    assert [it.code for it in poor.lacks] == ["nobody-vouches", "no-tai", "no-boot-id", "no-boot-time"]
    assert "1000 ns, which nobody verified" in str(poor.lacks[0])
    assert poor.lacks[0].ground is None


# Containers, namespaces, no /proc.


def test_containers_of_one_host_have_one_counter() -> None:
    at = a_host()
    here = at.stamp()
    for there in (None, "1" * 32, "2" * 32):
        guest = owned(at).checkpoint(now=replace(here, machine_id=there))
        for machine_id in (None, "1" * 32):
            later = replace(at.stamp(), machine_id=machine_id)
            report = ModelVm(2, counter=at).restore(guest, Advance(), now=later)
            assert (report.elapsed_by, codes(report)) == ("counter", [])


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ({"boot_id": None}, {}),
        ({}, {"boot_id": None}),
        ({"boot_id": None}, {"boot_id": None}),
        ({"source": "clock_monotonic_raw"}, {}),
        ({"source": "clock_monotonic_raw_local"}, {"source": "clock_monotonic_raw_local"}),
    ],
)
def test_a_counter_that_nothing_shows_to_be_one_is_anothers(there: dict[str, Any], here: dict[str, Any]) -> None:
    """No /proc, golden images, a source that changes, and an unknown time namespace."""
    guest = owned(host()).checkpoint(now=clock(AUGUST_NS, synchronized=False, **there))
    now = clock(AUGUST_NS + SECOND, count=10**12 + HZ, synchronized=False, **here)
    vm = ModelVm(2, counter=host())
    with pytest.raises(ElapsedUnknown):
        vm.plan(guest, Advance(), now=now)
    report = vm.restore(guest, Advance(), now=now, elapsed=Elapsed.by_counter())
    assert (report.added_ticks, report.error_bound_ticks, codes(report)) == (HZ, 0, [])
    assert [(it.code, it.ground) for it in report.assumptions] == [("same-counter", "assumed")]


def test_one_vouched_side_is_not_enough_and_a_claim_carries_with_a_warning() -> None:
    guest = owned(host()).checkpoint(now=clock(AUGUST_NS), sync=OK)
    vm = ModelVm(2, counter=host())
    now = clock(AUGUST_NS + SECOND, boot_id="3" * 32)
    assert codes(vm.restore(guest, Advance(), now=now)) == ["kernel-unverified"]
    with pytest.raises(ElapsedUnknown):
        vm.plan(guest, Advance(), now=replace(now, synchronized=False))
    assert codes(vm.restore(guest, Advance(), now=now, sync=OK)) == []


# A7. Nearly equal frequencies.


def test_nearly_equal_frequencies_are_stated_exactly_and_accepted_by_word() -> None:
    there = ManualCounter(10**9, frequency_hz=83_333_333)
    here = ManualCounter(5, frequency_hz=83_333_334, realtime_ns=100 * SECOND)
    guest = owned(there).checkpoint()
    vm = ModelVm(2, counter=here)
    with pytest.raises(FrequencyMismatch, match=r"\+1/83333333, which is \+0\.012 ppm.*rate_error_ppb=13"):
        vm.restore(guest)
    with pytest.raises(FrequencyMismatch):
        vm.restore(guest, rate_error_ppb=12)
    word = Elapsed.by_wall_clocks(error_ns=0)
    report = vm.restore(guest, Advance(), elapsed=word, rate_error_ppb=13)
    # A hundred of the guest's own seconds.
    assert report.added_ticks == 100 * 83_333_333
    (wrong,) = [fact for fact in report.unsupported if fact.code == "wrong-rate"]
    assert "+0.012 ppm" in wrong.text
    assert ModelVm(2, counter=here).restore(guest, rate_error_ppb=250_000).added_ticks == 0
    with pytest.raises(ValueError, match="at most 250000"):
        vm.restore(guest, rate_error_ppb=250_001)
    far = ManualCounter(frequency_hz=83_400_000)
    with pytest.raises(FrequencyMismatch) as caught:
        ModelVm(2, counter=far).restore(guest, rate_error_ppb=250_000)
    assert "rate_error_ppb" not in str(caught.value)


# The word.


def test_a_word_is_a_value() -> None:
    words = [
        Elapsed.given(5, error_ns=6),
        Elapsed.by_counter(),
        Elapsed.by_wall_clocks(),
        Elapsed.by_wall_clocks(error_ns=7),
        Elapsed.by_wall_clocks(refuse_over_ns=8),
        Elapsed.by_wall_clocks(error_ns=0, refuse_over_ns=0),
    ]
    assert len(set(words)) == len(words)
    for word in words:
        for same in (pickle.loads(pickle.dumps(word)), copy.deepcopy(word), eval(repr(word))):  # noqa: S307
            assert same == word
            assert (same.by, same.ns, same.error_ns, same.refuse_over_ns) == (
                word.by,
                word.ns,
                word.error_ns,
                word.refuse_over_ns,
            )
    assert [word.by for word in words[:3]] == ["given", "counter", "wall-clocks"]
    with pytest.raises(AttributeError):
        words[0].ns = 7  # type: ignore[misc]
    with pytest.raises(TypeError):
        Elapsed()
    with pytest.raises(TypeError):
        Elapsed.given(5)  # type: ignore[call-arg]
    for wrong in ("counter", 5, Elapsed):
        with pytest.raises(TypeError, match=r"elapsed= takes Elapsed\.given"):
            ModelVm(2, counter=host()).plan(saved(host()), elapsed=wrong)  # type: ignore[arg-type]


def test_warnings_and_assumptions_are_values() -> None:
    at = a_host()
    checkpoint = saved(at)
    at.step_realtime(DAY)
    report = advanced(checkpoint, at)
    for facts in (report.warnings, report.assumptions, checkpoint.lacks):
        assert pickle.loads(pickle.dumps(facts)) == facts
        assert all(str(fact) == f"{fact.text} [{fact.code}]" for fact in facts)
    plain = report.to_dict()
    assert plain["warnings"] == [{"code": it.code, "text": it.text} for it in report.warnings]
    assert plain["assumptions"] == [
        {"code": it.code, "text": it.text, "ground": it.ground} for it in report.assumptions
    ]
    assert {term["ground"] for term in plain["error_bound_terms"]} == {"proved", "assumed"}  # type: ignore[attr-defined]


# The counter that makes every row.


def test_a_manual_counter_is_a_host() -> None:
    at = ManualCounter(5, frequency_hz=1000, realtime_ns=7, boot_id="0" * 31 + "1")
    first = at.stamp()
    assert (first.boot_id, first.boottime_ns, first.slept_ns, first.slept_width_ns) == ("0" * 31 + "1", 0, 0, 0)
    assert (at.advance_ns(1_500_000), at.advance_ns(500_000)) == (6, 7)
    assert at.suspend(3 * SECOND) == 7
    asleep = at.stamp()
    assert (asleep.realtime_ns, asleep.boottime_ns, asleep.slept_ns) == (3_002_000_007, 3_002_000_000, 3 * SECOND)
    assert at.suspend(SECOND, counter="counts-on") == 1007
    assert at.suspend(SECOND, counter="restarts") == 0
    assert at.reboot() == 0
    anew = at.stamp()
    assert (anew.realtime_ns, anew.boottime_ns, anew.slept_ns) == (5_002_000_007, 0, 0)
    assert anew.boot_id not in {None, first.boot_id}
    at.advance(9)
    assert at.reboot(counter="counts-on") == 9
    assert ManualCounter().stamp().boot_id != ManualCounter().stamp().boot_id
    for wrong in ("", "x" * 32, "0" * 31):
        with pytest.raises(ValueError, match="32 hexadecimal digits"):
            ManualCounter(boot_id=wrong)
    with pytest.raises(ValueError, match="stops, counts-on, restarts"):
        at.suspend(1, counter="sleeps")  # type: ignore[arg-type]


# The core against the reference.

ns = st.one_of(st.integers(0, 10**4), st.integers(0, 10**10), st.integers(0, 2 * 366 * DAY))
maybe = st.one_of(st.none(), st.integers(0, 10**9))


@st.composite
def hosts(draw: st.DrawFn) -> tuple[Stamp, Stamp, bool, bool]:
    """Two stamps that may be of one boot, and whether each is vouched for."""

    def boot(boottime_ns: int, slept_ns: int) -> dict[str, Any]:
        if draw(st.integers(0, 5)) == 0:
            return {"boottime_ns": None, "slept_ns": None, "slept_width_ns": None}
        return {"boottime_ns": boottime_ns, "slept_ns": slept_ns, "slept_width_ns": draw(st.sampled_from([0, 7, 1000]))}

    def side(**changes: Any) -> Stamp:
        claims: dict[str, Any] = draw(
            st.sampled_from([{"synchronized": False}, {"max_error_ns": None}, {"max_error_ns": 16 * SECOND}, {}, {}])
        )
        tai = draw(st.sampled_from([None, 37, 37]))
        return clock(
            0, **{"tai_offset_s": tai, "max_error_ns": draw(st.sampled_from([0, 1000, 10**8])), **claims, **changes}
        )

    start_ns = draw(st.sampled_from([AUGUST_NS, SEPTEMBER_NS - 20 * SECOND, SEPTEMBER_NS - 2 * SECOND]))
    awake_ns, asleep_ns = draw(ns), draw(st.one_of(st.just(0), st.just(0), ns))
    ticks = (awake_ns + draw(st.sampled_from([0, asleep_ns]))) // NS
    # About as far off as the rate and the widths of both reads account for, or anything.
    edge_ns = (awake_ns + asleep_ns) // 2000 + draw(st.integers(-2100, 2100))
    ticks += draw(
        st.one_of(
            *[st.just(0)] * 2,
            st.sampled_from([edge_ns // NS, -edge_ns // NS]),
            st.integers(-(awake_ns // NS) - 10, 10),
        )
    )
    stepped_ns = draw(st.one_of(*[st.just(0)] * 5, st.integers(-(10**9), 10**9), st.integers(-DAY, 400 * DAY)))
    boots = draw(st.sampled_from([("2" * 32, "2" * 32)] * 12 + [("2" * 32, "3" * 32), (None, "2" * 32), (None, None)]))
    sources = draw(
        st.sampled_from([("cntvct_el0",) * 2] * 12 + [("tsc", "cntvct_el0"), ("clock_monotonic_local",) * 2])
    )
    there = side(realtime_ns=start_ns, boot_id=boots[0], source=sources[0], **boot(10 * DAY, DAY))
    slept_ns = DAY + asleep_ns + draw(st.sampled_from([0, 0, -500, -DAY // 2]))
    here = side(
        count=(10**12 + ticks) % 2**64,
        realtime_ns=start_ns + awake_ns + asleep_ns + stepped_ns,
        boot_id=boots[1],
        source=sources[1],
        **boot(10 * DAY + awake_ns + asleep_ns, slept_ns),
    )
    return there, here, draw(st.booleans()), draw(st.booleans())


@settings(max_examples=settings().max_examples * 10)
@given(
    hosts(),
    st.sampled_from([Freeze(), Advance(), Advance(10 * SECOND)]),
    st.one_of(
        *[st.none()] * 6,
        st.just(Elapsed.by_counter()),
        st.builds(Elapsed.by_wall_clocks, error_ns=maybe, refuse_over_ns=maybe),
        st.builds(Elapsed.given, ns, error_ns=st.integers(0, 10**9)),
    ),
)
def test_the_core_believes_as_the_reference_does(
    stamps: tuple[Stamp, Stamp, bool, bool], policy: Freeze | Advance, word: Elapsed | None
) -> None:
    there, here, *vouched = stamps
    syncs = [OK if it else None for it in vouched]
    table = ClockTable(there, here, *syncs)
    expected = table.believed(word, capped=policy == Advance(10 * SECOND))
    checkpoint = owned(host()).checkpoint(now=there, sync=syncs[0])
    vm = ModelVm(2, counter=host())
    try:
        made = vm.plan(checkpoint, policy, elapsed=word, sync=syncs[1], now=here)
    except Refused as refused:
        assert policy != Freeze()
        assert expected.refusal == type(refused).__name__
        return
    ticks, error_ticks = expected.ticks, expected.error_ticks
    if ticks is not None and error_ticks is not None:
        assert made.elapsed_by == expected.by
        added = 0 if policy == Freeze() else min(ticks, 10 * HZ) if policy == Advance(10 * SECOND) else ticks
        assert made.to_dict()["added_ticks"] == added % 2**64
        assert made.behind_ns == min((ticks - added) * NS, 2**64 - 1)
        assert made.behind_error_ns is not None
        assert made.behind_error_ns // NS == error_ticks
        bound = 0 if policy == Freeze() else max(0, error_ticks - (ticks - added))
        assert made.error_bound_ticks == bound
    else:
        assert policy == Freeze()
        assert (made.elapsed_by, made.behind_ns, made.warnings) == (None, None, [])


def test_a_clock_that_went_backwards_is_named() -> None:
    at = a_host()
    checkpoint = saved(at)
    at.rewind(5)
    with pytest.raises(ClockWentBackwards, match="boot time"):
        advanced(replace_boot(checkpoint, 10), at)
    with pytest.raises(ClockWentBackwards, match="host's counter"):
        advanced(checkpoint, at, elapsed=Elapsed.by_counter())


def replace_boot(checkpoint: Checkpoint, boottime_ns: int) -> Checkpoint:
    """The checkpoint of a host that had been up for so long."""
    stamp = replace(checkpoint.stamp, boottime_ns=boottime_ns)
    return Checkpoint.from_one_regs(checkpoint.to_one_regs(), frequency_hz=HZ, host=stamp)


# A4. A count and a wall clock of one instant, and register lists of another.

CLOUD_HZ = 121_875_000
READING = Reading(count=7_694_581_610, realtime_ns=1_785_410_403_592_885_342, width_ns=0)
LISTS: list[dict[int, int]] = [
    {
        Reg.TIMER_CNT: 7_695_435_486,
        Reg.TIMER_CVAL: 7_699_059_328,
        Reg.TIMER_CTL: 1,
        Reg.PTIMER_CNT: 304_111_079_172,
        Reg.PTIMER_CVAL: 0,
        Reg.PTIMER_CTL: 4,
    },
    {
        Reg.TIMER_CNT: 7_695_481_433,
        Reg.TIMER_CVAL: 7_712_331_096,
        Reg.TIMER_CTL: 1,
        Reg.PTIMER_CNT: 304_111_125_129,
        Reg.PTIMER_CVAL: 0,
        Reg.PTIMER_CTL: 4,
    },
]
"""A snapshot of cloud-hypervisor: `clock`, and each vCPU's registers, read 853 876 and 899 823 ticks later."""


@pytest.mark.parametrize("pause_ns", [0, 8 * MILLISECOND, 10 * SECOND, 30 * DAY])
@pytest.mark.parametrize("earlier_ticks", [0, 2_000_000])
def test_the_time_that_passed_counts_from_the_readings_instant(pause_ns: int, earlier_ticks: int) -> None:
    """As cloud-hypervisor saved them, and with lists that were read before its clock."""
    lists = [
        {reg: count - earlier_ticks * (reg in {Reg.TIMER_CNT, Reg.PTIMER_CNT}) for reg, count in one.items()}
        for one in LISTS
    ]
    guest = Checkpoint.from_one_regs(lists, frequency_hz=CLOUD_HZ, host=None, reading=READING)
    at = ManualCounter(5, frequency_hz=CLOUD_HZ, realtime_ns=READING.realtime_ns + pause_ns)
    vm = ModelVm(2, counter=at)
    report = vm.restore(guest, Advance(), elapsed=Elapsed.by_wall_clocks(error_ns=1000))
    later = 899_823 - earlier_ticks
    expected = READING.count + max(pause_ns * CLOUD_HZ // SECOND, later)
    assert abs(report.cntvct - expected) <= 1
    # Both counts of a vCPU were read one after the other: the offset of the two is exact to 10 ticks.
    assert abs(report.cntpct - report.cntvct - 296_415_643_691) <= 10
    assert report.error_bound_ticks >= 45_957
    frozen = ModelVm(2, counter=at).restore(guest, elapsed=Elapsed.by_wall_clocks(error_ns=1000))
    assert frozen.cntvct == READING.count + later
    assert frozen.behind_ns == max(pause_ns * CLOUD_HZ // SECOND - later, 0) * SECOND // CLOUD_HZ


def test_lists_of_two_offsets_are_none_of_a_vm_with_one() -> None:
    here = ManualCounter(304_111_125_200, frequency_hz=CLOUD_HZ).stamp()
    with pytest.raises(
        ValueError, match=r"vCPU 0's CNTVCT_EL0 is 7695435486 and its CNTPCT_EL0 304111079172"
    ) as caught:
        Checkpoint.from_one_regs(LISTS, frequency_hz=CLOUD_HZ, host=here, counter_offset=296_415_643_691)
    assert "Leave the offset out" in str(caught.value)
    guest = Checkpoint.from_one_regs(LISTS, frequency_hz=CLOUD_HZ, host=here)
    # Counts of vCPUs that contradict each other are as wide as their distance.
    assert (guest.virtual_width_ticks, guest.physical_width_ticks) == (45_947, 45_957)
    near = [one | {Reg.PTIMER_CNT: one[Reg.TIMER_CNT] + 9} for one in LISTS]
    offset = here.count - LISTS[1][Reg.TIMER_CNT]
    assert Checkpoint.from_one_regs(near, frequency_hz=CLOUD_HZ, host=here, counter_offset=offset).opted_in
