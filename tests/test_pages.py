"""The pages that tell a guest of its time.

The reader below is written from the specification and shares nothing with the writer: it reads what a guest would.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestclock import Advance, Freeze, ManualCounter, ModelVm, Report, Stamp, SyncBound
from guestclock.errors import PageOverwritten
from guestclock.guest import ClockEquation, StolenTime, VmClock, VmClockUpdate, clock_settime
from guestclock.types import Policy

HZ = 62_500_000
NS_PER_S = 1_000_000_000
NOW_NS = 1_750_000_000_123_456_789
ABI = json.loads((Path(__file__).parent / "golden" / "vmclock-abi.json").read_text())
"""The kernel's header, as a C compiler lays it out: tools/vmclock_header.py."""

SIGNED = {"tai_offset_sec"}
INTENTS = ("live-migration", "live-update", "snapshot", "clone")


def constant(name: str) -> int:
    value = ABI["constants"]["VMCLOCK_" + name]
    assert isinstance(value, int)
    return value


def fields(memory: bytes) -> dict[str, int]:
    """Every field of the page, by the kernel's layout."""
    read = {}
    for name, offset in ABI["offsets"].items():
        size = ABI["sizes"][name]
        read[name] = int.from_bytes(memory[offset : offset + size], "little", signed=name in SIGNED)
    return read


class NotReadable(Exception):
    """The page has no time for its reader."""


def read_vmclock(page: dict[str, int], count: int) -> tuple[Fraction, Fraction | None]:
    """The time in seconds, and the most that it may be off: UAPI.13, "Calculating time", "Time error calculation"."""
    assert page["magic"] == constant("MAGIC")
    assert page["version"] == 1
    assert page["size"] >= ABI["sizes"]["vmclock_abi"]
    if page["seq_count"] & 1:
        raise NotReadable("an update is under way")
    if page["counter_id"] != constant("COUNTER_ARM_VCNT"):
        raise NotReadable("no counter")
    if page["clock_status"] not in {constant("STATUS_SYNCHRONIZED"), constant("STATUS_FREERUNNING")}:
        raise NotReadable("not valid")
    age = (count - page["counter_value"]) % 2**64
    unit = Fraction(1, 2 ** (64 + page["counter_period_shift"]))
    time = page["time_sec"] + Fraction(page["time_frac_sec"], 2**64) + age * page["counter_period_frac_sec"] * unit
    flags = page["flags"]
    if not (flags & constant("FLAG_TIME_MAXERROR_VALID") and flags & constant("FLAG_PERIOD_MAXERROR_VALID")):
        return time, None
    rate = page["counter_period_maxerror_rate_frac_sec"] * unit
    return time, Fraction(page["time_maxerror_nanosec"], NS_PER_S) + age * rate


@pytest.fixture
def memory() -> mmap.mmap:
    return mmap.mmap(-1, 2 * mmap.PAGESIZE)


def known(counter: ManualCounter, **changes: object) -> Stamp:
    """A stamp of a synchronised host."""
    return replace(counter.stamp(), **{"synchronized": True, **changes})  # type: ignore[arg-type]


def host() -> ManualCounter:
    return ManualCounter(10**12, frequency_hz=HZ, realtime_ns=NOW_NS)


def equation(counter: ManualCounter, cntvct: int = 5000, **changes: object) -> ClockEquation:
    return ClockEquation(known(counter, **changes), cntvct=cntvct, max_error_ns=1000, rate_max_error_ppb=50_000)


