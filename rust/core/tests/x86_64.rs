//! Machines for x86-64, driven over a small model of KVM's rules there.
//!
//! The model has the rules that a restore can break: a deadline counts from the offset of the time when it was written,
//! a local APIC that isn't in TSC-deadline mode drops it, and every call takes time.

use guestclock_core::arch::x86_64::{
    IA32_TSC_ADJUST, IA32_TSC_DEADLINE, KVMCLOCK, SavedClocks, TSC_OFFSET, tsc_offset,
};
use guestclock_core::drive::machine::Answer;
use guestclock_core::drive::x86_64::{ClocksError, RestoredClocks, restore, save};
use guestclock_core::drive::{Bracket, Done, Failed, Io, Machine, Op, SavedRegister, What};
use guestclock_core::restore::Policy;
use guestclock_core::time::{Frequency, HostCount};

const HZ: u64 = 2_000_000_000;

/// A vCPU: its registers, and the host's count at which its timer is due.
#[derive(Clone, Default)]
struct Vcpu {
    offset: u64,
    adjust: u64,
    deadline: u64,
    due: Option<u64>,
}

struct Vm {
    now: u64,
    /// Ticks that a call takes.
    cost: u64,
    vcpus: Vec<Vcpu>,
    /// kvmclock minus the nanoseconds of the host's counter.
    kvmclock: u64,
    /// True if the kernel tells the count of a read of kvmclock.
    paired: bool,
    deadline_mode: bool,
    /// True for a guest whose TSC the host can't move: the write has no effect, and no error.
    secure: bool,
    fails_at: Option<u64>,
    written: Vec<(usize, u64)>,
}

impl Vm {
    fn new(now: u64, vcpus: usize) -> Self {
        // A vCPU starts at zero.
        let vcpu = Vcpu { offset: now.wrapping_neg(), ..Vcpu::default() };
        Self {
            now,
            cost: 1_000,
            vcpus: vec![vcpu; vcpus],
            kvmclock: ns(now).wrapping_neg(),
            paired: true,
            deadline_mode: true,
            secure: false,
            fails_at: None,
            written: Vec::new(),
        }
    }

    fn tsc(&self, vcpu: usize) -> u64 {
        self.now.wrapping_add(self.vcpus[vcpu].offset)
    }

    fn kvmclock(&self) -> u64 {
        ns(self.now).wrapping_add(self.kvmclock)
    }

    fn get(&mut self, vcpu: usize, id: u64) -> u64 {
        self.now += self.cost;
        let vcpu = &self.vcpus[vcpu];
        match id {
            IA32_TSC_ADJUST => vcpu.adjust,
            IA32_TSC_DEADLINE if vcpu.due.is_some_and(|due| due <= self.now) => 0,
            IA32_TSC_DEADLINE => vcpu.deadline,
            TSC_OFFSET => vcpu.offset,
            _ => unreachable!("{id:#x}"),
        }
    }

