//! The deadline alarm: a descriptor that is readable when something may have expired, and the call that takes what has.

use crate::alarms::{Alarms, Hint};
use crate::arguments::{Int, plain, shown};
use crate::bank::PyClockBank;
use crate::counters::{self, AnyCounter};
use crate::deadline::PyDeadlineQueue;
use crate::errors::{OrRaise, os_error};
use crate::records;
use guestclock_core::time::HostCount;
use guestclock_linux::alarm::{Alarm, MOST_NS};
use guestclock_model::deadlines::Lateness;
use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PySlice, PyTuple};
use pyo3::{PyTraverseError, intern};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A descriptor for select, poll, epoll and event loops, readable when timers of `source` may have expired on
/// `counter`.
///
/// `source` is a ClockBank, a DeadlineQueue, or any object with `next_deadline(now)` and `expire(now)` as
/// DeadlineSource describes them; `counter` is the source's own by default. The descriptor is a hint; `expire` is the
/// authority, and reads the counter. Over a ManualCounter, or a ScaledCounter of one, each `advance` and `rewind` makes
/// the descriptor readable (an eventfd). Over any other counter, time does (a timerfd on CLOCK_MONOTONIC, set a second
/// ahead at most, since that clock is slewed against the counter and stops when the host is suspended). The descriptor
/// is close-on-exec and non-blocking, and no other descriptor is made.
///
/// A ClockBank and a DeadlineQueue notify their alarms when a timer is armed or an offset moves, on any thread, and a
/// blocked epoll_wait returns in time. After a change of any other source call `rearm`.
///
/// One consumer takes the expired timers: a second one at the same time gets AlarmInUse. The alarm is a context manager
/// that owns the descriptor and closes it; using it after that raises ValueError. OSError where the kernel has no
/// descriptor left.
#[pyclass(frozen, generic, name = "DeadlineAlarm", module = "guestclock.model")]
pub(crate) struct PyDeadlineAlarm {
    source: Py<PyAny>,
    counter: Py<PyAny>,
    hint: Arc<Hint>,
    /// The registries that hold the hint.
    known_to: Vec<Arc<Alarms>>,
    lateness: Mutex<Lateness>,
    /// Timers that were taken from the source, and that a caller who asked for fewer hasn't been given yet.
    rest: Mutex<Option<Py<PyTuple>>>,
}

impl PyDeadlineAlarm {
    fn rest(&self) -> MutexGuard<'_, Option<Py<PyTuple>>> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns at most so many of these timers, and keeps the rest, for which the descriptor stays readable.
    fn first<'py>(&self, expired: Bound<'py, PyTuple>, at_most: usize) -> PyResult<Bound<'py, PyTuple>> {
        if expired.iter().next_back().map_or(Ok(0), |deadlines| deadlines.len())? <= at_most {
            return Ok(expired);
        }
        let kept = expired.clone().unbind();
        let split = || Ok((sliced(&expired, None, Some(at_most))?, sliced(&expired, Some(at_most), None)?));
        let split = split().and_then(|split: (Bound<'py, PyTuple>, Bound<'py, PyTuple>)| {
            self.hint.alarm.ring().or_raise()?;
            Ok(split)
        });
        match split {
            Ok((first, rest)) => {
                *self.rest() = Some(rest.unbind());
                Ok(first)
            }
            Err(error) => {
                // Nothing was given out, so all of it comes again.
                *self.rest() = Some(kept);
                Err(error)
            }
        }
    }

    fn next_deadline(&self, py: Python<'_>, now: HostCount) -> PyResult<u64> {
        self.source.bind(py).call_method1(intern!(py, "next_deadline"), (now.0,))?.extract()
    }

    /// Takes what has expired by the counter, after a wake or without one.
    fn woken<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let alarm = &self.hint.alarm;
        let woken = alarm.drain().or_raise()?;
        self.take(py, woken).inspect_err(|_| {
            // The hint is used up, and the source may have more: not at once, but soon. The error is what counts.
            let _ = alarm.set_again(Some(MOST_NS.into()), woken);
        })
    }

    /// Takes what has expired by the counter; `woken` says that the descriptor was readable.
    fn take<'py>(&self, py: Python<'py>, woken: bool) -> PyResult<Bound<'py, PyTuple>> {
        let now = self.hint.counter.count();
        let expired = self.source.bind(py).call_method1(intern!(py, "expire"), (now.0,))?;
        let (expired, deadlines) = with_deadlines(expired)?;
        let deadlines = deadlines.as_slice()?;
        if !deadlines.is_empty() {
            let mut lateness = self.lateness.lock().unwrap_or_else(PoisonError::into_inner);
            for &deadline in deadlines {
                lateness.record(now, HostCount(deadline));
            }
        }
        let none = deadlines.is_empty();
        match self.wait_for_next(py, now, woken && none) {
            // They were taken, so they are the next call's; where the alarm was closed meanwhile, there is none.
            Err(error) if !none && !self.closed() => {
                *self.rest() = Some(expired.unbind());
                let _ = self.hint.alarm.ring();
                Err(error)
            }
            Err(error) if none => Err(error),
            _ => Ok(expired),
        }
    }

    /// Has the descriptor become readable at the next deadline.
    fn wait_for_next(&self, py: Python<'_>, now: HostCount, for_nothing: bool) -> PyResult<()> {
        let left_ns = match self.next_deadline(py, now)? {
            // A deadline that is due, and that `expire` didn't return: looking again at once would be a busy loop.
            due if due <= now.0 => Some(MOST_NS.into()),
            deadline => self.hint.left_ns(deadline),
        };
        self.hint.alarm.set_again(left_ns, for_nothing).or_raise()
    }
}

