"""The table of a night's parts, in their order."""

from __future__ import annotations

import sys
from dataclasses import dataclass

HOUR_S = 3600


@dataclass(frozen=True)
class Part:
    """A command from the tree's root, with `{seed}` for the night's seed, and the time after which it has failed."""

    name: str
    command: tuple[str, ...]
    limit_s: int = HOUR_S


def make(target: str, *variables: str, name: str | None = None, limit_s: int = HOUR_S) -> Part:
    """A target of the Makefile, with its variables."""
    return Part(name or target, ("make", "--no-print-directory", target, *variables), limit_s)


def lab(module: str, *arguments: str, name: str | None = None, limit_s: int = HOUR_S) -> Part:
    """A program of lab/ that no target stands for. Its lines `count: WHAT = N` are counts."""
    return Part(name or module, ("env", "PYTHONPATH=lab", sys.executable, "-m", module, *arguments), limit_s)


STRESS = ("kills", "limits", "pages", "registers", "readers", "races", "sweep")
"""The parts of lab/stress."""

PARTS = (
    make("test"),
    make("lint"),
    make("types"),
    make("docs"),
    make("test-portable"),
    make("wheel"),
    make("sdist"),
    # Every kernel with the whole suite; the next two judge by the traces that it leaves.
    make("kvm-test", limit_s=2 * HOUR_S),
    make("kvm-replay"),
    make("kvm-mutants", limit_s=2 * HOUR_S),
    make("kvm-repeat"),
    make("accuracy"),
    make("migrate-test"),
    make("study", limit_s=2 * HOUR_S),
    make("fuzz", "RUNS=100000000", "SEED={seed}", limit_s=6 * HOUR_S),
    make("damage", "RUNS=100000000", "SEED={seed}", name="stress-damage", limit_s=2 * HOUR_S),
    make("reads", "RUNS=1000000000", "SEED={seed}", name="stress-reads"),
    *(lab("stress", part, "--seed", "{seed}", name=f"stress-{part}", limit_s=2 * HOUR_S) for part in STRESS),
    make("deep-model", limit_s=2 * HOUR_S),
    make("mutants", limit_s=4 * HOUR_S),
    make("instructions"),
    make("bench"),
    make("bench-asv", limit_s=2 * HOUR_S),
)
