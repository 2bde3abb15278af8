//! The pages in a guest's memory, refused: `guestclock-linux` has the stores into memory that isn't Rust's.

use crate::system::{refusing_class, without_linux};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

const WAY_OUT: &str = "a guest of the model reads no pages";

refusing_class! {
    /// A vCPU's stolen-time record: refused with CapabilityMissing.
    PyStolenTime, "StolenTime", "guestclock.guest", WAY_OUT
}

refusing_class! {
    /// An update of a vmclock page: refused with CapabilityMissing.
    PyVmClockUpdate, "VmClockUpdate", "guestclock.guest", WAY_OUT
}

refusing_class! {
    /// A vmclock page: refused with CapabilityMissing.
    PyVmClock, "VmClock", "guestclock.guest", WAY_OUT, {
        #[staticmethod]
        #[pyo3(signature = (*_arguments, **_keywords))]
        fn create(_arguments: &Bound<'_, PyTuple>, _keywords: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
            Err(without_linux("VmClock", WAY_OUT))
        }
    }
}

impl PyVmClock {
    pub(crate) fn stepped<T>(&self, _py: Python<'_>, _change: impl FnOnce() -> PyResult<(T, u64)>) -> PyResult<T> {
        match self.0 {}
    }
}
