//! A look at a VM's clocks: whether they are where the VM, a report or a checkpoint says.

use crate::arch::arm64::{CTL_ISTATUS, Registers, Role, Timer, View, one_reg_id, view_of};
use crate::checkpoint::{Checkpoint, NotOneVm};
use crate::drive::backend::Facts;
use crate::drive::machine::{Failed, Io};
use crate::restore::{Report, RunState, State, Written};
use crate::time::{GuestCount, HostCount, Offset, OffsetInterval};
use alloc::vec::Vec;

/// Word on a guest's clock, besides what its VM remembers.
#[derive(Clone, Copy, Debug)]
pub enum Expected<'a> {
    /// None.
    Nothing,
    /// The report that the guest goes by since.
    Released(&'a Report),
    /// A checkpoint of it, which it may not be before.
    Saved(&'a Checkpoint),
}

/// Source of an expectation that a counter doesn't meet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Source {
    /// The offset that the VM has opted in with.
    VmOffset,
    /// The same counter on the vCPUs before.
    OtherVcpus,
    /// The report.
    Report,
}

/// Clock that isn't where it is expected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Mismatch {
    /// A counter of a vCPU has another offset.
    Counter {
        /// The vCPU.
        vcpu: usize,
        /// The counter.
        view: View,
        /// Source of the expectation.
        by: Source,
        /// The offset that it is to have.
        expected: OffsetInterval,
        /// The offset that it has.
        found: OffsetInterval,
    },
    /// A timer's condition isn't as its CVAL and its counter tell.
    Condition {
        /// The vCPU.
        vcpu: usize,
        /// The timer.
        timer: Timer,
        /// ISTATUS as KVM computes it.
        istatus: bool,
        /// CVAL of the timer.
        cval: u64,
        /// The lowest count that the counter can have had.
        count: GuestCount,
        /// Ticks above it that the counter can have had.
        width: u64,
    },
    /// A counter is before the checkpoint's.
    BeforeCheckpoint {
        /// The counter.
        view: View,
        /// The saved count.
        saved: GuestCount,
        /// The highest count that it can have now.
        found: GuestCount,
    },
}

impl Mismatch {
    /// Ticks by which the guest's clock is ahead of where it is expected, at least; negative where it is behind. `None`
    /// for a timer.
    #[must_use]
    pub const fn ahead_ticks(&self) -> Option<i128> {
        match self {
            Self::Counter { expected, found, .. } => {
                // A higher offset is a lower count.
                let behind = found.low.0.wrapping_sub(expected.low.0.wrapping_add(expected.width));
                let ahead = expected.low.0.wrapping_sub(found.low.0.wrapping_add(found.width));
                Some(if ahead <= behind { ahead as i128 } else { -(behind as i128) })
            }
            Self::Condition { .. } => None,
            Self::BeforeCheckpoint { saved, found, .. } => Some(-(saved.since(*found) as i128)),
        }
    }
}

/// Result of a look at a VM's clocks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified {
    /// State of the VM.
    pub state: State,
    /// The host's count at the end of the look.
    pub count: HostCount,
    /// Number of vCPUs that were looked at.
    pub vcpus: usize,
    /// The virtual counter's offset as all vCPUs' reads have it. `None` with EL2, where CNTVOFF_EL2 is in it, and where
    /// the vCPUs don't agree.
    pub virt: Option<OffsetInterval>,
    /// The physical counter's. `None` where KVM has no register of it, and where the vCPUs don't agree.
    pub phys: Option<OffsetInterval>,
    /// True if the timers' conditions were compared: KVM computes them (Linux up to 6.17), on 64 bits.
    pub conditions: bool,
    /// Clocks that aren't where they are expected.
    pub mismatches: Vec<Mismatch>,
}

/// Looks at the VM's clocks. `backlog` is what the guest is owed now, in ticks.
pub(crate) async fn verify<E>(
    io: &Io<'_, E>,
    facts: &Facts,
    state: &RunState,
    expected: Expected<'_>,
) -> Result<Result<Verified, NotOneVm>, Failed<E>> {
    io.glance().await?;
    let registers = io.list().await?;
    let mut found = Verified {
        state: state.state(),
        count: HostCount(0),
        vcpus: facts.vcpus,
        virt: None,
        phys: None,
        conditions: facts.computes_istatus && facts.abilities.counter_bits.is_none() && facts.vcpus > 0,
        mismatches: Vec::new(),
    };
    let views = [
        // CNTVOFF_EL2 is each vCPU's own.
        (View::Virtual, !facts.nested),
        (View::Physical, registers.has(Role::Count(View::Physical))),
    ];
    for (view, there) in views {
        let known = if there { offset_of(io, facts, view, &mut found.mismatches).await? } else { None };
        *(if view == View::Virtual { &mut found.virt } else { &mut found.phys }) = known;
    }
    if found.conditions {
        conditions(io, &registers, &mut found).await?;
    }
    found.count = io.sample().await?;
    match expected {
        Expected::Nothing => {}
        Expected::Released(report) => found.compare_with_report(report, state),
        Expected::Saved(checkpoint) => match checkpoint.only() {
            Ok(vm) => {
                let time = vm.time();
                // The guest goes on from its stop.
                let hidden = vm.hidden_ticks();
                let at_the_stop = |count: GuestCount| GuestCount(count.0.wrapping_sub(hidden));
                found.compare_with_saved([time.timeline, time.physical()].map(at_the_stop));
            }
            Err(error) => return Ok(Err(error)),
        },
    }
    Ok(Ok(found))
}

