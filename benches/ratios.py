"""One table of what guestclock's calls cost beside their siblings, from one run.

    python benches/ratios.py [--only TEXT] [--isa SET] [--json] [--write FILE]

A figure is the median of interleaved rounds, and the ratio is taken per round. What depends on the instruction set is
measured with each one that the CPU has, in a process of its own. Prints, and never fails for being slow.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import report
import this_machine
from guestclock import _core
from measure import Result, measure
from rows import ROWS


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21, help="rounds a row; below 15 proves nothing (default 21)")
    parser.add_argument("--round-ms", type=int, default=10, help="how long a side runs a round (default 10)")
    parser.add_argument("--only", action="append", metavar="TEXT", help="rows with this in their name")
    parser.add_argument("--isa", choices=this_machine.ISAS, help="this instruction set alone")
    parser.add_argument("--quick", action="store_true", help="only see that it runs: 3 rounds of 1 ms")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the tables to this file")
    parser.add_argument("--only-by-isa", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rounds, chosen.round_ms = 3, 1
    return chosen


def measured_here(chosen: argparse.Namespace) -> list[Result]:
    """All rows that are asked for, in this process."""
    isa, results = this_machine.isa(), []
    for row in ROWS:
        wanted = chosen.only is None or any(text in row.name for text in chosen.only)
        if wanted and (row.by_isa or not chosen.only_by_isa):
            if sys.stderr.isatty():
                print(f"{isa}: {row.name}", file=sys.stderr)
            results.append(measure(row, isa=isa, rounds=max(chosen.rounds, 2), round_ns=chosen.round_ms * 1_000_000))
    return results


def measured_with(isa: str) -> list[Result]:
    """Results of the rows that depend on the instruction set, from a process that uses `isa`."""
    command = [sys.executable, *sys.argv, "--json", "--only-by-isa", "--isa", isa]
    ran = subprocess.run(command, env={**os.environ, "GUESTCLOCK_ISA": isa}, check=True, stdout=subprocess.PIPE)
    return [Result(**result) for result in json.loads(ran.stdout)["results"]]


def main() -> None:
    """Measure, print."""
    chosen = arguments()
    if chosen.isa and os.environ.get("GUESTCLOCK_ISA") != chosen.isa:
        os.environ["GUESTCLOCK_ISA"] = chosen.isa
        os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606 (it is read once, at the start)
    if _core.DEBUG_BUILD:
        print("ratios: this is a debug build, and its numbers mean nothing", file=sys.stderr)
    bandwidth = this_machine.bandwidth(16 if chosen.quick else 256)
    results = measured_here(chosen)
    if chosen.isa is None:
        for isa in reversed(this_machine.ISAS[: this_machine.ISAS.index(this_machine.isa())]):
            results += measured_with(isa)
    order = {row.name: number for number, row in enumerate(ROWS)}
    results.sort(key=lambda result: order[result.name])
    about = this_machine.about() | {
        "memory": f"copies {bandwidth['copy']:.1f} GB/s (read and written), reads {bandwidth['read']:.1f} GB/s",
        "rounds": f"{chosen.rounds} of {chosen.round_ms} ms a side, interleaved",
    }
    if chosen.json:
        print(report.document(about, results))
    else:
        report.show(about, results)
    if chosen.write and not chosen.only_by_isa:
        report.write(chosen.write, about, results)


if __name__ == "__main__":
    main()
