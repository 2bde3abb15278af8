"""Plants wrong rules in a copy of the tree, one at a time, and judges each by the traces of real kernels.

    PYTHONPATH=lab python -m mutants [NAME...] --traces TRACE...
    PYTHONPATH=lab python -m mutants [NAME...] --check

The wrong rules are in mutants.toml; NAME picks some of them. A mutant is caught where the model diverges from a trace
(lab/README.md). `--check` only sees that each still applies to this tree. Exits 1 if one survives, or can't be
judged.
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

ROOT = Path(__file__).resolve().parents[2]
MUTANTS = Path(__file__).with_name("mutants.toml")
SOURCES = Path("rust")
COPIED = ("Cargo.toml", "Cargo.lock", "lab", "python", "rust")
SCRATCH = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "mutants"
# Quick to build.
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

    def applied(self, source: str) -> str:
        """The source with the wrong rule in it."""
        if source.count(self.find) != 1:
            raise Unjudged(f"{self.name}: found {source.count(self.find)} times in {self.file}: {self.find!r}")
        return source.replace(self.find, self.replace)


class Tree:
    """A copy of the tree, to be built and judged apart from it."""

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

    def divergence(self) -> str | None:
        """The first divergence from the traces."""
        done = self.python("-m", "differential", "replay", "--first", *map(str, self.traces))
        diverged = re.search(r"^\S+, sequence \d+: .*$", done.stdout, re.MULTILINE)
        if done.returncode not in (0, 1) or bool(diverged) != (done.returncode == 1):
            raise Unjudged(f"the replay exits with {done.returncode} and says:\n{done.stdout}{done.stderr}")
        return diverged[0] if diverged else None

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs Python on this tree's package."""
        env = os.environ | {"PYTHONPATH": os.pathsep.join(str(self.path / name) for name in ("python", "lab"))}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=self.path, env=env, capture_output=True, text=True, check=False)

    def check(self) -> None:
        """Sees that its own native module is what is judged, and that it agrees without a wrong rule."""
        self.build()
        done = self.python("-c", "import guestclock._core; print(guestclock._core.__file__)")
        if Path(done.stdout.strip()).parent != self.path / "python/guestclock":
            raise Unjudged(f"it isn't the copy that would be judged: {done.stdout}{done.stderr}")
        if diverged := self.divergence():
            raise Unjudged(f"without any wrong rule: {diverged}")


def judge(mutant: Mutant, trees: SimpleQueue[Tree]) -> str:
    """Judges the mutant, prints a line about it, and gives the verdict."""
    tree = trees.get()
    start = time.monotonic()
    try:
        with tree.planted(mutant):
            tree.build()
            caught = tree.divergence()
        verdict, said = ("caught", caught) if caught else ("survived", f"SURVIVED: {mutant.wrong}")
    except Unjudged as error:
        verdict, said = "not judged", f"NOT JUDGED: {error}"
    finally:
        trees.put(tree)
    print(f"{mutant.name:42} {time.monotonic() - start:4.0f} s  {said}", flush=True)
    return verdict


def main() -> None:
    """Judges the mutants."""
    parser = argparse.ArgumentParser(
        prog="python -m mutants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    by = parser.add_mutually_exclusive_group(required=True)
    by.add_argument("--check", action="store_true", help="only see that each applies")
    by.add_argument("--traces", type=Path, nargs="+", default=[], metavar="TRACE", help="judge by these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at a time")
    chosen = parser.parse_args()
    listed = [Mutant(name, **fields) for name, fields in tomllib.loads(MUTANTS.read_text()).items()]
    if unknown := set(chosen.names) - {mutant.name for mutant in listed}:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    mutants = [mutant for mutant in listed if not chosen.names or mutant.name in chosen.names]
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
