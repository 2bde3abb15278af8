//! Guest time that a guest is still behind, and the bounded forward steps that pay it back while the guest runs.

use crate::time::{Frequency, NS_PER_S};
use core::num::NonZeroU64;

/// Time that a guest is behind, and the steps that pay it back. A backlog of nothing is none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Backlog {
    /// Ticks by which the guest's counters are behind.
    pub remaining_ticks: NonZeroU64,
    /// Largest step, in nanoseconds.
    pub step_ns: NonZeroU64,
    /// Shortest time between two steps, in nanoseconds of the host's counter.
    pub interval_ns: NonZeroU64,
}

impl Backlog {
    /// A backlog of these numbers; `None` if one of them is 0.
    #[must_use]
    pub fn new(remaining_ticks: u64, step_ns: u64, interval_ns: u64) -> Option<Self> {
        Some(Self {
            remaining_ticks: NonZeroU64::new(remaining_ticks)?,
            step_ns: NonZeroU64::new(step_ns)?,
            interval_ns: NonZeroU64::new(interval_ns)?,
        })
    }

    /// Returns the largest step in ticks, rounded down to one at least: steps of nothing would never end.
    #[must_use]
    pub fn step_ticks(&self, frequency: Frequency) -> u64 {
        u64::try_from(frequency.ns_to_ticks(self.step_ns.get())).unwrap_or(u64::MAX).max(1)
    }

    /// Returns the interval in ticks, rounded up; at most half of the range, so that an instant so far ahead still lies
    /// ahead.
    #[must_use]
    pub fn interval_ticks(&self, frequency: Frequency) -> u64 {
        let longest = i64::MAX.cast_unsigned();
        u64::try_from(frequency.ns_to_ticks_ceil(self.interval_ns.get())).map_or(longest, |ticks| ticks.min(longest))
    }

    /// Returns the ticks of the next step.
    #[must_use]
    pub fn next_ticks(&self, frequency: Frequency) -> u64 {
        self.step_ticks(frequency).min(self.remaining_ticks.get())
    }

    /// Returns the number of steps that are left.
    #[must_use]
    pub fn steps(&self, frequency: Frequency) -> u64 {
        self.remaining_ticks.get().div_ceil(self.step_ticks(frequency))
    }

    /// Returns the time until the last step, in nanoseconds, rounded up: of intervals in whole ticks.
    #[must_use]
    pub fn duration_ns(&self, frequency: Frequency) -> u128 {
        let ticks = u128::from(self.steps(frequency)) * u128::from(self.interval_ticks(frequency));
        let hz = u128::from(frequency.hz());
        let (seconds, rest) = (ticks / hz, ticks % hz);
        seconds.saturating_mul(NS_PER_S.into()).saturating_add((rest * u128::from(NS_PER_S)).div_ceil(hz))
    }

    /// Returns the rate at which the guest's time seems to pass meanwhile, in thousandths, rounded up: 1 000 is the usual
    /// one.
    #[must_use]
    pub fn rate_permille(&self) -> u128 {
        1000 + (u128::from(self.step_ns.get()) * 1000).div_ceil(self.interval_ns.get().into())
    }

    /// Returns the backlog after a step of so many ticks; `None` if nothing is left.
    #[must_use]
    pub const fn less(self, ticks: u64) -> Option<Self> {
        match NonZeroU64::new(self.remaining_ticks.get().saturating_sub(ticks)) {
            None => None,
            Some(remaining_ticks) => Some(Self { remaining_ticks, ..self }),
        }
    }
}
