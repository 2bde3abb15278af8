//! A model VM under faults.

use crate::alarms::Alarms;
use crate::any_vm::GuestVm;
use crate::arguments::{count, modular, saving};
use crate::checkpoint::PyCheckpoint;
use crate::counters::{self, AnyCounter};
use crate::errors::OrRaise;
use crate::guest::{PyPaused, PyRunning};
use crate::policy::AnyPolicy;
use crate::records::{AnyCount, AnyNow, AnySyncBound};
use crate::steps::PySteps;
use crate::vm::PyModelVm;
use crate::vouching::Asks;
use crate::words;
use guestclock_core::checkpoint::Checkpoint;
use guestclock_core::drive::faults::Step;
use guestclock_core::drive::{
    Backend, Call, Fault, Faults, Faulty, FaultyError, On, OpenPause, OpenRestore, OperationError, RestoreError,
    retry_busy,
};
use guestclock_core::restore::{Plan, Report, Request, RunState, Step as Forward};
use guestclock_core::time::{Counter, Offset};
use guestclock_model::error::VmError;
use guestclock_model::locked::Now;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// `types.Fault`, or any object with its attributes.
#[derive(FromPyObject)]
struct AnyFault {
    on: Option<String>,
    nth: usize,
    times: Option<usize>,
    errno: Option<i32>,
    delay_ticks: u64,
    step_realtime_ns: i64,
    crash: bool,
}

/// The core's fault, checked for a VM over a counter that can be moved, or can't.
fn fault(object: &Bound<'_, PyAny>, movable: bool) -> PyResult<Fault> {
    let AnyFault { on, nth, times, errno, delay_ticks, step_realtime_ns, crash } = object.extract()?;
    let on = on.map_or(Ok(On::AnyCall), |place| place.parse());
    match on.and_then(|on| Fault { on, nth, times, errno, delay_ticks, step_realtime_ns, crash }.check(movable)) {
        Ok(fault) => Ok(fault),
        Err(error) => Err(PyValueError::new_err(format!("{}: {}", object.repr()?, words::script_error(error)))),
    }
}

/// The error without the note of what to call next, where the process that would call it is gone.
fn without_a_way_on(error: OperationError<FaultyError<VmError>>) -> OperationError<FaultyError<VmError>> {
    match error {
        OperationError::Restore(RestoreError::Backend { error: FaultyError::Crashed, .. }) => {
            OperationError::Backend(FaultyError::Crashed)
        }
        error => error,
    }
}

/// A model VM whose calls fail, stall, or find the process gone where `faults` say: for testing a VMM, an orchestrator,
/// or anything else that restores VMs.
///
/// It is a `GuestVm`, and the code that runs on it is the code that runs on KVM. `faults` are of `Fault`; ValueError
/// for a fault that makes no sense, and for one that moves time where `vm` isn't over a `ManualCounter`. `busy_retries`
/// is the number of times that set_counter_offset, and the look whether vCPUs run, are repeated after EBUSY: `KvmVm`
/// repeats them for `busy_timeout_ms`.
///
/// After a crash every operation raises Crashed. `vm` can still be looked at.
#[pyclass(frozen, name = "FaultyVm", module = "guestclock")]
pub(crate) struct PyFaultyVm {
    vm: Py<PyModelVm>,
    /// Taken under the VM's lock, and never held while Python code runs.
    faults: Mutex<Faults>,
    /// The alarms on the counter that faults move.
    alarms: Option<Arc<Alarms>>,
}

