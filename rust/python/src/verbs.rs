//! A VM and its verbs, by one implementation for every kind of VM.

use crate::any_vm::{SharedVm, run};
use crate::arguments::{Int, Modular, Vcpu, count};
use crate::checkpoint::{PyCheckpoint, saving, vm_name};
use crate::counters::Asks;
use crate::guest::{PyPause, PyRunning};
use crate::observe;
use crate::plan::PyPlan;
use crate::policy::AnyPolicy;
use crate::records::{self, AnyCount, AnyNow, AnySyncBound, PyTimerState};
use crate::registers;
use crate::report::{AnyGiven, PyReport};
use crate::restore::PyRestore;
use crate::steps::PyStep;
use crate::system::monotonic_ns;
use crate::wishes::Wishes;
use guestclock_core::arch::arm64::View;
use guestclock_core::restore::{Plan, Request};
use guestclock_core::time::Offset;
use guestclock_model::locked::Now;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::Arc;

/// A VM's guest clocks: what `ModelVm`, `KvmVm` and `FaultyVm` have in common.
///
/// Code written for it runs on each. `now=` injects an instant of a model's counter: ValueError on KVM, whose time is
/// the host's.
#[pyclass(frozen, subclass, name = "GuestVm", module = "guestclock.types")]
pub(crate) struct PyGuestVm {
    pub(crate) vm: SharedVm,
}

impl PyGuestVm {
    pub(crate) const fn new(vm: SharedVm) -> Self {
        Self { vm }
    }

    fn planned(
        &self,
        py: Python<'_>,
        checkpoint: &Bound<'_, PyCheckpoint>,
        wishes: Wishes,
        policy: Option<AnyPolicy>,
        now: Option<Now>,
    ) -> PyResult<Plan> {
        let request = wishes.request(policy)?;
        if request.asks(now.as_ref()) {
            self.vm.ask(py)?;
        }
        let checkpoint = checkpoint.get();
        run(py, &self.vm, now, |vm| vm.plan(&checkpoint.0, request))
    }
}

#[pymethods]
impl PyGuestVm {
    /// Name of the VM in its checkpoints; empty where nobody named it.
    #[getter]
    fn name(&self) -> &str {
        self.vm.name().as_str()
    }

    /// Number of vCPUs.
    #[getter]
    fn vcpus(&self, py: Python<'_>) -> PyResult<usize> {
        self.vm.vcpus(py)
    }

    /// The counter that the guest's counters are offset from: on KVM CNTVCT_EL0 of the host.
    #[getter]
    fn counter(&self, py: Python<'_>) -> Py<PyAny> {
        self.vm.counter_object(py)
    }

    /// The guest's CNTFRQ_EL0, in Hz.
    #[getter]
    fn frequency_hz(&self) -> u64 {
        self.vm.counter().frequency().hz()
    }

    /// True if the guest has EL2.
    #[getter]
    fn nested(&self, py: Python<'_>) -> PyResult<bool> {
        self.vm.nested(py)
    }

    /// True if the VM has opted in to one counter offset, for good, as far as guestclock knows.
    #[getter]
    fn opted_in(&self) -> PyResult<bool> {
        self.vm.opted_in()
    }

    /// Number that the VM has for as long as it lives.
    #[getter]
    fn _identity(&self) -> usize {
        observe::identity(&self.vm)
    }

    /// State of the VM: "open" (its vCPUs may run), "paused", or "restoring" (closed until a restore is released).
    #[getter]
    fn state(&self, py: Python<'_>) -> PyResult<&'static str> {
        self.vm.state(py).map(records::state_name)
    }

    /// The capabilities for this VM's clocks.
    #[getter]
    fn capabilities<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.vm.capabilities(py)
    }

    /// Opts the VM in to one offset for both counters of all its vCPUs: called once, before the guest first runs.
    ///
    /// There is no way back. From then on CNTVCT_EL0 and CNTPCT_EL0 read the same on every vCPU, and a restore is exact
    /// to the tick; KVM ignores counter values that are set, and counts of vCPUs created later fit in by themselves.
    /// Without the CPU's CNTPOFF_EL2 the guest's CNTPCT_EL0 and physical timer trap.
    ///
    /// The guest's counters begin at 0, or with `offset` at the host's count less `offset`: ticks, any integer from
    /// -2**63 up to 2**64, taken modulo 2**64. The offset is read back from every vCPU. VcpuRunning while a vCPU runs,
    /// CapabilityMissing where the kernel has no offset, and Misuse for a VM that has opted in.
    #[pyo3(signature = (*, offset=None))]
    fn opt_in(&self, py: Python<'_>, offset: Option<Modular>) -> PyResult<()> {
        let offset = offset.map(|Modular(offset)| Offset(offset));
        run(py, &self.vm, None, |vm| vm.opt_in(offset))
    }

