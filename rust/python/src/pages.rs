//! The pages that inform a guest of its time, in the caller's own memory.

use crate::arguments::{Int, int};
use crate::equation::{PyClockEquation, TIME_TYPES, time_type_name};
use crate::errors::{IntoPyErr, OrRaise, block_ended, typed};
use crate::process::detached;
use crate::records::named;
use core::ptr::NonNull;
use guestclock_core::guest::vmclock::{Body, CounterId, Equation, Header, Status, utc_minus_tai};
use guestclock_core::time::{GuestCount, Intent};
use guestclock_linux::pages::{Memory, PageError, StolenTime, VmClock};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

impl IntoPyErr for PageError {
    #[cold]
    fn into_pyerr(self) -> PyErr {
        match self {
            Self::NotStolenTime { offset, .. } | Self::NotVmClock { offset, .. } => {
                typed("PageOverwritten", &self.to_string(), |fields| fields.set_item("offset", offset))
            }
            _ => PyValueError::new_err(self.to_string()),
        }
    }
}

/// The caller's memory. While it is held, an mmap can't be closed, and a bytearray not resized.
struct Buffer(PyBuffer<u8>);

impl Buffer {
    fn new(memory: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyBuffer::get(memory)?;
        if buffer.readonly() || buffer.as_slice_ptr().is_none() {
            return Err(PyValueError::new_err("the memory has to be writable, and in one piece"));
        }
        Ok(Self(buffer))
    }

    /// The memory as rust/linux takes it.
    #[expect(unsafe_code, reason = "only here is it known that the memory is held")]
    fn memory(&self) -> Memory<'_> {
        let bytes = self.0.as_slice_ptr().unwrap_or(NonNull::slice_from_raw_parts(NonNull::dangling(), 0));
        // SAFETY: the exporter keeps the memory in place while the buffer is held, which outlives the borrow, and it
        // isn't read-only. No Rust reference is made to it: the buffer is private, and used for nothing else.
        unsafe { Memory::new(bytes) }
    }
}

/// One vCPU's PV stolen-time record (Arm DEN0057A) in the guest's memory, at `offset` of `memory`.
///
/// `memory` is writable and in one piece (an mmap, a memoryview), and the record at a multiple of 64 bytes, else
/// ValueError. PageOverwritten where its revision or its attributes aren't 0. Use it only while the vCPU is stopped: KVM
/// writes the record itself when it loads the vCPU.
#[pyclass(frozen, name = "StolenTime", module = "guestclock.guest")]
pub(crate) struct PyStolenTime {
    memory: Buffer,
    offset: usize,
}

impl PyStolenTime {
    fn record(&self) -> PyResult<StolenTime<'_>> {
        StolenTime::again(self.memory.memory(), self.offset).or_raise()
    }
}

#[pymethods]
impl PyStolenTime {
    #[new]
    #[pyo3(signature = (memory, offset=0))]
    fn new(memory: &Bound<'_, PyAny>, #[pyo3(from_py_with = int)] offset: usize) -> PyResult<Self> {
        let memory = Buffer::new(memory)?;
        StolenTime::at(memory.memory(), offset).or_raise()?;
        Ok(Self { memory, offset })
    }

    /// The time stolen so far, in nanoseconds.
    #[getter]
    fn stolen_ns(&self) -> PyResult<u64> {
        Ok(self.record()?.stolen_ns())
    }

    /// Adds `ns` nanoseconds (`report.added_ns`: 0 under Freeze) in one aligned store of 8 bytes, and returns the sum:
    /// modulo 2^64, as KVM does, since the guest can write anything into its own record.
    fn add(&self, ns: Int<u64>) -> PyResult<u64> {
        Ok(self.record()?.add(ns.0))
    }

    fn __repr__(&self) -> String {
        format!("<StolenTime at {:#x}>", self.offset)
    }
}

/// The VMM's copy of a page's state. The guest may be able to write its memory, so written values aren't read back.
struct State {
    body: Body,
    /// True if a guest may have had a clock that nobody knows any more.
    forgotten: bool,
    /// The thread that has an update open.
    updating: Option<ThreadId>,
}

/// Longest wait for another thread's update. Linux's driver waits for 100 ms too (drivers/ptp/ptp_vmclock.c).
const LONGEST_UPDATE: Duration = Duration::from_millis(100);

