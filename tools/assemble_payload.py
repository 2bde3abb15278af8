"""Assemble the payload: `make payload` after a change of guest.s. With --check, only compare it with guest.bin.

python tools/assemble_payload.py [--check] [SOURCE BINARY]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import keystone

PAYLOAD = Path(__file__).resolve().parent.parent / "python" / "guestclock" / "payload"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("source", nargs="?", type=Path, default=PAYLOAD / "guest.s")
    parser.add_argument("binary", nargs="?", type=Path, default=PAYLOAD / "guest.bin")
    options = parser.parse_args()
    assembler = keystone.Ks(keystone.KS_ARCH_ARM64, keystone.KS_MODE_LITTLE_ENDIAN)
    assembled, _ = assembler.asm(options.source.read_text(), as_bytes=True)
    if not options.check:
        options.binary.write_bytes(assembled)
        return 0
    if options.binary.read_bytes() == assembled:
        return 0
    print(f"{options.binary} isn't what {options.source} assembles to: run `make payload`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
