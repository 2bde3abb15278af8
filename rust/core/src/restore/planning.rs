//! Checkpoint + policy -> plan: the restore table, as pure functions.

use crate::arch::arm64::{Role, Timer, View};
use crate::checkpoint::SavedVm;
use crate::restore::advice;
use crate::restore::diagnostics::Diagnostic;
use crate::restore::late::Late;
use crate::restore::plan::{Method, Outcome, Plan, SavedCounters};
use crate::restore::policy::{MAX_RATE_ERROR_PPB, Request, Views};
use crate::restore::refusal::{NeedsCounterOffset, Refusal, Skew, UNKNOWN_REGISTERS, drift_ppb};
use crate::restore::saved::Saved;
use crate::restore::target::Target;
use crate::time::{
    Believed, Between, ElapsedBy, ErrorBound, Evidence, Frequency, GuestCount, MAX_ELAPSED_NS, NS_PER_S, Passed, Stamp,
    elapsed,
};
use alloc::vec::Vec;

/// Plans the restore of `saved` into `target`, as of `sample` of the target's counter.
pub fn plan(saved: &Saved<'_>, target: &Target, sample: Stamp, request: Request) -> Result<Plan, Refusal> {
    let frequency = same_frequency(saved, target, &sample, request)?;
    if let Some(what) = saved.vm.iter().flat_map(SavedVm::unknowns).next().filter(|_| request.strict) {
        return Err(Refusal::Unknown { what });
    }
    if let Some(vm) = &saved.vm {
        same_topology(vm, target)?;
    }
    let method = method(saved, target, request)?;
    let sample = match request.sync {
        Some(sync) => sample.vouched_by(sync),
        None => sample,
    };
    let evidence = Evidence::between(&saved.stamp, &sample);
    // Where the stop is known, the guest's counters go on from there: nobody has read them since.
    let before = |count: GuestCount| GuestCount(count.0.wrapping_sub(saved.hidden_ticks));
    let virt = before(saved.time.timeline);
    let phys = request.views.physical(virt, before(saved.time.physical()));
    let mut plan = Plan {
        request,
        method,
        evidence,
        elapsed: None,
        as_of: Outcome {
            count: sample.count.own(target.namespace_ticks),
            cntvct: virt,
            cntpct: phys,
            added_ticks: 0,
            backlog_ticks: 0,
            capped: false,
            bound: ErrorBound::default(),
            behind: None,
        },
        rate_step_ppb: None,
        sample,
        passed: Passed::default(),
        late: Late { anchor: sample.count.own(target.namespace_ticks), missed: 0, cap: 0, saved: virt },
        overdue: Vec::new(),
        unsupported: Vec::new(),
        degraded: Vec::new(),
        warnings: Vec::new(),
        assumptions: Vec::new(),
        target: target.clone(),
        planned_at: sample,
        looks: Vec::new(),
        frequency,
        saved: SavedCounters {
            cntvct: virt,
            cntpct: phys,
            time: saved.time,
            hidden_ticks: saved.hidden_ticks,
            later_ticks: saved.later_ticks,
            host: saved.stamp,
        },
    };
    let believed = plan.believed();
    plan.elapsed = believed.as_ref().ok().copied();
    if !request.policy.is_freeze() {
        plan.passed = believed?.passed;
    }
    plan.rate_step_ppb = rate_step_ppb(&plan, &sample);
    plan.late = plan.late();
    plan.as_of = plan.at(plan.late.anchor);
    plan.can_be_paid_back()?;
    if let Some(vm) = &saved.vm {
        let found = plan.timers_at(vm, &plan.as_of, plan.cval_shift(&plan.as_of));
        plan.overdue = found.filter(|status| status.overdue_ticks.is_some()).collect();
    }
    plan.assumptions = advice::assumptions(&plan, saved);
    plan.unsupported = advice::unsupported(&plan, saved, target);
    plan.degraded = advice::degraded(&plan, target);
    plan.warnings = advice::warnings(&plan, saved, target);
    Ok(plan)
}

/// Takes in what this host did between the plan's sample and `here`, a stamp of the same counter in this process: where
/// the counter stood still or went back, another clock tells what passed, and the plan counts on from `here`. Nothing is
/// refused.
pub(crate) fn look_again(plan: &mut Plan, here: Stamp) {
    let before = plan.looks.last().copied();
    plan.looks.push(here);
    let Some((Believed { by, passed }, warning)) = since_the_sample(plan, &here) else { return };
    // An earlier look, of a release that failed, has warned of the same sleep.
    let told = before.and_then(|before| since_the_sample(plan, &before)?.1);
    if let Some(place) = told.and_then(|told| plan.warnings.iter().rposition(|warning| *warning == told)) {
        plan.warnings.remove(place);
    }
    // Freeze gives the guest nothing of a sleep.
    plan.warnings.extend(warning.filter(|_| !plan.request.policy.is_freeze()));
    let then = |before: Passed| Passed {
        ticks: before.ticks + if by == ElapsedBy::Counter { 0 } else { passed.ticks },
        bound: before.bound.and(&passed.bound),
    };
    if !plan.request.policy.is_freeze() {
        plan.passed = then(plan.passed);
    }
    plan.elapsed = plan.elapsed.map(|elapsed| Believed { passed: then(elapsed.passed), ..elapsed });
    if by != ElapsedBy::Counter {
        if !plan.request.policy.is_freeze() {
            plan.assumptions.extend(advice::from_the_plan(plan, by, &here));
        }
        plan.sample = Stamp { sync: here.sync.or(plan.sample.sync), ..here };
        plan.late = plan.late();
    }
}

