"""The migration study: it passes, it can fail, and it is the same for the same seed."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import study
from guestclock import Advance
from study import worlds
from study.command import app
from study.corners import corners
from study.figures import Document
from study.hosts import PPB, SECOND, Host, LeapSecond, Oscillator
from study.lies import About, Lie
from study.migration import BASES, judge
from test_cli import guestclock_command

LAB = Path(__file__).parent.parent / "lab"
FEW = (1_050_000_000,)
LEAP = LeapSecond(1_483_228_836 * SECOND, 36)


def small(**options: Any) -> Document:
    return study.run(**{"migrations": 200, "frequencies": FEW, **options})


@pytest.fixture(scope="module")
def document() -> Document:
    return study.run(migrations=500)


def test_no_error_exceeds_its_bound_and_no_bound_its_worst_corner_by_over_2_ticks(document: Document) -> None:
    assert (document["ok"], document["findings"], document["first_findings"]) == (True, 0, [])
    assert [record["basis"] for record in document["classes"]] == list(BASES)
    for record in document["classes"]:
        assert record["beyond"] == record["corners"]["beyond"] == 0
        assert record["restored"] > 0
        margins = record["corners"]["least_margin_mticks"], record["corners"]["most_margin_mticks"]
        assert None not in margins
        assert 0 <= (margins[0] or 0) <= (margins[1] or 0) <= 2000
    # Where nothing can be known better, nothing is lost.
    exact = {record["basis"] for record in document["classes"] if record["corners"]["most_margin_mticks"] == 0}
    assert exact == {"freeze", "one-counter", "one-counter-capped"}


def test_the_figures_add_up(document: Document) -> None:
    classes = document["classes"]
    judged = sum(record["restored"] + sum(record["refused"].values()) for record in classes)
    assert judged == document["migrations"] == 500
    for record in classes:
        assert sum(cell[2] or 0 for cell in record["cells"]) == record["restored"]
        assert sum(cell[2] or 0 for cell in record["corners"]["cells"]) == record["corners"]["bounds"]
    assert sum(record["corners"]["number"] for record in classes) == document["corners"]
    refused = {name for record in classes for name in record["refused"]}
    assert refused == {
        "ClockWentBackwards",
        "ClocksDisagree",
        "ElapsedTooLong",
        "ElapsedUnknown",
        "FrequencyMismatch",
        "a warning",
    }


@pytest.mark.parametrize("about", study.ABOUT)
@pytest.mark.parametrize("factor", [2, Fraction(21, 20)])
def test_a_host_that_lies_is_caught(about: About, factor: int | Fraction) -> None:
    document = small(lie=factor, lie_about=about, migrations=500)
    assert not document["ok"]
    beyond = {record["basis"]: record["corners"]["beyond"] for record in document["classes"]}
    # A lie about a clock spoils no time that was taken from none.
    assert {beyond["freeze"], beyond["one-counter"]} == {0}
    assert beyond["declared"] > 0
    assert sum(record["beyond"] for record in document["classes"]) > 0
    told = next(finding for finding in document["first_findings"] if finding["what"] == "beyond the bound")
    assert abs(told["error_mticks"]) > 1000 * told["bound_ticks"]
    assert document["lie"] == {"about": about, "factor": str(factor)}


def test_every_class_that_goes_by_a_clock_catches_a_wrong_one() -> None:
    beyond = {record["basis"]: record["corners"]["beyond"] for record in small(lie=2, migrations=0)["classes"]}
    caught = {basis for basis, number in beyond.items() if number}
    assert caught == {"declared", "kernel", "assumed", "capped", "catch-up", "told"}


def test_less_than_declared_is_no_lie() -> None:
    document = small(lie=Fraction(1, 2), migrations=0)
    assert all(record["corners"]["beyond"] == 0 for record in document["classes"])
    # But the bound is loose then, and that is found too.
    assert not document["ok"]
    assert {finding["what"] for finding in document["first_findings"]} == {"a loose bound"}


def test_the_same_seed_draws_the_same() -> None:
    one, same, other = (small(seed=seed, frequencies=()) for seed in (5, 5, 6))
    assert one == same
    assert one["classes"] != other["classes"]
    # A migration is drawn from its seed and number alone, so that a finding can be looked at again.
    assert worlds.draw(5, 17) == worlds.draw(5, 17) != worlds.draw(5, 18)


def test_what_must_be_refused_and_is_not_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = next(drawn for number in range(100) if (drawn := worlds.draw(1, number)).refusal is None)
    monkeypatch.setattr("study.study.draw", lambda *_: replace(drawn, refusal="ElapsedUnknown"))
    (finding,) = small(migrations=1)["first_findings"]
    assert (finding["what"], finding["which"]) == ("let pass, where it had to be ElapsedUnknown", "migration 0")


@pytest.mark.parametrize("broken", worlds.BROKEN, ids=lambda broken: broken.__name__)
def test_each_broken_premise_is_refused(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "BROKEN", (broken,))
    monkeypatch.setattr(worlds, "_BASES", {})
    for number in range(50):
        drawn = worlds.draw(2, number)
        assert drawn.refusal is not None
        assert judge(drawn).refused == drawn.refusal


def test_no_corner_is_there_twice() -> None:
    seen = list(corners(frequencies=FEW))
    assert len(set(seen)) == len(seen) > 3_000


# The world itself, against plainer arithmetic.


@given(
    hz=st.integers(1, 2**32),
    rate=st.integers(-500_000, 500_000),
    at=st.fractions(0, 10**18, max_denominator=10**6),
    ticks=st.integers(-(10**15), 10**15),
)
def test_an_oscillator_comes_to_a_count_when_it_says(hz: int, rate: int, at: Fraction, ticks: int) -> None:
    oscillator = Oscillator(hz, rate, 1000, at)
    instant = oscillator.came_to(1000 + ticks)
    assert instant == at + ticks * Fraction(SECOND, hz) / (1 + Fraction(rate, PPB)) == at + oscillator.lasts(ticks)
    assert oscillator.count_at(instant) == 1000 + ticks
    assert oscillator.count_at(instant - Fraction(1, 10**9)) == 999 + ticks


def a_host(**changes: Any) -> Host:
    oscillator = Oscillator(SECOND, 0, 0, LEAP.tai_ns - 2 * SECOND)
    return replace(Host(oscillator, LEAP, "1" * 32, "2" * 32, oscillator.at, 0, 0, 10, 10), **changes)


def test_a_leap_second_as_the_kernel_shows_it() -> None:
    host = a_host()
    half = [host.stamp(count) for count in range(0, 5 * SECOND, SECOND // 2)]
    # 23:59:58, 23:59:59, 23:59:59 again, 00:00:00
    assert [(stamp.realtime_ns // (SECOND // 2)) % (2 * 86_400) - 2 * 86_400 for stamp in half[:6]] == [
        *range(-4, 0),
        *range(-2, 0),
    ]
    assert [stamp.tai_offset_s for stamp in half] == [36] * 4 + [37] * 6
    assert [stamp.leap for stamp in half] == ["insert"] * 4 + ["in-progress"] * 2 + ["passed"] * 4
    assert {stamp.tai_ns for stamp in half} == {host.oscillator.came_to(stamp.count) for stamp in half}


@given(
    error=st.fractions(-(10**9), 10**9, max_denominator=1000),
    drift=st.integers(-(10**6), 10**6),
    count=st.integers(0, 10**15),
    after=st.integers(-(10**6), 10**6),
)
def test_a_wall_clock_reads_its_error_and_its_drift(error: Fraction, drift: int, count: int, after: int) -> None:
    host = a_host(error_ns=error, drift_ppb=drift, read_after_ns=after)
    read_at = host.oscillator.at + count + after
    tai_ns = host.stamp(count).tai_ns
    assert tai_ns is not None
    assert 0 <= read_at + error + Fraction((count + after) * drift, PPB) - tai_ns < 1
    assert host.age_ns(count) == max(0, count + after)


def test_the_random_worlds_keep_their_premises() -> None:
    for number in range(300):
        drawn = worlds.draw(3, number)
        if drawn.refusal is not None or not isinstance(drawn.policy, Advance) or drawn.there.vouched != "declared":
            continue
        for host, count in ((drawn.there, drawn.taken), (drawn.here, drawn.steps[0])):
            read_at = host.read_at(count)
            within = host.max_error_ns + (read_at - host.synced_at) * Fraction(host.holdover_ppb, PPB)
            assert abs(host.clock_tai_ns(count) - read_at) <= within
            assert abs(read_at - host.oscillator.came_to(count)) <= host.width_ns


# The command.


def test_the_command_prints_one_document_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.study.corners", lambda lie, _: corners(lie, FEW))
    picture = tmp_path / "deep" / "study.svg"
    done = CliRunner().invoke(app, ["--migrations", "50", "--seed", "3", "--json", "--plot", str(picture)])
    assert done.exit_code == 0
    shown = json.loads(done.stdout)
    assert (shown["schema"], shown["seed"], shown["migrations"], shown["lie"]) == (study.SCHEMA, 3, 50, None)
    assert shown == small(migrations=50, seed=3, frequencies=FEW)
    drawn = picture.read_text()
    # Its thousands of dots are pixels: a page can hold it.
    assert "<image" in drawn
    assert len(drawn) < 200_000
    done = CliRunner().invoke(app, ["--migrations", "50", "--lie", "2", "--lie-about", "bracket"])
    assert done.exit_code == 1
    assert "beyond the bound" in done.stdout
    assert "No error exceeds" not in done.stdout
    assert Lie(Fraction(2), "bracket").of("bracket") == 2


@pytest.mark.parametrize("options", [("--migrations", "-1"), ("--lie", "0"), ("--lie", "big"), ("--lie-about", "me")])
def test_wrong_usage_exits_2(options: tuple[str, ...]) -> None:
    assert CliRunner().invoke(app, options).exit_code == 2


@pytest.mark.parametrize(
    ("options", "blocked", "extra"),
    [(("--plot", "x.svg"), "matplotlib", "plot"), ((), "typer", "cli"), ((), "rich", "cli")],
)
def test_a_missing_module_is_named_by_its_extra(
    options: tuple[str, ...], blocked: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(LAB))
    done = guestclock_command(*options, module="study.__main__", blocked=(blocked,))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"guestclock: this command needs extra packages: pip install 'guestclock[{extra}]'\n"


def test_the_package_has_no_study() -> None:
    done = guestclock_command("study")
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such command 'study'" in done.stderr
