//! Sentences that name Python's classes, keywords and calls: the way out of a refusal, and texts about a caller's
//! choice.

use crate::policy::Spelled;
use guestclock_core::arch::arm64::{Role, Sysreg, Timer, View};
use guestclock_core::drive::faults::ScriptError;
use guestclock_core::drive::{Cause, Condition, Mismatch, Source};
use guestclock_core::guest::vmclock::EquationError;
use guestclock_core::guest::{SUGGESTED_INTERVAL_NS, SUGGESTED_STEP_NS};
use guestclock_core::restore::refusal::{NeedsCounterOffset, Refusal, Skew, UNKNOWN_REGISTERS};
use guestclock_core::restore::{Diagnostic, MAX_RATE_ERROR_PPB, Policy, Words};
use guestclock_core::time::ElapsedError;
use guestclock_model::bank::{BankError, WentBackwards};
use guestclock_model::error::VmError;
use pyo3::prelude::*;
use std::cell::Cell;

thread_local! {
    /// True where the ways out name the flags of the command line, instead of Python's keywords.
    static FLAGS: Cell<bool> = const { Cell::new(false) };
}

/// Says whether this thread's messages name the flags of the command line; gives what it said before.
#[pyfunction]
pub(crate) fn _speak_flags(on: bool) -> bool {
    FLAGS.replace(on)
}

/// A way out in Python's terms, or in those of the command line.
pub(crate) fn said<T>(python: T, flags: T) -> T {
    if FLAGS.get() { flags } else { python }
}

/// Policies and diagnostics in the caller's terms.
pub(crate) struct Python;

impl Words for Python {
    /// The policy as an expression.
    fn policy(&self, policy: &Policy) -> String {
        Spelled::new(policy).to_string()
    }

    fn diagnostic(&self, diagnostic: &Diagnostic) -> String {
        match diagnostic {
            Diagnostic::LargeJump { .. } => {
                let (step, interval) = (SUGGESTED_STEP_NS, SUGGESTED_INTERVAL_NS);
                let steps = said(
                    format!("CatchUp(step_ns={step}, interval_ns={interval})"),
                    format!("--policy catch-up --step {step}ns --interval {interval}ns"),
                );
                format!("{diagnostic}. Give it in steps: {steps}")
            }
            Diagnostic::WallClockContradicts { .. } => {
                let way = said(
                    "elapsed=Elapsed.by_wall_clocks(error_ns=)",
                    "--elapsed-by wall-clocks --elapsed-error, with how far off they may be",
                );
                format!("{diagnostic}. If the counter stood still: {way}")
            }
            Diagnostic::KernelUnverified { .. } => {
                let way = said("sync=", "--max-error, or ask chrony with --chrony");
                format!("{diagnostic}: declare one with {way}")
            }
            Diagnostic::BacklogLate(late) => refusal(late),
            _ => diagnostic.to_string(),
        }
    }
}

