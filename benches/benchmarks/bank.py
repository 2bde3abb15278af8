"""Batch operations on 1 to 65 536 elements; what only a bank does; and what a vCPU takes."""

from __future__ import annotations

import statistics

from measure import NotHere, of_this_build

from . import fleet
from .operations import OPERATIONS


class Batch:
    """Timers are armed again within what is timed: asv has no between."""

    params = (tuple(OPERATIONS), fleet.VCPUS)
    param_names = ("operation", "elements")

    def setup(self, operation: str, elements: int) -> None:
        try:
            with of_this_build():
                subject = OPERATIONS[operation](elements).subject
        except NotHere as reason:
            # By which asv knows that there is nothing to measure in this commit.
            raise NotImplementedError from reason
        self.call, self.between = subject.calls()

    def time_call(self, operation: str, elements: int) -> None:
        self.call()
        self.between()


class Bank:
    """A bank of four timers a vCPU, of which a hundredth is due at each turn."""

    params = fleet.VCPUS
    param_names = ("vcpus",)

    def setup(self, vcpus: int) -> None:
        from guestclock import Fleet

        self.side = fleet.InBank(fleet.Fleet(vcpus))
        self.bank = self.side.bank
        self.bank.changes(self.side.now)
        self.bank.expire(self.side.now)
        self.vm = int(self.side.fleet.vms[vcpus // 2 // fleet.IN_A_VM])
        self.vms = Fleet(self.bank)

    def time_turn_by_changes(self, vcpus: int) -> None:
        self.side.now += fleet.TICKS
        self.bank.changes(self.side.now)
        self.side.rearm()

    def time_turn_by_expire(self, vcpus: int) -> None:
        self.side.now += fleet.TICKS
        self.bank.expire(self.side.now)
        self.bank.next_deadline(self.side.now)
        self.side.rearm()

    def time_next_deadlines_of_vms(self, vcpus: int) -> None:
        self.bank.next_deadlines_of_vms(self.side.now)

    def time_add_and_remove(self, vcpus: int) -> None:
        self.bank.remove(self.bank.add(1, nested=True))

    def time_look_up(self, vcpus: int) -> None:
        self.bank.vm(self.vm)

    def time_pause_and_resume(self, vcpus: int) -> None:
        self.vms.pause().resume()

    def track_memory(self, vcpus: int) -> float:
        return self.bank.nbytes / vcpus

    def track_checkpoint_size(self, vcpus: int) -> float:
        return len(self.vms.checkpoint(now=self.side.now).to_bytes()) / vcpus

    def peakmem_bank(self, vcpus: int) -> None:
        self.side.whole_turn()

    track_memory.unit = track_checkpoint_size.unit = "bytes a vCPU"  # type: ignore[attr-defined]


class LiveUpdate:
    """Live update of VMs with two vCPUs each: pause, checkpoint, restore elsewhere, next deadlines.

    Both banks have their deadline queues in use.
    """

    params = fleet.VCPUS[1:]
    param_names = ("vcpus",)

    def setup(self, vcpus: int) -> None:
        self.update = fleet.LiveUpdate(vcpus)

    def time_update(self, vcpus: int) -> None:
        self.update.take()


class LiveUpdatePhases:
    """The phases of that update. KVM's ioctls would come on top: 2 a VM, and 4 a vCPU."""

    params = (fleet.VCPUS[1:], fleet.LiveUpdate.PHASES)
    param_names = ("vcpus", "phase")
    unit = "ns"

    def setup(self, vcpus: int, phase: str) -> None:
        self.update = fleet.LiveUpdate(vcpus)

    def track_phase(self, vcpus: int, phase: str) -> float:
        taken = [self.update.take() for _ in range(21)]
        return statistics.median(phases[fleet.LiveUpdate.PHASES.index(phase)] for phases in taken)
