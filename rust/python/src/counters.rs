//! Counters.

use crate::errors::OrRaise;
use crate::records;
use guestclock_core::counter::{Counter, CrossTimestamp, Frequency, HostCount};
use guestclock_core::manual::ManualCounter;
use guestclock_linux::counter::HostCounter;
use guestclock_linux::monotonic::MonotonicCounter;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::sync::Arc;

fn frequency(hz: u64) -> PyResult<Frequency> {
    Frequency::new(hz).ok_or_else(|| PyValueError::new_err("frequency_hz must be at least 1"))
}

/// The counter of this host: CNTVCT_EL0 on arm64, elsewhere CLOCK_MONOTONIC_RAW as a counter of 1 GHz.
///
/// `source` asks for one by name: "cntvct_el0", "clock_monotonic_raw", or "tsc", which is there only where the kernel
/// states its calibration. CapabilityMissing says why one isn't.
#[pyclass(frozen, name = "HostCounter", module = "guestclock")]
pub(crate) struct PyHostCounter(HostCounter);

impl From<HostCounter> for PyHostCounter {
    fn from(counter: HostCounter) -> Self {
        Self(counter)
    }
}

/// CLOCK_MONOTONIC in ticks, rounded down: at the default 62.5 MHz, Unicorn's own clock.
#[pyclass(frozen, name = "MonotonicCounter", module = "guestclock")]
pub(crate) struct PyMonotonicCounter(MonotonicCounter);

/// A counter that moves only when it is told to, with a wall clock that moves along: for tests, simulation, instruction
/// counts and replay.
#[pyclass(frozen, name = "ManualCounter", module = "guestclock")]
pub(crate) struct PyManualCounter(Arc<ManualCounter>);

#[pymethods]
impl PyHostCounter {
    #[new]
    #[pyo3(signature = (*, source="auto"))]
    fn new(source: &str) -> PyResult<Self> {
        HostCounter::new(source.parse().or_raise()?).or_raise().map(Self)
    }

    /// Which counter it is.
    #[getter]
    fn source(&self) -> &'static str {
        self.0.source().name()
    }

    /// Ticks a second.
    #[getter]
    fn frequency_hz(&self) -> u64 {
        self.0.frequency().hz()
    }

    /// The count now.
    fn read(&self) -> u64 {
        self.0.count().0
    }

    /// The count and the wall clock together.
    fn cross_timestamp<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        records::cross_timestamp(py, &self.0.cross_timestamp())
    }

    fn __repr__(&self) -> String {
        format!("HostCounter(source='{}')", self.source())
    }
}

#[pymethods]
impl PyMonotonicCounter {
    #[new]
    #[pyo3(signature = (*, frequency_hz=MonotonicCounter::DEFAULT_FREQUENCY.hz()))]
    fn new(frequency_hz: u64) -> PyResult<Self> {
        Ok(Self(MonotonicCounter::new(frequency(frequency_hz)?)))
    }

    /// "clock_monotonic".
    #[getter]
    fn source(&self) -> &'static str {
        MonotonicCounter::SOURCE
    }

    /// Ticks a second.
    #[getter]
    fn frequency_hz(&self) -> u64 {
        self.0.frequency().hz()
    }

    /// The count now.
    fn read(&self) -> u64 {
        self.0.count().0
    }

    /// The count and the wall clock together.
    fn cross_timestamp<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        records::cross_timestamp(py, &self.0.cross_timestamp())
    }

    fn __repr__(&self) -> String {
        format!("MonotonicCounter(frequency_hz={})", self.frequency_hz())
    }
}

#[pymethods]
impl PyManualCounter {
    #[new]
    #[pyo3(signature = (count=0, *, frequency_hz=MonotonicCounter::DEFAULT_FREQUENCY.hz(), realtime_ns=0))]
    fn new(count: u64, frequency_hz: u64, realtime_ns: i64) -> PyResult<Self> {
        Ok(Self(Arc::new(ManualCounter::new(HostCount(count), frequency(frequency_hz)?, realtime_ns))))
    }

    /// "manual".
    #[getter]
    fn source(&self) -> &'static str {
        ManualCounter::SOURCE
    }

    /// Ticks a second.
    #[getter]
    fn frequency_hz(&self) -> u64 {
        self.0.frequency().hz()
    }

    /// Its wall clock now, in nanoseconds since 1970.
    #[getter]
    fn realtime_ns(&self) -> i64 {
        self.0.realtime_ns(self.0.count())
    }

    /// The count now.
    fn read(&self) -> u64 {
        self.0.count().0
    }

    /// The count and the wall clock together; they belong together exactly.
    fn cross_timestamp<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        records::cross_timestamp(py, &self.0.cross_timestamp())
    }

    /// Moves on by `ticks`, modulo 2^64, and the wall clock with it. Returns the new count.
    fn advance(&self, ticks: u64) -> u64 {
        self.0.advance(ticks).0
    }

    /// Moves back by `ticks`: the one way in which a counter goes backwards. Returns the new count.
    fn rewind(&self, ticks: u64) -> u64 {
        self.0.rewind(ticks).0
    }

    /// Steps the wall clock alone by `ns`, as setting it would. Returns the new wall-clock time in nanoseconds.
    fn step_realtime(&self, ns: i64) -> i64 {
        self.0.step_realtime(ns)
    }

    fn __repr__(&self) -> String {
        format!(
            "ManualCounter({}, frequency_hz={}, realtime_ns={})",
            self.read(),
            self.frequency_hz(),
            self.realtime_ns()
        )
    }
}

/// Any of the counters, as the core reads it.
pub(crate) enum AnyCounter {
    /// The host's.
    Host(HostCounter),
    /// CLOCK_MONOTONIC.
    Monotonic(MonotonicCounter),
    /// One moved by hand.
    Manual(Arc<ManualCounter>),
}

impl<'py> FromPyObject<'_, 'py> for AnyCounter {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(counter) = object.cast::<PyHostCounter>() {
            Ok(Self::Host(counter.get().0))
        } else if let Ok(counter) = object.cast::<PyMonotonicCounter>() {
            Ok(Self::Monotonic(counter.get().0))
        } else {
            Ok(Self::Manual(Arc::clone(&object.cast::<PyManualCounter>()?.get().0)))
        }
    }
}

impl Counter for AnyCounter {
    fn frequency(&self) -> Frequency {
        match self {
            Self::Host(counter) => counter.frequency(),
            Self::Monotonic(counter) => counter.frequency(),
            Self::Manual(counter) => counter.frequency(),
        }
    }

    #[inline]
    fn count(&self) -> HostCount {
        match self {
            Self::Host(counter) => counter.count(),
            Self::Monotonic(counter) => counter.count(),
            Self::Manual(counter) => counter.count(),
        }
    }

    fn cross_timestamp(&self) -> CrossTimestamp {
        match self {
            Self::Host(counter) => counter.cross_timestamp(),
            Self::Monotonic(counter) => counter.cross_timestamp(),
            Self::Manual(counter) => counter.cross_timestamp(),
        }
    }
}
