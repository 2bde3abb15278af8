"""The measured rows as a table for people, as Markdown, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from measure import Result


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading, and whether it holds words."""

    heading: str
    is_text: bool = False


TARGETS = tuple(
    Column(heading, heading in ("what", "set", "subject", "sibling", "target", "met"))
    for heading in ("what", "set", "subject", "ns", "sibling", "ns", "figure", "middle half", "target", "met")
)
ROOFLINE = tuple(
    Column(heading, heading in ("kernel", "set"))
    for heading in ("kernel", "set", "bytes moved", "ns an element", "GB/s", "GB/s of a copy", "share")
)


def target_cells(result: Result) -> list[str]:
    if result.not_here:
        return [result.name, result.isa or "", f"not here: {result.not_here}", "", "", "", "", "", result.target, ""]
    low_high = "" if result.middle_half is None else "{:.3g} to {:.3g}".format(*result.middle_half)
    return [
        result.name,
        result.isa or "",
        result.subject,
        nanoseconds(result.subject_ns),
        result.sibling,
        nanoseconds(result.sibling_ns),
        f"{result.figure:.3g} {result.unit}",
        low_high,
        result.target,
        {True: "yes", False: "no", None: ""}[result.met],
    ]


def nanoseconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.1f}"


def roofline_cells(result: Result) -> list[str]:
    moved, taken, copied = result.moved or 0, result.subject_ns or math.nan, result.copy_ns or math.nan
    return [
        result.name,
        result.isa or "",
        f"{moved:,}",
        f"{taken / result.elements:.3f}",
        f"{moved / taken:.1f}",
        f"{moved / copied:.1f}",
        f"{copied / taken:.0%}",
    ]


def tables(results: Sequence[Result]) -> Iterable[tuple[str, Sequence[Column], list[list[str]]]]:
    """Title, columns and cells of each."""
    yield "", TARGETS, [target_cells(result) for result in results]
    moved = [result for result in results if result.moved is not None and result.subject_ns is not None]
    if moved:
        yield (
            "Roofline: bytes that a call reads and writes, beside a copy of as many in the same rounds",
            ROOFLINE,
            [roofline_cells(result) for result in moved],
        )


def show(about: Mapping[str, str], results: Sequence[Result]) -> None:
    """Print it for people."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 220
    for name, value in about.items():
        console.print(f"{name.replace('_', ' '):>16}: {value}")
    for title, columns, rows in tables(results):
        table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
        for column in columns:
            table.add_column(column.heading, justify="left" if column.is_text else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def document(about: Mapping[str, str], results: Sequence[Result]) -> str:
    """One JSON document."""
    return json.dumps(
        {"schema": "guestclock.ratios/2", "machine": about, "results": list(map(asdict, results))}, indent=2
    )


def markdown(about: Mapping[str, str], results: Sequence[Result]) -> str:
    """The same for a page."""
    parts = ["\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in about.items())]
    for title, columns, rows in tables(results):
        if title:
            parts.append(f"### {title}")
        lines = [[column.heading for column in columns], ["---" if c.is_text else "---:" for c in columns], *rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts)


def write(path: Path, about: Mapping[str, str], results: Sequence[Result]) -> None:
    """Write it to a file; docs/performance.md has some of its rows."""
    path.write_text(f"{markdown(about, results)}\n", encoding="utf-8")
