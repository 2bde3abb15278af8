//! Plan -> report: the three steps of a restore, each a machine.
//!
//! `prepare` writes a provisional offset, so that counter values which the VMM replays have no effect and vCPUs created
//! late do no harm. `apply` writes the timers and reads them back. `release` takes the last sample and writes the final
//! offset, as the last act before the guest runs.

use crate::arch::arm64::{Role, Timer, View, one_reg_id};
use crate::checkpoint::SavedVm;
use crate::drive::backend::{Backend, Facts};
use crate::drive::driver::drive;
use crate::drive::machine::{Block, Failed, Io, What, register_name};
use crate::drive::measure::set_offset_by_value;
use crate::restore::{
    Deadlines, Method, NotThen, Outcome, Plan, Refusal, Released, Report, TimerStatus, Writes, Written, planning,
};
use crate::time::{Evidence, HostCount, Offset, OffsetInterval, Sleep, Stamp};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::fmt;

/// Error of a restore.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError<E> {
    /// The restore was refused before anything was written.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The backend failed.
    #[error("{step}: {error}; {left}")]
    Backend {
        /// The call that failed. Everything before it was done.
        step: String,
        /// The backend's reason.
        error: E,
        /// The VM's condition afterwards.
        left: Condition,
    },
    /// A register reads back another value than was written.
    #[error(
        "vCPU {vcpu}: {register} was written as {wrote:#x} and reads {read:#x} (was the vCPU initialised again, or does \
         the VMM write it too?); {}",
        Condition::Partial
    )]
    ReadBack {
        /// The vCPU.
        vcpu: usize,
        /// The register.
        register: &'static str,
        /// The written value.
        wrote: u64,
        /// The value read back.
        read: u64,
    },
    /// A vCPU's counter doesn't have the offset that was set for the whole VM.
    #[error(
        "vCPU {vcpu}: its {} counter is offset by {found}, and {wanted} was set for the VM ({cause}); {left}",
        name(*view)
    )]
    CounterElsewhere {
        /// The vCPU.
        vcpu: usize,
        /// The counter.
        view: View,
        /// The offset that was set.
        wanted: u64,
        /// The lowest offset that the read allows.
        found: u64,
        /// The likely cause.
        cause: Cause,
        /// The VM's condition afterwards.
        left: Condition,
    },
    /// The interrupt controller is off while a timer's line is high.
    #[error(
        "vCPU {vcpu}: the {} timer's line is high, and the interrupt controller forwards nothing (GICD_CTLR): KVM would \
         lose the interrupt for good. Restore GICD_CTLR first, the redistributors after it, and release again; {}",
        timer.name(),
        Condition::TimersOnly
    )]
    InterruptsOff {
        /// The vCPU.
        vcpu: usize,
        /// The timer.
        timer: Timer,
    },
}

/// Likely cause of a counter that isn't where it was set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Cause {
    /// Other vCPUs of the VM have the offset, or none has.
    OtherVm,
    /// The counter didn't move at all.
    Ignored,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherVm => "is it a vCPU of another VM, or does the VMM set the counter too?",
            Self::Ignored => {
                "KVM ignored the value, as it does for a VM that has opted in: was KVM_ARM_SET_COUNTER_OFFSET called \
                 elsewhere? then tell which offset it has"
            }
        })
    }
}

/// Condition in which a failed restore has left the VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Condition {
    /// Nothing was written.
    Untouched,
    /// The VM has opted in with a provisional offset, and no timer is written.
    Provisional,
    /// Some timers are written. A restore by offset has opted the VM in, with a provisional offset.
    Partial,
    /// The timers are as they were saved; the counters aren't yet.
    TimersOnly,
    /// The VM is still paused, in place. One of two counters may be set already.
    Paused,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Untouched => "the VM is as it was",
            Self::Provisional => {
                "the VM has opted in with a provisional offset and must not run: restore into it again, or build it anew"
            }
            Self::Partial => "the VM isn't restored and must not run: apply again, or build it anew",
            Self::TimersOnly => {
                "its timers are restored, its counters aren't, and it must not run: release again, or build it anew"
            }
            Self::Paused => "the VM is still paused, and must not run: resume again, or restore a checkpoint into it",
        })
    }
}

