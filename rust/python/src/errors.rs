//! Rust's errors as the classes of `guestclock.errors`.

use crate::words::{self, count_name};
use core::fmt::Display;
use guestclock_core::arch::arm64::{Role, one_reg_id};
use guestclock_core::checkpoint::codec::WireError;
use guestclock_core::drive::{CallKind, Condition, Errno, FaultyError, OperationError, RestoreError};
use guestclock_core::restore::Refusal;
use guestclock_core::time::ElapsedError;
use guestclock_core::time::elapsed::UnknownElapsed;
use guestclock_model::bank::WentBackwards;
use guestclock_model::deadlines::{NotTaken, QueueError};
use guestclock_model::error::VmError;
use pyo3::exceptions::{
    PyBaseException, PyIndexError, PyMemoryError, PyOSError, PyOverflowError, PyResourceWarning, PyValueError,
};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;
use std::ffi::{CString, OsStr};
use std::io;

// The generic errno numbers, the same on every architecture of Linux.
const ENOENT: i32 = 2;
const EBUSY: i32 = 16;

/// An instance of `guestclock.errors.<class>` with these fields.
pub(crate) fn typed(class: &str, message: &str, fields: impl FnOnce(&Bound<'_, PyDict>) -> PyResult<()>) -> PyErr {
    static ERRORS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    Python::attach(|py| {
        let build = || {
            let errors = ERRORS.get_or_try_init(py, || PyModule::import(py, "guestclock.errors").map(Bound::unbind))?;
            let kwargs = PyDict::new(py);
            fields(&kwargs)?;
            errors.bind(py).getattr(class)?.call((message,), Some(&kwargs))
        };
        build().map_or_else(|error| error, PyErr::from_value)
    })
}

/// The error for a row of a batch that goes by its counter, if the counter has gone backwards.
pub(crate) fn went_backwards(row: usize, saved: u64, host: u64) -> PyErr {
    let message =
        format!("{}: it read {saved} then, and reads {host} now", words::went_backwards(WentBackwards { row }));
    typed("ClockWentBackwards", &message, |fields| {
        fields.set_item("clock", "host's counter (ticks)")?;
        fields.set_item("saved", saved)?;
        fields.set_item("host", host)
    })
}

/// An instance of `guestclock.errors.Misuse`.
pub(crate) fn misuse(message: &str) -> PyErr {
    typed("Misuse", message, |_| Ok(()))
}

/// An instance of `guestclock.errors.Interrupted` or of a subclass of it.
fn interrupted(
    class: &str,
    message: &str,
    step: &str,
    left: Condition,
    fields: impl FnOnce(&Bound<'_, PyDict>) -> PyResult<()>,
) -> PyErr {
    let (state, retry) = words::state_and_retry(left);
    typed(class, message, |all| {
        all.set_item("state", state)?;
        all.set_item("step", step)?;
        all.set_item("retry", retry)?;
        fields(all)
    })
}

/// Tells of a VM whose restore was given up: an interruption on its way says the state that the VM is in now. Where the
/// VM stays closed, any other exception on its way gets a note, and without one there is a warning.
pub(crate) fn given_up(
    py: Python<'_>,
    left: Condition,
    failure: Option<PyErr>,
    error: Option<&Bound<'_, PyBaseException>>,
    vm: &str,
) -> PyResult<()> {
    let interrupted = PyModule::import(py, "guestclock.errors")?.getattr("Interrupted")?;
    if let Some(error) = error.filter(|error| error.is_instance(&interrupted).unwrap_or(false)) {
        let (state, _) = words::state_and_retry(left);
        error.setattr("state", state)?;
        error.setattr("retry", "restore")?;
        return failure.map_or(Ok(()), |failure| failure_note(error, &failure));
    }
    let Some(closed) = words::closed(left) else { return Ok(()) };
    let sentence = format!("VM {vm:?}: the restore was given up, and {closed}");
    match error {
        Some(error) => {
            error.call_method1("add_note", (sentence,))?;
            failure.map_or(Ok(()), |failure| failure_note(error, &failure))
        }
        None => match failure {
            Some(failure) => Err(failure),
            None => PyErr::warn(py, &py.get_type::<PyResourceWarning>(), &CString::new(sentence)?, 1),
        },
    }
}

fn failure_note(error: &Bound<'_, PyBaseException>, failure: &PyErr) -> PyResult<()> {
    let py = error.py();
    let kind = failure.get_type(py);
    let note = format!("giving the restore up failed: {}: {}", kind.name()?, failure.value(py));
    error.call_method1("add_note", (note,)).map(drop)
}

/// The end of a `with` block. An error of it has the exception that ended the block as its context, as Python's own have:
/// where it has a cause, the first cause too, since a traceback shows no context of an error with a cause.
pub(crate) fn block_ended(ended: PyResult<()>, exc: &Bound<'_, PyAny>) -> PyResult<()> {
    let Err(error) = ended else { return Ok(()) };
    if exc.is_instance_of::<PyBaseException>() {
        let py = exc.py();
        let mut first = error.value(py).clone().into_any();
        first.setattr("__context__", exc)?;
        while let Some(cause) = Some(first.getattr("__cause__")?).filter(|cause| !cause.is_none()) {
            first = cause;
        }
        first.setattr("__context__", exc)?;
    }
    Err(error)
}

/// Warns that a VM stays closed. Called by destructors, so it raises nothing.
pub(crate) fn warn_closed(why: &str, vm: &str) {
    let sentence = format!("VM {vm:?}: {why}: its vCPUs can't run until a checkpoint is restored into it");
    // Nobody is left to tell where the interpreter is gone.
    let _ = Python::try_attach(|py| {
        // A destructor may run while an exception is on its way.
        let pending = PyErr::take(py);
        let sentence = CString::new(sentence).unwrap_or_default();
        if let Err(error) = PyErr::warn(py, &py.get_type::<PyResourceWarning>(), &sentence, 1) {
            error.write_unraisable(py, None);
        }
        if let Some(pending) = pending {
            pending.restore(py);
        }
    });
}

/// An errno as Python's own OSError, which chooses the class by it: with the text of the errno, and the file's name.
pub(crate) fn os_error(error: io::Error, path: Option<&OsStr>) -> PyErr {
    let Some(errno) = error.raw_os_error() else { return error.into() };
    Python::attach(|py| {
        let text = py.import("os").and_then(|os| os.call_method1("strerror", (errno,))).map(Bound::unbind);
        match (text, path.map(OsStr::to_owned)) {
            (Ok(text), Some(path)) => PyOSError::new_err((errno, text, path)),
            (Ok(text), None) => PyOSError::new_err((errno, text)),
            (Err(error), _) => error,
        }
    })
}

/// The error, with a note that names the VM of the bank.
pub(crate) fn noted(error: PyErr, handle: i64) -> PyErr {
    Python::attach(|py| {
        let note = error.value(py).call_method1("add_note", (format!("VM {handle} of the bank"),));
        note.err().unwrap_or(error)
    })
}

/// An error that becomes a Python exception.
pub(crate) trait IntoPyErr {
    /// The exception.
    fn into_pyerr(self) -> PyErr;

    /// Returns whether nobody is left who could make another call on the VM.
    fn is_the_end(&self) -> bool {
        false
    }
}

/// `?` on results with such errors.
pub(crate) trait OrRaise<T> {
    /// The value, or the exception raised.
    fn or_raise(self) -> PyResult<T>;
}

impl<T, E: IntoPyErr> OrRaise<T> for Result<T, E> {
    #[inline]
    fn or_raise(self) -> PyResult<T> {
        self.map_err(IntoPyErr::into_pyerr)
    }
}

impl IntoPyErr for QueueError {
    #[cold]
    fn into_pyerr(self) -> PyErr {
        let message = self.to_string();
        match self {
            Self::NoSuchGroup { .. } | Self::NoSuchTimer { .. } => PyIndexError::new_err(message),
            Self::TooManyTimers { .. } => PyOverflowError::new_err(message),
            Self::NoMemory { .. } => PyMemoryError::new_err(message),
            _ => PyValueError::new_err(message),
        }
    }
}

impl IntoPyErr for NotTaken {
    #[cold]
    fn into_pyerr(self) -> PyErr {
        PyMemoryError::new_err(self.to_string())
    }
}

impl IntoPyErr for VmError {
    #[cold]
    fn into_pyerr(self) -> PyErr {
        let (message, errno) = (words::vm_error(&self), self.errno());
        match self {
            Self::Removed => typed("NoSuchVm", &message, |_| Ok(())),
            Self::NoSuchVcpu { .. } => PyIndexError::new_err(message),
            Self::FrequencyTooHigh { .. } => PyValueError::new_err(message),
            Self::Running { vcpu } => typed("VcpuRunning", &message, |fields| {
                fields.set_item("errno", errno)?;
                fields.set_item("vcpu", vcpu)
            }),
            Self::NoSuchOneReg { id } => typed("UnknownRegister", &message, |fields| {
                fields.set_item("errno", errno)?;
                fields.set_item("reg", id)
            }),
            Self::Trap { encoding, to } => typed("SysregTrap", &message, |fields| {
                fields.set_item("reg", encoding.one_reg_id())?;
                fields.set_item("to_el", to)
            }),
            Self::NoSuchTimer { timer } => typed("UnknownRegister", &message, |fields| {
                fields.set_item("errno", errno)?;
                fields.set_item("reg", one_reg_id(Role::Cval(timer)))
            }),
            Self::NoSuchSysreg { encoding, .. } => typed("UnknownRegister", &message, |fields| {
                fields.set_item("errno", errno)?;
                fields.set_item("reg", encoding.one_reg_id())
            }),
            _ => typed("KvmError", &message, |fields| fields.set_item("errno", errno)),
        }
    }
}

impl IntoPyErr for Refusal {
    fn into_pyerr(self) -> PyErr {
        let message = words::refusal(&self);
        match self {
            Self::FrequencyMismatch { saved_hz, host_hz } => typed("FrequencyMismatch", &message, |fields| {
                fields.set_item("saved_hz", saved_hz)?;
                fields.set_item("host_hz", host_hz)
            }),
            Self::CounterSkew { cntvct, cntpct, .. } => typed("CounterSkew", &message, |fields| {
                fields.set_item("cntvct", cntvct)?;
                fields.set_item("cntpct", cntpct)
            }),
            Self::Elapsed(ElapsedError::ClockWentBackwards { clock, saved, host }) => {
                typed("ClockWentBackwards", &message, |fields| {
                    fields.set_item("clock", clock.to_string())?;
                    fields.set_item("saved", saved)?;
                    fields.set_item("host", host)
                })
            }
            Self::Elapsed(ElapsedError::Unknown(unknown)) => typed("ElapsedUnknown", &message, |fields| {
                fields.set_item("saved", UnknownElapsed::side(&unknown.saved))?;
                fields.set_item("host", UnknownElapsed::side(&unknown.here))?;
                fields.set_item("evidence", unknown.evidence.to_string())
            }),
            Self::Elapsed(ElapsedError::TooLong { elapsed_ns, longest_ns }) => {
                typed("ElapsedTooLong", &message, |fields| {
                    fields.set_item("elapsed_ns", elapsed_ns)?;
                    fields.set_item("longest_ns", longest_ns)
                })
            }
            Self::Elapsed(ElapsedError::ClocksDisagree(evidence)) => typed("ClocksDisagree", &message, |fields| {
                fields.set_item("counter_ns", evidence.counted_ns)?;
                fields.set_item("wall_clocks_ns", evidence.wall_ns)?;
                fields.set_item("allowed_ns", evidence.allowed_ns)?;
                fields.set_item("evidence", evidence.to_string())
            }),
            Self::DeadlineMissed { remaining_ns, needed_ns, within_ns } => {
                typed("DeadlineMissed", &message, |fields| {
                    fields.set_item("remaining_ns", remaining_ns)?;
                    fields.set_item("needed_ns", needed_ns)?;
                    fields.set_item("within_ns", within_ns)
                })
            }
            Self::TopologyMismatch { what, saved, host } => typed("TopologyMismatch", &message, |fields| {
                fields.set_item("what", what)?;
                fields.set_item("saved", saved)?;
                fields.set_item("host", host)
            }),
            Self::Unknown { what } => {
                typed("UnknownState", &message, |fields| fields.set_item("what", what.to_string()))
            }
            Self::OtherInstant(_) => typed("OtherInstant", &message, |_| Ok(())),
            Self::StalePlan => typed("StalePlan", &message, |_| Ok(())),
            Self::OutOfOrder { called } => typed("OutOfOrder", &message, |fields| fields.set_item("called", called)),
            Self::Overtaken => misuse(&message),
            Self::NoCounterOffset { .. } => {
                typed("CapabilityMissing", &message, |fields| fields.set_item("capability", "counter_offset"))
            }
            _ => typed("Refused", &message, |_| Ok(())),
        }
    }
}

/// An injected errno becomes the exception that KVM's would (`KvmError`).
impl<E: IntoPyErr + Display> IntoPyErr for FaultyError<E> {
    #[cold]
    fn into_pyerr(self) -> PyErr {
        let message = self.to_string();
        match self {
            Self::Backend(error) => error.into_pyerr(),
            Self::Crashed => typed("Crashed", &message, |_| Ok(())),
            Self::Injected { call, errno, .. } => match (call.kind, errno, call.reg) {
                (CallKind::Stopped | CallKind::SetCounterOffset, EBUSY, _) => {
                    typed("VcpuRunning", &message, |fields| {
                        fields.set_item("errno", errno)?;
                        fields.set_item("vcpu", None::<usize>)
                    })
                }
                (_, ENOENT, Some(id)) => typed("UnknownRegister", &message, |fields| {
                    fields.set_item("errno", errno)?;
                    fields.set_item("reg", id)
                }),
                _ => typed("KvmError", &message, |fields| fields.set_item("errno", errno)),
            },
            _ => typed("GuestClockError", &message, |_| Ok(())),
        }
    }

    fn is_the_end(&self) -> bool {
        matches!(self, Self::Crashed)
    }
}

impl<E: IntoPyErr + Display> IntoPyErr for OperationError<E> {
    fn into_pyerr(self) -> PyErr {
        let message = self.to_string();
        match self {
            Self::Backend(error) => error.into_pyerr(),
            Self::Restore(RestoreError::Refused(refusal)) => refusal.into_pyerr(),
            Self::Restore(RestoreError::Backend { error, .. }) if error.is_the_end() => error.into_pyerr(),
            Self::Restore(RestoreError::Backend { step, error, left }) => {
                let message = format!("{step}: {error}");
                let cause = error.into_pyerr();
                Python::attach(|py| {
                    if left == Condition::Untouched {
                        let note = cause.add_note(py, format!("while restoring: {step}; {left}"));
                        return note.map_or_else(|error| error, |()| cause);
                    }
                    let error = interrupted("Interrupted", &message, &step, left, |_| Ok(()));
                    error.set_cause(py, Some(cause));
                    error
                })
            }
            Self::Restore(RestoreError::ReadBack { vcpu, register, wrote, read }) => {
                let message = words::read_back(vcpu, register, wrote, read);
                interrupted("ReadBackMismatch", &message, "reading back", Condition::Partial, |fields| {
                    fields.set_item("vcpu", vcpu)?;
                    fields.set_item("register", register)?;
                    fields.set_item("wrote", wrote)?;
                    fields.set_item("read", read)
                })
            }
            Self::Restore(RestoreError::CounterElsewhere { vcpu, view, wanted, found, cause, left }) => {
                let message = words::counter_elsewhere(vcpu, view, wanted, found, cause);
                interrupted("ReadBackMismatch", &message, "reading the counters back", left, |fields| {
                    fields.set_item("vcpu", vcpu)?;
                    fields.set_item("register", count_name(view))?;
                    fields.set_item("wrote", wanted)?;
                    fields.set_item("read", found)
                })
            }
            Self::Restore(RestoreError::InterruptsOff { vcpu, timer }) => {
                let message = words::interrupts_off(vcpu, timer);
                interrupted("InterruptsOff", &message, "the interrupt controller", Condition::TimersOnly, |fields| {
                    fields.set_item("vcpu", vcpu)?;
                    fields.set_item("timer", timer.name())
                })
            }
            Self::Closed => typed("RestoreOpen", &message, |_| Ok(())),
            Self::StepOver | Self::StepEarly { .. } | Self::OptedIn => misuse(&message),
            Self::NoBacklog => typed("NoBacklog", &message, |_| Ok(())),
            Self::Removed => typed("NoSuchVm", &message, |_| Ok(())),
            Self::OffsetElsewhere { .. } => {
                typed("CountersMoved", &message, |fields| fields.set_item("view", "physical"))
            }
            Self::NotOneVm(error) => error.into_pyerr(),
            Self::StoppedLater { .. } | Self::OtherFrequency { .. } | Self::Build(_) => PyValueError::new_err(message),
            Self::TooFar { .. } => PyOverflowError::new_err(message),
            _ => typed("GuestClockError", &message, |_| Ok(())),
        }
    }
}

impl IntoPyErr for WireError {
    fn into_pyerr(self) -> PyErr {
        let message = self.to_string();
        match self {
            Self::NotACheckpoint => typed("NotACheckpoint", &message, |_| Ok(())),
            Self::TooLarge { size, limit } => typed("TooLarge", &message, |fields| {
                fields.set_item("size", size)?;
                fields.set_item("limit", limit)
            }),
            Self::Corrupt { stored, computed } => typed("Corrupt", &message, |fields| {
                fields.set_item("stored", stored)?;
                fields.set_item("computed", computed)
            }),
            Self::Malformed { offset, .. } => typed("Malformed", &message, |fields| fields.set_item("offset", offset)),
            Self::UnsupportedVersion { found, supported } => typed("UnsupportedVersion", &message, |fields| {
                fields.set_item("found", found)?;
                fields.set_item("supported", supported)
            }),
            Self::UnsupportedArch { found } => {
                typed("UnsupportedArch", &message, |fields| fields.set_item("found", found))
            }
            Self::UnsupportedFeature { feature } => {
                typed("UnsupportedFeature", &message, |fields| fields.set_item("feature", feature))
            }
            _ => typed("InvalidFile", &message, |_| Ok(())),
        }
    }
}
