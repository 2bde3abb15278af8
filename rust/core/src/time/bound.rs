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
    /// Resolution of a sleep of the host, or a sleep that may be hidden in the counter's rate.
    pub sleep_ns: u64,
    /// Slew of the kernel's boot time.
    pub slew_ns: u64,
    /// Ticks by which the elapsed time exceeds the policy's cap. They hide that much of its error, which is all of the
    /// above except the error of the guest's own counters.
    pub beyond_cap_ticks: u64,
}

/// Ground that a term of a bound, or an assumption, stands on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ground {
    /// Something that was looked at shows it.
    Proved,
    /// Nothing shows it: somebody says so, or it is the usual case.
    Assumed,
}

impl Ground {
    /// Name of the ground: `proved` or `assumed`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Proved => "proved",
            Self::Assumed => "assumed",
        }
    }
}

/// Term of an error bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Term {
    /// Source of the error.
    pub what: &'static str,
    /// Size of the error.
    pub amount: Amount,
    /// Ground of the size.
    pub ground: Ground,
}

/// Size of a term of an error bound.
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
    /// Returns the bound of two times that follow each other on this host: the terms of the second join those here.
    #[must_use]
    pub(crate) fn and(&self, later: &Self) -> Self {
        let brackets = later.saved_bracket_ns.saturating_add(later.here_bracket_ns);
        let sync = later.saved_sync_ns.saturating_add(later.here_sync_ns);
        let holdover = later.saved_holdover.saturating_add(later.here_holdover);
        Self {
            rounding_ticks: self.rounding_ticks.saturating_add(later.rounding_ticks),
            here_bracket_ns: self.here_bracket_ns.saturating_add(brackets),
            here_sync_ns: self.here_sync_ns.saturating_add(sync),
            here_holdover: self.here_holdover.saturating_add(holdover),
            sleep_ns: self.sleep_ns.saturating_add(later.sleep_ns),
            slew_ns: self.slew_ns.saturating_add(later.slew_ns),
            ..*self
        }
    }

    /// Returns the terms by name, including those that are 0.
    #[must_use]
    pub fn terms(&self) -> [Term; 14] {
        let proved = |what, amount| Term { what, amount, ground: Ground::Proved };
        let assumed = |what, amount| Term { what, amount, ground: Ground::Assumed };
        [
            proved("reading the counters at the checkpoint", Amount::Ticks(self.reads_ticks)),
            proved("setting the counters by value", Amount::Ticks(self.by_value_ticks)),
            proved("rounding the elapsed time", Amount::Ticks(self.rounding_ticks)),
            assumed("rate of the counter until the release", Amount::Ticks(self.rate_ticks)),
            proved("bracket at the checkpoint", Amount::Ns(self.saved_bracket_ns)),
            proved("bracket here", Amount::Ns(self.here_bracket_ns)),
            assumed("wall clock at the checkpoint", Amount::Ns(self.saved_sync_ns)),
            assumed("wall clock here", Amount::Ns(self.here_sync_ns)),
            assumed("hold-over at the checkpoint", Amount::Ns(whole_ns(self.saved_holdover))),
            assumed("hold-over here", Amount::Ns(whole_ns(self.here_holdover))),
            assumed("said by the caller", Amount::Ns(self.assumed_ns)),
            assumed("length of a sleep of the host", Amount::Ns(self.sleep_ns)),
            assumed("slew of the boot time", Amount::Ns(self.slew_ns)),
            proved("hidden by the cap", Amount::LessTicks(self.beyond_cap_ticks)),
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
        let terms = [
            self.saved_bracket_ns,
            self.here_bracket_ns,
            self.saved_sync_ns,
            self.here_sync_ns,
            self.assumed_ns,
            self.sleep_ns,
            self.slew_ns,
        ];
        let ns: u128 = terms.into_iter().map(u128::from).sum();
        let time = (ns * PPB).checked_add(self.saved_holdover)?.checked_add(self.here_holdover)?;
        let ticks = time.checked_mul(frequency.hz().into())?.div_ceil(u128::from(NS_PER_S) * PPB);
        u64::try_from(ticks).ok()?.checked_add(self.rounding_ticks)?.checked_add(self.rate_ticks)
    }
}
