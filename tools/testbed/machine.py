"""An emulated arm64 machine that boots a real kernel with a working /dev/kvm, runs one command, and ends."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import image
import roots
from archive import Writer
from debian import Archive
from legs import Leg
from say import say

EMULATOR = ("qemu-system-arm", "base-files")

REPEATABLE = ("-icount", "shift=1,sleep=off", "-rtc", "base=2024-01-01T00:00:00,clock=vm", "-seed", "1")
"""One processor whose clock counts its instructions: the same command prints the same bytes."""

TO_BOOT_AND_TO_END_S = 60
"""What a machine gets beside its command's time."""

NEVER_ENDED = 124
"""The status of a command that didn't end in time, as of timeout(1)."""
NEVER_BOOTED = 125
"""The status of a machine that stopped before its command did."""


def emulator() -> Path:
    """The root with the emulator. The newest one, for all legs: older ones have no nested virtualisation."""
    return roots.root("emulator", Archive("trixie", "amd64", "arm64"), *EMULATOR, backports=True)


def boot(
    leg: Leg, arguments: list[str], *, wheel: Path | None = None, out: Path | None = None, icount: bool = False,
    timeout_s: int = 600, environment: dict[str, str] | None = None,
) -> int:
    """Boot the leg's machine, run the command in it, and give the command's status.

    The console comes to stdout as it is written. What the command leaves in /out is in the folder `out` afterwards, also
    if the command failed or never ended.
    """
    roots.check()
    qemu, kernel, base = emulator(), image.kernel(leg), image.base()
    with tempfile.TemporaryDirectory(prefix="guestclock-") as scratch:
        handed_over = Path(scratch, "out.tar")
        initrd = Path(scratch, "initrd")
        with initrd.open("wb") as joined:
            for part in (base, kernel / "modules.cpio"):
                with part.open("rb") as source:
                    shutil.copyfileobj(source, joined, 1 << 20)
            writer = Writer(joined)
            _work_tree(writer, wheel, Path(scratch, "tree"))
            variables = {"GUESTCLOCK_LEG": leg.name, "TESTBED_LIMIT_S": str(timeout_s)} | (environment or {})
            lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
            writer.files({"testbed/environment": "\n".join(lines) + "\n", "testbed/command": shlex.join(arguments) + "\n"})
            writer.close()
        append = ["console=ttyAMA0", "panic=-1", "quiet", leg.arguments, *(["nokaslr"] if icount else [])]
        command = roots.command(
            *(qemu, "/usr/bin/qemu-system-aarch64"),
            *("-M", "virt,virtualization=on,gic-version=3", "-cpu", leg.cpu, "-smp", "1" if icount else "2", "-m", "1G"),
            *("-display", "none", "-serial", "stdio", "-monitor", "none", "-nic", "none", "-no-reboot"),
            *("-kernel", roots.inside(kernel / "vmlinuz"), "-initrd", roots.inside(initrd)),
            *("-chardev", f"file,id=out,path={roots.inside(handed_over)}"),
            *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=out"),
            *("-append", " ".join(filter(None, append))),
            *(REPEATABLE if icount else ()),
        )
        limit_s = timeout_s + TO_BOOT_AND_TO_END_S
        ended = subprocess.run(
            ["timeout", "--kill-after=5", str(limit_s), *command], stdin=subprocess.DEVNULL, check=False
        )
        status = _unpacked(handed_over, out)
    if status == NEVER_ENDED:
        say(f"testbed: {leg.name}: the command didn't end within {timeout_s} s")
    elif status is None and ended.returncode in {124, 137}:
        say(f"testbed: {leg.name}: the machine neither ended nor answered within {limit_s} s")
        return NEVER_ENDED
    elif status is None:
        say(f"testbed: {leg.name}: the machine stopped before its command (the emulator's status: {ended.returncode})")
        return NEVER_BOOTED
    return status


def _unpacked(handed_over: Path, out: Path | None) -> int | None:
    """Unpack what the machine handed over into `out`, and give its command's status; None if it never came so far."""
    if not handed_over.is_file() or not handed_over.stat().st_size:
        return None
    with tempfile.TemporaryDirectory(dir=handed_over.parent) as scratch:
        with tarfile.open(handed_over) as tar:
            tar.extractall(scratch, filter="data")
        if out is not None:
            shutil.copytree(Path(scratch, "out"), out, dirs_exist_ok=True)
        return int(Path(scratch, "testbed/status").read_text())


def _work_tree(writer: Writer, wheel: Path | None, scratch: Path) -> None:
    """Add what of the work tree is in the machine, and the wheel, compiled."""
    files = scratch / "work"
    files.mkdir(parents=True)
    for name in image.COPIED:
        source = image.TREE / name
        if source.is_dir():
            shutil.copytree(source, files / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copyfile(source, files / name)
    if wheel:
        image.install(wheel, scratch)
    image.compiled(scratch)
    writer.tree(scratch)
