//! The model VM.

use crate::any_vm::GuestVm;
use crate::arguments::{count, modular, saving};
use crate::checkpoint::{PyCheckpoint, vm_name};
use crate::counters::{AnyCounter, PyHostCounter};
use crate::errors::OrRaise;
use crate::guest::{PyPaused, PyRunning};
use crate::policy::AnyPolicy;
use crate::records::{self, AnyCount, AnyNow, AnySyncBound};
use crate::registers;
use crate::steps::PySteps;
use crate::vouching::Asks;
use guestclock_core::arch::arm64::{Access, Behaviours, El, El2, Encoding, KERNELS, View, Width};
use guestclock_core::checkpoint::{Checkpoint, VmName};
use guestclock_core::drive::{OpenPause, OpenRestore};
use guestclock_core::restore::{Plan, Report, Request, Step};
use guestclock_core::time::{Counter, Offset};
use guestclock_model::config::{Config, Origin};
use guestclock_model::locked::{LockedVm, Now};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::sync::Arc;

/// A model of a KVM guest's clocks: vCPUs and their timers over one counter.
///
/// The model follows the rules of KVM in the kernel named by `kernel` ("6.1", "6.12" or "7.3"; by default "6.12", or
/// "7.3" for a nested guest). `counter` is the host's by default. The guest's CNTFRQ_EL0 is the counter's frequency.
/// Safe to use from many threads.
///
/// `nested=True` gives the guest EL2 (KVM_ARM_VCPU_HAS_EL2): a CNTVOFF_EL2 on each vCPU, and two more timers; with
/// `e2h0=True` (KVM_ARM_VCPU_HAS_EL2_E2H0) HCR_EL2.E2H is 0, and there is no EL2 virtual timer. `irqchip="user"` has
/// the interrupt controller in the VMM. `vhe=False` is a host whose kernel doesn't run at EL2, and so emulates the
/// guest's physical timer. `arch_width` is for emulators of hardware whose counters have fewer than 64 bits (56 and
/// more): KVM knows only 64. `name` names the VM in its checkpoints.
#[pyclass(frozen, name = "ModelVm", module = "guestclock")]
pub(crate) struct PyModelVm {
    /// The VM. Frozen, with the lock inside, so that reading a counter needs none.
    pub(crate) live: LockedVm<AnyCounter>,
    counter: Py<PyAny>,
    kernel: &'static str,
    pub(crate) name: VmName,
}

/// The exception level and HCR_EL2.TGE of an access.
fn origin(el: u8, tge: bool) -> PyResult<Origin> {
    let el = match el {
        0 => El::El0,
        1 => El::El1,
        2 => El::El2,
        _ => return Err(PyValueError::new_err(format!("el={el}: a guest's exception level is 0, 1 or 2"))),
    };
    Ok(Origin { el, tge })
}

/// The kernel, behaviours and configuration of a VM, as the keyword arguments have them.
pub(crate) struct Guest {
    kernel: &'static str,
    pub(crate) behaviours: Behaviours,
    pub(crate) config: Config,
}

impl Guest {
    pub(crate) fn new(
        kernel: Option<&str>,
        nested: bool,
        e2h0: bool,
        irqchip: &str,
        vhe: bool,
        arch_width: u8,
    ) -> PyResult<Self> {
        let kernel = kernel.unwrap_or(if nested { "7.3" } else { "6.12" });
        let el2 = match (nested, e2h0) {
            (false, false) => El2::Absent,
            (true, false) => El2::Vhe,
            (true, true) => El2::E2h0,
            (false, true) => {
                return Err(PyValueError::new_err("e2h0=True is about a guest's EL2: it needs nested=True"));
            }
        };
        if nested && !vhe {
            return Err(PyValueError::new_err("vhe=False is a host without VHE: it has no nested guests"));
        }
        let in_kernel_irqchip = match irqchip {
            "in-kernel" => true,
            "user" => false,
            _ => return Err(PyValueError::new_err(format!("no irqchip={irqchip:?}: in-kernel or user"))),
        };
        let width = Width::new(arch_width)
            .ok_or_else(|| PyValueError::new_err(format!("arch_width={arch_width}: a counter has 56 to 64 bits")))?;
        let config = Config { el2, in_kernel_irqchip, vhe, width };
        let Some(&(kernel, behaviours)) = KERNELS.iter().find(|(name, _)| *name == kernel) else {
            let names: Vec<_> = KERNELS.iter().map(|(name, _)| *name).collect();
            return Err(PyValueError::new_err(format!("no kernel {kernel:?}: one of {}", names.join(", "))));
        };
        Ok(Self { kernel, behaviours, config })
    }
}

