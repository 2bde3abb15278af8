"""A leg's kernel: Debian's for clouds. It has the console built in, and on arm64 KVM."""

from __future__ import annotations

import lzma
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from testbed import cache, roots
from testbed.debian import Archive
from testbed.say import give_up

if TYPE_CHECKING:
    from testbed.legs import Leg

ZSTD = b"\x28\xb5\x2f\xfd"
"""The first bytes of what zstd has compressed."""


def fetched(leg: Leg, emulator: Path) -> Path:
    """The folder of the leg's kernel: `kernel`, as the emulator boots it, and its modules, by their names."""
    archive = Archive(leg.release)
    wanted = leg.architecture
    everything = archive.plan(f"linux-image-cloud-{wanted.debian}:{wanted.debian}", backports=leg.backports)
    packages = [p for p in everything if re.match(r"linux-(image|binary)-\d", p.name)]

    def fill(place: Path) -> None:
        scratch = place / "unpacked"
        scratch.mkdir()
        archive.unpack(packages, scratch)
        images = sorted([*scratch.glob("boot/vmlinuz-*"), *scratch.glob("usr/lib/modules/*/vmlinuz")])
        if wanted.debian == "amd64":
            (place / "kernel").write_bytes(_uncompressed(images[0], emulator))
        else:
            shutil.copyfile(images[0], place / "kernel")
        for module in wanted.modules:
            packed = next(scratch.rglob(f"{module}.ko.xz"))
            (place / f"{module}.ko").write_bytes(lzma.decompress(packed.read_bytes()))
        cache.remove(scratch)

    return cache.made("kernel", cache.key(Path(__file__).read_text(), packages, wanted.modules), fill)


def _uncompressed(image: Path, root: Path) -> bytes:
    """The kernel itself in an image for x86, which the emulated processor would take half a minute to uncompress.

    The places are those of Linux: Documentation/arch/x86/boot.rst, `payload_offset`. The payload ends with its size.
    """
    content = image.read_bytes()
    sectors = content[0x1F1] or 4
    offset, length = struct.unpack_from("<II", content, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = content[start : start + length - 4]
    if not payload.startswith(ZSTD):
        give_up(f"{image.name} is compressed by something else than zstd")
    command = roots.command(root, "/usr/bin/zstd", "--decompress", "--stdout")
    return subprocess.run(command, input=payload, stdout=subprocess.PIPE, check=True).stdout
