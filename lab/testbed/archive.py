"""The kernel's initial file system: cpio archives, which the kernel unpacks one after the other."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Mapping


class Writer:
    """Writes one archive in the "newc" format (Linux: Documentation/driver-api/early-userspace/buffer-format.rst).

    Every file is root's, and has no time: the same files give the same bytes.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._inode = 0

    def add(self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        """Add one file, folder, link or device. `mode` holds its type too."""
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._out.write(_padded(header + encoded))
        self._out.write(_padded(content))

    def tree(self, place: Path, prefix: str = "") -> None:
        """Add all that is in the folder `place`."""
        for folder, folders, files in os.walk(place):
            folders.sort()
            for name in sorted(folders + files):
                path = Path(folder, name)
                mode = path.lstat().st_mode
                content = b""
                if stat.S_ISLNK(mode):
                    content = os.fsencode(path.readlink())
                elif stat.S_ISREG(mode):
                    content = path.read_bytes()
                self.add(prefix + path.relative_to(place).as_posix(), mode, content)

    def files(self, files: Mapping[str, bytes | str], mode: int = 0o644) -> None:
        """Add plain files by name, with the folders that lead to them."""
        folders: set[str] = set()
        for name in files:
            folders.update(parent.as_posix() for parent in Path(name).parents if parent != Path())
        for folder in sorted(folders):
            self.add(folder, stat.S_IFDIR | 0o755)
        for name, content in files.items():
            self.add(name, stat.S_IFREG | mode, content.encode() if isinstance(content, str) else content)

    def close(self) -> None:
        """End the archive, where another one may follow it."""
        self._inode = -1
        self.add("TRAILER!!!", 0)
        self._out.write(b"\0" * (-self._out.tell() % 512))


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
