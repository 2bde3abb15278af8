//! Plan -> report: the three steps of a restore, on any backend.
//!
//! `prepare` writes a provisional offset, so that counter values which the VMM replays have no effect and vCPUs created late
//! do no harm; `apply` writes the timers and reads them back; `release` takes the last sample and writes the final offset,
//! as the last act before the guest runs.

use crate::backend::Backend;
use crate::checkpoint::Checkpoint;
use crate::counter::{Counter, CrossTimestamp, HostCount, Offset};
use crate::measure::{OffsetInterval, measure, set_offset_by_value};
use crate::plan::{Method, Outcome, Plan, Refusal};
use crate::sysreg::{Role, Sysreg, View, one_reg_id};
use crate::timer::{CTL_ENABLE, CTL_IMASK, Timer};
use alloc::format;
use alloc::string::String;

/// Why a restore stopped.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError<E> {
    /// It was refused before anything was touched.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The backend failed.
    #[error("{step}: {source}")]
    Backend {
        /// What was being done, after everything before it had been.
        step: String,
        /// What the backend said.
        source: E,
    },
    /// A register doesn't read back as it was written.
    #[error(
        "vCPU {vcpu}: {register} was written as {wrote:#x} and reads {read:#x}: the VM isn't restored, and must not run"
    )]
    ReadBack {
        /// Which vCPU.
        vcpu: usize,
        /// Which register.
        register: &'static str,
        /// What was written.
        wrote: u64,
        /// What was read.
        read: u64,
    },
}

fn at_step<E>(step: impl FnOnce() -> String) -> impl FnOnce(E) -> RestoreError<E> {
    |source| RestoreError::Backend { step: step(), source }
}

/// How far a restore has got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
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
}

/// How the counters were set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// One offset for both.
    Offset {
        /// The first one, which opted the VM in; `None` in place.
        provisional: Option<Offset>,
        /// The one that the guest runs with.
        last: Offset,
    },
    /// By value: what is known of the two offsets.
    ByValue {
        /// The virtual counter's.
        virt: OffsetInterval,
        /// The physical counter's; `None` where it can't be set.
        phys: Option<OffsetInterval>,
    },
}

/// What a restore did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The plan that it followed.
    pub plan: Plan,
    /// What the guest's counters were at the last sample.
    pub outcome: Outcome,
    /// How they were set.
    pub written: Written,
    /// The farthest that a counter can be from what the policy promises at the last sample, in ticks.
    pub error_bound_ticks: u64,
    /// Guest ticks between the last guest exit and the checkpoint's sample, which the guest sees; `None` if not known.
    pub before_checkpoint_ticks: Option<u64>,
    /// Guest ticks between the last sample and the first guest entry, which the guest sees; `None` if not known.
    pub after_release_ticks: Option<u64>,
}

impl Report {
    /// The same, with the host's count at the first guest entry known; `None` for one before the release.
    #[must_use]
    pub fn resumed_at(&self, count: HostCount) -> Option<Self> {
        let known = Some(count.since(self.outcome.count));
        (!self.outcome.count.is_after(count)).then(|| Self { after_release_ticks: known, ..self.clone() })
    }
}

impl Restore {
    /// The first step: opts in with a provisional offset, where the plan is to use one.
    pub fn prepare<B: Backend + ?Sized>(plan: Plan, backend: &mut B) -> Result<Self, RestoreError<B::Error>> {
        if backend.generation() != plan.generation {
            return Err(Refusal::StalePlan.into());
        }
        let mut provisional = None;
        if plan.method == Method::Offset {
            let offset = plan.at(&instant(&plan, backend.counter()))?.virtual_offset();
            backend.set_counter_offset(offset).map_err(at_step(|| String::from("prepare: the provisional offset")))?;
            provisional = Some(offset);
        }
        Ok(Self { plan, stage: Stage::Prepared, provisional })
    }

    /// A restore of a VM that stayed where it was: only the counters are to be set.
    #[must_use]
    pub fn in_place(plan: Plan) -> Self {
        Self { plan, stage: Stage::Applied, provisional: None }
    }

