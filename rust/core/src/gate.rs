//! The gate of a VM: whether its vCPUs may run, and the operations that close it, on any backend.
//!
//! It takes no lock: who shares it between threads keeps it under the lock of its VM.

use crate::backend::{Backend, patiently};
use crate::capture::{Timers, capture};
use crate::checkpoint::Checkpoint;
use crate::counter::{Frequency, HostCount, Offset};
use crate::debt::Debt;
use crate::plan::{self, Outcome, Plan, Request, Target};
use crate::refusal::Refusal;
use crate::restore::{Condition, Report, Restore, RestoreError, Stage, at_step};
use crate::wall_clock::SyncBound;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

/// The part of a second within which a counter set by value has to be, as a divisor: 1 us.
const BY_VALUE_TOLERANCE: u64 = 1_000_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    Open,
    /// Paused in place, by the pause with the last ticket.
    Paused,
    /// Being restored, by the restore with the last ticket.
    Restoring,
}

/// Why an operation on a gated VM failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GateError<E> {
    /// The backend's own reason.
    #[error("{0}")]
    Backend(E),
    /// A restore was refused or failed.
    #[error(transparent)]
    Restore(#[from] RestoreError<E>),
    /// The VM is no more.
    #[error("the VM was removed from its bank")]
    Removed,
    /// A restore or pause isn't finished.
    #[error("a restore or pause of this VM isn't finished: release it before any vCPU runs, or a checkpoint is taken")]
    Closed,
    /// There is no step to make.
    #[error("the guest is owed nothing: there is no step to make")]
    NothingOwed,
    /// The vCPUs can't have stopped after the checkpoint.
    #[error("the vCPUs can't have stopped at the count {stopped}: the checkpoint is of {saved}")]
    StoppedLater {
        /// When they are said to have stopped.
        stopped: u64,
        /// The checkpoint's count.
        saved: u64,
    },
    /// The wall clock at an injected count can't be told.
    #[error("the count {count} is too far from the counter's {here} to tell the wall clock there")]
    TooFar {
        /// The injected count.
        count: u64,
        /// What the counter reads.
        here: u64,
    },
}

impl<E> From<Refusal> for GateError<E> {
    fn from(refusal: Refusal) -> Self {
        Self::Restore(refusal.into())
    }
}

/// What an operation on a backend gives.
pub type Gated<T, B> = Result<T, GateError<<B as Backend>::Error>>;

/// Whether a VM's vCPUs may run.
#[derive(Debug, Default)]
pub struct Gate {
    state: State,
    /// The last ticket given out.
    tickets: u64,
    /// Few guests are owed anything.
    owed: Option<Box<Owed>>,
}

/// What the guest is owed, and when the next step is due.
#[derive(Clone, Copy, Debug)]
struct Owed {
    debt: Debt,
    due: HostCount,
}

impl Owed {
    /// The next step a whole interval after `count`.
    fn after(count: HostCount, debt: Debt, frequency: Frequency) -> Self {
        Self { debt, due: count.after(debt.interval_ticks(frequency)) }
    }

    fn step(self, frequency: Frequency) -> Step {
        let Self { debt, due } = self;
        Step { ticks: debt.step_ticks(frequency).min(debt.owed_ticks), due, owed_ticks: debt.owed_ticks }
    }
}

/// A forward step by which a guest is paid back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// By how much its counters go forward.
    pub ticks: u64,
    /// The host's count from which on it is due.
    pub due: HostCount,
    /// What is owed before it, in ticks.
    pub owed_ticks: u64,
}

/// What is known when a checkpoint is taken, besides what the VM says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Saving {
    /// The host's count when the last vCPU left its guest.
    pub stopped_at: Option<HostCount>,
    /// Who vouches for the wall clock.
    pub sync: Option<SyncBound>,
}

/// The look whether all vCPUs are stopped, as a part of this step.
fn look(step: &str) -> String {
    format!("{step}: looking whether the vCPUs are stopped")
}

/// A restore under way. Its VM stays closed until it is released; a new one takes over.
#[derive(Debug)]
pub struct OpenRestore {
    restore: Restore,
    checkpoint: Arc<Checkpoint>,
    ticket: u64,
}

