"""What the testbed tells whoever runs it."""

from __future__ import annotations

import sys
from typing import NoReturn


def say(line: str) -> None:
    """Print a line at once, so that it stands where it belongs among what other programs print."""
    print(line, flush=True)


def give_up(why: str) -> NoReturn:
    """End the program with its reason."""
    sys.stdout.flush()
    raise SystemExit(f"testbed: {why}")
