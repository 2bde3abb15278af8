//! The live model VM: the rules of [`Vm`] over a counter, for many threads.
//!
//! Changes take a lock. Reading a counter takes none: see `mirror.rs`.

use crate::access::Access;
use crate::backend::{Abilities, Backend, Model};
use crate::capture::{Timers, capture};
use crate::checkpoint::Checkpoint;
use crate::counter::{Counter, CrossTimestamp, GuestCount, HostCount, Offset};
use crate::kernel::Behaviours;
use crate::manual::Instant;
use crate::mirror::Mirrors;
use crate::plan::{self, Plan, Refusal, Request, Target};
use crate::restore::{Report, Restore, RestoreError};
use crate::sync::{Mutex, MutexGuard};
use crate::sysreg::{Encoding, View};
use crate::timer::Timer;
use crate::vm::{Config, Origin, TimerState, Vm, VmError};
use std::sync::{Arc, PoisonError};

/// The part of a second within which a counter set by value has to be, as a divisor: 1 us.
const BY_VALUE_TOLERANCE: u64 = 1_000_000;

/// Whether vCPUs may run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Gate {
    Open,
    /// Paused in place, by the pause with this ticket.
    Paused(u64),
    /// Being restored, by the restore with this ticket.
    Restoring(u64),
}

#[derive(Debug)]
struct Locked {
    vm: Vm,
    gate: Gate,
    /// The last ticket given out.
    tickets: u64,
}

/// Why an operation of a live VM failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LiveError {
    /// A rule of KVM's.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A restore was refused or failed.
    #[error(transparent)]
    Restore(#[from] RestoreError<VmError>),
    /// A restore or pause isn't finished.
    #[error("a restore or pause of this VM isn't finished: release it before any vCPU runs, or a checkpoint is taken")]
    Open,
    /// The vCPUs can't have stopped after the checkpoint.
    #[error("the vCPUs can't have stopped at the count {stopped}: the checkpoint is of {saved}")]
    StoppedLater {
        /// When they are said to have stopped.
        stopped: u64,
        /// The checkpoint's count.
        saved: u64,
    },
    /// The wall clock at an injected count can't be told.
    #[error("the count {count} is too far from the counter's {here} to tell the wall clock there")]
    TooFar {
        /// The injected count.
        count: u64,
        /// What the counter reads.
        here: u64,
    },
}

