"""Plain JSON of registers: guestclock's own form, which any VMM's registers can be brought into (docs/snapshots.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from guestclock._core import _is_unknown_host
from guestclock.errors import Refused
from guestclock.registers import Reg
from guestclock.snapshots.numbers import number, register_id, timers
from guestclock.snapshots.snapshot import Snapshot
from guestclock.stop import hidden_ticks
from guestclock.types import Reading

if TYPE_CHECKING:
    from guestclock._core import Checkpoint

NAME: Final = 'plain JSON of registers ("format": "guestclock.registers/1")'
FORMAT: Final = "guestclock.registers/1"
_KEYS: Final = frozenset(
    {"format", "name", "ids", "frequency_hz", "vcpus", "cntvct", "cntpct", "realtime_ns", "reading", "width_ticks"}
)
_COUNTS: Final = frozenset({Reg.TIMER_CNT, Reg.PTIMER_CNT})


def recognises(document: dict[str, Any]) -> bool:
    """Return whether the document says that it is one."""
    return document.get("format") == FORMAT


def parse(document: dict[str, Any]) -> Snapshot:
    """Return the snapshot. ValueError and the like where something has another shape, or isn't known."""
    if document.keys() - _KEYS:
        raise ValueError("a key that isn't known")
    ids = document.get("ids")
    if ids not in {None, "kvm", "arm"}:
        raise ValueError("ids")
    name = document.get("name", "")
    if not isinstance(name, str):
        raise TypeError("name")
    read = document.get("reading")
    return Snapshot(
        format="registers",
        registers=[_vcpu(vcpu) for vcpu in document["vcpus"]],
        ids=ids,
        frequency_hz=_known(document.get("frequency_hz"), most=2**32 - 1),
        cntvct=_known(document.get("cntvct")),
        cntpct=_known(document.get("cntpct")),
        reading=None if read is None else _reading(read),
        realtime_ns=_known(document.get("realtime_ns"), most=2**63 - 1),
        width_ticks=number(document.get("width_ticks", 0)),
        name=name,
    )


def export(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the document of a checkpoint of one VM: its counts are those from which its guest goes on.

    Refused for a guest that has a backlog.
    """
    if checkpoint.backlog is not None:
        raise Refused(
            f"the guest has a backlog of {checkpoint.backlog.remaining_ticks} ticks, for which plain JSON of registers "
            "has no place: restore the checkpoint into a ModelVm by Advance(), which gives it all of it at once, or by "
            "Advance(0), which forgets it, and export a checkpoint of that"
        )
    hidden = hidden_ticks(checkpoint)
    registers = [
        {reg: (value - hidden) % 2**64 if reg in _COUNTS else value for reg, value in each.items()}
        for each in checkpoint.to_one_regs(physical_count=True)
    ]
    document: dict[str, Any] = {
        "format": FORMAT,
        "name": checkpoint.name,
        "ids": "kvm",
        "frequency_hz": checkpoint.frequency_hz,
        "width_ticks": max(checkpoint.virtual_width_ticks, checkpoint.physical_width_ticks),
        "vcpus": [{f"{reg:#018x}": value for reg, value in each.items()} for each in registers],
    }
    if not any(Reg.PTIMER_CNT in each for each in registers):
        document["cntpct"] = (checkpoint.cntpct - hidden) % 2**64
    stamp, reading = checkpoint.stamp, checkpoint.reading
    if reading is None and not _is_unknown_host(stamp):
        # Time passes from the instant on, and not from an earlier stop.
        reading = Reading(checkpoint.cntvct, stamp.realtime_ns, stamp.width_ns)
    if reading is not None:
        document["reading"] = {"count": reading.count, "realtime_ns": reading.realtime_ns, "width_ns": reading.width_ns}
    return document


def _vcpu(vcpu: object) -> dict[int, int]:
    """Return a vCPU's timer registers. Ids below 2**16 are encodings."""
    pairs: Any = vcpu.items() if isinstance(vcpu, dict) else vcpu
    found = []
    for reg, value in pairs:
        reg_id = number(reg)
        whole = register_id(reg_id) if reg_id < 1 << 16 else reg_id
        # Other registers' values may be of 128 bits and more: only the timers' are looked at.
        found += [(timer, number(value)) for timer in timers([(whole, 0)])]
    return timers(found)


def _known(value: object, most: int = 2**64 - 1) -> int | None:
    return None if value is None else number(value, most)


def _reading(value: dict[str, Any]) -> Reading:
    if value.keys() - {"count", "realtime_ns", "width_ns"}:
        raise ValueError("a key of the reading that isn't known")
    return Reading(number(value["count"]), number(value["realtime_ns"], 2**63 - 1), number(value.get("width_ns", 0)))
