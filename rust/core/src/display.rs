//! Plans and reports for people: one fact a line.

use crate::plan::{Outcome, Plan, Policy};
use crate::restore::{Report, Written};
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Freeze => f.write_str("Freeze()"),
            Self::Advance { max_ns: None } => f.write_str("Advance()"),
            Self::Advance { max_ns: Some(max_ns) } => write!(f, "Advance(max_ns={max_ns})"),
        }
    }
}

/// A label and what it labels.
fn line(f: &mut fmt::Formatter<'_>, label: &str, value: &str) -> fmt::Result {
    writeln!(f, "  {label:<18} {value}")
}

fn counters(f: &mut fmt::Formatter<'_>, plan: &Plan, outcome: &Outcome) -> fmt::Result {
    let added_ns = plan.frequency().ticks_to_ns(outcome.added_ticks);
    let capped = if outcome.capped { ", all that the policy lets through" } else { "" };
    line(f, "host counter", &outcome.count.0.to_string())?;
    line(f, "CNTVCT_EL0", &outcome.cntvct.0.to_string())?;
    line(f, "CNTPCT_EL0", &outcome.cntpct.0.to_string())?;
    line(f, "guest time added", &format!("{} ticks ({added_ns} ns){capped}", outcome.added_ticks))
}

fn bound(plan: &Plan, ticks: u64) -> String {
    format!("{ticks} ticks ({} ns)", plan.frequency().ticks_to_ns_ceil(ticks))
}

fn decisions(f: &mut fmt::Formatter<'_>, plan: &Plan) -> fmt::Result {
    let forced = if plan.request.same_counter.is_some() { "forced; " } else { "" };
    line(f, "method", plan.method.name())?;
    line(f, "same counter", &format!("{} ({forced}{})", if plan.same_counter { "yes" } else { "no" }, plan.evidence))
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Plan: {} at {} Hz", self.request.policy, self.frequency().hz())?;
        decisions(f, self)?;
        counters(f, self, &self.as_of)?;
        line(f, "error bound", &bound(self, self.as_of.error_bound_ticks))?;
        for premise in &self.premises {
            line(f, "provided that", premise)?;
        }
        for warning in &self.warnings {
            line(f, "warning", warning)?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = &self.plan;
        let known = |ticks: Option<u64>| ticks.map_or(String::from("not known"), |ticks| bound(plan, ticks));
        writeln!(f, "Report: {} at {} Hz", plan.request.policy, plan.frequency().hz())?;
        decisions(f, plan)?;
        counters(f, plan, &self.outcome)?;
        match self.written {
            Written::Offset { last, .. } => line(f, "offset", &last.0.to_string())?,
            Written::ByValue { virt, phys } => {
                line(f, "virtual offset", &format!("{} + at most {}", virt.low.0, virt.width))?;
                if let Some(phys) = phys {
                    line(f, "physical offset", &format!("{} + at most {}", phys.low.0, phys.width))?;
                }
            }
        }
        line(f, "error bound", &bound(plan, self.error_bound_ticks))?;
        line(f, "seen before", &known(self.before_checkpoint_ticks))?;
        line(f, "seen after", &known(self.after_release_ticks))?;
        for premise in &plan.premises {
            line(f, "provided that", premise)?;
        }
        for warning in &plan.warnings {
            line(f, "warning", warning)?;
        }
        Ok(())
    }
}
