//! A VM of any kind: what can be asked of it, and its verbs, by one implementation over its primitive calls.

use crate::errors::IntoPyErr;
use crate::foreign::Sampled;
use crate::process::detached;
use crate::records::AnyCount;
use core::fmt::Display;
use guestclock_core::arch::arm64::{Timer, TimerState, View};
use guestclock_core::checkpoint::{Checkpoint, VmName};
use guestclock_core::drive::{
    Backend, Condition, Errno, Expected, OpenPause, OpenRestore, OperationError, Saving, Verb, Verified,
};
use guestclock_core::restore::{Plan, Policy, Report, Request, RunState, State, Step};
use guestclock_core::time::{Counter, HostCount, Offset, Stamp};
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

/// An error of a verb, until the interpreter's lock is at hand to make an exception of it.
pub(crate) type Failure = Box<dyn FnOnce() -> PyErr + Send>;

/// A verb for which all is at hand that takes the interpreter's lock: it is carried out without the lock, by any thread.
pub(crate) type Started<'a, T> = Box<dyn FnOnce() -> Result<T, Failure> + Send + 'a>;

/// Carries a verb out without the interpreter's lock.
pub(crate) fn run<T: Send>(py: Python<'_>, started: Started<'_, T>) -> PyResult<T> {
    detached(py, started).map_err(|failure| failure())
}

/// Returns the failure that an error is.
pub(crate) fn failure<E: IntoPyErr + Send + 'static>(error: E) -> Failure {
    Box::new(|| error.into_pyerr())
}

/// A VM whose operations run under its lock, on its primitive calls.
pub(crate) trait Operable: Handle {
    type Error: Errno + IntoPyErr + Display + Send + 'static;

    /// Whatever of the interpreter an operation needs.
    type Ready: Send;

    /// Takes it, with no lock of a VM held.
    fn ready(&self, py: Python<'_>, now: Option<&Now>) -> PyResult<Self::Ready>;

    /// Works on the VM over its counter, or over one instant of it, without the interpreter's lock. `verb` is `None` for a
    /// call of the VMM's own.
    fn work<T>(
        &self,
        ready: Self::Ready,
        verb: Option<Verb>,
        now: Option<Now>,
        work: impl FnOnce(&mut RunState, &mut dyn Backend<Error = Self::Error>) -> T,
    ) -> Result<T, Failure>;
}

/// The verbs of a VM of any kind. Each is documented at the method of `GuestVm` that calls it.
pub(crate) trait AnyVm: Handle {
    fn opt_in<'a>(&'a self, py: Python<'_>, offset: Option<Offset>) -> PyResult<Started<'a, ()>>;

    fn checkpoint<'a>(
        &'a self,
        py: Python<'_>,
        saving: &'a Saving,
        now: Option<Now>,
    ) -> PyResult<Started<'a, Checkpoint>>;

    fn plan<'a>(
        &'a self,
        py: Python<'_>,
        checkpoint: &'a Checkpoint,
        request: Request,
        now: Option<Now>,
    ) -> PyResult<Started<'a, Plan>>;

    fn prepare<'a>(
        &'a self,
        py: Python<'_>,
        plan: Plan,
        checkpoint: Arc<Checkpoint>,
        now: Option<Now>,
    ) -> PyResult<Started<'a, OpenRestore>>;

    /// Closes the VM as `prepare` does first, and writes nothing.
    fn close<'a>(
        &'a self,
        py: Python<'_>,
        plan: Plan,
        checkpoint: Arc<Checkpoint>,
        now: Option<Now>,
    ) -> PyResult<Started<'a, OpenRestore>>;

    /// Makes the first write of a restore that has closed the VM.
    fn begin<'a>(&'a self, py: Python<'_>, open: &'a mut OpenRestore, now: Option<Now>) -> PyResult<Started<'a, ()>>;

    fn apply<'a>(&'a self, py: Python<'_>, open: &'a mut OpenRestore, now: Option<Now>) -> PyResult<Started<'a, ()>>;

    /// Releases for `at`, a stamp of the past, or else for the present.
    fn release<'a>(
        &'a self,
        py: Python<'_>,
        open: &'a mut OpenRestore,
        at: Option<Stamp>,
        now: Option<Now>,
    ) -> PyResult<Started<'a, Report>>;

    fn give_up(&self, py: Python<'_>, open: &mut OpenRestore) -> PyResult<Condition>;

    fn pause<'a>(&'a self, py: Python<'_>, request: Request) -> PyResult<Started<'a, OpenPause>>;

    /// Ends a pause as if there had been none.
    fn cancel(&self, py: Python<'_>, pause: &OpenPause) -> PyResult<()>;

    /// Ends a pause under its policy, or under `policy` instead.
    fn resume<'a>(
        &'a self,
        py: Python<'_>,
        pause: &'a OpenPause,
        policy: Option<Policy>,
    ) -> PyResult<Started<'a, Report>>;

    fn step(&self, py: Python<'_>, step: Step, now: Option<Now>) -> PyResult<u64>;

    fn verify<'a>(
        &'a self,
        py: Python<'_>,
        expected: Expected<'a>,
        now: Option<Now>,
    ) -> PyResult<Started<'a, Verified>>;
}

