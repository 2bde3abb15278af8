"""The common parts of several commands: an option, the display of documents and columns, the end with an error."""

from __future__ import annotations

import csv
import json
import re
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import typer
from rich.text import Text

from guestclock._core import _speak_flags
from guestclock.inspection.words import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

_UNITS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "min": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
}
_DURATION: Final = re.compile(rf"(\d{{1,20}})(?:\.(\d{{1,9}}))?({'|'.join(_UNITS)})", re.ASCII)
_MOST_NS: Final = 2**64 - 1

JSON = typer.Option("--json", help="Print one JSON document instead of a table.")

_Document = TypeVar("_Document")


def show(document: _Document, as_table: Callable[[_Document], None], *, as_json: bool) -> None:
    """Prints a document as JSON, or as a table."""
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        as_table(document)


def shown(text: str, *, style: str = "") -> Text:
    """Returns a table's or a line's text: not markup, as rich would take brackets, and `printable`."""
    return Text(printable(text), style=style)


def print_csv(columns: Mapping[str, NDArray[Any]]) -> None:
    """Prints columns as CSV (RFC 4180, with line feeds): a line of their names, then a line each row.

    A number that isn't known is empty; a bool is true or false. On a terminal a name is `printable`; a program gets it
    as it is.
    """
    shows = printable if sys.stdout.isatty() else str
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(columns)
    for row in zip(*(array.tolist() for array in columns.values()), strict=True):
        rows.writerow(
            str(value).lower() if isinstance(value, bool) else shows(value) if isinstance(value, str) else value
            for value in row
        )


def sentence(message: object) -> None:
    """Prints a message on standard error, as one line."""
    typer.echo(f"guestclock: {printable(str(message) or type(message).__name__)}", err=True)


def duration_ns(text: str | int) -> int:
    """Returns the nanoseconds of a time such as "30s", "1.5ms" or "2min": whole, at most 2**64 - 1, and with a unit."""
    if isinstance(text, int):
        return text
    found = _DURATION.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"a time is a number with a unit, {', '.join(_UNITS)}: 30s, 1.5ms")
    whole, part, unit = found.groups("")
    ns, rest = divmod(int(whole + part) * _UNITS[unit], int("1" + "0" * len(part)))
    if rest or ns > _MOST_NS:
        raise typer.BadParameter("a time is of whole nanoseconds, at most 2**64 - 1")
    return ns


@contextmanager
def flags() -> Iterator[None]:
    """Makes messages of this block name flags as the way out, instead of Python's keywords."""
    before = _speak_flags(True)  # noqa: FBT003 - the native module's
    try:
        yield
    finally:
        _speak_flags(before)


def fail(message: object, *, status: int = 2) -> NoReturn:
    """Ends the command with this message on standard error."""
    sentence(message)
    raise typer.Exit(status)
