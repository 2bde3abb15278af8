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

    /// Returns whether each operation takes the interpreter's lock first, since its counter is a Python object.
    fn samples_in_python(&self, now: Option<&Now>) -> bool;

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

/// Returns the failure that an error is.
pub(crate) fn failure<E: IntoPyErr + Send + 'static>(error: E) -> Failure {
    Box::new(|| error.into_pyerr())
}

/// A VM whose operations run under its lock, on its primitive calls.
pub(crate) trait Operable: Handle {
    type Error: Errno + IntoPyErr + Display + Send + 'static;

    /// Whatever of the interpreter operations need.
    type Ready: Send;

    /// Takes it, with no lock of a VM held.
    fn ready(&self, py: Python<'_>, now: Option<&Now>) -> PyResult<Self::Ready>;

    /// Works on the VM over its counter, or over one instant of it, without the interpreter's lock. `verb` is `None` for a
    /// call of the VMM's own.
    fn work<T>(
        &self,
        ready: &Self::Ready,
        verb: Option<Verb>,
        now: Option<&Now>,
        work: impl FnOnce(&mut RunState, &mut dyn Backend<Error = Self::Error>) -> T,
    ) -> Result<T, Failure>;
}

/// The verbs of a VM for which all is at hand that takes the interpreter's lock: any thread carries them out without it.
/// Each is documented at the method of `GuestVm` that calls it.
pub(crate) trait Verbs: Send {
    fn opt_in(&self, offset: Option<Offset>) -> Result<(), Failure>;

    fn checkpoint(&self, saving: &Saving) -> Result<Checkpoint, Failure>;

    fn plan(&self, checkpoint: &Checkpoint, request: Request) -> Result<Plan, Failure>;

    fn prepare(&self, plan: Plan, checkpoint: Arc<Checkpoint>) -> Result<OpenRestore, Failure>;

    /// Closes the VM as `prepare` does first, and writes nothing.
    fn close(&self, plan: Plan, checkpoint: Arc<Checkpoint>) -> Result<OpenRestore, Failure>;

    /// Makes the first write of a restore that has closed the VM.
    fn begin(&self, open: &mut OpenRestore) -> Result<(), Failure>;

    fn apply(&self, open: &mut OpenRestore) -> Result<(), Failure>;

    /// Releases for `at`, a stamp of the past, or else for the present.
    fn release(&self, open: &mut OpenRestore, at: Option<Stamp>) -> Result<Report, Failure>;

    fn give_up(&self, open: &mut OpenRestore) -> Result<Condition, Failure>;

    fn pause(&self, request: Request) -> Result<OpenPause, Failure>;

    /// Ends a pause as if there had been none.
    fn cancel(&self, pause: &OpenPause) -> Result<(), Failure>;

    /// Ends a pause under its policy, or under `policy` instead.
    fn resume(&self, pause: &OpenPause, policy: Option<Policy>) -> Result<Report, Failure>;

    fn step(&self, step: Step) -> Result<u64, Failure>;

    fn verify(&self, expected: Expected<'_>) -> Result<Verified, Failure>;
}

/// A VM, and whatever of the interpreter its verbs need.
struct AtHand<'a, V: Operable> {
    vm: &'a V,
    ready: V::Ready,
    now: Option<Now>,
}

impl<V: Operable> AtHand<'_, V> {
    fn carry_out<T>(
        &self,
        verb: Verb,
        work: impl FnOnce(&mut RunState, &mut dyn Backend<Error = V::Error>) -> Result<T, OperationError<V::Error>>,
    ) -> Result<T, Failure> {
        self.vm.work(&self.ready, Some(verb), self.now.as_ref(), work)?.map_err(failure)
    }
}

