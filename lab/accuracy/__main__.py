"""Measures where a guest's clock is after a restore, on a real kernel, and puts the table into out/accuracy.md.

    PYTHONPATH=lab python -m accuracy [LEG]

The measurement is accuracy.measure; this runs it in the testbed's machine, or here, where this is an arm64 host.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "out/accuracy.md"
MEASURE = "PYTHONPATH=lab python3 -m accuracy.measure"


def measured(leg: str) -> str:
    """The table, under the name of the kernel that it was made on."""
    with tempfile.TemporaryDirectory(prefix="guestclock-") as name:
        if platform.machine() == "aarch64":
            command = [sys.executable, "-m", "accuracy.measure"]
            path = os.environ | {"PYTHONPATH": "lab"}
            done = subprocess.run(command, cwd=ROOT, env=path, stdout=subprocess.PIPE, text=True, check=True)
            return f"Linux {platform.release()} on {platform.machine()}:\n\n{done.stdout}"
        inside = f"{MEASURE} >/out/table && uname -r >/out/kernel"
        boot = [sys.executable, "-m", "testbed", "boot", leg, "--out", name, "--", "sh", "-c", inside]
        subprocess.run(boot, cwd=ROOT, env=os.environ | {"PYTHONPATH": "lab"}, check=True)
        kernel = Path(name, "kernel").read_text().strip()
        return f"Linux {kernel} on an emulated machine:\n\n{Path(name, 'table').read_text()}"


def main() -> None:
    """Makes the table; docs/accuracy.md has some of its rows."""
    table = measured(sys.argv[1] if len(sys.argv) > 1 else "6.12")
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(f"{table.rstrip()}\n")
    print(table)


if __name__ == "__main__":
    main()
