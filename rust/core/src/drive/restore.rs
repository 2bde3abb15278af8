//! Plan -> report: the three steps of a restore, on any backend.
//!
//! `prepare` writes a provisional offset, so that counter values which the VMM replays have no effect and vCPUs created
//! late do no harm. `apply` writes the timers and reads them back. `release` takes the last sample and writes the final
//! offset, as the last act before the guest runs.

use crate::arch::arm64::{CTL_ENABLE, CTL_IMASK, Role, Sysreg, Timer, View, one_reg_id, timer};
use crate::checkpoint::{Held, SavedTimer, SavedVm, Values};
use crate::drive::backend::{Backend, await_stopped, retry_busy};
use crate::drive::measure::{bracket, set_offset_by_value};
use crate::restore::{Behind, Deadlines, Method, Outcome, Plan, Refusal, Report, Writes, Written, planning};
use crate::time::{ErrorBound, Offset, OffsetInterval};
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
            Self::Backend { left, .. } | Self::CounterElsewhere { left, .. } => *left,
        }
    }

    fn left_as(self, condition: Condition) -> Self {
        match self {
            Self::Backend { step, error, .. } => Self::Backend { step, error, left: condition },
            Self::CounterElsewhere { vcpu, view, wanted, found, cause, .. } => {
                Self::CounterElsewhere { vcpu, view, wanted, found, cause, left: condition }
            }
            other => other,
        }
    }
}

pub(crate) fn at_step<E>(left: Condition, step: impl FnOnce() -> String) -> impl FnOnce(E) -> RestoreError<E> {
    move |error| RestoreError::Backend { step: step(), error, left }
}

/// Progress of a restore.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    Prepared,
    Applied,
    Released,
}

