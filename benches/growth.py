"""Growth of each batch operation's cost with its elements, beside numpy's; and of the queue's with its timers.

    python benches/growth.py [--rounds N] [PICTURE ...]

Draws out/performance-growth.svg, and a copy of it into each PICTURE.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import this_machine
from benchmarks import steady
from benchmarks.operations import OPERATIONS
from measure import NotHere, Side, costs, of_this_build

OUT: Final = Path(__file__).resolve().parent.parent / "out" / "performance-growth.svg"
ELEMENTS: Final = tuple(4**power for power in range(9))
PENDING: Final = (1000, 10_000, 100_000, 1_000_000)
OURS, THEIRS, THIRD = "#0072b2", "#d55e00", "#009e73"
"""Three of Okabe and Ito's colours, which colour-blind readers tell apart."""
KEPT: Final = (("guestclock", steady.Queue, OURS), ("heapq", steady.Heap, THEIRS), ("a numpy scan", steady.Scan, THIRD))

Line = tuple[str, str, list[tuple[int, float]]]
"""Name, colour, and ns an element by how many there are."""


def of_operation(name: str, rounds: int, round_ns: int) -> list[Line]:
    """Both sides' costs at all numbers of elements."""
    lines: list[Line] = []
    for n in ELEMENTS:
        print(f"{name}: {n}", file=sys.stderr)
        sides = OPERATIONS[name](n)
        both = costs([sides.subject, sides.sibling], rounds=rounds, round_ns=round_ns)
        lines = lines or [("guestclock", OURS, []), (sides.sibling.label, THEIRS, [])]
        for (_, _, line), taken in zip(lines, both, strict=True):
            line.append((n, statistics.median(taken) / n))
    return lines


def of_queue(rounds: int, round_ns: int) -> list[Line]:
    """The cost of a step, a timer that it is about."""
    lines: list[Line] = [(name, colour, []) for name, _, colour in KEPT]
    for pending in PENDING:
        print(f"deadline queue: {pending}", file=sys.stderr)
        work = steady.Work(pending)
        sides = [Side(name, kind(work).step) for name, kind, _ in KEPT]
        for (_, _, line), taken in zip(lines, costs(sides, rounds=rounds, round_ns=round_ns), strict=True):
            line.append((pending, statistics.median(taken) / steady.TOUCHED))
    return lines


def draw(axes: Axes, title: str, lines: Iterable[Line], along: str) -> None:
    """One operation."""
    for name, colour, places in lines:
        axes.plot(*zip(*places, strict=True), "o-", color=colour, markersize=3, linewidth=1.2, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_title(title, loc="left", fontsize="medium")
    axes.set_xlabel(along, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize="small")


def main() -> None:
    """Measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", type=Path, metavar="PICTURE")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--round-ms", type=int, default=3)
    chosen = parser.parse_args()
    timed = max(chosen.rounds, 2), chosen.round_ms * 1_000_000
    # The same figures, the same bytes; and letters as letters, which take less.
    rcParams.update({"svg.hashsalt": "guestclock", "svg.fonttype": "none"})
    figure = Figure(figsize=(11, 10), layout="constrained")
    places = figure.subplots(3, 3).flat
    for axes, name in zip(places, OPERATIONS, strict=False):
        try:
            with of_this_build():
                draw(axes, name, of_operation(name, *timed), "elements")
        except NotHere as reason:
            print(f"{name}: {reason}", file=sys.stderr)
            axes.set_axis_off()
            axes.text(0, 0.5, f"{name}:\nnot in this build")
    draw(places[len(OPERATIONS)], "deadline queue, a step", of_queue(*timed), "timers pending")
    about = this_machine.about()
    figure.suptitle("ns an element", x=0.01, ha="left", fontweight="bold")
    figure.supxlabel(f"{about['cpu']}, {about['instruction_set']}; {about['python']}", fontsize="small")
    OUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUT, metadata={"Date": None})
    for picture in chosen.pictures:
        shutil.copyfile(OUT, picture)


if __name__ == "__main__":
    main()
