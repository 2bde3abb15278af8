"""Judges traces again, with the model as it is here and now: python -m differential TRACE...

Exits with 1 if the model diverges from a kernel in any of them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from differential import trace
from differential.campaign import Outcome


def main() -> int:
    """Judges each, and prints what came of it."""
    parser = argparse.ArgumentParser(prog="differential", description=__doc__)
    parser.add_argument("traces", nargs="+", type=Path, metavar="TRACE")
    parser.add_argument("--first", action="store_true", help="stop at the first divergence")
    chosen = parser.parse_args()
    diverged = False
    for path in chosen.traces:
        outcome = Outcome()
        header, sequences = trace.read(path)
        for steps in sequences:
            outcome.judge(header, steps)
            if chosen.first and outcome.divergences:
                break
        print(f"{path}: Linux {header.release}, as {header.kernel}, seed {header.seed}: {outcome}")
        for divergence in outcome.divergences[:3]:
            print(divergence)
        diverged |= bool(outcome.divergences)
        if chosen.first and diverged:
            break
    return diverged


if __name__ == "__main__":
    sys.exit(main())
