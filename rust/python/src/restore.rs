//! Restores, step by step.

use crate::any_vm::{Failure, SharedVm, Verbs};
use crate::errors::{given_up, misuse, warn_closed};
use crate::observe;
use crate::plan::PyPlan;
use crate::process::{detached, locked};
use crate::records::{AnyNow, AnyStamp};
use crate::report::PyReport;
use crate::system::monotonic_ns;
use crate::words;

use guestclock_core::checkpoint::Checkpoint;
use guestclock_core::drive::{Condition, OpenRestore};
use guestclock_core::restore::{Plan, Report, Words};
use guestclock_core::time::Stamp;
use guestclock_model::locked::Now;
use pyo3::exceptions::{PyBaseException, PyGeneratorExit};
use pyo3::prelude::*;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Progress of a restore, as its object knows it.
pub(crate) enum Progress {
    /// Nothing was written.
    Planned,
    /// The VM is closed for this restore, and nothing was written: a restore of many closes all VMs before it writes.
    Closed(Box<OpenRestore>),
    /// Between the first step and the last.
    Open(Box<OpenRestore>),
    /// Released, with this report.
    Released(Py<PyReport>),
    /// Given up.
    GivenUp,
}

/// A restore around what the VMM restores itself: what `restoring` of a VM returns.
///
/// Inside its `with` block: the VMM's registers and vGIC, then `apply()`, then `release()`. Leaving the block without
/// `release()`, by whatever way, gives the restore up. A VM to which no register was written, and that had opted in
/// before or whose plan writes no offset, goes on as it was. Any other stays closed, can be restored again, and says
/// so: in a note on the exception that left the block, or else in a ResourceWarning.
#[pyclass(frozen, name = "Restore", module = "guestclock")]
pub(crate) struct PyRestore {
    plan: Plan,
    checkpoint: Arc<Checkpoint>,
    pub(crate) vm: SharedVm,
    /// Instant that the caller injected for the plan and the first step.
    pub(crate) now: Option<Now>,
    /// Locked, since each step changes how far the restore has got. Waiting for the lock gives up the interpreter's
    /// lock: an exception is made by Python code, in which another thread may get its turn and come here too.
    progress: Mutex<Progress>,
    /// Instant at which the VM was closed, in nanoseconds of CLOCK_MONOTONIC.
    closed_at_ns: AtomicU64,
}

impl PyRestore {
    pub(crate) fn new(plan: Plan, checkpoint: Arc<Checkpoint>, vm: SharedVm, now: Option<Now>) -> Self {
        let progress = Mutex::new(Progress::Planned);
        Self { plan, checkpoint, vm, now, progress, closed_at_ns: AtomicU64::new(0) }
    }

    /// Tells whoever watches of a release, or of a step that failed. Called without the lock, since it may run Python code.
    pub(crate) fn watched(
        &self,
        py: Python<'_>,
        stepped: PyResult<Option<Py<PyReport>>>,
    ) -> PyResult<Option<Py<PyReport>>> {
        match &stepped {
            Ok(Some(report)) => {
                let closed_ns = monotonic_ns().saturating_sub(self.closed_at_ns.load(Ordering::Relaxed));
                observe::done(py, &self.vm, "restore", report.bind(py).as_any(), closed_ns);
            }
            Ok(None) => {}
            Err(error) => observe::failed(py, &self.vm, "restore", error),
        }
        stepped
    }

