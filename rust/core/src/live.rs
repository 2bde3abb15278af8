//! The live model VM: the rules of [`Vm`] over a counter, for many threads.
//!
//! Changes take a lock. Reading a counter takes none: see `mirror.rs`.

use crate::access::Access;
use crate::backend::{Abilities, Backend, Model};
use crate::checkpoint::Checkpoint;
use crate::counter::{Counter, CrossTimestamp, GuestCount, HostCount, Offset};
use crate::gate::{Gate, GateError, OpenPause, OpenRestore, Saving, Step};
use crate::kernel::Behaviours;
use crate::manual::Instant;
use crate::mirror::Mirrors;
use crate::plan::{Plan, Request};
use crate::restore::Report;
use crate::sync::{Mutex, MutexGuard};
use crate::sysreg::{Encoding, View};
use crate::timer::Timer;
use crate::vm::{Config, Origin, TimerState, Vm, VmError};
use std::boxed::Box;
use std::sync::{Arc, PoisonError};

#[derive(Debug)]
struct Locked {
    vm: Vm,
    gate: Gate,
}

/// An injected instant.
#[derive(Clone, Debug)]
pub enum Now {
    /// The counter reads this; the wall clock moves along with it.
    Count(HostCount),
    /// Both clocks and all that vouches for them.
    Instant(Box<CrossTimestamp>),
}

/// Why an operation of a live VM failed.
pub type LiveError = GateError<VmError>;

impl From<VmError> for LiveError {
    fn from(error: VmError) -> Self {
        Self::Backend(error)
    }
}

/// A model VM that threads share.
pub struct LiveVm<C: Counter> {
    counter: C,
    config: Config,
    mirrors: Mirrors,
    locked: Mutex<Locked>,
}

impl<C: Counter + core::fmt::Debug> core::fmt::Debug for LiveVm<C> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("LiveVm").field("counter", &self.counter).field("locked", &self.locked).finish_non_exhaustive()
    }
}

impl<C: Counter> LiveVm<C> {
    /// A VM with this many vCPUs, all created now.
    pub fn new(counter: C, behaviours: Behaviours, config: Config, vcpus: usize) -> Result<Self, VmError> {
        let mut vm = Vm::new(counter.frequency(), behaviours, config)?;
        for _ in 0..vcpus {
            vm.create_vcpu(counter.count())?;
        }
        let mirrors = Mirrors::of(&vm);
        Ok(Self { counter, config, mirrors, locked: Mutex::new(Locked { vm, gate: Gate::default() }) })
    }

    /// Its counter.
    pub const fn counter(&self) -> &C {
        &self.counter
    }

    /// How many vCPUs.
    pub fn vcpus(&self) -> usize {
        self.lock().vm.vcpus()
    }

    /// Whether it has opted in to one offset.
    pub fn owned(&self) -> bool {
        self.lock().vm.owned_offset().is_some()
    }

    /// What its kernel does.
    pub fn behaviours(&self) -> Behaviours {
        self.lock().vm.behaviours()
    }

    /// What it is made of.
    pub const fn config(&self) -> Config {
        self.config
    }

    /// What can be done for its clocks.
    pub fn abilities(&self) -> Abilities {
        Model { vm: &mut self.lock().vm, counter: &self.counter }.abilities()
    }

    /// What the vCPU's guest reads from a counter, now or at an injected count. Takes no lock.
    #[inline]
    pub fn count(&self, vcpu: usize, view: View, now: Option<HostCount>) -> Result<GuestCount, VmError> {
        let mirror = self.mirrors.get(vcpu)?;
        let guest = match now {
            Some(now) => now.guest(mirror.offset(view)),
            None => mirror.count(view, &self.counter),
        };
        Ok(self.config.width.count(guest))
    }

    /// See [`Vm::create_vcpu`].
    pub fn create_vcpu(&self, now: Option<HostCount>) -> Result<usize, VmError> {
        self.change(|vm| vm.create_vcpu(self.now(now)))
    }

