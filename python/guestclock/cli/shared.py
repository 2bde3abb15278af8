"""The common parts of several commands: an option, the display of documents and columns, the end with an error."""

from __future__ import annotations

import csv
import json
import sys
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

JSON = typer.Option("--json", help="Print one JSON document instead of a table.")

_Document = TypeVar("_Document")


def show(document: _Document, as_table: Callable[[_Document], None], *, as_json: bool) -> None:
    """Prints a document as JSON, or as a table."""
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        as_table(document)


def print_csv(columns: Mapping[str, NDArray[Any]]) -> None:
    """Prints columns as CSV (RFC 4180, with line feeds): a line of their names, then a line each row.

    A number that isn't known is empty; a bool is true or false.
    """
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(columns)
    for row in zip(*(array.tolist() for array in columns.values()), strict=True):
        rows.writerow(str(value).lower() if isinstance(value, bool) else value for value in row)


def fail(message: object, *, status: int = 2) -> NoReturn:
    """Ends the command with this message on standard error."""
    typer.echo(f"guestclock: {message}", err=True)
    raise typer.Exit(status)
