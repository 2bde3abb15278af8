"""A real Linux guest, saved and restored four ways, by its own account.

Boots an emulated machine with KVM, and in it the guest. Prints a table; the picture and the guest's account go to out/.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

from testbed import machine, wheel
from testbed.__main__ import show
from testbed.image import TREE
from testbed.legs import LEGS
from testbed.say import say

if TYPE_CHECKING:
    from collections.abc import Sequence

OUT: Final = TREE / "out" / "linux-guest"
S: Final = 1_000_000_000


def main() -> int:
    """Runs the demonstration."""
    parser = argparse.ArgumentParser(prog="make demo-linux", description=__doc__)
    parser.add_argument("--guest", choices=LEGS["linux"].guests, default="6.12", help="the guest's kernel")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the guest's console to this file")
    chosen = parser.parse_args()
    built = wheel.found(TREE / "dist") or wheel.build(TREE / "dist")
    OUT.mkdir(parents=True, exist_ok=True)
    say("An emulated arm64 machine boots, which has KVM: its time is counted in instructions, and this takes minutes.")
    status = machine.boot(
        LEGS["linux"],
        ["env", "PYTHONPATH=lab:examples", "python3", "-m", "linux_guest.demo", f"/guest/{chosen.guest}"],
        show=show,
        wheel=built,
        out=OUT,
        timeout_s=3000,
    )
    if status:
        return status
    document = json.loads((OUT / "linux-guest.json").read_text())
    print_table(document)
    draw(document, OUT / "linux-guest.svg")
    say(f"The picture is {OUT / 'linux-guest.svg'}; the guest's account is beside it.")
    if chosen.record:
        record(document, chosen.record)
    return 0


def print_table(document: dict[str, Any]) -> None:
    """Prints a row for each way."""
    table = Table(
        title=f"{document['kernel']}\nas a guest of two busy vCPUs: one snapshot, restored four ways in other"
        f" processes, each told that {document['pause_s']} s have passed. By the guest's own account, except the"
        " columns of the host's.",
        title_justify="left",
    )
    for heading in (
        *(
            "restored by",
            "MONOTONIC moved",
            "BOOTTIME",
            "REALTIME",
            "the host's time",
            "MONOTONIC against CNTVCT",
            "went back",
        ),
        *("timer interrupts", "a 100 ms timer, at once", "shell answered the host after", "its kernel said"),
    ):
        table.add_column(heading, justify="left" if heading in {"restored by", "its kernel said"} else "right")
    for row in document["results"]:
        table.add_row(*cells(row, document["frequency_hz"]))
    Console(width=None if sys.stdout.isatty() else 190).print(table)


def cells(row: dict[str, Any], hz: int) -> list[str]:
    """The texts of a row."""
    before, after = row["before"], row["after"]
    moved = {clock: after[clock]["ns"] - before[clock]["ns"] for clock in ("monotonic", "boottime", "realtime")}
    passed = (sum(row["passed"]) + told(row)) * S // hz // 2
    was, now = before["monotonic"], after["monotonic"]
    settled = (now["low"] + now["high"] - was["low"] - was["high"]) // 2
    said = {kind: len(lines) for kind, lines in row["complaints"].items() if lines}
    return [
        row["way"],
        *(f"{moved[clock] / S:.2f} s" for clock in moved),
        f"{passed / S:.2f} s",
        f"{settled} ns",
        f"{sum(watcher['back'] for watcher in row['watchers'])} times",
        str(row["interrupts"]),
        str(max(watcher["most_expired"] for watcher in row["watchers"])),
        f"{row['answer_ns'] / S:.2f} s",
        ", ".join(f"{kind} ({count})" for kind, count in said.items()) or "nothing",
    ]


def told(row: dict[str, Any]) -> int:
    """Twice the ticks by which the pause is longer by what the restore was told than it was: both are bounds."""
    return int(sum(row["missed"]) - sum(row["paused"]))


def draw(document: dict[str, Any], path: Path) -> None:
    """Draws the guest's clock against the host's, and how long its shell took; SVG or PNG by the suffix."""
    from matplotlib.figure import Figure

    hz = document["frequency_hz"]
    figure = Figure(figsize=(10, 8), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(3, 1))
    colours: Sequence[str] = ("#000000", "#0072b2", "#d55e00", "#009e73")
    for row, colour in zip(document["results"], colours, strict=False):
        # The guest's clock at the stop: its reading before, moved on by the VMM's account.
        stop = row["stopped_at"]
        zero = row["before"]["monotonic"]["ns"] + (stop - sum(row["read_at"]) // 2) * S // hz
        xs = [((low + high + told(row)) / 2 - stop) / hz for low, high, _ in row["series"]]
        above.plot(xs, [(ns - zero) / S for _, _, ns in row["series"]], "o-", color=colour, label=row["way"])
    above.axline((document["pause_s"],) * 2, slope=1, color="#444444", linestyle=":", label="the host's time")
    above.set_title("A real Linux guest's CLOCK_MONOTONIC, restored four ways", loc="left", fontweight="bold")
    above.set_xlabel("seconds of the host from the guest's stop")
    above.set_ylabel("seconds of the guest")
    above.legend(frameon=False)
    names = [row["way"] for row in document["results"]]
    below.barh(names, [row["answer_ns"] / S for row in document["results"]], color=list(colours[: len(names)]))
    below.invert_yaxis()
    below.set_title("How long its busy shell took to answer, in seconds", loc="left", fontweight="bold")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=150)


def record(document: dict[str, Any], path: Path) -> None:
    """Writes the console down, with the kernels and the commit that it is of."""
    described = subprocess.run(
        [
            "git",
            "rev-parse",
            "--short=12",
            "HEAD",
        ],
        cwd=TREE,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    )
    head = (
        f"guest: {document['kernel']}\nhost: {document['host_kernel']}, emulated\n"
        f"guestclock: {described.stdout.strip()}\nmade by: make demo-linux\n\n"
    )
    path.write_text(head + (OUT / "console.txt").read_text())


if __name__ == "__main__":
    sys.exit(main())
