//! A bank of many VMs against the same VMs each alone: whatever is done to both, every batch gives what each VM gives.

use guestclock_core::arch::arm64::{Behaviours, El2, Role, Timer, View, one_reg_id, timer, view_of};
use guestclock_core::time::{Frequency, HostCount, NO_DEADLINE, Offset, Ratio};
use guestclock_model::bank::{Bank, BankError, Expired, Handle};
use guestclock_model::config::Config;
use guestclock_model::error::VmError;
use guestclock_model::vm::ModelVm;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;

const HZ: [u64; 3] = [62_500_000, 24_000_000, 1_000_000_000];

fn hz(hz: u64) -> Frequency {
    Frequency::new(hz).unwrap()
}

/// A VM alone, with what the deadline queue has to know of it.
struct Alone {
    vm: ModelVm,
    ratio: Ratio,
    /// The timers that are yet to fire, by vCPU and number.
    armed: BTreeMap<(usize, usize), bool>,
    moved: bool,
    /// The levels that were last asked for.
    seen: BTreeMap<(usize, usize), bool>,
}

impl Alone {
    fn timers(&self) -> &'static [Timer] {
        self.vm.config().el2.timers()
    }

    /// CTL as far as a timer goes by it, CVAL, and the guest's count.
    fn timer(&self, vcpu: usize, timer: Timer, now: HostCount) -> (u64, u64, guestclock_core::time::GuestCount) {
        let state = self.vm.timer(vcpu, timer, now).unwrap();
        (state.ctl & 3, state.cval, self.vm.count(vcpu, view_of(timer), now).unwrap())
    }

    fn wrote(&mut self, vcpu: usize, timer: Timer) {
        let (ctl, ..) = self.timer(vcpu, timer, HostCount(0));
        self.armed.insert((vcpu, timer.index()), timer::can_raise(ctl));
    }

    /// Timers that fire at `now`, each once until it is written again.
    fn expire(&mut self, now: HostCount) -> Vec<(u64, usize, Timer)> {
        self.look_again(now);
        let mut fired = Vec::new();
        for vcpu in 0..self.vm.vcpus() {
            for &timer in self.timers() {
                let (_, cval, guest) = self.timer(vcpu, timer, now);
                let armed = self.armed.entry((vcpu, timer.index())).or_insert(false);
                if *armed && timer::condition_met(cval, guest) {
                    *armed = false;
                    fired.push((now.0.saturating_sub(guest.0 - cval), vcpu, timer));
                }
            }
        }
        fired
    }

    fn look_again(&mut self, now: HostCount) {
        for vcpu in 0..self.vm.vcpus() {
            for &timer in self.timers() {
                let (ctl, cval, guest) = self.timer(vcpu, timer, now);
                let to_come = timer::can_raise(ctl) && !timer::condition_met(cval, guest);
                let armed = self.armed.entry((vcpu, timer.index())).or_insert(false);
                *armed |= self.moved && to_come;
            }
        }
        self.moved = false;
    }
}

/// One thing that is done to the bank and to a VM alone.
#[derive(Clone, Debug)]
enum Step {
    Add { frequency: usize, el2: El2, vcpus: usize },
    Remove { vm: usize },
    CreateVcpu { vm: usize },
    InitVcpu { vm: usize, vcpu: usize },
    Run { vm: usize, vcpu: usize },
    SetReg { vm: usize, vcpu: usize, role: Role, value: u64 },
    SetOffsets { vms: Vec<usize>, offset: u64 },
    SetTimers { vms: Vec<usize>, timer: Timer, cval: u64, ctl: u8 },
    Advance { ticks: u64 },
    Look,
    Expire,
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![
        (0..4_usize).prop_map(|timer| Role::Cval(Timer::ALL[timer])),
        (0..4_usize).prop_map(|timer| Role::Ctl(Timer::ALL[timer])),
        Just(Role::Count(View::Virtual)),
        Just(Role::Count(View::Physical)),
        Just(Role::Cntvoff),
        Just(Role::Cntkctl),
    ]
}

