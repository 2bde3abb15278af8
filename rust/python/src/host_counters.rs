//! The counters of this host's own clocks.

use crate::arguments::{frequency, int};
use crate::errors::{IntoPyErr, OrRaise, typed};
use crate::records;
use crate::vouching::Vouching;
use guestclock_core::time::{Counter, Frequency, HostCount, NamespaceTicks, Stamp};
use guestclock_linux::counter::{CounterError, HostCounter};
use guestclock_linux::monotonic::MonotonicCounter;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// The counter of this host: CNTVCT_EL0 on arm64, elsewhere CLOCK_MONOTONIC_RAW as a counter of 1 GHz.
///
/// `source` asks for one by name: "cntvct_el0", "clock_monotonic_raw", or "tsc", which is there only where the kernel
/// states its calibration. CapabilityMissing says why one isn't.
///
/// `sync` says how far this host's wall clock may be off UTC: a `SyncBound`, as of now, or a callable that returns one,
/// or None (`sync=guestclock.sync.chrony`). The counter's stamps carry it, so `checkpoint`, `plan` and `restore` need no
/// `sync=` of their own, which would win. A bound ages with the host. A callable is asked before each `stamp`,
/// `checkpoint`, and `plan` or `restore` under another policy than `Freeze`; where it raises NotSynchronised, nobody
/// vouches.
///
/// `read` is the count as this process reads it. A stamp is host-wide: in a time namespace (time_namespaces(7)) what it
/// adds to CLOCK_MONOTONIC_RAW is taken off. Where the namespace can't be known, `source` is "clock_monotonic_raw_local".
#[pyclass(frozen, name = "HostCounter", module = "guestclock")]
pub(crate) struct PyHostCounter(pub(crate) Vouching<HostCounter>);

impl From<Vouching<HostCounter>> for PyHostCounter {
    fn from(counter: Vouching<HostCounter>) -> Self {
        Self(counter)
    }
}

/// CLOCK_MONOTONIC in ticks, rounded down: at the default 62.5 MHz, Unicorn's own clock.
///
/// `sync` is as in `HostCounter`, and so are stamps in a time namespace.
#[pyclass(frozen, name = "MonotonicCounter", module = "guestclock")]
pub(crate) struct PyMonotonicCounter(Vouching<MonotonicCounter>);

/// Bytes that tell a source's name from every other: none is so long.
const MOST_OF_A_SOURCE: usize = 64;

#[pymethods]
impl PyHostCounter {
    #[new]
    #[pyo3(signature = (*, source="auto", sync=None))]
    fn new(py: Python<'_>, source: &str, sync: Option<Bound<'_, PyAny>>) -> PyResult<Self> {
        records::ready(py)?;
        // The error of an unknown name shows all of it.
        let source = source.get(..MOST_OF_A_SOURCE).unwrap_or(source);
        Vouching::new(HostCounter::new(source.parse().or_raise()?).or_raise()?, sync).map(Self)
    }

    /// Name of the counter: the source of its stamps.
    #[getter]
    fn source(&self) -> String {
        self.0.counter.stamp_source().to_string()
    }

    /// Bound of the wall clock, or the function that gives it, as it was given; None where nobody vouches for it.
    #[getter]
    fn sync(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.0.sync(py)
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
    fn stamp<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.0.ask(py)?;
        records::stamp(py, &self.0.stamp())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("HostCounter(source='{}'{})", self.0.counter.source(), self.0.repr(py)?))
    }
}

#[pymethods]
impl PyMonotonicCounter {
    #[new]
    #[pyo3(signature = (*, frequency_hz=62_500_000, sync=None))]
    fn new(
        py: Python<'_>,
        #[pyo3(from_py_with = int)] frequency_hz: u64,
        sync: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        records::ready(py)?;
        Vouching::new(MonotonicCounter::new(frequency(frequency_hz)?), sync).map(Self)
    }

    /// Name of the counter: "clock_monotonic", or "clock_monotonic_local" where the time namespace can't be known.
    #[getter]
    fn source(&self) -> String {
        self.0.counter.source().to_string()
    }

    /// Bound of the wall clock, or the function that gives it, as it was given; None where nobody vouches for it.
    #[getter]
    fn sync(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.0.sync(py)
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
    fn stamp<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.0.ask(py)?;
        records::stamp(py, &self.0.stamp())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("MonotonicCounter(frequency_hz={}{})", self.frequency_hz(), self.0.repr(py)?))
    }
}

/// Either of them, as the core reads it.
#[derive(Clone)]
pub(crate) enum OwnCounter {
    /// The host's.
    Host(Vouching<HostCounter>),
    /// CLOCK_MONOTONIC.
    Monotonic(Vouching<MonotonicCounter>),
}

impl OwnCounter {
    /// The counter that a Python object is; None for any other object.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> Option<Self> {
        if let Ok(counter) = object.cast::<PyHostCounter>() {
            return Some(Self::Host(counter.get().0.clone()));
        }
        object.cast::<PyMonotonicCounter>().ok().map(|counter| Self::Monotonic(counter.get().0.clone()))
    }

    /// Asks whoever vouches for the wall clock: see `AnyCounter::ask`.
    pub(crate) fn ask(&self, py: Python<'_>) -> PyResult<()> {
        match self {
            Self::Host(counter) => counter.ask(py),
            Self::Monotonic(counter) => counter.ask(py),
        }
    }
}

impl Counter for OwnCounter {
    fn frequency(&self) -> Frequency {
        match self {
            Self::Host(counter) => counter.frequency(),
            Self::Monotonic(counter) => counter.frequency(),
        }
    }

    #[inline]
    fn count(&self) -> HostCount {
        match self {
            Self::Host(counter) => counter.count(),
            Self::Monotonic(counter) => counter.count(),
        }
    }

    fn stamp(&self) -> Stamp {
        match self {
            Self::Host(counter) => counter.stamp(),
            Self::Monotonic(counter) => counter.stamp(),
        }
    }

    fn namespace_ticks(&self) -> NamespaceTicks {
        match self {
            Self::Host(counter) => counter.namespace_ticks(),
            Self::Monotonic(counter) => counter.namespace_ticks(),
        }
    }
}

impl IntoPyErr for CounterError {
    fn into_pyerr(self) -> PyErr {
        let message = self.to_string();
        match self {
            Self::Unavailable { source, .. } => {
                typed("CapabilityMissing", &message, |fields| fields.set_item("capability", source.name()))
            }
            _ => PyValueError::new_err(message),
        }
    }
}
