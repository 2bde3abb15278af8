//! A guest's time as plain data: what is saved, apart from anything alive.

use crate::arch::arm64::is_unknown_timers;
use crate::checkpoint::backlog::Backlog;
use crate::checkpoint::columns::{
    RegisterColumn, TimerColumns, Unknown, UnknownKey, validate_frequency, validate_timers,
};
use crate::time::{GuestCount, Stamp};
use alloc::vec::Vec;

/// The guest time of one VM at one instant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// The guest's CNTFRQ_EL0, in Hz; never 0.
    pub cntfrq_hz: u32,
    /// The VM's virtual counter when the host's read `host.count`. On nested vCPUs CNTVOFF_EL2 has been added back.
    pub cntvct: GuestCount,
    /// The VM's physical counter at the same instant.
    pub cntpct: GuestCount,
    /// Whether the VM owned its offset (`KVM_ARM_SET_COUNTER_OFFSET`): then both counters are exact at `host.count`.
    pub opted_in: bool,
    /// How far, in ticks, the two counters above may be from the truth at `host.count`: 0 where they were computed,
    /// the width of the bracket where they were read.
    pub width_ticks: u64,
    /// The instant, by the host's counter and wall clock.
    pub host: Stamp,
    /// The host's count when the last vCPU left the guest, from a VMM that knows it.
    pub stopped_at: Option<u64>,
    /// What the guest is owed, where it was on its way back to real time.
    pub backlog: Option<Backlog>,
    /// How many vCPUs: the length of every column.
    pub vcpus: usize,
    /// A nested guest's CNTVOFF_EL2, one a vCPU; `None` for a guest without EL2.
    pub cntvoff: Option<Vec<u64>>,
    /// The timers, in the order of [`Timer::ALL`](crate::arch::arm64::Timer::ALL), without those the guest doesn't have.
    pub timers: Vec<TimerColumns>,
    /// Timer registers that KVM listed and this version doesn't know, by id: carried as they are.
    pub others: Vec<RegisterColumn>,
    /// Keys that this version doesn't know, byte for byte, to be written again.
    pub unknown: Vec<UnknownKey>,
}

impl Checkpoint {
    /// Whether its parts fit together, as [`codec`](crate::checkpoint::codec) wants them; what is wrong, if
    /// they don't.
    ///
    /// `unknown` isn't looked at: it is whatever [`wire::decode`](crate::checkpoint::codec::decode) found.
    pub fn validate(&self) -> Result<(), &'static str> {
        validate_frequency(self.cntfrq_hz)?;
        if self.cntvoff.as_ref().is_some_and(|column| column.len() != self.vcpus) {
            return Err("cntvoff hasn't one value a vCPU");
        }
        validate_timers(&self.timers, self.vcpus)?;
        if !self.others.is_sorted_by(|one, next| one.id < next.id) {
            return Err("other_regs aren't in their ids' order, each once");
        }
        for column in &self.others {
            if column.values.len() != self.vcpus {
                return Err("a column of other_regs hasn't one value a vCPU");
            }
            if !is_unknown_timers(column.id) {
                return Err("other_regs has a register that is known, or no timer's");
            }
        }
        Ok(())
    }

    /// Keys and registers that this version doesn't know.
    pub fn unknowns(&self) -> impl Iterator<Item = Unknown> {
        let keys = self.unknown.iter().map(|unknown| Unknown::Key(unknown.key.clone()));
        keys.chain(self.others.iter().map(|column| Unknown::Register(column.id)))
    }
}
