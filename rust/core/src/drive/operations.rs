//! Operations of a VM that depend on its run state, on any backend.
//!
//! They take no lock: a caller that shares the VM between threads holds the VM's lock.

use crate::arch::arm64::{Registers, View};
use crate::checkpoint::{BuildError, Checkpoint, GuestTime, NotOneVm, SavedVm, VmName};
use crate::drive::backend::{Backend, await_stopped, retry_busy};
use crate::drive::capture::{capture, capture_registers};
use crate::drive::measure::bracket;
use crate::drive::restore::{Condition, Restore, RestoreError, Stage, at_step};
use crate::restore::refusal::NeedsCounterOffset;
use crate::restore::run_state::{RunState, State, Step};
use crate::restore::{Plan, Policy, Refusal, Report, Request, Saved, Target, planning};
use crate::time::{HostCount, NamespaceTicks, Offset, OffsetInterval, Stamp, StampCount, SyncBound};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Tolerance of a counter that is set by value, as a divisor of a second: 1 us.
const BY_VALUE_TOLERANCE: u64 = 1_000_000;

/// Error of an operation on a VM.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperationError<E> {
    /// The backend failed.
    #[error("{0}")]
    Backend(E),
    /// A restore was refused or failed.
    #[error(transparent)]
    Restore(#[from] RestoreError<E>),
    /// The VMs don't make a checkpoint.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The checkpoint isn't of one VM.
    #[error(transparent)]
    NotOneVm(#[from] NotOneVm),
    /// The VM was removed from its bank.
    #[error("the VM was removed from its bank")]
    Removed,
    /// The VM's offset isn't the remembered one.
    #[error(
        "the VM's offset is remembered as {remembered}, and vCPU 0's counter is offset by {found}: it was set elsewhere, or \
         the VM has never opted in. Nothing was written. Make the object anew with the offset that the VM has"
    )]
    OffsetElsewhere {
        /// The remembered offset.
        remembered: u64,
        /// The lowest offset that the read allows.
        found: u64,
    },
    /// A restore or pause isn't finished.
    #[error("a restore or pause of this VM isn't finished: release it before any vCPU runs, or a checkpoint is taken")]
    Closed,
    /// The backlog has no step left to take.
    #[error("the guest is owed nothing: there is no step to make")]
    NoBacklog,
    /// The step isn't the backlog's next one.
    #[error("this step was taken already, or a restore has changed the backlog: take the next one")]
    StepOver,
    /// The step isn't due.
    #[error(
        "the step is due at the count {due}, and the counter reads {now}: wait, since an early step makes the guest's \
             time faster than was planned"
    )]
    StepEarly {
        /// The count from which on it is due.
        due: u64,
        /// The counter's count.
        now: u64,
    },
    /// The VM has opted in before.
    #[error("the VM has opted in already, for good: a restore moves its clock")]
    OptedIn,
    /// The claimed stop of the vCPUs is later than the checkpoint.
    #[error("the vCPUs can't have stopped at the count {stopped}: the checkpoint is of {saved}")]
    StoppedLater {
        /// The claimed count of the stop.
        stopped: u64,
        /// The checkpoint's count.
        saved: u64,
    },
    /// The wall clock at an injected count can't be derived.
    #[error("the count {count} is too far from the counter's {here} to tell the wall clock there")]
    TooFar {
        /// The injected count.
        count: u64,
        /// The counter's own count.
        here: u64,
    },
}

impl<E> From<Refusal> for OperationError<E> {
    fn from(refusal: Refusal) -> Self {
        Self::Restore(refusal.into())
    }
}

/// Result of an operation on a backend.
pub type Operated<T, B> = Result<T, OperationError<<B as Backend>::Error>>;

/// Facts about a checkpoint that the VM doesn't know.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Saving {
    /// Name of the VM.
    pub name: VmName,
    /// Guest-physical address of the vmclock page.
    pub vmclock_address: Option<u64>,
    /// Guest-physical addresses of the vCPUs' stolen-time records, in the vCPUs' order; none where nobody named them.
    pub stolen_time: Vec<Option<u64>>,
    /// The host's count when the last vCPU left its guest, as this process read it.
    pub stopped_at: Option<HostCount>,
    /// Bound of the wall clock that somebody vouches for.
    pub sync: Option<SyncBound>,
}

