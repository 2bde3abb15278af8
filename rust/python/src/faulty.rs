//! A model VM under faults.

use crate::alarms::Alarms;
use crate::any_vm::AnyVm;
use crate::counters::{self, AnyCounter};
use crate::errors::OrRaise;
use crate::records::AnyCount;
use crate::verbs::PyGuestVm;
use crate::vm::{Model, PyModelVm};
use crate::words;
use guestclock_core::arch::arm64::{Timer, TimerState, View};
use guestclock_core::checkpoint::{Checkpoint, VmName};
use guestclock_core::drive::faults::Step as Place;
use guestclock_core::drive::{
    Backend, Call, Condition, Fault, Faults, Faulty, FaultyError, On, OpenPause, OpenRestore, OperationError,
    RestoreError, Saving, retry_busy,
};
use guestclock_core::restore::{Plan, Report, Request, RunState, State, Step};
use guestclock_core::time::{Counter, HostCount, Offset};
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
#[pyclass(frozen, extends = PyGuestVm, name = "FaultyVm", module = "guestclock")]
pub(crate) struct PyFaultyVm {
    vm: Py<PyModelVm>,
    under: Arc<FaultyModel>,
}

/// A model VM under faults, as its verbs hold it.
struct FaultyModel {
    model: Arc<Model>,
    /// Taken under the VM's lock, and never held while Python code runs.
    faults: Mutex<Faults>,
    /// The alarms on the counter that faults move.
    alarms: Option<Arc<Alarms>>,
}

