"""The siblings of guestclock's batch operations: the same results by numpy, as fast as numpy gives them.

**Frozen.** A ratio says nothing once its other side moves: every change here has its reason in CHANGELOG.md.
tests/test_baselines.py holds the results against plain integers.

How they are written: columns, `out=` everywhere, temporaries made once, blocks that stay in the second-level cache,
views of the blocks made once, masks instead of `where`, and arrays of no dimension for numbers, since each of numpy's
scalars costs a call 250 ns more. What follows from a VM's frequency or a timer's CTL alone is worked out when that is
written, outside what is timed, and policies come as masks: guestclock gets plain columns.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Words: TypeAlias = NDArray[np.uint64]
Flags: TypeAlias = NDArray[np.bool_]

NO_DEADLINE: Final = np.array(2**64 - 1, np.uint64)
"""For a vCPU none of whose lines ever goes high by itself. A real deadline is held just below."""
NS_PER_S: Final = np.array(10**9, np.uint64)
HIGHEST_HZ: Final = 2**34
"""Up to here a remainder of nanoseconds, times the frequency, fits in a word."""
ALL: Final = np.array(2**64 - 1, np.uint64)


def blocks(rows: int, most: int) -> Iterator[slice]:
    """Slices of at most so many rows."""
    return (slice(first, min(first + most, rows)) for first in range(0, rows, most))


def mask(flags: Flags) -> Words:
    """All bits where it is so."""
    return np.where(flags, ALL, np.uint64(0))


class Counters:
    """Guests' counters, each with its offset."""

    def __init__(self, offsets: Words) -> None:
        """Copy them."""
        self.offsets, self._now = offsets.copy(), np.zeros((), np.uint64)

    def read(self, now: int, out: Words) -> None:
        """Counts of all rows: `now - offset`, modulo 2^64."""
        self._now[()] = now
        np.subtract(self._now, self.offsets, out=out)


