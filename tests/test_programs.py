"""The small programs of examples/programs: they run, and both type checkers pass them as a user's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAMS = ROOT / "examples/programs"

# A line of each program's output that says that it did what it is for.
SAYS = {
    "snapshot": "under Advance it sees 3600 s",
    "replay": "the guest sees 10 s of a minute, and its timer's line is True",
    "pause": "caught up in 15 steps; the guest's clock went forward by 1031250000 ticks",
    "live_update": "web-2: 250000000 ns added, within 0 ns",
    "emulator": "interrupts at 625000 and every 625000 ticks after",
}


@pytest.mark.parametrize("name", SAYS)
def test_a_program_runs(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", PROGRAMS / f"{name}.py"], capture_output=True, text=True, check=True, timeout=60
    )
    assert SAYS[name] in done.stdout.splitlines()


def test_the_test_among_them_passes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", PROGRAMS / "a_test.py"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=PROGRAMS,
    )
    assert (done.returncode, done.stdout.splitlines()[-1].split(" in ")[0]) == (0, "3 passed")


def test_none_is_forgotten() -> None:
    assert {path.stem for path in PROGRAMS.glob("*.py")} == {*SAYS, "a_test"}


WRONG = """
from guestclock import Advance, Freeze, ModelVm
from guestclock.types import GuestVm
vm: GuestVm = ModelVm(counter=5)
vm.restore(vm.checkpoint(), Freeze)
vm.restore(vm.checkpoint(), "advance")
vm.restore(vm.checkpoint(), Advance(), view="refuse")
vm.cntvct()
vm.checkpoint().name.missing
import guestclock
guestclock.sync.chrony()
guestclock.nowhere
"""
# The lines of it that are wrong.
WRONG_LINES = {3, 4, 5, 6, 7, 8, 11}


def mypy(path: Path) -> set[int]:
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(path.parent / "cache"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=path.parent, timeout=100)
    assert done.returncode in {0, 1}, done.stderr
    return {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}


def pyright(path: Path) -> set[int]:
    (path.parent / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict", "pythonVersion": "3.11"}')
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(path.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=path.parent, timeout=100)
    found = json.loads(done.stdout)["generalDiagnostics"]
    return {one["range"]["start"]["line"] + 1 for one in found if one["severity"] == "error"}


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_a_type_checker_finds_what_is_wrong(checker: object, tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(WRONG.lstrip("\n"))
    assert callable(checker)
    assert checker(path) >= WRONG_LINES
    path.write_text(
        "import guestclock\nprint(guestclock.sync.chrony)\nvm = guestclock.ModelVm()\nprint(vm.cntvct(0))\n"
    )
    assert checker(path) == set()


def test_pyright_passes_the_programs(tmp_path: Path) -> None:
    for program in PROGRAMS.glob("*.py"):
        (tmp_path / program.name).write_text(program.read_text())
    assert pyright(tmp_path / "snapshot.py") == set()
