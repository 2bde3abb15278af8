//! Policies, and the other choices that a caller makes for a restore.

use crate::time::{GuestCount, Intent, SyncBound};

/// What the guest is to see of the time it didn't run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Policy {
    /// Nothing: its counters go on from where they stopped.
    #[default]
    Freeze,
    /// All of it, or at most `max_ns` nanoseconds.
    Advance {
        /// The most guest time that is added.
        max_ns: Option<u64>,
    },
    /// All of it, later: its counters go on from where they stopped, and the time that they are behind is paid back in
    /// steps while it lives.
    CatchUp {
        /// The most that one step makes up, in nanoseconds; not 0.
        step_ns: u64,
        /// The least between two steps, in nanoseconds; not 0.
        interval_ns: u64,
        /// How long all of it may take, in nanoseconds.
        deadline_ns: Option<u64>,
    },
}

/// What becomes of a guest's two counters where one offset can't reproduce both.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Views {
    /// Each is set by value.
    #[default]
    Preserve,
    /// The virtual counter's offset is used for both, and the physical counter jumps.
    AdoptVirtual,
    /// Nothing is restored.
    Refuse,
}

impl Views {
    /// All, by the names that people use.
    pub const NAMES: [(&'static str, Self); 3] =
        [("preserve", Self::Preserve), ("adopt-virtual", Self::AdoptVirtual), ("refuse", Self::Refuse)];

    /// The physical counter that the guest goes on with, of the two that were saved.
    pub(super) const fn physical(self, virt: GuestCount, phys: GuestCount) -> GuestCount {
        match self {
            Self::AdoptVirtual => virt,
            Self::Preserve | Self::Refuse => phys,
        }
    }
}

/// What becomes of the timers' deadlines.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Deadlines {
    /// They stay where the guest set them: CVAL as it was saved.
    #[default]
    Absolute,
    /// They keep the time that was left to them: CVAL moves with the counter.
    Relative,
}

impl Deadlines {
    /// Both, by the names that people use.
    pub const NAMES: [(&'static str, Self); 2] = [("absolute", Self::Absolute), ("relative", Self::Relative)];
}

/// What the caller asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Request {
    /// What the guest is to see of the pause.
    pub policy: Policy,
    /// What becomes of two counters that differ.
    pub views: Views,
    /// Whether this is the counter that the checkpoint was taken by; `None` to decide it from the evidence.
    pub same_counter: Option<bool>,
    /// How far apart the wall clocks of the two hosts may be, in nanoseconds: the caller's word.
    pub assume_error_ns: Option<u64>,
    /// Who vouches for the wall clock here; else the kernel, where it claims anything.
    pub sync: Option<SyncBound>,
    /// How much time had passed when the plan was made, in nanoseconds: the caller's word, instead of the clocks'.
    pub elapsed_ns: Option<u64>,
    /// The most that two wall clocks are believed, in nanoseconds; `None` for [`MAX_ELAPSED_NS`].
    pub max_elapsed_ns: Option<u64>,
    /// What becomes of the timers' deadlines.
    pub deadlines: Deadlines,
    /// Why the VM is restored, where the caller says so.
    pub intent: Option<Intent>,
    /// Refuse a checkpoint that has something this version doesn't know, rather than warn of it.
    pub strict: bool,
    /// The VM stays where it was: it isn't opted in where it wasn't, unless `views` asks for it.
    pub in_place: bool,
}
