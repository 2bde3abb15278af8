"""The demonstration: it says what is so, and every fault that is planted in guestclock makes it fail."""

from __future__ import annotations

import copy
import json
import os
import platform
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from typer.testing import CliRunner

from guestclock import demo
from guestclock.cli.app import app
from guestclock.demo import runner, unicorn_vmm
from guestclock.demo.document import Document, RowRecord, RunRecord
from guestclock.demo.judge import LONGEST_NS
from guestclock.demo.runner import describe, promise, row, rows_of
from guestclock.errors import CapabilityMissing
from guestclock.promise import Interval, expected_shift

ROUNDS = 3
HZ = 62_500_000
FREEZE, ADVANCE = row("freeze"), row("advance")
CATCH_UP = row("catch-up", step_ns=250_000_000, interval_ns=10_000_000)


@pytest.fixture(scope="module")
def document() -> Document:
    return demo.run(pause_ms=120, rounds=ROUNDS, progress=False)


@pytest.fixture(scope="module")
def exact() -> Document:
    rows = [FREEZE, ADVANCE, row("advance", max_ns=40_000_000), CATCH_UP]
    return demo.run(pause_ms=120, load_ms=10, rounds=ROUNDS, mode="exact", rows=rows, progress=False)


def test_guestclock_keeps_every_promise_and_a_replay_without_it_does_not(document: Document) -> None:
    assert document["ok"], document["conclusion"]
    assert [run["row"] for run in document["runs"]] == rows_of("unicorn", 120)
    control, *others = document["runs"]
    assert [run["verdict"] for run in document["runs"]] == ["wrong", *["kept"] * 5]
    # The state is read after the stop and replayed before 200 ms of loading: the guest's clock has gone on by itself.
    assert control["off_by_ticks"] >= HZ // 5
    assert {finding["kind"] for finding in control["findings"]} >= {"gap"}
    for run in others:
        assert (run["off_by_ticks"], run["apart_ticks"], run["lost"], run["findings"]) == (0, 0, 0, []) or (
            # By value a counter is off by a known error, which may be more than nothing here.
            run["row"]["kept"] == "value" and abs(run["off_by_ticks"]) <= run["stated_ticks"]
        )
        assert run["pause_ns"] >= 320_000_000
        assert len(run["samples"]) == unicorn_vmm.VCPUS


def test_in_exact_mode_there_is_nothing_to_doubt(exact: Document) -> None:
    assert exact["ok"], exact["conclusion"]
    for run in exact["runs"]:
        assert (run["mode"], run["attempts"]) == ("exact", 1)
        assert (run["off_by_known_to_ticks"], run["apart_known_to_ticks"]) == (0, 0)
        ahead = [sample["ahead_ticks"] for vcpu in run["samples"] for sample in vcpu]
        assert {tuple(each) for each in ahead if each} == {(0, 0)}


