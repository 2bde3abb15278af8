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
use guestclock_core::arch::arm64::{El2, Timer};
use guestclock_core::checkpoint::{Backlog, Checkpoint, CheckpointSet, Column, CtlColumn, TimerColumns, VmGroup};
use guestclock_core::drive::{OperationError, Saving, TimerCapture, set_counters as set_counters_of};
use guestclock_core::restore::{Method, Outcome, Plan, Refusal, Request, State, Target, planning};
use guestclock_core::time::{Counter, Frequency, HostCount, Instant, Ratio, Stamp};
use std::collections::BTreeMap;
use std::ops::Range;

/// Why an operation on a set of VMs failed. All of them are as they were.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetError {
    /// A handle's.
    #[error(transparent)]
    Bank(#[from] BankError),
    /// One VM's, as it would be if it were alone.
    #[error("VM {handle}: {error}")]
    OfVm {
        /// Its handle.
        handle: i64,
        /// What it would be.
        error: OperationError<VmError>,
    },
    /// A VM without vCPUs.
    #[error("VM {handle} has no vCPUs, and so no time to save: leave it out")]
    NoVcpus {
        /// Its handle.
        handle: i64,
    },
    /// The same name twice.
    #[error("two VMs of the set have the name {name}: each has its own")]
    SameName {
        /// The name.
        name: u64,
    },
    /// As many VMs as are saved, or names as VMs.
    #[error("{here} VMs are named, and the set has {saved}: name one for each, in the set's order")]
    Unequal {
        /// How many the set has.
        saved: usize,
        /// How many are named.
        here: usize,
    },
}

fn of_vm<E: Into<OperationError<VmError>>>(vm: Handle) -> impl Fn(E) -> SetError {
    move |error| SetError::OfVm { handle: vm.0, error: error.into() }
}

/// What the restore of a set did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetReport {
    /// The instant that all counters were set for, by the bank's counter.
    pub count: HostCount,
    /// The VMs.
    pub vms: Vec<Handle>,
    /// The virtual counter of each at the instant.
    pub cntvct: Vec<u64>,
    /// The physical counter of each.
    pub cntpct: Vec<u64>,
    /// The guest time that was added to each, in ticks, modulo 2^64.
    pub added_ticks: Vec<u64>,
    /// What VMs that are alike have in common.
    pub plans: Vec<Plan>,
    /// Which of the plans is each VM's.
    pub plan_of: Vec<u32>,
}

/// Paused VMs, all from one instant on.
#[derive(Debug)]
pub struct OpenPauses {
    vms: Vec<Handle>,
    epochs: Vec<u64>,
    saved: CheckpointSet,
    request: Request,
}

impl OpenPauses {
    /// Which.
    #[must_use]
    pub fn vms(&self) -> &[Handle] {
        &self.vms
    }
}

/// The cases of a restore: a plan for VMs that are alike.
struct Cases {
    plans: Vec<Plan>,
    plan_of: Vec<u32>,
}

/// What VMs of a set have in common that share a plan.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Alike {
    /// Of the set.
    group: usize,
    /// Of the targets.
    class: (u16, u16),
    opted_in: bool,
    /// Whether both counters are one.
    one_count: bool,
    backlog: Option<Backlog>,
}

/// One VM of a set, and where it goes.
struct Pair<'a> {
    group: &'a VmGroup,
    number: usize,
    /// Its place in its group.
    saved: usize,
    /// Its rows there.
    rows: Range<usize>,
    vm: Handle,
}

impl ManagedBank {
    /// Saves VMs at one instant, under these names: one each, in the order of `vms`. Refused while a vCPU of theirs
    /// runs, or a restore isn't finished.
    pub fn checkpoint(
        &self,
        vms: &[Handle],
        names: &[u64],
        counter: &dyn Counter,
        saving: Saving,
    ) -> Result<CheckpointSet, SetError> {
        let slots = self.bank.slots(vms)?;
        for (vm, slot) in vms.iter().zip(&slots) {
            self.run_states[*slot as usize].check_whole().map_err(of_vm(*vm))?;
            self.stopped(*vm)?;
        }
        let mut set = self.capture(vms, &slots, names, counter, TimerCapture::Saved)?;
        let saved = set.host.count;
        if let Some(stopped) = saving.stopped_at.filter(|stopped| stopped.is_after(saved)) {
            let vm = vms.first().copied().unwrap_or(Handle(0));
            return Err(of_vm(vm)(OperationError::StoppedLater { stopped: stopped.0, saved: saved.0 }));
        }
        set.stopped_at = saving.stopped_at.map(|count| count.0);
        if let Some(sync) = saving.sync {
            set.host = set.host.vouched_by(sync);
        }
        Ok(set)
    }

