//! A bank whose VMs have gates: whether their vCPUs may run.

use crate::bank::handle::{Handle, MAX_VMS};
use crate::bank::vms::{Bank, BankError, MAX_ROWS};
use crate::config::Config;
use crate::vm::Vm;
use guestclock_core::arch::arm64::Behaviours;
use guestclock_core::restore::RunState;
use guestclock_core::time::{Frequency, HostCount, Ratio};

/// A bank, and the gate of each of its VMs.
#[derive(Debug)]
pub struct GatedBank {
    pub(super) bank: Bank,
    /// By the VM's slot.
    pub(super) gates: Vec<RunState>,
}

impl From<Bank> for GatedBank {
    /// All gates are open.
    fn from(bank: Bank) -> Self {
        let gates = bank.seats.iter().map(|_| RunState::default()).collect();
        Self { bank, gates }
    }
}

impl GatedBank {
    /// See [`Bank::new`].
    #[must_use]
    pub fn new(frequency: Frequency, el2: bool) -> Self {
        Self::from(Bank::new(frequency, el2))
    }

    /// The bank.
    #[must_use]
    pub const fn bank(&self) -> &Bank {
        &self.bank
    }

    /// The bank, for what no gate has a say in.
    pub const fn bank_mut(&mut self) -> &mut Bank {
        &mut self.bank
    }

    /// See [`Bank::add`]. The VM's gate is open.
    pub fn add(&mut self, frequency: Frequency, behaviours: Behaviours, config: Config) -> Result<Handle, BankError> {
        let vm = self.bank.add(frequency, behaviours, config)?;
        let slot = vm.slot() as usize;
        if self.gates.len() <= slot {
            self.gates.resize_with(slot + 1, RunState::default);
        }
        self.gates[slot] = RunState::default();
        Ok(vm)
    }

    /// Adds VMs that are alike, with so many vCPUs each, all created when the bank's counter reads `now`: all, or none.
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
        let mut added = Vec::new();
        let done = (0..vms).try_for_each(|number| {
            let vm = self.add(frequency, behaviours, config)?;
            added.push(vm);
            self.bank.vm_mut(vm)?.create_vcpus(vcpus, here)?;
            // Once one of them has shown that it can be.
            if number == 0 {
                self.bank.reserve(frequency, vms - 1, vcpus)?;
                self.gates.reserve_exact(vms - 1);
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

    /// The bytes that it holds, those that are reserved for more included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bank.bytes() + self.gates.capacity() * size_of::<RunState>()
    }

    /// A VM and its gate.
    pub fn gated(&mut self, vm: Handle) -> Result<(&mut RunState, Vm<&mut Bank>), BankError> {
        let gate = &mut self.gates[self.bank.slot(vm)? as usize];
        Ok((gate, self.bank.vm_mut(vm)?))
    }
}
