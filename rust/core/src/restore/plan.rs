//! Plan of a restore, computed without touching anything.

use crate::arch::arm64::{Offsets, Timer, View};
use crate::checkpoint::{Backlog, GuestTime, SavedVm};
use crate::guest::{InSteps, Limit, Reached};
use crate::restore::diagnostics::Diagnostic;
use crate::restore::late::{self, Late};
use crate::restore::policy::{AtOnce, Deadlines, Repay, Request, Rest};
use crate::restore::refusal::{NeedsCounterOffset, Refusal};
use crate::restore::target::Target;
use crate::restore::timer_status::{self, TimerStatus};
use crate::time::{
    Believed, Between, Elapsed, ElapsedBy, ElapsedError, ErrorBound, Evidence, Frequency, GuestCount, HostCount,
    Instant, MAX_ELAPSED_NS, Offset, Passed, Stamp, StampCount,
};
use alloc::vec::Vec;
use core::num::NonZeroU64;

/// Method by which the counters are set.
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
    /// Name of the method.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Offset => "offset",
            Self::ByValue => "by-value",
            Self::VirtualOnly => "virtual-only",
        }
    }
}

/// Plan of a restore. Its numbers are as of `sample`; its decisions hold until the target's state changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The request.
    pub request: Request,
    /// Method by which the counters will be set.
    pub method: Method,
    /// The evidence about the counter.
    pub evidence: Evidence,
    /// Time from the checkpoint to the plan's sample, and the clock that tells it; `None` where nobody knows, which
    /// `Freeze` alone can do without.
    pub elapsed: Option<Believed>,
    /// The instant of the plan's numbers, host-wide.
    pub sample: Stamp,
    /// Time from the checkpoint to that instant; nothing under `Freeze`, which asks for no clock.
    pub passed: Passed,
    /// The virtual counter from that instant on.
    pub late: Late,
    /// Outcome of a release at that instant.
    pub as_of: Outcome,
    /// Everything else that the caller should know before going on.
    pub warnings: Vec<Diagnostic>,
    /// Assumptions under which the error bound holds.
    pub assumptions: Vec<Diagnostic>,
    /// Rate by which the guest's counters run faster here than there, in parts per billion; `None` if it isn't known.
    pub rate_step_ppb: Option<i64>,
    /// The timers that the guest finds overdue at that instant.
    pub overdue: Vec<TimerStatus>,
    /// Parts of the guest's time that can't be preserved.
    pub unsupported: Vec<Diagnostic>,
    /// Parts of the guest that get slower.
    pub degraded: Vec<Diagnostic>,
    /// The VM that is restored into, as it was then.
    pub target: Target,
    /// The sample that the plan was made at: `sample` is a later one where a look since has shown a sleep of the host.
    pub(super) planned_at: Stamp,
    /// Stamps of the looks since.
    pub(super) looks: Vec<Stamp>,
    pub(super) frequency: Frequency,
    pub(super) saved: SavedCounters,
}

/// The counters that a plan starts from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct SavedCounters {
    pub(super) cntvct: GuestCount,
    pub(super) cntpct: GuestCount,
    /// Guest time as it was saved.
    pub(super) time: GuestTime,
    /// Ticks by which the counters lie before those of the registers' instant: they are of the stop.
    pub(super) hidden_ticks: u64,
    /// Ticks by which the registers' instant lies after that of `host`; negative where it lies before.
    pub(super) later_ticks: i64,
    pub(super) host: Stamp,
}

/// The guest's counters at one instant under a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The host's count at the instant, as this process reads it: offsets are made from it.
    pub count: HostCount,
    /// The guest's virtual counter then.
    pub cntvct: GuestCount,
    /// The guest's physical counter then.
    pub cntpct: GuestCount,
    /// The guest time that the policy adds, in ticks, modulo 2^64.
    pub added_ticks: u64,
    /// The backlog from then on, in ticks.
    pub backlog_ticks: u64,
    /// True if more time has passed than the policy's cap.
    pub capped: bool,
    /// Bound of the distance between the counters and the policy's promise.
    pub bound: ErrorBound,
    /// Time by which the guest's wall clock falls behind; `None` where nobody knows.
    pub behind: Option<Behind>,
}

/// Time by which a guest's wall clock falls behind, since it went by the guest's counter: what the guest has missed, and
/// isn't given at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Behind {
    /// The time, in ticks of the guest's counter.
    pub ticks: u128,
    /// Error of that time.
    pub bound: ErrorBound,
}