/// A pause in place.
#[derive(Debug)]
pub struct OpenPause {
    checkpoint: Checkpoint,
    request: Request,
    ticket: u64,
}

impl Gate {
    /// Refuses where a restore or pause isn't finished: before a vCPU may enter its guest.
    pub fn open<E>(&self) -> Result<(), GateError<E>> {
        if self.state == State::Open { Ok(()) } else { Err(GateError::Closed) }
    }

    /// Refuses while a restore isn't finished: there is nothing to save then.
    pub(crate) fn may_save<E>(&self) -> Result<(), GateError<E>> {
        if self.state == State::Restoring { Err(GateError::Closed) } else { Ok(()) }
    }

    /// What the guest is owed.
    pub(crate) fn debt(&self) -> Option<Debt> {
        self.owed.as_ref().map(|owed| owed.debt)
    }

    /// The VM is paused, with others at one instant: the ticket of the pause.
    pub(crate) fn pause_now(&mut self) -> u64 {
        self.close(State::Paused)
    }

    /// Refuses where the pause of that ticket isn't the last thing that the VM is in.
    pub(crate) fn is_paused(&self, ticket: u64) -> Result<(), Refusal> {
        self.holds(State::Paused, ticket)
    }

    /// The VM goes on, with others at one instant. Whatever was under way is over.
    pub(crate) fn goes_on(&mut self, plan: &Plan, outcome: &Outcome) {
        self.close(State::Restoring);
        self.open_up(plan, outcome);
    }