    /// KVM_ARM_SET_COUNTER_OFFSET as it is, for tests and for VMMs that do all themselves: `opt_in` is the verb.
    ///
    /// VcpuRunning (EBUSY) while a vCPU runs. `offset` is any integer from -2**63 up to 2**64, taken modulo 2**64.
    fn set_counter_offset(&self, py: Python<'_>, offset: Modular) -> PyResult<()> {
        self.vm.set_counter_offset(py, Offset(offset.0))
    }

    /// CNTVCT_EL0 as the vCPU's guest reads it, now or when the host's counter reads `now`.
    ///
    /// `now` is a count as the counter's `read` gives it, or a Stamp of the counter. The model takes no lock for it.
    /// KVM needs no ioctl for it once the VM has opted in, and only then takes `now` (else ValueError).
    #[pyo3(signature = (vcpu, now=None))]
    fn cntvct(&self, py: Python<'_>, vcpu: Vcpu, now: Option<AnyCount>) -> PyResult<u64> {
        self.vm.count(py, vcpu.0, View::Virtual, now)
    }

    /// CNTPCT_EL0 as the vCPU's guest reads it: see `cntvct`.
    #[pyo3(signature = (vcpu, now=None))]
    fn cntpct(&self, py: Python<'_>, vcpu: Vcpu, now: Option<AnyCount>) -> PyResult<u64> {
        self.vm.count(py, vcpu.0, View::Physical, now)
    }

    /// KVM_GET_ONE_REG: `reg` is a `Reg` or its number. VcpuRunning while the vCPU is in its `running` block.
    #[pyo3(signature = (vcpu, reg, *, now=None))]
    fn get_one_reg(&self, py: Python<'_>, vcpu: Vcpu, reg: Int<u64>, now: Option<Int<u64>>) -> PyResult<u64> {
        self.vm.get_one_reg(py, vcpu.0, reg.0, count(now))
    }

    /// KVM_SET_ONE_REG. A counter's value moves the whole VM's counter, unless the VM has opted in: then it is ignored.
    #[pyo3(signature = (vcpu, reg, value, *, now=None))]
    fn set_one_reg(
        &self,
        py: Python<'_>,
        vcpu: Vcpu,
        reg: Int<u64>,
        value: Modular,
        now: Option<Int<u64>>,
    ) -> PyResult<()> {
        self.vm.set_one_reg(py, vcpu.0, reg.0, value.0, count(now))
    }

    /// The timer registers of the vCPU, in KVM_GET_REG_LIST's order.
    fn reg_list(&self, py: Python<'_>, vcpu: Vcpu) -> PyResult<Vec<u64>> {
        self.vm.reg_list(py, vcpu.0)
    }

    /// One timer as its guest sees it, now or when the host's counter reads `now`.
    #[pyo3(signature = (vcpu, timer, *, now=None))]
    fn timer(&self, py: Python<'_>, vcpu: Vcpu, timer: Int<usize>, now: Option<Int<u64>>) -> PyResult<PyTimerState> {
        self.vm.timer(py, vcpu.0, registers::timer(timer.0)?, count(now)).map(Into::into)
    }

    /// The host count at which the first of the vCPU's timer lines goes high by itself; None if none will.
    #[pyo3(signature = (vcpu, *, now=None))]
    fn next_deadline(&self, py: Python<'_>, vcpu: Vcpu, now: Option<Int<u64>>) -> PyResult<Option<u64>> {
        self.vm.next_deadline(py, vcpu.0, count(now)).map(records::deadline)
    }

    /// A context manager for the time that the vCPU spends in its guest: a VMM wraps KVM_RUN, or its emulator's run, in
    /// it.
    ///
    /// Inside the block, checkpoints and restores raise VcpuRunning without an ioctl. RestoreOpen while a restore or
    /// pause isn't finished.
    fn running(&self, vcpu: Vcpu) -> PyRunning {
        PyRunning::new(Arc::clone(&self.vm), vcpu.0)
    }

