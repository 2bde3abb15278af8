"""A leg's kernel: Debian's for clouds. It has KVM and the console built in, and needs no module here."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from testbed import cache
from testbed.debian import Archive

if TYPE_CHECKING:
    from testbed.legs import Leg


def fetched(leg: Leg) -> Path:
    """The leg's kernel, as the emulator boots it."""
    archive = Archive(leg.release)
    everything = archive.plan("linux-image-cloud-arm64:arm64", backports=leg.backports)
    packages = [p for p in everything if re.match(r"linux-(image|binary)-\d", p.name)]

    def fill(place: Path) -> None:
        scratch = place / "unpacked"
        scratch.mkdir()
        archive.unpack(packages, scratch)
        images = sorted([*scratch.glob("boot/vmlinuz-*"), *scratch.glob("usr/lib/modules/*/vmlinuz")])
        shutil.copyfile(images[0], place / "vmlinuz")
        cache.remove(scratch)

    return cache.made("kernel", cache.key(Path(__file__).read_text(), packages), fill) / "vmlinuz"