impl From<Refusal> for LiveError {
    fn from(refusal: Refusal) -> Self {
        Self::Restore(refusal.into())
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

/// A restore of a live VM under way. Its VM stays closed until it is released; a new one takes over.
#[derive(Debug)]
pub struct LiveRestore {
    restore: Restore,
    checkpoint: Arc<Checkpoint>,
    ticket: u64,
}

/// A pause in place.
#[derive(Debug)]
pub struct LivePause {
    checkpoint: Checkpoint,
    request: Request,
    ticket: u64,
}

impl<C: Counter> LiveVm<C> {
    /// A VM with this many vCPUs, all created now.
    pub fn new(counter: C, behaviours: Behaviours, config: Config, vcpus: usize) -> Result<Self, VmError> {
        let mut vm = Vm::new(counter.frequency(), behaviours, config)?;
        for _ in 0..vcpus {
            vm.create_vcpu(counter.count())?;
        }
        let mirrors = Mirrors::of(&vm);
        Ok(Self { counter, config, mirrors, locked: Mutex::new(Locked { vm, gate: Gate::Open, tickets: 0 }) })
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
        open(&locked)?;
        locked.vm.enter(vcpu)?;
        self.mirrors.publish(&locked.vm);
        Ok(())
    }

    /// The vCPU leaves the guest.
    pub fn exit(&self, vcpu: usize) -> Result<(), VmError> {
        self.change(|vm| vm.exit(vcpu, self.counter.count()))
    }

    /// Saves the VM's guest time. Refused while a vCPU runs, or a restore isn't finished.
    pub fn checkpoint(&self, now: Option<HostCount>, stopped_at: Option<HostCount>) -> Result<Checkpoint, LiveError> {
        let locked = &mut *self.lock();
        if matches!(locked.gate, Gate::Restoring(_)) {
            return Err(LiveError::Open);
        }
        stopped(&locked.vm)?;
        let checkpoint =
            self.with_backend(&mut locked.vm, now, |backend| Ok(capture(backend, Timers::Saved, stopped_at)?))?;
        match stopped_at {
            Some(stopped) if stopped.is_after(checkpoint.host.count) => {
                Err(LiveError::StoppedLater { stopped: stopped.0, saved: checkpoint.host.count.0 })
            }
            _ => Ok(checkpoint),
        }
    }

    /// Plans the restore of a checkpoint into this VM.
    pub fn plan(&self, checkpoint: &Checkpoint, request: Request, now: Option<HostCount>) -> Result<Plan, LiveError> {
        let locked = &mut *self.lock();
        self.with_backend(&mut locked.vm, now, |backend| {
            let target = Target::of(backend)?;
            plan::same_topology(checkpoint, &target)?;
            Ok(plan::plan(checkpoint, &target, backend.counter().cross_timestamp(), request)?)
        })
    }

    /// Opens a restore: see [`Restore::prepare`]. No vCPU can run until it is released.
    pub fn prepare(
        &self,
        plan: Plan,
        checkpoint: Arc<Checkpoint>,
        now: Option<HostCount>,
    ) -> Result<LiveRestore, LiveError> {
        let locked = &mut *self.lock();
        stopped(&locked.vm)?;
        let restore = self.with_backend(&mut locked.vm, now, |backend| Ok(Restore::prepare(plan, backend)?))?;
        Ok(LiveRestore { restore, checkpoint, ticket: close(locked, Gate::Restoring) })
    }

    /// See [`Restore::apply`].
    pub fn apply(&self, open: &mut LiveRestore, now: Option<HostCount>) -> Result<(), LiveError> {
        let locked = &mut *self.lock();
        holds(locked, Gate::Restoring(open.ticket))?;
        self.with_backend(&mut locked.vm, now, |backend| Ok(open.restore.apply(&open.checkpoint, backend)?))
    }

    /// See [`Restore::release`]: the VM's vCPUs may run again.
    pub fn release(&self, open: &mut LiveRestore, now: Option<HostCount>) -> Result<Report, LiveError> {
        let locked = &mut *self.lock();
        holds(locked, Gate::Restoring(open.ticket))?;
        self.finish(locked, &mut open.restore, &open.checkpoint, now)
    }

    /// Pauses in place: no vCPU can run until [`resume`](Self::resume).
    pub fn pause(&self, request: Request) -> Result<LivePause, LiveError> {
        let locked = &mut *self.lock();
        open(locked)?;
        stopped(&locked.vm)?;
        let checkpoint =
            self.with_backend(&mut locked.vm, None, |backend| Ok(capture(backend, Timers::Kept, None)?))?;
        Ok(LivePause { checkpoint, request, ticket: close(locked, Gate::Paused) })
    }

    /// Ends a pause under its policy: the same plan and report as a restore's, on the timers that stayed where they were.
    pub fn resume(&self, pause: &LivePause) -> Result<Report, LiveError> {
        let locked = &mut *self.lock();
        holds(locked, Gate::Paused(pause.ticket))?;
        let request = Request { same_counter: Some(true), in_place: true, ..pause.request };
        let plan = self.with_backend(&mut locked.vm, None, |backend| {
            let target = Target::of(backend)?;
            Ok(plan::plan(&pause.checkpoint, &target, backend.counter().cross_timestamp(), request)?)
        })?;
        self.finish(locked, &mut Restore::in_place(plan), &pause.checkpoint, None)
    }

    fn finish(
        &self,
        locked: &mut Locked,
        restore: &mut Restore,
        checkpoint: &Checkpoint,
        now: Option<HostCount>,
    ) -> Result<Report, LiveError> {
        let tolerance = self.counter.frequency().hz() / BY_VALUE_TOLERANCE;
        let report =
            self.with_backend(&mut locked.vm, now, |backend| Ok(restore.release(checkpoint, tolerance, backend)?))?;
        locked.gate = Gate::Open;
        Ok(report)
    }

    /// Runs `work` on the VM over its counter, or over one instant of it, and mirrors what has changed, whatever came of it.
    fn with_backend<T>(
        &self,
        vm: &mut Vm,
        now: Option<HostCount>,
        work: impl FnOnce(&mut dyn Backend<Error = VmError>) -> Result<T, LiveError>,
    ) -> Result<T, LiveError> {
        let result = match now {
            None => work(&mut Model { vm, counter: &self.counter }),
            Some(count) => work(&mut Model { vm, counter: &Instant(self.instant(count)?) }),
        };
        self.mirrors.publish(vm);
        result
    }

    fn instant(&self, count: HostCount) -> Result<CrossTimestamp, LiveError> {
        let here = self.counter.cross_timestamp();
        here.at(count).ok_or(LiveError::TooFar { count: count.0, here: here.count.0 })
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

fn stopped(vm: &Vm) -> Result<(), VmError> {
    vm.first_running().map_or(Ok(()), |vcpu| Err(VmError::Running { vcpu }))
}

fn open(locked: &Locked) -> Result<(), LiveError> {
    if locked.gate == Gate::Open { Ok(()) } else { Err(LiveError::Open) }
}

fn close(locked: &mut Locked, gate: fn(u64) -> Gate) -> u64 {
    locked.tickets += 1;
    locked.gate = gate(locked.tickets);
    locked.tickets
}

fn holds(locked: &Locked, gate: Gate) -> Result<(), LiveError> {
    if locked.gate == gate { Ok(()) } else { Err(Refusal::StalePlan.into()) }
}
