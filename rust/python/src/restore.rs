//! Plans, restores and reports.

use crate::any_vm::{Failure, SharedVm, Verbs, run};
use crate::arguments::{Int, shown};
use crate::checkpoint::PyCheckpoint;
use crate::errors::{OrRaise, given_up, misuse, warn_closed};
use crate::observe;
use crate::pickles::{self, State};
use crate::policy::{Spelled, to_python};
use crate::process::locked;
use crate::records::{self, AnyNow, AnyStamp};
use crate::system::monotonic_ns;
use crate::words;

use guestclock_core::arch::arm64::{IrqIds, View};
use guestclock_core::checkpoint::{Checkpoint, Interrupts, SavedVm};
use guestclock_core::drive::{Condition, Expected, OpenRestore};
use guestclock_core::guest::InSteps;
use guestclock_core::restore::{
    Diagnostic, Outcome, Plan, Report, TimerStatus, Words, Written, timer_status as status,
};
use guestclock_core::time::{Amount, ElapsedBy, ErrorBound, HostCount, Intent, OffsetInterval, Sleep, Stamp, Term};
use guestclock_model::locked::Now;
use pyo3::exceptions::{PyBaseException, PyGeneratorExit, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyType};
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) fn describe<'py>(py: Python<'py>, plan: &Plan) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    fields.set_item("policy", Spelled::new(&plan.request.policy).to_dict(py)?)?;
    fields.set_item("intent", plan.request.intent.map(Intent::name))?;
    fields.set_item("disrupts", plan.disrupts())?;
    fields.set_item("method", plan.method.name())?;
    fields.set_item("frequency_hz", plan.frequency().hz())?;
    fields.set_item("elapsed_by", plan.elapsed_by().map(ElapsedBy::name))?;
    fields.set_item("same_counter", plan.same_counter())?;
    let evidence = PyDict::new(py);
    evidence.set_item("same_source", plan.evidence.source)?;
    evidence.set_item("same_frequency", plan.evidence.frequency)?;
    evidence.set_item("same_machine", plan.evidence.machine)?;
    evidence.set_item("same_boot", plan.evidence.boot)?;
    evidence.set_item("went_forward", plan.evidence.forward)?;
    evidence.set_item("was_reset", plan.evidence.reset)?;
    evidence.set_item("slept", plan.evidence.sleep.to_string())?;
    let slept_ns = match plan.evidence.sleep {
        Sleep::Absent => Some([0, 0]),
        Sleep::Grew { least_ns, most_ns } => Some([least_ns, most_ns]),
        _ => None,
    };
    evidence.set_item("slept_ns", slept_ns)?;
    evidence.set_item("disagreement_ns", plan.evidence.disagreement_ns())?;
    evidence.set_item("allowed_ns", plan.evidence.allowed_ns)?;
    fields.set_item("evidence", evidence)?;
    fields.set_item("rate_step_ppb", plan.rate_step_ppb)?;
    fields.set_item("jump_ns", plan.jump_ns())?;
    fields.set_item("throttled_ns", plan.throttled_ns())?;
    let in_steps = plan.in_steps().map(|InSteps { step_ns, interval_ns, duration_ns }| {
        let steps = PyDict::new(py);
        steps.set_item("step_ns", step_ns)?;
        steps.set_item("interval_ns", interval_ns)?;
        steps.set_item("duration_ns", duration_ns)?;
        PyResult::Ok(steps)
    });
    fields.set_item("in_steps", in_steps.transpose()?)?;
    let limits = PyList::empty(py);
    for (limit, reached) in plan.limits() {
        let row = PyDict::new(py);
        row.set_item("name", limit.name)?;
        row.set_item("earliest_ns", limit.earliest_ns)?;
        row.set_item("at_ns", limit.at_ns)?;
        row.set_item("of", limit.of)?;
        row.set_item("reached", reached.name())?;
        limits.append(row)?;
    }
    fields.set_item("limits", limits)?;
    fields.set_item("assumptions", plain(py, &plan.assumptions, true)?)?;
    fields.set_item("unsupported", plain(py, &plan.unsupported, false)?)?;
    fields.set_item("degraded", plain(py, &plan.degraded, false)?)?;
    fields.set_item("warnings", plain(py, &plan.warnings, false)?)?;
    Ok(fields)
}

