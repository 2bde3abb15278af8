//! The system calls that a VM's clocks need.

use std::io;

/// KVM's ioctls on one VM and its vCPUs, as far as guestclock needs them (Documentation/virt/kvm/api.rst).
///
/// Each returns the kernel's error unchanged, since guestclock looks at [`io::Error::raw_os_error`]. No method may wait
/// for a vCPU, with two exceptions: `get_one_reg` and `set_one_reg` wait in KVM while the vCPU is in its guest, so
/// guestclock calls them for stopped vCPUs only.
///
/// ```
/// use guestclock_core::arch::arm64::{Behaviours, View};
/// use guestclock_core::drive::Saving;
/// use guestclock_core::restore::{Policy, Request};
/// use guestclock_core::time::{Counter, Frequency, GuestCount, HostCount, Offset};
/// use guestclock_linux::{Ioctls, KvmOptions, KvmVm};
/// use guestclock_model::config::Config;
/// use guestclock_model::error::VmError;
/// use guestclock_model::manual::ManualCounter;
/// use guestclock_model::vm::ModelVm;
/// use std::cell::RefCell;
/// use std::io;
/// use std::sync::Arc;
///
/// /// A VMM. Its ioctls would go to its `VmFd` and `VcpuFd`s; here the model stands in for the kernel.
/// struct Vmm<'a> {
///     kernel: RefCell<ModelVm>,
///     counter: &'a ManualCounter,
/// }
///
/// const EINVAL: i32 = 22;
///
/// fn errno(_: VmError) -> io::Error {
///     io::Error::from_raw_os_error(EINVAL)
/// }
///
/// impl Ioctls for Vmm<'_> {
///     fn vcpus(&self) -> usize {
///         self.kernel.borrow().vcpus()
///     }
///     fn check_extension(&self, capability: u32) -> io::Result<i32> {
///         Ok(i32::from(capability == 227)) // KVM_CAP_COUNTER_OFFSET
///     }
///     fn set_counter_offset(&self, offset: u64) -> io::Result<()> {
///         self.kernel.borrow_mut().set_counter_offset(Offset(offset), 0).map_err(errno)
///     }
///     fn get_one_reg(&self, vcpu: usize, id: u64) -> io::Result<u64> {
///         self.kernel.borrow().get_one_reg(vcpu, id, self.counter.count()).map_err(errno)
///     }
///     fn set_one_reg(&self, vcpu: usize, id: u64, value: u64) -> io::Result<()> {
///         self.kernel.borrow_mut().set_one_reg(vcpu, id, value, self.counter.count()).map_err(errno)
///     }
///     fn reg_list(&self, vcpu: usize) -> io::Result<Vec<u64>> {
///         self.kernel.borrow().reg_list(vcpu).map_err(errno)
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let counter = ManualCounter::new(HostCount(5_000_000), Frequency::new(62_500_000).unwrap(), 0);
/// let vmm = || -> Result<Vmm<'_>, VmError> {
///     let mut kernel = ModelVm::new(counter.frequency(), Behaviours::named("6.12").unwrap(), Config::default())?;
///     kernel.create_vcpu(counter.count())?;
///     Ok(Vmm { kernel: RefCell::new(kernel), counter: &counter })
/// };
///
/// // The source opts in before its guest runs, so that both counters are under one offset, and saves.
/// let source = vmm()?;
/// let vm = KvmVm::new(&source, &counter, KvmOptions::default())?;
/// vm.set_counter_offset(&source, Offset(4_000_000))?;
/// let saved = Arc::new(vm.checkpoint(&source, &Saving::default())?);
/// counter.advance(1_000_000);
///
/// // The target restores, with the VMM's own state between the steps.
/// let target = vmm()?;
/// let vm = KvmVm::new(&target, &counter, KvmOptions::default())?;
/// let plan = vm.plan(&target, &saved, Request { policy: Policy::FREEZE, ..Request::default() })?;
/// let mut restore = vm.prepare(&target, plan, Arc::clone(&saved))?;
/// vm.apply(&target, &mut restore)?;
/// let report = vm.release(&target, &mut restore)?;
/// assert_eq!(report.outcome.cntvct, GuestCount(1_000_000));
/// assert_eq!(vm.count(&target, 0, View::Virtual, None)?, GuestCount(1_000_000));
/// # Ok(())
/// # }
/// ```
pub trait Ioctls {
    /// Number of vCPUs.
    fn vcpus(&self) -> usize;

    /// KVM_CHECK_EXTENSION on the VM's descriptor: /dev/kvm may answer otherwise.
    fn check_extension(&self, capability: u32) -> io::Result<i32>;

    /// KVM_ARM_SET_COUNTER_OFFSET on the VM's descriptor, the reserved field 0.
    fn set_counter_offset(&self, offset: u64) -> io::Result<()>;

    /// KVM_GET_ONE_REG on a vCPU's descriptor.
    fn get_one_reg(&self, vcpu: usize, id: u64) -> io::Result<u64>;

    /// KVM_SET_ONE_REG on a vCPU's descriptor.
    fn set_one_reg(&self, vcpu: usize, id: u64, value: u64) -> io::Result<()>;

    /// KVM_GET_REG_LIST on a vCPU's descriptor.
    fn reg_list(&self, vcpu: usize) -> io::Result<Vec<u64>>;

    /// A look whether any vCPU runs, on the VM's descriptor: EBUSY says so, success that at one instant none did. It
    /// writes nothing and waits for nobody. `None` where this VM has no such look: without a vGIC in the kernel.
    ///
    /// Asked only of kernels that offer KVM_CAP_COUNTER_OFFSET. First KVM_IRQ_LINE of a vCPU that there can't be, whose
    /// ENXIO says that there is a vGIC; then KVM_CREATE_DEVICE of the vGIC, which finds every vCPU's lock free (EEXIST)
    /// or not (EBUSY).
    fn look(&self) -> Option<io::Result<()>> {
        None
    }

    /// KVM_GET_DEVICE_ATTR of GICD_CTLR on a vGICv3's descriptor, which answers EBUSY while any vCPU runs; `None` where
    /// there is no such descriptor. Of a vGICv2 the same call would initialise the vGIC.
    fn distributor(&self) -> Option<io::Result<u32>> {
        None
    }

    /// KVM_GET_DEVICE_ATTR of a 32-bit register of KVM_DEV_ARM_VGIC_GRP_REDIST_REGS on the vGIC's descriptor; `None`
    /// where there is no such descriptor.
    ///
    /// `attr` has the vCPU's affinity in bits 63:32 and the register's offset in 31:0
    /// (Documentation/virt/kvm/devices/arm-vgic-v3.rst).
    fn redistributor(&self, _attr: u64) -> Option<io::Result<u32>> {
        None
    }

    /// KVM_GET_DEVICE_ATTR of KVM_ARM_VCPU_TIMER_CTRL on a vCPU's descriptor: the interrupt id of the timer of this
    /// number; `None` where it isn't asked (Documentation/virt/kvm/devices/vcpu.rst, 2).
    fn timer_irq(&self, _vcpu: usize, _timer: u64) -> Option<io::Result<i32>> {
        None
    }
}
