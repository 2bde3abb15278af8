//! The counters of the host's own clocks, refused: nobody has seen another system's.

use crate::system::refusing_class;
use crate::words::said;
use guestclock_core::time::{Counter, Frequency, HostCount, NamespaceTicks, Stamp};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

fn way_out() -> &'static str {
    said(
        "give a VM of the model counter=ManualCounter(), or any object with frequency_hz, read() and stamp()",
        "say what has passed with --elapsed",
    )
}

refusing_class! {
    /// The counter of this host: refused with CapabilityMissing.
    PyHostCounter, "HostCounter", "guestclock", way_out()
}

refusing_class! {
    /// CLOCK_MONOTONIC in ticks: refused with CapabilityMissing.
    PyMonotonicCounter, "MonotonicCounter", "guestclock", way_out()
}

/// A counter of this host's own: there is none.
#[derive(Clone)]
pub(crate) enum OwnCounter {}

impl OwnCounter {
    pub(crate) fn of(_object: &Bound<'_, PyAny>) -> Option<Self> {
        None
    }

    pub(crate) fn ask(&self, _py: Python<'_>) -> PyResult<()> {
        match *self {}
    }
}

impl Counter for OwnCounter {
    fn frequency(&self) -> Frequency {
        match *self {}
    }

    fn count(&self) -> HostCount {
        match *self {}
    }

    fn stamp(&self) -> Stamp {
        match *self {}
    }

    fn namespace_ticks(&self) -> NamespaceTicks {
        match *self {}
    }
}