    /// See [`Vm::init_vcpu`].
    pub fn init_vcpu(&self, vcpu: usize) -> Result<(), VmError> {
        self.change(|vm| vm.init_vcpu(vcpu))
    }

    /// See [`Vm::set_counter_offset`].
    pub fn set_counter_offset(&self, offset: Offset, reserved: u64) -> Result<(), VmError> {
        self.change(|vm| vm.set_counter_offset(offset, reserved))
    }

    /// See [`Vm::reg_list`].
    pub fn reg_list(&self, vcpu: usize) -> Result<std::vec::Vec<u64>, VmError> {
        self.lock().vm.reg_list(vcpu)
    }

    /// See [`Vm::get_one_reg`].
    pub fn get_one_reg(&self, vcpu: usize, id: u64, now: Option<HostCount>) -> Result<u64, VmError> {
        self.lock().vm.get_one_reg(vcpu, id, self.now(now))
    }

    /// See [`Vm::set_one_reg`].
    pub fn set_one_reg(&self, vcpu: usize, id: u64, value: u64, now: Option<HostCount>) -> Result<(), VmError> {
        self.change(|vm| vm.set_one_reg(vcpu, id, value, self.now(now)))
    }

    /// See [`Vm::access`].
    pub fn access(&self, vcpu: usize, encoding: Encoding, write: bool, from: Origin) -> Result<Access, VmError> {
        self.lock().vm.access(vcpu, encoding, write, from)
    }

    /// See [`Vm::read_sysreg`].
    pub fn read_sysreg(
        &self,
        vcpu: usize,
        encoding: Encoding,
        from: Origin,
        now: Option<HostCount>,
    ) -> Result<u64, VmError> {
        self.lock().vm.read_sysreg(vcpu, encoding, from, self.now(now))
    }

    /// See [`Vm::write_sysreg`].
    pub fn write_sysreg(
        &self,
        vcpu: usize,
        encoding: Encoding,
        value: u64,
        from: Origin,
        now: Option<HostCount>,
    ) -> Result<(), VmError> {
        self.change(|vm| vm.write_sysreg(vcpu, encoding, value, from, self.now(now)))
    }

    /// See [`Vm::wake`].
    pub fn wake(&self, vcpu: usize, wfit: Option<u64>, from: Origin, now: Option<HostCount>) -> Result<u64, VmError> {
        self.lock().vm.wake(vcpu, wfit, from, self.now(now))
    }

    /// See [`Vm::device_irq_level`].
    pub fn device_irq_level(&self, vcpu: usize, now: Option<HostCount>) -> Result<u64, VmError> {
        self.lock().vm.device_irq_level(vcpu, self.now(now))
    }

    /// KVM_GET_DEVICE_ATTR of KVM_ARM_VCPU_TIMER_CTRL.
    pub fn irq(&self, attribute: u64) -> Result<u8, VmError> {
        Ok(self.lock().vm.irqs().get(attribute)?)
    }

    /// See [`Vm::set_irq`].
    pub fn set_irq(&self, attribute: u64, id: i32) -> Result<(), VmError> {
        self.change(|vm| vm.set_irq(attribute, id))
    }

    /// See [`Vm::timer`].
    pub fn timer(&self, vcpu: usize, timer: Timer, now: Option<HostCount>) -> Result<TimerState, VmError> {
        self.lock().vm.timer(vcpu, timer, self.now(now))
    }

    /// See [`Vm::next_deadline`].
    pub fn next_deadline(&self, vcpu: usize, now: Option<HostCount>) -> Result<u64, VmError> {
        self.lock().vm.next_deadline(vcpu, self.now(now))
    }

    /// The vCPU enters the guest. Refused while a restore or pause isn't finished.
    pub fn enter(&self, vcpu: usize) -> Result<(), LiveError> {
        let mut locked = self.lock();
        locked.gate.open()?;
        locked.vm.enter(vcpu)?;
        self.mirrors.publish(&locked.vm);
        Ok(())
    }

