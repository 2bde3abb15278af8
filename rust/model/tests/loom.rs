//! The live VM under every interleaving, and every weak memory order, of up to three threads: `make loom`.
//!
//! The counter is moved by hand, so that the guest's time has a history of few moments: pairs of a count and the offset
//! in force. The law is that a read returns one of these moments, and never an earlier one than it did before.
#![cfg(loom)]

use guestclock_core::arch::arm64::View::{self, Physical, Virtual};
use guestclock_core::arch::arm64::{Behaviours, Role, Sysreg};
use guestclock_core::drive::{OpenRestore, RestoreError, Saving};
use guestclock_core::restore::{Refusal, Request};
use guestclock_core::time::{Counter, Frequency, GuestCount, HostCount, Offset};
use guestclock_model::config::{Config, Origin};
use guestclock_model::error::VmError;
use guestclock_model::locked::{LockedError, LockedVm};
use guestclock_model::manual::ManualCounter;
use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;

type ModelVm = LockedVm<ManualCounter>;

/// The counter at the start, when the VM's vCPUs are created.
const START: u64 = 1000;

/// Far enough apart that no sum of a count and an offset is that of another pair.
const A: u64 = 1 << 40;
const B: u64 = 2 << 40;

fn vm(kernel: &str, vcpus: usize) -> Arc<ModelVm> {
    let counter = ManualCounter::new(HostCount(START), Frequency::new(1_000_000_000).unwrap(), 0);
    Arc::new(LockedVm::new(counter, Behaviours::named(kernel).unwrap(), Config::default(), vcpus).unwrap())
}

/// A VM of one vCPU that has opted in; its guest reads 7.
fn opted_in() -> Arc<ModelVm> {
    let vm = vm("6.12", 1);
    vm.set_counter_offset(Offset(START - 7), 0).unwrap();
    vm
}

fn at(count: u64, offset: u64) -> GuestCount {
    HostCount(count).guest(Offset(offset))
}

/// Reads a counter so many times: each is a moment of this history, in its order.
fn reads(times: usize, vm: &ModelVm, vcpu: usize, view: View, history: &[GuestCount]) {
    let mut from = 0;
    for _ in 0..times {
        let read = vm.count(vcpu, view, None).unwrap();
        let moment = history[from..].iter().position(|moment| *moment == read);
        from += moment.unwrap_or_else(|| panic!("{read:?} isn't a moment of {:?}", &history[from..]));
    }
}

/// With all threads at rest, what is read without the lock is what is read with it.
fn at_rest(vm: &ModelVm) {
    for vcpu in 0..vm.vcpus() {
        for view in [Virtual, Physical] {
            let encoding = Sysreg::of(Role::Count(view)).unwrap().encoding;
            let locked = vm.read_sysreg(vcpu, encoding, Origin::default(), None).unwrap();
            assert_eq!(vm.count(vcpu, view, None), Ok(GuestCount(locked)));
        }
    }
}

fn is_stale<T>(result: &Result<T, LockedError>) -> bool {
    matches!(result, Err(LockedError::Restore(RestoreError::Refused(Refusal::StalePlan))))
}

fn is_overtaken<T>(result: &Result<T, LockedError>) -> bool {
    matches!(result, Err(LockedError::Restore(RestoreError::Refused(Refusal::Overtaken))))
}

fn is_running<T>(result: &Result<T, LockedError>) -> bool {
    matches!(result, Err(LockedError::Backend(VmError::Running { .. })))
}

/// Plans and opens a Freeze of the VM's own checkpoint.
fn prepare(vm: &ModelVm) -> Result<OpenRestore, LockedError> {
    let checkpoint = std::sync::Arc::new(vm.checkpoint(None, &Saving::default())?);
    let plan = vm.plan(&checkpoint, Request::default(), None)?;
    vm.prepare(plan, checkpoint, None)
}

/// Runs `work` in a thread of its own, on the same VM.
fn beside<T: 'static>(vm: &Arc<ModelVm>, work: impl FnOnce(&ModelVm) -> T + 'static) -> thread::JoinHandle<T> {
    let vm = Arc::clone(vm);
    thread::spawn(move || work(&vm))
}

#[test]
fn a_count_goes_with_the_offset_that_was_in_force() {
    loom::model(|| {
        let vm = vm("6.12", 1);
        let history = [at(START, 0), at(START, A), at(START + 1, A), at(START + 1, B)];
        let reader = beside(&vm, move |vm| reads(2, vm, 0, Physical, &history));
        vm.set_counter_offset(Offset(A), 0).unwrap();
        vm.counter().advance(1);
        vm.set_counter_offset(Offset(B), 0).unwrap();
        reader.join().unwrap();
        at_rest(&vm);
    });
}

