//! Report of a restore: what was written, and how far off the guest's counters may be.

use crate::restore::plan::{Outcome, Plan};
use crate::time::{ErrorBound, HostCount, Offset, OffsetInterval};

/// What a restore has written: its cost in system calls, besides the reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Writes {
    /// Offsets of the VM.
    pub offsets: u64,
    /// Registers of vCPUs, a counter's value among them.
    pub registers: u64,
}

/// How the counters were set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// One offset for both.
    Offset {
        /// The first one, which opted the VM in; `None` in place.
        provisional: Option<Offset>,
        /// The one that the guest runs with.
        last: Offset,
    },
    /// By value: what is known of the two offsets.
    ByValue {
        /// The virtual counter's.
        virt: OffsetInterval,
        /// The physical counter's; `None` where it can't be set.
        phys: Option<OffsetInterval>,
    },
}

/// What a restore did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The plan that it followed.
    pub plan: Plan,
    /// What the guest's counters were at the last sample.
    pub outcome: Outcome,
    /// How they were set.
    pub written: Written,
    /// How many writes it took.
    pub writes: Writes,
    /// The farthest that a counter can be from what the policy promises at the last sample.
    pub bound: ErrorBound,
    /// By how many ticks CVALs were moved, to keep the time that was left to the timers.
    pub cval_shift: u64,
    /// Guest ticks between the last guest exit and the checkpoint's sample, which the guest sees; `None` if not known.
    pub before_checkpoint_ticks: Option<u64>,
    /// Guest ticks between the last sample and the first guest entry, which the guest sees; `None` if not known.
    pub after_release_ticks: Option<u64>,
}

impl Report {
    /// The same, with the host's count at the first guest entry known; `None` for one before the release.
    #[must_use]
    pub fn resumed_at(&self, count: HostCount) -> Option<Self> {
        let known = Some(count.since(self.outcome.count));
        (!self.outcome.count.is_after(count)).then(|| Self { after_release_ticks: known, ..self.clone() })
    }
}
