"""Where a guest's clock is after a restore, as the guest itself reads it, on this host's KVM.

    PYTHONPATH=lab:examples python -m accuracy.measure [--json]

A VMM computes what to set from a sample of the host's counter, is held up, and sets it: as one offset, or as the values
of both counters. Then the guest reads its counters on both vCPUs, each read between two of the host's. What is told is
the interval in which the truth lies, so its width is how well it was seen, and no claim about how long anything takes.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from guestclock import Advance, Freeze, HostCounter, KvmVm, Reg
from guestclock.payload import Command, Doorbell, Guest, Kind, image
from kvm_vmm import DOORBELL, PC, RAM, Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

Method: TypeAlias = Literal["offset", "by value"]
Interval: TypeAlias = tuple[int, int]
"""From the least to the most that something can be."""

VCPUS: Final = 2
SAMPLES: Final = 8
DELAYS_MS: Final = (1, 10, 100)
G: Final = 10**12
"""Value of both guest counters at the save."""


@dataclass(frozen=True)
class Row:
    """One restore. Everything in host ticks."""

    policy: str
    method: Method
    delay_ms: int
    held_up: Interval
    """From the sample that the restore was computed from to the setting."""
    behind: Interval
    """Lag of the guest's virtual counter behind the policy's promise, at the setting's own last sample."""
    vcpu_skew: Interval
    """Lag of vCPU 1's virtual counter behind vCPU 0's."""
    view_skew: Interval
    """Lag of the physical counter behind the virtual one."""


@contextmanager
def machine() -> Iterator[tuple[Machine, KvmVm]]:
    """A machine with two vCPUs, and its clocks."""
    made = Machine(VCPUS)
    try:
        yield made, KvmVm(made.vm_fd, made.vcpu_fds, gic_fd=made.gic_fd)
    finally:
        made.close()


def restored(policy: Freeze | Advance, method: Method, delay_ms: int) -> Row:
    """Save a guest that has opted in, restore it into another machine so, and see what it reads."""
    host = HostCounter()
    with machine() as (_, vm):
        vm.opt_in(offset=host.read() - G)
        saved = vm.checkpoint()
    with machine() as (made, vm):
        computed = vm.plan(saved, policy).to_dict()
        sample, value = (computed[name] for name in ("host_count", "cntvct"))
        assert isinstance(sample, int)
        assert isinstance(value, int)
        time.sleep(delay_ms / 1000)
        before = host.read()
        if method == "offset":
            vm.set_counter_offset(sample - value)
        else:
            vm.set_one_reg(0, Reg.TIMER_CNT, value)
        between = host.read()
        if method == "by value":
            vm.set_one_reg(0, Reg.PTIMER_CNT, value)
        held_up = before - sample, between - sample
        offsets = [seen(made, host, vcpu) for vcpu in range(VCPUS)]
    virtual, physical = zip(*offsets, strict=True)
    if isinstance(policy, Advance):
        promised = saved.stamp.count - saved.cntvct, saved.stamp.count - saved.cntvct
    elif method == "offset":
        promised = sample - value, sample - value
    else:
        # A value has no sample but the kernel's own, at the setting.
        promised = before - value, between - value
    return Row(
        repr(policy),
        method,
        delay_ms,
        held_up,
        behind=less(virtual[0], promised),
        vcpu_skew=less(virtual[1], virtual[0]),
        view_skew=less(physical[0], virtual[0]),
    )


def less(one: Interval, other: Interval) -> Interval:
    """The difference of two things of which only intervals are known."""
    return one[0] - other[1], one[1] - other[0]


def seen(made: Machine, host: HostCounter, vcpu: int) -> tuple[Interval, Interval]:
    """The offsets of both counters, by what the vCPU's guest reads: the narrowest of several samples, intersected."""
    guest = image(vcpus=VCPUS, samples=SAMPLES, doorbell=DOORBELL, gicd=0, psci="none", command=Command.SAMPLE)
    made.ram[: len(guest)] = guest
    made.set_one_reg(vcpu, PC, RAM)
    brackets: list[Interval] = []
    begun = 0
    # A sample is in the log once the guest has gone on behind it.
    while len(brackets) <= SAMPLES:
        bell = made.run(vcpu).data & 0xFF
        if bell == Doorbell.SAMPLE_BEGINS:
            begun = host.read()
        elif bell == Doorbell.SAMPLE_ENDS:
            brackets.append((begun, host.read()))
    log = Guest(made.ram).log().vcpus[vcpu]
    assert log is not None
    samples = [record for record in log.records if record.kind is Kind.SAMPLED][:SAMPLES]
    known: list[Interval] = []
    for counts in ([record.cntvct for record in samples], [record.cntpct for record in samples]):
        rounds = [(low - count, high - count) for (low, high), count in zip(brackets[:SAMPLES], counts, strict=True)]
        known.append((max(low for low, _ in rounds), min(high for _, high in rounds)))
    return known[0], known[1]


def rows() -> Iterator[Row]:
    """Every restore that is measured."""
    for policy in (Advance(), Freeze()):
        for method in ("offset", "by value"):
            for delay_ms in DELAYS_MS:
                yield restored(policy, method, delay_ms)


def table(measured: list[Row], hz: int) -> str:
    """The figures as a table, in microseconds of the host's counter."""

    def us(interval: Interval) -> str:
        low, high = (ticks * 10_000_000 // hz for ticks in interval)
        return f"{low / 10:.1f} to {high / 10:.1f}"

    lines = [
        "| policy | method | held up | behind its promise | vCPU 1 behind vCPU 0 | physical behind virtual |",
        "|---|---|---|---|---|---|",
    ]
    for row in measured:
        cells = (row.policy, row.method, *map(us, (row.held_up, row.behind, row.vcpu_skew, row.view_skew)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m accuracy.measure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document, in ticks")
    as_json = parser.parse_args().json
    hz = HostCounter().frequency_hz
    measured = list(rows())
    if as_json:
        print(json.dumps({"frequency_hz": hz, "rows": [asdict(row) for row in measured]}, indent=2))
    else:
        print(table(measured, hz))


if __name__ == "__main__":
    main()
