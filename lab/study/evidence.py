"""The table of evidence in plain integers, written from docs/time-model.md: which clock is believed between two stamps.

A stamp is whatever has its attributes; so are a bound and a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Final

_SECOND: Final = 10**9
_YEAR_NS: Final = 366 * 86_400 * _SECOND

ROWS: Final = {
    "given": "told by the caller",
    "by-counter": "the counter, by the caller's word",
    "by-wall-clocks": "the wall clocks, by the caller's word",
    "one-object": "one counter object (a pause)",
    "one-boot": "one boot, no sleep, and the count went forward",
    "counted-on": "one boot, a sleep, and the counter counted on",
    "stood-still": "one boot, and the counter stood still, or went back",
    "elsewhere": "another boot, host or source",
}
"""The rows of the table, by name."""


@dataclass(frozen=True, slots=True)
class Belief:
    """The answer of the table: a clock with what it says, or a refusal."""

    row: str
    """The row that fits: a key of `ROWS`."""
    by: str | None = None
    """The clock, as a plan names it."""
    ticks: int | None = None
    """The time that has passed, in ticks."""
    error_ticks: int | None = None
    refusal: str | None = None
    """Name of the error, where nothing is believed."""


class ClockTable:
    """The table of evidence, between two stamps and the bounds that somebody vouches for."""

    def __init__(self, there: Any, here: Any, there_sync: Any, here_sync: Any) -> None:
        self.there, self.here, self.syncs = there, here, (there_sync, here_sync)
        self.ticks = (here.count - there.count + 2**63) % 2**64 - 2**63
        self.counted_ns = abs(self.ticks) * _SECOND // here.frequency_hz * (1 if self.ticks >= 0 else -1)
        tai = there.tai_offset_s is not None and here.tai_offset_s is not None
        self.wall_ns = here.realtime_ns - there.realtime_ns
        self.wall_ns += (here.tai_offset_s - there.tai_offset_s) * _SECOND if tai else 0
        self.bounds = [self.bound(stamp, sync) for stamp, sync in zip((there, here), self.syncs, strict=True)]
        first = there.realtime_ns - there.width_ns - (self.bounds[0] or 0)
        last = here.realtime_ns + here.width_ns + (self.bounds[1] or 0) + _SECOND
        self.leap = not tai and self.month(first) != self.month(last)
        known = there.boottime_ns is not None and here.boottime_ns is not None
        self.boot_ns = here.boottime_ns - there.boottime_ns if known else None
        self.widths = there.slept_width_ns + here.slept_width_ns if known else 0

    @staticmethod
    def bound(stamp: Any, sync: Any) -> int | None:
        """Return the bound of one wall clock: vouched for, or else claimed."""
        if sync is not None:
            error: int = sync.max_error_ns - (-sync.age_ns * sync.holdover_ppb // _SECOND)
            return error
        if stamp.synchronized and stamp.max_error_ns is not None and stamp.max_error_ns < 16 * _SECOND:
            claimed: int = stamp.max_error_ns
            return claimed
        return None

    @staticmethod
    def month(ns: int) -> tuple[int, int]:
        """Year and month of an instant by UTC."""
        day = date(1970, 1, 1) + timedelta(days=ns // (86_400 * _SECOND))
        return day.year, day.month

    def slept(self) -> tuple[int, int] | None:
        """Return the least and the longest that the host slept in between; None where nobody knows."""
        if self.boot_ns is None:
            return None
        least = self.here.slept_ns - self.there.slept_ns - self.there.slept_width_ns
        return least, self.here.slept_ns - self.there.slept_ns + self.here.slept_width_ns

    def lasted(self, ns: int) -> bool:
        """Return whether the counter may have counted that time: within both brackets and 500 ppm."""
        within: bool = abs(self.counted_ns - ns) <= 2 + self.widths + max(abs(ns), abs(self.counted_ns)) // 2000
        return within

    def believed(self, word: Any, *, capped: bool, one_object: bool = False) -> Belief:
        """Return the answer of the first row that fits."""
        hz = self.here.frequency_hz
        if word is not None and word.by == "given":
            return Belief("given", "given", word.ns * hz // _SECOND, -(-word.error_ns * hz // _SECOND) + 1)
        if word is not None and word.by == "counter":
            if self.ticks < 0:
                return Belief("by-counter", refusal="ClockWentBackwards")
            return Belief("by-counter", "counter", self.ticks, 0)
        if word is not None:
            return self._by_wall_clocks("by-wall-clocks", word, capped=capped)
        one = self.there.boot_id is not None and self.there.boot_id == self.here.boot_id
        one = one and self.there.source == self.here.source and not self.here.source.endswith("_local")
        if not one and not one_object:
            return self._by_wall_clocks("elsewhere", None, capped=capped)
        slept = self.slept()
        awake = slept is None or slept[0] <= 0 <= slept[1]
        grew = slept is not None and slept[0] > 0
        if self.ticks >= 0 and (awake or (grew and self.lasted(self.boot_ns or 0))):
            row = "one-object" if one_object else "counted-on" if grew else "one-boot"
            return self._by_this_counter(row, slept if grew else None, one_object=one_object)
        return self._stood_still("one-object" if one_object else "stood-still", capped=capped)

    def _stood_still(self, row: str, *, capped: bool) -> Belief:
        hz = self.here.frequency_hz
        if None not in self.syncs:
            by_both = self._by_wall_clocks(row, None, capped=capped)
            if by_both.refusal is None:
                return by_both
        if self.boot_ns is None or self.boot_ns < 0:
            if row == "one-object":
                return Belief(row, "counter", max(self.ticks, 0), 0)
            return Belief(row, refusal="ClockWentBackwards")
        error_ns = self.widths + _SECOND - (-self.boot_ns // 1999)
        return Belief(row, "boot-time", self.boot_ns * hz // _SECOND, -(-error_ns * hz // _SECOND) + 1)

    def _by_this_counter(self, row: str, slept: tuple[int, int] | None, *, one_object: bool) -> Belief:
        allowed = 2 + self.there.width_ns + self.here.width_ns + sum(bound or 0 for bound in self.bounds)
        allowed += _SECOND * self.leap + abs(self.wall_ns) // 2000
        if not one_object and None not in self.syncs and abs(self.counted_ns - self.wall_ns) > allowed:
            return Belief(row, refusal="ClocksDisagree")
        hidden_ns = slept[1] + _SECOND if slept and self.lasted((self.boot_ns or 0) - slept[0]) else 0
        return Belief(row, "counter", self.ticks, -(-hidden_ns * self.here.frequency_hz // _SECOND))

    def _by_wall_clocks(self, row: str, word: Any, *, capped: bool) -> Belief:
        hz = self.here.frequency_hz
        error_ns = word.error_ns if word is not None else None
        own = word.refuse_over_ns if word is not None else None
        longest = own if own is not None else _YEAR_NS
        if error_ns is None:
            if None in self.bounds or self.leap:
                return Belief(row, refusal="ElapsedUnknown")
            error_ns = sum(bound or 0 for bound in self.bounds)
        if self.wall_ns < 0:
            return Belief(row, refusal="ClockWentBackwards")
        if self.wall_ns > longest and not (capped and own is None):
            return Belief(row, refusal="ElapsedTooLong")
        error_ns += self.there.width_ns + self.here.width_ns
        return Belief(row, "wall-clocks", self.wall_ns * hz // _SECOND, -(-error_ns * hz // _SECOND) + 1)
