//! The model VM.

use crate::checkpoint::PyCheckpoint;
use crate::counters::{AnyCounter, PyHostCounter};
use crate::errors::OrRaise;
use crate::policy::AnyPolicy;
use crate::records;
use crate::registers;
use crate::restore::{PyReport, request};
use guestclock_core::counter::{Counter, HostCount, Offset};
use guestclock_core::live::{LivePause, LiveVm};
use guestclock_core::sysreg::{Encoding, View};
use guestclock_core::vm::{Behaviours, KERNELS};
use pyo3::exceptions::{PyOverflowError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use std::sync::{Mutex, PoisonError};

/// A model of a KVM guest's clocks: vCPUs and their timers over one counter.
///
/// It follows KVM's rules, those of the kernel named by `kernel` ("6.1", "6.12" or "7.3"). `counter` is the host's by
/// default. The guest's CNTFRQ_EL0 is the counter's frequency. Safe to use from many threads.
#[pyclass(frozen, name = "Vm", module = "guestclock")]
pub(crate) struct PyVm {
    /// The VM. Frozen, with the lock inside, so that reading a counter needs none.
    pub(crate) live: LiveVm<AnyCounter>,
    counter: Py<PyAny>,
    kernel: &'static str,
}

fn count(now: Option<u64>) -> Option<HostCount> {
    now.map(HostCount)
}

/// Any integer from -2^63 up to 2^64, reduced modulo 2^64.
fn modular(value: &Bound<'_, PyAny>, what: &str) -> PyResult<u64> {
    let wide = || PyOverflowError::new_err(format!("{what} must be at least -2**63 and below 2**64"));
    let value: i128 = value.extract()?;
    match (u64::try_from(value), i64::try_from(value)) {
        (Ok(value), _) => Ok(value),
        (_, Ok(value)) => Ok(value.cast_unsigned()),
        _ => Err(wide()),
    }
}

#[pymethods]
impl PyVm {
    #[new]
    #[pyo3(signature = (vcpus=1, *, counter=None, kernel="6.12"))]
    fn new(py: Python<'_>, vcpus: usize, counter: Option<Bound<'_, PyAny>>, kernel: &str) -> PyResult<Self> {
        let counter = match counter {
            Some(counter) => counter,
            None => py.get_type::<PyHostCounter>().call0()?,
        };
        let Some((kernel, _)) = KERNELS.iter().find(|(name, _)| *name == kernel) else {
            let names: Vec<_> = KERNELS.iter().map(|(name, _)| *name).collect();
            return Err(PyValueError::new_err(format!("no kernel {kernel:?}: one of {}", names.join(", "))));
        };
        let behaviours = Behaviours::named(kernel).ok_or_else(|| PyValueError::new_err("no such kernel"))?;
        let live = LiveVm::new(counter.extract::<AnyCounter>()?, behaviours, vcpus).or_raise()?;
        Ok(Self { live, counter: counter.unbind(), kernel })
    }

    /// How many vCPUs.
    #[getter]
    fn vcpus(&self) -> usize {
        self.live.vcpus()
    }

    /// The counter that the guest's are offset from.
    #[getter]
    fn counter(&self, py: Python<'_>) -> Py<PyAny> {
        self.counter.clone_ref(py)
    }

    /// The guest's CNTFRQ_EL0, in Hz.
    #[getter]
    fn frequency_hz(&self) -> u64 {
        self.live.counter().frequency().hz()
    }

    /// Whose rules it follows.
    #[getter]
    fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// Whether the VM has opted in to one counter offset, for good.
    #[getter]
    fn owned(&self) -> bool {
        self.live.owned()
    }

    /// What can be done for this VM's clocks.
    #[getter]
    fn capabilities<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let abilities = self.live.abilities();
        let kernel = format!("Linux {}, as modelled", self.kernel);
        let since = |there: bool, version| {
            let word = if there { "has" } else { "hasn't" };
            records::support(py, Some(there), &format!("{kernel}, {word} it: Linux {version} and later do"))
        };
        records::capabilities(
            py,
            [
                since(abilities.counter_offset, "6.4")?,
                since(abilities.physical_timer, "6.4")?,
                records::support(
                    py,
                    abilities.physical_offset_untrapped,
                    "the model doesn't trap: ask the host's CPU",
                )?,
                records::support(py, Some(true), "the model knows which of its vCPUs run")?,
            ],
        )
    }

    /// Creates one more vCPU and returns its index.
    ///
    /// Unless the VM has opted in, this moves every vCPU's CNTVCT_EL0 to 0 and CNTPCT_EL0 to the host's
    /// (kvm_timer_vcpu_init, arch/arm64/kvm/arch_timer.c).
    #[pyo3(signature = (*, now=None))]
    fn create_vcpu(&self, now: Option<u64>) -> PyResult<usize> {
        self.live.create_vcpu(count(now)).or_raise()
    }

    /// KVM_ARM_VCPU_INIT: turns the vCPU's timers off. The offsets stay.
    fn init_vcpu(&self, vcpu: usize) -> PyResult<()> {
        self.live.init_vcpu(vcpu).or_raise()
    }

    /// KVM_ARM_SET_COUNTER_OFFSET: one offset for both counters of all vCPUs, in ticks, subtracted from the host's count.
    ///
    /// There is no way back: from now on counter values that are set are ignored. VcpuRunning (EBUSY) while a vCPU
    /// runs. `offset` is any integer from -2**63 up to 2**64, taken modulo 2**64.
    fn set_counter_offset(&self, offset: &Bound<'_, PyAny>) -> PyResult<()> {
        self.live.set_counter_offset(Offset(modular(offset, "an offset")?)).or_raise()
    }

    /// What the vCPU's guest reads from CNTVCT_EL0, now or when the host's counter reads `now`. Takes no lock.
    #[pyo3(signature = (vcpu, now=None))]
    fn cntvct(&self, vcpu: usize, now: Option<u64>) -> PyResult<u64> {
        self.live.count(vcpu, View::Virtual, count(now)).map(|guest| guest.0).or_raise()
    }

    /// What the vCPU's guest reads from CNTPCT_EL0, now or when the host's counter reads `now`. Takes no lock.
    #[pyo3(signature = (vcpu, now=None))]
    fn cntpct(&self, vcpu: usize, now: Option<u64>) -> PyResult<u64> {
        self.live.count(vcpu, View::Physical, count(now)).map(|guest| guest.0).or_raise()
    }

    /// KVM_GET_ONE_REG: `reg` is a `Reg` or its number.
    #[pyo3(signature = (vcpu, reg, *, now=None))]
    fn get_one_reg(&self, vcpu: usize, reg: u64, now: Option<u64>) -> PyResult<u64> {
        self.live.get_one_reg(vcpu, reg, count(now)).or_raise()
    }

    /// KVM_SET_ONE_REG. A counter's value moves the whole VM's, unless the VM has opted in: then it is ignored.
    #[pyo3(signature = (vcpu, reg, value, *, now=None))]
    fn set_one_reg(&self, vcpu: usize, reg: u64, value: &Bound<'_, PyAny>, now: Option<u64>) -> PyResult<()> {
        self.live.set_one_reg(vcpu, reg, modular(value, "a register's value")?, count(now)).or_raise()
    }

    /// The timer registers of the vCPU, in KVM_GET_REG_LIST's order.
    fn reg_list(&self, vcpu: usize) -> PyResult<Vec<u64>> {
        self.live.reg_list(vcpu).or_raise()
    }

    /// What the vCPU's guest reads with `mrs` at EL1, now or when the host's counter reads `now`.
    ///
    /// UnknownRegister where the instruction is undefined for it.
    #[pyo3(signature = (vcpu, op0, op1, crn, crm, op2, *, now=None))]
    fn read_sysreg(&self, vcpu: usize, op0: u8, op1: u8, crn: u8, crm: u8, op2: u8, now: Option<u64>) -> PyResult<u64> {
        self.live.read_sysreg(vcpu, Encoding(op0, op1, crn, crm, op2), count(now)).or_raise()
    }

    /// What the vCPU's guest does with `msr` at EL1.
    #[pyo3(signature = (vcpu, op0, op1, crn, crm, op2, value, *, now=None))]
    fn write_sysreg(
        &self,
        vcpu: usize,
        op0: u8,
        op1: u8,
        crn: u8,
        crm: u8,
        op2: u8,
        value: u64,
        now: Option<u64>,
    ) -> PyResult<()> {
        self.live.write_sysreg(vcpu, Encoding(op0, op1, crn, crm, op2), value, count(now)).or_raise()
    }

    /// One timer as its guest sees it, now or when the host's counter reads `now`.
    #[pyo3(signature = (vcpu, timer, *, now=None))]
    fn timer<'py>(&self, py: Python<'py>, vcpu: usize, timer: usize, now: Option<u64>) -> PyResult<Bound<'py, PyAny>> {
        records::timer_state(py, self.live.timer(vcpu, registers::timer(timer)?, count(now)).or_raise()?)
    }

    /// The host count at which the first of the vCPU's timer lines goes high by itself; None if none will.
    #[pyo3(signature = (vcpu, *, now=None))]
    fn next_deadline(&self, vcpu: usize, now: Option<u64>) -> PyResult<Option<u64>> {
        self.live.next_deadline(vcpu, count(now)).map(records::deadline).or_raise()
    }

    /// A context manager for the time that the vCPU spends in its guest: a VMM wraps KVM_RUN, or its emulator's run.
    ///
    /// RestoreOpen while a restore or pause isn't finished.
    fn running(slf: Py<Self>, vcpu: usize) -> PyRunning {
        PyRunning { vm: slf, vcpu }
    }

    /// Saves the VM's guest time. VcpuRunning (EBUSY) while a vCPU runs.
    ///
    /// `now` is the host's count to save it at, by default the counter's; `stopped_at` is the host's count when the
    /// last vCPU left its guest, from a VMM that knows it.
    #[pyo3(signature = (*, now=None, stopped_at=None))]
    fn checkpoint(&self, now: Option<u64>, stopped_at: Option<u64>) -> PyResult<PyCheckpoint> {
        self.live.checkpoint(count(now), count(stopped_at)).map(PyCheckpoint::from).or_raise()
    }

    /// A context manager that keeps the VM from running and, at its end, treats the time in it as `policy` says.
    #[pyo3(signature = (policy=None, *, views="preserve"))]
    fn paused(slf: Py<Self>, policy: Option<AnyPolicy>, views: &str) -> PyResult<PyPaused> {
        let request = request(policy, views, None, None)?;
        Ok(PyPaused { vm: slf, request, state: Mutex::new(PauseState::New) })
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let counter = self.counter.bind(py).repr()?;
        let owned = if self.owned() { ", owned" } else { "" };
        Ok(format!("<Vm of {} vCPUs over {counter}, Linux {}{owned}>", self.vcpus(), self.kernel))
    }
}

