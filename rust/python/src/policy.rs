//! Policies.

use crate::words;
use guestclock_core::restore::{Policy, Words};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// The guest sees nothing of the time it didn't run: its counters go on from where they stopped. The default.
#[pyclass(frozen, eq, hash, name = "Freeze", module = "guestclock")]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct PyFreeze;

#[pymethods]
impl PyFreeze {
    #[new]
    fn new() -> Self {
        Self
    }

    /// "freeze".
    #[getter]
    fn name(&self) -> &'static str {
        "freeze"
    }

    fn __repr__(&self) -> String {
        words::Python.policy(&Policy::Freeze)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> (Bound<'py, PyAny>, Bound<'py, PyTuple>) {
        (slf.get_type().into_any(), PyTuple::empty(slf.py()))
    }
}

/// The guest sees the time it didn't run, all of it or at most `max_ns` nanoseconds.
#[pyclass(frozen, eq, hash, name = "Advance", module = "guestclock")]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct PyAdvance {
    /// The most guest time that is added, in nanoseconds; None for all.
    #[pyo3(get)]
    max_ns: Option<u64>,
}

#[pymethods]
impl PyAdvance {
    #[new]
    #[pyo3(signature = (max_ns=None))]
    fn new(max_ns: Option<u64>) -> Self {
        Self { max_ns }
    }

    /// "advance".
    #[getter]
    fn name(&self) -> &'static str {
        "advance"
    }

    fn __repr__(&self) -> String {
        words::Python.policy(&Policy::Advance { max_ns: self.max_ns })
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> (Bound<'py, PyAny>, (Option<u64>,)) {
        (slf.get_type().into_any(), (slf.get().max_ns,))
    }
}

/// The guest sees the time it didn't run later, all of it: its counters go on from where they stopped, and go forward
/// by at most `step_ns` every `interval_ns` or more, until they have caught up (`vm.catch_up()`).
///
/// The plan is refused where that takes longer than `deadline_ns` (DeadlineMissed), and where the VM's counters can
/// only be set by value (CapabilityMissing). All three are in nanoseconds; `step_ns` and `interval_ns` are at least 1,
/// else ValueError.
#[pyclass(frozen, eq, hash, name = "CatchUp", module = "guestclock")]
#[derive(Clone, PartialEq, Eq, Hash)]
#[expect(clippy::struct_field_names, reason = "the attributes' names end in their unit")]
pub(crate) struct PyCatchUp {
    /// The most that one step makes up, in nanoseconds.
    #[pyo3(get)]
    step_ns: u64,
    /// The least time between two steps, in nanoseconds.
    #[pyo3(get)]
    interval_ns: u64,
    /// The longest that all steps may take, in nanoseconds; None for as long as they take.
    #[pyo3(get)]
    deadline_ns: Option<u64>,
}

impl PyCatchUp {
    fn policy(&self) -> Policy {
        Policy::CatchUp { step_ns: self.step_ns, interval_ns: self.interval_ns, deadline_ns: self.deadline_ns }
    }
}

#[pymethods]
impl PyCatchUp {
    #[new]
    #[pyo3(signature = (step_ns, interval_ns, deadline_ns=None))]
    fn new(step_ns: u64, interval_ns: u64, deadline_ns: Option<u64>) -> PyResult<Self> {
        if step_ns == 0 || interval_ns == 0 {
            return Err(PyValueError::new_err("step_ns and interval_ns must be at least 1"));
        }
        Ok(Self { step_ns, interval_ns, deadline_ns })
    }

    /// "catch-up".
    #[getter]
    fn name(&self) -> &'static str {
        "catch-up"
    }

    fn __repr__(&self) -> String {
        words::Python.policy(&self.policy())
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> (Bound<'py, PyAny>, (u64, u64, Option<u64>)) {
        let this = slf.get();
        (slf.get_type().into_any(), (this.step_ns, this.interval_ns, this.deadline_ns))
    }
}

/// A policy as an argument.
#[derive(FromPyObject)]
pub(crate) enum AnyPolicy {
    /// `Freeze()`.
    #[expect(dead_code, reason = "its type says it all")]
    Freeze(Py<PyFreeze>),
    /// `Advance(...)`.
    Advance(Py<PyAdvance>),
    /// `CatchUp(...)`.
    CatchUp(Py<PyCatchUp>),
}

impl AnyPolicy {
    /// The core's policy.
    pub(crate) fn policy(&self) -> Policy {
        match self {
            Self::Freeze(_) => Policy::Freeze,
            Self::Advance(advance) => Policy::Advance { max_ns: advance.get().max_ns },
            Self::CatchUp(catch_up) => catch_up.get().policy(),
        }
    }
}

/// The core's policy as an object.
pub(crate) fn to_python(py: Python<'_>, policy: Policy) -> PyResult<Bound<'_, PyAny>> {
    Ok(match policy {
        Policy::Freeze => Bound::new(py, PyFreeze)?.into_any(),
        Policy::Advance { max_ns } => Bound::new(py, PyAdvance { max_ns })?.into_any(),
        Policy::CatchUp { step_ns, interval_ns, deadline_ns } => {
            Bound::new(py, PyCatchUp { step_ns, interval_ns, deadline_ns })?.into_any()
        }
    })
}
