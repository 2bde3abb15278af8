"""Counts of the migrations with unlucky and lying hosts: outcomes by row of evidence, and broken premises."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, TypedDict

from study.luck import PREMISES
from study.outcome import TITLES

if TYPE_CHECKING:
    from study.luck import Unlucky
    from study.outcome import Outcome

_LISTED: Final = 20
"""Findings that are listed in full, at most."""


class RowRecord(TypedDict):
    """One row of the table of evidence."""

    row: str
    title: str
    proved: int
    """Restored, and no assumption of the report is without proof."""
    assumed: int
    """Restored under assumptions."""
    warned: int
    """Those of both that were warned of a clock."""
    refused: dict[str, int]
    """Refused, by error."""


class PremiseRecord(TypedDict):
    """One premise that was broken on purpose."""

    premise: str
    title: str
    broken: int
    refused: int
    warned: int
    """Let pass with a warning about a clock."""
    listed: int
    """Let pass without, and the report lists an assumption that excludes it."""
    harmless: int
    """None of the three: the guest's time doesn't rest on it, and its error is within its bound."""
    beyond: int
    """Those whose error exceeds the bound, which a listed assumption has to account for."""


class UnluckyRecord(TypedDict):
    """All of them."""

    number: int
    pauses: int
    honest: int
    """Those of which no premise is broken."""
    events: dict[str, int]
    """Strokes of luck, by name."""
    rows: list[RowRecord]
    premises: list[PremiseRecord]
    findings: int
    first_findings: list[str]


class LuckFigures:
    """The sums."""

    def __init__(self) -> None:
        self._number = self._pauses = self._honest = self._findings = 0
        self._first: list[str] = []
        self._events: Counter[str] = Counter()
        self._rows: Counter[tuple[str, str]] = Counter()
        self._premises: Counter[tuple[str, str]] = Counter()

    def add(self, number: int, drawn: Unlucky, outcome: Outcome) -> None:
        """Count one of them."""
        self._number += 1
        self._pauses += drawn.pause
        self._honest += not drawn.broken
        self._events.update(set(drawn.events))
        verdict = outcome.refused or ("assumed" if outcome.assumed else "proved")
        self._rows[outcome.row, verdict] += 1
        self._rows[outcome.row, "warned"] += bool(outcome.warned)
        for premise, codes in drawn.broken:
            self._premises[premise, "broken"] += 1
            self._premises[premise, self._fate(codes, outcome)] += 1
            self._premises[premise, "beyond"] += outcome.beyond
        if outcome.wrong:
            self._findings += 1
            if len(self._first) < _LISTED:
                self._first.append(f"{outcome.wrong}: {TITLES[outcome.row]}, unlucky migration {number}")

    @staticmethod
    def _fate(codes: frozenset[str], outcome: Outcome) -> str:
        if outcome.refused:
            return "refused"
        if outcome.warned:
            return "warned"
        return "listed" if codes & outcome.assumed else "harmless"

    def record(self) -> UnluckyRecord:
        """Return them as plain values."""
        known = {"proved", "assumed", "warned"}
        return {
            "number": self._number,
            "pauses": self._pauses,
            "honest": self._honest,
            "events": dict(sorted(self._events.items())),
            "rows": [
                {
                    "row": row,
                    "title": title,
                    "proved": self._rows[row, "proved"],
                    "assumed": self._rows[row, "assumed"],
                    "warned": self._rows[row, "warned"],
                    "refused": {
                        error: number
                        for (of, error), number in sorted(self._rows.items())
                        if of == row and error not in known
                    },
                }
                for row, title in TITLES.items()
            ],
            "premises": [
                {
                    "premise": premise,
                    "title": title,
                    "broken": self._premises[premise, "broken"],
                    "refused": self._premises[premise, "refused"],
                    "warned": self._premises[premise, "warned"],
                    "listed": self._premises[premise, "listed"],
                    "harmless": self._premises[premise, "harmless"],
                    "beyond": self._premises[premise, "beyond"],
                }
                for premise, title in PREMISES.items()
            ],
            "findings": self._findings,
            "first_findings": self._first,
        }
