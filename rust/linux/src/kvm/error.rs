//! What KVM refuses, and the way out.

use guestclock_core::time::HostCount;
use std::io;

/// Why something can't be had of a VM on KVM.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvmError {
    /// There is no such vCPU.
    #[error("there is no vCPU {vcpu}: the VM was given {vcpus}")]
    NoSuchVcpu {
        /// The one asked for.
        vcpu: usize,
        /// How many there are.
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
    #[error("vCPU {vcpu} is running: stop it, leave its running() block, and try again")]
    Running {
        /// Which one.
        vcpu: usize,
    },
    /// KVM says EBUSY, and goes on saying so.
    #[error(
        "{call} has answered EBUSY for {waited_ms} ms: a vCPU is in KVM_RUN, or another thread is in an ioctl on one. Stop \
         every vCPU, and whatever reads their registers, and try again"
    )]
    Busy {
        /// Which ioctl.
        call: &'static str,
        /// For how long it was tried.
        waited_ms: u128,
    },
    /// There is no such register (ENOENT).
    #[error("KVM has no register {id:#018x} on vCPU {vcpu}")]
    NoSuchOneReg {
        /// Which vCPU.
        vcpu: usize,
        /// The id.
        id: u64,
    },
    /// Without KVM_CAP_COUNTER_OFFSET there is no offset to write.
    #[error("this kernel has no KVM_CAP_COUNTER_OFFSET (Linux 6.4 and later have): set the counters by value instead")]
    NoCounterOffset,
    /// Nobody gave the vGIC's descriptor.
    #[error("the pending latches are in the vGIC, and this VM was made without its descriptor: give gic_fd=")]
    NoVgic,
    /// Nobody asks for the timers' interrupt ids.
    #[error("this VMM's Ioctls don't ask for KVM_ARM_VCPU_TIMER_CTRL: it has to know the timers' interrupt ids itself")]
    NoTimerIrq,
    /// The counters of a restore by value aren't where it left them.
    #[error(
        "the guest's {view} counter has moved since it was restored by value: a vCPU was created after the release, or a \
         counter was set. Create every vCPU first, then restore again"
    )]
    CountersMoved {
        /// Which counter.
        view: &'static str,
    },
    /// What an unowned VM's counters are at another instant can't be told.
    #[error(
        "the counters at the count {} can't be told: this VM's offset isn't owned, so they are read from KVM, which knows \
         only now", .count.0
    )]
    OnlyNow {
        /// The instant asked for.
        count: HostCount,
    },
    /// Another error of the kernel's.
    #[error("{call}: {message}{hint}")]
    Call {
        /// Which ioctl.
        call: &'static str,
        /// The errno; EIO where there was none.
        errno: i32,
        /// The kernel's words for it.
        message: String,
        /// What it means here, and what to do, where that is known.
        hint: &'static str,
    },
}

impl KvmError {
    /// The errno that says the same.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Running { .. } | Self::Busy { .. } => libc::EBUSY,
            Self::NoSuchOneReg { .. } => libc::ENOENT,
            Self::Call { errno, .. } => *errno,
            _ => libc::EINVAL,
        }
    }

    /// What `call` answered.
    #[must_use]
    pub fn of(call: &'static str, error: &io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        Self::Call { call, errno, message: error.to_string(), hint: hint(call, errno) }
    }
}

pub(crate) const SET_COUNTER_OFFSET: &str = "KVM_ARM_SET_COUNTER_OFFSET";
pub(crate) const GET_REDISTRIBUTOR: &str = "KVM_GET_DEVICE_ATTR of the vGIC's redistributor";

/// What an errno means on a VM's and vCPU's descriptors (virt/kvm/kvm_main.c, arch/arm64/kvm/arm.c and guest.c).
fn hint(call: &str, errno: i32) -> &'static str {
    match errno {
        libc::EIO => {
            ". KVM answers so to any process but the one that created the VM: use guestclock in the VMM's own process"
        }
        libc::ENOEXEC => ". The vCPU isn't initialised: KVM_ARM_VCPU_INIT comes first",
        libc::EPERM => ". The vCPU isn't complete: KVM_ARM_VCPU_FINALIZE comes first, or the VM is protected",
        libc::EBADF => ". The descriptor is closed: guestclock borrows it, so it has to stay open",
        libc::EINVAL if call == SET_COUNTER_OFFSET => {
            ". KVM lets nobody move a protected VM's counters: its guest keeps the host's, and can't be restored"
        }
        libc::ENXIO if call == GET_REDISTRIBUTOR => ". It isn't a GICv3: a GICv2 has no redistributors to read",
        _ => "",
    }
}
