"""The common parts of several commands: an option, the display of a document, the end with an error."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

JSON = typer.Option("--json", help="Print one JSON document instead of a table.")

_Document = TypeVar("_Document")


def show(document: _Document, as_table: Callable[[_Document], None], *, as_json: bool) -> None:
    """Prints a document as JSON, or as a table."""
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        as_table(document)


def fail(message: object, *, status: int = 2) -> NoReturn:
    """Ends the command with this message on standard error."""
    typer.echo(f"guestclock: {message}", err=True)
    raise typer.Exit(status)
