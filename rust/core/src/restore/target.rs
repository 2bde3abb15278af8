//! The VM that is restored into, as far as a plan depends on it.

use crate::arch::Abilities;
use crate::arch::arm64::Registers;
use crate::time::NamespaceTicks;

/// The VM that is restored into, as far as a plan depends on it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Target {
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Timer registers of the vCPUs.
    pub registers: Registers,
    /// The VM's CNTFRQ_EL0 in Hz.
    pub cntfrq_hz: u32,
    /// Capabilities of its backend.
    pub abilities: Abilities,
    /// True if the VM has opted in to one offset.
    pub opted_in: bool,
    /// Ticks that the process's time namespace adds to the VM's counter.
    pub namespace_ticks: NamespaceTicks,
    /// Number of the VM's state: a plan is stale once it has changed.
    pub generation: u64,
}
