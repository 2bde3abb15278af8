"""Where a guest's clock is after a restore, as the guest itself reads it, on this host's KVM.

    PYTHONPATH=lab python -m accuracy.measure [--json]

guestclock's restores go through prepare, apply and release, by a VMM that is held up between the steps
(`guestclock.selftest.accuracy`). Beside them stands a VMM without guestclock: it computes from a sample of the host's
counter what both guest counters have to be, is held up, and sets them one after the other. What is told is the interval
in which the truth lies, so its width is how well it was seen, and no claim about how long anything takes.

It exits 1 where a restore of guestclock's isn't what its policy promises.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from guestclock import HostCounter, Reg
from guestclock.selftest.accuracy import DELAYS_MS, KvmBench, less, rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guestclock.selftest.accuracy import Interval, Row


@dataclass(frozen=True)
class ByHand:
    """A VMM without guestclock, which sets values. Everything in host ticks."""

    delay_ms: int
    held_up: Interval
    """From the sample that the values were computed from to the setting of the first."""
    behind: Interval
    """Lag of the guest's virtual counter behind a clock that went on through the pause."""
    vcpu_skew: Interval
    """Lag of vCPU 1's virtual counter behind vCPU 0's."""
    view_skew: Interval
    """Lag of the physical counter behind the virtual one."""


def by_hand(delay_ms: int) -> ByHand:
    """Set both counters of a new machine to what they would have been by a sample, some time after it."""
    bench, host = KvmBench(), HostCounter()
    with bench.machine() as target:
        sample = host.read()
        time.sleep(delay_ms / 1000)
        before = host.read()
        target.vm.set_one_reg(0, Reg.TIMER_CNT, sample)
        between = host.read()
        target.vm.set_one_reg(0, Reg.PTIMER_CNT, sample)
        offsets = target.seen()
    virtual, physical = zip(*offsets, strict=True)
    return ByHand(
        delay_ms,
        (before - sample, between - sample),
        # It would have been the host's own counter.
        behind=virtual[0],
        vcpu_skew=less(virtual[1], virtual[0]),
        view_skew=less(physical[0], virtual[0]),
    )


def all_by_hand() -> Iterator[ByHand]:
    """Measure that VMM with every delay."""
    for delay_ms in DELAYS_MS:
        yield by_hand(delay_ms)


def table(measured: list[Row], beside: list[ByHand], hz: int) -> str:
    """Return the figures as a table, in microseconds of the host's counter."""

    def us(ticks: int) -> str:
        return f"{ticks * 10_000_000 // hz / 10:.1f}"

    def both(interval: Interval) -> str:
        low, high = map(us, interval)
        return f"{low} to {high}"

    columns = (
        "policy",
        "method",
        "held up",
        "behind its promise",
        "the same, physical",
        "vCPU 1 behind vCPU 0",
        "the guest sees of it all",
        "of it, from the last sample to the return",
        "stated bound",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in measured:
        intervals = (row.held_up, row.behind, row.physical_behind, row.vcpu_skew, row.seen)
        cells = (f"`{row.policy}`", row.method, *map(both, intervals), us(row.until_return), us(row.bound))
        lines.append(f"| {' | '.join(cells)} |")
    for made in beside:
        view = f"the virtual by {both(made.behind)}, the physical by {both(made.view_skew)} more"
        cells = ("none: values", "by hand", both(made.held_up), view, "", both(made.vcpu_skew), "", "", "none")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m accuracy.measure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document, in ticks")
    as_json = parser.parse_args().json
    bench = KvmBench()
    measured = list(rows(bench))
    beside = list(all_by_hand())
    if as_json:
        document = {"rows": [asdict(row) for row in measured], "by_hand": [asdict(row) for row in beside]}
        print(json.dumps({"frequency_hz": bench.frequency_hz, **document}, indent=2))
    else:
        print(table(measured, beside, bench.frequency_hz))
    wrong = [f"{row.policy}, {row.method}, {row.delay_ms} ms: {row.wrong}" for row in measured if row.wrong]
    for line in wrong:
        print(line, file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
