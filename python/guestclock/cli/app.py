"""The commands, which print the results of the library's own functions."""

from __future__ import annotations

import errno
import importlib
import json
import mmap
import os
import stat
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from guestclock import __version__, doctor, extras, selftest
from guestclock.cli import look, needs
from guestclock.cli.report import print_findings
from guestclock.cli.shared import JSON, fail, sentence, show
from guestclock.cli.verdict import print_verdict
from guestclock.errors import CapabilityMissing
from guestclock.inspection.words import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(
    help="Keeps a guest's clocks right when its virtual machine is paused, snapshotted, restored or migrated.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_PICTURE = Path("out/guestclock-demo.svg")


class Format(StrEnum):
    """Format of the payload's file."""

    RAW = "raw"
    ELF = "elf"


class Psci(StrEnum):
    """The instruction by which the payload's first vCPU starts the others."""

    NONE = "none"
    HVC = "hvc"
    SMC = "smc"


def _number(text: str | int) -> int:
    return int(text, 0) if isinstance(text, str) else text


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
    """Takes the options that stand before a command."""


@app.command("doctor")
def doctor_command(*, as_json: Annotated[bool, JSON] = False) -> None:
    """Shows what this host offers: its counter, wall clock, KVM and the optional extras, each with the reason."""
    findings = doctor.examine()
    if as_json:
        print(json.dumps(doctor.to_document(findings), indent=2))
    else:
        print_findings(findings)


@app.command("selftest")
def selftest_command() -> None:
    """Proves on an arm64 host with KVM that restores are what they promise: one JSON document, within two minutes.

    It has the kernel's behaviours, the accuracy under every policy by a guest's own reads, and the cost of each call,
    and names no host. Exits 1 if a restore isn't what its policy promises, 2 where there is no arm64 KVM.
    """
    try:
        document = selftest.run()
    except (CapabilityMissing, OSError) as error:
        fail(error)
    print(json.dumps(document, indent=2))
    if not document["ok"]:
        raise typer.Exit(1)


class Backend(StrEnum):
    """The backend that the demonstration's guest runs on."""

    UNICORN = "unicorn"
    KVM = "kvm"


@app.command("demo")
def demo_command(
    *,
    backend: Annotated[
        Backend, typer.Option(help="What the guest runs on: an emulator, or KVM where it is arm64's.")
    ] = Backend.UNICORN,
    as_json: Annotated[bool, JSON] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Where the picture goes: .svg or .png. On KVM there is none unless it is named.",
            show_default=str(_PICTURE),
        ),
    ] = None,
    pause_ms: Annotated[int, typer.Option(min=1, help="How long the guest stays paused, in milliseconds.")] = 1000,
) -> None:
    """Saves a real A64 guest in one process, restores it in another, and judges its clock: without guestclock and with.

    Exits 1 if the guest saw anything except what its policy promises, or if the row without guestclock isn't found
    wrong, and 2 where the guest can't run here.
    """
    if plot is None and backend is Backend.UNICORN:
        plot = _PICTURE
    with needs("demo"):
        # KVM and a table need no more than the command line does.
        extra = "demo" if backend is Backend.UNICORN else "plot" if plot else "cli"
        for module in extras.EXTRAS[extra].values():
            importlib.import_module(module)
        from guestclock import demo
    try:
        document = demo.run(backend=backend.value, pause_ms=pause_ms)
    except CapabilityMissing as error:
        fail(error)
    except RuntimeError as error:
        first, *of_the_vmm = str(error).splitlines()
        sentence(first)
        for line in of_the_vmm:
            typer.echo(printable(line), err=True)
        raise typer.Exit(1) from None
    show(document, demo.print_table, as_json=as_json)
    if plot:
        plot.parent.mkdir(parents=True, exist_ok=True)
        demo.draw(document, plot)
        typer.echo(f"The picture: {printable(str(plot))}", err=True)
    if not document["ok"]:
        raise typer.Exit(1)


