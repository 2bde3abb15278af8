//! The model VM.

use crate::any_vm::{Failure, Handle, Operable, failure};
use crate::arguments::{Int, Modular, Vcpu, count, int, plain, quoted};
use crate::checkpoint::vm_name;
use crate::counters::AnyCounter;
use crate::errors::OrRaise;
use crate::foreign::{Sampled, Taken};
use crate::host_counters::PyHostCounter;
use crate::records::{self, AnyCount, PyTimerState};
use crate::registers;
use crate::verbs::PyGuestVm;
use guestclock_core::arch::arm64::{Access, Behaviours, El, El2, Encoding, KERNELS, Timer, TimerState, View, Width};
use guestclock_core::checkpoint::VmName;
use guestclock_core::drive::{Backend, OpenPause, OpenRestore, Verb};
use guestclock_core::restore::{RunState, State, Step};
use guestclock_core::time::{Counter, HostCount, Offset};
use guestclock_model::config::{Config, Origin};
use guestclock_model::error::VmError;
use guestclock_model::locked::{LockedError, LockedVm, Now};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::sync::Arc;

/// A model of a KVM guest's clocks: vCPUs and their timers over one counter.
///
/// The model follows the rules of KVM in the kernel named by `kernel` ("6.1", "6.12" or "7.3"; by default "6.12", or
/// "7.3" for a nested guest). `counter` is the host's by default, and may be any object with `frequency_hz`, `read()` and
/// `stamp()`, which each call that needs a sample asks once, before it takes a lock. The guest's CNTFRQ_EL0 is the
/// counter's frequency.
/// Safe to use from many threads.
///
/// `nested=True` gives the guest EL2 (KVM_ARM_VCPU_HAS_EL2): a CNTVOFF_EL2 on each vCPU, and two more timers; with
/// `e2h0=True` (KVM_ARM_VCPU_HAS_EL2_E2H0) HCR_EL2.E2H is 0, and there is no EL2 virtual timer. `irqchip="user"` has
/// the interrupt controller in the VMM. `vhe=False` is a host whose kernel doesn't run at EL2, and so emulates the
/// guest's physical timer. `arch_width` is for emulators of hardware whose counters have fewer than 64 bits (56 and
/// more): KVM knows only 64. `name` names the VM in its checkpoints.
#[pyclass(frozen, extends = PyGuestVm, name = "ModelVm", module = "guestclock")]
pub(crate) struct PyModelVm {
    pub(crate) model: Arc<Model>,
}

/// A model VM, as its verbs hold it.
pub(crate) struct Model {
    /// The VM. Frozen, with the lock inside, so that reading a counter needs none.
    pub(crate) live: LockedVm<AnyCounter>,
    counter: Py<PyAny>,
    kernel: &'static str,
    name: VmName,
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
            _ => return Err(PyValueError::new_err(format!("no irqchip={}: in-kernel or user", quoted(irqchip)))),
        };
        let width = Width::new(arch_width)
            .ok_or_else(|| PyValueError::new_err(format!("arch_width={arch_width}: a counter has 56 to 64 bits")))?;
        let config = Config { el2, in_kernel_irqchip, vhe, width };
        let Some(&(kernel, behaviours)) = KERNELS.iter().find(|(name, _)| *name == kernel) else {
            let names: Vec<_> = KERNELS.iter().map(|(name, _)| *name).collect();
            return Err(PyValueError::new_err(format!("no kernel {}: one of {}", quoted(kernel), names.join(", "))));
        };
        Ok(Self { kernel, behaviours, config })
    }
}

impl PyModelVm {
    /// A VM of a bank, over that counter.
    pub(crate) fn new_over(live: LockedVm<AnyCounter>, counter: Py<PyAny>, name: VmName) -> PyClassInitializer<Self> {
        let behaviours = live.behaviours();
        let kernel = KERNELS.iter().find(|(_, known)| *known == behaviours).map_or("unknown", |(name, _)| name);
        Self::of(Model { live, counter, kernel, name })
    }

