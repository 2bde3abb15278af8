"""An emulated machine that boots a real kernel with a working /dev/kvm, runs one command, and ends."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from testbed import guest, image, kernel, roots
from testbed.archive import Writer
from testbed.debian import Archive
from testbed.say import note

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from testbed.legs import Leg

REPEATABLE = ("-rtc", "base=2024-01-01T00:00:00,clock=vm", "-seed", "1")
"""With one processor, whose clock counts its instructions: the same command prints the same bytes."""

SHIFT = 1
"""Instructions of 2 nanoseconds, where a leg has no rate of its own."""

TO_BOOT_AND_TO_END_S = 60
"""Time that a machine gets beside its command's."""

NEVER_ENDED = 124
"""The status of a command that didn't end in time, as of timeout(1)."""
HANDED_NOTHING_OVER = 125
"""The status of a machine that ended before its command, or without handing over what that left."""


@dataclass(frozen=True)
class Parts:
    """Parts of a machine, in the cache."""

    emulator: Path
    kernel: Path
    base: Path


def parts(leg: Leg) -> Parts:
    """The parts of the leg's machine; what the cache hasn't got is fetched."""
    roots.check()
    wanted = leg.architecture
    # One emulator for all legs, so that only the kernel differs. The newest, since no older one runs the nested leg.
    emulator = roots.root("emulator", Archive("trixie"), *wanted.emulator, backports=True)
    return Parts(emulator, kernel.fetched(leg, emulator), image.base(wanted))


def boot(
    leg: Leg,
    arguments: list[str],
    *,
    show: Callable[[bytes], None],
    wheel: Path | None = None,
    files: Mapping[str, Path] | None = None,
    shared: Path | None = None,
    out: Path | None = None,
    icount: bool = False,
    timeout_s: int = 600,
) -> int:
    """Boot the leg's machine, run the command in it, and give the command's status.

    `show` gets each line of the console as it is written. What the command leaves in /out is in the folder `out`
    afterwards, also if the command failed or didn't end in time. The machine has the caller's variables GUESTCLOCK_*,
    and the leg's name as GUESTCLOCK_LEG; and `files`, by their names there.
    The file `shared` is memory that it shares with other machines, as a device on PCI (QEMU: ivshmem-plain).
    """
    machine, wanted = parts(leg), leg.architecture
    shift = SHIFT if icount and leg.icount is None else leg.icount
    with tempfile.TemporaryDirectory(prefix="guestclock-") as scratch:
        handed_over, initrd = Path(scratch, "out.tar.gz"), Path(scratch, "initrd")
        variables = {name: value for name, value in os.environ.items() if name.startswith("GUESTCLOCK_")}
        variables.pop("GUESTCLOCK_CACHE", None)
        variables |= {"GUESTCLOCK_LEG": leg.name, "GUESTCLOCK_OUT": "/out", "TESTBED_LIMIT_S": str(timeout_s)}
        variables |= {"TESTBED_FILES": f"/dev/{wanted.files}", "TESTBED_MODULES": " ".join(wanted.modules)}
        with initrd.open("wb") as joined:
            with machine.base.open("rb") as base:
                shutil.copyfileobj(base, joined, 1 << 20)
            writer = Writer(joined)
            if wanted.python:
                _work_tree(writer, wheel, Path(scratch, "tree"))
            else:
                writer.add("work", stat.S_IFDIR | 0o755)
            if leg.guests:
                files = {**(files or {}), **guest.files(leg)}
                writer.add("guest", stat.S_IFDIR | 0o755)
            for name, path in (files or {}).items():
                writer.add(name, stat.S_IFREG | 0o755, path.read_bytes())
            for module in wanted.modules:
                writer.add(f"{module}.ko", stat.S_IFREG | 0o644, (machine.kernel / f"{module}.ko").read_bytes())
            exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
            writer.files({"testbed/environment": exports, "testbed/command": shlex.join(arguments) + "\n"})
            writer.add("init", stat.S_IFREG | 0o755, Path(__file__).with_name("init.sh").read_bytes())
            writer.close()
        limit_s = timeout_s + TO_BOOT_AND_TO_END_S
        command = [
            # However this program ends, the emulator ends too. It has been seen to ignore a gentle signal.
            *("setpriv", "--pdeathsig", "TERM", "timeout", "--foreground", "--kill-after=5", str(limit_s)),
            *_emulated(machine, leg, initrd=initrd, handed_over=handed_over, shared=shared, shift=shift),
        ]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as running:
            for line in running.stdout or ():
                show(line)
        status = _unpacked(handed_over, out)
    if status == NEVER_ENDED:
        note(f"{leg.name}: the command didn't end within {timeout_s} s")
    if status is not None:
        return status
    if running.returncode in {124, 137}:
        note(f"{leg.name}: the machine neither ended nor answered within {limit_s} s")
        return NEVER_ENDED
    note(f"{leg.name}: the machine ended and handed nothing over (the emulator's status: {running.returncode})")
    return HANDED_NOTHING_OVER


