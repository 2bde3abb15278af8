"""The tests of KVM on x86-64, as a program that needs nothing of the machine that it runs in."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from testbed.image import TREE
from testbed.say import note

NAME = "x86_64_kvm"
BUILD = ("--profile", "test", "--package", "guestclock-linux", "--test", NAME, "--locked")

STATIC = ("-C", "target-feature=+crt-static", "-C", "strip=debuginfo")
"""Options of the program's own compilation alone, so that the crates below it serve other tests too."""


def build() -> Path:
    """Build the tests with the machine's own cargo, with the C library in them, and give the program's path."""
    note(f"building the program {NAME}")
    command = ["cargo", "rustc", "--quiet", *BUILD, "--message-format=json-render-diagnostics", "--", *STATIC]
    done = subprocess.run(command, cwd=TREE, check=True, text=True, stdout=subprocess.PIPE)
    artifacts = [told for told in map(json.loads, done.stdout.splitlines()) if told["reason"] == "compiler-artifact"]
    (built,) = (told["executable"] for told in artifacts if told["target"]["name"] == NAME)
    return Path(built)