    /// Restores a set into VMs, one for each in the set's order: timers, CNTVOFF_EL2 and both counters, for one instant
    /// that is sampled when all of it was found possible. A restore or pause of theirs that is under way is over.
    pub fn restore(
        &mut self,
        set: &CheckpointSet,
        vms: &[Handle],
        counter: &dyn Counter,
        request: Request,
    ) -> Result<SetReport, SetError> {
        let pairs = self.pairs(set, vms)?;
        for vm in vms {
            self.stopped(*vm)?;
        }
        let cases = self.cases(set, &pairs, counter, request)?;
        self.apply(&pairs, cases, counter)
    }

    /// Pauses VMs in place, all at one instant: none of their vCPUs can run until [`resume`](Self::resume).
    pub fn pause(&mut self, vms: &[Handle], counter: &dyn Counter, request: Request) -> Result<OpenPauses, SetError> {
        let slots = self.bank.slots(vms)?;
        for (vm, slot) in vms.iter().zip(&slots) {
            self.run_states[*slot as usize].check_open().map_err(of_vm::<OperationError<VmError>>(*vm))?;
            self.stopped(*vm)?;
        }
        let saved = self.capture(vms, &slots, &own_names(vms), counter, TimerCapture::Kept)?;
        let vms: Vec<Handle> =
            saved.groups.iter().flat_map(|group| &group.names).map(|name| handle_named(*name)).collect();
        let request = Request { same_counter: Some(true), in_place: true, ..request };
        // What would be refused at the end is refused now, while the VMs can still go on without it.
        self.cases(&saved, &self.pairs(&saved, &vms)?, &Instant(saved.host), request)?;
        let epochs = vms.iter().map(|vm| self.run_states[vm.slot() as usize].begin_pause()).collect();
        Ok(OpenPauses { vms, epochs, saved, request })
    }

    /// Ends a pause of VMs under its policy, for one instant. Their timers stayed where they were.
    pub fn resume(&mut self, pauses: &OpenPauses, counter: &dyn Counter) -> Result<SetReport, SetError> {
        let pairs = self.pairs(&pauses.saved, &pauses.vms)?;
        for (vm, epoch) in pauses.vms.iter().zip(&pauses.epochs) {
            self.run_states[vm.slot() as usize].holds(State::Paused, *epoch).map_err(of_vm(*vm))?;
        }
        let cases = self.cases(&pauses.saved, &pairs, counter, pauses.request)?;
        self.apply(&pairs, cases, counter)
    }

    fn stopped(&self, vm: Handle) -> Result<(), SetError> {
        self.bank.vm(vm)?.all_stopped().map_err(|error| of_vm(vm)(OperationError::Backend(error)))
    }

