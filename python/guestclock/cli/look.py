"""The commands that look at checkpoints: inspect, plan, diff, verify and plot.

Each exits 0 where all is well, 1 for a difference, damage or a refusal, and 2 for wrong usage or an unreadable file.
"""

from __future__ import annotations

import importlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from guestclock import Advance, CatchUp, Checkpoint, Elapsed, Fleet, Freeze, Options, SyncBound, inspection, sync
from guestclock.cli import needs, tables
from guestclock.cli.shared import JSON, fail, print_csv, show
from guestclock.errors import KvmError, NotSynchronised

app = typer.Typer()

_File = Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint, or a folder of them.", show_default=False)]
_Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Checkpoints.", show_default=False)]
_Vm = Annotated[str | None, typer.Option("--vm", metavar="NAME", help="The VM of this name, of a checkpoint of many.")]
_Json = Annotated[bool, JSON]


class PolicyName(StrEnum):
    """The policy: how much the guest sees of the time that has passed."""

    FREEZE = "freeze"
    ADVANCE = "advance"
    CATCH_UP = "catch-up"


class ElapsedByName(StrEnum):
    """The clock that tells the time that has passed."""

    COUNTER = "counter"
    WALL_CLOCKS = "wall-clocks"


class TimersName(StrEnum):
    """The treatment of the timers: each keeps its deadline, or its remaining time."""

    ABSOLUTE = "absolute"
    RELATIVE = "relative"


class IntentName(StrEnum):
    """The reason for the restore."""

    LIVE_MIGRATION = "live-migration"
    LIVE_UPDATE = "live-update"
    SNAPSHOT = "snapshot"
    CLONE = "clone"


class ViewsName(StrEnum):
    """The treatment of two counters that differ."""

    PRESERVE = "preserve"
    ADOPT_VIRTUAL = "adopt-virtual"
    REFUSE = "refuse"


@app.command("inspect")
def inspect_command(file: _File, *, vm: _Vm = None, as_json: _Json = False) -> None:
    """Shows a checkpoint's contents: its host's clocks, its guest's counters, and how long its timers have left.

    Of many VMs: a row each; with --vm, one of them.
    """
    show(inspection.inspect(_load(file, vm)), tables.print_inspection, as_json=as_json)


@app.command("plan")
def plan_command(
    file: _File,
    *,
    vm: _Vm = None,
    policy: Annotated[PolicyName, typer.Option(help="What the guest is to see of the time that has passed.")],
    max_ns: Annotated[int | None, typer.Option(min=0, help="With advance: the most guest time to add.")] = None,
    step_ns: Annotated[int | None, typer.Option(min=1, help="With catch-up: the most that one step makes up.")] = None,
    interval_ns: Annotated[int | None, typer.Option(min=1, help="With catch-up: the least between two steps.")] = None,
    at_once_ns: Annotated[
        int | None, typer.Option(min=0, help="With catch-up: the most to add at once, before it.")
    ] = None,
    within_ns: Annotated[
        int | None, typer.Option(min=0, help="With catch-up: the time within which it has to end.")
    ] = None,
    views: Annotated[ViewsName, typer.Option(help="What becomes of two counters that differ.")] = ViewsName.PRESERVE,
    elapsed_by: Annotated[
        ElapsedByName | None, typer.Option(help="Which clock tells the time that has passed; else by the evidence.")
    ] = None,
    error_ns: Annotated[
        int | None,
        typer.Option(min=0, help="With wall-clocks or --elapsed-ns: how far off that time may be."),
    ] = None,
    refuse_over_ns: Annotated[
        int | None, typer.Option(min=0, help="With wall-clocks: the most that they are believed; else 366 days.")
    ] = None,
    rate_error_ppb: Annotated[
        int, typer.Option(min=0, max=250_000, help="How far the counter's frequency may be from the guest's.")
    ] = 0,
    max_error_ns: Annotated[
        int | None, typer.Option(min=0, help="How far the wall clock here may be from UTC: somebody vouches for it.")
    ] = None,
    chrony: Annotated[bool, typer.Option("--chrony", help="Ask chrony how far that is.")] = False,
    timers: Annotated[
        TimersName, typer.Option(help="Whether timers keep their deadlines, or what was left to them.")
    ] = TimersName.ABSOLUTE,
    intent: Annotated[IntentName | None, typer.Option(help="Why the VM is restored.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse what this version doesn't know.")] = False,
    kernel: Annotated[str | None, typer.Option(help="The target's kernel: 6.1, 6.12 or 7.3.")] = None,
    frequency_hz: Annotated[
        int | None, typer.Option(min=1, help="Another target than this host: its counter's frequency.")
    ] = None,
    elapsed_ns: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Another target than this host: when so long has passed since the checkpoint, and not now. It is the "
            "time that has passed, unless --elapsed-by says otherwise.",
        ),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Of any number of VMs: print a row each, as CSV.")] = False,
    as_json: _Json = False,
) -> None:
    """Shows what a restore would do. A dry run, into a model VM over this host's counter: nothing is restored.

    With --frequency-hz or --elapsed-ns the target's counter is another, as described. Exits 1 for a refusal.
    """
    if as_csv and as_json:
        fail("--csv and --json are two forms of one answer: give one of them")
    wanted = _policy(policy, max_ns, (step_ns, interval_ns, at_once_ns, within_ns))
    options = Options(
        views=views.value,
        elapsed=_elapsed(elapsed_by, elapsed_ns, error_ns, refuse_over_ns),
        sync=_sync(max_error_ns, chrony=chrony),
        rate_error_ppb=rate_error_ppb,
        timers=timers.value,
        intent=intent.value if intent else None,
        strict=strict,
    )
    checkpoint = _load(file, vm) if as_csv else _load_one(file, vm, "choose one with --vm, or a row each with --csv")
    try:
        targets = {
            one.name: inspection.target(one, frequency_hz=frequency_hz, elapsed_ns=elapsed_ns, kernel=kernel)
            for one in checkpoint
        }
    except (ValueError, OverflowError, KvmError) as error:
        fail(f"there can't be such a target: {error}")
    if as_csv:
        planned = Fleet(targets).plan(checkpoint, wanted, options=options)
        print_csv(planned.columns())
        refused = bool(planned.refused)
    else:
        document = inspection.dry_run(checkpoint, targets[checkpoint.name], policy=wanted, options=options)
        show(document, tables.print_dry_run, as_json=as_json)
        refused = document["refused"] is not None
    if refused:
        raise typer.Exit(1)