/// The time that a vCPU spends in its guest.
#[pyclass(frozen, name = "Running", module = "guestclock")]
pub(crate) struct PyRunning {
    vm: Py<PyVm>,
    vcpu: usize,
}

#[pymethods]
impl PyRunning {
    fn __enter__(&self) -> PyResult<()> {
        self.vm.get().live.enter(self.vcpu).or_raise()
    }

    fn __exit__(&self, _exc_type: &Bound<'_, PyAny>, _exc: &Bound<'_, PyAny>, _tb: &Bound<'_, PyAny>) -> PyResult<()> {
        self.vm.get().live.exit(self.vcpu).or_raise()
    }
}

enum PauseState {
    New,
    Paused(Box<LivePause>),
    Done(Py<PyReport>),
}

/// A pause in place: what `Vm.paused` returns.
#[pyclass(frozen, name = "Paused", module = "guestclock")]
pub(crate) struct PyPaused {
    vm: Py<PyVm>,
    request: guestclock_core::plan::Request,
    /// Waited for as a restore's is (`restore.rs`).
    state: Mutex<PauseState>,
}

#[pymethods]
impl PyPaused {
    /// What was done when the pause ended.
    #[getter]
    fn report(&self, py: Python<'_>) -> PyResult<Py<PyReport>> {
        match &*self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner) {
            PauseState::Done(report) => Ok(report.clone_ref(py)),
            _ => Err(PyRuntimeError::new_err("the pause isn't over: there is no report yet")),
        }
    }

    fn __enter__(slf: Py<Self>, py: Python<'_>) -> PyResult<Py<Self>> {
        let this = slf.get();
        let mut state = this.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
        if !matches!(*state, PauseState::New) {
            return Err(PyRuntimeError::new_err("a pause is entered once: call paused() again"));
        }
        *state = PauseState::Paused(Box::new(this.vm.get().live.pause(this.request).or_raise()?));
        drop(state);
        Ok(slf)
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _exc_type: &Bound<'_, PyAny>,
        _exc: &Bound<'_, PyAny>,
        _tb: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let mut state = self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
        if let PauseState::Paused(pause) = &*state {
            let report = self.vm.get().live.resume(pause).or_raise()?;
            *state = PauseState::Done(Py::new(py, PyReport::from(report))?);
        }
        Ok(())
    }
}
