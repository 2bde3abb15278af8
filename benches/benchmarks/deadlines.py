"""The deadline queue in its steady state, and an offset that moves."""

from __future__ import annotations

import subprocess
import sys

from . import steady

TIMERS = (1000, 100_000, 1_000_000)
PLACES = ("VMs of 8", "one VM")


class Step:
    """One step, of about `steady.TOUCHED` timers."""

    params = (TIMERS, PLACES)
    param_names = ("timers", "in")

    def setup(self, timers: int, held_in: str) -> None:
        self.kept = steady.Queue(steady.Work(timers), vm=8 if held_in == PLACES[0] else timers)

    def time_step(self, timers: int, held_in: str) -> None:
        self.kept.step()


class FirstExpiry:
    """The first `expire` of a process, the least of five processes."""

    SCRIPT = """
import time
from guestclock.model import DeadlineQueue
queue = DeadlineQueue()
queue.add_group(1)
queue.arm(0, 7)
begin = time.perf_counter_ns()
queue.expire(9)
print(time.perf_counter_ns() - begin)
"""

    def track_first_expiry(self) -> int:
        command = [sys.executable, "-c", self.SCRIPT]
        return min(int(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(5))

    track_first_expiry.unit = "ns"  # type: ignore[attr-defined]


class Queue:
    """The queue's cost with VMs of 8 timers, and with one VM that has all of them."""

    params = (TIMERS, PLACES)
    param_names = ("timers", "in")

    def setup(self, timers: int, held_in: str) -> None:
        self.queue = steady.Queue(steady.Work(timers), vm=8 if held_in == PLACES[0] else timers).queue
        self.offset = 0

    def time_set_offset(self, timers: int, held_in: str) -> None:
        self.offset += 1
        self.queue.set_offset(0, self.offset)

    def track_bytes_per_timer(self, timers: int, held_in: str) -> float:
        return self.queue.nbytes / timers

    track_bytes_per_timer.unit = "bytes"  # type: ignore[attr-defined]
