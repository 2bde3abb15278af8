//! The time of a vCPU in its guest, and pauses, for a VM of any kind.

use crate::any_vm::SharedVm;
use crate::errors::{misuse, warn_closed};
use crate::observe;
use crate::policy::AnyPolicy;
use crate::process::locked;
use crate::restore::PyReport;
use guestclock_core::drive::OpenPause;
use guestclock_linux::clock::monotonic_ns;
use pyo3::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// The time that a vCPU spends in its guest.
#[pyclass(frozen, name = "Running", module = "guestclock.types")]
pub(crate) struct PyRunning {
    vm: SharedVm,
    vcpu: usize,
}

impl PyRunning {
    pub(crate) fn new(vm: SharedVm, vcpu: usize) -> Self {
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

enum State {
    Paused(Box<OpenPause>),
    Over(Py<PyReport>),
}

/// A pause in place: what `pause` of a VM returns. No vCPU can run until `resume`, or until the end of a `with` block.
///
/// A pause that is dropped leaves the VM closed, with a ResourceWarning: a checkpoint can be restored into it.
#[pyclass(frozen, name = "Pause", module = "guestclock.types")]
pub(crate) struct PyPause {
    vm: SharedVm,
    /// Waited for as a restore's lock is (`restore.rs`).
    state: Mutex<State>,
    /// Instant at which the VM was closed, in nanoseconds of CLOCK_MONOTONIC.
    closed_at_ns: u64,
    /// True once a `with` block has begun.
    entered: AtomicBool,
}

impl PyPause {
    pub(crate) fn new(vm: SharedVm, pause: OpenPause, closed_at_ns: u64) -> Self {
        let state = Mutex::new(State::Paused(Box::new(pause)));
        Self { vm, state, closed_at_ns, entered: AtomicBool::new(false) }
    }
}

#[pymethods]
impl PyPause {
    /// Ends the pause under its policy, or under `policy` instead. The guest may run when it returns.
    ///
    /// An error leaves the VM paused: call it again. Misuse where it is over already, or a restore came after it.
    #[pyo3(signature = (policy=None))]
    fn resume(&self, py: Python<'_>, policy: Option<AnyPolicy>) -> PyResult<Py<PyReport>> {
        let mut state = locked(py, &self.state);
        let State::Paused(pause) = &mut *state else {
            return Err(misuse("the pause is over, and its report is at hand (report): pause() again"));
        };
        let own = pause.policy();
        if let Some(policy) = policy {
            pause.set_policy(policy.policy());
        }
        let report = self.vm.resume(py, pause);
        pause.set_policy(own);
        let report = match report {
            Ok(report) => report,
            Err(error) => {
                // Whoever watches may run Python code.
                drop(state);
                observe::failed(py, &self.vm, "pause", &error);
                return Err(error);
            }
        };
        let report = Py::new(py, PyReport::in_place(report))?;
        *state = State::Over(report.clone_ref(py));
        drop(state);
        observe::done(py, &self.vm, "pause", &report, monotonic_ns().saturating_sub(self.closed_at_ns));
        Ok(report)
    }

    /// The report of the pause's end. Misuse before it.
    #[getter]
    fn report(&self, py: Python<'_>) -> PyResult<Py<PyReport>> {
        match &*locked(py, &self.state) {
            State::Over(report) => Ok(report.clone_ref(py)),
            State::Paused(_) => Err(misuse("the pause isn't over: there is a report after resume()")),
        }
    }

    fn __enter__(slf: Py<Self>, py: Python<'_>) -> PyResult<Py<Self>> {
        let over = matches!(&*locked(py, &slf.get().state), State::Over(_));
        if over {
            return Err(misuse("the pause is over: pause() again"));
        }
        if slf.get().entered.swap(true, Ordering::Relaxed) {
            return Err(misuse("the pause has a `with` block already, whose end resumes the VM"));
        }
        Ok(slf)
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _exc_type: &Bound<'_, PyAny>,
        _exc: &Bound<'_, PyAny>,
        _tb: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let over = matches!(&*locked(py, &self.state), State::Over(_));
        if over { Ok(()) } else { self.resume(py, None).map(drop) }
    }
}

impl Drop for PyPause {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let State::Paused(pause) = state
            && self.vm.holds(pause)
        {
            warn_closed("a pause was dropped without resume()", self.vm.name().as_str());
        }
    }
}
