"""Folders with another Debian's programs in them, and running those programs."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from testbed import cache
from testbed.say import give_up

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.debian import Archive

HOST = "/host"
"""Where a program in a root sees the machine's own files."""

SHARED = ("proc", "dev", "tmp")
"""Folders of the machine's that a root has under the usual names."""

ENTER = 'mount --rbind / "$0/host" && exec chroot "$0" "$@"'


def root(kind: str, archive: Archive, *names: str, backports: bool = False) -> Path:
    """A folder with the packages `names` in it, and all that they need.

    It is unpacked and no more: no package's script runs, so that it takes no privilege and no time.
    """
    packages = archive.plan(*names, backports=backports)

    def fill(place: Path) -> None:
        archive.unpack(packages, place)
        for name in SHARED:
            (place / name).rmdir() if (place / name).is_dir() else None
            (place / name).symlink_to(f"host/{name}")
        (place / "host").mkdir()

    return cache.made(kind, cache.key("unpacked", SHARED, packages), fill)


def inside(path: Path) -> str:
    """The name of the machine's file `path` in a root."""
    return HOST + str(path.resolve())


def command(place: Path, *arguments: str) -> list[str]:
    """The command that runs a program of the root `place`.

    It has mounts of its own, which end with it, and sees the machine's files under /host.
    """
    return [*_own_mounts(), "sh", "-c", ENTER, str(place), *arguments]


def check() -> None:
    """End the program if this machine can't enter a root."""
    done = subprocess.run([*_own_mounts(), "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        give_up(
            f"can't make mounts of its own: {done.stderr.strip()}. "
            "It needs root, or user namespaces for others (sysctl kernel.unprivileged_userns_clone=1)"
        )


def _own_mounts() -> list[str]:
    return ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
