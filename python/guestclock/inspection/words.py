"""Times in words, by integers alone."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from typing import Final

from guestclock.units import S

_LONG: Final = (("y", 31_557_600), ("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
"""In seconds; a year is a Julian one."""
_SHORT: Final = (("s", S), ("ms", 1_000_000), ("µs", 1_000), ("ns", 1))
"""In nanoseconds."""
_MARKS: Final = {"Mn", "Me"}
_MOST_MARKS: Final = 2
_BLANK: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Characters that show nothing, though Unicode has them as letters or signs."""


def to_ns(ticks: int, frequency_hz: int) -> int:
    """Return the nanoseconds that `ticks` last, either way, rounded towards zero."""
    ns = abs(ticks) * S // frequency_hz
    return -ns if ticks < 0 else ns


def signed(ticks: int) -> int:
    """Return a difference of counts as the nearer of its two meanings modulo 2^64."""
    return (ticks + 2**63) % 2**64 - 2**63


def duration(ns: int) -> str:
    """Say how long, to about three digits or two units, rounded down: "1.5 s", "62.5 µs", "2 min 3 s", "-16 ns"."""
    if ns < 0:
        return f"-{duration(-ns)}"
    seconds = ns // S
    if seconds < 60:
        unit, size = next(((unit, size) for unit, size in _SHORT if ns >= size), _SHORT[-1])
        thousandths = f"{ns % size * 1000 // size:03}".rstrip("0")
        return f"{ns // size}.{thousandths} {unit}" if thousandths else f"{ns // size} {unit}"
    first = next(index for index, (_, size) in enumerate(_LONG) if seconds >= size)
    said = []
    for unit, size in _LONG[first : first + 2]:
        count, seconds = divmod(seconds, size)
        if count:
            said.append(f"{count} {unit}")
    return " ".join(said)


def instant(realtime_ns: int) -> str:
    """Say when, by UTC: "2025-06-15 15:06:40.000000001 UTC"; as nanoseconds where no calendar has it."""
    seconds, ns = divmod(realtime_ns, S)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{ns:09} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{realtime_ns} ns since 1970"


def printable(text: str) -> str:
    """Return a text that somebody else chose, such as a file's name or a key in it, with nothing in it that acts.

    Escape sequences and other controls, line ends, marks of direction, characters without a width or a glyph, and
    combining marks beyond two on one character become escapes as Python writes them: a terminal shows each where it
    stands, and no text looks like another one's.
    """
    shown: list[str] = []
    marks = 0
    for character in text:
        marks = marks + 1 if unicodedata.category(character) in _MARKS else 0
        plain = character.isprintable() and character not in _BLANK and marks <= (_MOST_MARKS if shown else 0)
        shown.append(character if plain else character.encode("unicode_escape").decode())
    return "".join(shown)
