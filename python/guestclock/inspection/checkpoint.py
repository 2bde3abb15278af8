"""Contents of a checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypedDict

from guestclock._core import _is_unknown_host
from guestclock.inspection.timers import TimerRecord, skew_ticks, timers
from guestclock.inspection.words import instant

if TYPE_CHECKING:
    from guestclock._core import Checkpoint
    from guestclock.snapshots import Snapshot


class VmRecord(TypedDict):
    """One VM of a checkpoint. Ticks are of `frequency_hz`."""

    name: str
    """Empty where nobody named the VM."""
    frequency_hz: int
    vcpus: int
    nested: bool
    """True if the guest has EL2."""
    opted_in: bool
    cntvct: int
    cntpct: int
    skew_ticks: int
    """Lead of the virtual counter over the physical one."""
    virtual_width_ticks: int
    """Ticks by which the virtual counter may be off."""
    physical_width_ticks: int
    """The same of the physical counter."""
    stopped_before_ticks: int | None
    """Ticks of the host's counter from the last vCPU's exit to the checkpoint, where the VMM knew them."""
    backlog: dict[str, int] | None
    """Fields of `Backlog`."""
    reading: dict[str, int] | None
    """Fields of `Reading`: a count and the wall clock of an instant other than the registers'."""
    interrupts: dict[str, int] | None
    """Interrupt ids by the timers' names."""
    vmclock_address: int | None
    stolen_time: list[int | None]
    """Addresses of the vCPUs' stolen-time records."""
    cntvoff: list[int] | None
    timers: list[TimerRecord]
    next_deadline: TimerRecord | None
    """The armed timer that is due first. Overdue timers come before it."""
    other_registers: dict[str, list[int]]
    """Timer registers that this version doesn't know, by their KVM ids in hexadecimal."""


class Recognised(TypedDict):
    """Result of recognising another VMM's file."""

    format: str
    """Fields of `Snapshot`."""
    ids: str | None
    left_out: list[str]
    """In hexadecimal."""
    lacks: list[dict[str, Any]]
    """Fields of each `Lack`."""


class Inspection(TypedDict):
    """`guestclock.inspect/1`."""

    schema: str
    snapshot: Recognised | None
    """None of a checkpoint's own file."""
    size_bytes: int
    stamp: dict[str, Any] | None
    """The fields of `Stamp`, and `realtime` in words; of the two ids only whether they are there. None where the host
    isn't known."""
    vcpus: int
    """Number of all VMs' vCPUs."""
    vms: list[VmRecord]
    lacks: list[dict[str, Any]]
    """Evidence that the stamp lacks and a later `Advance` elsewhere would go by: code and text."""
    unknown: list[str]
    """Keys of the file that this version doesn't know."""


def inspect(checkpoint: Checkpoint, snapshot: Snapshot | None = None) -> Inspection:
    """Return all that a checkpoint says, and what follows from it. `snapshot` is another VMM's that it was made of."""
    vms = [_vm(vm) for vm in checkpoint]
    return {
        "schema": "guestclock.inspect/1",
        "snapshot": None if snapshot is None else _recognised(snapshot),
        "size_bytes": checkpoint.nbytes,
        "stamp": stamp(checkpoint),
        "vcpus": sum(vm["vcpus"] for vm in vms),
        "vms": vms,
        "lacks": [{"code": lack.code, "text": lack.text} for lack in checkpoint.lacks],
        "unknown": checkpoint.unknown,
    }


def _recognised(snapshot: Snapshot) -> Recognised:
    return {
        "format": snapshot.format,
        "ids": snapshot.ids,
        "left_out": [f"{reg:#018x}" for reg in snapshot.left_out],
        "lacks": [{"name": lack.name, "text": lack.text, "needed": lack.needed} for lack in snapshot.lacks],
    }


def _vm(vm: Checkpoint) -> VmRecord:
    records = timers(vm)
    armed = [record for record in records if record["state"] == "armed"]
    cntvoff, interrupts, stopped_at = vm.cntvoff, vm.interrupts, vm.stopped_at
    return {
        "name": vm.name,
        "frequency_hz": vm.frequency_hz,
        "vcpus": vm.vcpus,
        "nested": cntvoff is not None,
        "opted_in": vm.opted_in,
        "cntvct": vm.cntvct,
        "cntpct": vm.cntpct,
        "skew_ticks": skew_ticks(vm),
        "virtual_width_ticks": vm.virtual_width_ticks,
        "physical_width_ticks": vm.physical_width_ticks,
        "stopped_before_ticks": None if stopped_at is None else (vm.stamp.count - stopped_at) % 2**64,
        "backlog": None if vm.backlog is None else asdict(vm.backlog),
        "reading": None if vm.reading is None else asdict(vm.reading),
        "interrupts": None if interrupts is None else {timer.name.lower(): irq for timer, irq in interrupts.items()},
        "vmclock_address": vm.vmclock_address,
        "stolen_time": vm.stolen_time,
        "cntvoff": None if cntvoff is None else cntvoff.tolist(),
        "timers": records,
        "next_deadline": min(armed, key=lambda record: record["remaining_ticks"], default=None),
        "other_registers": other_registers(vm),
    }


def other_registers(checkpoint: Checkpoint) -> dict[str, list[int]]:
    """Return the timer registers that this version doesn't know, by their KVM ids in hexadecimal."""
    return {name: column.tolist() for name, column in checkpoint.vcpu_columns().items() if name.startswith("0x")}


def stamp(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the checkpoint's instant without the ids that name the host; None where it isn't known."""
    taken = checkpoint.stamp
    if _is_unknown_host(taken):
        return None
    ids = {name: getattr(taken, name) is not None for name in ("machine_id", "boot_id")}
    return asdict(taken) | ids | {"realtime": instant(taken.realtime_ns)}