    fn of(model: Model) -> PyClassInitializer<Self> {
        let model = Arc::new(model);
        PyClassInitializer::from(PyGuestVm::new(Arc::clone(&model) as _)).add_subclass(Self { model })
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
        #[pyo3(from_py_with = int)] vcpus: usize,
        counter: Option<Bound<'_, PyAny>>,
        kernel: Option<&str>,
        nested: bool,
        e2h0: bool,
        irqchip: &str,
        vhe: bool,
        #[pyo3(from_py_with = int)] arch_width: u8,
        name: &str,
    ) -> PyResult<PyClassInitializer<Self>> {
        let name = vm_name(name)?;
        records::ready(py)?;
        let Guest { kernel, behaviours, config } = Guest::new(kernel, nested, e2h0, irqchip, vhe, arch_width)?;
        let counter = match counter {
            Some(counter) => counter,
            None => py.get_type::<PyHostCounter>().call0()?,
        };
        let over = counter.extract::<AnyCounter>()?;
        let _sample = over.sampled(py, None)?;
        let live = LockedVm::new(over.clone(), behaviours, config, vcpus).or_raise()?;
        Ok(Self::of(Model { live, counter: counter.unbind(), kernel, name }))
    }

    /// The kernel whose rules the model follows.
    #[getter]
    fn kernel(&self) -> &'static str {
        self.model.kernel
    }

    // The reads of an emulator's exit, which `GuestVm` has for every kind of VM. Here they cost less: the class is known,
    // and with it the VM.

    /// CNTVCT_EL0 as the vCPU's guest reads it: see `GuestVm.cntvct`.
    #[pyo3(signature = (vcpu, now=None))]
    fn cntvct(&self, py: Python<'_>, vcpu: Vcpu, now: Option<AnyCount>) -> PyResult<u64> {
        self.model.count(py, vcpu.0, View::Virtual, now)
    }

    /// CNTPCT_EL0 as the vCPU's guest reads it: see `GuestVm.cntvct`.
    #[pyo3(signature = (vcpu, now=None))]
    fn cntpct(&self, py: Python<'_>, vcpu: Vcpu, now: Option<AnyCount>) -> PyResult<u64> {
        self.model.count(py, vcpu.0, View::Physical, now)
    }

    /// KVM_GET_ONE_REG: see `GuestVm.get_one_reg`.
    #[pyo3(signature = (vcpu, reg, *, now=None))]
    fn get_one_reg(&self, py: Python<'_>, vcpu: Vcpu, reg: Int<u64>, now: Option<Int<u64>>) -> PyResult<u64> {
        self.model.get_one_reg(py, vcpu.0, reg.0, count(now))
    }

    /// One timer as its guest sees it: see `GuestVm.timer`.
    #[pyo3(signature = (vcpu, timer, *, now=None))]
    fn timer(&self, py: Python<'_>, vcpu: Vcpu, timer: Int<usize>, now: Option<Int<u64>>) -> PyResult<PyTimerState> {
        self.model.timer(py, vcpu.0, registers::timer(timer.0)?, count(now)).map(Into::into)
    }

    /// Creates one more vCPU and returns its index.
    ///
    /// Unless the VM has opted in, the creation moves every vCPU's CNTVCT_EL0 to 0 and CNTPCT_EL0 to the host's
    /// (kvm_timer_vcpu_init, arch/arm64/kvm/arch_timer.c).
    #[pyo3(signature = (*, now=None))]
    fn create_vcpu(&self, py: Python<'_>, now: Option<Int<u64>>) -> PyResult<usize> {
        let _sample = self.model.live.counter().sampled(py, count(now))?;
        self.model.live.create_vcpu(count(now)).or_raise()
    }

    /// KVM_ARM_VCPU_INIT: turns the vCPU's timers off. The offsets stay.
    fn init_vcpu(&self, vcpu: Vcpu) -> PyResult<()> {
        self.model.live.init_vcpu(vcpu.0).or_raise()
    }

    /// KVM_ARM_SET_COUNTER_OFFSET: see `GuestVm`. `reserved` is the ioctl's second field: EINVAL unless it is 0.
    #[pyo3(signature = (offset, *, reserved=0))]
    fn set_counter_offset(&self, offset: Modular, #[pyo3(from_py_with = int)] reserved: u64) -> PyResult<()> {
        self.model.live.set_counter_offset(Offset(offset.0), reserved).or_raise()
    }

    /// The outcome of an `mrs`, or with `write` an `msr`, at this exception level: "allowed", "trap-to-el1",
    /// "trap-to-el2" or "undefined".
    ///
    /// `tge` is HCR_EL2.TGE of a nested guest, whose EL0 is then its hypervisor's user space.
    #[pyo3(signature = (vcpu, op0, op1, crn, crm, op2, *, write=false, el=1, tge=false))]
    fn access(
        &self,
        vcpu: Vcpu,
        op0: Int<u8>,
        op1: Int<u8>,
        crn: Int<u8>,
        crm: Int<u8>,
        op2: Int<u8>,
        write: bool,
        #[pyo3(from_py_with = int)] el: u8,
        tge: bool,
    ) -> PyResult<&'static str> {
        let access = self
            .model
            .live
            .access(vcpu.0, Encoding(op0.0, op1.0, crn.0, crm.0, op2.0), write, origin(el, tge)?)
            .or_raise()?;
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
        py: Python<'_>,
        vcpu: Vcpu,
        op0: Int<u8>,
        op1: Int<u8>,
        crn: Int<u8>,
        crm: Int<u8>,
        op2: Int<u8>,
        #[pyo3(from_py_with = int)] el: u8,
        tge: bool,
        now: Option<Int<u64>>,
    ) -> PyResult<u64> {
        let _sample = self.model.live.counter().sampled(py, count(now))?;
        self.model
            .live
            .read_sysreg(vcpu.0, Encoding(op0.0, op1.0, crn.0, crm.0, op2.0), origin(el, tge)?, count(now))
            .or_raise()
    }

    /// Writes a register as the vCPU's guest does with `msr` at exception level `el`: see `read_sysreg`.
    #[pyo3(signature = (vcpu, op0, op1, crn, crm, op2, value, *, el=1, tge=false, now=None))]
    fn write_sysreg(
        &self,
        py: Python<'_>,
        vcpu: Vcpu,
        op0: Int<u8>,
        op1: Int<u8>,
        crn: Int<u8>,
        crm: Int<u8>,
        op2: Int<u8>,
        value: Int<u64>,
        #[pyo3(from_py_with = int)] el: u8,
        tge: bool,
        now: Option<Int<u64>>,
    ) -> PyResult<()> {
        let encoding = Encoding(op0.0, op1.0, crn.0, crm.0, op2.0);
        let _sample = self.model.live.counter().sampled(py, count(now))?;
        self.model.live.write_sysreg(vcpu.0, encoding, value.0, origin(el, tge)?, count(now)).or_raise()
    }

    /// The host count at which a vCPU that waits in WFI wakes by itself: now, if at once; None if nothing of its own
    /// will wake it.
    ///
    /// `timeout` is the operand of WFIT, a count of the virtual counter.
    #[pyo3(signature = (vcpu, *, timeout=None, el=1, tge=false, now=None))]
    fn wfi_wake(
        &self,
        py: Python<'_>,
        vcpu: Vcpu,
        timeout: Option<Int<u64>>,
        #[pyo3(from_py_with = int)] el: u8,
        tge: bool,
        now: Option<Int<u64>>,
    ) -> PyResult<Option<u64>> {
        let _sample = self.model.live.counter().sampled(py, count(now))?;
        self.model.live.wake(vcpu.0, plain(timeout), origin(el, tge)?, count(now)).map(records::deadline).or_raise()
    }

    /// `kvm_run.s.regs.device_irq_level`: bit 0 the virtual timer's line, bit 1 the physical one's, for an interrupt
    /// controller in the VMM.
    #[pyo3(signature = (vcpu, *, now=None))]
    fn device_irq_level(&self, py: Python<'_>, vcpu: Vcpu, now: Option<Int<u64>>) -> PyResult<u64> {
        let _sample = self.model.live.counter().sampled(py, count(now))?;
        self.model.live.device_irq_level(vcpu.0, count(now)).or_raise()
    }

    /// The interrupt id of a timer, on every vCPU.
    fn irq(&self, timer: Int<u64>) -> PyResult<u8> {
        self.model.live.irq(timer.0).or_raise()
    }

    /// KVM_ARM_VCPU_TIMER_CTRL: gives a timer its interrupt id, 16 to 31, on every vCPU.
    ///
    /// KvmError: EINVAL for another id, or without an interrupt controller in the kernel; EBUSY once a vCPU has run;
    /// ENXIO for a timer that the kernel doesn't know. Two timers with the same id make the first run fail.
    fn set_irq(&self, timer: Int<u64>, irq: Int<i32>) -> PyResult<()> {
        self.model.live.set_irq(timer.0, irq.0).or_raise()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let Model { live, counter, kernel, .. } = &*self.model;
        let counter = counter.bind(py).repr()?;
        let owned = if live.opted_in() { ", opted in" } else { "" };
        Ok(format!("<ModelVm of {} vCPUs over {counter}, Linux {kernel}{owned}>", live.vcpus()))
    }
}

