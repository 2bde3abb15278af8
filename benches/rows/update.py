"""A live update of 4 000 VMs with 2 vCPUs each, phase by phase. KVM's ioctls are counted apart: 2, and 4 a vCPU."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from benchmarks.fleet import LiveUpdate
from measure import Figure

VCPUS = 2 * 4000


@functools.cache
def taken(rounds: int) -> list[list[int]]:
    update = LiveUpdate(VCPUS)
    return [update.take() for _ in range(rounds)]


def phases(rounds: int, _: int) -> Mapping[str, Sequence[float]]:
    columns = zip(*taken(rounds), strict=True)
    by_phase = {phase: [ns / 1e6 for ns in column] for phase, column in zip(LiveUpdate.PHASES, columns, strict=True)}
    return {**by_phase, "all": [sum(ns) / 1e6 for ns in taken(rounds)]}


def per_vcpu(rounds: int, _: int) -> Mapping[str, Sequence[float]]:
    return {"all": [sum(ns) / VCPUS for ns in taken(rounds)]}


ROWS = (
    Figure("live update of 4 000 x 2", phases, "ms", by_isa=True),
    Figure("live update, a vCPU", per_vcpu, "ns", by_isa=True),
)
