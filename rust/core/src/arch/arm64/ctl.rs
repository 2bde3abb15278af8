//! Bits of a timer's CTL register: CNTV_CTL_EL0 and its siblings (Arm ARM DDI 0487, "CNTV_CTL_EL0").

/// CTL bit 0: the timer is enabled.
pub const CTL_ENABLE: u64 = 1 << 0;

/// CTL bit 1: the timer's interrupt is masked.
pub const CTL_IMASK: u64 = 1 << 1;

/// CTL bit 2: the timer condition is met. A read computes it; a write never stores it.
pub const CTL_ISTATUS: u64 = 1 << 2;