impl Saving {
    /// Returns the stop as a checkpoint of this instant has it: host-wide. Refuses one that is later.
    pub fn stopped_before<E>(
        stopped_at: Option<HostCount>,
        stamp: &Stamp,
        namespace: NamespaceTicks,
    ) -> Result<Option<StampCount>, OperationError<E>> {
        let saved = stamp.count.own(namespace);
        match stopped_at {
            Some(stopped) if stopped.is_after(saved) => {
                Err(OperationError::StoppedLater { stopped: stopped.0, saved: saved.0 })
            }
            stopped => Ok(stopped.map(|stopped| stopped.stamped(namespace))),
        }
    }

    /// Returns the stamp with somebody to vouch for its wall clock, where that was said.
    #[must_use]
    pub fn vouched(&self, stamp: Stamp) -> Stamp {
        self.sync.map_or(stamp, |sync| stamp.vouched_by(sync))
    }
}

/// Looks whether all vCPUs are stopped, and whether the VM has the offset that is remembered. Nothing is written.
fn look_at<B: Backend + ?Sized>(backend: &mut B) -> Operated<(), B> {
    await_stopped(backend).map_err(OperationError::Backend)?;
    let Some(remembered) = backend.vm_offset().filter(|_| backend.vcpus() > 0) else { return Ok(()) };
    // Both counters: the physical one of a VM that never opted in is the host's, so a small offset would pass for its.
    let views: &[View] = if backend.nested() { &[View::Physical] } else { &[View::Virtual, View::Physical] };
    for view in views {
        let read = bracket(backend, 0, *view).map_err(OperationError::Backend)?;
        if !read.contains(remembered) {
            return Err(OperationError::OffsetElsewhere { remembered: remembered.0, found: read.low.0 });
        }
    }
    Ok(())
}

/// Describes the look whether all vCPUs are stopped, as a part of this step.
fn look(step: &str) -> String {
    format!("{step}: looking whether the vCPUs are stopped")
}

/// A restore under way. The VM stays closed until it is released or given up; a new restore takes over.
#[derive(Debug)]
pub struct OpenRestore {
    restore: Restore,
    checkpoint: Arc<Checkpoint>,
    epoch: u64,
    /// State and epoch of the VM before the restore.
    before: (State, u64),
}

/// A pause in place.
#[derive(Debug)]
pub struct OpenPause {
    stamp: Stamp,
    time: GuestTime,
    request: Request,
    epoch: u64,
}

impl OpenPause {
    /// Policy for the end of the pause.
    #[must_use]
    pub const fn policy(&self) -> Policy {
        self.request.policy
    }

    /// Sets another policy for the end of the pause.
    pub const fn set_policy(&mut self, policy: Policy) {
        self.request.policy = policy;
    }

    /// Returns whether the VM is still in this pause.
    #[must_use]
    pub fn holds(&self, run_state: &RunState) -> bool {
        run_state.holds(State::Paused, self.epoch).is_ok()
    }
}

/// Operations over a VM's primitive calls. Each takes the VM's backend; the caller holds the VM's lock.
impl RunState {
    /// Refuses a VM whose restore or pause isn't finished.
    pub fn check_open<E>(&self) -> Result<(), OperationError<E>> {
        if self.state() == State::Open { Ok(()) } else { Err(OperationError::Closed) }
    }

    /// Refuses a VM that is half restored. A paused VM can be saved: its clocks stand at the pause.
    pub fn check_whole<E>(&self) -> Result<(), OperationError<E>> {
        if self.state() == State::Restoring { Err(OperationError::Closed) } else { Ok(()) }
    }

    /// Saves the VM's guest time. Refused while a vCPU runs or a restore isn't finished.
    pub fn checkpoint<B: Backend + ?Sized>(&self, backend: &mut B, saving: &Saving) -> Operated<Checkpoint, B> {
        self.check_whole()?;
        look_at(backend)?;
        if backend.vcpus() == 0 {
            return Err(BuildError::NoVcpus { name: saving.name.as_str().into() }.into());
        }
        let list = Registers::of(backend).map_err(OperationError::Backend)?;
        let registers = capture_registers(backend, &list).map_err(OperationError::Backend)?;
        let (stamp, time) = self.capture(backend, &list)?;
        let time = GuestTime {
            stopped_at: Saving::stopped_before(saving.stopped_at, &stamp, backend.counter().namespace_ticks())?,
            vmclock_address: saving.vmclock_address,
            ..time
        };
        Ok(Checkpoint::of_one(saving.vouched(stamp), &saving.name, &time, &registers, &saving.stolen_time)?)
    }

