//! Policies.

use guestclock_core::plan::Policy;
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
        Policy::Freeze.to_string()
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
        Policy::Advance { max_ns: self.max_ns }.to_string()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> (Bound<'py, PyAny>, (Option<u64>,)) {
        (slf.get_type().into_any(), (slf.get().max_ns,))
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
}

impl AnyPolicy {
    /// The core's.
    pub(crate) fn policy(&self) -> Policy {
        match self {
            Self::Freeze(_) => Policy::Freeze,
            Self::Advance(advance) => Policy::Advance { max_ns: advance.get().max_ns },
        }
    }
}

/// The core's policy as an object.
pub(crate) fn to_python(py: Python<'_>, policy: Policy) -> PyResult<Bound<'_, PyAny>> {
    Ok(match policy {
        Policy::Freeze => Bound::new(py, PyFreeze)?.into_any(),
        Policy::Advance { max_ns } => Bound::new(py, PyAdvance { max_ns })?.into_any(),
    })
}
