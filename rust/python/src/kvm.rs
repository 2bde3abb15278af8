//! A VM on KVM.

use crate::any_vm::{Failure, Handle, Operable, failure};
use crate::arguments::{Int, Modular, int};
use crate::checkpoint::vm_name;
use crate::errors::{IntoPyErr, OrRaise, typed};
use crate::foreign::Sampled;
use crate::host_counters::PyHostCounter;
use crate::process::{self, locked};
use crate::records::{self, AnyCount};
use crate::registers;
use crate::verbs::PyGuestVm;
use crate::vouching::Vouching;
use guestclock_core::arch::arm64::{CtlReadback, ListOrder, Timer, TimerState, View};
use guestclock_core::checkpoint::VmName;
use guestclock_core::drive::{Backend, Errno, OpenPause, OpenRestore, OperationError, Verb};
use guestclock_core::restore::{RunState, State, Step};
use guestclock_core::time::{Counter, HostCount, Offset};
use guestclock_linux::counter::{HostCounter, Source};
use guestclock_linux::kvm::cpu;
use guestclock_linux::kvm::descriptor::DescriptorKind;
use guestclock_linux::kvm::error::KvmError;
use guestclock_linux::kvm::fds::Fds;
use guestclock_linux::kvm::number::FdNumber;
use guestclock_linux::kvm::vm::{KvmOptions, KvmVm, Looks, Probed};
use guestclock_model::locked::Now;
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::env::consts::ARCH;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A descriptor, borrowed: a number, or an object whose `fileno()` is called anew for each call.
enum Descriptor {
    Number(RawFd),
    Object(Py<PyAny>),
}

impl<'py> FromPyObject<'_, 'py> for Descriptor {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if object.hasattr(intern!(object.py(), "fileno"))? {
            return Ok(Self::Object(object.to_owned().unbind()));
        }
        object.extract().map(Self::Number)
    }
}

impl Descriptor {
    fn number(&self, py: Python<'_>) -> PyResult<FdNumber> {
        let number = match self {
            Self::Number(number) => *number,
            Self::Object(object) => object.bind(py).call_method0(intern!(py, "fileno"))?.extract()?,
        };
        FdNumber::new(number).map_err(|error| refused(&error))
    }

    /// Refuses a descriptor of another kind, where the kind can be found out.
    fn expect(&self, py: Python<'_>, kind: DescriptorKind) -> PyResult<()> {
        self.number(py)?.expect(kind).map_err(|error| refused(&error))
    }
}

/// The kernel's error as KvmError, any other as ValueError.
fn refused(error: &io::Error) -> PyErr {
    match error.raw_os_error() {
        Some(_) => KvmError::of("a look at the descriptor", error).into_pyerr(),
        None => PyValueError::new_err(error.to_string()),
    }
}

/// The descriptors' numbers during one call: Python code keeps the descriptors open meanwhile.
pub(crate) struct Numbers {
    vm: FdNumber,
    vcpus: Vec<FdNumber>,
    gic: Option<FdNumber>,
}

impl Numbers {
    fn of(py: Python<'_>, vm: &Descriptor, vcpus: &[Descriptor], gic: Option<&Descriptor>) -> PyResult<Self> {
        let vcpus = vcpus.iter().map(|vcpu| vcpu.number(py)).collect::<PyResult<_>>()?;
        let gic = gic.map(|gic| gic.number(py)).transpose()?;
        Ok(Self { vm: vm.number(py)?, vcpus, gic })
    }

    fn borrow(&self) -> PyResult<Fds<'_>> {
        Fds::by_number(&self.vm, &self.vcpus, self.gic.as_ref()).ok_or_else(not_here)
    }
}

/// The clocks of a VM on KVM, through the descriptors of the VM and its vCPUs.
///
/// `vm_fd` and each of `vcpu_fds` is an int, or an object with `fileno()`, which is kept and called anew for each call.
/// The descriptors are borrowed and never closed. `gic_fd` is the in-kernel vGIC's: with it, a vCPU that runs is found
/// out before anything is read or written. `counter_offset` is for a VM that has opted in already: KVM has no way to
/// read an offset back. `busy_timeout_ms` is how long KVM's EBUSY is waited out. `counter` is a `HostCounter` of
/// CNTVCT_EL0, for its `sync=`; by default one without.
///
/// Every vCPU must be initialised (KVM_ARM_VCPU_INIT), and none may run, when the object is made. The constructor
/// probes what this KVM does, and writes nothing. The interpreter's lock is released in every ioctl. CapabilityMissing
/// where this isn't arm64.
#[pyclass(frozen, extends = PyGuestVm, name = "KvmVm", module = "guestclock")]
pub(crate) struct PyKvmVm {
    pub(crate) kvm: Arc<Kvm>,
}

