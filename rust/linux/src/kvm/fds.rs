//! KVM's ioctls on plain descriptors.
#![expect(unsafe_code, reason = "KVM is asked by ioctl")]

use crate::kvm::ioctls::Ioctls;
use crate::kvm::number::FdNumber;
use crate::kvm::{capability, descriptor};
use kvm_bindings::{
    KVM_ARM_VCPU_TIMER_CTRL, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, KVMIO,
    kvm_arm_counter_offset, kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, kvm_irq_level, kvm_irq_level__bindgen_ty_1, kvm_one_reg, kvm_reg_list,
};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// Macros in the kernel's header (include/uapi/linux/kvm.h), so not in kvm-bindings.
const GET_ONE_REG: libc::Ioctl = libc::_IOW::<kvm_one_reg>(KVMIO, 0xab);
const SET_ONE_REG: libc::Ioctl = libc::_IOW::<kvm_one_reg>(KVMIO, 0xac);
const GET_REG_LIST: libc::Ioctl = libc::_IOWR::<kvm_reg_list>(KVMIO, 0xb0);
const SET_COUNTER_OFFSET: libc::Ioctl = libc::_IOW::<kvm_arm_counter_offset>(KVMIO, 0xb5);
const IRQ_LINE: libc::Ioctl = libc::_IOW::<kvm_irq_level>(KVMIO, 0x61);
const CREATE_DEVICE: libc::Ioctl = libc::_IOWR::<kvm_create_device>(KVMIO, 0xe0);
const GET_DEVICE_ATTR: libc::Ioctl = libc::_IOW::<kvm_device_attr>(KVMIO, 0xe2);

/// A line of KVM_IRQ_LINE that no VM has: of the type CPU (0), of vCPU 255, with the number 0xffff
/// (Documentation/virt/kvm/api.rst, 4.25). With a vGIC in the kernel the type doesn't exist; without one the vCPU doesn't.
const NO_VCPU: u32 = 255 << 16 | 0xffff;

/// The distributor's control register, by its place in the register map (Arm GICv3 architecture, 12.9).
const GICD_CTLR: u64 = 0;

/// The descriptors of a VM, borrowed from the VMM.
///
/// They are borrowed rather than duplicated, because KVM keeps a VM alive as long as any descriptor of it, of its vCPUs
/// or of its devices is open (`kvm_put_kvm`, virt/kvm/kvm_main.c). A duplicate would keep the guest's memory map, its
/// vCPUs and its irqfds after the VMM has closed everything, until this value is dropped: the VMM decides when a VM
/// ends. It would also need as many descriptors again (RLIMIT_NOFILE), and could fail a restore with EMFILE.
/// [`KvmVm`](crate::kvm::vm::KvmVm) holds no `Fds`: one is made for a call, or for as long as the VMM's own descriptors
/// are borrowed.
#[derive(Clone, Debug)]
pub struct Fds<'fd> {
    vm: BorrowedFd<'fd>,
    vcpus: Vec<BorrowedFd<'fd>>,
    gic: Option<BorrowedFd<'fd>>,
}

impl<'fd> Fds<'fd> {
    /// `Some` here, since this is arm64. [`descriptor::expect`](crate::kvm::descriptor::expect) refuses a descriptor of
    /// something else.
    #[must_use]
    pub const fn new(vm: BorrowedFd<'fd>, vcpus: Vec<BorrowedFd<'fd>>, gic: Option<BorrowedFd<'fd>>) -> Option<Self> {
        Some(Self { vm, vcpus, gic })
    }

    /// The same descriptors by their numbers, for a VMM that isn't Rust code.
    #[must_use]
    pub fn by_number(vm: &'fd FdNumber, vcpus: &'fd [FdNumber], gic: Option<&'fd FdNumber>) -> Option<Self> {
        Self::new(vm.borrow(), vcpus.iter().map(FdNumber::borrow).collect(), gic.map(FdNumber::borrow))
    }

    /// Asks for the creation of a second vGIC, which no VM gets: `None` where the VM's vGIC is of another type.
    fn look_by(&self, type_: u32) -> Option<io::Result<()>> {
        let mut device = kvm_create_device { type_, fd: 0, flags: 0 };
        // SAFETY: the struct is the one that the request is made from, and lives until the call returns.
        match unsafe { ioctl(self.vm, CREATE_DEVICE, &raw mut device) } {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Some(Ok(())),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Some(Err(error)),
            Err(_) => None,
            Ok(()) => {
                // KVM would have to have taken the vGIC away meanwhile, which it can't.
                let fd = i32::try_from(device.fd).unwrap_or(-1);
                // SAFETY: KVM has made this descriptor for the call above, and nobody else knows it.
                drop((fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) }));
                None
            }
        }
    }

    fn vcpu(&self, vcpu: usize) -> io::Result<BorrowedFd<'fd>> {
        self.vcpus.get(vcpu).copied().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }
}

