"""The commands that look at checkpoints: inspect, plan, diff, verify and plot.

Each exits 0 where all is well, 1 for a difference, damage or a refusal, and 2 for wrong usage or an unreadable file.
"""

from __future__ import annotations

import importlib
import stat
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, NoReturn

import typer

from guestclock import Advance, CatchUp, Checkpoint, Elapsed, Freeze, Options, SyncBound, inspection, snapshots, sync
from guestclock.cli import needs, tables
from guestclock.cli.shared import JSON, duration_ns, fail, flags, print_csv, show
from guestclock.errors import KvmError, NotACheckpoint, NotSynchronised
from guestclock.inspection.words import printable

if TYPE_CHECKING:
    from guestclock.snapshots import Snapshot

app = typer.Typer()


def _duration(flag: str, words: str) -> Any:
    return typer.Option(flag, parser=duration_ns, metavar="TIME", help=words)


class IdsName(StrEnum):
    """The naming of the registers in another VMM's snapshot."""

    KVM = "kvm"
    ARM = "arm"


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


_File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="A checkpoint or another VMM's snapshot (docs/snapshots.md), or a folder.",
        show_default=False,
    ),
]
_Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Checkpoints.", show_default=False)]
_Vm = Annotated[str | None, typer.Option("--vm", metavar="NAME", help="The VM of this name, of a checkpoint of many.")]
_Json = Annotated[bool, JSON]
_Cntfrq = Annotated[
    int | None,
    typer.Option("--cntfrq-hz", min=1, max=2**32 - 1, help="Of another VMM's snapshot: the guest's CNTFRQ_EL0."),
]
_Ids = Annotated[
    IdsName | None, typer.Option("--ids", help="Of another VMM's snapshot: KVM's register ids, or Arm's encodings.")
]
_Cntvct = Annotated[
    int | None,
    typer.Option("--cntvct", min=0, max=2**64 - 1, help="Of another VMM's snapshot: CNTVCT_EL0 at the save."),
]
_Cntpct = Annotated[
    int | None,
    typer.Option("--cntpct", min=0, max=2**64 - 1, help="Of another VMM's snapshot: CNTPCT_EL0 at the save."),
]
_SavedAt = Annotated[
    int | None,
    typer.Option(
        "--saved-at",
        min=0,
        max=2**63 - 1,
        metavar="NS",
        help="Of another VMM's snapshot: the host's wall clock at the save, in nanoseconds since 1970.",
    ),
]
_LeaveOut = Annotated[
    bool, typer.Option("--leave-out-unknown", help="Leave out registers and keys that this version doesn't know.")
]


@app.command("inspect")
def inspect_command(
    file: _File,
    *,
    vm: _Vm = None,
    cntfrq_hz: _Cntfrq = None,
    ids: _Ids = None,
    cntvct: _Cntvct = None,
    cntpct: _Cntpct = None,
    saved_at: _SavedAt = None,
    as_json: _Json = False,
) -> None:
    """Shows a checkpoint's contents: its host's clocks, its guest's counters, and how long its timers have left.

    Of many VMs: a row each; with --vm, one of them. Of another VMM's snapshot: what was recognised and what it lacks.
    """
    known = _Known(cntfrq_hz, ids, cntvct, cntpct, saved_at)
    with flags():
        checkpoint, snapshot = _load(file, vm, known)
        show(inspection.inspect(checkpoint, snapshot), tables.print_inspection, as_json=as_json)


