//! Sets of VMs against the same VMs one by one: what is saved, restored, paused and let go on, and what is refused.

#[path = "../../core/tests/common/mod.rs"]
mod common;

use common::{Contents, Vm};
use guestclock_core::arch::arm64::{Behaviours, El2, Role, Timer, View, one_reg_id};
use guestclock_core::checkpoint::codec::{decode, encode};
use guestclock_core::checkpoint::{BuildError, Checkpoint, VmName};
use guestclock_core::drive::{OperationError, Saving};
use guestclock_core::restore::{Deadlines, Policy, Repay, Request, RunState, Views};
use guestclock_core::time::{Counter, Elapsed, Frequency, HostCount, Instant, NamespaceTicks, Offset, Ratio};
use guestclock_model::backend::Model;
use guestclock_model::bank::{Bank, Expired, Handle};
use guestclock_model::config::Config;
use guestclock_model::error::VmError;
use guestclock_model::locked::LockedBank;
use guestclock_model::managed::ManagedBank;
use guestclock_model::manual::ManualCounter;
use guestclock_model::sets::{SetError, SetSaving, handles_named};
use guestclock_model::vm::ModelVm;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use std::num::NonZeroU64;
use std::sync::Arc;

const HZ: [u64; 3] = [62_500_000, 24_000_000, 1_000_000_000];

/// All of the time in such steps.
fn repaid(step_ns: u64, interval_ns: u64) -> Policy {
    let ns = |ns| NonZeroU64::new(ns).unwrap();
    Policy::catch_up(Repay { step_ns: ns(step_ns), interval_ns: ns(interval_ns), within_ns: None }, 0)
}

fn hz(hz: u64) -> Frequency {
    Frequency::new(hz).unwrap()
}

#[derive(Clone, Debug)]
struct Spec {
    frequency: usize,
    kernel: &'static str,
    el2: El2,
    vcpus: usize,
    offset: Option<u64>,
    counts: Option<(u64, u64)>,
    registers: Vec<(usize, usize, u64, u64)>,
    cntvoff: u64,
}

fn spec() -> impl Strategy<Value = Spec> {
    let kind = prop_oneof![
        Just(("6.1", El2::Absent)),
        Just(("6.12", El2::Absent)),
        Just(("7.3", El2::Absent)),
        Just(("7.3", El2::Vhe)),
        Just(("7.3", El2::E2h0)),
    ];
    let ctl = prop_oneof![0..8_u64, any::<u64>()];
    let registers = vec((0..3_usize, 0..4_usize, any::<u64>(), ctl), 0..6);
    let parts = (0..HZ.len(), kind, 1..4_usize, option::of(any::<u64>()), option::of(any::<(u64, u64)>()), registers);
    (parts, prop_oneof![Just(0), any::<u64>()]).prop_map(
        |((frequency, kind, vcpus, offset, counts, registers), cntvoff)| {
            let (kernel, el2) = kind;
            Spec { frequency, kernel, el2, vcpus, offset, counts, registers, cntvoff }
        },
    )
}

fn world(specs: &[Spec], now: HostCount) -> (Bank, Vec<Handle>) {
    let mut bank = Bank::new(hz(HZ[0]), true);
    let vms = specs.iter().map(|spec| {
        let frequency = hz(HZ[spec.frequency]);
        let config = Config { el2: spec.el2, ..Config::default() };
        let handle = bank.add(frequency, Behaviours::named(spec.kernel).unwrap(), config).unwrap();
        let now = Ratio::new(hz(HZ[0]), frequency).at(now);
        let mut vm = bank.vm_mut(handle).unwrap();
        vm.create_vcpus(spec.vcpus, now).unwrap();
        if let Some((cntvct, cntpct)) = spec.counts {
            vm.set_one_reg(0, one_reg_id(Role::Count(View::Virtual)), cntvct, now).unwrap();
            let _ = vm.set_one_reg(0, one_reg_id(Role::Count(View::Physical)), cntpct, now);
        }
        if let Some(offset) = spec.offset {
            let _ = vm.set_counter_offset(Offset(offset), 0);
        }
        for &(vcpu, timer, cval, ctl) in spec.registers.iter().filter(|it| it.0 < spec.vcpus) {
            let _ = vm.set_one_reg(vcpu, one_reg_id(Role::Cval(Timer::ALL[timer])), cval, now);
            let _ = vm.set_one_reg(vcpu, one_reg_id(Role::Ctl(Timer::ALL[timer])), ctl, now);
            let _ = vm.set_one_reg(vcpu, one_reg_id(Role::Cntvoff), spec.cntvoff, now);
        }
        handle
    });
    let vms = vms.collect();
    (bank, vms)
}

