//! Diagnostics that hold for a plan.

use crate::arch::arm64::{CTL_ENABLE, Role, Timer};
use crate::checkpoint::{Held, SavedVm};
use crate::guest::Reached;
use crate::restore::diagnostics::{Diagnostic, Side};
use crate::restore::plan::{Method, Outcome, Plan};
use crate::restore::policy::Views;
use crate::restore::saved::Saved;
use crate::restore::target::Target;
use crate::time::{Elapsed, ElapsedBy, Evidence, Intent, NS_PER_S, Offset, Quality, Sleep, Stamp, evidence};
use alloc::vec::Vec;

/// Assumptions of the error bound.
pub(crate) fn assumptions(plan: &Plan, saved: &Saved<'_>) -> Vec<Diagnostic> {
    let mut assumptions = Vec::new();
    if !saved.time.opted_in {
        assumptions.push(Diagnostic::CountersStoodStill);
    }
    if plan.method != Method::Offset {
        assumptions.push(Diagnostic::NoVcpuLater);
    }
    let Some(by) = plan.elapsed_by().filter(|_| !plan.request.policy.is_freeze()) else { return assumptions };
    assumptions.extend(of_a_clock(by));
    let word = plan.request.elapsed;
    if by != ElapsedBy::Counter && !plan.request.in_place {
        // From the plan to the release the counter here counts, and another clock where the host sleeps.
        assumptions.push(Diagnostic::NominalRateHere);
        if plan.sample.boot_time.is_none() {
            assumptions.push(Diagnostic::NotSlept);
        }
    }
    match by {
        ElapsedBy::Counter => {
            match word {
                Some(_) => assumptions.push(Diagnostic::SameCounter),
                None if plan.request.in_place => {
                    assumptions.extend([Diagnostic::OneCounter, Diagnostic::HostNotSuspended]);
                }
                None => assumptions.push(Diagnostic::SameBoot),
            }
            if word.is_none() && plan.evidence.sleep == Sleep::Unknown {
                assumptions.push(Diagnostic::NotSlept);
            }
        }
        ElapsedBy::WallClocks => {
            match word {
                Some(Elapsed::ByWallClocks { error_ns: Some(_), .. }) => assumptions.push(Diagnostic::WallClocksAgree),
                _ => assumptions.extend(of_wall_clocks((Side::Saved, plan.saved_at()), &plan.sample)),
            }
            assumptions.push(Diagnostic::NotSmeared);
            if evidence::leap_may_lie_between(plan.saved_at(), &plan.sample) {
                assumptions.push(Diagnostic::NoLeapSecond);
            }
        }
        ElapsedBy::Given | ElapsedBy::BootTime => {}
    }
    assumptions
}

/// Assumptions about both wall clocks of a time that was taken from them.
fn of_wall_clocks(saved: (Side, &Stamp), here: &Stamp) -> impl Iterator<Item = Diagnostic> {
    [saved, (Side::Here, here)]
        .map(|(side, stamp)| Diagnostic::WallClockWithin { side, bound: stamp.vouched() })
        .into_iter()
}

/// Assumptions that a clock needs from the plan's sample to a later stamp of this host.
pub(crate) fn from_the_plan(plan: &Plan, by: ElapsedBy, here: &Stamp) -> Vec<Diagnostic> {
    let mut assumptions = of_a_clock(by);
    if by == ElapsedBy::WallClocks {
        assumptions.extend(of_wall_clocks((Side::Here, &plan.sample), here));
        assumptions.push(Diagnostic::NotSmeared);
    }
    assumptions.retain(|assumption| !plan.assumptions.contains(assumption));
    assumptions
}

/// Assumptions that a clock needs wherever it is asked.
fn of_a_clock(by: ElapsedBy) -> Vec<Diagnostic> {
    match by {
        ElapsedBy::Given => [Diagnostic::ElapsedGiven].into(),
        ElapsedBy::BootTime => [Diagnostic::BootTimeCountedSleep].into(),
        ElapsedBy::Counter | ElapsedBy::WallClocks => Vec::new(),
    }
}