/// The refusal, and Python's way out.
pub(crate) fn refusal(refusal: &Refusal) -> String {
    match refusal {
        Refusal::FrequencyMismatch { saved_hz, host_hz } => {
            let apart = u128::from(saved_hz.abs_diff(*host_hz)) * 1_000_000_000;
            let ppb = apart.div_ceil(u128::from(*saved_hz).max(1));
            let accept = if ppb <= u128::from(MAX_RATE_ERROR_PPB) {
                let way = said(format!("rate_error_ppb={ppb}"), format!("--rate-error-ppb {ppb}"));
                format!("; or accept that error of its rate: {way}")
            } else {
                String::new()
            };
            let way = said(
                format!("ScaledCounter(counter, frequency_hz={saved_hz})"),
                format!("--frequency-hz {saved_hz} describes such a target"),
            );
            format!("{refusal}: {way}{accept}")
        }
        Refusal::CounterSkew { cntvct, cntpct, why } => {
            let why_not = match why {
                Skew::RefusalAskedFor => {
                    format!("{} was asked for", said("views=\"refuse\"", "--views refuse"))
                }
                _ => why.to_string(),
            };
            let keeps_both = if *why == Skew::El2 {
                String::new()
            } else {
                let way = said("views=\"preserve\"", "--views preserve");
                format!(", and {way} into a VM that never opted in keeps both")
            };
            let way = said("views=\"adopt-virtual\"", "--views adopt-virtual");
            format!(
                "the guest's counters differ (CNTVCT_EL0 {cntvct}, CNTPCT_EL0 {cntpct}), and {why_not}: \
                 {way} gives up the physical one{keeps_both}"
            )
        }
        Refusal::Elapsed(error) => format!("{refusal}{}", way_out_of(error)),
        Refusal::Unknown { what } => format!(
            "the checkpoint has {what}, which this guestclock doesn't know: restore it without {}, or with a newer one",
            said("strict=True", "--strict")
        ),
        Refusal::TopologyMismatch { what: UNKNOWN_REGISTERS, .. } => {
            format!("{refusal}, or leave them out: {}", said("checkpoint.without_unknown()", "--leave-out-unknown"))
        }
        Refusal::DeadlineMissed { .. } => format!("{refusal}: {}", said("Advance()", "--policy advance")),
        Refusal::OutOfOrder { called } => {
            format!("{called}() can't come now: a restore is apply(), then release(), once each")
        }
        Refusal::OtherInstant(_) => format!("{refusal}. release() without at= is for now, and can still be called"),
        Refusal::Overtaken => format!("{refusal}: restoring(), restore() or pause()"),
        Refusal::NoCounterOffset { needed_by } => format!(
            "counter_offset: {needed_by}{}",
            match needed_by {
                NeedsCounterOffset::AdoptedView => said(
                    " (views=\"adopt-virtual\"): use views=\"preserve\"",
                    " (--views adopt-virtual): use --views preserve",
                ),
                NeedsCounterOffset::CatchUpPlan => said(
                    ", with opt_in(), or use Freeze() or Advance() instead of CatchUp()",
                    ", and this one never did: use --policy freeze or --policy advance instead of catch-up",
                ),
                _ => "",
            }
        ),
        _ => refusal.to_string(),
    }
}

fn way_out_of(error: &ElapsedError) -> &'static str {
    match error {
        ElapsedError::ClockWentBackwards { .. } => said(
            ". Put the clock right, or say what passed with elapsed=Elapsed.given(ns, error_ns=), or restore with Freeze()",
            ". Put the clock right, or say what passed with --elapsed and --elapsed-error, or take --policy freeze",
        ),
        ElapsedError::Unknown(_) => said(
            ". Declare both with sync=, or give elapsed=: Elapsed.by_wall_clocks(error_ns=), Elapsed.given(ns, \
             error_ns=), or Elapsed.by_counter() if it is the same counter after all; or restore with Freeze()",
            ". Give --elapsed-by wall-clocks with --elapsed-error, or what has passed as --elapsed, or --elapsed-by \
             counter if it is the same counter after all; or take --policy freeze",
        ),
        ElapsedError::TooLong { .. } => said(
            ": give elapsed=Elapsed.by_wall_clocks(refuse_over_ns=) if it is so, or Advance(max_ns=) to let less of it \
             through, or restore with Freeze()",
            ": give --elapsed-by wall-clocks with --refuse-over if it is so, or --max to let less of it through, or take \
             --policy freeze",
        ),
        ElapsedError::ClocksDisagree(_) => said(
            ". Say which is right: elapsed=Elapsed.by_counter() or Elapsed.by_wall_clocks(); or restore with Freeze()",
            ". Say which is right: --elapsed-by counter or --elapsed-by wall-clocks; or take --policy freeze",
        ),
        _ => "",
    }
}

/// Name of the VM's state after a step that failed, and the call to make again.
pub(crate) const fn state_and_retry(condition: Condition) -> (&'static str, &'static str) {
    match condition {
        Condition::Provisional => ("provisional", "restore"),
        Condition::Partial => ("half-restored", "apply"),
        Condition::TimersOnly => ("timers-only", "release"),
        Condition::Paused => ("paused", "resume"),
        _ => ("as-it-was", "restore"),
    }
}

/// The reason why a VM stays closed after its restore was given up, and Python's way out; None where it doesn't.
pub(crate) const fn closed(condition: Condition) -> Option<&'static str> {
    match condition {
        Condition::Untouched => None,
        Condition::Provisional => Some(
            "the VM has opted in with a provisional offset and stays closed: restore() into it again, or build it anew",
        ),
        _ => Some(
            "some of its registers are restored, so the VM stays closed: restore() into it again, or build it anew",
        ),
    }
}

