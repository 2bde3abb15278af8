//! A restore driven by a VMM whose vCPU threads own their descriptors: one message a row, and no call from any other thread.

use guestclock_core::arch::arm64::{Behaviours, Registers, Role, Timer, View, one_reg_id};
use guestclock_core::checkpoint::{Checkpoint, GuestTime};
use guestclock_core::drive::{Block, Bracket, Done, Facts, Failed, Io, Machine, Op, SavedRegister, Saving, What};
use guestclock_core::restore::{Late, Policy, Request, RunState, State};
use guestclock_core::time::{Counter, Frequency, HostCount, Offset};
use guestclock_model::backend::abilities;
use guestclock_model::config::Config;
use guestclock_model::error::VmError;
use guestclock_model::locked::LockedVm;
use guestclock_model::manual::ManualCounter;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

type Vm = LockedVm<&'static ManualCounter>;
type Answer = guestclock_core::drive::machine::Answer<VmError>;

/// Work for the thread of a vCPU.
enum Message {
    Write(Vec<SavedRegister>),
    ReadBack(Vec<SavedRegister>),
    Read(u64),
    Bracket(u64),
    Count(u64, Late),
    List,
}

/// A vCPU's thread. It alone makes calls on the vCPU.
struct Vcpu {
    messages: Sender<Message>,
    answers: Receiver<Answer>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    fn new(vm: Arc<Vm>, vcpu: usize) -> Self {
        let (messages, inbox) = channel();
        let (outbox, answers) = channel();
        let work = move || {
            for message in inbox {
                outbox.send(answer(&vm, vcpu, message)).unwrap();
            }
        };
        Self { messages, answers, thread: Some(thread::spawn(work)) }
    }
}

fn answer(vm: &Vm, vcpu: usize, message: Message) -> Answer {
    let read = |id| {
        let value = vm.get_one_reg(vcpu, id, None);
        value.map_err(|error| Failed::Register { vcpu, id, reading: true, error })
    };
    let check = |register: SavedRegister| register.check(read(register.id)?);
    match message {
        Message::Write(row) => row.into_iter().try_for_each(|register| {
            let SavedRegister { id, value, .. } = register;
            let written = vm.set_one_reg(vcpu, id, value, None);
            written.map_err(|error| Failed::Register { vcpu, id, reading: false, error })?;
            check(register)
        })?,
        Message::ReadBack(row) => row.into_iter().try_for_each(check)?,
        Message::Read(id) => return Ok(Done::Values(vec![read(id)?])),
        Message::Bracket(id) => {
            let before = vm.counter().count();
            let value = read(id)?;
            return Ok(Done::Bracket(Bracket { before, value, after: vm.counter().count() }));
        }
        Message::Count(id, late) => {
            let now = vm.counter().count();
            vm.set_one_reg(vcpu, id, late.guest_at(now).0, None).map_err(Failed::Call)?;
            return Ok(Done::Count(now));
        }
        Message::List => return Ok(Done::List(Registers::from(vm.reg_list(vcpu).map_err(Failed::Call)?))),
    }
    Ok(Done::Ok)
}

/// A VMM: the VM's descriptor is its own, and those of the vCPUs are their threads'.
struct Vmm {
    vm: Arc<Vm>,
    vcpus: Vec<Vcpu>,
    messages: AtomicUsize,
}

impl Drop for Vmm {
    fn drop(&mut self) {
        for mut vcpu in self.vcpus.drain(..) {
            drop(vcpu.messages);
            vcpu.thread.take().unwrap().join().unwrap();
        }
    }
}

impl Vmm {
    fn new(counter: &'static ManualCounter, kernel: &str, vcpus: usize) -> Self {
        let behaviours = Behaviours::named(kernel).unwrap();
        let vm = Arc::new(LockedVm::new(counter, behaviours, Config::default(), vcpus).unwrap());
        let vcpus = (0..vcpus).map(|vcpu| Vcpu::new(Arc::clone(&vm), vcpu)).collect();
        Self { vm, vcpus, messages: AtomicUsize::new(0) }
    }

    fn facts(&self, opted_in: Option<Offset>) -> Facts {
        let counter = self.vm.counter();
        Facts {
            vcpus: self.vcpus.len(),
            cntfrq_hz: counter.frequency().cntfrq().unwrap(),
            frequency: counter.frequency(),
            namespace_ticks: counter.namespace_ticks(),
            abilities: abilities(self.vm.behaviours(), self.vm.config()),
            nested: false,
            vm_offset: opted_in,
            computes_istatus: false,
            generation: 0,
        }
    }

    fn ask(&self, vcpu: usize, message: Message) -> Answer {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.vcpus[vcpu].messages.send(message).unwrap();
        self.vcpus[vcpu].answers.recv().unwrap()
    }

    /// Sends each vCPU its row, all at once, and waits for them.
    fn rows(&self, block: &Block<'_>, message: fn(Vec<SavedRegister>) -> Message) -> Answer {
        for (number, vcpu) in self.vcpus.iter().enumerate() {
            self.messages.fetch_add(1, Ordering::Relaxed);
            vcpu.messages.send(message(block.row(number).collect())).unwrap();
        }
        let answers: Vec<Answer> = self.vcpus.iter().map(|vcpu| vcpu.answers.recv().unwrap()).collect();
        answers.into_iter().find(Result::is_err).unwrap_or(Ok(Done::Ok))
    }

