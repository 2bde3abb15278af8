//! Sets of VMs against the same VMs one by one: what is saved, restored, paused and let go on, and what is refused.

use guestclock_core::arch::arm64::{Behaviours, El2, Role, Timer, View, one_reg_id};
use guestclock_core::checkpoint::CheckpointSet;
use guestclock_core::drive::{OperationError, Saving};
use guestclock_core::restore::{Deadlines, Policy, Repay, Request, RunState, Views};
use guestclock_core::time::{Counter, Frequency, HostCount, Instant, Offset, Ratio};
use guestclock_model::backend::Model;
use guestclock_model::bank::{Bank, Handle};
use guestclock_model::config::Config;
use guestclock_model::error::VmError;
use guestclock_model::managed::ManagedBank;
use guestclock_model::manual::ManualCounter;
use guestclock_model::sets::{SetError, handle_named, own_names};
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
    Instant(counter.stamp())
}

/// The same by a VM's own counter.
fn seen(instant: &Instant, spec: &Spec) -> Instant {
    Instant(Ratio::new(hz(HZ[0]), hz(HZ[spec.frequency])).instant(instant.0))
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
    let same = prop_oneof![Just(None), Just(Some(true))];
    (policy, views, deadlines, same).prop_map(|(policy, views, deadlines, same_counter)| Request {
        policy,
        views,
        deadlines,
        same_counter,
        ..Request::default()
    })
}

