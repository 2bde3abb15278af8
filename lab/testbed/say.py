"""Messages of the testbed: results to stdout, where only a machine's console stands beside them."""

from __future__ import annotations

import sys
from typing import NoReturn


def say(result: str) -> None:
    """Print a result at once, so that it stands where it belongs among what other programs print."""
    print(result, flush=True)


def note(progress: str) -> None:
    """Print what is being done, or what went wrong in doing it, to stderr."""
    sys.stdout.flush()
    print(f"testbed: {progress}", file=sys.stderr, flush=True)


def give_up(why: str) -> NoReturn:
    """End the program with its reason."""
    sys.stdout.flush()
    raise SystemExit(f"testbed: {why}")
