//! The small records of `guestclock.types`.

use guestclock_core::bank::NO_DEADLINE;
use guestclock_core::counter::CrossTimestamp;
use guestclock_core::timer::CTL_ISTATUS;
use guestclock_core::vm::TimerState;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    static TYPES: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    TYPES.get_or_try_init(py, || PyModule::import(py, "guestclock.types").map(Bound::unbind))?.bind(py).getattr(name)
}

/// `types.CrossTimestamp`.
pub(crate) fn cross_timestamp<'py>(py: Python<'py>, here: &CrossTimestamp) -> PyResult<Bound<'py, PyAny>> {
    let hex = |id: Option<[u8; 16]>| id.map(|id| format!("{:032x}", u128::from_be_bytes(id)));
    class(py, "CrossTimestamp")?.call1((
        here.count.0,
        here.frequency.hz(),
        &here.source,
        here.realtime_ns,
        here.width_ns,
        here.tai_offset_s,
        here.synchronized,
        here.max_error_ns,
        here.leap.name(),
        hex(here.machine_id),
        hex(here.boot_id),
    ))
}

/// `types.TimerState`.
pub(crate) fn timer_state(py: Python<'_>, state: TimerState) -> PyResult<Bound<'_, PyAny>> {
    class(py, "TimerState")?.call1((
        state.ctl,
        state.cval,
        state.tval.cast_signed(),
        state.ctl & CTL_ISTATUS != 0,
        state.line,
        deadline(state.deadline),
    ))
}

/// A deadline, or None for none.
pub(crate) fn deadline(count: u64) -> Option<u64> {
    (count != NO_DEADLINE).then_some(count)
}

/// `types.Support`.
pub(crate) fn support<'py>(py: Python<'py>, ok: Option<bool>, reason: &str) -> PyResult<Bound<'py, PyAny>> {
    class(py, "Support")?.call1((ok, reason))
}

/// `types.Capabilities`, its fields in order.
pub(crate) fn capabilities<'py>(py: Python<'py>, fields: [Bound<'py, PyAny>; 4]) -> PyResult<Bound<'py, PyAny>> {
    class(py, "Capabilities")?.call1(pyo3::types::PyTuple::new(py, fields)?)
}