/// One instant of the bank's counter.
fn instant(counter: &ManualCounter) -> Instant {
    Instant::of(counter.stamp(), counter)
}

/// The same by a VM's own counter.
fn seen(instant: &Instant, spec: &Spec) -> Instant {
    Ratio::new(hz(HZ[0]), hz(HZ[spec.frequency])).instant(instant)
}

/// All that a guest and its VMM can see of a VM.
fn state(vm: &ModelVm<&Bank>, now: HostCount) -> Vec<String> {
    let vcpus = (0..vm.vcpus()).flat_map(|vcpu| {
        let list = vm.reg_list(vcpu).unwrap().into_iter();
        list.map(move |id| format!("{vcpu} {id:x} {:?} {:?}", vm.get_one_reg(vcpu, id, now), vm.offsets(vcpu)))
    });
    vcpus.chain([format!("{:?}", vm.vm_offset())]).collect()
}

fn request() -> impl Strategy<Value = Request> {
    let policy = prop_oneof![
        Just(Policy::FREEZE),
        Just(Policy::ADVANCE),
        (0..3_000_000_u64).prop_map(Policy::advance_up_to),
        Just(repaid(1000, 5000)),
    ];
    let views = prop_oneof![Just(Views::Preserve), Just(Views::AdoptVirtual), Just(Views::Refuse)];
    let deadlines = prop_oneof![Just(Deadlines::Absolute), Just(Deadlines::Relative)];
    let elapsed = prop_oneof![Just(None), Just(Some(Elapsed::ByCounter))];
    (policy, views, deadlines, elapsed).prop_map(|(policy, views, deadlines, elapsed)| Request {
        policy,
        views,
        deadlines,
        elapsed,
        ..Request::default()
    })
}

/// The timers that fire, from `now` on: those that the deadline queue gives, which has been in use.
fn fired(bank: &mut Bank, now: HostCount) -> Vec<Vec<Expired>> {
    [0, 1, 1 << 20, 1 << 40, 1 << 63].map(|later| bank.expire(now.after(later))).into()
}

/// The name of a VM that was given none.
fn name(vm: Handle) -> String {
    vm.0.to_string()
}