impl Handle for Model {
    fn name(&self) -> &VmName {
        &self.name
    }

    fn vcpus(&self, _py: Python<'_>) -> PyResult<usize> {
        self.live.state().or_raise()?;
        Ok(self.live.vcpus())
    }

    fn counter_object(&self, py: Python<'_>) -> Py<PyAny> {
        self.counter.clone_ref(py)
    }

    fn counter(&self) -> &dyn Counter {
        self.live.counter()
    }

    fn ask(&self, py: Python<'_>) -> PyResult<()> {
        self.live.counter().ask(py)
    }

    fn samples_in_python(&self, now: Option<&Now>) -> bool {
        self.live.counter().is_sampled_in_python(now)
    }

    fn sampled(&self, py: Python<'_>, now: Option<HostCount>) -> PyResult<Sampled> {
        self.live.counter().sampled(py, now)
    }

    fn nested(&self, _py: Python<'_>) -> PyResult<bool> {
        Ok(self.live.config().el2 != El2::Absent)
    }

    fn opted_in(&self) -> PyResult<bool> {
        self.live.state().or_raise()?;
        Ok(self.live.opted_in())
    }

    fn state(&self, _py: Python<'_>) -> PyResult<State> {
        self.live.state().or_raise()
    }

    fn capabilities<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
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

