"""The demonstration: what a guest's clock does across a save in one process and a restore in another.

`run` needs unicorn and keystone-engine, or on KVM neither; `print_table` needs rich, and `draw` matplotlib: the extra
`demo` has them all. Each function raises ImportError without its packages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guestclock.demo.runner import SCHEMA, run

if TYPE_CHECKING:
    from os import PathLike

    from guestclock.demo.document import Document

__all__ = ["SCHEMA", "draw", "print_table", "run"]


def print_table(document: Document) -> None:
    """Prints the result of `run` as a table on standard output."""
    from guestclock.demo import table

    table.print_table(document)


def draw(document: Document, path: str | PathLike[str]) -> None:
    """Draws the result of `run`: guest time against host time, and against its promise; SVG or PNG by the suffix."""
    from guestclock.demo import picture

    picture.draw(document, path)
