//! A VM whose calls are recorded.

use crate::alarms::Alarms;
use crate::any_vm::{Operable, SharedVm};
use crate::arguments::int;
use crate::around::{AroundVm, lock};
use crate::kvm::PyKvmVm;
use crate::records;
use crate::system::monotonic_ns;
use crate::verbs::PyGuestVm;
use crate::vm::PyModelVm;
use guestclock_core::drive::{Trace, TracedCall};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use std::sync::{Arc, Mutex};

/// The longest ring: 2^20 calls.
const MOST_CALLS: usize = 1 << 20;

/// A VM whose primitive calls are recorded: what was asked of KVM, or of the model, and what it answered.
///
/// It is a `GuestVm`: `vm` is a `ModelVm` or a `KvmVm`, and its verbs are the same. The record is a ring of the latest
/// `most_calls` (1 to 1 048 576), allocated here: nothing is while calls are made. `vm` itself has no part in it, so
/// that whoever doesn't trace pays nothing.
#[pyclass(frozen, subclass, extends = PyGuestVm, name = "TracedVm", module = "guestclock.testing")]
pub(crate) struct PyTracedVm {
    vm: Py<PyGuestVm>,
    trace: Arc<Mutex<Trace>>,
}

/// A VM that calls can be made on: what a trace, or faults, stand around.
pub(crate) fn kind_of<'a, 'py>(vm: &'a Bound<'py, PyGuestVm>) -> PyResult<Kind<'a, 'py>> {
    if let Ok(model) = vm.cast::<PyModelVm>() {
        return Ok(Kind::Model(model));
    }
    let kvm = vm.cast::<PyKvmVm>().map(Kind::Kvm);
    kvm.map_err(|_| PyTypeError::new_err("it is for a ModelVm or a KvmVm: no other VM makes calls of its own"))
}

/// A kind of VM that has calls.
pub(crate) enum Kind<'a, 'py> {
    Model(&'a Bound<'py, PyModelVm>),
    Kvm(&'a Bound<'py, PyKvmVm>),
}

impl PyTracedVm {
    fn listed<'py>(&self, py: Python<'py>, calls: &[TracedCall]) -> PyResult<Bound<'py, PyList>> {
        let name = self.vm.get().vm.name().as_str();
        let list = PyList::empty(py);
        for call in calls {
            list.append(records::traced_call(py, name, call)?)?;
        }
        Ok(list)
    }

    /// A new ring, and the class around the VM that `shared` makes of it.
    pub(crate) fn around(
        vm: &Bound<'_, PyGuestVm>,
        most_calls: usize,
        shared: impl FnOnce(Arc<Mutex<Trace>>) -> SharedVm,
    ) -> PyResult<PyClassInitializer<Self>> {
        if !(1..=MOST_CALLS).contains(&most_calls) {
            return Err(PyValueError::new_err(format!("most_calls={most_calls}: 1 to {MOST_CALLS}")));
        }
        let trace = Arc::new(Mutex::new(Trace::new(most_calls, monotonic_ns)));
        let base = PyGuestVm::new(shared(Arc::clone(&trace)));
        Ok(PyClassInitializer::from(base).add_subclass(Self { vm: vm.clone().unbind(), trace }))
    }
}

/// The VM with a trace around its calls.
pub(crate) fn traced<V>(vm: Arc<V>, around: Arc<Mutex<Trace>>, alarms: Option<Arc<Alarms>>) -> SharedVm
where
    V: Operable + 'static,
{
    Arc::new(AroundVm { vm, around, alarms })
}

#[pymethods]
impl PyTracedVm {
    #[new]
    #[pyo3(signature = (vm, *, most_calls=4096))]
    fn new(
        vm: &Bound<'_, PyGuestVm>,
        #[pyo3(from_py_with = int)] most_calls: usize,
    ) -> PyResult<PyClassInitializer<Self>> {
        let kind = kind_of(vm)?;
        Self::around(vm, most_calls, |trace| match kind {
            Kind::Model(model) => traced(Arc::clone(&model.get().model), trace, None),
            Kind::Kvm(kvm) => traced(Arc::clone(&kvm.get().kvm), trace, None),
        })
    }

    /// The VM whose calls are recorded.
    #[getter]
    fn vm(&self, py: Python<'_>) -> Py<PyGuestVm> {
        self.vm.clone_ref(py)
    }

    /// The latest calls in their order, failed ones included: a list of `TracedCall`.
    #[getter]
    fn calls<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        // Copied, since building Python objects may run Python code, which may come back to this VM.
        let calls: Vec<_> = lock(&self.trace).calls().copied().collect();
        self.listed(py, &calls)
    }

    /// Number of calls that the ring has no room for any more: the oldest.
    #[getter]
    fn dropped(&self) -> u64 {
        let trace = lock(&self.trace);
        trace.made() - trace.calls().count() as u64
    }

    /// Sums over all calls since the VM was traced, by their kind: a dict of `CallTotals`. They only grow.
    #[getter]
    fn totals<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let totals: Vec<_> = lock(&self.trace).totals().collect();
        let by_kind = PyDict::new(py);
        for (name, totals) in totals {
            by_kind.set_item(name, records::call_totals(py, totals)?)?;
        }
        Ok(by_kind)
    }

    /// Takes the calls out of the ring: those since it was last emptied, as far as it has room for them.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let calls: Vec<_> = {
            let mut trace = lock(&self.trace);
            let calls = trace.calls().copied().collect();
            trace.clear();
            calls
        };
        self.listed(py, &calls)
    }

    /// Forgets all calls. Their totals stay.
    fn clear(&self) {
        lock(&self.trace).clear();
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let made = lock(&self.trace).made();
        Ok(format!("<TracedVm of {}, {made} calls>", self.vm.bind(py).repr()?))
    }
}
