"""Tests of a VMM: the host sleeps and reboots, an ioctl fails, and nothing depends on how fast the test runs."""

import errno

import pytest

from guestclock import Advance, Interrupted, ManualCounter, ModelVm, Refused, S
from guestclock.errors import ElapsedUnknown
from guestclock.testing import Fault, FaultyVm


@pytest.fixture
def host() -> ManualCounter:
    """A host whose clocks move by hand."""
    return ManualCounter(realtime_ns=1_750_000_000 * S, boot_id="00000000000000000000000000000001")


@pytest.fixture
def clock(host: ManualCounter) -> ModelVm:
    """The clocks of a VM on it."""
    clock = ModelVm(vcpus=2, counter=host)
    clock.opt_in()
    return clock


def test_a_guest_sees_that_the_host_slept(host: ManualCounter, clock: ModelVm) -> None:
    checkpoint = clock.checkpoint()
    host.suspend(60 * S)
    report = clock.restore(checkpoint, Advance())
    assert report.elapsed_by == "boot-time"
    assert report.added_ns >= 60 * S


def test_after_a_reboot_nobody_vouches_for_the_time(host: ManualCounter, clock: ModelVm) -> None:
    checkpoint = clock.checkpoint()
    host.reboot()
    with pytest.raises(Refused) as refused:
        clock.restore(checkpoint, Advance())
    assert isinstance(refused.value, ElapsedUnknown)
    assert clock.state == "open"


def test_a_restore_that_fails_half_way_is_made_again(host: ManualCounter, clock: ModelVm) -> None:
    checkpoint = clock.checkpoint()
    host.advance_ns(S)
    faulty = FaultyVm(clock, [Fault("set_one_reg", errno=errno.EIO)])
    with pytest.raises(Interrupted) as interrupted:
        faulty.restore(checkpoint, Advance())
    assert interrupted.value.step == "apply: vCPU 0, CNTV_CVAL_EL0"
    assert clock.restore(checkpoint, Advance()).added_ns == S
