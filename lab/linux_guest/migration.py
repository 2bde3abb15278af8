"""A Linux guest, migrated between two hosts and back, then over a restart of its host: right by the guest's own clocks.

Boots two emulated machines with KVM that share memory. Their counters differ in phase, their wall clocks by a known
amount, and they are two copies of one installation: only their boot ids tell them apart. All of it is judged by what
the guest reads, and by the hosts' wall clocks around that.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from testbed import machine, wheel
from testbed.image import TREE
from testbed.legs import LEGS
from testbed.say import say

if TYPE_CHECKING:
    from collections.abc import Callable

OUT: Final = TREE / "out" / "migration"
SHARED_SIZE: Final = 256 << 20
TIMEOUT_S: Final = 3000


def main() -> int:
    """Runs the hosts, and judges what the guest said."""
    parser = argparse.ArgumentParser(prog="make migrate-test", description=__doc__)
    parser.add_argument("--guest", choices=LEGS["linux"].guests, default="6.12", help="the guest's kernel")
    parser.add_argument("--rounds", type=int, default=10, help="how often there and back (default: 10)")
    chosen = parser.parse_args()
    built = wheel.found(TREE / "dist") or wheel.build(TREE / "dist")
    # Two machines whose time goes by itself, as that of two hosts does.
    leg = replace(LEGS["linux"], icount=None, guests=(chosen.guest,))
    machine.parts(leg)
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        shared = Path(place, "shared")
        with shared.open("wb") as file:
            file.truncate(SHARED_SIZE)

        def host(name: str, *arguments: str) -> int:
            command = ["env", "PYTHONPATH=lab:examples", "python3", "-m", "linux_guest.host", *arguments]
            return machine.boot(
                leg, command, show=shown(name), wheel=built, shared=shared, out=OUT / name, timeout_s=TIMEOUT_S
            )

        with ThreadPoolExecutor(2) as pool:
            other = pool.submit(host, "second", "second")
            status = host("first", "first", f"/guest/{chosen.guest}", str(chosen.rounds))
            status = status or host("again", "again")
            status = status or other.result()
    if status:
        return status
    document = json.loads((OUT / "first" / "migrations.json").read_text())
    document["again"] = json.loads((OUT / "again" / "rebooted.json").read_text())
    faults = judged(document)
    for fault in faults:
        say(f"WRONG: {fault}")
    tell(document)
    return 1 if faults else 0


def shown(name: str) -> Callable[[bytes], None]:
    """Shows a machine's console, each line with the machine's name."""
    lock = threading.Lock()

    def show(line: bytes) -> None:
        with lock:
            sys.stdout.write(f"[{name}] {line.decode(errors='replace')}")
            sys.stdout.flush()

    return show


def off(reading: dict[str, Any], ahead: list[int]) -> tuple[int, int]:
    """Bounds of the guest's CLOCK_REALTIME less the truth, by a host whose own clock is ahead of it within bounds."""
    ns = reading["realtime_ns"]
    return ns - reading["answered_ns"] + ahead[0], ns - reading["asked_ns"] + ahead[1]


def judged(document: dict[str, Any]) -> list[str]:
    """Names everything that doesn't hold."""
    truth, second = [0, 0], document["ahead_ns"]
    rows = [*document["rows"], document["again"]["row"]]
    low, high = document["again"]["ahead_ns"]
    # After its restart the first host's clock is as far from the truth as the second's is, less their distance.
    clocks = {"second": second, "first": truth, "again": [second[0] - high, second[1] - low]}
    faults = []
    at = "first"
    for number, row in enumerate(rows, 1):
        name = f"migration {number}, to {row['to']}"
        before, after = row["before"], row["after"]
        was, now = off(before, clocks[at]), off(after, clocks[row["to"]])
        bound = row["error_bound_ns"]
        row["off_ns"], row["moved_ns"] = now, [now[0] - was[1], now[1] - was[0]]
        if not -bound <= row["moved_ns"][1] or not row["moved_ns"][0] <= bound:
            faults.append(
                f"{name}: CLOCK_REALTIME moved by {row['moved_ns']} ns against the truth, the bound is {bound}"
            )
        for clock in ("monotonic", "realtime_less_monotonic"):
            moved = after[clock][0] - before[clock][1], after[clock][1] - before[clock][0]
            if not moved[0] <= 0 <= moved[1]:
                faults.append(f"{name}: {clock} moved by {moved} ns")
        if after["back"]:
            faults.append(f"{name}: a clock of the guest went back {after['back']} times")
        if not all(after["looks"]):
            faults.append(f"{name}: a watcher stopped")
        if row["elapsed_by"] != "wall-clocks":
            faults.append(f"{name}: the time that passed was taken from {row['elapsed_by']}")
        if not row["same_machine"] or row["same_boot"]:
            faults.append(f"{name}: the hosts aren't two boots of one installation")
        row["blackout_ns"] = blackout(row, clocks[at], clocks[row["to"]])
        at = row["to"]
    return faults


def blackout(row: dict[str, Any], source: list[int], target: list[int]) -> tuple[int, int]:
    """Bounds of the time from the guest's stop to its first vCPU's entry, by the truth."""
    apart = row["resumed_ns"] - row["stopped_ns"]
    return apart - target[1] + source[0], apart - target[0] + source[1]


def tell(document: dict[str, Any]) -> None:
    """Prints a line for each migration."""
    for number, row in enumerate([*document["rows"], document["again"]["row"]], 1):
        gap, bound = row["after"]["gap_ns"], row["error_bound_ns"]
        say(
            f"{number:3} to {row['to']:6}  blackout {ms(row['blackout_ns'])} ms, to the guest {gap / 1e6:.0f} ms; "
            f"REALTIME moved by {ms(row['moved_ns'])} ms, bound {bound / 1e6:.1f} ms; {row['pages']} pages at the stop"
        )


def ms(bounds: tuple[int, int] | list[int]) -> str:
    """Bounds in milliseconds."""
    return f"{bounds[0] / 1e6:.1f} to {bounds[1] / 1e6:.1f}"


if __name__ == "__main__":
    sys.exit(main())
