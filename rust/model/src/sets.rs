//! Sets of VMs at one instant: saved, restored, paused, and let go on.
//!
//! The rules and the steps are those of one VM, in machines over many ([`guestclock_core::drive::many`]); the bank
//! carries each step out by passes over columns. A set is restored as a whole or not at all: whatever can be refused is,
//! before anything is written.

use crate::backend::Model;
use crate::bank::handle::Handle;
use crate::bank::vms::{Bank, BankError, Follow, narrow};
use crate::error::VmError;
use crate::managed::ManagedBank;
use crate::many::{Many, Runs};
use crate::vm::ModelVm;
use guestclock_core::arch::RegId;
use guestclock_core::checkpoint::{BuildError, Checkpoint, GroupBuilder, GuestTime, GuestTimes, Held, Name, VmName};
use guestclock_core::drive::{
    Io, Machine, OfOne, OperationError, Restored, Saving, pausing_many, planning_many, restoring_many,
};
use guestclock_core::restore::{
    DueBacklog, ManyFacts, Method, Origins, Outcome, Plans, Policy, Refusal, Released, Report, Request, Saved, State,
    Target, VmFacts, Writes, Written,
};
use guestclock_core::time::{Counter, Frequency, HostCount, Instant, OffsetInterval, Ratio, Stamp, SyncBound};
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

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
    pub plans: Plans,
    /// Ticks by which each plan's CVALs were moved.
    pub cval_shifts: Vec<u64>,
}

impl SetReport {
    /// Returns the outcome of each plan: of the first of its VMs.
    pub fn outcomes(&self) -> impl Iterator<Item = Outcome> {
        self.plans.outcomes(self.count, self.frequency)
    }

    /// Returns the report of the VM at this row: what a restore of it alone would have said, except for the writes,
    /// which were copies of columns. `saved` is the guest time that it went on from.
    ///
    /// No refusal comes here that wouldn't have come before the restore.
    pub fn report(&self, row: usize, saved: &Saved<'_>) -> Result<Report, Refusal> {
        let plan = self.plans.alone(row, saved)?;
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
        let released = Released {
            count: outcome.count,
            written,
            by_value_ticks: 0,
            writes: Writes::default(),
            cval_shift: self.cval_shifts[self.plans.plan_of[row] as usize],
            stopped_before_ticks: vm.and_then(|vm| Some(vm.stamp().count.since(vm.stopped_at()?))),
            returned_at: Ratio::new(self.frequency, plan.frequency()).at(self.returned_at),
            after_release_ticks: None,
        };
        Ok(Report::new(plan, released, vm))
    }
}

/// Facts about a checkpoint that the bank doesn't know.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetSaving<'a> {
    /// Names of the VMs, in the order of their handles; without them each is named by the digits of its handle.
    pub names: Option<&'a [VmName]>,
    /// The host's count when the last vCPU of each VM left its guest: none, one for all VMs, or one for each that has one.
    pub stopped_at: &'a [Option<HostCount>],
    /// Bound of the wall clock that somebody vouches for.
    pub sync: Option<SyncBound>,
}

/// Paused VMs, all from one instant on.
#[derive(Debug)]
pub struct OpenPauses {
    vms: Vec<Handle>,
    epochs: Vec<u64>,
    /// VMs that have left the pause for a newer restore or pause.
    overtaken: Vec<Handle>,
    stamp: Stamp,
    times: GuestTimes,
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

    /// VMs that have left the pause, since a newer restore or pause of them came after it.
    #[must_use]
    pub fn overtaken(&self) -> &[Handle] {
        &self.overtaken
    }

    /// Lets go of the VMs whose row isn't `there`.
    fn keep(&mut self, there: &[bool]) {
        let rows = || there.iter().copied();
        let (mut vms, mut epochs) = (rows(), rows());
        self.vms.retain(|_| vms.next() == Some(true));
        self.epochs.retain(|_| epochs.next() == Some(true));
        self.times =
            rows().enumerate().filter(|(_, there)| *there).filter_map(|(row, _)| self.times.get(row)).collect();
    }

