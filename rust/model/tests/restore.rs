//! Restores on a backend that misbehaves: what the model never does, and a kernel may.

#[path = "../../core/tests/common/mod.rs"]
mod common;

use common::Contents;
use guestclock_core::arch::Abilities;
use guestclock_core::arch::arm64::{Behaviours, El2, Encoding, Offsets, Role, Timer, View, count_reg, one_reg_id};
use guestclock_core::checkpoint::codec::{decode, encode};
use guestclock_core::checkpoint::{Backlog, BuildError, Checkpoint, NotOneVm, Unknown, VmName};
use guestclock_core::drive::{Backend, Cause, Condition, OperationError, Restore, RestoreError, Saving};
use guestclock_core::restore::{
    Diagnostic, Method, Plan, Policy, Refusal, Repay, Request, RunState, Saved, State, Target, Written, planning,
};
use guestclock_core::time::{Counter, Elapsed, Frequency, HostCount, Offset, Quality, StampCount, SyncBound};
use guestclock_model::config::Config;
use guestclock_model::manual::ManualCounter;
use guestclock_model::vm::ModelVm;
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

/// A timer register that no table has.
const NEW: u64 = Encoding(3, 4, 14, 6, 0).one_reg_id();

const TOLERANCE: u64 = 2;

/// A model VM behind a VMM that is slow, loses writes, or fails; and that has one register more.
struct Odd {
    vm: ModelVm,
    counter: ManualCounter,
    /// Ticks that pass in every call.
    slow: u64,
    /// The writes that fail, by their number.
    fails_at: Option<usize>,
    /// Knowledge of the CPU's CNTPOFF_EL2.
    untrapped: Option<bool>,
    /// Number of attempts to write the offset that find a vCPU running.
    busy: usize,
    /// A register whose writes are lost.
    lost: Option<u64>,
    /// A vCPU of another VM, whose counts are a second behind.
    elsewhere: Option<usize>,
    /// The VM has opted in by a call that nobody here knows of: counts that are set are ignored.
    ignores_counts: bool,
    new: BTreeMap<usize, u64>,
    /// Writes in their order: a vCPU and a register, or the offset.
    writes: Vec<Option<(usize, u64)>>,
}

impl Odd {
    fn new(el2: El2, slow: u64) -> Self {
        let counter = ManualCounter::new(HostCount(1_000_000), Frequency::new(62_500_000).unwrap(), 0);
        let mut vm =
            ModelVm::new(counter.frequency(), Behaviours::named("7.3").unwrap(), Config { el2, ..Config::default() })
                .unwrap();
        for _ in 0..2 {
            vm.create_vcpu(counter.count()).unwrap();
        }
        Self {
            vm,
            counter,
            slow,
            fails_at: None,
            untrapped: Some(true),
            busy: 0,
            lost: None,
            elsewhere: None,
            ignores_counts: false,
            new: BTreeMap::new(),
            writes: Vec::new(),
        }
    }

    fn offsets(&self) -> Offsets {
        self.vm.offsets(0).unwrap()
    }

    fn plan(&mut self, checkpoint: &Checkpoint, policy: Policy) -> Plan {
        let target = Target::of(self).unwrap();
        let vm = checkpoint.only().unwrap();
        planning::same_topology(&vm, &target).unwrap();
        let request = Request { policy, elapsed: Some(Elapsed::ByCounter), ..Request::default() };
        planning::plan(&Saved::from(&vm), &target, self.counter.stamp(), request).unwrap()
    }

    fn write(&mut self, what: Option<(usize, u64)>) -> Result<(), &'static str> {
        self.counter.advance(self.slow);
        if self.fails_at == Some(self.writes.len()) {
            return Err("the write failed");
        }
        self.writes.push(what);
        Ok(())
    }
}

impl Backend for Odd {
    type Error = &'static str;

    fn counter(&self) -> &dyn Counter {
        &self.counter
    }

    fn cntfrq_hz(&self) -> u32 {
        self.vm.cntfrq_hz()
    }

    fn vcpus(&self) -> usize {
        self.vm.vcpus()
    }

    fn abilities(&self) -> Abilities {
        Abilities { counter_offset: true, physical_offset_untrapped: self.untrapped, counter_bits: Some(64) }
    }