/// Makes an ioctl that takes a pointer.
///
/// The numbers above are KVM's on every descriptor (Documentation/userspace-api/ioctl/ioctl-number.rst gives it 0xAE,
/// 0x00 to 0x1f and 0x40 to 0xff): on another driver's descriptor they are errors, and access no memory.
///
/// # Safety
/// `argument` is what `request` takes: readable, and as long as the request's own size says, or as its header says
/// where it has one; and it outlives the call.
unsafe fn ioctl<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: *mut T) -> io::Result<()> {
    // SAFETY: by this function's contract; the kernel keeps nothing of the argument.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Ioctls for Fds<'_> {
    fn vcpus(&self) -> usize {
        self.vcpus.len()
    }

    fn check_extension(&self, capability: u32) -> io::Result<i32> {
        capability::check_extension(self.vm, capability)
    }

    fn set_counter_offset(&self, offset: u64) -> io::Result<()> {
        let mut argument = kvm_arm_counter_offset { counter_offset: offset, reserved: 0 };
        // SAFETY: the struct is the one that the request is made from, and lives until the call returns.
        unsafe { ioctl(self.vm, SET_COUNTER_OFFSET, &raw mut argument) }
    }

    fn get_one_reg(&self, vcpu: usize, id: u64) -> io::Result<u64> {
        let mut value = 0_u64;
        let mut argument = kvm_one_reg { id, addr: address(&raw mut value) };
        // SAFETY: the struct is the one that the request is made from. KVM writes as many bytes to `addr` as the id's
        // size field says, and `sized` has made sure that these are 8.
        sized(id).and_then(|()| unsafe { ioctl(self.vcpu(vcpu)?, GET_ONE_REG, &raw mut argument) })?;
        Ok(value)
    }

    fn set_one_reg(&self, vcpu: usize, id: u64, mut value: u64) -> io::Result<()> {
        let mut argument = kvm_one_reg { id, addr: address(&raw mut value) };
        // SAFETY: as in `get_one_reg`; KVM reads from `addr`.
        sized(id).and_then(|()| unsafe { ioctl(self.vcpu(vcpu)?, SET_ONE_REG, &raw mut argument) })
    }

    fn reg_list(&self, vcpu: usize) -> io::Result<Vec<u64>> {
        let fd = self.vcpu(vcpu)?;
        // A header with the number of ids, then the ids. A list too short is E2BIG, with the number that there are.
        let mut list = vec![0_u64; 1];
        for _ in 0..2 {
            // SAFETY: the buffer is as long as its header says, and lives until the call returns.
            match unsafe { ioctl(fd, GET_REG_LIST, list.as_mut_ptr()) } {
                Ok(()) => {
                    let there = usize::try_from(list[0]).unwrap_or(usize::MAX);
                    return Ok(list.into_iter().skip(1).take(there).collect());
                }
                Err(error) if error.raw_os_error() == Some(libc::E2BIG) => {
                    let there = list[0];
                    list = vec![0; 1 + usize::try_from(there).map_err(io::Error::other)?];
                    list[0] = there;
                }
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from_raw_os_error(libc::E2BIG))
    }

    fn look(&self) -> Option<io::Result<()>> {
        let mut line = kvm_irq_level { __bindgen_anon_1: kvm_irq_level__bindgen_ty_1 { irq: NO_VCPU }, level: 0 };
        // SAFETY: the struct is the one that the request is made from, and lives until the call returns.
        let answer = unsafe { ioctl(self.vm, IRQ_LINE, &raw mut line) };
        if answer.err().and_then(|error| error.raw_os_error()) != Some(libc::ENXIO) {
            return None;
        }
        [kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2]
            .into_iter()
            .find_map(|type_| self.look_by(type_))
    }

    fn distributor(&self) -> Option<io::Result<u32>> {
        let fd = self.gic.filter(|fd| descriptor::is_vgic_v3(*fd))?;
        Some(word(fd, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, GICD_CTLR))
    }

    fn redistributor(&self, attr: u64) -> Option<io::Result<u32>> {
        self.gic.map(|fd| word(fd, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, attr))
    }

    fn timer_irq(&self, vcpu: usize, timer: u64) -> Option<io::Result<i32>> {
        Some(self.vcpu(vcpu).and_then(|fd| word(fd, KVM_ARM_VCPU_TIMER_CTRL, timer)).map(u32::cast_signed))
    }
}

/// Reads an attribute of 32 bits by KVM_GET_DEVICE_ATTR.
///
/// All attributes of the groups asked for have 32 bits: the vGIC's registers
/// (Documentation/virt/kvm/devices/arm-vgic-v3.rst; GICv2's, arm-vgic.rst), and a timer's interrupt id (vcpu.rst, 2).
fn word(fd: BorrowedFd<'_>, group: u32, attr: u64) -> io::Result<u32> {
    let mut value = 0_u32;
    let mut argument = kvm_device_attr { group, attr, addr: address(&raw mut value), flags: 0 };
    // SAFETY: the struct is the one that the request is made from, and KVM writes no more than the 4 bytes of `value`:
    // the groups that it is called with have no larger attribute.
    unsafe { ioctl(fd, GET_DEVICE_ATTR, &raw mut argument) }?;
    Ok(value)
}

/// The address of a value as the kernel takes it, exposed: the compiler has to know that the value may be read and
/// written through it.
fn address<T>(value: *mut T) -> u64 {
    value.expose_provenance() as u64
}

/// Refuses a register of another size than 64 bits: KVM would write past the end of a `u64`. All timer registers have
/// 64.
fn sized(id: u64) -> io::Result<()> {
    use kvm_bindings::{KVM_REG_SIZE_MASK, KVM_REG_SIZE_U64};
    if id & KVM_REG_SIZE_MASK == KVM_REG_SIZE_U64 { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOENT)) }
}
