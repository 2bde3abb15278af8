//! vCPUs and their timers as columns, and what is computed over them.

use crate::counter::{GuestCount, HostCount};
use crate::timer::Width;
use alloc::vec::Vec;

/// "No deadline", where a count is expected. A real deadline there is moved one tick earlier.
pub const NO_DEADLINE: u64 = u64::MAX;

/// One timer of every vCPU.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TimerBank {
    /// The compare values.
    pub cval: Vec<u64>,
    /// The controls, as stored: bits above ENABLE and IMASK may be there.
    pub ctl: Vec<u64>,
}

impl TimerBank {
    /// Adds a vCPU's timer as reset leaves it: off, comparing with 0.
    pub fn push(&mut self) {
        self.cval.push(0);
        self.ctl.push(0);
    }

    /// The host count at which the vCPU's line goes high by itself, seen from `now`, at which its guest reads `guest`.
    ///
    /// Already high: `now`. Never: [`NO_DEADLINE`]. A deadline past the counter's last count is held just below that.
    #[must_use]
    pub fn deadline(&self, vcpu: usize, width: Width, now: HostCount, guest: GuestCount) -> u64 {
        match width.ticks_to_line(self.ctl[vcpu], self.cval[vcpu], guest) {
            Some(ticks) => now.0.saturating_add(ticks).min(NO_DEADLINE - 1),
            None => NO_DEADLINE,
        }
    }
}
