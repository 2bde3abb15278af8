"""A guest's time line: its clock against its host's, from one checkpoint to the next."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypedDict

from guestclock.inspection.checkpoint import stamp
from guestclock.inspection.elapsed import Elapsed, elapsed
from guestclock.stop import cntvct_at_the_stop

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guestclock._core import Checkpoint


class Point(TypedDict):
    """A checkpoint."""

    name: str
    realtime_ns: int
    cntvct: int
    """At the stop, where it is known."""
    host_ns: int
    """Since the first checkpoint."""
    guest_ns: int
    """The same by the guest."""


class Stretch(Elapsed):
    """From one point to the next."""

    kind: Literal["ran", "paused", "gained", "went back"]
    """Ran: both clocks went alike, as far as they are known. Paused: the guest saw less than passed. Gained: more. Went
    back: the guest's clock reads less than before, as after the restore of an earlier checkpoint."""


class Timeline(TypedDict):
    """`guestclock.timeline/1`: one stretch fewer than points."""

    schema: str
    frequency_hz: int
    points: list[Point]
    stretches: list[Stretch]


def timeline(checkpoints: Iterable[tuple[str, Checkpoint]]) -> Timeline:
    """Return the time line of one guest through its checkpoints, each with a name; by the hosts' wall clocks in order.

    ValueError for fewer than two, for one whose host isn't known, and for two frequencies.
    """
    named = sorted(checkpoints, key=lambda item: item[1].stamp.realtime_ns)
    if len(named) < 2:
        msg = "a time line goes from one checkpoint to another: give at least two"
        raise ValueError(msg)
    hz = named[0][1].frequency_hz
    for name, checkpoint in named:
        if stamp(checkpoint) is None:
            msg = f"{name}: the host's clocks at the save aren't known, so it has no place on a time line"
            raise ValueError(msg)
        if checkpoint.frequency_hz != hz:
            msg = (
                f"{name} is of a guest at {checkpoint.frequency_hz} Hz, and {named[0][0]} at {hz} Hz: not of one guest"
            )
            raise ValueError(msg)
    stretches = [_stretch(one, other) for (_, one), (_, other) in pairwise(named)]
    host_ns = guest_ns = 0
    points: list[Point] = []
    for (name, checkpoint), stretch in zip(named, [None, *stretches], strict=True):
        if stretch is not None:
            host_ns += stretch["host_ns"] or 0
            guest_ns += stretch["guest_ns"] or 0
        points.append(
            {
                "name": name,
                "realtime_ns": checkpoint.stamp.realtime_ns,
                "cntvct": cntvct_at_the_stop(checkpoint),
                "host_ns": host_ns,
                "guest_ns": guest_ns,
            }
        )
    return {"schema": "guestclock.timeline/1", "frequency_hz": hz, "points": points, "stretches": stretches}


def _stretch(one: Checkpoint, other: Checkpoint) -> Stretch:
    passed = elapsed(one, other)
    hidden_ns, known_to_ns = passed["hidden_ns"] or 0, passed["known_to_ns"] or 0
    kind: Literal["ran", "paused", "gained", "went back"] = "ran"
    if passed["guest_ticks"] < 0:
        kind = "went back"
    elif hidden_ns > known_to_ns:
        kind = "paused"
    elif hidden_ns < -known_to_ns:
        kind = "gained"
    return {**passed, "kind": kind}
