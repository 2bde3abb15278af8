//! Sentences for policies and diagnostics, in the field's terms. A binding with its own names for the caller's choices
//! overrides the sentences about them.

use crate::restore::diagnostics::{Diagnostic, Side};
use crate::restore::policy::{AtOnce, Policy, Repay, Rest};
use crate::restore::refusal::Drift;
use crate::time::{ElapsedBy, Ground};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

/// Formats thousandths as a decimal number.
#[must_use]
pub fn thousandths(number: u128) -> String {
    format!("{}.{:03}", number / 1000, number % 1000)
}

/// Words for the choices that a caller makes.
pub trait Words {
    /// Words for a policy.
    fn policy(&self, policy: &Policy) -> String {
        let at_once = match policy.at_once() {
            AtOnce::Nothing => None,
            AtOnce::UpTo(max_ns) => Some(format!("advance by at most {max_ns} ns")),
            AtOnce::All => Some(String::from("advance")),
        };
        let repaid = match policy.rest() {
            Rest::Keep => Some(String::from("freeze")),
            Rest::Forget => None,
            Rest::Repay(Repay { step_ns, interval_ns, within_ns }) => {
                let within = within_ns.map_or_else(String::new, |within_ns| format!(", within {within_ns} ns"));
                Some(format!("catch up in steps of {step_ns} ns, one every {interval_ns} ns{within}"))
            }
        };
        [at_once, repaid].into_iter().flatten().collect::<Vec<_>>().join(", then ")
    }

    /// Words for a diagnostic.
    fn diagnostic(&self, diagnostic: &Diagnostic) -> String {
        diagnostic.to_string()
    }
}

/// The words of this module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Words for Plain {}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Plain.policy(self))
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Saved => "at the checkpoint",
            Self::Here => "here",
        })
    }
}

impl Diagnostic {
    /// Code of the diagnostic, by which programs and pages name it.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::CountersStoodStill => "counters-stood-still",
            Self::ElapsedGiven => "elapsed-given",
            Self::NominalRateHere => "nominal-rate-here",
            Self::OneCounter => "one-counter",
            Self::HostNotSuspended => "host-not-suspended",
            Self::SameCounter => "same-counter",
            Self::SameBoot => "same-boot",
            Self::NotSlept => "not-slept",
            Self::BootTimeCountedSleep => "boot-time-counted-sleep",
            Self::NoVcpuLater => "no-vcpu-later",
            Self::WallClocksAgree => "wall-clocks-agree",
            Self::WallClockWithin { .. } => "wall-clock-within",
            Self::NotSmeared => "not-smeared",
            Self::NoLeapSecond => "no-leap-second",
            Self::OnlyVirtual => "only-virtual",
            Self::WrongRate { .. } => "wrong-rate",
            Self::PhysicalJumps { .. } => "physical-jumps",
            Self::PhysicalTimerMissing => "physical-timer-missing",
            Self::PhysicalTraps => "physical-traps",
            Self::OptsIn => "opts-in",
            Self::PhysicalTimerMisfires { .. } => "physical-timer-misfires",
            Self::ReachesWidth { .. } => "reaches-width",
            Self::Capped { .. } => "capped",
            Self::LargeJump { .. } => "large-jump",
            Self::WallClockContradicts { .. } => "wall-clock-contradicts",
            Self::CountedThroughSleep { .. } => "counted-through-sleep",
            Self::CounterStopped { .. } => "counter-stopped",
            Self::CounterWasReset => "counter-was-reset",
            Self::LiveUpdateElsewhere => "live-update-elsewhere",
            Self::KernelUnverified { .. } => "kernel-unverified",
            Self::Unsynchronized { .. } => "unsynchronized",
            Self::BacklogByValue => "backlog-by-value",
            Self::BacklogLate(_) => "backlog-late",
            Self::LargeStep { .. } => "large-step",
            Self::FastCatchUp { .. } => "fast-catch-up",
            Self::PassedOn(_) => "passed-on",
        }
    }
}