    /// Saves the VM's guest time. VcpuRunning (EBUSY) while a vCPU runs, as far as `capabilities.quiescence_check`
    /// goes.
    ///
    /// `now` is the host's count of the checkpoint as the counter's `read` gives it, by default the present one, or a
    /// whole Stamp, which is host-wide. `stopped_at` is the host's count when the last vCPU left its guest, as `read`
    /// gave it to a VMM that knows it: ValueError if that lies after the checkpoint. Without it a paused VM has stopped
    /// at its pause, if its counter is known to have counted since. `sync` says how far the wall clock
    /// may be off: without it, and without one of the counter, the bound is only the kernel's claim. `vmclock_address`
    /// is the guest-physical address of the vmclock page, and `stolen_time` those of the vCPUs' stolen-time records, one
    /// a vCPU (None where there is none): they are carried for whoever restores them. `name` names the VM in this
    /// checkpoint instead of its own name.
    #[pyo3(signature = (*, name=None, now=None, stopped_at=None, sync=None, vmclock_address=None, stolen_time=None))]
    fn checkpoint(
        &self,
        py: Python<'_>,
        name: Option<&str>,
        now: Option<AnyNow>,
        stopped_at: Option<Int<u64>>,
        sync: Option<AnySyncBound>,
        vmclock_address: Option<Int<u64>>,
        stolen_time: Option<Vec<Option<Int<u64>>>>,
    ) -> PyResult<PyCheckpoint> {
        let now = now.map(|now| now.0);
        let name = name.map(vm_name).transpose()?;
        let saving =
            saving(name.as_ref().unwrap_or_else(|| self.vm.name()), stopped_at, sync, vmclock_address, stolen_time)?;
        if saving.asks(now.as_ref()) {
            self.vm.ask(py)?;
        }
        run(py, &self.vm, now, |vm| vm.checkpoint(&saving)).map(PyCheckpoint::from)
    }

    /// Plans the restore of `checkpoint` under `policy`, without touching anything: a dry run.
    ///
    /// The keywords are the fields of `Options`, or `options` gives them as a value, which keywords change. `views`
    /// decides what becomes of two counters that differ: "preserve" sets each by value, "adopt-virtual" gives both the
    /// virtual counter's offset, "refuse" raises CounterSkew. `timers="relative"` keeps each timer's remaining time,
    /// instead of its deadline; a physical timer's moves with a counter that is given up. `intent` is the reason of the restore: "live-migration", "live-update", "snapshot" or
    /// "clone". `guest` says which settings of a Linux guest differ from the kernel's defaults, so that the plan knows what
    /// a jump does to it. `strict` refuses a checkpoint with something that this version doesn't know; otherwise the plan warns
    /// of it.
    ///
    /// `elapsed` is the caller's word on the time that has passed, an `Elapsed`; without it the evidence of both stamps
    /// decides. On one counter the counter tells the time, on another the wall clocks: `sync` says how far the one here
    /// may be off, as `checkpoint(sync=)` did there; without it the counter's own `sync` does, else the bound is only the
    /// kernel's claim. Where nobody knows, an `Advance` or `CatchUp` is refused (ElapsedUnknown), and where a counter and
    /// two vouched wall clocks contradict each other (ClocksDisagree). More than 366 days by two wall clocks is refused
    /// too (ElapsedTooLong), unless `Advance` has a cap of its own.
    ///
    /// `rate_error_ppb` accepts a counter here whose frequency differs from the guest's by so many parts per billion of
    /// it, at most 250 000; otherwise any difference is refused (FrequencyMismatch). The guest's clock is wrong by as
    /// much from then on, and the plan says so.
    ///
    /// `now` injects an instant of a model's counter: a count as its `read` gives it, or a whole Stamp, which is
    /// host-wide. Refused names both sides and the way out.
    #[pyo3(signature = (checkpoint, policy=None, *, options=None, now=None, **keywords))]
    fn plan(
        &self,
        py: Python<'_>,
        checkpoint: &Bound<'_, PyCheckpoint>,
        policy: Option<AnyPolicy>,
        options: Option<Bound<'_, PyAny>>,
        now: Option<AnyNow>,
        keywords: Option<Bound<'_, PyDict>>,
    ) -> PyResult<PyPlan> {
        let wishes = Wishes::new(py, options, keywords)?;
        let plan = self.planned(py, checkpoint, wishes, policy, now.map(|now| now.0))?;
        Ok(PyPlan::new(plan, Arc::clone(&checkpoint.get().0)))
    }