/// Counts near where the counter is, near its ends, and any.
fn count() -> impl Strategy<Value = u64> {
    prop_oneof![0..5000_u64, (0..5000_u64).prop_map(u64::wrapping_neg), any::<u64>(), Just(1), Just(3), Just(u64::MAX)]
}

fn step() -> impl Strategy<Value = Step> {
    let (vm, vcpu) = (0..6_usize, 0..3_usize);
    let el2 = prop_oneof![Just(El2::Absent), Just(El2::Absent), Just(El2::Vhe), Just(El2::E2h0)];
    let set_reg = (vm.clone(), vcpu.clone(), role(), count());
    let set_timers = (vec(vm.clone(), 1..4), 0..4_usize, count(), 0..8_u8);
    prop_oneof![
        1 => (0..HZ.len(), el2, 0..4_usize).prop_map(|(frequency, el2, vcpus)| Step::Add { frequency, el2, vcpus }),
        1 => vm.clone().prop_map(|vm| Step::Remove { vm }),
        1 => vm.clone().prop_map(|vm| Step::CreateVcpu { vm }),
        1 => (vm.clone(), vcpu.clone()).prop_map(|(vm, vcpu)| Step::InitVcpu { vm, vcpu }),
        1 => (vm.clone(), vcpu).prop_map(|(vm, vcpu)| Step::Run { vm, vcpu }),
        4 => set_reg.prop_map(|(vm, vcpu, role, value)| Step::SetReg { vm, vcpu, role, value }),
        1 => (vec(vm, 1..4), count()).prop_map(|(vms, offset)| Step::SetOffsets { vms, offset }),
        3 => set_timers
            .prop_map(|(vms, timer, cval, ctl)| Step::SetTimers { vms, timer: Timer::ALL[timer], cval, ctl }),
        2 => count().prop_map(|ticks| Step::Advance { ticks }),
        2 => Just(Step::Look),
        2 => Just(Step::Expire),
    ]
}

struct World {
    bank: Bank,
    alone: BTreeMap<Handle, Alone>,
    gone: Vec<Handle>,
    now: HostCount,
}

impl World {
    fn new() -> Self {
        Self { bank: Bank::new(hz(HZ[0]), true), alone: BTreeMap::new(), gone: Vec::new(), now: HostCount(10_000) }
    }

    fn pick(&self, vm: usize) -> Option<Handle> {
        self.alone.keys().nth(vm).copied()
    }

    fn picked(&self, vms: &[usize]) -> Vec<Handle> {
        let mut picked: Vec<Handle> = vms.iter().filter_map(|vm| self.pick(*vm)).collect();
        picked.sort_unstable();
        picked.dedup();
        picked
    }

