"""The tests of KVM on x86-64, as a program that needs nothing of the machine that it runs in."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from testbed.image import TREE
from testbed.say import note

NAME = "x86_64_kvm"
TARGET = "x86_64-unknown-linux-gnu"

BUILD = ("--package", "guestclock-linux", "--test", NAME, "--no-run", "--locked", "--target", TARGET)


def build() -> Path:
    """Build the tests with the machine's own cargo, with the C library in them, and give the program's path."""
    # A folder of its own: the flag would have everything else built again.
    target = Path(os.environ.get("CARGO_TARGET_DIR") or "target") / "static"
    environment = os.environ | {
        "CARGO_TARGET_DIR": str(target),
        "CARGO_PROFILE_TEST_STRIP": "debuginfo",
        "RUSTFLAGS": "-C target-feature=+crt-static",
    }
    note(f"building the program {NAME}")
    command = ["cargo", "test", "--quiet", *BUILD, "--message-format=json-render-diagnostics"]
    done = subprocess.run(command, cwd=TREE, env=environment, check=True, text=True, stdout=subprocess.PIPE)
    artifacts = [told for told in map(json.loads, done.stdout.splitlines()) if told["reason"] == "compiler-artifact"]
    (built,) = (told["executable"] for told in artifacts if told["target"]["name"] == NAME)
    return Path(built)
