//! Report of a restore: its writes, and the error of the guest's counters.

use crate::checkpoint::SavedVm;
use crate::restore::advice;
use crate::restore::plan::{Behind, Outcome, Plan};
use crate::time::{ErrorBound, HostCount, Offset, OffsetInterval};

/// Number of writes of a restore: its cost in system calls, besides the reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Writes {
    /// Writes of the VM-wide offset.
    pub offsets: u64,
    /// Writes of vCPU registers, including a counter's value.
    pub registers: u64,
}

/// Method by which the counters were set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Written {
    /// One offset for both counters.
    Offset {
        /// The first offset, which opted the VM in; `None` in place.
        provisional: Option<Offset>,
        /// The offset that the guest runs with.
        last: Offset,
    },
    /// Each counter by value, with the measured interval of its offset.
    ByValue {
        /// The virtual counter's offset.
        virt: OffsetInterval,
        /// The physical counter's offset; `None` if it can't be set.
        phys: Option<OffsetInterval>,
    },
}

/// Facts of a release that a report is made of, besides its plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Released {
    /// The host's count at the last sample.
    pub count: HostCount,
    /// Method by which the counters were set.
    pub written: Written,
    /// Longest possible distance of a counter that was set by value from where it was to be, in ticks.
    pub by_value_ticks: u64,
    /// Number of writes.
    pub writes: Writes,
    /// Ticks by which CVALs were moved.
    pub cval_shift: u64,
    /// Guest ticks between the last guest exit and the checkpoint's sample.
    pub stopped_before_ticks: Option<u64>,
    /// The host's count once the release's last look was done.
    pub returned_at: HostCount,
    /// Guest ticks between the last sample and the first guest entry.
    pub after_release_ticks: Option<u64>,
}

/// Result of a restore.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The plan that the restore followed.
    pub plan: Plan,
    /// The guest's counters at the last sample.
    pub outcome: Outcome,
    /// Method by which they were set.
    pub written: Written,
    /// Number of writes.
    pub writes: Writes,
    /// Longest possible distance of a counter from the policy's promise at the last sample.
    pub bound: ErrorBound,
    /// Ticks by which CVALs were moved, so that the timers keep their remaining time.
    pub cval_shift: u64,
    /// Guest ticks between the last guest exit and the checkpoint's sample; `None` if not known. If they are known, they
    /// count as passed, and the guest goes on from its exit; otherwise the guest sees them.
    pub stopped_before_ticks: Option<u64>,
    /// The host's count once the release's last look was done. Under `Freeze` the guest sees what passes from the last
    /// sample to there, and whatever comes until it is entered.
    pub returned_at: HostCount,
    /// Guest ticks between the last sample and the first guest entry, which the guest sees; `None` if not known.
    pub after_release_ticks: Option<u64>,
}

impl Report {
    /// Returns the report of a release, of `vm` where its registers were restored. Its plan is as of the release: what the
    /// time since the plan has changed, such as the jump and the warnings of it, is in it.
    #[must_use]
    pub fn new(mut plan: Plan, released: Released, vm: Option<&SavedVm<'_>>) -> Self {
        let Released { count, written, by_value_ticks, writes, cval_shift, .. } = released;
        let outcome = plan.at(count);
        advice::released(&mut plan, &outcome, vm);
        let by_value = |bound| ErrorBound { by_value_ticks, ..bound };
        let behind = outcome.behind.map(|behind| Behind { bound: by_value(behind.bound), ..behind });
        Self {
            bound: by_value(outcome.bound),
            outcome: Outcome { behind, ..outcome },
            plan,
            written,
            writes,
            cval_shift,
            stopped_before_ticks: released.stopped_before_ticks,
            returned_at: released.returned_at,
            after_release_ticks: released.after_release_ticks,
        }
    }

    /// The facts that the report is made of, besides its plan.
    #[must_use]
    pub const fn released(&self) -> Released {
        Released {
            count: self.outcome.count,
            written: self.written,
            by_value_ticks: self.bound.by_value_ticks,
            writes: self.writes,
            cval_shift: self.cval_shift,
            stopped_before_ticks: self.stopped_before_ticks,
            returned_at: self.returned_at,
            after_release_ticks: self.after_release_ticks,
        }
    }

    /// Returns the report with the host's count at the first guest entry; `None` for a count before the release.
    #[must_use]
    pub fn resumed_at(&self, count: HostCount) -> Option<Self> {
        let known = Some(count.since(self.outcome.count));
        (!self.outcome.count.is_after(count)).then(|| Self { after_release_ticks: known, ..self.clone() })
    }
}