def _policy(
    name: PolicyName, max_ns: int | None, catch_up: tuple[int | None, int | None, int | None, int | None]
) -> Freeze | Advance | CatchUp:
    step_ns, interval_ns, at_once_ns, within_ns = catch_up
    if max_ns is not None and name is not PolicyName.ADVANCE:
        fail("--max-ns is the most that --policy advance adds: with catch-up give --at-once-ns")
    if name is PolicyName.CATCH_UP:
        if step_ns is None or interval_ns is None:
            fail("--policy catch-up needs --step-ns and --interval-ns")
        return CatchUp(step_ns, interval_ns, at_once_ns=at_once_ns or 0, within_ns=within_ns)
    if any(said is not None for said in catch_up):
        fail("--step-ns, --interval-ns, --at-once-ns and --within-ns say how --policy catch-up pays back")
    return Freeze() if name is PolicyName.FREEZE else Advance(max_ns)


def _elapsed(
    by: ElapsedByName | None, elapsed_ns: int | None, error_ns: int | None, refuse_over_ns: int | None
) -> Elapsed | None:
    if by is not ElapsedByName.WALL_CLOCKS and refuse_over_ns is not None:
        fail("--refuse-over-ns says how long --elapsed-by wall-clocks is believed")
    if by is ElapsedByName.WALL_CLOCKS:
        return Elapsed.by_wall_clocks(error_ns=error_ns, refuse_over_ns=refuse_over_ns)
    if by is None and elapsed_ns is not None:
        return Elapsed.given(elapsed_ns, error_ns=error_ns or 0)
    if error_ns is not None:
        fail("--error-ns says how far --elapsed-by wall-clocks or --elapsed-ns may be off")
    return None if by is None else Elapsed.by_counter()


def _sync(max_error_ns: int | None, *, chrony: bool) -> SyncBound | None:
    if not chrony:
        return None if max_error_ns is None else SyncBound(max_error_ns)
    if max_error_ns is not None:
        fail("--chrony asks for what --max-error-ns says: give one of them")
    try:
        return sync.chrony()
    except (NotSynchronised, OSError) as error:
        fail(error)


@app.command("diff")
def diff_command(
    one: Annotated[Path, typer.Argument(metavar="A", help="A checkpoint.", show_default=False)],
    other: Annotated[Path, typer.Argument(metavar="B", help="Another.", show_default=False)],
    *,
    vm: _Vm = None,
    as_json: _Json = False,
) -> None:
    """Shows how two checkpoints differ, VM by VM, and how much time passed between them. Exits 1 if they differ."""
    document = inspection.diff(_load(one, vm), _load(other, vm))
    show(document, tables.print_difference, as_json=as_json)
    if not document["equal"]:
        raise typer.Exit(1)


@app.command("verify")
def verify_command(files: _Files, *, as_json: _Json = False) -> None:
    """Checks that files are intact checkpoints. Exits 1 if one isn't, and 2 if one can't be read.

    It finds damage, not forgery: a checksum proves nothing about who wrote a file.
    """
    document = inspection.verify(files)
    show(document, tables.print_verification, as_json=as_json)
    found = {record["intact"] for record in document["files"]}
    if found != {True}:
        raise typer.Exit(2 if None in found else 1)


@app.command("plot")
def plot_command(
    files: _Files,
    *,
    vm: _Vm = None,
    out: Annotated[Path, typer.Option(help="Where the picture goes: .svg or .png.")] = Path("guestclock-timeline.svg"),
    as_json: _Json = False,
) -> None:
    """Draws a guest's time line through its checkpoints: its clock against its host's, with the pauses.

    Exits 1 for checkpoints that aren't of one time line.
    """
    with needs("plot"):
        importlib.import_module("matplotlib")
    checkpoints = [(file.name, _load_one(file, vm)) for file in files]
    try:
        document = inspection.timeline(checkpoints)
    except ValueError as error:
        fail(str(error), status=2 if len(files) < 2 else 1)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        inspection.draw(document, out)
    except (ValueError, OSError) as error:
        fail(str(error))
    show(document, tables.print_timeline, as_json=as_json)
    typer.echo(f"The picture: {out}", err=True)


def _load(file: Path, vm: str | None) -> Checkpoint:
    try:
        checkpoint = Checkpoint.load(file)
    except (OSError, ValueError) as error:
        where = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
        fail(f"{file}{where}: {error}")
    if vm is None:
        return checkpoint
    if vm not in checkpoint:
        fail(f"{file}: there is no VM named {vm!r}")
    return checkpoint[vm]


def _load_one(file: Path, vm: str | None, way_out: str = "choose one with --vm") -> Checkpoint:
    checkpoint = _load(file, vm)
    if len(checkpoint) != 1:
        fail(f"{file}: the checkpoint is of {len(checkpoint)} VMs: {way_out}")
    return checkpoint
