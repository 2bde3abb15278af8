//! What a restore needs of a VM: the one seam between guestclock and KVM, or the model.

use crate::bank::Bank;
use crate::counter::{Counter, Offset};
use crate::kernel::Behaviours;
use crate::sysreg::{self, Role, View, is_unknown_timers};
use crate::timer::{Timer, Width};
use crate::vm::{Config, Vm, VmError};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::DerefMut;

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

impl Abilities {
    /// Those of the model of such a VM.
    #[must_use]
    pub fn modelled(behaviours: Behaviours, config: Config) -> Self {
        Self {
            counter_offset: behaviours.counter_offset,
            physical_offset_untrapped: None,
            counter_bits: Some(config.width).filter(|width| *width != Width::FULL).map(Width::bits),
        }
    }
}

/// A VM whose guest time can be saved and restored. All vCPUs are stopped while any of this is called.
pub trait Backend {
    /// What an access may fail with.
    type Error;

    /// The host's counter, which the guest's counters are offset from.
    fn counter(&self) -> &dyn Counter;

    /// The guest's CNTFRQ_EL0 in Hz.
    fn cntfrq_hz(&self) -> u32;

    /// How many vCPUs.
    fn vcpus(&self) -> usize;

    /// What can be done.
    fn abilities(&self) -> Abilities;

    /// The ids of the vCPU's registers (KVM_GET_REG_LIST): what isn't a timer's is passed over.
    fn reg_list(&mut self, vcpu: usize) -> Result<Vec<u64>, Self::Error>;

    /// The VM-wide offset, where this VM has opted in and the offset is known. There is no way to ask KVM for it.
    fn owned_offset(&self) -> Option<Offset>;

    /// A number that changes whenever the VM's state does.
    fn generation(&self) -> u64;

    /// Whether all vCPUs are stopped, as far as it can be told without waiting for one: else the error says which runs.
    fn stopped(&mut self) -> Result<(), Self::Error>;

    /// KVM_GET_ONE_REG.
    fn get_one_reg(&mut self, vcpu: usize, id: u64) -> Result<u64, Self::Error>;

    /// KVM_SET_ONE_REG.
    fn set_one_reg(&mut self, vcpu: usize, id: u64, value: u64) -> Result<(), Self::Error>;

    /// KVM_ARM_SET_COUNTER_OFFSET, once: who calls it takes a new sample for another attempt.
    fn set_counter_offset(&mut self, offset: Offset) -> Result<(), Self::Error>;

    /// Whether to make a call again that failed so, having waited a moment: see [`patiently`]. `attempt` counts from 0.
    fn retries(&mut self, _error: &Self::Error, _attempt: u32) -> bool {
        false
    }
}

/// Makes a call again for as long as the backend [`retries`](Backend::retries) what came of it.
pub fn patiently<B: Backend + ?Sized, T>(
    backend: &mut B,
    mut call: impl FnMut(&mut B) -> Result<T, B::Error>,
) -> Result<T, B::Error> {
    let mut attempt = 0;
    loop {
        match call(backend) {
            Err(error) if backend.retries(&error, attempt) => attempt = attempt.saturating_add(1),
            result => return result,
        }
    }
}

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
    /// Asks vCPU 0. A VM without vCPUs has none.
    pub fn of<B: Backend + ?Sized>(backend: &mut B) -> Result<Self, B::Error> {
        Ok(Self(if backend.vcpus() == 0 { Vec::new() } else { backend.reg_list(0)? }))
    }

    /// Whether there is a register for this.
    #[must_use]
    pub fn has(&self, role: Role) -> bool {
        self.0.contains(&sysreg::one_reg_id(role))
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
    sysreg::one_reg_id(Role::Count(view))
}

/// The model as a backend: a VM and the counter that its time comes from.
#[derive(Debug)]
pub struct Model<'a, C: Counter + ?Sized, B = Box<Bank>> {
    /// The VM.
    pub vm: &'a mut Vm<B>,
    /// Its counter, or an [`Instant`](crate::manual::Instant) of it.
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
        Abilities::modelled(self.vm.behaviours(), self.vm.config())
    }

    fn reg_list(&mut self, vcpu: usize) -> Result<Vec<u64>, VmError> {
        self.vm.reg_list(vcpu)
    }

    fn owned_offset(&self) -> Option<Offset> {
        self.vm.owned_offset()
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
