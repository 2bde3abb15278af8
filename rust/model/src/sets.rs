//! Sets of VMs at one instant: saved, restored, paused, and let go on.
//!
//! The rules are those of one VM. VMs of a set that are alike in all that a plan looks at, but for their counters,
//! share one [`Plan`], made by [`plan`](guestclock_core::restore::plan()) for the first of them; what it adds and how
//! it sets a counter goes for all. A set is restored as a whole or not at all: whatever can be refused is, before
//! anything is written.

use crate::backend::Model;
use crate::bank::handle::Handle;
use crate::bank::vms::{Bank, BankError, narrow};
use crate::error::VmError;
use crate::managed::ManagedBank;
use crate::vm::ModelVm;
use guestclock_core::arch::RegId;
use guestclock_core::checkpoint::{
    Backlog, BuildError, Checkpoint, GroupBuilder, GuestTime, Held, Name, SavedVm, VmName,
};
use guestclock_core::drive::{OperationError, Saving, set_counters};
use guestclock_core::restore::{
    Method, Outcome, Plan, Policy, Refusal, Report, Request, Saved, State, Target, Writes, Written, planning,
};
use guestclock_core::time::{Counter, Frequency, HostCount, Instant, OffsetInterval, Ratio, Stamp, SyncBound};
use std::collections::BTreeMap;
use std::num::NonZeroU32;

/// Error of an operation on a set of VMs. All of them are as they were.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetError {
    /// Error of a handle.
    #[error(transparent)]
    Bank(#[from] BankError),
    /// Error of one VM, as it would be if it were alone.
    #[error("VM {handle}: {error}")]
    OfVm {
        /// Handle of the VM.
        handle: i64,
        /// The error.
        error: OperationError<VmError>,
    },
    /// The VMs don't make a checkpoint.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A VM of the checkpoint whose name is no handle.
    #[error(
        "the VM {name:?} isn't named by a handle of this bank: give the handle of each VM, in the checkpoint's order"
    )]
    NoHandle {
        /// The name.
        name: String,
    },
    /// Another number of names, stops or handles than of VMs.
    #[error("{here} are given for {saved} VMs: give one for each, in their order")]
    Unequal {
        /// Number of VMs.
        saved: usize,
        /// Number of what is given.
        here: usize,
    },
}

fn of_vm<E: Into<OperationError<VmError>>>(vm: Handle) -> impl Fn(E) -> SetError {
    move |error| SetError::OfVm { handle: vm.0, error: error.into() }
}

/// Outcome of the restore of a set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetReport {
    /// The instant that all counters were set for, by the bank's counter.
    pub count: HostCount,
    /// The counter's count once all counters were set.
    pub returned_at: HostCount,
    /// Frequency of the bank's counter.
    pub frequency: Frequency,
    /// The VMs.
    pub vms: Vec<Handle>,
    /// The virtual counter of each at the instant.
    pub cntvct: Vec<u64>,
    /// The physical counter of each.
    pub cntpct: Vec<u64>,
    /// The guest time that was added to each, in ticks, modulo 2^64.
    pub added_ticks: Vec<u64>,
    /// Plans, each for VMs that are alike, and made for the first of them.
    pub plans: Vec<Plan>,
    /// Target of each plan.
    pub targets: Vec<Target>,
    /// Place of each VM's plan among the plans.
    pub plan_of: Vec<u32>,
}

impl SetReport {
    /// Returns the outcome of each plan: of the first of its VMs.
    pub fn outcomes(&self) -> impl Iterator<Item = Outcome> {
        self.plans.iter().map(|plan| plan.at(Ratio::new(self.frequency, plan.frequency()).at(self.count)))
    }

    /// Returns the report of the VM at this row: what a restore of it alone would have said, except for the writes,
    /// which were copies of columns. `saved` is the guest time that it went on from.
    ///
    /// No refusal comes here that wouldn't have come before the restore.
    pub fn report(&self, row: usize, saved: &Saved<'_>) -> Result<Report, Refusal> {
        let case = self.plan_of[row] as usize;
        let shared = &self.plans[case];
        let plan = planning::plan(saved, &self.targets[case], shared.sample, shared.request)?;
        let outcome = plan.at(Ratio::new(self.frequency, plan.frequency()).at(self.count));
        let exact = OffsetInterval::exact;
        let written = match plan.method {
            Method::Offset => Written::Offset { provisional: None, last: outcome.virtual_offset() },
            _ => Written::ByValue {
                virt: exact(outcome.virtual_offset()),
                phys: (plan.method == Method::ByValue).then(|| exact(outcome.physical_offset())),
            },
        };
        let vm = saved.vm.as_ref();
        Ok(Report {
            cval_shift: plan.cval_shift(&outcome),
            bound: outcome.bound,
            outcome,
            written,
            writes: Writes::default(),
            stopped_before_ticks: vm.and_then(|vm| Some(vm.stamp().count.since(vm.stopped_at()?))),
            returned_at: Ratio::new(self.frequency, plan.frequency()).at(self.returned_at),
            after_release_ticks: None,
            plan,
        })
    }
}

