//! Names of VMs and vCPUs, which are never given to others.

/// How many bits of a handle are the vCPU's number: as many as KVM allows a VM
/// ([`MAX_VCPUS`](crate::config::MAX_VCPUS)).
const VCPU_BITS: u32 = 9;

const SLOT_BITS: u32 = 22;

/// How many VMs a bank may have at a time.
pub const MAX_VMS: usize = 1 << SLOT_BITS;

/// A VM of a bank, or one of its vCPUs: vCPU `n` of the VM `h` is `h + n`.
///
/// As an array library's index type, and never negative: from bit 31 on the slot's generation, which begins at 1, then
/// 22 bits of slot and 9 of vCPU. A slot is given to another VM at the next generation, and to nobody after the last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Handle(pub i64);

impl Handle {
    pub(crate) fn of_vm(slot: u32, generation: u32) -> Self {
        Self((u64::from(generation) << (SLOT_BITS + VCPU_BITS) | u64::from(slot) << VCPU_BITS).cast_signed())
    }

    /// One of the VM's vCPUs.
    #[must_use]
    pub fn vcpu(self, vcpu: u16) -> Self {
        Self(self.0 + i64::from(vcpu))
    }

    /// The vCPU's VM; a VM's own is itself.
    #[must_use]
    pub const fn vm(self) -> Self {
        Self(self.0 & !((1 << VCPU_BITS) - 1))
    }

    /// The vCPU's number in its VM: 0 for a VM's own handle.
    #[must_use]
    pub const fn number(self) -> u16 {
        (self.0.cast_unsigned() & ((1 << VCPU_BITS) - 1)) as u16
    }

    pub(crate) const fn slot(self) -> u32 {
        (self.0.cast_unsigned() >> VCPU_BITS & ((1 << SLOT_BITS) - 1)) as u32
    }

    /// `None` for a negative number, which is no handle.
    pub(crate) fn generation(self) -> Option<u32> {
        u32::try_from(self.0 >> (SLOT_BITS + VCPU_BITS)).ok()
    }
}
