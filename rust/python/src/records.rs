//! The small records of `guestclock.types`.

use guestclock_core::bank::NO_DEADLINE;
use guestclock_core::counter::CrossTimestamp;
use guestclock_core::timer::CTL_ISTATUS;
use guestclock_core::vm::TimerState;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// A class of `guestclock.types`, looked up once.
struct Class(&'static str, PyOnceLock<Py<PyAny>>);

impl Class {
    const fn new(name: &'static str) -> Self {
        Self(name, PyOnceLock::new())
    }

    fn get<'a, 'py>(&'a self, py: Python<'py>) -> PyResult<&'a Bound<'py, PyAny>> {
        self.1.import(py, "guestclock.types", self.0)
    }
}

static CROSS_TIMESTAMP: Class = Class::new("CrossTimestamp");
static TIMER_STATE: Class = Class::new("TimerState");
static SUPPORT: Class = Class::new("Support");
static CAPABILITIES: Class = Class::new("Capabilities");

/// `types.CrossTimestamp`.
pub(crate) fn cross_timestamp<'py>(py: Python<'py>, here: &CrossTimestamp) -> PyResult<Bound<'py, PyAny>> {
    let hex = |id: Option<[u8; 16]>| id.map(|id| format!("{:032x}", u128::from_be_bytes(id)));
    CROSS_TIMESTAMP.get(py)?.call1((
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
    TIMER_STATE.get(py)?.call1((
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
    SUPPORT.get(py)?.call1((ok, reason))
}

/// `types.Capabilities`, its fields in order.
pub(crate) fn capabilities<'py>(py: Python<'py>, fields: [Bound<'py, PyAny>; 5]) -> PyResult<Bound<'py, PyAny>> {
    CAPABILITIES.get(py)?.call1(pyo3::types::PyTuple::new(py, fields)?)
}