/// Alarms of a source that notifies them itself.
fn alarms(source: &Bound<'_, PyAny>) -> Option<Arc<Alarms>> {
    if let Ok(bank) = source.cast::<PyClockBank>() {
        return Some(Arc::clone(bank.get().alarms()));
    }
    source.cast::<PyDeadlineQueue>().ok().map(|queue| Arc::clone(queue.get().alarms()))
}

/// Rows of a source's result: of every column, in a tuple of the same type.
fn sliced<'py>(expired: &Bound<'py, PyTuple>, from: Option<usize>, to: Option<usize>) -> PyResult<Bound<'py, PyTuple>> {
    let py = expired.py();
    let rows = py.get_type::<PySlice>().call1((from, to))?;
    let columns: Vec<_> = expired.iter().map(|column| column.get_item(&rows)).collect::<PyResult<_>>()?;
    let columns = PyTuple::new(py, columns)?;
    if expired.is_exact_instance_of::<PyTuple>() {
        return Ok(columns);
    }
    Ok(expired.get_type().call1(columns)?.cast_into::<PyTuple>()?)
}

/// The return value of a source's `expire`, and the deadlines in it.
fn with_deadlines(expired: Bound<'_, PyAny>) -> PyResult<(Bound<'_, PyTuple>, PyReadonlyArray1<'_, u64>)> {
    let refused = || {
        PyTypeError::new_err(
            "expire() of a source must return a tuple whose last item is a one-dimensional, contiguous numpy array of \
             uint64: the deadlines",
        )
    };
    let expired = expired.cast_into::<PyTuple>().map_err(|_| refused())?;
    let deadlines = expired.iter().next_back().ok_or_else(refused)?;
    let deadlines = deadlines.cast_into::<PyArray1<u64>>().map_err(|_| refused())?;
    if !(deadlines.is_contiguous() && deadlines.is_aligned()) {
        return Err(refused());
    }
    let deadlines = deadlines.try_readonly().map_err(|_| refused())?;
    Ok((expired, deadlines))
}

#[pymethods]
impl PyDeadlineAlarm {
    #[new]
    #[pyo3(signature = (source, counter=None))]
    fn new(py: Python<'_>, source: Bound<'_, PyAny>, counter: Option<Bound<'_, PyAny>>) -> PyResult<Self> {
        for name in [intern!(py, "next_deadline"), intern!(py, "expire")] {
            if !source.hasattr(name)? {
                return Err(PyTypeError::new_err(format!(
                    "{} has no deadlines, since it has no {name}: give a ClockBank, a DeadlineQueue, or an object with \
                     next_deadline(now) and expire(now)",
                    shown(&source)
                )));
            }
        }
        let counter = match counter {
            Some(counter) => counter,
            None => source.getattr(intern!(py, "counter")).map_err(|_| {
                PyTypeError::new_err(format!("{} has no counter of its own: give the one it goes by", shown(&source)))
            })?,
        };
        let moved_by_hand = counters::alarms(&counter);
        let made = if moved_by_hand.is_some() { Alarm::event() } else { Alarm::timer() };
        let alarm = made.map_err(|error| os_error(error, None))?;
        let over = counter.extract::<AnyCounter>()?;
        if over.is_foreign() {
            return Err(PyTypeError::new_err(format!(
                "{} is a Python object, and nothing tells an alarm when it gets there: a DeadlineAlarm takes a HostCounter, \
                 MonotonicCounter, ManualCounter or ScaledCounter",
                counter.repr()?
            )));
        }
        let hint = Arc::new(Hint { counter: Box::new(over), alarm });
        let known_to: Vec<_> = moved_by_hand.into_iter().chain(alarms(&source)).collect();
        for alarms in &known_to {
            alarms.add(&hint);
        }
        let (source, counter) = (source.unbind(), counter.unbind());
        let alarm = Self { source, counter, hint, known_to, lateness: Mutex::default(), rest: Mutex::default() };
        alarm.rearm(py)?;
        Ok(alarm)
    }

