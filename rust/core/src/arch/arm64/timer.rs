//! One timer: CTL, CVAL and TVAL, its line, and the time until it fires.
//!
//! The comparison is KVM's: unsigned, 64 bits, not masked to the counter's width (`kvm_timer_pending` in
//! arch/arm64/kvm/arch_timer.c).

use crate::arch::arm64::arithmetic::w64;
use crate::arch::arm64::view::View;
use crate::time::{GuestCount, HostCount, deadline};

/// Timer of a vCPU, numbered as the attributes of `KVM_ARM_VCPU_TIMER_CTRL`.
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
    /// All timers, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Vtimer, Self::Ptimer, Self::Hvtimer, Self::Hptimer];

    /// Returns the timer's number: the index of its columns.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Returns the timer's name in lower case: `vtimer` and so on.
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

/// Returns whether the timer condition is met: the count has reached CVAL.
#[must_use]
pub const fn condition_met(cval: u64, now: GuestCount) -> bool {
    w64::condition_met(cval, now.0)
}

/// Returns whether the interrupt line is high: the timer is enabled and not masked, and its condition is met.
#[must_use]
pub const fn line(ctl: u64, cval: u64, now: GuestCount) -> bool {
    w64::line(ctl, cval, now.0)
}

/// Returns whether the line goes high once the condition is met: the timer is enabled and not masked.
#[must_use]
pub const fn can_raise(ctl: u64) -> bool {
    w64::can_raise(ctl)
}

/// Returns CTL as a guest reads it: the written bits, with ISTATUS set if the condition is met, whatever ENABLE is.
///
/// With ENABLE clear the architecture leaves ISTATUS UNKNOWN; KVM's trapped read sets it all the same.
#[must_use]
pub const fn ctl_read(ctl: u64, cval: u64, now: GuestCount) -> u64 {
    w64::ctl_read(ctl, cval, now.0)
}

/// Returns TVAL as a guest reads it: the low 32 bits of CVAL - count.
#[must_use]
pub const fn tval_read(cval: u64, now: GuestCount) -> u32 {
    // The upper half is 0, which the compiler can't know.
    (w64::tval_read(cval, now.0) & 0xffff_ffff) as u32
}

/// Returns the CVAL that a write of TVAL makes: count + the value as a signed 32-bit number.
#[must_use]
pub const fn tval_write(tval: u32, now: GuestCount) -> u64 {
    w64::tval_write(tval as u64, now.0)
}

/// Returns CVAL moved by `shift` ticks, so that the timer keeps its remaining time while its counter moves forward.
///
/// The result saturates: the comparison doesn't wrap, so a timer that was never to fire stays one.
#[must_use]
pub const fn moved_cval(cval: u64, shift: u64) -> u64 {
    cval.saturating_add(shift)
}

/// Returns the ticks until the count reaches `cval`; 0 if it has.
#[must_use]
pub const fn ticks_until(cval: u64, now: GuestCount) -> u64 {
    w64::ticks_until(cval, now.0)
}

/// Returns the ticks until the line goes high by itself: 0 if it is high, `None` if it never will be.
///
/// The result is a distance rather than an instant, so that nothing is lost if CVAL plus the offset wraps.
#[must_use]
pub const fn ticks_to_line(ctl: u64, cval: u64, now: GuestCount) -> Option<u64> {
    w64::ticks_to_line(ctl, cval, now.0)
}

/// Width of a counter in bits, 56 to 64, for emulators of such hardware. KVM's rules, above, don't depend on it.
///
/// A counter of fewer than 64 bits reads as zero-extended, and starts again at 0 after 2^bits. CVAL may then have the
/// same width, with its upper bits RES0, and here it does (Arm ARM, CNTV_CVAL_EL0; D12.1.2, "The system counter").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Width(u8);

impl Width {
    /// 64 bits: KVM's width, and the default for a counter whose width isn't stated.
    pub const FULL: Self = Self(64);

    /// Returns the width of `bits` bits; `None` below 56, which the architecture doesn't allow, and above 64.
    ///
    /// ```
    /// use guestclock_core::arch::arm64::Width;
    /// use guestclock_core::arch::arm64::timer::condition_met;
    /// use guestclock_core::time::GuestCount;
    /// let width = Width::new(56).unwrap();
    /// // One tick past the wrap, and a CVAL from before it.
    /// let (cval, now) = ((1 << 56) - 1, GuestCount((1 << 56) + 1));
    /// assert_eq!(width.count(now), GuestCount(1));
    /// assert!(condition_met(cval, now) && !width.condition_met(cval, now));
    /// ```
    #[must_use]
    pub const fn new(bits: u8) -> Option<Self> {
        if matches!(bits, 56..=64) { Some(Self(bits)) } else { None }
    }

