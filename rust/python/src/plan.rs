//! Plans.

use crate::arguments::Int;
use crate::checkpoint::PyCheckpoint;
use crate::documents::{describe, describe_outcome};
use crate::errors::OrRaise;
use crate::pickles::{self, State};
use crate::policy::to_python;
use crate::records;
use crate::words;

use guestclock_core::checkpoint::Checkpoint;
use guestclock_core::restore::{Plan, Words};
use guestclock_core::time::ElapsedBy;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyType};
use std::sync::Arc;

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
