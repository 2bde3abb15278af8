//! Counters.

use crate::alarms::Alarms;
use crate::arguments::{Int, frequency, int, quoted};
use crate::foreign::{ForeignCounter, Sampled, Taken};
use crate::host_counters::OwnCounter;
use crate::records;
use guestclock_core::drive::Saving;
use guestclock_core::restore::Request;
use guestclock_core::time::{Counter, Frequency, HostCount, NamespaceTicks, Stamp, SyncBound};
use guestclock_model::locked::Now;
use guestclock_model::manual::{ManualCounter, Meanwhile};
use guestclock_model::scaled::ScaledCounter;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::sync::Arc;

/// A counter that moves only when it is told to, with the clocks of its host, which move along: for tests, simulation,
/// instruction counts and replay.
///
/// Its host booted when it was made: the boot time was 0 then. Two of them are two hosts, each with a random boot id;
/// `boot_id`, 32 hexadecimal digits, gives one that is the same in every run.
#[pyclass(frozen, name = "ManualCounter", module = "guestclock")]
pub(crate) struct PyManualCounter {
    counter: Arc<ManualCounter>,
    /// Those that wait on it: nothing else tells them that it has moved.
    alarms: Arc<Alarms>,
}

/// Another counter at a frequency of its own: `floor(count * frequency_hz / counter.frequency_hz)` modulo 2^64.
///
/// This is how the model takes a guest that was saved at another frequency:
/// `ModelVm(counter=ScaledCounter(HostCounter(), frequency_hz=24_000_000))`. KVM can't rescale. Each read is exact to
/// the tick, so nothing drifts. Every count of a VM over it, `now=` and deadlines included, is in its ticks, which
/// `read` gives; `inner_count` leads back to the inner counter's. The stamp is the inner counter's, wider by a tick of
/// this one unless the frequency is a whole multiple. Where the inner counter wraps at 2^64 this one jumps, unless it
/// is a whole multiple.
#[pyclass(frozen, name = "ScaledCounter", module = "guestclock.model")]
pub(crate) struct PyScaledCounter {
    scaled: Arc<ScaledCounter<AnyCounter>>,
    inner: Py<PyAny>,
    /// Number of scaled counters below this one. Each read goes down to the innermost.
    depth: u8,
}

/// The most scaled counters that are made of one another.
const DEEPEST: u8 = 8;

#[pymethods]
impl PyManualCounter {
    #[new]
    #[pyo3(signature = (count=0, *, frequency_hz=62_500_000, realtime_ns=0, boot_id=None))]
    fn new(
        py: Python<'_>,
        #[pyo3(from_py_with = int)] count: u64,
        #[pyo3(from_py_with = int)] frequency_hz: u64,
        #[pyo3(from_py_with = int)] realtime_ns: i64,
        boot_id: Option<&str>,
    ) -> PyResult<Self> {
        records::ready(py)?;
        let mut counter = ManualCounter::new(HostCount(count), frequency(frequency_hz)?, realtime_ns);
        if let Some(hex) = boot_id {
            let wrong = || PyValueError::new_err(format!("boot_id is {}: give 32 hexadecimal digits", quoted(hex)));
            counter = counter.with_boot_id(records::id(hex).ok_or_else(wrong)?);
        }
        Ok(Self { counter: Arc::new(counter), alarms: Arc::default() })
    }

