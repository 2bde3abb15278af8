//! Sentences that name Python's classes, keywords and calls: the way out of a refusal, and texts about a caller's
//! choice.

use guestclock_core::arch::arm64::{Role, Sysreg, Timer, View};
use guestclock_core::drive::faults::ScriptError;
use guestclock_core::drive::{Cause, Condition};
use guestclock_core::guest::vmclock::EquationError;
use guestclock_core::guest::{SUGGESTED_INTERVAL_NS, SUGGESTED_STEP_NS};
use guestclock_core::restore::refusal::{NeedsCounterOffset, Refusal, Skew};
use guestclock_core::restore::{AtOnce, Diagnostic, MAX_RATE_ERROR_PPB, Policy, Repay, Rest, Words};
use guestclock_core::time::ElapsedError;
use guestclock_linux::kvm::error::KvmError;
use guestclock_model::bank::{BankError, WentBackwards};
use guestclock_model::error::VmError;
use pyo3::prelude::*;
use pyo3::types::PyType;

/// Policies and diagnostics in Python's terms.
pub(crate) struct Python;

impl Words for Python {
    /// The policy as an expression.
    fn policy(&self, policy: &Policy) -> String {
        match (policy.at_once(), policy.rest()) {
            (_, Rest::Keep) => "Freeze()".to_owned(),
            (AtOnce::UpTo(max_ns), Rest::Forget) => format!("Advance(max_ns={max_ns})"),
            (_, Rest::Forget) => "Advance()".to_owned(),
            (at_once, Rest::Repay(Repay { step_ns, interval_ns, within_ns })) => {
                let at_once = if let AtOnce::UpTo(ns) = at_once { format!(", at_once_ns={ns}") } else { String::new() };
                let within = within_ns.map_or_else(String::new, |within_ns| format!(", within_ns={within_ns}"));
                format!("CatchUp(step_ns={step_ns}, interval_ns={interval_ns}{at_once}{within})")
            }
        }
    }

    fn diagnostic(&self, diagnostic: &Diagnostic) -> String {
        match diagnostic {
            Diagnostic::LargeJump { .. } => format!(
                "{diagnostic}. Give it in steps: \
                 CatchUp(step_ns={SUGGESTED_STEP_NS}, interval_ns={SUGGESTED_INTERVAL_NS})"
            ),
            Diagnostic::WallClockContradicts { .. } => {
                format!("{diagnostic}. If the counter stood still: elapsed=Elapsed.by_wall_clocks(error_ns=)")
            }
            Diagnostic::KernelUnverified { .. } => format!("{diagnostic}: declare one with sync="),
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
                format!("; or accept that error of its rate: rate_error_ppb={ppb}")
            } else {
                String::new()
            };
            format!("{refusal}: ScaledCounter(counter, frequency_hz={saved_hz}){accept}")
        }
        Refusal::CounterSkew { cntvct, cntpct, why } => {
            let why_not = match why {
                Skew::RefusalAskedFor => "views=\"refuse\" was asked for".to_owned(),
                _ => why.to_string(),
            };
            let keeps_both = match why {
                Skew::El2 => "",
                _ => ", and views=\"preserve\" into a VM that never opted in keeps both",
            };
            format!(
                "the guest's counters differ (CNTVCT_EL0 {cntvct}, CNTPCT_EL0 {cntpct}), and {why_not}: \
                 views=\"adopt-virtual\" gives up the physical one{keeps_both}"
            )
        }
        Refusal::Elapsed(error) => format!("{refusal}{}", way_out_of(error)),
        Refusal::Unknown { what } => format!(
            "the checkpoint has {what}, which this guestclock doesn't know: restore it without strict=True, or with a \
             newer one"
        ),
        Refusal::DeadlineMissed { .. } => format!("{refusal}: Advance()"),
        Refusal::OutOfOrder { called } => {
            format!("{called}() can't come now: a restore is apply(), then release(), once each")
        }
        Refusal::Overtaken => format!("{refusal}: restoring(), restore() or pause()"),
        Refusal::NoCounterOffset { needed_by } => format!(
            "counter_offset: {needed_by}{}",
            match needed_by {
                NeedsCounterOffset::AdoptedView => " (views=\"adopt-virtual\"): use views=\"preserve\"",
                NeedsCounterOffset::CatchUpPlan => {
                    ", with opt_in(), or use Freeze() or Advance() instead of CatchUp()"
                }
                _ => "",
            }
        ),
        _ => refusal.to_string(),
    }
}

fn way_out_of(error: &ElapsedError) -> &'static str {
    match error {
        ElapsedError::ClockWentBackwards { .. } => {
            ". Put the clock right, or say what passed with elapsed=Elapsed.given(ns, error_ns=), or restore with Freeze()"
        }
        ElapsedError::Unknown(_) => {
            ". Declare both with sync=, or give elapsed=: Elapsed.by_wall_clocks(error_ns=), Elapsed.given(ns, \
             error_ns=), or Elapsed.by_counter() if it is the same counter after all; or restore with Freeze()"
        }
        ElapsedError::TooLong { .. } => {
            ": give elapsed=Elapsed.by_wall_clocks(refuse_over_ns=) if it is so, or Advance(max_ns=) to let less of it \
             through, or restore with Freeze()"
        }
        ElapsedError::ClocksDisagree(_) => {
            ". Say which is right: elapsed=Elapsed.by_counter() or Elapsed.by_wall_clocks(); or restore with Freeze()"
        }
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

/// KVM's refusal, and Python's way out.
pub(crate) fn kvm_error(error: &KvmError) -> String {
    match error {
        KvmError::Running { .. } => format!("{error} (a running() block has to be left)"),
        KvmError::NoVgic => format!("{error}: give gic_fd="),
        _ => error.to_string(),
    }
}

/// The reason why an argument is no policy, and the way out.
pub(crate) fn no_policy(object: &Bound<'_, PyAny>) -> PyResult<String> {
    const CALLS: [(&str, &str); 3] =
        [("freeze", "Freeze()"), ("advance", "Advance()"), ("catchup", "CatchUp(step_ns, interval_ns)")];
    let name =
        if let Ok(class) = object.cast::<PyType>() { class.name()?.to_string() } else { object.str()?.to_string() };
    let plain: String =
        name.chars().filter(char::is_ascii_alphabetic).map(|letter| letter.to_ascii_lowercase()).collect();
    let meant = CALLS.iter().find(|(known, _)| *known == plain);
    let way_out = meant.map_or("Freeze(), Advance() or CatchUp(step_ns, interval_ns)", |(_, call)| call);
    Ok(format!("{} isn't a policy: give {way_out}", object.repr()?))
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
