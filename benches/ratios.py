"""What a call costs beside its sibling: the median of interleaved rounds of one run.

    python benches/ratios.py [--rounds N] [--round-ms MS] [--json]

Each round times subject and sibling one after the other, so that what the machine does meanwhile falls on both; the
ratio is taken per round. Both sides are attribute calls. Prints; judges nothing, and never fails for being slow.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import statistics
import sys
import time
import timeit
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

import guestclock
from benchmarks import columns, steady
from guestclock import _core


@dataclass(frozen=True, slots=True)
class Pair:
    """Two expressions to time, and the ratio hoped for."""

    subject: str
    sibling: str
    target: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """Medians of one pair: ns a call of each, and the ratio with the middle half of its rounds."""

    subject: str
    sibling: str
    subject_ns: float
    sibling_ns: float
    ratio: float
    middle_half: tuple[float, float]
    target: float | None


PAIRS = (
    Pair("host_vm.cntvct(0)", "time.monotonic_ns()", 1.3),
    Pair("manual_vm.cntvct(0)", "time.monotonic_ns()", 0.8),
    Pair("host_vm.cntpct(0)", "time.monotonic_ns()"),
    Pair("host.read()", "time.monotonic_ns()"),
    Pair("manual_vm.cntvct(0, now)", "time.monotonic_ns()"),
    Pair("manual_vm.timer(0, 0)", "time.monotonic_ns()"),
    Pair("manual_vm.get_one_reg(0, cval)", "time.monotonic_ns()"),
    Pair("checkpoint_1.to_bytes()", "pickle.dumps(columns_1, 5)"),
    Pair("checkpoint_64.to_bytes()", "pickle.dumps(columns_64, 5)"),
    Pair("checkpoint_512.to_bytes()", "pickle.dumps(columns_512, 5)"),
    Pair("Checkpoint.from_bytes(bytes_1)", "pickle.loads(pickled_1)"),
    Pair("Checkpoint.from_bytes(bytes_64)", "pickle.loads(pickled_64)"),
    Pair("Checkpoint.from_bytes(bytes_512)", "pickle.loads(pickled_512)"),
    # Steps of the steady state: steady.TOUCHED timers each, in VMs of 8, or all in one.
    Pair("queue_100k.step()", "heapq_100k.step()", 0.14),
    Pair("queue_100k.step()", "numpy_100k.step()", 0.2),
    Pair("queue_100k_in_one.step()", "heapq_100k.step()", 0.14),
    Pair("queue_100k_in_one.step()", "numpy_100k.step()", 0.2),
    Pair("queue_1m.step()", "queue_1k.step()", 2.0),
    Pair("queue_1m_in_one.step()", "queue_1k_in_one.step()", 2.0),
    Pair("heapq_1m.step()", "heapq_1k.step()"),
)


def namespace() -> dict[str, object]:
    """What the expressions name."""
    names: dict[str, object] = {"time": time, "pickle": pickle, "Checkpoint": guestclock.Checkpoint, "now": 10**9}
    names["host"] = host = guestclock.HostCounter()
    names["host_vm"] = guestclock.Vm(vcpus=4, counter=host)
    names["manual_vm"] = guestclock.Vm(vcpus=4, counter=guestclock.ManualCounter(10**9))
    names["cval"] = guestclock.Reg.TIMER_CVAL
    for vcpus in columns.VCPUS:
        checkpoint = columns.checkpoint(vcpus)
        names[f"checkpoint_{vcpus}"] = checkpoint
        names[f"bytes_{vcpus}"] = checkpoint.to_bytes()
        names[f"columns_{vcpus}"] = columns.arrays(checkpoint)
        names[f"pickled_{vcpus}"] = pickle.dumps(names[f"columns_{vcpus}"], 5)
    for timers, size in ((1000, "1k"), (100_000, "100k"), (1_000_000, "1m")):
        work = steady.Work(timers)
        kept: dict[str, steady.Kept] = {
            f"queue_{size}": steady.Queue(work),
            f"queue_{size}_in_one": steady.Queue(work, vm=timers),
            f"heapq_{size}": steady.Heap(work),
            f"numpy_{size}": steady.Scan(work),
        }
        steady.agreed(*kept.values())
        names |= kept
    return names


def measure(pair: Pair, names: dict[str, object], *, rounds: int, round_ns: int) -> Result:
    """Time a pair in interleaved rounds, each side for about `round_ns` a round."""
    timers = [timeit.Timer(text, globals=names, timer=time.perf_counter_ns) for text in (pair.subject, pair.sibling)]
    counts = [calls_within(timer, round_ns) for timer in timers]
    costs: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        # Every other round the sibling goes first.
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            costs[side].append(timers[side].timeit(counts[side]) / counts[side])
    ratios = [subject / sibling for subject, sibling in zip(*costs, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return Result(
        subject=pair.subject,
        sibling=pair.sibling,
        subject_ns=statistics.median(costs[0]),
        sibling_ns=statistics.median(costs[1]),
        ratio=statistics.median(ratios),
        middle_half=(low, high),
        target=pair.target,
    )


def calls_within(timer: timeit.Timer, round_ns: int) -> int:
    """How many calls fill a round; this warms the code up too."""
    number = 1
    while (took := timer.timeit(number)) < round_ns:
        number = max(number * 2, int(number * round_ns // max(took, 1)))
    return number


def machine() -> dict[str, str]:
    """What the numbers belong to."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "cpu": f"{model}, {os.cpu_count()} cores, {platform.machine()}",
        "build": f"guestclock {guestclock.__version__}, {'DEBUG' if _core.DEBUG_BUILD else 'release'}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "kernel": platform.release(),
        "host_counter": guestclock.HostCounter().source,
    }


def print_table(about: dict[str, str], results: list[Result], rounds: int) -> None:
    """Print the results for people."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 132
    for name, value in about.items():
        console.print(f"{name.replace('_', ' '):>12}: {value}")
    table = Table(
        title=f"Medians of {rounds} interleaved rounds, in ns a call", title_justify="left", box=box.SIMPLE_HEAD
    )
    for heading, is_text in (("subject", True), ("ns", False), ("sibling", True), ("ns", False)):
        table.add_column(heading, justify="left" if is_text else "right")
    for heading in ("ratio", "middle half", "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        low, high = result.middle_half
        table.add_row(
            result.subject,
            f"{result.subject_ns:,.1f}",
            result.sibling,
            f"{result.sibling_ns:,.1f}",
            f"{result.ratio:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"<= {result.target}" if result.target is not None else "",
        )
    console.print(table)


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21, help="rounds a pair; below 15 proves nothing (default 21)")
    parser.add_argument("--round-ms", type=int, default=10, help="how long a side runs a round (default 10)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    if _core.DEBUG_BUILD:
        print("ratios: this is a debug build, and its numbers mean nothing", file=sys.stderr)
    names, about = namespace(), machine()
    results = [
        measure(pair, names, rounds=max(arguments.rounds, 2), round_ns=arguments.round_ms * 1_000_000) for pair in PAIRS
    ]
    if arguments.json:
        document = {"schema": "guestclock.ratios/1", "machine": about, "rounds": arguments.rounds}
        print(json.dumps({**document, "results": [asdict(result) for result in results]}, indent=2))
    else:
        print_table(about, results, arguments.rounds)


if __name__ == "__main__":
    main()