/// A VM on KVM, as its verbs hold it.
pub(crate) struct Kvm {
    vm: KvmVm<Vouching<HostCounter>>,
    counter: Py<PyHostCounter>,
    vm_fd: Descriptor,
    gic_fd: Option<Descriptor>,
    /// Grows by `add_vcpu`. Never held while Python code runs.
    vcpu_fds: Mutex<Vec<Descriptor>>,
    name: VmName,
    made_at: usize,
}

fn not_here() -> PyErr {
    let message = format!("KvmVm needs arm64's KVM, and this program runs on {ARCH}: `ModelVm` models it anywhere");
    typed("CapabilityMissing", &message, |fields| fields.set_item("capability", "kvm"))
}

impl Kvm {
    fn is_a_copy(&self) -> bool {
        process::forks() != self.made_at
    }

    /// Refuses in a forked child, before any lock: a thread that the child doesn't have may have held it.
    fn original(&self) -> PyResult<&KvmVm<Vouching<HostCounter>>> {
        if self.is_a_copy() { Err(KvmError::of_another_process().into_pyerr()) } else { Ok(&self.vm) }
    }

    fn numbers(&self, py: Python<'_>) -> PyResult<Numbers> {
        self.original()?;
        let objects: Vec<Descriptor> = {
            let vcpus = locked(py, &self.vcpu_fds);
            let copy = |vcpu: &Descriptor| match vcpu {
                Descriptor::Number(number) => Descriptor::Number(*number),
                Descriptor::Object(object) => Descriptor::Object(object.clone_ref(py)),
            };
            vcpus.iter().map(copy).collect()
        };
        Numbers::of(py, &self.vm_fd, &objects, self.gic_fd.as_ref())
    }

    /// Works on the VM without the interpreter's lock.
    pub(crate) fn with<T: Send, E: IntoPyErr + Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&KvmVm<Vouching<HostCounter>>, &Fds<'_>) -> Result<T, E> + Send,
    ) -> PyResult<T> {
        let numbers = self.numbers(py)?;
        let fds = numbers.borrow()?;
        py.detach(|| work(&self.vm, &fds)).or_raise()
    }

    /// Number of vCPUs.
    fn number(&self, py: Python<'_>) -> usize {
        locked(py, &self.vcpu_fds).len()
    }

    fn probed(&self, py: Python<'_>) -> PyResult<Probed> {
        self.with(py, |vm, fds| vm.probed(fds))
    }
}

