//! A VM around a VM: the same verbs, with something around each primitive call.

use crate::alarms::Alarms;
use crate::any_vm::{Failure, Handle, Operable, failure};
use crate::errors::{IntoPyErr, OrRaise};
use crate::foreign::Sampled;
use crate::process::detached;
use crate::records::AnyCount;
use core::fmt::Display;
use guestclock_core::arch::arm64::{Timer, TimerState, View};
use guestclock_core::checkpoint::VmName;
use guestclock_core::drive::{
    Around, Backend, Errno, OpenPause, OpenRestore, OperationError, Surrounded, Verb, retry_busy,
};
use guestclock_core::restore::{RunState, State, Step};
use guestclock_core::time::{Counter, HostCount, Offset};
use guestclock_model::locked::Now;
use pyo3::prelude::*;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A VM and what stands around its calls, as its verbs hold them.
pub(crate) struct AroundVm<V, W> {
    pub(crate) vm: Arc<V>,
    /// Taken under the VM's lock, and never held while Python code runs.
    pub(crate) around: Arc<Mutex<W>>,
    /// The alarms on a counter that is moved by what stands around.
    pub(crate) alarms: Option<Arc<Alarms>>,
}

/// Whatever stands around the calls, locked.
pub(crate) fn lock<W>(around: &Mutex<W>) -> MutexGuard<'_, W> {
    around.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<V: Operable, W> AroundVm<V, W>
where
    W: Around<V::Error> + Send,
    W::Error: Errno + IntoPyErr + Display + Send + 'static,
{
    /// The VM, for looks that aren't calls on it.
    fn alive(&self) -> PyResult<&V> {
        lock(&self.around).alive().or_raise()?;
        Ok(&self.vm)
    }

    /// Makes a call of the VMM's own.
    fn call<T: Send>(
        &self,
        py: Python<'_>,
        now: Option<HostCount>,
        call: impl FnOnce(&mut dyn Backend<Error = W::Error>) -> Result<T, W::Error> + Send,
    ) -> PyResult<T> {
        let now = now.map(Now::Count);
        let ready = self.ready(py, now.as_ref())?;
        let call = move || self.work(&ready, None, now.as_ref(), |_, vm| call(vm))?.map_err(failure);
        detached(py, call).map_err(|failure| failure())
    }
}

impl<V: Operable, W> Operable for AroundVm<V, W>
where
    W: Around<V::Error> + Send,
    W::Error: Errno + IntoPyErr + Display + Send + 'static,
{
    type Error = W::Error;

    type Ready = V::Ready;

    fn ready(&self, py: Python<'_>, now: Option<&Now>) -> PyResult<V::Ready> {
        self.vm.ready(py, now)
    }

    fn work<T>(
        &self,
        ready: &V::Ready,
        verb: Option<Verb>,
        now: Option<&Now>,
        work: impl FnOnce(&mut RunState, &mut dyn Backend<Error = W::Error>) -> T,
    ) -> Result<T, Failure> {
        let done = self.vm.work(ready, verb, now, |run_state, backend| {
            let around = &mut *lock(&self.around);
            around.begin(verb)?;
            Ok(work(run_state, &mut Surrounded { backend, around }))
        });
        if let Some(alarms) = &self.alarms {
            alarms.ring();
        }
        done?.map_err(|error| failure(OperationError::<W::Error>::Backend(error)))
    }
}

/// Only calls on the VM are surrounded: no counts, timers, deadlines, nor `running`.
impl<V: Operable, W> Handle for AroundVm<V, W>
where
    W: Around<V::Error> + Send,
    W::Error: Errno + IntoPyErr + Display + Send + 'static,
{
    fn name(&self) -> &VmName {
        self.vm.name()
    }

    fn vcpus(&self, py: Python<'_>) -> PyResult<usize> {
        self.vm.vcpus(py)
    }

    fn counter_object(&self, py: Python<'_>) -> Py<PyAny> {
        self.vm.counter_object(py)
    }

    fn counter(&self) -> &dyn Counter {
        self.vm.counter()
    }

    fn ask(&self, py: Python<'_>) -> PyResult<()> {
        self.vm.ask(py)
    }

    fn samples_in_python(&self, now: Option<&Now>) -> bool {
        self.vm.samples_in_python(now)
    }

    fn sampled(&self, py: Python<'_>, now: Option<HostCount>) -> PyResult<Sampled> {
        self.vm.sampled(py, now)
    }

    fn nested(&self, py: Python<'_>) -> PyResult<bool> {
        self.vm.nested(py)
    }

    fn opted_in(&self) -> PyResult<bool> {
        self.vm.opted_in()
    }

    fn state(&self, py: Python<'_>) -> PyResult<State> {
        self.vm.state(py)
    }

    fn capabilities<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.vm.capabilities(py)
    }

    fn set_counter_offset(&self, py: Python<'_>, offset: Offset) -> PyResult<()> {
        self.call(py, None, |vm| retry_busy(vm, |vm| vm.set_counter_offset(offset)))
    }

    fn count(&self, py: Python<'_>, vcpu: usize, view: View, now: Option<AnyCount>) -> PyResult<u64> {
        self.alive()?.count(py, vcpu, view, now)
    }

    fn get_one_reg(&self, py: Python<'_>, vcpu: usize, reg: u64, now: Option<HostCount>) -> PyResult<u64> {
        self.call(py, now, |vm| vm.get_one_reg(vcpu, reg))
    }

    fn set_one_reg(&self, py: Python<'_>, vcpu: usize, reg: u64, value: u64, now: Option<HostCount>) -> PyResult<()> {
        self.call(py, now, |vm| vm.set_one_reg(vcpu, reg, value))
    }

    fn reg_list(&self, py: Python<'_>, vcpu: usize) -> PyResult<Vec<u64>> {
        self.call(py, None, |vm| vm.reg_list(vcpu))
    }

    fn timer(&self, py: Python<'_>, vcpu: usize, timer: Timer, now: Option<HostCount>) -> PyResult<TimerState> {
        self.alive()?.timer(py, vcpu, timer, now)
    }

    fn next_deadline(&self, py: Python<'_>, vcpu: usize, now: Option<HostCount>) -> PyResult<u64> {
        self.alive()?.next_deadline(py, vcpu, now)
    }

    fn enter(&self, py: Python<'_>, vcpu: usize) -> PyResult<()> {
        self.alive()?.enter(py, vcpu)
    }

    /// Works after a crash too: a vCPU isn't in its guest any more when its process is gone.
    fn exit(&self, py: Python<'_>, vcpu: usize) -> PyResult<()> {
        self.vm.exit(py, vcpu)
    }

    fn abandon(&self, open: &OpenRestore) -> bool {
        self.is_gone() || self.vm.abandon(open)
    }

    fn holds(&self, pause: &OpenPause) -> bool {
        !self.is_gone() && self.vm.holds(pause)
    }

    fn next_step(&self, py: Python<'_>) -> PyResult<Option<Step>> {
        self.alive()?.next_step(py)
    }

    fn is_gone(&self) -> bool {
        self.vm.is_gone() || lock(&self.around).alive().is_err()
    }
}
