"""The study's unlucky and lying hosts: no bound is exceeded, every premise that is broken is accounted for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

import study
from guestclock import Elapsed, ManualCounter
from study import luck, outcome
from study.evidence import Belief, ClockTable
from study.hosts import SECOND, Oscillator
from study.life import LEAP, Life, WallClock
from study.luck import PREMISES, Unlucky
from study.luck_figures import LuckFigures, UnluckyRecord
from study.outcome import TITLES, judge

DRAWN = 6_000


@pytest.fixture(scope="module")
def drawn() -> list[Unlucky]:
    return [luck.draw(7, number) for number in range(DRAWN)]


@pytest.fixture(scope="module")
def record(drawn: list[Unlucky]) -> UnluckyRecord:
    figures = LuckFigures()
    for number, one in enumerate(drawn):
        figures.add(number, one, judge(one))
    return figures.record()


def test_no_bound_is_exceeded_and_nothing_refused_that_the_table_allows(record: UnluckyRecord) -> None:
    assert (record["findings"], record["first_findings"]) == (0, [])
    assert [row["row"] for row in record["rows"]] == list(TITLES)
    restored = {row["row"]: row["proved"] + row["assumed"] for row in record["rows"]}
    assert min(restored.values()) > 50
    refused: Counter[str] = Counter()
    for row in record["rows"]:
        refused.update(row["refused"])
        assert restored[row["row"]] >= row["warned"]
    assert set(refused) == {"ClockWentBackwards", "ClocksDisagree", "ElapsedTooLong", "ElapsedUnknown"}
    assert sum(restored.values()) + refused.total() == record["number"] == DRAWN
    # Nothing refuses a Freeze or a pause, and only a Freeze rests on nothing.
    rows = {row["row"]: row for row in record["rows"]}
    assert rows["freeze"]["refused"] == rows["one-object"]["refused"] == {}
    assert [row for row, of in rows.items() if of["proved"]] == ["freeze"]
    assert record["honest"] > DRAWN // 4


def test_each_broken_premise_spoils_some_guests_and_is_accounted_for(record: UnluckyRecord) -> None:
    assert [premise["premise"] for premise in record["premises"]] == list(PREMISES)
    for premise in record["premises"]:
        fates = premise["refused"] + premise["warned"] + premise["listed"] + premise["harmless"]
        assert fates == premise["broken"] > 0
        assert premise["beyond"] > 0, premise["premise"]


def test_the_same_seed_draws_the_same_luck() -> None:
    assert luck.draw(5, 17) == luck.draw(5, 17) != luck.draw(5, 18)


def findings_of(drawn: list[Unlucky], monkeypatch: pytest.MonkeyPatch, **changes: Any) -> set[str]:
    """What the judge finds where each report says something else."""
    for name in ("_restored", "_paused"):
        told = getattr(outcome, name)
        monkeypatch.setattr(outcome, name, lambda one, told=told: replace(told(one), **changes))
    return {wrong for one in drawn[:2_000] if (wrong := judge(one).wrong)}


def test_a_bound_that_is_too_small_is_found(drawn: list[Unlucky], monkeypatch: pytest.MonkeyPatch) -> None:
    honest = [one for one in drawn if not one.broken]
    assert findings_of(honest, monkeypatch, bound_ticks=0) == {"beyond the bound"}


def test_an_assumption_that_no_report_lists_is_found(drawn: list[Unlucky], monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings_of(drawn, monkeypatch, assumed=frozenset()) == {"beyond the bound"}


@pytest.mark.parametrize(
    "code",
    [
        "boot-time-counted-sleep",
        "counters-stood-still",
        "elapsed-given",
        "host-not-suspended",
        "no-leap-second",
        "nominal-rate-here",
        "not-slept",
        "same-boot",
        "same-counter",
        "wall-clock-within",
        "wall-clocks-agree",
    ],
)
def test_no_assumption_of_the_list_can_be_left_out(
    code: str, drawn: list[Unlucky], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each accounts for some guest that nothing else accounts for."""
    for name in ("_restored", "_paused"):
        told = getattr(outcome, name)

        def silent(one: Unlucky, told: Any = told) -> Any:
            said = told(one)
            return replace(said, assumed=said.assumed - {code})

        monkeypatch.setattr(outcome, name, silent)
    breaking = [one for one in drawn if any(code in codes for _, codes in one.broken)]
    assert any(judge(one).wrong == "beyond the bound" for one in breaking)