    fn here(&self, vm: Handle) -> HostCount {
        self.alone[&vm].ratio.at(self.now)
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Add { frequency, el2, vcpus } => {
                let config = Config { el2, ..Config::default() };
                let (frequency, behaviours) = (hz(HZ[frequency]), Behaviours::named("7.3").unwrap());
                let vm = self.bank.add(frequency, behaviours, config).unwrap();
                assert!(!self.alone.contains_key(&vm) && !self.gone.contains(&vm), "a handle is given once");
                let mut alone = ModelVm::new(frequency, behaviours, config).unwrap();
                let ratio = Ratio::new(hz(HZ[0]), frequency);
                self.bank.vm_mut(vm).unwrap().create_vcpus(vcpus, ratio.at(self.now)).unwrap();
                alone.create_vcpus(vcpus, ratio.at(self.now)).unwrap();
                let (armed, seen) = (BTreeMap::new(), BTreeMap::new());
                self.alone.insert(vm, Alone { vm: alone, ratio, armed, moved: false, seen });
            }
            Step::Remove { vm } => {
                let Some(vm) = self.pick(vm) else { return };
                self.bank.remove(vm).unwrap();
                self.alone.remove(&vm);
                self.gone.push(vm);
            }
            Step::CreateVcpu { vm } => {
                self.both(vm, |vm, now| vm.create_vcpu(now).map(drop), |vm, now| vm.create_vcpu(now).map(drop));
            }
            Step::InitVcpu { vm, vcpu } => {
                let done = self.both(vm, |vm, _| vm.init_vcpu(vcpu), |vm, _| vm.init_vcpu(vcpu));
                if let Some(alone) = done {
                    for &timer in alone.timers() {
                        alone.wrote(vcpu, timer);
                    }
                }
            }
            Step::Run { vm, vcpu } => {
                let Some(handle) = self.pick(vm) else { return };
                let running = self.alone[&handle].vm.first_running();
                let run = |running: Option<usize>| running.map_or((vcpu, true), |running| (running, false));
                let (vcpu, enters) = run(running);
                if enters {
                    self.both(vm, |vm, _| vm.enter(vcpu), |vm, _| vm.enter(vcpu));
                } else {
                    self.both(vm, |vm, now| vm.exit(vcpu, now), |vm, now| vm.exit(vcpu, now));
                }
            }
            Step::SetReg { vm, vcpu, role, value } => {
                let id = one_reg_id(role);
                let set = |vm: &mut ModelVm, now| vm.set_one_reg(vcpu, id, value, now);
                let done = self.both(vm, |vm, now| vm.set_one_reg(vcpu, id, value, now), set);
                if let (Some(alone), Role::Cval(timer) | Role::Ctl(timer)) = (done, role) {
                    alone.wrote(vcpu, timer);
                }
            }
            Step::SetOffsets { vms, offset } => {
                let vms = self.picked(&vms);
                let refused = vms.iter().any(|vm| self.alone[vm].vm.first_running().is_some());
                let done = self.bank.set_offsets(&vms, &vec![offset; vms.len()]);
                assert_eq!(done.is_err(), refused);
                for vm in vms.iter().filter(|_| !refused) {
                    let alone = self.alone.get_mut(vm).unwrap();
                    alone.vm.set_counter_offset(Offset(offset), 0).unwrap();
                    alone.moved = true;
                }
            }
            Step::SetTimers { vms, timer, cval, ctl } => {
                let vms = self.picked(&vms);
                let vcpus: Vec<Handle> =
                    vms.iter().filter(|vm| self.alone[vm].vm.vcpus() > 1).map(|vm| vm.vcpu(1)).collect();
                let cvals: Vec<u64> = (0..).map(|more| cval.wrapping_add(more)).take(vcpus.len()).collect();
                let refused = vcpus.iter().any(|vcpu| {
                    let alone = &self.alone[&vcpu.vm()];
                    !alone.timers().contains(&timer) || alone.vm.first_running() == Some(1)
                });
                let done = self.bank.set_timers(timer, &vcpus, &cvals, &vec![ctl; vcpus.len()]);
                assert_eq!(done.is_err(), refused);
                for (vcpu, cval) in vcpus.iter().zip(cvals).filter(|_| !refused) {
                    let (now, alone) = (self.here(vcpu.vm()), self.alone.get_mut(&vcpu.vm()).unwrap());
                    alone.vm.set_one_reg(1, one_reg_id(Role::Cval(timer)), cval, now).unwrap();
                    alone.vm.set_one_reg(1, one_reg_id(Role::Ctl(timer)), ctl.into(), now).unwrap();
                    alone.wrote(1, timer);
                }
            }
            Step::Advance { ticks } => self.now = self.now.after(ticks),
            Step::Look => self.look(),
            Step::Expire => self.expire(),
        }
    }

    /// Does the same to the bank's VM and to the one alone. Both refuse alike; a change of theirs may be of an offset.
    fn both(
        &mut self,
        vm: usize,
        change: impl FnOnce(&mut ModelVm<&mut Bank>, HostCount) -> Result<(), VmError>,
        alone: impl FnOnce(&mut ModelVm, HostCount) -> Result<(), VmError>,
    ) -> Option<&mut Alone> {
        let vm = self.pick(vm)?;
        let now = self.here(vm);
        let done = change(&mut self.bank.vm_mut(vm).unwrap(), now);
        let it = self.alone.get_mut(&vm).unwrap();
        let before: Vec<_> = (0..it.vm.vcpus()).map(|vcpu| it.vm.offsets(vcpu)).collect();
        assert_eq!(done, alone(&mut it.vm, now));
        let after: Vec<_> = (0..it.vm.vcpus()).map(|vcpu| it.vm.offsets(vcpu)).collect();
        it.moved |= before != after;
        done.is_ok().then_some(it)
    }

    fn look(&mut self) {
        let now = self.now;
        for gone in &self.gone {
            assert_eq!(self.bank.vm(*gone).err(), Some(BankError::NoSuchVm { handle: gone.0 }));
        }
        assert_eq!(self.bank.len(), self.alone.len());
        let vcpus: Vec<Handle> = self.bank.vcpu_handles().collect();
        let mut expected: Vec<Handle> =
            self.alone.iter().flat_map(|(vm, it)| (0..it.vm.vcpus()).map(|n| vm.vcpu(n.try_into().unwrap()))).collect();
        let mut sorted = vcpus.clone();
        sorted.sort_unstable();
        expected.sort_unstable();
        assert_eq!(sorted, expected);
        // All, and some of them backwards.
        let some: Vec<Handle> = vcpus.iter().rev().step_by(2).copied().collect();
        let all = self.bank.all();
        let selection = self.bank.select(&some).unwrap();
        for (selection, vcpus) in [(&all, &vcpus), (&selection, &some)] {
            let rows = selection.len();
            assert_eq!(rows, vcpus.len());
            for view in [View::Virtual, View::Physical] {
                let mut counts = vec![0; rows];
                self.bank.counts(now, view, selection, &mut counts);
                let expected: Vec<u64> = vcpus
                    .iter()
                    .map(|vcpu| self.of(*vcpu, |vm, vcpu, now| vm.count(vcpu, view, now).unwrap().0))
                    .collect();
                assert_eq!(counts, expected);
            }
            let (mut istatus, mut line) = (vec![true; 4 * rows], vec![true; 4 * rows]);
            let mut next = vec![0; rows];
            self.bank.evaluate(now, selection, &mut istatus, &mut line, &mut next);
            for timer in Timer::ALL {
                for (row, vcpu) in vcpus.iter().enumerate() {
                    let (there, met, high) = self.of(*vcpu, |vm, vcpu, now| {
                        let state = vm.timer(vcpu, timer, now);
                        state.map_or((false, false, false), |state| (true, state.ctl & 4 != 0, state.line))
                    });
                    let at = timer.index() * rows + row;
                    // A timer that the guest hasn't got is off, and compares with 0.
                    assert_eq!((line[at], istatus[at] || !there), (high, met || !there));
                }
            }
            let mut deadlines = vec![0; rows];
            self.bank.next_deadlines(now, selection, &mut deadlines);
            let expected: Vec<u64> = vcpus.iter().map(|vcpu| self.deadline(*vcpu)).collect();
            assert_eq!((deadlines, next), (expected.clone(), expected));
        }
        let vms: Vec<Handle> = self.bank.handles().collect();
        let expected: Vec<u64> = vms
            .iter()
            .map(|vm| {
                let vcpus = 0..u16::try_from(self.alone[vm].vm.vcpus()).unwrap();
                vcpus.map(|vcpu| self.deadline(vm.vcpu(vcpu))).min().unwrap_or(NO_DEADLINE)
            })
            .collect();
        for (selected, expected) in [(None, expected.clone()), (Some(&vms[..]), expected)] {
            let mut of_vms = vec![0; vms.len()];
            self.bank.next_deadlines_of_vms(now, selected, &mut of_vms).unwrap();
            assert_eq!(of_vms, expected);
        }
        for (handle, it) in &self.alone {
            let (vm, here) = (self.bank.vm(*handle).unwrap(), self.here(*handle));
            for (vcpu, id) in
                (0..it.vm.vcpus()).flat_map(|vcpu| it.vm.reg_list(vcpu).unwrap().into_iter().map(move |id| (vcpu, id)))
            {
                assert_eq!(vm.get_one_reg(vcpu, id, here), it.vm.get_one_reg(vcpu, id, here), "{id:#x}");
            }
        }
        self.changes();
    }

    fn changes(&mut self) {
        let now = self.now;
        let changes = self.bank.changes(now);
        let found: BTreeMap<_, _> = changes.iter().map(|it| ((it.vcpu, it.timer), it.level)).collect();
        assert_eq!(found.len(), changes.len());
        let mut expected = BTreeMap::new();
        for (handle, it) in &mut self.alone {
            for vcpu in 0..it.vm.vcpus() {
                for &timer in it.timers() {
                    let level = it.vm.timer(vcpu, timer, it.ratio.at(now)).unwrap().line;
                    if it.seen.insert((vcpu, timer.index()), level).unwrap_or(false) != level {
                        expected.insert((handle.vcpu(vcpu.try_into().unwrap()), timer), level);
                    }
                }
            }
        }
        assert_eq!(found, expected);
    }

    fn expire(&mut self) {
        let now = self.now;
        let next = self.bank.next_deadline(now);
        let mut expected = Vec::new();
        let mut first = NO_DEADLINE;
        for (vm, it) in &mut self.alone {
            let here = it.ratio.at(now);
            it.look_again(here);
            for ((vcpu, timer), _) in it.armed.clone().into_iter().filter(|(_, armed)| *armed) {
                let (_, cval, guest) = it.timer(vcpu, Timer::ALL[timer], here);
                let deadline = here.0.saturating_add(timer::ticks_until(cval, guest)).min(NO_DEADLINE - 1);
                first = first.min(back(it.ratio, deadline, here, now));
            }
            for (deadline, vcpu, timer) in it.expire(here) {
                let deadline = if it.ratio.is_one() {
                    deadline
                } else {
                    it.ratio.inner_count(HostCount(deadline), now).map_or(now.0, |count| count.0.min(now.0))
                };
                expected.push(Expired { deadline, vcpu: vm.vcpu(vcpu.try_into().unwrap()), timer });
            }
        }
        expected.sort_unstable();
        assert_eq!(next, first);
        assert_eq!(self.bank.expire(now), expected);
    }

    fn of<T>(&self, vcpu: Handle, look: impl FnOnce(&ModelVm, usize, HostCount) -> T) -> T {
        look(&self.alone[&vcpu.vm()].vm, vcpu.number().into(), self.here(vcpu.vm()))
    }

    fn deadline(&self, vcpu: Handle) -> u64 {
        let here = self.here(vcpu.vm());
        let deadline = self.of(vcpu, |vm, vcpu, now| vm.next_deadline(vcpu, now).unwrap());
        back(self.alone[&vcpu.vm()].ratio, deadline, here, self.now)
    }
}

