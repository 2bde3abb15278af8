"""What a machine boots: its kernel, and the files it starts with."""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cache
import roots
from archive import Writer
from debian import Archive
from legs import Leg
from say import say

TREE = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent

GUEST_PACKAGES = ("python3.11", "libstdc++6", "busybox-static")
WHEELS = ("numpy", "pytest", "pytest-timeout", "hypothesis", "typing-extensions", "rich", "typer")
"""What the tests, the examples and the command line import; their versions are those of requirements-dev.txt."""

MODULES = ("virtio_pci", "virtio_console")
"""What the machine needs to hand files out. These kernels come without 9p."""

UNUSED = ("usr/share", "usr/lib/python3.11/test", "usr/lib/python3.11/idlelib", "var", "usr/lib/aarch64-linux-gnu/gconv")
"""What nobody reads in the machine, and what would be copied at every boot."""

COPIED = ("pyproject.toml", "tests", "examples", "tools")
"""What of the work tree is in the machine."""


def guest_archive() -> Archive:
    """Where the machine's own programs come from. The same packages of this architecture compile for it."""
    return Archive("bookworm", "arm64", "amd64")


def kernel(leg: Leg) -> Path:
    """A folder with the leg's kernel (`vmlinuz`), its `release`, and an archive of the modules it needs."""
    archive = guest_archive() if leg.release == "bookworm" else Archive(leg.release, "amd64", "arm64")
    everything = archive.plan("linux-image-cloud-arm64:arm64", backports=leg.backports)
    packages = [p for p in everything if re.match(r"linux-(image|binary|modules)-\d", p.name)]

    def fill(place: Path) -> None:
        scratch = place / "unpacked"
        scratch.mkdir()
        archive.unpack(packages, scratch)
        images = sorted([*scratch.glob("boot/vmlinuz-*"), *scratch.glob("usr/lib/modules/*/vmlinuz")])
        shutil.copyfile(images[0], place / "vmlinuz")
        (modules,) = {path.parent for path in scratch.glob("**/modules/*/kernel")}
        (place / "release").write_text(modules.name)
        with (place / "modules.cpio").open("wb") as out:
            writer = Writer(out)
            loaded = _modules(modules)
            writer.files({f"modules/{number:02}.ko": module for number, module in enumerate(loaded)})
            writer.close()
        cache.remove(scratch)

    return cache.made("kernel", cache.key(_source(), leg.release, packages), fill)


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
        for needed in (needs[1].decode().split(",") if needs else []):
            visit(needed.replace("-", "_"))
        order[name] = module

    for name in MODULES:
        visit(name)
    return list(order.values())


def base() -> Path:
    """The archive of what is the same at every boot: Python, what the tests import, a shell, and the first program."""
    archive = guest_archive()
    packages = archive.plan(*GUEST_PACKAGES)
    constraints = pins()

    def fill(place: Path) -> None:
        files = place / "files"
        files.mkdir()
        archive.unpack(packages, files)
        for name in UNUSED:
            if (files / name).is_dir():
                cache.remove(files / name)
        shutil.copyfile(HERE / "init.sh", files / "init")
        (files / "init").chmod(0o755)
        (files / "usr/bin/python3").symlink_to("python3.11")
        for name in ("proc", "sys", "dev", "tmp", "out", "root", "bin", "sbin"):
            (files / name).mkdir(exist_ok=True)
        packed = place / "wheels"
        (place / "pins.txt").write_text("\n".join(constraints))
        say("fetching the machine's Python packages")
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--dest", packed),
                *("--constraint", place / "pins.txt", "--only-binary=:all:", "--python-version=3.11"),
                *("--platform=manylinux_2_28_aarch64", "--platform=manylinux2014_aarch64"),
                *WHEELS,
            ],
            check=True,
        )
        for wheel in sorted(packed.glob("*.whl")):
            install(wheel, files)
        compiled(files)
        with (place / "base.cpio").open("wb") as out:
            writer = Writer(out)
            writer.tree(files)
            writer.close()
        cache.remove(files)
        cache.remove(packed)

    return cache.made("base", cache.key(_source(), packages, constraints), fill) / "base.cpio"


def pins() -> list[str]:
    """The lines of requirements-dev.txt that hold for the machine's Python."""
    from packaging.requirements import Requirement

    there = {"python_version": "3.11", "python_full_version": "3.11.2", "platform_machine": "aarch64"}
    lines = (TREE / "requirements-dev.txt").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if not line.startswith("#")]
    return [f"{r.name}{r.specifier}" for r in wanted if r.marker is None or r.marker.evaluate(there)]


def install(wheel: Path, files: Path) -> None:
    """Unpack a wheel where the machine's Python looks for packages."""
    shutil.unpack_archive(wheel, files / "usr/lib/python3/dist-packages", "zip")


def compiled(files: Path) -> None:
    """Compile every module under `files` with the machine's own Python, as built for this machine.

    Without that the emulated processor would do it at every start, for seconds. No time is compared: there is none.
    """
    compiler = roots.root("bytecode", guest_archive(), "python3.11-minimal:amd64")
    subprocess.run(
        roots.command(
            *(compiler, "/usr/bin/python3.11", "-m", "compileall", "-q", "-q", "--invalidation-mode=unchecked-hash"),
            *("-s", roots.inside(files), "-p", "/", roots.inside(files)),
        ),
        check=False,
    )
    next(files.rglob("*.cpython-311.pyc"))


def _source() -> str:
    """This recipe: what it says is part of what is made from it."""
    return "".join((HERE / name).read_text() for name in ("image.py", "archive.py", "init.sh"))
