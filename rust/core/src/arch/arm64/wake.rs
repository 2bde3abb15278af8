//! Wake-up times of a vCPU that waits in WFI or WFIT.
//!
//! A line that goes high ends the wait, whatever PSTATE masks. Only the VMM knows whether the interrupt controller
//! passes the interrupt on, so the result is the earliest instant. KVM's `kvm_timer_earliest_exp` (arch_timer.c)
//! returns 0 both for "expired" and for "never"; here they are `Some(0)` and `None`.

use crate::arch::arm64::timer;
use crate::time::{GuestCount, NO_DEADLINE};

/// Returns the ticks until a waiting vCPU wakes; `None` if nothing of its own will wake it.
///
/// The result is the minimum of its timers' [`ticks_to_line`](timer::ticks_to_line) and, in a WFIT, of its
/// [`wfit_ticks`]. It is always below [`NO_DEADLINE`], so that `unwrap_or(NO_DEADLINE)` is unambiguous.
#[must_use]
pub fn ticks_to_wake(timers: impl IntoIterator<Item = Option<u64>>, wfit: Option<u64>) -> Option<u64> {
    timers.into_iter().flatten().chain(wfit).min().map(|ticks| ticks.min(NO_DEADLINE - 1))
}

/// Returns the ticks until a WFIT's timeout; 0 if the virtual counter has reached the operand, and then WFIT doesn't
/// wait.
///
/// `now` is the virtual counter as the waiting exception level reads it:
/// [`counts_cntvoff`](crate::arch::arm64::traps::counts_cntvoff) says whether CNTVOFF_EL2 is subtracted. The comparison
/// is unsigned, 64 bits (Arm ARM, `LocalTimeoutEvent`).
#[must_use]
pub const fn wfit_ticks(operand: u64, now: GuestCount) -> u64 {
    timer::ticks_until(operand, now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::arm64::ctl::{CTL_ENABLE, CTL_IMASK};
    use crate::arch::arm64::timer::ticks_to_line;

    fn wake(timers: &[(u64, u64, u64)], wfit: Option<(u64, u64)>) -> Option<u64> {
        ticks_to_wake(
            timers.iter().map(|&(ctl, cval, now)| ticks_to_line(ctl, cval, GuestCount(now))),
            wfit.map(|(operand, now)| wfit_ticks(operand, GuestCount(now))),
        )
    }

    #[test]
    fn expired_and_never_are_two_things() {
        assert_eq!(wake(&[(CTL_ENABLE, 10, 10)], None), Some(0));
        assert_eq!(wake(&[(0, 10, 10), (CTL_ENABLE | CTL_IMASK, 10, 10), (CTL_IMASK, 10, 10)], None), None);
        assert_eq!(wake(&[], None), None);
    }

    /// Each timer has a count of its own: the two counters of a guest may differ.
    #[test]
    fn the_earliest_timer_wakes() {
        assert_eq!(wake(&[(CTL_ENABLE, 150, 100), (CTL_ENABLE, 1040, 1000)], None), Some(40));
        assert_eq!(wake(&[(CTL_ENABLE, 150, 100), (CTL_ENABLE | CTL_IMASK, 1040, 1000)], None), Some(50));
    }

    #[test]
    fn wfit_returns_once_its_count_is_reached() {
        assert_eq!(wake(&[], Some((101, 100))), Some(1));
        assert_eq!(wake(&[], Some((100, 100))), Some(0));
        assert_eq!(wake(&[], Some((99, 100))), Some(0));
        assert_eq!(wake(&[(CTL_ENABLE, 150, 100)], Some((130, 100))), Some(30));
        assert_eq!(wake(&[(CTL_ENABLE, 150, 100)], Some((170, 100))), Some(50));
        // The comparison is unsigned: a count just before the wrap is past any small operand.
        assert_eq!(wake(&[], Some((5, u64::MAX))), Some(0));
    }

    #[test]
    fn the_farthest_wake_is_not_mistaken_for_never() {
        assert_eq!(wake(&[(CTL_ENABLE, u64::MAX, 0)], None), Some(NO_DEADLINE - 1));
        assert_eq!(wake(&[], Some((u64::MAX, 0))), Some(NO_DEADLINE - 1));
    }
}
