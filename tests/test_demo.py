from __future__ import annotations

import copy
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.image
import numpy as np
import pytest
from typer.testing import CliRunner

from guestclock import demo
from guestclock.cli.app import app
from guestclock.demo import unicorn_vmm
from guestclock.demo.runner import judge
from guestclock.errors import CapabilityMissing
from guestclock.promise import Interval, expected_gap

if TYPE_CHECKING:
    from guestclock.demo.document import Document, PolicyRecord

ROUNDS = 3
FREEZE: PolicyRecord = {"name": "freeze", "max_ns": None}
ADVANCE: PolicyRecord = {"name": "advance", "max_ns": None}


@pytest.fixture(scope="module")
def document() -> Document:
    return demo.run(pause_ms=120, rounds=ROUNDS, progress=False)


def test_every_policy_keeps_its_promise_in_both_modes_on_both_counters(document: Document) -> None:
    seen = [(run["mode"], run["policy"]["name"], run["policy"]["max_ns"]) for run in document["runs"]]
    assert seen == [
        (mode, name, max_ns)
        for mode in ("fast", "exact")
        for name, max_ns in (("freeze", None), ("advance", None), ("advance", 40_000_000))
    ]
    for run in document["runs"]:
        for name in ("cntvct", "cntpct"):
            counter = run["counters"][name]
            low, high = counter["expected_gap_ticks"]
            assert counter["error_ticks"] == 0, (run["mode"], run["policy"], counter)
            assert low <= counter["guest_gap_ticks"] <= high
            assert run["mode"] == "fast" or low == high


def test_what_a_policy_hides_of_the_pause(document: Document) -> None:
    # Only exact mode knows the samples to the tick.
    for run in (run for run in document["runs"] if run["mode"] == "exact"):
        before, after = run["samples"][ROUNDS * unicorn_vmm.ROUND - 1 :][:2]
        passed = after["host_ticks"][0] - before["host_ticks"][0]
        hidden = passed - (after["cntvct"] - before["cntvct"])
        away = run["released_at"][0] - run["taken_at"][0]
        assert run["pause_ns"] == away * 16
        assert run["pause_ns"] >= 120_000_000
        if run["policy"]["name"] == "freeze":
            assert hidden == away
        elif run["policy"]["max_ns"] is None:
            assert hidden == 0
        else:
            assert hidden == away - 40_000_000 // 16


def test_the_alarm_set_before_the_checkpoint_rings_after_the_restore(document: Document) -> None:
    for run in document["runs"]:
        # Saved with the last alarm pending; the restored guest takes it and one for each round but its last.
        assert run["irq_delivered"] == 2 * ROUNDS - 1
        assert run["irq_delivered_after_restore"] == ROUNDS


def test_the_documents_shape(document: Document) -> None:
    assert document == json.loads(json.dumps(document))
    assert document["schema"] == "guestclock.demo/1"
    for run in document["runs"]:
        assert set(run) >= {
            "policy",
            "backend",
            "mode",
            "counter_source",
            "frequency_hz",
            "pause_ns",
            "irq_delivered",
            "counters",
        }
        assert set(run["policy"]) == {"name", "max_ns"}
        assert (run["backend"], run["counter_source"], run["frequency_hz"]) == (
            "unicorn",
            "clock_monotonic",
            62_500_000,
        )
        assert run["same_counter"] is True
        assert list(run["counters"]) == ["cntvct", "cntpct"]
        for counter in run["counters"].values():
            assert set(counter) == {"guest_gap_ticks", "expected_gap_ticks", "error_ticks"}
        assert len(run["samples"]) == 2 * ROUNDS * unicorn_vmm.ROUND


@pytest.mark.parametrize(("mode", "ticks"), [("exact", 1), ("exact", -1), ("fast", 62_500)])
@pytest.mark.parametrize("policy", [FREEZE, ADVANCE], ids=["freeze", "advance"])
def test_a_wrong_restore_is_found_on_both_counters(mode: str, ticks: int, policy: PolicyRecord) -> None:
    wrong = demo.run(pause_ms=20, rounds=1, modes=[mode], policies=[policy], plant_fault_ticks=ticks, progress=False)
    (run,) = wrong["runs"]
    errors = [counter["error_ticks"] for counter in run["counters"].values()]
    if mode == "exact":
        assert errors == [1, 1]
    else:
        assert all(0 < error <= ticks for error in errors)


def test_a_vmm_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)failed to save.*--rounds"):
        demo.run(pause_ms=0, rounds=1_000_000, progress=False)


def test_a_negative_pause_is_refused() -> None:
    with pytest.raises(ValueError, match="pause_ms"):
        demo.run(pause_ms=-1, progress=False)


def test_progress_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    demo.run(pause_ms=0, rounds=1, modes=["exact"], policies=[FREEZE])
    out, err = capfd.readouterr()
    assert out == ""
    assert "1/1" in err


def test_the_table_shows_every_run_and_counter(document: Document, capsys: pytest.CaptureFixture[str]) -> None:
    demo.print_table(document)
    out = capsys.readouterr().out
    assert out.count("CNTVCT") == out.count("CNTPCT") == 6
    for policy in ("Freeze()", "Advance()", "Advance(max_ns=40_000_000)"):
        assert out.count(policy) == 2


