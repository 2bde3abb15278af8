"""Counts in a part's log, by what the programs say at their ends."""

from __future__ import annotations

import re
from collections import Counter

NAMED = (
    # The form in which a program of lab/ says what it counted.
    re.compile(r"^count: (?P<name>.+) = (?P<number>\d+)$", re.MULTILINE),
    # The fuzzer's.
    re.compile(r"^stat::(?P<name>number_of_executed_units):\s*(?P<number>\d+)$", re.MULTILINE),
)
"""Lines with one count and its name."""

LISTED = (
    # pytest, cargo test, a leg of kvm-test and its traces, the planted rules of lab/mutants, cargo-mutants, the study.
    re.compile(r"^(?:=+ )?(?P<told>\d+ (?:passed|failed|error|skipped).*) in [\d.]+s", re.MULTILINE),
    re.compile(r"^test result: \w+\. (?P<told>\d+ passed; \d+ failed; \d+ ignored);", re.MULTILINE),
    re.compile(r"^LEG (?P<of>\S+): (?P<told>\d+ passed, \d+ failed)$", re.MULTILINE),
    re.compile(r": (?P<told>\d+ sequences, \d+ steps, \d+ comparisons), "),
    re.compile(r"; (?P<told>\d+ divergences)$", re.MULTILINE),
    re.compile(r"^(?P<told>\d+ caught, \d+ survived(?:, \d+ not judged)?)$", re.MULTILINE),
    re.compile(r"^(?P<told>\d+ mutants) tested", re.MULTILINE),
    re.compile(r"^\d+ mutants tested[^:]*: (?P<told>.+)$", re.MULTILINE),
    re.compile(r"(?P<told>[\d,]+ random migrations, seed \d+, and [\d,]+ corners)"),
)
"""Lines with a list of counts, each before its name, and for a leg the name of what they are of."""

COUNT = re.compile(r"(?<!seed )\b([\d,]*\d) ([a-z]+)")


def counts(log: str) -> dict[str, int]:
    """Everything that the log counts, by name; what is said several times is added up."""
    found: Counter[str] = Counter()
    for line in NAMED:
        for match in line.finditer(log):
            found[match["name"]] += int(match["number"])
    for line in LISTED:
        for match in line.finditer(log):
            of = match.groupdict().get("of")
            for number, name in COUNT.findall(match["told"]):
                found[f"{of} {name}" if of else name] += int(number.replace(",", ""))
    return dict(found)
