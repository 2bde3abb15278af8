//! Configuration of a modelled VM, and the origin of its guest's accesses.

use guestclock_core::arch::arm64::{El, El2, Width};

/// Maximum number of vCPUs of a VM: KVM_MAX_VCPUS, which is VGIC_V3_MAX_CPUS (arch/arm64/include/asm/kvm_host.h).
pub const MAX_VCPUS: usize = 512;

/// Place in the guest from which an access or a wait comes.
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

/// Configuration of a VM, besides its kernel's behaviours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Form of the guest's EL2.
    pub el2: El2,
    /// True if the interrupt controller is in the kernel, false if in the VMM.
    pub in_kernel_irqchip: bool,
    /// True if the host's kernel runs at EL2 (VHE). Without VHE it emulates the physical timer of every guest.
    pub vhe: bool,
    /// Width of the guest's counters, for emulators of hardware with fewer than 64 bits. KVM only has 64.
    pub width: Width,
}

impl Default for Config {
    fn default() -> Self {
        Self { el2: El2::Absent, in_kernel_irqchip: true, vhe: true, width: Width::FULL }
    }
}
