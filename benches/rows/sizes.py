"""Size of a vCPU: in a checkpoint of many, and in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from benchmarks import fleet
from guestclock import Fleet
from measure import Figure, at_most

VCPUS = 8192


def encoded(timers: Literal[2, 4], in_a_vm: int) -> float:
    size = len(Fleet(fleet.Fleet(VCPUS, timers, in_a_vm).bank).checkpoint(now=fleet.BEGIN).to_bytes())
    return size / VCPUS


def held(timers: Literal[2, 4], in_a_vm: int) -> float:
    """With every timer written, and the queue of those that are armed: `expire` has been asked."""
    bank = fleet.Fleet(VCPUS, timers, in_a_vm).bank
    bank.expire(fleet.BEGIN)
    return bank.nbytes / VCPUS


def bytes_of(
    what: Callable[[Literal[2, 4], int], float], timers: Literal[2, 4]
) -> Callable[[int, int], Mapping[str, Sequence[float]]]:
    """Figures of a vCPU in VMs of two, and in VMs of eight."""
    return lambda *_: {f"{timers} timers, VMs of {vcpus}": [what(timers, vcpus)] for vcpus in (2, 8)}


ROWS = (
    Figure("size of a checkpoint, a vCPU with two timers", bytes_of(encoded, 2), "bytes", at_most(40)),
    Figure("size of a checkpoint, a vCPU with four", bytes_of(encoded, 4), "bytes", at_most(56)),
    Figure("memory with the queue, a vCPU with two timers", bytes_of(held, 2), "bytes", at_most(96)),
    Figure("memory with the queue, a vCPU with four", bytes_of(held, 4), "bytes"),
)
