"""The numpy baselines of benches/ are right, so that a measurement against them means something."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from numpy.typing import NDArray

import baselines

LAST = 2**64 - 1
EDGES = [0, 1, 2, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**63 + 1, LAST - 2, LAST - 1, LAST]
HZ = [1, 7, 1_000_000, 24_000_000, 25_000_000, 62_500_000, 999_999_937, 10**9, 2**34]


Row = tuple[int, int, int, int, int, int]


def words(values: Iterable[int] | Iterable[Iterable[int]]) -> NDArray[np.uint64]:
    return np.array(list(values), np.uint64)


@pytest.fixture(params=["as it is", "in blocks of 5"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in blocks of 5":
        for kind in (baselines.Timers, baselines.Conversion, baselines.Saved):
            monkeypatch.setattr(kind, "BLOCK", 5)


@pytest.mark.parametrize("now", EDGES)
def test_counts(now: int) -> None:
    out = np.empty(len(EDGES), np.uint64)
    baselines.Counters(words(EDGES)).read(now, out)
    assert out.tolist() == [(now - offset) % 2**64 for offset in EDGES]


def deadline(now: int, offset: int, cval: int, ctl: int) -> int:
    """The first host count from `now` on at which the line is high, or that there is none."""
    if ctl & 3 != 1:
        return LAST
    return min(now + max(cval - (now - offset) % 2**64, 0), LAST - 1)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("timers", [2, 4])
@pytest.mark.parametrize("now", EDGES)
def test_timers(now: int, timers: int) -> None:
    rows = list(itertools.product(EDGES, EDGES, range(8)))
    chance = np.random.default_rng(1)
    # Every combination at each timer; among the others, each time in another order.
    offsets = words(zip(*(rows[n][:2] for n in chance.permutation(len(rows))), strict=True))
    of_timer = [[rows[n] for n in chance.permutation(len(rows))] for _ in range(timers)]
    cval = words([row[1] for row in one] for one in of_timer)
    ctl = np.array([[row[2] for row in one] for one in of_timer], np.uint8)
    columns = baselines.Timers(offsets, np.zeros_like(cval), np.zeros_like(ctl))
    for timer in range(timers):
        columns.arm(timer, np.arange(len(rows)), cval[timer], ctl[timer])
    columns.evaluate(now)

    def everywhere(law: Callable[[int, int, int], int]) -> list[list[int]]:
        return [
            [law(int(offset), int(value), int(control)) for offset, value, control in zip(*one, strict=True)]
            for one in zip([offsets[0]] + [offsets[1]] * (timers - 1), cval, ctl, strict=True)
        ]

    met = everywhere(lambda offset, cval, _: (now - offset) % 2**64 >= cval)
    lines = everywhere(lambda offset, cval, ctl: ctl & 3 == 1 and (now - offset) % 2**64 >= cval)
    deadlines = everywhere(lambda offset, cval, ctl: deadline(now, offset, cval, ctl))
    assert columns.istatus.tolist() == met
    assert columns.line.tolist() == lines
    assert columns.deadlines.tolist() == [min(one) for one in zip(*deadlines, strict=True)]
    assert [str(out.dtype) for out in (columns.istatus, columns.line, columns.deadlines)] == ["bool", "bool", "uint64"]


@pytest.mark.usefixtures("block")
def test_conversion() -> None:
    rows = list(itertools.product([*EDGES, *(n * 10**9 + rest for n in (1, 18) for rest in (-1, 0, 1))], HZ))
    # What is just in range and what is just out of it, both ways.
    rows += [((LAST * hz // 10**9) + more, hz) for hz in HZ for more in range(3) if LAST * hz // 10**9 + more <= LAST]
    rows += [((LAST * 10**9 // hz) + more, hz) for hz in HZ for more in range(3) if LAST * 10**9 // hz + more <= LAST]
    rows = [rows[n] for n in np.random.default_rng(2).permutation(len(rows))]
    values, hz = words(row[0] for row in rows), words(row[1] for row in rows)
    conversion, out = baselines.Conversion(hz), np.empty(len(rows), np.uint64)
    conversion.ticks_to_ns(values, out)
    assert out.tolist() == [min(ticks * 10**9 // hz, LAST) for ticks, hz in rows]
    conversion.ns_to_ticks(values, out)
    assert out.tolist() == [min(ns * hz // 10**9, LAST) for ns, hz in rows]


@pytest.mark.parametrize("hz", [0, 2**34 + 1])
def test_frequencies_that_would_not_be_exact_are_refused(hz: int) -> None:
    with pytest.raises(ValueError, match="exact for"):
        baselines.Conversion(words([hz]))


def expected(now: int, guest: int, host: int, policy: int, elapsed_ns: int, max_ns: int, hz: int) -> tuple[int, int]:
    """The offset and the ticks given, by the words of docs/restore.md."""
    ticks = {
        baselines.NOTHING: 0,
        baselines.COUNTED: now - host,
        baselines.COUNTED_UP_TO: min(now - host, max_ns * hz // 10**9),
        baselines.ELAPSED: elapsed_ns * hz // 10**9,
        baselines.ELAPSED_UP_TO: min(elapsed_ns, max_ns) * hz // 10**9,
    }[policy]
    return (now - guest - ticks) % 2**64, ticks % 2**64


def saved_rows(now: int) -> list[Row]:
    chance = np.random.default_rng(3)
    some = list(itertools.product(range(5), EDGES, EDGES, HZ))
    guests, hosts = chance.choice(words(EDGES), len(some)).tolist(), chance.choice(words(EDGES), len(some)).tolist()
    rows = [
        (guest, host if policy not in (baselines.COUNTED, baselines.COUNTED_UP_TO) else min(host, now), policy, *rest)
        for guest, host, (policy, *rest) in zip(guests, hosts, some, strict=True)
    ]
    return [rows[n] for n in chance.permutation(len(rows))]


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("now", EDGES)
def test_saved(now: int) -> None:
    rows = saved_rows(now)
    guest, host, policy, *rest = zip(*rows, strict=True)
    saved = baselines.Saved(words(guest), words(host), np.array(policy, np.uint8), *map(words, rest))
    saved.recompute(now)
    assert list(zip(saved.offsets.tolist(), saved.added.tolist(), strict=True)) == [expected(now, *row) for row in rows]
    assert [str(out.dtype) for out in (saved.offsets, saved.added)] == ["uint64", "uint64"]
    columns = (list(column) for column in zip(*rows, strict=True))
    assert baselines.recompute_in_integers(now, *columns) == (saved.offsets.tolist(), saved.added.tolist())


@pytest.mark.parametrize("policy", [baselines.COUNTED, baselines.COUNTED_UP_TO])
def test_a_counter_that_went_backwards_is_refused(policy: int) -> None:
    row = (0, 11, policy, 0, 0, 10**9)
    guest, host, policies, *rest = zip(*[(0, 0, 0, 0, 0, 1)] * 9, row, strict=True)
    saved = baselines.Saved(words(guest), words(host), np.array(policies, np.uint8), *map(words, rest))
    before = saved.offsets.copy()
    with pytest.raises(ValueError, match="backwards"):
        saved.recompute(10)
    assert saved.offsets.tolist() == before.tolist()
    with pytest.raises(ValueError, match="backwards"):
        baselines.recompute_in_integers(10, *([value] for value in row))
    saved.recompute(11)


def test_bytes() -> None:
    columns: dict[str, NDArray[np.generic]] = {"cval": words(EDGES), "ctl": np.arange(8, dtype=np.uint8)}
    data, checksum = baselines.pickled(columns, zlib.crc32)
    assert checksum == zlib.crc32(data)
    read = baselines.unpickled(data, checksum, zlib.crc32)
    for name, column in columns.items():
        np.testing.assert_array_equal(read[name], column, strict=True)
    with pytest.raises(ValueError, match="checksum"):
        baselines.unpickled(data, checksum ^ 1, zlib.crc32)
    assert baselines.copied(data, zlib.crc32) == (bytearray(data), checksum)
