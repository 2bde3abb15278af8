"""Plants wrong rules in a copy of the tree, one at a time, and sees which test notices each.

    python tools/mutants.py [NAME...]
    python tools/mutants.py [NAME...] --traces TRACE...

The wrong rules are in mutants.toml; NAME picks some of them. `--check` only sees that each still applies to this tree.
With `--traces` they are judged by what real kernels answered (docs/differential.md), and not by the tests: those that
have `traces = true`, which says that a kernel contradicts them. Those with `rust = NAME` aren't in reach of Python
yet: the core's own tests judge them, those of rust/core/tests/NAME.rs and the unit tests of that name. Exits 1 if one
survives, or can't be judged.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
MUTANTS = Path(__file__).with_suffix(".toml")
SOURCES = Path("rust/core/src")
COPIED = ("Cargo.toml", "Cargo.lock", "pyproject.toml", "docs", "lab", "python", "rust", "tests")
# The state machine last, which takes longest.
TESTS = tuple(
    f"tests/test_{name}.py"
    for name in (
        "observed",
        "nested",
        "restore",
        "atomicity",
        "elapsed",
        "catch_up",
        "timers_after",
        "faults",
        "clock_bank",
        "model",
    )
)
SCRATCH = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "mutants"
# Quick to build, and no debug build, whose warning the tests take for an error.
BUILD = {
    "CARGO_PROFILE_RELEASE_LTO": "off",
    "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
    "CARGO_PROFILE_RELEASE_OPT_LEVEL": "1",
    "CARGO_PROFILE_RELEASE_INCREMENTAL": "true",
    "PYO3_BUILD_EXTENSION_MODULE": "1",
    "PYO3_PYTHON": sys.executable,
}


class Unjudged(Exception):
    """Neither caught nor survived."""


@dataclass(frozen=True)
class Mutant:
    """One wrong rule."""

    name: str
    file: str
    find: str
    replace: str
    wrong: str
    traces: bool = False
    rust: str = ""

    def applied(self, source: str) -> str:
        """The source with the wrong rule in it."""
        if source.count(self.find) != 1:
            raise Unjudged(f"{self.name}: found {source.count(self.find)} times in {self.file}: {self.find!r}")
        return source.replace(self.find, self.replace)


class Tree:
    """A copy of the tree, to be built and tested apart from it."""

    def __init__(self, number: int, traces: list[Path]) -> None:
        self.traces = traces
        self.path = path = SCRATCH / f"tree-{number}"
        # Cargo takes two trees' crates for the same ones, so each tree has a folder of its own to build in.
        self.target, first = SCRATCH / f"target-{number}", SCRATCH / "target-0"
        if first.exists() and not self.target.exists():
            shutil.copytree(first, self.target)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                # New times: what was built of a mutant before mustn't pass for built of this.
                ignored = shutil.ignore_patterns("__pycache__", "*.so")
                shutil.copytree(source, path / name, ignore=ignored, copy_function=shutil.copyfile)
            else:
                shutil.copyfile(source, path / name)

    @contextmanager
    def planted(self, mutant: Mutant) -> Iterator[None]:
        """Has the wrong rule in it for a while."""
        file = self.path / SOURCES / mutant.file
        source = file.read_text()
        file.write_text(mutant.applied(source))
        try:
            yield
        finally:
            file.write_text(source)

    def build(self) -> None:
        """Builds the native module and puts it into the package."""
        command = ["cargo", "build", "--quiet", "--release", "--locked", "--package", "guestclock-python"]
        env = os.environ | BUILD | {"CARGO_TARGET_DIR": str(self.target)}
        done = subprocess.run(command, cwd=self.path, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unjudged(f"it doesn't build:\n{done.stderr}")
        shutil.copyfile(self.target / "release/lib_core.so", self.path / "python/guestclock/_core.abi3.so")

    def rust(self, name: str) -> str | None:
        """The first of the core's own tests of that name that fails."""
        command = ["cargo", "test", "--quiet", "--locked", "--package", "guestclock-core"]
        env = os.environ | {"CARGO_TARGET_DIR": str(self.target), "PROPTEST_FAILURE_PERSISTENCE": "off"}
        for chosen in (("--lib", f"{name}::"), ("--test", name)):
            done = subprocess.run(
                [*command, *chosen], cwd=self.path, env=env, capture_output=True, text=True, check=False
            )
            failed = re.search(r"^---- (\S+) stdout ----$", done.stdout, re.MULTILINE)
            if bool(failed) != (done.returncode != 0):
                raise Unjudged(f"cargo test exits with {done.returncode}:\n{done.stdout}{done.stderr}")
            if failed:
                return f"{' '.join(chosen)}: {failed[1]}"
        return None

    def first(self) -> str | None:
        """What notices first that something is wrong."""
        return self.replay() if self.traces else self.test()

    def replay(self) -> str | None:
        """The first divergence from the traces."""
        done = self.python("-m", "differential", "replay", "--first", *map(str, self.traces))
        diverged = re.search(r"^\S+, sequence \d+: .*$", done.stdout, re.MULTILINE)
        if done.returncode not in (0, 1) or bool(diverged) != (done.returncode == 1):
            raise Unjudged(f"the replay exits with {done.returncode} and says:\n{done.stdout}{done.stderr}")
        return diverged[0] if diverged else None

    def test(self, tests: tuple[str, ...] = TESTS) -> str | None:
        """The first of these tests that fails."""
        options = ["-x", "--tb=no", "--no-header", "-p", "no:cacheprovider", "--hypothesis-profile=unshrunk"]
        done = self.python("-m", "pytest", *options, *tests)
        if done.returncode not in (0, 1):
            raise Unjudged(f"pytest exits with {done.returncode}:\n{done.stdout}{done.stderr}")
        failed = re.search(r"^(?:FAILED|ERROR) tests/(.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
        if bool(failed) != (done.returncode == 1):
            raise Unjudged(f"pytest exits with {done.returncode} and says:\n{done.stdout}")
        return failed[1] if failed else None

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs Python on this tree's package."""
        env = os.environ | {"PYTHONPATH": os.pathsep.join(str(self.path / name) for name in ("python", "lab", "tests"))}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=self.path, env=env, capture_output=True, text=True, check=False)

    def check(self) -> None:
        """Sees that its own native module is what is tested, and that it passes without a wrong rule."""
        self.build()
        done = self.python("-c", "import guestclock._core; print(guestclock._core.__file__)")
        if Path(done.stdout.strip()).parent != self.path / "python/guestclock":
            raise Unjudged(f"it isn't the copy that would be tested: {done.stdout}{done.stderr}")
        if failed := self.first():
            raise Unjudged(f"without any wrong rule: {failed}")