/// Diagnostics as plain values: their codes and texts, and the ground of an assumption.
fn plain<'py>(py: Python<'py>, diagnostics: &[Diagnostic], assumptions: bool) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for diagnostic in diagnostics {
        let fields = PyDict::new(py);
        fields.set_item("code", diagnostic.code())?;
        fields.set_item("text", words::Python.diagnostic(diagnostic))?;
        if assumptions {
            fields.set_item("ground", diagnostic.ground().name())?;
        }
        list.append(fields)?;
    }
    Ok(list)
}

fn describe_outcome(fields: &Bound<'_, PyDict>, plan: &Plan, outcome: &Outcome, bound: &ErrorBound) -> PyResult<()> {
    let py = fields.py();
    let frequency = plan.frequency();
    let saved = PyDict::new(py);
    saved.set_item("host_count", plan.saved_at().count.0)?;
    saved.set_item("cntvct", plan.saved_counter(View::Virtual).0)?;
    saved.set_item("cntpct", plan.saved_counter(View::Physical).0)?;
    fields.set_item("saved", saved)?;
    // Host-wide, as the saved count is: documents travel.
    fields.set_item("host_count", plan.stamped(outcome).0)?;
    fields.set_item("cntvct", outcome.cntvct.0)?;
    fields.set_item("cntpct", outcome.cntpct.0)?;
    fields.set_item("added_ticks", outcome.added_ticks)?;
    fields.set_item("added_ns", frequency.ticks_to_ns(outcome.added_ticks))?;
    fields.set_item("capped", outcome.capped)?;
    fields.set_item("behind_ns", outcome.behind.map(|behind| behind.ns(frequency)))?;
    fields.set_item("behind_error_ns", outcome.behind.map(|behind| behind.error_ns(frequency)))?;
    let backlog = plan.backlog(outcome).map(|backlog| {
        let owed = PyDict::new(py);
        owed.set_item("remaining_ticks", backlog.remaining_ticks.get())?;
        owed.set_item("remaining_ns", frequency.ticks_to_ns(backlog.remaining_ticks.get()))?;
        owed.set_item("steps", backlog.steps(frequency))?;
        owed.set_item("step_ns", backlog.step_ns.get())?;
        owed.set_item("interval_ns", backlog.interval_ns.get())?;
        owed.set_item("duration_ns", backlog.duration_ns(frequency))?;
        owed.set_item("rate_permille", backlog.rate_permille())?;
        PyResult::Ok(owed)
    });
    fields.set_item("backlog", backlog.transpose()?)?;
    let sum = bound.ticks(frequency);
    fields.set_item("error_bound_ticks", sum)?;
    fields.set_item("error_bound_ns", frequency.ticks_to_ns_ceil(sum))?;
    let terms = PyList::empty(py);
    for Term { what, amount, ground } in bound.terms() {
        let term = PyDict::new(py);
        term.set_item("what", what)?;
        term.set_item("ground", ground.name())?;
        match amount {
            Amount::Ticks(ticks) => term.set_item("ticks", ticks)?,
            Amount::Ns(ns) => term.set_item("ns", ns)?,
            Amount::LessTicks(ticks) => term.set_item("ticks", -i128::from(ticks))?,
        }
        terms.append(term)?;
    }
    fields.set_item("error_bound_terms", terms)
}

/// A plan of a restore: a dry run. `print` it, or take `to_dict()`.
///
/// The numbers are as of the plan's sample; its decisions stand until the VM's state changes. A plan and a report are
/// values to look at, which hold no VM: they compare, and their pickles are read by the version that wrote them.
#[pyclass(frozen, eq, name = "Plan", module = "guestclock")]
#[derive(PartialEq)]
pub(crate) struct PyPlan {
    plan: Plan,
    checkpoint: Arc<Checkpoint>,
}