fn one_by_one(
    bank: &mut Bank,
    vms: &[Handle],
    specs: &[Spec],
    now: &Instant,
    set: &Checkpoint,
    request: Request,
) -> Result<Vec<RunState>, OperationError<VmError>> {
    let restore = |(vm, spec): (&Handle, &Spec)| {
        let (mut run_state, mut vm_mut) = (RunState::default(), bank.vm_mut(*vm).unwrap());
        let counter = seen(now, spec);
        let backend = &mut Model { vm: &mut vm_mut, counter: &counter };
        let index = set.find(&name(*vm));
        let saved = Arc::new(set.part(|other| Some(other) == index));
        let plan = run_state.plan(backend, &saved, request)?;
        let mut open = run_state.prepare(backend, plan, saved)?;
        run_state.apply(backend, &mut open)?;
        run_state.release(backend, &mut open, None)?;
        Ok(run_state)
    };
    vms.iter().zip(specs).map(restore).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_set_is_its_vms(
        specs in vec(spec(), 1..6),
        targets in vec(spec(), 6),
        stops in option::of(vec(0..1000_u64, 6)),
        later in 0..1_u64 << 30,
        request in request(),
    ) {
        let counter = ManualCounter::new(HostCount(1 << 40), hz(HZ[0]), 5);
        let (mut bank, vms) = world(&specs, counter.count());
        counter.advance(1000);
        let now = instant(&counter);
        let stops = stops.unwrap_or_default().into_iter().take(vms.len());
        let stopped_at: Vec<_> = stops.map(|before| Some(HostCount(counter.count().0 - before))).collect();
        let saving = SetSaving { stopped_at: &stopped_at, ..SetSaving::default() };
        let set = ManagedBank::from(bank.clone()).checkpoint(&vms, &now, saving).unwrap();
        prop_assert!(decode(&encode(&set)).as_ref() == Ok(&set));
        prop_assert_eq!((set.len(), set.stamp()), (vms.len(), &now.stamp));
        for (place, (vm, spec)) in vms.iter().zip(&specs).enumerate() {
            let its = seen(&now, spec);
            let ratio = Ratio::new(hz(HZ[0]), hz(HZ[spec.frequency]));
            let saving = Saving {
                name: VmName::new(&name(*vm)).unwrap(),
                stopped_at: stopped_at.get(place).copied().flatten().map(|stopped| ratio.at(stopped)),
                ..Saving::default()
            };
            let alone = RunState::default()
                .checkpoint(&mut Model { vm: &mut bank.vm_mut(*vm).unwrap(), counter: &its }, &saving)
                .unwrap();
            let (alone_vm, index) = (alone.only().unwrap(), set.find(&name(*vm)).unwrap());
            let one = set.vm(index).unwrap();
            // The stop is by the host's counter in the one, and by the VM's in the other.
            prop_assert_eq!((one.stamp(), one.stopped_at()), (its.stamp, saving.stopped_at.map(|stopped| stopped.stamped(NamespaceTicks::NONE))));
            prop_assert_eq!(one.hidden_ticks(), alone_vm.hidden_ticks());
            let but_for_the_stop = |checkpoint: &Checkpoint, index: usize| {
                Vm::time(Contents::of(checkpoint).vms.remove(index), |time| time.stopped_at = None)
            };
            prop_assert_eq!(but_for_the_stop(&set, index), but_for_the_stop(&alone, 0));
        }

        // Into VMs of the same shapes, but in other states.
        counter.advance(later);
        let shapes: Vec<Spec> = specs.iter().zip(targets)
            .map(|(spec, target)| Spec { frequency: spec.frequency, kernel: spec.kernel, el2: spec.el2, vcpus: spec.vcpus, ..target })
            .collect();
        let (mut alone, there) = world(&shapes, counter.count());
        prop_assert_eq!(&there, &vms, "both banks gave out the same handles");
        fired(&mut alone, counter.count());
        let now = instant(&counter);
        let mut together = ManagedBank::from(alone.clone());
        let before: Vec<_> = vms.iter().map(|vm| state(&together.bank().vm(*vm).unwrap(), HostCount(0))).collect();
        let run_states = one_by_one(&mut alone, &vms, &shapes, &now, &set, request);
        let in_order = handles_named(&set).unwrap();
        let report = together.restore(&set, &in_order, &now, request);
        match (run_states, report) {
            (Ok(run_states), Ok(report)) => {
                prop_assert_eq!(report.vms, in_order);
                for ((vm, spec), run_state) in vms.iter().zip(&shapes).zip(run_states) {
                    let here = seen(&now, spec).count();
                    let (it, expected) = (together.bank().vm(*vm).unwrap(), alone.vm(*vm).unwrap());
                    prop_assert_eq!(state(&it, here), state(&expected, here));
                    let owed = together.vm_and_state(*vm).unwrap().0.next_step(hz(HZ[spec.frequency]));
                    prop_assert_eq!(owed, run_state.next_step(hz(HZ[spec.frequency])));
                }
                prop_assert_eq!(fired(together.bank_mut(), now.count()), fired(&mut alone, now.count()));
            }
            (Err(_), Err(_)) => {
                for (vm, before) in vms.iter().zip(before) {
                    prop_assert_eq!(state(&together.bank().vm(*vm).unwrap(), HostCount(0)), before);
                }
            }
            (alone, together) => prop_assert!(false, "one by one {:?}, together {:?}", alone.map(drop), together.map(drop)),
        }
    }

    #[test]
    fn paused_together_is_paused_one_by_one(specs in vec(spec(), 1..6), pause in 0..1_u64 << 30, request in request()) {
        let counter = ManualCounter::new(HostCount(1 << 40), hz(HZ[0]), 5);
        let (mut alone, vms) = world(&specs, counter.count());
        alone.expire(counter.count());
        counter.advance(1000);
        let mut together = ManagedBank::from(alone.clone());
        let first = instant(&counter);
        let pauses = together.pause(&vms, &first, request);
        counter.advance(pause);
        let last = instant(&counter);
        let mut one = |(vm, spec): (&Handle, &Spec)| {
            let (mut run_state, mut vm) = (RunState::default(), alone.vm_mut(*vm).unwrap());
            let pause = run_state.pause(&mut Model { vm: &mut vm, counter: &seen(&first, spec) }, request)?;
            run_state.resume(&mut Model { vm: &mut vm, counter: &seen(&last, spec) }, &pause, pause.policy()).map(|_| run_state)
        };
        let run_states: Result<Vec<RunState>, OperationError<VmError>> = vms.iter().zip(&specs).map(&mut one).collect();
        prop_assert_eq!(run_states.is_ok(), pauses.is_ok());
        let (Ok(run_states), Ok(mut pauses)) = (run_states, pauses) else { return Ok(()) };
        for vm in &vms {
            prop_assert!(together.vm_and_state(*vm).unwrap().0.check_open::<VmError>().is_err(), "no vCPU runs in a pause");
        }
        prop_assert_eq!(together.bank_mut().expire(HostCount(u64::MAX)), [], "nor does a timer fire");
        together.resume(&mut pauses, &last).unwrap();
        for ((vm, spec), run_state) in vms.iter().zip(&specs).zip(run_states) {
            let here = seen(&last, spec).count();
            prop_assert_eq!(state(&together.bank().vm(*vm).unwrap(), here), state(&alone.vm(*vm).unwrap(), here));
            let (now_state, _) = together.vm_and_state(*vm).unwrap();
            prop_assert_eq!(now_state.next_step(hz(HZ[spec.frequency])), run_state.next_step(hz(HZ[spec.frequency])));
            prop_assert!(now_state.check_open::<VmError>().is_ok());
        }
        prop_assert_eq!(fired(together.bank_mut(), last.count()), fired(&mut alone, last.count()));
        prop_assert!(together.resume(&mut pauses, &last).is_err(), "a pause ends once");
    }
}

