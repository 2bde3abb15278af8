//! vCPUs and their timers as columns, and what is computed over them.

use crate::counter::HostCount;
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
}

/// The host count that many ticks from `now`: `now` itself for none to wait, [`NO_DEADLINE`] for never. One past the
/// counter's last count is held just below that.
#[must_use]
pub fn deadline(now: HostCount, ticks: Option<u64>) -> u64 {
    match ticks {
        Some(ticks) => now.0.saturating_add(ticks).min(NO_DEADLINE - 1),
        None => NO_DEADLINE,
    }
}
