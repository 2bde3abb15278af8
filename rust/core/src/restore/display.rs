//! Plans and reports for people: one fact a line.

use crate::arch::arm64::View;
use crate::guest::{InSteps, Reached};
use crate::restore::plan::{Outcome, Plan};
use crate::restore::report::{Report, Written};
use crate::restore::words::{Plain, Words, thousandths};
use crate::time::{Amount, ElapsedBy, ErrorBound, Term};
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

/// Writes a label and its value.
fn line(f: &mut fmt::Formatter<'_>, label: &str, value: &str) -> fmt::Result {
    writeln!(f, "  {label:<18} {value}")
}

/// Formats ticks with their duration, rounded down.
fn ticks(plan: &Plan, ticks: u64) -> String {
    format!("{ticks} ticks ({} ns)", plan.frequency().ticks_to_ns(ticks))
}

/// Writes the counters of an outcome. The backlog of one that is `planned` grows until the release.
fn counters(f: &mut fmt::Formatter<'_>, plan: &Plan, outcome: &Outcome, planned: bool) -> fmt::Result {
    let capped = if outcome.capped { ", all that the policy lets through" } else { "" };
    let saved = |view| plan.saved_counter(view).0;
    line(f, "host counter", &format!("{} -> {}", plan.saved_at().count.0, plan.stamped(outcome).0))?;
    line(f, "CNTVCT_EL0", &format!("{} -> {}", saved(View::Virtual), outcome.cntvct.0))?;
    line(f, "CNTPCT_EL0", &format!("{} -> {}", saved(View::Physical), outcome.cntpct.0))?;
    line(f, "guest time added", &format!("{}{capped}", ticks(plan, outcome.added_ticks)))?;
    if let Some(backlog) = plan.backlog(outcome) {
        let frequency = plan.frequency();
        let at_least = if planned && !plan.request.policy.is_freeze() { "at least " } else { "" };
        line(f, "backlog", &ticks(plan, backlog.remaining_ticks.get()))?;
        line(
            f,
            "paid back",
            &format!(
                "in {at_least}{} steps of {} ns, one every {} ns: done after {} ns, at {} times the speed",
                backlog.steps(frequency),
                backlog.step_ns,
                backlog.interval_ns,
                backlog.duration_ns(frequency),
                thousandths(backlog.rate_permille())
            ),
        )?;
    }
    Ok(())
}

fn behind(f: &mut fmt::Formatter<'_>, plan: &Plan, outcome: &Outcome) -> fmt::Result {
    let frequency = plan.frequency();
    let known =
        outcome.behind.map(|behind| format!("{} ns, within {} ns", behind.ns(frequency), behind.error_ns(frequency)));
    line(f, "falls behind by", known.as_deref().unwrap_or("not known"))
}

fn limits(f: &mut fmt::Formatter<'_>, plan: &Plan) -> fmt::Result {
    if plan.jump_ticks() == 0 {
        return Ok(());
    }
    line(f, "jumps at once by", &format!("{} ns", plan.jump_ns()))?;
    let linux = |f: &mut fmt::Formatter<'_>, value: &str| line(f, "  a Linux guest's", value);
    linux(
        f,
        &format!(
            "scheduler: charges {} ns to the task that ran, which waits until the others there have had as much",
            plan.jump_ns()
        ),
    )?;
    if let Some(ns) = plan.throttled_ns() {
        linux(f, &format!("CPU quota: throttles that task's group for about {ns} ns"))?;
    }
    for (limit, reached) in plan.limits() {
        let (from, of) = match reached {
            Reached::No => (limit.earliest_ns, String::new()),
            Reached::Possible => (limit.earliest_ns, format!(" for {}", limit.of)),
            Reached::Certain => (limit.at_ns, format!(" for {}", limit.of)),
        };
        linux(f, &format!("{}, from {from} ns: {}{of}", limit.name, reached.name()))?;
    }
    let Some(InSteps { step_ns, interval_ns, duration_ns }) = plan.in_steps() else { return Ok(()) };
    line(
        f,
        "  CatchUp instead",
        &format!("charges {step_ns} ns at a time, once in {interval_ns} ns: done after {duration_ns} ns"),
    )
}

fn bound(f: &mut fmt::Formatter<'_>, plan: &Plan, bound: &ErrorBound) -> fmt::Result {
    let sum = bound.ticks(plan.frequency());
    line(f, "error bound", &format!("{sum} ticks ({} ns)", plan.frequency().ticks_to_ns_ceil(sum)))?;
    for Term { what, amount, ground } in bound.terms() {
        let what = format!("{what} ({})", ground.name());
        match amount {
            Amount::Ticks(0) | Amount::Ns(0) | Amount::LessTicks(0) => {}
            Amount::LessTicks(term) => line(f, "  less", &format!("{term} ticks: {what}"))?,
            Amount::Ticks(term) => line(f, "  of which", &format!("{term} ticks: {what}"))?,
            Amount::Ns(term) => line(f, "  of which", &format!("{term} ns: {what}"))?,
        }
    }
    Ok(())
}

fn decisions(f: &mut fmt::Formatter<'_>, plan: &Plan) -> fmt::Result {
    if let Some(intent) = plan.request.intent {
        line(f, "intent", intent.name())?;
    }
    line(f, "method", plan.method.name())?;
    let by = plan.elapsed_by().map_or("not known", ElapsedBy::name);
    let word = plan.request.elapsed.map_or_else(String::new, |word| format!(", as the caller says ({word})"));
    line(f, "elapsed time", &format!("{by}{word}"))?;
    line(f, "evidence", &plan.evidence.to_string())
}