    fn pairs<'a>(&self, set: &'a CheckpointSet, vms: &[Handle]) -> Result<Vec<Pair<'a>>, SetError> {
        self.bank.slots(vms)?;
        if vms.len() != set.len() {
            return Err(SetError::Unequal { saved: set.len(), here: vms.len() });
        }
        let mut vms = vms.iter();
        let mut pairs = Vec::with_capacity(set.len());
        for (number, group) in set.groups.iter().enumerate() {
            let mut end = 0;
            for (saved, vm) in (0..group.len()).zip(&mut vms) {
                let first = end;
                end += usize::from(group.vcpus.get(saved).unwrap_or(0));
                pairs.push(Pair { group, number, saved, rows: first..end, vm: *vm });
            }
        }
        Ok(pairs)
    }

    /// Plans the restore of each VM: one plan for all that are alike.
    fn cases(
        &mut self,
        set: &CheckpointSet,
        pairs: &[Pair<'_>],
        counter: &dyn Counter,
        request: Request,
    ) -> Result<Cases, SetError> {
        let sample = counter.stamp();
        let mut known = BTreeMap::new();
        let mut cases = Cases { plans: Vec::new(), plan_of: Vec::with_capacity(pairs.len()) };
        for (index, pair) in pairs.iter().enumerate() {
            let view = self.bank.vm(pair.vm)?;
            if view.vcpus() != pair.rows.len() {
                let refusal = Refusal::TopologyMismatch { what: "vCPUs", saved: pair.rows.len(), host: view.vcpus() };
                return Err(of_vm(pair.vm)(refusal));
            }
            let (virt, phys) = pair.group.counts(pair.saved);
            let alike = Alike {
                group: pair.number,
                class: self.bank.domain_and_class(pair.vm.slot()),
                opted_in: view.vm_offset().is_some(),
                one_count: virt == phys,
                backlog: pair.group.backlog(pair.saved),
            };
            let case = if let Some(case) = known.get(&alike) {
                *case
            } else {
                let checkpoint = set.get(index).ok_or(BankError::NoSuchVm { handle: pair.vm.0 })?;
                let checkpoint = Checkpoint { unknown: set.unknown.clone(), ..checkpoint };
                cases.plans.push(self.plan(pair.vm, &checkpoint, &sample, request).map_err(of_vm(pair.vm))?);
                known.insert(alike, cases.plans.len() - 1);
                cases.plans.len() - 1
            };
            cases.plan_of.push(narrow(case));
        }
        Ok(cases)
    }

    /// Plans the restore of one VM, as of this instant of the bank's counter.
    fn plan(
        &mut self,
        vm: Handle,
        checkpoint: &Checkpoint,
        sample: &Stamp,
        request: Request,
    ) -> Result<Plan, OperationError<VmError>> {
        let here = self.bank.domain_of(vm.slot()).ratio.instant(*sample);
        let mut vm = ModelVm::view(&mut self.bank, vm.slot());
        let target =
            Target::of(&mut Model { vm: &mut vm, counter: &Instant(here) }).map_err(OperationError::Backend)?;
        if !request.in_place {
            planning::same_topology(checkpoint, &target)?;
        }
        Ok(planning::plan(checkpoint, &target, here, request)?)
    }

    /// Writes what was planned, which nothing can refuse any more but the clocks themselves.
    fn apply(
        &mut self,
        pairs: &[Pair<'_>],
        Cases { plans, plan_of }: Cases,
        counter: &dyn Counter,
    ) -> Result<SetReport, SetError> {
        // As late as can be: under Freeze every tick after it is seen by the guests.
        let now = Sample::of(&plans, counter);
        let outcomes = plans.iter().map(|plan| plan.at(&now.seen_by(plan))).collect::<Result<Vec<_>, Refusal>>();
        let outcomes = outcomes.map_err(of_vm(pairs.first().map_or(Handle(0), |pair| pair.vm)))?;
        let mut report = SetReport {
            count: now.count,
            vms: Vec::with_capacity(pairs.len()),
            cntvct: Vec::with_capacity(pairs.len()),
            cntpct: Vec::with_capacity(pairs.len()),
            added_ticks: Vec::with_capacity(pairs.len()),
            plans,
            plan_of,
        };
        for (pair, case) in pairs.iter().zip(&report.plan_of) {
            let (plan, outcome) = (&report.plans[*case as usize], &outcomes[*case as usize]);
            let outcome = plan.outcome_of(outcome, pair.group.counts(pair.saved));
            let mut vm = self.bank.vm_mut(pair.vm)?;
            if !plan.request.in_place {
                vm.load(pair.group, pair.rows.clone(), plan.cval_shift(&outcome), plan.method != Method::VirtualOnly);
            }
            set_counters(&mut vm, plan, &outcome).map_err(|error| of_vm(pair.vm)(OperationError::Backend(error)))?;
            self.run_states[pair.vm.slot() as usize].go_on(plan, &outcome);
            report.vms.push(pair.vm);
            report.cntvct.push(outcome.cntvct.0);
            report.cntpct.push(outcome.cntpct.0);
            report.added_ticks.push(outcome.added_ticks);
        }
        Ok(report)
    }

    /// What is saved of VMs, at one instant.
    fn capture(
        &self,
        vms: &[Handle],
        slots: &[u32],
        names: &[u64],
        counter: &dyn Counter,
        timers: TimerCapture,
    ) -> Result<CheckpointSet, SetError> {
        if names.len() != vms.len() {
            return Err(SetError::Unequal { saved: vms.len(), here: names.len() });
        }
        let mut in_order: Vec<(u64, u32)> = names.iter().copied().zip(slots.iter().copied()).collect();
        in_order.sort_unstable();
        if let Some(twice) = in_order.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(SetError::SameName { name: twice[0].0 });
        }
        if let Some(vm) = vms.iter().find(|vm| self.bank.rows_of(vm.slot()).is_empty()) {
            return Err(SetError::NoVcpus { handle: vm.0 });
        }
        // Last, so that as little guest time as possible lies after it; the VMs stand still.
        let host = counter.stamp();
        let mut kept: BTreeMap<u16, Vec<Timer>> = BTreeMap::new();
        let mut groups: BTreeMap<(u32, u8, bool), Gathered> = BTreeMap::new();
        for (name, slot) in in_order {
            let (domain, class) = self.bank.domain_and_class(slot);
            let kept = kept.entry(class).or_insert_with(|| self.bank.saved_timers(slot));
            let view = ModelVm::view(&self.bank, slot);
            let el2 = view.config().el2 != El2::Absent;
            let mask = kept.iter().fold(0, |mask, timer| mask | 1 << timer.index());
            let group = groups.entry((view.cntfrq_hz(), mask, el2)).or_insert_with(|| Gathered::new(kept, timers));
            let now = self.bank.domains[usize::from(domain)].ratio.at(host.count);
            group.add(name, &self.bank, slot, now, self.run_states[slot as usize].backlog());
        }
        let groups = groups.into_iter().map(|((cntfrq_hz, _, el2), gathered)| gathered.group(cntfrq_hz, el2)).collect();
        Ok(CheckpointSet { host, stopped_at: None, groups, unknown: Vec::new() })
    }
}

