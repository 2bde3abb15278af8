//! Diagnostics that hold for a plan.

use crate::arch::arm64::{CTL_ENABLE, Role, Timer};
use crate::checkpoint::{Held, SavedVm};
use crate::guest::Reached;
use crate::restore::diagnostics::{Diagnostic, Side};
use crate::restore::plan::{Method, Plan};
use crate::restore::policy::{Repay, Rest, Views};
use crate::restore::saved::Saved;
use crate::restore::target::Target;
use crate::time::{Intent, Offset, Quality};
use alloc::vec::Vec;

/// Largest step that a Linux guest is likely to tolerate: half of a soft lockup's threshold.
const LARGE_STEP_NS: u64 = 10_000_000_000;

/// Assumptions of the error bound.
pub(crate) fn assumptions(plan: &Plan, saved: &Saved<'_>) -> Vec<Diagnostic> {
    let mut assumptions = Vec::new();
    if !saved.time.opted_in {
        assumptions.push(Diagnostic::CountersStoodStill);
    }
    if plan.request.policy.is_freeze() {
        return assumptions;
    }
    if plan.request.elapsed_ns.is_some() {
        assumptions.extend([Diagnostic::ElapsedGiven, Diagnostic::NominalRateHere]);
    } else if plan.same_counter {
        assumptions.push(Diagnostic::SameCounter);
    } else {
        match plan.request.assume_error_ns {
            Some(_) => assumptions.push(Diagnostic::WallClocksAgree),
            None => assumptions.extend(
                [(Side::Saved, plan.saved_at()), (Side::Here, &plan.sample)]
                    .map(|(side, stamp)| Diagnostic::WallClockWithin { side, bound: stamp.vouched() }),
            ),
        }
        assumptions.push(Diagnostic::NotSmeared);
        if plan.saved_at().tai_offset_s.is_none() || plan.sample.tai_offset_s.is_none() {
            assumptions.push(Diagnostic::NoLeapSecond);
        }
    }
    assumptions
}

/// Parts of the guest's time that can't be preserved.
pub(crate) fn unsupported(plan: &Plan, saved: &Saved<'_>, target: &Target) -> Vec<Diagnostic> {
    let mut unsupported = Vec::new();
    if plan.method == Method::VirtualOnly {
        unsupported.push(Diagnostic::OnlyVirtual);
    }
    if plan.request.views == Views::AdoptVirtual && saved.time.physical_displacement_ticks != 0 {
        let ticks = saved.time.timeline.since(saved.time.physical()).cast_signed();
        unsupported.push(Diagnostic::PhysicalJumps { ticks });
    }
    let missing = saved.vm.as_ref().is_some_and(|vm| vm.register(Held::Cval(Timer::Ptimer)).is_none());
    if plan.method != Method::VirtualOnly && target.registers.has(Role::Cval(Timer::Ptimer)) && missing {
        unsupported.push(Diagnostic::PhysicalTimerMissing);
    }
    unsupported
}

/// Returns whether the physical counter gets an offset that the hardware may not be able to apply.
fn traps(plan: &Plan, target: &Target) -> bool {
    let moves = plan.method != Method::VirtualOnly && plan.as_of.physical_offset() != Offset(0);
    moves && target.abilities.physical_offset_untrapped != Some(true)
}

/// Parts of the guest that get slower.
pub(crate) fn degraded(plan: &Plan, target: &Target) -> Vec<Diagnostic> {
    traps(plan, target).then_some(Diagnostic::PhysicalTraps).into_iter().collect()
}

