//! VMs in time namespaces: what is saved in one is restored in another by the time that has truly passed.

use guestclock_core::arch::arm64::{Behaviours, View};
use guestclock_core::checkpoint::Checkpoint;
use guestclock_core::drive::{OperationError, Saving};
use guestclock_core::restore::{Policy, Report, Request};
use guestclock_core::time::{
    Counter, Frequency, GuestCount, HostCount, Instant, NamespaceTicks, Offset, Ratio, Stamp, StampCount,
};
use guestclock_model::config::Config;
use guestclock_model::locked::{LockedVm, Now};
use guestclock_model::managed::ManagedBank;
use guestclock_model::manual::ManualCounter;
use guestclock_model::scaled::ScaledCounter;
use guestclock_model::sets::{SetSaving, handles_named};
use proptest::prelude::*;
use std::sync::Arc;

const HZ: u64 = 62_500_000;

fn hz(hz: u64) -> Frequency {
    Frequency::new(hz).unwrap()
}

/// A counter as a process in a time namespace reads it.
#[derive(Clone, Debug)]
struct Shifted {
    host: Arc<ManualCounter>,
    namespace: NamespaceTicks,
}

impl Shifted {
    fn new(host: &Arc<ManualCounter>, ticks: i64) -> Self {
        Self { host: Arc::clone(host), namespace: NamespaceTicks(ticks) }
    }
}

impl Counter for Shifted {
    fn frequency(&self) -> Frequency {
        self.host.frequency()
    }

    fn count(&self) -> HostCount {
        HostCount(self.host.count().0.wrapping_add_signed(self.namespace.0))
    }

    fn stamp(&self) -> Stamp {
        self.host.stamp()
    }

    fn namespace_ticks(&self) -> NamespaceTicks {
        self.namespace
    }
}

fn host() -> Arc<ManualCounter> {
    Arc::new(ManualCounter::new(HostCount(1 << 40), hz(HZ), 1_700_000_000_000_000_000))
}

/// A VM of one vCPU over that counter; opted in, if it is given an offset.
fn vm(counter: Shifted, offset: Option<u64>) -> LockedVm<Shifted> {
    let vm = LockedVm::new(counter, Behaviours::named("6.12").unwrap(), Config::default(), 1).unwrap();
    if let Some(offset) = offset {
        vm.set_counter_offset(Offset(offset), 0).unwrap();
    }
    vm
}

/// Both counters of the guest, now.
fn reads(vm: &LockedVm<Shifted>) -> (GuestCount, GuestCount) {
    (vm.count(0, View::Virtual, None).unwrap(), vm.count(0, View::Physical, None).unwrap())
}

fn restore(
    vm: &LockedVm<Shifted>,
    checkpoint: &Checkpoint,
    policy: Policy,
    now: Option<&Now>,
) -> Result<Report, OperationError<guestclock_model::error::VmError>> {
    let request = Request { policy, ..Request::default() };
    let plan = vm.plan(checkpoint, request, now.cloned())?;
    let mut open = vm.prepare(plan, Arc::new(checkpoint.clone()), now.cloned())?;
    vm.apply(&mut open, now.cloned())?;
    vm.release(&mut open, now.cloned())
}

/// Ticks of a namespace, either way: not so far back that the host's clock would be negative.
fn shift() -> impl Strategy<Value = i64> {
    prop_oneof![-(1_i64 << 40)..0, 0..1_i64 << 60]
}

