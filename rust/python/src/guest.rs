//! The time of a vCPU in its guest, and pauses, for a VM of any kind.

use crate::any_vm::{Failure, SharedVm};
use crate::errors::{block_ended, misuse, warn_closed};
use crate::observe;
use crate::policy::AnyPolicy;
use crate::process::{detached, locked};
use crate::report::PyReport;
use crate::system::monotonic_ns;
use guestclock_core::drive::OpenPause;
use guestclock_core::restore::Report;
use pyo3::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

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
        exc: &Bound<'_, PyAny>,
        _tb: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        block_ended(self.vm.exit(py, self.vcpu), exc)
    }
}

pub(crate) enum State {
    Paused(Box<OpenPause>),
    Over(Py<PyReport>),
    Cancelled,
}

impl State {
    /// The pause, if it isn't over.
    pub(crate) fn paused(&self) -> Option<&OpenPause> {
        match self {
            Self::Paused(pause) => Some(pause),
            Self::Over(_) | Self::Cancelled => None,
        }
    }

    /// Takes note of the end.
    pub(crate) fn took(&mut self, py: Python<'_>, report: Report) -> PyResult<Py<PyReport>> {
        let report = Py::new(py, PyReport::in_place(report))?;
        *self = Self::Over(report.clone_ref(py));
        Ok(report)
    }
}

/// Misuse of a pause that is over.
pub(crate) fn is_over() -> Failure {
    Box::new(|| misuse("the pause is over, and its report is at hand (report): pause() again"))
}

/// A pause in place: what `pause` of a VM returns. No vCPU can run until `resume`, or until the end of a `with` block.
///
/// A pause that is dropped leaves the VM closed, with a ResourceWarning: a checkpoint can be restored into it.
#[pyclass(frozen, name = "Pause", module = "guestclock.types")]
pub(crate) struct PyPause {
    pub(crate) vm: SharedVm,
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

    pub(crate) fn lock(&self, py: Python<'_>) -> MutexGuard<'_, State> {
        locked(py, &self.state)
    }

    /// Tells whoever watches of the end, or of a failure. Called without the lock, since it may run Python code.
    pub(crate) fn watched(&self, py: Python<'_>, resumed: PyResult<Py<PyReport>>) -> PyResult<Py<PyReport>> {
        match &resumed {
            Ok(report) => {
                observe::done(
                    py,
                    &self.vm,
                    "pause",
                    report.bind(py).as_any(),
                    monotonic_ns().saturating_sub(self.closed_at_ns),
                );
            }
            Err(error) => observe::failed(py, &self.vm, "pause", error),
        }
        resumed
    }

    fn is_over(&self, py: Python<'_>) -> bool {
        self.lock(py).paused().is_none()
    }
}

#[pymethods]
impl PyPause {
    /// Ends the pause under its policy, or under `policy` instead. The guest may run when it returns.
    ///
    /// An error leaves the VM paused: call it again. Misuse where it is over already, or a restore came after it.
    #[pyo3(signature = (policy=None))]
    fn resume(&self, py: Python<'_>, policy: Option<AnyPolicy>) -> PyResult<Py<PyReport>> {
        if self.is_over(py) {
            return Err(is_over()());
        }
        let policy = policy.map(AnyPolicy::policy);
        let resume = || {
            // Before the lock, since it may run Python code of a counter.
            let vm = self.vm.at_hand(py, None)?;
            let mut state = self.lock(py);
            let resumed = {
                let pause = state.paused().ok_or_else(|| is_over()())?;
                detached(py, move || vm.resume(pause, policy))
            };
            resumed.map_err(|failure| failure()).and_then(|report| state.took(py, report))
        };
        self.watched(py, resume())
    }

    /// The report of the pause's end. Misuse before it.
    #[getter]
    fn report(&self, py: Python<'_>) -> PyResult<Py<PyReport>> {
        match &*self.lock(py) {
            State::Over(report) => Ok(report.clone_ref(py)),
            _ => Err(misuse("the pause wasn't resumed: there is a report after resume()")),
        }
    }

    fn __enter__(slf: Py<Self>, py: Python<'_>) -> PyResult<Py<Self>> {
        if slf.get().is_over(py) {
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
        exc: &Bound<'_, PyAny>,
        _tb: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        if self.is_over(py) { Ok(()) } else { block_ended(self.resume(py, None).map(drop), exc) }
    }
}

/// Ends a pause as if there had been none: `guestclock.fleet` does so where another VM can't be paused.
#[pyfunction]
pub(crate) fn _cancel(py: Python<'_>, pause: &Bound<'_, PyPause>) -> PyResult<()> {
    let PyPause { vm, state, .. } = pause.get();
    // A VM whose process is gone is in no pause. Before the lock, since it may run Python code of a counter.
    let vm = if vm.is_gone() { None } else { Some(vm.at_hand(py, None)?) };
    let mut state = locked(py, state);
    let Some(open) = state.paused() else { return Ok(()) };
    if let Some(vm) = vm {
        detached(py, move || vm.cancel(open)).map_err(|failure| failure())?;
    }
    *state = State::Cancelled;
    Ok(())
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
