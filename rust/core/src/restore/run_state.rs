//! Run state of a VM: whether its vCPUs may run, which restore or pause closed it, and its backlog.
//!
//! It takes no lock: a caller that shares it between threads holds the lock of its VM.

use crate::checkpoint::Backlog;
use crate::restore::plan::{Outcome, Plan};
use crate::restore::refusal::Refusal;
use crate::time::{Frequency, HostCount, Stamp};
use alloc::boxed::Box;
use alloc::sync::Arc;

/// State of a VM between two operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum State {
    /// The vCPUs may run.
    #[default]
    Open,
    /// The VM is paused in place, by the pause of the current epoch.
    Paused,
    /// The VM is being restored, by the restore of the current epoch.
    Restoring,
}

/// Hold of one restore or pause on the VM that it closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hold {
    state: State,
    epoch: u64,
    /// State and epoch of the VM before it.
    before: (State, u64),
}

/// State of a VM, and the number of restores and pauses that have closed it.
#[derive(Debug, Default)]
pub struct RunState {
    state: State,
    /// Grows with every restore or pause: an older number belongs to an operation that was overtaken.
    epoch: u64,
    /// The instant at which the VM was paused last, which VMs that were paused together share.
    paused: Option<Arc<Stamp>>,
    /// Boxed, since few guests have a backlog.
    backlog: Option<Box<DueBacklog>>,
}

/// A backlog, and the count at which its next step becomes due.
#[derive(Clone, Copy, Debug)]
pub struct DueBacklog {
    backlog: Backlog,
    due: HostCount,
}

impl DueBacklog {
    /// Returns the backlog of the guests that go on as in `outcome`.
    #[must_use]
    pub fn of(plan: &Plan, outcome: &Outcome) -> Option<Self> {
        plan.backlog(outcome).map(|backlog| Self::after(outcome.count, backlog, plan.frequency()))
    }

    /// Returns the backlog with its next step a whole interval after `count`.
    fn after(count: HostCount, backlog: Backlog, frequency: Frequency) -> Self {
        Self { backlog, due: count.after(backlog.interval_ticks(frequency)) }
    }
}

/// A forward step that reduces a guest's backlog.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Ticks by which the guest's counters move forward.
    pub ticks: u64,
    /// Host count at which the step becomes due.
    pub due: HostCount,
    /// Backlog before the step, in ticks.
    pub backlog_ticks: u64,
}

impl RunState {
    /// The state.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// The instant at which the pause began that the VM is in: its vCPUs have stood still since.
    #[must_use]
    pub fn paused_at(&self) -> Option<&Stamp> {
        self.paused.as_deref().filter(|_| self.state == State::Paused)
    }

    /// The guest's backlog.
    #[must_use]
    pub fn backlog(&self) -> Option<Backlog> {
        self.backlog.as_ref().map(|due| due.backlog)
    }

    /// The next step of the backlog.
    #[must_use]
    pub fn next_step(&self, frequency: Frequency) -> Option<Step> {
        let DueBacklog { backlog, due } = **self.backlog.as_ref()?;
        let ticks = backlog.next_ticks(frequency);
        Some(Step { ticks, due, backlog_ticks: backlog.remaining_ticks.get() })
    }

    /// Takes a step off the backlog at the host's count `now`.
    ///
    /// A late step delays those after it: the time between two steps is never shorter than the interval.
    pub fn step_taken(&mut self, step: Step, now: HostCount, frequency: Frequency) {
        let last = if step.due.is_after(now) { step.due } else { now };
        let left = self.backlog().and_then(|backlog| backlog.less(step.ticks));
        self.backlog = left.map(|backlog| Box::new(DueBacklog::after(last, backlog, frequency)));
    }

    /// Closes the VM for a pause or a restore, and returns the hold on it. Any operation under way is overtaken.
    pub const fn close(&mut self, state: State) -> Hold {
        let before = (self.state, self.epoch);
        self.epoch += 1;
        self.state = state;
        Hold { state, epoch: self.epoch, before }
    }

    /// Takes a close back: whoever held the VM before it holds it again. Refused once the VM was overtaken, or is open.
    ///
    /// The guest's clock has run on meanwhile, so where nothing was written this is as if the VM hadn't been closed.
    /// Epochs above the present one belong to closes that were taken back, so a number that is used again has one owner.
    pub fn cancel(&mut self, hold: Hold) -> Result<(), Refusal> {
        self.held(hold)?;
        (self.state, self.epoch) = hold.before;
        Ok(())
    }

    /// Refuses an operation whose hold a newer restore or pause has overtaken.
    pub fn held(&self, hold: Hold) -> Result<(), Refusal> {
        self.holds(hold.state, hold.epoch)
    }

    /// Closes the VM for a pause that begins at this instant.
    pub fn pause_at(&mut self, stamp: Arc<Stamp>) -> Hold {
        self.paused = Some(stamp);
        self.close(State::Paused)
    }

    /// Pauses the VM at this instant, and returns the pause's epoch, for a pause that is only ever resumed.
    pub fn begin_pause(&mut self, stamp: Arc<Stamp>) -> u64 {
        self.pause_at(stamp).epoch
    }

    /// Refuses an operation that a newer restore or pause has overtaken.
    pub fn holds(&self, state: State, epoch: u64) -> Result<(), Refusal> {
        if self.state == state && self.epoch == epoch { Ok(()) } else { Err(Refusal::Overtaken) }
    }

    /// Opens the VM: its guest goes on as in `outcome`.
    pub fn open(&mut self, plan: &Plan, outcome: &Outcome) {
        self.go_on_with(DueBacklog::of(plan, outcome));
    }

    /// Opens a VM that was restored or resumed together with others, at one instant, with this backlog. Any operation
    /// under way is overtaken.
    pub fn go_on(&mut self, backlog: Option<DueBacklog>) {
        self.close(State::Restoring);
        self.go_on_with(backlog);
    }

    fn go_on_with(&mut self, backlog: Option<DueBacklog>) {
        self.state = State::Open;
        self.paused = None;
        self.backlog = backlog.map(Box::new);
    }
}