proptest! {
    #[test]
    fn a_guest_moves_by_the_time_that_has_passed(
        there in any::<i64>(),
        here in any::<i64>(),
        offset in prop::option::of(any::<u64>()),
        elapsed in 0..1_u64 << 57,
        advance in any::<bool>(),
    ) {
        let host = host();
        let saved_vm = vm(Shifted::new(&host, there), offset);
        let saved_reads = reads(&saved_vm);
        let checkpoint = saved_vm.checkpoint(None, &Saving::default()).unwrap();
        let saved = checkpoint.only().unwrap();
        prop_assert_eq!((saved.cntvct(), saved.cntpct()), saved_reads);
        prop_assert_eq!(checkpoint.stamp(), &host.stamp());
        let restored_vm = vm(Shifted::new(&host, here), None);
        host.advance(elapsed);
        let policy = if advance { Policy::ADVANCE } else { Policy::FREEZE };
        let report = restore(&restored_vm, &checkpoint, policy, None).unwrap();
        prop_assert!(report.plan.same_counter(), "{}", report.plan.evidence);
        let added = if advance { elapsed } else { 0 };
        prop_assert_eq!(reads(&restored_vm), (saved_reads.0.after(added), saved_reads.1.after(added)));
        // A bare count is the process's own; both sides of a comparison are host-wide.
        prop_assert_eq!(report.outcome.count, restored_vm.counter().count());
        prop_assert_eq!(report.plan.stamped(&report.outcome).since(report.plan.saved_at().count), elapsed);
    }

    #[test]
    fn a_pause_is_the_same_in_any_namespace(ticks in any::<i64>(), elapsed in 0..1_u64 << 57, advance in any::<bool>()) {
        let host = host();
        let vm = vm(Shifted::new(&host, ticks), Some(5));
        let before = reads(&vm);
        let policy = if advance { Policy::ADVANCE } else { Policy::FREEZE };
        let pause = vm.pause(Request { policy, ..Request::default() }).unwrap();
        host.advance(elapsed);
        vm.resume(&pause).unwrap();
        prop_assert_eq!(reads(&vm).0, before.0.after(if advance { elapsed } else { 0 }));
    }

    #[test]
    fn an_injected_stamp_is_host_wide_and_an_injected_count_the_process_own(
        ticks in any::<i64>(),
        later in 0..1_u64 << 40,
    ) {
        let host = host();
        let [live, by_stamp, by_count] = [(); 3].map(|()| vm(Shifted::new(&host, ticks), Some(7)));
        let checkpoint = live.checkpoint(None, &Saving::default()).unwrap();
        host.advance(later);
        let stamp = Now::Stamp(Box::new(live.counter().stamp()));
        let count = Now::Count(live.counter().count());
        restore(&live, &checkpoint, Policy::ADVANCE, None).unwrap();
        restore(&by_stamp, &checkpoint, Policy::ADVANCE, Some(&stamp)).unwrap();
        restore(&by_count, &checkpoint, Policy::ADVANCE, Some(&count)).unwrap();
        prop_assert_eq!(reads(&by_stamp), reads(&live));
        prop_assert_eq!(reads(&by_count), reads(&live));
        let again = |now| live.checkpoint(Some(now), &Saving::default()).unwrap();
        let expected = live.checkpoint(None, &Saving::default()).unwrap();
        prop_assert_eq!((again(stamp), again(count)), (expected.clone(), expected));
    }

    #[test]
    fn a_set_of_vms_moves_by_the_time_that_has_passed(
        there in any::<i64>(),
        here in shift(),
        elapsed in 0..1_u64 << 50,
        advance in any::<bool>(),
    ) {
        let there = there.rem_euclid(1 << 60);
        let host = host();
        let (there, here) = (Shifted::new(&host, there), Shifted::new(&host, here));
        let mut bank = ManagedBank::new(hz(HZ), false);
        let frequencies = [HZ, 24_000_000, 1_000_000_000].map(hz);
        let vms = frequencies.map(|frequency| {
            let behaviours = Behaviours::named("6.12").unwrap();
            let vm = bank.add(frequency, behaviours, Config::default()).unwrap();
            let now = Ratio::new(hz(HZ), frequency).at(there.count());
            bank.bank_mut().vm_mut(vm).unwrap().create_vcpus(1, now).unwrap();
            bank.bank_mut().vm_mut(vm).unwrap().set_counter_offset(Offset(9), 0).unwrap();
            vm
        });
        let set = bank.checkpoint(&vms, &there, SetSaving::default()).unwrap();
        prop_assert_eq!(set.stamp(), &host.stamp());
        host.advance(elapsed);
        let request =
            Request { policy: if advance { Policy::ADVANCE } else { Policy::FREEZE }, ..Request::default() };
        let vms = handles_named(&set).unwrap();
        bank.restore(&set, &vms, &here, request).unwrap();
        for (index, vm) in vms.iter().enumerate() {
            let saved = set.vm(index).unwrap();
            let (stamp, cntvct) = (saved.stamp(), saved.cntvct());
            let frequency = stamp.frequency;
            let ratio = Ratio::new(hz(HZ), frequency);
            prop_assert_eq!(cntvct, ratio.at(HostCount((1 << 40) + there.namespace.0.cast_unsigned())).guest(Offset(9)));
            let offsets = bank.bank().vm(*vm).unwrap().offsets(0).unwrap();
            let moved = ratio.at(here.count()).guest(offsets.virt).since(cntvct);
            let passed = ratio.stamp(host.stamp()).count.since(stamp.count);
            if advance {
                // A tick, where the namespace's offset is no whole number of the VM's.
                prop_assert!((0..=1).contains(&moved.wrapping_sub(passed)), "{moved} {passed}");
                prop_assert!(frequency.hz() == 24_000_000 || moved == passed);
            } else {
                prop_assert_eq!(moved, 0);
            }
        }
    }

    #[test]
    fn a_scaled_counter_is_in_the_namespace_of_its_inner_one(ticks in shift(), guest in 1..2_000_000_000_u64) {
        let host = host();
        let inner = Shifted::new(&host, ticks);
        let outside = ScaledCounter::new(&*host, hz(guest)).stamp();
        let scaled = ScaledCounter::new(inner, hz(guest));
        let here = scaled.stamp();
        prop_assert_eq!(here.count.own(scaled.namespace_ticks()), scaled.count());
        let ahead = here.count.since(outside.count);
        prop_assert!(ahead <= 1, "{ahead}");
        prop_assert_eq!(Stamp { count: outside.count, ..here }, outside);
    }
}

