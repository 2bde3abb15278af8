"""One VM's counter and timer, as a VMM reads them at a guest's exit, beside the clock that Python has."""

from __future__ import annotations

import platform
import time
from typing import Any, Literal

import guestclock
from measure import NotHere, Ratio, Side, Sides, at_most

REGISTER: Literal["cntvct_el0", "tsc"] = "cntvct_el0" if platform.machine() == "aarch64" else "tsc"


def beside_monotonic_ns(call: str, counter: guestclock.types.Counter) -> Sides:
    vm = guestclock.ModelVm(vcpus=4, counter=counter)
    vm.set_counter_offset(12345)
    now = counter.read()
    if vm.cntvct(0, now=now) != (now - 12345) % 2**64:
        raise AssertionError("the VM's counter isn't the host's less the offset")
    names = {"vm": vm, "n": now, "cval": guestclock.Reg.TIMER_CVAL, "time": time}
    return Sides(Side(call, call, names), Side("time.monotonic_ns()", "time.monotonic_ns()", names))


def over_register(call: str) -> Sides:
    try:
        return beside_monotonic_ns(call, guestclock.HostCounter(source=REGISTER))
    except (guestclock.GuestClockError, OSError, ValueError) as error:
        raise NotHere(str(error)) from error


def over_raw(call: str) -> Sides:
    return beside_monotonic_ns(call, guestclock.HostCounter(source="clock_monotonic_raw"))


def over_manual(call: str) -> Sides:
    return beside_monotonic_ns(call, guestclock.ManualCounter(10**12, frequency_hz=10**9))


def raw() -> dict[str, Any]:
    counter = guestclock.HostCounter(source="clock_monotonic_raw")
    vm = guestclock.ModelVm(vcpus=4, counter=counter)
    vm.set_counter_offset(12345)
    return {"vm": vm, "counter": counter, "n": counter.read()}


def beside_native() -> Sides:
    """Python's own native method that reads this clock; it takes an argument, as a read of a vCPU's counter does."""
    names = {**raw(), "time": time, "clock": time.CLOCK_MONOTONIC_RAW}
    return Sides(
        Side("vm.cntvct(0)", "vm.cntvct(0)", names),
        Side("time.clock_gettime_ns(clock)", "time.clock_gettime_ns(clock)", names),
    )


def beside_read() -> Sides:
    """The counter's own method takes no argument, so that it is no target of one that does.

    By callgrind (CPython 3.11, x86-64) `counter.read()` executes 379 instructions and `vm.cntvct(0)` 735: most of the
    rest is CPython's call of a method with arguments, PyO3's sorting of them, and the int's conversion.
    """
    names = raw()
    return Sides(Side("vm.cntvct(0)", "vm.cntvct(0)", names), Side("counter.read()", "counter.read()", names))


def beside_present() -> Sides:
    names = raw()
    return Sides(Side("vm.cntvct(0, n)", "vm.cntvct(0, n)", names), Side("vm.cntvct(0)", "vm.cntvct(0)", names))


ROWS = (
    Ratio("a read over an ordered TSC or CNTVCT", lambda: over_register("vm.cntvct(0)"), at_most(1.0)),
    Ratio("a read over CLOCK_MONOTONIC_RAW", lambda: over_raw("vm.cntvct(0)"), at_most(1.2)),
    Ratio("the same, beside Python's own read of that clock", beside_native, at_most(1.05)),
    Ratio("the same, beside the counter's own read, without an argument", beside_read),
    Ratio("a read over ManualCounter", lambda: over_manual("vm.cntvct(0)"), at_most(0.7)),
    Ratio("a read at a given instant", lambda: over_manual("vm.cntvct(0, now=n)"), at_most(1.0)),
    Ratio("the same, by position", lambda: over_manual("vm.cntvct(0, n)")),
    Ratio("the same, beside a read without an instant", beside_present, at_most(1.0)),
    Ratio("a read of the physical counter", lambda: over_manual("vm.cntpct(0)")),
    Ratio("a timer's state", lambda: over_manual("vm.timer(0, 0)"), at_most(2.5)),
    Ratio("a register", lambda: over_manual("vm.get_one_reg(0, cval)"), at_most(1.1)),
)
