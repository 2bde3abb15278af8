//! Taking a checkpoint of a stopped VM.

use crate::backend::Backend;
use crate::checkpoint::{Checkpoint, CtlColumn, TimerColumns};
use crate::counter::HostCount;
use crate::measure::{OffsetInterval, measure};
use crate::sysreg::{self, Role, View};
use crate::timer::Timer;
use crate::vm::EL1_TIMERS;
use alloc::vec::Vec;

/// What a checkpoint holds of the VM's timers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timers {
    /// All of them: the VM is to be rebuilt elsewhere.
    Saved,
    /// None: they stay where they are, as in a pause in place.
    Kept,
}

/// Saves the VM's guest time: its counters at one instant, and its timers.
///
/// An owned VM's counters are computed from its offset and exact. Otherwise they are read, and are as sure as the reads'
/// brackets are narrow ([`OffsetInterval::best`]).
pub fn capture<B: Backend + ?Sized>(
    backend: &mut B,
    timers: Timers,
    stopped_at: Option<HostCount>,
) -> Result<Checkpoint, B::Error> {
    let owned = backend.owned_offset();
    let (virt, phys) = match owned {
        Some(offset) => (OffsetInterval::exact(offset), OffsetInterval::exact(offset)),
        None if backend.abilities().physical_timer => {
            (measure(backend, View::Virtual)?, measure(backend, View::Physical)?)
        }
        // Without its registers the physical counter can't have been moved: it is the host's.
        None => (measure(backend, View::Virtual)?, OffsetInterval::exact(crate::counter::Offset(0))),
    };
    let columns = match timers {
        Timers::Saved => save_timers(backend)?,
        Timers::Kept => Vec::new(),
    };
    // Last, so that as little guest time as possible lies after it.
    let host = backend.counter().cross_timestamp();
    Ok(Checkpoint {
        cntfrq_hz: backend.cntfrq_hz(),
        cntvct: host.count.guest(virt.best()),
        cntpct: host.count.guest(phys.best()),
        owned: owned.is_some(),
        width_ticks: virt.width.max(phys.width),
        stopped_at: stopped_at.map(|count| count.0),
        vcpus: backend.vcpus(),
        cntvoff: None,
        timers: columns,
        unknown: Vec::new(),
        host,
    })
}

fn save_timers<B: Backend + ?Sized>(backend: &mut B) -> Result<Vec<TimerColumns>, B::Error> {
    let present = EL1_TIMERS.iter().filter(|timer| **timer != Timer::Ptimer || backend.abilities().physical_timer);
    let mut columns = Vec::new();
    for timer in present.copied().collect::<Vec<_>>() {
        let mut cval = Vec::with_capacity(backend.vcpus());
        let mut ctl = Vec::with_capacity(backend.vcpus());
        for vcpu in 0..backend.vcpus() {
            cval.push(backend.get_one_reg(vcpu, sysreg::one_reg_id(Role::Cval(timer)))?);
            ctl.push(backend.get_one_reg(vcpu, sysreg::one_reg_id(Role::Ctl(timer)))?);
        }
        columns.push(TimerColumns { timer, cval, ctl: CtlColumn::new(ctl) });
    }
    Ok(columns)
}