/// Takes what a verb needs of the interpreter.
fn start<'a, V: Operable, T>(
    vm: &'a V,
    py: Python<'_>,
    verb: Verb,
    now: Option<Now>,
    work: impl FnOnce(&mut RunState, &mut dyn Backend<Error = V::Error>) -> Result<T, OperationError<V::Error>> + Send + 'a,
) -> PyResult<Started<'a, T>>
where
    V::Ready: 'a,
{
    let ready = vm.ready(py, now.as_ref())?;
    Ok(Box::new(move || vm.work(ready, Some(verb), now, work)?.map_err(failure)))
}

impl<V: Operable> AnyVm for V
where
    V::Ready: 'static,
{
    fn opt_in<'a>(&'a self, py: Python<'_>, offset: Option<Offset>) -> PyResult<Started<'a, ()>> {
        start(self, py, Verb::OptIn, None, move |run_state, vm| run_state.opt_in(vm, offset))
    }

    fn checkpoint<'a>(
        &'a self,
        py: Python<'_>,
        saving: &'a Saving,
        now: Option<Now>,
    ) -> PyResult<Started<'a, Checkpoint>> {
        start(self, py, Verb::Checkpoint, now, |run_state, vm| run_state.checkpoint(vm, saving))
    }

    fn plan<'a>(
        &'a self,
        py: Python<'_>,
        checkpoint: &'a Checkpoint,
        request: Request,
        now: Option<Now>,
    ) -> PyResult<Started<'a, Plan>> {
        start(self, py, Verb::Plan, now, move |run_state, vm| run_state.plan(vm, checkpoint, request))
    }

    fn prepare<'a>(
        &'a self,
        py: Python<'_>,
        plan: Plan,
        checkpoint: Arc<Checkpoint>,
        now: Option<Now>,
    ) -> PyResult<Started<'a, OpenRestore>> {
        start(self, py, Verb::Prepare, now, move |run_state, vm| run_state.prepare(vm, plan, checkpoint))
    }

    fn close<'a>(
        &'a self,
        py: Python<'_>,
        plan: Plan,
        checkpoint: Arc<Checkpoint>,
        now: Option<Now>,
    ) -> PyResult<Started<'a, OpenRestore>> {
        start(self, py, Verb::Prepare, now, move |run_state, vm| run_state.close_for_restore(vm, plan, checkpoint))
    }

    fn begin<'a>(&'a self, py: Python<'_>, open: &'a mut OpenRestore, now: Option<Now>) -> PyResult<Started<'a, ()>> {
        start(self, py, Verb::Prepare, now, |run_state, vm| run_state.begin(vm, open))
    }

    fn apply<'a>(&'a self, py: Python<'_>, open: &'a mut OpenRestore, now: Option<Now>) -> PyResult<Started<'a, ()>> {
        start(self, py, Verb::Apply, now, |run_state, vm| run_state.apply(vm, open))
    }

    fn release<'a>(
        &'a self,
        py: Python<'_>,
        open: &'a mut OpenRestore,
        at: Option<Stamp>,
        now: Option<Now>,
    ) -> PyResult<Started<'a, Report>> {
        start(self, py, Verb::Release, now, move |run_state, vm| run_state.release(vm, open, at))
    }

    /// A VM whose process is gone has nothing to give up, and nothing that could be said of it.
    fn give_up(&self, py: Python<'_>, open: &mut OpenRestore) -> PyResult<Condition> {
        if self.is_gone() {
            return Ok(Condition::Untouched);
        }
        run(py, start(self, py, Verb::GiveUp, None, |run_state, vm| run_state.give_up(vm, open))?)
    }

    fn pause<'a>(&'a self, py: Python<'_>, request: Request) -> PyResult<Started<'a, OpenPause>> {
        start(self, py, Verb::Pause, None, move |run_state, vm| run_state.pause(vm, request))
    }

    fn cancel(&self, py: Python<'_>, pause: &OpenPause) -> PyResult<()> {
        if self.is_gone() {
            return Ok(());
        }
        let cancel = |run_state: &mut RunState, _: &mut dyn Backend<Error = V::Error>| {
            run_state.cancel_pause(pause);
            Ok(())
        };
        run(py, start(self, py, Verb::GiveUp, None, cancel)?)
    }

    fn resume<'a>(
        &'a self,
        py: Python<'_>,
        pause: &'a OpenPause,
        policy: Option<Policy>,
    ) -> PyResult<Started<'a, Report>> {
        let policy = policy.unwrap_or_else(|| pause.policy());
        start(self, py, Verb::Resume, None, move |run_state, vm| run_state.resume(vm, pause, policy))
    }

    fn step(&self, py: Python<'_>, step: Step, now: Option<Now>) -> PyResult<u64> {
        run(py, start(self, py, Verb::CatchUp, now, move |run_state, vm| run_state.step(vm, step))?)
    }

    fn verify<'a>(
        &'a self,
        py: Python<'_>,
        expected: Expected<'a>,
        now: Option<Now>,
    ) -> PyResult<Started<'a, Verified>> {
        start(self, py, Verb::Verify, now, move |run_state, vm| run_state.verify(vm, expected))
    }
}

/// A VM of any kind, shared.
pub(crate) type SharedVm = Arc<dyn AnyVm>;