impl PyFaultyVm {
    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn operate<T>(
        &self,
        now: Option<Now>,
        work: impl FnOnce(&mut RunState, &mut Faulty<'_, VmError>) -> Result<T, OperationError<FaultyError<VmError>>>,
    ) -> PyResult<T> {
        let under_faults = self.vm.get().live.operate(now, |run_state, backend| {
            let faults = &mut *self.faults();
            work(run_state, &mut Faulty { backend, faults })
        });
        if let Some(alarms) = &self.alarms {
            alarms.ring();
        }
        under_faults.map_err(without_a_way_on).or_raise()
    }

    /// Does an operation that a fault can come before.
    fn step<T>(
        &self,
        step: Step,
        now: Option<Now>,
        work: impl FnOnce(&mut RunState, &mut Faulty<'_, VmError>) -> Result<T, OperationError<FaultyError<VmError>>>,
    ) -> PyResult<T> {
        self.operate(now, |run_state, faulty| {
            faulty.faults.step(step).map_err(OperationError::Backend)?;
            work(run_state, faulty)
        })
    }

    /// Makes a call of the VMM's own.
    fn call<T>(
        &self,
        now: Option<u64>,
        call: impl FnOnce(&mut Faulty<'_, VmError>) -> Result<T, FaultyError<VmError>>,
    ) -> PyResult<T> {
        self.operate(count(now).map(Now::Count), |_, faulty| call(faulty).map_err(OperationError::Backend))
    }

    /// The VM, for calls that aren't ioctls on it, so that no fault comes there.
    fn alive(&self) -> PyResult<&Py<PyModelVm>> {
        self.faults().alive::<VmError>().or_raise()?;
        Ok(&self.vm)
    }
}

#[pymethods]
impl PyFaultyVm {
    #[new]
    #[pyo3(signature = (vm, faults, *, busy_retries=0))]
    fn new(py: Python<'_>, vm: Py<PyModelVm>, faults: Bound<'_, PyAny>, busy_retries: u32) -> PyResult<Self> {
        let host = match vm.get().live.counter() {
            AnyCounter::Manual(counter) => Some(Arc::clone(counter)),
            AnyCounter::Host(_) | AnyCounter::Monotonic(_) | AnyCounter::Scaled(_) => None,
        };
        let script = faults.try_iter()?.map(|object| fault(&object?, host.is_some()));
        let faults = Faults::new(script.collect::<PyResult<_>>()?, host.map(|host| host as _), busy_retries);
        let alarms = counters::alarms(vm.get().counter(py).bind(py));
        Ok(Self { vm, faults: Mutex::new(faults), alarms })
    }

    /// The VM under the faults.
    #[getter]
    fn vm(&self, py: Python<'_>) -> Py<PyModelVm> {
        self.vm.clone_ref(py)
    }

    /// The calls so far, in order, failed ones included: "set_counter_offset", "set_one_reg 0 TIMER_CVAL".
    #[getter]
    fn calls(&self) -> Vec<String> {
        self.faults().calls().iter().map(Call::to_string).collect()
    }

    /// Name of the VM in its checkpoints; empty where nobody named it.
    #[getter]
    fn name(&self) -> &str {
        self.vm.get().name.as_str()
    }

    /// Number of vCPUs.
    #[getter]
    fn vcpus(&self) -> usize {
        self.vm.get().vcpus()
    }

    /// The counter that the guest's counters are offset from.
    #[getter]
    fn counter(&self, py: Python<'_>) -> Py<PyAny> {
        self.vm.get().counter(py)
    }

    /// The guest's CNTFRQ_EL0, in Hz.
    #[getter]
    fn frequency_hz(&self) -> u64 {
        self.vm.get().frequency_hz()
    }

    /// True if the guest has EL2.
    #[getter]
    fn nested(&self) -> bool {
        self.vm.get().nested()
    }

    /// True if the VM has opted in to one counter offset, for good.
    #[getter]
    fn opted_in(&self) -> bool {
        self.vm.get().opted_in()
    }

    /// The capabilities for this VM's clocks.
    #[getter]
    fn capabilities<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.vm.get().capabilities(py)
    }

    /// KVM_ARM_SET_COUNTER_OFFSET: see `ModelVm.set_counter_offset`.
    fn set_counter_offset(&self, offset: &Bound<'_, PyAny>) -> PyResult<()> {
        let offset = Offset(modular(offset, "an offset")?);
        self.call(None, |faulty| retry_busy(faulty, |faulty| faulty.set_counter_offset(offset)))
    }

    /// CNTVCT_EL0 as the vCPU's guest reads it, now or when the host's counter reads `now`. No fault comes here.
    #[pyo3(signature = (vcpu, now=None))]
    fn cntvct(&self, vcpu: usize, now: Option<AnyCount>) -> PyResult<u64> {
        self.alive()?.get().cntvct(vcpu, now)
    }

    /// CNTPCT_EL0 as the vCPU's guest reads it, now or when the host's counter reads `now`. No fault comes here.
    #[pyo3(signature = (vcpu, now=None))]
    fn cntpct(&self, vcpu: usize, now: Option<AnyCount>) -> PyResult<u64> {
        self.alive()?.get().cntpct(vcpu, now)
    }

    /// KVM_GET_ONE_REG: `reg` is a `Reg` or its number.
    #[pyo3(signature = (vcpu, reg, *, now=None))]
    fn get_one_reg(&self, vcpu: usize, reg: u64, now: Option<u64>) -> PyResult<u64> {
        self.call(now, |faulty| faulty.get_one_reg(vcpu, reg))
    }

    /// KVM_SET_ONE_REG: see `ModelVm.set_one_reg`.
    #[pyo3(signature = (vcpu, reg, value, *, now=None))]
    fn set_one_reg(&self, vcpu: usize, reg: u64, value: &Bound<'_, PyAny>, now: Option<u64>) -> PyResult<()> {
        let value = modular(value, "a register's value")?;
        self.call(now, |faulty| faulty.set_one_reg(vcpu, reg, value))
    }

    /// The timer registers of the vCPU, in KVM_GET_REG_LIST's order.
    fn reg_list(&self, vcpu: usize) -> PyResult<Vec<u64>> {
        self.call(None, |faulty| faulty.reg_list(vcpu))
    }

    /// One timer as its guest sees it, now or when the host's counter reads `now`. No fault comes here.
    #[pyo3(signature = (vcpu, timer, *, now=None))]
    fn timer<'py>(&self, py: Python<'py>, vcpu: usize, timer: usize, now: Option<u64>) -> PyResult<Bound<'py, PyAny>> {
        self.alive()?.get().timer(py, vcpu, timer, now)
    }

