"""Each batch operation on so many elements, and the same by numpy: for the table, for asv, and for the plot.

Both are seen to come to the same before anything is timed. Time goes on with every call.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import numpy as np

import baselines
from benchmarks import fleet, saved
from guestclock import Fleet
from measure import Side, Sides


def evaluation(vcpus: int, timers: Literal[2, 4]) -> Sides:
    """Every ISTATUS and line, and each vCPU's next deadline. A hundredth of the timers is armed again between."""
    bank, columns = _fleets(vcpus, timers)
    return Sides(
        Side("bank.evaluate()", bank.evaluate, between=bank.rearm),
        Side("numpy", columns.evaluate, between=columns.rearm),
    )


def turn(vcpus: int, timers: Literal[2, 4]) -> Sides:
    """The same, and arming is timed too."""
    bank, columns = _fleets(vcpus, timers)
    return Sides(Side("the same, and .set_timers()", bank.whole_turn), Side("numpy, armed too", columns.whole_turn))


def _fleets(vcpus: int, timers: Literal[2, 4]) -> tuple[fleet.InBank, fleet.InNumpy]:
    some = fleet.Fleet(vcpus, timers)
    bank, columns = fleet.InBank(some), fleet.InNumpy(some)
    fleet.agreed(bank, columns)
    return bank, columns


def counts(vcpus: int) -> Sides:
    """Every vCPU's virtual counter."""
    some, ticks = fleet.Fleet(vcpus, 2), itertools.count(fleet.BEGIN)
    cntvct, read = some.bank.cntvct, baselines.Counters(some.offsets[0]).read
    out, expected = np.empty(vcpus, np.uint64), np.empty(vcpus, np.uint64)
    cntvct(fleet.BEGIN, out=out)
    read(fleet.BEGIN, expected)
    np.testing.assert_array_equal(out, expected, strict=True)
    return Sides(
        Side("bank.cntvct()", lambda: cntvct(next(ticks), out=out)),
        Side("np.subtract", lambda: read(next(ticks), out)),
    )


def recomputation(vms: int) -> Sides:
    """The offsets of restored VMs."""
    columns, ticks = saved.Columns(vms), itertools.count(saved.NOW)
    rows = baselines.Saved(*columns.all())
    for now in (saved.NOW, saved.NOW + 12345):
        offsets, added = columns.recompute(now)
        rows.recompute(now)
        np.testing.assert_array_equal(offsets, rows.offsets, strict=True)
        np.testing.assert_array_equal(added, rows.added, strict=True)
    return Sides(
        Side("recompute_offsets()", lambda: columns.recompute(next(ticks))),
        Side("numpy", lambda: rows.recompute(next(ticks))),
    )


def recomputation_in_integers(vms: int) -> Sides:
    """The same beside Python's integers."""
    columns, ticks = saved.Columns(vms), itertools.count(saved.NOW)
    lists = [column.tolist() for column in columns.all()]
    offsets, added = columns.recompute(saved.NOW)
    if (offsets.tolist(), added.tolist()) != baselines.recompute_in_integers(saved.NOW, *lists):
        raise AssertionError("the integers come to different offsets")
    return Sides(
        Side("recompute_offsets()", lambda: columns.recompute(next(ticks))),
        Side("Python's integers", lambda: baselines.recompute_in_integers(next(ticks), *lists)),
    )


def conversion(rows: int, *, to_ns: bool) -> Sides:
    """Ticks to nanoseconds, or back, of five frequencies."""
    import guestclock

    columns = saved.Columns(rows)
    numpy, hz, out = baselines.Conversion(columns.frequency_hz), columns.frequency_hz, np.empty(rows, np.uint64)
    ours = guestclock.model.ticks_to_ns if to_ns else guestclock.model.ns_to_ticks
    theirs = numpy.ticks_to_ns if to_ns else numpy.ns_to_ticks
    expected = np.empty(rows, np.uint64)
    theirs(columns.guest, expected)
    np.testing.assert_array_equal(ours(columns.guest, hz), expected, strict=True)
    return Sides(
        Side(ours.__name__, lambda: ours(columns.guest, hz, out=out)),
        Side("numpy", lambda: theirs(columns.guest, out)),
    )


def crc() -> baselines.Crc:
    """The very routine that a checkpoint's checksum is made by."""
    from guestclock._core import _crc32c

    return _crc32c


def encoding(vcpus: int, *, beside_copy: bool = False) -> Sides:
    """Checkpoints of VMs with two vCPUs each as bytes: beside pickle of the columns, or a copy; and a checksum."""
    some, checksum = fleet.Fleet(vcpus, 2, in_a_vm=2), crc()
    checkpoints, columns = Fleet(some.bank).checkpoint(now=fleet.BEGIN), some.plain()
    data = checkpoints.to_bytes()
    sibling = Side("pickle, CRC", lambda: baselines.pickled(columns, checksum))
    if beside_copy:
        sibling = Side("a copy, CRC", lambda: baselines.copied(data, checksum))
    return Sides(Side("checkpoints.to_bytes()", checkpoints.to_bytes), sibling)


def decoding(vcpus: int, *, beside_copy: bool = False) -> Sides:
    """The same back."""
    some, checksum = fleet.Fleet(vcpus, 2, in_a_vm=2), crc()
    checkpoints, columns = Fleet(some.bank).checkpoint(now=fleet.BEGIN), some.plain()
    data, decode = checkpoints.to_bytes(), type(checkpoints).from_bytes
    if decode(data).to_bytes() != data:
        raise AssertionError("checkpoints aren't what their bytes are")
    pickled, its_checksum = baselines.pickled(columns, checksum)
    for name, column in baselines.unpickled(pickled, its_checksum, checksum).items():
        np.testing.assert_array_equal(column, columns[name], strict=True)
    sibling = Side("pickle, CRC", lambda: baselines.unpickled(pickled, its_checksum, checksum))
    if beside_copy:
        sibling = Side("a copy, CRC", lambda: baselines.copied(data, checksum))
    return Sides(Side("from_bytes()", lambda: decode(data)), sibling)


OPERATIONS: dict[str, Callable[[int], Sides]] = {
    "counters": counts,
    "evaluate + next deadlines, 2 timers": lambda n: evaluation(n, 2),
    "evaluate + next deadlines, 4 timers": lambda n: evaluation(n, 4),
    "recompute offsets": recomputation,
    "ticks to ns": lambda n: conversion(n, to_ns=True),
    "ns to ticks": lambda n: conversion(n, to_ns=False),
    "checkpoints to bytes": encoding,
    "checkpoints from bytes": decoding,
}
"""Batch operations by name. Each takes a number of elements, and returns the two sides of a row."""
