//! What a restore needs of a VM: the one seam between guestclock and KVM, or the model.

use crate::counter::{Counter, Offset};
use crate::sysreg::{self, Role, View};
use crate::vm::{Vm, VmError};

/// What a backend can do for a VM's clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abilities {
    /// The VM-wide offset can be written (KVM_CAP_COUNTER_OFFSET).
    pub counter_offset: bool,
    /// The physical counter and timer can be read and set.
    pub physical_timer: bool,
    /// A nonzero physical offset doesn't make CNTPCT_EL0 and the physical timer trap; `None` where nothing can tell.
    pub physical_offset_untrapped: Option<bool>,
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

    /// The VM-wide offset, where this VM has opted in and the offset is known. There is no way to ask KVM for it.
    fn owned_offset(&self) -> Option<Offset>;

    /// A number that changes whenever the VM's state does.
    fn generation(&self) -> u64;

    /// KVM_GET_ONE_REG.
    fn get_one_reg(&mut self, vcpu: usize, id: u64) -> Result<u64, Self::Error>;

    /// KVM_SET_ONE_REG.
    fn set_one_reg(&mut self, vcpu: usize, id: u64, value: u64) -> Result<(), Self::Error>;

    /// KVM_ARM_SET_COUNTER_OFFSET.
    fn set_counter_offset(&mut self, offset: Offset) -> Result<(), Self::Error>;
}

/// The KVM register of a counter.
#[must_use]
pub fn count_reg(view: View) -> u64 {
    sysreg::one_reg_id(Role::Count(view))
}

/// The model as a backend: a VM and the counter that its time comes from.
#[derive(Debug)]
pub struct Model<'a, C: Counter + ?Sized> {
    /// The VM.
    pub vm: &'a mut Vm,
    /// Its counter, or an [`Instant`](crate::manual::Instant) of it.
    pub counter: &'a C,
}

impl<C: Counter> Backend for Model<'_, C> {
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
        let behaviours = self.vm.behaviours();
        Abilities {
            counter_offset: behaviours.counter_offset,
            physical_timer: behaviours.physical_timer,
            physical_offset_untrapped: None,
        }
    }

    fn owned_offset(&self) -> Option<Offset> {
        self.vm.owned_offset()
    }

    fn generation(&self) -> u64 {
        self.vm.generation()
    }

    fn get_one_reg(&mut self, vcpu: usize, id: u64) -> Result<u64, VmError> {
        self.vm.get_one_reg(vcpu, id, self.counter.count())
    }

    fn set_one_reg(&mut self, vcpu: usize, id: u64, value: u64) -> Result<(), VmError> {
        self.vm.set_one_reg(vcpu, id, value, self.counter.count())
    }

    fn set_counter_offset(&mut self, offset: Offset) -> Result<(), VmError> {
        self.vm.set_counter_offset(offset)
    }
}