    /// Returns the number of bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Returns the mask of the bits that the counter and CVAL have.
    #[must_use]
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.0)
    }

    /// Returns the value that a counter of this width reads.
    #[must_use]
    pub const fn count(self, now: GuestCount) -> GuestCount {
        GuestCount(now.0 & self.mask())
    }

    /// [`condition_met`], at this width.
    #[must_use]
    pub const fn condition_met(self, cval: u64, now: GuestCount) -> bool {
        condition_met(cval & self.mask(), self.count(now))
    }

    /// [`line()`], at this width.
    #[must_use]
    pub const fn line(self, ctl: u64, cval: u64, now: GuestCount) -> bool {
        line(ctl, cval & self.mask(), self.count(now))
    }

    /// [`ctl_read`], at this width.
    #[must_use]
    pub const fn ctl_read(self, ctl: u64, cval: u64, now: GuestCount) -> u64 {
        ctl_read(ctl, cval & self.mask(), self.count(now))
    }

    /// [`ticks_to_line`], at this width.
    #[must_use]
    pub const fn ticks_to_line(self, ctl: u64, cval: u64, now: GuestCount) -> Option<u64> {
        ticks_to_line(ctl, cval & self.mask(), self.count(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::arm64::arithmetic::w8;
    use crate::arch::arm64::ctl::{CTL_ENABLE, CTL_IMASK};
    use alloc::vec::Vec;

    /// Bytes and 64 bits share one text; this test is about the edges at 64 bits.
    #[test]
    fn the_edges_at_64_bits() {
        let now = GuestCount(1 << 63);
        assert!(!condition_met(u64::MAX, now) && condition_met(1 << 63, now) && condition_met(0, now));
        assert_eq!((tval_read((1 << 63) - 1, now), tval_read((1 << 63) + (1 << 32), now)), (u32::MAX, 0));
        assert_eq!(tval_write(0x7fff_ffff, GuestCount(u64::MAX)), 0x7fff_fffe);
        assert_eq!(tval_write(0x8000_0000, GuestCount(0)), 0xffff_ffff_8000_0000);
        assert_eq!(ticks_to_line(CTL_ENABLE, u64::MAX, GuestCount(0)), Some(u64::MAX));
    }

    #[test]
    fn widths_are_56_to_64() {
        let widths: Vec<u8> = (0..=u8::MAX).filter_map(Width::new).map(Width::bits).collect();
        assert_eq!(widths, [56, 57, 58, 59, 60, 61, 62, 63, 64]);
        assert_eq!(Width::new(56).unwrap().mask(), 0x00ff_ffff_ffff_ffff);
        assert_eq!(Width::new(64).unwrap().mask(), u64::MAX);
    }

    /// A narrow counter is the low bits of a wide one: every byte is placed at the top of a width, and the bits above
    /// it, which don't exist, are taken from another byte.
    #[test]
    fn a_narrow_counter_compares_its_own_bits() {
        for bits in [56, 57, 63] {
            let width = Width::new(bits).unwrap();
            let at_top = |byte: u8, above: u64| u64::from(byte) << (bits - 8) | above << bits;
            for cval in 0..=u8::MAX {
                for now in 0..=u8::MAX {
                    for (over, beyond) in [(0, 0), (0, 1), (1, 0)] {
                        let (wide_cval, wide_now) = (at_top(cval, over), GuestCount(at_top(now, beyond)));
                        for ctl in [0, CTL_ENABLE, CTL_ENABLE | CTL_IMASK] {
                            assert_eq!(width.condition_met(wide_cval, wide_now), w8::condition_met(cval, now));
                            assert_eq!(width.line(ctl, wide_cval, wide_now), w8::line(ctl, cval, now));
                            assert_eq!(width.ctl_read(ctl, wide_cval, wide_now), w8::ctl_read(ctl, cval, now));
                            let ticks = w8::ticks_to_line(ctl, cval, now).map(|ticks| at_top(ticks, 0));
                            assert_eq!(width.ticks_to_line(ctl, wide_cval, wide_now), ticks);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn at_64_bits_a_width_changes_nothing() {
        let width = Width::new(64).unwrap();
        for (cval, now) in [(0, 0), (u64::MAX, 0), (0, u64::MAX), (1 << 56, 1 << 63), (1 << 63, 1 << 56)] {
            assert_eq!(width.condition_met(cval, GuestCount(now)), condition_met(cval, GuestCount(now)));
            assert_eq!(width.line(1, cval, GuestCount(now)), line(1, cval, GuestCount(now)));
        }
    }
}

/// Returns the counter whose offset applies to a timer. The EL2 virtual timer compares without CNTVOFF_EL2, so it has
/// the physical counter's offset (`timer_get_offset`, include/kvm/arm_arch_timer.h).
#[must_use]
pub const fn view_of(timer: Timer) -> View {
    match timer {
        Timer::Vtimer => View::Virtual,
        Timer::Ptimer | Timer::Hvtimer | Timer::Hptimer => View::Physical,
    }
}

/// State of one timer at one instant, as its guest reads it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TimerState {
    /// CTL as the guest reads it.
    pub ctl: u64,
    /// CVAL.
    pub cval: u64,
    /// TVAL as the guest reads it.
    pub tval: u32,
    /// The interrupt line.
    pub line: bool,
    /// The host count at which the line goes high by itself, or [`NO_DEADLINE`](crate::time::NO_DEADLINE).
    pub deadline: u64,
}

impl TimerState {
    /// Returns the state of a timer whose counter reads `guest` when the host's reads `now`.
    #[must_use]
    pub fn at(ctl: u64, cval: u64, guest: GuestCount, now: HostCount) -> Self {
        Self {
            ctl: ctl_read(ctl, cval, guest),
            cval,
            tval: tval_read(cval, guest),
            line: line(ctl, cval, guest),
            deadline: deadline(now, ticks_to_line(ctl, cval, guest)),
        }
    }
}
