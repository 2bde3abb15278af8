//! Sets of a bank's VMs: paused, and what became of a set that was restored or went on.

use crate::arrays::as_array;
use crate::counters::AnyCounter;
use crate::errors::{IntoPyErr, OrRaise, misuse, noted, warn_closed};
use crate::plan::PyPlan;
use crate::policy::AnyPolicy;
use crate::process::{detached, locked};
use crate::records::AnyNow;
use crate::report::PyReport;
use guestclock_core::checkpoint::{Checkpoint, SavedVm};
use guestclock_core::drive::OperationError;
use guestclock_core::guest::Reached;
use guestclock_core::restore::{Diagnostic, Outcome, Plan, Plans, Refusal, Saved};
use guestclock_core::time::{Counter, ElapsedBy};
use guestclock_model::bank::Handle;
use guestclock_model::error::VmError;
use guestclock_model::locked::LockedBank;
use guestclock_model::managed::ManagedBank;
use guestclock_model::sets::{OpenPauses, SetError, SetReport};
use numpy::PyArray1;
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use std::sync::{Arc, Mutex, PoisonError};

/// A bank and its counter, for what is done to sets of its VMs.
pub(crate) struct Sets {
    pub(crate) bank: Arc<LockedBank>,
    pub(crate) counter: AnyCounter,
}

impl Sets {
    /// Works on the bank over its counter, or over one instant of it, without the GIL.
    pub(crate) fn with<T: Send>(
        &self,
        py: Python<'_>,
        now: Option<AnyNow>,
        work: impl FnOnce(&mut ManagedBank, &dyn Counter) -> Result<T, SetError> + Send,
    ) -> PyResult<T> {
        let now = now.map(|now| now.0);
        let _sample = self.counter.stamped(py, now.as_ref())?;
        let instant = now.map(|now| now.instant::<VmError>(&self.counter)).transpose().or_raise()?;
        let done = detached(py, || match instant {
            None => self.bank.with(|bank| work(bank, &self.counter)),
            Some(instant) => self.bank.with(|bank| work(bank, &instant)),
        });
        done.or_raise()
    }
}

/// Guest time that the VMs of a set went on from.
enum Origin {
    Saved(Arc<Checkpoint>),
    Paused(Box<OpenPauses>),
}

/// Outcome of a set of VMs that were restored or went on together, a row each VM. `guestclock.fleet` names the rows.
#[pyclass(frozen, name = "_SetReport", module = "guestclock._core")]
pub(crate) struct PySetReport {
    set: SetReport,
    origin: Origin,
}

impl PySetReport {
    pub(crate) const fn restored(set: SetReport, checkpoint: Arc<Checkpoint>) -> Self {
        Self { set, origin: Origin::Saved(checkpoint) }
    }

    fn of_plans<'py, T: Clone + IntoPyObject<'py>>(
        &self,
        py: Python<'py>,
        value: impl Fn(&Plan, &Outcome) -> T,
    ) -> PyResult<Bound<'py, PyList>> {
        let values: Vec<T> =
            self.set.plans.plans.iter().zip(self.set.outcomes()).map(|(plan, outcome)| value(plan, &outcome)).collect();
        PyList::new(py, self.set.plans.plan_of.iter().map(|plan| values[*plan as usize].clone()))
    }
}

impl PySetReport {
    /// Each VM's plan as of its release: the warnings depend on its own registers and counters.
    fn plans(&self) -> PyResult<Vec<Plan>> {
        let of = |row: usize, saved: &Saved<'_>| Ok(self.set.report(row, saved).map_err(refused)?.plan);
        match &self.origin {
            Origin::Saved(checkpoint) => {
                checkpoint.vms().enumerate().map(|(row, vm)| of(row, &Saved::from(&vm))).collect()
            }
            Origin::Paused(pauses) => (0..self.set.vms.len()).map(|row| of(row, &pauses.saved(row))).collect(),
        }
    }
}

/// The exception of a refusal.
fn refused(error: Refusal) -> PyErr {
    OperationError::<VmError>::from(error).into_pyerr()
}

