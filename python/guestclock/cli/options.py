"""What several commands take."""

from __future__ import annotations

import typer

JSON = typer.Option("--json", help="Print one JSON document instead of a table.")
