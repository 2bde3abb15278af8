"""Renew the layout that tests compare the vmclock page with, from the kernel's own header.

python tools/vmclock_header.py [--check]

Fetches linux-libc-dev of Debian's newest kernel as the testbed fetches packages, compiles a program of `offsetof` over
its linux/vmclock-abi.h, and writes what that prints to tests/golden/vmclock-abi.json. With --check it only compares.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "lab"))

from testbed import cache
from testbed.debian import Archive

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "vmclock-abi.json"
HEADER = Path("usr/include/linux/vmclock-abi.h")


def fetched() -> tuple[str, Path]:
    """The package's version, and the folder that it is unpacked in."""
    archive = Archive("trixie")
    packages = [p for p in archive.plan("linux-libc-dev", backports=True) if p.name == "linux-libc-dev"]
    place = cache.made("headers", cache.key(packages), lambda place: archive.unpack(packages, place))
    return packages[0].version, place


def measured(place: Path) -> dict[str, dict[str, int]]:
    """Offset and size of each field, and the value of each constant, by the C compiler."""
    text = (place / HEADER).read_text()
    structure = re.search(r"struct vmclock_abi \{(.*)\n\};", text, re.DOTALL)
    if not structure:
        sys.exit(f"no struct vmclock_abi in {place / HEADER}")
    fields = re.findall(r"^\t__(?:le|u)\d+ (\w+)", structure[1], re.MULTILINE)
    constants = re.findall(r"^\s*#define (VMCLOCK_\w+)[ \t]+\S", text, re.MULTILINE)
    lines = [
        *(f'printf("field %s %zu %zu\\n", "{f}", offsetof(struct vmclock_abi, {f}), SIZE({f}));' for f in fields),
        *(f'printf("constant %s %llu\\n", "{c}", (unsigned long long)({c}));' for c in constants),
        'printf("size %zu\\n", sizeof(struct vmclock_abi));',
    ]
    source = "\n".join(
        [
            "#include <stddef.h>",
            "#include <stdio.h>",
            "#include <linux/vmclock-abi.h>",
            "#define SIZE(field) sizeof(((struct vmclock_abi *)0)->field)",
            "int main(void) {",
            *lines,
            "return 0; }",
        ]
    )
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "layout"
        # That header alone: the ones that it needs itself are the machine's own, and only name integers.
        (program.with_suffix(".c")).write_text(source.replace("<linux/vmclock-abi.h>", f'"{place / HEADER}"'))
        subprocess.run([shutil.which("cc") or "cc", "-o", program, program.with_suffix(".c")], check=True)
        told = subprocess.run([program], check=True, text=True, stdout=subprocess.PIPE).stdout
    layout: dict[str, dict[str, int]] = {"offsets": {}, "sizes": {}, "constants": {}}
    for line in told.splitlines():
        kind, *words = line.split()
        if kind == "field":
            layout["offsets"][words[0]], layout["sizes"][words[0]] = int(words[1]), int(words[2])
        elif kind == "constant":
            layout["constants"][words[0]] = int(words[1])
        else:
            layout["sizes"]["vmclock_abi"] = int(words[0])
    return layout


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    version, place = fetched()
    layout = measured(place)
    if not check:
        GOLDEN.write_text(json.dumps({"linux-libc-dev": version, **layout}, indent=2) + "\n")
        return 0
    there = json.loads(GOLDEN.read_text())
    if {name: there[name] for name in layout} == layout:
        return 0
    print(f"{GOLDEN} isn't what linux-libc-dev {version} has", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
