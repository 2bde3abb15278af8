//! Error bounds: sums that keep their terms.

use crate::time::frequency::{Frequency, NS_PER_S};
use crate::time::wall_clock::{PPB, whole_ns};

/// Bound of the distance between the guest's counters and the policy's promise: a sum that keeps its terms.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ErrorBound {
    /// Width of the reads that measured the guest's counters at the checkpoint, in ticks; 0 if they were computed.
    pub reads_ticks: u64,
    /// Error of the counters that were set by value, in ticks.
    pub by_value_ticks: u64,
    /// Rounding of the elapsed time, in ticks.
    pub rounding_ticks: u64,
    /// Error of this counter's rate from the plan to the release, in ticks; 0 on the checkpoint's own counter.
    pub rate_ticks: u64,
    /// Width of the bracket of the checkpoint's stamp.
    pub saved_bracket_ns: u64,
    /// Width of the bracket of the stamp here.
    pub here_bracket_ns: u64,
    /// Last known bound of the checkpoint's wall clock.
    pub saved_sync_ns: u64,
    /// Last known bound of the wall clock here.
    pub here_sync_ns: u64,
    /// Growth of the checkpoint's bound since then, in billionths of a nanosecond: exact, so that it is rounded once.
    pub saved_holdover: u128,
    /// Growth of the bound here, in the same unit.
    pub here_holdover: u128,
    /// Error that the caller assumes.
    pub assumed_ns: u64,
    /// Ticks by which the elapsed time exceeds the policy's cap. They hide that much of its error, which is all of the
    /// above except the error of the guest's own counters.
    pub beyond_cap_ticks: u64,
}

/// Term of an error bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Amount {
    /// In ticks of the guest's counter.
    Ticks(u64),
    /// In nanoseconds.
    Ns(u64),
    /// Ticks to subtract from the sum, which stays at least the error of the counters themselves.
    LessTicks(u64),
}

impl ErrorBound {
    /// Returns the terms by name, including those that are 0.
    #[must_use]
    pub fn terms(&self) -> [(&'static str, Amount); 12] {
        [
            ("reading the counters at the checkpoint", Amount::Ticks(self.reads_ticks)),
            ("setting the counters by value", Amount::Ticks(self.by_value_ticks)),
            ("rounding the elapsed time", Amount::Ticks(self.rounding_ticks)),
            ("rate of the counter until the release", Amount::Ticks(self.rate_ticks)),
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

    /// Returns the sum in ticks. The time terms are added up and rounded up once; the sum saturates.
    #[must_use]
    pub fn ticks(&self, frequency: Frequency) -> u64 {
        let counters = self.reads_ticks.saturating_add(self.by_value_ticks);
        let elapsed = self.elapsed_ticks(frequency).unwrap_or(u64::MAX);
        counters.saturating_add(elapsed.saturating_sub(self.beyond_cap_ticks))
    }

    /// Returns the error of the elapsed time; `None` if it is out of range, which takes centuries.
    fn elapsed_ticks(&self, frequency: Frequency) -> Option<u64> {
        let terms =
            [self.saved_bracket_ns, self.here_bracket_ns, self.saved_sync_ns, self.here_sync_ns, self.assumed_ns];
        let ns: u128 = terms.into_iter().map(u128::from).sum();
        let time = (ns * PPB).checked_add(self.saved_holdover)?.checked_add(self.here_holdover)?;
        let ticks = time.checked_mul(frequency.hz().into())?.div_ceil(u128::from(NS_PER_S) * PPB);
        u64::try_from(ticks).ok()?.checked_add(self.rounding_ticks)?.checked_add(self.rate_ticks)
    }
}
