//! KVM's refusals, and the way out of each.

use guestclock_core::drive::Errno;
use guestclock_core::time::HostCount;
use std::io;

/// Errors of a VM on KVM.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvmError {
    /// No vCPU has this index.
    #[error("there is no vCPU {vcpu}: the VM was given {vcpus}")]
    NoSuchVcpu {
        /// Index asked for.
        vcpu: usize,
        /// Number of vCPUs.
        vcpus: usize,
    },
    /// The host's counter is too fast for a guest.
    #[error(
        "a guest's CNTFRQ_EL0 has 32 bits, and the counter's {hz} Hz don't fit: this isn't the counter of an arm64 host"
    )]
    FrequencyTooHigh {
        /// The counter's frequency.
        hz: u64,
    },
    /// A vCPU is in its guest, by the VMM's own word. No ioctl was made.
    #[error("vCPU {vcpu} is running: stop it, and try again")]
    Running {
        /// Index of the vCPU.
        vcpu: usize,
    },
    /// KVM has answered EBUSY to every try.
    #[error(
        "{call} has answered EBUSY for {waited_ms} ms: a vCPU is in KVM_RUN, or another thread is in an ioctl on one{}. Stop \
         every vCPU, and whatever reads their registers, and try again",
        if *call == GET_DISTRIBUTOR { ", or the vGIC isn't initialised (KVM_DEV_ARM_VGIC_CTRL_INIT)" } else { "" }
    )]
    Busy {
        /// Name of the ioctl.
        call: &'static str,
        /// Time of the tries, in milliseconds.
        waited_ms: u128,
    },
    /// KVM has no such register (ENOENT).
    #[error("KVM has no register {id:#018x} on vCPU {vcpu}")]
    NoSuchOneReg {
        /// Index of the vCPU.
        vcpu: usize,
        /// KVM's id of the register.
        id: u64,
    },
    /// Without KVM_CAP_COUNTER_OFFSET there is no offset to write.
    #[error("this kernel has no KVM_CAP_COUNTER_OFFSET (Linux 6.4 and later have): set the counters by value instead")]
    NoCounterOffset,
    /// The vGIC's descriptor wasn't given.
    #[error("the pending latches are in the vGIC, and this VM was made without its descriptor")]
    NoVgic,
    /// The VMM's `Ioctls` have no `timer_irq`.
    #[error("this VMM's Ioctls don't ask for KVM_ARM_VCPU_TIMER_CTRL: it has to know the timers' interrupt ids itself")]
    NoTimerIrq,
    /// A counter has moved since a restore set it by value.
    #[error(
        "the guest's {view} counter has moved since it was restored by value: a vCPU was created after the release, or a \
         counter was set. Create every vCPU first, then restore again"
    )]
    CountersMoved {
        /// Name of the counter.
        view: &'static str,
    },
    /// Without an owned offset the counters can be read at the present alone.
    #[error(
        "the counters at the count {} can't be told: this VM's offset isn't opted_in, so they are read from KVM, which knows \
         only now", .count.0
    )]
    OnlyNow {
        /// Instant asked for.
        count: HostCount,
    },
    /// The kernel answered another error.
    #[error("{call}: {message}{hint}")]
    Call {
        /// Name of the ioctl.
        call: &'static str,
        /// The errno; EIO where there was none.
        errno: i32,
        /// Text of the errno.
        message: String,
        /// Meaning of the errno here, and the way out, where these are known; otherwise empty.
        hint: &'static str,
    },
}

impl KvmError {
    /// The error that `call` answered.
    #[must_use]
    pub fn of(call: &'static str, error: &io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        Self::Call { call, errno, message: error.to_string(), hint: hint(call, errno) }
    }

    /// The error that KVM would answer a process that didn't create the VM.
    #[must_use]
    pub fn of_another_process() -> Self {
        Self::of("a VM in a forked process", &io::Error::from_raw_os_error(libc::EIO))
    }
}

impl Errno for KvmError {
    fn errno(&self) -> i32 {
        match self {
            Self::Running { .. } | Self::Busy { .. } => libc::EBUSY,
            Self::NoSuchOneReg { .. } => libc::ENOENT,
            Self::Call { errno, .. } => *errno,
            _ => libc::EINVAL,
        }
    }
}

pub(crate) const SET_COUNTER_OFFSET: &str = "KVM_ARM_SET_COUNTER_OFFSET";
pub(crate) const TIMER_IRQ: &str = "KVM_GET_DEVICE_ATTR of KVM_ARM_VCPU_TIMER_CTRL";
pub(crate) const GET_DISTRIBUTOR: &str = "KVM_GET_DEVICE_ATTR of the vGIC's distributor";
pub(crate) const GET_REDISTRIBUTOR: &str = "KVM_GET_DEVICE_ATTR of the vGIC's redistributor";

/// Meaning of an errno on the descriptors of a VM and its vCPUs (virt/kvm/kvm_main.c, arch/arm64/kvm/arm.c and
/// guest.c).
fn hint(call: &str, errno: i32) -> &'static str {
    match errno {
        libc::EIO => {
            ". KVM answers so to any process but the one that created the VM, and to that one after an exec: use guestclock in \
             the VMM's own process"
        }
        libc::ENOEXEC => ". The vCPU isn't initialised: KVM_ARM_VCPU_INIT comes first",
        libc::EPERM => ". The vCPU isn't complete: KVM_ARM_VCPU_FINALIZE comes first, or the VM is protected",
        libc::EBADF => ". The descriptor is closed: guestclock borrows it, so it has to stay open",
        libc::EINVAL if call == SET_COUNTER_OFFSET => {
            ". KVM answers so where the VM is protected: nobody can move its counters, so its guest can't be restored"
        }
        libc::ENXIO if call == GET_REDISTRIBUTOR => ". It isn't a GICv3: a GICv2 has no redistributors to read",
        _ => "",
    }
}
