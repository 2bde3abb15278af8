"""The registers and timers that a VMM names. Their encodings stand in one table, in Rust."""

from enum import IntEnum

from guestclock._core import reg_id


class _Named(IntEnum):
    """An IntEnum whose repr evaluates."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


class Reg(_Named):
    """The timer registers' ids for KVM_GET_ONE_REG and KVM_SET_ONE_REG (Linux: arch/arm64/include/uapi/asm/kvm.h).

    KVM's ABI has the ids of TIMER_CNT and TIMER_CVAL swapped against the registers' encodings. The names here mean what
    they say: TIMER_CNT is the counter and TIMER_CVAL the compare value.
    """

    TIMER_CTL = reg_id("TIMER_CTL")
    TIMER_CNT = reg_id("TIMER_CNT")
    TIMER_CVAL = reg_id("TIMER_CVAL")
    PTIMER_CTL = reg_id("PTIMER_CTL")
    PTIMER_CNT = reg_id("PTIMER_CNT")
    PTIMER_CVAL = reg_id("PTIMER_CVAL")
    CNTKCTL_EL1 = reg_id("CNTKCTL_EL1")
    CNTVOFF_EL2 = reg_id("CNTVOFF_EL2")
    CNTHCTL_EL2 = reg_id("CNTHCTL_EL2")
    CNTHP_CTL_EL2 = reg_id("CNTHP_CTL_EL2")
    CNTHP_CVAL_EL2 = reg_id("CNTHP_CVAL_EL2")
    CNTHV_CTL_EL2 = reg_id("CNTHV_CTL_EL2")
    CNTHV_CVAL_EL2 = reg_id("CNTHV_CVAL_EL2")


class Timer(_Named):
    """A vCPU's timers, numbered as KVM_ARM_VCPU_TIMER_CTRL numbers their interrupts."""

    VTIMER = 0
    """CNTV: the EL1 virtual timer."""
    PTIMER = 1
    """CNTP: the EL1 physical timer."""
    HVTIMER = 2
    """CNTHV: the EL2 virtual timer."""
    HPTIMER = 3
    """CNTHP: the EL2 physical timer."""