@app.command("plan")
def plan_command(
    file: _File,
    *,
    vm: _Vm = None,
    policy: Annotated[PolicyName, typer.Option(help="What the guest is to see of the time that has passed.")],
    max_ns: Annotated[int | None, _duration("--max", "With advance: the most guest time to add.")] = None,
    step_ns: Annotated[int | None, _duration("--step", "With catch-up: the most that one step makes up.")] = None,
    interval_ns: Annotated[int | None, _duration("--interval", "With catch-up: the least between two steps.")] = None,
    at_once_ns: Annotated[
        int | None, _duration("--at-once", "With catch-up: the most to add at once, before it.")
    ] = None,
    within_ns: Annotated[
        int | None, _duration("--within", "With catch-up: the time within which it has to end.")
    ] = None,
    views: Annotated[ViewsName, typer.Option(help="What becomes of two counters that differ.")] = ViewsName.PRESERVE,
    elapsed_by: Annotated[
        ElapsedByName | None, typer.Option(help="Which clock tells the time that has passed; else by the evidence.")
    ] = None,
    error_ns: Annotated[
        int | None, _duration("--elapsed-error", "With wall-clocks or --elapsed: how far off that time may be.")
    ] = None,
    refuse_over_ns: Annotated[
        int | None, _duration("--refuse-over", "With wall-clocks: the most that they are believed; else 366 days.")
    ] = None,
    rate_error_ppb: Annotated[
        int, typer.Option(min=0, max=250_000, help="How far the counter's frequency may be from the guest's.")
    ] = 0,
    max_error_ns: Annotated[
        int | None, _duration("--max-error", "How far the wall clock here may be from UTC: somebody vouches for it.")
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
        _duration(
            "--elapsed",
            "Another target than this host: when so long has passed since the checkpoint, and not now. It is the "
            "time that has passed, unless --elapsed-by says otherwise.",
        ),
    ] = None,
    cntfrq_hz: _Cntfrq = None,
    ids: _Ids = None,
    cntvct: _Cntvct = None,
    cntpct: _Cntpct = None,
    saved_at: _SavedAt = None,
    leave_out_unknown: _LeaveOut = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Of any number of VMs: print a row each, as CSV.")] = False,
    as_json: _Json = False,
) -> None:
    """Shows what a restore would do. A dry run, into a model VM over this host's counter: nothing is restored.

    With --frequency-hz or --elapsed the target's counter is another, as described. Exits 1 for a refusal.
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
    known = _Known(cntfrq_hz, ids, cntvct, cntpct, saved_at)
    with flags():
        saved = _load_all(file, vm, known)
        if not as_csv and len(saved) != 1:
            fail(f"{file}: the checkpoint is of {len(saved)} VMs: choose one with --vm, or a row each with --csv")
        if leave_out_unknown:
            saved = {name: one.without_unknown() for name, one in saved.items()}
        try:
            targets = {
                name: inspection.target(one, frequency_hz=frequency_hz, elapsed_ns=elapsed_ns, kernel=kernel)
                for name, one in saved.items()
            }
        except (ValueError, OverflowError, KvmError) as error:
            fail(f"there can't be such a target: {error}")
        if as_csv:
            planned = inspection.plan_each(saved, targets, policy=wanted, options=options)
            print_csv(planned.columns())
            refused = bool(planned.refused)
        else:
            ((name, one),) = saved.items()
            document = inspection.dry_run(one, targets[name], policy=wanted, options=options)
            show(document, tables.print_dry_run, as_json=as_json)
            refused = document["refused"] is not None
    if refused:
        raise typer.Exit(1)


def _policy(
    name: PolicyName, max_ns: int | None, catch_up: tuple[int | None, int | None, int | None, int | None]
) -> Freeze | Advance | CatchUp:
    step_ns, interval_ns, at_once_ns, within_ns = catch_up
    if max_ns is not None and name is not PolicyName.ADVANCE:
        fail("--max is the most that --policy advance adds: with catch-up give --at-once")
    if name is PolicyName.CATCH_UP:
        if step_ns is None or interval_ns is None:
            fail("--policy catch-up needs --step and --interval")
        if not step_ns or not interval_ns:
            fail("--step and --interval are of one nanosecond at least")
        return CatchUp(step_ns, interval_ns, at_once_ns=at_once_ns or 0, within_ns=within_ns)
    if any(said is not None for said in catch_up):
        fail("--step, --interval, --at-once and --within say how --policy catch-up pays back")
    return Freeze() if name is PolicyName.FREEZE else Advance(max_ns)


def _elapsed(
    by: ElapsedByName | None, elapsed_ns: int | None, error_ns: int | None, refuse_over_ns: int | None
) -> Elapsed | None:
    if by is not ElapsedByName.WALL_CLOCKS and refuse_over_ns is not None:
        fail("--refuse-over says how long --elapsed-by wall-clocks is believed")
    if by is ElapsedByName.WALL_CLOCKS:
        return Elapsed.by_wall_clocks(error_ns=error_ns, refuse_over_ns=refuse_over_ns)
    if by is None and elapsed_ns is not None:
        return Elapsed.given(elapsed_ns, error_ns=error_ns or 0)
    if error_ns is not None:
        fail("--elapsed-error says how far --elapsed-by wall-clocks or --elapsed may be off")
    return None if by is None else Elapsed.by_counter()


def _sync(max_error_ns: int | None, *, chrony: bool) -> SyncBound | None:
    if not chrony:
        return None if max_error_ns is None else SyncBound(max_error_ns)
    if max_error_ns is not None:
        fail("--chrony asks for what --max-error says: give one of them")
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
    document = inspection.diff(_load(one, vm)[0], _load(other, vm)[0])
    show(document, tables.print_difference, as_json=as_json)
    if not document["equal"]:
        raise typer.Exit(1)


@app.command("verify")
def verify_command(files: _Files, *, as_json: _Json = False) -> None:
    """Checks that files are intact checkpoints. Exits 1 if one isn't, and 2 if one can't be read or joined.

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
    typer.echo(f"The picture: {printable(str(out))}", err=True)