def test_what_a_policy_hides_of_the_pause(exact: Document) -> None:
    for run in exact["runs"]:
        before, after = run["samples"][0][ROUNDS * unicorn_vmm.ROUND - 1], run["samples"][0][-1]
        passed = after["host_ticks"][0] - before["host_ticks"][0]
        hidden = passed - (after["cntvct"] - before["cntvct"])
        away = run["released_at"][0] - run["taken_at"][0]
        assert run["pause_ns"] == away * 16 >= 130_000_000
        gives = {"freeze": 0, "advance": 40_000_000 // 16 if run["row"]["max_ns"] else away, "catch-up": away}
        assert hidden == away - gives[run["row"]["policy"]]
    # The steps of the catch-up: as many as it takes.
    assert exact["runs"][-1]["steps"] == -(-exact["runs"][-1]["pause_ns"] // 250_000_000)


def test_the_alarm_set_before_the_checkpoint_rings_after_the_restore(document: Document) -> None:
    for run in document["runs"]:
        # Saved with the last alarm pending; the restored guest takes it and one for each round but its last.
        rounds = len(run["samples"][0]) // unicorn_vmm.ROUND
        assert rounds == 2 * ROUNDS or run["row"]["policy"] == "catch-up"
        assert run["interrupts"] == (rounds - 1) * unicorn_vmm.VCPUS
        assert run["latest_interrupt_ticks"] is not None


def test_the_documents_shape(document: Document) -> None:
    assert document == json.loads(json.dumps(document))
    assert document["schema"] == "guestclock.demo/2"
    assert set(document) == set(Document.__annotations__)
    for run in document["runs"]:
        assert set(run) == set(RunRecord.__annotations__)
        assert set(run["row"]) == set(RowRecord.__annotations__)
        assert (run["backend"], run["mode"], run["frequency_hz"]) == ("unicorn", "fast", HZ)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs one row of the demonstration on a guestclock with a fault, and gives the run and its document."""

    def planted(fault: str, row: RowRecord, *, mode: Any = "fast", pause_ms: int = 0) -> tuple[RunRecord, Document]:
        monkeypatch.setitem(runner.VMMS, "unicorn", "planted_vmm")
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
        monkeypatch.setenv("PLANT", fault)
        monkeypatch.setenv("PLANTED", str(tmp_path / "planted"))
        planting = partial(
            runner.run, pause_ms=pause_ms, load_ms=0, rounds=ROUNDS + 2, rows=[row], mode=mode, progress=False
        )
        monkeypatch.setattr(demo, "run", lambda **_: planting())
        done = CliRunner().invoke(app, ["demo", "--json", "--plot", str(tmp_path / "picture.svg")])
        found: Document = json.loads(done.stdout)
        assert (done.exit_code == 0) is found["ok"]
        (run,) = found["runs"]
        demo.print_table(found)
        return run, found

    return planted


@pytest.mark.parametrize(
    ("fault", "row", "kinds"),
    [
        ("release 1 s late", FREEZE, {"interval"}),
        ("alarm 250 ms late", FREEZE, {"wrong-interrupt", "late-interrupt"}),
        ("alarm 10 ms early", FREEZE, {"wrong-interrupt"}),
        ("alarm 90 s late", FREEZE, {"lost-interrupt"}),
        ("alarm lost", FREEZE, {"lost-interrupt"}),
        ("alarm lost", ADVANCE, {"lost-interrupt"}),
        ("1 s forward after 40 ms", FREEZE, {"moved"}),
        ("1 s forward after 40 ms", ADVANCE, {"moved"}),
        ("1 s back", FREEZE, {"gap", "backward"}),
        ("vCPUs apart", FREEZE, {"vcpu-skew", "gap", "view-skew"}),
        ("slow", FREEZE, {"moved"}),
        ("a step gives too much", CATCH_UP, {"gap"}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_planted_fault_makes_it_fail(plant: Any, fault: str, row: RowRecord, kinds: set[str]) -> None:
    run, found = plant(fault, row)
    assert run["verdict"] == "wrong"
    assert {finding["kind"] for finding in run["findings"]} >= kinds
    # No second run hides it.
    assert run["attempts"] == 1
    assert found["conclusion"].startswith(f"Something is wrong. {describe(row)}: ")
    assert (run["lost"] > 0) is ("lost-interrupt" in kinds)
    if fault == "alarm 250 ms late":
        # By the VMM's looks, of which the last in vain came before the 250 ms were over.
        assert max(finding["ticks"] for finding in run["findings"] if finding["kind"] == "late-interrupt") > 0
    if fault.startswith("1 s"):
        assert max(finding["ticks"] or 0 for finding in run["findings"]) > 0.9 * HZ
    if fault == "1 s back":
        assert -1.0 * HZ <= run["off_by_ticks"] < -0.9 * HZ


@pytest.mark.parametrize("row", [FREEZE, ADVANCE], ids=["freeze", "advance"])
@pytest.mark.parametrize(("fault", "ticks"), [("1 tick forward", 1), ("1 tick back", -1)])
def test_in_exact_mode_a_single_tick_is_found(plant: Any, fault: str, ticks: int, row: RowRecord) -> None:
    run, _ = plant(fault, row, mode="exact")
    assert (run["verdict"], run["off_by_ticks"]) == ("wrong", ticks)
    gaps = [finding["ticks"] for finding in run["findings"] if finding["kind"] == "gap"]
    assert gaps == [1] * 2 * unicorn_vmm.VCPUS


def test_a_release_that_was_late_once_is_not_tried_again(plant: Any) -> None:
    run, _ = plant("release 1 s late, the first time", FREEZE)
    assert (run["verdict"], run["attempts"]) == ("wrong", 1)


def test_an_interval_that_stays_wide_tells_nothing(plant: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run, found = plant("release 20 ms late", FREEZE)
    assert (run["verdict"], run["attempts"]) == ("unclear", 3)
    assert "too busy to tell" in found["conclusion"]
    assert "Freeze(): run 3 times" in capsys.readouterr().out


def test_without_a_fault_the_planted_guestclock_is_sound(plant: Any) -> None:
    for sound in (FREEZE, CATCH_UP):
        run, found = plant("nothing", sound)
        assert found["ok"], run["findings"]


def test_a_judge_that_finds_nothing_wrong_with_a_replay_is_not_believed(
    document: Document, capsys: pytest.CaptureFixture[str]
) -> None:
    blind = copy.deepcopy(document)
    blind["runs"][0] |= {"findings": [], "verdict": "kept"}
    assert runner.is_ok(document["runs"])
    assert not runner.is_ok(blind["runs"])
    blind["conclusion"] = runner.conclusion(blind["runs"])
    assert "it sees nothing" in blind["conclusion"]
    demo.print_table(blind)
    assert "not found wrong" in capsys.readouterr().out


def test_a_vmm_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)failed to save.*--rounds"):
        demo.run(pause_ms=0, rounds=1_000_000, progress=False)
    monkeypatch.setitem(runner.VMMS, "unicorn", "planted_vmm")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("PLANT", "fails")
    done = CliRunner().invoke(app, ["demo", "--plot", str(tmp_path / "picture.svg")])
    assert done.exit_code == 1
    assert done.stderr.endswith("guestclock: the VMM failed to save (exit status 1):\nthe VMM fell over\n")


@pytest.mark.parametrize("name", ["pause_ms", "load_ms"])
def test_a_negative_time_is_refused(name: str) -> None:
    options: dict[str, Any] = {name: -1, "progress": False}
    with pytest.raises(ValueError, match=name):
        demo.run(**options)


def test_progress_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    demo.run(pause_ms=0, load_ms=0, rounds=1, mode="exact", rows=[FREEZE])
    out, err = capfd.readouterr()
    assert out == ""
    assert "1/1" in err


def test_the_table_has_a_row_for_each_way_and_ends_in_plain_words(
    document: Document, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.print_table(document)
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("kept") == 5 + 1  # and "time kept by"
    # On a busy host the control has an interrupt that comes late, too, and its cell is folded.
    assert "WRONG:" in out
    assert "gap" in out
    assert "0 of 10" in out
    assert out.endswith(document["conclusion"])
    for heading in ("guest's clock off by", "vCPUs apart", "interrupts lost", "verdict"):
        assert heading in out


def test_rows_say_what_they_are() -> None:
    said = [(describe(each), promise(each)) for each in rows_of("unicorn", 1_000)]
    assert said == [
        ("no library: state replayed late", "none of the pause"),
        ("Freeze(), by value", "none of the pause"),
        ("Freeze()", "none of the pause"),
        ("Advance()", "all of it"),
        ("Advance(max_ns=500_000_000)", "500 ms of it"),
        ("CatchUp(250_000_000, 40_000_000)", "all of it, by 250 ms"),
    ]
    assert [describe(each) for each in rows_of("kvm", 1_000)] == [said for said, _ in said[2:5]]


@pytest.mark.parametrize(
    ("ns", "words"), [(0, "0 ns"), (144, "144 ns"), (25_184, "25.1 µs"), (1_423_456_789, "1.42 s")]
)
def test_durations_have_three_digits(ns: int, words: str) -> None:
    assert runner.about(ns) == words


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture_has_a_line_for_each_row(document: Document, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    demo.draw(document, path)
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
    if suffix == "svg":
        text = path.read_text()
        assert all(text.count(colour) > 2 for colour in colours)
        # The failing one, in both halves.
        assert text.count("stroke-dasharray") > 2
        return
    pixels = (matplotlib.image.imread(path)[:, :, :3] * 255).round().astype(np.uint8)
    assert pixels.shape[0] > 500
    for colour in colours:
        rgb = np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)
        # One may lie under another.
        assert (pixels == rgb).all(axis=2).sum() > 20


def test_nothing_is_drawn_of_nothing(document: Document, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no runs"):
        demo.draw(document | {"runs": []}, tmp_path / "picture.png")


def test_the_examples_vmm_is_the_packages() -> None:
    example = Path(__file__).parent.parent / "examples" / "unicorn_vmm.py"
    assert Path(unicorn_vmm.__file__).read_text() == example.read_text()


def shift(row: RowRecord, taken: tuple[int, int], released: tuple[int, int], steps: int = 0) -> tuple[int, int]:
    result = expected_shift(
        row["policy"],
        row["max_ns"],
        1_000,
        taken=Interval(*taken),
        released=Interval(*released),
        step_ns=row["step_ns"] or 0,
        steps=steps,
    )
    return result.low, result.high


def test_promises_from_exact_counts() -> None:
    # 1 kHz: 1 000 away.
    ends = (110, 110), (1_110, 1_110)
    assert shift(FREEZE, *ends) == (1_000, 1_000)
    assert shift(ADVANCE, *ends) == (0, 0)
    assert shift(row("advance", max_ns=200_999_999), *ends) == (800, 800)
    assert shift(row("advance", max_ns=0), *ends) == (1_000, 1_000)
    assert shift(row("advance", max_ns=10**12), *ends) == (0, 0)
    steps = row("catch-up", step_ns=300_000_000, interval_ns=1)
    assert [shift(steps, *ends, step)[0] for step in range(5)] == [1_000, 700, 400, 100, 0]
    assert shift(row("catch-up", max_ns=50_000_000, step_ns=300_000_000), *ends, 1) == (650, 650)


def test_promises_from_brackets() -> None:
    ends = (109, 112), (1_105, 1_111)
    assert shift(FREEZE, *ends) == (1_105 - 112, 1_111 - 109)
    assert shift(ADVANCE, *ends) == (0, 0)
    # A cap of about the pause itself: it may or may not have bitten.
    assert shift(row("advance", max_ns=995_000_000), *ends) == (0, 7)


@pytest.mark.parametrize(("count", "distance"), [(9, 1), (10, 0), (15, 0), (20, 0), (23, 3)])
def test_the_distance_from_an_interval(count: int, distance: int) -> None:
    assert Interval(10, 20).distance(count) == distance


def test_on_kvm_elsewhere_it_says_why_and_exits_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    done = CliRunner().invoke(app, ["demo", "--backend", "kvm"])
    assert done.exit_code == 2
    assert "needs /dev/kvm on an arm64 machine: this machine is x86_64" in done.stderr
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(CapabilityMissing, match=r"there is no /dev/kvm|not for this user") as caught:
        demo.run(backend="kvm")
    assert caught.value.capability == "kvm"


def test_what_is_too_long_on_one_backend() -> None:
    assert LONGEST_NS["unicorn"] < LONGEST_NS["kvm"] < 10**9