    /// Plans the restore of a checkpoint into this VM.
    pub fn plan<B: Backend + ?Sized>(
        &self,
        backend: &mut B,
        checkpoint: &Checkpoint,
        request: Request,
    ) -> Operated<Plan, B> {
        // Reading registers would wait for a vCPU that runs.
        look_at(backend)?;
        let target = Target::of(backend).map_err(OperationError::Backend)?;
        let vm = checkpoint.only()?;
        Ok(planning::plan(&Saved::from(&vm), &target, backend.counter().stamp(), request)?)
    }

    /// Begins a restore: see [`Restore::prepare`]. No vCPU can run until the release.
    pub fn prepare<B: Backend + ?Sized>(
        &mut self,
        backend: &mut B,
        plan: Plan,
        checkpoint: Arc<Checkpoint>,
    ) -> Operated<OpenRestore, B> {
        checkpoint.only()?;
        look_at(backend)?;
        let restore = Restore::prepare(plan, backend).inspect_err(|error| {
            // Its clock is at a provisional offset: no vCPU may run with that.
            if error.left() == Condition::Provisional {
                self.begin_restore();
            }
        })?;
        let before = (self.state(), self.epoch());
        Ok(OpenRestore { restore, checkpoint, epoch: self.begin_restore(), before })
    }

    /// Gives a restore up, and returns the VM's condition.
    ///
    /// A VM that had opted in before gets its own offset back, and one to which nothing was written has its own clock
    /// still: it is open, paused or in an older restore, as it was before. After a first opt-in, and once registers were written, the VM
    /// stays closed, and can be restored again. So it does after an error. A restore that a newer one has overtaken has
    /// nothing to give up.
    pub fn give_up<B: Backend + ?Sized>(&mut self, backend: &mut B, open: &mut OpenRestore) -> Operated<Condition, B> {
        if self.holds(State::Restoring, open.epoch).is_err() {
            return Ok(Condition::Untouched);
        }
        if open.restore.take_back(backend)? {
            self.reopen(open.before.0, open.before.1);
            return Ok(Condition::Untouched);
        }
        Ok(match open.restore.stage() {
            _ if !open.restore.has_begun() => Condition::Provisional,
            Stage::Prepared => Condition::Partial,
            _ => Condition::TimersOnly,
        })
    }

    /// Gives a restore up without a call on its VM. Returns false where that would take one: the VM stays closed, and
    /// can be restored again.
    pub fn abandon(&mut self, open: &OpenRestore) -> bool {
        if self.holds(State::Restoring, open.epoch).is_err() {
            return true;
        }
        let untouched = open.restore.is_untouched();
        if untouched {
            self.reopen(open.before.0, open.before.1);
        }
        untouched
    }

    /// Opts the VM in to one offset for both counters of all its vCPUs, for good, and reads it back from every vCPU.
    ///
    /// Without an `offset` the guest's counters begin at 0.
    pub fn opt_in<B: Backend + ?Sized>(&mut self, backend: &mut B, offset: Option<Offset>) -> Operated<(), B> {
        self.check_open()?;
        if backend.vm_offset().is_some() {
            return Err(OperationError::OptedIn);
        }
        if !backend.abilities().counter_offset {
            return Err(Refusal::NoCounterOffset { needed_by: NeedsCounterOffset::OptIn }.into());
        }
        look_at(backend)?;
        let written = retry_busy(backend, |backend| {
            let offset = offset.unwrap_or_else(|| Offset(backend.counter().count().0));
            backend.set_counter_offset(offset).map(|()| offset)
        });
        let offset = written.map_err(OperationError::Backend)?;
        // With EL2 the virtual count has CNTVOFF_EL2 in it.
        let view = if backend.nested() { View::Physical } else { View::Virtual };
        let known = OffsetInterval::exact(offset);
        Restore::check_view(backend, view, known, "opt_in", Condition::Provisional).inspect_err(|_| {
            self.begin_restore();
        })?;
        Ok(())
    }

