"""Compare how many instructions the kernels, the deadline queue and the checkpoint's bytes take with what they took.

    python tools/instructions.py [--update]

Counts what rust/*/benches/counted.rs run, under valgrind's callgrind, and compares with benches/instructions.json: more
than 2 % more or fewer is a failure. With --update it writes that file instead. A count is of a compiler and a
target: where either is another one than the file's, nothing can be compared, and that is a failure as well.

valgrind is the machine's own, or else Debian's, fetched as the testbed fetches packages. It knows no AVX-512, so these
paths aren't counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TypedDict, cast

sys.path.insert(0, str(Path(__file__).parent.parent / "lab"))

from testbed import cache
from testbed.debian import Archive

TREE = Path(__file__).resolve().parent.parent
FILE = TREE / "benches" / "instructions.json"
TOLERANCE_PERCENT = 2
PACKAGES = ("guestclock-model", "guestclock-linux")


class Counted(TypedDict):
    """Instructions of each call, with the compiler and the target that the counts are of."""

    rustc: str
    target: str
    counts: dict[str, int]


def compiler() -> tuple[str, str]:
    """The compiler's version and target."""
    command = ["rustc", "-vV"]
    told = subprocess.run(command, cwd=TREE, check=True, stdout=subprocess.PIPE, text=True).stdout
    fields = dict(line.split(": ", 1) for line in told.splitlines() if ": " in line)
    return told.splitlines()[0], fields["host"]


def program(package: str) -> str:
    """The program of a package that is counted, built as a release is."""
    bench = ("--package", package, "--bench", "counted")
    command = ["cargo", "bench", "--locked", "--no-run", "--message-format=json", *bench]
    told = subprocess.run(command, cwd=TREE, check=True, stdout=subprocess.PIPE, text=True).stdout
    messages = (json.loads(line) for line in told.splitlines())
    return next(str(m["executable"]) for m in messages if m.get("executable") and m["target"]["name"] == "counted")


def valgrind() -> tuple[str, dict[str, str]]:
    """The valgrind to run, and what it needs in its environment."""
    own = shutil.which("valgrind")
    if own:
        return own, {}
    archive = Archive("bookworm")
    packages = [package for package in archive.plan("valgrind") if package.name == "valgrind"]
    # In a folder of its own: the package's age would become the cache's folder's.
    made = cache.made("valgrind", cache.key("root", packages), lambda place: archive.unpack(packages, place / "root"))
    return str(made / "root/usr/bin/valgrind"), {"VALGRIND_LIB": str(made / "root/usr/libexec/valgrind")}


def counted() -> Counted:
    """Build and count."""
    rustc, target = compiler()
    counts: dict[str, int] = {}
    for package in PACKAGES:
        counts |= counted_of(program(package))
    return {"rustc": rustc, "target": target, "counts": counts}


def counted_of(program: str) -> dict[str, int]:
    """Run a program, and count each of its calls, but for what it does in the place of a kernel."""
    command, environment = valgrind()
    with tempfile.TemporaryDirectory(prefix="guestclock-") as folder:
        out = Path(folder, "counted")
        options = ("--tool=callgrind", "--quiet", f"--callgrind-out-file={out}", "--collect-atstart=no")
        # On in `counted_call`, off in the `system_call`s below it. Of two patterns that begin alike it takes none.
        only = ("--toggle-collect=counted::*_call", "--dump-after=counted::counted_call")
        told = subprocess.run(
            [command, *options, *only, program, "--count"],
            env=os.environ | environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        return {name: total(Path(f"{out}.{number}")) for number, name in enumerate(told.splitlines(), 1)}


def total(dump: Path) -> int:
    """The instructions in one of callgrind's files."""
    found = re.search(r"^(?:summary|totals): (\d+)", dump.read_text(), re.MULTILINE)
    if not found or not int(found[1]):
        sys.exit(f"instructions: callgrind counted nothing in {dump.name}")
    return int(found[1])


def not_comparable(recorded: Counted, rustc: str, target: str) -> str | None:
    """The reason why the file's counts say nothing about this compiler, with the way out; None if they are of it."""
    if (recorded["rustc"], recorded["target"]) == (rustc, target):
        return None
    return (
        f"{FILE.relative_to(TREE)} has counts of {recorded['rustc']} for {recorded['target']}, and this compiler is "
        f"{rustc} for {target}: they can't be compared. Use the toolchain of the file, or renew the counts with this "
        "one: make instructions-update, on a commit whose counts are right."
    )


def compared(was: dict[str, int], now: dict[str, int]) -> bool:
    """Print each count beside the file's; return whether all are within the tolerance."""
    fine = True
    for name in sorted(was | now):
        before, after = was.get(name), now.get(name)
        if before is None or after is None:
            fine = False
            print(f"{name:45} {before or '-':>12} {after or '-':>12}  only in {'the file' if before else 'this run'}")
            continue
        off = abs(after - before) * 100 > before * TOLERANCE_PERCENT
        fine = fine and not off
        verdict = "  TOO FAR" if off else ""
        print(f"{name:45} {before:>12} {after:>12}  {100 * (after - before) / before:+.2f} %{verdict}")
    return fine


def main() -> int:
    """Count, and compare or write."""
    parser = argparse.ArgumentParser(prog="python tools/instructions.py", description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help="write the counts to the file")
    update = parser.parse_args().update
    if update:
        now = counted()
        FILE.write_text(json.dumps(now, indent=2) + "\n")
        print(f"{FILE.relative_to(TREE)}: {len(now['counts'])} counts, {now['rustc']}")
        return 0
    was = cast("Counted", json.loads(FILE.read_text()))
    # Before the build: it takes a minute, and couldn't change the answer.
    if reason := not_comparable(was, *compiler()):
        sys.exit(f"instructions: {reason}")
    if compared(was["counts"], counted()["counts"]):
        return 0
    print(
        f"More than {TOLERANCE_PERCENT} % off. If it is meant: make instructions-update, and commit "
        f"{FILE.relative_to(TREE)}.",
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