/// A vmclock page (Linux's linux/vmclock-abi.h) that is in the guest's memory already, as after a restore, at `offset`
/// of `memory`. `VmClock.create` makes a new one.
///
/// `memory` is writable and in one piece, and the page at a multiple of 8 bytes, else ValueError. PageOverwritten where
/// it doesn't begin as a page does.
#[pyclass(frozen, name = "VmClock", module = "guestclock.guest")]
pub(crate) struct PyVmClock {
    memory: Buffer,
    offset: usize,
    header: Header,
    /// Locked for a moment at a time: no Python code runs under it.
    state: Mutex<State>,
    /// Notified where an update is closed.
    closed: Condvar,
}

impl PyVmClock {
    fn made(memory: Buffer, offset: usize, header: Header, body: Body, forgotten: bool) -> Self {
        let state = Mutex::new(State { body, forgotten, updating: None });
        Self { memory, offset, header, state, closed: Condvar::new() }
    }

    /// Opens an update, once another thread's is closed, and returns the body as it is.
    fn open(&self, py: Python<'_>) -> PyResult<Body> {
        let me = thread::current().id();
        let opened = detached(py, || {
            let theirs = |state: &mut State| state.updating.is_some_and(|thread| thread != me);
            let waited = self.closed.wait_timeout_while(self.state(), LONGEST_UPDATE, theirs);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            state.updating.is_none().then(|| {
                state.updating = Some(me);
                state.body
            })
        });
        opened.ok_or_else(updating)
    }

    /// Closes the update that is open, and leaves this body.
    fn shut(&self, body: Body) {
        let mut state = self.state();
        state.body = body;
        state.updating = None;
        self.closed.notify_all();
    }

    /// Makes `change` to the guest's counter while `seq_count` is odd, then moves the page's clock by the ticks that
    /// `change` returns. If `change` fails, the page stays as it was.
    pub(crate) fn stepped<T>(&self, py: Python<'_>, change: impl FnOnce() -> PyResult<(T, u64)>) -> PyResult<T> {
        let page = self.page()?;
        // No other update comes in between: not even from `change`, which may give up the interpreter's lock.
        let mut body = self.open(py)?;
        page.shared().begin();
        let changed = change();
        if let Ok((_, ticks)) = changed {
            body.step(ticks);
        }
        page.shared().end(&body);
        self.shut(body);
        changed.map(|(changed, _)| changed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn page(&self) -> PyResult<VmClock<'_>> {
        VmClock::again(self.memory.memory(), self.offset, self.header).or_raise()
    }

    /// Status of a page without a clock.
    fn no_clock(&self) -> Status {
        self.header.counter.without_clock()
    }
}

#[pymethods]
impl PyVmClock {
    #[new]
    #[pyo3(signature = (memory, offset=0))]
    fn new(memory: &Bound<'_, PyAny>, #[pyo3(from_py_with = int)] offset: usize) -> PyResult<Self> {
        let memory = Buffer::new(memory)?;
        let (page, header) = VmClock::at(memory.memory(), offset).or_raise()?;
        let (body, whole) = page.shared().load();
        let forgotten = !whole || body.status() == Status::Unreliable;
        Ok(Self::made(memory, offset, header, body, forgotten))
    }