/// Facts about a checkpoint that the bank doesn't know.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetSaving<'a> {
    /// Names of the VMs, in the order of their handles; without them each is named by the digits of its handle.
    pub names: Option<&'a [VmName]>,
    /// The host's count when the last vCPU of each VM left its guest: none, one for all VMs, or one for each.
    pub stopped_at: &'a [u64],
    /// Bound of the wall clock that somebody vouches for.
    pub sync: Option<SyncBound>,
}

/// Paused VMs, all from one instant on.
#[derive(Debug)]
pub struct OpenPauses {
    vms: Vec<Handle>,
    epochs: Vec<u64>,
    stamp: Stamp,
    times: Vec<GuestTime>,
    request: Request,
}

impl OpenPauses {
    /// The VMs.
    #[must_use]
    pub fn vms(&self) -> &[Handle] {
        &self.vms
    }

    /// Policy for the end of the pause.
    #[must_use]
    pub const fn policy(&self) -> Policy {
        self.request.policy
    }

    /// Sets another policy for the end of the pause.
    pub const fn set_policy(&mut self, policy: Policy) {
        self.request.policy = policy;
    }

    /// Guest time of the VM at this row when it was paused.
    #[must_use]
    pub fn saved(&self, row: usize) -> Saved<'_> {
        let time = self.times[row];
        Saved::in_place(Ratio::new(self.stamp.frequency, time.frequency()).stamp(self.stamp), time)
    }

    fn pairs(&self) -> impl Iterator<Item = Pair<'_>> {
        self.vms.iter().zip(&self.times).map(|(vm, time)| Pair { vm: *vm, from: Basis::InPlace(time) })
    }
}

/// The cases of a restore: a plan for VMs that are alike.
struct Cases {
    plans: Vec<Plan>,
    targets: Vec<Target>,
    plan_of: Vec<u32>,
}

/// Everything that a plan looks at, except for the counters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Alike {
    /// Number of the group in the checkpoint.
    group: usize,
    /// Domain and class of the target.
    class: (u16, u16),
    /// True if the target has opted in.
    opted_in: bool,
    saved_opted_in: bool,
    frequency_hz: NonZeroU32,
    /// Distance of the counters, where it decides: none, or whether it is within what the reads can hide.
    apart: Option<bool>,
    width_ticks: u64,
    hidden_ticks: u64,
    backlog: Option<Backlog>,
}

/// A VM to restore or to let go on, and what it goes on from.
struct Pair<'a> {
    vm: Handle,
    from: Basis<'a>,
}

/// The guest time that a VM goes on from: with registers, or in place, where they stay.
enum Basis<'a> {
    Saved(SavedVm<'a>),
    InPlace(&'a GuestTime),
}

impl Basis<'_> {
    fn time(&self) -> GuestTime {
        match self {
            Self::Saved(vm) => vm.time(),
            Self::InPlace(time) => **time,
        }
    }
}

impl ManagedBank {
    /// Saves VMs at one instant. Refused while a vCPU of theirs runs, or a restore isn't finished.
    pub fn checkpoint(
        &self,
        vms: &[Handle],
        counter: &dyn Counter,
        saving: SetSaving<'_>,
    ) -> Result<Checkpoint, SetError> {
        let slots = self.bank.slots(vms)?;
        for (vm, slot) in vms.iter().zip(&slots) {
            self.run_states[*slot as usize].check_whole().map_err(of_vm(*vm))?;
            self.stopped(*vm)?;
        }
        let names = |names: &[VmName]| names.len() == vms.len();
        if !saving.names.is_none_or(names) || saving.stopped_at.len() > 1 && saving.stopped_at.len() != vms.len() {
            let here = saving.names.map_or(saving.stopped_at.len(), <[_]>::len);
            return Err(SetError::Unequal { saved: vms.len(), here });
        }
        let mut order: Vec<usize> = (0..vms.len()).collect();
        if saving.names.is_none() {
            order.sort_unstable_by_key(|vm| vms[*vm].0);
        }
        let mut groups = Groups::new(slots.iter().map(|slot| self.bank.rows_of(*slot).len()).sum());
        // Last, so that as little guest time as possible lies after it; the VMs stand still.
        let (stamp, namespace) = (counter.stamp(), counter.namespace_ticks());
        let now = stamp.count.own(namespace);
        for vm in order {
            let stopped = saving.stopped_at.get(if saving.stopped_at.len() == 1 { 0 } else { vm });
            let stopped = stopped.map(|count| HostCount(*count));
            let stopped_at = Saving::stopped_before::<VmError>(stopped, &stamp, namespace).map_err(of_vm(vms[vm]))?;
            let name = match saving.names {
                Some(names) => Name::Text(&names[vm]),
                None => Name::Number(vms[vm].0.cast_unsigned()),
            };
            let time = GuestTime { stopped_at, ..self.guest_time(slots[vm], now) };
            groups.of(&self.bank, slots[vm])?.add(name, &time, &self.bank, slots[vm]);
        }
        let stamp = saving.sync.map_or(stamp, |sync| stamp.vouched_by(sync));
        Ok(Checkpoint::of(stamp, groups.all.into_iter().map(|group| group.builder))?)
    }