/// Number of overdue timers that are printed.
const MANY: usize = 8;

fn overdue(f: &mut fmt::Formatter<'_>, plan: &Plan) -> fmt::Result {
    for late in plan.overdue.iter().take(MANY) {
        let by = ticks(plan, late.overdue_ticks.unwrap_or(0));
        let when = if late.passed_in_pause { ", passed in the pause" } else { "" };
        line(f, "overdue", &format!("vCPU {}, {}: by {by}{when}", late.vcpu, late.timer.name()))?;
    }
    match plan.overdue.len().checked_sub(MANY) {
        None | Some(0) => Ok(()),
        Some(more) => line(f, "", &format!("and {more} more")),
    }
}

/// Writes the changes of a vmclock page.
fn told(f: &mut fmt::Formatter<'_>, plan: &Plan) -> fmt::Result {
    let Some(intent) = plan.request.intent else { return Ok(()) };
    let changes = |changes| if changes { "changes" } else { "stays" };
    let (marker, generation) = (changes(plan.disrupts()), changes(intent.makes_a_copy()));
    line(f, "its vmclock page", &format!("disruption_marker {marker}, vm_generation_counter {generation}"))
}

fn advice(f: &mut fmt::Formatter<'_>, plan: &Plan, words: &dyn Words) -> fmt::Result {
    if let Some(ppb) = plan.rate_step_ppb.filter(|ppb| *ppb != 0) {
        let (sign, size) = (if ppb < 0 { '-' } else { '+' }, thousandths(ppb.unsigned_abs().into()));
        line(f, "rate step", &format!("{sign}{size} ppm: the counters run at another rate here"))?;
    }
    for fact in &plan.assumptions {
        let (sentence, ground) = (words.diagnostic(fact), fact.ground().name());
        line(f, "provided that", &format!("{sentence} ({ground}) [{}]", fact.code()))?;
    }
    for (label, facts) in
        [("can't be kept", &plan.unsupported), ("slower", &plan.degraded), ("warning", &plan.warnings)]
    {
        for fact in facts {
            line(f, label, &format!("{} [{}]", words.diagnostic(fact), fact.code()))?;
        }
    }
    Ok(())
}

/// A plan or report in these words.
pub struct InWords<'a, T> {
    of: &'a T,
    words: &'a dyn Words,
}

impl<T: fmt::Debug> fmt::Debug for InWords<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.of.fmt(f)
    }
}

impl Plan {
    /// Shows the plan in a binding's words.
    #[must_use]
    pub const fn in_words<'a>(&'a self, words: &'a dyn Words) -> InWords<'a, Self> {
        InWords { of: self, words }
    }
}

impl Report {
    /// Shows the report in a binding's words.
    #[must_use]
    pub const fn in_words<'a>(&'a self, words: &'a dyn Words) -> InWords<'a, Self> {
        InWords { of: self, words }
    }
}

impl fmt::Display for InWords<'_, Plan> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = self.of;
        writeln!(f, "Plan: {} at {} Hz", self.words.policy(&plan.request.policy), plan.frequency().hz())?;
        decisions(f, plan)?;
        counters(f, plan, &plan.as_of, true)?;
        behind(f, plan, &plan.as_of)?;
        told(f, plan)?;
        overdue(f, plan)?;
        limits(f, plan)?;
        bound(f, plan, &plan.as_of.bound)?;
        advice(f, plan, self.words)
    }
}

impl fmt::Display for InWords<'_, Report> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (report, plan) = (self.of, &self.of.plan);
        let known = |seen: Option<u64>| seen.map_or(String::from("not known"), |seen| ticks(plan, seen));
        writeln!(f, "Report: {} at {} Hz", self.words.policy(&plan.request.policy), plan.frequency().hz())?;
        decisions(f, plan)?;
        counters(f, plan, &report.outcome, false)?;
        behind(f, plan, &report.outcome)?;
        match report.written {
            Written::Offset { last, .. } => line(f, "offset", &last.0.to_string())?,
            Written::ByValue { virt, phys } => {
                line(f, "virtual offset", &format!("{} + at most {}", virt.low.0, virt.width))?;
                if let Some(phys) = phys {
                    line(f, "physical offset", &format!("{} + at most {}", phys.low.0, phys.width))?;
                }
            }
        }
        if report.cval_shift != 0 {
            line(f, "deadlines", &format!("moved by {}, to keep what was left", ticks(plan, report.cval_shift)))?;
        }
        bound(f, plan, &report.bound)?;
        // A VM that stayed where it was has stopped at its pause.
        if !plan.request.in_place {
            let stopped =
                report.stopped_before_ticks.map(|before| format!("{} before the checkpoint", ticks(plan, before)));
            let unknown = "not known: the guest sees what passed before the checkpoint";
            line(f, "stopped", stopped.as_deref().unwrap_or(unknown))?;
        }
        line(f, "until the return", &ticks(plan, report.returned_at.since(report.outcome.count)))?;
        line(f, "seen after", &known(report.after_release_ticks))?;
        advice(f, plan, self.words)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.in_words(&Plain).fmt(f)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.in_words(&Plain).fmt(f)
    }
}