def restored(host: ManualCounter, policy: Policy, pause_ns: int) -> tuple[ModelVm, Report]:
    """A VM whose guest stopped at count 1 000 000, after a pause."""
    source = ModelVm(counter=host)
    source.set_counter_offset(host.read() - 1_000_000)
    checkpoint = source.checkpoint()
    host.advance(pause_ns * HZ // NS_PER_S)
    vm = ModelVm(counter=host)
    return vm, vm.restore(checkpoint, policy)


# Stolen time.


@pytest.mark.parametrize(
    ("policy", "added"), [(Freeze(), 0), (Advance(), 3 * NS_PER_S), (Advance(max_ns=NS_PER_S), NS_PER_S)]
)
def test_stolen_time_is_what_was_added(memory: mmap.mmap, policy: Policy, added: int) -> None:
    _, report = restored(host(), policy, 3 * NS_PER_S)
    memory[64 + 8 : 64 + 16] = struct.pack("<Q", 7)
    before = memory[:]
    record = StolenTime(memory, 64)
    assert record.add(report.added_ns) == record.stolen_ns == 7 + added
    assert struct.unpack_from("<IIQ", memory, 64) == (0, 0, 7 + added)
    assert memory[: 64 + 8] + memory[64 + 16 :] == before[: 64 + 8] + before[64 + 16 :]


def test_stolen_time_has_to_be_there(memory: mmap.mmap) -> None:
    for offset in (8, 32, 63):
        with pytest.raises(ValueError, match="multiple of 64"):
            StolenTime(memory, offset)
    for offset in (len(memory) - 63, len(memory), 2**63):
        with pytest.raises(ValueError, match="doesn't fit"):
            StolenTime(memory, offset)
    memory[4] = 1
    with pytest.raises(PageOverwritten, match="revision 0"):
        StolenTime(memory)


def test_stolen_time_wraps_as_kvms_does(memory: mmap.mmap) -> None:
    """Whatever the guest has written into its record, a restore goes on (kvm_update_stolen_time in arch/arm64/kvm)."""
    record = StolenTime(memory, 64)
    for found in (0, 1, 2**63, 2**64 - 2, 2**64 - 1):
        memory[72:80] = found.to_bytes(8, "little")
        assert record.stolen_ns == found
        assert record.add(3) == record.stolen_ns == (found + 3) % 2**64
    # Its header too: what was found once is gone on with.
    memory[64:72] = b"\xff" * 8
    assert record.add(1) == record.stolen_ns == 3


def test_memory_has_to_be_writable_and_stays_while_it_is_used(memory: mmap.mmap) -> None:
    with pytest.raises(ValueError, match="writable"):
        StolenTime(memoryview(memory).toreadonly())
    with pytest.raises(ValueError, match="in one piece"):
        VmClock.create(memoryview(memory)[::2], tai_offset_s=None)
    record = StolenTime(memory)
    with pytest.raises(BufferError):
        memory.close()
    del record


# The page's layout.


@pytest.mark.parametrize("tai_offset_s", [None, 37])
@pytest.mark.parametrize("counter", [None, "arm-vcnt"])
@pytest.mark.parametrize("time_type", ["utc", "tai"])
def test_a_new_page_by_the_kernels_header(
    memory: mmap.mmap,
    counter: Literal["arm-vcnt"] | None,
    time_type: Literal["utc", "tai"],
    tai_offset_s: int | None,
) -> None:
    memory[:] = b"\xa5" * len(memory)
    page = VmClock.create(
        memory,
        4096,
        tai_offset_s=tai_offset_s,
        counter=counter,
        time_type=time_type,
        disruption_marker=3,
        vm_generation=4,
        notification=True,
    )
    read = fields(memory[4096:])
    seq_count = read.pop("seq_count")
    assert seq_count % 2 == 0
    flags = ["VM_GEN_COUNTER_PRESENT", "NOTIFICATION_PRESENT"]
    assert read == dict.fromkeys(read, 0) | {
        "magic": constant("MAGIC"),
        "size": 4096,
        "version": 1,
        "counter_id": constant("COUNTER_ARM_VCNT" if counter else "COUNTER_INVALID"),
        "time_type": constant("TIME_UTC" if time_type == "utc" else "TIME_TAI"),
        "flags": sum(constant(f"FLAG_{flag}") for flag in flags + ["TAI_OFFSET_VALID"] * (tai_offset_s is not None)),
        "clock_status": constant("STATUS_UNRELIABLE" if counter else "STATUS_UNKNOWN"),
        "tai_offset_sec": -(tai_offset_s or 0),
        "disruption_marker": 3,
        "vm_generation_counter": 4,
    }
    assert (page.disruption_marker, page.vm_generation) == (3, 4)
    assert page.status == ("unreliable" if counter else "unknown")
    assert memory[4096 + 112 :] == b"\xa5" * (len(memory) - 4096 - 112)
    assert memory[:4096] == b"\xa5" * 4096


@pytest.mark.parametrize("seconds", [-(2**15), 2**15 + 1, 2**31 - 1, -(2**31)])
def test_a_new_page_refuses_a_tai_offset_that_does_not_fit(memory: mmap.mmap, seconds: int) -> None:
    with pytest.raises(ValueError, match=f"{seconds} s doesn't fit"):
        VmClock.create(memory, tai_offset_s=seconds)
    assert memory[:] == bytes(len(memory))


def test_a_pages_tai_offset_stays_until_an_equation_has_another(memory: mmap.mmap) -> None:
    """A driver that found it at its probe goes on by it: with 0 instead its clock would be 37 s off."""
    page, here = VmClock.create(memory, tai_offset_s=37), known(host())
    assert here.tai_offset_s is None

    def offset() -> int | None:
        read = fields(memory[:])
        return -read["tai_offset_sec"] if read["flags"] & constant("FLAG_TAI_OFFSET_VALID") else None

    with page.update() as update:
        update.clock(ClockEquation(here, cntvct=5))
    assert (page.status, offset()) == ("synchronized", 37)
    with page.update("clone"):
        pass
    assert (page.status, offset()) == ("unreliable", 37)
    with pytest.raises(KeyError), page.update():
        raise KeyError
    assert offset() == 37
    with page.update() as update:
        update.clock(ClockEquation(replace(here, tai_offset_s=38), cntvct=5))
    assert offset() == 38


def test_whoever_vouches_for_the_clock_may_know_tai_better_than_the_kernel(memory: mmap.mmap) -> None:
    sync = SyncBound(max_error_ns=10, tai_offset_s=36)
    for kernels in (None, 37):
        clock = ClockEquation(replace(known(host()), tai_offset_s=kernels, sync=sync), cntvct=0, time_type="tai")
        assert clock.time_ns(0) == NOW_NS + 36 * NS_PER_S
        page = VmClock.create(memory, tai_offset_s=None, time_type="tai")
        with page.update() as update:
            update.clock(clock)
        assert fields(memory[:])["tai_offset_sec"] == -36


def test_every_field_of_a_page_with_a_clock(memory: mmap.mmap) -> None:
    page = VmClock.create(memory, tai_offset_s=None, time_type="tai")
    here = known(host(), tai_offset_s=37, leap="insert", width_ns=100)
    clock = ClockEquation(
        here,
        cntvct=2**64 - 5,
        time_type="tai",
        est_error_ns=10,
        max_error_ns=20,
        rate_est_error_ppb=1,
        rate_max_error_ppb=2,
    )
    with page.update() as update:
        assert update.clock(clock, monotonic=(0, 2**64 - 5)) is True
    frac = (2**64 * 16 << 25) // NS_PER_S  # 16 ns; 2**-25 < 16e-9 < 2**-26
    read = fields(memory[:])
    assert read["counter_period_shift"] == 25
    assert abs(read["counter_period_frac_sec"] - frac) <= 1
    assert clock.period == (read["counter_period_frac_sec"], 25)
    valid = ("TAI_OFFSET", "PERIOD_ESTERROR", "PERIOD_MAXERROR", "TIME_ESTERROR", "TIME_MAXERROR")
    flags = [*(f"FLAG_{name}_VALID" for name in valid), "FLAG_TIME_MONOTONIC", "FLAG_VM_GEN_COUNTER_PRESENT"]
    assert read["flags"] == sum(map(constant, flags))
    assert read["clock_status"] == constant("STATUS_SYNCHRONIZED")
    # The sign that Linux reads: UTC = TAI + tai_offset_sec.
    assert read["tai_offset_sec"] == -37
    assert read["leap_indicator"] == constant("LEAP_PRE_POS")
    assert read["counter_value"] == 2**64 - 5
    assert read["time_sec"] == NOW_NS // NS_PER_S + 37
    assert read["time_frac_sec"] == -(-(NOW_NS % NS_PER_S << 64) // NS_PER_S)
    assert (read["time_esterror_nanosec"], read["time_maxerror_nanosec"]) == (111, 121)
    assert read["counter_period_esterror_rate_frac_sec"] == -(-read["counter_period_frac_sec"] // NS_PER_S) + 1
    assert read["counter_period_maxerror_rate_frac_sec"] == -(-2 * read["counter_period_frac_sec"] // NS_PER_S) + 1
    assert read["leap_second_smearing_hint"] == constant("SMEARING_STRICT")


def test_a_page_has_to_fit_and_to_be_aligned(memory: mmap.mmap) -> None:
    for offset in (1, 4, 7):
        with pytest.raises(ValueError, match="multiple of 8"):
            VmClock.create(memory, offset, tai_offset_s=None, size=112)
    with pytest.raises(ValueError, match="doesn't fit"):
        VmClock.create(memory, len(memory) - 104, tai_offset_s=None, size=112)
    for size in (0, 111, len(memory) + 1):
        with pytest.raises(ValueError, match=f"region of {size} bytes"):
            VmClock.create(memory, tai_offset_s=None, size=size)
    assert memory[:] == bytes(len(memory))
    with pytest.raises(PageOverwritten, match="no vmclock page"):
        VmClock(memory)
    VmClock.create(memory, len(memory) - 112, tai_offset_s=None, size=112)
    assert VmClock(memory, len(memory) - 112).status == "unreliable"


# The equation.


@pytest.mark.parametrize("age_s", [0, 1, 60])
@pytest.mark.parametrize("hz", [24_000_000, 62_500_000, 83_333_333, 1_000_000_000, 1_050_000_000])
@pytest.mark.parametrize("policy", [Freeze(), Advance()])
def test_a_guest_reads_the_hosts_time(memory: mmap.mmap, age_s: int, hz: int, policy: Policy) -> None:
    counter = ManualCounter(10**12, frequency_hz=hz, realtime_ns=NOW_NS)
    source = ModelVm(counter=counter)
    source.set_counter_offset(counter.read() - 1_000_000)
    checkpoint = source.checkpoint()
    counter.advance(7 * hz)
    vm = ModelVm(counter=counter)
    page = VmClock.create(memory, tai_offset_s=None)
    with page.update("snapshot") as update:
        vm.restore(checkpoint, policy)
        here = known(counter)
        clock = ClockEquation(here, cntvct=vm.cntvct(0, now=here), max_error_ns=1000, rate_max_error_ppb=50_000)
        update.clock(clock)
    counter.advance(age_s * hz)
    count = vm.cntvct(0)
    time, bound = read_vmclock(fields(memory[:]), count)
    assert bound is not None
    error_ns = time * NS_PER_S - counter.realtime_ns
    assert abs(error_ns) < 1
    # What the wall clock may be off, and 50 ppm of the age.
    assert 1000 + 50_000 * age_s <= bound * NS_PER_S <= 1000 + 50_000 * age_s + 2
    claimed = clock.max_error_ns_at(count - clock.counter_value)
    assert claimed is not None
    assert bound * NS_PER_S <= claimed <= bound * NS_PER_S + 3
    # Its reader rounds down, first to 2^-64 of a second.
    assert clock.time_ns(count) in {time * NS_PER_S // 1, time * NS_PER_S // 1 - 1}
    assert clock.time_ns(clock.counter_value) == here.realtime_ns


def test_a_measured_rate_is_the_hosts_own(memory: mmap.mmap) -> None:
    counter = host()
    since = known(counter, width_ns=60)
    counter.advance(100 * HZ)
    # The host's counter runs 20 ppm slow: its wall clock gained 2 ms in 100 s.
    counter.step_realtime(2_000_000)
    here = known(counter, width_ns=40)
    clock = ClockEquation(here, cntvct=77, since=since, max_error_ns=450, rate_max_error_ppb=5)
    page = VmClock.create(memory, tai_offset_s=None)
    with page.update() as update:
        update.clock(clock)
    time, bound = read_vmclock(fields(memory[:]), 77 + 60 * HZ)
    assert bound is not None
    truth = Fraction(here.realtime_ns) + 60 * Fraction(100 * NS_PER_S + 2_000_000, 100)
    assert abs(time * NS_PER_S - truth) < 1
    # Both ends' errors of 450 ns and both brackets are 10 ppb of 100 s, rounded up, and 5 ppb are declared.
    assert 450 + 40 + 60 * 15 <= bound * NS_PER_S <= 450 + 40 + 60 * 15 + 3


@given(
    hz=st.integers(2, 2**32 - 1),
    pause_ns=st.integers(0, 10**15),
    age=st.integers(0, 2**62),
    rate_ppb=st.integers(-500_000, 500_000),
)
def test_the_truth_stays_within_the_bound(hz: int, pause_ns: int, age: int, rate_ppb: int) -> None:
    counter = ManualCounter(10**6, frequency_hz=hz, realtime_ns=NOW_NS + pause_ns)
    clock = ClockEquation(known(counter), cntvct=0, max_error_ns=0, rate_max_error_ppb=abs(rate_ppb))
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    page = VmClock.create(memory, tai_offset_s=None)
    with page.update() as update:
        update.clock(clock)
    time, bound = read_vmclock(fields(memory[:]), age)
    assert bound is not None
    truth = Fraction(NOW_NS + pause_ns, NS_PER_S) + Fraction(age, hz) * Fraction(10**9 + rate_ppb, 10**9)
    assert abs(time - truth) <= bound
    claimed = clock.max_error_ns_at(age)
    assert claimed is not None
    assert bound * NS_PER_S <= claimed


def test_nothing_is_claimed_that_nobody_vouched_for(memory: mmap.mmap) -> None:
    page = VmClock.create(memory, tai_offset_s=None)
    clock = ClockEquation(known(host()), cntvct=1)
    assert clock.max_error_ns_at(0) is None
    with page.update() as update:
        assert update.clock(clock) is False
    read = fields(memory[:])
    assert read["flags"] == constant("FLAG_VM_GEN_COUNTER_PRESENT")
    assert read["tai_offset_sec"] == 0


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"synchronized": False}, {}, "synchronised"),
        ({"synchronized": None}, {}, "synchronised"),
        ({}, {"synchronized": False}, "synchronised"),
        ({"leap": "in-progress"}, {}, "leap second"),
        ({}, {"time_type": "tai"}, "TAI"),
        ({"tai_offset_s": 40_000}, {}, "16 bits"),
        ({"realtime_ns": -1}, {}, "1970"),
        ({"frequency_hz": 1}, {}, "second or more"),
        ({}, {"time_type": "gps"}, "utc, tai"),
    ],
)
def test_an_equation_that_would_be_a_guess_is_refused(
    changes: dict[str, object], options: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        ClockEquation(known(host(), **changes), cntvct=0, **options)  # type: ignore[arg-type]


def test_a_rate_over_a_step_is_refused() -> None:
    counter = host()
    since = known(counter)
    counter.advance(HZ)
    counter.step_realtime(1_000_000)
    with pytest.raises(ValueError, match="stepped"):
        ClockEquation(known(counter), cntvct=0, since=since)
    with pytest.raises(ValueError, match="two counters"):
        ClockEquation(since, cntvct=0, since=known(counter))
    # A leap second that the kernel took out of UTC is none.
    counter.step_realtime(-1_000_000 - NS_PER_S)
    ClockEquation(known(counter, tai_offset_s=38), cntvct=0, since=replace(since, tai_offset_s=37))


# Updates.


def test_readers_wait_while_an_update_is_open(memory: mmap.mmap) -> None:
    page = VmClock.create(memory, tai_offset_s=None)
    before = fields(memory[:])
    with page.update("snapshot") as update:
        update.clock(equation(host()))
        inside = fields(memory[:])
        assert inside.pop("seq_count") == before["seq_count"] + 1
        # Nothing but the count is written before the end.
        assert inside == {name: value for name, value in before.items() if name != "seq_count"}
        with pytest.raises(NotReadable):
            read_vmclock(fields(memory[:]), 5000)
        with pytest.raises(RuntimeError, match="open already"), page.update():
            pass
    after = fields(memory[:])
    assert after["seq_count"] == before["seq_count"] + 2
    read_vmclock(after, 5000)
    for call in (update.no_clock, lambda: update.clock(equation(host()))):
        with pytest.raises(RuntimeError, match="inside"):
            call()
    assert fields(memory[:]) == after


@pytest.mark.parametrize(
    ("intent", "disrupted", "marker", "generation"),
    [
        (None, None, 0, 0),
        (None, True, 1, 0),
        ("live-migration", None, 1, 0),
        ("live-update", None, 1, 0),
        ("live-update", False, 0, 0),
        ("snapshot", None, 1, 1),
        ("snapshot", False, 0, 1),
        ("clone", None, 1, 1),
        ("clone", False, 0, 1),
    ],
)
def test_what_the_guest_is_told_by_intent(
    memory: mmap.mmap, intent: str | None, disrupted: bool | None, marker: int, generation: int
) -> None:
    page = VmClock.create(memory, tai_offset_s=None, disruption_marker=2**64 - 1, vm_generation=10)
    with page.update() as update:
        update.clock(equation(host()))
    with page.update(intent, disrupted=disrupted):  # type: ignore[arg-type]
        pass
    read = fields(memory[:])
    assert read["disruption_marker"] == (2**64 - 1 + marker) % 2**64 == page.disruption_marker
    assert read["vm_generation_counter"] == 10 + generation == page.vm_generation
    # An equation outlives what didn't disrupt its counter, and nothing else.
    assert read["clock_status"] == constant("STATUS_UNRELIABLE" if marker else "STATUS_SYNCHRONIZED")
    assert (read["counter_period_frac_sec"] == 0) == bool(marker)


def test_intents_that_are_none(memory: mmap.mmap) -> None:
    page = VmClock.create(memory, tai_offset_s=None)
    with pytest.raises(ValueError, match="another host"):
        page.update("live-migration", disrupted=False)
    with pytest.raises(ValueError, match=", ".join(INTENTS)):
        page.update("migration")  # type: ignore[arg-type]


@pytest.mark.parametrize("intent", [None, *INTENTS])
def test_an_update_that_fails_leaves_no_clock(memory: mmap.mmap, intent: str | None) -> None:
    page = VmClock.create(memory, tai_offset_s=None)
    with page.update() as update:
        update.clock(equation(host()))
    good = fields(memory[:])
    with suppress(ZeroDivisionError), page.update(intent) as update:  # type: ignore[arg-type]
        update.clock(equation(host()))
        raise ZeroDivisionError
    read = fields(memory[:])
    assert read["seq_count"] == good["seq_count"] + 2
    assert read["disruption_marker"] == good["disruption_marker"] + 1
    assert read["clock_status"] == constant("STATUS_UNRELIABLE")
    equation_of = [
        name for name in read if name.startswith(("counter_v", "counter_p", "time_s", "time_f", "time_e", "time_m"))
    ]
    assert {read[name] for name in equation_of} == {0}
    assert read["flags"] == constant("FLAG_VM_GEN_COUNTER_PRESENT")
    assert page.status == "unreliable"
    with pytest.raises(NotReadable):
        read_vmclock(read, 5000)
    with page.update() as update:
        update.clock(equation(host()), status="freerunning")
    assert fields(memory[:])["clock_status"] == constant("STATUS_FREERUNNING")
    read_vmclock(fields(memory[:]), 5000)


def test_a_host_that_is_not_synchronised_takes_the_clock_away(memory: mmap.mmap) -> None:
    page = VmClock.create(memory, tai_offset_s=None)
    with page.update() as update:
        update.clock(equation(host()))
    with page.update() as update:
        update.no_clock()
    assert page.status == "unreliable"
    # It never changes which counter it is: a guest looks at that once.
    assert fields(memory[:])["counter_id"] == constant("COUNTER_ARM_VCNT")


def test_a_page_without_a_counter_gets_no_clock(memory: mmap.mmap) -> None:
    page = VmClock.create(memory, tai_offset_s=None, counter=None)
    with page.update("live-migration") as update, pytest.raises(ValueError, match="counter=None"):
        update.clock(equation(host()))
    assert (page.status, page.disruption_marker) == ("unknown", 1)
    assert fields(memory[:])["counter_id"] == constant("COUNTER_INVALID")


def test_a_page_keeps_its_type_of_time(memory: mmap.mmap) -> None:
    page = VmClock.create(memory, tai_offset_s=None, time_type="tai")
    with page.update() as update, pytest.raises(ValueError, match="the page's time is tai"):
        update.clock(equation(host()))


def moved(page: VmClock, last: int, first: int, step_ns: int, counter: ManualCounter) -> bool:
    """Puts the page's clock forward by `step_ns`, and asks for TIME_MONOTONIC."""
    counter.step_realtime(step_ns)
    with page.update() as update:
        return update.clock(equation(counter), monotonic=(last, first))


def test_monotonic_is_claimed_only_where_it_holds(memory: mmap.mmap) -> None:
    page, counter = VmClock.create(memory, tai_offset_s=None), host()
    flag = constant("FLAG_TIME_MONOTONIC")

    def claimed() -> bool:
        return bool(fields(memory[:])["flags"] & flag)

    assert moved(page, 0, 5000, 0, counter) is claimed() is True
    # By a tick of 16 ns.
    assert moved(page, 6000, 6000, 0, counter) is claimed() is True
    assert moved(page, 6000, 6000, -1, counter) is claimed() is False
    assert moved(page, 6000, 6001, -16, counter) is claimed() is True
    assert moved(page, 6000, 6001, -17, counter) is claimed() is False
    with page.update() as update:
        assert update.clock(equation(counter)) is claimed() is False
        with pytest.raises(ValueError, match="before the equation"):
            update.clock(equation(counter), monotonic=(6000, 4999))
    # What stood there before it was taken away nobody knows any more.
    with page.update() as update:
        update.no_clock()
    assert moved(page, 6000, 7000, NS_PER_S, counter) is claimed() is False
    assert moved(page, 7000, 7000, 0, counter) is claimed() is True


# A page that came with the guest's memory.


def test_a_page_goes_on_where_it_was_saved(memory: mmap.mmap) -> None:
    page, counter = VmClock.create(memory, tai_offset_s=None, disruption_marker=5), host()
    with page.update() as update:
        update.clock(equation(counter))
    with mmap.mmap(-1, len(memory)) as copy:
        copy[:] = memory[:]
        again = VmClock(copy)
        assert (again.status, again.disruption_marker) == ("synchronized", 5)
        with again.update("snapshot") as update:
            assert update.clock(equation(counter), monotonic=(6000, 6000)) is True
        read = fields(copy[:])
        assert (read["disruption_marker"], read["vm_generation_counter"]) == (6, 1)
        del again, update


def test_a_page_that_was_saved_in_an_update_is_closed_by_the_next(memory: mmap.mmap) -> None:
    page, counter = VmClock.create(memory, tai_offset_s=None), host()
    with page.update() as update:
        update.clock(equation(counter))
    struct.pack_into("<I", memory, 12, 2**32 - 1)
    again = VmClock(memory)
    with again.update("snapshot") as update:
        # Half of what is there may be of another equation.
        assert update.clock(equation(counter), monotonic=(6000, 6000)) is False
    assert fields(memory[:])["seq_count"] == 0
    read_vmclock(fields(memory[:]), 6000)


def test_what_a_guest_writes_into_its_page_does_no_harm(memory: mmap.mmap) -> None:
    page = VmClock.create(memory, tai_offset_s=None)
    with page.update() as update:
        update.clock(equation(host()))
    good = fields(memory[:])
    memory[12:112] = b"\xff" * 100
    with page.update():
        pass
    read = fields(memory[:])
    assert read.pop("seq_count") % 2 == 0
    assert read == {name: value for name, value in good.items() if name != "seq_count"}


def test_a_guest_cannot_keep_an_update_open(memory: mmap.mmap) -> None:
    page = VmClock.create(memory, tai_offset_s=None)
    with page.update() as update:
        update.clock(equation(host()))
        good = fields(memory[:])
        memory[:112] = b"\xff" * 112
    read_vmclock(fields(memory[:]), 5000)
    memory[0] = 0
    with page.update():
        pass
    closed = fields(memory[:])
    assert closed["seq_count"] % 2 == 0
    constant_fields = ("magic", "size", "version", "counter_id", "time_type")
    assert all(closed[name] == good[name] for name in constant_fields)


def test_an_update_that_nobody_closes_closes_itself(memory: mmap.mmap) -> None:
    page = VmClock.create(memory, tai_offset_s=None)
    with page.update() as update:
        update.clock(equation(host()))
    before = fields(memory[:])
    dropped = page.update()
    dropped.__enter__()
    assert fields(memory[:])["seq_count"] % 2 == 1
    del dropped
    after = fields(memory[:])
    assert after["seq_count"] == before["seq_count"] + 2
    assert (page.status, after["disruption_marker"]) == ("unreliable", before["disruption_marker"] + 1)
    with page.update():
        pass


# Beside a reader.

READER = """
import mmap, os, struct, sys
with mmap.mmap(int(sys.argv[1]), 4096, prot=mmap.PROT_READ) as memory:
    print("ready", flush=True)
    accepted = set()
    while True:
        before = struct.unpack_from("<I", memory, 12)[0] & ~1
        body = memory[16:112]
        if struct.unpack_from("<I", memory, 12)[0] != before:
            continue
        accepted.add(body)
        if struct.unpack_from("<Q", body)[0] >= int(sys.argv[2]):
            break
sys.stdout.write("".join(body.hex() + chr(10) for body in accepted))
"""
"""A guest, as far as memory goes: another process, which nothing keeps from looking at any moment."""


def test_every_page_that_a_reader_accepts_was_written_whole() -> None:
    rounds = 20_000
    fd = os.memfd_create("page")
    os.ftruncate(fd, 4096)
    memory = mmap.mmap(fd, 4096)
    page, counter = VmClock.create(memory, tai_offset_s=None), host()
    written = {memory[16:112]}
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(fd), str(rounds)], stdout=subprocess.PIPE, pass_fds=[fd], text=True
    )
    with reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        try:
            for _ in range(rounds):
                counter.advance(12_345)
                with page.update("live-update") as update:
                    update.clock(equation(counter, cntvct=counter.read()))
                written.add(memory[16:112])
        except BaseException:
            reader.kill()  # It waits for the last round.
            raise
        accepted = {bytes.fromhex(line) for line in reader.stdout.read().split()}
    os.close(fd)
    assert reader.returncode == 0
    assert len(written) == rounds + 1
    assert accepted
    assert accepted <= written