/// A restore under way.
#[derive(Clone, Debug)]
pub struct Restore {
    plan: Plan,
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
        if backend.generation() != plan.generation {
            return Err(Refusal::StalePlan.into());
        }
        for vcpu in 0..backend.vcpus() {
            // A vCPU that isn't initialised shows here, while nothing is written.
            let look = backend.get_one_reg(vcpu, one_reg_id(Role::Ctl(Timer::Vtimer)));
            look.map_err(at_step(Condition::Untouched, || format!("prepare: looking at vCPU {vcpu}")))?;
        }
        let mut restore = Self { stage: Stage::Prepared, before: backend.vm_offset(), ..Self::in_place(plan) };
        if restore.plan.method == Method::Offset {
            let outcome = restore.write_offset(backend, "prepare: the provisional offset", Condition::Untouched)?;
            let offset = outcome.virtual_offset();
            restore.provisional = Some(offset);
            let known = OffsetInterval::exact(offset);
            restore.check_counts(backend, known, "prepare", Condition::Provisional).map_err(|error| {
                // A VM that had opted in gets its own offset back. A first opt-in is for good.
                let back = restore.before.map(|own| retry_busy(backend, |backend| backend.set_counter_offset(own)));
                if matches!(back, Some(Ok(()))) { error.left_as(Condition::Untouched) } else { error }
            })?;
        }
        Ok(restore)
    }

    /// Returns the restore of a VM that stayed where it was: only the counters are to be set.
    #[must_use]
    pub fn in_place(plan: Plan) -> Self {
        Self {
            plan,
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
    pub fn take_back<B: Backend + ?Sized>(&mut self, backend: &mut B) -> Result<bool, RestoreError<B::Error>> {
        let own = match (self.provisional, self.before) {
            _ if self.begun => return Ok(false),
            (None, _) => return Ok(true),
            (Some(_), None) => return Ok(false),
            (Some(_), Some(own)) => own,
        };
        let left = Condition::Provisional;
        let at = |what: &'static str| at_step(left, move || format!("giving up: {what}"));
        await_stopped(backend).map_err(at("looking whether the vCPUs are stopped"))?;
        retry_busy(backend, |backend| backend.set_counter_offset(own)).map_err(at("the VM's own offset"))?;
        self.check_counts(backend, OffsetInterval::exact(own), "giving up", left)?;
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
        self.expect(Stage::Prepared, "apply")?;
        if self.plan.request.deadlines == Deadlines::Relative {
            self.cval_shift = self.plan.cval_shift(&self.sample(backend));
        }
        self.begun = true;
        for saved in saved(vm, self.plan.method, self.cval_shift) {
            backend
                .set_one_reg(saved.vcpu, saved.id, saved.value)
                .map_err(at_step(Condition::Partial, || format!("apply: {saved}")))?;
            self.writes.registers += 1;
            saved.check(backend, "apply")?;
        }
        if let Some(offset) = self.provisional {
            self.check_counts(backend, OffsetInterval::exact(offset), "apply", Condition::Partial)?;
        }
        self.stage = Stage::Applied;
        Ok(())
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
        self.expect(Stage::Applied, "release")?;
        for saved in vm.iter().flat_map(|vm| saved(vm, self.plan.method, self.cval_shift)) {
            // The checks come before the last sample, since the guest sees every tick after that.
            saved.check(backend, "release").inspect_err(|_| self.stage = Stage::Prepared)?;
        }
        if !self.plan.request.in_place {
            // The host may have slept since the plan. A pause's plan is made at its end.
            planning::look_again(&mut self.plan, backend.counter().stamp());
        }
        let (outcome, written, by_value_ticks) = if self.plan.method == Method::Offset {
            let outcome = self.write_offset(backend, "release: the final offset", self.left())?;
            self.check_counts(backend, OffsetInterval::exact(outcome.virtual_offset()), "release", self.left())?;
            (outcome, Written::Offset { provisional: self.provisional, last: outcome.virtual_offset() }, 0)
        } else {
            let outcome = self.sample(backend);
            let left = self.left();
            let set = set_by_value(&self.plan, &outcome, tolerance, &mut self.writes.registers, backend);
            let set = set.map_err(|(view, source)| {
                at_step(left, || format!("release: the {} counter by value", name(view)))(source)
            })?;
            self.check_by_value(backend, &outcome, &set)?;
            (outcome, Written::ByValue { virt: set.virt, phys: set.phys }, set.farthest)
        };
        self.stage = Stage::Released;
        let before = vm.and_then(|vm| Some(vm.stamp().count.since(vm.stopped_at()?)));
        Ok(Report {
            plan: self.plan.clone(),
            bound: ErrorBound { by_value_ticks, ..outcome.bound },
            cval_shift: self.cval_shift,
            outcome: Outcome {
                behind: outcome
                    .behind
                    .map(|behind| Behind { bound: ErrorBound { by_value_ticks, ..behind.bound }, ..behind }),
                ..outcome
            },
            written,
            writes: self.writes,
            stopped_before_ticks: before,
            after_release_ticks: None,
        })
    }

    /// Returns the counters that the guest has to have now.
    fn sample<B: Backend + ?Sized>(&self, backend: &B) -> Outcome {
        self.plan.at(backend.counter().count())
    }

    /// Writes the offset of the latest sample, which each attempt takes anew.
    fn write_offset<B: Backend + ?Sized>(
        &mut self,
        backend: &mut B,
        step: &str,
        left: Condition,
    ) -> Result<Outcome, RestoreError<B::Error>> {
        let late = self.plan.late;
        let written = retry_busy(backend, |backend| {
            // Under Freeze the guest sees every tick from here on.
            let now = backend.counter().count();
            backend.set_counter_offset(late.offset_at(now)).map(|()| now)
        });
        let now = written.map_err(at_step(left, || String::from(step)))?;
        self.writes.offsets += 1;
        Ok(self.plan.at(now))
    }

    /// Checks by a bracketed read on every vCPU that its counter may have an offset of this interval: another VM's vCPU
    /// hasn't.
    fn check_counts<B: Backend + ?Sized>(
        &self,
        backend: &mut B,
        known: OffsetInterval,
        step: &str,
        left: Condition,
    ) -> Result<(), RestoreError<B::Error>> {
        // With EL2 CNTVOFF_EL2 is subtracted from the virtual count, so the physical one is read.
        let view = if self.plan.nested { View::Physical } else { View::Virtual };
        Self::check_view(backend, view, known, step, left)
    }

    pub(crate) fn check_view<B: Backend + ?Sized>(
        backend: &mut B,
        view: View,
        known: OffsetInterval,
        step: &str,
        left: Condition,
    ) -> Result<(), RestoreError<B::Error>> {
        for vcpu in 0..backend.vcpus() {
            let read = bracket(backend, vcpu, view)
                .map_err(at_step(left, || format!("{step}: reading the counter of vCPU {vcpu} back")))?;
            if known.intersect(read).is_none() {
                let (wanted, found, cause) = (known.low.0, read.low.0, Cause::OtherVm);
                return Err(RestoreError::CounterElsewhere { vcpu, view, wanted, found, cause, left });
            }
        }
        Ok(())
    }

    /// Checks that counters which were set by value have moved, and on every vCPU.
    fn check_by_value<B: Backend + ?Sized>(
        &self,
        backend: &mut B,
        outcome: &Outcome,
        set: &ByValue,
    ) -> Result<(), RestoreError<B::Error>> {
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
            if !(self.plan.nested && view == View::Virtual) {
                Self::check_view(backend, view, known, "release", left)?;
            }
        }
        Ok(())
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
    match plan.method {
        Method::Offset => backend.set_counter_offset(outcome.virtual_offset()),
        _ => set_by_value(plan, outcome, 0, &mut 0, backend).map(drop).map_err(|(_, source)| source),
    }
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
fn set_by_value<B: Backend + ?Sized>(
    plan: &Plan,
    outcome: &Outcome,
    tolerance: u64,
    writes: &mut u64,
    backend: &mut B,
) -> Result<ByValue, (View, B::Error)> {
    let mut ignored = None;
    let mut by_value = |view, wanted| {
        let set = set_offset_by_value(backend, view, wanted, tolerance, writes).map_err(|source| (view, source))?;
        ignored = ignored.or(set.ignored.then_some(view));
        Ok(set.known)
    };
    let (wanted, virt) = (outcome.physical_offset(), outcome.virtual_offset());
    let phys = match plan.method {
        Method::VirtualOnly => None,
        _ => Some(by_value(View::Physical, wanted)?),
    };
    // Where the guest has EL2, setting the physical count has moved both.
    let virt_known = match phys {
        Some(both) if plan.nested => both,
        _ => by_value(View::Virtual, virt)?,
    };
    let farthest = virt_known.farthest(virt).max(phys.map_or(0, |known| known.farthest(wanted)));
    Ok(ByValue { virt: virt_known, phys, farthest, ignored })
}

/// A saved register.
struct SavedRegister {
    vcpu: usize,
    id: u64,
    value: u64,
    /// Bits that have to read back.
    seen: u64,
}

/// Returns a column of registers that have to read back in full.
fn whole(id: u64, values: Values<'_>) -> impl Iterator<Item = SavedRegister> {
    let vcpus = 0..values.len();
    vcpus.filter_map(move |vcpu| Some(SavedRegister { vcpu, id, value: values.get(vcpu)?, seen: u64::MAX }))
}

/// Returns the registers of each vCPU of a VM, in the order in which they are written.
fn saved<'a>(vm: &SavedVm<'a>, method: Method, cval_shift: u64) -> impl Iterator<Item = SavedRegister> + use<'a> {
    let cntvoff = vm.register(Held::Cntvoff).into_iter().flat_map(|values| whole(one_reg_id(Role::Cntvoff), values));
    let others = vm.others().flat_map(|(id, values)| whole(id, values));
    let timers = vm
        .timers()
        .filter(move |saved| method != Method::VirtualOnly || saved.timer != Timer::Ptimer)
        .flat_map(move |SavedTimer { timer, cval, ctl }| {
            let vcpus = 0..cval.len();
            vcpus.flat_map(move |vcpu| {
                let (cval, ctl) = (cval.get(vcpu).unwrap_or_default(), ctl.get(vcpu).unwrap_or_default());
                let register = |role, value, seen| SavedRegister { vcpu, id: one_reg_id(role), value, seen };
                [
                    register(Role::Cval(timer), timer::moved_cval(cval, cval_shift), u64::MAX),
                    // The guest owns no other bits of CTL: ISTATUS is computed, and the rest are gone at the first run.
                    register(Role::Ctl(timer), ctl, CTL_ENABLE | CTL_IMASK),
                ]
            })
        });
    cntvoff.chain(others).chain(timers)
}

impl SavedRegister {
    fn register(&self) -> &'static str {
        Sysreg::with_one_reg_id(self.id).map_or("a register unknown to guestclock", |row| row.name)
    }

    /// Checks that the register reads back as it was saved, in the bits that have to.
    fn check<B: Backend + ?Sized>(&self, backend: &mut B, step: &str) -> Result<(), RestoreError<B::Error>> {
        let read = backend
            .get_one_reg(self.vcpu, self.id)
            .map_err(at_step(Condition::Partial, || format!("{step}: {self} back")))?;
        if (read ^ self.value) & self.seen == 0 {
            return Ok(());
        }
        Err(RestoreError::ReadBack { vcpu: self.vcpu, register: self.register(), wrote: self.value, read })
    }
}

impl fmt::Display for SavedRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}, {}", self.vcpu, self.register())
    }
}

const fn name(view: View) -> &'static str {
    match view {
        View::Virtual => "virtual",
        View::Physical => "physical",
    }
}