/// A group in the making.
struct Gathered {
    names: Vec<u64>,
    vcpus: Vec<u16>,
    cntvct: Vec<u64>,
    cntpct: Vec<u64>,
    opted_in: Vec<bool>,
    backlogs: Vec<(usize, Backlog)>,
    cntvoff: Vec<u64>,
    /// Each timer's CVAL and CTL: of its lowest bits as long as no other is set anywhere.
    timers: Vec<(Timer, Vec<u64>, CtlColumn)>,
}

impl Gathered {
    fn new(kept: &[Timer], timers: TimerCapture) -> Self {
        let kept = if timers == TimerCapture::Saved { kept } else { &[] };
        Self {
            names: Vec::new(),
            vcpus: Vec::new(),
            cntvct: Vec::new(),
            cntpct: Vec::new(),
            opted_in: Vec::new(),
            backlogs: Vec::new(),
            cntvoff: Vec::new(),
            timers: kept.iter().map(|timer| (*timer, Vec::new(), CtlColumn::Bits(Vec::new()))).collect(),
        }
    }

    fn add(&mut self, name: u64, bank: &Bank, slot: u32, now: HostCount, backlog: Option<Backlog>) {
        let (rows, columns) = (bank.rows_of(slot), &bank.domain_of(slot).rows);
        let seat = &bank.seats[slot as usize];
        let offsets = bank.shared_offsets(slot);
        self.backlogs.extend(backlog.map(|backlog| (self.names.len(), backlog)));
        self.names.push(name);
        self.vcpus.push(seat.vcpus);
        self.cntvct.push(now.guest(offsets.virt).0);
        self.cntpct.push(now.guest(offsets.phys).0);
        self.opted_in.push(seat.opted_in);
        self.cntvoff.extend(columns.cntvoff.get(rows.clone()).into_iter().flatten());
        for (timer, cval, ctl) in &mut self.timers {
            let timer = *timer;
            cval.extend_from_slice(&columns.timers[timer.index()].cval[rows.clone()]);
            let seen = rows.clone().map(|row| ModelVm::view(bank, slot).ctl_seen(columns.ctl(row, timer)));
            ctl.extend(seen);
        }
    }

    fn group(self, cntfrq_hz: u32, el2: bool) -> VmGroup {
        let timers = self.timers.into_iter().map(|(timer, cval, ctl)| TimerColumns { timer, cval, ctl });
        VmGroup {
            cntfrq_hz,
            names: self.names,
            vcpus: Column::new(self.vcpus),
            cntpct: (self.cntpct != self.cntvct).then_some(self.cntpct),
            cntvct: self.cntvct,
            opted_in: Column::new(self.opted_in),
            backlogs: self.backlogs,
            cntvoff: el2.then(|| Column::new(self.cntvoff)),
            timers: timers.collect(),
        }
    }
}

/// The names that VMs have unless they are given others: their handles.
#[must_use]
pub fn own_names(vms: &[Handle]) -> Vec<u64> {
    vms.iter().map(|vm| vm.0.cast_unsigned()).collect()
}

/// The VM of such a name.
#[must_use]
pub const fn handle_named(name: u64) -> Handle {
    Handle(name.cast_signed())
}

/// The instant now: with the wall clock only where a plan needs it, since reading both takes longer.
struct Sample {
    count: HostCount,
    frequency: Frequency,
    both: Option<Stamp>,
}

impl Sample {
    fn of(plans: &[Plan], counter: &dyn Counter) -> Self {
        let both = plans.iter().any(Plan::needs_the_wall_clock).then(|| counter.stamp());
        let count = both.as_ref().map_or_else(|| counter.count(), |both| both.count);
        Self { count, frequency: counter.frequency(), both }
    }

    /// By the counter of a plan's VMs.
    fn seen_by(&self, plan: &Plan) -> Stamp {
        let ratio = Ratio::new(self.frequency, plan.frequency());
        match &self.both {
            Some(both) => plan.vouched(ratio.instant(*both)),
            None => Stamp { count: ratio.at(self.count), ..plan.sample },
        }
    }
}

/// Sets both counters for the instant of `outcome`, as a restore of the one VM does.
fn set_counters(vm: &mut ModelVm<&mut Bank>, plan: &Plan, outcome: &Outcome) -> Result<(), VmError> {
    let counter = &Instant(Stamp { count: outcome.count, ..plan.sample });
    set_counters_of(plan, outcome, &mut Model { vm, counter })
}
