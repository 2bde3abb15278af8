//! Work without the interpreter's lock, and the two moments at which that needs care: a fork, and the interpreter's end.
//!
//! **A fork** copies every lock as it is, also one whose holder is a thread that the child doesn't have. So a fork
//! (`os.fork` and all that stands on it) waits until no thread is at [`work`](detached) that holds one, and such work waits
//! for the fork. The child has every object as it was at that moment. It doesn't wait for work that holds no lock and may
//! take as long as a disk does (`files.rs`), nor for calls on KVM, in which the kernel may block: a `KvmVm` knows by
//! [`forks`] that it is in a child, and refuses before it takes a lock, as KVM answers EIO to any process except its
//! maker's.
//!
//! **At its end** CPython before 3.14 ends a daemon thread that asks for the interpreter's lock, by pthread_exit(3), which
//! unwinds the thread's stack; no Rust frame lets that pass, and the process would abort. PyO3 parks the thread where it
//! asks by PyO3, as it is unwound: by the system's unwinder, which has to be ours too (build.rs). numpy asks too, when it
//! [makes](asking) an array of zeros, and that is waited for.

use crate::alarms;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::Duration;

/// Number of threads at work that a fork waits for, once for each that a thread has begun.
static WORKING: AtomicUsize = AtomicUsize::new(0);
/// Number of forks that wait for them.
static FORKING: AtomicUsize = AtomicUsize::new(0);
/// Number of forks that lie between this process and the first that imported the module.
static FORKS: AtomicUsize = AtomicUsize::new(0);
/// Number of threads in others' code that gives the interpreter's lock up for a moment.
static ASKING: AtomicUsize = AtomicUsize::new(0);
/// True from the interpreter's end on.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Time between two looks of a thread that waits for others.
const LOOK: Duration = Duration::from_micros(50);

thread_local! {
    /// Work that this thread has begun, of that which a fork waits for.
    static BEGUN: Cell<usize> = const { Cell::new(0) };
    /// True for the thread that ends the interpreter.
    static ENDS: Cell<bool> = const { Cell::new(false) };
}

/// Work that a fork waits for, until it is dropped.
struct Work;

impl Work {
    fn begin() -> Self {
        loop {
            WORKING.fetch_add(1, SeqCst);
            // A fork that waits for this thread can't be waited for.
            if FORKING.load(SeqCst) == 0 || BEGUN.get() > 0 {
                BEGUN.set(BEGUN.get() + 1);
                return Self;
            }
            WORKING.fetch_sub(1, SeqCst);
            while FORKING.load(SeqCst) > 0 {
                std::thread::sleep(LOOK);
            }
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        BEGUN.set(BEGUN.get() - 1);
        WORKING.fetch_sub(1, SeqCst);
    }
}

/// Does `work` without the interpreter's lock; it may hold locks of ours, and a fork waits for it.
pub(crate) fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> T {
    py.detach(|| {
        let _work = Work::begin();
        work()
    })
}

/// Calls others' code, which gives the interpreter's lock up and asks for it again. Parks at the interpreter's end.
pub(crate) fn asking<T>(py: Python<'_>, call: impl FnOnce() -> T) -> T {
    ASKING.fetch_add(1, SeqCst);
    if ENDING.load(SeqCst) && !ENDS.get() {
        ASKING.fetch_sub(1, SeqCst);
        py.detach(|| {
            loop {
                std::thread::park();
            }
        });
    }
    let result = call();
    ASKING.fetch_sub(1, SeqCst);
    result
}

/// Takes a lock; to wait for it, gives up the interpreter's.
///
/// Whoever holds it has the interpreter's lock too, or is at work that a fork waits for. So a wait that ends doesn't keep
/// it: the interpreter's lock would have to come after it, and a fork could come between.
pub(crate) fn locked<'a, T: Send>(py: Python<'_>, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
    loop {
        match mutex.try_lock() {
            Ok(guard) => return guard,
            Err(TryLockError::Poisoned(error)) => return error.into_inner(),
            Err(TryLockError::WouldBlock) => detached(py, || drop(mutex.lock())),
        }
    }
}

/// Raises the exception of a signal's handler, if one has come: called between system calls, without the lock.
#[expect(clippy::redundant_closure_for_method_calls, reason = "the method's own type is of one lifetime")]
pub(crate) fn heard() -> PyResult<()> {
    Python::attach(|py| py.check_signals())
}

/// Number of forks that lie between this process and the first: an object that was made at another is a copy.
#[cfg(linux)]
pub(crate) fn forks() -> usize {
    FORKS.load(SeqCst)
}

#[pyfunction]
fn before_fork(py: Python<'_>) {
    FORKING.fetch_add(1, SeqCst);
    let own = BEGUN.get();
    wait(py, || WORKING.load(SeqCst) > own);
}

#[pyfunction]
fn after_fork_in_parent() {
    FORKING.fetch_sub(1, SeqCst);
}

#[pyfunction]
fn after_fork_in_child() {
    FORKS.fetch_add(1, SeqCst);
    // The other threads aren't there any more.
    WORKING.store(BEGUN.get(), SeqCst);
    ASKING.store(0, SeqCst);
    FORKING.store(0, SeqCst);
    alarms::forked();
}

#[pyfunction]
fn at_exit(py: Python<'_>) {
    ENDS.set(true);
    ENDING.store(true, SeqCst);
    wait(py, || ASKING.load(SeqCst) > 0);
}

fn wait(py: Python<'_>, others: impl Fn() -> bool + Send + Sync) {
    if others() {
        py.detach(|| {
            while others() {
                std::thread::sleep(LOOK);
            }
        });
    }
}

/// Registers the calls at a fork and at the interpreter's end.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let hooks = PyDict::new(py);
    hooks.set_item("before", wrap_pyfunction!(before_fork, module)?)?;
    hooks.set_item("after_in_parent", wrap_pyfunction!(after_fork_in_parent, module)?)?;
    hooks.set_item("after_in_child", wrap_pyfunction!(after_fork_in_child, module)?)?;
    // Windows has no fork.
    if let Some(register) = py.import("os")?.getattr_opt("register_at_fork")? {
        register.call((), Some(&hooks))?;
    }
    py.import("atexit")?.call_method1("register", (wrap_pyfunction!(at_exit, module)?,))?;
    Ok(())
}
