//! Lateness of met deadlines, counted exactly, in a fixed size.

use guestclock_core::time::HostCount;

/// Number of lengths that a number of 64 bits can have, including that of zero.
const LENGTHS: usize = 65;

/// Ticks from each deadline to the count at which the queue found that it had passed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lateness {
    total: u128,
    max: u64,
    by_length: [u64; LENGTHS],
}

impl Lateness {
    /// Returns the lateness of no deadlines.
    #[must_use]
    pub const fn new() -> Self {
        Self { total: 0, max: 0, by_length: [0; LENGTHS] }
    }

    /// Records a deadline that was met at `now`. A deadline after `now` counts as met in time.
    pub fn record(&mut self, now: HostCount, deadline: HostCount) {
        let late = now.0.saturating_sub(deadline.0);
        self.total += u128::from(late);
        self.max = self.max.max(late);
        self.by_length[(u64::BITS - late.leading_zeros()) as usize] += 1;
    }

    /// The sum, in ticks.
    #[must_use]
    pub const fn total_ticks(&self) -> u128 {
        self.total
    }

    /// The maximum, in ticks.
    #[must_use]
    pub const fn max_ticks(&self) -> u64 {
        self.max
    }

    /// Number of deadlines by the length of their lateness in bits: at 0 those in time, at `i` those late by `2^(i-1)`
    /// up to below `2^i`. It ends at the longest of them.
    #[must_use]
    pub fn by_length(&self) -> &[u64] {
        let longest = self.by_length.iter().rposition(|&count| count != 0);
        &self.by_length[..longest.map_or(0, |longest| longest + 1)]
    }
}

impl Default for Lateness {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_has_its_place() {
        let mut lateness = Lateness::new();
        assert!(lateness.by_length().is_empty());
        for late in [0, 1, 2, 3, 4, 7, 8, u64::MAX] {
            lateness.record(HostCount(u64::MAX), HostCount(u64::MAX - late));
        }
        let lengths = lateness.by_length();
        assert_eq!((&lengths[..5], lengths[64], lengths.len()), (&[1, 1, 2, 2, 1][..], 1, 65));
        assert_eq!(lengths.iter().sum::<u64>(), 8);
        assert_eq!((lateness.max_ticks(), lateness.total_ticks()), (u64::MAX, u128::from(u64::MAX) + 25));
    }

    #[test]
    fn a_deadline_to_come_is_in_time() {
        let mut lateness = Lateness::new();
        lateness.record(HostCount(5), HostCount(6));
        assert_eq!((lateness.max_ticks(), lateness.total_ticks(), lateness.by_length()), (0, 0, &[1][..]));
    }
}
