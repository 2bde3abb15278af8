//! Counters that Python objects are: whatever has `frequency_hz`, `read()` and `stamp()`.
//!
//! Python code mustn't run under a VM's lock: another thread may take the interpreter's lock there and wait for the VM's.
//! So a call samples such a counter before it takes the lock, and the counter stands still for the call.

use crate::arguments::{Int, shown};
use crate::records::AnyStamp;
use guestclock_core::time::{Counter, Frequency, HostCount, NamespaceTicks, Stamp};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use std::cell::RefCell;
use std::sync::Arc;

/// A counter that a Python object is.
pub(crate) struct ForeignCounter {
    object: Py<PyAny>,
    frequency: Frequency,
}

/// One sample of a counter.
#[derive(Clone)]
enum Sample {
    Count(HostCount),
    Stamp(Box<Stamp>),
}

thread_local! {
    /// The samples of the calls that this thread is in, with the counters that they are of.
    static SAMPLES: RefCell<Vec<(Arc<ForeignCounter>, Sample)>> = const { RefCell::new(Vec::new()) };
}

/// A sample of a Python counter, if there is one, for whatever thread works with it.
pub(crate) struct Taken(Option<(Arc<ForeignCounter>, Sample)>);

impl Taken {
    /// No sample, for a counter that needs none.
    pub(crate) const NONE: Self = Self(None);

    /// Lets the counter stand still in this thread.
    pub(crate) fn hold(&self) -> Sampled {
        let Self(Some(sample)) = self else { return Sampled::NOT };
        SAMPLES.with_borrow_mut(|samples| samples.push(sample.clone()));
        Sampled { taken: true }
    }
}

/// The time of a call in which a counter stands still.
pub(crate) struct Sampled {
    taken: bool,
}

impl Sampled {
    /// The time of a call over a counter that needs no sample.
    pub(crate) const NOT: Self = Self { taken: false };
}

impl Drop for Sampled {
    #[inline]
    fn drop(&mut self) {
        if self.taken {
            SAMPLES.with_borrow_mut(Vec::pop);
        }
    }
}

impl ForeignCounter {
    /// Takes an object for a counter. TypeError for one that isn't, ValueError for a frequency below 1 Hz.
    pub(crate) fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = object.py();
        for name in [intern!(py, "frequency_hz"), intern!(py, "read"), intern!(py, "stamp")] {
            if !object.hasattr(name)? {
                return Err(PyTypeError::new_err(format!(
                    "{} isn't a counter, since it has no {name}: give a HostCounter, MonotonicCounter, ManualCounter or \
                     ScaledCounter, or an object with frequency_hz, read() and stamp()",
                    shown(object)
                )));
            }
        }
        let Int(hz) = object.getattr(intern!(py, "frequency_hz"))?.extract()?;
        let frequency = Frequency::new(hz)
            .ok_or_else(|| PyValueError::new_err("the counter's frequency_hz is 0: a counter has at least 1 Hz"))?;
        Ok(Self { object: object.clone().unbind(), frequency })
    }

    /// Reads the counter, for a call that needs a count alone.
    pub(crate) fn count_now(self: &Arc<Self>, py: Python<'_>) -> PyResult<HostCount> {
        let Int(count) = self.object.bind(py).call_method0(intern!(py, "read"))?.extract()?;
        Ok(HostCount(count))
    }

    /// Reads the counter.
    pub(crate) fn sample_count(self: &Arc<Self>, py: Python<'_>) -> PyResult<Taken> {
        Ok(Taken(Some((Arc::clone(self), Sample::Count(self.count_now(py)?)))))
    }

    /// Takes a stamp.
    pub(crate) fn sample_stamp(self: &Arc<Self>, py: Python<'_>) -> PyResult<Taken> {
        let stamp = self.stamp_now(py)?;
        if stamp.frequency != self.frequency {
            return Err(PyValueError::new_err(format!(
                "the counter's stamp() is at {} Hz, and its frequency_hz was {} Hz",
                stamp.frequency.hz(),
                self.frequency.hz()
            )));
        }
        Ok(Taken(Some((Arc::clone(self), Sample::Stamp(Box::new(stamp))))))
    }

    fn stamp_now(&self, py: Python<'_>) -> PyResult<Stamp> {
        let stamp = self.object.bind(py).call_method0(intern!(py, "stamp"))?;
        stamp.extract::<AnyStamp>()?.stamp("stamp()")
    }

    /// The sample of the innermost call over this counter.
    fn sample(&self) -> Option<Sample> {
        let this: *const Self = self;
        SAMPLES.with_borrow(|samples| {
            samples.iter().rev().find(|(of, _)| Arc::as_ptr(of) == this).map(|(_, sample)| sample.clone())
        })
    }
}

/// Reads by the sample of the call. There is always one: the binding takes it before the call.
impl Counter for ForeignCounter {
    fn frequency(&self) -> Frequency {
        self.frequency
    }

    fn count(&self) -> HostCount {
        match self.sample() {
            Some(Sample::Count(count)) => count,
            Some(Sample::Stamp(stamp)) => stamp.count.own(NamespaceTicks::NONE),
            None => unreachable!("a Python counter is sampled before the call that reads it"),
        }
    }

    fn stamp(&self) -> Stamp {
        match self.sample() {
            Some(Sample::Stamp(stamp)) => *stamp,
            _ => unreachable!("a Python counter's stamp is taken before the call that asks for it"),
        }
    }

    fn namespace_ticks(&self) -> NamespaceTicks {
        NamespaceTicks::NONE
    }
}
