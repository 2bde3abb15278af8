"""A leg that proved nothing isn't green, and the cache holds nothing half made. That machines boot is kvm-test's."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed import cache, suite
from testbed.image import TREE
from testbed.legs import LEGS

CASES = {
    "passed": '<testcase classname="a" name="one"/>',
    "failed": '<testcase classname="a" name="two"><failure/></testcase>',
    "broken teardown": '<testcase classname="a" name="one"><error/></testcase>',
    "skipped": '<testcase classname="a" name="three"><skipped/></testcase>',
}


@pytest.mark.parametrize(
    ("cases", "status", "verdict"),
    [
        (["passed"], 0, (1, 0)),
        (["passed", "failed"], 1, (1, 1)),
        (["passed", "broken teardown"], 1, (0, 1)),
        (["passed", "skipped"], 0, (1, 0)),
        (["skipped"], 0, (0, 1)),
        ([], 5, (0, 1)),
        (["passed"], 2, (1, 1)),
        (None, 124, (0, 1)),
        (None, 0, (0, 1)),
    ],
)
def test_a_leg_is_green_only_if_tests_passed(
    cases: list[str] | None,
    status: int,
    verdict: tuple[int, int],
    tmp_path: Path,
) -> None:
    if cases is not None:
        (tmp_path / "junit.xml").write_text(f"<testsuite>{''.join(CASES[case] for case in cases)}</testsuite>")
    outcome = suite.judged("6.12", tmp_path, status)
    assert (outcome.passed, outcome.failed) == verdict
    assert str(outcome) == f"LEG 6.12: {verdict[0]} passed, {verdict[1]} failed"


@pytest.mark.parametrize(
    ("said", "status", "verdict"),
    [
        ("test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.34s", 0, (4, 0)),
        ("test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out", 101, (3, 1)),
        ("test result: ok. 0 passed; 0 failed; 4 ignored; 0 measured; 0 filtered out", 0, (0, 1)),
        ("test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out", 125, (4, 1)),
        ("[   12.345678] Kernel panic - not syncing", 125, (0, 1)),
        ("", 0, (0, 1)),
    ],
)
def test_a_leg_without_python_is_judged_by_its_console(
    said: str,
    status: int,
    verdict: tuple[int, int],
    tmp_path: Path,
) -> None:
    (tmp_path / "console.log").write_text(f"\nrunning 4 tests\n{said}\n\n")
    outcome = suite.judged("x86", tmp_path, status)
    assert (outcome.passed, outcome.failed) == verdict


def test_what_is_half_made_is_not_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUESTCLOCK_CACHE", str(tmp_path / "cache"))

    def fail(place: Path) -> None:
        (place / "first").touch()
        raise RuntimeError

    def make(place: Path) -> None:
        (place / "first").touch()
        (place / "second").touch()

    with pytest.raises(RuntimeError):
        cache.made("kind", "key", fail)
    assert [path.name for path in cache.folder().iterdir()] == ["kind.lock"]
    # As one that was killed leaves it.
    (cache.folder() / "kind.part-killed").mkdir()
    made = cache.made("kind", "key", make)
    assert sorted(path.name for path in made.iterdir()) == ["first", "second"]
    assert cache.made("kind", "key", fail) == made
    assert sorted(path.name for path in cache.folder().iterdir()) == ["kind-key", "kind.lock"]


def test_a_short_run_has_the_whole_suite_once_and_every_leg() -> None:
    legs = {name: leg for name, leg in LEGS.items() if leg.architecture.python and not leg.guests}
    commands = {name: suite.suite_of(leg, short=True) for name, leg in legs.items()}
    assert {name for name, command in commands.items() if set(suite.TESTS) <= set(command)} == {suite.WHOLE}
    assert all(set(suite.SHORT) <= set(command) for name, command in commands.items() if name != suite.WHOLE)
    assert all((TREE / test).is_file() for test in suite.SHORT)
    assert all(suite.suite_of(leg, short=False) == (*suite.PYTEST, *suite.TESTS) for leg in legs.values())


def test_a_leg_with_guests_has_their_tests_in_short_and_all() -> None:
    for leg in (leg for leg in LEGS.values() if leg.guests):
        assert suite.suite_of(leg, short=False) == (*suite.PYTEST, suite.GUESTS)
        assert suite.suite_of(leg, short=True)[-1] == suite.GUESTS
    assert (TREE / suite.GUESTS).is_dir()


def test_a_short_run_alone_leaves_out_what_is_the_nights() -> None:
    for leg in (leg for leg in LEGS.values() if leg.architecture.python):
        assert "not nightly" in suite.suite_of(leg, short=True)
        assert "not nightly" not in suite.suite_of(leg, short=False)
