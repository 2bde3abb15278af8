//! Policies, and the other choices that a caller makes for a restore.

use crate::time::{GuestCount, Intent, SyncBound};

/// Guest time that a restore gives for the time in which the guest didn't run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Policy {
    /// No time: the guest's counters go on from where they stopped.
    #[default]
    Freeze,
    /// All of the time, or at most `max_ns` nanoseconds.
    Advance {
        /// The most guest time that is added.
        max_ns: Option<u64>,
    },
    /// All of the time, but later: the guest's counters go on from where they stopped, and the backlog is paid back in
    /// steps while the guest runs.
    CatchUp {
        /// Size of a step, in nanoseconds; not 0.
        step_ns: u64,
        /// Shortest time between two steps, in nanoseconds; not 0.
        interval_ns: u64,
        /// Time within which the backlog has to be paid back, in nanoseconds.
        deadline_ns: Option<u64>,
    },
}

/// Treatment of a guest's two counters if one offset can't reproduce both.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
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

/// Request of the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Request {
    /// Guest time for the pause.
    pub policy: Policy,
    /// Treatment of two counters that differ.
    pub views: Views,
    /// True if this is the counter of the checkpoint; `None` to decide by the evidence.
    pub same_counter: Option<bool>,
    /// Distance between the wall clocks of the two hosts that the caller assumes, in nanoseconds.
    pub assume_error_ns: Option<u64>,
    /// Vouched bound of the wall clock here; without it, the kernel's, if it claims one.
    pub sync: Option<SyncBound>,
    /// Time that had passed when the plan was made, in nanoseconds, as the caller gives it instead of the clocks.
    pub elapsed_ns: Option<u64>,
    /// Longest time that two wall clocks are believed, in nanoseconds; `None` for
    /// [`MAX_ELAPSED_NS`](crate::time::MAX_ELAPSED_NS).
    pub max_elapsed_ns: Option<u64>,
    /// Treatment of the timers' deadlines.
    pub deadlines: Deadlines,
    /// Reason for the restore, if the caller gives one.
    pub intent: Option<Intent>,
    /// True to refuse a checkpoint that has something this version doesn't know, instead of warning of it.
    pub strict: bool,
    /// True if the VM stays where it was: it isn't opted in anew, unless `views` asks for it.
    pub in_place: bool,
}
