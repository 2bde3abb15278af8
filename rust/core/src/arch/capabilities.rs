//! Capabilities of a host for a VM's clocks.

/// Capabilities of a backend for a VM's clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Abilities {
    /// True if the VM-wide offset can be written (KVM_CAP_COUNTER_OFFSET).
    pub counter_offset: bool,
    /// True if a nonzero physical offset leaves CNTPCT_EL0 and the physical timer untrapped; `None` if that isn't
    /// known.
    pub physical_offset_untrapped: Option<bool>,
    /// Width of the counter in bits; `None` if it isn't known (the architecture allows 56 to 64).
    pub counter_bits: Option<u8>,
}