#[test]
fn a_stop_is_the_process_own_count() {
    let host = host();
    let ticks = 1_000_000;
    let vm = vm(Shifted::new(&host, ticks), Some(0));
    let now = vm.counter().count();
    let stopped = |ticks_ago: u64| Saving { stopped_at: Some(HostCount(now.0 - ticks_ago)), ..Saving::default() };
    let checkpoint = vm.checkpoint(None, &stopped(40)).unwrap();
    assert_eq!(checkpoint.only().unwrap().stopped_at(), Some(StampCount((1 << 40) - 40)));
    let report = restore(&vm, &checkpoint, Policy::FREEZE, None).unwrap();
    assert_eq!(report.stopped_before_ticks, Some(40));
    let later = Saving { stopped_at: Some(now.after(1)), ..Saving::default() };
    let error = vm.checkpoint(None, &later).unwrap_err();
    assert_eq!(error, OperationError::StoppedLater { stopped: now.0 + 1, saved: now.0 });
    let mut bank = ManagedBank::new(hz(HZ), false);
    let created = bank.add_many(1, 1, hz(HZ), Behaviours::named("6.12").unwrap(), Config::default(), now).unwrap();
    let saving = SetSaving { stopped_at: &[Some(HostCount(now.0 - 7))], ..SetSaving::default() };
    let set = bank.checkpoint(&created, vm.counter(), saving).unwrap();
    assert_eq!(set.vm(0).unwrap().stopped_at(), Some(StampCount((1 << 40) - 7)));
}

#[test]
fn an_instant_of_a_namespace_reads_its_own_count() {
    let host = host();
    let counter = Shifted::new(&host, -5);
    let at = Instant::at(HostCount((1 << 40) + 95), &counter).unwrap();
    assert_eq!((at.count(), at.stamp.count), (HostCount((1 << 40) + 95), StampCount((1 << 40) + 100)));
    assert_eq!(at.stamp.realtime_ns - host.stamp().realtime_ns, 1_600);
    assert_eq!(at.namespace_ticks(), NamespaceTicks(-5));
    assert_eq!((at.frequency(), at.stamp()), (hz(HZ), at.stamp));
    assert!(Instant::at(HostCount(1 << 63), &counter).is_none(), "the wall clock ends before");
    assert_eq!(Instant::from(at.stamp).count(), HostCount((1 << 40) + 100));
}