    /// Guest time of the VM at this row when it was paused.
    ///
    /// # Panics
    /// Past the last row.
    #[must_use]
    pub fn saved(&self, row: usize) -> Saved<'_> {
        let time = self.times.get(row).expect("a row of the pause");
        Saved::in_place(Ratio::new(self.stamp.frequency, time.frequency()).stamp(self.stamp), time)
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
        let rows = Runs::of(&self.bank, slots.iter().copied());
        let one_runs = rows.one_runs(&self.bank);
        for (vm, slot) in vms.iter().zip(&slots) {
            self.run_states[*slot as usize].check_whole().map_err(of_vm(*vm))?;
            if one_runs {
                self.stopped(*vm)?;
            }
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
        let mut groups = Groups::new(rows.len());
        // Last, so that as little guest time as possible lies after it; the VMs stand still.
        let (stamp, namespace) = (counter.stamp(), counter.namespace_ticks());
        let now = stamp.count.own(namespace);
        let name = |vm: &usize| match saving.names {
            Some(names) => Name::Text(&names[*vm]),
            None => Name::Number(vms[*vm].0.cast_unsigned()),
        };
        let times = self.guest_times(order.iter().map(|vm| slots[*vm]), now);
        let stops_differ = saving.stopped_at.len() > 1;
        let claimed = |vm: usize| saving.stopped_at.get(if stops_differ { vm } else { 0 }).copied().flatten();
        let paused_at = |vm: usize| self.run_states[slots[vm] as usize].paused_at();
        for (time, run, mut timelines) in times.runs() {
            // VMs that have another stop aren't alike.
            let stop = |vm: usize| (claimed(vm), paused_at(vm));
            for run in order[run].chunk_by(|one, other| stop(*one) == stop(*other)) {
                let vm = run[0];
                let stopped_at = Saving::stopped_before::<VmError>(claimed(vm), paused_at(vm), &stamp, namespace);
                let stopped_at = stopped_at.map_err(of_vm(vms[vm]))?;
                let timelines = timelines.split_off(..run.len()).unwrap_or_default();
                let group = groups.of(&self.bank, slots[vm])?;
                group.builder.push_times(run.iter().map(name), &GuestTime { stopped_at, ..*time }, timelines);
                for vm in run {
                    group.rows.add(&self.bank, slots[*vm]);
                }
            }
        }
        groups.all.iter_mut().for_each(|group| group.fill(&self.bank));
        let stamp = saving.sync.map_or(stamp, |sync| stamp.vouched_by(sync));
        Ok(Checkpoint::of(stamp, groups.all.into_iter().map(|group| group.builder))?)
    }

    fn slots_for(&self, checkpoint: &Checkpoint, vms: &[Handle]) -> Result<Vec<u32>, SetError> {
        if vms.len() != checkpoint.len() {
            return Err(SetError::Unequal { saved: checkpoint.len(), here: vms.len() });
        }
        Ok(self.bank.slots(vms)?)
    }

    /// Plans [`restore`](Self::restore), without touching anything.
    pub fn plan(
        &mut self,
        checkpoint: &Checkpoint,
        vms: &[Handle],
        counter: &dyn Counter,
        request: Request,
    ) -> Result<Plans, SetError> {
        let slots = self.slots_for(checkpoint, vms)?;
        let facts = self.facts(&slots, counter);
        let mut driver = Many::new(&mut self.bank, &slots, counter);
        let origins = Origins::Saved(checkpoint);
        let plans = drive_many(&mut driver, async |io| planning_many(&io, &facts, origins, request).await);
        plans.map_err(|error| of_one(vms, driver.failed, error))
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
        let slots = self.slots_for(checkpoint, vms)?;
        self.go_on(vms, &slots, Origins::Saved(checkpoint), counter, request)
    }