    fn reg_list(&mut self, vcpu: usize) -> Result<Vec<u64>, &'static str> {
        let mut list = self.vm.reg_list(vcpu).map_err(|_| "no list")?;
        list.push(NEW);
        // And registers of other units, which are none of ours.
        list.push(Encoding(3, 3, 14, 8, 0).one_reg_id());
        list.push(0x6030_0000_0010_0000);
        Ok(list)
    }

    fn nested(&self) -> bool {
        false
    }

    fn vm_offset(&self) -> Option<Offset> {
        self.vm.vm_offset()
    }

    fn generation(&self) -> u64 {
        self.vm.generation()
    }

    fn stopped(&mut self) -> Result<(), &'static str> {
        self.vm.first_running().map_or(Ok(()), |_| Err("running"))
    }

    fn get_one_reg(&mut self, vcpu: usize, id: u64) -> Result<u64, &'static str> {
        self.counter.advance(self.slow);
        if id == NEW {
            return Ok(self.new.get(&vcpu).copied().unwrap_or_default());
        }
        let value = self.vm.get_one_reg(vcpu, id, self.counter.count()).map_err(|_| "no register");
        self.counter.advance(self.slow);
        let is_count = [View::Virtual, View::Physical].map(count_reg).contains(&id);
        let behind = if is_count && self.elsewhere == Some(vcpu) { 62_500_000 } else { 0 };
        value.map(|value| value.wrapping_sub(behind))
    }

    fn set_one_reg(&mut self, vcpu: usize, id: u64, value: u64) -> Result<(), &'static str> {
        self.write(Some((vcpu, id)))?;
        let is_count = [View::Virtual, View::Physical].map(count_reg).contains(&id);
        if self.lost == Some(id) || is_count && self.ignores_counts {
            return Ok(());
        }
        if id == NEW {
            self.new.insert(vcpu, value);
            return Ok(());
        }
        self.vm.set_one_reg(vcpu, id, value, self.counter.count()).map_err(|_| "no register")
    }

    fn set_counter_offset(&mut self, offset: Offset) -> Result<(), &'static str> {
        if self.busy > 0 {
            self.counter.advance(self.slow);
            self.busy -= 1;
            return Err("busy");
        }
        self.write(None)?;
        if self.lost == Some(count_reg(View::Virtual)) {
            return Ok(());
        }
        self.vm.set_counter_offset(offset, 0).map_err(|_| "busy")
    }

    fn retries(&mut self, error: &Self::Error, attempt: u32) -> bool {
        *error == "busy" && attempt < 9
    }
}

/// The checkpoint of a VM.
fn taken(source: &mut Odd) -> Checkpoint {
    RunState::default().checkpoint(source, &Saving::default()).unwrap()
}

fn checkpoint(el2: El2, slow: u64, opted_in: bool) -> Checkpoint {
    let mut source = Odd::new(el2, slow);
    if opted_in {
        source.set_counter_offset(Offset(400)).unwrap();
    }
    source.new = BTreeMap::from([(0, 5), (1, 6)]);
    for vcpu in 0..2 {
        source.set_one_reg(vcpu, one_reg_id(Role::Cval(Timer::Vtimer)), 7777).unwrap();
        source.set_one_reg(vcpu, one_reg_id(Role::Ctl(Timer::Vtimer)), 1).unwrap();
    }
    taken(&mut source)
}

/// The checkpoint without the register that nobody knows.
fn without_new(checkpoint: &Checkpoint) -> Checkpoint {
    let without = |mut vm: common::Vm| {
        vm.registers.remove(&NEW).unwrap();
        vm
    };
    Contents::of(checkpoint).with(without).made()
}

fn restore(target: &mut Odd, saved: &Checkpoint) -> Result<Written, RestoreError<&'static str>> {
    let plan = target.plan(saved, Policy::FREEZE);
    let mut restore = Restore::prepare(plan, target)?;
    restore.apply(&saved.only().unwrap(), target)?;
    Ok(restore.release(Some(&saved.only().unwrap()), TOLERANCE, target)?.written)
}

#[test]
fn a_register_that_nobody_knows_is_saved_warned_of_and_written_back() {
    let saved = checkpoint(El2::Vhe, 0, true);
    assert_eq!(decode(&encode(&saved)).as_ref(), Ok(&saved));
    let vm = saved.only().unwrap();
    let others: Vec<_> = vm.others().map(|(id, values)| (id, values.iter().collect::<Vec<_>>())).collect();
    assert_eq!(others, [(NEW, vec![5, 6])]);
    let mut target = Odd::new(El2::Vhe, 0);
    let plan = target.plan(&saved, Policy::FREEZE);
    assert!(plan.warnings.contains(&Diagnostic::PassedOn(Unknown::Register(NEW))), "{:?}", plan.warnings);
    restore(&mut target, &saved).unwrap();
    assert_eq!(target.new, BTreeMap::from([(0, 5), (1, 6)]));
    let strict = Request { strict: true, ..Request::default() };
    let refused = planning::plan(&Saved::from(&vm), &Target::of(&mut target).unwrap(), target.counter.stamp(), strict)
        .unwrap_err();
    assert!(matches!(refused, Refusal::Unknown { .. }), "{refused:?}");
}

