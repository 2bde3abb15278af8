//! Sets of a bank's VMs: paused, and what became of a set that was restored or went on.

use crate::arrays::{Named, as_array, new_array};
use crate::counters::AnyCounter;
use crate::errors::{IntoPyErr, OrRaise, misuse, noted, warn_closed};
use crate::policy::AnyPolicy;
use crate::records::{self, AnyNow};
use crate::restore::describe;
use guestclock_core::drive::OperationError;
use guestclock_core::restore::{Behind, Diagnostic, Plan};
use guestclock_core::time::{Counter, Frequency};
use guestclock_model::error::VmError;
use guestclock_model::locked::LockedBank;
use guestclock_model::managed::ManagedBank;
use guestclock_model::sets::{OpenPauses, SetError, SetReport};
use numpy::PyArray1;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::{PyDict, PyList};
use std::sync::{Arc, Mutex, PoisonError};

/// A bank and its counter, for what is done to sets of its VMs.
pub(crate) struct Sets {
    pub(crate) bank: Arc<LockedBank>,
    pub(crate) counter: AnyCounter,
}

impl Sets {
    /// Works on the bank over its counter, or over one instant of it, without the GIL.
    pub(crate) fn with<T: Send>(
        &self,
        py: Python<'_>,
        now: Option<AnyNow>,
        work: impl FnOnce(&mut ManagedBank, &dyn Counter) -> Result<T, SetError> + Send,
    ) -> PyResult<T> {
        let now = now.map(|now| now.0);
        let _sample = self.counter.stamped(py, now.as_ref())?;
        let instant = now.map(|now| now.instant::<VmError>(&self.counter)).transpose().or_raise()?;
        let done = py.detach(|| match instant {
            None => self.bank.with(|bank| work(bank, &self.counter)),
            Some(instant) => self.bank.with(|bank| work(bank, &instant)),
        });
        done.or_raise()
    }
}

/// What became of a set of VMs that were restored or went on together: columns, a row each VM.
#[pyclass(frozen, name = "SetReport", module = "guestclock")]
pub(crate) struct PySetReport(SetReport);

impl PySetReport {
    pub(crate) const fn new(report: SetReport) -> Self {
        Self(report)
    }

    fn of_plans<'py, T: Named>(&self, py: Python<'py>, value: impl Fn(&Plan) -> T) -> Bound<'py, PyArray1<T>> {
        let values: Vec<T> = self.0.plans.iter().map(value).collect();
        new_array(py, self.0.plan_of.iter().map(|plan| values[*plan as usize]))
    }

    fn of_behind<'py>(
        &self,
        py: Python<'py>,
        value: impl Fn(&Behind, Frequency) -> u64,
    ) -> Option<Bound<'py, PyArray1<u64>>> {
        let of = |plan: &Plan| plan.as_of.behind.map(|behind| value(&behind, plan.frequency()));
        self.0
            .plans
            .iter()
            .all(|plan| plan.as_of.behind.is_some())
            .then(|| self.of_plans(py, |plan| of(plan).unwrap_or(0)))
    }

    fn each_once(&self, of: impl Fn(&Plan) -> &Vec<Diagnostic>) -> Vec<Diagnostic> {
        let mut all: Vec<Diagnostic> = Vec::new();
        for diagnostic in self.0.plans.iter().flat_map(of) {
            if !all.contains(diagnostic) {
                all.push(diagnostic.clone());
            }
        }
        all
    }
}

#[pymethods]
impl PySetReport {
    /// The count of the bank's counter that all guests' counters were set for.
    #[getter]
    fn count(&self) -> u64 {
        self.0.count.0
    }

    /// The VMs' handles (int64).
    #[getter]
    fn vms<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        as_array(py, self.0.vms.iter().copied())
    }

    /// The virtual counter of each then (uint64); of a nested guest, without CNTVOFF_EL2.
    #[getter]
    fn cntvct<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
        PyArray1::from_slice(py, &self.0.cntvct)
    }

    /// The physical counter of each then (uint64).
    #[getter]
    fn cntpct<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
        PyArray1::from_slice(py, &self.0.cntpct)
    }

    /// The guest time that was added to each, in ticks of its counters, modulo 2^64 (uint64).
    #[getter]
    fn added_ticks<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
        PyArray1::from_slice(py, &self.0.added_ticks)
    }

    /// The farthest that each one's counters can be from what the policy promises, in ticks (uint64).
    #[getter]
    fn error_bound_ticks<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
        self.of_plans(py, |plan| plan.as_of.bound.ticks(plan.frequency()))
    }

    /// Which of `plans` is each one's (int64).
    #[getter]
    fn plan_of<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        new_array(py, self.0.plan_of.iter().map(|plan| i64::from(*plan)))
    }

    /// What was planned, once for all VMs that are alike: dicts as `Plan.to_dict` gives, about the first of them.
    #[getter]
    fn plans<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let plans: Vec<Bound<'py, PyDict>> =
            self.0.plans.iter().map(|plan| describe(py, plan)).collect::<PyResult<_>>()?;
        PyList::new(py, plans)
    }

    /// Time by which each guest's wall clock falls behind, in nanoseconds (uint64): what it has missed and isn't given at
    /// once. None where nobody knows it of one of them.
    #[getter]
    fn behind_ns<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyArray1<u64>>> {
        self.of_behind(py, Behind::ns)
    }

    /// Largest error of each of `behind_ns`, in nanoseconds (uint64); None where `behind_ns` is.
    #[getter]
    fn behind_error_ns<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyArray1<u64>>> {
        self.of_behind(py, Behind::error_ns)
    }

    /// Warnings of the plans, each once: a list of `Diagnostic`.
    #[getter]
    fn warnings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        records::diagnostics(py, &self.each_once(|plan| &plan.warnings), false)
    }

    /// Assumptions that the error bounds hold under, each once: a list of `Diagnostic`, proved or assumed.
    #[getter]
    fn assumptions<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        records::diagnostics(py, &self.each_once(|plan| &plan.assumptions), true)
    }

    /// How many VMs.
    fn __len__(&self) -> usize {
        self.0.vms.len()
    }

    fn __repr__(&self) -> String {
        format!("<SetReport of {} VMs by {} plans>", self.0.vms.len(), self.0.plans.len())
    }
}