impl<E> RestoreError<E> {
    /// Returns the condition in which the error has left the VM.
    #[must_use]
    pub const fn left(&self) -> Condition {
        match self {
            Self::Refused(_) => Condition::Untouched,
            Self::ReadBack { .. } => Condition::Partial,
            Self::InterruptsOff { .. } => Condition::TimersOnly,
            Self::Backend { left, .. } | Self::CounterElsewhere { left, .. } => *left,
        }
    }

    pub(crate) fn left_as(self, condition: Condition) -> Self {
        match self {
            Self::Backend { step, error, .. } => Self::Backend { step, error, left: condition },
            Self::CounterElsewhere { vcpu, view, wanted, found, cause, .. } => {
                Self::CounterElsewhere { vcpu, view, wanted, found, cause, left: condition }
            }
            other => other,
        }
    }
}

/// Describes the failure of a step of the machine: of a call on a register by the register's name.
pub(crate) fn at_step<E>(left: Condition, step: impl FnOnce() -> String) -> impl FnOnce(Failed<E>) -> RestoreError<E> {
    move |failed| match failed {
        Failed::Call(error) => RestoreError::Backend { step: step(), error, left },
        Failed::Register { vcpu, id, reading, error } => {
            let back = if reading { " back" } else { "" };
            let step = format!("{}: vCPU {vcpu}, {}{back}", step(), register_name(id));
            RestoreError::Backend { step, error, left }
        }
        Failed::Differs { register, read } => RestoreError::ReadBack {
            vcpu: register.vcpu,
            register: register_name(register.id),
            wrote: register.value,
            read,
        },
    }
}

/// Progress of a restore.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    Planned,
    Prepared,
    Applied,
    Released,
}

/// A restore under way.
#[derive(Clone, Debug)]
pub struct Restore {
    /// Boxed, as a report is on its way: a machine holds what it returns, once a layer.
    plan: Box<Plan>,
    vcpus: usize,
    stage: Stage,
    provisional: Option<Offset>,
    /// The VM's own offset before the provisional one, if it had opted in.
    before: Option<Offset>,
    /// True once a register may have been written.
    begun: bool,
    /// Ticks by which each CVAL moves.
    cval_shift: u64,
    writes: Writes,
}

impl Restore {
    /// Takes the first step: opts in with a provisional offset, if the plan uses one.
    pub fn prepare<B: Backend + ?Sized>(plan: Plan, backend: &mut B) -> Result<Self, RestoreError<B::Error>> {
        let (facts, plan) = (Facts::of(backend), Box::new(plan));
        drive(backend, async |io| Self::preparing(&io, &facts, plan).await)
    }

    /// The machine of [`prepare`](Self::prepare).
    pub async fn preparing<E>(io: &Io<'_, E>, facts: &Facts, plan: Box<Plan>) -> Result<Self, RestoreError<E>> {
        let mut restore = Self::checking(io, facts, plan).await?;
        restore.beginning(io, facts).await?;
        Ok(restore)
    }

    /// Makes the restore of a VM that can be restored as it is, and writes nothing.
    pub async fn checking<E>(io: &Io<'_, E>, facts: &Facts, plan: Box<Plan>) -> Result<Self, RestoreError<E>> {
        let restore = Self { stage: Stage::Planned, before: facts.vm_offset, ..Self::in_place(plan, facts.vcpus) };
        restore.is_current(facts)?;
        // A vCPU that isn't initialised shows here, while nothing is written.
        io.read(one_reg_id(Role::Ctl(Timer::Vtimer))).await.map_err(|failed| match failed {
            Failed::Register { vcpu, error, .. } => {
                let step = format!("prepare: looking at vCPU {vcpu}");
                RestoreError::Backend { step, error, left: Condition::Untouched }
            }
            failed => at_step(Condition::Untouched, || String::from("prepare: looking at the vCPUs"))(failed),
        })?;
        Ok(restore)
    }

