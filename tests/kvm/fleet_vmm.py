"""A VMM with many VMs on KVM: one process saves them into one file, and another restores them, all by their names.

python tests/kvm/fleet_vmm.py save DIRECTORY
python tests/kvm/fleet_vmm.py restore DIRECTORY OUT freeze

Each VM is that of examples/kvm_vmm.py. They run one after the other, so each has its own stop.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from guestclock import Advance, Checkpoint, Fleet, Freeze
from guestclock.payload import image
from kvm_vmm import DOORBELL, GIC_DISTRIBUTOR, GIC_REDISTRIBUTORS, PC, RAM, ROUND, VCPUS, Vmm

VMS = 32
BY_VALUE = ("vm-5", "vm-6")
"""VMs that never opt in."""
THREADS = 4
ROUNDS = 2
MAX_NS = 100_000_000
POLICIES: Final[dict[str, Freeze | Advance]] = {
    "freeze": Freeze(),
    "advance": Advance(),
    "capped": Advance(max_ns=MAX_NS),
}
PLANTED = "vm-3"
FAULT_TICKS = 62_500_000


def boot(vmm: Vmm) -> None:
    """As `Vmm.boot` does, without opting in."""
    guest = image(vcpus=VCPUS, samples=ROUND, doorbell=DOORBELL, gicd=GIC_DISTRIBUTOR, gicr=GIC_REDISTRIBUTORS)
    vmm.machine.ram[: len(guest)] = guest
    for vcpu in range(VCPUS):
        vmm.machine.set_one_reg(vcpu, PC, RAM)


def save(directory: Path) -> None:
    """Boots the guests, lets each run, and saves them all at one instant."""
    vmms = {f"vm-{number}": Vmm() for number in range(VMS)}
    for name, vmm in vmms.items():
        if name in BY_VALUE:
            boot(vmm)
        else:
            vmm.boot()
        vmm.run(ROUNDS)
    fleet = Fleet({name: vmm.vm for name, vmm in vmms.items()})
    checkpoint = fleet.checkpoint(stopped_at={name: vmm.stopped_at for name, vmm in vmms.items()}, threads=THREADS)
    checkpoint.save(directory / "host.time")
    state = {name: saved(vmm, directory / f"{name}.memory") for name, vmm in vmms.items()}
    (directory / "host.json").write_text(json.dumps(state))


def saved(vmm: Vmm, memory: Path) -> dict[str, Any]:
    """All that a VM's restore needs besides its time."""
    memory.write_bytes(vmm.machine.ram)
    return {
        "registers": [vmm.registers(vcpu) for vcpu in range(VCPUS)],
        "interrupts": [vmm.interrupts(vcpu) for vcpu in range(VCPUS)],
        "samples": vmm.samples,
        "stopped_at": vmm.stopped_at,
    }


def restore(directory: Path, out: Path, word: str) -> None:
    """Restores the guests, lets each run on, and writes down what its host and it saw. `planted` is a wrong restore."""
    state = json.loads((directory / "host.json").read_text())
    checkpoint = Checkpoint.load(directory / "host.time")
    only = ["vm-4", PLANTED] if word == "planted" else list(state)
    policy = POLICIES.get(word, Freeze())
    vmms = {name: Vmm() for name in only}
    fleet = Fleet({name: vmm.vm for name, vmm in vmms.items()})
    with fleet.restoring(checkpoint, policy, only=only, threads=THREADS) as opened:
        for name, vmm in vmms.items():
            vmm.machine.ram[:] = (directory / f"{name}.memory").read_bytes()
            for vcpu in range(VCPUS):
                vmm.set_registers(vcpu, state[name]["registers"][vcpu])
                vmm.interrupts(vcpu, state[name]["interrupts"][vcpu])
        opened.apply()
        first = next(iter(vmms.values()))
        before = first.host_ticks()
        # Once all on one instant, else each on its own.
        reports = opened.release(at=first.vm.counter.stamp() if word == "freeze" else None)
        after = first.host_ticks()
    if word == "planted":
        vmms[PLANTED].machine.set_counter_offset(before - reports[PLANTED].cntvct - FAULT_TICKS)
    if word != "planted" and not fleet.verify(reports, threads=THREADS):
        sys.exit(str(fleet.verify(reports)))
    for name, vmm in vmms.items():
        vmm.run(ROUNDS)
        report = reports[name]
        pause = {
            "taken_at": [state[name]["stopped_at"]] * 2,
            "released_at": [before, after],
            "policy": policy.name,
            "max_ns": policy.max_ns if isinstance(policy, Advance) else None,
        }
        samples = zip(state[name]["samples"], vmm.samples, strict=True)
        host = {
            "frequency_hz": vmm.host_hz,
            "vcpus": [[view for view, _ in earlier + later] for earlier, later in samples],
            "pauses": [pause],
        }
        (out / f"{name}.memory").write_bytes(vmm.machine.ram)
        (out / f"{name}.json").write_text(json.dumps({"host": host, "report": report.to_dict()}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["save", directory]:
            save(Path(directory))
        case ["restore", directory, out, word]:
            restore(Path(directory), Path(out), word)
        case _:
            sys.exit(__doc__)