    /// Restores a checkpoint into VMs, one for each of its VMs in their order: timers, CNTVOFF_EL2 and both counters, for
    /// one instant that is sampled when all of it was found possible. A restore or pause of theirs that is under way is
    /// over.
    pub fn restore(
        &mut self,
        checkpoint: &Checkpoint,
        vms: &[Handle],
        counter: &dyn Counter,
        request: Request,
    ) -> Result<SetReport, SetError> {
        self.bank.slots(vms)?;
        if vms.len() != checkpoint.len() {
            return Err(SetError::Unequal { saved: checkpoint.len(), here: vms.len() });
        }
        for vm in vms {
            self.stopped(*vm)?;
        }
        let pairs = || checkpoint.vms().zip(vms).map(|(saved, vm)| Pair { vm: *vm, from: Basis::Saved(saved) });
        let cases = self.cases(checkpoint.stamp(), pairs(), counter, request)?;
        self.apply(pairs(), cases, counter)
    }

    /// Pauses VMs in place, all at one instant: none of their vCPUs can run until [`resume`](Self::resume).
    pub fn pause(&mut self, vms: &[Handle], counter: &dyn Counter, request: Request) -> Result<OpenPauses, SetError> {
        let slots = self.bank.slots(vms)?;
        for (vm, slot) in vms.iter().zip(&slots) {
            self.run_states[*slot as usize].check_open().map_err(of_vm::<OperationError<VmError>>(*vm))?;
            self.stopped(*vm)?;
        }
        let stamp = counter.stamp();
        let now = stamp.count.own(counter.namespace_ticks());
        let times = slots.iter().map(|slot| self.guest_time(*slot, now)).collect();
        let request = Request { elapsed: None, in_place: true, ..request };
        let mut pauses = OpenPauses { vms: vms.into(), epochs: Vec::new(), stamp, times, request };
        // What would be refused at the end is refused now, while the VMs can still go on without it.
        self.cases(&stamp, pauses.pairs(), &Instant::of(stamp, counter), request)?;
        for slot in slots {
            pauses.epochs.push(self.run_states[slot as usize].begin_pause());
            self.settle(slot);
        }
        Ok(pauses)
    }

    /// Returns whether any of the VMs is still in this pause.
    #[must_use]
    pub fn holds(&self, pauses: &OpenPauses) -> bool {
        let mut vms = pauses.vms.iter().zip(&pauses.epochs);
        vms.any(|(vm, epoch)| {
            let slot = self.bank.slot(*vm);
            slot.is_ok_and(|slot| self.run_states[slot as usize].holds(State::Paused, *epoch).is_ok())
        })
    }

    /// Ends a pause of VMs under its policy, for one instant. Their timers stayed where they were.
    pub fn resume(&mut self, pauses: &OpenPauses, counter: &dyn Counter) -> Result<SetReport, SetError> {
        self.bank.slots(&pauses.vms)?;
        for (vm, epoch) in pauses.vms.iter().zip(&pauses.epochs) {
            self.run_states[vm.slot() as usize].holds(State::Paused, *epoch).map_err(of_vm(*vm))?;
        }
        let cases = self.cases(&pauses.stamp, pauses.pairs(), counter, pauses.request)?;
        self.apply(pauses.pairs(), cases, counter)
    }

    fn stopped(&self, vm: Handle) -> Result<(), SetError> {
        self.bank.vm(vm)?.all_stopped().map_err(|error| of_vm(vm)(OperationError::Backend(error)))
    }