#[test]
fn both_counters_have_their_own_readers() {
    loom::model(|| {
        let vm = vm("6.12", 1);
        vm.set_counter_offset(Offset(A), 0).unwrap();
        let history = [at(START, A), at(START, B)];
        let readers = [Virtual, Physical].map(|view| beside(&vm, move |vm| reads(1, vm, 0, view, &history)));
        vm.set_counter_offset(Offset(B), 0).unwrap();
        for reader in readers {
            reader.join().unwrap();
        }
        at_rest(&vm);
    });
}

#[test]
fn no_count_is_older_than_the_one_that_its_offset_was_made_from() {
    loom::model(|| {
        let vm = vm("6.12", 1);
        let mover = beside(&vm, |vm| vm.counter().advance(1));
        let owner = beside(&vm, |vm| {
            // As a release does: from now on the guest reads 7 and more.
            let count = vm.counter().count();
            vm.set_counter_offset(Offset::between(count, GuestCount(7)), 0).unwrap();
        });
        let read = vm.count(0, Physical, None).unwrap().0;
        assert!((START..=START + 1).contains(&read) || (7..=8).contains(&read), "{read}");
        mover.join().unwrap();
        owner.join().unwrap();
        at_rest(&vm);
    });
}

#[test]
fn a_count_told_by_an_advance_goes_with_no_older_offset() {
    loom::model(|| {
        let vm = vm("6.12", 1);
        let reader = beside(&vm, |vm| {
            let now = vm.counter().advance(1);
            (now, vm.count(0, Physical, Some(now)).unwrap())
        });
        vm.set_counter_offset(Offset(A), 0).unwrap();
        vm.counter().advance(10);
        let (now, read) = reader.join().unwrap();
        let early = now == HostCount(START + 1);
        assert!(read == now.guest(Offset(A)) || early && read == now.guest(Offset(0)), "{now:?}, {read:?}");
    });
}

#[test]
fn of_two_changes_the_later_one_is_read() {
    loom::model(|| {
        let vm = vm("6.12", 1);
        let other = beside(&vm, |vm| vm.set_counter_offset(Offset(A), 0).unwrap());
        vm.set_counter_offset(Offset(B), 0).unwrap();
        other.join().unwrap();
        at_rest(&vm);
    });
}

#[test]
fn a_change_undone_within_a_read_is_seen_as_none() {
    loom::model(|| {
        let vm = vm("6.12", 1);
        vm.set_counter_offset(Offset(A), 0).unwrap();
        let reader = beside(&vm, |vm| vm.count(0, Virtual, None).unwrap());
        vm.set_counter_offset(Offset(B), 0).unwrap();
        vm.counter().advance(1);
        vm.counter().advance(1);
        vm.set_counter_offset(Offset(A), 0).unwrap();
        let read = reader.join().unwrap();
        let under = |offset| at(START, offset)..=at(START + 2, offset);
        assert!(under(A).contains(&read) || under(B).contains(&read), "{read:?}");
    });
}

#[test]
fn a_new_vcpu_is_read_whole_or_is_not_there() {
    loom::model(|| {
        let vm = vm("6.12", 2);
        // The third is the first of a chunk of published that isn't there yet. Until a VM has opted in, a new vCPU
        // takes the virtual counters of all of them back to 0.
        let history = [at(START, START), at(START + 1, START), at(START + 1, START + 1)];
        let old = beside(&vm, move |vm| reads(1, vm, 0, Virtual, &history));
        let new = beside(&vm, |vm| match vm.count(2, Virtual, None) {
            Ok(count) => assert_eq!(count, GuestCount(0)),
            Err(error) => assert_eq!(error, VmError::NoSuchVcpu { vcpu: 2, vcpus: 2 }),
        });
        vm.counter().advance(1);
        assert_eq!(vm.create_vcpu(None), Ok(2));
        old.join().unwrap();
        new.join().unwrap();
        at_rest(&vm);
    });
}

#[test]
fn a_freeze_goes_back_by_what_it_takes_away_and_never_behind_its_checkpoint() {
    loom::model(|| {
        let vm = opted_in();
        let checkpoint = std::sync::Arc::new(vm.checkpoint(None, &Saving::default()).unwrap());
        vm.counter().advance(10);
        let plan = vm.plan(&checkpoint, Request::default(), None).unwrap();
        let mut open = vm.prepare(plan, checkpoint, None).unwrap();
        vm.apply(&mut open, None).unwrap();
        // The provisional offset, the time until the release, the final offset, and the guest's own time.
        let history = [7, 107, 7, 8].map(GuestCount);
        let reader = beside(&vm, move |vm| reads(2, vm, 0, Virtual, &history));
        vm.counter().advance(100);
        vm.release(&mut open, None).unwrap();
        vm.counter().advance(1);
        reader.join().unwrap();
        at_rest(&vm);
    });
}

