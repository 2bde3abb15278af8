"""KVM as what the operations are done to: a machine of the example VMM's, and the payload that spins in its guests."""

from __future__ import annotations

import threading
import time

from differential.operations import Answer, Kind, Operation, Refused, is_timers
from guestclock import HostCounter
from guestclock.payload import Command, Doorbell, Guest, image, layout
from kvm_vmm import KVM_CAP_COUNTER_OFFSET, KVM_EXIT_INTR, KVM_EXIT_MMIO, PC, RAM, Exit, Machine

DOORBELL = 0x0900_0000
BEATS, CNTVCT, CNTPCT = 5, 6, 7
"""Fields of layout.AREA_FORMAT, each of 8 bytes. The first grows by 2 with each beat."""
GIVE_UP_S = 60
"""A guest that hasn't said anything for so long never will."""


class Kvm:
    """One VM of the kernel's."""

    def __init__(self, *, nested: bool = False) -> None:
        self.counter = HostCounter(source="cntvct_el0")
        self.nested = nested
        self.machine = Machine(0, nested=nested, gic=False)
        self.guest = Guest(self.machine.ram)
        self.words = memoryview(self.machine.ram).cast("Q")
        self.loaded = False
        self.fresh: set[int] = set()
        """The vCPUs that are to begin at the payload's entry, since KVM_ARM_VCPU_INIT has reset them."""
        self.threads: dict[int, threading.Thread] = {}
        self.beats: dict[int, int] = {}
        self.exits: dict[int, Exit | None] = {}
        """Why the vCPUs that have left their guests did so, where that wasn't because they were told to."""

    def count(self) -> int:
        """The host's counter."""
        return self.counter.read()

    def has_counter_offset(self) -> bool:
        """KVM_CAP_COUNTER_OFFSET, asked of the VM."""
        return self.machine.check_extension(KVM_CAP_COUNTER_OFFSET) > 0

    def close(self) -> None:
        """Ends the VM; no vCPU is in its guest."""
        assert not self.threads
        self.words.release()
        self.machine.close()

    def do(self, operation: Operation) -> Answer:
        """Does it; an error is an answer too."""
        try:
            return self._do(operation)
        except OSError as error:
            assert error.errno is not None
            return Refused(error.errno)

    def _do(self, operation: Operation) -> Answer:  # noqa: C901 - a case for each kind.
        machine = self.machine
        match operation:
            case Operation(Kind.CREATE):
                vcpu = machine.create_vcpu()
                machine.init_vcpu(vcpu)
                self.fresh.add(vcpu)
            case Operation(Kind.INIT, vcpu):
                machine.init_vcpu(vcpu)
                self.fresh.add(vcpu)
            case Operation(Kind.OFFSET, _, _, offset, reserved):
                machine.set_counter_offset(offset, reserved)
            case Operation(Kind.GET, vcpu, reg):
                return machine.get_one_reg(vcpu, reg)
            case Operation(Kind.SET, vcpu, reg, value):
                machine.set_one_reg(vcpu, reg, value)
            case Operation(Kind.LIST, vcpu):
                return [reg for reg in machine.reg_list(vcpu) if is_timers(reg)]
            case Operation(Kind.START, vcpu):
                self.start(vcpu)
            case Operation(Kind.ENTERED, vcpu):
                self.wait_for_beats(vcpu, self.beats[vcpu], 1)
            case Operation(Kind.SAMPLE, vcpu):
                # The beat that the guest is at may have begun before now; the next one can't have.
                self.wait_for_beats(vcpu, self.word(vcpu, BEATS), 2)
                return [self.word(vcpu, CNTVCT), self.word(vcpu, CNTPCT)]
            case Operation(Kind.LEAVE, vcpu):
                self.guest.command(vcpu, Command.IDLE)
            case Operation(Kind.LEFT, vcpu):
                self.threads.pop(vcpu).join()
                if left := self.exits.pop(vcpu):
                    raise RuntimeError(f"vCPU {vcpu} left its guest because of {left}")
        return None

    def start(self, vcpu: int) -> None:
        """Starts the thread that runs the vCPU, with the payload as its guest."""
        machine = self.machine
        if not self.loaded:
            self.loaded = True
            machine.ram[: len(PAYLOAD)] = PAYLOAD
            if self.nested:
                machine.add_gic()  # Without it KVM doesn't run a guest that has EL2.
        if vcpu in self.fresh:
            machine.set_one_reg(vcpu, PC, RAM)
            self.fresh.discard(vcpu)
        self.beats[vcpu] = self.word(vcpu, BEATS)
        self.guest.command(vcpu, Command.SPIN)
        self.threads[vcpu] = threading.Thread(target=self.run, args=(vcpu,), daemon=True)
        self.threads[vcpu].start()

    def run(self, vcpu: int) -> None:
        """Runs the vCPU until its guest parks, then completes the store by which it said so."""
        left = self.machine.run(vcpu)
        parked = (KVM_EXIT_MMIO, DOORBELL, Doorbell.PARKED)
        self.exits[vcpu] = None if (left.reason, left.address, left.data & 0xFF) == parked else left
        # KVM goes on behind the store when the vCPU is entered again. After KVM_ARM_VCPU_INIT that would be behind the
        # first instruction.
        self.machine.kick(vcpu)
        assert self.machine.run(vcpu).reason == KVM_EXIT_INTR

    def word(self, vcpu: int, field: int) -> int:
        """A field of the vCPU's area, in one piece while the guest writes it."""
        return self.words[(layout.AREAS + vcpu * layout.AREA_SIZE) // 8 + field]

    def wait_for_beats(self, vcpu: int, since: int, beats: int) -> None:
        """Until the guest has read its counters so many times more. After a reset it counts from 0 again."""
        end = time.monotonic() + GIVE_UP_S
        while 0 <= self.word(vcpu, BEATS) - since < 2 * beats:
            if time.monotonic() > end or vcpu in self.exits:
                raise RuntimeError(f"vCPU {vcpu} doesn't spin: its state is {self.guest.state(vcpu)}, {self.exits}")


PAYLOAD = image(vcpus=8, doorbell=DOORBELL, gicd=0, psci="none", command=Command.SPIN)