    /// Pauses VMs in place, all at one instant: none of their vCPUs can run until [`resume`](Self::resume).
    pub fn pause(&mut self, vms: &[Handle], counter: &dyn Counter, request: Request) -> Result<OpenPauses, SetError> {
        let slots = self.bank.slots(vms)?;
        for (vm, slot) in vms.iter().zip(&slots) {
            self.run_states[*slot as usize].check_open().map_err(of_vm::<OperationError<VmError>>(*vm))?;
        }
        let facts = self.facts(&slots, counter);
        let request = Request { elapsed: None, in_place: true, ..request };
        let mut driver = Many::new(&mut self.bank, &slots, counter);
        let stamp = drive_many(&mut driver, async |io| pausing_many(&io).await);
        let stamp = stamp.map_err(|error| of_one(vms, driver.failed, error))?;
        let now = stamp.count.own(facts.namespace_ticks);
        let times = self.guest_times(slots.iter().copied(), now);
        // What would be refused at the end is refused now, while the VMs can still go on without it.
        Plans::new(&facts, Origins::InPlace { stamp: &stamp, times: &times }, stamp, request)
            .map_err(|(place, refusal)| of_vm(vms[place])(refusal))?;
        let Self { bank, run_states } = self;
        let paused = Arc::new(stamp);
        let epochs = bank.many(&slots, |bank| {
            let close = |slot: &u32| {
                bank.hold(*slot, true);
                run_states[*slot as usize].begin_pause(Arc::clone(&paused))
            };
            (slots.iter().map(close).collect(), Follow::Held)
        });
        Ok(OpenPauses { vms: vms.into(), epochs, overtaken: Vec::new(), stamp, times, request })
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

    /// Ends a pause of VMs under its policy, for one instant. Their timers stayed where they were. A VM that was removed
    /// or restored meanwhile has left the pause: the others don't wait for it.
    pub fn resume(&mut self, pauses: &mut OpenPauses, counter: &dyn Counter) -> Result<SetReport, SetError> {
        let slots = self.bank.slots(&pauses.vms).or_else(|error| {
            let there: Vec<bool> = pauses.vms.iter().map(|vm| self.bank.slot(*vm).is_ok()).collect();
            if !there.contains(&true) {
                return Err(error);
            }
            pauses.keep(&there);
            self.bank.slots(&pauses.vms)
        })?;
        let slots = self.without_overtaken(pauses, slots)?;
        let origins = Origins::InPlace { stamp: &pauses.stamp, times: &pauses.times };
        self.go_on(&pauses.vms, &slots, origins, counter, pauses.request)
    }

    /// Lets go of the VMs of a pause that a newer restore or pause has overtaken, and returns the slots of the others.
    /// Refused where there is no other, and where a VM is closed by the newer one: it is paused again if that is given up.
    fn without_overtaken(&self, pauses: &mut OpenPauses, slots: Vec<u32>) -> Result<Vec<u32>, SetError> {
        let mut first = None;
        let mut held = Vec::with_capacity(slots.len());
        for ((vm, epoch), slot) in pauses.vms.iter().zip(&pauses.epochs).zip(&slots) {
            let run_state = &self.run_states[*slot as usize];
            let holds = run_state.holds(State::Paused, *epoch).map_err(of_vm(*vm));
            held.push(holds.is_ok());
            if let Err(overtaken) = holds {
                if run_state.state() != State::Open {
                    return Err(overtaken);
                }
                first.get_or_insert(overtaken);
            }
        }
        let Some(overtaken) = first else { return Ok(slots) };
        if !held.contains(&true) {
            return Err(overtaken);
        }
        let rows = || held.iter().copied();
        pauses.overtaken.extend(pauses.vms.iter().zip(rows()).filter(|(_, held)| !held).map(|(vm, _)| *vm));
        pauses.keep(&held);
        Ok(slots.into_iter().zip(rows()).filter(|(_, held)| *held).map(|(slot, _)| slot).collect())
    }

    /// Has VMs go on from these guest times, by the machine of many.
    fn go_on(
        &mut self,
        vms: &[Handle],
        slots: &[u32],
        origins: Origins<'_>,
        counter: &dyn Counter,
        request: Request,
    ) -> Result<SetReport, SetError> {
        let facts = self.facts(slots, counter);
        let Self { bank, run_states } = self;
        let rewritten = if matches!(origins, Origins::Saved(_)) { Follow::Rewritten } else { Follow::Moved };
        bank.many(slots, |bank| {
            let mut driver = Many::new(bank, slots, counter);
            let restored = drive_many(&mut driver, async |io| restoring_many(&io, &facts, origins, request).await);
            let (failed, written) = (driver.failed, driver.written);
            let follow = if written { rewritten } else { Follow::Nothing };
            let Restored { plans, count, returned_at, cval_shifts } = match restored {
                Ok(restored) => restored,
                Err(error) => return (Err(of_one(vms, failed, error)), follow),
            };
            let column = || Vec::with_capacity(vms.len());
            let (mut virtual_counts, mut physical_counts, mut added_ticks) = (column(), column(), column());
            let outcomes: Vec<Outcome> = plans.outcomes(count, facts.frequency).collect();
            for (run, plan, outcome, counters) in plans.runs(&outcomes) {
                let backlog = DueBacklog::of(plan, outcome);
                for slot in &slots[run.clone()] {
                    run_states[*slot as usize].go_on(backlog);
                    bank.hold(*slot, false);
                }
                for (virt, phys) in counters {
                    virtual_counts.push(virt.0);
                    physical_counts.push(phys.0);
                }
                added_ticks.resize(run.end, outcome.added_ticks);
            }
            let (vms, frequency) = (vms.into(), facts.frequency);

            (
                Ok(SetReport {
                    count,
                    returned_at,
                    frequency,
                    vms,
                    cntvct: virtual_counts,
                    cntpct: physical_counts,
                    added_ticks,
                    plans,
                    cval_shifts,
                }),
                follow,
            )
        })
    }

    /// Returns the facts of VMs that take no call.
    fn facts(&mut self, slots: &[u32], counter: &dyn Counter) -> ManyFacts {
        let here = Instant::of(counter.stamp(), counter);
        let (mut known, mut last) = (BTreeMap::new(), None);
        let (mut vms, mut classes) = (Vec::with_capacity(slots.len()), Vec::new());
        for slot in slots {
            let kind = self.bank.domain_and_class(*slot);
            let place = match last {
                Some((before, place)) if before == kind => place,
                _ => *known.entry(kind).or_insert_with(|| {
                    let here = self.bank.domain_of(*slot).ratio.instant(&here);
                    let mut vm = ModelVm::view(&mut self.bank, *slot);
                    let target = Target::of(&mut Model { vm: &mut vm, counter: &here });
                    classes.push(target.expect("the model lists the registers of a vCPU that it has"));
                    narrow(classes.len() - 1)
                }),
            };
            last = Some((kind, place));
            let seat = &self.bank.seats[*slot as usize];
            vms.push(VmFacts { vcpus: seat.vcpus.into(), class: place, opted_in: seat.opted_in });
        }
        let (frequency, namespace_ticks) = (counter.frequency(), counter.namespace_ticks());
        ManyFacts { frequency, namespace_ticks, vms, classes }
    }

    fn stopped(&self, vm: Handle) -> Result<(), SetError> {
        self.bank.vm(vm)?.all_stopped().map_err(|error| of_vm(vm)(OperationError::Backend(error)))
    }

    /// Returns the guest times of VMs when the bank's counter reads `host`. The VMs of a run have one class.
    fn guest_times(&self, slots: impl ExactSizeIterator<Item = u32>, host: HostCount) -> GuestTimes {
        let mut times = GuestTimes::with_capacity(slots.len());
        // A VM without a backlog, which the one before is like, and its counter's count.
        let mut last: Option<(u32, HostCount)> = None;
        for slot in slots {
            let is_due = self.run_states[slot as usize].backlog().is_some();
            let alike = last.filter(|(before, _)| !is_due && self.bank.are_alike(*before, slot));
            if let Some((_, now)) = alike {
                times.push_alike(now.guest(self.bank.shared_offsets(slot).virt));
            } else {
                times.push(self.guest_time(slot, host));
                last = (!is_due).then(|| (slot, self.bank.domain_of(slot).ratio.at(host)));
            }
        }
        times
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
}

/// Runs a machine over many VMs to its end.
fn drive_many<'a, T: 'a, F: Future<Output = T> + 'a>(
    driver: &mut Many<'_>,
    begin: impl FnOnce(Io<'a, VmError>) -> F,
) -> T {
    Machine::new(begin).run(|op| driver.carry_out(&op))
}

/// Names the VM of an error: the machine's, or the one that the driver's step failed for.
fn of_one(vms: &[Handle], failed: usize, OfOne { vm, error }: OfOne<VmError>) -> SetError {
    SetError::OfVm { handle: vms[vm.unwrap_or(failed)].0, error }
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
    /// Rows of the VMs.
    rows: Runs,
}

impl Groups {
    /// Returns the groups of VMs that have so many vCPUs together.
    const fn new(vcpus: usize) -> Self {
        Self { all: Vec::new(), of_class: BTreeMap::new(), last: None, vcpus }
    }

    /// Returns the group of a VM.
    fn of(&mut self, bank: &Bank, slot: u32) -> Result<&mut Gathering, SetError> {
        let (_, class) = bank.domain_and_class(slot);
        let known = self.last.filter(|(last, _)| *last == class).map(|(_, place)| place);
        let place = if let Some(place) = known.or_else(|| self.of_class.get(&class).copied()) {
            place
        } else {
            let ids = ModelVm::view(bank, slot).registers().saved();
            let known = self.all.iter().position(|group| group.ids == ids);
            if known.is_none() {
                let mut builder = GroupBuilder::new(ids.iter().copied())?;
                // Enough for all, where all have one class; else it is given back at the end.
                builder.reserve(if self.all.is_empty() { self.vcpus } else { 0 });
                let held = ids.iter().filter_map(|id| Held::of(*id)).collect();
                self.all.push(Gathering { ids, builder, held, rows: Runs::default() });
            }
            let place = known.unwrap_or(self.all.len() - 1);
            self.of_class.insert(class, place);
            place
        };
        self.last = Some((class, place));
        Ok(&mut self.all[place])
    }
}

impl Gathering {
    /// Copies the registers of all VMs that were added.
    fn fill(&mut self, bank: &Bank) {
        let mut held = self.held.iter();
        self.builder.fill(|_, values| {
            let held = held.next();
            for (domain, rows) in self.rows.iter() {
                let (columns, rows) = (&bank.domains[*domain].rows, rows.clone());
                match held {
                    Some(Held::Cval(timer)) => values.extend_from_slice(&columns.timers[timer.index()].cval[rows]),
                    Some(Held::Ctl(timer)) => {
                        columns.append_ctls(rows, *timer, values, |slot, ctl| ModelVm::view(bank, slot).ctl_seen(ctl));
                    }
                    Some(Held::Cntvoff) => values.extend_from_slice(&columns.cntvoff[rows]),
                    // The model has no register that the table doesn't have.
                    Some(Held::Unknown) | None => {}
                }
            }
        });
    }
}

/// Returns the VMs whose names are the digits of their handles.
pub fn handles_named(checkpoint: &Checkpoint) -> Result<Vec<Handle>, SetError> {
    let mut handles = Vec::with_capacity(checkpoint.len());
    for group in checkpoint.groups() {
        let numbers = group.names().numbers();
        let numbers = numbers.filter(|all| all.iter().all(|number| *number <= i64::MAX.cast_unsigned()));
        let Some(numbers) = numbers else {
            let is_handle = |name: &&str| name.parse::<i64>().is_ok_and(|number| number.to_string() == **name);
            let name = group.names().iter().find(|name| !is_handle(name)).unwrap_or_default().into();
            return Err(SetError::NoHandle { name });
        };
        handles.extend(numbers.into_iter().map(|number| Handle(number.cast_signed())));
    }
    Ok(handles)
}
