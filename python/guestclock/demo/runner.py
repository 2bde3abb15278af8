"""Runs the demonstration: saves a guest in one process, pauses, restores it in another, and judges what the guest saw.

The judge has the guest's log and the host's clock as the VMM read it, and none of guestclock's own numbers.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from guestclock.errors import CapabilityMissing
from guestclock.inspection.words import signed
from guestclock.progress import progress as progressing
from guestclock.promise import Interval, expected_gap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guestclock.demo.document import CounterRecord, Document, PolicyRecord, RunRecord

SCHEMA: Final = "guestclock.demo/1"
VMMS: Final = {"unicorn": "guestclock.demo.unicorn_vmm", "kvm": "guestclock.demo.kvm_vmm"}
"""The VMM's module, by backend."""
COUNTERS: Final = ("cntvct", "cntpct")
MODES: Final = ("fast", "exact")

_NS_PER_MS: Final = 1_000_000
_NS_PER_S: Final = 1_000_000_000
WIDEST_NS: Final = 200_000
"""The widest interval that a run is judged by: with a wider one the run is made again."""
_ATTEMPTS: Final = 5


def run(
    *,
    backend: Literal["unicorn", "kvm"] = "unicorn",
    pause_ms: int = 1_500,
    rounds: int = 20,
    modes: Sequence[str] = MODES,
    policies: Sequence[PolicyRecord] | None = None,
    plant_fault_ticks: int = 0,
    progress: bool = True,
) -> Document:
    """Saves and restores one guest for each mode and policy, and returns the document (`guestclock.demo.document`).

    backend: the backend that the guest runs on. "kvm" needs /dev/kvm on arm64; its document has a run for each vCPU of
    each guest.
    pause_ms: the least time between the end of the saving process and the start of the restoring one.
    rounds: the number of alarms of 20 ms that the guest lives through before the pause, and after it.
    modes: the modes in which Unicorn's guest reads its counters; on KVM it reads them itself.
    policies: by default freeze, advance, and advance by at most a third of the pause.
    plant_fault_ticks: makes each restore wrong by so many ticks, to check that the judge finds it.
    progress: shows a progress bar on standard error (needs rich).

    Raises ImportError without Unicorn or keystone-engine on the backend "unicorn", CapabilityMissing without arm64's
    KVM on the backend "kvm", ValueError for a negative pause, and RuntimeError with the VMM's own words if it fails.
    """
    if pause_ms < 0:
        msg = f"pause_ms is {pause_ms}, but no pause is shorter than 0 ms"
        raise ValueError(msg)
    # Fail here and by name, not in a child.
    if backend == "kvm":
        needs_kvm()
    else:
        import keystone  # noqa: F401

        import guestclock.adapters.unicorn  # noqa: F401

    if policies is None:
        policies = [
            {"name": "freeze", "max_ns": None},
            {"name": "advance", "max_ns": None},
            {"name": "advance", "max_ns": pause_ms * _NS_PER_MS // 3},
        ]
    runs: list[RunRecord] = []
    ways = ["on two vCPUs"] if backend == "kvm" else [f"{mode} mode" for mode in modes]
    with progressing(len(ways) * len(policies), shown=progress) as tell:
        for number, way in enumerate(ways):
            for policy in policies:
                tell(f"{describe(policy)}, {way}", 0)
                if backend == "kvm":
                    runs += _run_on_kvm(policy, pause_ms, rounds, plant_fault_ticks)
                else:
                    runs.append(_run_on_unicorn(modes[number], policy, pause_ms, rounds, plant_fault_ticks))
                tell(f"{describe(policy)}, {way}", 1)
    return {"schema": SCHEMA, "runs": runs}


def needs_kvm() -> None:
    """Raises CapabilityMissing, with the reason, unless this process can use an arm64 KVM."""
    why = ""
    if platform.machine() != "aarch64":
        why = f"this machine is {platform.machine()}, and the guest is arm64's"
    elif not os.access("/dev/kvm", os.R_OK | os.W_OK):
        why = "/dev/kvm is there, but not for this user" if Path("/dev/kvm").exists() else "there is no /dev/kvm"
    if why:
        msg = f"the demonstration on KVM needs /dev/kvm on an arm64 machine: {why}"
        raise CapabilityMissing(msg, capability="kvm")


def describe(policy: PolicyRecord) -> str:
    """The policy as a user writes it."""
    if policy["name"] == "freeze":
        return "Freeze()"
    return "Advance()" if policy["max_ns"] is None else f"Advance(max_ns={policy['max_ns']:_})"


def _run_on_unicorn(mode: str, policy: PolicyRecord, pause_ms: int, rounds: int, plant_fault_ticks: int) -> RunRecord:
    for attempt in range(1, _ATTEMPTS + 1):
        saved, restored = _save_and_restore("unicorn", policy, pause_ms, rounds, plant_fault_ticks, "--mode", mode)
        record = judge(saved, restored, policy, attempts=attempt)
        # An error never leads to another run: only a run that found none is made again for a sharper look.
        if _tells(record):
            break
    return record


def _run_on_kvm(policy: PolicyRecord, pause_ms: int, rounds: int, plant_fault_ticks: int) -> list[RunRecord]:
    """Runs the guest once: the machine limits how tightly Python can bracket it, so another run is no better."""
    saved, restored = _save_and_restore("kvm", policy, pause_ms, rounds, plant_fault_ticks)
    pairs = zip(saved["vcpus"], restored["vcpus"], strict=True)
    return [judge(before, after, policy, backend="kvm") for before, after in pairs]


def _save_and_restore(
    backend: str, policy: PolicyRecord, pause_ms: int, rounds: int, plant_fault_ticks: int, *to_save: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the two files that the VMM writes."""
    with tempfile.TemporaryDirectory(prefix="guestclock-demo-") as name:
        directory = Path(name)
        _vmm(backend, "save", directory, *to_save, "--rounds", str(rounds))
        time.sleep(pause_ms / 1_000)
        cap = [] if policy["max_ns"] is None else ["--max-ns", str(policy["max_ns"])]
        fault = ["--plant-fault-ticks", str(plant_fault_ticks)]
        _vmm(backend, "restore", directory, "--policy", policy["name"], *cap, *fault, "--rounds", str(rounds))
        return json.loads((directory / "vm.json").read_text()), json.loads((directory / "restored.json").read_text())


def _tells(record: RunRecord) -> bool:
    return all(
        counter["error_ticks"] or _width_ns(counter, record["frequency_hz"]) <= WIDEST_NS
        for counter in record["counters"].values()
    )


def judge(
    saved: dict[str, Any],
    restored: dict[str, Any],
    policy: PolicyRecord,
    *,
    backend: str = "unicorn",
    attempts: int = 1,
) -> RunRecord:
    """Judges the guest's readings by the promise, from the two files that the VMM writes, or from one vCPU's part."""
    frequency_hz = saved["counter"]["frequency_hz"]
    before, after = saved["host"]["samples"], restored["host"]["samples"]
    logged = restored["guest"]["samples"]
    taken, released = Interval(*saved["host"]["taken_at"]), Interval(*restored["host"]["released_at"])
    # In the last round before the pause, and the first after it, the sample that the host's clock pins down best.
    last = min(range(len(before) - saved["round"], len(before)), key=lambda index: _span(before[index]))
    first = min(range(saved["round"]), key=lambda index: _span(after[index]))
    counters: dict[str, CounterRecord] = {}
    for column, name in enumerate(COUNTERS):
        if name not in restored.get("counters", COUNTERS):
            continue
        gap = signed(logged[len(before) + first][column] - logged[last][column])
        expected = expected_gap(
            policy["name"],
            policy["max_ns"],
            frequency_hz,
            last_read=Interval(*before[last][column]),
            taken=taken,
            released=released,
            first_read=Interval(*after[first][column]),
        )
        counters[name] = {
            "guest_gap_ticks": gap,
            "expected_gap_ticks": [expected.low, expected.high],
            "error_ticks": expected.distance(gap),
        }
    return {
        "policy": policy,
        "backend": backend,
        "mode": saved["mode"],
        "counter_source": saved["counter"]["source"],
        "frequency_hz": frequency_hz,
        "pause_ns": (released.low - taken.low) * _NS_PER_S // frequency_hz,
        "irq_delivered": saved["irqs"] + restored["irqs"],
        "irq_delivered_after_restore": restored["irqs"],
        "counters": counters,
        "taken_at": [taken.low, taken.high],
        "released_at": [released.low, released.high],
        "samples": [
            {"host_ticks": host[0], "cntvct": guest[0]} for host, guest in zip(before + after, logged, strict=True)
        ],
        "same_counter": restored["same_counter"],
        "attempts": attempts,
    }


def _vmm(backend: str, command: str, directory: Path, *options: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", VMMS[backend], command, str(directory), *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        msg = f"the VMM failed to {command} (exit status {done.returncode}):\n{done.stderr.strip()}"
        raise RuntimeError(msg)


def _span(sample: list[list[int]]) -> int:
    return max(high for _, high in sample) - min(low for low, _ in sample)


def _width_ns(counter: CounterRecord, frequency_hz: int) -> int:
    low, high = counter["expected_gap_ticks"]
    return (high - low) * _NS_PER_S // frequency_hz
