//! Refusals of a restore.

use crate::checkpoint::Unknown;
use crate::time::{ElapsedError, NS_PER_S, Sleep, SourceName, StampCount};
use core::fmt;

/// The `what` of a [`Refusal::TopologyMismatch`] by registers that the checkpoint has and the table hasn't.
pub const UNKNOWN_REGISTERS: &str = "timer registers unknown to guestclock";

/// Reason for refusing a restore. Nothing was written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The guest was saved at another frequency.
    #[error(
        "the guest was saved with CNTFRQ_EL0 = {saved_hz} Hz, and this VM's counter runs at {host_hz} Hz: the guest would \
         take each second for {} ms, {}. KVM can't rescale: restore it on a host with a counter of {saved_hz} Hz, or \
         into a model over a counter scaled to it",
        second_in_ms(*saved_hz, *host_hz),
        Drift { saved_hz: *saved_hz, host_hz: *host_hz }
    )]
    FrequencyMismatch {
        /// Frequency of the checkpoint.
        saved_hz: u64,
        /// Frequency of the target.
        host_hz: u64,
    },
    /// One offset can't reproduce two counters that differ.
    #[error(
        "the guest's counters differ (CNTVCT_EL0 {cntvct}, CNTPCT_EL0 {cntpct}), and {why}: adopting the virtual one for \
         both gives up the physical one{}",
        if *why == Skew::El2 { "" } else { ", and a VM that never opted in can keep both by value" }
    )]
    CounterSkew {
        /// The virtual counter.
        cntvct: u64,
        /// The physical counter.
        cntpct: u64,
        /// The obstacle.
        why: Skew,
    },
    /// The elapsed time isn't known.
    #[error(transparent)]
    Elapsed(#[from] ElapsedError),
    /// The backlog can't be paid back by the deadline.
    #[error(
        "paying {remaining_ns} ns back takes {needed_ns} ns in these steps, and {within_ns} ns are given for it: larger \
         steps, a shorter interval, more time, or more of it at once"
    )]
    DeadlineMissed {
        /// The backlog, in nanoseconds.
        remaining_ns: u128,
        /// The time that paying it back takes.
        needed_ns: u128,
        /// The time that the policy allows.
        within_ns: u64,
    },
    /// The VM isn't built like the checkpoint's.
    #[error("the checkpoint has {saved} {what} and this VM has {host}: build the VM as it was when it was saved")]
    TopologyMismatch {
        /// The things that are counted.
        what: &'static str,
        /// Their number in the checkpoint.
        saved: usize,
        /// Their number in the target.
        host: usize,
    },
    /// The checkpoint has something that this version doesn't know, and the caller is strict about it.
    #[error(
        "the checkpoint has {what}, which this guestclock doesn't know: restore it without strictness, or with a newer one"
    )]
    Unknown {
        /// The unknown key or register.
        what: Unknown,
    },
    /// The target changed after the plan was made.
    #[error("the VM has changed since this plan was made: make a new plan")]
    StalePlan,
    /// A newer restore or pause has closed the VM.
    #[error("another restore or pause of this VM came after this one, which is over: begin a new one")]
    Overtaken,
    /// A step of the restore is out of order.
    #[error("{called} can't come now: a restore is prepare, apply, release, once each")]
    OutOfOrder {
        /// The requested step.
        called: &'static str,
    },
    /// The stamp of a release isn't of this host since the plan.
    #[error("the release can't be for that instant: {0}")]
    OtherInstant(NotThen),
    /// The VM has no VM-wide counter offset, or hasn't opted in to it.
    #[error("{needed_by}")]
    NoCounterOffset {
        /// The part of the request that needs it.
        needed_by: NeedsCounterOffset,
    },
}

/// Reason why a release can't be for the instant of a stamp.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum NotThen {
    /// It is of another counter.
    OtherCounter {
        /// The stamp's counter.
        at: SourceName,
        /// The counter here.
        here: SourceName,
    },
    /// It is of another boot, or one of the two doesn't know its boot.
    OtherBoot,
    /// The host has slept since, or nobody knows.
    Slept(Sleep),
    /// It lies before the plan's sample.
    BeforePlan {
        /// The stamp's count.
        at: StampCount,
        /// The plan's.
        plan: StampCount,
    },
    /// It lies ahead of the counter.
    ToCome {
        /// The stamp's count.
        at: StampCount,
        /// The count here.
        here: StampCount,
    },
}