impl Behind {
    /// Returns the time in nanoseconds, rounded down; held at the end of its range.
    #[must_use]
    pub fn ns(&self, frequency: Frequency) -> u64 {
        // Exact below 2^64 ticks; beyond, whole seconds are enough.
        let hz = u128::from(frequency.hz());
        let ns = match u64::try_from(self.ticks) {
            Ok(ticks) => frequency.ticks_to_ns(ticks),
            Err(_) => (self.ticks / hz).saturating_mul(1_000_000_000),
        };
        u64::try_from(ns).unwrap_or(u64::MAX)
    }

    /// Returns its error in nanoseconds, rounded up; held at the end of its range.
    #[must_use]
    pub fn error_ns(&self, frequency: Frequency) -> u64 {
        u64::try_from(frequency.ticks_to_ns_ceil(self.bound.ticks(frequency))).unwrap_or(u64::MAX)
    }
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
    /// Returns the guest's counters if it goes on when this counter reads `now`.
    ///
    /// Nothing is decided here: the time up to the plan's sample is the plan's, and from there this counter counts. A
    /// count before the sample is as the sample.
    #[must_use]
    pub fn at(&self, now: HostCount) -> Outcome {
        let policy = self.request.policy;
        let (missed, added_ticks) = (self.late.missed_at(now), self.late.added_at(now));
        let left = u64::try_from(missed - added_ticks).unwrap_or(u64::MAX);
        let (backlog_ticks, beyond_cap_ticks) = match policy.rest() {
            Rest::Keep => (self.saved.time.backlog.map_or(0, |backlog| backlog.remaining_ticks.get()), 0),
            Rest::Forget => (0, left),
            Rest::Repay(_) => (left, 0),
        };
        let anchor = self.late.anchor;
        let since = if anchor.is_after(now) { 0 } else { now.since(anchor) };
        let passed = |passed: Passed, since| {
            let bound = passed.and_then(since, self.same_counter()).bound;
            ErrorBound { rate_ticks: bound.rate_ticks.saturating_add(self.rate_error_ticks(since)), ..bound }
        };
        let bound = passed(self.passed, if policy.is_freeze() { 0 } else { since });
        let reads_ticks = self.saved.time.width_ticks();
        let behind = self.elapsed.map(|elapsed| {
            // Under Freeze nothing counts as missed, and the guest misses it all the same.
            let frozen = if policy.is_freeze() {
                self.missed_with(&elapsed.passed).saturating_add(since.into())
            } else {
                missed
            };
            let bound = if policy.is_freeze() { passed(elapsed.passed, since) } else { bound };
            Behind { ticks: frozen.saturating_sub(added_ticks), bound: ErrorBound { reads_ticks, ..bound } }
        });
        let added_ticks = late::wrapped(added_ticks);
        Outcome {
            count: now,
            cntvct: self.saved.cntvct.after(added_ticks),
            cntpct: self.physical(now, self.saved.cntpct.after(added_ticks)),
            added_ticks,
            backlog_ticks,
            capped: beyond_cap_ticks > 0,
            bound: ErrorBound { reads_ticks, beyond_cap_ticks, ..bound },
            behind,
        }
    }

    /// Returns the count of a stamp as this process reads it.
    #[must_use]
    pub const fn count_of(&self, stamp: &Stamp) -> HostCount {
        stamp.count.own(self.target.namespace_ticks)
    }

    /// Returns the closed form of the virtual counter from the plan's sample on.
    pub(super) fn late(&self) -> Late {
        let missed = self.missed_with(&self.passed);
        let cap = self.request.policy.at_once().cap(self.frequency);
        Late { anchor: self.sample.count.own(self.target.namespace_ticks), missed, cap, saved: self.saved.cntvct }
    }

    /// Returns the ticks that the guest has missed, with the time that has passed since the checkpoint.
    fn missed_with(&self, passed: &Passed) -> u128 {
        let saved = &self.saved;
        let kept = saved.time.backlog.map_or(0, |backlog| backlog.remaining_ticks.get());
        // From the instant of `host` to that of the registers no time is missed: the counters have it already.
        let later = u128::from(saved.later_ticks.unsigned_abs());
        let passed = if saved.later_ticks < 0 { passed.ticks + later } else { passed.ticks.saturating_sub(later) };
        passed + u128::from(saved.hidden_ticks) + u128::from(kept)
    }