fn plain() -> Spec {
    Spec {
        frequency: 0,
        kernel: "6.12",
        el2: El2::Absent,
        vcpus: 2,
        offset: Some(1000),
        counts: None,
        registers: vec![(1, 0, 500, 1)],
        cntvoff: 0,
    }
}

#[test]
fn a_set_takes_along_what_its_guests_are_owed() {
    let counter = ManualCounter::new(HostCount(5000), hz(HZ[0]), 0);
    let (bank, vms) = world(&[plain(), plain()], counter.count());
    let mut bank = ManagedBank::from(bank);
    let policy = repaid(160, 1600);
    let mut pause = bank.pause(&vms[..1], &instant(&counter), Request { policy, ..Request::default() }).unwrap();
    counter.advance(1000);
    bank.resume(&mut pause, &instant(&counter)).unwrap();
    let set = bank.checkpoint(&vms, &instant(&counter), SetSaving::default()).unwrap();
    let backlogs: Vec<Option<u64>> =
        set.vms().map(|vm| vm.time().backlog.map(|backlog| backlog.remaining_ticks.get())).collect();
    assert_eq!(backlogs, [Some(1000), None]);
    // To the other one of each.
    bank.restore(&set, &[vms[1], vms[0]], &instant(&counter), Request::default()).unwrap();
    let owed = |bank: &mut ManagedBank, vm| {
        bank.vm_and_state(vm).unwrap().0.next_step(hz(HZ[0])).map(|step| step.backlog_ticks)
    };
    assert_eq!([owed(&mut bank, vms[0]), owed(&mut bank, vms[1])], [None, Some(1000)]);
}