def _emulated(
    machine: Parts, leg: Leg, *, initrd: Path, handed_over: Path, shared: Path | None, shift: int | None
) -> list[str]:
    """The emulator's command line."""
    wanted = leg.architecture
    memory = (
        (
            *(
                "-object",
                f"memory-backend-file,id=shared,share=on,size={shared.stat().st_size},mem-path={roots.inside(shared)}",
            ),
            *("-device", "ivshmem-plain,memdev=shared"),
        )
        if shared
        else ()
    )
    append = [f"console={wanted.console}", "panic=-1", "quiet", leg.arguments, "nokaslr" if shift is not None else ""]
    return roots.command(
        *(machine.emulator, f"/usr/bin/{wanted.program}"),
        *(*wanted.machine, "-cpu", leg.cpu),
        *("-smp", "2" if shift is None else "1", "-m", "1G", "-no-reboot", "-nic", "none"),
        # The console, and another serial line for the files: what a guest writes there is written at once, by the
        # processor that writes it. A disk's or a port's writes would come when the host gets round to them, and no run
        # of counted instructions would be like the one before.
        *("-display", "none", "-monitor", "none"),
        *("-serial", "file:/dev/stdout", "-serial", f"file:{roots.inside(handed_over)}"),
        *("-kernel", roots.inside(machine.kernel / "kernel"), "-initrd", roots.inside(initrd)),
        *("-append", " ".join(filter(None, append))),
        *memory,
        *(() if shift is None else ("-icount", f"shift={shift},sleep=off", *REPEATABLE)),
    )


def _unpacked(handed_over: Path, out: Path | None) -> int | None:
    """Unpack what the machine handed over into `out`, and give its command's status; None if it never came so far."""
    with tempfile.TemporaryDirectory(dir=handed_over.parent) as scratch:
        unpack: list[str | Path] = [
            "tar",
            "--extract",
            "--gzip",
            "--no-same-owner",
            "--file",
            handed_over,
            "--directory",
            scratch,
        ]
        whole = subprocess.run(unpack, stderr=subprocess.DEVNULL, check=False).returncode == 0
        if out is not None and Path(scratch, "out").is_dir():
            shutil.copytree(Path(scratch, "out"), out, dirs_exist_ok=True)
        return int(Path(scratch, "testbed/status").read_text()) if whole else None


def _work_tree(writer: Writer, wheel: Path | None, files: Path) -> None:
    """Add what of the work tree is in the machine, and the wheel, compiled."""
    work = files / "work"
    work.mkdir(parents=True)
    for name in image.COPIED:
        source = image.TREE / name
        if source.is_dir():
            shutil.copytree(source, work / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copyfile(source, work / name)
    if wheel:
        image.install(wheel, files)
    image.compiled(files)
    writer.tree(files)