    /// Makes a page, before the guest runs. `size` is the size of the region that the guest is informed of, in bytes,
    /// at least 112.
    ///
    /// `counter`, "arm-vcnt" or None for a page that will never have a clock, and `time_type`, "utc" or "tai", are
    /// constant for the device's life. With `notification` the guest expects an interrupt after each update: the VMM
    /// has to raise it.
    ///
    /// The page has no clock until an update gives it one, and is "unreliable" until then, which Linux's driver refuses;
    /// "unknown" if it has no counter. `tai_offset_s` is TAI - UTC in seconds, which `stamp().tai_offset_s` of a host's
    /// counter has where the kernel knows it; None where nobody does. A driver of Linux 7.3 or newer decides by it, once
    /// and for all when it finds the device, whether a page of "utc" has a clock.
    #[staticmethod]
    #[pyo3(signature = (
        memory, offset=0, *, tai_offset_s, size=4096, counter="arm-vcnt", time_type="utc", disruption_marker=0,
        vm_generation=0, notification=false
    ))]
    fn create(
        memory: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = int)] offset: usize,
        tai_offset_s: Option<Int<i32>>,
        #[pyo3(from_py_with = int)] size: u32,
        counter: Option<&str>,
        time_type: &str,
        #[pyo3(from_py_with = int)] disruption_marker: u64,
        #[pyo3(from_py_with = int)] vm_generation: u64,
        notification: bool,
    ) -> PyResult<Self> {
        let counter = match counter {
            Some(name) => named("counter", name, &[("arm-vcnt", CounterId::ArmVcnt)])?,
            None => CounterId::Invalid,
        };
        let header = Header { size, counter, time_type: named("time_type", time_type, &TIME_TYPES)? };
        let memory = Buffer::new(memory)?;
        let mut body = Body::new(disruption_marker, vm_generation, notification);
        body.without_clock(header.counter.without_clock());
        if let Some(Int(seconds)) = tai_offset_s {
            body.set_utc_minus_tai(utc_minus_tai(seconds).or_raise()?);
        }
        VmClock::create(memory.memory(), offset, header, &body).or_raise()?;
        Ok(Self::made(memory, offset, header, body, false))
    }

    /// The marker that changes when the guest's counter is disrupted.
    #[getter]
    fn disruption_marker(&self) -> u64 {
        self.state().body.disruption_marker()
    }

    /// The counter that changes when the guest is a copy.
    #[getter]
    fn vm_generation(&self) -> u64 {
        self.state().body.vm_generation()
    }

    /// Time scale of the clock: "utc" or "tai".
    #[getter]
    fn time_type(&self) -> &'static str {
        time_type_name(self.header.time_type)
    }

    /// Status of the clock on the page: "unknown", "synchronized", "freerunning" or "unreliable".
    #[getter]
    fn status(&self) -> &'static str {
        self.state().body.status().name()
    }

    /// The guest's CNTVCT_EL0 at which the page's clock begins, in ticks; None for a page without a clock. The clock's age
    /// is the guest's count less this.
    #[getter]
    fn counter_value(&self) -> Option<u64> {
        self.state().body.counter_value().map(|count| count.0)
    }

    /// A context manager in which `seq_count` is odd: the guest's readers wait, and see none of the changes until the
    /// end.
    ///
    /// `intent` is the reason: "live-migration", "live-update", "snapshot" or "clone"; None for a VM that stays, whose
    /// clock is brought up to date. The last two names change `vm_generation`. The counter counts as disrupted with
    /// each of the four, which changes `disruption_marker` and takes the clock away, unless `disrupted=False` says that
    /// the counter went on as if nothing had been (ValueError with "live-migration": another host has another counter).
    #[pyo3(signature = (intent=None, *, disrupted=None))]
    fn update(slf: &Bound<'_, Self>, intent: Option<&str>, disrupted: Option<bool>) -> PyResult<PyVmClockUpdate> {
        let intent = intent.map(|name| named("intent", name, &Intent::NAMES)).transpose()?;
        let disrupted = disrupted.unwrap_or(intent.is_some());
        if !disrupted && intent == Some(Intent::LiveMigration) {
            return Err(PyValueError::new_err("a live migration disrupts the counter: another host has another one"));
        }
        let copy = intent.is_some_and(Intent::makes_a_copy);
        Ok(PyVmClockUpdate { page: slf.clone().unbind(), disrupted, copy, draft: Mutex::new(None) })
    }

    fn __repr__(&self) -> String {
        format!("<VmClock at {:#x}, {}>", self.offset, self.status())
    }
}

/// An update of a vmclock page, made by `VmClock.update`.
///
/// An exception in the block leaves the page "unreliable", without an equation and with a new disruption marker, and
/// `seq_count` even: a guest doesn't wait for the page, and has no clock from it.
#[pyclass(frozen, name = "VmClockUpdate", module = "guestclock.guest")]
pub(crate) struct PyVmClockUpdate {
    page: Py<PyVmClock>,
    disrupted: bool,
    copy: bool,
    /// The body to write at the end; None before the beginning and after the end.
    draft: Mutex<Option<Body>>,
}

impl PyVmClockUpdate {
    fn draft(&self) -> MutexGuard<'_, Option<Body>> {
        self.draft.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the body and lets the guest's readers go on: without a clock if the update failed.
    fn close(&self, failed: bool) -> PyResult<()> {
        let page = self.page.get();
        let shared = page.page()?;
        let mut state = page.state();
        let mut body = self.draft().take().ok_or_else(not_open)?;
        if failed {
            if !self.disrupted {
                body.disrupt();
            }
            body.without_clock(page.no_clock());
        }
        shared.shared().end(&body);
        let had_one = state.forgotten || state.body.status().is_valid();
        state.forgotten = had_one && !body.status().is_valid();
        drop(state);
        page.shut(body);
        Ok(())
    }
}

