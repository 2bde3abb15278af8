//! The steps that pay a guest's backlog back.

use crate::any_vm::{SharedVm, run};
use crate::arguments::{Int, count};
use crate::pages::PyVmClock;
use crate::records::AnyNow;
use guestclock_core::restore::Step;
use pyo3::prelude::*;

/// A forward step of a guest's counters. Stop all of its vCPUs, `apply` it, and let them go on.
#[pyclass(frozen, name = "Step", module = "guestclock.types")]
pub(crate) struct PyStep {
    vm: SharedVm,
    step: Step,
}

impl PyStep {
    pub(crate) fn new(vm: SharedVm, step: Step) -> Self {
        Self { vm, step }
    }
}

#[pymethods]
impl PyStep {
    /// Ticks by which the guest's counters go forward.
    #[getter]
    fn ticks(&self) -> u64 {
        self.step.ticks
    }

    /// The count of the VM's counter from which on the step is due.
    #[getter]
    fn due_at(&self) -> u64 {
        self.step.due.0
    }

    /// The backlog before the step, in ticks.
    #[getter]
    fn backlog_ticks(&self) -> u64 {
        self.step.backlog_ticks
    }

    /// Time until the step is due, in nanoseconds, rounded up; 0 when it is.
    ///
    /// `now` is a count of the VM's counter, by default the present one.
    #[pyo3(signature = (*, now=None))]
    fn wait_ns(&self, py: Python<'_>, now: Option<Int<u64>>) -> PyResult<u128> {
        let (counter, now) = (self.vm.counter(), count(now));
        let _sample = self.vm.sampled(py, now)?;
        let now = now.unwrap_or_else(|| counter.count());
        let left = if self.step.due.is_after(now) { self.step.due.since(now) } else { 0 };
        Ok(counter.frequency().ticks_to_ns_ceil(left))
    }

    /// Moves the guest's counters forward, once, when the step is due. All vCPUs have to be stopped meanwhile, else
    /// VcpuRunning, and the backlog stays as it was.
    ///
    /// `page` is the guest's vmclock page, which is brought up to date in the same stop: its clock shows the same time
    /// before and after, and its disruption marker changes. Returns the remaining ticks. Misuse for a step that isn't
    /// due, for one that was applied already or that a restore has made obsolete, and where there is no backlog
    /// (NoBacklog).
    #[pyo3(signature = (page=None, *, now=None))]
    fn apply(&self, py: Python<'_>, page: Option<&Bound<'_, PyVmClock>>, now: Option<AnyNow>) -> PyResult<u64> {
        let now = now.map(|now| now.0);
        let step = || run(py, &self.vm, now, |vm| vm.step(self.step)).map(|left| (left, self.step.ticks));
        match page {
            Some(page) => page.get().stepped(py, step),
            None => step().map(|(left, _)| left),
        }
    }

    fn __repr__(&self) -> String {
        format!("<Step of {} ticks, due at {}, {} owed>", self.step.ticks, self.step.due.0, self.step.backlog_ticks)
    }
}
