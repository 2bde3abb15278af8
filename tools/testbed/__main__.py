"""Boots arm64 kernels with a real /dev/kvm on any x86 machine, and runs commands in them.

python tools/testbed boot LEG [--icount] [--out DIR] [--timeout SECONDS] -- COMMAND...
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import machine
from legs import LEGS


def main() -> int:
    """Run one command of the testbed's."""
    parser = argparse.ArgumentParser(prog="testbed", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    boot = commands.add_parser("boot", help="run a command in one machine")
    boot.add_argument("leg", choices=LEGS)
    boot.add_argument("--icount", action="store_true", help="one processor, and the same bytes in every run")
    boot.add_argument("--out", type=Path, metavar="DIR", help="where what the command leaves in /out goes")
    boot.add_argument("--timeout", type=int, default=600, metavar="SECONDS", help="when to end it (default: 600)")
    boot.add_argument("arguments", nargs="+", metavar="COMMAND", help="the command and its arguments, after --")
    chosen = parser.parse_args()
    return machine.boot(
        LEGS[chosen.leg], chosen.arguments, out=chosen.out, icount=chosen.icount, timeout_s=chosen.timeout
    )


if __name__ == "__main__":
    sys.exit(main())
