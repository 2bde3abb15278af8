//! A VM of any kind: what can be asked of it, and its verbs, by one implementation over its primitive calls.

use crate::errors::{IntoPyErr, OrRaise};
use crate::foreign::Sampled;
use crate::records::AnyCount;
use core::fmt::Display;
use guestclock_core::arch::arm64::{Timer, TimerState, View};
use guestclock_core::checkpoint::{Checkpoint, VmName};
use guestclock_core::drive::{Backend, Condition, Errno, OpenPause, OpenRestore, Saving, Verb};
use guestclock_core::restore::{Plan, Report, Request, RunState, State, Step};
use guestclock_core::time::{Counter, HostCount, Offset};
use guestclock_model::locked::Now;
use pyo3::prelude::*;
use std::sync::Arc;

/// A VM as its verbs hold it: questions, and single calls. Each is documented at the method of `GuestVm` that calls it.
pub(crate) trait Handle: Send + Sync {
    fn name(&self) -> &VmName;

    fn vcpus(&self, py: Python<'_>) -> PyResult<usize>;

    /// The counter, as Python has it.
    fn counter_object(&self, py: Python<'_>) -> Py<PyAny>;

    fn counter(&self) -> &dyn Counter;

    /// Asks whoever vouches for the counter's wall clock, before a stamp is taken. Called with no lock held.
    fn ask(&self, py: Python<'_>) -> PyResult<()>;

    /// Reads a Python counter before a call that needs its count, which is called with no lock held.
    fn sampled(&self, py: Python<'_>, now: Option<HostCount>) -> PyResult<Sampled>;

    fn nested(&self, py: Python<'_>) -> PyResult<bool>;

    fn opted_in(&self) -> PyResult<bool>;

    fn state(&self, py: Python<'_>) -> PyResult<State>;

    fn capabilities<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>>;

    fn set_counter_offset(&self, py: Python<'_>, offset: Offset) -> PyResult<()>;

    fn count(&self, py: Python<'_>, vcpu: usize, view: View, now: Option<AnyCount>) -> PyResult<u64>;

    fn get_one_reg(&self, py: Python<'_>, vcpu: usize, reg: u64, now: Option<HostCount>) -> PyResult<u64>;

    fn set_one_reg(&self, py: Python<'_>, vcpu: usize, reg: u64, value: u64, now: Option<HostCount>) -> PyResult<()>;

    fn reg_list(&self, py: Python<'_>, vcpu: usize) -> PyResult<Vec<u64>>;

    fn timer(&self, py: Python<'_>, vcpu: usize, timer: Timer, now: Option<HostCount>) -> PyResult<TimerState>;

    fn next_deadline(&self, py: Python<'_>, vcpu: usize, now: Option<HostCount>) -> PyResult<u64>;

    fn enter(&self, py: Python<'_>, vcpu: usize) -> PyResult<()>;

    fn exit(&self, py: Python<'_>, vcpu: usize) -> PyResult<()>;

    /// Gives a restore up without waiting. Returns false where the VM stays closed.
    fn abandon(&self, open: &OpenRestore) -> bool;

    /// Returns whether the VM is still in this pause, without waiting.
    fn holds(&self, pause: &OpenPause) -> bool;

    fn next_step(&self, py: Python<'_>) -> PyResult<Option<Step>>;

    /// Returns whether the process that holds the VM is gone, which only a fault on purpose can do.
    fn is_gone(&self) -> bool {
        false
    }
}

/// A VM whose operations run under its lock, on its primitive calls.
pub(crate) trait Operable: Handle {
    type Error: Errno + IntoPyErr + Display + Send;

    /// Works on the VM over its counter, or over one instant of it. `verb` is `None` for a call of the VMM's own.
    fn operate<T: Send>(
        &self,
        py: Python<'_>,
        verb: Option<Verb>,
        now: Option<Now>,
        work: impl FnOnce(&mut RunState, &mut dyn Backend<Error = Self::Error>) -> T + Send,
    ) -> PyResult<T>;
}

/// The verbs of a VM of any kind. Each is documented at the method of `GuestVm` that calls it.
pub(crate) trait AnyVm: Handle {
    fn opt_in(&self, py: Python<'_>, offset: Option<Offset>) -> PyResult<()>;

    fn checkpoint(&self, py: Python<'_>, saving: &Saving, now: Option<Now>) -> PyResult<Checkpoint>;

    fn plan(&self, py: Python<'_>, checkpoint: &Checkpoint, request: Request, now: Option<Now>) -> PyResult<Plan>;

    fn prepare(
        &self,
        py: Python<'_>,
        plan: Plan,
        checkpoint: Arc<Checkpoint>,
        now: Option<Now>,
    ) -> PyResult<OpenRestore>;

    fn apply(&self, py: Python<'_>, open: &mut OpenRestore, now: Option<Now>) -> PyResult<()>;

    fn release(&self, py: Python<'_>, open: &mut OpenRestore, now: Option<Now>) -> PyResult<Report>;

    fn give_up(&self, py: Python<'_>, open: &mut OpenRestore) -> PyResult<Condition>;

    fn pause(&self, py: Python<'_>, request: Request) -> PyResult<OpenPause>;

    fn resume(&self, py: Python<'_>, pause: &OpenPause) -> PyResult<Report>;

    fn step(&self, py: Python<'_>, step: Step, now: Option<Now>) -> PyResult<u64>;
}

impl<V: Operable> AnyVm for V {
    fn opt_in(&self, py: Python<'_>, offset: Option<Offset>) -> PyResult<()> {
        self.operate(py, Some(Verb::OptIn), None, |run_state, vm| run_state.opt_in(vm, offset))?.or_raise()
    }

    fn checkpoint(&self, py: Python<'_>, saving: &Saving, now: Option<Now>) -> PyResult<Checkpoint> {
        self.operate(py, Some(Verb::Checkpoint), now, |run_state, vm| run_state.checkpoint(vm, saving))?.or_raise()
    }

    fn plan(&self, py: Python<'_>, checkpoint: &Checkpoint, request: Request, now: Option<Now>) -> PyResult<Plan> {
        self.operate(py, Some(Verb::Plan), now, |run_state, vm| run_state.plan(vm, checkpoint, request))?.or_raise()
    }

    fn prepare(
        &self,
        py: Python<'_>,
        plan: Plan,
        checkpoint: Arc<Checkpoint>,
        now: Option<Now>,
    ) -> PyResult<OpenRestore> {
        self.operate(py, Some(Verb::Prepare), now, |run_state, vm| run_state.prepare(vm, plan, checkpoint))?.or_raise()
    }

    fn apply(&self, py: Python<'_>, open: &mut OpenRestore, now: Option<Now>) -> PyResult<()> {
        self.operate(py, Some(Verb::Apply), now, |run_state, vm| run_state.apply(vm, open))?.or_raise()
    }

    fn release(&self, py: Python<'_>, open: &mut OpenRestore, now: Option<Now>) -> PyResult<Report> {
        self.operate(py, Some(Verb::Release), now, |run_state, vm| run_state.release(vm, open))?.or_raise()
    }

    /// A VM whose process is gone has nothing to give up, and nothing that could be said of it.
    fn give_up(&self, py: Python<'_>, open: &mut OpenRestore) -> PyResult<Condition> {
        if self.is_gone() {
            return Ok(Condition::Untouched);
        }
        self.operate(py, Some(Verb::GiveUp), None, |run_state, vm| run_state.give_up(vm, open))?.or_raise()
    }

    fn pause(&self, py: Python<'_>, request: Request) -> PyResult<OpenPause> {
        self.operate(py, Some(Verb::Pause), None, |run_state, vm| run_state.pause(vm, request))?.or_raise()
    }

    fn resume(&self, py: Python<'_>, pause: &OpenPause) -> PyResult<Report> {
        self.operate(py, Some(Verb::Resume), None, |run_state, vm| run_state.resume(vm, pause))?.or_raise()
    }

    fn step(&self, py: Python<'_>, step: Step, now: Option<Now>) -> PyResult<u64> {
        self.operate(py, Some(Verb::CatchUp), now, |run_state, vm| run_state.step(vm, step))?.or_raise()
    }
}

/// A VM of any kind, shared.
pub(crate) type SharedVm = Arc<dyn AnyVm>;