def judge(mutant: Mutant, trees: SimpleQueue[Tree]) -> str:
    """Whether the mutant was caught, with a line about it."""
    tree = trees.get()
    start = time.monotonic()
    try:
        with tree.planted(mutant):
            if mutant.rust:
                caught = tree.rust(mutant.rust)
            else:
                tree.build()
                caught = tree.first()
        verdict, said = ("caught", caught) if caught else ("survived", f"SURVIVED: {mutant.wrong}")
    except Unjudged as error:
        verdict, said = "not judged", f"NOT JUDGED: {error}"
    finally:
        trees.put(tree)
    print(f"{mutant.name:42} {time.monotonic() - start:4.0f} s  {said}", flush=True)
    return verdict


def main() -> None:
    """Judges the mutants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--check", action="store_true", help="only see that each applies")
    parser.add_argument("--traces", type=Path, nargs="+", default=[], metavar="TRACE", help="judge by these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at a time")
    chosen = parser.parse_args()
    listed = [Mutant(name, **fields) for name, fields in tomllib.loads(MUTANTS.read_text()).items()]
    if unknown := set(chosen.names) - {mutant.name for mutant in listed}:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    mutants = [mutant for mutant in listed if not chosen.names or mutant.name in chosen.names]
    if chosen.traces and not chosen.names:
        mutants = [mutant for mutant in mutants if mutant.traces]
    traces = [trace.resolve(strict=True) for trace in chosen.traces]
    try:
        for mutant in mutants:
            mutant.applied((ROOT / SOURCES / mutant.file).read_text())
        if chosen.check:
            return
        trees: SimpleQueue[Tree] = SimpleQueue()
        for number in range(chosen.jobs):
            tree = Tree(number, traces)
            tree.check()
            trees.put(tree)
    except Unjudged as error:
        sys.exit(str(error))
    with ThreadPoolExecutor(chosen.jobs) as threads:
        verdicts = Counter(threads.map(lambda mutant: judge(mutant, trees), mutants))
    unjudged = f", {verdicts['not judged']} not judged" if verdicts["not judged"] else ""
    print(f"{verdicts['caught']} caught, {verdicts['survived']} survived{unjudged}")
    sys.exit(verdicts["caught"] < len(mutants))


if __name__ == "__main__":
    main()
