"""The demonstration as a table on standard output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from guestclock.demo.runner import about, describe, is_control, promise
from guestclock.inspection.words import to_ns

if TYPE_CHECKING:
    from guestclock.demo.document import Document, RunRecord

_PIPE_COLUMNS = 150


def print_table(document: Document) -> None:
    """Prints a row for each way to keep the guest's time, and the conclusion."""
    runs = document["runs"]
    table = Table(title=_title(document), title_justify="left", title_style="bold")
    table.add_column("time kept by", overflow="fold", min_width=20)
    table.add_column("guest is to see", overflow="fold")
    for heading in ("guest's clock off by", "vCPUs apart", "latest interrupt late by", "interrupts lost"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for run in runs:
        hz, latest = run["frequency_hz"], run["latest_interrupt_ticks"]
        wrong = {finding["kind"] for finding in run["findings"]}
        table.add_row(
            Text(describe(run["row"])),
            Text(promise(run["row"])),
            _off(
                run["off_by_ticks"], run["off_by_known_to_ticks"], hz, wrong=bool(run["off_by_ticks"]) and bool(wrong)
            ),
            _off(run["apart_ticks"], run["apart_known_to_ticks"], hz, wrong="vcpu-skew" in wrong),
            Text("" if latest is None else about(to_ns(latest, hz)), style=_style(wrong="late-interrupt" in wrong)),
            Text(f"{run['lost']} of {run['lost'] + run['interrupts']}", style=_style(wrong=run["lost"] > 0)),
            _verdict(run),
        )
    # A pipe has no width of its own, and 80 columns would break every row.
    console = Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
    console.print(table)
    for run in runs:
        if run["attempts"] > 1:
            said = f"{describe(run['row'])}: run {run['attempts']} times, until this host's clock told closely enough."
            console.print(Text(said, style="dim"))
    console.print(Text(document["conclusion"], style=_style(wrong=not document["ok"])))


def _title(document: Document) -> str:
    pauses = [run["pause_ns"] for run in document["runs"]]
    load = f", which takes {document['load_ms']} ms to load its memory" if document["load_ms"] else ""
    return (
        f"One process saves a guest of {len(document['runs'][0]['samples']) if pauses else 0} vCPUs, and"
        f" {about(min(pauses, default=0))} to {about(max(pauses, default=0))} later another lets it go on{load}.\n"
        "Judged by the guest's own log and by this VMM's readings of the host's clock, outside guestclock."
    )


def _off(error: int, known_to: int, hz: int, *, wrong: bool) -> Text:
    known = f"0 \u00b1 {about(to_ns(known_to, hz))}" if known_to else "0"
    if not error or not wrong:
        return Text(known, style="green")
    return Text(f"{'+' if error > 0 else '-'}{about(abs(to_ns(error, hz)))}", style=_style(wrong=True))


def _verdict(run: RunRecord) -> Text:
    control = is_control(run["row"])
    if run["verdict"] == "kept":
        if control:
            return Text("not found wrong", style="bold red")
        stated = f" (it states {about(to_ns(run['stated_ticks'], run['frequency_hz']))})"
        return Text("kept" + (stated if run["row"]["kept"] == "value" else ""), style="green")
    if run["verdict"] == "unclear":
        return Text("can't tell: too busy a host", style="bold yellow")
    kinds = ", ".join(dict.fromkeys(finding["kind"] for finding in run["findings"]))
    return Text(f"WRONG: {kinds}", style="red" if control else "bold red")


def _style(*, wrong: bool) -> str:
    return "bold red" if wrong else "green"
