//! What the caller of a plan should know: what its bound rests on, what is lost, what gets slower, and what else to mind.

use crate::checkpoint::{Checkpoint, TimerColumns};
use crate::counter::Offset;
use crate::display::thousandths;
use crate::limits::Reached;
use crate::plan::{Method, Plan, Policy, Target, Views};
use crate::sysreg::Role;
use crate::timer::{CTL_ENABLE, Timer};
use crate::vmclock::Intent;
use crate::wall_clock::Quality;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// The largest step that nothing in a Linux guest is likely to mind: half of what makes a soft lockup.
const LARGE_STEP_NS: u64 = 10_000_000_000;

/// A step that is suggested: half of that again.
const SUGGESTED_STEP_NS: u64 = LARGE_STEP_NS / 2;

/// What the checkpoint has that this version doesn't know.
pub(crate) fn unknown(checkpoint: &Checkpoint) -> impl Iterator<Item = String> {
    let keys = checkpoint.unknown.iter().map(|unknown| format!("the key {:?}", unknown.key));
    keys.chain(checkpoint.others.iter().map(|column| format!("the register {:#018x}", column.id)))
}

/// What has to be true for the error bound to hold.
pub(crate) fn premises(plan: &Plan, checkpoint: &Checkpoint) -> Vec<String> {
    let mut premises = Vec::new();
    if !checkpoint.owned {
        premises.push(String::from("the guest's counters didn't move between the reads that measured them"));
    }
    if plan.request.policy == Policy::Freeze {
        return premises;
    }
    if plan.request.elapsed_ns.is_some() {
        premises.push(String::from("the elapsed time is as the caller says, within the assumed error"));
        premises.push(String::from("the counter here runs at its nominal frequency from the plan to the release"));
    } else if plan.same_counter {
        premises.push(String::from("it is the same counter, and it has counted all the time"));
    } else {
        match plan.request.assume_error_ns {
            Some(_) => {
                premises.push(String::from("the wall clocks of both hosts are within the assumed error of each other"));
            }
            None => premises.extend([("at the checkpoint", plan.saved_at()), ("here", &plan.sample)].map(
                |(side, stamp)| match stamp.vouched() {
                    Ok(sync) => {
                        let (bound, since) = (sync.max_error_ns, sync.age_ns);
                        let held = if since == 0 {
                            String::new()
                        } else {
                            format!(" {since} ns before, and drifts by at most {} ppb since", sync.holdover_ppb)
                        };
                        format!("the wall clock {side} was within {bound} ns of UTC{held} ({})", sync.quality.name())
                    }
                    Err(why) => format!("{why}"),
                },
            )),
        }
        premises.push(String::from("neither wall clock is smeared: that can't be seen"));
        if plan.saved_at().tai_offset_s.is_none() || plan.sample.tai_offset_s.is_none() {
            premises.push(String::from("no leap second came between: TAI isn't known on both sides"));
        }
    }
    premises
}

/// What can't be preserved.
pub(crate) fn lost(plan: &Plan, checkpoint: &Checkpoint, target: &Target) -> Vec<String> {
    let mut lost = Vec::new();
    if plan.method == Method::VirtualOnly {
        lost.push(String::from(
            "only the virtual counter and timer can be set here: the physical counter stays the host's, and the \
             physical timer isn't restored",
        ));
    }
    if plan.request.views == Views::AdoptVirtual && checkpoint.cntvct != checkpoint.cntpct {
        let jump = checkpoint.cntvct.since(checkpoint.cntpct).cast_signed();
        lost.push(format!(
            "CNTPCT_EL0 jumps by {jump} ticks against the guest's memory of it, and every armed physical timer fires \
             that much {}",
            if jump < 0 { "later" } else { "earlier" }
        ));
    }
    let physical = |columns: &TimerColumns| columns.timer == Timer::Ptimer;
    let kept = plan.method != Method::VirtualOnly && !plan.request.in_place;
    if kept && target.registers.has(Role::Cval(Timer::Ptimer)) && !checkpoint.timers.iter().any(physical) {
        lost.push(String::from("the checkpoint has no physical timer, so this VM's stays as it is"));
    }
    lost
}

/// Whether the physical counter gets an offset that the hardware may not be able to apply.
fn traps(plan: &Plan, target: &Target) -> bool {
    let moves = plan.method != Method::VirtualOnly && plan.as_of.physical_offset() != Offset(0);
    moves && target.abilities.physical_offset_untrapped != Some(true)
}

/// What is slower from now on.
pub(crate) fn slower(plan: &Plan, target: &Target) -> Vec<String> {
    let trapped = traps(plan, target).then(|| {
        String::from(
            "the physical counter gets an offset: on a CPU without CNTPOFF_EL2 the guest's reads of CNTPCT_EL0 and its \
             physical timer trap from now on",
        )
    });
    trapped.into_iter().collect()
}