#[pymethods]
impl PySetReport {
    /// The VMs' handles (int64).
    #[getter]
    fn vms<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        as_array(py, self.set.vms.iter().copied())
    }

    /// Handles of the VMs that had left the pause, since they were restored or paused after it (int64).
    #[getter]
    fn overtaken<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        let overtaken = match &self.origin {
            Origin::Saved(_) => [].as_slice(),
            Origin::Paused(pauses) => pauses.overtaken(),
        };
        as_array(py, overtaken.iter().copied())
    }

    /// Facts of the VMs' reports, by their names: sequences with a value a row.
    fn columns<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let set = &self.set;
        let columns = PyDict::new(py);
        columns.set_item("method", self.of_plans(py, |plan, _| plan.method.name())?)?;
        columns.set_item("evidence", self.of_plans(py, |plan, _| plan.elapsed_by().map(ElapsedBy::name))?)?;
        let plans = self.plans()?;
        set_column(&columns, "assumptions", &plans, |plan| codes(&plan.assumptions))?;
        set_column(&columns, "warnings", &plans, |plan| codes(&plan.warnings))?;
        set_column(&columns, "limits", &plans, crossed)?;
        columns.set_item("capped", self.of_plans(py, |_, outcome| outcome.capped)?)?;
        columns.set_item("released_at", self.of_plans(py, |_, outcome| outcome.count.0)?)?;
        columns.set_item("cntvct", PyArray1::from_slice(py, &set.cntvct))?;
        columns.set_item("cntpct", PyArray1::from_slice(py, &set.cntpct))?;
        columns.set_item("added_ticks", PyArray1::from_slice(py, &set.added_ticks))?;
        let added_ns = |plan: &Plan, outcome: &Outcome| plan.frequency().ticks_to_ns(outcome.added_ticks);
        columns.set_item("added_ns", self.of_plans(py, added_ns)?)?;
        columns.set_item("backlog_ticks", self.of_plans(py, |_, outcome| outcome.backlog_ticks)?)?;
        let behind = |plan: &Plan, outcome: &Outcome| outcome.behind.map(|behind| behind.ns(plan.frequency()));
        columns.set_item("behind_ns", self.of_plans(py, behind)?)?;
        let error = |plan: &Plan, outcome: &Outcome| outcome.behind.map(|behind| behind.error_ns(plan.frequency()));
        columns.set_item("behind_error_ns", self.of_plans(py, error)?)?;
        let bound = |plan: &Plan, outcome: &Outcome| outcome.bound.ticks(plan.frequency());
        columns.set_item("error_bound_ticks", self.of_plans(py, bound)?)?;
        let bound_ns = |plan: &Plan, outcome: &Outcome| plan.frequency().ticks_to_ns_ceil(bound(plan, outcome));
        columns.set_item("error_bound_ns", self.of_plans(py, bound_ns)?)?;
        Ok(columns)
    }

    /// Report of the VM at this row.
    fn report(&self, row: usize) -> PyResult<PyReport> {
        let no_row = || PyIndexError::new_err(format!("there is no row {row}: the set has {}", self.set.vms.len()));
        if row >= self.set.vms.len() {
            return Err(no_row());
        }
        match &self.origin {
            Origin::Saved(checkpoint) => {
                let alone = Arc::new(checkpoint.vms().nth(row).ok_or_else(no_row)?.alone());
                let report = self.set.report(row, &Saved::from(&alone.only().or_raise()?)).map_err(refused)?;
                Ok(PyReport::of(report, Some(alone)))
            }
            Origin::Paused(pauses) => {
                Ok(PyReport::of(self.set.report(row, &pauses.saved(row)).map_err(refused)?, None))
            }
        }
    }

    /// Number of VMs.
    fn __len__(&self) -> usize {
        self.set.vms.len()
    }
}

/// Plans of a set of VMs, a row each VM. `guestclock.fleet` names the rows.
#[pyclass(frozen, name = "_SetPlan", module = "guestclock._core")]
pub(crate) struct PySetPlan {
    handles: Vec<Handle>,
    plans: Plans,
    checkpoint: Arc<Checkpoint>,
}

impl PySetPlan {
    pub(crate) const fn new(handles: Vec<Handle>, plans: Plans, checkpoint: Arc<Checkpoint>) -> Self {
        Self { handles, plans, checkpoint }
    }

    fn alone(&self, row: usize, vm: &SavedVm<'_>) -> PyResult<Plan> {
        self.plans.alone(row, &Saved::from(vm)).map_err(refused)
    }
}

