"""The half of the demonstration that runs in the emulated machine: one snapshot of a busy guest, restored four ways.

Each restore is told that the same time has passed, so that all of them begin alike. It writes what the guest said to
/out/linux-guest.json, and its console to /out/console.txt.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from guestclock import Advance, CatchUp, Freeze
from linux_guest import campaign
from linux_guest.session import HOST_HZ, ask

if TYPE_CHECKING:
    from linux_vmm import LinuxVm, Policy

PAUSE_S: Final = 24
"""Longer than a guest's watchdog allows: the soft lockup of a busy vCPU is certain from 22.5 s on."""
WAYS: Final[dict[str, Policy | None]] = {
    "registers alone": None,
    "Freeze()": Freeze(),
    "Advance()": Advance(),
    "CatchUp, 2 s each 3 s": CatchUp(step_ns=2_000_000_000, interval_ns=3_000_000_000),
}
OUT: Final = Path(os.environ.get("GUESTCLOCK_OUT", "out"))


def main() -> None:
    """Boots the guest whose kernel is named on the command line, and saves and restores it in each way."""
    kernel = Path(sys.argv[1]).read_bytes()
    say("The guest boots: two vCPUs, a shell, watchers that look at its clocks.")
    started = time.monotonic()
    vm = campaign.boot(kernel)
    say(f"It is up after {time.monotonic() - started:.1f} s of the machine's time. Now a busy loop for each vCPU.")
    ask(vm, f"guest-probe set {time.time_ns()}")
    ask(vm, f"{campaign.LOOP} {campaign.LOOP} date -u")
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        saved = campaign.snapshot(vm, Path(directory), busy=True)
        console = text(vm)
        vm.close()
        say(f"Its kernel: {saved.kernel}. It is saved.")
        for name, policy in WAYS.items():
            say(f"Another process restores it, {PAUSE_S} s later by what it is told: {name}.")
            again = partial(campaign.restore, saved, policy, given_ns=PAUSE_S * campaign.NS_PER_S)
            outcome = campaign.in_a_child(again)
            say(f"  the shell answered within {outcome.answer_ns / 1e9:.2f} s")
            results.append({"way": name, **asdict(outcome), "policy": repr(policy), "stopped_at": saved.stopped_at})
            results[-1]["read_at"] = [saved.read.asked_at, saved.read.answered_at]
            console += f"\n----- {name}, {PAUSE_S} s after the stop\n\n{outcome.console}\n"
    document = {"kernel": saved.kernel, "host_kernel": os.uname().release, "frequency_hz": HOST_HZ, "pause_s": PAUSE_S}
    (OUT / "linux-guest.json").write_text(json.dumps({**document, "results": results}, indent=1))
    (OUT / "console.txt").write_text(console)


def text(vm: LinuxVm) -> str:
    """The console so far."""
    return bytes(vm.uart.output).decode(errors="replace").replace("\r", "")


def say(text: str) -> None:
    """Tells how far the demonstration is."""
    print(text, flush=True)


if __name__ == "__main__":
    main()
