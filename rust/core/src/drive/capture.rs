//! Capture of a stopped VM's guest time, and of its registers.

use crate::arch::RegId;
use crate::arch::arm64::{Registers, Role, View};
use crate::checkpoint::{GuestTime, MAX_VM_VCPUS};
use crate::drive::backend::Facts;
use crate::drive::machine::{Failed, Io};
use crate::drive::measure::measure;
use crate::time::{Offset, OffsetInterval, Stamp};
use alloc::vec::Vec;
use core::num::NonZeroU32;

/// Returns the VM's guest time at one instant, apart from its registers.
///
/// The counters of a VM that has opted in are computed from its offset, and exact. Otherwise they are read, and as
/// uncertain as the reads' brackets are wide ([`OffsetInterval::best`]). In a guest with EL2 the two counters have one
/// offset, and differ by CNTVOFF_EL2, which is saved for each vCPU.
pub async fn capture<E>(io: &Io<'_, E>, facts: &Facts, registers: &Registers) -> Result<(Stamp, GuestTime), Failed<E>> {
    let (virt, phys) = match facts.vm_offset {
        Some(offset) => (OffsetInterval::exact(offset), OffsetInterval::exact(offset)),
        None if registers.has(Role::Cntvoff) => {
            let both = measure(io, View::Physical).await?;
            (both, both)
        }
        None if registers.has(Role::Count(View::Physical)) => {
            (measure(io, View::Virtual).await?, measure(io, View::Physical).await?)
        }
        // A kernel without the physical counter's registers can't have moved it: it is the host's.
        None => (measure(io, View::Virtual).await?, OffsetInterval::exact(Offset(0))),
    };
    // Nothing else depends on them, and not every VMM can tell.
    let interrupts = io.interrupts(registers).await.unwrap_or_default();
    let vcpus = u16::try_from(facts.vcpus).unwrap_or(MAX_VM_VCPUS + 1);
    // Every counter of a VM has a frequency.
    let frequency_hz = NonZeroU32::new(facts.cntfrq_hz).unwrap_or(NonZeroU32::MIN);
    // Last, so that as little guest time as possible lies after it.
    let stamp = io.stamp().await?;
    let now = stamp.count.own(facts.namespace_ticks);
    let timeline = now.guest(virt.best());
    let time = GuestTime {
        opted_in: facts.vm_offset.is_some(),
        virtual_width_ticks: virt.width,
        physical_displacement_ticks: now.guest(phys.best()).since(timeline),
        physical_width_ticks: phys.width,
        interrupts,
        ..GuestTime::opted_in(vcpus, frequency_hz, timeline)
    };
    Ok((stamp, time))
}

/// Returns the registers that a checkpoint holds, each with one value a vCPU.
pub async fn capture_registers<E>(io: &Io<'_, E>, registers: &Registers) -> Result<Vec<(RegId, Vec<u64>)>, Failed<E>> {
    let mut columns = Vec::new();
    for id in registers.saved() {
        columns.push((id, io.read(id.0).await?));
    }
    Ok(columns)
}