/// Parts of the guest's time that can't be preserved.
pub(crate) fn unsupported(plan: &Plan, saved: &Saved<'_>, target: &Target) -> Vec<Diagnostic> {
    let mut unsupported = Vec::new();
    if plan.method == Method::VirtualOnly {
        unsupported.push(Diagnostic::OnlyVirtual);
    }
    let (saved_hz, host_hz) = (plan.frequency().hz(), plan.sample.frequency.hz());
    if saved_hz != host_hz {
        unsupported.push(Diagnostic::WrongRate { saved_hz, host_hz });
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
    // A checkpoint of a VM that had opted in is the word for it; adopting a view is one that is easily missed.
    if plan.method == Method::Offset && !target.opted_in && !saved.time.opted_in {
        warnings.push(Diagnostic::OptsIn);
    }
    if traps(plan, target) {
        warnings.extend(saved.vm.iter().flat_map(|vm| misfires(plan, vm)));
    }
    warnings.extend(of_the_clocks(plan));
    warnings.extend(saved.vm.iter().flat_map(SavedVm::unknowns).map(Diagnostic::PassedOn));
    warnings.extend(of_the_outcome(plan));
    warnings
}

/// Takes the outcome of the release into its plan, and warns of what it came to.
pub(crate) fn released(plan: &mut Plan, outcome: &Outcome, vm: Option<&SavedVm<'_>>) {
    plan.as_of = *outcome;
    plan.degraded = degraded(plan, &plan.target);
    if let Some(vm) = vm {
        plan.warnings.retain(|warning| !matches!(warning, Diagnostic::PhysicalTimerMisfires { .. }));
        if traps(plan, &plan.target) {
            let misfires = misfires(plan, vm);
            plan.warnings.extend(misfires);
        }
    }
    plan.warnings.retain(|warning| !is_of_the_outcome(warning));
    let warnings = of_the_outcome(plan);
    plan.warnings.extend(warnings);
}

/// Warnings that follow from the outcome alone.
fn of_the_outcome(plan: &Plan) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    let (bits, stated) = plan.target.abilities.counter_bits.map_or((56, false), |bits| (bits, true));
    let reaches = |value: u64| bits < 64 && value >> bits != 0;
    let offset = plan.as_of.virtual_offset().0;
    if reaches(plan.as_of.cntvct.0) || reaches(plan.as_of.cntpct.0) || reaches(offset.min(offset.wrapping_neg())) {
        warnings.push(Diagnostic::ReachesWidth { bits, stated });
    }
    if plan.as_of.capped {
        warnings.push(Diagnostic::Capped { added_ticks: plan.as_of.added_ticks });
    }
    warnings.extend(of_the_jump(plan));
    warnings.extend(of_the_backlog(plan));
    warnings
}

/// Returns whether [`of_the_outcome`] makes this warning.
const fn is_of_the_outcome(warning: &Diagnostic) -> bool {
    matches!(
        warning,
        Diagnostic::ReachesWidth { .. }
            | Diagnostic::Capped { .. }
            | Diagnostic::LargeJump { .. }
            | Diagnostic::BacklogByValue
            | Diagnostic::BacklogLate(_)
            | Diagnostic::LargeStep { .. }
            | Diagnostic::FastCatchUp { .. }
    )
}

fn of_the_jump(plan: &Plan) -> Option<Diagnostic> {
    let felt: Vec<_> = plan.limits().filter(|(_, reached)| *reached != Reached::No).map(|(limit, _)| limit).collect();
    (!felt.is_empty()).then(|| Diagnostic::LargeJump { jump_ns: plan.jump_ns(), limits: felt })
}

fn of_the_clocks(plan: &Plan) -> Vec<Diagnostic> {
    let (evidence, word) = (&plan.evidence, plan.request.elapsed);
    let mut warnings = Vec::new();
    let one_counter = plan.request.in_place || evidence.one_boot();
    if plan.request.intent == Some(Intent::LiveUpdate) && !one_counter && word != Some(Elapsed::ByCounter) {
        warnings.push(Diagnostic::LiveUpdateElsewhere);
    }
    let Some(by) = plan.elapsed_by().filter(|_| !plan.request.policy.is_freeze()) else { return warnings };
    if word.is_none() && one_counter {
        warnings.extend(of_a_sleep(by, evidence));
        if by == ElapsedBy::Counter && evidence.forward && evidence.contradicted() {
            let (disagreement_ns, allowed_ns) = (evidence.disagreement_ns(), evidence.allowed_ns);
            warnings.push(Diagnostic::WallClockContradicts { disagreement_ns, allowed_ns });
        }
    }
    if word == Some(Elapsed::ByCounter) && evidence.reset {
        warnings.push(Diagnostic::CounterWasReset);
    }
    let assumed = matches!(word, Some(Elapsed::ByWallClocks { error_ns: Some(_), .. }));
    if by == ElapsedBy::WallClocks && !assumed {
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

/// Warning of a host that slept between two stamps of its counter, or whose counter went back.
pub(crate) fn of_a_sleep(by: ElapsedBy, evidence: &Evidence) -> Option<Diagnostic> {
    match (by, evidence.sleep) {
        (ElapsedBy::Counter, Sleep::Grew { least_ns, .. }) if evidence.forward && evidence.boot_ns.is_some() => {
            Some(Diagnostic::CountedThroughSleep { least_ns })
        }
        (ElapsedBy::Counter, _) if evidence.forward => None,
        (by, sleep) => Some(Diagnostic::CounterStopped { by, sleep }),
    }
}

fn of_the_backlog(plan: &Plan) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    let Some(backlog) = plan.backlog(&plan.as_of) else { return warnings };
    if plan.method != Method::Offset {
        warnings.push(Diagnostic::BacklogByValue);
    }
    warnings.extend(plan.missed(plan.request.policy.within_ns()).map(Diagnostic::BacklogLate));
    // Half of a soft lockup's threshold: a guest that has been busy for the other half is reported.
    let large_ns = u64::from(plan.request.guest.watchdog_thresh_s) * NS_PER_S;
    if large_ns != 0 && backlog.step_ns.get() >= large_ns {
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
