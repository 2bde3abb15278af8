"""Stress, part by part.

    python -m stress PART [--runs N] [--seed N]

Each part ends with lines `count: WHAT = N`, and with status 1 at the first thing that is wrong, which it prints with
the seed. The parts are the functions of `PARTS`.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import mmap
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from guestclock import Advance, Checkpoint, Freeze, ManualCounter, ModelVm, Reg
from guestclock.errors import GuestClockError
from guestclock.guest import ClockEquation, StolenTime, VmClock, find_pages
from guestclock.inspection import diff, dry_run, inspect, target, verify
from guestclock.model import ClockBank, DeadlineQueue
from stress.sweep import cases, drawn

if TYPE_CHECKING:
    from collections.abc import Callable

SAVER = """
import sys
from guestclock import ManualCounter, ModelVm
path = sys.argv[1]
checkpoint = ModelVm(8, counter=ManualCounter(int(sys.argv[2]))).checkpoint()
print("ready", flush=True)
while True:
    checkpoint.save(path)
"""


def kills(runs: int, dice: random.Random) -> Counter[str]:
    """Kills a process that saves over and over: the file is always a whole one, and nothing else is left.

    Between two system calls a new file that replaces an old one has a hidden name: those are counted, and the next save
    takes them away.
    """
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for run in range(runs):
            path = Path(folder) / "guest.time"
            with subprocess.Popen(
                [sys.executable, "-c", SAVER, str(path), str(run)], stdout=subprocess.PIPE, text=True
            ) as saver:
                if saver.stdout is not None:
                    saver.stdout.readline()
                time.sleep(dice.random() * 0.02)
                saver.send_signal(signal.SIGKILL)
            counts["kills"] += 1
            left = sorted(entry.name for entry in Path(folder).iterdir())
            hidden = [name for name in left if name.startswith(".guestclock-")]
            holds(set(left) <= {"guest.time", *hidden}, left)
            holds(len(hidden) <= 1, left)
            counts["hidden names that a kill left"] += len(hidden)
            if path.exists():
                Checkpoint.load(path)
            ModelVm(1, counter=ManualCounter(1)).checkpoint().save(path)
            holds([entry.name for entry in Path(folder).iterdir()] == ["guest.time"], "the next save takes it away")
            if dice.random() < 0.5:
                path.unlink()
    return counts


def limits(runs: int, dice: random.Random) -> Counter[str]:
    """Makes calls with few descriptors, or small files: an error is the system's, and what was there is there after."""
    counts: Counter[str] = Counter()
    queue, counter = DeadlineQueue(), ManualCounter(1000)
    group = queue.add_group(64)
    bank = ClockBank(counter)
    handles = bank.add_many(16, 2)
    timers = np.arange(64)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "guest.time"
        checkpoint = ModelVm(4, counter=counter).checkpoint()
        checkpoint.save(path)
        calls: list[Callable[[], object]] = [
            lambda: checkpoint.save(path),
            lambda: Checkpoint.load(path),
            lambda: Checkpoint.load(folder),
            lambda: queue.expire(10**6),
            bank.cntvct,
            lambda: bank.expire(10**6),
            checkpoint.columns,
            lambda: ModelVm(1).checkpoint(),
        ]
        for _ in range(runs):
            queue.arm_many(timers, np.full(64, 5, np.uint64))
            bank.set_timers(0, handles, np.full(16, 5, np.uint64), np.ones(16, np.uint8))
            kind = dice.choice([resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE])
            before = resource.getrlimit(kind)
            allowed = dice.randrange(3, 12) if kind == resource.RLIMIT_NOFILE else dice.randrange(600)
            call = dice.choice(calls)
            resource.setrlimit(kind, (allowed, before[1]))
            try:
                given: object = call()
            except OSError as error:
                holds(error.errno is not None, error)
                given = None
                counts["refusals"] += 1
            finally:
                resource.setrlimit(kind, before)
            counts["calls at a limit"] += 1
            taken = len(given[0]) if call is calls[3] and isinstance(given, tuple) else 0
            holds(len(queue.expire(10**6)[0]) + taken == 64, "no timer is lost")
            holds(Checkpoint.load(path) == checkpoint, "the file is whole")
            holds([entry.name for entry in Path(folder).iterdir()] == ["guest.time"], "nothing else is left")
    holds(queue.timers(group) == range(64), "the group is there")
    return counts


def pages(runs: int, dice: random.Random) -> Counter[str]:
    """A guest writes anything into its pages, at any moment of a restore: nothing raises, and it stays in its page."""
    counts: Counter[str] = Counter()
    memory = mmap.mmap(-1, 4096 * 4)
    page, record = VmClock.create(memory, 4096, tai_offset_s=37), StolenTime(memory, 8192)
    around = bytes(memory[:4096]), bytes(memory[8192 + 64 :])
    counter = ManualCounter(1000)
    for _ in range(runs):
        vm = ModelVm(1, counter=counter)
        vm.opt_in()
        saved = vm.checkpoint()
        for start, size in ((4096, 112), (8192, 64)):
            place = start + dice.randrange(size)
            memory[place : min(place + 8, start + size)] = dice.randbytes(min(8, start + size - place))
        with page.update(intent=dice.choice(["snapshot", "clone", None])):
            memory[4096 + dice.randrange(112)] = dice.randrange(256)
            report = vm.restore(saved, Advance() if dice.random() < 0.5 else Freeze())
            record.add(report.added_ns)
        memory[8200:8208] = struct.pack("<Q", dice.choice([0, 1, 2**63, 2**64 - 1]))
        record.add(dice.choice([0, 1, 2**64 - 1]))
        holds((bytes(memory[:4096]), bytes(memory[8192 + 64 :])) == around, "a store outside of the page")
        holds(memory[4096 + 12] % 2 == 0, "an update ends")
        # As another process does, after the guest has written anything at all.
        for start, size in ((4096, 112), (8192, 64)):
            if dice.random() < 0.5:
                memory[start + 8 : start + size] = dice.randbytes(size - 8)
        placed = vm.checkpoint(vmclock_address=4096, stolen_time=[8192])
        found = find_pages(placed, memory, base=0)
        counts["pages that were overwritten"] += len(found.overwritten)
        if found.vmclock is not None:
            guest = [dice.choice([0, 1, 2**63, 2**64 - 1, dice.getrandbits(64)]) for _ in range(2)]
            with found.vmclock.update() as update:
                equation = ClockEquation(counter.stamp(), cntvct=guest[1], synchronized=True, max_error_ns=1)
                update.clock(equation, monotonic=(guest[0], guest[1]))
        for part in filter(None, found.stolen_time):
            part.add(1)
        memory[8192:8200] = bytes(8)
        counter.advance(3)
        counts["restores with a guest that writes into its pages"] += 1
    return counts