impl PyPlan {
    pub(crate) fn new(plan: Plan, checkpoint: Arc<Checkpoint>) -> Self {
        Self { plan, checkpoint }
    }
}

#[pymethods]
impl PyPlan {
    /// The policy.
    #[getter]
    fn policy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        to_python(py, self.plan.request.policy)
    }

    /// The method by which the counters will be set: "offset", "by-value" or "virtual-only".
    #[getter]
    fn method(&self) -> &'static str {
        self.plan.method.name()
    }

    /// True if the VM's counter is the checkpoint's counter.
    #[getter]
    fn same_counter(&self) -> bool {
        self.plan.same_counter()
    }

    /// Source of the elapsed time: "given", "counter", "wall-clocks" or "boot-time"; None where nobody knows it, which
    /// `Freeze` alone can do without.
    #[getter]
    fn elapsed_by(&self) -> Option<&'static str> {
        self.plan.elapsed_by().map(ElapsedBy::name)
    }

    /// Time by which the guest's wall clock falls behind, in nanoseconds: what that it has missed and isn't given at once.
    /// None where nobody knows.
    #[getter]
    fn behind_ns(&self) -> Option<u64> {
        self.plan.as_of.behind.map(|behind| behind.ns(self.plan.frequency()))
    }

    /// Largest error of `behind_ns`, in nanoseconds.
    #[getter]
    fn behind_error_ns(&self) -> Option<u64> {
        self.plan.as_of.behind.map(|behind| behind.error_ns(self.plan.frequency()))
    }

    /// Time by which the guest's clock jumps at once, in nanoseconds: the added time, or the longest step of a backlog. A
    /// Linux guest charges it to the task that ran on each vCPU.
    #[getter]
    fn jump_ns(&self) -> u128 {
        self.plan.jump_ns()
    }

    /// Limits of a Linux guest with the settings `guest`, and whether that jump crosses them: a list of `GuestLimit`.
    #[getter]
    fn limits<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        records::guest_limits(py, self.plan.limits())
    }

    /// Time for which the CPU quota of `guest` throttles a group whose task ran on one vCPU at the pause, in nanoseconds:
    /// the kernel takes the jump for CPU time. It is longer where periods of the quota begin late. None for a guest
    /// without a quota.
    #[getter]
    fn throttled_ns(&self) -> Option<u128> {
        self.plan.throttled_ns()
    }

    /// Warnings to read before going on: a list of `Diagnostic`.
    #[getter]
    fn warnings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        records::diagnostics(py, &self.plan.warnings, false)
    }

    /// Assumptions under which the error bound holds: a list of `Diagnostic`.
    #[getter]
    fn assumptions<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        records::diagnostics(py, &self.plan.assumptions, true)
    }

    /// State that can't be preserved: a list of `Diagnostic`.
    #[getter]
    fn unsupported<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        records::diagnostics(py, &self.plan.unsupported, false)
    }

    /// Accesses that are slower for the guest from now on: a list of `Diagnostic`.
    #[getter]
    fn degraded<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        records::diagnostics(py, &self.plan.degraded, false)
    }

    /// The most by which the counters may be off the policy's promise, in ticks, as of the sample.
    #[getter]
    fn error_bound_ticks(&self) -> u64 {
        self.plan.as_of.bound.ticks(self.plan.frequency())
    }

    /// The error bound in nanoseconds, rounded up.
    #[getter]
    fn error_bound_ns(&self) -> u128 {
        self.plan.frequency().ticks_to_ns_ceil(self.error_bound_ticks())
    }

    /// True if the guest's counters lose step with real time, as a vmclock page has to say: every plan except an
    /// `Advance` on the same counter by all the time that has passed.
    #[getter]
    fn disrupts(&self) -> bool {
        self.plan.disrupts()
    }

    /// The increase of the guest's counter rate from the saving host to this one, in parts per billion, as both kernels
    /// measured their counters; None where one doesn't know. It isn't part of the bound: it acts after the restore.
    #[getter]
    fn rate_step_ppb(&self) -> Option<i64> {
        self.plan.rate_step_ppb
    }

    /// All fields as plain Python values, for JSON.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let fields = describe(py, &self.plan)?;
        describe_outcome(&fields, &self.plan, &self.plan.as_of, &self.plan.as_of.bound)?;
        let overdue = PyList::empty(py);
        for late in &self.plan.overdue {
            let row = PyDict::new(py);
            row.set_item("vcpu", late.vcpu)?;
            row.set_item("timer", late.timer.name())?;
            row.set_item("line", late.line)?;
            row.set_item("overdue_ticks", late.overdue_ticks)?;
            let ns = late.overdue_ticks.map(|ticks| self.plan.frequency().ticks_to_ns(ticks));
            row.set_item("overdue_ns", ns)?;
            row.set_item("passed_in_pause", late.passed_in_pause)?;
            overdue.append(row)?;
        }
        fields.set_item("overdue", overdue)?;
        Ok(fields)
    }

    /// Every timer of every vCPU as the guest would find it if it went on at the plan's sample: a list of
    /// `TimerStatus`, each vCPU's in their order.
    ///
    /// The physical timer is left out where it isn't restored ("virtual-only").
    fn timers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let vm = self.checkpoint.only().or_raise()?;
        let shift = self.plan.cval_shift(&self.plan.as_of);
        records::timer_outlooks(py, self.plan.timers_at(&vm, &self.plan.as_of, shift))
    }

    fn __str__(&self) -> String {
        self.plan.in_words(&words::Python).to_string()
    }

    /// Makes a plan again from its pickle's state.
    #[classmethod]
    fn _again(
        _class: &Bound<'_, PyType>,
        version: &str,
        values: &[u8],
        checksum: Int<u32>,
        checkpoint: &Bound<'_, PyCheckpoint>,
    ) -> PyResult<Self> {
        let checkpoint = Arc::clone(&checkpoint.get().0);
        let (plan, _) = pickles::again(version, values, checksum.0, Some(&checkpoint))?;
        Ok(Self { plan, checkpoint })
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, State<'py>)> {
        let Self { plan, checkpoint } = slf.get();
        Ok((slf.get_type().getattr("_again")?, pickles::state(slf.py(), plan, None, Some(checkpoint))?))
    }

    fn __repr__(&self) -> String {
        format!("<Plan {} by {}>", words::Python.policy(&self.plan.request.policy), self.plan.method.name())
    }
}

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
        let stepped = {
            let mut progress = self.lock(py);
            let now = if stage.begins() { self.now.clone() } else { now };
            let stepped = {
                let progress = &mut *progress;
                run(py, &self.vm, now, move |vm| progress.step(self, vm, stage, at))
            };
            stepped.and_then(|report| progress.took(self, py, report))
        };
        self.watched(py, stepped)
    }

    fn released(&self, py: Python<'_>, now: Option<Now>, at: Option<Stamp>) -> PyResult<Py<PyReport>> {
        let report = self.step(py, Stage::Release, now, at)?;
        Ok(report.expect("a release has a report"))
    }

    /// Gives the restore up if it is open. `error` is the exception on its way, which gets the VM's state.
    fn give_up(&self, py: Python<'_>, error: Option<&Bound<'_, PyBaseException>>) -> PyResult<()> {
        let left = {
            let mut progress = self.lock(py);
            match mem::replace(&mut *progress, Progress::GivenUp) {
                // A VM whose process is gone has nothing to give up, and nothing that could be said of it.
                Progress::Closed(_) | Progress::Open(_) if self.vm.is_gone() => Ok(Condition::Untouched),
                Progress::Closed(mut open) | Progress::Open(mut open) => {
                    run(py, &self.vm, None, |vm| vm.give_up(&mut open))
                }
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
        let report = Py::new(py, PyReport { report: *report, checkpoint: Some(Arc::clone(&of.checkpoint)) })?;
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

/// A report of a restore or a pause. `print` it, or take `to_dict()`. It pickles and compares as a `Plan` does.
#[pyclass(frozen, eq, name = "Report", module = "guestclock")]
#[derive(PartialEq)]
pub(crate) struct PyReport {
    report: Report,
    /// The restored checkpoint; None in place, where the timers stayed where they were.
    checkpoint: Option<Arc<Checkpoint>>,
}

/// A report or a checkpoint that a VM's clocks are compared with.
pub(crate) enum AnyGiven<'py> {
    Report(Bound<'py, PyReport>),
    Checkpoint(Bound<'py, PyCheckpoint>),
}

impl<'py> FromPyObject<'_, 'py> for AnyGiven<'py> {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let report = object.cast::<PyReport>().map(|report| Self::Report(report.to_owned()));
        let checkpoint = || object.cast::<PyCheckpoint>().map(|checkpoint| Self::Checkpoint(checkpoint.to_owned()));
        report.or_else(|_| checkpoint()).map_err(|_| {
            PyTypeError::new_err(format!("{} is neither a Report nor a Checkpoint of one VM", shown(&object)))
        })
    }
}

impl AnyGiven<'_> {
    /// The core's.
    pub(crate) fn expected(given: Option<&Self>) -> Expected<'_> {
        match given {
            None => Expected::Nothing,
            Some(Self::Report(report)) => Expected::Released(&report.get().report),
            Some(Self::Checkpoint(checkpoint)) => Expected::Saved(&checkpoint.get().0),
        }
    }
}

impl PyReport {
    /// The report of a pause.
    pub(crate) const fn in_place(report: Report) -> Self {
        Self { report, checkpoint: None }
    }

    /// The report of a restore of this checkpoint of one VM, or of a pause.
    pub(crate) const fn of(report: Report, checkpoint: Option<Arc<Checkpoint>>) -> Self {
        Self { report, checkpoint }
    }

    fn statuses(&self) -> impl Iterator<Item = TimerStatus> {
        let restored = |vm: SavedVm<'_>| {
            let statuses = self.report.plan.timers_at(&vm, &self.report.outcome, self.report.cval_shift);
            statuses.collect::<Vec<_>>()
        };
        self.checkpoint.iter().filter_map(|checkpoint| checkpoint.only().ok()).flat_map(restored)
    }
}