class Timers:
    """The timers of many vCPUs, a row each: the first by the virtual counter, all others by the physical one.

    Slower were: `where=` (a minimum with it takes 12 times as long) and `copyto` with it (5 times); the mask as bytes,
    whose sign fills a word (by a tenth at 4096 rows); all timers of a counter in one call (by a tenth to a fifth at
    4096). With both of these, 65536 rows of four timers took from a fifth less to a tenth more, from one run to
    another. As fast: first the least CVAL of a counter's timers, and its ticks then. With columns of CVAL under its
    mask, and of whether any physical timer can raise its line, 4096 rows take a fifth less, and 65536 a tenth. But
    those are parts of the answer, worked out whenever a timer is armed: both sides start from offsets, CVAL and CTL.
    """

    BLOCK: Final = 16384
    """From 8192 rows on there is little in it; fewer make more calls."""

    class Timer(NamedTuple):
        """One timer's part of a block."""

        cval: Words
        can_raise: Flags
        never: Words
        istatus: Flags
        line: Flags

    class Block(NamedTuple):
        """The offsets, the results and the temporaries of some rows, and their timers."""

        virtual: Words
        physical: Words
        can_raise: Flags
        deadlines: Words
        guest: Words
        ticks: Words
        none: Flags
        first: Timers.Timer
        others: list[Timers.Timer]

    def __init__(self, offsets: Words, cval: Words, ctl: NDArray[np.uint8]) -> None:
        """Copy (2, n) offsets, virtual and physical, and (timers, n) compare values and controls."""
        timers, rows = cval.shape
        self.offsets, self.cval, self.can_raise = offsets.copy(), cval.copy(), (ctl & 3) == 1
        self.never = mask(~self.can_raise)
        self.istatus, self.line = np.empty(ctl.shape, np.bool_), np.empty(ctl.shape, np.bool_)
        self.deadlines = np.empty(rows, np.uint64)
        self._at, self._soonest, self._room = (np.zeros((), np.uint64) for _ in range(3))
        # One memory for the temporaries of all blocks: it stays near.
        count, ticks, none = (np.empty(min(rows, self.BLOCK), kind) for kind in (np.uint64, np.uint64, np.bool_))
        self._blocks = []
        for part in blocks(rows, self.BLOCK):
            n = part.stop - part.start
            first, *others = (self._timer(timer, part) for timer in range(timers))
            virtual, physical = self.offsets[:, part]
            self._blocks.append(
                self.Block(
                    virtual,
                    physical,
                    self.can_raise[:, part],
                    self.deadlines[part],
                    count[:n],
                    ticks[:n],
                    none[:n],
                    first,
                    others,
                )
            )

    def _timer(self, timer: int, rows: slice) -> Timer:
        return self.Timer(
            self.cval[timer, rows],
            self.can_raise[timer, rows],
            self.never[timer, rows],
            self.istatus[timer, rows],
            self.line[timer, rows],
        )

    def arm(self, timer: int, rows: NDArray[np.int64], cval: Words, ctl: NDArray[np.uint8]) -> None:
        """Write CVAL and CTL of one timer on those rows."""
        can_raise = (ctl & 3) == 1
        self.cval[timer, rows] = cval
        self.can_raise[timer, rows] = can_raise
        self.never[timer, rows] = mask(~can_raise)

    def evaluate(self, now: int) -> None:
        """Write `istatus`, `line` and `deadlines` as they are at `now`."""
        at, soonest, room = self._at, self._soonest, self._room
        at[()], soonest[()], room[()] = now, min(now, 2**64 - 2), max(2**64 - 2 - now, 0)
        less_equal, both, maximum, subtract = np.less_equal, np.bitwise_and, np.maximum, np.subtract
        either, minimum = np.bitwise_or, np.minimum
        for *block, first, others in self._blocks:
            virtual, physical, raises, deadlines, guest, ticks, none = block
            cval, can_raise, never, istatus, line = first
            subtract(at, virtual, out=guest)
            less_equal(cval, guest, out=istatus)
            both(istatus, can_raise, out=line)
            maximum(cval, guest, out=deadlines)
            subtract(deadlines, guest, out=deadlines)
            either(deadlines, never, out=deadlines)
            subtract(at, physical, out=guest)
            for cval, can_raise, never, istatus, line in others:
                less_equal(cval, guest, out=istatus)
                both(istatus, can_raise, out=line)
                maximum(cval, guest, out=ticks)
                subtract(ticks, guest, out=ticks)
                either(ticks, never, out=ticks)
                minimum(deadlines, ticks, out=deadlines)
            # All ones are left where no timer can raise its line; and, as good as never, by 2^64 - 1 ticks.
            np.equal(deadlines, ALL, out=none)
            minimum(deadlines, room, out=deadlines)
            np.add(deadlines, soonest, out=deadlines)
            rows = none.nonzero()[0]
            if rows.size:
                deadlines[rows[~raises[:, rows].any(0)]] = NO_DEADLINE


def ticks_in(ns: Words, hz: Words, out: Words, rest: Words) -> None:
    """floor(ns * hz / 10^9) modulo 2^64: the ticks of whole seconds, and those of the rest, a temporary."""
    np.floor_divide(ns, NS_PER_S, out=out)
    np.multiply(out, NS_PER_S, out=rest)
    np.subtract(ns, rest, out=rest)
    np.multiply(rest, hz, out=rest)
    np.floor_divide(rest, NS_PER_S, out=rest)
    np.multiply(out, hz, out=out)
    np.add(out, rest, out=out)