/// The order, and the budget: two offsets for the VM; CVAL and CTL of two timers for each vCPU of a plain guest.
#[test]
fn what_is_written_and_in_what_order() {
    let saved = without_new(&checkpoint(El2::Absent, 0, true));
    let mut target = Odd::new(El2::Absent, 0);
    restore(&mut target, &saved).unwrap();
    let mut expected = vec![None];
    for timer in [Timer::Vtimer, Timer::Ptimer] {
        for vcpu in 0..2 {
            expected.push(Some((vcpu, one_reg_id(Role::Cval(timer)))));
            expected.push(Some((vcpu, one_reg_id(Role::Ctl(timer)))));
        }
    }
    expected.push(None);
    assert_eq!(target.writes, expected);
    assert_eq!(target.writes.len(), 2 + 4 * 2);

    let saved = without_new(&checkpoint(El2::Vhe, 0, true));
    let mut target = Odd::new(El2::Vhe, 0);
    restore(&mut target, &saved).unwrap();
    let cntvoff = one_reg_id(Role::Cntvoff);
    assert_eq!(target.writes[..3], [None, Some((0, cntvoff)), Some((1, cntvoff))]);
    assert_eq!(target.writes.len(), 2 + (1 + 8) * 2);
}

#[test]
fn a_register_that_does_not_hold_is_found_out() {
    let saved = checkpoint(El2::Vhe, 0, true);
    for (lost, register) in [
        (one_reg_id(Role::Cval(Timer::Vtimer)), "CNTV_CVAL_EL0"),
        (one_reg_id(Role::Ctl(Timer::Vtimer)), "CNTV_CTL_EL0"),
        (NEW, "a register unknown to guestclock"),
    ] {
        let mut target = Odd::new(El2::Vhe, 0);
        target.lost = Some(lost);
        let error = restore(&mut target, &saved).unwrap_err();
        assert!(matches!(error, RestoreError::ReadBack { register: name, .. } if name == register), "{error}");
    }
    // An offset shows in the counts, before any timer is written.
    let mut target = Odd::new(El2::Vhe, 0);
    target.lost = Some(count_reg(View::Virtual));
    let error = restore(&mut target, &saved).unwrap_err();
    let RestoreError::CounterElsewhere { vcpu, view, wanted, found, left, .. } = error else { panic!("{error}") };
    assert_eq!((vcpu, view, wanted, found), (0, View::Physical, 400, 0));
    assert_eq!((left, target.writes.len()), (Condition::Provisional, 1));
}

/// A vCPU whose counter isn't where the VM's is belongs to another VM: nothing is written to it, and the VM gets its own
/// offset back.
#[test]
fn a_vcpu_of_another_vm_is_found_out_before_its_timers_are_written() {
    let saved = checkpoint(El2::Absent, 0, true);
    for (opted_in, left) in [(true, Condition::Untouched), (false, Condition::Provisional)] {
        let mut target = Odd::new(El2::Absent, 0);
        let own = Offset(12);
        if opted_in {
            target.vm.set_counter_offset(own, 0).unwrap();
        }
        let plan = target.plan(&saved, Policy::FREEZE);
        target.elsewhere = Some(1);
        let error = Restore::prepare(plan, &mut target).unwrap_err();
        assert!(matches!(error, RestoreError::CounterElsewhere { vcpu: 1, .. }), "{error}");
        assert_eq!(error.left(), left);
        assert!(target.writes.iter().all(Option::is_none), "no register was written");
        assert_eq!(target.vm.vm_offset() == Some(own), opted_in);
    }
}

/// On a VM that has opted in by the VMM's own call KVM takes no counts: it answers 0 and does nothing.
#[test]
fn counts_that_kvm_ignores_are_no_restore() {
    let saved = checkpoint(El2::Absent, 0, false);
    let mut target = Odd::new(El2::Absent, 1);
    let plan = target.plan(&saved, Policy::FREEZE);
    assert_eq!(plan.method, Method::ByValue);
    target.ignores_counts = true;
    let mut restore = Restore::prepare(plan, &mut target).unwrap();
    restore.apply(&saved.only().unwrap(), &mut target).unwrap();
    let before = target.offsets();
    let error = restore.release(Some(&saved.only().unwrap()), TOLERANCE, &mut target).unwrap_err();
    let RestoreError::CounterElsewhere { cause, left, .. } = error else { panic!("{error}") };
    assert_eq!((cause, left), (Cause::Ignored, Condition::TimersOnly));
    assert_eq!(target.offsets(), before, "the guest's clock is where it was");
}

