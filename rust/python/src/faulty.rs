//! A VM under faults.

use crate::arguments::{int, record, shown};
use crate::around::{AroundVm, lock};
use crate::counters::{self, AnyCounter};
use crate::trace::{Kind, PyTracedVm, kind_of, traced};
use crate::verbs::PyGuestVm;
use crate::words;
use guestclock_core::drive::{Fault, Faults, On};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::sync::{Arc, Mutex};

record! {
    /// `testing.Fault` as an argument.
    struct AnyFault: "Fault" {
        on: Option<String>,
        nth: usize,
        times: Option<usize>,
        errno: Option<i32>,
        dropped: bool,
        flipped: u64,
        delay_ticks: u64,
        step_realtime_ns: i64,
        crash: bool,
    }
}

/// The core's fault, checked for a VM over a counter that can be moved, or can't.
fn fault(object: &Bound<'_, PyAny>, movable: bool) -> PyResult<Fault> {
    let AnyFault { on, nth, times, errno, dropped, flipped, delay_ticks, step_realtime_ns, crash } =
        object.extract()?;
    let on = on.map_or(Ok(On::AnyCall), |place| place.parse());
    let fault = on.and_then(|on| {
        Fault { on, nth, times, errno, dropped, flipped, delay_ticks, step_realtime_ns, crash }.check(movable)
    });
    match fault {
        Ok(fault) => Ok(fault),
        Err(error) => Err(PyValueError::new_err(format!("{}: {}", shown(object), words::script_error(error)))),
    }
}

/// A VM whose calls fail, lie, stall, or find the process gone where `faults` say: for testing a VMM, an orchestrator, or
/// anything else that restores VMs.
///
/// It is a `TracedVm`, and `vm` a `ModelVm` or a `KvmVm`: the code that runs is the code that runs on either. `faults` are
/// of `Fault`; ValueError for a fault that makes no sense, and for one that moves time where `vm` isn't over a
/// `ManualCounter`. `busy_retries` is the number of times that set_counter_offset, and the look whether vCPUs run, are
/// repeated after an injected EBUSY: `KvmVm` repeats them for `busy_timeout_ms`.
///
/// After a crash every operation raises Crashed. `vm` can still be looked at.
#[pyclass(frozen, extends = PyTracedVm, name = "FaultyVm", module = "guestclock.testing")]
pub(crate) struct PyFaultyVm {
    faults: Arc<Mutex<Faults>>,
}

#[pymethods]
impl PyFaultyVm {
    #[new]
    #[pyo3(signature = (vm, faults, *, busy_retries=0, most_calls=4096))]
    fn new(
        vm: &Bound<'_, PyGuestVm>,
        faults: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = int)] busy_retries: u32,
        #[pyo3(from_py_with = int)] most_calls: usize,
    ) -> PyResult<PyClassInitializer<Self>> {
        let kind = kind_of(vm)?;
        let host = match &kind {
            Kind::Model(model) => match model.get().model.live.counter() {
                AnyCounter::Manual(counter) => Some(Arc::clone(counter)),
                AnyCounter::Own(_) | AnyCounter::Scaled(_) | AnyCounter::Foreign(_) => None,
            },
            Kind::Kvm(_) => None,
        };
        let script = faults.try_iter()?.map(|object| fault(&object?, host.is_some()));
        let faults = Faults::new(script.collect::<PyResult<_>>()?, host.map(|host| host as _), busy_retries);
        let faults = Arc::new(Mutex::new(faults));
        // Faults may move the counter, and with it its alarms.
        let alarms = counters::alarms(&vm.getattr("counter")?);
        let around = Arc::clone(&faults);
        let base = PyTracedVm::around(vm, most_calls, |trace| match kind {
            Kind::Model(model) => {
                let vm = Arc::new(AroundVm { vm: Arc::clone(&model.get().model), around, alarms: None });
                traced(vm, trace, alarms)
            }
            Kind::Kvm(kvm) => {
                let vm = Arc::new(AroundVm { vm: Arc::clone(&kvm.get().kvm), around, alarms: None });
                traced(vm, trace, alarms)
            }
        })?;
        Ok(base.add_subclass(Self { faults }))
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let gone = if lock(&slf.get().faults).crashed() { ", crashed" } else { "" };
        Ok(format!("<FaultyVm of {}{gone}>", slf.getattr("vm")?.repr()?))
    }
}