    /// Saves the VM's guest time. Refused while a vCPU runs, or a restore isn't finished.
    pub fn checkpoint<B: Backend + ?Sized>(&self, backend: &mut B, saving: Saving) -> Gated<Checkpoint, B> {
        self.may_save()?;
        backend.stopped().map_err(GateError::Backend)?;
        let mut checkpoint = self.capture(backend, Timers::Saved)?;
        let saved = checkpoint.host.count;
        if let Some(stopped) = saving.stopped_at.filter(|stopped| stopped.is_after(saved)) {
            return Err(GateError::StoppedLater { stopped: stopped.0, saved: saved.0 });
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
    ) -> Gated<Plan, B> {
        let target = Target::of(backend).map_err(GateError::Backend)?;
        plan::same_topology(checkpoint, &target)?;
        Ok(plan::plan(checkpoint, &target, backend.counter().cross_timestamp(), request)?)
    }

    /// Opens a restore: see [`Restore::prepare`]. No vCPU can run until it is released.
    pub fn prepare<B: Backend + ?Sized>(
        &mut self,
        backend: &mut B,
        plan: Plan,
        checkpoint: Arc<Checkpoint>,
    ) -> Gated<OpenRestore, B> {
        backend.stopped().map_err(GateError::Backend)?;
        let restore = Restore::prepare(plan, backend)?;
        Ok(OpenRestore { restore, checkpoint, ticket: self.close(State::Restoring) })
    }

    /// See [`Restore::apply`].
    pub fn apply<B: Backend + ?Sized>(&self, backend: &mut B, open: &mut OpenRestore) -> Gated<(), B> {
        self.holds(State::Restoring, open.ticket)?;
        open.restore.expect(Stage::Prepared, "apply")?;
        // Again, since reading the register of a vCPU that runs would wait for it.
        backend.stopped().map_err(at_step(Condition::Partial, || look("apply")))?;
        Ok(open.restore.apply(&open.checkpoint, backend)?)
    }

    /// See [`Restore::release`]: the VM's vCPUs may run again.
    pub fn release<B: Backend + ?Sized>(&mut self, backend: &mut B, open: &mut OpenRestore) -> Gated<Report, B> {
        self.holds(State::Restoring, open.ticket)?;
        open.restore.expect(Stage::Applied, "release")?;
        backend.stopped().map_err(at_step(Condition::TimersOnly, || look("release")))?;
        self.finish(backend, &mut open.restore, &open.checkpoint)
    }

    /// Pauses in place: no vCPU can run until [`resume`](Self::resume).
    pub fn pause<B: Backend + ?Sized>(&mut self, backend: &mut B, request: Request) -> Gated<OpenPause, B> {
        self.open()?;
        backend.stopped().map_err(GateError::Backend)?;
        let checkpoint = self.capture(backend, Timers::Kept)?;
        let request = Request { same_counter: Some(true), in_place: true, ..request };
        // What would be refused at the end is refused now, while the VM can still go on without it.
        let target = Target::of(backend).map_err(GateError::Backend)?;
        plan::plan(&checkpoint, &target, checkpoint.host.clone(), request)?;
        Ok(OpenPause { checkpoint, request, ticket: self.close(State::Paused) })
    }

    /// Ends a pause under its policy: the same plan and report as a restore's, on the timers that stayed where they were.
    pub fn resume<B: Backend + ?Sized>(&mut self, backend: &mut B, pause: &OpenPause) -> Gated<Report, B> {
        self.holds(State::Paused, pause.ticket)?;
        let target =
            Target::of(backend).map_err(at_step(Condition::Paused, || String::from("resume: what the VM is")))?;
        let plan = plan::plan(&pause.checkpoint, &target, backend.counter().cross_timestamp(), pause.request)?;
        self.finish(backend, &mut Restore::in_place(plan), &pause.checkpoint)
    }

    /// The step that is next, where the guest is owed anything.
    #[must_use]
    pub fn next_step(&self, frequency: Frequency) -> Option<Step> {
        self.owed.as_ref().map(|owed| owed.step(frequency))
    }

    /// Makes the next step, with all vCPUs stopped: the owned offset is written, smaller by it. After a failure the debt is
    /// what it was.
    ///
    /// A step made late puts off those after it: no two are nearer to each other than the interval.
    pub fn step<B: Backend + ?Sized>(&mut self, backend: &mut B) -> Gated<Step, B> {
        self.open()?;
        let owed = **self.owed.as_ref().ok_or(GateError::NothingOwed)?;
        backend.stopped().map_err(GateError::Backend)?;
        let offset = backend.owned_offset().ok_or(Refusal::CapabilityMissing {
            capability: "counter_offset",
            reason: "paying back moves the VM-wide counter offset, and this VM hasn't opted in to one",
        })?;
        let frequency = backend.counter().frequency();
        let step = owed.step(frequency);
        let forward = Offset(offset.0.wrapping_sub(step.ticks));
        patiently(backend, |backend| backend.set_counter_offset(forward)).map_err(GateError::Backend)?;
        let count = backend.counter().count();
        let last = if owed.due.is_after(count) { owed.due } else { count };
        self.owed = owed.debt.less(step.ticks).map(|debt| Box::new(Owed::after(last, debt, frequency)));
        Ok(step)
    }

    fn capture<B: Backend + ?Sized>(&self, backend: &mut B, timers: Timers) -> Gated<Checkpoint, B> {
        let checkpoint = capture(backend, timers).map_err(GateError::Backend)?;
        Ok(Checkpoint { debt: self.debt(), ..checkpoint })
    }

    fn finish<B: Backend + ?Sized>(
        &mut self,
        backend: &mut B,
        restore: &mut Restore,
        checkpoint: &Checkpoint,
    ) -> Gated<Report, B> {
        let tolerance = backend.counter().frequency().hz() / BY_VALUE_TOLERANCE;
        let report = restore.release(checkpoint, tolerance, backend)?;
        self.open_up(&report.plan, &report.outcome);
        Ok(report)
    }

    fn open_up(&mut self, plan: &Plan, outcome: &Outcome) {
        self.state = State::Open;
        let owed = |debt| Box::new(Owed::after(outcome.count, debt, plan.frequency()));
        self.owed = plan.debt(outcome).map(owed);
    }

    fn close(&mut self, state: State) -> u64 {
        self.tickets += 1;
        self.state = state;
        self.tickets
    }

    fn holds(&self, state: State, ticket: u64) -> Result<(), Refusal> {
        if self.state == state && self.tickets == ticket { Ok(()) } else { Err(Refusal::StalePlan) }
    }
}
