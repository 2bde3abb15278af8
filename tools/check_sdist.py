"""Checks that an sdist has every tracked file in it: docs, examples, tests and the programs that judge guestclock.

python tools/check_sdist.py SDIST
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent


def main(sdist: Path) -> None:
    """Check it."""
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=TREE, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split()
    with tarfile.open(sdist) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    if missing := [name for name in tracked if name not in names]:
        sys.exit(f"{sdist.name}: lacks {len(missing)} tracked files: {', '.join(missing[:5])}")
    print(f"{sdist.name}: {len(tracked)} files, {sdist.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
