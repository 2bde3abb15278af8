//! Checkpoint + policy -> plan: the restore table, as pure functions.

use crate::arch::arm64::{Role, Timer, View};
use crate::checkpoint::Checkpoint;
use crate::restore::advice;
use crate::restore::plan::{Method, Outcome, Plan, SavedCounters};
use crate::restore::policy::{Request, Views};
use crate::restore::refusal::{NeedsCounterOffset, Refusal, Skew};
use crate::restore::target::Target;
use crate::time::{ErrorBound, Evidence, Frequency, Stamp, elapsed};
use alloc::vec::Vec;

/// Plans the restore of `checkpoint` into `target`, as of `sample` of the target's counter.
pub fn plan(checkpoint: &Checkpoint, target: &Target, sample: Stamp, request: Request) -> Result<Plan, Refusal> {
    let frequency = same_frequency(checkpoint, target, &sample)?;
    if let Some(what) = checkpoint.unknowns().next().filter(|_| request.strict) {
        return Err(Refusal::Unknown { what });
    }
    let method = method(checkpoint, target, request)?;
    let sample = match request.sync {
        Some(sync) => sample.vouched_by(sync),
        None => sample,
    };
    let evidence = Evidence::between(&checkpoint.host, &sample);
    let same_counter = request.same_counter.unwrap_or_else(|| evidence.decides(sample.source));
    let cntpct = request.views.physical(checkpoint.cntvct, checkpoint.cntpct);
    let mut plan = Plan {
        request,
        method,
        same_counter,
        evidence,
        as_of: Outcome {
            count: sample.count,
            cntvct: checkpoint.cntvct,
            cntpct,
            added_ticks: 0,
            backlog_ticks: 0,
            capped: false,
            bound: ErrorBound::default(),
        },
        rate_step_ppb: if same_counter { Some(0) } else { elapsed::rate_step_ppb(&checkpoint.host, &sample) },
        sample,
        overdue: Vec::new(),
        unsupported: Vec::new(),
        degraded: Vec::new(),
        warnings: Vec::new(),
        assumptions: Vec::new(),
        generation: target.generation,
        nested: target.registers.has(Role::Cntvoff),
        frequency,
        saved: SavedCounters {
            cntvct: checkpoint.cntvct,
            cntpct,
            width_ticks: checkpoint.width_ticks,
            host: checkpoint.host,
            backlog: checkpoint.backlog,
        },
    };
    plan.as_of = plan.at(&plan.sample)?;
    plan.can_be_paid_back()?;
    if !request.in_place {
        // In place the checkpoint has no timers.
        let found = plan.timers_at(checkpoint, &plan.as_of, plan.cval_shift(&plan.as_of));
        plan.overdue = found.filter(|status| status.overdue_ticks.is_some()).collect();
    }
    plan.assumptions = advice::assumptions(&plan, checkpoint);
    plan.unsupported = advice::unsupported(&plan, checkpoint, target);
    plan.degraded = advice::degraded(&plan, target);
    plan.warnings = advice::warnings(&plan, checkpoint, target);
    Ok(plan)
}

/// Checks that `target` has the vCPUs, timers and registers of `checkpoint`.
pub fn same_topology(checkpoint: &Checkpoint, target: &Target) -> Result<(), Refusal> {
    let mismatch = |what, saved, host| Err(Refusal::TopologyMismatch { what, saved, host });
    if checkpoint.vcpus != target.vcpus {
        return mismatch("vCPUs", checkpoint.vcpus, target.vcpus);
    }
    let el2 = |nested: bool| if nested { checkpoint.vcpus } else { 0 };
    let (saved, host) = (checkpoint.cntvoff.is_some(), target.registers.has(Role::Cntvoff));
    if saved != host {
        return mismatch("vCPUs with EL2", el2(saved), el2(host));
    }
    let saved = checkpoint.timers.iter().filter(|columns| columns.timer != Timer::Ptimer).count();
    let host = target.registers.timers().filter(|timer| *timer != Timer::Ptimer).count();
    if saved != host {
        return mismatch("timers besides the physical one on each vCPU", saved, host);
    }
    let saved = checkpoint.others.len();
    let host = checkpoint.others.iter().filter(|column| target.registers.has_id(column.id)).count();
    if saved != host {
        return mismatch("timer registers unknown to guestclock", saved, host);
    }
    Ok(())
}

fn same_frequency(checkpoint: &Checkpoint, target: &Target, sample: &Stamp) -> Result<Frequency, Refusal> {
    let saved_hz = u64::from(checkpoint.cntfrq_hz);
    let mismatch = |host_hz| Refusal::FrequencyMismatch { saved_hz, host_hz };
    if checkpoint.cntfrq_hz != target.cntfrq_hz {
        return Err(mismatch(u64::from(target.cntfrq_hz)));
    }
    if saved_hz != sample.frequency.hz() {
        return Err(mismatch(sample.frequency.hz()));
    }
    Ok(sample.frequency)
}

fn method(checkpoint: &Checkpoint, target: &Target, request: Request) -> Result<Method, Refusal> {
    let skew = |why| Refusal::CounterSkew { cntvct: checkpoint.cntvct.0, cntpct: checkpoint.cntpct.0, why };
    let adopt = request.views == Views::AdoptVirtual;
    let equal = checkpoint.cntvct == checkpoint.cntpct;
    if !target.opted_in && !adopt && (request.in_place || !equal || !target.abilities.counter_offset) {
        if request.views == Views::Refuse && !equal {
            return Err(skew(Skew::RefusalAskedFor));
        }
        if target.vcpus == 0 {
            return Err(Refusal::NoCounterOffset { needed_by: NeedsCounterOffset::NoVcpu });
        }
        // Each counter may have been read as late as its width.
        let apart = checkpoint.cntvct.0.wrapping_sub(checkpoint.cntpct.0).cast_signed().unsigned_abs();
        let read_apart = checkpoint.width_ticks.saturating_mul(2);
        if target.registers.has(Role::Cntvoff) && !request.in_place && apart > read_apart {
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
