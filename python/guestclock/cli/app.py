"""The commands: they print what the library's own functions return."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Annotated

import typer

from guestclock import __version__, doctor, extras
from guestclock.cli import needs
from guestclock.cli.report import print_findings

app = typer.Typer(
    help="Keeps a guest's clocks right when its virtual machine is paused, snapshotted, restored or migrated.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_JSON = typer.Option("--json", help="Print one JSON document instead of a table.")


def _print_version(asked: bool) -> None:  # noqa: FBT001 - typer calls it with the flag
    if asked:
        print(f"guestclock {__version__}")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command("doctor")
def doctor_command(*, as_json: Annotated[bool, _JSON] = False) -> None:
    """Say what this host offers: its counter, wall clock, KVM and the optional extras, each with the reason."""
    findings = doctor.examine()
    if as_json:
        print(json.dumps(doctor.to_document(findings), indent=2))
    else:
        print_findings(findings)


@app.command("demo")
def demo_command(
    *,
    as_json: Annotated[bool, _JSON] = False,
    plot: Annotated[Path, typer.Option(help="Where the picture goes: .svg or .png.")] = Path("out/guestclock-demo.svg"),
    pause_ms: Annotated[int, typer.Option(min=1, help="How long the guest stays paused, in milliseconds.")] = 1500,
) -> None:
    """Checkpoint a real A64 guest in one process, restore it in another, and measure what it saw.

    Exits 1 if the guest saw anything but what its policy promises.
    """
    with needs("demo"):
        for module in extras.EXTRAS["demo"].values():
            importlib.import_module(module)
        from guestclock import demo
    document = demo.run(pause_ms=pause_ms)
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        demo.print_table(document)
    plot.parent.mkdir(parents=True, exist_ok=True)
    demo.draw(document, plot)
    typer.echo(f"The picture: {plot}", err=True)
    if any(counter["error_ticks"] for run in document["runs"] for counter in run["counters"].values()):
        raise typer.Exit(1)
