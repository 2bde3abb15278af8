"""The rules of guest time once more: slowly, obviously, in plain Python integers.

Written from KVM's source and documentation and from what running kernels were seen to do, not from the Rust code. It
shares nothing with guestclock but the numbering of the timers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

VIRTUAL, PHYSICAL = 0, 1
"""The two counters, and the two EL1 timers that compare with them."""

ENABLE, IMASK, ISTATUS = 1, 2, 4

CTL = (0x603000000013DF19, 0x603000000013DF11)
"""KVM_REG_ARM_TIMER_CTL and PTIMER_CTL (arch/arm64/include/uapi/asm/kvm.h)."""
CVAL = (0x603000000013DF02, 0x603000000013DF12)
"""TIMER_CVAL, which has CNTVCT_EL0's encoding, and PTIMER_CVAL."""
CNT = (0x603000000013DF1A, 0x603000000013DF01)
"""TIMER_CNT, which has CNTV_CVAL_EL0's encoding, and PTIMER_CNT."""
CNTKCTL = 0x603000000013C708


def u64(value: int) -> int:
    """The value as a 64-bit register holds it."""
    return value % 2**64


def signed32(value: int) -> int:
    """The low 32 bits as a signed number."""
    value %= 2**32
    return value - 2**32 if value >= 2**31 else value


class Refused(Exception):
    """What the kernel answers with an errno."""

    def __init__(self, errno: Literal["ENOENT", "EBUSY", "EINVAL", "no such vCPU"]) -> None:
        super().__init__(errno)
        self.errno = errno


@dataclass
class Vcpu:
    """A vCPU's own state."""

    cval: list[int] = field(default_factory=lambda: [0, 0])
    ctl: list[int] = field(default_factory=lambda: [0, 0])
    cntkctl: int = 0
    loaded: list[int] | None = None
    """The offsets that it runs with, while it runs."""


