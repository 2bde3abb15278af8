//! Policies, and the other choices that a caller makes for a restore.

use crate::guest::LinuxGuest;
use crate::time::{Elapsed, Frequency, GuestCount, Intent, SyncBound};
use core::num::NonZeroU64;

/// Guest time that a restore gives at once, of the time that the guest missed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum AtOnce {
    /// No time.
    Nothing,
    /// At most so many nanoseconds.
    UpTo(u64),
    /// All of it.
    All,
}

impl AtOnce {
    /// The most ticks of this frequency that are given at once.
    #[must_use]
    pub const fn cap(self, frequency: Frequency) -> u128 {
        match self {
            Self::Nothing => 0,
            Self::UpTo(max_ns) => frequency.ns_to_ticks(max_ns),
            Self::All => u128::MAX,
        }
    }
}

/// Treatment of the missed time that isn't given at once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Rest {
    /// No time counts as missed: a backlog of before stays as it is.
    Keep,
    /// The guest never gets it.
    Forget,
    /// It becomes the guest's backlog, and is paid back in steps.
    Repay(Repay),
}

/// Steps that pay a backlog back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Repay {
    /// Largest step, in nanoseconds.
    pub step_ns: NonZeroU64,
    /// Shortest time between two steps, in nanoseconds.
    pub interval_ns: NonZeroU64,
    /// Time within which all of it has to be paid back, in nanoseconds.
    pub within_ns: Option<u64>,
}

/// Treatment of the time in which the guest didn't run.
///
/// Missed is the backlog plus the time that passed. [`at_once`](Self::at_once) takes from it, and [`rest`](Self::rest)
/// decides what becomes of what is left.
///
/// | policy | at once | rest |
/// |---|---|---|
/// | [`FREEZE`](Self::FREEZE) | nothing | keep |
/// | [`ADVANCE`](Self::ADVANCE) | all | forget |
/// | [`advance_up_to`](Self::advance_up_to) | up to | forget |
/// | [`catch_up`](Self::catch_up) | nothing, or up to | repay |
///
/// ```
/// use guestclock_core::restore::{AtOnce, Policy, Repay, Rest};
/// use std::num::NonZeroU64;
/// let ns = |ns| NonZeroU64::new(ns).unwrap();
/// let repay = Repay { step_ns: ns(400_000_000), interval_ns: ns(1_000_000_000), within_ns: None };
/// // Ten seconds at once, and the rest in steps.
/// let policy = Policy::catch_up(repay, 10_000_000_000);
/// assert_eq!((policy.at_once(), policy.rest()), (AtOnce::UpTo(10_000_000_000), Rest::Repay(repay)));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Policy {
    at_once: AtOnce,
    rest: Rest,
}

impl Policy {
    /// No time: the guest's counters go on from where they stopped.
    pub const FREEZE: Self = Self { at_once: AtOnce::Nothing, rest: Rest::Keep };

    /// All of the time.
    pub const ADVANCE: Self = Self { at_once: AtOnce::All, rest: Rest::Forget };

    /// At most `max_ns` nanoseconds of the time; the rest is forgotten.
    #[must_use]
    pub const fn advance_up_to(max_ns: u64) -> Self {
        Self { at_once: AtOnce::UpTo(max_ns), rest: Rest::Forget }
    }

    /// All of the time: at most `at_once_ns` nanoseconds at once, and the rest in steps.
    #[must_use]
    pub const fn catch_up(repay: Repay, at_once_ns: u64) -> Self {
        let at_once = if at_once_ns == 0 { AtOnce::Nothing } else { AtOnce::UpTo(at_once_ns) };
        Self { at_once, rest: Rest::Repay(repay) }
    }

    /// The time that is given at once.
    #[must_use]
    pub const fn at_once(self) -> AtOnce {
        self.at_once
    }

    /// The treatment of what isn't given at once.
    #[must_use]
    pub const fn rest(self) -> Rest {
        self.rest
    }

    /// The longest that all steps may take, in nanoseconds; `None` where there is no limit, or no step.
    #[must_use]
    pub const fn within_ns(self) -> Option<u64> {
        if let Rest::Repay(Repay { within_ns, .. }) = self.rest { within_ns } else { None }
    }

    /// Returns whether the policy counts no time as missed, and therefore needs no clock.
    #[must_use]
    pub const fn is_freeze(self) -> bool {
        matches!(self.rest, Rest::Keep)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::FREEZE
    }
}

/// Treatment of a guest's two counters if one offset can't reproduce both.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Views {
    /// Each counter is set by value.
    #[default]
    Preserve,
    /// The virtual counter's offset is used for both, and the physical counter jumps.
    AdoptVirtual,
    /// The restore is refused.
    Refuse,
}

impl Views {
    /// All choices with their names.
    pub const NAMES: [(&'static str, Self); 3] =
        [("preserve", Self::Preserve), ("adopt-virtual", Self::AdoptVirtual), ("refuse", Self::Refuse)];

    /// The physical counter that the guest goes on with, from the two saved ones.
    pub(super) const fn physical(self, virt: GuestCount, phys: GuestCount) -> GuestCount {
        match self {
            Self::AdoptVirtual => virt,
            Self::Preserve | Self::Refuse => phys,
        }
    }
}

/// Treatment of the timers' deadlines.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Deadlines {
    /// Deadlines stay where the guest set them: CVAL is as it was saved.
    #[default]
    Absolute,
    /// Timers keep their remaining time: CVAL moves with the counter.
    Relative,
}

impl Deadlines {
    /// Both choices with their names.
    pub const NAMES: [(&'static str, Self); 2] = [("absolute", Self::Absolute), ("relative", Self::Relative)];
}

/// Largest error of rate that a caller can accept, in parts per billion: the 250 ppm within which KVM takes two TSCs for
/// one frequency (`tsc_tolerance_ppm` in arch/x86/kvm/x86.c).
pub const MAX_RATE_ERROR_PPB: u32 = 250_000;

/// Request of the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Request {
    /// Guest time for the pause.
    pub policy: Policy,
    /// Treatment of two counters that differ.
    pub views: Views,
    /// The caller's word on the time that has passed; `None` to decide by the evidence.
    pub elapsed: Option<Elapsed>,
    /// Vouched bound of the wall clock here; without it, the kernel's, if it claims one.
    pub sync: Option<SyncBound>,
    /// Largest difference between the frequency of the guest and that of the counter here, in parts per billion of the
    /// guest's, up to [`MAX_RATE_ERROR_PPB`]: the guest's clock is wrong by as much from the restore on.
    pub rate_error_ppb: u32,
    /// Treatment of the timers' deadlines.
    pub deadlines: Deadlines,
    /// Reason for the restore, if the caller gives one.
    pub intent: Option<Intent>,
    /// Settings of the guest that decide how it takes a jump.
    pub guest: LinuxGuest,
    /// True to refuse a checkpoint that has something this version doesn't know, instead of warning of it.
    pub strict: bool,
    /// True if the VM stays where it was: it isn't opted in anew, unless `views` asks for it.
    pub in_place: bool,
}
