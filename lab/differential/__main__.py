"""Takes sequences from this machine's kernel, or judges traces of them again with the model as it is here and now.

python -m differential take NAME --seed N --sequences N
python -m differential replay TRACE...

Exits with 1 if the model diverges from a kernel.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from differential import trace
from differential.campaign import Outcome


def main() -> int:
    """Does one of the two, and says what came of it."""
    parser = argparse.ArgumentParser(
        prog="differential", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    replay = commands.add_parser("replay", help="judge traces again")
    replay.add_argument("traces", nargs="+", type=Path, metavar="TRACE")
    replay.add_argument("--first", action="store_true", help="stop at the first divergence")
    take = commands.add_parser("take", help="take sequences of one vCPU that never runs, which can be repeated")
    take.add_argument("name", help="of the trace")
    take.add_argument("--seed", type=int, required=True)
    take.add_argument("--sequences", type=int, required=True)
    chosen = parser.parse_args()
    if chosen.command == "replay":
        return replayed(chosen.traces, first=chosen.first)
    from differential import taking

    outcome = taking.take(chosen.name, seed=chosen.seed, sequences=chosen.sequences, vcpus=1, runs=[False])
    for divergence in outcome.divergences[:3]:
        print(divergence)
    return bool(outcome.divergences)


def replayed(traces: list[Path], *, first: bool) -> int:
    """Judges each trace: 1 if the model diverges in any."""
    diverged = False
    for path in traces:
        outcome = Outcome()
        header, sequences = trace.read(path)
        for steps in sequences:
            outcome.judge(header, steps)
            if first and outcome.divergences:
                break
        print(f"{path}: {header}: {outcome}")
        for divergence in outcome.divergences[:3]:
            print(divergence)
        diverged |= bool(outcome.divergences)
        if first and diverged:
            break
    return diverged


if __name__ == "__main__":
    sys.exit(main())