impl Diagnostic {
    /// Ground of an assumption: one counter object is looked at all the time, and nothing shows any other.
    #[must_use]
    pub const fn ground(&self) -> Ground {
        match self {
            Self::OneCounter => Ground::Proved,
            _ => Ground::Assumed,
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CountersStoodStill => {
                f.write_str("the guest's counters didn't move between the reads that measured them")
            }
            Self::ElapsedGiven => f.write_str("the elapsed time is as the caller says, within the assumed error"),
            Self::NominalRateHere => {
                f.write_str("the counter here counts from the plan to the release, within 500 ppm of its frequency")
            }
            Self::OneCounter => f.write_str("it is one counter, of this process"),
            Self::HostNotSuspended => f.write_str(
                "the counter has counted all the time: no hypervisor suspended this host, and it had no sleep that its \
                 kernel didn't count",
            ),
            Self::SameCounter => f.write_str("it is the same counter, as the caller says, and it has counted all the time"),
            Self::SameBoot => f.write_str(
                "the boot id shows the same counter, and it has counted all the time: neither this host nor a copy of it \
                 was itself suspended or restored by a hypervisor",
            ),
            Self::NotSlept => f.write_str("the host didn't sleep: a stamp doesn't say how long it did"),
            Self::BootTimeCountedSleep => {
                f.write_str("the kernel's boot time counted the host's sleep, which was one, within a second, and nothing else \
                             stopped it")
            }
            Self::NoVcpuLater => f.write_str(
                "no vCPU is created from now on: KVM_CREATE_VCPU undoes counters that were set by value",
            ),
            Self::WallClocksAgree => {
                f.write_str("the wall clocks of both hosts are within the assumed error of each other")
            }
            Self::WallClockWithin { bound: Err(why), .. } => write!(f, "{why}"),
            Self::WallClockWithin { side, bound: Ok(sync) } => {
                write!(f, "the wall clock {side} was within {} ns of UTC", sync.max_error_ns)?;
                if sync.age_ns != 0 {
                    let (age, drift) = (sync.age_ns, sync.holdover_ppb);
                    write!(f, " {age} ns before, and drifts by at most {drift} ppb since")?;
                }
                write!(f, " ({})", sync.quality.name())
            }
            Self::NotSmeared => f.write_str("neither wall clock is smeared: that can't be seen"),
            Self::NoLeapSecond => f.write_str("no leap second came between: TAI isn't known on both sides"),
            Self::OnlyVirtual => f.write_str(
                "only the virtual counter and timer can be set here: the physical counter stays the host's, and the \
                 physical timer isn't restored",
            ),
            Self::WrongRate { saved_hz, host_hz } => write!(
                f,
                "the guest takes its counters for {saved_hz} Hz, and they run at {host_hz} Hz: {}",
                Drift { saved_hz: *saved_hz, host_hz: *host_hz }
            ),
            Self::PhysicalJumps { ticks } => {
                let when = if *ticks < 0 { "later" } else { "earlier" };
                write!(
                    f,
                    "CNTPCT_EL0 jumps by {ticks} ticks against the guest's memory of it, and every armed physical timer \
                     fires that much {when}"
                )
            }
            Self::PhysicalTimerMissing => {
                f.write_str("the checkpoint has no physical timer, so this VM's stays as it is")
            }
            Self::PhysicalTraps => f.write_str(
                "the physical counter gets an offset: on a CPU without CNTPOFF_EL2 the guest's reads of CNTPCT_EL0 and its \
                 physical timer trap from now on",
            ),
            _ => self.warning(f),
        }
    }
}

impl Diagnostic {
    fn warning(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OptsIn => f.write_str(
                "this opts the VM in to one offset for good: from then on counter values that are set are ignored",
            ),
            Self::PhysicalTimerMisfires { vcpu, cval, offset } => {
                let fires = if *offset < 0 { "never fires, though it is due" } else { "fires at once" };
                write!(
                    f,
                    "vCPU {vcpu}'s physical timer is on, and its CVAL {cval} with the offset {offset} isn't within 64 bits: \
                     on a CPU without CNTPOFF_EL2, under kernels before 7.3, it {fires}"
                )
            }
            Self::ReachesWidth { bits, stated } => {
                let has = if *stated { "has" } else { "may have" };
                write!(
                    f,
                    "a counter or its offset reaches 2^{bits}, and the hardware {has} counters of {bits} bits: KVM \
                     compares 64"
                )
            }
            Self::Capped { added_ticks } => {
                write!(f, "more time has passed than the policy lets through: the guest gets {added_ticks} ticks of it")
            }
            Self::LargeJump { jump_ns, limits } => {
                let names: Vec<_> = limits.iter().map(|limit| limit.name).collect();
                write!(
                    f,
                    "the guest's time jumps by {jump_ns} ns at once, which a Linux guest may take for: {} (docs/limits.md). \
                     It charges them to the task that ran on each vCPU, which then waits as long",
                    names.join(", ")
                )
            }
            Self::WallClockContradicts { disagreement_ns, allowed_ns } => write!(
                f,
                "the counter is believed, and the wall clock is {disagreement_ns} ns off it, where {allowed_ns} ns are \
                 allowed: either the wall clock was stepped, or the counter stood still while its host was itself suspended"
            ),
            Self::CountedThroughSleep { least_ns } => {
                write!(f, "the host slept for {least_ns} ns or more, and its counter counted on, as the boot time did")
            }
            Self::CounterStopped { by, sleep } => {
                let instead = match by {
                    ElapsedBy::WallClocks => "the wall clocks, for which somebody vouches, tell the time instead",
                    ElapsedBy::BootTime => {
                        "the kernel's boot time tells the time instead, within a second and its slew"
                    }
                    _ => "nothing else tells the time: what it didn't count is lost",
                };
                write!(f, "the counter stood still while the host slept ({sleep}), or went back: {instead}")
            }
            Self::CounterWasReset => f.write_str(
                "the counter was reset since the checkpoint, when its host booted: it can't have counted all the time",
            ),
            Self::LiveUpdateElsewhere => {
                f.write_str("a live update stays on its counter, and the evidence says that this is another one")
            }
            Self::KernelUnverified { side, max_error_ns } => write!(
                f,
                "the only bound of the wall clock {side} is the kernel's maximum error of {max_error_ns} ns, which nobody \
                 verified"
            ),
            Self::Unsynchronized { side } => write!(
                f,
                "the kernel says that the wall clock {side} isn't synchronised: the declared bound is taken nevertheless"
            ),
            Self::BacklogByValue => f.write_str(
                "the guest is owed time from before, which can't be paid back here: its counters are set by value",
            ),
            Self::BacklogLate(late) => write!(f, "{late}"),
            Self::LargeStep { step_ns } => {
                write!(f, "steps of {step_ns} ns are large: from 10 s on a guest's watchdogs may take one for a lockup")
            }
            Self::FastCatchUp { rate_permille } => write!(
                f,
                "the guest's time seems to go by {} times as fast while it is paid back: more than twice",
                thousandths(*rate_permille)
            ),
            Self::PassedOn(what) => {
                write!(f, "the checkpoint has {what}, which this version doesn't know: it is passed on as it is")
            }
            _ => f.write_str(self.code()),
        }
    }
}
