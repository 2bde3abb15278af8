"""Counts of a study, and its document `guestclock.study/1`: plain JSON values.

Ticks are of the guest's counter. A distance from a bound is in thousandths of a tick, rounded towards the worse.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Final, TypeAlias, TypedDict

from study.migration import BASES

if TYPE_CHECKING:
    from fractions import Fraction

    from study.corners import Key
    from study.luck_figures import UnluckyRecord
    from study.migration import Judged, Migration

LOOSEST_TICKS: Final = 2
"""Largest excess of a bound over the worst corner of its class."""
CELLS_PER_DECADE: Final = 4

_LISTED: Final = 20
"""Findings that are listed in full, at most."""

Cell: TypeAlias = list[int | None]
"""Where in the picture, and how many: the decimal logarithms of bound and error in ticks, times CELLS_PER_DECADE and
rounded, None for 0 ticks; and a number."""


class FindingRecord(TypedDict):
    """Something that must not be."""

    what: str
    basis: str
    which: str
    """"migration 17", whose number and seed draw it again (`study.worlds.draw`), or which corner."""
    error_mticks: int
    bound_ticks: int


class CornersRecord(TypedDict):
    """The corners of one class."""

    number: int
    bounds: int
    """Bounds that they belong to: one for each frequency and set of parameters."""
    beyond: int
    least_margin_mticks: int | None
    """The smallest excess of a bound over its worst corner; below 0 the bound is broken."""
    most_margin_mticks: int | None
    """The largest excess."""
    cells: list[Cell]
    """Each bound with its worst corner."""


class ClassRecord(TypedDict):
    """One class of migrations: what the guest's time is taken from, under which policy."""

    basis: str
    title: str
    restored: int
    refused: dict[str, int]
    """As they had to be, by error; "a warning" for those that were let pass with one."""
    beyond: int
    """Migrations that were farther off than the bound says, or whose refusal was missing or wrong."""
    least_margin_mticks: int | None
    """The smallest excess of a bound over its error."""
    cells: list[Cell]
    corners: CornersRecord


class LieRecord(TypedDict):
    """The lie of the target's hosts."""

    about: str
    factor: str


class Document(TypedDict):
    """The document that `python -m study --json` prints."""

    schema: str
    seed: int
    migrations: int
    corners: int
    lie: LieRecord | None
    ok: bool
    findings: int
    first_findings: list[FindingRecord]
    classes: list[ClassRecord]
    unlucky: UnluckyRecord
    """Those with unlucky and lying hosts: `study.luck_figures`."""


@dataclass
class _Class:
    """One class as it is counted."""

    restored: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    beyond: int = 0
    least: Fraction | None = None
    cells: Counter[tuple[int | None, int | None]] = field(default_factory=Counter)
    corners: int = 0
    corners_beyond: int = 0
    worst: dict[Key, Judged] = field(default_factory=dict)


class Figures:
    """The sums of a study."""

    def __init__(self) -> None:
        self._classes = {basis: _Class() for basis in BASES}
        self._findings = 0
        self._first: list[FindingRecord] = []

    def add(self, number: int, migration: Migration, judged: Judged) -> None:
        """Count a random migration."""
        of = self._classes[judged.basis]
        if judged.refused != migration.refusal:
            of.beyond += 1
            what = f"{judged.refused or 'let pass'}, where it had to be {migration.refusal or 'let pass'}"
            self._find(what, judged, f"migration {number}")
        elif judged.refused is not None:
            of.refused[judged.refused] += 1
            return
        of.restored += 1
        of.cells[_cell(judged)] += 1
        of.least = judged.margin if of.least is None else min(of.least, judged.margin)
        if judged.margin < 0:
            of.beyond += 1
            self._find("beyond the bound", judged, f"migration {number}")

    def add_corner(self, key: Key, judged: Judged) -> None:
        """Count a corner."""
        of = self._classes[key[0]]
        of.corners += 1
        which = f"corner: {key[1]} Hz, parameters {key[2]}"
        if judged.refused is not None:
            of.corners_beyond += 1
            self._find(f"{judged.refused}, where it had to be let pass", judged, which)
            return
        if judged.margin < 0:
            of.corners_beyond += 1
            self._find("beyond the bound", judged, which)
        elif judged.basis != key[0]:
            of.corners_beyond += 1
            self._find(f"taken for {judged.basis}", judged, which)
        worst = of.worst.setdefault(key, judged)
        if judged.margin < worst.margin:
            of.worst[key] = judged

    def document(
        self, schema: str, *, seed: int, migrations: int, lie: LieRecord | None, unlucky: UnluckyRecord
    ) -> Document:
        """Return the document. Only now is known how loose each bound is."""
        for of in self._classes.values():
            for key, judged in of.worst.items():
                if judged.margin > LOOSEST_TICKS:
                    self._find("a loose bound", judged, f"corner: {key[1]} Hz, parameters {key[2]}")
        return {
            "schema": schema,
            "seed": seed,
            "migrations": migrations,
            "corners": sum(of.corners for of in self._classes.values()),
            "lie": lie,
            "ok": not self._findings and not unlucky["findings"],
            "findings": self._findings,
            "first_findings": self._first,
            "classes": [_record(basis, of) for basis, of in self._classes.items()],
            "unlucky": unlucky,
        }

    def _find(self, what: str, judged: Judged, which: str) -> None:
        self._findings += 1
        if len(self._first) < _LISTED:
            self._first.append(
                {
                    "what": what,
                    "basis": judged.basis,
                    "which": which,
                    "error_mticks": _away_from_0(judged.error * 1000),
                    "bound_ticks": judged.bound_ticks,
                }
            )


def _record(basis: str, of: _Class) -> ClassRecord:
    margins = [judged.margin for judged in of.worst.values()]
    return {
        "basis": basis,
        "title": BASES[basis],
        "restored": of.restored,
        "refused": dict(sorted(of.refused.items())),
        "beyond": of.beyond,
        "least_margin_mticks": None if of.least is None else floor(of.least * 1000),
        "cells": _cells(of.cells),
        "corners": {
            "number": of.corners,
            "bounds": len(margins),
            "beyond": of.corners_beyond,
            "least_margin_mticks": floor(min(margins) * 1000) if margins else None,
            "most_margin_mticks": ceil(max(margins) * 1000) if margins else None,
            "cells": _cells(Counter(_cell(judged) for judged in of.worst.values())),
        },
    }


def _cells(cells: Counter[tuple[int | None, int | None]]) -> list[Cell]:
    rows: list[Cell] = [[bound, error, number] for (bound, error), number in cells.items()]
    return sorted(rows, key=str)


def _cell(judged: Judged) -> tuple[int | None, int | None]:
    return _decades(judged.bound_ticks), _decades(abs(judged.error))


def _decades(ticks: Fraction | int) -> int | None:
    return round(log10(ticks) * CELLS_PER_DECADE) if ticks else None


def _away_from_0(value: Fraction) -> int:
    return ceil(value) if value > 0 else floor(value)