/// A deadline in a VM's own counts, as one of the bank's counter.
fn back(ratio: Ratio, deadline: u64, here: HostCount, now: HostCount) -> u64 {
    if ratio.is_one() || deadline == NO_DEADLINE {
        return deadline;
    }
    if deadline == here.0 {
        return now.0;
    }
    ratio.inner_count(HostCount(deadline), now).map_or(NO_DEADLINE - 1, |count| count.0.min(NO_DEADLINE - 1))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_bank_is_its_vms(steps in vec(step(), 1..60)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
        }
        world.look();
        world.expire();
    }
}

#[test]
fn a_timer_that_fired_is_to_come_again_when_its_vm_goes_back() {
    let mut bank = Bank::new(hz(HZ[0]), false);
    let vm = bank.add(hz(HZ[0]), Behaviours::named("6.12").unwrap(), Config::default()).unwrap();
    bank.vm_mut(vm).unwrap().create_vcpus(1, HostCount(0)).unwrap();
    bank.set_offsets(&[vm], &[100]).unwrap();
    bank.set_timers(Timer::Vtimer, &[vm], &[50], &[1]).unwrap();
    let fired = |deadline| vec![Expired { deadline, vcpu: vm, timer: Timer::Vtimer }];
    assert_eq!((bank.expire(HostCount(160)), bank.expire(HostCount(170))), (fired(150), vec![]));
    assert_eq!(bank.next_deadline(HostCount(170)), NO_DEADLINE, "it was reported");
    // Its guest is at 70, then at 20 again, as after a restore of an older checkpoint.
    bank.set_offsets(&[vm], &[150]).unwrap();
    assert_eq!(bank.next_deadline(HostCount(170)), 200);
    assert_eq!(bank.expire(HostCount(200)), fired(200));
    // It stays past its deadline: nothing is to come.
    bank.set_offsets(&[vm], &[140]).unwrap();
    assert_eq!(bank.expire(HostCount(200)), vec![]);
}