fn one_by_one(
    bank: &mut Bank,
    vms: &[Handle],
    specs: &[Spec],
    now: &Instant,
    set: &CheckpointSet,
    request: Request,
) -> Result<Vec<RunState>, OperationError<VmError>> {
    let restore = |(vm, spec): (&Handle, &Spec)| {
        let (mut run_state, mut vm_mut) = (RunState::default(), bank.vm_mut(*vm).unwrap());
        let counter = seen(now, spec);
        let backend = &mut Model { vm: &mut vm_mut, counter: &counter };
        let saved = Arc::new(set.get(set.find(vm.0.cast_unsigned()).unwrap()).unwrap());
        let plan = run_state.plan(backend, &saved, request)?;
        let mut open = run_state.prepare(backend, plan, saved)?;
        run_state.apply(backend, &mut open)?;
        run_state.release(backend, &mut open)?;
        Ok(run_state)
    };
    vms.iter().zip(specs).map(restore).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_set_is_its_vms(specs in vec(spec(), 1..6), targets in vec(spec(), 6), later in 0..1_u64 << 30, request in request()) {
        let counter = ManualCounter::new(HostCount(1 << 40), hz(HZ[0]), 5);
        let (mut bank, vms) = world(&specs, counter.count());
        counter.advance(1000);
        let now = instant(&counter);
        let set = ManagedBank::from(bank.clone()).checkpoint(&vms, &own_names(&vms), &now, Saving::default()).unwrap();
        prop_assert_eq!(set.validate(), Ok(()));
        for (vm, spec) in vms.iter().zip(&specs) {
            let alone = RunState::default()
                .checkpoint(&mut Model { vm: &mut bank.vm_mut(*vm).unwrap(), counter: &seen(&now, spec) }, Saving::default())
                .unwrap();
            prop_assert_eq!(set.get(set.find(vm.0.cast_unsigned()).unwrap()), Some(alone));
        }

        // Into VMs of the same shapes, but in other states.
        counter.advance(later);
        let shapes: Vec<Spec> = specs.iter().zip(targets)
            .map(|(spec, target)| Spec { frequency: spec.frequency, kernel: spec.kernel, el2: spec.el2, vcpus: spec.vcpus, ..target })
            .collect();
        let (mut alone, there) = world(&shapes, counter.count());
        prop_assert_eq!(&there, &vms, "both banks gave out the same handles");
        let now = instant(&counter);
        let mut together = ManagedBank::from(alone.clone());
        let before: Vec<_> = vms.iter().map(|vm| state(&together.bank().vm(*vm).unwrap(), HostCount(0))).collect();
        let run_states = one_by_one(&mut alone, &vms, &shapes, &now, &set, request);
        let in_order: Vec<Handle> = set.groups.iter().flat_map(|group| &group.names).map(|name| handle_named(*name)).collect();
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
        counter.advance(1000);
        let mut together = ManagedBank::from(alone.clone());
        let first = instant(&counter);
        let pauses = together.pause(&vms, &first, request);
        counter.advance(pause);
        let last = instant(&counter);
        let mut one = |(vm, spec): (&Handle, &Spec)| {
            let (mut run_state, mut vm) = (RunState::default(), alone.vm_mut(*vm).unwrap());
            let pause = run_state.pause(&mut Model { vm: &mut vm, counter: &seen(&first, spec) }, request)?;
            run_state.resume(&mut Model { vm: &mut vm, counter: &seen(&last, spec) }, &pause).map(|_| run_state)
        };
        let run_states: Result<Vec<RunState>, OperationError<VmError>> = vms.iter().zip(&specs).map(&mut one).collect();
        prop_assert_eq!(run_states.is_ok(), pauses.is_ok());
        let (Ok(run_states), Ok(pauses)) = (run_states, pauses) else { return Ok(()) };
        for vm in &vms {
            prop_assert!(together.vm_and_state(*vm).unwrap().0.check_open::<VmError>().is_err(), "no vCPU runs in a pause");
        }
        together.resume(&pauses, &last).unwrap();
        for ((vm, spec), run_state) in vms.iter().zip(&specs).zip(run_states) {
            let here = seen(&last, spec).count();
            prop_assert_eq!(state(&together.bank().vm(*vm).unwrap(), here), state(&alone.vm(*vm).unwrap(), here));
            let (now_state, _) = together.vm_and_state(*vm).unwrap();
            prop_assert_eq!(now_state.next_step(hz(HZ[spec.frequency])), run_state.next_step(hz(HZ[spec.frequency])));
            prop_assert!(now_state.check_open::<VmError>().is_ok());
        }
        prop_assert!(together.resume(&pauses, &last).is_err(), "a pause ends once");
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
    let pause = bank.pause(&vms[..1], &instant(&counter), Request { policy, ..Request::default() }).unwrap();
    counter.advance(1000);
    bank.resume(&pause, &instant(&counter)).unwrap();
    let set = bank.checkpoint(&vms, &own_names(&vms), &instant(&counter), Saving::default()).unwrap();
    let backlogs: Vec<Option<u64>> =
        (0..2).map(|vm| set.get(vm).unwrap().backlog.map(|backlog| backlog.remaining_ticks.get())).collect();
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
    let (names, saving) = (own_names(&vms), Saving::default());
    let set = bank.checkpoint(&vms, &names, &instant(&counter), saving).unwrap();
    let now = instant(&counter);
    let expect = |result: Result<CheckpointSet, SetError>, error: SetError| assert_eq!(result.unwrap_err(), error);
    expect(bank.checkpoint(&vms, &[7, 7], &now, saving), SetError::SameName { name: 7 });
    expect(bank.checkpoint(&vms, &[7], &now, saving), SetError::Unequal { saved: 2, here: 1 });
    let refused = bank.restore(&set, &vms[..1], &now, Request::default()).unwrap_err();
    assert_eq!(refused, SetError::Unequal { saved: 2, here: 1 });

    bank.bank_mut().vm_mut(vms[1]).unwrap().enter(0).unwrap();
    let running = SetError::OfVm { handle: vms[1].0, error: OperationError::Backend(VmError::Running { vcpu: 0 }) };
    expect(bank.checkpoint(&vms, &names, &now, saving), running.clone());
    assert_eq!(bank.restore(&set, &vms, &now, Request::default()).unwrap_err(), running);
    assert_eq!(bank.pause(&vms, &now, Request::default()).unwrap_err(), running);
    bank.bank_mut().vm_mut(vms[1]).unwrap().exit(0, now.count()).unwrap();

    let pauses = bank.pause(&vms, &now, Request::default()).unwrap();
    assert!(matches!(
        bank.pause(&vms[1..], &now, Request::default()),
        Err(SetError::OfVm { error: OperationError::Closed, .. })
    ));
    // A restore takes over.
    bank.restore(&set, &vms, &now, Request::default()).unwrap();
    assert!(bank.resume(&pauses, &now).is_err());

    let other = bank.add(hz(HZ[0]), Behaviours::named("6.12").unwrap(), Config::default()).unwrap();
    expect(bank.checkpoint(&[other], &own_names(&[other]), &now, saving), SetError::NoVcpus { handle: other.0 });
    bank.bank_mut().vm_mut(other).unwrap().create_vcpus(1, now.count()).unwrap();
    let refused = bank.restore(&set, &[vms[0], other], &now, Request::default()).unwrap_err();
    assert!(refused.to_string().contains("vCPUs"), "{refused}");
}