    /// Writes the provisional offset, if the plan uses one, and reads it back from every vCPU.
    pub async fn beginning<E>(&mut self, io: &Io<'_, E>, facts: &Facts) -> Result<(), RestoreError<E>> {
        self.expect(Stage::Planned, "prepare")?;
        self.is_current(facts)?;
        if self.plan.method == Method::Offset {
            let outcome = self.write_offset(io, "prepare: the provisional offset", Condition::Untouched, None).await?;
            let offset = outcome.virtual_offset();
            self.provisional = Some(offset);
            let known = OffsetInterval::exact(offset);
            if let Err(error) = self.check_counts(io, known, "prepare", Condition::Provisional).await {
                // A VM that had opted in gets its own offset back. A first opt-in is for good.
                let back = match self.before {
                    Some(own) => io.set_offset(own).await.is_ok(),
                    None => false,
                };
                return Err(if back { error.left_as(Condition::Untouched) } else { error });
            }
        }
        self.stage = Stage::Prepared;
        Ok(())
    }

    /// Refuses a plan of the VM as it was before some change.
    fn is_current(&self, facts: &Facts) -> Result<(), Refusal> {
        if facts.generation == self.plan.target.generation { Ok(()) } else { Err(Refusal::StalePlan) }
    }

    /// Returns the restore of a VM that stayed where it was: only the counters are to be set.
    #[must_use]
    pub fn in_place(plan: Box<Plan>, vcpus: usize) -> Self {
        Self {
            plan,
            vcpus,
            stage: Stage::Applied,
            provisional: None,
            before: None,
            begun: false,
            cval_shift: 0,
            writes: Writes::default(),
        }
    }

    /// Returns whether nothing was written.
    #[must_use]
    pub const fn is_untouched(&self) -> bool {
        self.provisional.is_none() && !self.begun
    }

    /// Takes the first step back: a VM that had opted in gets its own offset again, which is read back from every vCPU.
    ///
    /// Returns false where there is no way back: a first opt-in is for good, and so are registers that were written.
    pub async fn taking_back<E>(&mut self, io: &Io<'_, E>) -> Result<bool, RestoreError<E>> {
        let own = match (self.provisional, self.before) {
            _ if self.begun => return Ok(false),
            (None, _) => return Ok(true),
            (Some(_), None) => return Ok(false),
            (Some(_), Some(own)) => own,
        };
        let left = Condition::Provisional;
        let at = |what: &'static str| at_step(left, move || format!("giving up: {what}"));
        io.look().await.map_err(at("looking whether the vCPUs are stopped"))?;
        io.set_offset(own).await.map_err(at("the VM's own offset"))?;
        self.check_counts(io, OffsetInterval::exact(own), "giving up", left).await?;
        Ok(true)
    }

    /// Takes the second step. For every vCPU it writes CNTVOFF_EL2, then the timers, CVAL before CTL, and reads each
    /// back. Then it checks that the offset took effect. After a failure this step may be repeated.
    ///
    /// The counts need no place in this order: they follow from the offset, and CNTVOFF_EL2 can't disturb them.
    pub fn apply<B: Backend + ?Sized>(
        &mut self,
        vm: &SavedVm<'_>,
        backend: &mut B,
    ) -> Result<(), RestoreError<B::Error>> {
        drive(backend, async |io| self.applying(&io, vm).await)
    }

