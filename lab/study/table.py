"""The study's figures as a table on standard output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from study.figures import Document
    from study.luck_figures import UnluckyRecord

_PIPE_COLUMNS = 150


def print_table(document: Document) -> None:
    """Print one row per class, then what must not be."""
    # A pipe has no width of its own, and 80 columns would break every row.
    console = Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
    migrations = f"{document['migrations']:,} random migrations, seed {document['seed']}"
    table = Table(
        title=f"{migrations}, and {document['corners']:,} corners",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("class")
    for heading in (
        "restored",
        "refused",
        "beyond\nthe bound",
        "the bound left,\nticks, at least",
        "corners",
        "beyond\nthe bound",
        "bound above its worst corner,\nticks, least and most",
    ):
        table.add_column(heading, justify="right")
    for record in document["classes"]:
        corners = record["corners"]
        table.add_row(
            record["title"],
            f"{record['restored']:,}",
            f"{sum(record['refused'].values()):,}",
            _wrong(record["beyond"]),
            _mticks(record["least_margin_mticks"]),
            f"{corners['number']:,}",
            _wrong(corners["beyond"]),
            f"{_mticks(corners['least_margin_mticks'])} to {_mticks(corners['most_margin_mticks'])}",
        )
    console.print(table)
    _print_refusals(console, document)
    _print_luck(console, document["unlucky"])
    for finding in document["first_findings"]:
        off = f"off by {_mticks(finding['error_mticks'])} ticks where {finding['bound_ticks']} are stated"
        console.print(
            Text.assemble((f"{finding['what']}: ", "bold red"), f"{finding['basis']}, {finding['which']}: {off}")
        )
    left = document["findings"] - len(document["first_findings"])
    if left:
        console.print(f"and {left:,} more")
    if document["ok"]:
        console.print(Text("No error exceeds its bound, and no bound its worst corner by over 2 ticks.", style="green"))


def _print_luck(console: Console, record: UnluckyRecord) -> None:
    """Print the outcomes by row of evidence, and the premises that were broken."""
    title = f"{record['number']:,} with unlucky and lying hosts, {record['pauses']:,} of them pauses"
    rows = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    rows.add_column("evidence")
    for heading in ("proved", "assumed", "of both,\nwarned of", "refused"):
        rows.add_column(heading, justify="right")
    rows.add_column("by")
    for row in record["rows"]:
        refused = row["refused"]
        rows.add_row(
            row["title"],
            f"{row['proved']:,}",
            f"{row['assumed']:,}",
            f"{row['warned']:,}",
            f"{sum(refused.values()):,}",
            ", ".join(f"{name} {number:,}" for name, number in refused.items()),
        )
    console.print(rows)
    premises = Table(title="Premises broken on purpose", title_justify="left", box=box.SIMPLE_HEAD)
    premises.add_column("premise")
    for heading in ("broken", "refused", "warned of", "listed as\nassumed", "no matter", "beyond\nthe bound"):
        premises.add_column(heading, justify="right")
    for premise in record["premises"]:
        counts = (premise[key] for key in ("broken", "refused", "warned", "listed", "harmless", "beyond"))
        premises.add_row(premise["title"], *(f"{count:,}" for count in counts))
    console.print(premises)
    luck = ", ".join(f"{name} {number:,}" for name, number in record["events"].items())
    console.print(f"Luck: {luck or 'none'}; in {record['honest']:,} no premise is broken")
    for finding in record["first_findings"]:
        console.print(Text.assemble(("unlucky: ", "bold red"), finding))
    left = record["findings"] - len(record["first_findings"])
    if left:
        console.print(f"and {left:,} more")


def _print_refusals(console: Console, document: Document) -> None:
    refused: dict[str, int] = {}
    for record in document["classes"]:
        for name, number in record["refused"].items():
            refused[name] = refused.get(name, 0) + number
    told = ", ".join(f"{name} {number:,}" for name, number in sorted(refused.items()))
    console.print(f"Refused or warned of, as they had to be: {told or 'none'}")


def _wrong(number: int) -> Text:
    return Text(f"{number:,}", style="red" if number else "green")


def _mticks(mticks: int | None) -> str:
    if mticks is None:
        return ""
    whole, part = divmod(abs(mticks), 1000)
    return f"{'-' if mticks < 0 else ''}{whole:,}.{part:03}"