/// Reads a counter on every vCPU, and returns the offset that all reads allow; `None` where there is none.
async fn offset_of<E>(
    io: &Io<'_, E>,
    facts: &Facts,
    view: View,
    mismatches: &mut Vec<Mismatch>,
) -> Result<Option<OffsetInterval>, Failed<E>> {
    let (mut known, mut agree) = (None::<OffsetInterval>, true);
    for vcpu in 0..facts.vcpus {
        let found = io.bracket(vcpu, view).await?;
        let mut expect = |by, expected: OffsetInterval| {
            let met = expected.intersect(found);
            if met.is_none() {
                mismatches.push(Mismatch::Counter { vcpu, view, by, expected, found });
            }
            met
        };
        if let Some(offset) = facts.vm_offset {
            expect(Source::VmOffset, OffsetInterval::exact(offset));
        }
        let others = known.unwrap_or(found);
        if let Some(all) = others.intersect(found) {
            known = Some(all);
        } else {
            agree = false;
            if facts.vm_offset.is_none() {
                expect(Source::OtherVcpus, others);
            }
        }
    }
    Ok(known.filter(|_| agree))
}

/// Compares each timer's ISTATUS with its CVAL and its counter.
async fn conditions<E>(io: &Io<'_, E>, registers: &Registers, found: &mut Verified) -> Result<(), Failed<E>> {
    for timer in registers.timers() {
        let known = if view_of(timer) == View::Virtual { found.virt } else { found.phys };
        let Some(OffsetInterval { low, width }) = known else { continue };
        let cvals = io.read(one_reg_id(Role::Cval(timer))).await?;
        let before = io.sample().await?;
        let ctls = io.read(one_reg_id(Role::Ctl(timer))).await?;
        let after = io.sample().await?;
        let count = before.guest(Offset(low.0.wrapping_add(width)));
        let width = after.guest(low).since(count);
        for (vcpu, (cval, ctl)) in cvals.into_iter().zip(ctls).enumerate() {
            let istatus = ctl & CTL_ISTATUS != 0;
            let can_be = match count.0.checked_add(width) {
                // KVM compares unsigned (kvm_timer_pending and read_timer_ctl, arch/arm64/kvm/arch_timer.c).
                Some(latest) => {
                    if istatus {
                        cval <= latest
                    } else {
                        cval > count.0
                    }
                }
                // The counter passed 2^64.
                None => true,
            };
            if !can_be {
                found.mismatches.push(Mismatch::Condition { vcpu, timer, istatus, cval, count, width });
            }
        }
    }
    Ok(())
}

impl Verified {
    /// Offset of a counter as all vCPUs' reads have it.
    #[must_use]
    pub const fn offset(&self, view: View) -> Option<OffsetInterval> {
        match view {
            View::Virtual => self.virt,
            View::Physical => self.phys,
        }
    }

    /// The guest's counts at the end of the look can be this one and, above it, so many ticks more.
    #[must_use]
    pub fn counted(&self, view: View) -> Option<(GuestCount, u64)> {
        let OffsetInterval { low, width } = self.offset(view)?;
        Some((self.count.guest(Offset(low.0.wrapping_add(width))), width))
    }

    fn compare_with_report(&mut self, report: &Report, state: &RunState) {
        let (virt, phys) = match report.written {
            Written::Offset { last, .. } => (OffsetInterval::exact(last), Some(OffsetInterval::exact(last))),
            Written::ByValue { virt, phys } => (virt, phys),
        };
        // Each step that was paid back since has moved the counters forward: by a lower offset.
        let owed = state.backlog().map_or(0, |backlog| backlog.remaining_ticks.get());
        let paid = report.outcome.backlog_ticks.saturating_sub(owed);
        for (view, expected) in [(View::Virtual, Some(virt)), (View::Physical, phys)] {
            let Some((expected, found)) = expected.zip(self.offset(view)) else { continue };
            let expected = OffsetInterval { low: Offset(expected.low.0.wrapping_sub(paid)), ..expected };
            if expected.intersect(found).is_none() {
                self.mismatches.push(Mismatch::Counter { vcpu: 0, view, by: Source::Report, expected, found });
            }
        }
    }

    fn compare_with_saved(&mut self, saved: [GuestCount; 2]) {
        for (view, saved) in [View::Virtual, View::Physical].into_iter().zip(saved) {
            let Some((count, width)) = self.counted(view) else { continue };
            let found = GuestCount(count.0.wrapping_add(width));
            if found.since(saved).cast_signed() < 0 {
                self.mismatches.push(Mismatch::BeforeCheckpoint { view, saved, found });
            }
        }
    }
}