    /// Name of the counter: "manual".
    #[getter]
    fn source(&self) -> &'static str {
        "manual"
    }

    /// Ticks a second.
    #[getter]
    fn frequency_hz(&self) -> u64 {
        self.counter.frequency().hz()
    }

    /// The counter's wall clock now, in nanoseconds since 1970.
    #[getter]
    fn realtime_ns(&self) -> i64 {
        self.counter.realtime_ns(self.counter.count())
    }

    /// The count now.
    fn read(&self) -> u64 {
        self.counter.count().0
    }

    /// The count and the wall clock together; they belong together exactly.
    fn stamp<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        records::stamp(py, &self.counter.stamp())
    }

    /// Moves on by `ticks`, modulo 2^64, and the wall clock with it. Returns the new count.
    fn advance(&self, ticks: Int<u64>) -> u64 {
        let count = self.counter.advance(ticks.0).0;
        self.alarms.ring();
        count
    }

    /// Moves on by `ns` nanoseconds, and the host's clocks with it. Returns the new count. What is less than a tick counts
    /// in the next call.
    fn advance_ns(&self, ns: Int<u64>) -> u64 {
        let count = self.counter.advance_ns(ns.0).0;
        self.alarms.ring();
        count
    }

    /// Suspends the host for `ns` nanoseconds: its wall clock, its boot time and its sum of sleeps go on. Returns the new
    /// count.
    ///
    /// The counter "stops" meanwhile, as CLOCK_MONOTONIC does; "counts-on", as most arm64 counters do; or "restarts" at
    /// 0, as the TSC does in an S3 sleep.
    #[pyo3(signature = (ns, *, counter="stops"))]
    fn suspend(&self, ns: Int<u64>, counter: &str) -> PyResult<u64> {
        let count = self.counter.suspend(ns.0, records::named("counter", counter, &Meanwhile::NAMES)?).0;
        self.alarms.ring();
        Ok(count)
    }

    /// Boots the host anew: another boot id, and a boot time and a sum of sleeps of 0. Its wall clock goes on. Returns
    /// the new count.
    ///
    /// The counter "restarts" at 0, or "counts-on", as over a kexec.
    #[pyo3(signature = (*, counter="restarts"))]
    fn reboot(&self, counter: &str) -> PyResult<u64> {
        let count = self.counter.reboot(records::named("counter", counter, &Meanwhile::NAMES)?).0;
        self.alarms.ring();
        Ok(count)
    }

    /// Moves back by `ticks`: the one way in which a counter goes backwards. Returns the new count.
    fn rewind(&self, ticks: Int<u64>) -> u64 {
        let count = self.counter.rewind(ticks.0).0;
        self.alarms.ring();
        count
    }

    /// Steps the wall clock alone by `ns`, as setting it would. Returns the new wall-clock time in nanoseconds.
    fn step_realtime(&self, ns: Int<i64>) -> i64 {
        self.counter.step_realtime(ns.0)
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

#[pymethods]
impl PyScaledCounter {
    #[new]
    #[pyo3(signature = (counter, *, frequency_hz))]
    pub(crate) fn new(counter: Bound<'_, PyAny>, frequency_hz: Int<u64>) -> PyResult<Self> {
        let depth = counter.cast::<Self>().map_or(0, |inner| inner.get().depth + 1);
        if depth >= DEEPEST {
            return Err(PyValueError::new_err(format!(
                "{DEEPEST} ScaledCounters at most are made of one another: make this one from the innermost counter"
            )));
        }
        let scaled = ScaledCounter::new(counter.extract::<AnyCounter>()?, frequency(frequency_hz.0)?);
        Ok(Self { scaled: Arc::new(scaled), inner: counter.unbind(), depth })
    }

    /// The counter that it is made from.
    #[getter]
    fn counter(&self, py: Python<'_>) -> Py<PyAny> {
        self.inner.clone_ref(py)
    }

    /// Name of the counter it is made from: rescaling doesn't make it another one.
    #[getter]
    fn source(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.inner.getattr(py, "source")
    }

    /// Ticks a second.
    #[getter]
    fn frequency_hz(&self) -> u64 {
        self.scaled.frequency().hz()
    }

    /// The count now.
    fn read(&self, py: Python<'_>) -> PyResult<u64> {
        let _sample = self.scaled.inner().sampled(py, None)?;
        Ok(self.scaled.count().0)
    }

    /// The count and the wall clock together.
    fn stamp<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.scaled.inner().ask(py)?;
        let _sample = self.scaled.inner().stamped(py, None)?;
        records::stamp(py, &self.scaled.stamp())
    }

    /// The first inner count at which this counter reads `count` or more: what to wait for until a deadline of a VM
    /// over it.
    ///
    /// None where the inner counter wraps first. A count that has passed gives an inner count that has passed. A
    /// counter that is faster than the inner one wraps more often, and then this is about its present pass, as
    /// deadlines are.
    fn inner_count(&self, py: Python<'_>, count: Int<u64>) -> PyResult<Option<u64>> {
        let _sample = self.scaled.inner().sampled(py, None)?;
        Ok(self.scaled.inner_count(HostCount(count.0)).map(|count| count.0))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("ScaledCounter({}, frequency_hz={})", self.inner.bind(py).repr()?, self.frequency_hz()))
    }
}

/// The alarms that wait on a counter which is moved by hand, or which is made from one; None where time moves it.
pub(crate) fn alarms(counter: &Bound<'_, PyAny>) -> Option<Arc<Alarms>> {
    if let Ok(scaled) = counter.cast::<PyScaledCounter>() {
        return alarms(scaled.get().inner.bind(counter.py()));
    }
    counter.cast::<PyManualCounter>().ok().map(|manual| Arc::clone(&manual.get().alarms))
}

/// Refuses what isn't a counter: for the counters of `guestclock.testing`.
#[pyfunction]
pub(crate) fn _counter(counter: Bound<'_, PyAny>) -> PyResult<()> {
    counter.extract::<AnyCounter>().map(drop)
}

/// An operation that takes a stamp of this host, and may have a use for the bound of the stamp's wall clock.
pub(crate) trait Asks {
    /// Returns whether the counter's voucher is to be asked before.
    fn asks(&self, now: Option<&Now>) -> bool;
}

impl Asks for Option<SyncBound> {
    fn asks(&self, now: Option<&Now>) -> bool {
        self.is_none() && takes_a_stamp(now)
    }
}

impl Asks for Saving {
    fn asks(&self, now: Option<&Now>) -> bool {
        self.sync.asks(now)
    }
}

impl Asks for Request {
    fn asks(&self, now: Option<&Now>) -> bool {
        // A freeze needs no clock, so no answer may refuse it.
        self.sync.is_none() && takes_a_stamp(now) && !self.policy.is_freeze()
    }
}