def registers(runs: int, dice: random.Random) -> Counter[str]:
    """Register lists that another VMM may have saved: a checkpoint that reads back, or a ValueError."""
    counts: Counter[str] = Counter()
    known = [int(reg) for reg in Reg]
    for _ in range(runs):
        lists = []
        for _ in range(dice.randrange(1, 4)):
            ids = dice.sample(known, dice.randrange(len(known) + 1)) + [
                dice.getrandbits(64) for _ in range(dice.randrange(3))
            ]
            lists.append({reg: dice.choice([0, 1, 2, 2**63, 2**64 - 1, dice.getrandbits(64)]) for reg in ids})
        try:
            made = Checkpoint.from_one_regs(lists, frequency_hz=dice.choice([1, 24_000_000, 2**32 - 1]), host=None)
        except ValueError:
            counts["lists refused"] += 1
        else:
            holds(Checkpoint.from_bytes(made.to_bytes()) == made, "it reads back")
            counts["lists taken"] += 1
    return counts


def readers(runs: int, dice: random.Random) -> Counter[str]:
    """Files with some bytes changed, given to the functions behind the command line: an InvalidFile, or a document."""
    counts: Counter[str] = Counter()
    vm = ModelVm(2, counter=ManualCounter(5), nested=True)
    whole = vm.checkpoint().to_bytes()
    sums = _crc_table()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        for _ in range(runs):
            data = bytearray(whole)
            for _ in range(dice.randrange(1, 4)):
                data[dice.randrange(len(data))] = dice.randrange(256)
            if dice.random() < 0.9:
                data[-4:] = struct.pack(">I", _crc32c(sums, data[:-4]))
            path.write_bytes(data)
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                verify([path])
            counts["damaged files read"] += 1
            try:
                read = Checkpoint.load(path)
            except ValueError:
                continue
            inspect(read)
            diff(read, read)
            if len(read) == 1:
                try:
                    dry_run(read, target(read), policy=Advance())
                except (GuestClockError, ValueError, OverflowError):
                    counts["targets refused"] += 1
            counts["damaged files that are whole"] += 1
    return counts


def races(runs: int, dice: random.Random) -> Counter[str]:
    """Reads of all of a bank's counters beside a thread that moves them: all of one instant, each time."""
    counts: Counter[str] = Counter()
    bank = ClockBank(ManualCounter(0))
    handles = bank.add_many(16_384)
    over = threading.Event()
    failures: list[str] = []

    def moves() -> None:
        while not over.is_set():
            bank.set_offsets(handles, np.full(len(handles), dice.getrandbits(64), np.uint64))
            counts["writes beside them"] += len(handles)

    def reads() -> None:
        while counts["racing reads"] < runs and not failures:
            seen = bank.cntvct()
            if (seen != seen[0]).any():
                failures.append(f"a read of two instants: {seen.min()} and {seen.max()}")
            with lock:
                counts["racing reads"] += len(seen)

    lock = threading.Lock()
    writer = threading.Thread(target=moves)
    threads = [threading.Thread(target=reads) for _ in range(2)]
    writer.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    writer.join()
    holds(not failures, failures)
    return counts


def sweep(runs: int, dice: random.Random) -> Counter[str]:
    """Calls the whole public API with one or more arguments wrong: a refusal in words, each time."""
    counts: Counter[str] = Counter()
    calls = cases()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), warnings.catch_warnings():
        # Restores and pauses are dropped here.
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(runs):
            finding = drawn(calls, dice)
            holds(finding is None, finding)
            counts["swept calls"] += 1
        gc.collect()
    return counts


def holds(condition: bool, what: object) -> None:  # noqa: FBT001
    """Ends the part where a rule is broken."""
    if not condition:
        raise AssertionError(what)


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


def _crc32c(table: list[int], data: bytes | bytearray) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


PARTS: dict[str, Callable[[int, random.Random], Counter[str]]] = {
    "kills": kills,
    "limits": limits,
    "pages": pages,
    "registers": registers,
    "readers": readers,
    "races": races,
    "sweep": sweep,
}


def main() -> int:
    """Run a part."""
    parser = argparse.ArgumentParser(prog="python -m stress", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--runs", type=int, default=1000, help="how often (default: 1000)")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    try:
        counts = PARTS[chosen.part](chosen.runs, random.Random(chosen.seed))  # noqa: S311 - to be repeated
    except BaseException:
        print(f"{chosen.part} failed with --seed {chosen.seed}", file=sys.stderr)
        raise
    for what, count in counts.items():
        print(f"count: {what} = {count}")
    print("count: stress failures = 0")
    return 0


if __name__ == "__main__":
    sys.exit(main())