#[pymethods]
impl PySetPlan {
    /// The VMs' handles (int64).
    #[getter]
    fn vms<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        as_array(py, self.handles.iter().copied())
    }

    /// Facts of the VMs' plans, by their names: sequences with a value a row.
    fn columns<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let plans = self.checkpoint.vms().enumerate().map(|(row, vm)| self.alone(row, &vm));
        let plans: Vec<Plan> = plans.collect::<PyResult<_>>()?;
        let columns = PyDict::new(py);
        set_column(&columns, "method", &plans, |plan| plan.method.name())?;
        set_column(&columns, "evidence", &plans, |plan| plan.elapsed_by().map(ElapsedBy::name))?;
        set_column(&columns, "assumptions", &plans, |plan| codes(&plan.assumptions))?;
        set_column(&columns, "warnings", &plans, |plan| codes(&plan.warnings))?;
        set_column(&columns, "limits", &plans, crossed)?;
        set_column(&columns, "added_ticks", &plans, |plan| plan.as_of.added_ticks)?;
        set_column(&columns, "added_ns", &plans, |plan| plan.frequency().ticks_to_ns(plan.as_of.added_ticks))?;
        set_column(&columns, "backlog_ticks", &plans, |plan| plan.as_of.backlog_ticks)?;
        let behind = |plan: &Plan| plan.as_of.behind.map(|behind| behind.ns(plan.frequency()));
        set_column(&columns, "behind_ns", &plans, behind)?;
        let error = |plan: &Plan| plan.as_of.behind.map(|behind| behind.error_ns(plan.frequency()));
        set_column(&columns, "behind_error_ns", &plans, error)?;
        let bound = |plan: &Plan| plan.as_of.bound.ticks(plan.frequency());
        set_column(&columns, "error_bound_ticks", &plans, bound)?;
        set_column(&columns, "error_bound_ns", &plans, |plan| plan.frequency().ticks_to_ns_ceil(bound(plan)))?;
        set_column(&columns, "overdue", &plans, |plan| plan.overdue.len())?;
        Ok(columns)
    }

    /// Plan of the VM at this row.
    fn plan(&self, row: usize) -> PyResult<PyPlan> {
        let no_row = || PyIndexError::new_err(format!("there is no row {row}: the set has {}", self.handles.len()));
        let alone = Arc::new(self.checkpoint.vms().nth(row).ok_or_else(no_row)?.alone());
        let plan = self.alone(row, &alone.only().or_raise()?)?;
        Ok(PyPlan::new(plan, alone))
    }

    /// Number of VMs.
    fn __len__(&self) -> usize {
        self.handles.len()
    }
}

/// Names of the limits that the plan's jump crosses, or may cross, with commas between.
fn crossed(plan: &Plan) -> String {
    let limits = plan.limits().filter(|(_, reached)| *reached != Reached::No);
    limits.map(|(limit, _)| limit.name).collect::<Vec<_>>().join(",")
}

/// Codes of diagnostics, with commas between.
fn codes(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().map(Diagnostic::code).collect::<Vec<_>>().join(",")
}

fn set_column<'py, T: IntoPyObject<'py>>(
    columns: &Bound<'py, PyDict>,
    name: &str,
    plans: &[Plan],
    value: impl Fn(&Plan) -> T,
) -> PyResult<()> {
    columns.set_item(name, PyList::new(columns.py(), plans.iter().map(value))?)
}

/// VMs of a bank that are paused, all from one instant on. None of their vCPUs can run until `resume`.
///
/// A pause that is dropped leaves the VMs closed, with a ResourceWarning: checkpoints can be restored into them.
#[pyclass(frozen, name = "_PausedSet", module = "guestclock._core")]
pub(crate) struct PyPausedSet {
    sets: Sets,
    /// None once the pause is over.
    pauses: Mutex<Option<Box<OpenPauses>>>,
}

impl PyPausedSet {
    pub(crate) fn new(sets: Sets, pauses: OpenPauses) -> Self {
        Self { sets, pauses: Mutex::new(Some(Box::new(pauses))) }
    }
}

#[pymethods]
impl PyPausedSet {
    /// Ends the pause of all, at one instant, as late as can be. Returns the outcome.
    ///
    /// `policy` decides instead of the pause's own. A VM that was removed or restored meanwhile has left it. Misuse where
    /// it is over already, where all have left it, and while one of them is closed by what came after it. An error
    /// leaves all of them paused: call it again.
    #[pyo3(signature = (policy=None))]
    fn resume(&self, py: Python<'_>, policy: Option<AnyPolicy>) -> PyResult<PySetReport> {
        let locked = || locked(py, &self.pauses);
        // The lock isn't held any more when the counter is read, which may be Python code.
        let Some(mut pauses) = locked().take() else {
            return Err(misuse("the pause is over, and its report is at hand (report): pause() again"));
        };
        let own = pauses.policy();
        if let Some(policy) = policy {
            pauses.set_policy(policy.policy());
        }
        match self.sets.with(py, None, |bank, counter| bank.resume(&mut pauses, counter)) {
            Ok(set) => Ok(PySetReport { set, origin: Origin::Paused(pauses) }),
            Err(error) => {
                pauses.set_policy(own);
                *locked() = Some(pauses);
                Err(error)
            }
        }
    }
}

impl Drop for PyPausedSet {
    fn drop(&mut self) {
        if let Some(pauses) = self.pauses.get_mut().unwrap_or_else(PoisonError::into_inner)
            && self.sets.bank.holds(pauses)
        {
            let vms: Vec<String> = pauses.vms().iter().take(4).map(|vm| vm.0.to_string()).collect();
            let more = if pauses.vms().len() > 4 { ", ..." } else { "" };
            warn_closed("a pause of a bank's VMs was dropped without resume()", &(vms.join(", ") + more));
        }
    }
}

impl IntoPyErr for SetError {
    #[cold]
    fn into_pyerr(self) -> PyErr {
        let message = self.to_string();
        match self {
            Self::Bank(error) => error.into_pyerr(),
            Self::OfVm { handle, error } => noted(OperationError::into_pyerr(error), handle),
            _ => PyValueError::new_err(message),
        }
    }
}
