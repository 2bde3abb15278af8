//! The VM that is restored into, as far as a plan depends on it.

use crate::arch::Abilities;
use crate::arch::arm64::Registers;

/// The VM that is restored into, as far as a plan depends on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// How many vCPUs.
    pub vcpus: usize,
    /// What timer registers they have.
    pub registers: Registers,
    /// Its CNTFRQ_EL0 in Hz.
    pub cntfrq_hz: u32,
    /// What can be done.
    pub abilities: Abilities,
    /// Whether its offset is owned already.
    pub opted_in: bool,
    /// Its state's number: the plan is stale when that has changed.
    pub generation: u64,
}
