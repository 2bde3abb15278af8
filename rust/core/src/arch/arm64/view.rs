//! The two counters of a guest, and their offsets.

use crate::time::Offset;

/// Counter of a guest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum View {
    /// CNTVCT_EL0.
    Virtual,
    /// CNTPCT_EL0.
    Physical,
}

impl View {
    /// Returns the counter by which the VM-wide offset is read back: with EL2 CNTVOFF_EL2 is subtracted from the virtual
    /// count.
    #[must_use]
    pub const fn of_vm_offset(el2: bool) -> Self {
        if el2 { Self::Physical } else { Self::Virtual }
    }
}

/// Offsets of a vCPU's two counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offsets {
    /// Offset of CNTVCT_EL0.
    pub virt: Offset,
    /// Offset of CNTPCT_EL0.
    pub phys: Offset,
}

impl Offsets {
    /// Returns the offset of a counter.
    #[must_use]
    pub const fn of(self, view: View) -> Offset {
        match view {
            View::Virtual => self.virt,
            View::Physical => self.phys,
        }
    }

    /// Returns the offsets on a vCPU, from the VM's: `cntvoff` is its CNTVOFF_EL2, or `None` without EL2. With EL2,
    /// both views use the physical offset (`timer_get_offset`, include/kvm/arm_arch_timer.h).
    #[must_use]
    pub const fn on_vcpu(self, cntvoff: Option<Offset>) -> Self {
        match cntvoff {
            None => self,
            Some(cntvoff) => Self { virt: self.phys.plus(cntvoff), phys: self.phys },
        }
    }
}