#[test]
fn what_can_be_refused_is_refused_for_all() {
    let counter = ManualCounter::new(HostCount(5000), hz(HZ[0]), 0);
    let (bank, vms) = world(&[plain(), plain()], counter.count());
    let mut bank = ManagedBank::from(bank);
    let saving = SetSaving::default();
    let set = bank.checkpoint(&vms, &instant(&counter), saving).unwrap();
    let now = instant(&counter);
    let expect = |result: Result<Checkpoint, SetError>, error: SetError| assert_eq!(result.unwrap_err(), error);
    let both = ["web", "web"].map(|name| VmName::new(name).unwrap());
    let named = |names| SetSaving { names: Some(names), ..saving };
    expect(bank.checkpoint(&vms, &now, named(&both)), BuildError::SameName { name: "web".into() }.into());
    expect(bank.checkpoint(&vms, &now, named(&both[..1])), SetError::Unequal { saved: 2, here: 1 });
    let at = |count| Some(HostCount(count));
    for stopped_at in [&[at(5000); 3][..], &[at(5000); 4]] {
        let here = stopped_at.len();
        let stopped = SetSaving { stopped_at, ..saving };
        expect(bank.checkpoint(&vms, &now, stopped), SetError::Unequal { saved: 2, here });
    }
    let later = OperationError::StoppedLater { stopped: 5001, saved: 5000 };
    for (stopped_at, vm) in [(&[at(5001)][..], vms[0]), (&[None, at(5001)], vms[1])] {
        let refused = bank.checkpoint(&vms, &now, SetSaving { stopped_at, ..saving });
        expect(refused, SetError::OfVm { handle: vm.0, error: later.clone() });
    }
    let refused = bank.restore(&set, &vms[..1], &now, Request::default()).unwrap_err();
    assert_eq!(refused, SetError::Unequal { saved: 2, here: 1 });

    bank.bank_mut().vm_mut(vms[1]).unwrap().enter(0).unwrap();
    let running = SetError::OfVm { handle: vms[1].0, error: OperationError::Backend(VmError::Running { vcpu: 0 }) };
    expect(bank.checkpoint(&vms, &now, saving), running.clone());
    assert_eq!(bank.restore(&set, &vms, &now, Request::default()).unwrap_err(), running);
    assert_eq!(bank.pause(&vms, &now, Request::default()).unwrap_err(), running);
    bank.bank_mut().vm_mut(vms[1]).unwrap().exit(0, now.count()).unwrap();

    let mut pauses = bank.pause(&vms, &now, Request::default()).unwrap();
    assert!(matches!(
        bank.pause(&vms[1..], &now, Request::default()),
        Err(SetError::OfVm { error: OperationError::Closed, .. })
    ));
    // A restore takes over.
    bank.restore(&set, &vms, &now, Request::default()).unwrap();
    assert!(bank.resume(&mut pauses, &now).is_err());

    let other = bank.add(hz(HZ[0]), Behaviours::named("6.12").unwrap(), Config::default()).unwrap();
    expect(bank.checkpoint(&[other], &now, saving), BuildError::NoVcpus { name: name(other) }.into());
    bank.bank_mut().vm_mut(other).unwrap().create_vcpus(1, now.count()).unwrap();
    let refused = bank.restore(&set, &[vms[0], other], &now, Request::default()).unwrap_err();
    assert!(refused.to_string().contains("vCPUs"), "{refused}");
}

