//! Ids of the clocks' registers. An MSR has its index, and what is none has an id that no MSR has: an index has 32 bits.

use crate::time::Offset;

/// IA32_TSC_ADJUST: the ticks by which the guest has moved this vCPU's counter (Intel SDM, volume 3, 19.17.3). Writing it
/// from outside moves nothing.
pub const IA32_TSC_ADJUST: u64 = 0x3b;

/// IA32_TSC_DEADLINE: the count at which the vCPU's timer is due, or 0 (Intel SDM, volume 3, 12.5.4.1). KVM computes the
/// time to wait when it is written, and never again.
pub const IA32_TSC_DEADLINE: u64 = 0x6e0;

/// KVM_VCPU_TSC_OFFSET, an attribute of a vCPU: see [`tsc_offset`].
pub const TSC_OFFSET: u64 = 1 << 32;

/// KVM_GET_CLOCK and KVM_SET_CLOCK: the VM's clock in nanoseconds, which its guest reads as kvmclock.
pub const KVMCLOCK: u64 = TSC_OFFSET + 1;

/// Returns the name of a register for messages.
#[must_use]
pub const fn name(id: u64) -> &'static str {
    match id {
        IA32_TSC_ADJUST => "IA32_TSC_ADJUST",
        IA32_TSC_DEADLINE => "IA32_TSC_DEADLINE",
        TSC_OFFSET => "KVM_VCPU_TSC_OFFSET",
        KVMCLOCK => "kvmclock",
        _ => "a register unknown to guestclock",
    }
}

/// Returns the value of KVM_VCPU_TSC_OFFSET for a vCPU that is `displacement` ticks ahead of its VM. KVM adds it:
/// `guest = host + offset` (Documentation/virt/kvm/devices/vcpu.rst, 4.1), where an [`Offset`] is subtracted.
#[must_use]
pub const fn tsc_offset(offset: Offset, displacement: u64) -> u64 {
    displacement.wrapping_sub(offset.0)
}
