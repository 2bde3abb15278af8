"""The rules of guest time once more: slowly, obviously, in plain Python integers.

Written from KVM's source and documentation and from what running kernels were seen to do, not from the Rust code. It
shares nothing with guestclock but the numbering of the timers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

VIRTUAL, PHYSICAL = 0, 1
"""The two counters."""
VTIMER, PTIMER, HVTIMER, HPTIMER = range(4)
"""The timers, numbered as KVM_ARM_VCPU_TIMER_CTRL's attributes are."""

ENABLE, IMASK, ISTATUS = 1, 2, 4

CTL = (0x603000000013DF19, 0x603000000013DF11, 0x603000000013E719, 0x603000000013E711)
"""KVM_REG_ARM_TIMER_CTL, PTIMER_CTL (arch/arm64/include/uapi/asm/kvm.h), CNTHV_CTL_EL2, CNTHP_CTL_EL2."""
CVAL = (0x603000000013DF02, 0x603000000013DF12, 0x603000000013E71A, 0x603000000013E712)
"""TIMER_CVAL, which has CNTVCT_EL0's encoding, PTIMER_CVAL, CNTHV_CVAL_EL2, CNTHP_CVAL_EL2."""
CNT = (0x603000000013DF1A, 0x603000000013DF01)
"""TIMER_CNT, which has CNTV_CVAL_EL0's encoding, and PTIMER_CNT."""
CNTKCTL = 0x603000000013C708
CNTVOFF = 0x603000000013E703
CNTHCTL = 0x603000000013E708


def u64(value: int) -> int:
    """The value as a 64-bit register holds it."""
    return value % 2**64


def signed32(value: int) -> int:
    """The low 32 bits as a signed number."""
    value %= 2**32
    return value - 2**32 if value >= 2**31 else value


PLAIN = {"CNTKCTL_EL1": CNTKCTL, "CNTHCTL_EL2": CNTHCTL, "CNTVOFF_EL2": CNTVOFF}
TIMERS = {"CNTV": VTIMER, "CNTP": PTIMER, "CNTHV": HVTIMER, "CNTHP": HPTIMER}
COUNTS = ("CNTVCT_EL0", "CNTPCT_EL0", "CNTVCTSS_EL0", "CNTPCTSS_EL0")
PARTS = ("CTL", "CVAL", "TVAL")
NAMES = [
    "CNTFRQ_EL0",
    *COUNTS,
    *PLAIN,
    "CNTPOFF_EL2",
    "CNTKCTL_EL12",
    *(f"CNT{view}_{part}_EL0" for view in "VP" for part in PARTS),
    *(f"CNT{view}_{part}_EL02" for view in "VP" for part in PARTS),
    *(f"CNTH{view}_{part}_EL2" for view in "VP" for part in PARTS),
]
"""Every register of the generic timer that a guest can name."""


def is_count(name: str) -> bool:
    return name in COUNTS


def at_el2(name: str) -> str:
    """What EL1's name of a timer means where the hypervisor is at home: E2H."""
    return name if is_count(name) or name == "CNTFRQ_EL0" else f"CNTH{name[3]}{name[4:-1]}2"


class Refused(Exception):
    """What the kernel answers with an errno, or what comes of a guest's access instead of a value."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass
class Vcpu:
    """A vCPU's own state."""

    cval: list[int] = field(default_factory=lambda: [0] * 4)
    ctl: list[int] = field(default_factory=lambda: [0] * 4)
    plain: dict[int, int] = field(default_factory=lambda: {CNTKCTL: 0, CNTHCTL: 0, CNTVOFF: 0})
    """The registers that only hold what was written."""
    loaded: list[int] | None = None
    """The offsets that it runs with, while it runs."""


