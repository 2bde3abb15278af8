"""The bytes of a vCPU: in a checkpoint of many VMs, and in a bank's memory with the queue of its timers."""

from __future__ import annotations

from typing import Literal

import pytest

from benchmarks import fleet
from guestclock import Fleet

VCPUS = 8192
Timers = Literal[2, 4]


@pytest.mark.parametrize("in_a_vm", [2, 8])
@pytest.mark.parametrize(("timers", "most"), [(2, 40), (4, 56)])
def test_a_vcpu_in_a_checkpoint(timers: Timers, most: int, in_a_vm: int) -> None:
    checkpoint = Fleet(fleet.Fleet(VCPUS, timers, in_a_vm).bank).checkpoint(now=fleet.BEGIN)
    assert len(checkpoint.to_bytes()) <= most * VCPUS


@pytest.mark.parametrize(("timers", "most"), [(2, 96), (4, 156)])
def test_a_vcpu_in_memory(timers: Timers, most: int) -> None:
    """With every timer written, and the queue of those that are armed: `expire` has been asked."""
    bank = fleet.Fleet(VCPUS, timers, 8).bank
    bank.expire(fleet.BEGIN)
    assert bank.nbytes <= most * VCPUS
