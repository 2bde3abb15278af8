"""An emulated arm64 machine that boots a real kernel with a working /dev/kvm, runs one command, and ends."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import image
import kernel
import roots
from archive import Writer
from debian import Archive
from say import say

if TYPE_CHECKING:
    from collections.abc import Callable

    from legs import Leg

EMULATOR = ("qemu-system-arm", "base-files")

REPEATABLE = ("-icount", "shift=1,sleep=off", "-rtc", "base=2024-01-01T00:00:00,clock=vm", "-seed", "1")
"""One processor whose clock counts its instructions: the same command prints the same bytes."""

TO_BOOT_AND_TO_END_S = 60
"""What a machine gets beside its command's time."""

NEVER_ENDED = 124
"""The status of a command that didn't end in time, as of timeout(1)."""
NEVER_BOOTED = 125
"""The status of a machine that stopped before its command did."""


@dataclass(frozen=True)
class Parts:
    """What a machine is made of, in the cache."""

    emulator: Path
    kernel: Path
    base: Path


def parts(leg: Leg) -> Parts:
    """The parts of the leg's machine; what the cache hasn't got is fetched."""
    roots.check()
    # One emulator for all legs, so that only the kernel differs. The newest, since no older one runs the nested leg.
    emulator = roots.root("emulator", Archive("trixie"), *EMULATOR, backports=True)
    return Parts(emulator, kernel.fetched(leg), image.base())


def boot(
    leg: Leg,
    arguments: list[str],
    *,
    show: Callable[[bytes], None],
    wheel: Path | None = None,
    out: Path | None = None,
    icount: bool = False,
    timeout_s: int = 600,
) -> int:
    """Boot the leg's machine, run the command in it, and give the command's status.

    `show` gets each line of the console as it is written. What the command leaves in /out is in the folder `out`
    afterwards, also if the command failed or didn't end in time. The machine has the caller's variables GUESTCLOCK_*,
    and the leg's name as GUESTCLOCK_LEG.
    """
    machine = parts(leg)
    with tempfile.TemporaryDirectory(prefix="guestclock-") as scratch:
        handed_over, initrd = Path(scratch, "out.tar"), Path(scratch, "initrd")
        variables = {name: value for name, value in os.environ.items() if name.startswith("GUESTCLOCK_")}
        variables |= {"GUESTCLOCK_LEG": leg.name, "GUESTCLOCK_OUT": "/out", "TESTBED_LIMIT_S": str(timeout_s)}
        with initrd.open("wb") as joined:
            for part in (machine.base, machine.kernel / "modules.cpio"):
                with part.open("rb") as source:
                    shutil.copyfileobj(source, joined, 1 << 20)
            writer = Writer(joined)
            _work_tree(writer, wheel, Path(scratch, "tree"))
            exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
            writer.files({"testbed/environment": exports, "testbed/command": shlex.join(arguments) + "\n"})
            writer.add("init", stat.S_IFREG | 0o755, Path(__file__).with_name("init.sh").read_bytes())
            writer.close()
        limit_s = timeout_s + TO_BOOT_AND_TO_END_S
        command = [
            # However this program ends, the emulator ends too. It has been seen to ignore a gentle signal.
            *("setpriv", "--pdeathsig", "TERM", "timeout", "--foreground", "--kill-after=5", str(limit_s)),
            *_emulated(machine, leg, initrd=initrd, handed_over=handed_over, icount=icount),
        ]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as running:
            for line in running.stdout or ():
                show(line)
        status = _unpacked(handed_over, out)
    if status == NEVER_ENDED:
        say(f"testbed: {leg.name}: the command didn't end within {timeout_s} s")
    if status is not None:
        return status
    if running.returncode in {124, 137}:
        say(f"testbed: {leg.name}: the machine neither ended nor answered within {limit_s} s")
        return NEVER_ENDED
    say(f"testbed: {leg.name}: the machine stopped before its command (the emulator's status: {running.returncode})")
    return NEVER_BOOTED


def _emulated(machine: Parts, leg: Leg, *, initrd: Path, handed_over: Path, icount: bool) -> list[str]:
    """The emulator's command line."""
    append = ["console=ttyAMA0", "panic=-1", "quiet", leg.arguments, "nokaslr" if icount else ""]
    return roots.command(
        *(machine.emulator, "/usr/bin/qemu-system-aarch64"),
        *("-machine", "virt,virtualization=on,gic-version=3", "-cpu", leg.cpu),
        *("-smp", "1" if icount else "2", "-m", "1G", "-no-reboot", "-nic", "none"),
        *("-display", "none", "-monitor", "none", "-serial", "stdio"),
        *("-kernel", roots.inside(machine.kernel / "vmlinuz"), "-initrd", roots.inside(initrd)),
        *("-append", " ".join(filter(None, append))),
        *("-chardev", f"file,id=out,path={roots.inside(handed_over)}"),
        *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=out"),
        *(REPEATABLE if icount else ()),
    )


def _unpacked(handed_over: Path, out: Path | None) -> int | None:
    """Unpack what the machine handed over into `out`, and give its command's status; None if it never came so far."""
    with tempfile.TemporaryDirectory(dir=handed_over.parent) as scratch:
        try:
            with tarfile.open(handed_over) as tar:
                tar.extractall(scratch, filter="data")
        except (FileNotFoundError, tarfile.ReadError):
            return None
        if out is not None:
            shutil.copytree(Path(scratch, "out"), out, dirs_exist_ok=True)
        return int(Path(scratch, "testbed/status").read_text())


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