    /// The vCPU leaves the guest.
    pub fn exit(&self, vcpu: usize) -> Result<(), VmError> {
        self.change(|vm| vm.exit(vcpu, self.counter.count()))
    }

    /// See [`Gate::checkpoint`].
    pub fn checkpoint(&self, now: Option<Now>, saving: Saving) -> Result<Checkpoint, LiveError> {
        self.gated(now, |gate, backend| gate.checkpoint(backend, saving))
    }

    /// See [`Gate::plan`].
    pub fn plan(&self, checkpoint: &Checkpoint, request: Request, now: Option<Now>) -> Result<Plan, LiveError> {
        self.gated(now, |gate, backend| gate.plan(backend, checkpoint, request))
    }

    /// See [`Gate::prepare`].
    pub fn prepare(&self, plan: Plan, checkpoint: Arc<Checkpoint>, now: Option<Now>) -> Result<OpenRestore, LiveError> {
        self.gated(now, |gate, backend| gate.prepare(backend, plan, checkpoint))
    }

    /// See [`Gate::apply`].
    pub fn apply(&self, open: &mut OpenRestore, now: Option<Now>) -> Result<(), LiveError> {
        self.gated(now, |gate, backend| gate.apply(backend, open))
    }

    /// See [`Gate::release`].
    pub fn release(&self, open: &mut OpenRestore, now: Option<Now>) -> Result<Report, LiveError> {
        self.gated(now, |gate, backend| gate.release(backend, open))
    }

    /// See [`Gate::pause`].
    pub fn pause(&self, request: Request) -> Result<OpenPause, LiveError> {
        self.gated(None, |gate, backend| gate.pause(backend, request))
    }

    /// See [`Gate::resume`].
    pub fn resume(&self, pause: &OpenPause) -> Result<Report, LiveError> {
        self.gated(None, |gate, backend| gate.resume(backend, pause))
    }

    /// See [`Gate::next_step`].
    pub fn next_step(&self) -> Option<Step> {
        self.lock().gate.next_step(self.counter.frequency())
    }

    /// See [`Gate::step`].
    pub fn step(&self, now: Option<Now>) -> Result<Step, LiveError> {
        self.gated(now, |gate, backend| gate.step(backend))
    }

    /// Runs `work` on the VM over its counter, or over one instant of it, and mirrors what has changed, whatever came of it.
    ///
    /// `work` runs under the VM's lock. Its error is its own: a backend around this one may fail for other reasons.
    pub fn gated<T, E>(
        &self,
        now: Option<Now>,
        work: impl FnOnce(&mut Gate, &mut dyn Backend<Error = VmError>) -> Result<T, GateError<E>>,
    ) -> Result<T, GateError<E>> {
        let Locked { vm, gate } = &mut *self.lock();
        let result = match now {
            None => work(gate, &mut Model { vm, counter: &self.counter }),
            Some(now) => work(gate, &mut Model { vm, counter: &Instant(self.instant(now)?) }),
        };
        self.mirrors.publish(vm);
        result
    }

    fn instant<E>(&self, now: Now) -> Result<CrossTimestamp, GateError<E>> {
        let count = match now {
            Now::Count(count) => count,
            Now::Instant(instant) => return Ok(*instant),
        };
        let here = self.counter.cross_timestamp();
        here.at(count).ok_or(GateError::TooFar { count: count.0, here: here.count.0 })
    }

    fn now(&self, now: Option<HostCount>) -> HostCount {
        now.unwrap_or_else(|| self.counter.count())
    }

    fn change<T>(&self, change: impl FnOnce(&mut Vm) -> Result<T, VmError>) -> Result<T, VmError> {
        let mut locked = self.lock();
        let result = change(&mut locked.vm)?;
        self.mirrors.publish(&locked.vm);
        Ok(result)
    }

    fn lock(&self) -> MutexGuard<'_, Locked> {
        // A panic under the lock leaves no rule half applied: each is checked before it is written.
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