/// An injected stamp has its own bound.
const fn takes_a_stamp(now: Option<&Now>) -> bool {
    !matches!(now, Some(Now::Stamp(_)))
}

/// Any of the counters, as the core reads it.
#[derive(Clone)]
pub(crate) enum AnyCounter {
    /// One of this host's own.
    Own(OwnCounter),
    /// One moved by hand.
    Manual(Arc<ManualCounter>),
    /// Another one of these at a frequency of its own.
    Scaled(Arc<ScaledCounter<AnyCounter>>),
    /// One that a Python object is.
    Foreign(Arc<ForeignCounter>),
}

impl<'py> FromPyObject<'_, 'py> for AnyCounter {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Some(counter) = OwnCounter::of(&object) {
            Ok(Self::Own(counter))
        } else if let Ok(counter) = object.cast::<PyScaledCounter>() {
            Ok(Self::Scaled(Arc::clone(&counter.get().scaled)))
        } else if let Ok(counter) = object.cast::<PyManualCounter>() {
            Ok(Self::Manual(Arc::clone(&counter.get().counter)))
        } else {
            ForeignCounter::new(&object).map(|counter| Self::Foreign(Arc::new(counter)))
        }
    }
}

impl AnyCounter {
    /// Asks whoever vouches for the wall clock, before a stamp is taken. Called with no lock held.
    pub(crate) fn ask(&self, py: Python<'_>) -> PyResult<()> {
        match self {
            Self::Own(counter) => counter.ask(py),
            Self::Manual(_) | Self::Foreign(_) => Ok(()),
            Self::Scaled(counter) => counter.inner().ask(py),
        }
    }

    /// Returns whether a Python object is behind it.
    pub(crate) fn is_foreign(&self) -> bool {
        match self {
            Self::Foreign(_) => true,
            Self::Scaled(counter) => counter.inner().is_foreign(),
            _ => false,
        }
    }

    /// Reads a Python counter for a call that needs a count, unless one is injected. Called with no lock held: until the
    /// result is dropped, that counter stands still.
    #[inline]
    pub(crate) fn sampled(&self, py: Python<'_>, now: Option<HostCount>) -> PyResult<Sampled> {
        match self {
            Self::Own(_) | Self::Manual(_) => Ok(Sampled::NOT),
            Self::Scaled(_) | Self::Foreign(_) => self.sampled_in_python(py, now),
        }
    }

    /// The part of `sampled` that a read over a native counter does without.
    #[inline(never)]
    fn sampled_in_python(&self, py: Python<'_>, now: Option<HostCount>) -> PyResult<Sampled> {
        match self {
            Self::Foreign(counter) if now.is_none() => Ok(counter.sample_count(py)?.hold()),
            Self::Scaled(counter) => counter.inner().sampled(py, now),
            _ => Ok(Sampled::NOT),
        }
    }

    /// Takes a Python counter's stamp for a call that needs one, unless one is injected: see `sampled`.
    pub(crate) fn stamped(&self, py: Python<'_>, now: Option<&Now>) -> PyResult<Sampled> {
        Ok(self.taken(py, now)?.hold())
    }

    /// Returns whether a call needs a stamp that Python code takes, as it does unless one is injected.
    pub(crate) fn is_sampled_in_python(&self, now: Option<&Now>) -> bool {
        match self {
            Self::Foreign(_) => !matches!(now, Some(Now::Stamp(_))),
            Self::Scaled(counter) => counter.inner().is_sampled_in_python(now),
            _ => false,
        }
    }

    /// Takes a Python counter's stamp for work in another thread, which holds it: see `stamped`.
    pub(crate) fn taken(&self, py: Python<'_>, now: Option<&Now>) -> PyResult<Taken> {
        match self {
            Self::Foreign(counter) if self.is_sampled_in_python(now) => counter.sample_stamp(py),
            Self::Scaled(counter) => counter.inner().taken(py, now),
            _ => Ok(Taken::NONE),
        }
    }
}

impl Counter for AnyCounter {
    fn frequency(&self) -> Frequency {
        match self {
            Self::Own(counter) => counter.frequency(),
            Self::Manual(counter) => counter.frequency(),
            Self::Scaled(counter) => counter.frequency(),
            Self::Foreign(counter) => counter.frequency(),
        }
    }

    #[inline]
    fn count(&self) -> HostCount {
        match self {
            Self::Own(counter) => counter.count(),
            Self::Manual(counter) => counter.count(),
            Self::Scaled(counter) => counter.count(),
            Self::Foreign(counter) => counter.count(),
        }
    }

    fn stamp(&self) -> Stamp {
        match self {
            Self::Own(counter) => counter.stamp(),
            Self::Manual(counter) => counter.stamp(),
            Self::Scaled(counter) => counter.stamp(),
            Self::Foreign(counter) => counter.stamp(),
        }
    }
    fn namespace_ticks(&self) -> NamespaceTicks {
        match self {
            Self::Own(counter) => counter.namespace_ticks(),
            Self::Manual(counter) => counter.namespace_ticks(),
            Self::Scaled(counter) => counter.namespace_ticks(),
            Self::Foreign(counter) => counter.namespace_ticks(),
        }
    }
}