enum State {
    Paused(Box<OpenPauses>),
    Done(Py<PySetReport>),
}

/// VMs of a bank that are paused, all from one instant on: what `ClockBank.pause` returns. No vCPU of theirs can run
/// until `resume`, or until the end of a `with` block.
///
/// A pause that is dropped leaves the VMs closed, with a ResourceWarning: checkpoints can be restored into them.
#[pyclass(frozen, name = "PausedSet", module = "guestclock")]
pub(crate) struct PyPausedSet {
    sets: Sets,
    state: Mutex<State>,
}

impl PyPausedSet {
    pub(crate) fn new(sets: Sets, pauses: OpenPauses) -> Self {
        Self { sets, state: Mutex::new(State::Paused(Box::new(pauses))) }
    }
}

#[pymethods]
impl PyPausedSet {
    /// Ends the pause of all, at one instant: at `now`, or as late as can be. Returns what was done.
    ///
    /// `policy` decides instead of the pause's own. Misuse where it is over already, and where one of them was restored
    /// meanwhile. An error leaves all of them paused: call it again.
    #[pyo3(signature = (policy=None, *, now=None))]
    fn resume(&self, py: Python<'_>, policy: Option<AnyPolicy>, now: Option<AnyNow>) -> PyResult<Py<PySetReport>> {
        let mut state = self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
        let State::Paused(pauses) = &mut *state else {
            return Err(misuse("the pause is over, and its report is at hand (report): pause() again"));
        };
        let own = pauses.policy();
        if let Some(policy) = policy {
            pauses.set_policy(policy.policy());
        }
        let report = self.sets.with(py, now, |bank, counter| bank.resume(pauses, counter));
        pauses.set_policy(own);
        let report = Py::new(py, PySetReport::new(report?))?;
        *state = State::Done(report.clone_ref(py));
        Ok(report)
    }

    /// What was done when the pause ended.
    #[getter]
    fn report(&self, py: Python<'_>) -> PyResult<Py<PySetReport>> {
        match &*self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner) {
            State::Done(report) => Ok(report.clone_ref(py)),
            State::Paused(_) => Err(misuse("the pause isn't over: there is a report after resume()")),
        }
    }

    /// The VMs' handles (int64), in the order of the report.
    #[getter]
    fn vms<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        match &*self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner) {
            State::Paused(pauses) => as_array(py, pauses.vms().iter().copied()),
            State::Done(report) => report.get().vms(py),
        }
    }

    fn __enter__(slf: Py<Self>, py: Python<'_>) -> PyResult<Py<Self>> {
        let over =
            matches!(&*slf.get().state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner), State::Done(_));
        if over { Err(misuse("the pause is over: pause() again")) } else { Ok(slf) }
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _exc_type: &Bound<'_, PyAny>,
        _exc: &Bound<'_, PyAny>,
        _tb: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let over = matches!(&*self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner), State::Done(_));
        if over { Ok(()) } else { self.resume(py, None, None).map(drop) }
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        match &*self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner) {
            State::Paused(pauses) => format!("<PausedSet of {} VMs>", pauses.vms().len()),
            State::Done(_) => String::from("<PausedSet, over>"),
        }
    }
}

impl Drop for PyPausedSet {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let State::Paused(pauses) = state
            && self.sets.bank.holds(pauses)
        {
            let vms: Vec<String> = pauses.vms().iter().take(4).map(|vm| vm.0.to_string()).collect();
            let more = if pauses.vms().len() > 4 { ", ..." } else { "" };
            warn_closed("a pause of a bank's VMs was dropped without resume()", &(vms.join(", ") + more));
        }
    }
}

impl IntoPyErr for SetError {
    #[cold]
    fn into_pyerr(self) -> PyErr {
        let message = self.to_string();
        match self {
            Self::Bank(error) => error.into_pyerr(),
            Self::OfVm { handle, error } => noted(OperationError::into_pyerr(error), handle),
            _ => PyValueError::new_err(message),
        }
    }
}
