//! Set of timer registers that a VM has, and that a checkpoint can therefore be restored into.

use crate::arch::arm64::registers::{Role, is_unknown_timers, one_reg_id};
use crate::arch::arm64::timer::Timer;
use crate::arch::arm64::view::View;
use alloc::vec::Vec;

/// Which timer registers a VM's vCPUs have, by the list of the first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registers(Vec<u64>);

impl From<Vec<u64>> for Registers {
    /// Those of this list.
    fn from(list: Vec<u64>) -> Self {
        Self(list)
    }
}

impl Registers {
    /// Whether there is a register for this.
    #[must_use]
    pub fn has(&self, role: Role) -> bool {
        self.0.contains(&one_reg_id(role))
    }

    /// Whether there is a register of this id.
    #[must_use]
    pub fn has_id(&self, id: u64) -> bool {
        self.0.contains(&id)
    }

    /// The timers, in their order; the virtual one always, since every guest has it.
    pub fn timers(&self) -> impl Iterator<Item = Timer> {
        Timer::ALL.into_iter().filter(|timer| *timer == Timer::Vtimer || self.has(Role::Cval(*timer)))
    }

    /// The ids of timer registers that aren't in the table, in their order.
    #[must_use]
    pub fn others(&self) -> Vec<u64> {
        let mut others: Vec<u64> = self.0.iter().copied().filter(|id| is_unknown_timers(*id)).collect();
        others.sort_unstable();
        others
    }
}

/// The KVM register of a counter.
#[must_use]
pub fn count_reg(view: View) -> u64 {
    one_reg_id(Role::Count(view))
}