def test_the_table_says_where_an_interval_is_wide(document: Document, capsys: pytest.CaptureFixture[str]) -> None:
    wide = copy.deepcopy(document)
    counter = wide["runs"][0]["counters"]["cntpct"]
    counter["expected_gap_ticks"][1] = counter["expected_gap_ticks"][0] + 62_500
    demo.print_table(wide)
    assert capsys.readouterr().out.count("1000 (wide)") == 1


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture_has_a_line_for_each_policy(document: Document, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    demo.draw(document, path)
    if suffix == "svg":
        text = path.read_text()
        assert text.count("#0072b2") > 1
        assert text.count("#d55e00") > 1
        assert text.count("#009e73") > 1
        return
    pixels = (matplotlib.image.imread(path)[:, :, :3] * 255).round().astype(np.uint8)
    assert pixels.shape[0] > 500
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):
        assert (pixels == np.array(colour, dtype=np.uint8)).all(axis=2).sum() > 100


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no runs"):
        demo.draw({"schema": demo.SCHEMA, "runs": []}, tmp_path / "picture.png")


def test_the_examples_vmm_is_the_packages() -> None:
    example = Path(__file__).parent.parent / "examples" / "unicorn_vmm.py"
    assert Path(unicorn_vmm.__file__).read_text() == example.read_text()


def gap(policy: PolicyRecord, **ends: tuple[int, int]) -> tuple[int, int]:
    intervals = {name: Interval(*pair) for name, pair in ends.items()}
    result = expected_gap(policy["name"], policy["max_ns"], 1_000, **intervals)
    return result.low, result.high


def test_promises_from_exact_counts() -> None:
    # 1 kHz: 10 before the checkpoint, 1 000 away, 30 after.
    ends = {"last_read": (100, 100), "taken": (110, 110), "released": (1_110, 1_110), "first_read": (1_140, 1_140)}
    assert gap(FREEZE, **ends) == (40, 40)
    assert gap(ADVANCE, **ends) == (1_040, 1_040)
    assert gap({"name": "advance", "max_ns": 200_999_999}, **ends) == (240, 240)
    assert gap({"name": "advance", "max_ns": 0}, **ends) == (40, 40)
    assert gap({"name": "advance", "max_ns": 10**12}, **ends) == (1_040, 1_040)


def test_promises_from_brackets() -> None:
    ends = {"last_read": (98, 101), "taken": (109, 112), "released": (1_105, 1_111), "first_read": (1_140, 1_142)}
    assert gap(FREEZE, **ends) == ((109 - 101) + (1_140 - 1_111), (112 - 98) + (1_142 - 1_105))
    assert gap(ADVANCE, **ends) == (1_140 - 101, 1_142 - 98)
    # A cap of about the pause itself: it may or may not have bitten.
    assert gap({"name": "advance", "max_ns": 995_000_000}, **ends) == (37 + 995, 1_044)


@pytest.mark.parametrize(("count", "distance"), [(9, 1), (10, 0), (15, 0), (20, 0), (23, 3)])
def test_the_distance_from_an_interval(count: int, distance: int) -> None:
    assert Interval(10, 20).distance(count) == distance


def files(first_after: int) -> tuple[dict[str, Any], dict[str, Any]]:
    saved = {
        "counter": {"source": "clock_monotonic", "frequency_hz": 1_000},
        "mode": "exact",
        "round": 2,
        "irqs": 1,
        "host": {"samples": [[[10, 12], [10, 12]], [[20, 20], [21, 21]]], "taken_at": [30, 30]},
    }
    restored = {
        "guest": {"samples": [[2**64 - 8, 2**64 - 8], [2**64 - 2, 2**64 - 1], [first_after, first_after], [99, 99]]},
        "host": {"samples": [[[140, 140], [140, 140]], [[150, 155], [150, 155]]], "released_at": [130, 130]},
        "irqs": 2,
        "same_counter": True,
    }
    return saved, restored


def test_the_judge_takes_the_tightest_samples_and_wraps_as_counters_do() -> None:
    record = judge(*files(first_after=18), FREEZE)
    assert record["pause_ns"] == 100_000_000
    assert record["irq_delivered"] == 3
    # From 20 and 21 to 140 with 100 ticks away: 20 and 19, across the counters' wrap.
    assert record["counters"] == {
        "cntvct": {"guest_gap_ticks": 20, "expected_gap_ticks": [20, 20], "error_ticks": 0},
        "cntpct": {"guest_gap_ticks": 19, "expected_gap_ticks": [19, 19], "error_ticks": 0},
    }


def test_the_judge_finds_a_clock_that_went_backwards() -> None:
    record = judge(*files(first_after=2**64 - 12), FREEZE)
    assert record["counters"]["cntvct"]["guest_gap_ticks"] == -10
    assert record["counters"]["cntvct"]["error_ticks"] == 30


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


def test_only_the_counters_that_were_restored_are_judged() -> None:
    saved, restored = files(first_after=18)
    record = judge(saved, restored | {"counters": ["cntvct"]}, FREEZE, backend="kvm")
    assert list(record["counters"]) == ["cntvct"]
    assert record["backend"] == "kvm"
