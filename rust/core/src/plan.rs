//! Policy -> plan: what a restore would do here, computed without touching anything.

use crate::advice;
use crate::backend::{Abilities, Backend, Registers};
use crate::checkpoint::Checkpoint;
use crate::counter::{CrossTimestamp, Frequency, GuestCount, HostCount, Offset};
use crate::debt::Debt;
use crate::elapsed::{self, Elapsed, ErrorBound, Evidence, MAX_ELAPSED_NS};
use crate::limits::{Limit, Reached, limits};
use crate::outlook::{self, Outlook};
use crate::refusal::Refusal;
use crate::sysreg::{Role, View};
use crate::timer::Timer;
use crate::vmclock::Intent;
use crate::wall_clock::SyncBound;
use alloc::string::String;
use alloc::vec::Vec;

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
    const fn physical(self, virt: GuestCount, phys: GuestCount) -> GuestCount {
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

/// How the counters are set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
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

/// The VM that is restored into, as far as a plan depends on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// How many vCPUs.
    pub vcpus: usize,
    /// What timer registers they have.
    pub registers: Registers,
    /// Its CNTFRQ_EL0 in Hz.
    pub cntfrq_hz: u32,
    /// What can be done.
    pub abilities: Abilities,
    /// Whether its offset is owned already.
    pub owned: bool,
    /// Its state's number: the plan is stale when that has changed.
    pub generation: u64,
}

