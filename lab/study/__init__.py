"""The migration study: migrations between simulated hosts, each judged against the truth.

`run` needs nothing beyond guestclock; `print_table` needs rich, and `draw` matplotlib. Each raises ImportError without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from study.lies import ABOUT
from study.study import SCHEMA, run

if TYPE_CHECKING:
    from os import PathLike

    from study.figures import Document

__all__ = ["ABOUT", "SCHEMA", "draw", "print_table", "run"]


def print_table(document: Document) -> None:
    """Print what `run` returned as a table on standard output."""
    from study import table

    table.print_table(document)


def draw(document: Document, path: str | PathLike[str]) -> None:
    """Draw what `run` returned as a picture of error against bound; SVG or PNG by the path's suffix."""
    from study import picture

    picture.draw(document, path)
