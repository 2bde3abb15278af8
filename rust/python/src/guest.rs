//! The time of a vCPU in its guest, and pauses, for a VM of any kind.

use crate::any_vm::AnyVm;
use crate::policy::AnyPolicy;
use crate::restore::{PyReport, Wishes};
use guestclock_core::drive::OpenPause;
use guestclock_core::restore::Request;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use std::sync::{Mutex, PoisonError};

/// The time that a vCPU spends in its guest.
#[pyclass(frozen, name = "Running", module = "guestclock")]
pub(crate) struct PyRunning {
    vm: AnyVm,
    vcpu: usize,
}

impl PyRunning {
    pub(crate) fn new(vm: AnyVm, vcpu: usize) -> Self {
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

/// A pause in place, as `paused` returns it.
#[pyclass(frozen, name = "Paused", module = "guestclock")]
pub(crate) struct PyPaused {
    vm: AnyVm,
    request: Request,
    /// Waited for as a restore's lock is (`restore.rs`).
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
    /// The report of the pause's end.
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
