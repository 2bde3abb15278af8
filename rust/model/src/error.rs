//! Refusals of the model, which are KVM's.

use crate::config::MAX_VCPUS;
use guestclock_core::arch::arm64::{Encoding, IrqError, Sysreg, Timer};
use guestclock_core::drive::Errno;

/// Refusal of the model, as KVM would answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// The VM was removed from its bank.
    #[error("the VM was removed from its bank")]
    Removed,
    /// The vCPU doesn't exist.
    #[error("there is no vCPU {vcpu}: the VM has {vcpus}")]
    NoSuchVcpu {
        /// The requested vCPU.
        vcpu: usize,
        /// Number of the VM's vCPUs.
        vcpus: usize,
    },
    /// The counter is too fast for a guest.
    #[error("a guest's CNTFRQ_EL0 has 32 bits, and {hz} Hz don't fit: use a slower counter")]
    FrequencyTooHigh {
        /// The counter's frequency.
        hz: u64,
    },
    /// The kernel can't give a guest EL2 (EINVAL).
    #[error("this kernel has no KVM_CAP_ARM_EL2: a nested guest needs one that has, started with kvm-arm.mode=nested")]
    NoEl2,
    /// The VM is full (EINVAL).
    #[error("the VM has {MAX_VCPUS} vCPUs, as many as KVM allows")]
    TooManyVcpus,
    /// A vCPU is in the guest (EBUSY).
    #[error("vCPU {vcpu} is running: stop it, and try again")]
    Running {
        /// The running vCPU.
        vcpu: usize,
    },
    /// The register id doesn't exist (ENOENT).
    #[error("KVM has no register {id:#018x} on this vCPU")]
    NoSuchOneReg {
        /// The id.
        id: u64,
    },
    /// The guest doesn't have this timer (ENOENT).
    #[error("this guest has no {}: a guest with EL2 has", timer.name())]
    NoSuchTimer {
        /// The timer.
        timer: Timer,
    },
    /// The system register doesn't exist, or not with this access: an undefined instruction in the guest.
    #[error("{}", undefined(*encoding, *write))]
    NoSuchSysreg {
        /// The encoding.
        encoding: Encoding,
        /// True for a write.
        write: bool,
    },
    /// The access traps instead of taking place.
    #[error("{} traps to EL{to} from here: the guest's own exception handler gets it", name(*encoding))]
    Trap {
        /// The register's encoding.
        encoding: Encoding,
        /// The exception level that handles it: 1 or 2.
        to: u8,
    },
    /// The timers' interrupt ids break a rule.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// The offset ioctl's reserved field isn't 0 (EINVAL).
    #[error("the reserved field of kvm_arm_counter_offset is {reserved:#x}: it has to be 0")]
    Reserved {
        /// The value of the field.
        reserved: u64,
    },
    /// The kernel doesn't have the offset ioctl (EINVAL).
    #[error("this kernel has no KVM_CAP_COUNTER_OFFSET (Linux 6.4 and later have): set the counters by value instead")]
    NoCounterOffset,
}

// The generic errno numbers, the same on every architecture of Linux.
const ENOENT: i32 = 2;
const EBUSY: i32 = 16;
const EINVAL: i32 = 22;

impl Errno for VmError {
    fn errno(&self) -> i32 {
        match self {
            Self::Running { .. } => EBUSY,
            Self::NoSuchOneReg { .. } | Self::NoSuchTimer { .. } | Self::NoSuchSysreg { .. } => ENOENT,
            Self::Irq(error) => error.errno(),
            _ => EINVAL,
        }
    }
}

fn name(encoding: Encoding) -> String {
    let Encoding(op0, op1, crn, crm, op2) = encoding;
    let name = Sysreg::at(encoding).map_or("an unknown register", |row| row.name);
    format!("{name} (S{op0}_{op1}_C{crn}_C{crm}_{op2})")
}

fn undefined(encoding: Encoding, write: bool) -> String {
    let access = if write { "written" } else { "read" };
    format!("{} can't be {access} here: it is undefined for this guest", name(encoding))
}
