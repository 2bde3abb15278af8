//! Operations of a VM that depend on its run state, on any backend.
//!
//! They take no lock: a caller that shares the VM between threads holds the VM's lock.

use crate::checkpoint::Checkpoint;
use crate::drive::backend::{Backend, retry_busy};
use crate::drive::capture::{TimerCapture, capture};
use crate::drive::restore::{Condition, Restore, RestoreError, Stage, at_step};
use crate::restore::refusal::NeedsCounterOffset;
use crate::restore::run_state::{RunState, State, Step};
use crate::restore::{Plan, Refusal, Report, Request, Target, planning};
use crate::time::{HostCount, Offset, SyncBound};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

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
    /// The VM was removed from its bank.
    #[error("the VM was removed from its bank")]
    Removed,
    /// A restore or pause isn't finished.
    #[error("a restore or pause of this VM isn't finished: release it before any vCPU runs, or a checkpoint is taken")]
    Closed,
    /// The backlog has no step left to take.
    #[error("the guest is owed nothing: there is no step to make")]
    NoBacklog,
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Saving {
    /// The host's count when the last vCPU left its guest.
    pub stopped_at: Option<HostCount>,
    /// Bound of the wall clock that somebody vouches for.
    pub sync: Option<SyncBound>,
}

/// Describes the look whether all vCPUs are stopped, as a part of this step.
fn look(step: &str) -> String {
    format!("{step}: looking whether the vCPUs are stopped")
}

/// A restore under way. The VM stays closed until it is released; a new restore takes over.
#[derive(Debug)]
pub struct OpenRestore {
    restore: Restore,
    checkpoint: Arc<Checkpoint>,
    epoch: u64,
}

/// A pause in place.
#[derive(Debug)]
pub struct OpenPause {
    checkpoint: Checkpoint,
    request: Request,
    epoch: u64,
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
    pub fn checkpoint<B: Backend + ?Sized>(&self, backend: &mut B, saving: Saving) -> Operated<Checkpoint, B> {
        self.check_whole()?;
        backend.stopped().map_err(OperationError::Backend)?;
        let mut checkpoint = self.capture(backend, TimerCapture::Saved)?;
        let saved = checkpoint.host.count;
        if let Some(stopped) = saving.stopped_at.filter(|stopped| stopped.is_after(saved)) {
            return Err(OperationError::StoppedLater { stopped: stopped.0, saved: saved.0 });
        }
        checkpoint.stopped_at = saving.stopped_at.map(|count| count.0);
        if let Some(sync) = saving.sync {
            checkpoint.host = checkpoint.host.vouched_by(sync);
        }
        Ok(checkpoint)
    }

    /// Plans the restore of a checkpoint into this VM.
    pub fn plan<B: Backend + ?Sized>(
        &self,
        backend: &mut B,
        checkpoint: &Checkpoint,
        request: Request,
    ) -> Operated<Plan, B> {
        let target = Target::of(backend).map_err(OperationError::Backend)?;
        planning::same_topology(checkpoint, &target)?;
        Ok(planning::plan(checkpoint, &target, backend.counter().stamp(), request)?)
    }

    /// Begins a restore: see [`Restore::prepare`]. No vCPU can run until the release.
    pub fn prepare<B: Backend + ?Sized>(
        &mut self,
        backend: &mut B,
        plan: Plan,
        checkpoint: Arc<Checkpoint>,
    ) -> Operated<OpenRestore, B> {
        backend.stopped().map_err(OperationError::Backend)?;
        let restore = Restore::prepare(plan, backend)?;
        Ok(OpenRestore { restore, checkpoint, epoch: self.begin_restore() })
    }

    /// Writes the timers: see [`Restore::apply`].
    pub fn apply<B: Backend + ?Sized>(&self, backend: &mut B, open: &mut OpenRestore) -> Operated<(), B> {
        self.holds(State::Restoring, open.epoch)?;
        open.restore.expect(Stage::Prepared, "apply")?;
        // The vCPUs are looked at again: a read of a running vCPU's register would wait for it.
        backend.stopped().map_err(at_step(Condition::Partial, || look("apply")))?;
        Ok(open.restore.apply(&open.checkpoint, backend)?)
    }

