"""The cache folder: things that take long to make, each made once, whole, under a key of what it was made from."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNUSED_AFTER_S = 14 * 24 * 3600
"""Age at which an unused folder goes, once its successor is there."""


def folder() -> Path:
    """The cache folder: GUESTCLOCK_CACHE, or `guestclock` where the user's caches are."""
    named = os.environ.get("GUESTCLOCK_CACHE")
    if named:
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "guestclock"


def described() -> str:
    """Where the cache is, and how much is in it."""
    if not folder().is_dir():
        return f"{folder()}: no cache of the testbed's"
    size = sum(path.lstat().st_size for path in folder().rglob("*"))
    return f"{folder()}: {size / 1e9:.1f} GB that the testbed fetched and built stay there"


def key(*parts: object) -> str:
    """A short name for the recipe and the inputs in `parts`."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Keeps other runs out of `name` for a while: they wait."""
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made(kind: str, of: str, make: Callable[[Path], None]) -> Path:
    """The folder of this kind, made from what the key `of` stands for.

    `make` fills an empty folder, which gets its name only when it is whole: an interrupted run leaves nothing behind
    that looks finished.
    """
    wanted = folder() / f"{kind}-{of}"
    with locked(kind):
        if not wanted.is_dir():
            for unfinished in folder().glob(f"{kind}.part-*"):
                remove(unfinished)
            scratch = Path(tempfile.mkdtemp(prefix=f"{kind}.part-", dir=folder()))
            scratch.chmod(0o755)
            try:
                make(scratch)
            except BaseException:
                remove(scratch)
                raise
            scratch.rename(wanted)
            for other in folder().glob(f"{kind}-{'?' * len(of)}"):
                if other.stat().st_mtime < time.time() - UNUSED_AFTER_S:
                    remove(other)
        os.utime(wanted)
    return wanted


def remove(tree: Path) -> None:
    """Remove a folder, whatever the modes of the folders in it."""
    for place, _, _ in os.walk(tree):
        Path(place).chmod(0o755)
    shutil.rmtree(tree)
