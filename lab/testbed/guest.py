"""The files of Linux guests in a machine: other legs' kernels, and the probe, a static program of a few kilobytes."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from testbed import cache, kernel, roots
from testbed.debian import Archive
from testbed.image import TREE
from testbed.wheel import COMPILER

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.legs import Leg

PROBE = TREE / "lab" / "linux_guest" / "probe.c"
FLAGS = (
    *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-nostdlib", "-ffreestanding", "-fno-builtin"),
    *("-fno-pie", "-no-pie", "-fno-stack-protector", "-mno-outline-atomics", "-s", "-Wl,--build-id=none"),
)


def files(leg: Leg) -> dict[str, Path]:
    """The files of the leg's guests, by their names in its machine."""
    from testbed.legs import LEGS

    emulator = roots.root("emulator", Archive("trixie"), *leg.architecture.emulator, backports=True)
    kernels = {f"guest/{name}": kernel.fetched(LEGS[name], emulator) / "kernel" for name in leg.guests}
    return {**kernels, "guest/probe": probe()}


def probe() -> Path:
    """Build the probe, with the compiler that builds the aarch64 wheel, and give its path."""
    compiler = roots.root("compiler", Archive("trixie"), *COMPILER, backports=True)

    def fill(place: Path) -> None:
        command = ["/usr/bin/aarch64-linux-gnu-gcc", *FLAGS, "-o", roots.inside(place / "probe"), roots.inside(PROBE)]
        subprocess.run(roots.command(compiler, *command), check=True)

    return cache.made("probe", cache.key(PROBE.read_text(), FLAGS, compiler.name), fill) / "probe"