/// Named VMs are in the order of their names; unnamed ones have the digits of their handles.
#[test]
fn a_set_is_restored_by_name() {
    let counter = ManualCounter::new(HostCount(5000), hz(HZ[0]), 0);
    let other = Spec { offset: Some(2000), ..plain() };
    let (bank, vms) = world(&[plain(), other], counter.count());
    let mut bank = ManagedBank::from(bank);
    let names = ["web", "db"].map(|name| VmName::new(name).unwrap());
    let saving = SetSaving { names: Some(&names), ..SetSaving::default() };
    let set = bank.checkpoint(&vms, &instant(&counter), saving).unwrap();
    assert_eq!(set.names().collect::<Vec<_>>(), ["db", "web"]);
    assert_eq!(set.vms().map(|vm| vm.cntvct().0).collect::<Vec<_>>(), [3000, 4000]);
    assert_eq!(handles_named(&set), Err(SetError::NoHandle { name: "db".into() }));
    let report = bank.restore(&set, &[vms[1], vms[0]], &instant(&counter), Request::default()).unwrap();
    assert_eq!((report.vms, report.cntvct), (vec![vms[1], vms[0]], vec![3000, 4000]));
    let own = bank.checkpoint(&vms, &instant(&counter), SetSaving::default()).unwrap();
    let mut handles = handles_named(&own).unwrap();
    handles.sort_by_key(|vm| vm.0);
    assert_eq!(handles, vms);
}

/// VMs that are alike except for their stops have plans of their own.
#[test]
fn each_vm_of_a_set_goes_on_from_its_own_stop() {
    let counter = ManualCounter::new(HostCount(5000), hz(HZ[0]), 0);
    let (bank, vms) = world(&[plain(), plain(), plain()], counter.count());
    let mut bank = ManagedBank::from(bank);
    let stops = [4900, 5000, 4900].map(|count| Some(HostCount(count)));
    let saving = SetSaving { stopped_at: &stops, ..SetSaving::default() };
    let set = bank.checkpoint(&vms, &instant(&counter), saving).unwrap();
    counter.advance(1000);
    for (policy, expected) in [(Policy::FREEZE, [3900, 4000, 3900]), (Policy::ADVANCE, [5000; 3])] {
        let request = Request { policy, elapsed: Some(Elapsed::ByCounter), ..Request::default() };
        let report = bank.restore(&set, &vms, &instant(&counter), request).unwrap();
        assert_eq!((report.cntvct, report.plans.plans.len()), (expected.to_vec(), 2), "{policy}");
    }
}

/// The bytes of a vCPU with two timers, with the deadline queue in use.
#[test]
fn a_vcpu_takes_no_more_memory_than_is_said() {
    const VCPUS: usize = 8192;
    let now = HostCount(1 << 50);
    for (in_a_vm, most) in [(2, 134), (8, 90)] {
        let counter = ManualCounter::new(now, hz(HZ[0]), 0);
        let bank = LockedBank::new(hz(HZ[0]), false);
        let kernel = Behaviours::named("6.12").unwrap();
        let add = |bank: &mut ManagedBank| {
            bank.add_many(VCPUS / in_a_vm, in_a_vm, hz(HZ[0]), kernel, Config::default(), now).unwrap()
        };
        let vms = bank.with(add);
        // With these offsets every timer would have been due at a count of 0.
        let offsets: Vec<u64> = (1..).take(vms.len()).map(|vm| vm << 35).collect();
        bank.with(|bank| bank.bank_mut().set_offsets(&vms, &offsets)).unwrap();
        let vcpus: Vec<Handle> = bank.ask(|bank| bank.vcpu_handles().collect());
        for timer in [Timer::Vtimer, Timer::Ptimer] {
            bank.ask(|bank| bank.set_timers(timer, &vcpus, &vec![1 << 51; VCPUS], &vec![1; VCPUS])).unwrap();
        }
        let before = bank.bytes();
        assert_eq!(bank.ask(|bank| bank.expire(now)), []);
        let with_queue = bank.bytes();
        assert!(before < with_queue && with_queue <= most * VCPUS, "{in_a_vm}: {with_queue} bytes of {VCPUS} vCPUs");
        let mut pause = bank.with(|bank| bank.pause(&vms, &counter, Request::default())).unwrap();
        counter.advance(1000);
        bank.with(|bank| bank.resume(&mut pause, &counter)).unwrap();
        // Every timer fires, and what that took is given back.
        assert_eq!(bank.ask(|bank| bank.expire(HostCount(1 << 62))).len(), 2 * VCPUS);
        assert!(bank.bytes() <= with_queue + 16 * 1024, "{in_a_vm}: {} after {with_queue}", bank.bytes());
    }
}
