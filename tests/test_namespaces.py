"""Time namespaces: stamps taken inside and outside of one are of one clock, and so are checkpoints."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from guestclock import Advance, Checkpoint, Freeze, HostCounter, ManualCounter, ModelVm, Stamp, doctor
from guestclock.model import ScaledCounter

if TYPE_CHECKING:
    from pathlib import Path

    from guestclock.types import Counter

SHIFT_S = 1000
INSIDE = ("unshare", "--time", "--monotonic", str(SHIFT_S), "--boottime", str(2 * SHIFT_S))

# The counters of both sides, by their names.
COUNTERS = """
from dataclasses import asdict
import json, sys
from guestclock import *
from guestclock.model import *
def counter(name):
    return {
        "raw": lambda: HostCounter(source="clock_monotonic_raw"),
        "monotonic": MonotonicCounter,
        "odd": lambda: MonotonicCounter(frequency_hz=83_333_333),
        "scaled": lambda: ScaledCounter(HostCounter(source="clock_monotonic_raw"), frequency_hz=24_000_000),
    }[name]()
"""
NAMES = ("raw", "monotonic", "odd", "scaled")


def counter(name: str) -> Counter:
    counters: dict[str, Any] = {}
    exec(COUNTERS, counters)  # noqa: S102 - the text above
    made: Counter = counters["counter"](name)
    return made


def _permitted() -> str | None:
    if shutil.which("unshare") is None:
        return "there is no unshare(1) here"
    tried = subprocess.run([*INSIDE, "true"], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"no time namespace can be made here: {tried.stderr.strip()}"


_WHY_NOT = _permitted()
in_a_namespace = pytest.mark.skipif(_WHY_NOT is not None, reason=_WHY_NOT or "")


def inside(program: str, *arguments: str) -> Any:
    """Runs a program in a time namespace, and returns what it printed."""
    command = [*INSIDE, sys.executable, "-c", COUNTERS + program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@in_a_namespace
@pytest.mark.parametrize("name", NAMES)
def test_stamps_are_of_one_clock_and_reads_are_the_namespaces(name: str) -> None:
    here = counter(name)
    program = "c = counter(sys.argv[1]); print(json.dumps([c.read(), c.source, asdict(c.stamp()), c.read()]))"
    before = here.stamp()
    first, source, said, last = inside(program, name)
    after = here.stamp()
    there = Stamp(**said)
    shift = SHIFT_S * here.frequency_hz
    assert before.count + shift <= first <= last <= after.count + shift
    assert first - shift <= there.count <= last - shift
    assert source == there.source == here.source == before.source
    for earlier, later in ((before, there), (there, after)):
        assert earlier.boottime_ns is not None
        assert later.boottime_ns is not None
        assert later.slept_width_ns is not None
        # A stamp's boot time may be up to its width less.
        assert earlier.boottime_ns - (earlier.slept_width_ns or 0) <= later.boottime_ns
        assert slept(earlier) & slept(later)
        # Both are of one instant: the counters go on as CLOCK_BOOTTIME does, within 500 ppm.
        ticks = (later.count - earlier.count) * 10**9 // here.frequency_hz
        passed = later.boottime_ns - earlier.boottime_ns
        bound = 2 + passed // 2000 + 10**9 // here.frequency_hz + later.slept_width_ns + (earlier.slept_width_ns or 0)
        assert abs(ticks - passed) <= bound


class Interval:
    def __init__(self, low: int, width: int) -> None:
        self.low, self.high = low, low + width

    def __and__(self, other: Interval) -> bool:
        return self.low <= other.high and other.low <= self.high


def slept(stamp: Stamp) -> Interval:
    assert stamp.slept_ns is not None
    assert stamp.slept_width_ns is not None
    return Interval(stamp.slept_ns, stamp.slept_width_ns)


SAVE = """
vm = ModelVm(1, counter=counter(sys.argv[1]))
if sys.argv[3] == "opted-in":
    vm.set_counter_offset(vm.counter.read() - 5_000)
before = [vm.cntvct(0), vm.cntpct(0)]
vm.checkpoint(stopped_at=vm.counter.read()).save(sys.argv[2])
print(json.dumps([before, [vm.cntvct(0), vm.cntpct(0)]]))
"""
RESTORE = """
vm = ModelVm(1, counter=counter(sys.argv[1]))
policy = {"freeze": Freeze, "advance": Advance}[sys.argv[4]]()
first = vm.counter.stamp()
report = vm.restore(Checkpoint.load(sys.argv[2]), policy)
last = vm.counter.stamp()
said = report.to_dict()
assert said["elapsed_by"] == "counter" and not said["warnings"], said
stamped, stopped = said["host_count"], said["stopped_before_ticks"]
at = [vm.cntvct(0, now=report.released_at), vm.cntpct(0, now=report.released_at)]
print(json.dumps([asdict(first), asdict(last), report.added_ticks, at, stamped, stopped, report.error_bound_ticks]))
"""


def outside(program: str, *arguments: str) -> Any:
    command = [sys.executable, "-c", COUNTERS + program, *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


@in_a_namespace
@pytest.mark.parametrize("policy", ["freeze", "advance"])
@pytest.mark.parametrize("opted_in", ["opted-in", "by-value"])
@pytest.mark.parametrize("saved_inside", [True, False])
@pytest.mark.parametrize("name", ["raw", "monotonic", "scaled"])
def test_a_guest_moves_by_the_time_that_has_passed(
    name: str, saved_inside: bool, opted_in: str, policy: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "guest")
    save, resume = (inside, outside) if saved_inside else (outside, inside)
    before, after = save(SAVE, name, path, opted_in)
    saved = Checkpoint.load(path)
    assert before[0] <= saved.cntvct <= after[0]
    assert before[1] <= saved.cntpct <= after[1]
    first, last, added, at, stamped, stopped, bound = resume(RESTORE, name, path, opted_in, policy)
    passed = [stamp["count"] - saved.stamp.count for stamp in (first, last)]
    assert passed[0] <= stamped - saved.stamp.count <= passed[1]
    assert passed[1] < SHIFT_S * saved.stamp.frequency_hz // 2, "the test took too long to tell"
    if policy == "freeze":
        assert added == 0
    else:
        assert passed[0] <= added - stopped <= passed[1]
        assert added == stamped - saved.stamp.count + stopped
    # By value the counters are as exact as their reads, which a busy host makes wide.
    slack = 2 * (saved.virtual_width_ticks + (0 if opted_in == "opted-in" else bound))
    # The guest goes on from its stop.
    assert abs(at[0] - saved.cntvct + stopped - added) <= slack
    assert abs(at[1] - saved.cntpct + stopped - added) <= slack
    # The stop was between the guest's reads before it and those after the checkpoint.
    assert 0 <= stopped <= after[0] - before[0]


@in_a_namespace
def test_an_injected_stamp_is_host_wide_and_an_injected_count_is_not() -> None:
    program = """