impl FaultyModel {
    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn operate<T>(
        &self,
        now: Option<Now>,
        work: impl FnOnce(&mut RunState, &mut Faulty<'_, VmError>) -> Result<T, OperationError<FaultyError<VmError>>>,
    ) -> PyResult<T> {
        let under_faults = self.model.live.operate(now, |run_state, backend| {
            let faults = &mut *self.faults();
            work(run_state, &mut Faulty { backend, faults })
        });
        if let Some(alarms) = &self.alarms {
            alarms.ring();
        }
        under_faults.map_err(without_a_way_on).or_raise()
    }

    /// Does an operation that a fault can come before.
    fn step_of<T>(
        &self,
        step: Place,
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
        now: Option<HostCount>,
        call: impl FnOnce(&mut Faulty<'_, VmError>) -> Result<T, FaultyError<VmError>>,
    ) -> PyResult<T> {
        self.operate(now.map(Now::Count), |_, faulty| call(faulty).map_err(OperationError::Backend))
    }

    fn is_gone(&self) -> bool {
        self.faults().alive::<VmError>().is_err()
    }

    /// The VM, for calls that aren't ioctls on it, so that no fault comes there.
    fn alive(&self) -> PyResult<&Model> {
        self.faults().alive::<VmError>().or_raise()?;
        Ok(&self.model)
    }
}

#[pymethods]
impl PyFaultyVm {
    #[new]
    #[pyo3(signature = (vm, faults, *, busy_retries=0))]
    fn new(
        py: Python<'_>,
        vm: Py<PyModelVm>,
        faults: Bound<'_, PyAny>,
        busy_retries: u32,
    ) -> PyResult<PyClassInitializer<Self>> {
        let model = Arc::clone(&vm.get().model);
        let host = match model.live.counter() {
            AnyCounter::Manual(counter) => Some(Arc::clone(counter)),
            AnyCounter::Host(_) | AnyCounter::Monotonic(_) | AnyCounter::Scaled(_) => None,
        };
        let script = faults.try_iter()?.map(|object| fault(&object?, host.is_some()));
        let faults = Faults::new(script.collect::<PyResult<_>>()?, host.map(|host| host as _), busy_retries);
        let alarms = counters::alarms(model.counter_object(py).bind(py));
        let under = Arc::new(FaultyModel { model, faults: Mutex::new(faults), alarms });
        let base = PyGuestVm::new(Arc::clone(&under) as _);
        Ok(PyClassInitializer::from(base).add_subclass(Self { vm, under }))
    }

    /// The VM under the faults.
    #[getter]
    fn vm(&self, py: Python<'_>) -> Py<PyModelVm> {
        self.vm.clone_ref(py)
    }

    /// The calls so far, in order, failed ones included: "set_counter_offset", "set_one_reg 0 TIMER_CVAL".
    #[getter]
    fn calls(&self) -> Vec<String> {
        self.under.faults().calls().iter().map(Call::to_string).collect()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let gone = if self.under.is_gone() { ", crashed" } else { "" };
        Ok(format!("<FaultyVm of {}{gone}>", self.vm.bind(py).repr()?))
    }
}

/// No fault comes to a look that isn't an ioctl on the VM: counts, timers, deadlines, `running`.
impl AnyVm for FaultyModel {
    fn name(&self) -> &VmName {
        self.model.name()
    }

    fn vcpus(&self, py: Python<'_>) -> PyResult<usize> {
        self.model.vcpus(py)
    }

    fn counter_object(&self, py: Python<'_>) -> Py<PyAny> {
        self.model.counter_object(py)
    }

    fn counter(&self) -> &dyn Counter {
        self.model.counter()
    }

    fn ask(&self, py: Python<'_>) -> PyResult<()> {
        self.model.ask(py)
    }

    fn nested(&self, py: Python<'_>) -> PyResult<bool> {
        self.model.nested(py)
    }

    fn opted_in(&self) -> PyResult<bool> {
        self.model.opted_in()
    }

    fn state(&self, py: Python<'_>) -> PyResult<State> {
        self.model.state(py)
    }

    fn capabilities<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.model.capabilities(py)
    }

    fn set_counter_offset(&self, _py: Python<'_>, offset: Offset) -> PyResult<()> {
        self.call(None, |faulty| retry_busy(faulty, |faulty| faulty.set_counter_offset(offset)))
    }

    fn count(&self, py: Python<'_>, vcpu: usize, view: View, now: Option<AnyCount>) -> PyResult<u64> {
        self.alive()?.count(py, vcpu, view, now)
    }

    fn get_one_reg(&self, _py: Python<'_>, vcpu: usize, reg: u64, now: Option<HostCount>) -> PyResult<u64> {
        self.call(now, |faulty| faulty.get_one_reg(vcpu, reg))
    }

    fn set_one_reg(&self, _py: Python<'_>, vcpu: usize, reg: u64, value: u64, now: Option<HostCount>) -> PyResult<()> {
        self.call(now, |faulty| faulty.set_one_reg(vcpu, reg, value))
    }

    fn reg_list(&self, _py: Python<'_>, vcpu: usize) -> PyResult<Vec<u64>> {
        self.call(None, |faulty| faulty.reg_list(vcpu))
    }

    fn timer(&self, py: Python<'_>, vcpu: usize, timer: Timer, now: Option<HostCount>) -> PyResult<TimerState> {
        self.alive()?.timer(py, vcpu, timer, now)
    }

    fn next_deadline(&self, py: Python<'_>, vcpu: usize, now: Option<HostCount>) -> PyResult<u64> {
        self.alive()?.next_deadline(py, vcpu, now)
    }

    fn enter(&self, py: Python<'_>, vcpu: usize) -> PyResult<()> {
        self.alive()?.enter(py, vcpu)
    }

    /// Works after a crash too: a vCPU isn't in its guest any more when its process is gone.
    fn exit(&self, py: Python<'_>, vcpu: usize) -> PyResult<()> {
        self.model.exit(py, vcpu)
    }

    fn opt_in(&self, _py: Python<'_>, offset: Option<Offset>) -> PyResult<()> {
        self.step_of(Place::OptIn, None, |run_state, faulty| run_state.opt_in(faulty, offset))
    }

    fn checkpoint(&self, _py: Python<'_>, saving: &Saving, now: Option<Now>) -> PyResult<Checkpoint> {
        self.step_of(Place::Checkpoint, now, |run_state, faulty| run_state.checkpoint(faulty, saving))
    }

    fn plan(&self, _py: Python<'_>, checkpoint: &Checkpoint, request: Request, now: Option<Now>) -> PyResult<Plan> {
        self.step_of(Place::Plan, now, |run_state, faulty| run_state.plan(faulty, checkpoint, request))
    }

    fn prepare(
        &self,
        _py: Python<'_>,
        plan: Plan,
        checkpoint: Arc<Checkpoint>,
        now: Option<Now>,
    ) -> PyResult<OpenRestore> {
        self.step_of(Place::Prepare, now, |run_state, faulty| run_state.prepare(faulty, plan, checkpoint))
    }

    fn apply(&self, _py: Python<'_>, open: &mut OpenRestore, now: Option<Now>) -> PyResult<()> {
        self.step_of(Place::Apply, now, |run_state, faulty| run_state.apply(faulty, open))
    }

    fn release(&self, _py: Python<'_>, open: &mut OpenRestore, now: Option<Now>) -> PyResult<Report> {
        self.step_of(Place::Release, now, |run_state, faulty| run_state.release(faulty, open))
    }

    /// A VM whose process is gone has nothing to give up, and nothing that could be said of it.
    fn give_up(&self, _py: Python<'_>, open: &mut OpenRestore) -> PyResult<Condition> {
        if self.is_gone() {
            return Ok(Condition::Untouched);
        }
        self.step_of(Place::GiveUp, None, |run_state, faulty| run_state.give_up(faulty, open))
    }

    fn abandon(&self, open: &OpenRestore) -> bool {
        self.is_gone() || self.model.abandon(open)
    }

    fn pause(&self, _py: Python<'_>, request: Request) -> PyResult<OpenPause> {
        self.step_of(Place::Pause, None, |run_state, faulty| run_state.pause(faulty, request))
    }

    fn resume(&self, _py: Python<'_>, pause: &OpenPause) -> PyResult<Report> {
        self.step_of(Place::Resume, None, |run_state, faulty| run_state.resume(faulty, pause))
    }

    fn holds(&self, pause: &OpenPause) -> bool {
        !self.is_gone() && self.model.holds(pause)
    }

    fn next_step(&self, py: Python<'_>) -> PyResult<Option<Step>> {
        self.alive()?.next_step(py)
    }

    fn step(&self, _py: Python<'_>, step: Step, now: Option<Now>) -> PyResult<u64> {
        self.step_of(Place::CatchUp, now, |run_state, faulty| run_state.step(faulty, step))
    }
}
