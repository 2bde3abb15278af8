//! Run state of a VM: whether its vCPUs may run, which restore or pause closed it, and its backlog.
//!
//! It takes no lock: a caller that shares it between threads holds the lock of its VM.

use crate::checkpoint::Backlog;
use crate::restore::plan::{Outcome, Plan};
use crate::restore::refusal::Refusal;
use crate::time::{Frequency, HostCount};
use alloc::boxed::Box;

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

/// State of a VM, and the number of restores and pauses that have closed it.
#[derive(Debug, Default)]
pub struct RunState {
    state: State,
    /// Grows with every restore or pause: an older number belongs to an operation that was overtaken.
    epoch: u64,
    /// Boxed, since few guests have a backlog.
    backlog: Option<Box<DueBacklog>>,
}

/// A backlog, and the count at which its next step becomes due.
#[derive(Clone, Copy, Debug)]
struct DueBacklog {
    backlog: Backlog,
    due: HostCount,
}

impl DueBacklog {
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

    /// Pauses the VM, and returns the pause's epoch.
    pub fn begin_pause(&mut self) -> u64 {
        self.close(State::Paused)
    }

    /// Closes the VM for a restore, and returns the restore's epoch. Any operation under way is overtaken.
    pub fn begin_restore(&mut self) -> u64 {
        self.close(State::Restoring)
    }

    /// Epoch of the restore or pause that closed the VM last.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Refuses an operation that a newer restore or pause has overtaken.
    pub fn holds(&self, state: State, epoch: u64) -> Result<(), Refusal> {
        if self.state == state && self.epoch == epoch { Ok(()) } else { Err(Refusal::Overtaken) }
    }

    /// Takes the close of a restore back that was given up: whoever closed the VM before it holds the VM again.
    ///
    /// Epochs above the present one belong to restores that were given up, so a number that is used again has one
    /// owner.
    pub const fn reopen(&mut self, state: State, epoch: u64) {
        self.state = state;
        self.epoch = epoch;
    }

    /// Opens the VM: its guest goes on as in `outcome`.
    pub fn open(&mut self, plan: &Plan, outcome: &Outcome) {
        self.state = State::Open;
        let due = |backlog| Box::new(DueBacklog::after(outcome.count, backlog, plan.frequency()));
        self.backlog = plan.backlog(outcome).map(due);
    }

    /// Opens a VM that was restored or resumed together with others, at one instant. Any operation under way is
    /// overtaken.
    pub fn go_on(&mut self, plan: &Plan, outcome: &Outcome) {
        self.close(State::Restoring);
        self.open(plan, outcome);
    }

    fn close(&mut self, state: State) -> u64 {
        self.epoch += 1;
        self.state = state;
        self.epoch
    }
}