#[test]
fn a_failure_says_at_which_step_and_stops_there() {
    let saved = checkpoint(El2::Absent, 0, true);
    let mut whole = Odd::new(El2::Absent, 0);
    restore(&mut whole, &saved).unwrap();
    for fails_at in 0..whole.writes.len() {
        let mut target = Odd::new(El2::Absent, 0);
        target.fails_at = Some(fails_at);
        let error = restore(&mut target, &saved).unwrap_err();
        let RestoreError::Backend { step, error: source, left } = &error else { panic!("{error}") };
        assert_eq!(*source, "the write failed");
        assert_eq!(target.writes, whole.writes[..fails_at]);
        let (condition, expected) = match whole.writes[fails_at] {
            None if fails_at == 0 => (Condition::Untouched, String::from("prepare: the provisional offset")),
            None => (Condition::TimersOnly, String::from("release: the final offset")),
            Some((vcpu, id)) if id == NEW => {
                (Condition::Partial, format!("apply: vCPU {vcpu}, a register unknown to guestclock"))
            }
            Some((vcpu, _)) => (Condition::Partial, format!("apply: vCPU {vcpu}, CNT")),
        };
        assert_eq!(*left, condition);
        assert!(step.starts_with(&expected), "{step} / {expected}");
    }
}

/// After a failure the step can be taken again, and the restore then ends as if nothing had been.
#[test]
fn a_step_that_failed_can_be_taken_again() {
    let saved = checkpoint(El2::Absent, 0, true);
    let writes = 2 + 5 * 2;
    for fails_at in 1..writes {
        let mut target = Odd::new(El2::Absent, 0);
        target.fails_at = Some(fails_at);
        let plan = target.plan(&saved, Policy::FREEZE);
        let mut restore = Restore::prepare(plan, &mut target).unwrap();
        if restore.apply(&saved.only().unwrap(), &mut target).is_err() {
            target.fails_at = None;
            restore.apply(&saved.only().unwrap(), &mut target).unwrap();
        }
        if restore.release(Some(&saved.only().unwrap()), TOLERANCE, &mut target).is_err() {
            target.fails_at = None;
            restore.release(Some(&saved.only().unwrap()), TOLERANCE, &mut target).unwrap();
        }
        assert_eq!(target.fails_at, None, "the fault at {fails_at} was met");
        let again = Contents::of(&taken(&mut target)).at(*saved.stamp()).made();
        assert_eq!(again, saved);
    }
}

/// KVM_ARM_VCPU_INIT after `apply` turns the timers off: seen while no guest runs yet, and put right by `apply`.
#[test]
fn a_vcpu_initialised_again_is_found_out_at_the_release() {
    let saved = checkpoint(El2::Absent, 0, true);
    let mut target = Odd::new(El2::Absent, 0);
    let plan = target.plan(&saved, Policy::FREEZE);
    let mut restore = Restore::prepare(plan, &mut target).unwrap();
    restore.apply(&saved.only().unwrap(), &mut target).unwrap();
    target.vm.init_vcpu(1).unwrap();
    let error = restore.release(Some(&saved.only().unwrap()), TOLERANCE, &mut target).unwrap_err();
    let RestoreError::ReadBack { vcpu, register, wrote, read } = error else { panic!("{error}") };
    assert_eq!((vcpu, register, wrote, read), (1, "CNTV_CVAL_EL0", 7777, 0));
    restore.apply(&saved.only().unwrap(), &mut target).unwrap();
    restore.release(Some(&saved.only().unwrap()), TOLERANCE, &mut target).unwrap();
    assert_eq!(target.vm.get_one_reg(1, one_reg_id(Role::Cval(Timer::Vtimer)), HostCount(0)), Ok(7777));
}

