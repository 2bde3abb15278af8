"""A leg's kernel: Debian's, for clouds, with the modules it needs here."""

from __future__ import annotations

import lzma
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import cache
from archive import Writer
from debian import Archive

if TYPE_CHECKING:
    from legs import Leg

MODULES = ("virtio_pci", "virtio_console")
"""What the machine needs to hand files out. These kernels come without 9p."""


def fetched(leg: Leg) -> Path:
    """A folder with the leg's kernel (`vmlinuz`) and an archive of the modules it needs."""
    archive = Archive(leg.release)
    everything = archive.plan("linux-image-cloud-arm64:arm64", backports=leg.backports)
    packages = [p for p in everything if re.match(r"linux-(image|binary|modules)-\d", p.name)]

    def fill(place: Path) -> None:
        scratch = place / "unpacked"
        scratch.mkdir()
        archive.unpack(packages, scratch)
        images = sorted([*scratch.glob("boot/vmlinuz-*"), *scratch.glob("usr/lib/modules/*/vmlinuz")])
        shutil.copyfile(images[0], place / "vmlinuz")
        (modules,) = {path.parent for path in scratch.glob("**/modules/*/kernel")}
        with (place / "modules.cpio").open("wb") as out:
            writer = Writer(out)
            loaded = _modules(modules)
            writer.files({f"modules/{number:02}.ko": module for number, module in enumerate(loaded)})
            writer.close()
        cache.remove(scratch)

    return cache.made("kernel", cache.key(Path(__file__).read_text(), packages), fill)


def _modules(folder: Path) -> list[bytes]:
    """The modules that MODULES name, and what they depend on, in the order of loading. Built-in ones need none."""
    paths = {}
    for path in folder.glob("**/*.ko*"):
        paths[path.name.split(".ko")[0].replace("-", "_")] = path
    order: dict[str, bytes] = {}

    def visit(name: str) -> None:
        if name in order or name not in paths:
            return
        packed = paths[name].read_bytes()
        module = lzma.decompress(packed) if paths[name].suffix == ".xz" else packed
        needs = re.search(rb"\0depends=([^\0]*)\0", module)
        for needed in needs[1].decode().split(",") if needs else []:
            visit(needed.replace("-", "_"))
        order[name] = module

    for name in MODULES:
        visit(name)
    return list(order.values())
