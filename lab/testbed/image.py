"""The files that a machine starts with: a shell, and on arm64 Debian's Python, and what the tests import."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from testbed import cache, roots
from testbed.archive import Writer
from testbed.debian import Archive
from testbed.say import note

if TYPE_CHECKING:
    from testbed.legs import Architecture

TREE = Path(__file__).resolve().parent.parent.parent

SHELL = "busybox-static"
PYTHON = ("python3.11", "libstdc++6")
WHEELS = ("numpy", "pytest", "pytest-timeout", "hypothesis", "typing-extensions", "rich", "typer", "fdt")
"""Imports of the tests, the examples and the command line; their versions are those of requirements-dev.txt."""

PACKAGES = "usr/lib/python3/dist-packages"
"""Where the machine's Python looks for packages."""

UNUSED = (
    "usr/share",
    "usr/lib/python3.11/test",
    "usr/lib/python3.11/idlelib",
    "var",
    "usr/lib/aarch64-linux-gnu/gconv",
)
"""Folders that nobody reads in the machine, and that would be copied at every boot."""

COPIED = ("pyproject.toml", "tests", "examples", "lab", "docs")
"""Parts of the work tree that are in the machine."""


def base(wanted: Architecture) -> Path:
    """The archive of what is the same at every boot: a shell, the first program's folders, and what Python needs."""
    archive = Archive("bookworm")
    names = [f"{name}:{wanted.debian}" for name in (*(PYTHON if wanted.python else ()), SHELL)]
    packages = [p for p in archive.plan(*names) if p.architecture in {wanted.debian, "all"}]
    constraints = pins() if wanted.python else []

    def fill(place: Path) -> None:
        files = place / "files"
        files.mkdir()
        archive.unpack(packages, files)
        for name in UNUSED:
            if (files / name).is_dir():
                cache.remove(files / name)
        for name in ("proc", "sys", "dev", "etc", "tmp", "out", "root", "bin", "sbin"):
            (files / name).mkdir(exist_ok=True)
        if wanted.python:
            _add_python(place, files, constraints)
        with (place / "base.cpio").open("wb") as out:
            writer = Writer(out)
            writer.tree(files)
            writer.close()
        cache.remove(files)

    key = cache.key(Path(__file__).read_text(), packages, constraints)
    return cache.made("base", key, fill) / "base.cpio"


def _add_python(place: Path, files: Path, constraints: list[str]) -> None:
    """Give Python its usual name, and what the tests import; `place` is for files on the way."""
    (files / "usr/bin/python3").symlink_to("python3.11")
    packed = place / "wheels"
    (place / "pins.txt").write_text("\n".join(constraints))
    note("fetching the machine's Python packages")
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
    for tests in sorted((files / PACKAGES).rglob("tests"), reverse=True):
        cache.remove(tests)
    compiled(files)
    cache.remove(packed)


def pins() -> list[str]:
    """The lines of requirements-dev.txt that hold for the machine's Python."""
    from packaging.requirements import Requirement

    there = {"python_version": "3.11", "python_full_version": "3.11.2", "platform_machine": "aarch64"}
    lines = (TREE / "requirements-dev.txt").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if not line.startswith("#")]
    return [f"{r.name}{r.specifier}" for r in wanted if r.marker is None or r.marker.evaluate(there)]


def install(wheel: Path, files: Path) -> None:
    """Unpack a wheel where the machine's Python looks for packages, and write the commands that it brings."""
    shutil.unpack_archive(wheel, files / PACKAGES, "zip")
    for told in (files / PACKAGES).glob(f"{wheel.name.split('-')[0]}-*.dist-info/entry_points.txt"):
        points = configparser.ConfigParser(delimiters=("=",))
        points.read(told)
        for name, place in points["console_scripts"].items() if "console_scripts" in points else ():
            module, function = place.split(":")
            program = files / "usr/bin" / name
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text(
                f"#!/usr/bin/python3\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
            )
            program.chmod(0o755)


def compiled(files: Path) -> None:
    """Compile every module under `files` with the machine's own Python, as built for this machine.

    Without that the emulated processor would do it at every start, for seconds. No time is compared: there is none.
    """
    compiler = roots.root("bytecode", Archive("bookworm"), "python3.11-minimal")
    subprocess.run(
        roots.command(
            *(compiler, "/usr/bin/python3.11", "-m", "compileall", "-q", "-q", "--invalidation-mode=unchecked-hash"),
            *("-s", roots.inside(files), "-p", "/", roots.inside(files)),
        ),
        check=False,
    )
    next(files.rglob("*.cpython-311.pyc"))
