//! A VM on KVM, refused.

use crate::system::without_linux;
use crate::verbs::PyGuestVm;
use crate::vm::Model;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::sync::Arc;

/// The clocks of a VM on KVM: refused with CapabilityMissing.
#[pyclass(frozen, extends = PyGuestVm, name = "KvmVm", module = "guestclock")]
pub(crate) struct PyKvmVm {
    /// No `KvmVm` is ever made here. A trace and faults stand around a VM of a type, and this is the one that there is.
    pub(crate) kvm: Arc<Model>,
}

#[pymethods]
impl PyKvmVm {
    #[new]
    #[pyo3(signature = (*_arguments, **_keywords))]
    fn new(
        _arguments: &Bound<'_, PyTuple>,
        _keywords: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyClassInitializer<Self>> {
        Err(without_linux("KvmVm", "`ModelVm` models it anywhere"))
    }
}
