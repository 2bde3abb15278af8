//! The two counters of a guest, and the offsets that they are under.

use crate::time::Offset;

/// Which of the two counters.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum View {
    /// CNTVCT_EL0.
    Virtual,
    /// CNTPCT_EL0.
    Physical,
}

/// The offsets that a vCPU's two counters are under.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offsets {
    /// Of CNTVCT_EL0.
    pub virt: Offset,
    /// Of CNTPCT_EL0.
    pub phys: Offset,
}

impl Offsets {
    /// The one asked for.
    #[must_use]
    pub const fn of(self, view: View) -> Offset {
        match view {
            View::Virtual => self.virt,
            View::Physical => self.phys,
        }
    }

    /// The VM's, on a vCPU of this CNTVOFF_EL2: `None` for one without EL2. With it, both views go by the physical
    /// offset (`timer_get_offset`, include/kvm/arm_arch_timer.h).
    #[must_use]
    pub const fn on_vcpu(self, cntvoff: Option<Offset>) -> Self {
        match cntvoff {
            None => self,
            Some(cntvoff) => Self { virt: self.phys.plus(cntvoff), phys: self.phys },
        }
    }
}
