//! What the VMs share, of the model, on KVM and under faults: the time in a guest, pauses, and the steps of a restore.

use crate::errors::OrRaise;
use crate::faulty::PyFaultyVm;
use crate::kvm::PyKvmVm;
use crate::policy::AnyPolicy;
use crate::restore::{PyReport, Wishes};
use crate::vm::PyVm;
use guestclock_core::checkpoint::Checkpoint;
use guestclock_core::counter::Counter;
use guestclock_core::gate::{GateError, OpenPause, OpenRestore, Step};
use guestclock_core::live::Now;
use guestclock_core::plan::{Plan, Request};
use guestclock_core::restore::Report;
use guestclock_linux::counter::HostCounter;
use guestclock_linux::kvm::error::KvmError;
use guestclock_linux::kvm::fds::Fds;
use guestclock_linux::kvm::vm::KvmVm;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use std::sync::{Arc, Mutex, PoisonError};

/// A VM of any kind.
#[derive(FromPyObject)]
pub(crate) enum AnyVm {
    /// The model.
    Model(Py<PyVm>),
    /// KVM's.
    Kvm(Py<PyKvmVm>),
    /// The model under faults.
    Faulty(Py<PyFaultyVm>),
}

/// Works on a VM on KVM, where no other time than now is to be had.
fn on_kvm<T: Send>(
    vm: &Py<PyKvmVm>,
    py: Python<'_>,
    now: Option<Now>,
    work: impl FnOnce(&KvmVm<HostCounter>, &Fds<'_>) -> Result<T, GateError<KvmError>> + Send,
) -> PyResult<T> {
    match now {
        None => vm.get().with(py, work),
        Some(_) => Err(PyValueError::new_err("now= is for the model: KVM's time is the host's, and now")),
    }
}

impl AnyVm {
    pub(crate) fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            Self::Model(vm) => Self::Model(vm.clone_ref(py)),
            Self::Kvm(vm) => Self::Kvm(vm.clone_ref(py)),
            Self::Faulty(vm) => Self::Faulty(vm.clone_ref(py)),
        }
    }

    pub(crate) fn plan(
        &self,
        py: Python<'_>,
        checkpoint: &Checkpoint,
        request: Request,
        now: Option<Now>,
    ) -> PyResult<Plan> {
        match self {
            Self::Model(vm) => vm.get().live.plan(checkpoint, request, now).or_raise(),
            Self::Kvm(vm) => on_kvm(vm, py, now, |vm, fds| vm.plan(fds, checkpoint, request)),
            Self::Faulty(vm) => vm.get().plan(checkpoint, request, now),
        }
    }

    pub(crate) fn prepare(
        &self,
        py: Python<'_>,
        plan: Plan,
        checkpoint: Arc<Checkpoint>,
        now: Option<Now>,
    ) -> PyResult<OpenRestore> {
        match self {
            Self::Model(vm) => vm.get().live.prepare(plan, checkpoint, now).or_raise(),
            Self::Kvm(vm) => on_kvm(vm, py, now, |vm, fds| vm.prepare(fds, plan, checkpoint)),
            Self::Faulty(vm) => vm.get().prepare(plan, checkpoint, now),
        }
    }

    pub(crate) fn apply(&self, py: Python<'_>, open: &mut OpenRestore, now: Option<Now>) -> PyResult<()> {
        match self {
            Self::Model(vm) => vm.get().live.apply(open, now).or_raise(),
            Self::Kvm(vm) => on_kvm(vm, py, now, |vm, fds| vm.apply(fds, open)),
            Self::Faulty(vm) => vm.get().apply(open, now),
        }
    }

    pub(crate) fn release(&self, py: Python<'_>, open: &mut OpenRestore, now: Option<Now>) -> PyResult<Report> {
        match self {
            Self::Model(vm) => vm.get().live.release(open, now).or_raise(),
            Self::Kvm(vm) => on_kvm(vm, py, now, |vm, fds| vm.release(fds, open)),
            Self::Faulty(vm) => vm.get().release(open, now),
        }
    }

    fn pause(&self, py: Python<'_>, request: Request) -> PyResult<OpenPause> {
        match self {
            Self::Model(vm) => vm.get().live.pause(request).or_raise(),
            Self::Kvm(vm) => vm.get().with(py, |vm, fds| vm.pause(fds, request)),
            Self::Faulty(vm) => vm.get().pause(request),
        }
    }

    fn resume(&self, py: Python<'_>, pause: &OpenPause) -> PyResult<Report> {
        match self {
            Self::Model(vm) => vm.get().live.resume(pause).or_raise(),
            Self::Kvm(vm) => vm.get().with(py, |vm, fds| vm.resume(fds, pause)),
            Self::Faulty(vm) => vm.get().resume(pause),
        }
    }

    pub(crate) fn next_step(&self, py: Python<'_>) -> Option<Step> {
        match self {
            Self::Model(vm) => vm.get().live.next_step(),
            Self::Kvm(vm) => vm.get().next_step(py),
            Self::Faulty(vm) => vm.get().model().live.next_step(),
        }
    }

    pub(crate) fn step(&self, py: Python<'_>, now: Option<Now>) -> PyResult<Step> {
        match self {
            Self::Model(vm) => vm.get().live.step(now).or_raise(),
            Self::Kvm(vm) => on_kvm(vm, py, now, |vm, fds| vm.step(fds)),
            Self::Faulty(vm) => vm.get().step_forward(now),
        }
    }

    /// Looks at the VM's counter.
    pub(crate) fn over<T>(&self, look: impl FnOnce(&dyn Counter) -> T) -> T {
        match self {
            Self::Model(vm) => look(vm.get().live.counter()),
            Self::Kvm(vm) => look(vm.get().host()),
            Self::Faulty(vm) => look(vm.get().model().live.counter()),
        }
    }

    fn enter(&self, py: Python<'_>, vcpu: usize) -> PyResult<()> {
        match self {
            Self::Model(vm) => vm.get().live.enter(vcpu).or_raise(),
            Self::Kvm(vm) => vm.get().with(py, |vm, fds| vm.enter(fds, vcpu)),
            Self::Faulty(vm) => vm.get().enter(vcpu),
        }
    }

    fn exit(&self, py: Python<'_>, vcpu: usize) -> PyResult<()> {
        match self {
            Self::Model(vm) => vm.get().live.exit(vcpu).or_raise(),
            Self::Kvm(vm) => {
                vm.get().exit(py, vcpu);
                Ok(())
            }
            Self::Faulty(vm) => vm.get().exit(vcpu),
        }
    }
}