impl Target {
    /// The backend's VM as it is now.
    pub fn of<B: Backend + ?Sized>(backend: &mut B) -> Result<Self, B::Error> {
        Ok(Self {
            vcpus: backend.vcpus(),
            registers: Registers::of(backend)?,
            cntfrq_hz: backend.cntfrq_hz(),
            abilities: backend.abilities(),
            owned: backend.owned_offset().is_some(),
            generation: backend.generation(),
        })
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
    pub sample: CrossTimestamp,
    /// What would be set at that instant.
    pub as_of: Outcome,
    /// What the caller should know before it goes on.
    pub warnings: Vec<String>,
    /// What has to be true for the error bound to hold.
    pub premises: Vec<String>,
    /// By how much faster the guest's counters run here than there, in parts per billion; `None` where it isn't known.
    pub rate_step_ppb: Option<i64>,
    /// The timers that the guest finds overdue at that instant.
    pub overdue: Vec<Outlook>,
    /// What can't be preserved.
    pub lost: Vec<String>,
    /// What is slower from now on.
    pub slower: Vec<String>,
    /// The target's state when the plan was made.
    pub generation: u64,
    /// The guest has EL2: both its counters have one offset, CNTVOFF_EL2 apart.
    pub nested: bool,
    frequency: Frequency,
    saved: Saved,
}

/// The instant that a plan starts from.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Saved {
    cntvct: GuestCount,
    cntpct: GuestCount,
    width_ticks: u64,
    host: CrossTimestamp,
    debt: Option<Debt>,
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
    pub owed_ticks: u64,
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

/// Plans the restore of `checkpoint` into `target`, as of `sample` of the target's counter.
pub fn plan(
    checkpoint: &Checkpoint,
    target: &Target,
    sample: CrossTimestamp,
    request: Request,
) -> Result<Plan, Refusal> {
    let frequency = same_frequency(checkpoint, target, &sample)?;
    if let Some(what) = advice::unknown(checkpoint).next().filter(|_| request.strict) {
        return Err(Refusal::Unknown { what });
    }
    let method = method(checkpoint, target, request)?;
    let sample = match request.sync {
        Some(sync) => sample.vouched_by(sync),
        None => sample,
    };
    let evidence = Evidence::between(&checkpoint.host, &sample);
    let same_counter = request.same_counter.unwrap_or_else(|| evidence.decides(&sample.source));
    let cntpct = request.views.physical(checkpoint.cntvct, checkpoint.cntpct);
    let mut plan = Plan {
        request,
        method,
        same_counter,
        evidence,
        as_of: Outcome {
            count: sample.count,
            cntvct: checkpoint.cntvct,
            cntpct,
            added_ticks: 0,
            owed_ticks: 0,
            capped: false,
            bound: ErrorBound::default(),
        },
        rate_step_ppb: if same_counter { Some(0) } else { elapsed::rate_step_ppb(&checkpoint.host, &sample) },
        sample,
        overdue: Vec::new(),
        lost: Vec::new(),
        slower: Vec::new(),
        warnings: Vec::new(),
        premises: Vec::new(),
        generation: target.generation,
        nested: target.registers.has(Role::Cntvoff),
        frequency,
        saved: Saved {
            cntvct: checkpoint.cntvct,
            cntpct,
            width_ticks: checkpoint.width_ticks,
            host: checkpoint.host.clone(),
            debt: checkpoint.debt,
        },
    };
    plan.as_of = plan.at(&plan.sample)?;
    plan.can_be_paid_back()?;
    if !request.in_place {
        // In place the checkpoint has no timers.
        let found = outlook::restored(checkpoint, &plan, &plan.as_of, plan.cval_shift(&plan.as_of));
        plan.overdue = found.filter(|outlook| outlook.overdue_ticks.is_some()).collect();
    }
    plan.premises = advice::premises(&plan, checkpoint);
    plan.lost = advice::lost(&plan, checkpoint, target);
    plan.slower = advice::slower(&plan, target);
    plan.warnings = advice::warnings(&plan, checkpoint, target);
    Ok(plan)
}

/// Checks that `target` has the vCPUs, timers and registers of `checkpoint`.
pub fn same_topology(checkpoint: &Checkpoint, target: &Target) -> Result<(), Refusal> {
    let mismatch = |what, saved, host| Err(Refusal::TopologyMismatch { what, saved, host });
    if checkpoint.vcpus != target.vcpus {
        return mismatch("vCPUs", checkpoint.vcpus, target.vcpus);
    }
    let el2 = |nested: bool| if nested { checkpoint.vcpus } else { 0 };
    let (saved, host) = (checkpoint.cntvoff.is_some(), target.registers.has(Role::Cntvoff));
    if saved != host {
        return mismatch("vCPUs with EL2", el2(saved), el2(host));
    }
    let saved = checkpoint.timers.iter().filter(|columns| columns.timer != Timer::Ptimer).count();
    let host = target.registers.timers().filter(|timer| *timer != Timer::Ptimer).count();
    if saved != host {
        return mismatch("timers besides the physical one on each vCPU", saved, host);
    }
    let saved = checkpoint.others.len();
    let host = checkpoint.others.iter().filter(|column| target.registers.has_id(column.id)).count();
    if saved != host {
        return mismatch("timer registers unknown to guestclock", saved, host);
    }
    Ok(())
}

fn same_frequency(checkpoint: &Checkpoint, target: &Target, sample: &CrossTimestamp) -> Result<Frequency, Refusal> {
    let saved_hz = u64::from(checkpoint.cntfrq_hz);
    let mismatch = |host_hz| Refusal::FrequencyMismatch { saved_hz, host_hz };
    if checkpoint.cntfrq_hz != target.cntfrq_hz {
        return Err(mismatch(u64::from(target.cntfrq_hz)));
    }
    if saved_hz != sample.frequency.hz() {
        return Err(mismatch(sample.frequency.hz()));
    }
    Ok(sample.frequency)
}

fn method(checkpoint: &Checkpoint, target: &Target, request: Request) -> Result<Method, Refusal> {
    let skew = |why| Refusal::CounterSkew { cntvct: checkpoint.cntvct.0, cntpct: checkpoint.cntpct.0, why };
    let adopt = request.views == Views::AdoptVirtual;
    let equal = checkpoint.cntvct == checkpoint.cntpct;
    if !target.owned && !adopt && (request.in_place || !equal || !target.abilities.counter_offset) {
        if request.views == Views::Refuse && !equal {
            return Err(skew("views=\"refuse\" was asked for"));
        }
        let physical = target.registers.has(Role::Count(View::Physical));
        return Ok(if physical { Method::ByValue } else { Method::VirtualOnly });
    }
    if !target.abilities.counter_offset {
        return Err(Refusal::CapabilityMissing {
            capability: "counter_offset",
            reason: "this VM has no VM-wide counter offset (KVM_CAP_COUNTER_OFFSET, Linux 6.4 and later), which \
                     views=\"adopt-virtual\" needs: use views=\"preserve\"",
        });
    }
    if equal || adopt { Ok(Method::Offset) } else { Err(skew("this VM has opted in to one offset for both, for good")) }
}

impl Plan {
    /// The guest's counters if it goes on at the instant `now`.
    pub fn at(&self, now: &CrossTimestamp) -> Result<Outcome, Refusal> {
        let Elapsed { ticks, bound } = match self.request.policy {
            Policy::Freeze => Elapsed::default(),
            Policy::Advance { .. } | Policy::CatchUp { .. } => self.elapsed(now)?,
        };
        let owed = self.saved.debt.map_or(0, |debt| debt.owed_ticks);
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
            owed_ticks: owed,
            capped,
            bound: ErrorBound { reads_ticks: self.saved.width_ticks, beyond_cap_ticks, ..bound },
        })
    }

    /// The same for another VM that is saved and restored alike, but for its counters.
    #[must_use]
    pub(crate) fn outcome_of(&self, outcome: &Outcome, (virt, phys): (GuestCount, GuestCount)) -> Outcome {
        let phys = self.request.views.physical(virt, phys);
        let after = |saved: GuestCount| saved.after(outcome.added_ticks);
        Outcome { cntvct: after(virt), cntpct: after(phys), ..*outcome }
    }

    /// Whether its numbers depend on the wall clock, so that the release needs a whole cross-timestamp.
    #[must_use]
    pub fn needs_the_wall_clock(&self) -> bool {
        !self.same_counter && self.request.policy != Policy::Freeze && self.request.elapsed_ns.is_none()
    }

    /// The instant with who vouches for its wall clock: what the caller declared was of the plan's sample.
    #[must_use]
    pub(crate) fn vouched(&self, now: CrossTimestamp) -> CrossTimestamp {
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
    pub fn debt(&self, outcome: &Outcome) -> Option<Debt> {
        let owed = |step_ns, interval_ns| Debt { owed_ticks: outcome.owed_ticks, step_ns, interval_ns };
        match self.request.policy {
            Policy::Freeze => self.saved.debt,
            Policy::Advance { .. } => None,
            Policy::CatchUp { .. } if outcome.owed_ticks == 0 => None,
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

    /// Whether the guest's counters lose step with real time, so that what it calibrated against them is no longer true: all
    /// but an `Advance` on the same counter, of all the time that has passed and no more, from a known count.
    #[must_use]
    pub fn disrupts(&self) -> bool {
        let goes_on = matches!(self.request.policy, Policy::Advance { .. }) && self.same_counter;
        let told = self.request.elapsed_ns.is_some() || self.saved.debt.is_some();
        !goes_on || told || self.as_of.capped || self.saved.width_ticks != 0
    }

    /// How far the guest's counters jump at once, as far as it can tell: by what is added, or by one step.
    #[must_use]
    pub fn jump_ticks(&self) -> u64 {
        let step = |debt: Debt| debt.step_ticks(self.frequency).min(debt.owed_ticks);
        self.as_of.added_ticks.max(self.debt(&self.as_of).map_or(0, step))
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
    pub const fn saved_at(&self) -> &CrossTimestamp {
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

    fn elapsed(&self, now: &CrossTimestamp) -> Result<Elapsed, Refusal> {
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

    /// Refuses a debt that would be made and could never be paid back, or not in time.
    fn can_be_paid_back(&self) -> Result<(), Refusal> {
        let Policy::CatchUp { deadline_ns, .. } = self.request.policy else { return Ok(()) };
        if self.method != Method::Offset {
            return Err(Refusal::CapabilityMissing {
                capability: "counter_offset",
                reason: "CatchUp() pays back by moving the VM-wide counter offset, and this VM's counters are set by value: \
                         use Freeze() or Advance(), or opt in first with set_counter_offset()",
            });
        }
        match self.missed(deadline_ns) {
            // In place the pause is over: the VM has to go on, and the plan warns.
            Some(missed) if !self.request.in_place => Err(missed),
            _ => Ok(()),
        }
    }

    /// That the deadline is missed, if it is.
    pub(crate) fn missed(&self, deadline_ns: Option<u64>) -> Option<Refusal> {
        let (debt, deadline_ns) = self.debt(&self.as_of).zip(deadline_ns)?;
        let needed_ns = debt.duration_ns(self.frequency);
        let owed_ns = self.frequency.ticks_to_ns(debt.owed_ticks);
        (needed_ns > u128::from(deadline_ns)).then_some(Refusal::DeadlineMissed { owed_ns, needed_ns, deadline_ns })
    }
}