    pub(crate) fn lock(&self, py: Python<'_>) -> MutexGuard<'_, Progress> {
        locked(py, &self.progress)
    }

    /// The progress of a restore that no other thread has.
    pub(crate) fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The three steps in one. An error gives the restore up.
    pub(crate) fn carry_out(self, py: Python<'_>) -> PyResult<Py<PyReport>> {
        let steps = || {
            self.step(py, Stage::Prepare, self.now.clone(), None)?;
            self.step(py, Stage::Apply, self.now.clone(), None)?;
            self.released(py, self.now.clone(), None)
        };
        steps().inspect_err(|error| {
            // What giving up fails with is a note on the error that led to it.
            let _ = self.give_up(py, Some(error.value(py)));
        })
    }

    fn step(
        &self,
        py: Python<'_>,
        stage: Stage,
        now: Option<Now>,
        at: Option<Stamp>,
    ) -> PyResult<Option<Py<PyReport>>> {
        let step = || {
            // Before the lock, since it may run Python code of a counter.
            let vm = self.vm.at_hand(py, if stage.begins() { self.now.clone() } else { now })?;
            let mut progress = self.lock(py);
            let stepped = {
                let progress = &mut *progress;
                detached(py, move || progress.step(self, &*vm, stage, at))
            };
            stepped.map_err(|failure| failure()).and_then(|report| progress.took(self, py, report))
        };
        self.watched(py, step())
    }

    fn released(&self, py: Python<'_>, now: Option<Now>, at: Option<Stamp>) -> PyResult<Py<PyReport>> {
        let report = self.step(py, Stage::Release, now, at)?;
        Ok(report.expect("a release has a report"))
    }

    /// Gives the restore up if it is open. `error` is the exception on its way, which gets the VM's state.
    fn give_up(&self, py: Python<'_>, error: Option<&Bound<'_, PyBaseException>>) -> PyResult<()> {
        if !self.lock(py).is_open() {
            return Ok(());
        }
        // Before the lock, since it may run Python code of a counter. A VM whose process is gone has nothing to give up,
        // and nothing that could be said of it.
        let vm = if self.vm.is_gone() { Ok(None) } else { self.vm.at_hand(py, None).map(Some) };
        let left = {
            let mut progress = self.lock(py);
            match mem::replace(&mut *progress, Progress::GivenUp) {
                Progress::Closed(mut open) | Progress::Open(mut open) => vm.and_then(|vm| {
                    let Some(vm) = vm else { return Ok(Condition::Untouched) };
                    detached(py, move || vm.give_up(&mut open)).map_err(|failure| failure())
                }),
                other => {
                    *progress = other;
                    return Ok(());
                }
            }
        };
        let (left, failure) = match left {
            Ok(left) => (left, None),
            Err(failure) => (Condition::Provisional, Some(failure)),
        };
        given_up(py, left, failure, error, self.vm.name().as_str())
    }
}

/// Step of a restore.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Closes the VM, and writes nothing.
    Close,
    /// The first write.
    Prepare,
    Apply,
    Release,
}

impl Stage {
    pub(crate) const NAMES: [(&'static str, Self); 4] =
        [("close", Self::Close), ("prepare", Self::Prepare), ("apply", Self::Apply), ("release", Self::Release)];

    /// Returns whether the step is part of the first, which is for the plan's instant.
    pub(crate) const fn begins(self) -> bool {
        matches!(self, Self::Close | Self::Prepare)
    }

    /// Name, as an error's `step` has it.
    pub(crate) fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, stage)| *stage == self).map_or("", |(name, _)| name)
    }
}

impl Progress {
    const fn is_open(&self) -> bool {
        matches!(self, Self::Closed(_) | Self::Open(_))
    }

    /// Makes a step, without the interpreter's lock. A release has a report, which is [taken note](Self::took) of.
    pub(crate) fn step(
        &mut self,
        of: &PyRestore,
        vm: &dyn Verbs,
        stage: Stage,
        at: Option<Stamp>,
    ) -> Result<Option<Box<Report>>, Failure> {
        let (plan, checkpoint) = (|| of.plan.clone(), || Arc::clone(&of.checkpoint));
        let closing_ns = monotonic_ns();
        match (stage, &mut *self) {
            (Stage::Close, Self::Planned) => *self = Self::Closed(Box::new(vm.close(plan(), checkpoint())?)),
            (Stage::Prepare, Self::Planned) => *self = Self::Open(Box::new(vm.prepare(plan(), checkpoint())?)),
            (Stage::Prepare, Self::Closed(open)) => {
                vm.begin(open)?;
                if let Self::Closed(open) = mem::replace(self, Self::GivenUp) {
                    *self = Self::Open(open);
                }
                return Ok(None);
            }
            (Stage::Apply, Self::Open(open)) => {
                vm.apply(open)?;
                return Ok(None);
            }
            (Stage::Release, Self::Open(open)) => return vm.release(open, at).map(|report| Some(Box::new(report))),
            (Stage::Close | Stage::Prepare, _) => {
                return Err(Box::new(|| misuse("a restore is entered once: call restoring() again")));
            }
            (Stage::Apply, other) => return Err(out_of_turn("apply", other)),
            (Stage::Release, other) => return Err(out_of_turn("release", other)),
        }
        of.closed_at_ns.store(closing_ns, Ordering::Relaxed);
        Ok(None)
    }