def test_a_wrong_time_behind_is_found(drawn: list[Unlucky], monkeypatch: pytest.MonkeyPatch) -> None:
    honest = [one for one in drawn if not one.broken]
    assert findings_of(honest, monkeypatch, behind_ns=2**63) == {"behind by something else"}


@pytest.mark.parametrize(
    ("says", "wrong"),
    [
        (Belief("one-boot", refusal="ElapsedUnknown"), "let pass, where the table says ElapsedUnknown"),
        (Belief("one-boot", "counter", 0, 0), "ElapsedUnknown, where the table says counter"),
    ],
)
def test_a_refusal_that_the_table_doesnt_have_is_found(
    says: Belief, wrong: str, drawn: list[Unlucky], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClockTable, "believed", lambda *_args, **_options: says)
    assert wrong in {judge(one).wrong for one in drawn[:500]}


def test_a_finding_fails_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    document = study.run(migrations=20, frequencies=(1_000_000,))
    assert (document["ok"], document["unlucky"]["number"]) == (True, 20)
    judged = outcome.judge
    monkeypatch.setattr(outcome, "judge", lambda one: replace(judged(one), wrong="beyond the bound"))
    document = study.run(migrations=30, frequencies=(1_000_000,))
    assert not document["ok"]
    assert (document["unlucky"]["findings"], len(document["unlucky"]["first_findings"])) == (30, 20)


# The world, against the counter that has a host's clocks.


@pytest.mark.parametrize("counter", ["stops", "counts-on", "restarts"])
def test_a_life_goes_as_a_manual_counters_does(counter: Any) -> None:
    hz = 1_000_000
    start = LEAP.tai_ns - 10**15
    life = Life(Oscillator(hz, 0, 10**6, start), Fraction(start), "1" * 32)
    host = ManualCounter(10**6, frequency_hz=hz, realtime_ns=start - LEAP.before_s * SECOND, boot_id="1" * 32)

    def same() -> bool:
        seen, real = life.take(WallClock(0)).stamp, host.stamp()
        names = ("count", "realtime_ns", "boot_id", "boottime_ns", "slept_ns")
        return [getattr(seen, name) for name in names] == [getattr(real, name) for name in names]

    assert same()
    life.wait(5_000_000)
    host.advance_ns(5_000_000)
    assert same()
    life.sleep(7_000_000, counter, taken_for_ns=7_000_000)
    host.suspend(7_000_000, counter=counter)
    assert same()
    life.boot("2" * 32, "restarts", firmware_ns=0)
    host.reboot()
    life.wait(3_000)
    host.advance_ns(3_000)
    assert replace(life.take(WallClock(0)).stamp, boot_id=None) == replace(
        life.take(WallClock(0)).stamp, boot_id=None, count=host.read(), boottime_ns=3_000, slept_ns=0
    )
    # Nothing on the host counts a suspension, and what the counter missed is in its ideal.
    before, ideal = life.take(WallClock(0)), life.ideal
    life.suspend(9_000_000)
    after = life.take(WallClock(0))
    assert (after.count, after.stamp.boottime_ns) == (before.count, before.stamp.boottime_ns)
    assert life.ideal - ideal == 9_000
    assert after.at - before.at == 9_000_000


def test_a_life_has_its_counters_rate_and_its_kernels() -> None:
    life = Life(Oscillator(SECOND, 250_000, 0, 0), Fraction(0), None, kernel_ppb=-500_000)
    life.wait(SECOND)
    taken = life.take(WallClock(3, width_ns=2, read_after_ns=-2), boot_width_ns=5, boot_late_ns=4)
    assert taken.count == taken.ideal == 1_000_250_000
    stamp = taken.stamp
    assert (stamp.boottime_ns, stamp.slept_ns, stamp.slept_width_ns) == (999_500_004, 0, 6)
    assert stamp.tai_ns == SECOND + 1


def test_the_words_of_the_drawn_hold_where_none_is_broken(drawn: list[Unlucky]) -> None:
    for one in drawn:
        word, planned = one.word, one.steps[0]
        if word is None or dict(one.broken):
            continue
        if word.by == "given":
            assert word.ns is not None
            assert abs(word.ns - (planned.at - one.saved.at)) <= (word.error_ns or 0) or word.ns == 0
        if word == Elapsed.by_wall_clocks(error_ns=word.error_ns or 0):
            assert abs(planned.clock.error_ns - one.saved.clock.error_ns) <= (word.error_ns or 0)
