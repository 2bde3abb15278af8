"""Conditions of a measurement: the machine, the build, the instruction set, and how fast memory is."""

from __future__ import annotations

import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

import guestclock
from guestclock import _core

ISAS = ("baseline", "avx2", "avx512")
"""From the least to the most; `GUESTCLOCK_ISA` forces one."""


def isa() -> str:
    """The instruction set in use."""
    return _core.isa()


def about() -> dict[str, str]:
    """CPU, build, Python."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "cpu": f"{model}, {os.cpu_count()} cores, {platform.machine()}",
        "instruction_set": isa(),
        "build": f"guestclock {guestclock.__version__}, {'DEBUG' if _core.DEBUG_BUILD else 'release'}",
        "python": f"{platform.python_implementation()} {platform.python_version()}, numpy {np.__version__}",
        "kernel": platform.release(),
        "host_counter": guestclock.HostCounter().source,
    }


def bandwidth(mebibytes: int = 256) -> dict[str, float]:
    """Bytes per ns of one core: copied (read and written, both counted), and only read."""
    source, target = np.ones(mebibytes << 17, np.uint64), np.zeros(mebibytes << 17, np.uint64)
    return {
        "copy": 2 * source.nbytes / _median_ns(lambda: np.copyto(target, source)),
        "read": source.nbytes / _median_ns(source.max),
    }


def _median_ns(call: Any) -> float:
    def once() -> int:
        begin = time.perf_counter_ns()
        call()
        return time.perf_counter_ns() - begin

    once()
    return statistics.median(once() for _ in range(7))
