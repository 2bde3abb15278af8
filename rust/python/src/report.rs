//! Reports.

use crate::arguments::{Int, shown};
use crate::checkpoint::PyCheckpoint;
use crate::documents::{describe, describe_outcome};
use crate::errors::OrRaise;
use crate::pickles::{self, State};
use crate::policy::to_python;
use crate::records;
use crate::words;

use guestclock_core::arch::arm64::IrqIds;
use guestclock_core::checkpoint::{Checkpoint, Interrupts, SavedVm};
use guestclock_core::drive::Expected;
use guestclock_core::restore::{Report, TimerStatus, Words, Written, timer_status as status};
use guestclock_core::time::{ElapsedBy, HostCount, OffsetInterval};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyType};
use std::sync::Arc;

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

    /// The guest's virtual counter at the last sample, in 64 bits: a guest with a narrower counter (`arch_width`) reads its
    /// low bits.
    #[getter]
    fn cntvct(&self) -> u64 {
        self.report.outcome.cntvct.0
    }

    /// The guest's physical counter at the last sample, in 64 bits as well.
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
        fields.set_item("returned_at", report.returned_at.stamped(report.plan.target.namespace_ticks).0)?;
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
        let vm = checkpoint.as_deref().map(Checkpoint::only).transpose().or_raise()?;
        let report = Report::new(plan, released, vm.as_ref());
        Ok(Self { report, checkpoint })
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