    /// The source of the deadlines.
    #[getter]
    fn source(&self, py: Python<'_>) -> Py<PyAny> {
        self.source.clone_ref(py)
    }

    /// The counter that the deadlines are counts of.
    #[getter]
    fn counter(&self, py: Python<'_>) -> Py<PyAny> {
        self.counter.clone_ref(py)
    }

    /// The descriptor, to wait on for reading. The alarm owns it: don't read from it or close it.
    fn fileno(&self) -> PyResult<i32> {
        Ok(self.hint.alarm.fd().or_raise()?.as_raw_fd())
    }

    /// Takes what has expired: reads the counter, and returns what `source.expire` returns for that count.
    ///
    /// The result may be empty, as the descriptor is only a hint. Afterwards the descriptor isn't readable until
    /// something may have expired again. If a passed deadline stays the source's next one, the source is asked again
    /// after a second, or when the counter is moved by hand.
    ///
    /// With `at_most` the result has so many rows at most. The alarm keeps the rest, stays readable, and gives them
    /// first at the next call; ValueError for 0. The columns of another source's result have to be sliceable for that.
    #[pyo3(signature = (*, at_most=None))]
    fn expire<'py>(&self, py: Python<'py>, at_most: Option<Int<usize>>) -> PyResult<Bound<'py, PyTuple>> {
        let at_most = match at_most {
            Some(Int(0)) => return Err(PyValueError::new_err("at_most is 0: no call would ever give a timer out")),
            at_most => plain(at_most).unwrap_or(usize::MAX),
        };
        let _claim = self.hint.alarm.claim().or_raise()?;
        let rest = self.rest().take();
        let expired = rest.map_or_else(|| self.woken(py), |rest| Ok(rest.into_bound(py)))?;
        self.first(expired, at_most)
    }

    /// Looks at the source's next deadline again, after it may have become an earlier one. A ClockBank and a
    /// DeadlineQueue do that themselves.
    fn rearm(&self, py: Python<'_>) -> PyResult<()> {
        self.hint.set(self.next_deadline(py, self.hint.counter.count())?).or_raise()
    }

    /// Lateness of the deadlines that `expire` has returned so far: a Lateness.
    #[getter]
    fn lateness<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let lateness = self.lateness.lock().unwrap_or_else(PoisonError::into_inner).clone();
        records::lateness(py, self.hint.counter.frequency(), &lateness)
    }

    /// Nanoseconds until the kernel makes the descriptor readable: at most 10^9. None where the kernel won't by itself,
    /// or has done so.
    #[getter]
    fn wakes_in_ns(&self) -> PyResult<Option<u64>> {
        self.hint.alarm.left_ns().or_raise()
    }

    /// True once the alarm was closed.
    #[getter]
    fn closed(&self) -> bool {
        self.hint.alarm.fd().is_err()
    }

    /// Closes the descriptor. Timers stay as they are, and another alarm goes on with them.
    ///
    /// An `async for` over the alarm ends, and only then is the descriptor closed. Any other waiter on the descriptor
    /// has to end first, as with any descriptor. Closing twice is closing once.
    fn close(&self) -> PyResult<()> {
        for alarms in &self.known_to {
            alarms.remove(&self.hint);
        }
        self.hint.alarm.close().or_raise()
    }

    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        slf.get().fileno()?;
        Ok(slf)
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.source)?;
        visit.call(&self.counter)?;
        // The collector runs in a thread that may hold the lock.
        self.rest.try_lock().map_or(Ok(()), |rest| visit.call(rest.as_ref()))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let (source, counter) = (self.source.bind(py).repr()?, self.counter.bind(py).repr()?);
        let fd = self.fileno().map_or_else(|_| "closed".to_owned(), |fd| format!("fd {fd}"));
        Ok(format!("<DeadlineAlarm of {source} on {counter}, {fd}>"))
    }
}

/// Makes the caller the alarm's only consumer, until `_release`: for `guestclock.aio`, which waits in between.
#[pyfunction]
pub(crate) fn _claim(alarm: &PyDeadlineAlarm) -> PyResult<()> {
    // Python's own `finally` ends it.
    alarm.hint.alarm.claim().or_raise().map(core::mem::forget)
}

/// Ends `_claim`: the alarm has no consumer any more.
#[pyfunction]
pub(crate) fn _release(alarm: &PyDeadlineAlarm) {
    alarm.hint.alarm.release();
}