def limits(hz: Words) -> Words:
    """The most nanoseconds at each frequency whose ticks are below 2^64."""
    distinct, which = np.unique(hz, return_inverse=True)
    most = [min(((10**9 << 64) - 1) // one, 2**64 - 1) for one in distinct.tolist()]
    return np.array(most, np.uint64)[which]


def checked(hz: Words) -> Words:
    """A copy of frequencies for which this arithmetic is exact."""
    if hz.size and not (hz.min() > 0 and hz.max() <= HIGHEST_HZ):
        raise ValueError(f"these baselines are exact for 1 to {HIGHEST_HZ} Hz")
    return hz.copy()


class Conversion:
    """Ticks <-> nanoseconds of rows that each have their own frequency, rounded down, held at 2^64 - 1.

    numpy divides by a column six times as slowly as by one number. So ticks are gathered by frequency, and divided by
    what is left of it in lowest terms with 10^9. Slower were: a column of frequencies (by a third at 4096 rows, twice
    at 65536), in lowest terms or not; `divmod`; gathering and scattering each frequency by itself; reciprocals in
    float64, put right afterwards.
    """

    BLOCK: Final = 16384

    def __init__(self, frequency_hz: Words) -> None:
        """Take the frequency of each row, 1 to `HIGHEST_HZ`."""
        self.hz = checked(frequency_hz)
        self._limits = limits(self.hz)
        rows = self.hz.size
        distinct, which, sizes = np.unique(self.hz, return_inverse=True, return_counts=True)
        self._order = np.argsort(which, kind="stable")
        self._back = np.argsort(self._order)
        self._gathered, self._whole, self._rest = (np.empty(rows, np.uint64) for _ in range(3))
        self._over = np.empty(rows, np.bool_)
        self._parts = []
        for hz, size, end in zip(distinct.tolist(), sizes.tolist(), np.cumsum(sizes).tolist(), strict=True):
            common = math.gcd(hz, 10**9)
            b, a = hz // common, 10**9 // common
            limit = min(((b << 64) - 1) // a, 2**64 - 1)
            part = slice(end - size, end)
            views = self._gathered[part], self._whole[part], self._rest[part]
            self._parts.append((*views, b != 1, np.array(a, np.uint64), np.array(b, np.uint64), np.uint64(limit)))

    def ticks_to_ns(self, ticks: Words, out: Words) -> None:
        """floor(ticks * 10^9 / hz)."""
        ticks.take(self._order, out=self._gathered, mode="clip")
        for n, whole, rest, fraction, a, b, limit in self._parts:
            over = n > limit if n.max() > limit else None
            if fraction:
                np.floor_divide(n, b, out=whole)
                np.multiply(whole, b, out=rest)
                np.subtract(n, rest, out=rest)
                np.multiply(rest, a, out=rest)
                np.floor_divide(rest, b, out=rest)
                np.multiply(whole, a, out=n)
                np.add(n, rest, out=n)
            else:
                np.multiply(n, a, out=n)
            if over is not None:
                n[over] = ALL
        self._gathered.take(self._back, out=out, mode="clip")

    def ns_to_ticks(self, ns: Words, out: Words) -> None:
        """floor(ns * hz / 10^9)."""
        rest, over = self._rest[: self.BLOCK], self._over[: self.BLOCK]
        for part in blocks(self.hz.size, self.BLOCK):
            rows = part.stop - part.start
            some, to, beyond = ns[part], out[part], over[:rows]
            ticks_in(some, self.hz[part], to, rest[:rows])
            np.greater(some, self._limits[part], out=beyond)
            if beyond.any():
                to[beyond] = ALL


NOTHING, COUNTED, COUNTED_UP_TO, ELAPSED, ELAPSED_UP_TO = range(5)
"""The time that a restored guest is given for its pause: none (Freeze); the ticks that the counter has counted
(Advance, on the same counter); `elapsed_ns` (Advance, on another counter); and each of the last two up to `max_ns`."""


class Saved:
    """VMs to restore, a row each: the offset under which each goes on, and the ticks that its guest is given.

    All rows take all steps, under masks. Gathering the rows of each policy is slower at 4096 rows. At 65536 it is
    faster by a fourth, if they are known beforehand. But a policy is new with each restore, and finding its rows takes
    longer than that saves.
    """

    BLOCK: Final = 8192

    class Block(NamedTuple):
        """Some rows: what was saved, masks by policy, the results, and temporaries."""

        guest: Words
        host: Words
        elapsed_ns: Words
        max_ns: Words
        hz: Words
        limits: Words
        by_count: Flags
        counted: NDArray[np.int8]
        told: NDArray[np.int8]
        untold: NDArray[np.int8]
        uncapped: NDArray[np.int8]
        offsets: Words
        added: Words
        over: Flags
        mask: Words
        ns: Words
        ticks: Words
        rest: Words

    def __init__(
        self,
        guest: Words,
        host: Words,
        policy: NDArray[np.uint8],
        elapsed_ns: Words,
        max_ns: Words,
        frequency_hz: Words,
    ) -> None:
        """Take the guests' counters, the host's count then, and what is added; frequencies are up to `HIGHEST_HZ`."""
        rows = guest.size
        self.offsets, self.added = np.empty(rows, np.uint64), np.empty(rows, np.uint64)
        self._at = np.zeros((), np.uint64)
        by_count = (policy == COUNTED) | (policy == COUNTED_UP_TO)
        told = (policy == ELAPSED) | (policy == ELAPSED_UP_TO)
        capped = (policy == COUNTED_UP_TO) | (policy == ELAPSED_UP_TO)
        # Bytes of 0 or -1, whose sign fills a word.
        masks = (-flags.astype(np.int8) for flags in (by_count, told, ~told, ~capped))
        hz = checked(frequency_hz)
        columns = (guest, host, elapsed_ns, max_ns, hz, np.where(capped, limits(hz), ALL), by_count, *masks)
        columns = (*(column.copy() for column in columns), self.offsets, self.added)
        most = min(rows, self.BLOCK)
        spare = (np.empty(most, np.bool_), *(np.empty(most, np.uint64) for _ in range(4)))
        self._blocks = [
            self.Block(*(column[part] for column in columns), *(one[: part.stop - part.start] for one in spare))
            for part in blocks(rows, self.BLOCK)
        ]

    def recompute(self, now: int) -> None:
        """Write `offsets` and `added` for a host counter that reads `now`; ValueError where it was ahead of that."""
        at = self._at
        at[()] = now
        for block in self._blocks:
            np.greater(block.host, at, out=block.over)
            np.bitwise_and(block.over, block.by_count, out=block.over)
            if block.over.any():
                raise ValueError("the host's counter went backwards")
        for (
            guest, host, elapsed_ns, max_ns, hz, limits, _, counted, told, untold, uncapped,
            offsets, added, over, mask, ns, ticks, rest,
        ) in self._blocks:  # fmt: skip
            signs = mask.view(np.int64)
            np.copyto(signs, untold)
            np.bitwise_or(elapsed_ns, mask, out=ns)
            np.copyto(signs, uncapped)
            np.bitwise_or(max_ns, mask, out=ticks)
            np.minimum(ns, ticks, out=ns)
            np.greater(ns, limits, out=over)
            ticks_in(ns, hz, ticks, rest)
            np.bitwise_or(ticks, mask, out=rest)
            if over.any():
                rest[over] = ALL
            np.subtract(at, host, out=ns)
            np.minimum(ns, rest, out=ns)
            np.copyto(signs, counted)
            np.bitwise_and(ns, mask, out=ns)
            np.copyto(signs, told)
            np.bitwise_and(ticks, mask, out=ticks)
            np.bitwise_or(ns, ticks, out=added)
            np.subtract(at, guest, out=offsets)
            np.subtract(offsets, added, out=offsets)


def recompute_in_integers(
    now: int,
    guest: list[int],
    host: list[int],
    policy: list[int],
    elapsed_ns: list[int],
    max_ns: list[int],
    frequency_hz: list[int],
) -> tuple[list[int], list[int]]:
    """The same in Python's integers: offsets, and ticks that are added."""
    offsets, added = [], []
    for count, then, kind, elapsed, most, hz in zip(guest, host, policy, elapsed_ns, max_ns, frequency_hz, strict=True):
        if kind == NOTHING:
            ticks = 0
        elif kind == ELAPSED:
            ticks = elapsed * hz // 10**9
        elif kind == ELAPSED_UP_TO:
            ticks = min(elapsed, most) * hz // 10**9
        else:
            ticks = now - then
            if ticks < 0:
                raise ValueError("the host's counter went backwards")
            if kind == COUNTED_UP_TO:
                ticks = min(ticks, most * hz // 10**9)
        added.append(ticks & 2**64 - 1)
        offsets.append(now - count - ticks & 2**64 - 1)
    return offsets, added


Crc: TypeAlias = Callable[[bytes], int]


def copied(data: bytes, crc: Crc) -> tuple[bytearray, int]:
    """A copy of bytes, and their checksum."""
    return bytearray(data), crc(data)


def pickled(columns: Mapping[str, NDArray[np.generic]], crc: Crc) -> tuple[bytes, int]:
    """Columns as bytes, and their checksum."""
    data = pickle.dumps(columns, protocol=5)
    return data, crc(data)


def unpickled(data: bytes, checksum: int, crc: Crc) -> dict[str, NDArray[np.generic]]:
    """The columns of those bytes; ValueError where the checksum isn't theirs."""
    if crc(data) != checksum:
        raise ValueError("the checksum isn't that of these bytes")
    columns: dict[str, NDArray[np.generic]] = pickle.loads(data)
    return columns