impl PyModelVm {
    /// A VM of a bank, over that counter.
    pub(crate) fn new_over(live: LockedVm<AnyCounter>, counter: Py<PyAny>, name: VmName) -> Self {
        let behaviours = live.behaviours();
        let kernel = KERNELS.iter().find(|(_, known)| *known == behaviours).map_or("unknown", |(name, _)| name);
        Self { live, counter, kernel, name }
    }

    #[inline]
    fn view(&self, vcpu: usize, view: View, now: Option<AnyCount>) -> PyResult<u64> {
        let now = now.map(|now| now.own(self.live.counter())).transpose()?;
        self.live.count(vcpu, view, now).map(|guest| guest.0).or_raise()
    }
}

#[pymethods]
impl PyModelVm {
    #[new]
    #[pyo3(signature = (
        vcpus=1, *, counter=None, kernel=None, nested=false, e2h0=false, irqchip="in-kernel", vhe=true, arch_width=64,
        name=""
    ))]
    fn new(
        py: Python<'_>,
        vcpus: usize,
        counter: Option<Bound<'_, PyAny>>,
        kernel: Option<&str>,
        nested: bool,
        e2h0: bool,
        irqchip: &str,
        vhe: bool,
        arch_width: u8,
        name: &str,
    ) -> PyResult<Self> {
        let name = vm_name(name)?;
        let Guest { kernel, behaviours, config } = Guest::new(kernel, nested, e2h0, irqchip, vhe, arch_width)?;
        let counter = match counter {
            Some(counter) => counter,
            None => py.get_type::<PyHostCounter>().call0()?,
        };
        let live = LockedVm::new(counter.extract::<AnyCounter>()?, behaviours, config, vcpus).or_raise()?;
        Ok(Self { live, counter: counter.unbind(), kernel, name })
    }

    /// Name of the VM in its checkpoints; empty where nobody named it.
    #[getter]
    fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Number of vCPUs.
    #[getter]
    pub(crate) fn vcpus(&self) -> usize {
        self.live.vcpus()
    }

    /// The counter that the guest's counters are offset from.
    #[getter]
    pub(crate) fn counter(&self, py: Python<'_>) -> Py<PyAny> {
        self.counter.clone_ref(py)
    }

    /// The guest's CNTFRQ_EL0, in Hz.
    #[getter]
    pub(crate) fn frequency_hz(&self) -> u64 {
        self.live.counter().frequency().hz()
    }

    /// True if the guest has EL2.
    #[getter]
    pub(crate) fn nested(&self) -> bool {
        self.live.config().el2 != El2::Absent
    }

    /// The kernel whose rules the model follows.
    #[getter]
    fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// True if the VM has opted in to one counter offset, for good.
    #[getter]
    pub(crate) fn opted_in(&self) -> bool {
        self.live.opted_in()
    }

    /// The capabilities for this VM's clocks.
    #[getter]
    pub(crate) fn capabilities<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let abilities = self.live.abilities();
        let behaviours = self.live.behaviours();
        let kernel = format!("Linux {}, as modelled", self.kernel);
        let since = |there: bool, version| {
            let word = if there { "has" } else { "hasn't" };
            records::support(py, Some(there), &format!("{kernel}, {word} it: Linux {version} and later do"))
        };
        records::capabilities(
            py,
            [
                since(abilities.counter_offset, "6.4")?,
                since(behaviours.physical_timer, "6.4")?,
                records::support(
                    py,
                    abilities.physical_offset_untrapped,
                    "the model doesn't trap: ask the host's CPU",
                )?,
                records::support(py, Some(true), "the model knows which of its vCPUs run")?,
                since(behaviours.el2, "6.16")?,
            ],
        )
    }

    /// Creates one more vCPU and returns its index.
    ///
    /// Unless the VM has opted in, the creation moves every vCPU's CNTVCT_EL0 to 0 and CNTPCT_EL0 to the host's
    /// (kvm_timer_vcpu_init, arch/arm64/kvm/arch_timer.c).
    #[pyo3(signature = (*, now=None))]
    fn create_vcpu(&self, now: Option<u64>) -> PyResult<usize> {
        self.live.create_vcpu(count(now)).or_raise()
    }

    /// KVM_ARM_VCPU_INIT: turns the vCPU's timers off. The offsets stay.
    fn init_vcpu(&self, vcpu: usize) -> PyResult<()> {
        self.live.init_vcpu(vcpu).or_raise()
    }

    /// KVM_ARM_SET_COUNTER_OFFSET: one offset for both counters of all vCPUs, in ticks, subtracted from the host's
    /// count.
    ///
    /// There is no way back: from then on counter values that are set are ignored. VcpuRunning (EBUSY) while a vCPU
    /// runs. `offset` is any integer from -2**63 up to 2**64, taken modulo 2**64. `reserved` is the ioctl's second
    /// field: EINVAL unless it is 0.
    #[pyo3(signature = (offset, *, reserved=0))]
    fn set_counter_offset(&self, offset: &Bound<'_, PyAny>, reserved: u64) -> PyResult<()> {
        self.live.set_counter_offset(Offset(modular(offset, "an offset")?), reserved).or_raise()
    }

    /// CNTVCT_EL0 as the vCPU's guest reads it, now or when the host's counter reads `now`. Takes no lock.
    ///
    /// `now` is a count as the counter's `read` gives it, or a Stamp of the counter.
    #[pyo3(signature = (vcpu, now=None))]
    pub(crate) fn cntvct(&self, vcpu: usize, now: Option<AnyCount>) -> PyResult<u64> {
        self.view(vcpu, View::Virtual, now)
    }

    /// CNTPCT_EL0 as the vCPU's guest reads it, now or when the host's counter reads `now`: see `cntvct`. Takes no
    /// lock.
    #[pyo3(signature = (vcpu, now=None))]
    pub(crate) fn cntpct(&self, vcpu: usize, now: Option<AnyCount>) -> PyResult<u64> {
        self.view(vcpu, View::Physical, now)
    }

    /// KVM_GET_ONE_REG: `reg` is a `Reg` or its number.
    #[pyo3(signature = (vcpu, reg, *, now=None))]
    fn get_one_reg(&self, vcpu: usize, reg: u64, now: Option<u64>) -> PyResult<u64> {
        self.live.get_one_reg(vcpu, reg, count(now)).or_raise()
    }

    /// KVM_SET_ONE_REG. A counter's value moves the whole VM's counter, unless the VM has opted in: then it is ignored.
    #[pyo3(signature = (vcpu, reg, value, *, now=None))]
    fn set_one_reg(&self, vcpu: usize, reg: u64, value: &Bound<'_, PyAny>, now: Option<u64>) -> PyResult<()> {
        self.live.set_one_reg(vcpu, reg, modular(value, "a register's value")?, count(now)).or_raise()
    }

    /// The timer registers of the vCPU, in KVM_GET_REG_LIST's order.
    fn reg_list(&self, vcpu: usize) -> PyResult<Vec<u64>> {
        self.live.reg_list(vcpu).or_raise()
    }

    /// The outcome of an `mrs`, or with `write` an `msr`, at this exception level: "allowed", "trap-to-el1",
    /// "trap-to-el2" or "undefined".
    ///
    /// `tge` is HCR_EL2.TGE of a nested guest, whose EL0 is then its hypervisor's user space.
    #[pyo3(signature = (vcpu, op0, op1, crn, crm, op2, *, write=false, el=1, tge=false))]
    fn access(
        &self,
        vcpu: usize,
        op0: u8,
        op1: u8,
        crn: u8,
        crm: u8,
        op2: u8,
        write: bool,
        el: u8,
        tge: bool,
    ) -> PyResult<&'static str> {
        let access = self.live.access(vcpu, Encoding(op0, op1, crn, crm, op2), write, origin(el, tge)?).or_raise()?;
        Ok(match access {
            Access::Allowed(_) => "allowed",
            Access::TrapToEl1 => "trap-to-el1",
            Access::TrapToEl2 => "trap-to-el2",
            Access::Undefined => "undefined",
        })
    }

    /// The value that the vCPU's guest reads with `mrs` at exception level `el`, now or when the host's counter reads
    /// `now`.
    ///
    /// SysregTrap where the access traps, and UnknownRegister where it is undefined for the guest.
    #[pyo3(signature = (vcpu, op0, op1, crn, crm, op2, *, el=1, tge=false, now=None))]
    fn read_sysreg(
        &self,
        vcpu: usize,
        op0: u8,
        op1: u8,
        crn: u8,
        crm: u8,
        op2: u8,
        el: u8,
        tge: bool,
        now: Option<u64>,
    ) -> PyResult<u64> {
        self.live.read_sysreg(vcpu, Encoding(op0, op1, crn, crm, op2), origin(el, tge)?, count(now)).or_raise()
    }

    /// Writes a register as the vCPU's guest does with `msr` at exception level `el`: see `read_sysreg`.
    #[pyo3(signature = (vcpu, op0, op1, crn, crm, op2, value, *, el=1, tge=false, now=None))]
    fn write_sysreg(
        &self,
        vcpu: usize,
        op0: u8,
        op1: u8,
        crn: u8,
        crm: u8,
        op2: u8,
        value: u64,
        el: u8,
        tge: bool,
        now: Option<u64>,
    ) -> PyResult<()> {
        let encoding = Encoding(op0, op1, crn, crm, op2);
        self.live.write_sysreg(vcpu, encoding, value, origin(el, tge)?, count(now)).or_raise()
    }

    /// The host count at which a vCPU that waits in WFI wakes by itself: now, if at once; None if nothing of its own
    /// will wake it.
    ///
    /// `timeout` is the operand of WFIT, a count of the virtual counter.
    #[pyo3(signature = (vcpu, *, timeout=None, el=1, tge=false, now=None))]
    fn wfi_wake(
        &self,
        vcpu: usize,
        timeout: Option<u64>,
        el: u8,
        tge: bool,
        now: Option<u64>,
    ) -> PyResult<Option<u64>> {
        self.live.wake(vcpu, timeout, origin(el, tge)?, count(now)).map(records::deadline).or_raise()
    }

    /// `kvm_run.s.regs.device_irq_level`: bit 0 the virtual timer's line, bit 1 the physical one's, for an interrupt
    /// controller in the VMM.
    #[pyo3(signature = (vcpu, *, now=None))]
    fn device_irq_level(&self, vcpu: usize, now: Option<u64>) -> PyResult<u64> {
        self.live.device_irq_level(vcpu, count(now)).or_raise()
    }

    /// The interrupt id of a timer, on every vCPU.
    fn irq(&self, timer: u64) -> PyResult<u8> {
        self.live.irq(timer).or_raise()
    }

    /// KVM_ARM_VCPU_TIMER_CTRL: gives a timer its interrupt id, 16 to 31, on every vCPU.
    ///
    /// KvmError: EINVAL for another id, or without an interrupt controller in the kernel; EBUSY once a vCPU has run;
    /// ENXIO for a timer that the kernel doesn't know. Two timers with the same id make the first run fail.
    fn set_irq(&self, timer: u64, irq: i32) -> PyResult<()> {
        self.live.set_irq(timer, irq).or_raise()
    }

    /// One timer as its guest sees it, now or when the host's counter reads `now`.
    #[pyo3(signature = (vcpu, timer, *, now=None))]
    pub(crate) fn timer<'py>(
        &self,
        py: Python<'py>,
        vcpu: usize,
        timer: usize,
        now: Option<u64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        records::timer_state(py, self.live.timer(vcpu, registers::timer(timer)?, count(now)).or_raise()?)
    }

    /// The host count at which the first of the vCPU's timer lines goes high by itself; None if none will.
    #[pyo3(signature = (vcpu, *, now=None))]
    pub(crate) fn next_deadline(&self, vcpu: usize, now: Option<u64>) -> PyResult<Option<u64>> {
        self.live.next_deadline(vcpu, count(now)).map(records::deadline).or_raise()
    }

    /// A context manager for the time that the vCPU spends in its guest: a VMM wraps KVM_RUN, or its emulator's run, in
    /// it.
    ///
    /// RestoreOpen while a restore or pause isn't finished.
    fn running(slf: Py<Self>, vcpu: usize) -> PyRunning {
        PyRunning::new(Arc::new(slf), vcpu)
    }

    /// Saves the VM's guest time. VcpuRunning (EBUSY) while a vCPU runs.
    ///
    /// `now` is the host's count of the checkpoint as the counter's `read` gives it, by default the present one, or a
    /// whole Stamp, which is host-wide. `stopped_at` is the host's count when the last vCPU left its guest, as `read`
    /// gave it to a VMM that knows it: ValueError if that lies after the checkpoint. `sync` says how far the wall clock
    /// may be off: without it, and without one of the counter, the bound is only the kernel's claim. `vmclock_address`
    /// is the guest-physical address of the vmclock page, and `stolen_time` those of the vCPUs' stolen-time records, one
    /// a vCPU (None where there is none): they are carried for whoever restores them.
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
        let now = now.map(|now| now.0);
        let saving = saving(&self.name, stopped_at, sync, vmclock_address, stolen_time)?;
        if saving.asks(now.as_ref()) {
            self.live.counter().ask(py)?;
        }
        self.live.checkpoint(now, &saving).map(PyCheckpoint::from).or_raise()
    }

    /// The guest's backlog, in ticks: 0 unless a `CatchUp` is unfinished.
    #[getter]
    pub(crate) fn backlog_ticks(&self) -> u64 {
        self.live.next_step().map_or(0, |step| step.backlog_ticks)
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
        let counter = self.counter.bind(py).repr()?;
        let owned = if self.opted_in() { ", opted in" } else { "" };
        Ok(format!("<ModelVm of {} vCPUs over {counter}, Linux {}{owned}>", self.vcpus(), self.kernel))
    }
}