/// The time that a vCPU spends in its guest.
#[pyclass(frozen, name = "Running", module = "guestclock")]
pub(crate) struct PyRunning {
    vm: AnyVm,
    vcpu: usize,
}

impl PyRunning {
    pub(crate) const fn new(vm: AnyVm, vcpu: usize) -> Self {
        Self { vm, vcpu }
    }
}

#[pymethods]
impl PyRunning {
    fn __enter__(&self, py: Python<'_>) -> PyResult<()> {
        self.vm.enter(py, self.vcpu)
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _exc_type: &Bound<'_, PyAny>,
        _exc: &Bound<'_, PyAny>,
        _tb: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.vm.exit(py, self.vcpu)
    }
}

enum PauseState {
    New,
    Paused(Box<OpenPause>),
    Done(Py<PyReport>),
}

/// A pause in place: what `paused` returns.
#[pyclass(frozen, name = "Paused", module = "guestclock")]
pub(crate) struct PyPaused {
    vm: AnyVm,
    request: Request,
    /// Waited for as a restore's is (`restore.rs`).
    state: Mutex<PauseState>,
}

impl PyPaused {
    pub(crate) fn new(vm: AnyVm, policy: Option<AnyPolicy>, views: &str) -> PyResult<Self> {
        let request = Wishes { policy, views, ..Wishes::default() }.request()?;
        Ok(Self { vm, request, state: Mutex::new(PauseState::New) })
    }
}

#[pymethods]
impl PyPaused {
    /// What was done when the pause ended.
    #[getter]
    fn report(&self, py: Python<'_>) -> PyResult<Py<PyReport>> {
        match &*self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner) {
            PauseState::Done(report) => Ok(report.clone_ref(py)),
            _ => Err(PyRuntimeError::new_err("the pause isn't over: there is no report yet")),
        }
    }

    fn __enter__(slf: Py<Self>, py: Python<'_>) -> PyResult<Py<Self>> {
        let this = slf.get();
        let mut state = this.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
        if !matches!(*state, PauseState::New) {
            return Err(PyRuntimeError::new_err("a pause is entered once: call paused() again"));
        }
        *state = PauseState::Paused(Box::new(this.vm.pause(py, this.request)?));
        drop(state);
        Ok(slf)
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _exc_type: &Bound<'_, PyAny>,
        _exc: &Bound<'_, PyAny>,
        _tb: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let mut state = self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
        if let PauseState::Paused(pause) = &*state {
            let report = self.vm.resume(py, pause)?;
            *state = PauseState::Done(Py::new(py, PyReport::in_place(report))?);
        }
        Ok(())
    }
}
