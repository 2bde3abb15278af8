"""The aarch64 wheel, cross-built in a newer Debian, whose compiler has the target's library, and linked by zig."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from testbed import cache, roots
from testbed.debian import Archive
from testbed.image import TREE
from testbed.say import give_up, note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TARGET = "aarch64-unknown-linux-gnu"

BUILD = ("build", "--release", "--zig", "--compatibility", "manylinux_2_17", "--target", TARGET)
"""Arguments of maturin: zig links the wheel for glibc 2.17 and newer, as the Makefile has it do for this machine."""

COMPILER = (
    *("base-files", "coreutils", "dash"),
    *("cargo", "rustc", "rust-clippy", "libstd-rust-dev:amd64", "libstd-rust-dev:arm64"),
    *("gcc", "libc6-dev:amd64", "gcc-aarch64-linux-gnu", "libc6-dev:arm64"),
)


def found(dist: Path) -> Path | None:
    """The aarch64 wheel in the folder `dist`, if there is one."""
    return next(dist.glob("guestclock-*_aarch64.whl"), None)


def build(dist: Path) -> Path:
    """Build the aarch64 wheel of the work tree into the folder `dist`, in place of an older one, and give its path."""
    dist.mkdir(exist_ok=True)
    while older := found(dist):
        older.unlink()
    note("building the aarch64 wheel; the first time takes minutes")
    if platform.machine() == "aarch64":
        command = [sys.executable, "-m", "maturin", *BUILD, "--out", str(dist)]
        subprocess.run(command, cwd=TREE, env=os.environ | {"CARGO_ZIGBUILD_ZIG_PATH": str(_zig())}, check=True)
    else:
        with _compiler() as run:
            run(roots.inside(Path(sys.executable).parent) + "/maturin", *BUILD, "--out", roots.inside(dist))
    return found(dist) or give_up(f"maturin left no aarch64 wheel in {dist}")


def _zig() -> Path:
    """The path of zig's program in its package."""
    package = importlib.util.find_spec("ziglang")
    if package is None or not package.submodule_search_locations:
        give_up("the package ziglang isn't there: make setup installs it")
    return Path(package.submodule_search_locations[0], "zig")


def lint() -> None:
    """Have clippy look at the Rust code as it is on aarch64, with that Debian's compiler."""
    with _compiler() as run:
        run("cargo", "clippy", "--workspace", "--all-targets", "--locked", "--target", TARGET, "--", "-D", "warnings")


def parts() -> tuple[Path, Path]:
    """The root with the compiler and the cargo home with the crates; what the cache hasn't got is fetched."""
    roots.check()
    return roots.root("compiler", Archive("trixie"), *COMPILER, backports=True), vendored()


@contextmanager
def _compiler() -> Iterator[Callable[..., None]]:
    """Yields what runs a command in the work tree, where cargo builds for aarch64."""
    compiler, crates = parts()
    with cache.locked("target"):
        # What was compiled before is used again: a folder for each compiler, which isn't whole at any time.
        target = cache.folder() / compiler.name.replace("compiler", "target")
        target.mkdir(exist_ok=True)
        _forget_other_trees(target)
        environment = {
            "PATH": "/usr/bin",
            "HOME": "/tmp",  # noqa: S108
            "CARGO_HOME": roots.inside(crates),
            "CARGO_TARGET_DIR": roots.inside(target),
            "CARGO_NET_OFFLINE": "true",
            "CARGO_TERM_QUIET": "true",
            "CARGO_ZIGBUILD_ZIG_PATH": roots.inside(_zig()),
            "CARGO_ZIGBUILD_CACHE_DIR": roots.inside(target / "zigbuild"),
            "ZIG_GLOBAL_CACHE_DIR": roots.inside(target / "zig"),
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER": "gcc",
        }
        # The caller may want another profile than the release's own.
        environment |= {name: value for name, value in os.environ.items() if name.startswith("CARGO_PROFILE_")}
        settings = [f"{name}={value}" for name, value in environment.items()]

        def run(*command: str) -> None:
            entered = roots.command(compiler, "/usr/bin/env", "-i", "-C", roots.inside(TREE), *settings, *command)
            subprocess.run(entered, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)

        yield run


def _forget_other_trees(target: Path) -> None:
    """Have our own crates built again if the last ones were another work tree's.

    Cargo takes two trees' crates for the same ones, and goes by times: an older file of this tree would pass for built.
    """
    tree = target / "tree"
    if tree.exists() and tree.read_text() == str(TREE):
        return
    for fingerprint in target.glob("**/.fingerprint/guestclock-*"):
        shutil.rmtree(fingerprint)
    tree.write_text(str(TREE))


def vendored() -> Path:
    """A cargo home that has every crate of Cargo.lock in it, fetched by the machine's own cargo."""

    def fill(place: Path) -> None:
        note("fetching the crates")
        crates = place / "crates"
        subprocess.run(
            ["cargo", "vendor", "--quiet", "--locked", "--versioned-dirs", crates],
            cwd=TREE,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        final = cache.folder() / f"crates-{lock}"
        (place / "config.toml").write_text(
            '[source.crates-io]\nreplace-with = "vendored"\n'
            f'[source.vendored]\ndirectory = "{roots.inside(final)}/crates"\n'
        )

    lock = cache.key((TREE / "Cargo.lock").read_text())
    return cache.made("crates", lock, fill)
