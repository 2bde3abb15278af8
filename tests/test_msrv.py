"""The oldest Rust that guestclock asks for is one that it is built with, and every place names the same one."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CARGO = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["workspace"]
DECLARED = CARGO["package"]["rust-version"]
NAMED = r"(?:Rust|or your distribution's packages\),) (1\.\d+)\b"


@pytest.mark.parametrize("place", ["README.md", "CONTRIBUTING.md", "Makefile"])
def test_every_place_names_the_declared_version(place: str) -> None:
    assert set(re.findall(NAMED, (ROOT / place).read_text(encoding="utf-8"))) == {DECLARED}


@pytest.mark.parametrize("member", CARGO["members"])
def test_every_crate_declares_it(member: str) -> None:
    crate = tomllib.loads((ROOT / member / "Cargo.toml").read_text(encoding="utf-8"))
    assert crate["package"]["rust-version"] == {"workspace": True}


def test_it_is_the_version_that_instructions_are_counted_with() -> None:
    """`make instructions`, a part of each night, fails with any compiler but this one."""
    built_with = json.loads((ROOT / "benches" / "instructions.json").read_text(encoding="utf-8"))["rustc"]
    assert built_with.startswith(f"rustc {DECLARED}.")
