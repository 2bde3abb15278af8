"""A model VM that is told when each operation takes place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from differential.operations import WORD, Answer, Kind, Operation, Refused
from guestclock import ManualCounter, ModelVm
from guestclock.errors import KvmError
from guestclock.model import sysreg

if TYPE_CHECKING:
    from guestclock.types import Running

SAMPLED = sysreg("CNTVCT_EL0"), sysreg("CNTPCT_EL0")
"""Registers that a spinning guest reads, at EL1."""


class World:
    """The model with one answer to each question that the brackets leave open.

    reloads: a vCPU in its guest is under new offsets at once, and not only from its next entry on.
    """

    def __init__(self, kernel: str, *, frequency_hz: int, nested: bool, vhe: bool, reloads: bool = False) -> None:
        self.counter = ManualCounter(0, frequency_hz=frequency_hz)
        self.vm = ModelVm(0, counter=self.counter, kernel=kernel, nested=nested, vhe=vhe)
        self.reloads = reloads
        self.inside: dict[int, Running] = {}

    def do(self, operation: Operation, now: int) -> Answer:
        """Does it at this count of the host's, which may be an earlier one than the last."""
        self.counter.advance((now - self.counter.read()) % WORD)
        try:
            answer = self._do(operation)
        except KvmError as error:
            assert error.errno is not None
            return Refused(error.errno)
        if self.reloads and operation.kind not in (Kind.GET, Kind.LIST, Kind.SAMPLE):
            for vcpu in list(self.inside):
                self.reload(vcpu)
        return answer

    def _do(self, operation: Operation) -> Answer:
        vm = self.vm
        match operation:
            case Operation(Kind.CREATE):
                vm.create_vcpu()
            case Operation(Kind.INIT, vcpu):
                vm.init_vcpu(vcpu)
            case Operation(Kind.OFFSET, _, _, offset, reserved):
                vm.set_counter_offset(offset, reserved=reserved)
            case Operation(Kind.GET, vcpu, reg):
                return vm.get_one_reg(vcpu, reg)
            case Operation(Kind.SET, vcpu, reg, value):
                vm.set_one_reg(vcpu, reg, value)
            case Operation(Kind.LIST, vcpu):
                return vm.reg_list(vcpu)
            case Operation(Kind.START, vcpu):
                self.enter(vcpu)
            case Operation(Kind.SAMPLE, vcpu):
                return [vm.read_sysreg(vcpu, *encoding) for encoding in SAMPLED]
            case Operation(Kind.LEFT, vcpu):
                self.leave(vcpu)
        return None

    def enter(self, vcpu: int) -> None:
        """The vCPU enters its guest."""
        running = self.vm.running(vcpu)
        running.__enter__()
        self.inside[vcpu] = running

    def leave(self, vcpu: int) -> None:
        """The vCPU leaves its guest."""
        self.inside.pop(vcpu).__exit__(None, None, None)

    def reload(self, vcpu: int) -> None:
        """The vCPU is loaded again, as when its thread moves to another CPU."""
        self.leave(vcpu)
        self.enter(vcpu)
