//! The driver of a machine over a VM's primitive calls: loops over a block's registers.

use crate::arch::arm64::Registers;
use crate::drive::backend::{Backend, await_stopped, retry_busy};
use crate::drive::machine::{Answer, Block, Bracket, Done, Failed, Io, Machine, Op, SavedRegister, What};
use core::future::Future;

/// Runs an operation to its end.
///
/// # Panics
/// At a step that no operation on arm64 asks for: see [`carry_out`]. Otherwise never: each step gets the answer that it
/// asks for, and a machine without a next step has ended.
pub fn drive<'a, B, T: 'a, F>(backend: &mut B, begin: impl FnOnce(Io<'a, B::Error>) -> F) -> T
where
    B: Backend + ?Sized,
    B::Error: 'a,
    F: Future<Output = T> + 'a,
{
    Machine::new(begin).run(|op| carry_out(&op, backend))
}

/// Carries out a step.
///
/// # Panics
/// At a step of another architecture, or of many VMs: a [`Backend`] is one VM, has one offset, and no clock beside its
/// counters.
pub fn carry_out<B: Backend + ?Sized>(op: &Op<'_>, backend: &mut B) -> Answer<B::Error> {
    match op {
        Op::Look => await_stopped(backend).map(|()| Done::Ok).map_err(Failed::Call),
        Op::Glance => backend.stopped().map(|()| Done::Ok).map_err(Failed::Call),
        Op::Sample => Ok(Done::Count(backend.counter().count())),
        Op::Stamp => Ok(Done::Stamp(backend.counter().stamp())),
        Op::List => Registers::of(backend).map(Done::List).map_err(Failed::Call),
        Op::Interrupts(registers) => backend.interrupts(registers).map(Done::Interrupts).map_err(Failed::Call),
        Op::Forwards { vcpu, timer } => {
            let forwards = retry_busy(backend, |backend| backend.forwards(*vcpu, *timer));
            forwards.map(Done::Forwards).map_err(Failed::Call)
        }
        Op::Read { id } => {
            let values = (0..backend.vcpus()).map(|vcpu| read(backend, vcpu, *id));
            values.collect::<Result<_, _>>().map(Done::Values)
        }
        Op::Write(block) => each(block, |register| {
            let SavedRegister { vcpu, id, value, .. } = register;
            let written = backend.set_one_reg(vcpu, id, value);
            written.map_err(|error| Failed::Register { vcpu, id, reading: false, error })?;
            register.check(read(backend, vcpu, id)?)
        }),
        Op::ReadBack(block) => each(block, |register| register.check(read(backend, register.vcpu, register.id)?)),
        Op::Bracket { vcpu, id } => bracket(backend, *vcpu, *id).map(Done::Bracket).map_err(Failed::Call),
        Op::SetOffset(offset) => {
            let written = retry_busy(backend, |backend| backend.set_counter_offset(*offset));
            written.map(|()| Done::Ok).map_err(Failed::Call)
        }
        Op::SetLate(What::VmOffset, late) => {
            let written = retry_busy(backend, |backend| {
                // Under Freeze the guest sees every tick from here on.
                let now = backend.counter().count();
                backend.set_counter_offset(late.offset_at(now)).map(|()| now)
            });
            written.map(Done::Count).map_err(Failed::Call)
        }
        Op::SetLate(What::Count { id }, late) => {
            let now = backend.counter().count();
            let written = backend.set_one_reg(0, *id, late.guest_at(now).0);
            written.map(|()| Done::Count(now)).map_err(Failed::Call)
        }
        Op::SetLate(What::VcpuOffsets { .. }, _) | Op::SetClock { .. } => {
            unreachable!("arm64 has one offset for a VM, and no clock beside its counters")
        }
        Op::SetEachLate(_) => unreachable!("a backend is one VM"),
    }
}

fn each<E>(block: &Block<'_>, step: impl FnMut(SavedRegister) -> Result<(), Failed<E>>) -> Answer<E> {
    block.registers().try_for_each(step).map(|()| Done::Ok)
}

fn read<B: Backend + ?Sized>(backend: &mut B, vcpu: usize, id: u64) -> Result<u64, Failed<B::Error>> {
    backend.get_one_reg(vcpu, id).map_err(|error| Failed::Register { vcpu, id, reading: true, error })
}

/// Reads a count of a vCPU between two reads of the host's counter.
fn bracket<B: Backend + ?Sized>(backend: &mut B, vcpu: usize, id: u64) -> Result<Bracket, B::Error> {
    let before = backend.counter().count();
    let value = backend.get_one_reg(vcpu, id)?;
    Ok(Bracket { before, value, after: backend.counter().count() })
}
