"""Memory that two emulated machines share (QEMU's ivshmem): mailboxes, and room for a guest's memory."""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Any, Final

SIZE: Final = 256 << 20
BOX: Final = 1 << 20
"""Size of a mailbox: the number of its letter, that letter's length, and the letter."""
KEPT: Final = 2 * BOX
"""Place of a letter that outlasts both machines."""
MEMORY: Final = 4 * BOX
"""Place of a guest's memory."""
DEVICE: Final = ("0x1af4", "0x1110")
"""Vendor and device of ivshmem-plain on PCI."""


class Shared:
    """One machine's end: it writes into mailbox `mine`, 0 or 1, and reads the other one.

    With `again` it leaves out the letters that are there already: a machine that starts first may have written.
    """

    def __init__(self, mine: int, *, again: bool = False) -> None:
        (device,) = (
            place
            for place in Path("/sys/bus/pci/devices").iterdir()
            if ((place / "vendor").read_text().strip(), (place / "device").read_text().strip()) == DEVICE
        )
        (device / "enable").write_text("1")
        # The write-combining view: the plain one is device memory, which takes no unaligned access.
        fd = os.open(device / "resource2_wc", os.O_RDWR)
        self.memory = mmap.mmap(fd, SIZE)
        os.close(fd)
        self._mine, self._other = mine * BOX, (1 - mine) * BOX
        self._read: int = struct.unpack_from("<Q", self.memory, self._other)[0] if again else 0

    def send(self, letter: Any) -> None:
        """Puts a letter into this machine's box."""
        self._put(self._mine, letter)

    def receive(self, *, seconds: float = 600) -> Any:
        """Waits for the other machine's next letter."""
        end = time.monotonic() + seconds
        while struct.unpack_from("<Q", self.memory, self._other)[0] == self._read:
            if time.monotonic() > end:
                raise TimeoutError("the other machine sent nothing")
            time.sleep(0.0005)
        self._read, letter = self._get(self._other)
        return letter

    def keep(self, letter: Any) -> None:
        """Leaves a letter to whoever comes later."""
        self._put(KEPT, letter)

    def kept(self) -> Any:
        """The letter that was left."""
        return self._get(KEPT)[1]

    def _put(self, place: int, letter: Any) -> None:
        content = json.dumps(letter).encode()
        if len(content) > BOX - 16:
            raise ValueError(f"a letter of {len(content)} bytes doesn't fit")
        (number,) = struct.unpack_from("<Q", self.memory, place)
        struct.pack_into("<Q", self.memory, place + 8, len(content))
        self.memory[place + 16 : place + 16 + len(content)] = content
        # The number last: it says that the rest is there.
        struct.pack_into("<Q", self.memory, place, number + 1)

    def _get(self, place: int) -> tuple[int, Any]:
        number, length = struct.unpack_from("<2Q", self.memory, place)
        return number, json.loads(self.memory[place + 16 : place + 16 + length])