/// Every attempt takes a new sample: under Freeze, the time that the attempts took must not be the guest's.
#[test]
fn an_offset_that_is_tried_again_is_of_a_new_sample() {
    let saved = checkpoint(El2::Absent, 0, true);
    let mut target = Odd::new(El2::Absent, 10);
    let plan = target.plan(&saved, Policy::FREEZE);
    target.busy = 3;
    let mut restore = Restore::prepare(plan, &mut target).unwrap();
    restore.apply(&saved.only().unwrap(), &mut target).unwrap();
    target.busy = 5;
    let report = restore.release(Some(&saved.only().unwrap()), TOLERANCE, &mut target).unwrap();
    assert_eq!((report.writes.offsets, report.writes.registers), (2, 5 * 2));
    let late = target.counter.count().since(report.outcome.count);
    // The attempt itself, and two counts that were read back, each of which takes twice as long.
    assert_eq!(late, 10 + 2 * 2 * 10, "the sample is of the attempt that succeeded");
    assert_eq!(report.outcome.cntvct, saved.only().unwrap().cntvct());
    target.busy = usize::MAX;
    let plan = target.plan(&saved, Policy::FREEZE);
    let error = Restore::prepare(plan, &mut target).unwrap_err();
    assert!(matches!(error, RestoreError::Backend { error: "busy", .. }), "{error}");
}

/// Every call takes time. What is measured has to hold all the same, and what was set has to come out near enough.
#[test]
fn by_value_on_a_slow_backend_the_truth_lies_in_what_is_reported() {
    for slow in [0, 1, 5, 60] {
        let saved = checkpoint(El2::Absent, slow, false);
        let vm = saved.only().unwrap();
        let (cntpct, width_ticks) = (vm.cntpct(), vm.time().width_ticks());
        assert_eq!(cntpct.0, saved.stamp().count.0, "nobody moved it");
        assert!(width_ticks <= 2 * slow, "{width_ticks}");
        let mut target = Odd::new(El2::Absent, slow);
        target.counter.advance(123_456);
        let plan = target.plan(&saved, Policy::FREEZE);
        assert_eq!(plan.method, Method::ByValue);
        let mut restore = Restore::prepare(plan, &mut target).unwrap();
        restore.apply(&saved.only().unwrap(), &mut target).unwrap();
        let report = restore.release(Some(&saved.only().unwrap()), TOLERANCE, &mut target).unwrap();
        let bound = report.bound.ticks(report.plan.frequency());
        let Written::ByValue { virt, phys: Some(phys) } = report.written else { panic!("{:?}", report.written) };
        let truth = target.vm.offsets(0).unwrap();
        assert!(virt.contains(truth.virt) && phys.contains(truth.phys), "{:?} {truth:?}", report.written);
        for (wanted, found) in
            [(report.outcome.virtual_offset(), truth.virt), (report.outcome.physical_offset(), truth.phys)]
        {
            let off = found.0.wrapping_sub(wanted.0).cast_signed().unsigned_abs();
            assert!(off <= bound, "{off} {bound}");
        }
        assert!(bound <= width_ticks + 4 * slow, "{bound} at {slow}");
        assert_eq!(target.vm.vm_offset(), None);
    }
}

#[test]
fn a_counter_that_may_be_right_is_not_written() {
    let saved = checkpoint(El2::Absent, 3, false);
    let mut target = Odd::new(El2::Absent, 3);
    target.counter.advance(10_000);
    let plan = target.plan(&saved, Policy::ADVANCE);
    let mut restore = Restore::prepare(plan, &mut target).unwrap();
    restore.apply(&saved.only().unwrap(), &mut target).unwrap();
    target.writes.clear();
    restore.release(Some(&saved.only().unwrap()), TOLERANCE, &mut target).unwrap();
    let physical = Some((0, count_reg(View::Physical)));
    assert!(!target.writes.contains(&physical), "{:?}", target.writes);
    assert_eq!(target.vm.offsets(0).unwrap().phys, Offset(0));
}

/// Without CNTPOFF_EL2 the hardware compares with CVAL + offset, and 64 bits may not hold it.
#[test]
fn a_physical_timer_that_the_hardware_cannot_hold_is_named() {
    let warns = |cval: u64, ctl: u64, counter: u64| {
        let mut source = Odd::new(El2::Absent, 0);
        source.set_counter_offset(Offset(source.counter.count().0.wrapping_sub(counter))).unwrap();
        source.set_one_reg(1, one_reg_id(Role::Cval(Timer::Ptimer)), cval).unwrap();
        source.set_one_reg(1, one_reg_id(Role::Ctl(Timer::Ptimer)), ctl).unwrap();
        let saved = taken(&mut source);
        let mut target = Odd::new(El2::Absent, 0);
        target.untrapped = None;
        let warned = |target: &mut Odd| {
            let warnings = target.plan(&saved, Policy::FREEZE).warnings;
            warnings.into_iter().find(|warning| matches!(warning, Diagnostic::PhysicalTimerMisfires { vcpu: 1, .. }))
        };
        let warning = warned(&mut target);
        target.untrapped = Some(true);
        assert_eq!(warned(&mut target), None, "CNTPOFF_EL2 has no sum to hold");
        warning
    };
    assert!(warns(u64::MAX, 1, 5_000).unwrap().to_string().contains("fires at once"), "the offset is positive");
    assert!(warns(5, 1, 5_000_000).unwrap().to_string().contains("never fires"), "the guest is ahead of its host");
    assert_eq!(warns(u64::MAX, 0, 5_000), None, "it is off");
    assert_eq!(warns(u64::MAX, 1, 5_000_000), None);
    assert_eq!(warns(6_000, 1, 5_000), None);
}

