"""The table of a night's parts, in their order."""

from __future__ import annotations

import sys
from dataclasses import dataclass

HOUR_S = 3600


@dataclass(frozen=True)
class Night:
    """The seed of a night, and the percentage of a whole one that it is: its commands are written with both."""

    seed: int
    percent: int = 100

    def written(self, word: str) -> str:
        """A word of a command, where `{seed}`, `{share:N}` (the percentage of N) and `{shard}` stand for themselves.

        A shard is the same percentage of what has parts, and the seed chooses which.
        """
        shards = 100 // self.percent
        return word.format(seed=self.seed, share=_Share(self.percent), shard=f"{self.seed % shards}/{shards}")


@dataclass(frozen=True)
class _Share:
    percent: int

    def __format__(self, whole: str) -> str:
        return str(-(-int(whole) * self.percent // 100))


@dataclass(frozen=True)
class Part:
    """A command from the tree's root, for a `Night` to write, and the time after which it has failed."""

    name: str
    command: tuple[str, ...]
    limit_s: int = HOUR_S


def make(target: str, *variables: str, name: str | None = None, limit_s: int = HOUR_S) -> Part:
    """A target of the Makefile, with its variables."""
    return Part(name or target, ("make", "--no-print-directory", target, *variables), limit_s)


def stress(part: str, runs: int) -> Part:
    """A part of lab/stress, and its runs in a whole night."""
    program = ("env", "PYTHONPATH=lab", sys.executable, "-m", "stress", part)
    return Part(f"stress-{part}", (*program, "--runs", f"{{share:{runs}}}", "--seed", "{seed}"), 2 * HOUR_S)


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
    make("fuzz", "RUNS={share:100000000}", "SEED={seed}", limit_s=6 * HOUR_S),
    make("damage", "RUNS={share:100000000}", "SEED={seed}", name="stress-damage", limit_s=2 * HOUR_S),
    make("reads", "RUNS={share:1000000000}", "SEED={seed}", name="stress-reads"),
    stress("kills", 1_000),
    stress("limits", 100_000),
    stress("pages", 100_000),
    stress("registers", 100_000),
    stress("readers", 100_000),
    stress("races", 1_000_000_000),
    stress("sweep", 200_000),
    make("deep-model", limit_s=2 * HOUR_S),
    make("mutants", "SHARD={shard}", limit_s=4 * HOUR_S),
    make("instructions"),
    make("bench"),
    make("bench-asv", limit_s=2 * HOUR_S),
)
