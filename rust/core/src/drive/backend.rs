//! Primitive calls that a restore needs of a VM: the one seam between guestclock and KVM, or the model.

use crate::arch::Abilities;
use crate::arch::arm64::{Registers, Timer};
use crate::checkpoint::Interrupts;
use crate::restore::{Target, Written};
use crate::time::{Counter, Frequency, NamespaceTicks, Offset};
use alloc::vec::Vec;

/// A VM whose guest time can be saved and restored. All vCPUs are stopped during any of these calls.
pub trait Backend {
    /// Error of an access.
    type Error;

    /// The host's counter, from which the guest's counters are offset.
    fn counter(&self) -> &dyn Counter;

    /// The guest's CNTFRQ_EL0 in Hz.
    fn cntfrq_hz(&self) -> u32;

    /// Number of vCPUs.
    fn vcpus(&self) -> usize;

    /// Capabilities of the backend.
    fn abilities(&self) -> Abilities;

    /// The ids of the vCPU's registers (KVM_GET_REG_LIST). Callers ignore those that aren't a timer's.
    fn reg_list(&mut self, vcpu: usize) -> Result<Vec<u64>, Self::Error>;

    /// Returns whether the guest has EL2, or may have: then its virtual counter has CNTVOFF_EL2 in it.
    fn nested(&self) -> bool;

    /// The VM-wide offset, if this VM has opted in and the offset is known. KVM has no call that reads it.
    fn vm_offset(&self) -> Option<Offset>;

    /// Returns whether CTL reads back with ISTATUS as the counter has it, rather than as the last run left it.
    fn computes_istatus(&self) -> bool {
        false
    }

    /// Interrupt ids of the timers that the guest has (KVM_ARM_VCPU_TIMER_CTRL); `None` where nobody can be asked. A
    /// kernel that answers an error doesn't tell either.
    fn interrupts(&mut self, _registers: &Registers) -> Result<Option<Interrupts>, Self::Error> {
        Ok(None)
    }

    /// Returns false if the guest has the timer's interrupt of this vCPU enabled, and the interrupt controller as a whole
    /// forwards nothing; `None` where nobody can be asked.
    fn forwards(&mut self, _vcpu: usize, _timer: Timer) -> Result<Option<bool>, Self::Error> {
        Ok(None)
    }

    /// A number that changes whenever the VM's state does.
    fn generation(&self) -> u64;

    /// Looks once whether all vCPUs are stopped, as far as that shows without waiting for one: see [`await_stopped`].
    /// The error names the one that runs.
    fn stopped(&mut self) -> Result<(), Self::Error>;

    /// KVM_GET_ONE_REG.
    fn get_one_reg(&mut self, vcpu: usize, id: u64) -> Result<u64, Self::Error>;

    /// KVM_SET_ONE_REG.
    fn set_one_reg(&mut self, vcpu: usize, id: u64, value: u64) -> Result<(), Self::Error>;

    /// KVM_ARM_SET_COUNTER_OFFSET, once: the caller takes a new sample for another attempt.
    fn set_counter_offset(&mut self, offset: Offset) -> Result<(), Self::Error>;

    /// Returns whether to repeat a call that failed with `error`, after waiting a moment: see [`retry_busy`]. `attempt`
    /// counts from 0.
    fn retries(&mut self, _error: &Self::Error, _attempt: u32) -> bool {
        false
    }

    /// Takes note of a restore that has ended, or of a pause.
    fn restored(&mut self, _written: Written) {}
}

/// Looks whether all vCPUs are stopped, for as long as the backend [`retries`](Backend::retries) its error: a thread that
/// is in an ioctl on a vCPU is soon out.
pub fn await_stopped<B: Backend + ?Sized>(backend: &mut B) -> Result<(), B::Error> {
    retry_busy(backend, Backend::stopped)
}

/// Repeats a call for as long as the backend [`retries`](Backend::retries) its error.
pub fn retry_busy<B: Backend + ?Sized, T>(
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

impl Registers {
    /// Returns the timer registers that the backend's vCPU 0 lists. A VM without vCPUs has none.
    pub fn of<B: Backend + ?Sized>(backend: &mut B) -> Result<Self, B::Error> {
        let list = if backend.vcpus() == 0 { Vec::new() } else { backend.reg_list(0)? };
        Ok(Self::from(list))
    }
}

/// Facts of a VM that take no call, as an operation begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// See [`Backend::vcpus`].
    pub vcpus: usize,
    /// See [`Backend::cntfrq_hz`].
    pub cntfrq_hz: u32,
    /// Frequency of the counter.
    pub frequency: Frequency,
    /// Ticks by which the counter's own counts differ from a stamp's.
    pub namespace_ticks: NamespaceTicks,
    /// See [`Backend::abilities`].
    pub abilities: Abilities,
    /// See [`Backend::nested`].
    pub nested: bool,
    /// See [`Backend::vm_offset`].
    pub vm_offset: Option<Offset>,
    /// See [`Backend::computes_istatus`].
    pub computes_istatus: bool,
    /// See [`Backend::generation`].
    pub generation: u64,
}

impl Facts {
    /// Returns the facts of the backend's VM as it is now.
    pub fn of<B: Backend + ?Sized>(backend: &B) -> Self {
        let counter = backend.counter();
        Self {
            vcpus: backend.vcpus(),
            cntfrq_hz: backend.cntfrq_hz(),
            frequency: counter.frequency(),
            namespace_ticks: counter.namespace_ticks(),
            abilities: backend.abilities(),
            nested: backend.nested(),
            vm_offset: backend.vm_offset(),
            computes_istatus: backend.computes_istatus(),
            generation: backend.generation(),
        }
    }

    /// Returns the VM as the target of a restore.
    #[must_use]
    pub const fn target(&self, registers: Registers) -> Target {
        let Self { vcpus, cntfrq_hz, namespace_ticks, abilities, vm_offset, generation, .. } = *self;
        Target { vcpus, registers, cntfrq_hz, abilities, opted_in: vm_offset.is_some(), namespace_ticks, generation }
    }
}

impl Target {
    /// Returns the backend's VM as it is now.
    pub fn of<B: Backend + ?Sized>(backend: &mut B) -> Result<Self, B::Error> {
        let registers = Registers::of(backend)?;
        Ok(Facts::of(backend).target(registers))
    }
}