    fn carry_out(&self, op: Op<'_>) -> Answer {
        match op {
            // Its threads are here, in their loops: none is in KVM_RUN.
            Op::Look | Op::Glance => Ok(Done::Ok),
            Op::Sample => Ok(Done::Count(self.vm.counter().count())),
            Op::Stamp => Ok(Done::Stamp(self.vm.counter().stamp())),
            Op::List => self.ask(0, Message::List),
            Op::Interrupts(_) => Ok(Done::Interrupts(None)),
            Op::Forwards { .. } => Ok(Done::Forwards(None)),
            Op::Read { id } => {
                let mut values = Vec::new();
                for vcpu in 0..self.vcpus.len() {
                    let Done::Values(one) = self.ask(vcpu, Message::Read(id))? else { unreachable!() };
                    values.extend(one);
                }
                Ok(Done::Values(values))
            }
            Op::Write(block) => self.rows(&block, Message::Write),
            Op::ReadBack(block) => self.rows(&block, Message::ReadBack),
            Op::Bracket { vcpu, id } => self.ask(vcpu, Message::Bracket(id)),
            Op::SetOffset(offset) => self.vm.set_counter_offset(offset, 0).map(|()| Done::Ok).map_err(Failed::Call),
            Op::SetLate(What::VmOffset, late) => {
                let now = self.vm.counter().count();
                let written = self.vm.set_counter_offset(late.offset_at(now), 0);
                written.map(|()| Done::Count(now)).map_err(Failed::Call)
            }
            Op::SetLate(What::Count { id }, late) => self.ask(0, Message::Count(id, late)),
            _ => unreachable!("arm64 asks for nothing else"),
        }
    }

    fn run<'a, T: 'a, F>(&self, begin: impl FnOnce(Io<'a, VmError>) -> F) -> T
    where
        F: Future<Output = T> + 'a,
    {
        Machine::new(begin).run(|op| self.carry_out(op))
    }
}

fn host() -> &'static ManualCounter {
    Box::leak(Box::new(ManualCounter::new(HostCount(1 << 40), Frequency::new(62_500_000).unwrap(), 0)))
}

#[test]
fn a_vmm_whose_threads_own_their_vcpus_saves_and_restores_by_the_same_machines() {
    let counter = host();
    for kernel in ["6.1", "6.12"] {
        let offset = (kernel != "6.1").then_some(Offset(77));
        let source = Vmm::new(counter, kernel, 4);
        if let Some(offset) = offset {
            source.vm.set_counter_offset(offset, 0).unwrap();
        }
        for vcpu in 0..4 {
            let cval = one_reg_id(Role::Cval(Timer::Vtimer));
            source.vm.set_one_reg(vcpu, cval, 1_000 + vcpu as u64, None).unwrap();
            source.vm.set_one_reg(vcpu, one_reg_id(Role::Ctl(Timer::Vtimer)), 1, None).unwrap();
        }
        let saving = Saving::default();
        let facts = source.facts(offset);
        let run_state = RunState::default();
        let saved = source.run(async |io| run_state.checkpointing(&io, &facts, &saving).await).unwrap();
        let by_calls = source.vm.checkpoint(None, &saving).unwrap();
        let time = |saved: &Checkpoint| GuestTime { interrupts: None, ..saved.only().unwrap().time() };
        assert_eq!(time(&saved), time(&by_calls), "nobody asked the threads for the timers' interrupts");
        counter.advance(5_000);

        let target = Vmm::new(counter, kernel, 4);
        let (saved, facts) = (Arc::new(saved), target.facts(None));
        let mut run_state = RunState::default();
        let request = Request { policy: Policy::FREEZE, ..Request::default() };
        let plan = target.run(async |io| run_state.making_plan(&io, &facts, &saved, request).await).unwrap();
        let checkpoint = Arc::clone(&saved);
        let open = target.run(async |io| run_state.preparing(&io, &facts, plan, checkpoint).await);
        let mut open = open.unwrap();
        let before = target.messages.load(Ordering::Relaxed);
        target.run(async |io| run_state.applying(&io, &mut open).await).unwrap();
        // A row each, and with an offset a count of each, to see that it took effect.
        let messages = target.messages.load(Ordering::Relaxed) - before;
        assert_eq!(messages, if offset.is_some() { 8 } else { 4 });
        let report = target.run(async |io| run_state.releasing(&io, &facts, &mut open, None).await).unwrap();
        assert_eq!(run_state.state(), State::Open);

        let other: Vm = LockedVm::new(counter, Behaviours::named(kernel).unwrap(), Config::default(), 4).unwrap();
        let plan = other.plan(&saved, request, None).unwrap();
        let mut open = other.prepare(plan, Arc::clone(&saved), None).unwrap();
        other.apply(&mut open, None).unwrap();
        let released = other.release(&mut open, None).unwrap();
        assert_eq!((report.outcome.cntvct, report.writes), (released.outcome.cntvct, released.writes), "{kernel}");
        for vcpu in 0..4 {
            assert_eq!(target.vm.count(vcpu, View::Virtual, None), other.count(vcpu, View::Virtual, None));
            for id in other.reg_list(vcpu).unwrap() {
                assert_eq!(target.vm.get_one_reg(vcpu, id, None), other.get_one_reg(vcpu, id, None), "{id:#x}");
            }
        }
    }
}
