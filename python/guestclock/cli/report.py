"""The doctor's findings as a table, for people."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from guestclock.cli.shared import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guestclock.doctor import Finding

# Words, so that a terminal without colours tells them apart too.
_MARK = {True: ("yes", "green"), False: ("no", "yellow"), None: ("?", "cyan")}
_UNITS = {"hz": "Hz", "ns": "ns", "s": "s"}


def print_findings(findings: Iterable[Finding]) -> None:
    """Prints the findings on standard output, one section a subject."""
    table = Table(
        title="What this host offers guestclock", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    table.add_column("")
    table.add_column("what")
    table.add_column("")
    table.add_column("found", overflow="fold")
    table.add_column("why, and what follows", overflow="fold")
    for subject, group in groupby(findings, key=lambda finding: finding.subject):
        table.add_section()
        for number, finding in enumerate(group):
            word, style = _MARK[finding.ok]
            what, found = _for_people(finding)
            table.add_row(
                shown(subject.replace("_", " ") if number == 0 else "", style="bold"),
                shown(what),
                shown(word, style=style),
                shown(found),
                shown(finding.reason),
            )
    Console().print(table)


def _for_people(finding: Finding) -> tuple[str, str]:
    """Returns the name without its unit and the value with it."""
    name, _, suffix = finding.name.rpartition("_")
    unit = _UNITS.get(suffix)
    what = (name if unit else finding.name).replace("_", " ")
    if finding.value is None or isinstance(finding.value, bool):
        return what, ""
    found = f"{finding.value:,}" if isinstance(finding.value, int) else finding.value
    return what, f"{found} {unit}" if unit else found
