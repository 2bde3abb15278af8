//! Plan -> report: the three steps of a restore, on any backend.
//!
//! `prepare` writes a provisional offset, so that counter values which the VMM replays have no effect and vCPUs created
//! late do no harm. `apply` writes the timers and reads them back. `release` takes the last sample and writes the final
//! offset, as the last act before the guest runs.

use crate::arch::arm64::{CTL_ENABLE, CTL_IMASK, Role, Sysreg, Timer, View, one_reg_id, timer};
use crate::checkpoint::Checkpoint;
use crate::drive::backend::{Backend, retry_busy};
use crate::drive::measure::{measure, set_offset_by_value};
use crate::restore::{Deadlines, Method, Outcome, Plan, Refusal, Report, Writes, Written};
use crate::time::{Counter, ErrorBound, HostCount, Offset, Stamp};
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
}

/// Condition in which a failed restore has left the VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Condition {
    /// Nothing was written.
    Untouched,
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
            Self::Partial => "the VM isn't restored and must not run: apply again, or build it anew",
            Self::TimersOnly => {
                "its timers are restored, its counters aren't, and it must not run: release again, or build it anew"
            }
            Self::Paused => "the VM is still paused, and must not run: resume again, or restore a checkpoint into it",
        })
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
        let mut restore =
            Self { plan, stage: Stage::Prepared, provisional: None, cval_shift: 0, writes: Writes::default() };
        if restore.plan.method == Method::Offset {
            let outcome = restore.write_offset(backend, "prepare: the provisional offset", Condition::Untouched)?;
            restore.provisional = Some(outcome.virtual_offset());
        }
        Ok(restore)
    }

    /// Returns the restore of a VM that stayed where it was: only the counters are to be set.
    #[must_use]
    pub fn in_place(plan: Plan) -> Self {
        Self { plan, stage: Stage::Applied, provisional: None, cval_shift: 0, writes: Writes::default() }
    }

    /// Takes the second step. For every vCPU it writes CNTVOFF_EL2, then the timers, CVAL before CTL, and reads each
    /// back. Then it checks that the offset took effect. After a failure this step may be repeated.
    ///
    /// The counts need no place in this order: they follow from the offset, and CNTVOFF_EL2 can't disturb them.
    pub fn apply<B: Backend + ?Sized>(
        &mut self,
        checkpoint: &Checkpoint,
        backend: &mut B,
    ) -> Result<(), RestoreError<B::Error>> {
        self.expect(Stage::Prepared, "apply")?;
        if self.plan.request.deadlines == Deadlines::Relative {
            self.cval_shift = self.plan.cval_shift(&self.sample(backend)?);
        }
        for saved in saved(checkpoint, self.plan.method, self.cval_shift) {
            backend
                .set_one_reg(saved.vcpu, saved.id, saved.value)
                .map_err(at_step(Condition::Partial, || format!("apply: {saved}")))?;
            self.writes.registers += 1;
            saved.check(backend, "apply")?;
        }
        if let Some(offset) = self.provisional.filter(|_| checkpoint.vcpus > 0) {
            // With EL2 CNTVOFF_EL2 is subtracted from the virtual count, so the physical one is read.
            let view = if self.plan.nested { View::Physical } else { View::Virtual };
            let step = || String::from("apply: reading the counter back");
            let known = measure(backend, view).map_err(at_step(Condition::Partial, step))?;
            if !known.contains(offset) {
                let (wrote, read) = (offset.0, known.low.0);
                return Err(RestoreError::ReadBack { vcpu: 0, register: "the counter offset", wrote, read });
            }
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
        checkpoint: &Checkpoint,
        tolerance: u64,
        backend: &mut B,
    ) -> Result<Report, RestoreError<B::Error>> {
        self.expect(Stage::Applied, "release")?;
        for saved in saved(checkpoint, self.plan.method, self.cval_shift) {
            // The checks come before the last sample, since the guest sees every tick after that.
            saved.check(backend, "release").inspect_err(|_| self.stage = Stage::Prepared)?;
        }
        let (outcome, written, by_value_ticks) = if self.plan.method == Method::Offset {
            let outcome = self.write_offset(backend, "release: the final offset", self.left())?;
            (outcome, Written::Offset { provisional: self.provisional, last: outcome.virtual_offset() }, 0)
        } else {
            let outcome = self.sample(backend)?;
            let left = self.left();
            let set = set_by_value(&self.plan, &outcome, tolerance, &mut self.writes.registers, backend);
            let (written, farthest) = set.map_err(|(view, source)| {
                at_step(left, || format!("release: the {} counter by value", name(view)))(source)
            })?;
            (outcome, written, farthest)
        };
        self.stage = Stage::Released;
        let before = checkpoint.stopped_at.map(|stopped| checkpoint.host.count.since(HostCount(stopped)));
        Ok(Report {
            plan: self.plan.clone(),
            bound: ErrorBound { by_value_ticks, ..outcome.bound },
            cval_shift: self.cval_shift,
            outcome,
            written,
            writes: self.writes,
            before_checkpoint_ticks: before,
            after_release_ticks: None,
        })
    }

    /// Returns the counters that the guest has to have now.
    fn sample<B: Backend + ?Sized>(&self, backend: &B) -> Result<Outcome, Refusal> {
        self.plan.at(&instant(&self.plan, backend.counter()))
    }

    /// Writes the offset of the latest sample, which each attempt takes anew.
    fn write_offset<B: Backend + ?Sized>(
        &mut self,
        backend: &mut B,
        step: &str,
        left: Condition,
    ) -> Result<Outcome, RestoreError<B::Error>> {
        let written = retry_busy(backend, |backend| match self.sample(backend) {
            Ok(outcome) => backend.set_counter_offset(outcome.virtual_offset()).map(|()| Ok(outcome)),
            Err(refusal) => Ok(Err(refusal)),
        });
        let outcome = written.map_err(at_step(left, || String::from(step)))??;
        self.writes.offsets += 1;
        Ok(outcome)
    }

    /// Condition of the VM if the release fails after the timers were checked.
    const fn left(&self) -> Condition {
        if self.plan.request.in_place { Condition::Paused } else { Condition::TimersOnly }
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

/// Sets the counters one after the other. Returns the resulting offsets, and the longest possible distance from the
/// wanted ones.
fn set_by_value<B: Backend + ?Sized>(
    plan: &Plan,
    outcome: &Outcome,
    tolerance: u64,
    writes: &mut u64,
    backend: &mut B,
) -> Result<(Written, u64), (View, B::Error)> {
    let mut by_value =
        |view, wanted| set_offset_by_value(backend, view, wanted, tolerance, writes).map_err(|source| (view, source));
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
    Ok((Written::ByValue { virt: virt_known, phys }, farthest))
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
fn whole(id: u64, values: &[u64]) -> impl Iterator<Item = SavedRegister> {
    values.iter().enumerate().map(move |(vcpu, &value)| SavedRegister { vcpu, id, value, seen: u64::MAX })
}

/// Returns the registers of each vCPU in a checkpoint, in the order in which they are written.
fn saved(checkpoint: &Checkpoint, method: Method, cval_shift: u64) -> impl Iterator<Item = SavedRegister> {
    let cntvoff = checkpoint.cntvoff.iter().flat_map(|values| whole(one_reg_id(Role::Cntvoff), values));
    let others = checkpoint.others.iter().flat_map(|others| whole(others.id, &others.values));
    let timers = checkpoint
        .timers
        .iter()
        .filter(move |columns| method != Method::VirtualOnly || columns.timer != Timer::Ptimer)
        .flat_map(move |columns| {
            columns.cval.iter().enumerate().flat_map(move |(vcpu, cval)| {
                let ctl = columns.ctl.get(vcpu).unwrap_or_default();
                let register = |role, value, seen| SavedRegister { vcpu, id: one_reg_id(role), value, seen };
                [
                    register(Role::Cval(columns.timer), timer::moved_cval(*cval, cval_shift), u64::MAX),
                    // The guest owns no other bits of CTL: ISTATUS is computed, and the rest are gone at the first run.
                    register(Role::Ctl(columns.timer), ctl, CTL_ENABLE | CTL_IMASK),
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

/// Returns the counter now, and the wall clock only if the plan needs it: reading both takes longer, and under Freeze
/// the guest sees every tick after the sample.
fn instant(plan: &Plan, counter: &dyn Counter) -> Stamp {
    if plan.needs_the_wall_clock() {
        return plan.vouched(counter.stamp());
    }
    let count = counter.count();
    plan.sample.at(count).unwrap_or(Stamp { count, ..plan.sample })
}

const fn name(view: View) -> &'static str {
    match view {
        View::Virtual => "virtual",
        View::Physical => "physical",
    }
}