    /// Takes note of a release.
    pub(crate) fn took(
        &mut self,
        of: &PyRestore,
        py: Python<'_>,
        report: Option<Box<Report>>,
    ) -> PyResult<Option<Py<PyReport>>> {
        let Some(report) = report else { return Ok(None) };
        let report = Py::new(py, PyReport::of(*report, Some(Arc::clone(&of.checkpoint))))?;
        *self = Self::Released(report.clone_ref(py));
        Ok(Some(report))
    }
}

/// Misuse of a step that can't come now.
fn out_of_turn(called: &'static str, progress: &Progress) -> Failure {
    let message = match progress {
        Progress::Planned | Progress::Closed(_) => {
            format!("{called}() comes inside the block: with vm.restoring(...) as r")
        }
        Progress::Released(_) => {
            format!("{called}() can't come now: release() has ended this restore, and `report` has what it did")
        }
        _ => format!("{called}() can't come now: the restore was given up with its block: restoring() again"),
    };
    Box::new(move || misuse(&message))
}

#[pymethods]
impl PyRestore {
    /// The plan.
    #[getter]
    fn plan(&self) -> PyPlan {
        PyPlan::new(self.plan.clone(), Arc::clone(&self.checkpoint))
    }

    /// The report of the release. Misuse before it.
    #[getter]
    fn report(&self, py: Python<'_>) -> PyResult<Py<PyReport>> {
        match &*self.lock(py) {
            Progress::Released(report) => Ok(report.clone_ref(py)),
            _ => Err(misuse("the restore wasn't released: there is a report after release()")),
        }
    }

    /// The first step: opts the VM in with a provisional offset, if the plan's method is an offset.
    ///
    /// StalePlan if the VM has changed since the plan was made.
    fn __enter__(slf: Py<Self>, py: Python<'_>) -> PyResult<Py<Self>> {
        slf.get().step(py, Stage::Prepare, None, None)?;
        Ok(slf)
    }

    /// Gives the restore up, unless it was released.
    fn __exit__(
        &self,
        py: Python<'_>,
        _exc_type: &Bound<'_, PyAny>,
        exc: &Bound<'_, PyAny>,
        _tb: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        // A generator's exit reaches nobody, so a note on it wouldn't.
        let error = exc.cast::<PyBaseException>().ok().filter(|error| !error.is_instance_of::<PyGeneratorExit>());
        self.give_up(py, error)
    }

    /// The second step: every vCPU's timers, CVAL before CTL, read back. Interrupted says what to call again.
    #[pyo3(signature = (*, now=None))]
    fn apply(&self, py: Python<'_>, now: Option<AnyNow>) -> PyResult<()> {
        self.step(py, Stage::Apply, now.map(|now| now.0), None).map(drop)
    }

    /// The last step: samples the counter, sets the guest's counters, and lets the vCPUs run.
    ///
    /// With `at`, a Stamp of this host that another process may have taken, the guest goes on as if it had been released
    /// then, and sees the time since: so VMs of many processes go on from one instant. Refused, so that this step can be
    /// called again, for a stamp of another counter or boot, of before a sleep of the host, of before the plan, and of
    /// the future.
    ///
    /// Interrupted says what to call again: this step, or `apply()` where a timer was changed meanwhile.
    #[pyo3(signature = (*, at=None, now=None))]
    fn release(&self, py: Python<'_>, at: Option<AnyStamp>, now: Option<AnyNow>) -> PyResult<Py<PyReport>> {
        let at = at.map(|at| at.stamp("at")).transpose()?;
        self.released(py, now.map(|now| now.0), at)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let progress = match &*self.lock(py) {
            Progress::Planned => "planned",
            Progress::Closed(_) => "closed",
            Progress::Open(_) => "open",
            Progress::Released(_) => "released",
            Progress::GivenUp => "given up",
        };
        format!("<Restore {}, {progress}>", words::Python.policy(&self.plan.request.policy))
    }
}

impl Drop for PyRestore {
    fn drop(&mut self) {
        let progress = self.progress.get_mut().unwrap_or_else(PoisonError::into_inner);
        let reopened = match progress {
            Progress::Closed(open) | Progress::Open(open) => self.vm.abandon(open),
            Progress::Planned | Progress::Released(_) | Progress::GivenUp => true,
        };
        if !reopened {
            warn_closed("a restore was dropped outside of its block, without release()", self.vm.name().as_str());
        }
    }
}