    /// The machine of [`apply`](Self::apply).
    pub async fn applying<'a, E>(&mut self, io: &Io<'a, E>, vm: &SavedVm<'a>) -> Result<(), RestoreError<E>> {
        self.expect(Stage::Prepared, "apply")?;
        let failed = at_step(Condition::Partial, || String::from("apply"));
        if self.plan.request.deadlines == Deadlines::Relative {
            let now = io.sample().await.map_err(at_step(Condition::Partial, || String::from("apply: a sample")))?;
            self.cval_shift = self.plan.cval_shift(&self.plan.at(now));
        }
        self.begun = true;
        let block = self.block(vm);
        let written = io.write(block.clone()).await;
        self.writes.registers += block.written(&written) as u64;
        written.map_err(failed)?;
        if let Some(offset) = self.provisional {
            self.check_counts(io, OffsetInterval::exact(offset), "apply", Condition::Partial).await?;
        }
        self.stage = Stage::Applied;
        Ok(())
    }

    /// Returns the registers as this restore writes them.
    fn block<'a>(&self, vm: &SavedVm<'a>) -> Block<'a> {
        Block::timers(vm, self.plan.method, self.cval_shift)
    }

    /// Takes the last step: checks that the timers are still as they were written, samples the counter, sets the
    /// guest's counters, and reports. The guest may run now.
    ///
    /// A vCPU that was initialised again since has lost its timers: the step fails, and `apply` may be called again. A
    /// counter set by value may be off by up to `tolerance` ticks.
    pub fn release<B: Backend + ?Sized>(
        &mut self,
        vm: Option<&SavedVm<'_>>,
        tolerance: u64,
        backend: &mut B,
    ) -> Result<Report, RestoreError<B::Error>> {
        drive(backend, async |io| self.releasing(&io, vm, tolerance, None).await).map(|report| *report)
    }

    /// The machine of [`release`](Self::release).
    pub async fn releasing<'a, E>(
        &mut self,
        io: &Io<'a, E>,
        vm: Option<&SavedVm<'a>>,
        tolerance: u64,
        at: Option<Stamp>,
    ) -> Result<Box<Report>, RestoreError<E>> {
        self.expect(Stage::Applied, "release")?;
        if let Some(vm) = vm {
            // The checks come before the last sample, since the guest sees every tick after that.
            let checked = io.read_back(self.block(vm)).await;
            checked.map_err(at_step(Condition::Partial, || String::from("release"))).inspect_err(|_| {
                self.stage = Stage::Prepared;
            })?;
            self.check_forwards(io, vm).await?;
        }
        let left = self.left();
        if !self.plan.request.in_place {
            // The host may have slept since the plan. A pause's plan is made at its end.
            let stamp = match at {
                Some(at) => at,
                None => io.stamp().await.map_err(at_step(left, || String::from("release: a stamp")))?,
            };
            planning::look_again(&mut self.plan, stamp);
        }
        let at = at.map(|at| self.plan.count_of(&at));
        let (outcome, written, by_value_ticks) = if self.plan.method == Method::Offset {
            let outcome = self.write_offset(io, "release: the final offset", left, at).await?;
            self.check_counts(io, OffsetInterval::exact(outcome.virtual_offset()), "release", left).await?;
            (outcome, Written::Offset { provisional: self.provisional, last: outcome.virtual_offset() }, 0)
        } else {
            let now = match at {
                Some(at) => at,
                None => io.sample().await.map_err(at_step(left, || String::from("release: a sample")))?,
            };
            let outcome = self.plan.at(now);
            let set = set_by_value(io, &self.plan, &outcome, tolerance, &mut self.writes.registers).await;
            let set = set.map_err(|(view, failed)| match failed.error() {
                Some(error) => {
                    let step = format!("release: the {} counter by value", name(view));
                    RestoreError::Backend { step, error, left }
                }
                None => unreachable!("a counter's value isn't read back as it was written"),
            })?;
            self.check_by_value(io, &outcome, &set).await?;
            (outcome, Written::ByValue { virt: set.virt, phys: set.phys }, set.farthest)
        };
        let returned_at = io.sample().await.map_err(at_step(left, || String::from("release: its end")))?;
        self.stage = Stage::Released;
        let before = vm.and_then(|vm| Some(vm.stamp().count.since(vm.stopped_at()?)));
        let released = Released {
            count: outcome.count,
            written,
            by_value_ticks,
            writes: self.writes,
            cval_shift: self.cval_shift,
            stopped_before_ticks: before,
            returned_at,
            after_release_ticks: None,
        };
        Ok(Box::new(Report::new(Plan::clone(&self.plan), released, vm)))
    }

    /// Checks that the interrupt controller forwards the interrupt of each timer whose line is high.
    ///
    /// KVM queues an interrupt when its line rises, and not while the distributor is off; afterwards it sees no change
    /// any more, and the vCPU sleeps for ever (`vgic_queue_irq_unlock` and `kvm_vgic_inject_irq`,
    /// arch/arm64/kvm/vgic/vgic.c; seen on 6.12 and 7.3). A guest that hasn't enabled the interrupt expects none.
    async fn check_forwards<E>(&self, io: &Io<'_, E>, vm: &SavedVm<'_>) -> Result<(), RestoreError<E>> {
        let at = |what: &'static str| at_step(Condition::TimersOnly, move || format!("release: {what}"));
        let now = self.plan.at(io.sample().await.map_err(at("a sample"))?);
        for TimerStatus { vcpu, timer, line, .. } in self.plan.timers_at(vm, &now, self.cval_shift) {
            if line {
                match io.forwards(vcpu, timer).await.map_err(at("the interrupt controller"))? {
                    Some(false) => return Err(RestoreError::InterruptsOff { vcpu, timer }),
                    Some(true) => {}
                    None => break,
                }
            }
        }
        Ok(())
    }

    /// Writes the offset of the latest sample, or that of `at`.
    async fn write_offset<E>(
        &mut self,
        io: &Io<'_, E>,
        step: &str,
        left: Condition,
        at: Option<HostCount>,
    ) -> Result<Outcome, RestoreError<E>> {
        let written = match at {
            Some(at) => io.set_offset(self.plan.late.offset_at(at)).await.map(|()| at),
            None => io.set_late(What::VmOffset, self.plan.late).await,
        };
        let count = written.map_err(at_step(left, || String::from(step)))?;
        self.writes.offsets += 1;
        Ok(self.plan.at(count))
    }

    /// Checks by a bracketed read on every vCPU that its counter may have an offset of this interval: another VM's vCPU
    /// hasn't.
    async fn check_counts<E>(
        &self,
        io: &Io<'_, E>,
        known: OffsetInterval,
        step: &str,
        left: Condition,
    ) -> Result<(), RestoreError<E>> {
        let view = View::of_vm_offset(self.plan.target.registers.has_el2());
        Self::check_view(io, self.vcpus, view, known, step, left).await
    }

    pub(crate) async fn check_view<E>(
        io: &Io<'_, E>,
        vcpus: usize,
        view: View,
        known: OffsetInterval,
        step: &str,
        left: Condition,
    ) -> Result<(), RestoreError<E>> {
        for vcpu in 0..vcpus {
            let read = io.bracket(vcpu, view).await;
            let read = read.map_err(at_step(left, || format!("{step}: reading the counter of vCPU {vcpu} back")))?;
            if known.intersect(read).is_none() {
                let (wanted, found, cause) = (known.low.0, read.low.0, Cause::OtherVm);
                return Err(RestoreError::CounterElsewhere { vcpu, view, wanted, found, cause, left });
            }
        }
        Ok(())
    }

    /// Checks that counters which were set by value have moved, and on every vCPU.
    async fn check_by_value<E>(&self, io: &Io<'_, E>, outcome: &Outcome, set: &ByValue) -> Result<(), RestoreError<E>> {
        let left = self.left();
        let virt = (View::Virtual, Some(set.virt), outcome.virtual_offset());
        let views = [(View::Physical, set.phys, outcome.physical_offset()), virt];
        for (view, known, wanted) in views {
            let Some(known) = known else { continue };
            if set.ignored == Some(view) {
                let (wanted, found, cause) = (wanted.0, known.low.0, Cause::Ignored);
                return Err(RestoreError::CounterElsewhere { vcpu: 0, view, wanted, found, cause, left });
            }
            // With EL2 one offset serves both, and the virtual count has CNTVOFF_EL2 in it.
            if !(self.plan.target.registers.has_el2() && view == View::Virtual) {
                Self::check_view(io, self.vcpus, view, known, "release", left).await?;
            }
        }
        Ok(())
    }

    /// Refuses a stamp that isn't shown to be of this host between the plan's sample and `here`.
    pub(crate) fn instant_of_this_host(&self, at: &Stamp, here: &Stamp) -> Result<(), Refusal> {
        let evidence = Evidence::between(at, here);
        let plan = self.plan.sample.count;
        let why = if !(evidence.source && evidence.frequency) {
            NotThen::OtherCounter { at: at.source, here: here.source }
        } else if evidence.boot != Some(true) {
            NotThen::OtherBoot
        } else if !evidence.forward {
            NotThen::ToCome { at: at.count, here: here.count }
        } else if evidence.sleep != Sleep::Absent {
            NotThen::Slept(evidence.sleep)
        } else if plan.is_after(at.count) {
            NotThen::BeforePlan { at: at.count, plan }
        } else {
            return Ok(());
        };
        Err(Refusal::OtherInstant(why))
    }

    /// Condition of the VM if the release fails after the timers were checked.
    const fn left(&self) -> Condition {
        if self.plan.request.in_place { Condition::Paused } else { Condition::TimersOnly }
    }

    /// Progress of the restore.
    pub(crate) const fn stage(&self) -> Stage {
        self.stage
    }

    /// Returns whether a register may have been written.
    pub(crate) const fn has_begun(&self) -> bool {
        self.begun
    }

    /// Refuses a step that is out of order.
    pub(crate) fn expect<E>(&self, stage: Stage, called: &'static str) -> Result<(), RestoreError<E>> {
        if self.stage == stage { Ok(()) } else { Err(Refusal::OutOfOrder { called }.into()) }
    }
}

