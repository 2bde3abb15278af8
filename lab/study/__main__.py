"""`python -m study`, with PYTHONPATH=lab. This page runs without the extras, to say which one is missing."""

import importlib

from guestclock.cli import needs


def main() -> None:
    """Run the command; a missing extra exits 2 with the pip line that brings it."""
    with needs("cli"):
        importlib.import_module("rich")  # Only the table needs it, after a minute's work.
        from study.command import app
    app(prog_name="python -m study")


if __name__ == "__main__":
    main()
