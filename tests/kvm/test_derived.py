"""What docs/model.md had only derived from KVM's source, looked at on the kernel that runs here."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from guestclock import HostCounter, Reg, Timer
from kvm_vmm import (
    KVM_ARM_VCPU_HAS_EL2_E2H0,
    KVM_CAP_ARM_EL2,
    KVM_CAP_COUNTER_OFFSET,
    KVM_EXIT_MMIO,
    PC,
    RAM,
    Machine,
    X,
)

DOORBELL = 0x0900_0000
READ_COUNTERS = struct.pack(
    "<8I",
    0xD53C1104,  # mrs x4, hcr_el2
    0xD53BE042,  # mrs x2, cntvct_el0
    0xD53BE023,  # mrs x3, cntpct_el0
    0xA9000C02,  # stp x2, x3, [x0]
    0xF9000804,  # str x4, [x0, #16]
    0xB9000021,  # str w1, [x1]: nobody's memory
    0x14000000,  # b .
    0,
)
"""For a guest at EL2."""
RING = struct.pack("<2I", 0xB9000021, 0x14000000)
"""str w1, [x1] and b ."""
LOG = 0x1000
E2H = 1 << 34


@contextmanager
def machine(vcpus: int = 1, *, nested: bool = False, features: int = 0, gic: bool = True) -> Iterator[Machine]:
    made = Machine(vcpus, nested=nested, features=features, gic=gic)
    try:
        yield made
    finally:
        made.close()


def run(guest: Machine, vcpu: int, code: bytes) -> None:
    """Runs this code until it rings."""
    guest.ram[: len(code)] = code
    guest.set_one_reg(vcpu, PC, RAM)
    guest.set_one_reg(vcpu, X[0], RAM + LOG)
    guest.set_one_reg(vcpu, X[1], DOORBELL)
    left = guest.run(vcpu)
    assert (left.reason, left.address) == (KVM_EXIT_MMIO, DOORBELL)


def refusal(guest: Machine, vcpu: int, timer: int, intid: int) -> str | None:
    """What KVM answers when a timer is given this interrupt id."""
    try:
        guest.set_timer_irq(vcpu, timer, intid)
    except OSError as error:
        assert error.errno is not None
        return errno.errorcode[error.errno]
    return None


def since_6_4() -> bool:
    with machine(gic=False) as guest:
        return guest.check_extension(KVM_CAP_COUNTER_OFFSET) > 0


def offers_el2() -> bool:
    with machine(gic=False) as guest:
        return guest.check_extension(KVM_CAP_ARM_EL2) > 0


def test_the_el2_timers_have_interrupt_ids_since_6_4_in_every_guest() -> None:
    expected = None if since_6_4() else "ENXIO"
    with machine() as guest:
        for timer in (Timer.HVTIMER, Timer.HPTIMER):
            assert refusal(guest, 0, timer, 20 + timer) == expected
            if expected is None:
                assert guest.timer_irq(0, timer) == 20 + timer


def test_interrupt_ids_are_checked_in_the_order_of_the_model() -> None:
    with machine(2) as guest:
        assert [refusal(guest, 0, Timer.VTIMER, intid) for intid in (15, 16, 31, 32)] == [
            "EINVAL",
            None,
            None,
            "EINVAL",
        ]
        assert refusal(guest, 0, 4, 20) == "ENXIO"
        assert refusal(guest, 0, 4, 32) == "EINVAL"
    with machine(gic=False) as guest:
        assert refusal(guest, 0, Timer.VTIMER, 20) == "EINVAL"
        assert guest.timer_irq(0, Timer.VTIMER) == 27


def test_interrupt_ids_are_fixed_once_a_vcpu_has_run() -> None:
    with machine(2) as guest:
        run(guest, 0, RING)
        assert refusal(guest, 0, Timer.VTIMER, 20) == "EBUSY"
        # Before 6.4 the ids were each vCPU's own affair.
        assert refusal(guest, 1, Timer.VTIMER, 20) == ("EBUSY" if since_6_4() else None)
        assert refusal(guest, 0, Timer.VTIMER, 32) == "EINVAL"


def test_a_shared_interrupt_id_is_taken_and_fails_the_first_run() -> None:
    with machine() as guest:
        assert refusal(guest, 0, Timer.PTIMER, 27) is None
        with pytest.raises(OSError, match="Invalid argument") as caught:
            run(guest, 0, RING)
        assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("e2h0", [False, True])
def test_the_virtual_counter_at_el2_is_without_cntvoff(*, e2h0: bool) -> None:
    if not offers_el2():
        pytest.skip("this kernel offers no EL2 to guests")
    try:
        guest = Machine(1, nested=True, features=KVM_ARM_VCPU_HAS_EL2_E2H0 if e2h0 else 0)
    except OSError as error:
        assert e2h0
        pytest.skip(f"this kernel offers no guests with HCR_EL2.E2H = 0: {error}")
    host = HostCounter(source="cntvct_el0")
    guest.set_counter_offset(0)
    guest.set_one_reg(0, Reg.CNTVOFF_EL2, 2**40)
    before = host.read()
    run(guest, 0, READ_COUNTERS)
    after = host.read()
    cntvct, cntpct, hcr = struct.unpack_from("<3Q", guest.ram, LOG)
    seen = guest.get_one_reg(0, Reg.TIMER_CNT)
    guest.close()
    assert bool(hcr & E2H) != e2h0
    assert before <= cntvct <= cntpct <= after
    assert (seen - after) % 2**64 >= 2**63  # what KVM tells the VMM is less CNTVOFF_EL2
