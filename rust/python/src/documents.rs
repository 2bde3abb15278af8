//! Plans and reports as plain values: what `to_dict()` of both has.

use crate::policy::Spelled;
use crate::words;

use guestclock_core::arch::arm64::View;
use guestclock_core::guest::InSteps;
use guestclock_core::restore::{Diagnostic, Outcome, Plan, Words};
use guestclock_core::time::{Amount, ElapsedBy, ErrorBound, Intent, Sleep, Term};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

/// The fields of a plan.
pub(crate) fn describe<'py>(py: Python<'py>, plan: &Plan) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    fields.set_item("policy", Spelled::new(&plan.request.policy).to_dict(py)?)?;
    fields.set_item("intent", plan.request.intent.map(Intent::name))?;
    fields.set_item("disrupts", plan.disrupts())?;
    fields.set_item("method", plan.method.name())?;
    fields.set_item("frequency_hz", plan.frequency().hz())?;
    fields.set_item("elapsed_by", plan.elapsed_by().map(ElapsedBy::name))?;
    fields.set_item("same_counter", plan.same_counter())?;
    let evidence = PyDict::new(py);
    evidence.set_item("same_source", plan.evidence.source)?;
    evidence.set_item("same_frequency", plan.evidence.frequency)?;
    evidence.set_item("same_machine", plan.evidence.machine)?;
    evidence.set_item("same_boot", plan.evidence.boot)?;
    evidence.set_item("went_forward", plan.evidence.forward)?;
    evidence.set_item("was_reset", plan.evidence.reset)?;
    evidence.set_item("slept", plan.evidence.sleep.to_string())?;
    let slept_ns = match plan.evidence.sleep {
        Sleep::Absent => Some([0, 0]),
        Sleep::Grew { least_ns, most_ns } => Some([least_ns, most_ns]),
        _ => None,
    };
    evidence.set_item("slept_ns", slept_ns)?;
    evidence.set_item("disagreement_ns", plan.evidence.disagreement_ns())?;
    evidence.set_item("allowed_ns", plan.evidence.allowed_ns)?;
    fields.set_item("evidence", evidence)?;
    fields.set_item("rate_step_ppb", plan.rate_step_ppb)?;
    fields.set_item("jump_ns", plan.jump_ns())?;
    fields.set_item("throttled_ns", plan.throttled_ns())?;
    let in_steps = plan.in_steps().map(|InSteps { step_ns, interval_ns, duration_ns }| {
        let steps = PyDict::new(py);
        steps.set_item("step_ns", step_ns)?;
        steps.set_item("interval_ns", interval_ns)?;
        steps.set_item("duration_ns", duration_ns)?;
        PyResult::Ok(steps)
    });
    fields.set_item("in_steps", in_steps.transpose()?)?;
    let limits = PyList::empty(py);
    for (limit, reached) in plan.limits() {
        let row = PyDict::new(py);
        row.set_item("name", limit.name)?;
        row.set_item("earliest_ns", limit.earliest_ns)?;
        row.set_item("at_ns", limit.at_ns)?;
        row.set_item("of", limit.of)?;
        row.set_item("reached", reached.name())?;
        limits.append(row)?;
    }
    fields.set_item("limits", limits)?;
    fields.set_item("assumptions", plain(py, &plan.assumptions, true)?)?;
    fields.set_item("unsupported", plain(py, &plan.unsupported, false)?)?;
    fields.set_item("degraded", plain(py, &plan.degraded, false)?)?;
    fields.set_item("warnings", plain(py, &plan.warnings, false)?)?;
    Ok(fields)
}

/// Diagnostics as plain values: their codes and texts, and the ground of an assumption.
fn plain<'py>(py: Python<'py>, diagnostics: &[Diagnostic], assumptions: bool) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for diagnostic in diagnostics {
        let fields = PyDict::new(py);
        fields.set_item("code", diagnostic.code())?;
        fields.set_item("text", words::Python.diagnostic(diagnostic))?;
        if assumptions {
            fields.set_item("ground", diagnostic.ground().name())?;
        }
        list.append(fields)?;
    }
    Ok(list)
}

/// Adds the fields of an outcome.
pub(crate) fn describe_outcome(
    fields: &Bound<'_, PyDict>,
    plan: &Plan,
    outcome: &Outcome,
    bound: &ErrorBound,
) -> PyResult<()> {
    let py = fields.py();
    let frequency = plan.frequency();
    let saved = PyDict::new(py);
    saved.set_item("host_count", plan.saved_at().count.0)?;
    saved.set_item("cntvct", plan.saved_counter(View::Virtual).0)?;
    saved.set_item("cntpct", plan.saved_counter(View::Physical).0)?;
    fields.set_item("saved", saved)?;
    // Host-wide, as the saved count is: documents travel.
    fields.set_item("host_count", plan.stamped(outcome).0)?;
    fields.set_item("cntvct", outcome.cntvct.0)?;
    fields.set_item("cntpct", outcome.cntpct.0)?;
    fields.set_item("added_ticks", outcome.added_ticks)?;
    fields.set_item("added_ns", frequency.ticks_to_ns(outcome.added_ticks))?;
    fields.set_item("capped", outcome.capped)?;
    fields.set_item("behind_ns", outcome.behind.map(|behind| behind.ns(frequency)))?;
    fields.set_item("behind_error_ns", outcome.behind.map(|behind| behind.error_ns(frequency)))?;
    let backlog = plan.backlog(outcome).map(|backlog| {
        let owed = PyDict::new(py);
        owed.set_item("remaining_ticks", backlog.remaining_ticks.get())?;
        owed.set_item("remaining_ns", frequency.ticks_to_ns(backlog.remaining_ticks.get()))?;
        owed.set_item("steps", backlog.steps(frequency))?;
        owed.set_item("step_ns", backlog.step_ns.get())?;
        owed.set_item("interval_ns", backlog.interval_ns.get())?;
        owed.set_item("duration_ns", backlog.duration_ns(frequency))?;
        owed.set_item("rate_permille", backlog.rate_permille())?;
        PyResult::Ok(owed)
    });
    fields.set_item("backlog", backlog.transpose()?)?;
    let sum = bound.ticks(frequency);
    fields.set_item("error_bound_ticks", sum)?;
    fields.set_item("error_bound_ns", frequency.ticks_to_ns_ceil(sum))?;
    let terms = PyList::empty(py);
    for Term { what, amount, ground } in bound.terms() {
        let term = PyDict::new(py);
        term.set_item("what", what)?;
        term.set_item("ground", ground.name())?;
        match amount {
            Amount::Ticks(ticks) => term.set_item("ticks", ticks)?,
            Amount::Ns(ns) => term.set_item("ns", ns)?,
            Amount::LessTicks(ticks) => term.set_item("ticks", -i128::from(ticks))?,
        }
        terms.append(term)?;
    }
    fields.set_item("error_bound_terms", terms)
}
