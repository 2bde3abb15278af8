//! The deadline alarm, which is a descriptor of Linux's, refused.

use crate::system::refusing_class;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

refusing_class! {
    /// A descriptor for event loops: refused with CapabilityMissing.
    PyDeadlineAlarm, "DeadlineAlarm", "guestclock.model", "ask the source for next_deadline(now), and expire(now) then"
}

#[pyfunction]
pub(crate) fn _claim(alarm: &PyDeadlineAlarm) {
    match alarm.0 {}
}

#[pyfunction]
pub(crate) fn _release(alarm: &PyDeadlineAlarm) {
    match alarm.0 {}
}
