"""The vmclock driver of a real Linux guest: what it makes of the page before and after each restore."""

from __future__ import annotations

import errno
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from guestclock import Advance, Freeze, HostCounter, SyncBound
from linux_guest import account, campaign
from linux_guest.campaign import in_a_child
from linux_guest.host import anchored
from linux_guest.session import ask
from linux_vmm import LinuxVm

if TYPE_CHECKING:
    from linux_vmm import Policy

KERNEL = Path("/guest/newest")
"""The driver is of Linux 6.13 and newer."""
TAI_OFFSET_S = 37
ERROR_NS = 1_000
RATE_ERROR_PPB = 1_000
AGE_NS = 10_000_000_000
"""More than the time from a renewal to the guest's reading after it."""
SYNCHRONIZED, UNRELIABLE = 2, 4
"""Codes of a clock's status in the page (linux/vmclock-abi.h)."""
INTERRUPTS = "grep vmclock /proc/interrupts"


def counter() -> HostCounter:
    """The host's counter, for whose wall clock this test vouches: it is the truth here."""
    return HostCounter(sync=lambda: SyncBound(0, tai_offset_s=TAI_OFFSET_S))


def page(vm: LinuxVm) -> account.VmClockReading:
    """What the guest makes of its page."""
    ptp = "$(dirname $(grep -l vmclock /sys/class/ptp/*/clock_name))"
    return account.vmclock(ask(vm, f"guest-probe vmclock /dev/$(basename {ptp})").text)


def interrupts(vm: LinuxVm) -> int:
    """The number of the page's interrupts, by the guest's account."""
    (line,) = re.findall(r"^ *\d+: +((?:\d+ +)+)GICv3.*vmclock", ask(vm, INTERRUPTS).text, re.MULTILINE)
    return sum(map(int, line.split()))


def judge_right(vm: LinuxVm) -> account.VmClockReading:
    """Assert that the guest's PTP clock is right by the host's wall clock, within what the page claims."""
    with vm.keep_fresh(max_error_ns=ERROR_NS, rate_max_error_ppb=RATE_ERROR_PPB):
        told = page(vm)
        vm.pause()
        low, high = anchored(vm)
        vm.resume()
    assert told.error == 0
    assert told.status == SYNCHRONIZED
    # The driver of this version gives TAI for a page of UTC.
    time_ns = told.ns - TAI_OFFSET_S * campaign.NS_PER_S
    allowed = ERROR_NS + RATE_ERROR_PPB * AGE_NS // campaign.NS_PER_S
    assert campaign.to_ns(told.before) + low - allowed <= time_ns <= campaign.to_ns(told.after) + high + allowed
    return told


def judge_refused(vm: LinuxVm) -> account.VmClockReading:
    """Assert that the driver gives no time: EINVAL, for a page that is unreliable."""
    told = page(vm)
    assert (told.error, told.status) == (-errno.EINVAL, UNRELIABLE)
    return told


@pytest.mark.nightly
def test_a_guests_driver_has_the_time_within_the_bound_or_none(tmp_path: Path) -> None:
    def first() -> account.VmClockReading:
        vm = campaign.boot(KERNEL.read_bytes(), counter=counter())
        judge_refused(vm)
        before = interrupts(vm)
        told = judge_right(vm)
        assert interrupts(vm) > before
        campaign.snapshot(vm, tmp_path / "saved", busy=False)
        vm.close()
        return told

    def again(policy: Policy) -> account.VmClockReading:
        vm = LinuxVm.restore(tmp_path / "saved", policy, counter=counter())
        vm.resume()
        judge_refused(vm)
        told = judge_right(vm)
        vm.close()
        return told

    was = in_a_child(first)
    for policy in (Freeze(), Advance()):
        now = in_a_child(partial(again, policy))
        assert now.marker != was.marker
        assert now.generation != was.generation
