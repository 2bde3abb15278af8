//! Status of a checkpoint's timers at an instant: lines that are high, deadlines that passed while the guest didn't
//! run, and interrupts pending in a saved vGIC that no line accounts for.

use crate::arch::arm64::{CTL_ENABLE, IrqIds, Offsets, Timer, timer, view_of};
use crate::checkpoint::{Held, SavedTimer, SavedVm};
use crate::time::{GuestCount, HostCount, Offset};
use alloc::vec::Vec;

/// One timer of one vCPU at an instant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimerStatus {
    /// The timer's vCPU.
    pub vcpu: usize,
    /// The timer.
    pub timer: Timer,
    /// CTL as it was saved, without ISTATUS.
    pub ctl: u64,
    /// CVAL.
    pub cval: u64,
    /// Value of the timer's counter on this vCPU.
    pub count: GuestCount,
    /// Level that the interrupt line has to have.
    pub line: bool,
    /// Ticks since the deadline of a timer that is enabled and has reached it, masked or not.
    pub overdue_ticks: Option<u64>,
    /// True if the timer is enabled, and its deadline lies between the checkpoint and the instant.
    pub passed_in_pause: bool,
}

/// Returns a VM's timers at the checkpoint's instant, vCPU by vCPU, in the timers' order.
pub fn saved(vm: &SavedVm<'_>) -> impl Iterator<Item = TimerStatus> {
    let (count, offsets) = vm.instant();
    statuses(vm, count, offsets, 0)
}

/// Returns the VM's timers when the host's counter reads `now`, under these offsets, with CVALs moved by
/// `cval_shift`.
pub(super) fn statuses(
    vm: &SavedVm<'_>,
    now: HostCount,
    offsets: Offsets,
    cval_shift: u64,
) -> impl Iterator<Item = TimerStatus> {
    let (saved_count, saved_offsets) = vm.instant();
    // Nothing that happened after the stop was seen by the guest.
    let saved_count = HostCount(saved_count.0.wrapping_sub(vm.hidden_ticks()));
    let cntvoff = vm.register(Held::Cntvoff);
    let timers: Vec<SavedTimer<'_>> = vm.timers().collect();
    let status = move |vcpu: usize, timer, ctl: u64, saved_cval: u64, cntvoff: Option<Offset>| {
        let cval = timer::moved_cval(saved_cval, cval_shift);
        let at = |count: HostCount, vm: Offsets| count.guest(vm.on_vcpu(cntvoff).of(view_of(timer)));
        let (before, count) = (at(saved_count, saved_offsets), at(now, offsets));
        // With ENABLE clear the condition isn't met, whatever the counter reads (Arm ARM DDI 0487,
        // CNTV_CTL_EL0.ISTATUS).
        let reached = |cval, count| ctl & CTL_ENABLE != 0 && timer::condition_met(cval, count);
        TimerStatus {
            vcpu,
            timer,
            ctl,
            cval,
            count,
            line: timer::line(ctl, cval, count),
            overdue_ticks: reached(cval, count).then(|| count.since(GuestCount(cval))),
            passed_in_pause: reached(cval, count) && !reached(saved_cval, before),
        }
    };
    (0..vm.vcpus()).flat_map(move |vcpu| {
        let cntvoff = cntvoff.as_ref().and_then(|column| column.get(vcpu)).map(Offset);
        let of_vcpu =
            timers.iter().filter_map(move |saved| Some((saved.timer, saved.ctl.get(vcpu)?, saved.cval.get(vcpu)?)));
        of_vcpu.map(move |(timer, ctl, cval)| status(vcpu, timer, ctl, cval, cntvoff)).collect::<Vec<_>>()
    })
}

/// A timer's interrupt whose pending latch and line differ.
///
/// A PPI of KVM's is level-triggered, and pending if its latch is set or its line is high (`irq_is_pending`,
/// arch/arm64/kvm/vgic/vgic.h). So the two mismatches have different effects:
/// - **the latch is set, and the line is low**: the guest takes one interrupt that no timer accounts for. Taking it
///   clears the latch.
/// - **the line is high, and the latch is clear**: KVM loses nothing, since it raises the line when the vCPU is next
///   loaded (`kvm_timer_vcpu_load`, arch/arm64/kvm/arch_timer.c). An interrupt controller in user space has to raise it
///   itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LatchMismatch {
    /// The timer's vCPU.
    pub vcpu: usize,
    /// The timer.
    pub timer: Timer,
    /// The timer's interrupt id.
    pub irq: u8,
    /// Level that the line has to have.
    pub line: bool,
    /// State of the pending latch.
    pub pending: bool,
}

/// Returns the timers whose latch differs from their line. `pending` is the GICR_ISPENDR0 of each vCPU; a vCPU past its
/// end is skipped.
pub fn latch_mismatches(
    statuses: impl Iterator<Item = TimerStatus>,
    pending: &[u32],
    irqs: &IrqIds,
) -> impl Iterator<Item = LatchMismatch> {
    statuses.filter_map(|TimerStatus { vcpu, timer, line, .. }| {
        let irq = irqs.of(timer);
        let pending = pending.get(vcpu)? >> irq & 1 != 0;
        (pending != line).then_some(LatchMismatch { vcpu, timer, irq, line, pending })
    })
}
