"""Boots kernels with a real /dev/kvm on any x86 machine, and runs the suite or a command in them."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from testbed import cache, guest, machine, program, suite, wheel
from testbed.image import TREE
from testbed.legs import LEGS
from testbed.say import give_up, note, say

DIST = TREE / "dist"


def main() -> int:
    """Run one command of the testbed's."""
    parser = argparse.ArgumentParser(prog="python -m testbed", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    boot = commands.add_parser("boot", help="run a command in one machine, with the wheel that is in dist/")
    boot.add_argument("leg", choices=LEGS)
    boot.add_argument("--icount", action="store_true", help="one processor, and the same bytes in every run")
    boot.add_argument("--out", type=Path, metavar="DIR", help="where what the command leaves in /out goes")
    boot.add_argument("--timeout", type=int, default=600, metavar="SECONDS", help="when to end it (default: 600)")
    boot.add_argument("arguments", nargs="+", metavar="COMMAND", help="the command and its arguments, after --")

    test = commands.add_parser("test", help="run the suite on some legs, or on all")
    test.add_argument("legs", nargs="*", metavar="LEG", help=f"any of {', '.join(LEGS)}")
    test.add_argument("--seed", type=int, help="the seed of an earlier run (default: a fresh one)")
    test.add_argument("--short", action="store_true", help=f"the whole suite on {suite.WHOLE}, what differs on others")
    test.add_argument("--jobs", type=int, default=2, help="how many machines at a time (default: 2)")
    test.add_argument("--timeout", type=int, metavar="SECONDS", help="what a leg may take (default: the leg's own)")

    commands.add_parser("wheel", help="build the aarch64 wheel into dist/")
    fetch = commands.add_parser("fetch", help="only fetch what some legs need, or all, and the wheel")
    fetch.add_argument("legs", nargs="*", metavar="LEG", help=f"any of {', '.join(LEGS)}")
    commands.add_parser("lint", help="have clippy look at the Rust code as it is on aarch64")
    commands.add_parser("probe", help="build the probe for Linux guests into dist/")
    commands.add_parser("cache", help="say where the cache is, and how large")

    chosen = parser.parse_args()
    if chosen.command == "boot":
        leg = LEGS[chosen.leg]
        built = wheel.found(DIST) if leg.architecture.python else None
        if leg.architecture.python and not built:
            note("no aarch64 wheel in dist/ (make wheel-aarch64 builds it): a machine without guestclock")
        return machine.boot(
            leg,
            chosen.arguments,
            show=show,
            wheel=built,
            files=None if leg.architecture.python else {"program": program.build()},
            out=chosen.out,
            icount=chosen.icount,
            timeout_s=chosen.timeout,
        )
    if chosen.command in {"test", "fetch"}:
        unknown = sorted(set(chosen.legs) - set(LEGS))
        if unknown:
            parser.error(f"no leg is called {', '.join(unknown)}; there are {', '.join(LEGS)}")
        legs = chosen.legs or list(LEGS)
        if chosen.command == "test":
            return suite.run(legs, seed=chosen.seed, jobs=chosen.jobs, timeout_s=chosen.timeout, short=chosen.short)
        wheel.parts()
        for name in legs:
            machine.parts(LEGS[name])
        return 0
    if chosen.command == "cache":
        say(cache.described())
        return 0
    if chosen.command == "lint":
        wheel.lint()
        return 0
    if chosen.command == "probe":
        DIST.mkdir(exist_ok=True)
        shutil.copy(guest.probe(), DIST / "guest-probe")
        say(str(DIST / "guest-probe"))
        return 0
    wheel.build(DIST)
    return 0


def show(line: bytes) -> None:
    """Print a line of a machine's console as it is."""
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as failed:
        # It has said why itself.
        give_up(f"{failed.cmd[0]} ended with status {failed.returncode}")
    except KeyboardInterrupt:
        sys.exit("testbed: interrupted")
