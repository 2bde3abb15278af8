"""Runs a night's parts, each to its end whatever became of the others, and writes the result file.

    python -m nightly [--only PART...] [--seed N] [--percent N] [--out DIR]

DIR (out/nightly) gets `result.json`, renewed after each part, so that a night that is cut short leaves what it has; and
a log for each part. Each night has a seed of its own, which the file gives. A short night takes a percentage of the
random tries and of the rules to plant, the tests of a submission in the emulated machines, and all of everything else.
The status is 1 if a part failed, ran out of time, or the tree wasn't a commit's.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import secrets
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nightly.counts import counts
from nightly.parts import NIGHT, Night, Part

TREE = Path(__file__).resolve().parent.parent.parent


def main() -> int:
    """Run the night."""
    parser = argparse.ArgumentParser(
        prog="python -m nightly", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for together in NIGHT for parts in together for part in parts]
    parser.add_argument("--only", nargs="+", metavar="PART", choices=names, help=f"of {', '.join(names)}")
    parser.add_argument("--out", type=Path, metavar="DIR", default=TREE / "out" / "nightly")
    parser.add_argument(
        "--seed", type=int, metavar="N", default=secrets.randbits(32), help="by default another each time"
    )
    parser.add_argument(
        "--percent", type=int, metavar="N", default=100, choices=range(1, 101), help="of a whole night's random tries"
    )
    chosen = parser.parse_args()
    night = Night(chosen.seed, chosen.percent)
    chosen.out.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {
        "commit": said("git", "rev-parse", "HEAD"),
        "changed_files": said("git", "status", "--porcelain").splitlines(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": None,
        "all_parts": chosen.only is None,
        "seed": night.seed,
        "percent": night.percent,
        "machine": {"cpus": os.cpu_count(), "architecture": platform.machine(), "kernel": platform.release()},
        "versions": versions(),
        "parts": [],
        "ok": None,
    }
    writing = threading.Lock()

    def run_each(parts: tuple[Part, ...]) -> None:
        for part in parts:
            if chosen.only is not None and part.name not in chosen.only:
                continue
            command = [night.written(word) for word in part.command]
            print(f"{part.name}: {' '.join(command)}", flush=True)
            outcome = run(part, command, chosen.out)
            print(f"{part.name}: {outcome['outcome']} in {outcome['seconds']} s, {outcome['counts']}", flush=True)
            with writing:
                document["parts"].append(outcome)
                write(chosen.out / "result.json", document)

    for together in NIGHT:
        with ThreadPoolExecutor(len(together)) as pool:
            list(pool.map(run_each, together))
    document["kernels"] = kernels()
    document["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    document["ok"] = not document["changed_files"] and all(p["outcome"] == "passed" for p in document["parts"])
    write(chosen.out / "result.json", document)
    print(f"{chosen.out / 'result.json'}: {'ok' if document['ok'] else 'NOT ok'}")
    return 0 if document["ok"] else 1


def run(part: Part, command: list[str], out: Path) -> dict[str, Any]:
    """Run a part by its command, its output in its log; gives its entry of the result file."""
    log, started = out / f"{part.name}.log", time.monotonic()
    late = threading.Event()
    with log.open("wb") as written:
        process = subprocess.Popen(
            command,
            cwd=TREE,
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def end() -> None:
        late.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(part.limit_s, end)
    timer.start()
    try:
        # What the part and all that it waited for used, which a busy machine doesn't lengthen.
        _, status, used = os.wait4(process.pid, 0)
    finally:
        timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    outcome = "out of time" if late.is_set() else "failed" if process.returncode else "passed"
    return {
        "name": part.name,
        "command": command,
        "outcome": outcome,
        "status": process.returncode,
        "seconds": round(time.monotonic() - started),
        "cpu_seconds": round(used.ru_utime + used.ru_stime),
        "counts": counts(log.read_text(errors="replace")),
        "log": log.name,
    }


def versions() -> dict[str, str]:
    """The compiler, the interpreter, and the tools that requirements-dev.txt pins, as they are installed."""
    installed = {found.name: found.version for found in importlib.metadata.distributions()}
    return {"rustc": said("rustc", "--version"), "python": platform.python_version()} | dict(sorted(installed.items()))


def kernels() -> dict[str, str]:
    """The kernel of each leg that has said what it is."""
    probed = sorted((TREE / "out" / "kvm").glob("*/probed.json"))
    return {path.parent.name: json.loads(path.read_text())["kernel"] for path in probed}


def said(*command: str) -> str:
    """Standard output of a command; empty where there is none, as outside of a git tree."""
    done = subprocess.run(command, cwd=TREE, check=False, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def write(path: Path, document: dict[str, Any]) -> None:
    """Write the result file whole, in place of the last one."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=2) + "\n")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
