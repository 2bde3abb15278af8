//! Timer registers that a VM has, and that a checkpoint can therefore be restored into.

use crate::arch::RegId;
use crate::arch::arm64::registers::{Role, is_unknown_timers, one_reg_id};
use crate::arch::arm64::timer::Timer;
use crate::arch::arm64::view::View;
use alloc::vec::Vec;

/// Timer registers of a VM's vCPUs, from the list of the first vCPU.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Registers(Vec<u64>);

impl From<Vec<u64>> for Registers {
    /// The registers of this list.
    fn from(list: Vec<u64>) -> Self {
        Self(list)
    }
}

impl Registers {
    /// Returns whether the VM has the register with this role.
    #[must_use]
    pub fn has(&self, role: Role) -> bool {
        self.0.contains(&one_reg_id(role))
    }

    /// Returns whether the guest has EL2: both its counters have one offset, and differ by CNTVOFF_EL2.
    #[must_use]
    pub fn has_el2(&self) -> bool {
        self.has(Role::Cntvoff)
    }

    /// Returns whether the VM has the register with this id.
    #[must_use]
    pub fn has_id(&self, id: u64) -> bool {
        self.0.contains(&id)
    }

    /// Returns the timers in their order. The virtual timer is always among them, since every guest has it.
    pub fn timers(&self) -> impl Iterator<Item = Timer> {
        Timer::ALL.into_iter().filter(|timer| *timer == Timer::Vtimer || self.has(Role::Cval(*timer)))
    }

    /// Returns the ids of the registers that a checkpoint holds, in their order: each timer's CVAL and CTL, CNTVOFF_EL2,
    /// and those that aren't in the table.
    #[must_use]
    pub fn saved(&self) -> Vec<RegId> {
        let timers = self.timers().flat_map(|timer| [Role::Cval(timer), Role::Ctl(timer)]);
        let cntvoff = self.has(Role::Cntvoff).then_some(Role::Cntvoff);
        let known = timers.chain(cntvoff).map(one_reg_id);
        let mut ids: Vec<RegId> = known.chain(self.others()).map(RegId).collect();
        ids.sort_unstable();
        ids
    }

    /// Returns the ids of timer registers that aren't in the table, in ascending order.
    #[must_use]
    pub fn others(&self) -> Vec<u64> {
        let mut others: Vec<u64> = self.0.iter().copied().filter(|id| is_unknown_timers(*id)).collect();
        others.sort_unstable();
        others
    }
}

/// Returns the KVM register id of a counter.
#[must_use]
pub fn count_reg(view: View) -> u64 {
    one_reg_id(Role::Count(view))
}