    fn set_counter_offset(&self, py: Python<'_>, offset: Offset) -> PyResult<()> {
        let _sample = self.live.counter().sampled(py, None)?;
        self.live.set_counter_offset(offset, 0).or_raise()
    }

    #[inline]
    fn count(&self, py: Python<'_>, vcpu: usize, view: View, now: Option<AnyCount>) -> PyResult<u64> {
        let now = now.map(|now| now.own(self.live.counter())).transpose()?;
        let _sample = self.live.counter().sampled(py, now)?;
        let guest = self.live.count(vcpu, view, now);
        if guest.is_err() {
            // A VM that was removed has no vCPU left.
            self.live.state().or_raise()?;
        }
        guest.map(|guest| guest.0).or_raise()
    }

    fn get_one_reg(&self, py: Python<'_>, vcpu: usize, reg: u64, now: Option<HostCount>) -> PyResult<u64> {
        let _sample = self.live.counter().sampled(py, now)?;
        self.live.get_one_reg(vcpu, reg, now).or_raise()
    }

    fn set_one_reg(&self, py: Python<'_>, vcpu: usize, reg: u64, value: u64, now: Option<HostCount>) -> PyResult<()> {
        let _sample = self.live.counter().sampled(py, now)?;
        self.live.set_one_reg(vcpu, reg, value, now).or_raise()
    }

    fn reg_list(&self, _py: Python<'_>, vcpu: usize) -> PyResult<Vec<u64>> {
        self.live.reg_list(vcpu).or_raise()
    }

    fn timer(&self, py: Python<'_>, vcpu: usize, timer: Timer, now: Option<HostCount>) -> PyResult<TimerState> {
        let _sample = self.live.counter().sampled(py, now)?;
        self.live.timer(vcpu, timer, now).or_raise()
    }

    fn next_deadline(&self, py: Python<'_>, vcpu: usize, now: Option<HostCount>) -> PyResult<u64> {
        let _sample = self.live.counter().sampled(py, now)?;
        self.live.next_deadline(vcpu, now).or_raise()
    }

    fn enter(&self, _py: Python<'_>, vcpu: usize) -> PyResult<()> {
        self.live.enter(vcpu).or_raise()
    }

    fn exit(&self, py: Python<'_>, vcpu: usize) -> PyResult<()> {
        let _sample = self.live.counter().sampled(py, None)?;
        self.live.exit(vcpu).or_raise()
    }

    fn abandon(&self, open: &OpenRestore) -> bool {
        self.live.abandon(open)
    }

    fn holds(&self, pause: &OpenPause) -> bool {
        self.live.holds(pause)
    }

    fn next_step(&self, _py: Python<'_>) -> PyResult<Option<Step>> {
        self.live.state().or_raise()?;
        Ok(self.live.next_step())
    }
}

impl Operable for Model {
    type Error = VmError;
    type Ready = Taken;

    fn ready(&self, py: Python<'_>, now: Option<&Now>) -> PyResult<Taken> {
        self.live.counter().taken(py, now)
    }

    fn work<T>(
        &self,
        ready: &Taken,
        _verb: Option<Verb>,
        now: Option<&Now>,
        work: impl FnOnce(&mut RunState, &mut dyn Backend<Error = VmError>) -> T,
    ) -> Result<T, Failure> {
        let _sample = ready.hold();
        self.live.operate(now.cloned(), |run_state, vm| Ok::<_, LockedError>(work(run_state, vm))).map_err(failure)
    }
}
