//! The registry between alarms and the objects that move a deadline or a counter.

use crate::errors::{IntoPyErr, os_error, typed};
use guestclock_core::time::{Counter, HostCount, NO_DEADLINE};
pub(crate) use guestclock_linux::alarm::forked;
use guestclock_linux::alarm::{Alarm, AlarmError};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// A descriptor and the counter that it goes by: the part of an alarm that its sources and counters hold.
pub(crate) struct Hint {
    pub(crate) counter: Box<dyn Counter>,
    pub(crate) alarm: Alarm,
}

impl Hint {
    /// Time until a deadline, in nanoseconds, rounded up; None where there is no deadline.
    pub(crate) fn left_ns(&self, deadline: u64) -> Option<u128> {
        let left = || deadline.saturating_sub(self.counter.count().0);
        (deadline != NO_DEADLINE).then(|| self.counter.frequency().ticks_to_ns_ceil(left()))
    }

    /// Sets the descriptor to a deadline that may be earlier than the present one.
    pub(crate) fn set(&self, deadline: u64) -> Result<(), AlarmError> {
        self.alarm.set(self.left_ns(deadline))
    }
}

/// The alarms of a source of deadlines, or of a counter that is moved by hand, held weakly.
///
/// The registry is called after each change, and an alarm is added before it first looks at what may change. The lock
/// between the two makes sure that one of them sees the other.
#[derive(Default)]
pub(crate) struct Alarms(Mutex<Vec<Weak<Hint>>>);

impl Alarms {
    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Hint>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, hint: &Arc<Hint>) {
        let mut hints = self.lock();
        hints.retain(|hint| hint.strong_count() > 0);
        hints.push(Arc::downgrade(hint));
    }

    pub(crate) fn remove(&self, hint: &Arc<Hint>) {
        self.lock().retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(hint)));
    }

    /// Wakes all alarms: the counter has moved.
    pub(crate) fn ring(&self) {
        self.each(|hint| hint.alarm.ring());
    }

    /// Sets all alarms to `next_deadline` at their counter's count, which may be earlier than before.
    pub(crate) fn changed(&self, next_deadline: impl Fn(HostCount) -> u64) {
        self.each(|hint| hint.set(next_deadline(hint.counter.count())));
    }

    fn each(&self, tell: impl Fn(&Hint) -> Result<(), AlarmError>) {
        // Called outside the lock: a deadline may be looked up without the GIL, which another thread here may hold.
        let hints: Vec<_> = self.lock().iter().filter_map(Weak::upgrade).collect();
        for hint in hints {
            match tell(&hint) {
                // The change stands, even if an alarm is closed meanwhile.
                Ok(()) | Err(AlarmError::Closed) => {}
                Err(error) => Python::attach(|py| error.into_pyerr().write_unraisable(py, None)),
            }
        }
    }
}

impl IntoPyErr for AlarmError {
    #[cold]
    fn into_pyerr(self) -> PyErr {
        match self {
            Self::InUse => typed("AlarmInUse", &self.to_string(), |_| Ok(())),
            Self::Io(error) => os_error(error, None),
            // ValueError, as Python raises it for a closed file of its own.
            _ => PyValueError::new_err(self.to_string()),
        }
    }
}