/// Facts that the VMM knows, and the VM doesn't.
#[test]
fn a_checkpoint_has_the_facts_that_its_vmm_names() {
    let mut source = Odd::new(El2::Absent, 0);
    let now = source.counter.count().0;
    let sync =
        SyncBound { max_error_ns: 5, age_ns: 4, holdover_ppb: 3, quality: Quality::Declared, tai_offset_s: Some(37) };
    let saving = Saving {
        name: VmName::new("web-1").unwrap(),
        vmclock_address: Some(0x4000_0000),
        stolen_time: vec![None, Some(0x4100_0040)],
        stopped_at: Some(HostCount(now - 40)),
        sync: Some(sync),
    };
    let run_state = RunState::default();
    let saved = run_state.checkpoint(&mut source, &saving).unwrap();
    let vm = saved.only().unwrap();
    assert_eq!((vm.name(), vm.time().vmclock_address), ("web-1", Some(0x4000_0000)));
    assert_eq!([0, 1].map(|vcpu| vm.stolen_time(vcpu)), [None, Some(0x4100_0040)]);
    assert_eq!((vm.stopped_at(), vm.hidden_ticks()), (Some(StampCount(now - 40)), 40));
    assert_eq!((saved.stamp().sync, saved.stamp().tai_offset_s), (Some(sync), Some(37)));
    assert_eq!(vm.time().frequency_hz.get(), 62_500_000);
    let nothing = taken(&mut source);
    let time = nothing.only().unwrap().time();
    assert_eq!((time.stopped_at, time.vmclock_address, time.backlog), (None, None, None));
    assert_eq!((nothing.only().unwrap().stolen_time(1), nothing.stamp().sync), (None, None));

    let later = Saving { stopped_at: Some(HostCount(now + 1)), ..Saving::default() };
    let refused = run_state.checkpoint(&mut source, &later).unwrap_err();
    assert_eq!(refused, OperationError::StoppedLater { stopped: now + 1, saved: now });
    let one = Saving { stolen_time: vec![None], ..Saving::default() };
    let refused = run_state.checkpoint(&mut source, &one).unwrap_err();
    assert_eq!(refused, BuildError::StolenTime { vcpus: 2, given: 1 }.into());
}

/// The whole way, from the stop of the source to the release.
#[test]
fn a_vm_goes_on_from_its_stop() {
    let mut source = Odd::new(El2::Absent, 0);
    source.set_counter_offset(Offset(400)).unwrap();
    let stop = source.counter.count();
    source.counter.advance(40);
    let saving = Saving { stopped_at: Some(stop), ..Saving::default() };
    let saved = Arc::new(RunState::default().checkpoint(&mut source, &saving).unwrap());
    for (policy, added) in [(Policy::FREEZE, 0), (Policy::ADVANCE, 1040)] {
        let mut target = Odd::new(El2::Absent, 0);
        target.counter.advance(1040);
        let mut run_state = RunState::default();
        let request = Request { policy, elapsed: Some(Elapsed::ByCounter), ..Request::default() };
        let plan = run_state.plan(&mut target, &saved, request).unwrap();
        let mut open = run_state.prepare(&mut target, plan, Arc::clone(&saved)).unwrap();
        run_state.apply(&mut target, &mut open).unwrap();
        let report = run_state.release(&mut target, &mut open).unwrap();
        let expected = stop.guest(Offset(400)).after(added);
        assert_eq!((report.outcome.cntvct, report.outcome.added_ticks), (expected, added), "{policy}");
        assert_eq!(report.stopped_before_ticks, Some(40));
        assert_eq!(target.counter.count().guest(target.vm.offsets(0).unwrap().virt), expected);
    }
}

