"""What is in a checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypedDict

from guestclock._core import _is_unknown_host
from guestclock.inspection.timers import TimerRecord, skew_ticks, timers
from guestclock.inspection.words import instant, to_ns

if TYPE_CHECKING:
    from guestclock._core import Checkpoint, CheckpointSet


class Inspection(TypedDict):
    """`guestclock.inspect/1`. Ticks are of `frequency_hz`."""

    schema: str
    frequency_hz: int
    vcpus: int
    nested: bool
    """Whether the guest has EL2."""
    opted_in: bool
    cntvct: int
    cntpct: int
    skew_ticks: int
    """How far the virtual counter is ahead of the physical one."""
    width_ticks: int
    """How far either may be from the truth."""
    width_ns: int
    host: dict[str, Any] | None
    """The fields of `Stamp`, and `realtime` in words; of the two ids only whether they are there. None where
    the host isn't known."""
    stopped_before_ticks: int | None
    """From the last vCPU's exit to the checkpoint, where the VMM knew it."""
    cntvoff: list[int] | None
    timers: list[TimerRecord]
    next_deadline: TimerRecord | None
    """The armed timer that is due first. Those that are overdue come before it."""
    other_regs: dict[str, list[int]]
    """Timer registers that this version doesn't know, by their KVM ids in hexadecimal."""
    unknown: list[str]
    """Keys of the file that this version doesn't know."""


def inspect(checkpoint: Checkpoint) -> Inspection:
    """Return all that a checkpoint says, and what follows from it."""
    said: dict[str, Any] = checkpoint.to_dict()
    hz = checkpoint.frequency_hz
    records = timers(checkpoint)
    armed = [record for record in records if record["state"] == "armed"]
    stopped_at = checkpoint.stopped_at
    return {
        "schema": "guestclock.inspect/1",
        "frequency_hz": hz,
        "vcpus": checkpoint.vcpus,
        "nested": checkpoint.cntvoff is not None,
        "opted_in": checkpoint.opted_in,
        "cntvct": checkpoint.cntvct,
        "cntpct": checkpoint.cntpct,
        "skew_ticks": skew_ticks(checkpoint),
        "width_ticks": checkpoint.width_ticks,
        "width_ns": to_ns(checkpoint.width_ticks, hz),
        "host": host(checkpoint),
        "stopped_before_ticks": None if stopped_at is None else (checkpoint.host.count - stopped_at) % 2**64,
        "cntvoff": said["cntvoff"],
        "timers": records,
        "next_deadline": min(armed, key=lambda record: record["remaining_ticks"], default=None),
        "other_regs": {f"{reg:#018x}": values for reg, values in said["other_regs"].items()},
        "unknown": said["unknown"],
    }


def host(checkpoint: Checkpoint | CheckpointSet) -> dict[str, Any] | None:
    """Return the checkpoint's instant without the ids that name the host; None where it isn't known."""
    stamp = checkpoint.host
    if _is_unknown_host(stamp):
        return None
    ids = {name: getattr(stamp, name) is not None for name in ("machine_id", "boot_id")}
    return asdict(stamp) | ids | {"realtime": instant(stamp.realtime_ns)}
