//! Guest time that is owed, and paid back in bounded forward steps while the guest lives.

use crate::time::Frequency;

/// What a guest is owed, and how it is paid back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Backlog {
    /// What its counters are behind, in ticks; never 0.
    pub remaining_ticks: u64,
    /// The most that one step makes up, in nanoseconds; never 0.
    pub step_ns: u64,
    /// The least between two steps, in nanoseconds of the host's counter; never 0.
    pub interval_ns: u64,
}

impl Backlog {
    /// A step in ticks, rounded down, but a tick at least: else it would never end.
    #[must_use]
    pub fn step_ticks(&self, frequency: Frequency) -> u64 {
        u64::try_from(frequency.ns_to_ticks(self.step_ns)).unwrap_or(u64::MAX).max(1)
    }

    /// The interval in ticks, rounded up; held at half of the range, so that an instant so far ahead still lies ahead.
    #[must_use]
    pub fn interval_ticks(&self, frequency: Frequency) -> u64 {
        let longest = i64::MAX.cast_unsigned();
        u64::try_from(frequency.ns_to_ticks_ceil(self.interval_ns)).map_or(longest, |ticks| ticks.min(longest))
    }

    /// How many steps are left.
    #[must_use]
    pub fn steps(&self, frequency: Frequency) -> u64 {
        self.remaining_ticks.div_ceil(self.step_ticks(frequency))
    }

    /// How long it takes until the last of them, in nanoseconds.
    #[must_use]
    pub fn duration_ns(&self, frequency: Frequency) -> u128 {
        u128::from(self.steps(frequency)) * u128::from(self.interval_ns)
    }

    /// How fast the guest's time seems to go by meanwhile, in thousandths, rounded up: 1 000 is as fast as ever.
    #[must_use]
    pub fn rate_permille(&self) -> u128 {
        1000 + (u128::from(self.step_ns) * 1000).div_ceil(self.interval_ns.max(1).into())
    }

    /// What is owed after a step of so many ticks; `None` for nothing.
    #[must_use]
    pub const fn less(self, ticks: u64) -> Option<Self> {
        match self.remaining_ticks.checked_sub(ticks) {
            None | Some(0) => None,
            Some(remaining_ticks) => Some(Self { remaining_ticks, ..self }),
        }
    }
}