class _Known(NamedTuple):
    """Facts about another VMM's snapshot that aren't in its file."""

    cntfrq_hz: int | None = None
    ids: IdsName | None = None
    cntvct: int | None = None
    cntpct: int | None = None
    saved_at: int | None = None


_FLAGS: Final = {
    "frequency_hz": "--cntfrq-hz",
    "ids": "--ids",
    "cntvct": "--cntvct",
    "cntpct": "--cntpct",
    "realtime_ns": "--saved-at",
}
"""The flags of the facts that a `snapshots.Lack` names."""


_NOTHING_KNOWN: Final = _Known()


def _load(file: Path, vm: str | None, known: _Known = _NOTHING_KNOWN) -> tuple[Checkpoint, Snapshot | None]:
    """Returns the checkpoint in a file or a folder, or that of another VMM's snapshot, and the snapshot."""
    snapshot = None
    try:
        checkpoint = Checkpoint.load(file)
    except NotACheckpoint as error:
        if file.is_dir() or not _is_json(file):
            _fail_about(file, error)
        checkpoint, snapshot = _imported(file, known)
    except (OSError, ValueError) as error:
        _fail_about(file, error)
    if snapshot is None and any(said is not None for said in known):
        fail(
            f"{file} is a checkpoint: --cntfrq-hz, --ids, --cntvct, --cntpct and --saved-at are about other VMMs' files"
        )
    if vm is None:
        return checkpoint, snapshot
    if vm not in checkpoint:
        fail(f"{file}: there is no VM named {vm!r}")
    return checkpoint[vm], snapshot


def _load_one(file: Path, vm: str | None, way_out: str = "choose one with --vm") -> Checkpoint:
    checkpoint, _ = _load(file, vm)
    if len(checkpoint) != 1:
        fail(f"{file}: the checkpoint is of {len(checkpoint)} VMs: {way_out}")
    return checkpoint


def _load_all(file: Path, vm: str | None, known: _Known) -> dict[str, Checkpoint]:
    """Returns each VM of a file, or of the files in a folder. A snapshot without a name has its file's in a folder."""
    files = sorted(one for one in file.iterdir() if one.is_file() and one.name[:1] != ".") if file.is_dir() else []
    if not any(map(_is_json, files)):
        checkpoint, _ = _load(file, vm, known)
        return {one.name: one for one in checkpoint}
    saved: dict[str, Checkpoint] = {}
    for one in files:
        checkpoint, snapshot = _load(one, None, known if _is_json(one) else _NOTHING_KNOWN)
        for each in checkpoint:
            name = each.name or (one.stem if snapshot else "")
            if name in saved:
                fail(f"{file}: two VMs are named {name!r}")
            saved[name] = each
    if vm is None:
        return saved
    if vm not in saved:
        fail(f"{file}: there is no VM named {vm!r}")
    return {vm: saved[vm]}


def _is_json(file: Path) -> bool:
    """Returns whether a regular file begins as a JSON object does."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return False
        with file.open("rb") as opened:
            return opened.read(64).lstrip()[:1] == b"{"
    except OSError as error:
        _fail_about(file, error)


def _imported(file: Path, known: _Known) -> tuple[Checkpoint, Snapshot]:
    try:
        snapshot = snapshots.read(file).given(
            frequency_hz=known.cntfrq_hz,
            ids=known.ids.value if known.ids else None,
            cntvct=known.cntvct,
            cntpct=known.cntpct,
            realtime_ns=known.saved_at,
        )
        missing = [f"{lack.text}: give {_FLAGS[lack.name]}" for lack in snapshot.lacks if lack.needed]
        if missing:
            fail(f"{file}: {'; '.join(missing)}")
        return snapshot.checkpoint(), snapshot
    except snapshots.Contradiction as error:
        fail(f"{file}: {_FLAGS[error.name]} is given as {error.said}, and the file has {error.found}: leave it out")
    except (OSError, ValueError, OverflowError) as error:
        _fail_about(file, error)


def _fail_about(file: Path, error: Exception) -> NoReturn:
    where = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
    fail(f"{file}{where}: {error}")