# An agent in the guest.


@pytest.mark.parametrize("policy", [Freeze(), Advance(), Advance(max_ns=NS_PER_S)])
def test_an_agent_sets_the_time_that_it_is(policy: Policy) -> None:
    counter = host()
    vm, report = restored(counter, policy, 3 * NS_PER_S)
    released_ns = counter.realtime_ns
    counter.advance(HZ // 2)
    here = counter.stamp()
    cntvct = vm.cntvct(0, now=here)
    assert clock_settime(here, cntvct=cntvct, at=report.cntvct) == divmod(released_ns, NS_PER_S)
    counter.advance(12_345)
    assert clock_settime(here, cntvct=cntvct, at=vm.cntvct(0)) == divmod(counter.realtime_ns, NS_PER_S)


def test_a_time_that_cannot_be_set_is_refused() -> None:
    here = host().stamp()
    for moved in (2**63 - 1, 2**63):
        with pytest.raises(ValueError, match="CLOCK_REALTIME"):
            clock_settime(replace(here, frequency_hz=10**6), cntvct=0, at=moved)


def test_reprs_say_what_they_are(memory: mmap.mmap) -> None:
    page = VmClock.create(memory, tai_offset_s=None)
    assert repr(page) == "<VmClock at 0x0, unreliable>"
    assert repr(StolenTime(memory, 4096)) == "<StolenTime at 0x1000>"
    assert repr(equation(host())).startswith("<ClockEquation utc from 5000, 0x")
    with page.update() as update:
        assert isinstance(update, VmClockUpdate)
