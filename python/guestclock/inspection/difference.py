"""Differences of two checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from guestclock.inspection.elapsed import Elapsed, elapsed
from guestclock.inspection.words import signed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestclock._core import Checkpoint

_IDS = {"stamp.machine_id", "stamp.boot_id"}
_COUNTS = {"stamp.count", "timeline", "physical_displacement_ticks", "reading_count", "stopped_at_count"}


class Entry(TypedDict):
    """One value that isn't the same."""

    what: str
    """Name of the value, as `Checkpoint.columns` and `vcpu_columns` have it: "vtimer_cval[0]" is the first vCPU's."""
    one: Any
    other: Any
    """Their values, None where there is none. Of an id that names a host only that there is one."""
    difference: int | None
    """`other` - `one` of two integers; of two counts modulo 2^64, the nearer way."""


class VmDifference(TypedDict):
    """One VM in both checkpoints."""

    name: str
    differences: list[Entry]
    elapsed: Elapsed


class Difference(TypedDict):
    """`guestclock.diff/1`."""

    schema: str
    equal: bool
    differences: list[Entry]
    """Differences of the whole: the stamps, and keys that this version doesn't know."""
    vms: list[VmDifference]
    only_in_one: list[str]
    """Names of the VMs that are in one checkpoint alone."""
    only_in_other: list[str]


def diff(one: Checkpoint, other: Checkpoint) -> Difference:
    """Return every value that differs, VM by VM, and what passed between the two checkpoints.

    VMs are matched by their names; two checkpoints of one VM each are compared whatever the names.
    """
    ones, others = ({vm.name: vm for vm in checkpoint} for checkpoint in (one, other))
    if len(ones) == len(others) == 1:
        others = dict(zip(ones, others.values(), strict=True))
    whole = _entries(_stamp(one), _stamp(other))
    vms: list[VmDifference] = [
        {
            "name": name,
            "differences": _entries(_values(vm), _values(others[name])),
            "elapsed": elapsed(vm, others[name]),
        }
        for name, vm in ones.items()
        if name in others
    ]
    only_in_one, only_in_other = ([name for name in a if name not in b] for a, b in ((ones, others), (others, ones)))
    equal = one == other
    found = whole or only_in_one or only_in_other or any(vm["differences"] for vm in vms)
    if not equal and not found:
        # A checkpoint has no more of them than the names.
        whole.append({"what": "the value of an unknown key", "one": None, "other": None, "difference": None})
    return {
        "schema": "guestclock.diff/1",
        "equal": equal,
        "differences": whole,
        "vms": vms,
        "only_in_one": only_in_one,
        "only_in_other": only_in_other,
    }


def _stamp(checkpoint: Checkpoint) -> dict[str, Any]:
    said: Any = checkpoint.to_dict()["stamp"]
    sync = said.pop("sync") or {}
    stamp = {f"stamp.{name}": value for name, value in said.items()}
    stamp |= {f"stamp.sync.{name}": value for name, value in sync.items()}
    return stamp | {f"the key {key!r}": True for key in checkpoint.unknown}


def _values(vm: Checkpoint) -> dict[str, Any]:
    values: dict[str, Any] = {name: column.tolist()[0] for name, column in vm.columns().items()}
    columns = {name: column.tolist() for name, column in vm.vcpu_columns().items() if name not in {"name", "vcpu"}}
    return values | {f"{name}[{vcpu}]": value for name, rows in columns.items() for vcpu, value in enumerate(rows)}


def _entries(ones: Mapping[str, Any], others: Mapping[str, Any]) -> list[Entry]:
    names = list(ones) + [name for name in others if name not in ones]
    return [_entry(name, ones.get(name), others.get(name)) for name in names if ones.get(name) != others.get(name)]


def _entry(name: str, one: Any, other: Any) -> Entry:
    difference = None
    if type(one) is type(other) is int:
        difference = signed(other - one) if name in _COUNTS else other - one
    if name in _IDS:
        one, other = (None if value is None else "another" for value in (one, other))
    return {"what": name, "one": one, "other": other, "difference": difference}
