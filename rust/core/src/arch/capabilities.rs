//! Capabilities of a host for a VM's clocks.

/// What a backend can do for a VM's clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abilities {
    /// The VM-wide offset can be written (KVM_CAP_COUNTER_OFFSET).
    pub counter_offset: bool,
    /// A nonzero physical offset doesn't make CNTPCT_EL0 and the physical timer trap; `None` where nothing can tell.
    pub physical_offset_untrapped: Option<bool>,
    /// How many bits the counter has; `None` where nothing can tell (the architecture allows 56 to 64).
    pub counter_bits: Option<u8>,
}
