"""Each command works from a fresh clone: before a target runs a program of `.venv`, it has put it there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

MAKEFILE = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
RULES = {
    target: (needs, recipe)
    for target, needs, recipe in re.findall(r"^([a-z0-9-]+):(?!=)(.*)\n((?:\t.*\n|.*\\\n)*)", MAKEFILE, re.MULTILINE)
}
PROGRAMS = re.compile(r"\$\((PY|BIN|LAB|PYTEST|ASV|call checked)\b")
BRING_THEM = re.compile(r"\$\(VENV\)/\.tools|\$\(NATIVE\)")


def has_tools(target: str) -> bool:
    needs = RULES[target][0].split("##")[0]
    return bool(BRING_THEM.search(needs)) or any(has_tools(name) for name in needs.split() if name in RULES)


@pytest.mark.parametrize("target", [name for name, (_, recipe) in RULES.items() if PROGRAMS.search(recipe)])
def test_a_target_brings_the_programs_that_it_runs(target: str) -> None:
    # What writes down the tools' versions has only pip, and fetches its own program by it.
    assert has_tools(target) == (target != "pins")


def test_the_rules_were_read() -> None:
    assert {"demo", "test", "kvm-fetch", "nightly", "help"} <= RULES.keys()
