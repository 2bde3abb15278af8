//! A bank, and the run state of each of its VMs.

use crate::bank::handle::{Handle, MAX_VMS};
use crate::bank::vms::{Bank, BankError, MAX_ROWS};
use crate::config::Config;
use crate::vm::ModelVm;
use guestclock_core::arch::arm64::Behaviours;
use guestclock_core::restore::{RunState, State};
use guestclock_core::time::{Frequency, HostCount, Ratio};

/// A bank, and the run state of each of its VMs.
#[derive(Debug)]
pub struct ManagedBank {
    pub(super) bank: Bank,
    /// Run states by the VM's slot.
    pub(super) run_states: Vec<RunState>,
}

impl From<Bank> for ManagedBank {
    /// Every VM is open.
    fn from(bank: Bank) -> Self {
        let run_states = bank.seats.iter().map(|_| RunState::default()).collect();
        let mut managed = Self { bank, run_states };
        // The bank may be a copy of one whose VMs weren't.
        let held: Vec<u32> = managed.bank.held().collect();
        for slot in held {
            managed.settle(slot);
        }
        managed
    }
}

impl ManagedBank {
    /// Creates an empty bank: see [`Bank::new`].
    #[must_use]
    pub fn new(frequency: Frequency, el2: bool) -> Self {
        Self::from(Bank::new(frequency, el2))
    }

    /// The bank.
    #[must_use]
    pub const fn bank(&self) -> &Bank {
        &self.bank
    }

    /// The bank, for operations that every run state allows.
    pub const fn bank_mut(&mut self) -> &mut Bank {
        &mut self.bank
    }

    /// Adds a VM, which is open: see [`Bank::add`].
    pub fn add(&mut self, frequency: Frequency, behaviours: Behaviours, config: Config) -> Result<Handle, BankError> {
        let vm = self.bank.add(frequency, behaviours, config)?;
        let slot = vm.slot() as usize;
        if self.run_states.len() <= slot {
            self.run_states.resize_with(slot + 1, RunState::default);
        }
        self.run_states[slot] = RunState::default();
        Ok(vm)
    }

    /// Adds `vms` equal VMs of `vcpus` vCPUs each, all created when the bank's counter reads `now`: all of them, or
    /// none.
    pub fn add_many(
        &mut self,
        vms: usize,
        vcpus: usize,
        frequency: Frequency,
        behaviours: Behaviours,
        config: Config,
        now: HostCount,
    ) -> Result<Vec<Handle>, BankError> {
        if vms > MAX_VMS - self.bank.len() || vms.saturating_mul(vcpus) > MAX_ROWS {
            return Err(BankError::Full);
        }
        let here = Ratio::new(self.bank.frequency(), frequency).at(now);
        let no_memory = |_| BankError::NoMemory { vms, vcpus };
        let mut added = Vec::new();
        added.try_reserve_exact(vms).map_err(no_memory)?;
        let done = (0..vms).try_for_each(|number| {
            let vm = self.add(frequency, behaviours, config)?;
            added.push(vm);
            self.bank.vm_mut(vm)?.create_vcpus(vcpus, here)?;
            // The reservation comes after the first VM has shown that such VMs can be added.
            if number == 0 {
                self.bank.reserve(vm.slot(), vms - 1, vcpus).map_err(no_memory)?;
                self.run_states.try_reserve_exact(vms - 1).map_err(no_memory)?;
            }
            Ok(())
        });
        match done {
            Ok(()) => Ok(added),
            Err(error) => {
                self.bank.remove_all(&added)?;
                Err(error)
            }
        }
    }

    /// Memory of the bank in bytes, including reserved capacity.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bank.bytes() + self.run_states.capacity() * size_of::<RunState>()
    }

    /// Has a VM's timers follow its run state: while it is paused or being restored it gives out none.
    pub(super) fn settle(&mut self, slot: u32) {
        self.bank.hold(slot, self.run_states[slot as usize].state() != State::Open);
    }

    /// Returns a VM and its run state.
    pub fn vm_and_state(&mut self, vm: Handle) -> Result<(&mut RunState, ModelVm<&mut Bank>), BankError> {
        let run_state = &mut self.run_states[self.bank.slot(vm)? as usize];
        Ok((run_state, self.bank.vm_mut(vm)?))
    }
}
