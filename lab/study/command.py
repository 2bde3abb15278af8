"""The study's one command: it prints what `study.run` returns."""

from __future__ import annotations

import importlib
import sys
from enum import StrEnum
from fractions import Fraction
from pathlib import Path  # noqa: TC003 - typer evaluates the annotations
from typing import Annotated

import typer

import study
from guestclock.cli import needs
from guestclock.cli.shared import JSON, fail, show

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class LieAbout(StrEnum):
    """Subject of a host's lie."""

    SYNC = "sync"
    HOLDOVER = "holdover"
    BRACKET = "bracket"
    COUNTER = "counter"


@app.command()
def study_command(
    *,
    migrations: Annotated[
        int, typer.Option(min=0, help="How many random migrations, and as many with unlucky hosts.")
    ] = 100_000,
    seed: Annotated[int, typer.Option(help="What they are drawn from: the same seed draws the same.")] = 1,
    as_json: Annotated[bool, JSON] = False,
    plot: Annotated[Path | None, typer.Option(help="Where the picture goes: .svg or .png.", show_default=False)] = None,
    lie: Annotated[
        Fraction | None,
        typer.Option(
            parser=Fraction,
            metavar="FACTOR",
            help="One host of each migration is worse than it declares, by this factor.",
            show_default=False,
        ),
    ] = None,
    lie_about: Annotated[LieAbout, typer.Option(help="What it lies about.")] = LieAbout.SYNC,
) -> None:
    """Migrate guests between simulated hosts and compare each one's clock with the truth: docs/study.md.

    Exits 1 if an error exceeds its bound, or a bound its worst corner by more than 2 ticks.
    """
    if plot:
        with needs("plot"):
            importlib.import_module("matplotlib")
    try:
        document = study.run(
            migrations=migrations,
            seed=seed,
            lie=1 if lie is None else lie,
            lie_about=lie_about.value,
            progress=sys.stderr.isatty(),
        )
    except ValueError as error:
        fail(error)
    show(document, study.print_table, as_json=as_json)
    if plot:
        try:
            plot.parent.mkdir(parents=True, exist_ok=True)
            study.draw(document, plot)
        except (ValueError, OSError) as error:
            fail(error)
        typer.echo(f"The picture: {plot}", err=True)
    if not document["ok"]:
        raise typer.Exit(1)