/// Sets both counters for the instant of `outcome`, by the plan's method.
pub fn set_counters<B: Backend + ?Sized>(plan: &Plan, outcome: &Outcome, backend: &mut B) -> Result<(), B::Error> {
    if plan.method == Method::Offset {
        return backend.set_counter_offset(outcome.virtual_offset());
    }
    let set = drive(backend, async |io| set_by_value(&io, plan, outcome, 0, &mut 0).await);
    set.map(drop).or_else(|(_, failed)| failed.error().map_or(Ok(()), Err))
}

/// Offsets of counters that were set by value.
struct ByValue {
    virt: OffsetInterval,
    phys: Option<OffsetInterval>,
    /// The longest possible distance from the wanted offsets, in ticks.
    farthest: u64,
    /// A counter whose values KVM ignored.
    ignored: Option<View>,
}

/// Sets the counters one after the other.
async fn set_by_value<E>(
    io: &Io<'_, E>,
    plan: &Plan,
    outcome: &Outcome,
    tolerance: u64,
    writes: &mut u64,
) -> Result<ByValue, (View, Failed<E>)> {
    let mut ignored = None;
    let (wanted, virt) = (outcome.physical_offset(), outcome.virtual_offset());
    let mut by_value = async |view, wanted| {
        let set = set_offset_by_value(io, view, wanted, outcome.count, tolerance, writes).await;
        let set = set.map_err(|failed| (view, failed))?;
        ignored = ignored.or(set.ignored.then_some(view));
        Ok(set.known)
    };
    let phys = match plan.method {
        Method::VirtualOnly => None,
        _ => Some(by_value(View::Physical, wanted).await?),
    };
    // Where the guest has EL2, setting the physical count has moved both.
    let virt_known = match phys {
        Some(both) if plan.target.registers.has_el2() => both,
        _ => by_value(View::Virtual, virt).await?,
    };
    let farthest = virt_known.farthest(virt).max(phys.map_or(0, |known| known.farthest(wanted)));
    Ok(ByValue { virt: virt_known, phys, farthest, ignored })
}

const fn name(view: View) -> &'static str {
    match view {
        View::Virtual => "virtual",
        View::Physical => "physical",
    }
}