/// Returns the time from the plan's sample to `here`, and the warning of a sleep between.
fn since_the_sample(plan: &Plan, here: &Stamp) -> Option<(Believed, Option<Diagnostic>)> {
    let evidence = Evidence::between(&plan.sample, here);
    let between = Between {
        saved: &plan.sample,
        here,
        evidence: &evidence,
        guest: plan.frequency,
        one_object: true,
        longest_ns: Some(MAX_ELAPSED_NS),
    };
    let believed = between.believed(None).ok()?;
    let warning = advice::of_a_sleep(believed.by, &evidence);
    Some((believed, warning))
}

/// Checks that `target` has the vCPUs, timers and registers of `vm`.
pub fn same_topology(vm: &SavedVm<'_>, target: &Target) -> Result<(), Refusal> {
    let mismatch = |what, saved, host| Err(Refusal::TopologyMismatch { what, saved, host });
    if vm.vcpus() != target.vcpus {
        return mismatch("vCPUs", vm.vcpus(), target.vcpus);
    }
    let el2 = |nested: bool| if nested { vm.vcpus() } else { 0 };
    let (saved, host) = (vm.is_nested(), target.registers.has_el2());
    if saved != host {
        return mismatch("vCPUs with EL2", el2(saved), el2(host));
    }
    let saved = vm.timers().filter(|saved| saved.timer != Timer::Ptimer).count();
    let host = target.registers.timers().filter(|timer| *timer != Timer::Ptimer).count();
    if saved != host {
        return mismatch("timers besides the physical one on each vCPU", saved, host);
    }
    let saved = vm.others().count();
    let host = vm.others().filter(|(id, _)| target.registers.has_id(*id)).count();
    if saved != host {
        return mismatch(UNKNOWN_REGISTERS, saved, host);
    }
    Ok(())
}

/// Returns the guest's frequency if the counter here has it, within the error of rate that the caller accepts.
fn same_frequency(saved: &Saved<'_>, target: &Target, sample: &Stamp, request: Request) -> Result<Frequency, Refusal> {
    let frequency = saved.time.frequency();
    let accepted = u128::from(request.rate_error_ppb.min(MAX_RATE_ERROR_PPB)) * u128::from(frequency.hz());
    for host_hz in [u64::from(target.cntfrq_hz), sample.frequency.hz()] {
        let apart_hz = host_hz.abs_diff(frequency.hz());
        if u128::from(apart_hz) * u128::from(NS_PER_S) > accepted {
            return Err(Refusal::FrequencyMismatch { saved_hz: frequency.hz(), host_hz });
        }
    }
    Ok(frequency)
}

/// Returns the rate by which the guest's counters run faster here than there: by the frequencies, and by what both
/// kernels found of their counters.
fn rate_step_ppb(plan: &Plan, sample: &Stamp) -> Option<i64> {
    if plan.same_counter() {
        return Some(0);
    }
    let by_frequency = drift_ppb(plan.frequency().hz(), sample.frequency.hz());
    elapsed::rate_step_ppb(plan.saved_at(), sample)?.checked_add(by_frequency)
}

fn method(saved: &Saved<'_>, target: &Target, request: Request) -> Result<Method, Refusal> {
    let time = &saved.time;
    let skew = |why| Refusal::CounterSkew { cntvct: time.timeline.0, cntpct: time.physical().0, why };
    let adopt = request.views == Views::AdoptVirtual;
    let equal = time.physical_displacement_ticks == 0;
    // Nothing opts in without a word: the VMM's, who called it; the checkpoint's of a VM that had; or the caller's here.
    let by_word = time.opted_in && !request.in_place && equal;
    if !target.opted_in && !adopt && (!by_word || !target.abilities.counter_offset) {
        if request.views == Views::Refuse && !equal {
            return Err(skew(Skew::RefusalAskedFor));
        }
        // Each counter may have been read as late as its width.
        let apart = time.physical_displacement_ticks.cast_signed().unsigned_abs();
        let read_apart = time.width_ticks().saturating_mul(2);
        if target.registers.has_el2() && !request.in_place && apart > read_apart {
            return Err(skew(Skew::El2));
        }
        let physical = target.registers.has(Role::Count(View::Physical));
        return Ok(if physical { Method::ByValue } else { Method::VirtualOnly });
    }
    if !target.abilities.counter_offset {
        return Err(Refusal::NoCounterOffset { needed_by: NeedsCounterOffset::AdoptedView });
    }
    if equal || adopt { Ok(Method::Offset) } else { Err(skew(Skew::OptedIn)) }
}
