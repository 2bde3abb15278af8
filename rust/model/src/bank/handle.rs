//! Handles of VMs and vCPUs, which are never reused.

/// Number of a handle's bits for the vCPU's number: enough for KVM's maximum ([`MAX_VCPUS`](crate::config::MAX_VCPUS)).
const VCPU_BITS: u32 = 9;

const SLOT_BITS: u32 = 22;

/// Maximum number of VMs in a bank.
pub const MAX_VMS: usize = 1 << SLOT_BITS;

/// Handle of a VM in a bank, or of one of its vCPUs: vCPU `n` of the VM `h` is `h + n`.
///
/// The type is an array library's index type, and the value is never negative. Bits 31 and up are the slot's
/// generation, which begins at 1; below are 22 bits of slot and 9 of vCPU. A reused slot gets the next generation, and
/// after the last one it isn't reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Handle(pub i64);

impl Handle {
    pub(crate) fn of_vm(slot: u32, generation: u32) -> Self {
        Self((u64::from(generation) << (SLOT_BITS + VCPU_BITS) | u64::from(slot) << VCPU_BITS).cast_signed())
    }

    /// Returns the handle of one of the VM's vCPUs.
    #[must_use]
    pub fn vcpu(self, vcpu: u16) -> Self {
        Self(self.0 + i64::from(vcpu))
    }

    /// Returns the handle of the vCPU's VM, or a VM's own handle unchanged.
    #[must_use]
    pub const fn vm(self) -> Self {
        Self(self.0 & !((1 << VCPU_BITS) - 1))
    }

    /// Returns the vCPU's number in its VM; 0 for a VM's own handle.
    #[must_use]
    pub const fn number(self) -> u16 {
        (self.0.cast_unsigned() & ((1 << VCPU_BITS) - 1)) as u16
    }

    pub(crate) const fn slot(self) -> u32 {
        (self.0.cast_unsigned() >> VCPU_BITS & ((1 << SLOT_BITS) - 1)) as u32
    }

    /// Returns the slot's generation; `None` for a negative number, which is no handle.
    pub(crate) fn generation(self) -> Option<u32> {
        u32::try_from(self.0 >> (SLOT_BITS + VCPU_BITS)).ok()
    }
}
