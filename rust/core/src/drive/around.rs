//! A backend around a backend: whatever sees each primitive call of an operation, and may change its answer.
//!
//! Everything above [`Backend`] is generic over it, so an operation that is watched, or under faults, is the one that
//! runs on KVM.

use crate::arch::Abilities;
use crate::arch::arm64::{Registers, Timer};
use crate::checkpoint::Interrupts;
use crate::drive::backend::Backend;
use crate::drive::call::{Call, CallKind, Verb};
use crate::restore::Written;
use crate::time::{Counter, Offset};
use alloc::vec::Vec;

/// Answer of a primitive call that succeeded.
pub trait Answer: Sized {
    /// Returns the value that a record of the call shows, if the answer has one.
    fn value(&self) -> Option<u64>;

    /// Returns the answer with these bits of its value flipped; a list has none.
    #[must_use]
    fn flipped(self, _bits: u64) -> Self {
        self
    }

    /// Returns the answer of a write that wasn't made, to whoever believes it was; `None` for what isn't a write.
    #[must_use]
    fn of_a_dropped_write() -> Option<Self> {
        None
    }
}

impl Answer for () {
    fn value(&self) -> Option<u64> {
        None
    }

    fn of_a_dropped_write() -> Option<Self> {
        Some(())
    }
}

impl Answer for u64 {
    fn value(&self) -> Option<u64> {
        Some(*self)
    }

    fn flipped(self, bits: u64) -> Self {
        self ^ bits
    }
}

impl Answer for Vec<u64> {
    fn value(&self) -> Option<u64> {
        Some(self.len() as u64)
    }
}

impl Answer for Option<Interrupts> {
    fn value(&self) -> Option<u64> {
        None
    }
}

impl Answer for Option<bool> {
    fn value(&self) -> Option<u64> {
        self.map(u64::from)
    }
}

/// Whatever stands around each primitive call.
pub trait Around<E> {
    /// Error of a call, as those above see it.
    type Error;

    /// Begins an operation, or with `None` a call of the VMM's own.
    fn begin(&mut self, verb: Option<Verb>) -> Result<(), Self::Error>;

    /// Refuses every operation if there is nobody left to do it.
    fn alive(&self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Makes the call, or not, and answers it. `wrote` is the value that it writes.
    fn call<A: Answer>(
        &mut self,
        call: Call,
        wrote: Option<u64>,
        make: impl FnOnce() -> Result<A, E>,
    ) -> Result<A, Self::Error>;

    /// See [`Backend::retries`].
    fn retries(&mut self, backend: &mut dyn Backend<Error = E>, error: &Self::Error, attempt: u32) -> bool;
}

/// A backend and whatever stands around its calls.
#[expect(missing_debug_implementations, reason = "a backend needn't have one")]
pub struct Surrounded<'a, E, W> {
    /// The VM.
    pub backend: &'a mut dyn Backend<Error = E>,
    /// Whatever stands around its calls.
    pub around: &'a mut W,
}

impl<E, W: Around<E>> Backend for Surrounded<'_, E, W> {
    type Error = W::Error;

    fn counter(&self) -> &dyn Counter {
        self.backend.counter()
    }

    fn cntfrq_hz(&self) -> u32 {
        self.backend.cntfrq_hz()
    }

    fn vcpus(&self) -> usize {
        self.backend.vcpus()
    }

    fn abilities(&self) -> Abilities {
        self.backend.abilities()
    }

    fn reg_list(&mut self, vcpu: usize) -> Result<Vec<u64>, W::Error> {
        let call = Call { kind: CallKind::RegList, vcpu: Some(vcpu), reg: None };
        self.around.call(call, None, || self.backend.reg_list(vcpu))
    }

    fn nested(&self) -> bool {
        self.backend.nested()
    }

    fn vm_offset(&self) -> Option<Offset> {
        self.backend.vm_offset()
    }

    fn computes_istatus(&self) -> bool {
        self.backend.computes_istatus()
    }

    fn interrupts(&mut self, registers: &Registers) -> Result<Option<Interrupts>, W::Error> {
        self.around.call(Call::on_vm(CallKind::Interrupts), None, || self.backend.interrupts(registers))
    }

    fn forwards(&mut self, vcpu: usize, timer: Timer) -> Result<Option<bool>, W::Error> {
        self.around.call(Call::on_vm(CallKind::Forwards), None, || self.backend.forwards(vcpu, timer))
    }

    fn generation(&self) -> u64 {
        self.backend.generation()
    }

    fn stopped(&mut self) -> Result<(), W::Error> {
        self.around.call(Call::on_vm(CallKind::Stopped), None, || self.backend.stopped())
    }

    fn get_one_reg(&mut self, vcpu: usize, id: u64) -> Result<u64, W::Error> {
        self.around.call(Call::on_reg(CallKind::GetOneReg, vcpu, id), None, || self.backend.get_one_reg(vcpu, id))
    }

    fn set_one_reg(&mut self, vcpu: usize, id: u64, value: u64) -> Result<(), W::Error> {
        let call = Call::on_reg(CallKind::SetOneReg, vcpu, id);
        self.around.call(call, Some(value), || self.backend.set_one_reg(vcpu, id, value))
    }

    fn set_counter_offset(&mut self, offset: Offset) -> Result<(), W::Error> {
        let call = Call::on_vm(CallKind::SetCounterOffset);
        self.around.call(call, Some(offset.0), || self.backend.set_counter_offset(offset))
    }

    fn retries(&mut self, error: &W::Error, attempt: u32) -> bool {
        self.around.retries(self.backend, error, attempt)
    }

    fn restored(&mut self, written: Written) {
        self.backend.restored(written);
    }
}
