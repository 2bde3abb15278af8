//! One timer: CTL, CVAL and TVAL, when it fires, and its line.
//!
//! The comparison is KVM's: unsigned, 64 bits, no mask of the counter's width (`kvm_timer_pending` in
//! arch/arm64/kvm/arch_timer.c).

use crate::counter::GuestCount;

/// CTL bit 0: the timer is on.
pub const CTL_ENABLE: u64 = 1 << 0;
/// CTL bit 1: its interrupt is masked.
pub const CTL_IMASK: u64 = 1 << 1;
/// CTL bit 2: the condition is met. Computed, never stored by a write.
pub const CTL_ISTATUS: u64 = 1 << 2;

/// Which of a vCPU's timers, numbered as the attributes of `KVM_ARM_VCPU_TIMER_CTRL` are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Timer {
    /// The EL1 virtual timer, CNTV_*_EL0.
    Vtimer = 0,
    /// The EL1 physical timer, CNTP_*_EL0.
    Ptimer = 1,
    /// The EL2 virtual timer of a nested guest, CNTHV_*_EL2.
    Hvtimer = 2,
    /// The EL2 physical timer of a nested guest, CNTHP_*_EL2.
    Hptimer = 3,
}

impl Timer {
    /// All of them, in their numbers' order.
    pub const ALL: [Self; 4] = [Self::Vtimer, Self::Ptimer, Self::Hvtimer, Self::Hptimer];

    /// Its number: the index of its columns.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Its name in lower case: `vtimer` and so on.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vtimer => "vtimer",
            Self::Ptimer => "ptimer",
            Self::Hvtimer => "hvtimer",
            Self::Hptimer => "hptimer",
        }
    }
}

/// Whether the timer condition is met: the count has reached CVAL.
#[must_use]
pub const fn condition_met(cval: u64, now: GuestCount) -> bool {
    now.0 >= cval
}

/// Whether the interrupt line is high: enabled, not masked, and the condition met.
#[must_use]
pub const fn line(ctl: u64, cval: u64, now: GuestCount) -> bool {
    ctl & (CTL_ENABLE | CTL_IMASK) == CTL_ENABLE && condition_met(cval, now)
}

/// CTL as a guest reads it: what was written, with ISTATUS set where the condition is met, whatever ENABLE says.
///
/// With ENABLE clear the architecture leaves ISTATUS UNKNOWN; KVM's trapped read ORs it in all the same.
#[must_use]
pub const fn ctl_read(ctl: u64, cval: u64, now: GuestCount) -> u64 {
    let status = if condition_met(cval, now) { CTL_ISTATUS } else { 0 };
    (ctl & (CTL_ENABLE | CTL_IMASK)) | status
}

/// TVAL as a guest reads it: the low 32 bits of CVAL - count.
#[must_use]
pub const fn tval_read(cval: u64, now: GuestCount) -> u32 {
    // The truncation is the register's definition.
    (cval.wrapping_sub(now.0) & 0xffff_ffff) as u32
}

/// The CVAL that a write of TVAL makes: count + the value as a signed 32-bit number.
#[must_use]
pub const fn tval_write(tval: u32, now: GuestCount) -> u64 {
    now.0.wrapping_add_signed(tval.cast_signed() as i64)
}

/// The ticks until the line goes high by itself: 0 where it is high, `None` where it never will be.
///
/// A distance rather than an instant, so that nothing is lost where CVAL plus the offset wraps.
#[must_use]
pub const fn ticks_to_line(ctl: u64, cval: u64, now: GuestCount) -> Option<u64> {
    if ctl & (CTL_ENABLE | CTL_IMASK) != CTL_ENABLE {
        return None;
    }
    Some(cval.saturating_sub(now.0))
}
