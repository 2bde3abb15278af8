//! Restores on a backend that misbehaves: what the model never does, and a kernel may.

use guestclock_core::arch::Abilities;
use guestclock_core::arch::arm64::{Behaviours, El2, Encoding, Role, Timer, View, count_reg, one_reg_id};
use guestclock_core::checkpoint::{Checkpoint, RegisterColumn, Unknown};
use guestclock_core::drive::{Backend, Condition, Restore, RestoreError, TimerCapture, capture};
use guestclock_core::restore::{Diagnostic, Method, Plan, Policy, Refusal, Request, Target, Written, planning};
use guestclock_core::time::{Counter, Frequency, HostCount, Offset};
use guestclock_model::config::Config;
use guestclock_model::manual::ManualCounter;
use guestclock_model::vm::ModelVm;
use std::collections::BTreeMap;

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
    /// What is known of its CPU's CNTPOFF_EL2.
    untrapped: Option<bool>,
    /// How many attempts to write the offset find a vCPU running.
    busy: usize,
    /// A register whose writes are lost.
    lost: Option<u64>,
    new: BTreeMap<usize, u64>,
    /// What was written, in order: a vCPU and a register, or the offset.
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
            new: BTreeMap::new(),
            writes: Vec::new(),
        }
    }

    fn plan(&mut self, checkpoint: &Checkpoint, policy: Policy) -> Plan {
        let target = Target::of(self).unwrap();
        planning::same_topology(checkpoint, &target).unwrap();
        let request = Request { policy, same_counter: Some(true), ..Request::default() };
        planning::plan(checkpoint, &target, self.counter.stamp(), request).unwrap()
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
        value
    }

    fn set_one_reg(&mut self, vcpu: usize, id: u64, value: u64) -> Result<(), &'static str> {
        self.write(Some((vcpu, id)))?;
        if self.lost == Some(id) {
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
    capture(&mut source, TimerCapture::Saved).unwrap()
}

fn restore(target: &mut Odd, saved: &Checkpoint) -> Result<Written, RestoreError<&'static str>> {
    let plan = target.plan(saved, Policy::FREEZE);
    let mut restore = Restore::prepare(plan, target)?;
    restore.apply(saved, target)?;
    Ok(restore.release(saved, TOLERANCE, target)?.written)
}

#[test]
fn a_register_that_nobody_knows_is_saved_warned_of_and_written_back() {
    let saved = checkpoint(El2::Vhe, 0, true);
    assert_eq!(saved.validate(), Ok(()));
    assert_eq!(saved.others, [RegisterColumn { id: NEW, values: vec![5, 6] }]);
    let mut target = Odd::new(El2::Vhe, 0);
    let plan = target.plan(&saved, Policy::FREEZE);
    assert!(plan.warnings.contains(&Diagnostic::PassedOn(Unknown::Register(NEW))), "{:?}", plan.warnings);
    restore(&mut target, &saved).unwrap();
    assert_eq!(target.new, BTreeMap::from([(0, 5), (1, 6)]));
    let strict = Request { strict: true, ..Request::default() };
    let refused =
        planning::plan(&saved, &Target::of(&mut target).unwrap(), target.counter.stamp(), strict).unwrap_err();
    assert!(matches!(refused, Refusal::Unknown { .. }), "{refused:?}");
}

/// The order, and the budget: two offsets for the VM; CVAL and CTL of two timers for each vCPU of a plain guest.
#[test]
fn what_is_written_and_in_what_order() {
    let saved = Checkpoint { others: Vec::new(), ..checkpoint(El2::Absent, 0, true) };
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

    let saved = Checkpoint { others: Vec::new(), ..checkpoint(El2::Vhe, 0, true) };
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
        (count_reg(View::Virtual), "the counter offset"),
    ] {
        let mut target = Odd::new(El2::Vhe, 0);
        target.lost = Some(lost);
        let error = restore(&mut target, &saved).unwrap_err();
        assert!(matches!(error, RestoreError::ReadBack { register: name, .. } if name == register), "{error}");
    }
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
        if restore.apply(&saved, &mut target).is_err() {
            target.fails_at = None;
            restore.apply(&saved, &mut target).unwrap();
        }
        if restore.release(&saved, TOLERANCE, &mut target).is_err() {
            target.fails_at = None;
            restore.release(&saved, TOLERANCE, &mut target).unwrap();
        }
        assert_eq!(target.fails_at, None, "the fault at {fails_at} was met");
        let again = Checkpoint { host: saved.host, ..capture(&mut target, TimerCapture::Saved).unwrap() };
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
    restore.apply(&saved, &mut target).unwrap();
    target.vm.init_vcpu(1).unwrap();
    let error = restore.release(&saved, TOLERANCE, &mut target).unwrap_err();
    let RestoreError::ReadBack { vcpu, register, wrote, read } = error else { panic!("{error}") };
    assert_eq!((vcpu, register, wrote, read), (1, "CNTV_CVAL_EL0", 7777, 0));
    restore.apply(&saved, &mut target).unwrap();
    restore.release(&saved, TOLERANCE, &mut target).unwrap();
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
    restore.apply(&saved, &mut target).unwrap();
    target.busy = 5;
    let report = restore.release(&saved, TOLERANCE, &mut target).unwrap();
    assert_eq!((report.writes.offsets, report.writes.registers), (2, 5 * 2));
    let late = target.counter.count().since(report.outcome.count);
    assert_eq!(late, 10, "the sample is of the attempt that succeeded");
    assert_eq!(report.outcome.cntvct, saved.cntvct);
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
        assert_eq!(saved.cntpct, saved.host.count.guest(Offset(0)), "nobody moved it");
        assert!(saved.width_ticks <= 2 * slow, "{}", saved.width_ticks);
        let mut target = Odd::new(El2::Absent, slow);
        target.counter.advance(123_456);
        let plan = target.plan(&saved, Policy::FREEZE);
        assert_eq!(plan.method, Method::ByValue);
        let mut restore = Restore::prepare(plan, &mut target).unwrap();
        restore.apply(&saved, &mut target).unwrap();
        let report = restore.release(&saved, TOLERANCE, &mut target).unwrap();
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
        assert!(bound <= saved.width_ticks + 4 * slow, "{bound} at {slow}");
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
    restore.apply(&saved, &mut target).unwrap();
    target.writes.clear();
    restore.release(&saved, TOLERANCE, &mut target).unwrap();
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
        let saved = capture(&mut source, TimerCapture::Saved).unwrap();
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
