"""How two checkpoints differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from guestclock.inspection.elapsed import Elapsed, elapsed
from guestclock.inspection.words import signed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guestclock._core import Checkpoint

_IDS = {"host.machine_id", "host.boot_id"}
_COUNTS = {"cntvct", "cntpct", "host.count", "stopped_at"}


class Entry(TypedDict):
    """One value that isn't the same."""

    what: str
    """Where it stands, by the names of `Checkpoint.to_dict`: "timers.vtimer.cval[0]"."""
    one: Any
    other: Any
    """Their values, None where there is none. Of an id that names a host only that there is one."""
    difference: int | None
    """`other` - `one` of two integers; of two counts modulo 2^64, the nearer way."""


class Difference(TypedDict):
    """`guestclock.diff/1`."""

    schema: str
    equal: bool
    differences: list[Entry]
    elapsed: Elapsed


def diff(one: Checkpoint, other: Checkpoint) -> Difference:
    """Return every value that differs, and what passed between the two checkpoints."""
    ones, others = (dict(_flat("", checkpoint.to_dict())) for checkpoint in (one, other))
    names = list(ones) + [name for name in others if name not in ones]
    entries = [_entry(name, ones.get(name), others.get(name)) for name in names if ones.get(name) != others.get(name)]
    equal = one == other
    if not equal and not entries:
        # Checkpoint.to_dict has no more of them than the names.
        entries.append({"what": "the value of an unknown key", "one": None, "other": None, "difference": None})
    return {"schema": "guestclock.diff/1", "equal": equal, "differences": entries, "elapsed": elapsed(one, other)}


def _entry(name: str, one: Any, other: Any) -> Entry:
    difference = None
    if type(one) is type(other) is int:
        difference = signed(other - one) if name in _COUNTS else other - one
    if name in _IDS:
        one, other = (None if value is None else "another" for value in (one, other))
    return {"what": name, "one": one, "other": other, "difference": difference}


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every single value under its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            said = key if isinstance(key, str) else f"{key:#018x}"
            yield from _flat(f"{name}.{said}" if name else said, inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _flat(f"{name}[{index}]", inner)
    else:
        yield name, value