    /// Restores `checkpoint`, with `plan`'s arguments: the guest may run when it returns.
    ///
    /// Refused where nothing was written. Interrupted says what state the VM is in: a VM that had opted in gets its own
    /// offset back unless a register was written, and may run; else it stays closed, and can be restored again.
    #[pyo3(signature = (checkpoint, policy=None, *, options=None, now=None, **keywords))]
    fn restore(
        &self,
        py: Python<'_>,
        checkpoint: &Bound<'_, PyCheckpoint>,
        policy: Option<AnyPolicy>,
        options: Option<Bound<'_, PyAny>>,
        now: Option<AnyNow>,
        keywords: Option<Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyReport>> {
        let wishes = Wishes::new(py, options, keywords)?;
        let now = now.map(|now| now.0);
        let plan = self.planned(py, checkpoint, wishes, policy, now.clone());
        let plan = plan.inspect_err(|error| observe::failed(py, &self.vm, "restore", error))?;
        PyRestore::new(plan, Arc::clone(&checkpoint.get().0), Arc::clone(&self.vm), now).carry_out(py)
    }

    /// Restores `checkpoint` around what the VMM restores itself, with `plan`'s arguments: a context manager.
    ///
    /// The call plans. Entering the block writes a provisional offset, if the plan's method is an offset: counter
    /// values that the VMM loads then have no effect. `apply()` writes the timers, and `release()` the counters. Leaving
    /// the block without `release()` gives the restore up, and so does every exception: see `Restore`.
    #[pyo3(signature = (checkpoint, policy=None, *, options=None, now=None, **keywords))]
    fn restoring(
        &self,
        py: Python<'_>,
        checkpoint: &Bound<'_, PyCheckpoint>,
        policy: Option<AnyPolicy>,
        options: Option<Bound<'_, PyAny>>,
        now: Option<AnyNow>,
        keywords: Option<Bound<'_, PyDict>>,
    ) -> PyResult<PyRestore> {
        let wishes = Wishes::new(py, options, keywords)?;
        let now = now.map(|now| now.0);
        let plan = self.planned(py, checkpoint, wishes, policy, now.clone());
        let plan = plan.inspect_err(|error| observe::failed(py, &self.vm, "restore", error))?;
        Ok(PyRestore::new(plan, Arc::clone(&checkpoint.get().0), Arc::clone(&self.vm), now))
    }

    /// Pauses the VM in place: no vCPU can run until `resume()` of the returned pause, or the end of its `with` block.
    /// Then the policy decides how much of the pause the guest sees.
    ///
    /// The call stops no vCPU: VcpuRunning while one runs. What would be refused at the end is refused here.
    #[pyo3(signature = (policy=None, *, views="preserve"))]
    fn pause(&self, py: Python<'_>, policy: Option<AnyPolicy>, views: &str) -> PyResult<PyPause> {
        let request: Request = Wishes::of_views(views).request(policy)?;
        let closing_ns = monotonic_ns();
        let paused = run(py, &self.vm, None, |vm| vm.pause(request));
        let paused = paused.inspect_err(|error| observe::failed(py, &self.vm, "pause", error))?;
        Ok(PyPause::new(Arc::clone(&self.vm), paused, closing_ns))
    }

    /// Looks at the VM's clocks, changes nothing, and waits for nobody: a `Verified`, which is true where all is as it is
    /// to be.
    ///
    /// Each vCPU's counters are read between two reads of the host's: they have to be where the VM's offset puts them, or
    /// without one where the other vCPUs' are. Each timer's ISTATUS has to be as its CVAL and its counter tell, where the
    /// kernel computes it when it is read (Linux up to 6.17). With the report that the guest goes by, its counters have to
    /// be where that put them, with the steps of its backlog paid since; with a checkpoint, not before those saved.
    ///
    /// VcpuRunning while a vCPU runs, whose registers can't be read without waiting for it.
    #[pyo3(signature = (given=None, *, now=None))]
    fn verify<'py>(
        &self,
        py: Python<'py>,
        given: Option<AnyGiven<'py>>,
        now: Option<AnyNow>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let now = now.map(|now| now.0);
        let expected = AnyGiven::expected(given.as_ref());
        let verified = run(py, &self.vm, now, |vm| vm.verify(expected))?;
        records::verified(py, &verified)
    }

    /// The guest's backlog, in ticks: 0 unless a `CatchUp` is unfinished.
    #[getter]
    fn backlog_ticks(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.vm.next_step(py)?.map_or(0, |step| step.backlog_ticks))
    }

    /// The next step that pays the backlog back, due or not; None where there is no backlog.
    fn next_step(&self, py: Python<'_>) -> PyResult<Option<PyStep>> {
        Ok(self.vm.next_step(py)?.map(|step| PyStep::new(Arc::clone(&self.vm), step)))
    }

    /// The steps that pay the backlog back: an iterator that waits until each is due, and ends when the backlog is 0.
    ///
    /// For each, stop all vCPUs, `apply` it, and let them go on. A step that wasn't applied comes again, after 10 ms at
    /// least. Over a counter that is moved by hand the iterator doesn't wait: it ends at the first step that isn't due,
    /// or wasn't applied.
    /// `sleep` takes seconds, and waits instead of `time.sleep`, over such a counter too. `guestclock.aio.catch_up` does
    /// the same in an event loop.
    #[pyo3(signature = (*, sleep=None))]
    fn catch_up<'py>(slf: &Bound<'py, Self>, sleep: Option<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
        let pacing = PyModule::import(slf.py(), "guestclock.pacing")?;
        pacing.call_method1("steps", (slf, sleep))
    }
}