    fn set(&mut self, vcpu: usize, id: u64, value: u64) -> Result<(), &'static str> {
        self.now += self.cost;
        if self.fails_at == Some(id) {
            return Err("EIO");
        }
        self.written.push((vcpu, id));
        let tsc = self.tsc(vcpu);
        let state = &mut self.vcpus[vcpu];
        match id {
            IA32_TSC_ADJUST => state.adjust = value,
            IA32_TSC_DEADLINE if self.deadline_mode => {
                state.deadline = value;
                state.due = (value != 0).then(|| self.now + value.saturating_sub(tsc));
            }
            IA32_TSC_DEADLINE => state.deadline = 0,
            TSC_OFFSET if self.secure => {}
            TSC_OFFSET => state.offset = value,
            _ => unreachable!("{id:#x}"),
        }
        Ok(())
    }

    fn carry_out(&mut self, op: Op<'_>) -> Answer<&'static str> {
        match op {
            Op::Sample => {
                self.now += 30;
                Ok(Done::Count(HostCount(self.now)))
            }
            Op::Read { id } => Ok(Done::Values((0..self.vcpus.len()).map(|vcpu| self.get(vcpu, id)).collect())),
            Op::Write(block) => {
                for register in block.registers() {
                    let SavedRegister { vcpu, id, value, .. } = register;
                    let written = self.set(vcpu, id, value);
                    written.map_err(|error| Failed::Register { vcpu, id, reading: false, error })?;
                    register.check(self.get(vcpu, id))?;
                }
                Ok(Done::Ok)
            }
            Op::ReadBack(block) => {
                block.registers().try_for_each(|register| register.check(self.get(register.vcpu, register.id)))?;
                Ok(Done::Ok)
            }
            Op::SetLate(What::VcpuOffsets { displacements }, late) => {
                let sample = HostCount(self.now);
                for (vcpu, displacement) in displacements.iter().enumerate() {
                    let offset = tsc_offset(late.offset_at(sample), *displacement);
                    self.set(vcpu, TSC_OFFSET, offset).map_err(Failed::Call)?;
                }
                Ok(Done::Count(sample))
            }
            Op::SetClock { id: KVMCLOCK, value } => {
                self.now += self.cost;
                self.kvmclock = value.wrapping_sub(ns(self.now));
                Ok(Done::Ok)
            }
            Op::Bracket { id: KVMCLOCK, .. } => {
                let (before, cost) = (self.now, if self.paired { 0 } else { self.cost });
                self.now += cost;
                let value = self.kvmclock();
                let paired = HostCount(self.now);
                self.now += cost;
                let (before, after) =
                    if self.paired { (paired, paired) } else { (HostCount(before), HostCount(self.now)) };
                Ok(Done::Bracket(Bracket { before, value, after }))
            }
            other => unreachable!("x86-64 doesn't ask for {other:?}"),
        }
    }

    fn run<'a, T: 'a, F>(&mut self, begin: impl FnOnce(Io<'a, &'static str>) -> F) -> T
    where
        F: Future<Output = T> + 'a,
    {
        Machine::new(begin).run(|op| self.carry_out(op))
    }

    fn save(&mut self) -> Result<SavedClocks, ClocksError<&'static str>> {
        self.run(async |io| save(&io, Frequency::new(HZ).unwrap()).await)
    }

    fn restore(&mut self, saved: &SavedClocks, policy: Policy) -> Result<RestoredClocks, ClocksError<&'static str>> {
        self.run(async |io| restore(&io, saved, policy).await)
    }
}

fn ns(ticks: u64) -> u64 {
    ticks / (HZ / 1_000_000_000)
}

/// A VM that has run for a second: the guest has moved the TSC of vCPU 1, and has armed a timer on each.
fn source() -> Vm {
    let mut vm = Vm::new(1 << 40, 2);
    vm.vcpus[1].adjust = 12_345;
    vm.vcpus[1].offset = vm.vcpus[1].offset.wrapping_add(12_345);
    vm.now += HZ;
    for vcpu in 0..2 {
        let deadline = vm.tsc(vcpu) + HZ;
        vm.set(vcpu, IA32_TSC_DEADLINE, deadline).unwrap();
    }
    vm
}

#[test]
fn clocks_go_on_from_the_save_or_from_where_they_would_be() {
    for (policy, added) in [(Policy::FREEZE, 0), (Policy::ADVANCE, 10 * HZ), (Policy::advance_up_to(5), 10)] {
        let mut source = source();
        let saved = source.save().unwrap();
        assert_eq!(saved.adjust, [0, 12_345]);
        let mut target = Vm::new(source.now + 10 * HZ - 123, 2);
        let restored = target.restore(&saved, policy).unwrap();
        let guest = restored.sample.guest(restored.offset);
        let expected = if added == 10 * HZ { restored.sample.since(saved.count) } else { added };
        assert_eq!(guest.since(saved.tsc), expected, "{policy:?}");
        assert_eq!(target.tsc(0), guest.after(target.now - restored.sample.0).0, "{policy:?}: with the sign of x86-64");
        assert_eq!(target.tsc(1) - target.tsc(0), 12_345, "one sample for both");
        for vcpu in 0..2 {
            let left = saved.deadline[vcpu].saturating_sub(target.tsc(vcpu));
            let due = target.vcpus[vcpu].due.unwrap();
            assert_eq!(due.saturating_sub(target.now), left, "{policy:?}: as the guest's own counter says");
        }
        let wanted = saved.kvmclock_at(HostCount(target.now).guest(restored.offset));
        assert!(target.kvmclock().abs_diff(wanted) <= 1, "{policy:?}: kvmclock goes with the TSC");
        assert!(restored.kvmclock.farthest_ns() <= 1 && restored.kvmclock.attempts == 2, "{:?}", restored.kvmclock);
        let order: Vec<u64> = target.written.iter().map(|(_, id)| *id).collect();
        let each = [IA32_TSC_ADJUST, TSC_OFFSET, IA32_TSC_DEADLINE];
        assert_eq!(order, each.map(|id| [id; 2]).concat(), "{policy:?}");
    }
}