#[test]
fn a_checkpoint_of_many_vms_is_restored_one_by_one() {
    let saved = taken(&mut Odd::new(El2::Absent, 0));
    let one = Contents::of(&saved);
    let other = common::Vm { name: VmName::new("other").unwrap(), ..one.vms[0].clone() };
    let both = Arc::new(Contents { vms: vec![one.vms[0].clone(), other], ..one }.made());
    let mut target = Odd::new(El2::Absent, 0);
    let mut run_state = RunState::default();
    let refused = OperationError::NotOneVm(NotOneVm { vms: 2 });
    assert_eq!(run_state.plan(&mut target, &both, Request::default()).unwrap_err(), refused);
    let plan = run_state.plan(&mut target, &saved, Request::default()).unwrap();
    assert_eq!(run_state.prepare(&mut target, plan.clone(), Arc::clone(&both)).unwrap_err(), refused);
    run_state.check_open::<&str>().unwrap();
    assert_eq!(target.writes, []);
    let part = Arc::new(both.part(|vm| both.find("other") == Some(vm)));
    run_state.plan(&mut target, &part, Request::default()).unwrap();
    run_state.prepare(&mut target, plan, part).unwrap();
}

#[test]
fn a_vm_without_vcpus_has_no_checkpoint() {
    let mut source = Odd::new(El2::Absent, 0);
    source.vm = ModelVm::new(source.counter.frequency(), Behaviours::named("7.3").unwrap(), Config::default()).unwrap();
    let refused = RunState::default().checkpoint(&mut source, &Saving::default()).unwrap_err();
    assert_eq!(refused, BuildError::NoVcpus { name: String::new() }.into());
}

/// In a checkpoint and in a pause.
#[test]
fn a_backlog_goes_with_its_vm() {
    let mut vm = Odd::new(El2::Absent, 0);
    vm.set_counter_offset(Offset(400)).unwrap();
    let mut run_state = RunState::default();
    let repay = Repay { step_ns: nanoseconds(160), interval_ns: nanoseconds(1600), within_ns: None };
    let paused = |vm: &mut Odd, run_state: &mut RunState, policy| {
        let pause = run_state.pause(vm, Request { policy, ..Request::default() }).unwrap();
        vm.counter.advance(1000);
        run_state.resume(vm, &pause).unwrap().outcome.added_ticks
    };
    let left = |backlog: Option<Backlog>| backlog.map(|backlog| backlog.remaining_ticks.get());
    assert_eq!(paused(&mut vm, &mut run_state, Policy::catch_up(repay, 0)), 0);
    let saved = run_state.checkpoint(&mut vm, &Saving::default()).unwrap();
    assert_eq!(left(saved.only().unwrap().time().backlog), Some(1000));
    // Kept by one pause, and given back at the end of the next.
    assert_eq!(paused(&mut vm, &mut run_state, Policy::FREEZE), 0);
    assert_eq!(left(run_state.backlog()), Some(1000));
    assert_eq!(paused(&mut vm, &mut run_state, Policy::ADVANCE), 2000);
    assert_eq!(left(run_state.backlog()), None);
}

/// A VM's own offset, or the two of one that never opted in.
fn clock(vm: &ModelVm) -> (Option<Offset>, Vec<Offsets>) {
    (vm.vm_offset(), (0..vm.vcpus()).map(|vcpu| vm.offsets(vcpu).unwrap()).collect())
}

#[test]
fn giving_up_gives_back_what_was_owned_and_opens_nothing_else() {
    // Opted in before, or opted in by the restore, or restored by value; and whether a register was written.
    for (own, saved_opted_in) in [(Some(Offset(77)), true), (None, true), (None, false)] {
        for applied in [false, true] {
            let saved = Arc::new(checkpoint(El2::Absent, 0, saved_opted_in));
            let mut target = Odd::new(El2::Absent, 0);
            if let Some(own) = own {
                target.set_counter_offset(own).unwrap();
            }
            let before = clock(&target.vm);
            let mut run = RunState::default();
            let plan = run.plan(&mut target, &saved, Request::default()).unwrap();
            let mut open = run.prepare(&mut target, plan.clone(), Arc::clone(&saved)).unwrap();
            if applied {
                run.apply(&mut target, &mut open).unwrap();
            }
            let written = target.writes.len();
            // Without a call only what was never written comes back.
            assert_eq!(
                (run.abandon(&open), run.state() == State::Open),
                (!applied && !saved_opted_in, !applied && !saved_opted_in)
            );
            let left = run.give_up(&mut target, &mut open).unwrap();
            let goes_back = !applied && (own.is_some() || !saved_opted_in);
            assert_eq!(run.state() == State::Open, goes_back, "{own:?} {saved_opted_in} {applied}");
            assert_eq!(clock(&target.vm) == before, goes_back || !saved_opted_in);
            assert_eq!(
                left,
                match (goes_back, applied) {
                    (true, _) => Condition::Untouched,
                    (_, false) => Condition::Provisional,
                    _ => Condition::TimersOnly,
                }
            );
            assert_eq!(target.writes.len() - written, usize::from(goes_back && own.is_some()));
            // Given up is given up: nothing more comes of it.
            assert_eq!(
                run.give_up(&mut target, &mut open).unwrap_or(left),
                if goes_back { Condition::Untouched } else { left }
            );
            // And the VM can be restored.
            let plan = run.plan(&mut target, &saved, Request::default()).unwrap();
            let mut open = run.prepare(&mut target, plan, Arc::clone(&saved)).unwrap();
            run.apply(&mut target, &mut open).unwrap();
            run.release(&mut target, &mut open).unwrap();
            assert_eq!(run.state(), State::Open);
        }
    }
}

