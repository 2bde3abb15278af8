"""A guest's first file system: a shell, the probe, and a first program that hands the serial line to the shell."""

from __future__ import annotations

import io
import stat
from typing import Final

from testbed.archive import Writer

APPLETS: Final = (
    *("cat", "date", "dmesg", "echo", "grep", "kill", "ln", "mkdir", "mount", "nice", "poweroff", "ps", "sed", "seq"),
    *("basename", "chrt", "dirname", "sh", "sleep", "stty", "tail", "taskset", "true", "uname", "wc"),
)

READY: Final = "the guest is ready"
INIT: Final = f"""#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/ttyAMA0 >/dev/ttyAMA0 2>&1
stty -echo
echo {READY}
printf '# '
while read -r line; do echo "$line"; eval "$line"; printf '# '; done
"""
"""A shell without line editing, which would ask the terminal where its cursor is. It echoes a line when it comes to it:
the terminal would do so in the middle of another line's output.
"""


def made(busybox: bytes, probe: bytes) -> bytes:
    """The archive, in the format that kernels unpack."""
    out = io.BytesIO()
    writer = Writer(out)
    for folder in ("bin", "dev", "proc", "sys", "tmp"):
        writer.add(folder, stat.S_IFDIR | 0o755)
    writer.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    writer.add("bin/busybox", stat.S_IFREG | 0o755, busybox)
    for name in APPLETS:
        writer.add(f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox")
    writer.add("bin/guest-probe", stat.S_IFREG | 0o755, probe)
    writer.add("init", stat.S_IFREG | 0o755, INIT.encode())
    writer.close()
    return out.getvalue()