    /// Returns the guest time of a VM when the bank's counter reads `host`.
    fn guest_time(&self, slot: u32, host: HostCount) -> GuestTime {
        let vm = ModelVm::view(&self.bank, slot);
        let (seat, offsets) = (&self.bank.seats[slot as usize], self.bank.shared_offsets(slot));
        let now = self.bank.domain_of(slot).ratio.at(host);
        let timeline = now.guest(offsets.virt);
        let frequency_hz = NonZeroU32::new(vm.cntfrq_hz()).unwrap_or(NonZeroU32::MIN);
        GuestTime {
            opted_in: seat.opted_in,
            physical_displacement_ticks: now.guest(offsets.phys).since(timeline),
            backlog: self.run_states[slot as usize].backlog(),
            interrupts: Some(vm.interrupts()),
            ..GuestTime::opted_in(seat.vcpus, frequency_hz, timeline)
        }
    }

    /// Plans the restore of each VM that was saved at `saved`: one plan for all that are alike.
    fn cases<'a>(
        &mut self,
        saved: &Stamp,
        pairs: impl Iterator<Item = Pair<'a>>,
        counter: &dyn Counter,
        request: Request,
    ) -> Result<Cases, SetError> {
        let sample = Instant::of(counter.stamp(), counter);
        let mut known: BTreeMap<Alike, usize> = BTreeMap::new();
        // Most VMs are as the one before.
        let mut last: Option<(Alike, usize)> = None;
        let mut cases = Cases { plans: Vec::new(), targets: Vec::new(), plan_of: Vec::new() };
        for Pair { vm, from } in pairs {
            let time = from.time();
            let view = self.bank.vm(vm)?;
            if view.vcpus() != usize::from(time.vcpus) {
                let (saved, host) = (time.vcpus.into(), view.vcpus());
                return Err(of_vm(vm)(Refusal::TopologyMismatch { what: "vCPUs", saved, host }));
            }
            let apart = time.physical_displacement_ticks.cast_signed().unsigned_abs();
            let alike = Alike {
                group: if let Basis::Saved(vm) = &from { vm.group().1 } else { 0 },
                class: self.bank.domain_and_class(vm.slot()),
                opted_in: view.vm_offset().is_some(),
                saved_opted_in: time.opted_in,
                frequency_hz: time.frequency_hz,
                apart: (apart > 0).then_some(apart > time.width_ticks().saturating_mul(2)),
                width_ticks: time.width_ticks(),
                hidden_ticks: match &from {
                    Basis::Saved(vm) if time.stopped_at.is_some() => vm.hidden_ticks(),
                    _ => 0,
                },
                backlog: time.backlog,
            };
            let before = last.filter(|(before, _)| *before == alike).map(|(_, case)| case);
            let case = if let Some(case) = before.or_else(|| known.get(&alike).copied()) {
                case
            } else {
                let saved = match &from {
                    Basis::Saved(vm) => Saved::from(vm),
                    Basis::InPlace(time) => {
                        let ratio = Ratio::new(saved.frequency, time.frequency());
                        Saved::in_place(ratio.stamp(*saved), **time)
                    }
                };
                let (plan, target) = self.plan(vm, &saved, &sample, request).map_err(of_vm(vm))?;
                cases.plans.push(plan);
                cases.targets.push(target);
                known.insert(alike, cases.plans.len() - 1);
                cases.plans.len() - 1
            };
            last = Some((alike, case));
            cases.plan_of.push(narrow(case));
        }
        Ok(cases)
    }

    /// Plans the restore of one VM, as of this instant of the bank's counter. Returns what it was planned for, too.
    fn plan(
        &mut self,
        vm: Handle,
        saved: &Saved<'_>,
        sample: &Instant,
        request: Request,
    ) -> Result<(Plan, Target), OperationError<VmError>> {
        let here = self.bank.domain_of(vm.slot()).ratio.instant(sample);
        let mut vm = ModelVm::view(&mut self.bank, vm.slot());
        let target = Target::of(&mut Model { vm: &mut vm, counter: &here }).map_err(OperationError::Backend)?;
        Ok((planning::plan(saved, &target, here.stamp, request)?, target))
    }

    /// Writes what was planned, which nothing can refuse any more but the clocks themselves.
    fn apply<'a>(
        &mut self,
        pairs: impl Iterator<Item = Pair<'a>>,
        Cases { plans, targets, plan_of }: Cases,
        counter: &dyn Counter,
    ) -> Result<SetReport, SetError> {
        // As late as can be: under Freeze every tick after it is seen by the guests.
        let (count, frequency) = (counter.count(), counter.frequency());
        let at = |plan: &Plan| {
            let outcome = plan.at(Ratio::new(frequency, plan.frequency()).at(count));
            (outcome, plan.instant_of(&outcome))
        };
        let outcomes: Vec<(Outcome, Instant)> = plans.iter().map(at).collect();
        let vms = plan_of.len();
        let mut report = SetReport {
            count,
            returned_at: count,
            frequency,
            vms: Vec::with_capacity(vms),
            cntvct: Vec::with_capacity(vms),
            cntpct: Vec::with_capacity(vms),
            added_ticks: Vec::with_capacity(vms),
            plans,
            targets,
            plan_of,
        };
        for (Pair { vm: handle, from }, case) in pairs.zip(&report.plan_of) {
            let (plan, (outcome, counter)) = (&report.plans[*case as usize], &outcomes[*case as usize]);
            let time = from.time();
            let outcome = plan.outcome_of(outcome, (time.timeline, time.physical()));
            let mut vm = self.bank.vm_mut(handle)?;
            if let Basis::Saved(saved) = &from {
                vm.load(saved, plan.cval_shift(&outcome), plan.method != Method::VirtualOnly);
            }
            // As a restore of the one VM does.
            set_counters(plan, &outcome, &mut Model { vm: &mut vm, counter })
                .map_err(|error| of_vm(handle)(OperationError::Backend(error)))?;
            self.run_states[handle.slot() as usize].go_on(plan, &outcome);
            self.settle(handle.slot());
            report.vms.push(handle);
            report.cntvct.push(outcome.cntvct.0);
            report.cntpct.push(outcome.cntpct.0);
            report.added_ticks.push(outcome.added_ticks);
        }
        report.returned_at = counter.count();
        Ok(report)
    }
}

