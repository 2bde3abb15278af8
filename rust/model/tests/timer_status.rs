//! The timers at an instant, against the same rules in plain integers.

#[path = "../../core/tests/common/mod.rs"]
mod common;

use common::{Contents, Vm, bare};
use guestclock_core::arch::arm64::{Behaviours, El2, IrqIds, Timer};
use guestclock_core::checkpoint::Checkpoint;
use guestclock_core::restore::{
    LatchMismatch, Policy, Request, Saved, Target, TimerStatus, plan, timer_status as status,
};
use guestclock_core::time::{Counter, Elapsed, GuestCount, HostCount};
use guestclock_model::backend::Model;
use guestclock_model::config::Config;
use guestclock_model::manual::ManualCounter;
use guestclock_model::vm::ModelVm;
use proptest::prelude::*;

const ENABLE: u64 = 1;
const IMASK: u64 = 2;

/// Modulo 2^64.
fn wrapped(count: i128) -> u64 {
    u64::try_from(count.rem_euclid(1 << 64)).unwrap()
}

/// Counts and CVALs that meet often, and anything else.
fn near() -> impl Strategy<Value = u64> {
    prop_oneof![0..40_u64, (0..40_u64).prop_map(|below| u64::MAX - below), any::<u64>()]
}

fn saved(virt: u64, phys: u64, cntvoff: Option<u64>, timers: [(u64, u64); 4]) -> Checkpoint {
    let present = if cntvoff.is_some() { 4 } else { 2 };
    let vm =
        Timer::ALL.iter().zip(timers).take(present).fold(Vm::plain("", 1, 62_500_000, virt), |vm, (&kind, timer)| {
            let (ctl, cval) = timer;
            vm.timer(kind, &[ctl], &[cval])
        });
    let vm = vm.time(|time| time.physical_displacement_ticks = phys.wrapping_sub(virt));
    let vm = cntvoff.into_iter().fold(vm, |vm, cntvoff| vm.cntvoff(&[cntvoff]));
    Contents { vms: vec![vm], ..bare() }.made()
}

/// The timers of the one VM at the checkpoint.
fn statuses(checkpoint: &Checkpoint) -> Vec<TimerStatus> {
    status::saved(&checkpoint.only().unwrap()).collect()
}

/// A machine with vCPUs of this kernel, for which to plan.
fn target(kernel: &str, el2: El2, at: u64) -> (Target, ManualCounter) {
    let counter = ManualCounter::new(HostCount(at), bare().stamp.frequency, 0);
    let mut vm =
        ModelVm::new(counter.frequency(), Behaviours::named(kernel).unwrap(), Config { el2, ..Config::default() });
    let vm = vm.as_mut().unwrap();
    vm.create_vcpu(counter.count()).unwrap();
    (Target::of(&mut Model { vm, counter: &counter }).unwrap(), counter)
}

/// After `elapsed` host ticks of an `Advance`.
fn advanced(checkpoint: &Checkpoint, kernel: &str, elapsed: u64) -> Vec<TimerStatus> {
    let vm = checkpoint.only().unwrap();
    let el2 = if vm.is_nested() { El2::Vhe } else { El2::Absent };
    let (target, counter) = target(kernel, el2, checkpoint.stamp().count.0 + elapsed);
    let policy = Policy::ADVANCE;
    let request = Request { policy, elapsed: Some(Elapsed::ByCounter), ..Request::default() };
    let intended = plan(&Saved::from(&vm), &target, counter.stamp(), request).unwrap();
    intended.timers_at(&vm, &intended.as_of, 0).collect()
}

