"""Each argument of each public call, with each value that it can't mean, is refused in words (lab/stress/sweep.py)."""

from __future__ import annotations

import gc
import operator
import random
import warnings
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from stress.sweep import WRONG, Case, cases, drawn, given, sweep


@pytest.fixture(name="_careless")
def fixture_careless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restores and pauses are dropped here, which warns, and files are written."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        # The collection looks through what the test has made, and not through all modules, which takes a second.
        gc.freeze()
        yield
        gc.collect()
        gc.unfreeze()


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
@pytest.mark.usefixtures("_careless")
def test_every_wrong_argument_is_refused_in_words(case: Case) -> None:
    assert sweep([case], WRONG) == []


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
@pytest.mark.usefixtures("_careless")
def test_the_right_arguments_are_right(case: Case) -> None:
    # Else a call would refuse everything, and the sweep would see nothing. A KvmVm can't be made here.
    call, arguments = case.make()
    if case.name != "KvmVm.__new__":
        call(**arguments)


class Planted:
    """Calls with a fault each."""

    @staticmethod
    def silent(n: int) -> None:
        """Takes anything."""

    @staticmethod
    def wrapping(n: int) -> int:
        """Takes integers that are out of range."""
        return np.uint64(operator.index(n) % 2**64).item()

    @staticmethod
    def broken(n: int | None) -> None:
        raise SystemError("error return without exception set") if n is None else ValueError("no")

    @staticmethod
    def panicking(n: int) -> None:
        if n == -1:
            raise PanicException("called `Option::unwrap()` on a `None` value")
        if type(n) is not int or n != 1:
            raise ValueError("no")

    @staticmethod
    def talkative(n: int) -> None:
        raise TypeError(f"argument 'n': {type(n).__name__!r} object cannot be converted to 'PyInt'")

    @staticmethod
    def right(n: int) -> None:
        if type(n) is not int or not 0 <= n < 2**64:
            raise ValueError(f"n isn't from 0 to 2**64 - 1: {str(n)[:20]}")


class PanicException(BaseException):
    """Stands for PyO3's, which is no `Exception` either."""


def test_the_sweep_finds_planted_faults() -> None:
    found = defaultdict(set)
    for name in ("silent", "wrapping", "broken", "panicking", "talkative", "right"):
        call = getattr(Planted, name)
        for line in sweep([Case(name, partial(given, call, n=1), {"n": "int"})], WRONG):
            found[name].add(line.removeprefix(f"{name}(n="))
    assert {"None) is taken in silence: n", "True) is taken in silence: n"} < found["silent"]
    assert "-1) is taken in silence: n" in found["wrapping"]
    assert "None) ends in SystemError: error return without exception set" in found["broken"]
    assert found["panicking"] == {"-1) ends in PanicException: called `Option::unwrap()` on a `None` value"}
    assert all("speaks of its insides" in line for line in found["talkative"])
    assert found["right"] == set()


def test_what_is_drawn_finds_them_too() -> None:
    def both(n: int, m: int) -> None:
        Planted.silent(n)
        Planted.panicking(m)

    calls = [Case("both", partial(given, both, n=1, m=1), {"n": "int", "m": "int"})]
    dice = random.Random(1)  # noqa: S311 - to be repeated
    found = {drawn(calls, dice) for _ in range(2000)}
    assert "both(n=None) is taken in silence: n" in found
    assert any("n=" in line and "m=-1" in line and "PanicException" in line for line in found if line)


def test_nothing_that_is_public_is_passed_over() -> None:
    swept = {case.name for case in cases()}
    assert {"ModelVm.__new__", "GuestVm.plan", "Fleet.restore", "ticks_to_ns", "Stamp", "Options"} < swept
    assert len(swept) > 100