impl GuestVm for Py<PyModelVm> {
    fn plan(&self, py: Python<'_>, checkpoint: &Checkpoint, request: Request, now: Option<Now>) -> PyResult<Plan> {
        if request.asks(now.as_ref()) {
            self.get().live.counter().ask(py)?;
        }
        self.get().live.plan(checkpoint, request, now).or_raise()
    }

    fn prepare(
        &self,
        _py: Python<'_>,
        plan: Plan,
        checkpoint: Arc<Checkpoint>,
        now: Option<Now>,
    ) -> PyResult<OpenRestore> {
        self.get().live.prepare(plan, checkpoint, now).or_raise()
    }

    fn apply(&self, _py: Python<'_>, open: &mut OpenRestore, now: Option<Now>) -> PyResult<()> {
        self.get().live.apply(open, now).or_raise()
    }

    fn release(&self, _py: Python<'_>, open: &mut OpenRestore, now: Option<Now>) -> PyResult<Report> {
        self.get().live.release(open, now).or_raise()
    }

    fn pause(&self, _py: Python<'_>, request: Request) -> PyResult<OpenPause> {
        self.get().live.pause(request).or_raise()
    }

    fn resume(&self, _py: Python<'_>, pause: &OpenPause) -> PyResult<Report> {
        self.get().live.resume(pause).or_raise()
    }

    fn next_step(&self, _py: Python<'_>) -> Option<Step> {
        self.get().live.next_step()
    }

    fn step(&self, _py: Python<'_>, now: Option<Now>) -> PyResult<Step> {
        self.get().live.step(now).or_raise()
    }

    fn counter(&self) -> &dyn Counter {
        self.get().live.counter()
    }

    fn enter(&self, _py: Python<'_>, vcpu: usize) -> PyResult<()> {
        self.get().live.enter(vcpu).or_raise()
    }

    fn exit(&self, _py: Python<'_>, vcpu: usize) -> PyResult<()> {
        self.get().live.exit(vcpu).or_raise()
    }
}
