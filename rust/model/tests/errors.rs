//! Errors of the core and of the model as `anyhow` prints them: an error that has a source doesn't repeat it in its own
//! text.

use guestclock_core::arch::arm64::{Encoding, IrqError, Timer};
use guestclock_core::checkpoint::codec::WireError;
use guestclock_core::checkpoint::{BuildError, InterchangeError, JoinError, NotOneVm, Unknown};
use guestclock_core::drive::faults::ScriptError;
use guestclock_core::drive::{Call, CallKind, Condition, FaultyError, OperationError, RestoreError};
use guestclock_core::restore::{NeedsCounterOffset, Refusal, Skew};
use guestclock_core::time::elapsed::{HostClock, UnknownElapsed};
use guestclock_core::time::{ElapsedError, Evidence, Frequency, SourceName, Stamp, StampCount, Unvouched};
use guestclock_model::bank::{Isa, WentBackwards};
use guestclock_model::deadlines::QueueError;
use guestclock_model::sets::SetError;
use guestclock_model::{BankError, VmError};
use std::error::Error;

#[track_caller]
fn printed_once(error: impl Error + Send + Sync + 'static) {
    let error = anyhow::Error::new(error).context("saving the guest");
    let printed = format!("{error:#}");
    for part in error.chain() {
        let text = part.to_string();
        assert!(!text.is_empty(), "{error:?}");
        assert_eq!(printed.matches(&text).count(), 1, "{text:?} in {printed:?}");
    }
}

fn elapsed() -> [ElapsedError; 4] {
    let stamp = Stamp::unvouched(StampCount(5), Frequency::new(1).unwrap(), SourceName::MANUAL, 0, 0);
    let evidence = Evidence::between(&stamp, &stamp);
    let unknown = UnknownElapsed { saved: Err(Unvouched::TaiUnknown), here: Err(Unvouched::Nobody), evidence };
    [
        ElapsedError::ClockWentBackwards { clock: HostClock::Counter, saved: 5, host: 4 },
        ElapsedError::Unknown(Box::new(unknown)),
        ElapsedError::TooLong { elapsed_ns: 5, longest_ns: 4 },
        ElapsedError::ClocksDisagree(Box::new(evidence)),
    ]
}

fn refusals() -> Vec<Refusal> {
    let mut refusals = vec![
        Refusal::FrequencyMismatch { saved_hz: 5, host_hz: 4 },
        Refusal::CounterSkew { cntvct: 1, cntpct: 2, why: Skew::OptedIn },
        Refusal::CounterSkew { cntvct: 1, cntpct: 2, why: Skew::El2 },
        Refusal::DeadlineMissed { remaining_ns: 3, needed_ns: 2, within_ns: 1 },
        Refusal::TopologyMismatch { what: "vCPUs", saved: 1, host: 2 },
        Refusal::Unknown { what: Unknown::Key("later".to_owned()) },
        Refusal::StalePlan,
        Refusal::OutOfOrder { called: "apply" },
        Refusal::NoCounterOffset { needed_by: NeedsCounterOffset::CatchUpStep },
    ];
    refusals.extend(elapsed().map(Refusal::from));
    refusals
}

fn vm_errors() -> Vec<VmError> {
    vec![
        VmError::Removed,
        VmError::NoSuchVcpu { vcpu: 2, vcpus: 2 },
        VmError::Running { vcpu: 1 },
        VmError::NoSuchOneReg { id: 7 },
        VmError::NoSuchTimer { timer: Timer::Hvtimer },
        VmError::NoSuchSysreg { encoding: Encoding(3, 3, 14, 0, 1), write: true },
        VmError::Irq(IrqError::NotPpi { id: 5 }),
        VmError::Reserved { reserved: 5 },
    ]
}

#[test]
fn of_the_elapsed_time_and_refusals() {
    elapsed().into_iter().for_each(printed_once);
    refusals().into_iter().for_each(printed_once);
}

