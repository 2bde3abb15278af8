"""The differential machine on a kernel that is pretended: tests/reference.py, doing what it is told at hidden instants.

What the oracle calls a divergence must be one, and each wrong rule must be.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from differential import trace
from differential.campaign import PRESETS, Outcome, matching, probe, run
from differential.generator import Shape
from differential.operations import Answer, Kind, Operation, Refused, Step
from differential.oracle import Divergence, Oracle, Tally
from guestclock import Reg
from reference import CNT, CNTVOFF, CTL, CVAL, ISTATUS, PHYSICAL, VIRTUAL, ReferenceVm, u64
from reference import Refused as ReferenceRefused

HZ = 62_500_000
LEGS = [(kernel, False) for kernel in PRESETS] + [("7.3", True)]
legs = pytest.mark.parametrize(("kernel", "nested"), LEGS, ids=["6.1", "6.12", "7.3", "nested"])


class Pretended:
    """A kernel: what is done takes place some time after the caller has read the count, and takes some time."""

    def __init__(self, vm: ReferenceVm, seed: int = 0, now: int = 10**12) -> None:
        self.vm = vm
        self.now = now
        self.random = random.Random(seed)
        self.starting: set[int] = set()
        self.inside: set[int] = set()
        self.leaving: set[int] = set()

    def count(self) -> int:
        self.pass_time()
        return self.now

    def pass_time(self) -> None:
        # Now and then the host has something else to do.
        self.now = u64(self.now + self.random.choice([0, 1, self.random.randrange(2000), self.random.randrange(2000)]))
        if self.random.random() < 0.01:
            self.now = u64(self.now + self.random.randrange(10**6))

    def has_counter_offset(self) -> bool:
        return self.vm.has_offset_ioctl()

    def close(self) -> None:
        assert not self.starting | self.inside | self.leaving

    def do(self, operation: Operation) -> Answer:
        self.pass_time()
        self.threads_go_on()
        try:
            return self._do(operation)
        except ReferenceRefused as refused:
            return Refused(getattr(errno, refused.why))
        finally:
            self.pass_time()

    def threads_go_on(self) -> None:
        for vcpu in [*self.starting]:
            if self.random.random() < 0.5:
                self.enter(vcpu)
        for vcpu in [*self.leaving]:
            if self.random.random() < 0.5:
                self.leave(vcpu)
        for vcpu in [*self.inside, *self.leaving]:
            if self.random.random() < 0.2:
                self.vm.exit(vcpu, self.now)
                self.vm.enter(vcpu)

    def enter(self, vcpu: int) -> None:
        self.vm.enter(vcpu)
        self.starting.discard(vcpu)
        self.inside.add(vcpu)

    def leave(self, vcpu: int) -> None:
        self.vm.exit(vcpu, self.now)
        self.leaving.discard(vcpu)

    def _do(self, operation: Operation) -> Answer:  # noqa: C901
        vm, vcpu = self.vm, operation.vcpu
        match operation.kind:
            case Kind.CREATE:
                vm.create_vcpu(self.now)
            case Kind.INIT:
                vm.init_vcpu(vcpu)
            case Kind.OFFSET:
                if operation.reserved:
                    return Refused(errno.EINVAL)
                vm.set_counter_offset(operation.value)
            case Kind.GET:
                return vm.get_one_reg(vcpu, operation.reg, self.now)
            case Kind.SET:
                vm.set_one_reg(vcpu, operation.reg, operation.value, self.now)
            case Kind.LIST:
                return vm.reg_list()
            case Kind.START:
                self.starting.add(vcpu)
            case Kind.ENTERED if vcpu in self.starting:
                self.enter(vcpu)
            case Kind.SAMPLE:
                names = ("CNTVCT_EL0", "CNTPCT_EL0")
                return [vm.read_sysreg(vcpu, name, self.now, 2 if vm.el2 == "vhe" else 1) for name in names]
            case Kind.LEAVE:
                self.inside.discard(vcpu)
                self.leaving.add(vcpu)
            case Kind.LEFT if vcpu in self.leaving:
                self.leave(vcpu)
        return None


Make = Callable[..., ReferenceVm]


def header(kernel: str, *, nested: bool, seed: int = 1) -> trace.Header:
    return trace.Header("pretended", "", kernel, kernel == "7.3", nested, HZ, seed)


def made(make: Make, kernel: str, *, nested: bool) -> ReferenceVm:
    return make(kernel, HZ, "vhe" if nested else "absent")


def campaign(
    kernel: str, *, nested: bool, sequences: int, seed: int = 1, make: Make = ReferenceVm, writer: trace.Writer | None = None
) -> Outcome:
    """Random sequences on a kernel of this kind, half of them with vCPUs that run."""
    regs = tuple(made(ReferenceVm, kernel, nested=nested).reg_list())
    shapes = [Shape(regs), Shape(regs, runs=True)]
    targets = iter(range(sequences))

    def new_target() -> Pretended:
        number = next(targets)
        # A host's counter may be anywhere, and some begin near its end.
        start = random.Random(f"{seed}/{number}").choice([10**12, 2**64 - 10**6, 2**63])
        return Pretended(made(make, kernel, nested=nested), number, start)

    return run(new_target, header(kernel, nested=nested, seed=seed), shapes, sequences, writer)


@legs
def test_a_kernel_that_keeps_the_rules_is_never_accused(kernel: str, *, nested: bool) -> None:
    outcome = campaign(kernel, nested=nested, sequences=1500)
    assert outcome.divergences == []
    assert outcome.tally.entered > 1000
    assert outcome.share <= 0.05
    print(outcome)
