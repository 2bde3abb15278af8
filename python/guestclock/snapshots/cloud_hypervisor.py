"""cloud-hypervisor's `state.json` of an arm64 VM on KVM, as versions 52 and 54 write it.

Each vCPU's state is JSON in a string; `sys_regs` in it are arrays of 16 bytes: an id and a value, little endian. The
VM's own state may have a `clock`: CNTVCT_EL0, the host's wall clock and CNTFRQ_EL0 of one instant, which isn't that of
the registers.
"""

from __future__ import annotations

import json
from typing import Any, Final

from guestclock.snapshots.numbers import number, timers
from guestclock.snapshots.snapshot import Snapshot
from guestclock.types import Reading

NAME: Final = "cloud-hypervisor's state.json of an arm64 VM on KVM"
_CPUS: Final = "cpu-manager"


def recognises(document: dict[str, Any]) -> bool:
    """Return whether the document has a snapshot of a CPU manager."""
    snapshots = document.get("snapshots")
    return isinstance(snapshots, dict) and _CPUS in snapshots


def parse(document: dict[str, Any]) -> Snapshot:
    """Return the snapshot. ValueError and the like where something has another shape."""
    vcpus = document["snapshots"][_CPUS]["snapshots"]
    # Numbers as the keys: each vCPU is there, or the VM isn't.
    registers = [_vcpu(vcpus[str(vcpu)]) for vcpu in range(len(vcpus))]
    clock = _state(document).get("clock")
    if clock is None:
        return Snapshot(format="cloud-hypervisor", registers=registers)
    return Snapshot(
        format="cloud-hypervisor",
        registers=registers,
        frequency_hz=number(clock["cntfrq"], 2**32 - 1),
        reading=Reading(number(clock["cntvct"]), number(clock["host_realtime_ns"], 2**63 - 1)),
    )


def _vcpu(snapshot: dict[str, Any]) -> dict[int, int]:
    pairs = [bytes(entry) for entry in _state(snapshot)["Kvm"]["sys_regs"]]
    if any(len(pair) != 16 for pair in pairs):
        raise ValueError("a register that isn't 16 bytes")
    return timers((int.from_bytes(pair[:8], "little"), int.from_bytes(pair[8:], "little")) for pair in pairs)


def _state(snapshot: dict[str, Any]) -> dict[str, Any]:
    """Return the state that a snapshot has as JSON in a string; nothing where it has none."""
    data = snapshot.get("snapshot_data")
    if data is None:
        return {}
    state = json.loads(data["state"])
    if not isinstance(state, dict):
        raise TypeError("a state that isn't an object")
    return state
