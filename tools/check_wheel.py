"""Checks a built wheel as its user meets it: the tags, the stable ABI, and an install beside numpy alone.

    python tools/check_wheel.py DIST

DIST holds one wheel. Prints what it found, and exits 1 at the first thing that isn't so.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

# What the oldest distributions of 2024's making have: Debian 12, Ubuntu 22.04, RHEL 9.
NEWEST_GLIBC = (2, 34)


def main(dist: Path) -> None:
    """Check the one wheel in `dist`."""
    (wheel,) = dist.glob("*.whl")
    tags = re.fullmatch(r"guestclock-[^-]+-cp311-abi3-manylinux_(\d+)_(\d+)_\w+\.whl", wheel.name)
    if not tags:
        sys.exit(f"{wheel.name}: not an abi3 manylinux wheel for CPython 3.11 and up")
    glibc = int(tags[1]), int(tags[2])
    if glibc > NEWEST_GLIBC:
        sys.exit(f"{wheel.name}: needs glibc {glibc}, newer than {NEWEST_GLIBC}")
    with tempfile.TemporaryDirectory() as scratch:
        venv.create(scratch, with_pip=True)
        program = Path(scratch) / "bin"
        run(program / "python", "-m", "pip", "install", "--quiet", wheel.resolve())
        run(program / "python", "-c", "import guestclock; print(guestclock.Vm(vcpus=1))", cwd=scratch)
        told = subprocess.run([program / "guestclock", "doctor"], capture_output=True, text=True, check=False)
        if told.returncode != 2 or "pip install 'guestclock[cli]'" not in told.stderr:
            sys.exit(f"`guestclock doctor` without its extra: exit {told.returncode}, {told.stderr}")
    size = wheel.stat().st_size / 1024
    print(
        f"{wheel.name}: {size:.0f} KiB, abi3 from CPython 3.11, glibc {glibc[0]}.{glibc[1]} or newer, needs only numpy"
    )


def run(*command: str | Path, cwd: str | None = None) -> None:
    """Run a command whose failure is the check's."""
    subprocess.run(command, check=True, cwd=cwd)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