/// Everything else that the caller should know.
pub(crate) fn warnings(plan: &Plan, saved: &Saved<'_>, target: &Target) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    match plan.method {
        // A checkpoint of a VM that had opted in is the word for it; adopting a view is one that is easily missed.
        Method::Offset if !target.opted_in && !saved.time.opted_in => warnings.push(Diagnostic::OptsIn),
        Method::ByValue => warnings.push(Diagnostic::SetByValue),
        Method::Offset | Method::VirtualOnly => {}
    }
    if plan.method != Method::Offset {
        warnings.push(Diagnostic::LostByAnotherVcpu);
    }
    if traps(plan, target) {
        warnings.extend(saved.vm.iter().flat_map(|vm| misfires(plan, vm)));
    }
    let (bits, stated) = target.abilities.counter_bits.map_or((56, false), |bits| (bits, true));
    let reaches = |value: u64| bits < 64 && value >> bits != 0;
    let offset = plan.as_of.virtual_offset().0;
    if reaches(plan.as_of.cntvct.0) || reaches(plan.as_of.cntpct.0) || reaches(offset.min(offset.wrapping_neg())) {
        warnings.push(Diagnostic::ReachesWidth { bits, stated });
    }
    if plan.as_of.capped {
        warnings.push(Diagnostic::Capped { added_ticks: plan.as_of.added_ticks });
    }
    warnings.extend(of_the_jump(plan));
    warnings.extend(of_the_clocks(plan));
    warnings.extend(of_the_backlog(plan));
    warnings.extend(saved.vm.iter().flat_map(SavedVm::unknowns).map(Diagnostic::PassedOn));
    warnings
}

fn of_the_jump(plan: &Plan) -> Option<Diagnostic> {
    let felt: Vec<_> = plan.limits().filter(|(_, reached)| *reached != Reached::No).map(|(limit, _)| limit).collect();
    (!felt.is_empty()).then(|| Diagnostic::LargeJump { jump_ns: plan.jump_ns(), limits: felt })
}

fn of_the_clocks(plan: &Plan) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    if plan.request.same_counter.is_none() && plan.evidence.contradicted(plan.sample.source) {
        warnings.push(Diagnostic::WallClockContradicts);
    }
    if plan.request.intent == Some(Intent::LiveUpdate) && !plan.same_counter {
        warnings.push(Diagnostic::LiveUpdateElsewhere);
    }
    if plan.by_wall_clocks() && plan.request.assume_error_ns.is_none() {
        for (side, stamp) in [(Side::Saved, plan.saved_at()), (Side::Here, &plan.sample)] {
            match stamp.vouched() {
                Ok(sync) if sync.quality == Quality::KernelUnverified => {
                    warnings.push(Diagnostic::KernelUnverified { side, max_error_ns: sync.max_error_ns });
                }
                Ok(_) if stamp.synchronized == Some(false) => warnings.push(Diagnostic::Unsynchronized { side }),
                _ => {}
            }
        }
    }
    warnings
}

fn of_the_backlog(plan: &Plan) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    let Some(backlog) = plan.backlog(&plan.as_of) else { return warnings };
    if plan.method != Method::Offset {
        warnings.push(Diagnostic::BacklogByValue);
    }
    if let Rest::Repay(Repay { within_ns, .. }) = plan.request.policy.rest() {
        warnings.extend(plan.missed(within_ns).map(Diagnostic::BacklogLate));
    }
    if backlog.step_ns.get() >= LARGE_STEP_NS {
        warnings.push(Diagnostic::LargeStep { step_ns: backlog.step_ns.get() });
    }
    let rate_permille = backlog.rate_permille();
    if rate_permille > 2000 {
        warnings.push(Diagnostic::FastCatchUp { rate_permille });
    }
    warnings
}

/// Enabled physical timers whose deadline the kernel miscomputes if it has to trap them.
///
/// Before Linux 7.3 it programs CVAL + offset modulo 2^64 (`timer_apply_offset`). An offset of more than 2^63 means
/// that the guest is ahead of its host, and the sum is right unless it leaves [0, 2^64).
fn misfires(plan: &Plan, vm: &SavedVm<'_>) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    let offset = plan.as_of.physical_offset().0.cast_signed();
    for saved in vm.timers().filter(|saved| saved.timer == Timer::Ptimer) {
        for (vcpu, cval) in saved.cval.iter().enumerate() {
            let enabled = saved.ctl.get(vcpu).is_some_and(|ctl| ctl & CTL_ENABLE != 0);
            if enabled && cval.checked_add_signed(offset).is_none() {
                warnings.push(Diagnostic::PhysicalTimerMisfires { vcpu, cval, offset });
            }
        }
    }
    warnings
}
