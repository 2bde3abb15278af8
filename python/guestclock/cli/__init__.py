"""The `guestclock` command. This module runs without the extras, to name the missing one."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from guestclock import extras
from guestclock.errors import GuestClockError, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator


def main() -> None:
    """Runs the command line; a missing extra exits 2 with the pip line that installs it.

    An error of the library's that a command doesn't expect ends it as a sentence too: 1 for a refusal, else 2.
    """
    with needs("cli"):
        from guestclock.cli.app import app
        from guestclock.cli.shared import sentence
    try:
        app(prog_name="guestclock")
    except Refused as error:
        sentence(error)
        sys.exit(1)
    except (GuestClockError, OSError, MemoryError) as error:
        sentence(error)
        sys.exit(2)


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turns a failed import of one of the extra's modules into the line that installs it, and exits 2."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not extras.provides(extra, error.name):
            raise
        print(f"guestclock: this command needs extra packages: {extras.pip_line(extra)}", file=sys.stderr)
        sys.exit(2)