    /// Returns the error of so many ticks of this counter by the difference of the frequencies that the caller accepted.
    fn rate_error_ticks(&self, ticks: u64) -> u64 {
        let (guest, here) = (self.frequency.hz(), self.sample.frequency.hz());
        if self.same_counter() || guest == here {
            return 0;
        }
        let error = (u128::from(ticks) * u128::from(guest.abs_diff(here))).div_ceil(here.into());
        u64::try_from(error).unwrap_or(u64::MAX)
    }

    /// Source of the elapsed time; `None` where nobody knows it.
    #[must_use]
    pub fn elapsed_by(&self) -> Option<ElapsedBy> {
        self.elapsed.map(|elapsed| elapsed.by)
    }

    /// Returns whether the host's counter tells the time that has passed: it is the checkpoint's.
    #[must_use]
    pub fn same_counter(&self) -> bool {
        self.elapsed_by() == Some(ElapsedBy::Counter)
    }

    /// Returns the counters of another VM that is saved and restored alike, except for its counters: virtual and physical,
    /// at the instant of `outcome`.
    #[must_use]
    #[inline]
    pub fn counters_of(&self, outcome: &Outcome, (virt, phys): (GuestCount, GuestCount)) -> (GuestCount, GuestCount) {
        let before = |count: GuestCount| GuestCount(count.0.wrapping_sub(self.saved.hidden_ticks));
        let (virt, phys) = (before(virt), before(phys));
        let phys = self.request.views.physical(virt, phys).after(outcome.added_ticks);
        (virt.after(outcome.added_ticks), self.physical(outcome.count, phys))
    }

    /// Returns the physical counter when this host's reads `now`: `restored`, or the host's own where it isn't restored.
    #[inline]
    const fn physical(&self, now: HostCount, restored: GuestCount) -> GuestCount {
        if matches!(self.method, Method::VirtualOnly) { GuestCount(now.0) } else { restored }
    }

    /// Returns the instant of an outcome, with the wall clock of the plan's sample.
    #[must_use]
    pub fn instant_of(&self, outcome: &Outcome) -> Instant {
        let stamp = Stamp { count: self.stamped(outcome), ..self.sample };
        Instant { stamp, namespace_ticks: self.target.namespace_ticks }
    }

    /// Returns the host-wide count of an outcome, which can be compared with the checkpoint's.
    #[must_use]
    pub const fn stamped(&self, outcome: &Outcome) -> StampCount {
        outcome.count.stamped(self.target.namespace_ticks)
    }

    /// Returns whether two wall clocks tell the time that has passed.
    #[must_use]
    pub fn by_wall_clocks(&self) -> bool {
        self.elapsed_by() == Some(ElapsedBy::WallClocks) && !self.request.policy.is_freeze()
    }

    /// Returns the backlog of a guest that goes on as in `outcome`.
    #[must_use]
    pub fn backlog(&self, outcome: &Outcome) -> Option<Backlog> {
        match self.request.policy.rest() {
            Rest::Keep => self.saved.time.backlog,
            Rest::Forget => None,
            Rest::Repay(Repay { step_ns, interval_ns, .. }) => {
                let remaining_ticks = NonZeroU64::new(outcome.backlog_ticks)?;
                Some(Backlog { remaining_ticks, step_ns, interval_ns })
            }
        }
    }

    /// Returns the ticks by which CVALs move at the instant of `outcome`.
    #[must_use]
    pub fn cval_shift(&self, outcome: &Outcome) -> u64 {
        match self.request.deadlines {
            Deadlines::Absolute => 0,
            Deadlines::Relative => outcome.added_ticks,
        }
    }

    /// Returns the VM's timers at one of the plan's instants: its sample, or the release. `cval_shift` is the
    /// shift of the CVALs.
    ///
    /// Timers that aren't restored are left out: the physical timer, if only the virtual counter can be set. By value
    /// the counters are the promised ones, so a deadline within their error bound may be reported either way.
    pub fn timers_at(&self, vm: &SavedVm<'_>, outcome: &Outcome, cval_shift: u64) -> impl Iterator<Item = TimerStatus> {
        let offsets = Offsets { virt: outcome.virtual_offset(), phys: outcome.physical_offset() };
        let only_virtual = self.method == Method::VirtualOnly;
        timer_status::statuses(vm, outcome.count, offsets, cval_shift)
            .filter(move |status| !only_virtual || status.timer != Timer::Ptimer)
    }

