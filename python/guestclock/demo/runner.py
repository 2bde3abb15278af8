"""Runs the demonstration: saves a guest in one process, pauses, restores it in another, and judges what the guest saw.

Each row of it keeps the guest's time in another way. The first does so without guestclock, and has to be found wrong.
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

from guestclock.demo.judge import is_sharp, judge, log_of
from guestclock.errors import CapabilityMissing
from guestclock.inspection.words import duration, to_ns
from guestclock.payload import VIEWS, Host, read_log
from guestclock.progress import progress as progressing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guestclock.demo.document import Document, RowRecord, RunRecord

SCHEMA: Final = "guestclock.demo/2"
VMMS: Final = {"unicorn": "guestclock.demo.unicorn_vmm", "kvm": "guestclock.demo.kvm_vmm"}
"""The VMM's module, by backend."""

_NS_PER_MS: Final = 1_000_000
_ATTEMPTS: Final = 3


def row(
    policy: Literal["freeze", "advance", "catch-up"],
    *,
    kept: Literal["offset", "value", "replayed"] = "offset",
    max_ns: int | None = None,
    step_ns: int | None = None,
    interval_ns: int | None = None,
) -> RowRecord:
    """Makes a row of the demonstration."""
    return {"kept": kept, "policy": policy, "max_ns": max_ns, "step_ns": step_ns, "interval_ns": interval_ns}


