"""What is in a checkpoint of a set of VMs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from guestclock.inspection.checkpoint import host

if TYPE_CHECKING:
    from guestclock._core import CheckpointSet


class GroupRecord(TypedDict):
    """VMs that are alike in frequency and timers."""

    frequency_hz: int
    vms: int
    vcpus: int
    timers: list[str]
    nested: bool
    """Whether the guests have EL2."""
    opted_in: int
    """How many of the VMs owned their counter offset."""
    with_backlog: int
    """How many are owed time that is being paid back."""


class SetInspection(TypedDict):
    """`guestclock.inspect-set/1`."""

    schema: str
    size_bytes: int
    vms: int
    vcpus: int
    host: dict[str, Any] | None
    """The one instant, as in `Inspection`."""
    stopped_before_ticks: int | None
    """From the exit of the last vCPU of all to the checkpoint, in ticks of the host's counter."""
    groups: list[GroupRecord]
    unknown: list[str]
    """Keys of the file that this version doesn't know."""


def inspect_set(checkpoints: CheckpointSet) -> SetInspection:
    """Return what a set has in common, and what its groups of VMs are; `inspect(checkpoints[n])` has one VM."""
    said: dict[str, Any] = checkpoints.to_dict()
    stopped_at = checkpoints.stopped_at
    return {
        "schema": "guestclock.inspect-set/1",
        "size_bytes": checkpoints.nbytes,
        "vms": len(checkpoints),
        "vcpus": checkpoints.vcpus,
        "host": host(checkpoints),
        "stopped_before_ticks": None if stopped_at is None else (checkpoints.host.count - stopped_at) % 2**64,
        "groups": [_group(group) for group in said["groups"]],
        "unknown": said["unknown"],
    }


def _group(said: dict[str, Any]) -> GroupRecord:
    return {
        "frequency_hz": said["frequency_hz"],
        "vms": len(said["names"]),
        "vcpus": sum(said["vcpus"]),
        "timers": list(said["timers"]),
        "nested": said["cntvoff"] is not None,
        "opted_in": sum(said["opted_in"]),
        "with_backlog": len(said["backlogs"]),
    }
