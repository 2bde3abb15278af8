//! Capture of a checkpoint from a stopped VM.

use crate::arch::arm64::{Registers, Role, View, one_reg_id};
use crate::checkpoint::{Checkpoint, CtlColumn, RegisterColumn, TimerColumns};
use crate::drive::backend::Backend;
use crate::drive::measure::measure;
use crate::time::{Offset, OffsetInterval};
use alloc::vec::Vec;

/// Part of the VM's timers that a checkpoint holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimerCapture {
    /// All timers: the VM is to be rebuilt elsewhere.
    Saved,
    /// No timers: they stay where they are, as in a pause in place.
    Kept,
}

/// Saves the VM's guest time: its counters at one instant, and its timers.
///
/// The counters of a VM that has opted in are computed from its offset, and exact. Otherwise they are read, and as
/// uncertain as the reads' brackets are wide ([`OffsetInterval::best`]). In a guest with EL2 the two counters have one
/// offset, and differ by CNTVOFF_EL2, which is saved for each vCPU.
pub fn capture<B: Backend + ?Sized>(backend: &mut B, timers: TimerCapture) -> Result<Checkpoint, B::Error> {
    let registers = Registers::of(backend)?;
    let opted_in = backend.vm_offset();
    let (virt, phys) = match opted_in {
        Some(offset) => (OffsetInterval::exact(offset), OffsetInterval::exact(offset)),
        None if registers.has(Role::Cntvoff) => {
            let both = measure(backend, View::Physical)?;
            (both, both)
        }
        None if registers.has(Role::Count(View::Physical)) => {
            (measure(backend, View::Virtual)?, measure(backend, View::Physical)?)
        }
        // A kernel without the physical counter's registers can't have moved it: it is the host's.
        None => (measure(backend, View::Virtual)?, OffsetInterval::exact(Offset(0))),
    };
    let saved = match timers {
        TimerCapture::Saved => save(&registers, backend)?,
        TimerCapture::Kept => Saved::default(),
    };
    // Last, so that as little guest time as possible lies after it.
    let host = backend.counter().stamp();
    Ok(Checkpoint {
        cntfrq_hz: backend.cntfrq_hz(),
        cntvct: host.count.guest(virt.best()),
        cntpct: host.count.guest(phys.best()),
        opted_in: opted_in.is_some(),
        width_ticks: virt.width.max(phys.width),
        host,
        stopped_at: None,
        backlog: None,
        vcpus: backend.vcpus(),
        cntvoff: saved.cntvoff,
        timers: saved.timers,
        others: saved.others,
        unknown: Vec::new(),
    })
}

/// Registers of each vCPU.
#[derive(Default)]
struct Saved {
    cntvoff: Option<Vec<u64>>,
    timers: Vec<TimerColumns>,
    others: Vec<RegisterColumn>,
}

fn save<B: Backend + ?Sized>(registers: &Registers, backend: &mut B) -> Result<Saved, B::Error> {
    let mut column = |id| {
        let vcpus = 0..backend.vcpus();
        vcpus.map(|vcpu| backend.get_one_reg(vcpu, id)).collect::<Result<Vec<_>, _>>()
    };
    let mut saved = Saved::default();
    for timer in registers.timers() {
        let cval = column(one_reg_id(Role::Cval(timer)))?;
        let ctl = column(one_reg_id(Role::Ctl(timer)))?;
        saved.timers.push(TimerColumns { timer, cval, ctl: CtlColumn::new(ctl) });
    }
    if registers.has(Role::Cntvoff) {
        saved.cntvoff = Some(column(one_reg_id(Role::Cntvoff))?);
    }
    for id in registers.others() {
        saved.others.push(RegisterColumn { id, values: column(id)? });
    }
    Ok(saved)
}