#[pymethods]
impl PyReport {
    /// The policy.
    #[getter]
    fn policy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        to_python(py, self.report.plan.request.policy)
    }

    /// The method by which the counters were set: "offset", "by-value" or "virtual-only".
    #[getter]
    fn method(&self) -> &'static str {
        self.report.plan.method.name()
    }

    /// The host's count at the last sample, as the counter's `read` gives it: the counters below belong to it.
    #[getter]
    fn released_at(&self) -> u64 {
        self.report.outcome.count.0
    }

    /// The host's count at the end of the call that released, once all was read back. Under `Freeze` the guest sees what
    /// passes from `released_at` to there, and what comes until it is entered (`resumed_at`).
    #[getter]
    fn returned_at(&self) -> u64 {
        self.report.returned_at.0
    }

    /// The guest's virtual counter at the last sample.
    #[getter]
    fn cntvct(&self) -> u64 {
        self.report.outcome.cntvct.0
    }

    /// The guest's physical counter at the last sample.
    #[getter]
    fn cntpct(&self) -> u64 {
        self.report.outcome.cntpct.0
    }

    /// The guest time that the policy added, in ticks.
    #[getter]
    fn added_ticks(&self) -> u64 {
        self.report.outcome.added_ticks
    }

    /// The guest time that the policy added, in nanoseconds, rounded down.
    #[getter]
    fn added_ns(&self) -> u128 {
        self.report.plan.frequency().ticks_to_ns(self.report.outcome.added_ticks)
    }

    /// Source of the elapsed time: "given", "counter", "wall-clocks" or "boot-time"; None where nobody knows it, which
    /// `Freeze` alone can do without.
    #[getter]
    fn elapsed_by(&self) -> Option<&'static str> {
        self.report.plan.elapsed_by().map(ElapsedBy::name)
    }

    /// Time by which the guest's wall clock falls behind, in nanoseconds: what that it has missed and isn't given at once.
    /// None where nobody knows.
    #[getter]
    fn behind_ns(&self) -> Option<u64> {
        self.report.outcome.behind.map(|behind| behind.ns(self.report.plan.frequency()))
    }

    /// Largest error of `behind_ns`, in nanoseconds.
    #[getter]
    fn behind_error_ns(&self) -> Option<u64> {
        self.report.outcome.behind.map(|behind| behind.error_ns(self.report.plan.frequency()))
    }

    /// Warnings about what was done: a list of `Diagnostic`.
    #[getter]
    fn warnings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        records::diagnostics(py, &self.report.plan.warnings, false)
    }

    /// Assumptions under which the error bound holds: a list of `Diagnostic`.
    #[getter]
    fn assumptions<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        records::diagnostics(py, &self.report.plan.assumptions, true)
    }

    /// State that can't be preserved: a list of `Diagnostic`.
    #[getter]
    fn unsupported<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        records::diagnostics(py, &self.report.plan.unsupported, false)
    }

    /// Accesses that are slower for the guest from now on: a list of `Diagnostic`.
    #[getter]
    fn degraded<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        records::diagnostics(py, &self.report.plan.degraded, false)
    }

    /// True if more time had passed than the policy let through.
    #[getter]
    fn capped(&self) -> bool {
        self.report.outcome.capped
    }

    /// The most by which the counters may be off the policy's promise, in ticks.
    #[getter]
    fn error_bound_ticks(&self) -> u64 {
        self.report.bound.ticks(self.report.plan.frequency())
    }

    /// True if the guest's counters lost step with real time: `disrupted=` of `VmClock.update`.
    #[getter]
    fn disrupts(&self) -> bool {
        self.report.plan.disrupts() || self.report.outcome.capped
    }

    /// The error bound in nanoseconds, rounded up.
    #[getter]
    fn error_bound_ns(&self) -> u128 {
        self.report.plan.frequency().ticks_to_ns_ceil(self.error_bound_ticks())
    }

    /// The guest's backlog, in ticks: 0 except under `CatchUp`, or where there was a backlog before.
    #[getter]
    fn backlog_ticks(&self) -> u64 {
        self.report.outcome.backlog_ticks
    }

    /// The report with the host's count at the first guest entry added, from a VMM that knows it.
    ///
    /// ValueError for a count before the release.
    fn resumed_at(&self, count: Int<u64>) -> PyResult<Self> {
        let released = self.released_at();
        let report = self.report.resumed_at(HostCount(count.0)).ok_or_else(|| {
            PyValueError::new_err(format!("the guest can't have resumed at {}: it was released at {released}", count.0))
        })?;
        Ok(Self { report, checkpoint: self.checkpoint.clone() })
    }

    /// Every timer of every vCPU as the guest finds it at the release: a list of `TimerStatus`, each vCPU's in their
    /// order.
    ///
    /// The physical timer is left out where it isn't restored ("virtual-only"). The list is empty for a pause, whose
    /// timers weren't read.
    fn timers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        records::timer_outlooks(py, self.statuses())
    }

    /// The timers' interrupts whose pending latch will do harm, by the lines at the release: a list of `LatchMismatch`.
    ///
    /// `pending` is each vCPU's GICR_ISPENDR0 as KVM_DEV_ARM_VGIC_GRP_REDIST_REGS reads it, 32 bits: from a saved vGIC,
    /// or from `KvmVm.pending_latches()`. The interrupt ids are those of `irqs`, of the checkpoint, or the default ones
    /// (27, 30, 28 and 26), in this order. Pending without the line is one interrupt that no timer accounts for. The
    /// line without pending is how KVM keeps a timer that is due, and isn't listed: KVM raises the line itself when the
    /// vCPU is next loaded (`kvm_timer_vcpu_load`, arch/arm64/kvm/arch_timer.c). With `userspace_gic` it is listed too:
    /// there the VMM has to raise it.
    ///
    /// ValueError if there aren't as many words as vCPUs, and for an id that isn't a PPI.
    #[pyo3(signature = (pending, *, irqs=None, userspace_gic=false))]
    fn latch_mismatches<'py>(
        &self,
        py: Python<'py>,
        pending: Vec<Int<u32>>,
        irqs: Option<Bound<'py, PyDict>>,
        userspace_gic: bool,
    ) -> PyResult<Bound<'py, PyList>> {
        let vcpus = self.checkpoint.as_ref().map_or(pending.len(), |checkpoint| checkpoint.vcpus());
        if pending.len() != vcpus {
            return Err(PyValueError::new_err(format!(
                "pending has {} words, and {vcpus} vCPUs were restored: give GICR_ISPENDR0 of each",
                pending.len()
            )));
        }
        let pending: Vec<u32> = pending.into_iter().map(|Int(latches)| latches).collect();
        let mut ids = IrqIds::new(true);
        let saved = self.checkpoint.as_ref().and_then(|checkpoint| checkpoint.only().ok()?.time().interrupts);
        for (timer, id) in (0..).zip(saved.map_or([0; 4], |Interrupts(ids)| ids)) {
            // An id that isn't a PPI isn't in GICR_ISPENDR0: the default stays.
            let _ = i32::try_from(id).map(|id| ids.set(timer, id, true));
        }
        for (timer, id) in irqs.iter().flatten() {
            let set = ids.set(timer.extract::<Int<_>>()?.0, id.extract::<Int<_>>()?.0, true);
            set.map_err(|error| PyValueError::new_err(format!("irqs: {error}")))?;
        }
        let mismatches = status::latch_mismatches(self.statuses(), &pending, &ids);
        records::latch_mismatches(py, mismatches.filter(|found| userspace_gic || found.pending))
    }

    /// All fields as plain Python values, for JSON.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let report = &self.report;
        let fields = describe(py, &report.plan)?;
        describe_outcome(&fields, &report.plan, &report.outcome, &report.bound)?;
        let interval = |known: OffsetInterval| [known.low.0, known.width];
        let written = PyDict::new(py);
        match report.written {
            Written::Offset { provisional, last } => {
                written.set_item("provisional_offset", provisional.map(|offset| offset.0))?;
                written.set_item("offset", last.0)?;
            }
            Written::ByValue { virt, phys } => {
                written.set_item("virtual_offset_low_width", interval(virt))?;
                written.set_item("physical_offset_low_width", phys.map(interval))?;
            }
        }
        written.set_item("offset_writes", report.writes.offsets)?;
        written.set_item("register_writes", report.writes.registers)?;
        fields.set_item("written", written)?;
        fields.set_item("cval_shift_ticks", report.cval_shift)?;
        fields.set_item("stopped_before_ticks", report.stopped_before_ticks)?;
        fields.set_item("returned_at", report.returned_at.0)?;
        fields.set_item("after_release_ticks", report.after_release_ticks)?;
        Ok(fields)
    }

    fn __str__(&self) -> String {
        self.report.in_words(&words::Python).to_string()
    }

    /// Makes a report again from its pickle's state.
    #[classmethod]
    fn _again(
        _class: &Bound<'_, PyType>,
        version: &str,
        values: &[u8],
        checksum: Int<u32>,
        checkpoint: Option<&Bound<'_, PyCheckpoint>>,
    ) -> PyResult<Self> {
        let checkpoint = checkpoint.map(|checkpoint| Arc::clone(&checkpoint.get().0));
        let (plan, released) = pickles::again(version, values, checksum.0, checkpoint.as_deref())?;
        let released =
            released.ok_or_else(|| PyValueError::new_err("the pickle is of a plan, and a report is read"))?;
        Ok(Self { report: Report::new(plan, released), checkpoint })
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, State<'py>)> {
        let Self { report, checkpoint } = slf.get();
        let state = pickles::state(slf.py(), &report.plan, Some(report.released()), checkpoint.as_ref())?;
        Ok((slf.get_type().getattr("_again")?, state))
    }

    fn __repr__(&self) -> String {
        format!(
            "<Report {} by {}: {} ticks added>",
            words::Python.policy(&self.report.plan.request.policy),
            self.method(),
            self.added_ticks()
        )
    }
}