@app.command("payload")
def payload_command(
    *,
    out: Annotated[Path | None, typer.Option(help="Where it goes. [default: guestclock-payload.bin or .elf]")] = None,
    form: Annotated[Format, typer.Option("--format", help="Raw is an arm64 boot image too.")] = Format.RAW,
    address: Annotated[
        int, typer.Option(parser=_number, metavar="ADDRESS", help="Where an ELF file is loaded.")
    ] = 0x4020_0000,
    vcpus: Annotated[int, typer.Option(help="How many vCPUs log, at most 8.")] = 2,
    samples: Annotated[int, typer.Option(help="Samples between two alarms.")] = 8,
    doorbell: Annotated[
        int, typer.Option(parser=_number, metavar="ADDRESS", help="No memory: a store there tells the VMM; 0: none.")
    ] = 0,
    gicd: Annotated[
        int, typer.Option(parser=_number, metavar="ADDRESS", help="The GICv3's distributor; 0: no alarms.")
    ] = 0x0800_0000,
    gicr: Annotated[
        int, typer.Option(parser=_number, metavar="ADDRESS", help="The first vCPU's redistributor.")
    ] = 0x080A_0000,
    period_ticks: Annotated[int, typer.Option(help="From setting an alarm to its deadline; 0: 20 ms.")] = 0,
    psci: Annotated[Psci, typer.Option(help="How the first vCPU starts the others.")] = Psci.HVC,
    timer_irq: Annotated[int, typer.Option(help="The virtual timer's interrupt id.")] = 27,
) -> None:
    """Writes the bare-metal guest that logs its clocks, for any VMM: docs/payload.md says how to run it.

    The addresses are those of QEMU's machine "virt" by default. `guestclock check-log` judges the log.
    """
    from guestclock import payload

    try:
        raw = payload.image(
            vcpus=vcpus,
            samples=samples,
            doorbell=doorbell,
            gicd=gicd,
            gicr=gicr,
            period_ticks=period_ticks,
            psci=psci.value,
            timer_irq=timer_irq,
        )
        written = raw if form is Format.RAW else payload.elf(raw, address)
        path = out or Path(f"guestclock-payload.{'bin' if form is Format.RAW else 'elf'}")
        path.write_bytes(written)
    except (ValueError, OSError) as error:
        fail(error)
    typer.echo(f"The payload: {printable(str(path))}", err=True)


def _json(file: Path) -> Any:
    with file.open("rb") as opened:
        return json.loads(_read(opened))


_MOST_BYTES = 1 << 30
"""The most that is read of a pipe, or of the host's JSON: both are kept in memory."""


@contextmanager
def _memory(file: Path) -> Iterator[tuple[bytes | mmap.mmap, list[tuple[int, int]] | None]]:
    """A file's contents, and the parts of it that aren't holes; None stands for all of it.

    Mapped, since a dump of a guest's memory may be larger than this host's; of a pipe, read.
    """
    with file.open("rb") as opened:
        status = os.fstat(opened.fileno())
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            yield _read(opened), None
            return
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            yield mapped, _parts(opened.fileno(), len(mapped))


def _read(opened: BinaryIO) -> bytes:
    contents = opened.read(_MOST_BYTES + 1)
    if len(contents) > _MOST_BYTES:
        msg = f"{opened.name} has more than {_MOST_BYTES} bytes"
        raise ValueError(msg)
    return contents


def _parts(fd: int, size: int) -> list[tuple[int, int]] | None:
    """The parts of a sparse file that have data, by lseek(2)."""
    parts, end = [], 0
    try:
        while end < size:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
            parts.append((start, end))
    except OSError as error:
        # ENXIO: no data up to the end. Anything else: a file system that knows no holes.
        return parts if error.errno == errno.ENXIO else None
    return parts


@app.command("check-log")
def check_log_command(
    file: Annotated[Path, typer.Argument(help="The guest's memory, or a part of it with the payload and its log.")],
    *,
    host: Annotated[Path | None, typer.Option(help="What the VMM saw on the host's counter (docs/payload.md).")] = None,
    virtual_only: Annotated[bool, typer.Option("--virtual-only", help="Judge CNTVCT_EL0 alone.")] = False,
    grace_ms: Annotated[
        int, typer.Option(min=0, help="How late an interrupt may be, or how long no vCPU logs.")
    ] = 1000,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Judges a VMM's log of the payload: gaps, skew, backward steps, stalls, interrupts that are lost, doubled or late.

    Exits 1 if anything is wrong, and 2 for a file that is no log.
    """
    from guestclock import payload

    try:
        with _memory(file) as (memory, parts):
            log = payload.read_log(memory, parts=parts)
        saw = None if host is None else payload.Host.from_dict(_json(host))
        views = ("cntvct",) if virtual_only else payload.VIEWS
        verdict = payload.check_log(log, host=saw, views=views, grace_ns=grace_ms * 1_000_000)
    except RecursionError:
        fail(f"{host} is nested too deeply to be a description of what the host saw (docs/payload.md)")
    except (ValueError, OSError) as error:
        fail(error)
    if as_json:
        print(json.dumps(verdict.to_dict(), indent=2))
    else:
        print_verdict(verdict)
    if not verdict.ok:
        raise typer.Exit(1)


app.add_typer(look.app)