proptest! {
    #[test]
    fn it_is_the_rule_in_plain_integers(
        phys in near(),
        virt in near(),
        cntvoff in proptest::option::of(near()),
        timers in [(0..4_u64, near()), (0..4_u64, near()), (0..4_u64, near()), (0..4_u64, near())],
        elapsed in 0..60_u64,
    ) {
        // A guest with EL2 has one offset for both views.
        let checkpoint = saved(if cntvoff.is_some() { phys } else { virt }, phys, cntvoff, timers);
        let found = advanced(&checkpoint, "7.3", elapsed);
        prop_assert_eq!(found.len(), if cntvoff.is_some() { 4 } else { 2 });
        for (number, status) in found.into_iter().enumerate() {
            let (ctl, cval) = timers[number];
            let before = match (number, cntvoff) {
                (0, Some(cntvoff)) => wrapped(i128::from(phys) - i128::from(cntvoff)),
                (0, None) => virt,
                _ => phys,
            };
            let count = wrapped(i128::from(before) + i128::from(elapsed));
            let on = ctl & ENABLE != 0;
            prop_assert_eq!((status.vcpu, status.timer as usize), (0, number));
            prop_assert_eq!((status.ctl, status.cval, status.count), (ctl, cval, GuestCount(count)));
            prop_assert_eq!(status.line, on && ctl & IMASK == 0 && count >= cval);
            let overdue = i128::from(count) - i128::from(cval);
            prop_assert_eq!(status.overdue_ticks.map(i128::from), (on && overdue >= 0).then_some(overdue));
            prop_assert_eq!(status.passed_in_pause, on && before < cval && count >= cval);
        }
    }

    #[test]
    fn nothing_passes_at_the_checkpoint_itself(
        phys in near(),
        virt in near(),
        timers in [(0..4_u64, near()), (0..4_u64, near()), (0..4_u64, near()), (0..4_u64, near())],
    ) {
        let checkpoint = saved(virt, phys, None, timers);
        let found = statuses(&checkpoint);
        prop_assert_eq!(&found, &advanced(&checkpoint, "7.3", 0));
        prop_assert!(found.iter().all(|status| !status.passed_in_pause));
    }

    #[test]
    fn a_latch_is_listed_where_it_is_not_the_line(
        timers in [(0..4_u64, near()), (0..4_u64, near()), (0..4_u64, near()), (0..4_u64, near())],
        pending in any::<u32>(),
        vtimer in 16..=31,
    ) {
        let checkpoint = saved(20, 20, Some(3), timers);
        let mut irqs = IrqIds::new(true);
        irqs.set(0, vtimer, true).unwrap();
        let listed: Vec<_> = status::latch_mismatches(statuses(&checkpoint).into_iter(), &[pending], &irqs).collect();
        let mut expected = Vec::new();
        for status in statuses(&checkpoint) {
            let irq = [u8::try_from(vtimer).unwrap(), 30, 28, 26][status.timer as usize];
            let latch = (u64::from(pending) / 2_u64.pow(irq.into())) % 2 == 1;
            if latch != status.line {
                expected.push(LatchMismatch { vcpu: 0, timer: status.timer, irq, line: status.line, pending: latch });
            }
        }
        prop_assert_eq!(listed, expected);
    }
}

#[test]
fn the_instants_around_a_deadline() {
    let checkpoint = saved(100, 100, None, [(ENABLE, 110), (ENABLE | IMASK, 110), (0, 0), (0, 0)]);
    for (elapsed, overdue) in [(9, None), (10, Some(0)), (11, Some(1))] {
        let found = advanced(&checkpoint, "6.12", elapsed);
        assert_eq!(found.iter().map(|status| status.overdue_ticks).collect::<Vec<_>>(), [overdue; 2]);
        let passed = overdue.is_some();
        assert_eq!(found.iter().map(|status| status.passed_in_pause).collect::<Vec<_>>(), [passed; 2]);
        assert_eq!(found.iter().map(|status| status.line).collect::<Vec<_>>(), [passed, false], "one is masked");
    }
}

/// Where only the virtual counter can be set, the physical timer isn't restored.
#[test]
fn a_timer_that_is_not_restored_is_not_told() {
    let checkpoint = saved(100, 200, None, [(ENABLE, 110), (ENABLE, 110), (0, 0), (0, 0)]);
    let timers = |kernel| advanced(&checkpoint, kernel, 5).iter().map(|status| status.timer).collect::<Vec<_>>();
    assert_eq!(timers("6.1"), [Timer::Vtimer]);
    assert_eq!(timers("6.12"), [Timer::Vtimer, Timer::Ptimer]);
}

#[test]
fn every_vcpu_in_turn_with_its_own_cntvoff() {
    let ctl = [ENABLE, ENABLE];
    let vm = Timer::ALL.iter().fold(Vm::plain("", 2, 62_500_000, 49), |vm, &kind| vm.timer(kind, &ctl, &[50, 50]));
    let checkpoint = Contents { vms: vec![vm.cntvoff(&[40, u64::MAX])], ..bare() }.made();
    let found: Vec<_> = statuses(&checkpoint).iter().map(|of| (of.vcpu, of.timer, of.count.0, of.line)).collect();
    let [v, p, hv, hp] = Timer::ALL;
    let first = [(0, v, 9, false), (0, p, 49, false), (0, hv, 49, false), (0, hp, 49, false)];
    let second = [(1, v, 50, true), (1, p, 49, false), (1, hv, 49, false), (1, hp, 49, false)];
    assert_eq!(found, [first, second].concat());
    // A vCPU without a word is passed over.
    let listed: Vec<_> =
        status::latch_mismatches(statuses(&checkpoint).into_iter(), &[1 << 27], &IrqIds::new(true)).collect();
    assert_eq!(listed, [LatchMismatch { vcpu: 0, timer: v, irq: 27, line: false, pending: true }]);
}