/// Activity in the VM, as known outside: the VM's own knowledge is under test.
#[derive(Default)]
struct Seen {
    inside: AtomicBool,
    open: AtomicBool,
}

/// One vCPU tries to enter its guest while a restore, or a pause, is prepared and released.
fn enter_beside(vm: fn() -> Arc<ModelVm>, closed: fn(&ModelVm, &Seen)) {
    loom::model(move || {
        let vm = vm();
        let seen = Arc::new(Seen::default());
        let guest = {
            let seen = Arc::clone(&seen);
            beside(&vm, move |vm| match vm.enter(0) {
                Ok(()) => {
                    seen.inside.store(true, Relaxed);
                    assert!(!seen.open.load(Relaxed), "entered a VM that is being restored");
                    let read = vm.count(0, Virtual, None);
                    assert_eq!(vm.count(0, Virtual, None), read, "the offset moved under a running vCPU");
                    seen.inside.store(false, Relaxed);
                    vm.exit(0).unwrap();
                }
                Err(error) => assert_eq!(error, LockedError::Closed),
            })
        };
        closed(&vm, &seen);
        guest.join().unwrap();
        vm.enter(0).unwrap();
        vm.exit(0).unwrap();
        at_rest(&vm);
    });
}

fn restored(vm: &ModelVm, seen: &Seen) {
    match prepare(vm) {
        Ok(mut open) => {
            seen.open.store(true, Relaxed);
            assert!(!seen.inside.load(Relaxed), "a restore was opened over a running vCPU");
            vm.apply(&mut open, None).unwrap();
            seen.open.store(false, Relaxed);
            vm.release(&mut open, None).unwrap();
        }
        // The vCPU was in its guest, or has been there since the plan was made.
        refused => assert!(is_running(&refused) || is_stale(&refused), "{refused:?}"),
    }
}

fn paused(vm: &ModelVm, seen: &Seen) {
    match vm.pause(Request::default()) {
        Ok(pause) => {
            seen.open.store(true, Relaxed);
            assert!(!seen.inside.load(Relaxed), "paused over a running vCPU");
            seen.open.store(false, Relaxed);
            vm.resume(&pause).unwrap();
        }
        refused => assert!(is_running(&refused), "{refused:?}"),
    }
}

#[test]
fn no_vcpu_is_inside_while_a_restore_is_open() {
    enter_beside(|| vm("6.12", 1), restored);
}

#[test]
fn no_vcpu_is_inside_while_a_restore_by_value_is_open() {
    enter_beside(|| vm("6.1", 1), restored);
}

#[test]
fn no_vcpu_is_inside_while_the_vm_is_paused() {
    enter_beside(opted_in, paused);
}

#[test]
fn a_running_vcpu_keeps_its_offset() {
    enter_beside(opted_in, |vm, _| match vm.set_counter_offset(Offset(A), 0) {
        Ok(()) => {}
        Err(error) => assert_eq!(error, VmError::Running { vcpu: 0 }),
    });
}

#[test]
fn of_two_restores_the_newer_one_is_finished() {
    loom::model(|| {
        let vm = opted_in();
        let checkpoint = std::sync::Arc::new(vm.checkpoint(None, &Saving::default()).unwrap());
        let restore = move |vm: &ModelVm| -> bool {
            let mut entered = false;
            let result = (|| {
                let plan = vm.plan(&checkpoint, Request::default(), None)?;
                let mut open = vm.prepare(plan, std::sync::Arc::clone(&checkpoint), None)?;
                entered = vm.enter(0).is_ok();
                if entered {
                    vm.exit(0)?;
                }
                vm.apply(&mut open, None)?;
                vm.release(&mut open, None)
            })();
            // The other one came between the plan and the close, or after the close.
            assert!(result.is_ok() || is_stale(&result) || is_overtaken(&result), "{result:?}");
            assert!(!entered || result.is_err(), "a vCPU ran while this restore was open");
            result.is_ok()
        };
        let other = beside(&vm, restore.clone());
        let one = restore(&vm);
        assert!(other.join().unwrap() || one, "each thought that the other's was newer");
        assert_eq!(vm.count(0, Virtual, None), Ok(GuestCount(7)));
        vm.enter(0).unwrap();
    });
}
