//! Policy -> plan: what a restore would do here, computed without touching anything.

use crate::arch::arm64::{Offsets, Timer, View};
use crate::checkpoint::{Backlog, Checkpoint};
use crate::guest::{Limit, Reached, limits};
use crate::restore::diagnostics::Diagnostic;
use crate::restore::policy::{Deadlines, Policy, Request};
use crate::restore::refusal::{NeedsCounterOffset, Refusal};
use crate::restore::timer_status::{self, TimerStatus};
use crate::time::{
    Elapsed, ElapsedError, ErrorBound, Evidence, Frequency, GuestCount, HostCount, MAX_ELAPSED_NS, Offset, Stamp,
    elapsed,
};
use alloc::vec::Vec;

/// How the counters are set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Method {
    /// One offset for the whole VM.
    Offset,
    /// Each counter by its value.
    ByValue,
    /// The virtual counter by its value; the physical one can't be set here.
    VirtualOnly,
}

impl Method {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Offset => "offset",
            Self::ByValue => "by-value",
            Self::VirtualOnly => "virtual-only",
        }
    }
}

/// What a restore would do. Its numbers are as of `sample`; the decisions stand until the target's state changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// What was asked for.
    pub request: Request,
    /// How the counters will be set.
    pub method: Method,
    /// Whether it is the same counter, by force or by the evidence.
    pub same_counter: bool,
    /// The evidence.
    pub evidence: Evidence,
    /// The instant that its numbers are for.
    pub sample: Stamp,
    /// What would be set at that instant.
    pub as_of: Outcome,
    /// Everything else that the caller should know before it goes on.
    pub warnings: Vec<Diagnostic>,
    /// Assumptions under which the error bound holds.
    pub assumptions: Vec<Diagnostic>,
    /// By how much faster the guest's counters run here than there, in parts per billion; `None` where it isn't known.
    pub rate_step_ppb: Option<i64>,
    /// The timers that the guest finds overdue at that instant.
    pub overdue: Vec<TimerStatus>,
    /// Parts of the guest's time that can't be preserved.
    pub unsupported: Vec<Diagnostic>,
    /// Slower for the guest from now on.
    pub degraded: Vec<Diagnostic>,
    /// The target's state when the plan was made.
    pub generation: u64,
    /// The guest has EL2: both its counters have one offset, CNTVOFF_EL2 apart.
    pub nested: bool,
    pub(super) frequency: Frequency,
    pub(super) saved: SavedCounters,
}

/// The instant that a plan starts from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct SavedCounters {
    pub(super) cntvct: GuestCount,
    pub(super) cntpct: GuestCount,
    pub(super) width_ticks: u64,
    pub(super) host: Stamp,
    pub(super) backlog: Option<Backlog>,
}

/// The guest's counters at one instant under a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The host's count at the instant.
    pub count: HostCount,
    /// The guest's virtual counter then.
    pub cntvct: GuestCount,
    /// The guest's physical counter then.
    pub cntpct: GuestCount,
    /// The guest time that the policy adds, in ticks, modulo 2^64.
    pub added_ticks: u64,
    /// The guest time that is owed from then on, in ticks.
    pub backlog_ticks: u64,
    /// Whether more time has passed than the policy lets through.
    pub capped: bool,
    /// How far the counters may be from what the policy promises.
    pub bound: ErrorBound,
}

impl Outcome {
    /// The offset that the virtual counter needs.
    #[must_use]
    pub const fn virtual_offset(&self) -> Offset {
        Offset::between(self.count, self.cntvct)
    }

    /// The offset that the physical counter needs.
    #[must_use]
    pub const fn physical_offset(&self) -> Offset {
        Offset::between(self.count, self.cntpct)
    }
}

