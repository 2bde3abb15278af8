//! Forms of EL2 that a guest may have.

use crate::arch::arm64::timer::Timer;

/// Form of EL2 that a guest has. It decides which parts of the generic timer the guest has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum El2 {
    /// No EL2: two counters and two timers.
    #[default]
    Absent,
    /// EL2 with HCR_EL2.E2H fixed at 1 (KVM_ARM_VCPU_HAS_EL2): CNTVOFF_EL2 and both EL2 timers.
    Vhe,
    /// EL2 with HCR_EL2.E2H fixed at 0 (KVM_ARM_VCPU_HAS_EL2 and KVM_ARM_VCPU_HAS_EL2_E2H0): CNTVOFF_EL2, no EL2
    /// virtual timer.
    E2h0,
}

impl El2 {
    /// The guest's timers, in the order of [`Timer::ALL`].
    #[must_use]
    pub const fn timers(self) -> &'static [Timer] {
        match self {
            Self::Absent => &[Timer::Vtimer, Timer::Ptimer],
            Self::Vhe => &Timer::ALL,
            Self::E2h0 => &[Timer::Vtimer, Timer::Ptimer, Timer::Hptimer],
        }
    }
}
