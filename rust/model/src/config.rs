//! Configuration of a modelled VM, and the origin of its guest's accesses.

use guestclock_core::arch::arm64::{El, El2, Width};

/// How many vCPUs a VM may have: KVM_MAX_VCPUS, which is VGIC_V3_MAX_CPUS (arch/arm64/include/asm/kvm_host.h).
pub const MAX_VCPUS: usize = 512;

/// Where in the guest an access or a wait comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Origin {
    /// The exception level.
    pub el: El,
    /// HCR_EL2.TGE of a nested guest: its EL0 is its hypervisor's user space.
    pub tge: bool,
}

impl Default for Origin {
    /// The guest's kernel.
    fn default() -> Self {
        Self { el: El::El1, tge: false }
    }
}

/// What a VM is made of, besides its kernel's behaviours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// What its guest has of EL2.
    pub el2: El2,
    /// The interrupt controller is in the kernel, and not in the VMM.
    pub in_kernel_irqchip: bool,
    /// The host's kernel runs at EL2 (VHE). Without, it emulates the physical timer of every guest.
    pub vhe: bool,
    /// How wide the guest's counters are, for emulators of hardware with fewer than 64 bits. KVM knows none but 64.
    pub width: Width,
}

impl Default for Config {
    fn default() -> Self {
        Self { el2: El2::Absent, in_kernel_irqchip: true, vhe: true, width: Width::FULL }
    }
}