@dataclass
class ReferenceVm:
    """A VM by KVM's rules, those of the `kernel` named."""

    kernel: Literal["6.1", "6.12", "7.3"]
    frequency_hz: int
    el2: Literal["absent", "vhe", "e2h0"] = "absent"
    """Whether the guest has EL2, and with HCR_EL2.E2H fixed at 1 or at 0."""
    in_kernel_irqchip: bool = True
    vhe: bool = True
    """Whether the host's kernel runs at EL2. One that doesn't emulates the physical timer."""
    width: int = 64
    """How many bits the guest's counters and compare values have."""
    offset: list[int] = field(default_factory=lambda: [0, 0])
    opted_in: bool = False
    irq: list[int] = field(default_factory=lambda: [27, 30, 28, 26])
    """The timers' interrupt ids."""
    has_run: bool = False
    """A vCPU has run, with an interrupt controller in the kernel."""
    sanitised: bool = False
    """A vCPU has run, and with the first run went what CNTHCTL_EL2 hasn't got in any guest."""
    vcpus: list[Vcpu] = field(default_factory=list)

    # What differs between kernels.

    def has_offset_ioctl(self) -> bool:
        return self.kernel != "6.1"

    def has_physical(self) -> bool:
        return self.kernel != "6.1"

    def stores_ctl(self) -> bool:
        return self.kernel == "7.3"

    def timers(self) -> list[int]:
        return {
            "absent": [VTIMER, PTIMER],
            "vhe": [VTIMER, PTIMER, HVTIMER, HPTIMER],
            "e2h0": [VTIMER, PTIMER, HPTIMER],
        }[self.el2]

    def in_hardware(self) -> list[int]:
        """The others are KVM's: their registers stay as they were written."""
        return [timer for timer in range(4) if self.vhe or timer != PTIMER]

    def reg_list(self) -> list[int]:
        if self.kernel == "6.1":
            return [CTL[VTIMER], CNT[VIRTUAL], CVAL[VTIMER], CNTKCTL]
        if self.kernel == "6.12":
            timers = [regs[view] for view in (VTIMER, PTIMER) for regs in (CTL, CNT, CVAL)]
            return [*timers, CNTKCTL]
        plain = [CNTKCTL, CNT[PHYSICAL], CNT[VIRTUAL], CTL[PTIMER], CVAL[PTIMER], CTL[VTIMER], CVAL[VTIMER]]
        if self.el2 == "absent":
            return plain
        nested = [*plain, CNTVOFF, CNTHCTL, CTL[HPTIMER], CVAL[HPTIMER]]
        return [*nested, CTL[HVTIMER], CVAL[HVTIMER]] if self.el2 == "vhe" else nested

    # Offsets: timer_get_offset(), the VM's and for one timer the vCPU's own.

    def vm_offset(self, view: int) -> int:
        """A guest with EL2 goes by the physical offset alone."""
        return self.offset[PHYSICAL if self.el2 != "absent" else view]

    def now_offset(self, vcpu: Vcpu, view: int) -> int:
        """What the vCPU would be loaded with now."""
        own = vcpu.plain[CNTVOFF] if view == VIRTUAL and self.el2 != "absent" else 0
        return u64(self.vm_offset(view) + own)

    @staticmethod
    def view(timer: int) -> int:
        """The EL2 virtual timer's counter is without CNTVOFF_EL2, and so the physical one."""
        return VIRTUAL if timer == VTIMER else PHYSICAL

    # The VM's ioctls.

    def create_vcpu(self, now: int) -> None:
        """KVM_CREATE_VCPU: kvm_timer_vcpu_init sets both offsets unless the flag is set."""
        if not self.opted_in:
            self.offset = [now, 0]
        self.vcpus.append(Vcpu())

    def set_counter_offset(self, offset: int) -> None:
        """KVM_ARM_SET_COUNTER_OFFSET: every vcpu->mutex is tried first, so one running vCPU is enough for EBUSY."""
        if not self.has_offset_ioctl():
            raise Refused("EINVAL")
        if any(vcpu.loaded is not None for vcpu in self.vcpus):
            raise Refused("EBUSY")
        self.opted_in = True
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
        vcpu.ctl = [0] * 4
        vcpu.plain = {CNTKCTL: 0, CNTHCTL: 0, CNTVOFF: 0}
        if self.kernel == "7.3":
            vcpu.cval = [0] * 4

    def set_irq(self, timer: int, irq: int) -> None:
        """KVM_ARM_VCPU_TIMER_CTRL: the checks in their order."""
        if not self.in_kernel_irqchip or not 16 <= irq <= 31:
            raise Refused("EINVAL")
        if self.has_run:
            raise Refused("EBUSY")
        if timer >= (2 if self.kernel == "6.1" else 4):
            raise Refused("ENXIO")
        self.irq[timer] = irq

    def enter(self, index: int) -> None:
        vcpu = self.stopped(index)
        if self.in_kernel_irqchip:
            irqs = [self.irq[timer] for timer in self.timers()]
            if len(set(irqs)) < len(irqs):
                raise Refused("EINVAL")
            self.has_run = True
        self.sanitised = True
        vcpu.loaded = [self.now_offset(vcpu, view) for view in (VIRTUAL, PHYSICAL)]
        for timer in self.in_hardware():
            vcpu.ctl[timer] &= ENABLE | IMASK

    def exit(self, index: int, now: int) -> None:
        vcpu = self.vcpus[index]
        for timer in self.in_hardware():
            if timer in self.timers() and vcpu.ctl[timer] & ENABLE:
                vcpu.ctl[timer] = vcpu.ctl[timer] & 3 | (ISTATUS if self.istatus(index, timer, now) else 0)
        vcpu.loaded = None

    def plain(self, vcpu: Vcpu, reg: int) -> int:
        """A register that holds what was written; CNTHCTL_EL2 only bits 17 to 0 without 12, once a vCPU has run."""
        value = vcpu.plain[reg]
        return value & 0x3EFFF if reg == CNTHCTL and self.sanitised else value

    def get_one_reg(self, index: int, reg: int, now: int) -> int:
        vcpu = self.stopped(index)
        if reg not in self.reg_list():
            raise Refused("ENOENT")
        if reg in vcpu.plain:
            return self.plain(vcpu, reg)
        if reg in CNT:
            return u64(now - self.now_offset(vcpu, CNT.index(reg)))
        if reg in CVAL:
            return vcpu.cval[CVAL.index(reg)]
        timer = CTL.index(reg)
        if self.stores_ctl():
            return vcpu.ctl[timer]
        return vcpu.ctl[timer] % 2**32 | (ISTATUS if self.istatus(index, timer, now) else 0)

    def set_one_reg(self, index: int, reg: int, value: int, now: int) -> None:
        vcpu = self.stopped(index)
        if reg not in self.reg_list():
            raise Refused("ENOENT")
        if reg in vcpu.plain:
            vcpu.plain[reg] = value
        elif reg in CNT:
            # Either count of a nested guest moves both, and neither looks at CNTVOFF_EL2.
            if not self.opted_in:
                self.offset[PHYSICAL if self.el2 != "absent" else CNT.index(reg)] = u64(now - value)
        elif reg in CVAL:
            vcpu.cval[CVAL.index(reg)] = value
        else:
            vcpu.ctl[CTL.index(reg)] = value & ~ISTATUS

    # What the guest sees.

    def narrow(self, value: int) -> int:
        mask: int = 2**self.width - 1
        return value & mask

    def count(self, index: int, view: int, now: int) -> int:
        vcpu = self.vcpus[index]
        return self.narrow(now - (self.now_offset(vcpu, view) if vcpu.loaded is None else vcpu.loaded[view]))

    def istatus(self, index: int, timer: int, now: int) -> bool:
        return self.count(index, self.view(timer), now) >= self.narrow(self.vcpus[index].cval[timer])

    def line(self, index: int, timer: int, now: int) -> bool:
        return self.vcpus[index].ctl[timer] & 3 == ENABLE and self.istatus(index, timer, now)

    def device_irq_level(self, index: int, now: int) -> int:
        return self.line(index, VTIMER, now) | self.line(index, PTIMER, now) << 1

    def deadline(self, index: int, timer: int, now: int) -> int | None:
        """The host count at which the line goes high by itself, held below 2^64 - 1."""
        vcpu = self.vcpus[index]
        if vcpu.ctl[timer] & 3 != ENABLE:
            return None
        left = max(0, self.narrow(vcpu.cval[timer]) - self.count(index, self.view(timer), now))
        return min(now + left, 2**64 - 2)

    def wake(self, index: int, timeout: int | None, el: int, tge: bool, now: int) -> int | None:
        """When a vCPU in WFI wakes by itself, or in WFIT: its timeout is a virtual count, as that EL reads it."""
        wakes = [wake for timer in self.timers() if (wake := self.deadline(index, timer, now)) is not None]
        if timeout is not None:
            vhe = self.el2 == "vhe"
            view = PHYSICAL if vhe and (el == 2 or (el == 0 and tge)) else VIRTUAL
            wakes.append(min(now + max(0, timeout - self.count(index, view, now)), 2**64 - 2))
        return min(wakes, default=None)

    # What the guest may access: "Accessing the register" on each register's page of the Arm ARM.

    def resolve(self, index: int, name: str, el: int, *, tge: bool, write: bool) -> str:  # noqa: C901
        """The register that is really accessed, by its plain name."""
        plain = self.vcpus[index].plain
        nested, e2h = self.el2 != "absent", self.el2 == "vhe"
        tge = tge and nested
        if (el == 2 and not nested) or (write and (name == "CNTFRQ_EL0" or is_count(name))):
            raise Refused("undefined")
        if name.endswith("_EL2"):
            if el < 2 or name == "CNTPOFF_EL2" or (name.startswith("CNTHV") and not e2h):
                raise Refused("undefined")
            return name
        if name.endswith(("_EL02", "_EL12")):
            if el < 2 or not e2h:
                raise Refused("undefined")
            return name.replace("_EL02", "_EL0").replace("_EL12", "_EL1")
        if name == "CNTKCTL_EL1":
            if el == 0:
                raise Refused("undefined")
            return "CNTHCTL_EL2" if el == 2 and e2h else name
        physical, count = name.startswith("CNTP"), is_count(name)
        if el == 2:
            return at_el2(name) if e2h else name
        if el == 0:
            gate = (
                0b11 if name == "CNTFRQ_EL0" else (1 if physical else 2) if count else (1 << 9 if physical else 1 << 8)
            )
            if not plain[CNTHCTL if e2h and tge else CNTKCTL] & gate:
                raise Refused("trap to EL2" if tge else "trap to EL1")
            if e2h and tge:
                return at_el2(name)
        hctl = plain[CNTHCTL]
        shift = 10 if e2h else 0
        if nested and name != "CNTFRQ_EL0":
            if physical:
                trapped = not hctl >> shift & (1 if count else 2)
            else:
                trapped = bool(hctl & (1 << 14 if count else 1 << 13))
            if trapped:
                raise Refused("trap to EL2")
        return name

    def read_sysreg(self, index: int, name: str, now: int, el: int = 1, *, tge: bool = False) -> int:
        vcpu = self.vcpus[index]
        name = self.resolve(index, name, el, tge=tge, write=False)
        if name == "CNTFRQ_EL0":
            return self.frequency_hz
        if name in PLAIN:
            return self.plain(vcpu, PLAIN[name])
        if is_count(name):
            # Under KVM the virtual counter is never less CNTVOFF_EL2 at EL2, nor for a hypervisor's user space.
            hypervisor = el == 2 or (el == 0 and tge and self.el2 == "vhe")
            return self.count(index, VIRTUAL if name.startswith("CNTV") and not hypervisor else PHYSICAL, now)
        timer = TIMERS[name[: name.index("_")]]
        cval, count = self.narrow(vcpu.cval[timer]), self.count(index, self.view(timer), now)
        if "_CVAL_" in name:
            return cval
        if "_TVAL_" in name:
            return (cval - count) % 2**32
        return vcpu.ctl[timer] & 3 | (ISTATUS if count >= cval else 0)

    def write_sysreg(self, index: int, name: str, value: int, now: int, el: int = 1, *, tge: bool = False) -> None:
        vcpu = self.vcpus[index]
        name = self.resolve(index, name, el, tge=tge, write=True)
        if name in PLAIN:
            vcpu.plain[PLAIN[name]] = value
            if name == "CNTVOFF_EL2" and vcpu.loaded is not None:
                vcpu.loaded[VIRTUAL] = u64(vcpu.loaded[PHYSICAL] + value)
            return
        timer = TIMERS[name[: name.index("_")]]
        if "_CVAL_" in name:
            vcpu.cval[timer] = value
        elif "_TVAL_" in name:
            vcpu.cval[timer] = u64(self.count(index, self.view(timer), now) + signed32(value))
        else:
            vcpu.ctl[timer] = value & (ENABLE | IMASK)