    /// The second step: every vCPU's CNTVOFF_EL2, then its timers, CVAL before CTL, each read back; then a look whether the
    /// offset took.
    ///
    /// The counts need no place in this order: they follow from the offset, and CNTVOFF_EL2 can't disturb them.
    pub fn apply<B: Backend + ?Sized>(
        &mut self,
        checkpoint: &Checkpoint,
        backend: &mut B,
    ) -> Result<(), RestoreError<B::Error>> {
        self.expect(Stage::Prepared, "apply")?;
        if let Some(cntvoff) = &checkpoint.cntvoff {
            for (vcpu, value) in cntvoff.iter().enumerate() {
                write_back(backend, vcpu, one_reg_id(Role::Cntvoff), *value, u64::MAX)?;
            }
        }
        for column in &checkpoint.others {
            for (vcpu, value) in column.values.iter().enumerate() {
                write_back(backend, vcpu, column.id, *value, u64::MAX)?;
            }
        }
        for columns in &checkpoint.timers {
            if self.plan.method == Method::VirtualOnly && columns.timer == Timer::Ptimer {
                continue;
            }
            for (vcpu, cval) in columns.cval.iter().enumerate() {
                let ctl = columns.ctl.get(vcpu).unwrap_or_default();
                write_back(backend, vcpu, one_reg_id(Role::Cval(columns.timer)), *cval, u64::MAX)?;
                // CTL's other bits aren't the guest's: ISTATUS is computed, and the rest are gone at the first run.
                write_back(backend, vcpu, one_reg_id(Role::Ctl(columns.timer)), ctl, CTL_ENABLE | CTL_IMASK)?;
            }
        }
        if let Some(offset) = self.provisional.filter(|_| checkpoint.vcpus > 0) {
            // With EL2 the virtual count is read less CNTVOFF_EL2.
            let view = if self.plan.nested { View::Physical } else { View::Virtual };
            let known = measure(backend, view).map_err(at_step(|| String::from("apply: reading the counter back")))?;
            if !known.contains(offset) {
                let (wrote, read) = (offset.0, known.low.0);
                return Err(RestoreError::ReadBack { vcpu: 0, register: "the counter offset", wrote, read });
            }
        }
        self.stage = Stage::Applied;
        Ok(())
    }

    /// The last step: samples the counter, sets the guest's counters, and says what was done. The guest may run now.
    ///
    /// By value, up to `tolerance` ticks are let pass.
    pub fn release<B: Backend + ?Sized>(
        &mut self,
        checkpoint: &Checkpoint,
        tolerance: u64,
        backend: &mut B,
    ) -> Result<Report, RestoreError<B::Error>> {
        self.expect(Stage::Applied, "release")?;
        let outcome = self.plan.at(&instant(&self.plan, backend.counter()))?;
        let virt = outcome.virtual_offset();
        let mut error_bound_ticks = outcome.error_bound_ticks;
        let written = if self.plan.method == Method::Offset {
            backend.set_counter_offset(virt).map_err(at_step(|| String::from("release: the final offset")))?;
            Written::Offset { provisional: self.provisional, last: virt }
        } else {
            let by_value = |view, wanted, backend: &mut B| {
                set_offset_by_value(backend, view, wanted, tolerance)
                    .map_err(at_step(|| format!("release: the {} counter by value", name(view))))
            };
            let wanted = outcome.physical_offset();
            let phys = match self.plan.method {
                Method::VirtualOnly => None,
                _ => Some(by_value(View::Physical, wanted, backend)?),
            };
            // Where the guest has EL2, setting the physical count has moved both.
            let virt_known = match phys {
                Some(both) if self.plan.nested => both,
                _ => by_value(View::Virtual, virt, backend)?,
            };
            let farthest = virt_known.farthest(virt).max(phys.map_or(0, |known| known.farthest(wanted)));
            error_bound_ticks = error_bound_ticks.saturating_add(farthest);
            Written::ByValue { virt: virt_known, phys }
        };
        self.stage = Stage::Released;
        let before = checkpoint.stopped_at.map(|stopped| checkpoint.host.count.since(HostCount(stopped)));
        Ok(Report {
            plan: self.plan.clone(),
            outcome,
            written,
            error_bound_ticks,
            before_checkpoint_ticks: before,
            after_release_ticks: None,
        })
    }

    fn expect<E>(&self, stage: Stage, called: &'static str) -> Result<(), RestoreError<E>> {
        if self.stage == stage { Ok(()) } else { Err(Refusal::OutOfOrder { called }.into()) }
    }
}

/// The counter now, and the wall clock only where the plan needs it: reading both takes longer, and under
/// Freeze every tick after the sample is seen by the guest.
fn instant(plan: &Plan, counter: &dyn Counter) -> CrossTimestamp {
    if plan.needs_the_wall_clock() {
        return counter.cross_timestamp();
    }
    let count = counter.count();
    plan.sample.at(count).unwrap_or_else(|| CrossTimestamp { count, ..plan.sample.clone() })
}

const fn name(view: View) -> &'static str {
    match view {
        View::Virtual => "virtual",
        View::Physical => "physical",
    }
}

/// Writes a register and reads it back; the bits of `seen` must be as they were written.
fn write_back<B: Backend + ?Sized>(
    backend: &mut B,
    vcpu: usize,
    id: u64,
    value: u64,
    seen: u64,
) -> Result<(), RestoreError<B::Error>> {
    let register = Sysreg::with_one_reg_id(id).map_or("a register unknown to guestclock", |row| row.name);
    backend.set_one_reg(vcpu, id, value).map_err(at_step(|| format!("apply: vCPU {vcpu}, {register}")))?;
    let read = backend.get_one_reg(vcpu, id).map_err(at_step(|| format!("apply: vCPU {vcpu}, {register} back")))?;
    if (read ^ value) & seen == 0 { Ok(()) } else { Err(RestoreError::ReadBack { vcpu, register, wrote: value, read }) }
}