    /// Writes the timers: see [`Restore::apply`].
    pub fn apply<B: Backend + ?Sized>(&self, backend: &mut B, open: &mut OpenRestore) -> Operated<(), B> {
        open.restore.expect(Stage::Prepared, "apply")?;
        self.holds(State::Restoring, open.epoch)?;
        // The vCPUs are looked at again: a read of a running vCPU's register would wait for it.
        await_stopped(backend).map_err(at_step(Condition::Partial, || look("apply")))?;
        Ok(open.restore.apply(&open.checkpoint.only()?, backend)?)
    }

    /// Ends the restore, after which the VM's vCPUs may run again: see [`Restore::release`].
    pub fn release<B: Backend + ?Sized>(&mut self, backend: &mut B, open: &mut OpenRestore) -> Operated<Report, B> {
        open.restore.expect(Stage::Applied, "release")?;
        self.holds(State::Restoring, open.epoch)?;
        await_stopped(backend).map_err(at_step(Condition::TimersOnly, || look("release")))?;
        self.finish(backend, &mut open.restore, Some(&open.checkpoint.only()?))
    }

    /// Pauses the VM in place: no vCPU can run until [`resume`](Self::resume).
    pub fn pause<B: Backend + ?Sized>(&mut self, backend: &mut B, request: Request) -> Operated<OpenPause, B> {
        self.check_open()?;
        look_at(backend)?;
        let registers = Registers::of(backend).map_err(OperationError::Backend)?;
        let (stamp, time) = self.capture(backend, &registers)?;
        let request = Request { elapsed: None, in_place: true, ..request };
        // A refusal that would come at the resume comes now, while the VM can still go on without the pause.
        let target = Target::of(backend).map_err(OperationError::Backend)?;
        planning::plan(&Saved::in_place(stamp, time), &target, stamp, request)?;
        Ok(OpenPause { stamp, time, request, epoch: self.begin_pause() })
    }

    /// Ends a pause under its policy, with the plan and report of a restore. The timers have stayed in place.
    pub fn resume<B: Backend + ?Sized>(&mut self, backend: &mut B, pause: &OpenPause) -> Operated<Report, B> {
        self.holds(State::Paused, pause.epoch)?;
        let target =
            Target::of(backend).map_err(at_step(Condition::Paused, || String::from("resume: what the VM is")))?;
        let saved = Saved::in_place(pause.stamp, pause.time);
        let plan = planning::plan(&saved, &target, backend.counter().stamp(), pause.request)?;
        self.finish(backend, &mut Restore::in_place(plan), None)
    }

    /// Takes a step of the backlog once it is due, with all vCPUs stopped: it lowers the VM-wide offset by the step.
    /// Returns the remaining ticks. A failure leaves the backlog as it was.
    ///
    /// A late step delays those after it: the time between two steps is never shorter than the interval.
    pub fn step<B: Backend + ?Sized>(&mut self, backend: &mut B, step: Step) -> Operated<u64, B> {
        self.check_open()?;
        let frequency = backend.counter().frequency();
        if self.next_step(frequency).ok_or(OperationError::NoBacklog)? != step {
            return Err(OperationError::StepOver);
        }
        let now = backend.counter().count();
        if step.due.is_after(now) {
            return Err(OperationError::StepEarly { due: step.due.0, now: now.0 });
        }
        look_at(backend)?;
        let offset =
            backend.vm_offset().ok_or(Refusal::NoCounterOffset { needed_by: NeedsCounterOffset::CatchUpStep })?;
        let forward = Offset(offset.0.wrapping_sub(step.ticks));
        retry_busy(backend, |backend| backend.set_counter_offset(forward)).map_err(OperationError::Backend)?;
        self.step_taken(step, backend.counter().count(), frequency);
        Ok(step.backlog_ticks - step.ticks)
    }

    fn capture<B: Backend + ?Sized>(&self, backend: &mut B, registers: &Registers) -> Operated<(Stamp, GuestTime), B> {
        let (stamp, time) = capture(backend, registers).map_err(OperationError::Backend)?;
        Ok((stamp, GuestTime { backlog: self.backlog(), ..time }))
    }

    fn finish<B: Backend + ?Sized>(
        &mut self,
        backend: &mut B,
        restore: &mut Restore,
        vm: Option<&SavedVm<'_>>,
    ) -> Operated<Report, B> {
        let tolerance = backend.counter().frequency().hz() / BY_VALUE_TOLERANCE;
        let report = restore.release(vm, tolerance, backend)?;
        self.open(&report.plan, &report.outcome);
        backend.restored(report.written);
        Ok(report)
    }
}
