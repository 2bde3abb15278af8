"""Random sequences of operations that a VMM could do, and that say something about the model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from differential.operations import WORD, Kind, Operation, Refused, Step, one_reg_id
from guestclock import Reg

if TYPE_CHECKING:
    import random

MAX_VCPUS = 3
ABSENT = tuple(
    one_reg_id(name)
    for name in ("CNTFRQ_EL0", "CNTV_TVAL_EL0", "CNTP_TVAL_EL0", "CNTVCTSS_EL0", "CNTPCTSS_EL0", "CNTPOFF_EL2")
)
"""Registers of the generic timer that ONE_REG has in no guest."""
CTLS = (Reg.TIMER_CTL, Reg.PTIMER_CTL, Reg.CNTHV_CTL_EL2, Reg.CNTHP_CTL_EL2)
COUNTS = (Reg.TIMER_CNT, Reg.PTIMER_CNT)
CVALS = (Reg.TIMER_CVAL, Reg.PTIMER_CVAL, Reg.CNTHV_CVAL_EL2, Reg.CNTHP_CVAL_EL2)
IMASK = 2
UNTRAPPED = 0xC03
"""CNTHCTL_EL2 as the payload needs it to read the physical counter, and sets it on its way from EL2 to EL1."""
EDGES = (0, 2**31, 2**32, 2**56, 2**63)


class Where(Enum):
    """The place of a vCPU: in its guest or out of it, as far as is known."""

    OUT = "out"
    STARTING = "may be in already"
    IN = "in"
    LEAVING = "may be out already"


@dataclass(frozen=True)
class Shape:
    """Parameters of the sequences of one kind.

    regs: what the kernel lists of a vCPU, among which are the CTLs to be masked before a run. max_steps: after so many
    a sequence comes to its end. late_vcpus: vCPUs are created after one has run, too.
    """

    regs: tuple[int, ...]
    vcpus: int = MAX_VCPUS
    max_steps: int = 30
    runs: bool = False
    late_vcpus: bool = True


class Sequence:
    """One sequence: what to do next, given what has come of it so far."""

    def __init__(self, random: random.Random, shape: Shape) -> None:
        self.random = random
        self.shape = shape
        self.nested = Reg.CNTHCTL_EL2 in shape.regs
        self.length = random.randint(shape.max_steps // 3, shape.max_steps)
        self.steps = 0
        self.where: list[Where] = []
        self.has_run = False
        self.moved = False
        """A counter was moved by value since a vCPU that is in its guest entered it."""
        self.physical = False
        """The physical counter was moved by value since the last vCPU was created, which would move it back."""
        self.planned: list[Operation] = []
        """Operations that come before any other."""
        self.counts = [0]
        """Counts that were seen, for values near them."""

    def next(self, now: int) -> Operation | None:
        """The next operation, `now` being about the host's count; None at the end."""
        self.steps += 1
        if self.planned:
            return self.planned.pop(0)
        if self.steps > self.length:
            return self.ending()
        self.counts[0] = now
        # A vCPU that runs says more where there are others.
        ways = [
            (3 if self.shape.runs else 1, self.create),
            (2, self.offset),
            (9, self.get),
            (6, self.set),
            (1, self.init),
            (1, self.listing),
        ]
        ways += [(9, self.running)] * (self.shape.runs and bool(self.where))
        while True:
            (way,) = self.random.choices([way for _, way in ways], [weight for weight, _ in ways])
            if operation := way():
                return operation

    def learn(self, step: Step) -> None:  # noqa: C901 - a case for each kind.
        """Takes note of the operation's answer."""
        operation, answer = step.operation, step.answer
        match operation.kind:
            case Kind.CREATE:
                self.where.append(Where.OUT)
                self.moved, self.physical = True, False
            case Kind.START:
                self.where[operation.vcpu] = Where.STARTING
                self.has_run = True
            case Kind.ENTERED:
                self.where[operation.vcpu] = Where.IN
            case Kind.LEAVE:
                self.where[operation.vcpu] = Where.LEAVING
            case Kind.LEFT:
                self.where[operation.vcpu] = Where.OUT
                # What the run has made of a timer's registers.
                timer = self.random.choice(
                    [pair for pair in zip(CTLS, CVALS, strict=True) if pair[0] in self.shape.regs]
                )
                self.planned = [Operation(Kind.GET, operation.vcpu, reg) for reg in timer]
                if self.nested:
                    reg = Reg.CNTHCTL_EL2
                    self.planned.append(Operation(Kind.SET, operation.vcpu, reg, self.random.getrandbits(64)))
                    self.planned.append(Operation(Kind.GET, operation.vcpu, reg))
            case Kind.SET:
                self.moved |= operation.reg in COUNTS
                self.physical |= operation.reg == Reg.PTIMER_CNT
                if not self.planned and self.may_get(operation.reg) and self.random.random() < 0.3:
                    self.planned = [Operation(Kind.GET, operation.vcpu, operation.reg)]
            case Kind.OFFSET if isinstance(answer, Refused):
                # Had it opted in all the same, a count that is set would do nothing.
                vcpu, reg = self.stopped(), self.random.choice(COUNTS)
                if vcpu is not None and self.may_move(reg):
                    self.planned = [Operation(Kind.SET, vcpu, reg, self.value()), Operation(Kind.GET, vcpu, reg)]
            case Kind.GET if operation.reg in COUNTS and isinstance(answer, int):
                self.counts = [*self.counts[:1], *self.counts[-2:], answer]

    def ending(self) -> Operation | None:
        """Has every vCPU leave its guest."""
        for vcpu, where in enumerate(self.where):
            if where is not Where.OUT:
                then = {Where.STARTING: Kind.ENTERED, Where.IN: Kind.LEAVE, Where.LEAVING: Kind.LEFT}
                return Operation(then[where], vcpu)
        return None

    def stopped(self) -> int | None:
        """A vCPU whose registers can be accessed."""
        out = [vcpu for vcpu, where in enumerate(self.where) if where is Where.OUT]
        return self.random.choice(out) if out else None

    def may_move(self, reg: int) -> bool:
        """True where the counter may be set by value.

        A second time under a vCPU in its guest would leave it with three offsets that it may be under. And the physical
        counter's offset is in the CVAL that the hardware has while a vCPU runs, if it has no CNTPOFF_EL2: KVM takes
        the new one from it, and so CVAL moves by the difference. The model doesn't know the hardware.
        """
        outside = all(where is Where.OUT for where in self.where)
        return outside or not (self.moved or self.nested or reg == Reg.PTIMER_CNT)

    def create(self) -> Operation | None:
        """Creates a vCPU, where that moves no counter under one that is in its guest."""
        moves = Reg.PTIMER_CNT if self.physical else Reg.TIMER_CNT
        if (
            len(self.where) == self.shape.vcpus
            or (self.has_run and not self.shape.late_vcpus)
            or not self.may_move(moves)
        ):
            return None
        return Operation(Kind.CREATE)

    def init(self) -> Operation | None:
        """Initialises a stopped vCPU again."""
        vcpu = self.stopped()
        return None if vcpu is None else Operation(Kind.INIT, vcpu)

    def listing(self) -> Operation | None:
        """Lists a stopped vCPU's timer registers."""
        vcpu = self.stopped()
        return None if vcpu is None else Operation(Kind.LIST, vcpu)

    def offset(self) -> Operation | None:
        """Sets the VM-wide offset, sometimes with a reserved field that isn't 0."""
        # Rarely, but for while a vCPU may be in its guest: after it counters can't be set any more.
        if self.random.random() < (0.6 if all(where is Where.OUT for where in self.where) else 0.2):
            return None
        reserved = self.random.choice([1, WORD - 1, 2**32]) if self.random.random() < 0.2 else 0
        return Operation(Kind.OFFSET, value=self.value(), reserved=reserved)

    def reg(self) -> int:
        """A register that the kernel lists; one time in ten, one that it may lack."""
        regs = self.shape.regs
        if self.random.random() < 0.1:
            return self.random.choice([*ABSENT, *(reg for reg in Reg if reg not in regs)])
        return self.random.choice(regs)

    def get(self) -> Operation | None:
        """Reads a register of a stopped vCPU."""
        vcpu, reg = self.stopped(), self.reg()
        return Operation(Kind.GET, vcpu, reg) if vcpu is not None and self.may_get(reg) else None

    def may_get(self, reg: int) -> bool:
        """CNTHCTL_EL2 changes with the first run, and nobody knows when a vCPU that may be in its guest began it."""
        return reg != Reg.CNTHCTL_EL2 or Where.STARTING not in self.where

    def set(self) -> Operation | None:
        """Writes a register of a stopped vCPU."""
        vcpu, reg = self.stopped(), self.reg()
        if vcpu is None or (reg in COUNTS and not self.may_move(reg)):
            return None
        return Operation(Kind.SET, vcpu, reg, self.ctl() if reg in CTLS else self.value())

    def value(self) -> int:
        """An edge, a value near a count, or any."""
        match self.random.randrange(4):
            case 0:
                return (self.random.choice(EDGES) + self.random.randint(-2, 2)) % WORD
            case 1:
                return self.random.getrandbits(64)
            case _:
                near = self.random.choice([2, 2**16, 2**24, 2**31])
                return (self.random.choice(self.counts) + self.random.randint(-near, near)) % WORD

    def ctl(self, *, reserved: bool = True) -> int:
        """A CTL: any of its three bits, and sometimes reserved ones."""
        ctl = self.random.randrange(8)
        if reserved and self.random.random() < 0.25:
            ctl |= self.random.choice([2**3, 2**31, 2**32, 2**63, self.random.getrandbits(61) << 3])
        return ctl

    def running(self) -> Operation | None:
        """Has a vCPU go one way further into its guest or out of it, or looks at what it reads there."""
        vcpu = self.random.randrange(len(self.where))
        match self.where[vcpu]:
            case Where.OUT:
                if all(where is Where.OUT for where in self.where):
                    self.moved = False
                elif self.moved:
                    return None
                return self.start(vcpu)
            case Where.STARTING:
                return Operation(Kind.ENTERED, vcpu)
            case Where.IN:
                return Operation(Kind.LEAVE if self.random.random() < 0.3 else Kind.SAMPLE, vcpu)
            case Where.LEAVING:
                return Operation(Kind.LEFT, vcpu)

    def start(self, vcpu: int) -> Operation:
        """Masks the timers first, so that no interrupt has the vCPU leave its guest.

        Of a guest with EL2 the model doesn't know which timers a run loads, and so which reserved bits it clears.
        """
        if self.random.random() < 0.2:
            masking = [Operation(Kind.INIT, vcpu)]
        else:
            regs = [reg for reg in CTLS if reg in self.shape.regs]
            masking = [Operation(Kind.SET, vcpu, reg, self.ctl(reserved=not self.nested) | IMASK) for reg in regs]
        if self.nested:
            masking.append(Operation(Kind.SET, vcpu, Reg.CNTHCTL_EL2, UNTRAPPED))
        self.planned = [*masking[1:], Operation(Kind.START, vcpu)]
        return masking[0]