#[pymethods]
impl PyKvmVm {
    #[new]
    #[pyo3(signature = (vm_fd, vcpu_fds, *, gic_fd=None, counter_offset=None, busy_timeout_ms=50, counter=None, name=""))]
    fn new(
        py: Python<'_>,
        vm_fd: Bound<'_, PyAny>,
        vcpu_fds: Bound<'_, PyAny>,
        gic_fd: Option<Bound<'_, PyAny>>,
        counter_offset: Option<Modular>,
        #[pyo3(from_py_with = int)] busy_timeout_ms: u64,
        counter: Option<Bound<'_, PyHostCounter>>,
        name: &str,
    ) -> PyResult<PyClassInitializer<Self>> {
        let name = vm_name(name)?;
        if cfg!(not(target_arch = "aarch64")) {
            return Err(not_here());
        }
        records::ready(py)?;
        let vm_fd: Descriptor = vm_fd.extract()?;
        vm_fd.expect(py, DescriptorKind::Vm)?;
        let vcpu_fds: Vec<Descriptor> = vcpu_fds.try_iter()?.map(|fd| fd?.extract()).collect::<PyResult<_>>()?;
        for fd in &vcpu_fds {
            fd.expect(py, DescriptorKind::Vcpu)?;
        }
        let gic_fd: Option<Descriptor> = gic_fd.map(|fd| fd.extract()).transpose()?;
        gic_fd.iter().try_for_each(|fd| fd.expect(py, DescriptorKind::Vgic))?;
        let counter_offset = counter_offset.map(|Modular(offset)| Offset(offset));
        let mut options = KvmOptions::default()
            .with_busy_timeout(Duration::from_millis(busy_timeout_ms))
            .with_physical_offset_untrapped(cpu::physical_offset_untrapped());
        options.counter_offset = counter_offset;
        let counter = if let Some(counter) = counter {
            counter.unbind()
        } else {
            let counter = HostCounter::new(Source::CntvctEl0).or_raise()?;
            Py::new(py, PyHostCounter::from(Vouching::new(counter, None)?))?
        };
        let source = counter.get().0.counter.source();
        if source != Source::CntvctEl0 {
            return Err(PyValueError::new_err(format!("KVM's counter is cntvct_el0, and this one is {source}")));
        }
        let numbers = Numbers::of(py, &vm_fd, &vcpu_fds, gic_fd.as_ref())?;
        let fds = numbers.borrow()?;
        let vouching = counter.get().0.clone();
        let vm = py.detach(|| KvmVm::new(&fds, vouching, options)).or_raise()?;
        let kvm = Arc::new(Kvm {
            vm,
            counter,
            vm_fd,
            gic_fd,
            vcpu_fds: Mutex::new(vcpu_fds),
            name,
            made_at: process::forks(),
        });
        let base = PyGuestVm::new(Arc::clone(&kvm) as _);
        Ok(PyClassInitializer::from(base).add_subclass(Self { kvm }))
    }

    /// Behaviours of this KVM where kernels differ, as probed, as plain Python values. None where the VM's vCPU doesn't
    /// show it.
    #[getter]
    fn behaviours<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let probed = self.kvm.probed(py)?;
        let fields = PyDict::new(py);
        fields.set_item("counter_offset", self.kvm.vm.abilities().counter_offset)?;
        fields.set_item("physical_timer", probed.physical_timer)?;
        let order = |order| if order == ListOrder::Grouped { "grouped" } else { "by-encoding" };
        fields.set_item("list_order", probed.list_order.map(order))?;
        let readback = |readback| if readback == CtlReadback::Computed { "computed" } else { "stored" };
        fields.set_item("ctl_readback", probed.ctl_readback.map(readback))?;
        fields.set_item("nested", probed.nested)?;
        Ok(fields)
    }

    /// Adds a vCPU that was created later, and returns its index.
    ///
    /// The vCPU's creation has moved the counters of a VM that hasn't opted in: after a restore by value `running` then
    /// raises CountersMoved.
    fn add_vcpu(&self, py: Python<'_>, vcpu_fd: Bound<'_, PyAny>) -> PyResult<usize> {
        let fd: Descriptor = vcpu_fd.extract()?;
        fd.expect(py, DescriptorKind::Vcpu)?;
        let mut fds = locked(py, &self.kvm.vcpu_fds);
        fds.push(fd);
        Ok(fds.len() - 1)
    }

    /// The interrupt id of a timer on every vCPU (KVM_ARM_VCPU_TIMER_CTRL), read from vCPU 0.
    ///
    /// KvmError: ENXIO for a timer that the kernel doesn't know. VcpuRunning in vCPU 0's `running` block, since KVM
    /// would wait.
    fn irq(&self, py: Python<'_>, timer: Int<usize>) -> PyResult<i32> {
        let timer = registers::timer(timer.0)?;
        self.kvm.with(py, |vm, fds| vm.timer_irq(fds, timer))
    }

    /// Each vCPU's GICR_ISPENDR0 as the vGICv3 keeps it, 32 bits: the pending latches of its private interrupts, lines
    /// apart (KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, Documentation/virt/kvm/devices/arm-vgic-v3.rst).
    ///
    /// For `Report.latch_mismatches`. VcpuRunning (EBUSY) while a vCPU runs; CapabilityMissing without `gic_fd`;
    /// KvmError (ENXIO) for a GICv2, which has none.
    fn pending_latches(&self, py: Python<'_>) -> PyResult<Vec<u32>> {
        self.kvm.with(py, |vm, fds| vm.pending_latches(fds))
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let owned = if self.kvm.vm.has_opted_in() { ", opted in" } else { "" };
        format!("<KvmVm of {} vCPUs{owned}>", self.kvm.number(py))
    }
}