/// Groups of a checkpoint in the making.
struct Groups {
    all: Vec<Gathering>,
    /// Places of the classes' groups: classes of VMs with the same registers share one.
    of_class: BTreeMap<u16, usize>,
    /// The class that was asked for last, and its group's place: most VMs have one class.
    last: Option<(u16, usize)>,
    vcpus: usize,
}

/// A group in the making.
struct Gathering {
    ids: Vec<RegId>,
    builder: GroupBuilder,
    held: Vec<Held>,
}

impl Groups {
    /// Returns the groups of VMs that have so many vCPUs together.
    const fn new(vcpus: usize) -> Self {
        Self { all: Vec::new(), of_class: BTreeMap::new(), last: None, vcpus }
    }

    /// Returns the group of a VM.
    fn of(&mut self, bank: &Bank, slot: u32) -> Result<&mut Gathering, SetError> {
        let (_, class) = bank.domain_and_class(slot);
        let place = match (self.last, self.of_class.get(&class)) {
            (Some((last, place)), _) if last == class => place,
            (_, Some(place)) => *place,
            _ => {
                let ids = ModelVm::view(bank, slot).registers().saved();
                let known = self.all.iter().position(|group| group.ids == ids);
                if known.is_none() {
                    let mut builder = GroupBuilder::new(ids.iter().copied())?;
                    // Enough for all, where all have one class; else it is given back at the end.
                    builder.reserve(if self.all.is_empty() { self.vcpus } else { 0 });
                    let held = ids.iter().filter_map(|id| Held::of(*id)).collect();
                    self.all.push(Gathering { ids, builder, held });
                }
                let place = known.unwrap_or(self.all.len() - 1);
                self.of_class.insert(class, place);
                place
            }
        };
        self.last = Some((class, place));
        Ok(&mut self.all[place])
    }
}

impl Gathering {
    fn add(&mut self, name: Name<'_>, time: &GuestTime, bank: &Bank, slot: u32) {
        let (rows, columns) = (bank.rows_of(slot), &bank.domain_of(slot).rows);
        let mut held = self.held.iter();
        self.builder.push(name, time, |_, values| match held.next() {
            Some(Held::Cval(timer)) => values.extend_from_slice(&columns.timers[timer.index()].cval[rows.clone()]),
            Some(Held::Ctl(timer)) => {
                let vm = ModelVm::view(bank, slot);
                values.extend(rows.clone().map(|row| vm.ctl_seen(columns.ctl(row, *timer))));
            }
            Some(Held::Cntvoff) => values.extend_from_slice(&columns.cntvoff[rows.clone()]),
            // The model has no register that the table doesn't have.
            Some(Held::Unknown) | None => {}
        });
    }
}

/// Returns the VM whose name is the digits of its handle.
pub fn handle_named(name: &str) -> Result<Handle, SetError> {
    let number = name.parse().map_err(|_| SetError::NoHandle { name: name.into() })?;
    Ok(Handle(number))
}
