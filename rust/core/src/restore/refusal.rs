//! Refusals of a restore.

use crate::checkpoint::Unknown;
use crate::time::ElapsedError;
use core::fmt;

/// Reason for refusing a restore. Nothing was written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The guest was saved at another frequency.
    #[error(
        "the guest was saved with CNTFRQ_EL0 = {saved_hz} Hz, and this VM's counter runs at {host_hz} Hz: the guest would \
         take each second for {} ms, a drift of {:+} ppm. KVM can't rescale: restore it on a host with a counter of \
         {saved_hz} Hz, or into a model over a counter scaled to it",
        second_in_ms(*saved_hz, *host_hz),
        drift_ppm(*saved_hz, *host_hz)
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
    /// A step of the restore is out of order.
    #[error("{called} can't come now: a restore is prepare, apply, release, once each")]
    OutOfOrder {
        /// The requested step.
        called: &'static str,
    },
    /// The VM has no VM-wide counter offset, or hasn't opted in to it.
    #[error("{needed_by}")]
    NoCounterOffset {
        /// The part of the request that needs it.
        needed_by: NeedsCounterOffset,
    },
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

/// Returns the drift of that guest's clock, in parts per million of `(host - saved) / saved`, rounded away from zero so
/// that no mismatch looks like none.
fn drift_ppm(saved_hz: u64, host_hz: u64) -> i128 {
    let size = (u128::from(host_hz.abs_diff(saved_hz)) * 1_000_000).div_ceil(saved_hz.max(1).into()).cast_signed();
    if host_hz < saved_hz { -size } else { size }
}