@dataclass
class ReferenceVm:
    """A VM by KVM's rules, those of the `kernel` named."""

    kernel: Literal["6.1", "6.12", "7.3"]
    frequency_hz: int
    offset: list[int] = field(default_factory=lambda: [0, 0])
    owned: bool = False
    vcpus: list[Vcpu] = field(default_factory=list)

    # What differs between kernels.

    def has_offset_ioctl(self) -> bool:
        return self.kernel != "6.1"

    def has_physical(self) -> bool:
        return self.kernel != "6.1"

    def stores_ctl(self) -> bool:
        return self.kernel == "7.3"

    def reg_list(self) -> list[int]:
        if self.kernel == "6.1":
            return [CTL[VIRTUAL], CNT[VIRTUAL], CVAL[VIRTUAL], CNTKCTL]
        if self.kernel == "6.12":
            timers = [regs[view] for view in (VIRTUAL, PHYSICAL) for regs in (CTL, CNT, CVAL)]
            return [*timers, CNTKCTL]
        return [CNTKCTL, CNT[PHYSICAL], CNT[VIRTUAL], CTL[PHYSICAL], CVAL[PHYSICAL], CTL[VIRTUAL], CVAL[VIRTUAL]]

    # The VM's ioctls.

    def create_vcpu(self, now: int) -> None:
        """KVM_CREATE_VCPU: kvm_timer_vcpu_init sets both offsets unless the flag is set."""
        if not self.owned:
            self.offset = [now, 0]
        self.vcpus.append(Vcpu())

    def set_counter_offset(self, offset: int) -> None:
        """KVM_ARM_SET_COUNTER_OFFSET: every vcpu->mutex is tried first, so one running vCPU is enough for EBUSY."""
        if not self.has_offset_ioctl():
            raise Refused("EINVAL")
        if any(vcpu.loaded is not None for vcpu in self.vcpus):
            raise Refused("EBUSY")
        self.owned = True
        self.offset = [u64(offset), u64(offset)]

    # A vCPU's ioctls.

    def existing(self, index: int) -> Vcpu:
        if index >= len(self.vcpus):
            raise Refused("no such vCPU")
        return self.vcpus[index]

    def stopped(self, index: int) -> Vcpu:
        vcpu = self.existing(index)
        if vcpu.loaded is not None:
            raise Refused("EBUSY")
        return vcpu

    def init_vcpu(self, index: int) -> None:
        vcpu = self.stopped(index)
        vcpu.ctl = [0, 0]
        vcpu.cntkctl = 0
        if self.kernel == "7.3":
            vcpu.cval = [0, 0]

    def enter(self, index: int) -> None:
        vcpu = self.stopped(index)
        vcpu.loaded = list(self.offset)
        vcpu.ctl = [ctl & (ENABLE | IMASK) for ctl in vcpu.ctl]

    def exit(self, index: int, now: int) -> None:
        vcpu = self.vcpus[index]
        if self.stores_ctl():
            for view in (VIRTUAL, PHYSICAL):
                expired = self.count(index, view, now) >= vcpu.cval[view]
                if vcpu.ctl[view] & ENABLE:
                    vcpu.ctl[view] = vcpu.ctl[view] & 3 | (ISTATUS if expired else 0)
        vcpu.loaded = None

    def get_one_reg(self, index: int, reg: int, now: int) -> int:
        vcpu = self.stopped(index)
        if reg not in self.reg_list():
            raise Refused("ENOENT")
        if reg == CNTKCTL:
            return vcpu.cntkctl
        if reg in CNT:
            return u64(now - self.offset[CNT.index(reg)])
        if reg in CVAL:
            return vcpu.cval[CVAL.index(reg)]
        view = CTL.index(reg)
        if self.stores_ctl():
            return vcpu.ctl[view]
        expired = u64(now - self.offset[view]) >= vcpu.cval[view]
        return vcpu.ctl[view] % 2**32 | (ISTATUS if expired else 0)

    def set_one_reg(self, index: int, reg: int, value: int, now: int) -> None:
        vcpu = self.stopped(index)
        if reg not in self.reg_list():
            raise Refused("ENOENT")
        if reg == CNTKCTL:
            vcpu.cntkctl = value
        elif reg in CNT:
            if not self.owned:
                self.offset[CNT.index(reg)] = u64(now - value)
        elif reg in CVAL:
            vcpu.cval[CVAL.index(reg)] = value
        else:
            vcpu.ctl[CTL.index(reg)] = value & ~ISTATUS

    # What the guest sees.

    def count(self, index: int, view: int, now: int) -> int:
        loaded = self.vcpus[index].loaded
        return u64(now - (self.offset if loaded is None else loaded)[view])

    def istatus(self, index: int, view: int, now: int) -> bool:
        return self.count(index, view, now) >= self.vcpus[index].cval[view]

    def line(self, index: int, view: int, now: int) -> bool:
        return self.vcpus[index].ctl[view] & 3 == ENABLE and self.istatus(index, view, now)

    def deadline(self, index: int, view: int, now: int) -> int | None:
        """The host count at which the line goes high by itself, held below 2^64 - 1."""
        vcpu = self.vcpus[index]
        if vcpu.ctl[view] & 3 != ENABLE:
            return None
        left = max(0, vcpu.cval[view] - self.count(index, view, now))
        return min(now + left, 2**64 - 2)

    def read_sysreg(self, index: int, name: str, now: int) -> int:
        vcpu = self.vcpus[index]
        if name == "CNTFRQ_EL0":
            return self.frequency_hz
        if name == "CNTKCTL_EL1":
            return vcpu.cntkctl
        view = VIRTUAL if name.startswith("CNTV") else PHYSICAL
        match name.split("_")[1] if name.count("_") == 2 else "CNT":
            case "CNT":
                return self.count(index, view, now)
            case "CVAL":
                return vcpu.cval[view]
            case "TVAL":
                return (vcpu.cval[view] - self.count(index, view, now)) % 2**32
            case _:
                return vcpu.ctl[view] & 3 | (ISTATUS if self.istatus(index, view, now) else 0)

    def write_sysreg(self, index: int, name: str, value: int, now: int) -> None:
        vcpu = self.existing(index)
        view = VIRTUAL if name.startswith("CNTV") else PHYSICAL
        if name == "CNTKCTL_EL1":
            vcpu.cntkctl = value
        elif name.endswith("_CVAL_EL0"):
            vcpu.cval[view] = value
        elif name.endswith("_TVAL_EL0"):
            vcpu.cval[view] = u64(self.count(index, view, now) + signed32(value))
        else:
            vcpu.ctl[view] = value & (ENABLE | IMASK)