/// What else to mind.
pub(crate) fn warnings(plan: &Plan, checkpoint: &Checkpoint, target: &Target) -> Vec<String> {
    let mut warnings = Vec::new();
    match plan.method {
        Method::Offset if !target.owned => warnings.push(String::from(
            "this opts the VM in to one offset for good: from then on counter values that are set are ignored",
        )),
        Method::ByValue => warnings.push(String::from(
            "the counters are set one after the other by value: each is off by a measured interval, and so is their distance",
        )),
        Method::Offset | Method::VirtualOnly => {}
    }
    if plan.method != Method::Offset {
        warnings.push(String::from(
            "counters set by value don't survive another KVM_CREATE_VCPU: create every vCPU before the restore",
        ));
    }
    if traps(plan, target) {
        warnings.extend(misfires(plan, checkpoint));
    }
    let (bits, stated) = target.abilities.counter_bits.map_or((56, "may have"), |bits| (bits, "has"));
    let reaches = |value: u64| bits < 64 && value >> bits != 0;
    let offset = plan.as_of.virtual_offset().0;
    if reaches(plan.as_of.cntvct.0) || reaches(plan.as_of.cntpct.0) || reaches(offset.min(offset.wrapping_neg())) {
        warnings.push(format!(
            "a counter or its offset reaches 2^{bits}, and the hardware {stated} counters of {bits} bits: KVM compares 64"
        ));
    }
    if plan.as_of.capped {
        warnings.push(format!(
            "more time has passed than the policy lets through: the guest gets {} ticks of it",
            plan.as_of.added_ticks
        ));
    }
    warnings.extend(of_the_jump(plan));
    warnings.extend(of_the_clocks(plan));
    warnings.extend(of_the_debt(plan));
    for what in unknown(checkpoint) {
        warnings.push(format!("the checkpoint has {what}, which this version doesn't know: it is passed on as it is"));
    }
    warnings
}

/// What a Linux guest makes of a forward jump.
fn of_the_jump(plan: &Plan) -> Option<String> {
    let felt: Vec<_> = plan.limits().filter(|(_, reached)| *reached != Reached::No).collect();
    let names: Vec<_> = felt.iter().map(|(limit, _)| limit.name).collect();
    let crossed = names.join(", ");
    (!names.is_empty()).then(|| {
        format!(
            "the guest's time jumps by {} ns at once, which a Linux guest may take for: {crossed} (docs/limits.md). Pay it \
             back in steps: CatchUp(step_ns={SUGGESTED_STEP_NS}, interval_ns={})",
            plan.jump_ns(),
            2 * SUGGESTED_STEP_NS
        )
    })
}

/// What is odd about the clocks that the elapsed time is taken from.
fn of_the_clocks(plan: &Plan) -> Vec<String> {
    let mut warnings = Vec::new();
    if plan.request.same_counter.is_none() && plan.evidence.contradicted(&plan.sample.source) {
        warnings.push(String::from(
            "all but the wall clock says that this is the counter of the checkpoint: either the wall clock was stepped, or \
             the counter stood still while its host was stopped. If you know which, say so with same_counter=",
        ));
    }
    if plan.request.intent == Some(Intent::LiveUpdate) && !plan.same_counter {
        warnings
            .push(String::from("a live update stays on its counter, and the evidence says that this is another one"));
    }
    if plan.needs_the_wall_clock() && plan.request.assume_error_ns.is_none() {
        for (side, stamp) in [("at the checkpoint", plan.saved_at()), ("here", &plan.sample)] {
            match stamp.vouched() {
                Ok(sync) if sync.quality == Quality::KernelUnverified => warnings.push(format!(
                    "the only bound of the wall clock {side} is the kernel's maximum error of {} ns, which nobody verified: \
                     declare one with sync=",
                    sync.max_error_ns
                )),
                Ok(_) if stamp.synchronized == Some(false) => warnings.push(format!(
                    "the kernel says that the wall clock {side} isn't synchronised: the declared bound is taken nevertheless"
                )),
                _ => {}
            }
        }
    }
    warnings
}

/// What paying back may do to the guest.
fn of_the_debt(plan: &Plan) -> Vec<String> {
    let mut warnings = Vec::new();
    let Some(debt) = plan.debt(&plan.as_of) else { return warnings };
    if plan.method != Method::Offset {
        warnings.push(String::from(
            "the guest is owed time from before, which can't be paid back here: its counters are set by value",
        ));
    }
    if let Policy::CatchUp { deadline_ns, .. } = plan.request.policy {
        warnings.extend(plan.missed(deadline_ns).map(|missed| format!("{missed}")));
    }
    if debt.step_ns >= LARGE_STEP_NS {
        warnings.push(format!(
            "steps of {} ns are large: from 10 s on a guest's watchdogs may take one for a lockup",
            debt.step_ns
        ));
    }
    let rate = debt.rate_permille();
    if rate > 2000 {
        warnings.push(format!(
            "the guest's time seems to go by {} times as fast while it is paid back: more than twice",
            thousandths(rate)
        ));
    }
    warnings
}

/// The armed physical timers that the kernel gets wrong where it has to trap them.
///
/// It programs CVAL + offset modulo 2^64, before Linux 7.3 (`timer_apply_offset`). An offset of more than 2^63 stands for a
/// guest that is ahead of its host, and the sum is right unless it leaves [0, 2^64).
fn misfires(plan: &Plan, checkpoint: &Checkpoint) -> Vec<String> {
    let mut warnings = Vec::new();
    let shift = plan.as_of.physical_offset().0.cast_signed();
    for columns in checkpoint.timers.iter().filter(|columns| columns.timer == Timer::Ptimer) {
        for (vcpu, cval) in columns.cval.iter().enumerate() {
            let enabled = columns.ctl.get(vcpu).is_some_and(|ctl| ctl & CTL_ENABLE != 0);
            if enabled && cval.checked_add_signed(shift).is_none() {
                let fires = if shift < 0 { "never fires, though it is due" } else { "fires at once" };
                warnings.push(format!(
                    "vCPU {vcpu}'s physical timer is on, and its CVAL {cval} with the offset {shift} isn't within 64 bits: \
                     on a CPU without CNTPOFF_EL2, under kernels before 7.3, it {fires}"
                ));
            }
        }
    }
    warnings
}
