"""The machine is what its leg says, and what its KVM does where kernels differ is written down.

By ioctls of its own, apart from guestclock: numbers and structures are those of Linux's include/uapi/linux/kvm.h and
arch/arm64/include/uapi/asm/kvm.h.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_CHECK_EXTENSION = 0xAE03
KVM_CREATE_VCPU = 0xAE41
KVM_GET_ONE_REG = 0x4010AEAB
KVM_ARM_VCPU_INIT = 0x4020AEAE
KVM_ARM_PREFERRED_TARGET = 0x8020AEAF
KVM_GET_REG_LIST = 0xC008AEB0

KVM_CAP_COUNTER_OFFSET = 227
KVM_CAP_ARM_EL2 = 240

# KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG, then op0, op1, CRn, CRm, op2.
TIMER_REGISTERS = {
    0x6030_0000_0013_DF19: "TIMER_CTL",
    0x6030_0000_0013_DF1A: "TIMER_CNT",
    0x6030_0000_0013_DF02: "TIMER_CVAL",
    0x6030_0000_0013_DF11: "PTIMER_CTL",
    0x6030_0000_0013_DF01: "PTIMER_CNT",
    0x6030_0000_0013_DF12: "PTIMER_CVAL",
}

LEG = os.environ.get("GUESTCLOCK_LEG", "native")


@contextmanager
def opened() -> Iterator[int]:
    """/dev/kvm's descriptor."""
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    try:
        yield kvm
    finally:
        os.close(kvm)


def probed() -> dict[str, str]:
    """What this kernel's KVM was seen to do."""
    with opened() as kvm:
        vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
        try:
            found = {
                "kernel": platform.release(),
                "kernel arguments": Path("/proc/cmdline").read_text().strip(),
                "KVM_CAP_COUNTER_OFFSET": str(fcntl.ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_COUNTER_OFFSET)),
                "KVM_CAP_ARM_EL2": str(fcntl.ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_ARM_EL2)),
            }
            vcpu = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
            try:
                init = bytearray(32)
                fcntl.ioctl(vm, KVM_ARM_PREFERRED_TARGET, init)
                fcntl.ioctl(vcpu, KVM_ARM_VCPU_INIT, init)
                found["timer registers"] = " ".join(timer_registers(vcpu))
                found["TIMER_CTL of a fresh vCPU"] = str(get_one_reg(vcpu, 0x6030_0000_0013_DF19))
            finally:
                os.close(vcpu)
        finally:
            os.close(vm)
    return found


def timer_registers(vcpu: int) -> list[str]:
    """The timers' registers that KVM lists, in its order."""
    buffer = array.array("Q", [4095] + [0] * 4095)
    fcntl.ioctl(vcpu, KVM_GET_REG_LIST, buffer)
    return [TIMER_REGISTERS[listed] for listed in buffer[1 : 1 + buffer[0]] if listed in TIMER_REGISTERS]


def get_one_reg(vcpu: int, register: int) -> int:
    """One register's value."""
    value = array.array("Q", [0])
    fcntl.ioctl(vcpu, KVM_GET_ONE_REG, struct.pack("QQ", register, value.buffer_info()[0]))
    return value[0]


def test_kvm_is_there() -> None:
    assert platform.machine() == "aarch64"
    with opened() as kvm:
        assert fcntl.ioctl(kvm, KVM_GET_API_VERSION) == 12


def test_what_differs_between_kernels_is_written_down() -> None:
    found = probed()
    if out := os.environ.get("GUESTCLOCK_OUT"):
        Path(out, "probed.json").write_text(json.dumps(found))
    assert {"TIMER_CTL", "TIMER_CNT", "TIMER_CVAL"} <= set(found["timer registers"].split())
    has_offset = found["KVM_CAP_COUNTER_OFFSET"] == "1"
    assert has_offset == ("PTIMER_CNT" in found["timer registers"].split())


@pytest.mark.skipif(LEG == "native", reason="the host is what it is")
def test_the_leg_is_what_it_says() -> None:
    """A leg that fell back to another kernel or another mode would prove what another leg proves."""
    found = probed()
    major, minor = (int(number) for number in found["kernel"].split(".")[:2])
    booted = Path("/dev/kmsg")
    with booted.open("rb", buffering=0) as log:
        os.set_blocking(log.fileno(), False)
        records = []
        while record := log.read(8192):
            records.append(record.decode(errors="replace"))
    (mode,) = [record.split("]: ")[1].split(" initialized")[0] for record in records if "mode initialized" in record]
    expected = {
        "6.1": ((6, 1), "VHE mode"),
        "6.12": ((6, 12), "VHE mode"),
        "nvhe": ((6, 12), "Hyp nVHE mode"),
    }
    if LEG in expected:
        assert ((major, minor), mode) == expected[LEG]
    else:
        assert (major, minor) > (6, 12)
        assert mode == {"newest": "VHE mode", "nested": "VHE+NV2 mode"}[LEG]
    assert found["KVM_CAP_ARM_EL2"] == ("1" if LEG == "nested" else "0")