vm = ModelVm(1, counter=counter("raw"))
vm.set_counter_offset(0)
here = vm.counter.stamp()
saved = vm.checkpoint(now=here)
report = vm.restore(saved, Freeze(), now=here)
print(json.dumps([
    here.count, saved.stamp.count, saved.cntvct, vm.cntvct(0, now=here), vm.cntpct(0, now=here), report.released_at,
    vm.cntvct(0, now=report.released_at), vm.checkpoint(now=report.released_at).stamp.count
]))
"""
    count, saved, *guest, by_count = inside(program)
    assert saved == by_count == count
    assert guest == [count + SHIFT_S * 10**9] * 5


@in_a_namespace
def test_a_namespace_that_cannot_be_known_is_said_so() -> None:
    """A process whose children are in another namespace can't read the offsets of its own."""
    program = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x80) == 0, ctypes.get_errno()
raw, monotonic = HostCounter(source="clock_monotonic_raw"), MonotonicCounter()
from guestclock import doctor
found = {finding.name: finding.ok for finding in doctor.examine()}
print(json.dumps([
    [asdict(c.stamp()) for c in (raw, monotonic)], raw.source, monotonic.source, repr(raw), raw.read(),
    found["time_namespace"]
]))
"""
    stamps, *names, raw_repr, read, ok = inside(program)
    assert names == [stamp["source"] for stamp in stamps] == ["clock_monotonic_raw_local", "clock_monotonic_local"]
    assert raw_repr == "HostCounter(source='clock_monotonic_raw')"
    assert all(stamp[name] is None for stamp in stamps for name in ("boottime_ns", "slept_ns", "slept_width_ns"))
    assert stamps[0]["count"] <= read
    assert read > SHIFT_S * 10**9
    assert ok is False


@in_a_namespace
def test_an_initial_namespace_is_known_whatever_its_children_have() -> None:
    program = """
import ctypes
assert ctypes.CDLL(None).unshare(0x80) == 0
print(json.dumps([counter("raw").source, counter("raw").stamp().slept_ns is not None]))
"""
    if "/initial" in str(next(f.value for f in doctor.examine() if f.name == "time_namespace")):
        pytest.skip("this process isn't in the initial namespace itself")
    assert outside(program) == ["clock_monotonic_raw", True]


def test_a_read_takes_a_stamp_of_its_counter() -> None:
    host = ManualCounter(1_000, frequency_hz=1_000)
    vm = ModelVm(1, counter=host)
    vm.set_counter_offset(400)
    here = host.stamp()
    host.advance(50)
    assert vm.cntvct(0, now=here) == vm.cntpct(0, now=here) == vm.cntvct(0, now=1_000) == 600
    other = ManualCounter(1_000, frequency_hz=2_000).stamp()
    with pytest.raises(ValueError, match=r"2000 Hz.*1000 Hz"):
        vm.cntvct(0, now=other)
    with pytest.raises(TypeError):
        vm.cntvct(0, now="now")  # type: ignore[arg-type]


def test_a_stamps_boot_time_is_whole() -> None:
    stamp = HostCounter(source="clock_monotonic_raw").stamp()
    assert stamp.slept_ns is not None
    fields = asdict(stamp) | {"sync": stamp.sync}
    assert Stamp(**fields) == stamp
    for name in ("boottime_ns", "slept_ns", "slept_width_ns"):
        with pytest.raises(ValueError, match="together"):
            Stamp(**fields | {name: None})
    assert ManualCounter().stamp().slept_ns == 0


@pytest.mark.parametrize("kind", [Freeze, Advance])
def test_a_checkpoint_keeps_the_boot_time(kind: type[Freeze | Advance]) -> None:
    host = HostCounter(source="clock_monotonic_raw")
    vm = ModelVm(1, counter=host)
    saved = vm.checkpoint()
    assert Checkpoint.from_bytes(saved.to_bytes()) == saved
    assert None not in (saved.stamp.boottime_ns, saved.stamp.slept_ns, saved.stamp.slept_width_ns)
    assert vm.checkpoint(now=saved.stamp).stamp == saved.stamp
    assert vm.restore(saved, kind(), now=saved.stamp).added_ticks == 0
    scaled = ScaledCounter(host, frequency_hz=1_000).stamp()
    assert scaled.slept_width_ns is not None
    assert scaled.slept_width_ns >= 10**6, "a tick may hide that much"