impl fmt::Display for NotThen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherCounter { at, here } => {
                let (at, here) = (at.as_str(), here.as_str());
                write!(f, "the stamp is of the counter {at}, and this VM's is {here}, or their frequencies differ")
            }
            Self::OtherBoot => f.write_str("the stamp isn't shown to be of this host's boot"),
            Self::Slept(slept) => write!(f, "the host has slept since the stamp: {slept}"),
            Self::BeforePlan { at, plan } => {
                write!(f, "the stamp's count is {}, and the plan's {}: take it after all have planned", at.0, plan.0)
            }
            Self::ToCome { at, here } => write!(f, "the stamp's count is {}, and the counter reads {}", at.0, here.0),
        }
    }
}

/// Feature that needs a VM-wide counter offset.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum NeedsCounterOffset {
    /// [`Views::AdoptVirtual`](crate::restore::policy::Views::AdoptVirtual), on a kernel without it.
    AdoptedView,
    /// A plan that catches up, for a VM whose counters are set by value.
    CatchUpPlan,
    /// A step of a backlog, on a VM that hasn't opted in.
    CatchUpStep,
    /// An opt-in, on a kernel without it.
    OptIn,
}

impl fmt::Display for NeedsCounterOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AdoptedView => {
                "this VM has no VM-wide counter offset (KVM_CAP_COUNTER_OFFSET, Linux 6.4 and later), which adopting the \
                 virtual counter for both needs"
            }
            Self::CatchUpPlan => {
                "catching up pays back by moving the VM-wide counter offset, and this VM's counters are set by value: opt in \
                 first"
            }
            Self::OptIn => {
                "this VM has no VM-wide counter offset to opt in to (KVM_CAP_COUNTER_OFFSET, Linux 6.4 and later): its \
                 counters are restored by value"
            }
            Self::CatchUpStep => "catching up pays back by moving the VM-wide counter offset, and this VM hasn't opted in to one",
        })
    }
}

/// Reason why two counters that differ can't be restored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Skew {
    /// The caller asked for the refusal.
    RefusalAskedFor,
    /// The VM has opted in to one offset for both.
    OptedIn,
    /// The guest has EL2, and KVM has one offset for both of its counters. CNTVOFF_EL2 isn't part of either.
    El2,
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RefusalAskedFor => "the caller asked that this be refused",
            Self::OptedIn => "this VM has opted in to one offset for both, for good",
            Self::El2 => "a guest with EL2 has one offset for both",
        })
    }
}

/// Returns the time that a guest of `saved` Hz measures for a second's worth of ticks at `host` Hz, in milliseconds.
fn second_in_ms(saved_hz: u64, host_hz: u64) -> u128 {
    u128::from(host_hz) * 1000 / u128::from(saved_hz.max(1))
}

/// Returns the drift of that guest's clock, in parts per billion of `(host - saved) / saved`, rounded to the nearest;
/// held at the end of its range.
pub(crate) fn drift_ppb(saved_hz: u64, host_hz: u64) -> i64 {
    let saved_hz = u128::from(saved_hz.max(1));
    // Below 2^94.
    let size = (u128::from(host_hz).abs_diff(saved_hz) * u128::from(NS_PER_S) + saved_hz / 2) / saved_hz;
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    if u128::from(host_hz) < saved_hz { -size } else { size }
}

/// Drift of a guest's clock at another frequency than it was saved at: exactly, as a fraction, and in parts per million.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Drift {
    pub(crate) saved_hz: u64,
    pub(crate) host_hz: u64,
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { saved_hz, host_hz } = *self;
        let ppb = drift_ppb(saved_hz, host_hz);
        let sign = if host_hz < saved_hz { '-' } else { '+' };
        let (apart, size) = (host_hz.abs_diff(saved_hz), ppb.unsigned_abs());
        write!(f, "a drift of {sign}{apart}/{saved_hz}, which is {sign}{}.{:03} ppm", size / 1000, size % 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_drift_is_exact_and_has_a_size() {
        let drift = |saved_hz, host_hz| Drift { saved_hz, host_hz }.to_string();
        assert_eq!(drift(83_333_333, 83_333_334), "a drift of +1/83333333, which is +0.012 ppm");
        assert_eq!(drift(83_333_334, 83_333_333), "a drift of -1/83333334, which is -0.012 ppm");
        assert_eq!(drift(24_000_000, 62_500_000), "a drift of +38500000/24000000, which is +1604166.667 ppm");
        assert_eq!(drift(4_294_967_295, 4_294_967_294), "a drift of -1/4294967295, which is -0.000 ppm");
        assert_eq!((drift_ppb(1000, 1001), drift_ppb(1000, 999)), (1_000_000, -1_000_000));
        assert_eq!((drift_ppb(1, u64::MAX), drift_ppb(0, 1)), (i64::MAX, 0));
    }
}