#[test]
fn rows_that_move_take_all_of_a_vcpu_along() {
    let mut bank = Bank::new(hz(HZ[0]), false);
    let mut add = || {
        let vm = bank.add(hz(HZ[0]), Behaviours::named("7.3").unwrap(), Config::default()).unwrap();
        bank.vm_mut(vm).unwrap().create_vcpus(1, HostCount(5)).unwrap();
        vm
    };
    let (vm, next, last) = (add(), add(), add());
    let registers = [(Role::Ctl(Timer::Ptimer), !4), (Role::Cval(Timer::Vtimer), 77), (Role::Cntkctl, 99)];
    let as_written = |bank: &Bank, vm: Handle| {
        let vm = bank.vm(vm).unwrap();
        registers.iter().all(|(role, value)| vm.get_one_reg(0, one_reg_id(*role), HostCount(9)) == Ok(*value))
    };
    for vm in [vm, last] {
        for (role, value) in registers {
            bank.vm_mut(vm).unwrap().set_one_reg(0, one_reg_id(role), value, HostCount(5)).unwrap();
        }
    }
    bank.vm_mut(vm).unwrap().create_vcpu(HostCount(6)).unwrap();
    assert!(as_written(&bank, vm) && as_written(&bank, last), "moved to the end");
    bank.remove(next).unwrap();
    assert_eq!(bank.vcpu_handles().count(), 3);
    assert!(as_written(&bank, vm) && as_written(&bank, last), "moved together");
}