/// Each step of a restore on a backend whose error has a text of its own.
#[test]
fn of_operations_on_a_backend() {
    for error in vm_errors() {
        for left in [Condition::Untouched, Condition::Partial, Condition::TimersOnly, Condition::Paused] {
            let failed = RestoreError::Backend { step: "apply: vCPU 0".to_owned(), error, left };
            printed_once(failed.clone());
            printed_once(OperationError::from(failed));
        }
        printed_once(OperationError::Backend(error));
        printed_once(FaultyError::Backend(error));
        printed_once(OperationError::Backend(FaultyError::Backend(error)));
    }
    for refusal in refusals() {
        printed_once(RestoreError::<VmError>::from(refusal.clone()));
        printed_once(OperationError::<VmError>::from(refusal));
    }
    printed_once(RestoreError::<VmError>::ReadBack { vcpu: 0, register: "CNTV_CVAL_EL0", wrote: 1, read: 2 });
    printed_once(OperationError::<VmError>::Closed);
    printed_once(OperationError::<VmError>::NoBacklog);
    let call = Call { kind: CallKind::Stopped, vcpu: None, reg: None };
    printed_once(FaultyError::<VmError>::Injected { call, number: 3, errno: 16 });
    printed_once(FaultyError::<VmError>::Crashed);
    printed_once(ScriptError::Nothing);
}

#[test]
fn of_files_and_lists() {
    printed_once(WireError::TooLarge { size: 17, limit: 16 });
    printed_once(WireError::NotACheckpoint);
    printed_once(WireError::Corrupt { stored: 1, computed: 2 });
    printed_once(WireError::UnsupportedVersion { found: 2, supported: 1 });
    printed_once(WireError::Malformed { offset: 3, key: "leap", what: "isn't text" });
    printed_once(WireError::UnsupportedArch { found: "x86_64".to_owned() });
    printed_once(WireError::UnsupportedFeature { feature: "scaling".to_owned() });
    printed_once(InterchangeError::Missing { vcpu: 1, id: 5 });
    printed_once(InterchangeError::HostUnknown { why: "the counters follow from it" });
}

fn build_errors() -> Vec<BuildError> {
    let name = || "web-1".to_owned();
    vec![
        BuildError::SameName { name: name() },
        BuildError::NoVcpus { name: name() },
        BuildError::ManyVcpus { name: name(), vcpus: 513 },
        BuildError::TooManyVcpus { vcpus: 262_145 },
        BuildError::TooManyGroups { groups: 65 },
        BuildError::TooLarge { size: 16_777_217 },
        BuildError::StolenTime { vcpus: 2, given: 1 },
        BuildError::Registers("have a CTL with ISTATUS set"),
    ]
}

#[test]
fn of_checkpoints_in_the_making() {
    for error in build_errors() {
        printed_once(error.clone());
        printed_once(JoinError::from(error.clone()));
        printed_once(InterchangeError::from(error.clone()));
        printed_once(SetError::from(error.clone()));
        printed_once(OperationError::<VmError>::from(error));
    }
    let stamp = Stamp::unvouched(StampCount(5), Frequency::new(1).unwrap(), SourceName::MANUAL, 0, 0);
    let evidence = Box::new(Evidence::between(&stamp, &stamp));
    printed_once(JoinError::Nothing);
    printed_once(JoinError::OtherCounter { first: 0, second: 1, evidence });
    printed_once(JoinError::UnknownKey { index: 0, key: "later".to_owned() });
    printed_once(NotOneVm { vms: 2 });
    printed_once(OperationError::<VmError>::from(NotOneVm { vms: 0 }));
    printed_once(OperationError::<VmError>::StoppedLater { stopped: 5, saved: 4 });
    printed_once(SetError::NoHandle { name: "web-1".to_owned() });
    printed_once(SetError::Unequal { saved: 2, here: 1 });
}

#[test]
fn of_the_model() {
    for error in vm_errors() {
        printed_once(error);
        printed_once(BankError::Vm(error));
        printed_once(BankError::OfVm { handle: 5, error });
        printed_once(SetError::Bank(BankError::Vm(error)));
        printed_once(SetError::OfVm { handle: 5, error: OperationError::Backend(error) });
    }
    printed_once(QueueError::EmptyGroup);
    printed_once(WentBackwards { row: 3 });
    printed_once(Isa::named("mmx").unwrap_err());
}