    /// Returns whether the guest's counters lose step with real time, which invalidates the guest's calibration against
    /// them.
    ///
    /// Only an `Advance` on the same counter keeps step, with all of the elapsed time and no more, from a known count, while
    /// that counter counts.
    #[must_use]
    pub fn disrupts(&self) -> bool {
        let counted = self.same_counter() && self.sample == self.planned_at;
        let goes_on = self.request.policy.rest() == Rest::Forget && counted;
        !goes_on || self.saved.time.backlog.is_some() || self.as_of.capped || self.saved.time.width_ticks() != 0
    }

    /// Returns the ticks by which the guest's counters jump at once, as far as the plan knows: the added time, or one
    /// step.
    #[must_use]
    pub fn jump_ticks(&self) -> u64 {
        let step = self.backlog(&self.as_of).map_or(0, |backlog| backlog.next_ticks(self.frequency));
        self.as_of.added_ticks.max(step)
    }

    /// Returns that jump in nanoseconds, rounded up.
    #[must_use]
    pub fn jump_ns(&self) -> u128 {
        self.frequency.ticks_to_ns_ceil(self.jump_ticks())
    }

    /// Returns the limits of a Linux guest, and whether that jump reaches them.
    pub fn limits(&self) -> impl Iterator<Item = (Limit, Reached)> {
        let jump_ns = self.jump_ns();
        self.request.guest.limits(self.frequency).into_iter().map(move |limit| (limit, limit.reached_by(jump_ns)))
    }

    /// Returns the time for which the guest's CPU quota throttles a group whose task ran on one vCPU at the pause, in
    /// nanoseconds; `None` for a guest without a quota.
    #[must_use]
    pub fn throttled_ns(&self) -> Option<u128> {
        self.request.guest.throttled_ns(self.jump_ns())
    }

    /// Returns the steps in which the guest could be given the added time instead; `None` where it is given in steps
    /// already, or is no longer than one.
    #[must_use]
    pub fn in_steps(&self) -> Option<InSteps> {
        InSteps::of(self.frequency.ticks_to_ns_ceil(self.as_of.added_ticks))
    }

    /// The counters' frequency.
    #[must_use]
    pub const fn frequency(&self) -> Frequency {
        self.frequency
    }

    /// The checkpoint's instant, host-wide.
    #[must_use]
    pub const fn saved_at(&self) -> &Stamp {
        &self.saved.host
    }

    /// The guest's counter at the checkpoint, or at the stop of the last vCPU where that is known.
    #[must_use]
    pub const fn saved_counter(&self, view: View) -> GuestCount {
        match view {
            View::Virtual => self.saved.cntvct,
            View::Physical => self.saved.cntpct,
        }
    }

    /// Returns the time from the checkpoint to the plan's sample, and the clock that tells it.
    pub(super) fn believed(&self) -> Result<Believed, ElapsedError> {
        let request = &self.request;
        // A caller that caps the added time has decided about the rest.
        let decided = matches!((request.policy.at_once(), request.policy.rest()), (AtOnce::UpTo(_), Rest::Forget));
        let longest_ns = match request.elapsed {
            Some(Elapsed::ByWallClocks { refuse_over_ns: Some(longest_ns), .. }) => Some(longest_ns),
            _ if decided => None,
            _ => Some(MAX_ELAPSED_NS),
        };
        let between = Between {
            saved: &self.saved.host,
            here: &self.sample,
            evidence: &self.evidence,
            guest: self.frequency,
            one_object: request.in_place,
            longest_ns,
        };
        between.believed(request.elapsed)
    }

    /// Refuses a new backlog that could never be paid back, or not in time.
    pub(super) fn can_be_paid_back(&self) -> Result<(), Refusal> {
        let Rest::Repay(Repay { within_ns, .. }) = self.request.policy.rest() else { return Ok(()) };
        if self.method != Method::Offset {
            return Err(Refusal::NoCounterOffset { needed_by: NeedsCounterOffset::CatchUpPlan });
        }
        match self.missed(within_ns) {
            // In place the pause is over: the VM has to go on, and the plan warns.
            Some(missed) if !self.request.in_place => Err(missed),
            _ => Ok(()),
        }
    }

    /// Returns the refusal of a backlog that can't be paid back in time.
    pub(crate) fn missed(&self, within_ns: Option<u64>) -> Option<Refusal> {
        let (backlog, within_ns) = self.backlog(&self.as_of).zip(within_ns)?;
        let needed_ns = backlog.duration_ns(self.frequency);
        let remaining_ns = self.frequency.ticks_to_ns(backlog.remaining_ticks.get());
        (needed_ns > u128::from(within_ns)).then_some(Refusal::DeadlineMissed { remaining_ns, needed_ns, within_ns })
    }
}