/// Refuses an injected instant: KVM's time is the host's, and now.
fn only_now<T>(now: Option<T>) -> PyResult<()> {
    match now {
        None => Ok(()),
        Some(_) => Err(PyValueError::new_err("now= is for the model: KVM's time is the host's, and now")),
    }
}

impl Handle for Kvm {
    fn name(&self) -> &VmName {
        &self.name
    }

    fn vcpus(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.number(py))
    }

    fn counter_object(&self, py: Python<'_>) -> Py<PyAny> {
        self.counter.clone_ref(py).into_any()
    }

    fn counter(&self) -> &dyn Counter {
        self.vm.counter()
    }

    fn ask(&self, py: Python<'_>) -> PyResult<()> {
        self.counter.get().0.ask(py)
    }

    fn samples_in_python(&self, _now: Option<&Now>) -> bool {
        false
    }

    fn sampled(&self, _py: Python<'_>, _now: Option<HostCount>) -> PyResult<Sampled> {
        Ok(Sampled::NOT)
    }

    fn nested(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.probed(py)?.nested)
    }

    fn opted_in(&self) -> PyResult<bool> {
        Ok(self.vm.has_opted_in())
    }

    fn state(&self, py: Python<'_>) -> PyResult<State> {
        let vm = self.original()?;
        Ok(py.detach(|| vm.state()))
    }

    fn capabilities<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let abilities = self.vm.abilities();
        let probed = self.probed(py)?;
        let told = |there: bool, what: &str, missing: &str| {
            let reason =
                if there { format!("this VM has {what}") } else { format!("this VM hasn't {what}: {missing}") };
            records::support(py, Some(there), &reason)
        };
        let untrapped = match abilities.physical_offset_untrapped {
            Some(false) => "the CPU has no CNTPOFF_EL2: with a physical offset CNTPCT_EL0 and the physical timer trap",
            _ => "the CPU may have CNTPOFF_EL2, which KVM uses where the host's kernel runs at EL2: nothing tells",
        };
        let looks = self.with(py, |vm, fds| Ok::<_, KvmError>(vm.looks(fds)))?;
        let (quiescence, how) = match looks {
            Looks::OnTheVm => (Some(true), "a look on the VM's descriptor answers EBUSY while any vCPU runs"),
            Looks::AtTheVgic => (Some(true), "the vGIC's distributor is read, which answers EBUSY while any vCPU runs"),
            _ => (
                None,
                "without a vGIC in the kernel (on Linux before 6.4: without gic_fd= of a GICv3) nothing tells: whoever calls \
                 vouches for stopped vCPUs",
            ),
        };
        records::capabilities(
            py,
            [
                told(abilities.counter_offset, "KVM_CAP_COUNTER_OFFSET", "it needs Linux 6.4")?,
                told(probed.physical_timer, "the KVM_REG_ARM_PTIMER_* registers", "they need Linux 6.4")?,
                records::support(py, abilities.physical_offset_untrapped, untrapped)?,
                records::support(py, quiescence, how)?,
                told(probed.nested, "EL2 in its guest", "its vCPUs were made without KVM_ARM_VCPU_HAS_EL2")?,
            ],
        )
    }

    fn set_counter_offset(&self, py: Python<'_>, offset: Offset) -> PyResult<()> {
        self.with(py, |vm, fds| vm.set_counter_offset(fds, offset))
    }

    fn count(&self, py: Python<'_>, vcpu: usize, view: View, now: Option<AnyCount>) -> PyResult<u64> {
        let now = now.map(|now| now.own(self.vm.counter())).transpose()?;
        match self.vm.count_by_offset(view, now) {
            // Without looking at the descriptors: no ioctl is made on them.
            Some(guest) if vcpu < self.number(py) => Ok(guest.0),
            _ => self.with(py, |vm, fds| vm.count(fds, vcpu, view, now)).map(|guest| guest.0),
        }
    }

    fn get_one_reg(&self, py: Python<'_>, vcpu: usize, reg: u64, now: Option<HostCount>) -> PyResult<u64> {
        only_now(now)?;
        self.with(py, |vm, fds| vm.get_one_reg(fds, vcpu, reg))
    }

    fn set_one_reg(&self, py: Python<'_>, vcpu: usize, reg: u64, value: u64, now: Option<HostCount>) -> PyResult<()> {
        only_now(now)?;
        self.with(py, |vm, fds| vm.set_one_reg(fds, vcpu, reg, value))
    }

    fn reg_list(&self, py: Python<'_>, vcpu: usize) -> PyResult<Vec<u64>> {
        self.with(py, |vm, fds| vm.reg_list(fds, vcpu))
    }

    fn timer(&self, py: Python<'_>, vcpu: usize, timer: Timer, now: Option<HostCount>) -> PyResult<TimerState> {
        only_now(now)?;
        self.with(py, |vm, fds| vm.timer(fds, vcpu, timer))
    }

    fn next_deadline(&self, py: Python<'_>, vcpu: usize, now: Option<HostCount>) -> PyResult<u64> {
        only_now(now)?;
        self.with(py, |vm, fds| vm.next_deadline(fds, vcpu))
    }

    fn enter(&self, py: Python<'_>, vcpu: usize) -> PyResult<()> {
        self.with(py, |vm, fds| vm.enter(fds, vcpu))
    }

    fn exit(&self, py: Python<'_>, vcpu: usize) -> PyResult<()> {
        py.detach(|| self.vm.exit(vcpu));
        Ok(())
    }

    fn abandon(&self, open: &OpenRestore) -> bool {
        self.vm.abandon(open)
    }

    fn holds(&self, pause: &OpenPause) -> bool {
        !self.is_a_copy() && self.vm.holds(pause)
    }

    fn next_step(&self, py: Python<'_>) -> PyResult<Option<Step>> {
        let vm = self.original()?;
        Ok(py.detach(|| vm.next_step()))
    }
}

