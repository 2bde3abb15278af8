//! Save and restore of a VM's clocks on x86-64, as machines.
//!
//! KVM refuses nothing while a vCPU runs: a call on it waits. So no step looks whether the vCPUs are stopped, and each
//! value that is set is read back instead.

use crate::arch::x86_64::{IA32_TSC_ADJUST, IA32_TSC_DEADLINE, KVMCLOCK, SavedClocks, TSC_OFFSET, name, tsc_offset};
use crate::drive::machine::{Block, Bracket, Failed, Io, SavedRegister, What};
use crate::restore::{Late, Policy};
use crate::time::{Frequency, HostCount, Offset};
use alloc::vec::Vec;

/// Number of reads of kvmclock of which the narrowest counts.
const ROUNDS: usize = 8;

/// Number of times that kvmclock is set before it is accepted as it is.
const ATTEMPTS: u32 = 8;

/// Distance of kvmclock from where it is to be, in nanoseconds, that isn't worth another attempt.
const TOLERANCE_NS: u64 = 200;

/// Error of a save or a restore of clocks.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClocksError<E> {
    /// A call failed.
    #[error("{0}")]
    Call(E),
    /// A call on a register failed.
    #[error("vCPU {vcpu}: {}: {error}", name(*id))]
    Register {
        /// The vCPU.
        vcpu: usize,
        /// Id of the register.
        id: u64,
        /// The reason.
        error: E,
    },
    /// A register reads back another value than was written.
    #[error("vCPU {vcpu}: {} was written as {wrote:#x} and reads {read:#x}", name(*id))]
    ReadBack {
        /// The vCPU.
        vcpu: usize,
        /// Id of the register.
        id: u64,
        /// The written value.
        wrote: u64,
        /// The value read back.
        read: u64,
    },
    /// The vCPUs' counters differ by more than the guest has moved them.
    #[error(
        "vCPU {vcpu}: its TSC is offset by {found:#x} apart from the guest's own adjustment, and vCPU 0's by {first:#x}: \
         the guest's processors don't agree on the time"
    )]
    OffsetsDiffer {
        /// The vCPU.
        vcpu: usize,
        /// The base of vCPU 0.
        first: u64,
        /// The base of this one.
        found: u64,
    },
    /// The host's counter is behind the saved one.
    #[error("the TSC reads {now}, and read {saved} at the save: it isn't the same counter")]
    Backwards {
        /// The count at the save.
        saved: u64,
        /// The count at the restore.
        now: u64,
    },
    /// The target has another number of vCPUs.
    #[error("{saved} vCPUs were saved, and the VM has {there}")]
    Vcpus {
        /// The number saved.
        saved: usize,
        /// The target's number.
        there: usize,
    },
}

impl<E> From<Failed<E>> for ClocksError<E> {
    fn from(failed: Failed<E>) -> Self {
        match failed {
            Failed::Call(error) => Self::Call(error),
            Failed::Register { vcpu, id, error, .. } => Self::Register { vcpu, id, error },
            Failed::Differs { register: SavedRegister { vcpu, id, value, .. }, read } => {
                Self::ReadBack { vcpu, id, wrote: value, read }
            }
        }
    }
}

/// Result of a restore of clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RestoredClocks {
    /// The host's TSC from which the offset followed. The guest sees each tick after it.
    pub sample: HostCount,
    /// The VM's offset: the one of a vCPU whose guest never moved its TSC.
    pub offset: Offset,
    /// kvmclock's place.
    pub kvmclock: SetClock,
}

/// Place of a clock that was set by value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetClock {
    /// Least nanoseconds by which the clock is ahead of where it is to be.
    pub least_ns: i64,
    /// Most nanoseconds by which it is ahead.
    pub most_ns: i64,
    /// Number of times that it was set.
    pub attempts: u32,
}

impl SetClock {
    /// The longest possible distance from where the clock is to be, in nanoseconds.
    #[must_use]
    pub const fn farthest_ns(self) -> u64 {
        let (least, most) = (self.least_ns.unsigned_abs(), self.most_ns.unsigned_abs());
        if least > most { least } else { most }
    }
}

/// Saves the clocks of a VM whose vCPUs are stopped.
pub async fn save<E>(io: &Io<'_, E>, frequency: Frequency) -> Result<SavedClocks, ClocksError<E>> {
    let adjust = io.read(IA32_TSC_ADJUST).await?;
    let deadline = io.read(IA32_TSC_DEADLINE).await?;
    let offset = base(&io.read(TSC_OFFSET).await?, &adjust)?;
    let kvmclock = kvmclock(io).await?;
    // Last, so that as little guest time as possible lies after it.
    let count = io.sample().await?;
    Ok(SavedClocks {
        frequency,
        count,
        tsc: count.guest(offset),
        adjust,
        deadline,
        kvmclock_ns: kvmclock.value,
        kvmclock_tsc: kvmclock.before.guest(offset),
        kvmclock_width: kvmclock.after.since(kvmclock.before),
    })
}

