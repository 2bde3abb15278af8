//! Error bounds: sums that are kept by their terms.

use crate::time::frequency::{Frequency, NS_PER_S};
use crate::time::wall_clock::{PPB, whole_ns};

/// How far the guest's counters may be from what the policy promises: a sum, kept by its terms.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ErrorBound {
    /// The reads that measured the guest's counters at the checkpoint, in ticks; 0 where they were computed.
    pub reads_ticks: u64,
    /// How the counters came out where they were set by value, in ticks.
    pub by_value_ticks: u64,
    /// Rounding the elapsed time down, in ticks.
    pub rounding_ticks: u64,
    /// The bracket of the checkpoint's stamp.
    pub saved_bracket_ns: u64,
    /// The bracket of the stamp here.
    pub here_bracket_ns: u64,
    /// The bound of the checkpoint's wall clock, when it was last known.
    pub saved_sync_ns: u64,
    /// The bound of the wall clock here.
    pub here_sync_ns: u64,
    /// What the checkpoint's has grown by since, in billionths of a nanosecond: exact, so that it is rounded once.
    pub saved_holdover: u128,
    /// What the one here has grown by, in the same.
    pub here_holdover: u128,
    /// What the caller assumes.
    pub assumed_ns: u64,
    /// By how much the elapsed time lies beyond what the policy lets through, in ticks: so much of its error, all of
    /// the above but the guest's own counters', has no effect.
    pub beyond_cap_ticks: u64,
}

/// A term of an error bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Amount {
    /// In ticks of the guest's counter.
    Ticks(u64),
    /// In nanoseconds.
    Ns(u64),
    /// Ticks that it is less by, down to what the counters themselves are off.
    LessTicks(u64),
}

impl ErrorBound {
    /// The terms by name, those of 0 too.
    #[must_use]
    pub fn terms(&self) -> [(&'static str, Amount); 11] {
        [
            ("reading the counters at the checkpoint", Amount::Ticks(self.reads_ticks)),
            ("setting the counters by value", Amount::Ticks(self.by_value_ticks)),
            ("rounding the elapsed time", Amount::Ticks(self.rounding_ticks)),
            ("bracket at the checkpoint", Amount::Ns(self.saved_bracket_ns)),
            ("bracket here", Amount::Ns(self.here_bracket_ns)),
            ("wall clock at the checkpoint", Amount::Ns(self.saved_sync_ns)),
            ("wall clock here", Amount::Ns(self.here_sync_ns)),
            ("hold-over at the checkpoint", Amount::Ns(whole_ns(self.saved_holdover))),
            ("hold-over here", Amount::Ns(whole_ns(self.here_holdover))),
            ("assumed between the wall clocks", Amount::Ns(self.assumed_ns)),
            ("hidden by the cap", Amount::LessTicks(self.beyond_cap_ticks)),
        ]
    }

    /// The sum in ticks, all that is time together rounded up once; held at the end of its range.
    #[must_use]
    pub fn ticks(&self, frequency: Frequency) -> u64 {
        let counters = self.reads_ticks.saturating_add(self.by_value_ticks);
        let elapsed = self.elapsed_ticks(frequency).unwrap_or(u64::MAX);
        counters.saturating_add(elapsed.saturating_sub(self.beyond_cap_ticks))
    }

    /// The error of the elapsed time. `None` past the end of the range: centuries of it and more.
    fn elapsed_ticks(&self, frequency: Frequency) -> Option<u64> {
        let terms =
            [self.saved_bracket_ns, self.here_bracket_ns, self.saved_sync_ns, self.here_sync_ns, self.assumed_ns];
        let ns: u128 = terms.into_iter().map(u128::from).sum();
        let time = (ns * PPB).checked_add(self.saved_holdover)?.checked_add(self.here_holdover)?;
        let ticks = time.checked_mul(frequency.hz().into())?.div_ceil(u128::from(NS_PER_S) * PPB);
        u64::try_from(ticks).ok()?.checked_add(self.rounding_ticks)
    }
}
