"""Compares two commits: builds both, and times each row's subject on one and the other, round by round.

    python benches/compare.py BASE [--head COMMIT] [--only TEXT]

BASE is a commit; the other side is the work tree, or another commit. Each is built as a wheel, for release, and
unpacked into a folder of its own under out/compare. The rows are this work tree's for both: one that needs what a
build doesn't have is named, and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from rich import box
from rich.console import Console
from rich.table import Table

from measure import Ratio, middle_half
from rows import ROWS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
KEPT = ROOT / "out" / "compare"


def run(*command: str | Path) -> str:
    """Standard output of a command. Its standard error goes to the terminal."""
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """A work tree of a commit, for as long as it takes to build it."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        run("git", "worktree", "add", "--quiet", "--detach", tree, commit)
        try:
            yield tree
        finally:
            run("git", "worktree", "remove", "--force", tree)


def built(tree: Path, into: Path) -> Path:
    """The release build of a tree as an importable folder. What cargo made stays for the next one."""
    print(f"building {into.name}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as wheels:
        environment = {**os.environ, "CARGO_TARGET_DIR": str(KEPT / "target")}
        build = [sys.executable, "-m", "maturin", "build", "--quiet", "--release", "--locked", "--out", wheels]
        subprocess.run(build, cwd=tree, env=environment, check=True, stdout=sys.stderr)
        [wheel] = Path(wheels).glob("*.whl")
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target"]
        subprocess.run([*install, str(into), str(wheel)], check=True, stdout=sys.stderr)
    return into


def build_of(commit: str | None) -> Path:
    """A commit's build, made unless it is there; without one, the work tree's."""
    if commit is None:
        return built(ROOT, KEPT / "work-tree")
    commit = run("git", "rev-parse", "--verify", f"{commit}^{{commit}}")
    into = KEPT / commit
    if not (into / "guestclock").is_dir():
        with tree_of(commit) as tree:
            built(tree, into)
    return into


class Worker:
    """A process with one of the builds, which times what it is told to."""

    def __init__(self, build: Path) -> None:
        process = subprocess.Popen(
            [sys.executable, HERE / "worker.py"],
            env={**os.environ, "PYTHONPATH": str(build)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.questions, self.answers = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
        found = Path(self.ask({"where": True}))
        if not found.is_relative_to(build):
            raise SystemExit(f"compare: {build} was to be measured, and {found} was imported")

    def ask(self, question: dict[str, Any]) -> Any:
        """The answer to one line."""
        print(json.dumps(question), file=self.questions, flush=True)
        return json.loads(self.answers.readline())


def compared(name: str, workers: dict[str, Worker], rounds: int, round_ns: int) -> list[str]:
    """A row's cells."""
    for which, worker in workers.items():
        reason = worker.ask({"row": name, "round_ns": round_ns})
        if reason is not None:
            print(f"{which}: {reason}", file=sys.stderr)
            return [name, "", "", f"not in {which}", ""]
    taken: dict[str, list[float]] = {which: [] for which in workers}
    for number in range(rounds):
        # Every other round the other one goes first.
        for which in sorted(workers, reverse=number % 2 == 1):
            taken[which].append(workers[which].ask({"round": True}))
    ratios = [new / base for new, base in zip(taken["new"], taken["base"], strict=True)]
    low, high = middle_half(ratios)
    base, new = (statistics.median(taken[which]) for which in ("base", "new"))
    return [name, f"{base:,.1f}", f"{new:,.1f}", f"{statistics.median(ratios):.3f}", f"{low:.3f} to {high:.3f}"]


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", metavar="BASE", help="the commit to compare with")
    parser.add_argument("--head", metavar="COMMIT", help="instead of the work tree")
    parser.add_argument("--only", action="append", metavar="TEXT", help="rows with this in their name")
    parser.add_argument("--rounds", type=int, default=21, help="rounds a row; below 15 proves nothing (default 21)")
    parser.add_argument("--round-ms", type=int, default=10, help="how long a side runs a round (default 10)")
    chosen = parser.parse_args()
    workers = {"base": Worker(build_of(chosen.base)), "new": Worker(build_of(chosen.head))}
    table = Table(
        title=f"{chosen.head or 'the work tree'} over {chosen.base}", title_justify="left", box=box.SIMPLE_HEAD
    )
    for heading in ("what", "base, ns", "new, ns", "new / base", "middle half"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for row in ROWS:
        if isinstance(row, Ratio) and (chosen.only is None or any(text in row.name for text in chosen.only)):
            print(row.name, file=sys.stderr)
            table.add_row(*compared(row.name, workers, max(chosen.rounds, 2), chosen.round_ms * 1_000_000))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 132
    console.print(table)


if __name__ == "__main__":
    main()