impl Operable for Kvm {
    type Error = KvmError;
    type Ready = Numbers;

    fn ready(&self, py: Python<'_>, now: Option<&Now>) -> PyResult<Numbers> {
        only_now(now)?;
        self.numbers(py)
    }

    fn work<T>(
        &self,
        ready: &Numbers,
        _verb: Option<Verb>,
        _now: Option<&Now>,
        work: impl FnOnce(&mut RunState, &mut dyn Backend<Error = KvmError>) -> T,
    ) -> Result<T, Failure> {
        let fds = ready.borrow().map_err(|error| -> Failure { Box::new(|| error) })?;
        let work = |run_state: &mut RunState, vm: &mut dyn Backend<Error = KvmError>| {
            Ok::<_, OperationError<KvmError>>(work(run_state, vm))
        };
        self.vm.operate(&fds, work).map_err(failure)
    }
}

/// KVM's refusal, and Python's way out.
fn sentence(error: &KvmError) -> String {
    match error {
        KvmError::Running { .. } => format!("{error} (a running() block has to be left)"),
        KvmError::NoVgic => format!("{error}: give gic_fd="),
        _ => error.to_string(),
    }
}

impl IntoPyErr for KvmError {
    #[cold]
    fn into_pyerr(self) -> PyErr {
        let (message, errno) = (sentence(&self), self.errno());
        match self {
            Self::NoSuchVcpu { .. } => PyIndexError::new_err(message),
            Self::FrequencyTooHigh { .. } | Self::OnlyNow { .. } => PyValueError::new_err(message),
            Self::Running { vcpu } => typed("VcpuRunning", &message, |fields| {
                fields.set_item("errno", errno)?;
                fields.set_item("vcpu", vcpu)
            }),
            Self::Busy { .. } => typed("VcpuRunning", &message, |fields| {
                fields.set_item("errno", errno)?;
                fields.set_item("vcpu", None::<usize>)
            }),
            Self::NoSuchOneReg { id, .. } => typed("UnknownRegister", &message, |fields| {
                fields.set_item("errno", errno)?;
                fields.set_item("reg", id)
            }),
            Self::NoVgic => {
                typed("CapabilityMissing", &message, |fields| fields.set_item("capability", "pending_latches"))
            }
            Self::CountersMoved { view } => typed("CountersMoved", &message, |fields| fields.set_item("view", view)),
            _ => typed("KvmError", &message, |fields| fields.set_item("errno", errno)),
        }
    }
}
