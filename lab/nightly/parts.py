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
        """A word of a command, where `{seed}`, `{share:N}`, `{shard}` and `{short}` stand for themselves.

        A share is the percentage of N, a shard the same of what has parts, and the seed chooses which. A night of less
        than 100 is short.
        """
        shards = 100 // self.percent
        shard, short = f"{self.seed % shards}/{shards}", 1 if self.percent < 100 else ""
        return word.format(seed=self.seed, share=_Share(self.percent), shard=shard, short=short)


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


def make(target: str, *variables: str, name: str | None = None, limit_s: int = 2 * HOUR_S) -> Part:
    """A target of the Makefile, with its variables."""
    return Part(name or target, ("make", "--no-print-directory", target, *variables), limit_s)


def stress(part: str, runs: int) -> Part:
    """A part of lab/stress, and its runs in a whole night."""
    program = ("env", "PYTHONPATH=lab", sys.executable, "-m", "stress", part)
    return Part(f"stress-{part}", (*program, "--runs", f"{{share:{runs}}}", "--seed", "{seed}"), 2 * HOUR_S)


HERE = (
    make("test"),
    make("test-rust", "CASES={share:10000}", "SEED={seed}", name="deep-rust"),
    make("loom"),
    make("deep-lint"),
    make("types"),
    make("docs"),
    make("test-portable"),
    make("wheel"),
    make("sdist"),
    make("study"),
    make("fuzz", "RUNS={share:100000000}", "SEED={seed}", limit_s=6 * HOUR_S),
    make("damage", "RUNS={share:100000000}", "SEED={seed}", name="stress-damage"),
    make("reads", "RUNS={share:1000000000}", "SEED={seed}", name="stress-reads"),
    stress("kills", 1_000),
    stress("limits", 100_000),
    stress("pages", 100_000),
    stress("registers", 100_000),
    stress("readers", 100_000),
    stress("races", 1_000_000_000),
    stress("sweep", 200_000),
    make("deep-model", "EXAMPLES={share:3000}", "SEED={seed}"),
    make("mutants", "SHARD={shard}", limit_s=4 * HOUR_S),
)
"""Parts on this machine, one after the other."""

IN_MACHINES = (
    make("wheel-aarch64"),
    # Every kernel with the whole suite; the next two judge by the traces that it leaves.
    make("kvm-test", "SHORT={short}"),
    make("kvm-replay"),
    make("kvm-mutants"),
    make("kvm-repeat"),
    make("accuracy"),
    make("migrate-test", "ROUNDS={share:10}"),
)
"""Parts in emulated machines, one after the other, beside those of HERE."""

ALONE = (
    make("instructions"),
    make("bench"),
    make("bench-asv"),
)
"""Parts that measure this machine, after all others."""

NIGHT = ((HERE, IN_MACHINES), (ALONE,))
"""The night: what runs side by side, one such time after the other."""