impl Plan {
    /// The guest's counters if it goes on at the instant `now`.
    pub fn at(&self, now: &Stamp) -> Result<Outcome, Refusal> {
        let Elapsed { ticks, bound } = match self.request.policy {
            Policy::Freeze => Elapsed::default(),
            Policy::Advance { .. } | Policy::CatchUp { .. } => self.elapsed(now)?,
        };
        let owed = self.saved.backlog.map_or(0, |backlog| backlog.remaining_ticks);
        let missed = ticks + u128::from(owed);
        let (added, owed) = match self.request.policy {
            Policy::Freeze => (0, owed),
            Policy::Advance { max_ns: None } => (missed, 0),
            Policy::Advance { max_ns: Some(max_ns) } => (missed.min(self.frequency.ns_to_ticks(max_ns)), 0),
            Policy::CatchUp { .. } => (0, u64::try_from(missed).unwrap_or(u64::MAX)),
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the counter is modulo 2^64, and so is what is added to it"
        )]
        let added_ticks = added as u64;
        let capped = matches!(self.request.policy, Policy::Advance { .. }) && added < missed;
        let beyond_cap_ticks = if capped { u64::try_from(missed - added).unwrap_or(u64::MAX) } else { 0 };
        Ok(Outcome {
            count: now.count,
            cntvct: self.saved.cntvct.after(added_ticks),
            cntpct: self.saved.cntpct.after(added_ticks),
            added_ticks,
            backlog_ticks: owed,
            capped,
            bound: ErrorBound { reads_ticks: self.saved.width_ticks, beyond_cap_ticks, ..bound },
        })
    }

    /// The same for another VM that is saved and restored alike, but for its counters.
    #[must_use]
    pub fn outcome_of(&self, outcome: &Outcome, (virt, phys): (GuestCount, GuestCount)) -> Outcome {
        let phys = self.request.views.physical(virt, phys);
        let after = |saved: GuestCount| saved.after(outcome.added_ticks);
        Outcome { cntvct: after(virt), cntpct: after(phys), ..*outcome }
    }

    /// Whether its numbers depend on the wall clock, so that the release needs a whole stamp.
    #[must_use]
    pub fn needs_the_wall_clock(&self) -> bool {
        !self.same_counter && self.request.policy != Policy::Freeze && self.request.elapsed_ns.is_none()
    }

    /// The instant with who vouches for its wall clock: what the caller declared was of the plan's sample.
    #[must_use]
    pub fn vouched(&self, now: Stamp) -> Stamp {
        match self.request.sync {
            None => now,
            Some(sync) => {
                // By a counter that may be slow: a hold-over that is counted too short is a bound too narrow.
                let later = elapsed::longest_ns(self.frequency, now.count.since(self.sample.count));
                now.vouched_by(sync.aged(later))
            }
        }
    }

    /// What the guest is owed once it goes on as in `outcome`.
    #[must_use]
    pub fn backlog(&self, outcome: &Outcome) -> Option<Backlog> {
        let owed = |step_ns, interval_ns| Backlog { remaining_ticks: outcome.backlog_ticks, step_ns, interval_ns };
        match self.request.policy {
            Policy::Freeze => self.saved.backlog,
            Policy::Advance { .. } => None,
            Policy::CatchUp { .. } if outcome.backlog_ticks == 0 => None,
            Policy::CatchUp { step_ns, interval_ns, .. } => Some(owed(step_ns, interval_ns)),
        }
    }

    /// By how much CVALs move at the instant of `outcome`, so that the timers keep what was left to them.
    #[must_use]
    pub fn cval_shift(&self, outcome: &Outcome) -> u64 {
        match self.request.deadlines {
            Deadlines::Absolute => 0,
            Deadlines::Relative => outcome.added_ticks,
        }
    }

    /// The checkpoint's timers at one of the plan's instants: its sample, or the release. `cval_shift` is by how much
    /// CVALs were moved.
    ///
    /// Without those that aren't restored: the physical timer, where only the virtual counter can be set. By value the
    /// counters are the promised ones, and a deadline within the error bound of them may come out either way.
    pub fn timers_at(
        &self,
        checkpoint: &Checkpoint,
        outcome: &Outcome,
        cval_shift: u64,
    ) -> impl Iterator<Item = TimerStatus> {
        let offsets = Offsets { virt: outcome.virtual_offset(), phys: outcome.physical_offset() };
        let only_virtual = self.method == Method::VirtualOnly;
        timer_status::statuses(checkpoint, outcome.count, offsets, cval_shift)
            .filter(move |status| !only_virtual || status.timer != Timer::Ptimer)
    }

    /// Whether the guest's counters lose step with real time, so that what it calibrated against them is no longer
    /// true: all but an `Advance` on the same counter, of all the time that has passed and no more, from a known count.
    #[must_use]
    pub fn disrupts(&self) -> bool {
        let goes_on = matches!(self.request.policy, Policy::Advance { .. }) && self.same_counter;
        let told = self.request.elapsed_ns.is_some() || self.saved.backlog.is_some();
        !goes_on || told || self.as_of.capped || self.saved.width_ticks != 0
    }

    /// How far the guest's counters jump at once, as far as it can tell: by what is added, or by one step.
    #[must_use]
    pub fn jump_ticks(&self) -> u64 {
        let step = |backlog: Backlog| backlog.step_ticks(self.frequency).min(backlog.remaining_ticks);
        self.as_of.added_ticks.max(self.backlog(&self.as_of).map_or(0, step))
    }

    /// The same in nanoseconds, rounded up.
    #[must_use]
    pub fn jump_ns(&self) -> u128 {
        self.frequency.ticks_to_ns_ceil(self.jump_ticks())
    }

    /// What a Linux guest makes of that jump.
    pub fn limits(&self) -> impl Iterator<Item = (Limit, Reached)> {
        let jump_ns = self.jump_ns();
        limits(self.frequency).into_iter().map(move |limit| (limit, limit.reached_by(jump_ns)))
    }

    /// The counters' frequency.
    #[must_use]
    pub const fn frequency(&self) -> Frequency {
        self.frequency
    }

    /// The checkpoint's instant.
    #[must_use]
    pub const fn saved_at(&self) -> &Stamp {
        &self.saved.host
    }

    /// The guest's counter at the checkpoint.
    #[must_use]
    pub const fn saved_counter(&self, view: View) -> GuestCount {
        match view {
            View::Virtual => self.saved.cntvct,
            View::Physical => self.saved.cntpct,
        }
    }

    fn elapsed(&self, now: &Stamp) -> Result<Elapsed, ElapsedError> {
        let (saved, request) = (&self.saved.host, &self.request);
        if let Some(elapsed_ns) = request.elapsed_ns {
            let assumed_ns = request.assume_error_ns.unwrap_or(0);
            return elapsed::by_the_callers_word(elapsed_ns, assumed_ns, &self.sample, now);
        }
        if self.same_counter {
            return elapsed::by_one_counter(saved, now);
        }
        // Who caps what is let through has decided what becomes of the rest.
        let decided = matches!(request.policy, Policy::Advance { max_ns: Some(_) });
        let longest_ns = (!decided).then(|| request.max_elapsed_ns.unwrap_or(MAX_ELAPSED_NS));
        elapsed::by_two_wall_clocks(saved, now, request.assume_error_ns, longest_ns)
    }

    /// Refuses a backlog that would be made and could never be paid back, or not in time.
    pub(super) fn can_be_paid_back(&self) -> Result<(), Refusal> {
        let Policy::CatchUp { deadline_ns, .. } = self.request.policy else { return Ok(()) };
        if self.method != Method::Offset {
            return Err(Refusal::NoCounterOffset { needed_by: NeedsCounterOffset::CatchUpPlan });
        }
        match self.missed(deadline_ns) {
            // In place the pause is over: the VM has to go on, and the plan warns.
            Some(missed) if !self.request.in_place => Err(missed),
            _ => Ok(()),
        }
    }

    /// That the deadline is missed, if it is.
    pub(crate) fn missed(&self, deadline_ns: Option<u64>) -> Option<Refusal> {
        let (backlog, deadline_ns) = self.backlog(&self.as_of).zip(deadline_ns)?;
        let needed_ns = backlog.duration_ns(self.frequency);
        let owed_ns = self.frequency.ticks_to_ns(backlog.remaining_ticks);
        (needed_ns > u128::from(deadline_ns)).then_some(Refusal::DeadlineMissed { owed_ns, needed_ns, deadline_ns })
    }
}