/// An update that nobody closed is closed as after an exception: else no other one could begin, and the guest's readers
/// would wait for good.
impl Drop for PyVmClockUpdate {
    fn drop(&mut self) {
        if self.draft().is_some() {
            let _ = self.close(true);
        }
    }
}

fn updating() -> PyErr {
    PyRuntimeError::new_err(
        "an update of this vmclock page is open already, in this thread or for 100 ms in another: end its `with` block",
    )
}

fn not_open() -> PyErr {
    PyRuntimeError::new_err("no update of the vmclock page is open: call this inside `with page.update() as update:`")
}

#[pymethods]
impl PyVmClockUpdate {
    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        let this = slf.get();
        let page = this.page.get();
        let shared = page.page()?;
        let mut body = page.open(slf.py())?;
        if this.copy {
            body.new_generation();
        }
        if this.disrupted {
            body.disrupt();
            body.without_clock(page.no_clock());
        }
        *this.draft() = Some(body);
        shared.shared().begin();
        Ok(slf)
    }

    /// Gives the page this clock; `status` is "synchronized", or "freerunning" for a host that no longer is.
    ///
    /// `monotonic=(last, first)` asks for TIME_MONOTONIC: `last` is the guest's latest count under the page as it was,
    /// `first` the earliest under this equation (while the guest runs, one count taken in the block for both). Returns
    /// true if TIME_MONOTONIC holds, and is claimed: the time at `first` isn't before the time that the page showed at
    /// `last`.
    ///
    /// ValueError where the page has no counter, or another type of time, or where `first` lies before the equation
    /// begins.
    #[pyo3(signature = (equation, *, status="synchronized", monotonic=None))]
    fn clock(&self, equation: &PyClockEquation, status: &str, monotonic: Option<(u64, u64)>) -> PyResult<bool> {
        let status = named(
            "status",
            status,
            &[Status::Synchronized, Status::FreeRunning].map(|status| (status.name(), status)),
        )?;
        let (page, equation) = (self.page.get(), &equation.equation);
        if page.header.counter == CounterId::Invalid {
            return Err(PyValueError::new_err(
                "this page was created with counter=None, for good: it can't have a clock",
            ));
        }
        if page.header.time_type != equation.time_type {
            let (there, here) = (time_type_name(page.header.time_type), time_type_name(equation.time_type));
            return Err(PyValueError::new_err(format!(
                "the page's time is {there}, for good, and the equation's is {here}"
            )));
        }
        let state = page.state();
        let mut draft = self.draft();
        let body = draft.as_mut().ok_or_else(not_open)?;
        let holds = match monotonic {
            None => false,
            Some((last, first)) => state.stays_monotonic(GuestCount(last), equation, GuestCount(first))?,
        };
        body.with_clock(equation, status, holds);
        Ok(holds)
    }

    /// Takes the page's clock away: for a host that isn't synchronised, or whose wall clock is smeared.
    fn no_clock(&self) -> PyResult<()> {
        self.draft().as_mut().ok_or_else(not_open)?.without_clock(self.page.get().no_clock());
        Ok(())
    }

    fn __exit__(&self, exc_type: &Bound<'_, PyAny>, exc: &Bound<'_, PyAny>, _tb: &Bound<'_, PyAny>) -> PyResult<()> {
        block_ended(self.close(!exc_type.is_none()), exc)
    }
}

impl State {
    /// True if the time at `first` under `next` isn't before the page's at `last`.
    fn stays_monotonic(&self, last: GuestCount, next: &Equation, first: GuestCount) -> PyResult<bool> {
        let from = next.counter_value;
        if first.since(from) > from.since(first) {
            let (first, from) = (first.0, from.0);
            return Err(PyValueError::new_err(format!(
                "the guest's first count, {first}, lies before the equation's, {from}"
            )));
        }
        if self.forgotten {
            return Ok(false);
        }
        Ok(match self.body.time_at(last) {
            // The page never had a clock: there is no earlier time.
            None => true,
            Some(before) => next.time_at(first).is_some_and(|after| before <= after),
        })
    }
}