def rows_of(backend: Literal["unicorn", "kvm"], pause_ms: int) -> list[RowRecord]:
    """The rows that a backend has, for a pause of this length."""
    half, quarter = (max(pause_ms, 1) * _NS_PER_MS // parts for parts in (2, 4))
    rows = [row("freeze"), row("advance"), row("advance", max_ns=half)]
    if backend == "kvm":
        return rows
    return [
        row("freeze", kept="replayed"),
        row("freeze", kept="value"),
        *rows,
        row("catch-up", step_ns=quarter, interval_ns=40 * _NS_PER_MS),
    ]


def run(
    *,
    backend: Literal["unicorn", "kvm"] = "unicorn",
    pause_ms: int = 1_000,
    load_ms: int = 200,
    rounds: int = 20,
    mode: Literal["fast", "exact"] = "fast",
    rows: Sequence[RowRecord] | None = None,
    progress: bool = True,
) -> Document:
    """Saves and restores one guest for each row, and returns the document (`guestclock.demo.document`).

    backend: the backend that the guest runs on. "kvm" needs /dev/kvm on arm64.
    pause_ms: the least time between the end of the saving process and the start of the restoring one.
    load_ms: the time that the VMM takes to load the guest's memory between its registers and its release (Unicorn).
    rounds: the number of alarms of 20 ms that each vCPU lives through before the pause, and after it.
    mode: the mode in which Unicorn's guest reads its counters; on KVM it reads them itself.
    rows: the ways to keep its time, `rows_of` by default.
    progress: shows a progress bar on standard error (needs rich).

    Raises ImportError without Unicorn or keystone-engine on the backend "unicorn", CapabilityMissing without arm64's
    KVM on the backend "kvm", ValueError for a negative time, and RuntimeError with the VMM's own words if it fails.
    """
    for name, value in (("pause_ms", pause_ms), ("load_ms", load_ms)):
        if value < 0:
            msg = f"{name} is {value}, but no time is shorter than 0 ms"
            raise ValueError(msg)
    # Fail here and by name, not in a child.
    if backend == "kvm":
        needs_kvm()
    else:
        import keystone  # noqa: F401

        import guestclock.adapters.unicorn  # noqa: F401

    rows = rows_of(backend, pause_ms) if rows is None else rows
    runs: list[RunRecord] = []
    with progressing(len(rows), shown=progress) as tell:
        for each in rows:
            tell(describe(each), 0)
            if backend == "kvm":
                # The machine limits how tightly Python can bracket a guest on KVM, so another run is no better.
                runs.append(_save_and_restore(backend, each, pause_ms, rounds, (), ()))
            else:
                runs.append(_run_on_unicorn(mode, each, pause_ms, load_ms, rounds))
            tell(describe(each), 1)
    return {
        "schema": SCHEMA,
        "ok": is_ok(runs),
        "conclusion": conclusion(runs),
        "load_ms": load_ms if backend == "unicorn" else 0,
        "runs": runs,
    }


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


def is_control(row: RowRecord) -> bool:
    """True for the row without guestclock, which has to be found wrong: a judge that passes it sees nothing."""
    return row["kept"] == "replayed"


def is_ok(runs: Sequence[RunRecord]) -> bool:
    """True if guestclock kept every promise, and the row without it was found wrong."""
    return all(run["verdict"] == ("wrong" if is_control(run["row"]) else "kept") for run in runs)


def describe(row: RowRecord) -> str:
    """The row in few words: the policy as a user writes it."""
    if is_control(row):
        return "no library: state replayed late"
    if row["policy"] == "freeze":
        said = "Freeze()"
    elif row["policy"] == "catch-up":
        said = f"CatchUp({row['step_ns']:_}, {row['interval_ns']:_})"
    else:
        said = "Advance()" if row["max_ns"] is None else f"Advance(max_ns={row['max_ns']:_})"
    return f"{said}, by value" if row["kept"] == "value" else said


def promise(row: RowRecord) -> str:
    """The part of the pause that the guest is to see."""
    if row["policy"] == "freeze":
        return "none of the pause"
    if row["policy"] == "catch-up":
        return f"all of it, by {duration(row['step_ns'] or 0)}"
    return "all of it" if row["max_ns"] is None else f"{duration(row['max_ns'])} of it"


def about(ns: int) -> str:
    """The duration in words, to three digits."""
    size = 10 ** max(0, len(str(ns)) - 3) if ns < 10**11 else 1
    return duration(ns // size * size)


def _run_on_unicorn(mode: str, row: RowRecord, pause_ms: int, load_ms: int, rounds: int) -> RunRecord:
    to_save = ("--mode", mode, "--kept", row["kept"])
    for attempt in range(1, _ATTEMPTS + 1):
        record = _save_and_restore(
            "unicorn", row, pause_ms, rounds, to_save, ("--load-ms", str(load_ms)), attempts=attempt
        )
        # An error never leads to another run: only a run that found none is made again for a sharper look.
        if is_sharp(record):
            break
    return record


def _save_and_restore(
    backend: str,
    row: RowRecord,
    pause_ms: int,
    rounds: int,
    to_save: Sequence[str],
    to_restore: Sequence[str],
    *,
    attempts: int = 1,
) -> RunRecord:
    """Runs the guest once, and judges what the VMM wrote down."""
    with tempfile.TemporaryDirectory(prefix="guestclock-demo-") as name:
        directory = Path(name)
        _vmm(backend, "save", directory, *to_save, "--rounds", str(rounds))
        time.sleep(pause_ms / 1_000)
        given = [f"--{key.replace('_', '-')}={row[key]}" for key in ("max_ns", "step_ns", "interval_ns") if row[key]]
        _vmm(backend, "restore", directory, "--policy", row["policy"], *given, *to_restore, "--rounds", str(rounds))
        judged = judged_on_kvm if backend == "kvm" else _judged_on_unicorn
        return judged(directory, row, attempts=attempts)


def _judged_on_unicorn(directory: Path, row: RowRecord, *, attempts: int) -> RunRecord:
    saved, restored, host = (_read(directory / f"{name}.json") for name in ("vm", "restored", "host"))
    return judge(
        log_of(restored["guest"]),
        Host.from_dict(host),
        row,
        backend="unicorn",
        mode=saved["mode"],
        views=VIEWS,
        stated_ticks=restored.get("report", {}).get("error_bound_ticks", 0),
        attempts=attempts,
    )


def judged_on_kvm(directory: Path, row: RowRecord, *, attempts: int = 1) -> RunRecord:
    """Judges what the VMM on KVM left in its directory. Before Linux 6.4 that is CNTVCT alone."""
    restored, host = (_read(directory / f"{name}.json") for name in ("restored", "host"))
    vcpu = restored["vcpus"][0]
    by_value = vcpu["report"]["method"] != "offset"
    return judge(
        read_log((directory / "memory.bin").read_bytes()),
        Host.from_dict(host),
        {**row, "kept": "value"} if by_value else row,
        backend="kvm",
        mode="kvm",
        views=vcpu["counters"],
        stated_ticks=vcpu["report"]["error_bound_ticks"],
        attempts=attempts,
    )


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def conclusion(runs: Sequence[RunRecord]) -> str:
    """The result in a sentence, or what is wrong."""
    kept = [run for run in runs if not is_control(run["row"])]
    control = [run for run in runs if is_control(run["row"])]
    if not is_ok(runs):
        return f"Something is wrong. {' '.join(_complaint(run) for run in runs if _complaint(run))}"
    most = max((_most_ns(run) for run in kept), default=0)
    said = (
        f"With guestclock this guest's clock did what each policy says, to within the {about(most)} that this host's"
        " clock can tell, on every vCPU, and no interrupt was lost or late"
    )
    if control:
        off = max(abs(_off_ns(run)) for run in control)
        said += f"; without it, the same guest woke up with its clock off by {about(off)}"
    return f"{said}."


def _complaint(run: RunRecord) -> str:
    name = describe(run["row"])
    if is_control(run["row"]):
        return (
            "" if run["verdict"] == "wrong" else f"{name}: the judge found nothing wrong with it, so it sees nothing."
        )
    if run["verdict"] == "unclear":
        return f"{name}: this host is too busy to tell (to {about(_most_ns(run))})."
    if run["verdict"] == "kept":
        return ""
    first = max(run["findings"], key=lambda finding: finding["ticks"] or 0)
    much = "" if first["ticks"] is None else f" ({about(to_ns(first['ticks'], run['frequency_hz']))})"
    return f"{name}: {first['kind']}, {first['what']}{much}."


def _off_ns(run: RunRecord) -> int:
    return to_ns(run["off_by_ticks"], run["frequency_hz"])


def _most_ns(run: RunRecord) -> int:
    return to_ns(run["off_by_known_to_ticks"], run["frequency_hz"])


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
