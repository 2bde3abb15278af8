//! One timer: CTL, CVAL and TVAL, when it fires, and its line.
//!
//! The comparison is KVM's: unsigned, 64 bits, no mask of the counter's width (`kvm_timer_pending` in
//! arch/arm64/kvm/arch_timer.c).

use crate::counter::GuestCount;
use crate::word::w64;

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
    w64::condition_met(cval, now.0)
}

/// Whether the interrupt line is high: enabled, not masked, and the condition met.
#[must_use]
pub const fn line(ctl: u64, cval: u64, now: GuestCount) -> bool {
    w64::line(ctl, cval, now.0)
}

/// CTL as a guest reads it: what was written, with ISTATUS set where the condition is met, whatever ENABLE says.
///
/// With ENABLE clear the architecture leaves ISTATUS UNKNOWN; KVM's trapped read ORs it in all the same.
#[must_use]
pub const fn ctl_read(ctl: u64, cval: u64, now: GuestCount) -> u64 {
    w64::ctl_read(ctl, cval, now.0)
}

/// TVAL as a guest reads it: the low 32 bits of CVAL - count.
#[must_use]
pub const fn tval_read(cval: u64, now: GuestCount) -> u32 {
    // The upper half is clear, which the compiler can't know.
    (w64::tval_read(cval, now.0) & 0xffff_ffff) as u32
}

/// The CVAL that a write of TVAL makes: count + the value as a signed 32-bit number.
#[must_use]
pub const fn tval_write(tval: u32, now: GuestCount) -> u64 {
    w64::tval_write(tval as u64, now.0)
}

/// The ticks until the count reaches `cval`: 0 where it has.
#[must_use]
pub const fn ticks_until(cval: u64, now: GuestCount) -> u64 {
    w64::ticks_until(cval, now.0)
}

/// The ticks until the line goes high by itself: 0 where it is high, `None` where it never will be.
///
/// A distance rather than an instant, so that nothing is lost where CVAL plus the offset wraps.
#[must_use]
pub const fn ticks_to_line(ctl: u64, cval: u64, now: GuestCount) -> Option<u64> {
    w64::ticks_to_line(ctl, cval, now.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is checked on bytes and what runs on 64 bits is one text; this is about the seams at 64.
    #[test]
    fn the_edges_at_64_bits() {
        let now = GuestCount(1 << 63);
        assert!(!condition_met(u64::MAX, now) && condition_met(1 << 63, now) && condition_met(0, now));
        assert_eq!((tval_read((1 << 63) - 1, now), tval_read((1 << 63) + (1 << 32), now)), (u32::MAX, 0));
        assert_eq!(tval_write(0x7fff_ffff, GuestCount(u64::MAX)), 0x7fff_fffe);
        assert_eq!(tval_write(0x8000_0000, GuestCount(0)), 0xffff_ffff_8000_0000);
        assert_eq!(ticks_to_line(CTL_ENABLE, u64::MAX, GuestCount(0)), Some(u64::MAX));
    }
}
