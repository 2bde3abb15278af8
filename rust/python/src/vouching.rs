//! Counters of this host whose stamps carry the bound of whoever vouches for its wall clock.

use crate::records::AnySyncBound;
use guestclock_core::time::{Counter, Frequency, HostCount, NamespaceTicks, Stamp};
use guestclock_linux::vouched::Vouched;
use pyo3::prelude::*;
use std::sync::{Arc, Mutex, PoisonError};

/// Whoever vouches for this host's wall clock.
///
/// Stamps are taken under a VM's lock, and Python code mustn't run there. So a callable is asked before the lock is
/// taken, and its answer ages until the stamp.
pub(crate) struct Voucher {
    /// The argument: a `SyncBound`, or a callable that returns one.
    object: Py<PyAny>,
    callable: bool,
    /// The last answer. Held only to copy it.
    given: Mutex<Option<Vouched>>,
}

impl Voucher {
    fn new(object: Bound<'_, PyAny>) -> PyResult<Self> {
        let callable = object.is_callable();
        let given = if callable { None } else { Some(vouched(&object)?) };
        Ok(Self { object: object.unbind(), callable, given: Mutex::new(given) })
    }

    /// Asks the callable. Nobody vouches where it returns None or raises NotSynchronised.
    fn ask(&self, py: Python<'_>) -> PyResult<()> {
        if !self.callable {
            return Ok(());
        }
        let answer = match self.object.bind(py).call0() {
            Ok(answer) if answer.is_none() => None,
            Ok(answer) => Some(vouched(&answer)?),
            Err(error) if error.is_instance(py, &not_synchronised(py)?) => None,
            Err(error) => return Err(error),
        };
        *self.given.lock().unwrap_or_else(PoisonError::into_inner) = answer;
        Ok(())
    }

    fn given(&self) -> Option<Vouched> {
        *self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn vouched(object: &Bound<'_, PyAny>) -> PyResult<Vouched> {
    object.extract::<AnySyncBound>()?.sync_bound().map(Vouched::now)
}

fn not_synchronised(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    PyModule::import(py, "guestclock.errors")?.getattr("NotSynchronised")
}

/// A counter of this host, and whoever vouches for its wall clock.
#[derive(Clone)]
pub(crate) struct Vouching<C> {
    pub(crate) counter: C,
    voucher: Option<Arc<Voucher>>,
}

impl<C: Counter> Vouching<C> {
    pub(crate) fn new(counter: C, sync: Option<Bound<'_, PyAny>>) -> PyResult<Self> {
        Ok(Self { counter, voucher: sync.map(Voucher::new).transpose()?.map(Arc::new) })
    }

    /// Asks a callable for the bound of the stamps that come next. Called with no lock held.
    pub(crate) fn ask(&self, py: Python<'_>) -> PyResult<()> {
        self.voucher.as_ref().map_or(Ok(()), |voucher| voucher.ask(py))
    }

    /// The argument `sync`.
    pub(crate) fn sync(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.voucher.as_ref().map(|voucher| voucher.object.clone_ref(py))
    }

    /// The argument `sync` as the end of a repr's arguments; empty without one.
    pub(crate) fn repr(&self, py: Python<'_>) -> PyResult<String> {
        let Some(voucher) = &self.voucher else { return Ok(String::new()) };
        Ok(format!(", sync={}", voucher.object.bind(py).repr()?))
    }
}

impl<C: Counter> Counter for Vouching<C> {
    fn frequency(&self) -> Frequency {
        self.counter.frequency()
    }

    #[inline]
    fn count(&self) -> HostCount {
        self.counter.count()
    }

    fn stamp(&self) -> Stamp {
        let stamp = self.counter.stamp();
        match self.voucher.as_ref().and_then(|voucher| voucher.given()) {
            // Aged after the stamp was taken: a little too much, never too little.
            Some(vouched) => stamp.vouched_by(vouched.sync()),
            None => stamp,
        }
    }

    fn namespace_ticks(&self) -> NamespaceTicks {
        self.counter.namespace_ticks()
    }
}
