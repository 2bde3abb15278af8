//! A bank whose VMs have gates: whether their vCPUs may run.

use super::{Bank, BankError, Handle};
use crate::counter::Frequency;
use crate::gate::Gate;
use crate::kernel::Behaviours;
use crate::vm::{Config, Vm, VmError};
use alloc::vec;
use alloc::vec::Vec;

/// A bank, and the gate of each of its VMs.
#[derive(Debug)]
pub struct GatedBank {
    bank: Bank,
    /// By the VM's slot.
    gates: Vec<Gate>,
}

impl GatedBank {
    /// See [`Bank::new`].
    #[must_use]
    pub fn new(frequency: Frequency, el2: bool) -> Self {
        Self { bank: Bank::new(frequency, el2), gates: Vec::new() }
    }

    /// A bank of one VM, and its handle.
    pub(crate) fn of_one(
        frequency: Frequency,
        behaviours: Behaviours,
        config: Config,
    ) -> Result<(Self, Handle), VmError> {
        let (bank, slot) = Bank::of_one(frequency, behaviours, config)?;
        let vm = bank.handle_of_vm(slot);
        Ok((Self { bank, gates: vec![Gate::default()] }, vm))
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
            self.gates.resize_with(slot + 1, Gate::default);
        }
        self.gates[slot] = Gate::default();
        Ok(vm)
    }

    /// A VM and its gate.
    pub fn gated(&mut self, vm: Handle) -> Result<(&mut Gate, Vm<&mut Bank>), BankError> {
        let gate = &mut self.gates[self.bank.slot(vm)? as usize];
        Ok((gate, self.bank.vm_mut(vm)?))
    }
}