#[test]
fn a_clock_without_a_pair_is_as_near_as_its_bracket() {
    let mut source = source();
    source.paired = false;
    let saved = source.save().unwrap();
    assert_eq!(saved.kvmclock_width, 2_000);
    let mut target = Vm::new(source.now + HZ, 2);
    target.paired = false;
    let restored = target.restore(&saved, Policy::FREEZE).unwrap();
    let kvmclock = restored.kvmclock;
    assert_eq!(kvmclock.attempts, 2, "in the middle of its bracket");
    assert_eq!(kvmclock.most_ns - kvmclock.least_ns, 1_000);
    let wanted = saved.kvmclock_at(HostCount(target.now).guest(restored.offset));
    let ahead = target.kvmclock().wrapping_sub(wanted).cast_signed();
    assert!((kvmclock.least_ns..=kvmclock.most_ns).contains(&ahead), "{ahead} {kvmclock:?}");
}

#[test]
fn a_timer_that_fires_at_once_is_not_a_failure() {
    let mut source = source();
    let saved = source.save().unwrap();
    let mut target = Vm::new(source.now + 2 * HZ, 2);
    target.restore(&saved, Policy::ADVANCE).unwrap();
    assert!(target.vcpus.iter().all(|vcpu| vcpu.due.unwrap() <= target.now));
}

#[test]
fn what_kvm_drops_in_silence_is_seen() {
    let mut source = source();
    let saved = source.save().unwrap();
    let target = || Vm::new((1 << 40) + 5 * HZ, 2);

    let secure = Vm { secure: true, ..target() }.restore(&saved, Policy::FREEZE);
    assert!(matches!(secure, Err(ClocksError::ReadBack { vcpu: 0, id: TSC_OFFSET, .. })), "{secure:?}");

    let early = Vm { deadline_mode: false, ..target() }.restore(&saved, Policy::FREEZE).unwrap_err();
    let wrote = saved.deadline[0];
    assert_eq!(early, ClocksError::ReadBack { vcpu: 0, id: IA32_TSC_DEADLINE, wrote, read: 0 });
    assert_eq!(early.to_string(), format!("vCPU 0: IA32_TSC_DEADLINE was written as {wrote:#x} and reads 0x0"));
}

#[test]
fn clocks_that_no_restore_could_serve_are_refused() {
    let mut apart = source();
    apart.vcpus[1].offset += 7;
    assert!(matches!(apart.save(), Err(ClocksError::OffsetsDiffer { vcpu: 1, .. })));

    let saved = source().save().unwrap();
    let mut larger = Vm::new((1 << 40) + 5 * HZ, 3);
    assert_eq!(larger.restore(&saved, Policy::FREEZE), Err(ClocksError::Vcpus { saved: 2, there: 3 }));
    let mut rebooted = Vm::new(1 << 20, 2);
    assert!(matches!(rebooted.restore(&saved, Policy::ADVANCE), Err(ClocksError::Backwards { .. })));
    assert!(larger.written.is_empty() && rebooted.written.is_empty(), "nothing is written before a refusal");

    for id in [IA32_TSC_ADJUST, IA32_TSC_DEADLINE] {
        let mut target = Vm { fails_at: Some(id), ..Vm::new((1 << 40) + 5 * HZ, 2) };
        let failed = target.restore(&saved, Policy::FREEZE);
        assert_eq!(failed, Err(ClocksError::Register { vcpu: 0, id, error: "EIO" }));
    }
}
