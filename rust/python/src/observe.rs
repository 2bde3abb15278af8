//! Reports of restores and pauses to whoever watches: Python's logger, and the monitors of `guestclock.tracing`.
//!
//! A restore that nobody watches pays one atomic load, and the logger's answer whether it is on.

use crate::any_vm::SharedVm;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// True while there is a monitor. Read without an order: a monitor is told of what ends after it was made, and whether
/// a restore of another thread ends before or after that, nobody can tell.
static MONITORED: AtomicBool = AtomicBool::new(false);

/// Python's levels (logging, "Logging Levels").
const INFO: u8 = 20;
const WARNING: u8 = 30;

/// Number that a VM has for as long as it lives, and every object around it too.
pub(crate) fn identity(vm: &SharedVm) -> usize {
    Arc::as_ptr(vm).cast::<()>().addr()
}

/// Says whether there is a monitor.
#[pyfunction]
pub(crate) fn _monitored(on: bool) {
    MONITORED.store(on, Ordering::Relaxed);
}

/// Tells of a restore or a pause that has ended: `closed_ns` is how long the VM was closed.
pub(crate) fn done(py: Python<'_>, vm: &SharedVm, verb: &'static str, report: &Bound<'_, PyAny>, closed_ns: u64) {
    if watched(py, INFO) {
        let name = vm.name().as_str();
        tell(py, "_done", (identity(vm), name, verb, report, closed_ns));
    }
}

/// Tells of a step that was refused, or that failed.
#[cold]
pub(crate) fn failed(py: Python<'_>, vm: &SharedVm, verb: &'static str, error: &PyErr) {
    if watched(py, WARNING) {
        let name = vm.name().as_str();
        tell(py, "_failed", (identity(vm), name, verb, error.value(py)));
    }
}

fn watched(py: Python<'_>, level: u8) -> bool {
    MONITORED.load(Ordering::Relaxed) || logs(py, level)
}

/// Returns whether the logger "guestclock" takes a record of this level. A process that never imported `logging` has set
/// nothing up.
fn logs(py: Python<'_>, level: u8) -> bool {
    static LOGGER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let logger = || {
        let modules = py.import(intern!(py, "sys"))?.getattr(intern!(py, "modules"))?;
        let logging = modules.get_item(intern!(py, "logging"))?;
        PyResult::Ok(logging.call_method1(intern!(py, "getLogger"), (intern!(py, "guestclock"),))?.unbind())
    };
    let Ok(logger) = LOGGER.get_or_try_init(py, logger) else { return false };
    let asked = logger.bind(py).call_method1(intern!(py, "isEnabledFor"), (level,));
    asked.and_then(|on| on.is_truthy()).unwrap_or(false)
}

/// Calls a function of `guestclock.tracing`. An error of its own is shown, and changes nothing of the restore.
fn tell<'py>(py: Python<'py>, function: &str, arguments: impl pyo3::call::PyCallArgs<'py>) {
    let told = py.import(intern!(py, "guestclock.tracing")).and_then(|module| {
        let function = module.getattr(function)?;
        function.call1(arguments)
    });
    if let Err(error) = told {
        error.write_unraisable(py, None);
    }
}