/// Restores the clocks of a VM whose vCPUs are stopped and have all their other state, on the host of the save.
///
/// The local APICs come before this: a deadline is dropped by one that isn't in TSC-deadline mode. Nothing of a guest's
/// TSC may be written after it. The guest may run then.
pub async fn restore<'a, E>(
    io: &Io<'a, E>,
    saved: &'a SavedClocks,
    policy: Policy,
) -> Result<RestoredClocks, ClocksError<E>> {
    let there = io.read(TSC_OFFSET).await?.len();
    if there != saved.adjust.len() {
        return Err(ClocksError::Vcpus { saved: saved.adjust.len(), there });
    }
    let now = io.sample().await?;
    if saved.count.is_after(now) {
        return Err(ClocksError::Backwards { saved: saved.count.0, now: now.0 });
    }
    let missed = u128::from(now.since(saved.count));
    let late = Late { anchor: now, missed, cap: policy.at_once().cap(saved.frequency), saved: saved.tsc };
    io.write(column(IA32_TSC_ADJUST, &saved.adjust)).await?;
    // One sample for all, or the guest's processors would disagree by the time between two.
    let sample = io.set_late(What::VcpuOffsets { displacements: &saved.adjust }, late).await?;
    let offset = late.offset_at(sample);
    let offsets: Vec<u64> = saved.adjust.iter().map(|adjust| tsc_offset(offset, *adjust)).collect();
    io.read_back(column(TSC_OFFSET, &offsets)).await?;
    // After the offset, since KVM doesn't look at a deadline again when the offset moves.
    deadlines(io, saved, &offsets).await?;
    let kvmclock = set_kvmclock(io, saved, offset).await?;
    io.read_back(column(TSC_OFFSET, &offsets)).await?;
    Ok(RestoredClocks { sample, offset, kvmclock })
}

/// Returns the offset of a vCPU whose guest never moved its TSC: the same for all.
fn base<E>(offsets: &[u64], adjust: &[u64]) -> Result<Offset, ClocksError<E>> {
    // What the guest writes to its TSC or to IA32_TSC_ADJUST moves both by the same ticks.
    let mut bases = offsets.iter().zip(adjust).map(|(offset, adjust)| adjust.wrapping_sub(*offset));
    let first = bases.next().unwrap_or(0);
    match bases.enumerate().find(|(_, base)| *base != first) {
        Some((vcpu, found)) => Err(ClocksError::OffsetsDiffer { vcpu: vcpu + 1, first, found }),
        None => Ok(Offset(first)),
    }
}

/// Returns the values of a register, one a vCPU, as a block.
fn column(id: u64, values: &[u64]) -> Block<'static> {
    let registers = values.iter().enumerate();
    Block::listed(registers.map(|(vcpu, value)| SavedRegister { vcpu, id, value: *value, seen: u64::MAX }))
}

/// Writes the deadlines, and checks that each is armed, or is due and gone.
async fn deadlines<E>(io: &Io<'_, E>, saved: &SavedClocks, offsets: &[u64]) -> Result<(), ClocksError<E>> {
    let registers = saved.deadline.iter().enumerate();
    let unchecked =
        registers.map(|(vcpu, value)| SavedRegister { vcpu, id: IA32_TSC_DEADLINE, value: *value, seen: 0 });
    io.write(Block::listed(unchecked)).await?;
    let read = io.read(IA32_TSC_DEADLINE).await?;
    let now = io.sample().await?;
    for (vcpu, (&wrote, (&read, &offset))) in saved.deadline.iter().zip(read.iter().zip(offsets)).enumerate() {
        // It reads 0 once the timer's interrupt is on its way. One that is due and was dropped looks the same.
        let fired = read == 0 && now.after(offset).0 >= wrote;
        if read != wrote && !fired {
            return Err(ClocksError::ReadBack { vcpu, id: IA32_TSC_DEADLINE, wrote, read });
        }
    }
    Ok(())
}

/// Reads kvmclock, in as narrow a bracket as can be had.
async fn kvmclock<E>(io: &Io<'_, E>) -> Result<Bracket, Failed<E>> {
    let width = |read: Bracket| read.after.since(read.before);
    let mut narrowest = io.clock(0, KVMCLOCK).await?;
    for _ in 1..ROUNDS {
        if width(narrowest) == 0 {
            break;
        }
        let read = io.clock(0, KVMCLOCK).await?;
        if width(read) < width(narrowest) {
            narrowest = read;
        }
    }
    Ok(narrowest)
}

/// Sets kvmclock until it goes with the TSC again: set, measured, and set again by what it was off.
async fn set_kvmclock<E>(io: &Io<'_, E>, saved: &SavedClocks, offset: Offset) -> Result<SetClock, ClocksError<E>> {
    let wanted = |count: HostCount| saved.kvmclock_at(count.guest(offset));
    // The time from the sample until the kernel uses the value, learnt from the last attempt.
    let mut lead = 0_u64;
    let mut attempts = 0;
    loop {
        attempts += 1;
        let value = wanted(io.sample().await?).wrapping_add(lead);
        io.set_clock(KVMCLOCK, value).await?;
        let read = kvmclock(io).await?;
        let least = read.value.wrapping_sub(wanted(read.after));
        let most = read.value.wrapping_sub(wanted(read.before));
        let set = SetClock { least_ns: least.cast_signed(), most_ns: most.cast_signed(), attempts };
        // The middle of what is possible: no attempt can be judged by more than the bracket.
        let off = set.least_ns.midpoint(set.most_ns);
        if attempts == ATTEMPTS || off.unsigned_abs() <= TOLERANCE_NS {
            return Ok(set);
        }
        lead = lead.wrapping_sub(off.cast_unsigned());
    }
}
