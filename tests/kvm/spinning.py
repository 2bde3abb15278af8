"""A vCPU that is in its guest for as long as a block lasts, which it shows by counting."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from guestclock.payload import Command, Doorbell, Guest, image
from kvm_vmm import DOORBELL, KVM_EXIT_MMIO, PC, RAM, Exit, Machine

PATIENCE_S = 100
"""Far longer than a guest stands still on a busy, emulated machine."""


def loaded(machine: Machine, command: Command = Command.SPIN) -> Guest:
    """Put the payload into the machine's memory, every vCPU at its start, with that to do."""
    guest = image(vcpus=len(machine.vcpu_fds), doorbell=DOORBELL, gicd=0, psci="none", command=command)
    machine.ram[: len(guest)] = guest
    for vcpu in range(len(machine.vcpu_fds)):
        machine.set_one_reg(vcpu, PC, RAM)
    return Guest(machine.ram)


@contextmanager
def spinning(machine: Machine, vcpu: int = 0) -> Iterator[Guest]:
    """The vCPU runs, and guestclock hasn't been told."""
    guest = loaded(machine)
    exits: list[Exit] = []
    thread = threading.Thread(target=lambda: exits.append(machine.run(vcpu)))
    thread.start()
    try:
        wait_for_a_beat(guest, vcpu)
        yield guest
    finally:
        guest.command(vcpu, Command.IDLE)
        thread.join()
    assert (exits[0].reason, exits[0].data & 0xFF) == (KVM_EXIT_MMIO, Doorbell.PARKED)


def wait_for_a_beat(guest: Guest, vcpu: int) -> None:
    """Returns once the guest has gone on: then it is running."""
    beats, end = guest.beat(vcpu)[0], time.monotonic() + PATIENCE_S
    while guest.beat(vcpu)[0] == beats:
        assert time.monotonic() < end, f"vCPU {vcpu} isn't running: its state is {guest.state(vcpu)}"
        time.sleep(0.001)
