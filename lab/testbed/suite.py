"""The suite on every leg: what each machine was, what passed and failed in it, and whether all is well."""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import subprocess
import sys
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO

from testbed import cache, machine, program, wheel
from testbed.image import TREE
from testbed.legs import LEGS, Leg
from testbed.say import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

TESTS = (
    "tests/test_backends.py",
    "tests/kvm",
    # By it a wheel with an unwinder of its own was found: each is linked by itself.
    "tests/test_process.py::test_an_exit_with_busy_daemon_threads_is_clean",
)
"""The tests that run in each machine."""

GUESTS = "tests/linux"
"""The tests that run in a machine with Linux guests instead."""

PYTEST = ("python3", "-m", "pytest", "-p", "no:cacheprovider", "--color=no", "--override-ini=timeout=600")
"""An emulated processor takes its time: a test may take longer there than elsewhere."""

WHOLE = "6.12"
"""The leg that has all files of the suite in a short run too, but for the tests that are marked as the night's."""

SHORT = tuple(f"tests/kvm/test_{name}.py" for name in ("probe", "derived", "differential", "latches", "vmm"))
"""The tests of the other legs in a short run: what kernels differ in, and a restore of each policy."""

SHORT_SEQUENCES = 60
"""Random sequences of a seed in a short run."""

PROGRAM = ("/program", "--ignored", "--test-threads=1", "--show-output")
"""The tests of a machine without Python. Elsewhere they are ignored."""

COUNTS = re.compile(r"^test result: .*? (\d+) passed; (\d+) failed; (\d+) ignored;", re.MULTILINE)
"""The last line of a test program in Rust."""

OUT = TREE / "out" / "kvm"
"""Files of the legs: their console, pytest's report, what was probed, and whatever the tests write."""

NATIVE = "native"
"""The name of the one leg on an arm64 host that has KVM."""


@dataclass(frozen=True)
class Outcome:
    """The result of a leg."""

    leg: str
    passed: int
    failed: int

    def __str__(self) -> str:
        return f"LEG {self.leg}: {self.passed} passed, {self.failed} failed"


def run(names: Iterable[str], *, seed: int | None, jobs: int, timeout_s: int | None, short: bool) -> int:
    """Run the suite on the legs `names`, `jobs` at a time; gives the status to exit with.

    In a short run the legs other than WHOLE have the tests that SHORT names.
    """
    os.environ["GUESTCLOCK_SEED"] = str(secrets.randbelow(1 << 32) if seed is None else seed)
    say(f"seed {os.environ['GUESTCLOCK_SEED']}; the same again: make kvm-test SEED={os.environ['GUESTCLOCK_SEED']}")
    if native():
        outcomes = [_native()]
    else:
        # The longest one first, so that no machine runs alone at the end.
        legs = sorted((LEGS[name] for name in names), key=lambda leg: short and leg.name != WHOLE)
        built = wheel.build(TREE / "dist") if any(leg.architecture.python for leg in legs) else None
        tests = program.build() if not all(leg.architecture.python for leg in legs) else None
        for leg in legs:
            machine.parts(leg)
        with ThreadPoolExecutor(jobs) as pool:
            prefixed = min(jobs, len(legs)) > 1

            def run_leg(leg: Leg) -> Outcome:
                return _leg(leg, built, tests, timeout_s, prefixed=prefixed, short=short)

            outcomes = list(pool.map(run_leg, legs))
    say(f"{sum(o.passed for o in outcomes)} passed, {sum(o.failed for o in outcomes)} failed")
    return 1 if any(o.failed for o in outcomes) else 0


def native() -> bool:
    """True for a machine that the suite runs on itself."""
    return platform.machine() == "aarch64" and Path("/dev/kvm").exists()


def _leg(
    leg: Leg, built: Path | None, tests: Path | None, timeout_s: int | None, *, prefixed: bool, short: bool
) -> Outcome:
    """Run the suite in the leg's machine."""
    out = _emptied(OUT / leg.name)
    python = leg.architecture.python
    with (out / "console.log").open("wb") as log:
        status = machine.boot(
            leg,
            [*suite_of(leg, short=short), "--junit-xml=/out/junit.xml"] if python else [*PROGRAM],
            show=_console(log, f"[{leg.name}] " if prefixed else ""),
            wheel=built if python else None,
            files=None if python or not tests else {"program": tests},
            out=out,
            timeout_s=timeout_s or leg.timeout_s,
        )
    return judged(leg.name, out, status)


def suite_of(leg: Leg, *, short: bool) -> tuple[str, ...]:
    """The command that runs the leg's tests."""
    tests = (GUESTS,) if leg.guests else SHORT if short and leg.name != WHOLE else TESTS
    if short:
        return ("env", f"GUESTCLOCK_SEQUENCES={SHORT_SEQUENCES}", *PYTEST, "-m", "not nightly", *tests)
    return (*PYTEST, *tests)


def _native() -> Outcome:
    """Run the suite on this machine, with this interpreter."""
    out = _emptied(OUT / NATIVE)
    os.environ |= {"GUESTCLOCK_LEG": NATIVE, "GUESTCLOCK_OUT": str(out)}
    done = subprocess.run([sys.executable, *PYTEST[1:], *TESTS, f"--junit-xml={out}/junit.xml"], cwd=TREE, check=False)
    return judged(NATIVE, out, done.returncode)


def judged(leg: str, out: Path, status: int) -> Outcome:
    """Say what the leg was, and count what it reported. One that ended badly has failed, whatever it counted."""
    probed = out / "probed.json"
    for name, value in json.loads(probed.read_text()).items() if probed.is_file() else ():
        say(f"{leg}: {name}: {value}")
    passed, failed, skipped = _counted(out)
    if status not in {0, 1}:
        say(f"{leg}: the suite ended with status {status}")
    if skipped:
        say(f"{leg}: {skipped} skipped")
    if not passed + failed:
        say(f"{leg}: no test ran")
    if not failed and (status or not passed):
        failed = 1
    outcome = Outcome(leg, passed, failed)
    say(str(outcome))
    return outcome


def _counted(out: Path) -> tuple[int, int, int]:
    """Numbers of tests passed, failed and skipped, by pytest's report, or by what a program in Rust has said.

    A test that failed twice counts once.
    """
    report, console = out / "junit.xml", out / "console.log"
    if not report.is_file() and console.is_file():
        told = COUNTS.findall(console.read_text(errors="replace"))
        return sum(int(t[0]) for t in told), sum(int(t[1]) for t in told), sum(int(t[2]) for t in told)
    verdicts: dict[tuple[str, str], str] = {}
    if report.is_file():
        for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314
            found = {child.tag for child in case}
            verdict = "failed" if found & {"failure", "error"} else "skipped" if "skipped" in found else "passed"
            name = case.get("classname", ""), case.get("name", "")
            if verdicts.get(name) != "failed":
                verdicts[name] = verdict
    counts = list(verdicts.values())
    return counts.count("passed"), counts.count("failed"), counts.count("skipped")


def _emptied(folder: Path) -> Path:
    if folder.exists():
        cache.remove(folder)
    folder.mkdir(parents=True)
    return folder


_printing = Lock()


def _console(log: BinaryIO, prefix: str) -> Callable[[bytes], None]:
    """Shows a machine's console: where several speak, each line says whose it is."""

    def show(line: bytes) -> None:
        log.write(line)
        with _printing:
            sys.stdout.write(prefix + line.decode(errors="replace"))
            sys.stdout.flush()

    return show