#[test]
fn giving_up_that_fails_leaves_the_vm_closed_and_is_read_back() {
    for (at_give_up, error) in [("busy", "busy"), ("lost", "elsewhere")] {
        let saved = Arc::new(checkpoint(El2::Absent, 0, true));
        let mut target = Odd::new(El2::Absent, 0);
        target.set_counter_offset(Offset(77)).unwrap();
        let mut run = RunState::default();
        let plan = run.plan(&mut target, &saved, Request::default()).unwrap();
        let mut open = run.prepare(&mut target, plan, Arc::clone(&saved)).unwrap();
        match at_give_up {
            "busy" => target.busy = 100,
            _ => target.lost = Some(count_reg(View::Virtual)),
        }
        let found = run.give_up(&mut target, &mut open).unwrap_err();
        match found {
            OperationError::Restore(RestoreError::Backend { error: busy, left, .. }) => {
                assert_eq!((busy, error, left), ("busy", "busy", Condition::Provisional));
            }
            OperationError::Restore(RestoreError::CounterElsewhere { left, wanted, .. }) => {
                assert_eq!((error, left, wanted), ("elsewhere", Condition::Provisional, 77));
            }
            other => panic!("{other}"),
        }
        assert_eq!(run.state(), State::Restoring);
        // Once more, and it goes.
        (target.busy, target.lost) = (0, None);
        assert_eq!(run.give_up(&mut target, &mut open), Ok(Condition::Untouched));
        assert_eq!((run.state(), target.vm.vm_offset()), (State::Open, Some(Offset(77))));
    }
}

#[test]
fn a_vm_opts_in_once_and_is_read_back() {
    let mut run = RunState::default();
    let mut vm = Odd::new(El2::Absent, 0);
    run.opt_in(&mut vm, None).unwrap();
    assert_eq!(vm.vm.vm_offset(), Some(Offset(1_000_000)), "the guest's counters begin at 0");
    assert_eq!(run.opt_in(&mut vm, Some(Offset(5))), Err(OperationError::OptedIn));
    let mut mixed = Odd::new(El2::Absent, 0);
    mixed.elsewhere = Some(1);
    let found = run.opt_in(&mut mixed, Some(Offset(5))).unwrap_err();
    assert!(matches!(found, OperationError::Restore(RestoreError::CounterElsewhere { vcpu: 1, .. })), "{found}");
    assert_eq!(run.state(), State::Restoring);
}

fn nanoseconds(ns: u64) -> NonZeroU64 {
    NonZeroU64::new(ns).unwrap()
}

#[test]
fn a_step_is_taken_when_it_is_due_and_once() {
    let mut target = Odd::new(El2::Absent, 0);
    target.set_counter_offset(Offset(0)).unwrap();
    let mut run = RunState::default();
    let pause = {
        let policy = Policy::catch_up(
            Repay { step_ns: nanoseconds(16 * 60), interval_ns: nanoseconds(16 * 100), within_ns: None },
            0,
        );
        run.pause(&mut target, Request { policy, ..Request::default() }).unwrap()
    };
    target.counter.advance(100);
    run.resume(&mut target, &pause).unwrap();
    let frequency = target.counter.frequency();
    let step = run.next_step(frequency).unwrap();
    assert_eq!((step.ticks, step.backlog_ticks), (60, 100));
    target.counter.advance(99);
    let early = OperationError::StepEarly { due: step.due.0, now: step.due.0 - 1 };
    assert_eq!(run.step(&mut target, step), Err(early));
    assert_eq!(run.next_step(frequency), Some(step));
    target.counter.advance(1);
    assert_eq!(run.step(&mut target, step), Ok(40));
    assert_eq!(run.step(&mut target, step), Err(OperationError::StepOver));
    let last = run.next_step(frequency).unwrap();
    target.counter.advance(1000);
    assert_eq!(run.step(&mut target, last), Ok(0));
    assert_eq!(run.step(&mut target, last), Err(OperationError::NoBacklog));
}
