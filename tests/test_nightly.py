"""A night's result file says what became of each part, and counts what its log counts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from nightly import __main__ as nightly
from nightly.counts import counts
from nightly.parts import NIGHT, Night, Part
from stress import __main__ as stress


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ("==== 1 failed, 347 passed, 2 skipped in 93.10s (0:01:33) ====\n", {"failed": 1, "passed": 347, "skipped": 2}),
        ("3 passed in 0.01s\nand\n4 passed in 0.02s\n", {"passed": 7}),
        ("test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured\n", {"passed": 12, "failed": 0, "ignored": 3}),
        ("LEG 6.1: 292 passed, 0 failed\n[6.1] 292 passed in 3s\n", {"6.1 passed": 292, "6.1 failed": 0}),
        (
            "a.gz: 6.1, seed 9: 60 sequences, 12 steps, 10 comparisons, 1 (9%) with more than one; 0 divergences\n" * 2,
            {"sequences": 120, "steps": 24, "comparisons": 20, "divergences": 0},
        ),
        ("7 caught, 1 survived, 2 not judged\n", {"caught": 7, "survived": 1, "not": 2}),
        ("20 mutants tested in 3m: 1 missed, 19 caught\n", {"mutants": 20, "missed": 1, "caught": 19}),
        ("stat::number_of_executed_units: 100000000\n", {"number_of_executed_units": 100_000_000}),
        ("200,000 random migrations, seed 1, and 5,184 corners\n", {"random": 200_000, "corners": 5184}),
        ("count: racing reads = 1000000000\ncount: failures = 0\n", {"racing reads": 10**9, "failures": 0}),
        ("it had 3 passed over\n", {}),
    ],
)
def test_a_log_is_counted(log: str, found: dict[str, int]) -> None:
    assert counts(log) == found


PRINTS = "print('count: things = 3')"


@pytest.mark.parametrize(
    ("program", "limit_s", "outcome"),
    [
        (PRINTS, 60, "passed"),
        (f"{PRINTS}; raise SystemExit(3)", 60, "failed"),
        (f"import time; {PRINTS}; import sys; sys.stdout.flush(); time.sleep(600)", 3, "out of time"),
    ],
)
def test_a_part_ends_as_its_program_does(program: str, limit_s: int, outcome: str, tmp_path: Path) -> None:
    part = Part("part", (sys.executable, "-c", program), limit_s)
    told = nightly.run(part, [*part.command], tmp_path)
    assert told["outcome"] == outcome
    assert outcome == "out of time" or told["counts"] == {"things": 3}
    assert (tmp_path / told["log"]).is_file()


def test_the_result_file_has_each_part_and_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = (Part("good", (sys.executable, "-c", PRINTS)), Part("bad", (sys.executable, "-c", "raise SystemExit(1)")))
    monkeypatch.setattr(nightly, "NIGHT", ((parts[:1],), (parts[1:],)))
    monkeypatch.setattr(nightly, "said", lambda *command: "" if "status" in command else " ".join(command))
    for only, status in (((), 1), (("--only", "good"), 0)):
        monkeypatch.setattr(sys, "argv", ["nightly", "--out", str(tmp_path), *only])
        assert nightly.main() == status
        document = json.loads((tmp_path / "result.json").read_text())
        assert document["commit"] == "git rev-parse HEAD"
        assert document["ok"] == (status == 0)
        assert document["all_parts"] == (not only)
        outcomes = [(part["name"], part["outcome"]) for part in document["parts"]]
        assert outcomes == [("good", "passed"), ("bad", "failed")][: 1 if only else 2]


def test_parts_run_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two waits for the other's file, which none does before it has begun."""
    meets = "import pathlib, sys, time; own, other = map(pathlib.Path, sys.argv[1:]); own.touch()\n"
    meets += "while not other.exists(): time.sleep(0.01)\n"
    names = ("one", "other")
    one, other = (
        Part(name, (sys.executable, "-c", meets, str(tmp_path / name), str(tmp_path / to)))
        for name, to in zip(names, names[::-1], strict=True)
    )
    monkeypatch.setattr(nightly, "NIGHT", (((one,), (other,)),))
    monkeypatch.setattr(nightly, "said", lambda *_: "")
    monkeypatch.setattr(sys, "argv", ["nightly", "--out", str(tmp_path)])
    assert nightly.main() == 0


def test_a_part_gets_the_nights_seed_and_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prints = "import sys; print('count: seed =', sys.argv[1]); print('count: runs =', sys.argv[2])"
    seeded = Part("seeded", (sys.executable, "-c", prints, "{seed}", "{share:250}"))
    monkeypatch.setattr(nightly, "NIGHT", (((seeded,),),))
    monkeypatch.setattr(nightly, "said", lambda *_: "")
    for percent, runs in (((), 250), (("--percent", "2"), 5), (("--percent", "1"), 3)):
        monkeypatch.setattr(sys, "argv", ["nightly", "--out", str(tmp_path), *percent])
        nightly.main()
        document = json.loads((tmp_path / "result.json").read_text())
        assert document["parts"][0]["counts"] == {"seed": document["seed"], "runs": runs}
        assert document["parts"][0]["command"][-2:] == [str(document["seed"]), str(runs)]
        assert document["percent"] == int(percent[1] if percent else 100)


def test_what_is_random_has_the_nights_seed_and_its_share() -> None:
    def with_field(field: str) -> set[str]:
        parts = (part for together in NIGHT for parts in together for part in parts)
        return {part.name for part in parts if any(field in word for word in part.command)}

    ours = {"fuzz", "stress-damage", "stress-reads", "deep-model", "deep-rust"}
    random = ours | {f"stress-{part}" for part in stress.PARTS}
    assert with_field("{seed}") == random
    assert with_field("{share:") == {*random, "migrate-test"}
    assert with_field("{shard}") == {"mutants"}
    shards = [Night(seed, percent).written("{shard}") for seed, percent in ((7, 100), (7, 5), (27, 5), (5, 30))]
    assert shards == ["0/1", "7/20", "7/20", "2/3"]
    assert [Night(7, percent).written("SHORT={short}") for percent in (100, 99)] == ["SHORT=", "SHORT=1"]


@pytest.mark.parametrize("part", stress.PARTS)
def test_each_part_of_stress_runs_and_counts(
    part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["stress", part, "--runs", "3", "--seed", "7"])
    assert stress.main() == 0
    found = counts(capsys.readouterr().out)
    assert found.pop("stress failures") == 0
    assert sum(found.values()) >= 3


def test_a_changed_tree_is_no_commits_night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nightly, "NIGHT", (((Part("good", (sys.executable, "-c", PRINTS)),),),))
    monkeypatch.setattr(nightly, "said", lambda *_: "M README.md")
    monkeypatch.setattr(sys, "argv", ["nightly", "--out", str(tmp_path)])
    assert nightly.main() == 1
    assert json.loads((tmp_path / "result.json").read_text())["changed_files"] == ["M README.md"]
