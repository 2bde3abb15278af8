//! The model behind the trait of a VM's primitive calls.

use crate::bank::Bank;
use crate::config::Config;
use crate::error::VmError;
use crate::vm::ModelVm;
use guestclock_core::arch::Abilities;
use guestclock_core::arch::arm64::{Behaviours, CtlReadback, El2, Registers, Width};
use guestclock_core::checkpoint::Interrupts;
use guestclock_core::drive::Backend;
use guestclock_core::time::{Counter, Offset};
use std::ops::DerefMut;

/// Capabilities of the model of such a VM.
#[must_use]
pub fn abilities(behaviours: Behaviours, config: Config) -> Abilities {
    Abilities {
        counter_offset: behaviours.counter_offset,
        physical_offset_untrapped: None,
        counter_bits: Some(config.width).filter(|width| *width != Width::FULL).map(Width::bits),
    }
}

/// The model as a backend: a VM and the counter of its time.
#[derive(Debug)]
pub struct Model<'a, C: Counter + ?Sized, B = Box<Bank>> {
    /// The VM.
    pub vm: &'a mut ModelVm<B>,
    /// The VM's counter, or an [`Instant`](guestclock_core::time::Instant) of it.
    pub counter: &'a C,
}

impl<C: Counter, B: DerefMut<Target = Bank>> Backend for Model<'_, C, B> {
    type Error = VmError;

    fn counter(&self) -> &dyn Counter {
        self.counter
    }

    fn cntfrq_hz(&self) -> u32 {
        self.vm.cntfrq_hz()
    }

    fn vcpus(&self) -> usize {
        self.vm.vcpus()
    }

    fn abilities(&self) -> Abilities {
        abilities(self.vm.behaviours(), self.vm.config())
    }

    fn reg_list(&mut self, vcpu: usize) -> Result<Vec<u64>, VmError> {
        self.vm.reg_list(vcpu)
    }

    fn nested(&self) -> bool {
        self.vm.config().el2 != El2::Absent
    }

    fn vm_offset(&self) -> Option<Offset> {
        self.vm.vm_offset()
    }

    fn computes_istatus(&self) -> bool {
        self.vm.behaviours().ctl_readback == CtlReadback::Computed
    }

    fn interrupts(&mut self, _: &Registers) -> Result<Option<Interrupts>, VmError> {
        Ok(Some(self.vm.interrupts()))
    }

    fn generation(&self) -> u64 {
        self.vm.generation()
    }

    fn stopped(&mut self) -> Result<(), VmError> {
        self.vm.all_stopped()
    }

    fn get_one_reg(&mut self, vcpu: usize, id: u64) -> Result<u64, VmError> {
        self.vm.get_one_reg(vcpu, id, self.counter.count())
    }

    fn set_one_reg(&mut self, vcpu: usize, id: u64, value: u64) -> Result<(), VmError> {
        self.vm.set_one_reg(vcpu, id, value, self.counter.count())
    }

    fn set_counter_offset(&mut self, offset: Offset) -> Result<(), VmError> {
        self.vm.set_counter_offset(offset, 0)
    }
}
