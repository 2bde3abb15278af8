"""Operations on a VM, their answers, and the host's counts before and after."""

from __future__ import annotations

import errno
from enum import StrEnum
from typing import NamedTuple, Protocol

from guestclock import Reg
from guestclock.model import sysreg

WORD = 2**64
NAMES = {int(reg): reg.name for reg in Reg}


class Kind(StrEnum):
    """The operations."""

    CREATE = "create"
    """KVM_CREATE_VCPU, and the KVM_ARM_VCPU_INIT without which no register of it can be accessed."""
    INIT = "init"
    """KVM_ARM_VCPU_INIT again."""
    OFFSET = "offset"
    """KVM_ARM_SET_COUNTER_OFFSET."""
    GET = "get"
    """KVM_GET_ONE_REG."""
    SET = "set"
    """KVM_SET_ONE_REG."""
    LIST = "list"
    """The timers' registers in KVM_GET_REG_LIST."""
    START = "start"
    """A thread is told to run the vCPU. From here on it may or may not be in its guest."""
    ENTERED = "entered"
    """The guest has said that it runs, and spins: it is in its guest."""
    SAMPLE = "sample"
    """The guest reads both of its counters."""
    LEAVE = "leave"
    """The guest is told to leave. From here on it may or may not be in its guest."""
    LEFT = "left"
    """The vCPU's thread has ended: the vCPU is out of its guest."""


class Operation(NamedTuple):
    """One operation; the fields that its kind has no use for are 0."""

    kind: Kind
    vcpu: int = 0
    reg: int = 0
    value: int = 0
    """The register's new value, or the offset."""
    reserved: int = 0
    """The offset ioctl's second field."""


class Refused(NamedTuple):
    """The answer is an error."""

    errno: int

    def __repr__(self) -> str:
        return errno.errorcode[self.errno]


Answer = int | list[int] | Refused | None
"""A register's value, a list or a guest's two counts; an error; or that it was done."""


class Step(NamedTuple):
    """An operation, the host's counts before and after it, and its answer."""

    operation: Operation
    before: int
    after: int
    answer: Answer

    def __str__(self) -> str:
        kind, vcpu, reg, value, reserved = self.operation
        told = f"{kind} {vcpu} {NAMES.get(reg, hex(reg))} {value:#x} {reserved:#x}: {self.answer}"
        return f"{told} at {self.before} to {self.after - self.before:+}"


class Target(Protocol):
    """One VM, without vCPUs at first, that takes operations."""

    def count(self) -> int:
        """The host's counter."""

    def do(self, operation: Operation) -> Answer:
        """Does it."""

    def has_counter_offset(self) -> bool:
        """KVM_CAP_COUNTER_OFFSET, asked of the VM."""

    def close(self) -> None:
        """Ends the VM. No vCPU is in its guest."""


def execute(target: Target, operation: Operation) -> Step:
    """Does it, between two readings of the host's counter."""
    before = target.count()
    answer = target.do(operation)
    return Step(operation, before, target.count(), answer)


def one_reg_id(name: str) -> int:
    """ARM64_SYS_REG() of the register with this architectural name, whether KVM has it or not."""
    op0, op1, crn, crm, op2 = sysreg(name)
    return 0x6030_0000_0013_0000 | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


def is_timers(reg: int) -> bool:
    """True for the id of a generic timer's register: op0 3, CRn 14, CRm below 8."""
    return reg & ~0x3FFF == one_reg_id("CNTFRQ_EL0") & ~0x3FFF and reg >> 7 & 15 == 14 and reg >> 3 & 15 < 8