    /// Ends the restore, after which the VM's vCPUs may run again: see [`Restore::release`].
    pub fn release<B: Backend + ?Sized>(&mut self, backend: &mut B, open: &mut OpenRestore) -> Operated<Report, B> {
        self.holds(State::Restoring, open.epoch)?;
        open.restore.expect(Stage::Applied, "release")?;
        backend.stopped().map_err(at_step(Condition::TimersOnly, || look("release")))?;
        self.finish(backend, &mut open.restore, &open.checkpoint)
    }

    /// Pauses the VM in place: no vCPU can run until [`resume`](Self::resume).
    pub fn pause<B: Backend + ?Sized>(&mut self, backend: &mut B, request: Request) -> Operated<OpenPause, B> {
        self.check_open()?;
        backend.stopped().map_err(OperationError::Backend)?;
        let checkpoint = self.capture(backend, TimerCapture::Kept)?;
        let request = Request { same_counter: Some(true), in_place: true, ..request };
        // A refusal that would come at the resume comes now, while the VM can still go on without the pause.
        let target = Target::of(backend).map_err(OperationError::Backend)?;
        planning::plan(&checkpoint, &target, checkpoint.host, request)?;
        Ok(OpenPause { checkpoint, request, epoch: self.begin_pause() })
    }

    /// Ends a pause under its policy, with the plan and report of a restore. The timers have stayed in place.
    pub fn resume<B: Backend + ?Sized>(&mut self, backend: &mut B, pause: &OpenPause) -> Operated<Report, B> {
        self.holds(State::Paused, pause.epoch)?;
        let target =
            Target::of(backend).map_err(at_step(Condition::Paused, || String::from("resume: what the VM is")))?;
        let plan = planning::plan(&pause.checkpoint, &target, backend.counter().stamp(), pause.request)?;
        self.finish(backend, &mut Restore::in_place(plan), &pause.checkpoint)
    }

    /// Takes the next step of the backlog, with all vCPUs stopped: it lowers the VM-wide offset by the step. A failure
    /// leaves the backlog as it was.
    ///
    /// A late step delays those after it: the time between two steps is never shorter than the interval.
    pub fn step<B: Backend + ?Sized>(&mut self, backend: &mut B) -> Operated<Step, B> {
        self.check_open()?;
        let frequency = backend.counter().frequency();
        let step = self.next_step(frequency).ok_or(OperationError::NoBacklog)?;
        backend.stopped().map_err(OperationError::Backend)?;
        let offset =
            backend.vm_offset().ok_or(Refusal::NoCounterOffset { needed_by: NeedsCounterOffset::CatchUpStep })?;
        let forward = Offset(offset.0.wrapping_sub(step.ticks));
        retry_busy(backend, |backend| backend.set_counter_offset(forward)).map_err(OperationError::Backend)?;
        self.step_taken(step, backend.counter().count(), frequency);
        Ok(step)
    }

    fn capture<B: Backend + ?Sized>(&self, backend: &mut B, timers: TimerCapture) -> Operated<Checkpoint, B> {
        let checkpoint = capture(backend, timers).map_err(OperationError::Backend)?;
        Ok(Checkpoint { backlog: self.backlog(), ..checkpoint })
    }

    fn finish<B: Backend + ?Sized>(
        &mut self,
        backend: &mut B,
        restore: &mut Restore,
        checkpoint: &Checkpoint,
    ) -> Operated<Report, B> {
        let tolerance = backend.counter().frequency().hz() / BY_VALUE_TOLERANCE;
        let report = restore.release(checkpoint, tolerance, backend)?;
        self.open(&report.plan, &report.outcome);
        Ok(report)
    }
}