    /// The host count at which the first of the vCPU's timer lines goes high by itself; None if none will. No fault
    /// comes here.
    #[pyo3(signature = (vcpu, *, now=None))]
    fn next_deadline(&self, vcpu: usize, now: Option<u64>) -> PyResult<Option<u64>> {
        self.alive()?.get().next_deadline(vcpu, now)
    }

    /// A context manager for the time that the vCPU spends in its guest. No fault comes here.
    ///
    /// RestoreOpen while a restore or pause isn't finished.
    fn running(slf: Py<Self>, vcpu: usize) -> PyRunning {
        PyRunning::new(Arc::new(slf), vcpu)
    }

    /// Saves the VM's guest time: see `ModelVm.checkpoint`.
    #[pyo3(signature = (*, now=None, stopped_at=None, sync=None, vmclock_address=None, stolen_time=None))]
    fn checkpoint(
        &self,
        py: Python<'_>,
        now: Option<AnyNow>,
        stopped_at: Option<u64>,
        sync: Option<AnySyncBound>,
        vmclock_address: Option<u64>,
        stolen_time: Option<Vec<Option<u64>>>,
    ) -> PyResult<PyCheckpoint> {
        let name = &self.alive()?.get().name;
        let (now, saving) = (now.map(|now| now.0), saving(name, stopped_at, sync, vmclock_address, stolen_time)?);
        if saving.asks(now.as_ref()) {
            self.vm.get().live.counter().ask(py)?;
        }
        let checkpoint = self.step(Step::Checkpoint, now, |run_state, faulty| run_state.checkpoint(faulty, &saving));
        checkpoint.map(PyCheckpoint::from)
    }

    /// The guest's backlog, in ticks: 0 unless a `CatchUp` is unfinished. No fault comes here.
    #[getter]
    fn backlog_ticks(&self) -> PyResult<u64> {
        Ok(self.alive()?.get().backlog_ticks())
    }

    /// The steps that pay the backlog back, one after the other, until it is 0.
    fn catch_up(slf: Py<Self>) -> PySteps {
        PySteps::new(Arc::new(slf))
    }

    /// A context manager that keeps the VM from running; at its end the policy decides how much of the pause the guest
    /// sees.
    #[pyo3(signature = (policy=None, *, views="preserve"))]
    fn paused(slf: Py<Self>, policy: Option<AnyPolicy>, views: &str) -> PyResult<PyPaused> {
        PyPaused::new(Arc::new(slf), policy, views)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let gone = if self.faults().alive::<VmError>().is_err() { ", crashed" } else { "" };
        Ok(format!("<FaultyVm of {}{gone}>", self.vm.bind(py).repr()?))
    }
}

impl GuestVm for Py<PyFaultyVm> {
    fn plan(&self, py: Python<'_>, checkpoint: &Checkpoint, request: Request, now: Option<Now>) -> PyResult<Plan> {
        if request.asks(now.as_ref()) {
            self.get().vm.get().live.counter().ask(py)?;
        }
        self.get().step(Step::Plan, now, |run_state, faulty| run_state.plan(faulty, checkpoint, request))
    }

    fn prepare(
        &self,
        _py: Python<'_>,
        plan: Plan,
        checkpoint: Arc<Checkpoint>,
        now: Option<Now>,
    ) -> PyResult<OpenRestore> {
        self.get().step(Step::Prepare, now, |run_state, faulty| run_state.prepare(faulty, plan, checkpoint))
    }

    fn apply(&self, _py: Python<'_>, open: &mut OpenRestore, now: Option<Now>) -> PyResult<()> {
        self.get().step(Step::Apply, now, |run_state, faulty| run_state.apply(faulty, open))
    }

    fn release(&self, _py: Python<'_>, open: &mut OpenRestore, now: Option<Now>) -> PyResult<Report> {
        self.get().step(Step::Release, now, |run_state, faulty| run_state.release(faulty, open))
    }

    fn pause(&self, _py: Python<'_>, request: Request) -> PyResult<OpenPause> {
        self.get().step(Step::Pause, None, |run_state, faulty| run_state.pause(faulty, request))
    }

    fn resume(&self, _py: Python<'_>, pause: &OpenPause) -> PyResult<Report> {
        self.get().step(Step::Resume, None, |run_state, faulty| run_state.resume(faulty, pause))
    }

    fn step(&self, _py: Python<'_>, now: Option<Now>) -> PyResult<Forward> {
        self.get().step(Step::CatchUp, now, |run_state, faulty| run_state.step(faulty))
    }

    fn enter(&self, _py: Python<'_>, vcpu: usize) -> PyResult<()> {
        self.get().alive()?.get().live.enter(vcpu).or_raise()
    }

    /// Works after a crash too: a vCPU isn't in its guest any more when its process is gone.
    fn exit(&self, _py: Python<'_>, vcpu: usize) -> PyResult<()> {
        self.get().vm.get().live.exit(vcpu).or_raise()
    }

    fn next_step(&self, _py: Python<'_>) -> Option<Forward> {
        self.get().vm.get().live.next_step()
    }

    fn counter(&self) -> &dyn Counter {
        self.get().vm.get().live.counter()
    }
}