impl<V: Operable> Verbs for AtHand<'_, V> {
    fn opt_in(&self, offset: Option<Offset>) -> Result<(), Failure> {
        self.carry_out(Verb::OptIn, |run_state, vm| run_state.opt_in(vm, offset))
    }

    fn checkpoint(&self, saving: &Saving) -> Result<Checkpoint, Failure> {
        self.carry_out(Verb::Checkpoint, |run_state, vm| run_state.checkpoint(vm, saving))
    }

    fn plan(&self, checkpoint: &Checkpoint, request: Request) -> Result<Plan, Failure> {
        self.carry_out(Verb::Plan, |run_state, vm| run_state.plan(vm, checkpoint, request))
    }

    fn prepare(&self, plan: Plan, checkpoint: Arc<Checkpoint>) -> Result<OpenRestore, Failure> {
        self.carry_out(Verb::Prepare, |run_state, vm| run_state.prepare(vm, plan, checkpoint))
    }

    fn close(&self, plan: Plan, checkpoint: Arc<Checkpoint>) -> Result<OpenRestore, Failure> {
        self.carry_out(Verb::Prepare, |run_state, vm| run_state.close_for_restore(vm, plan, checkpoint))
    }

    fn begin(&self, open: &mut OpenRestore) -> Result<(), Failure> {
        self.carry_out(Verb::Prepare, |run_state, vm| run_state.begin(vm, open))
    }

    fn apply(&self, open: &mut OpenRestore) -> Result<(), Failure> {
        self.carry_out(Verb::Apply, |run_state, vm| run_state.apply(vm, open))
    }

    fn release(&self, open: &mut OpenRestore, at: Option<Stamp>) -> Result<Report, Failure> {
        self.carry_out(Verb::Release, |run_state, vm| run_state.release(vm, open, at))
    }

    fn give_up(&self, open: &mut OpenRestore) -> Result<Condition, Failure> {
        self.carry_out(Verb::GiveUp, |run_state, vm| run_state.give_up(vm, open))
    }

    fn pause(&self, request: Request) -> Result<OpenPause, Failure> {
        self.carry_out(Verb::Pause, |run_state, vm| run_state.pause(vm, request))
    }

    fn cancel(&self, pause: &OpenPause) -> Result<(), Failure> {
        self.carry_out(Verb::GiveUp, |run_state, _| {
            run_state.cancel_pause(pause);
            Ok(())
        })
    }

    fn resume(&self, pause: &OpenPause, policy: Option<Policy>) -> Result<Report, Failure> {
        let policy = policy.unwrap_or_else(|| pause.policy());
        self.carry_out(Verb::Resume, |run_state, vm| run_state.resume(vm, pause, policy))
    }

    fn step(&self, step: Step) -> Result<u64, Failure> {
        self.carry_out(Verb::CatchUp, |run_state, vm| run_state.step(vm, step))
    }

    fn verify(&self, expected: Expected<'_>) -> Result<Verified, Failure> {
        self.carry_out(Verb::Verify, |run_state, vm| run_state.verify(vm, expected))
    }
}

/// A VM of any kind.
pub(crate) trait AnyVm: Handle {
    /// Takes what the VM's verbs need of the interpreter, for the counter's present or for `now`.
    fn at_hand(&self, py: Python<'_>, now: Option<Now>) -> PyResult<Box<dyn Verbs + '_>>;
}

impl<V: Operable> AnyVm for V {
    fn at_hand(&self, py: Python<'_>, now: Option<Now>) -> PyResult<Box<dyn Verbs + '_>> {
        let ready = self.ready(py, now.as_ref())?;
        Ok(Box::new(AtHand { vm: self, ready, now }))
    }
}

/// Carries a verb out without the interpreter's lock.
pub(crate) fn run<T: Send>(
    py: Python<'_>,
    vm: &SharedVm,
    now: Option<Now>,
    verb: impl FnOnce(&dyn Verbs) -> Result<T, Failure> + Send,
) -> PyResult<T> {
    let vm = vm.at_hand(py, now)?;
    detached(py, move || verb(&*vm)).map_err(|failure| failure())
}

/// A VM of any kind, shared.
pub(crate) type SharedVm = Arc<dyn AnyVm>;