/// A register that doesn't read back.
pub(crate) fn read_back(vcpu: usize, register: &str, wrote: u64, read: u64) -> String {
    format!(
        "vCPU {vcpu}: {register} was written as {wrote:#x} and reads {read:#x} (was the vCPU initialised again, or does \
         the VMM write it too?)"
    )
}

/// An interrupt controller that is off, and Python's way out.
pub(crate) fn interrupts_off(vcpu: usize, timer: Timer) -> String {
    format!(
        "vCPU {vcpu}: the {} timer's line is high, and the vGIC's distributor is off (GICD_CTLR), so KVM would lose the \
         interrupt for good. Restore GICD_CTLR first, and the redistributors after it. If the guest itself had it off: \
         KvmVm without gic_fd",
        timer.name()
    )
}

/// A counter that isn't where it was set, and Python's way out.
pub(crate) fn counter_elsewhere(vcpu: usize, view: View, wanted: u64, found: u64, cause: Cause) -> String {
    let name = count_name(view);
    let way_out = if cause == Cause::Ignored { " (KvmVm(counter_offset=))" } else { "" };
    format!("vCPU {vcpu}: {name} is offset by {found}, and {wanted} was set for the VM: {cause}{way_out}")
}

/// A clock that isn't where it is expected.
pub(crate) fn mismatch(mismatch: &Mismatch) -> String {
    let apart = |ticks: Option<i128>| match ticks {
        Some(ticks) if ticks < 0 => format!("{} ticks behind", ticks.unsigned_abs()),
        ticks => format!("{} ticks ahead", ticks.unwrap_or(0)),
    };
    match *mismatch {
        Mismatch::Counter { vcpu, view, by, .. } => format!(
            "vCPU {vcpu}: {} is at least {} of {}",
            count_name(view),
            apart(mismatch.ahead_ticks()),
            match by {
                Source::OtherVcpus => "the same counter on the vCPUs before: is it a vCPU of another VM?",
                Source::Report => "where the report put it: a later restore or VMM has moved it",
                _ => "the VM's offset: it was set elsewhere, or the vCPU is another VM's",
            }
        ),
        Mismatch::Condition { vcpu, timer, istatus, cval, count, width } => format!(
            "vCPU {vcpu}: {}'s CTL reads ISTATUS={}, and its CVAL is {cval} where its counter read {} to {}",
            timer.name(),
            u8::from(istatus),
            count.0,
            count.0.wrapping_add(width)
        ),
        Mismatch::BeforeCheckpoint { view, saved, found } => format!(
            "{} reads {} at most, and {} in the checkpoint: {}",
            count_name(view),
            found.0,
            saved.0,
            apart(mismatch.ahead_ticks())
        ),
        _ => String::new(),
    }
}

/// Name of a counter's register.
pub(crate) fn count_name(view: View) -> &'static str {
    Sysreg::of(Role::Count(view)).map_or("the counter", |row| row.name)
}

/// The model's refusal, and Python's way out.
pub(crate) fn vm_error(error: &VmError) -> String {
    match error {
        VmError::Running { .. } => format!("{error} (a running() block has to be left)"),
        _ => error.to_string(),
    }
}

/// The reason why a fault makes no sense, and Python's way out.
pub(crate) fn script_error(error: ScriptError) -> String {
    match error {
        ScriptError::NoSuchPlace => format!("{error} (vm.calls has examples)"),
        ScriptError::NotManual => format!("{error}: make the VM over a ManualCounter"),
        _ => error.to_string(),
    }
}

/// The bank's refusal, and Python's way out.
pub(crate) fn bank_error(error: &BankError) -> String {
    match error {
        BankError::NoSuchVm { .. } => format!("{error} (add() gives them)"),
        BankError::TwoTimers => format!("{error}: timers=4"),
        _ => error.to_string(),
    }
}

/// The reason why there is no clock equation, and Python's way out.
pub(crate) fn equation_error(error: &EquationError) -> String {
    match error {
        EquationError::Unsynchronized => format!("{error}: synchronized=True"),
        EquationError::TaiUnknown => format!("{error}: time_type=\"utc\""),
        _ => error.to_string(),
    }
}

/// A counter that went backwards in a batch, and Python's way out.
pub(crate) fn went_backwards(error: WentBackwards) -> String {
    format!("{error}: use Freeze()")
}
