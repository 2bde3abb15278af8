"""The demonstration as a table on standard output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from guestclock.demo.runner import WIDEST_NS, describe

if TYPE_CHECKING:
    from guestclock.demo.document import Document

_NS_PER_S = 1_000_000_000
_PIPE_COLUMNS = 150


def print_table(document: Document) -> None:
    """Prints one row per run and counter."""
    table = Table(title="A guest's clocks across a checkpoint in one process and a restore in another")
    for heading in ("policy", "mode"):
        table.add_column(heading)
    table.add_column("pause, s", justify="right")
    table.add_column("counter")
    for heading in ("guest measured, s", "policy promises, s", "width, \u00b5s", "error, ticks", "error, ns", "IRQs"):
        table.add_column(heading, justify="right")
    for run in document["runs"]:
        hz = run["frequency_hz"]
        for row, (name, counter) in enumerate(run["counters"].items()):
            low, high = counter["expected_gap_ticks"]
            error = counter["error_ticks"]
            style = "red" if error else "green"
            width_ns = _ns(high - low, hz)
            # An interval that is still too wide after every attempt is marked, rather than hidden behind an error of 0.
            width = f"{width_ns // 1_000}" if width_ns <= WIDEST_NS else f"[yellow]{width_ns // 1_000} (wide)"
            head = (describe(run["policy"]), run["mode"], _seconds(run["pause_ns"])) if row == 0 else ("", "", "")
            table.add_row(
                *head,
                name.upper(),
                _seconds(_ns(counter["guest_gap_ticks"], hz)),
                f"{_seconds(_ns(low, hz))} \u2013 {_seconds(_ns(high, hz))}" if high > low else _seconds(_ns(low, hz)),
                width,
                f"[{style}]{error}",
                f"[{style}]{_ns(error, hz)}",
                f"{run['irq_delivered']}" if row == 0 else "",
                end_section=row + 1 == len(run["counters"]),
            )
    # A pipe has no width of its own, and 80 columns would break every row.
    Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS).print(table)


def _ns(ticks: int, frequency_hz: int) -> int:
    return ticks * _NS_PER_S // frequency_hz


def _seconds(ns: int) -> str:
    whole, part = divmod(abs(ns), _NS_PER_S)
    return f"{'-' if ns < 0 else ''}{whole}.{part // 1_000:06}"