#[test]
fn what_is_refused_leaves_all_as_it_was() {
    let mut bank = Bank::new(hz(HZ[0]), false);
    let (old, kernel) = (Behaviours::named("6.1").unwrap(), Behaviours::named("6.12").unwrap());
    let nested = Config { el2: El2::Vhe, ..Config::default() };
    assert_eq!(bank.add(hz(HZ[0]), Behaviours::named("7.3").unwrap(), nested), Err(BankError::TwoTimers));
    let one = bank.add(hz(HZ[0]), kernel, Config::default()).unwrap();
    let other = bank.add(hz(HZ[0]), old, Config::default()).unwrap();
    for vm in [one, other] {
        bank.vm_mut(vm).unwrap().create_vcpus(2, HostCount(50)).unwrap();
    }
    let refused = bank.set_offsets(&[one, other], &[1, 2]).unwrap_err();
    assert_eq!(refused, BankError::OfVm { handle: other.0, error: VmError::NoCounterOffset });
    assert_eq!(bank.vm(one).unwrap().vm_offset(), None);
    assert_eq!(bank.set_offsets(&[one, one], &[1, 2]), Err(BankError::Duplicate { handle: one.0 }));
    let refused = bank.set_timers(Timer::Hvtimer, &[one.vcpu(0)], &[1], &[1]).unwrap_err();
    assert_eq!(refused, BankError::OfVm { handle: one.0, error: VmError::NoSuchTimer { timer: Timer::Hvtimer } });
    bank.vm_mut(other).unwrap().enter(1).unwrap();
    let vcpus = [one.vcpu(0), other.vcpu(1)];
    let refused = bank.set_timers(Timer::Vtimer, &vcpus, &[9, 9], &[1, 1]).unwrap_err();
    assert_eq!(refused, BankError::OfVm { handle: other.0, error: VmError::Running { vcpu: 1 } });
    assert_eq!(bank.vm(one).unwrap().timer(0, Timer::Vtimer, HostCount(50)).unwrap().cval, 0);
    assert_eq!(bank.select(&[one.vcpu(2)]).unwrap_err(), BankError::NoSuchVcpu { handle: one.0 + 2, vcpus: 2 });
    assert_eq!(bank.select(&[Handle(-1)]).unwrap_err(), BankError::NoSuchVm { handle: -1 });
    assert_eq!(bank.remove(one.vcpu(1)), Err(BankError::NoSuchVm { handle: one.0 + 1 }));
}
