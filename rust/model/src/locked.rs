//! Model VMs and banks that threads share: the rules of [`ModelVm`] over a counter, behind a lock.
//!
//! Changes take the lock. Reading a counter takes none: see
//! [`PublishedOffset`](guestclock_core::time::PublishedOffset).

use crate::backend::{self, Model};
use crate::bank::{Bank, BankError, Handle};
use crate::config::{Config, Origin};
use crate::error::VmError;
use crate::managed::ManagedBank;
use crate::published::PublishedVm;
use crate::sets::OpenPauses;
use crate::sync::{Mutex, MutexGuard};
use crate::vm::ModelVm;
use guestclock_core::arch::Abilities;
use guestclock_core::arch::arm64::{Access, Behaviours, Encoding, Timer, TimerState, View};
use guestclock_core::checkpoint::Checkpoint;
use guestclock_core::drive::{Backend, Condition, OpenPause, OpenRestore, OperationError, Saving};
use guestclock_core::restore::{Plan, Report, Request, RunState, State, Step};
use guestclock_core::time::{Counter, Frequency, GuestCount, HostCount, Instant, Offset, Stamp};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, PoisonError, TryLockError, Weak};

/// An injected instant.
#[derive(Clone, Debug)]
pub enum Now {
    /// A count of the counter, as this process reads it; the wall clock moves along with it.
    Count(HostCount),
    /// Both clocks and their vouched bounds, host-wide.
    Stamp(Box<Stamp>),
}

impl Now {
    /// Returns that instant of this counter; refuses a stamp of another frequency, whose count means nothing here.
    pub fn instant<E>(self, counter: &impl Counter) -> Result<Instant, OperationError<E>> {
        match self {
            Self::Stamp(stamp) if stamp.frequency == counter.frequency() => Ok(Instant::of(*stamp, counter)),
            Self::Stamp(stamp) => {
                Err(OperationError::OtherFrequency { stamp: stamp.frequency, here: counter.frequency() })
            }
            Self::Count(count) => Instant::at(count, counter)
                .ok_or_else(|| OperationError::TooFar { count: count.0, here: counter.count().0 }),
        }
    }
}

/// Error of an operation on a shared VM.
pub type LockedError = OperationError<VmError>;

impl From<VmError> for LockedError {
    fn from(error: VmError) -> Self {
        Self::Backend(error)
    }
}

/// State under the lock: the VMs with their run states, and the published offsets of those with a [`LockedVm`].
#[derive(Debug)]
struct Locked {
    bank: ManagedBank,
    /// Offsets by the VM's slot. They go with the last [`LockedVm`] of the VM.
    published: BTreeMap<u32, (Handle, Weak<PublishedVm>)>,
    /// Number of entries at which those without a reader are removed.
    crowded: usize,
}

/// The least number of entries at which those without a reader are removed.
const CROWDED: usize = 64;

impl Locked {
    const fn new(bank: ManagedBank) -> Self {
        Self { bank, published: BTreeMap::new(), crowded: CROWDED }
    }

    /// Publishes the offsets that have changed. Nothing is done for VMs that nobody reads, or that didn't change.
    fn publish(&mut self) {
        let Self { bank, published, .. } = self;
        bank.bank.for_moved(|bank, slot| {
            let Some((vm, offsets)) = published.get(&slot) else { return };
            match (offsets.upgrade(), bank.vm(*vm)) {
                (Some(offsets), Ok(view)) => offsets.publish(&view),
                (offsets, _) => {
                    if let Some(offsets) = offsets {
                        offsets.clear();
                    }
                    published.remove(&slot);
                }
            }
        });
    }

    /// Returns the published offsets of a VM.
    fn published(&mut self, vm: Handle) -> Result<Arc<PublishedVm>, BankError> {
        let view = self.bank.bank.vm(vm)?;
        let known = self.published.get(&vm.slot()).filter(|(of, _)| *of == vm);
        if let Some(offsets) = known.and_then(|(_, offsets)| offsets.upgrade()) {
            return Ok(offsets);
        }
        let offsets = Arc::new(PublishedVm::of(&view));
        if self.published.len() >= self.crowded {
            self.published.retain(|_, (_, offsets)| offsets.strong_count() > 0);
            self.crowded = CROWDED.max(2 * self.published.len());
        }
        self.published.insert(vm.slot(), (vm, Arc::downgrade(&offsets)));
        Ok(offsets)
    }

    fn bytes(&self) -> usize {
        let offsets = self.published.values().filter_map(|(_, offsets)| offsets.upgrade());
        let entries = self.published.len() * size_of::<(u32, (Handle, Weak<PublishedVm>))>();
        self.bank.bytes() + entries + offsets.map(|offsets| offsets.bytes()).sum::<usize>()
    }
}

/// Bank that threads share.
pub struct LockedBank {
    locked: Mutex<Locked>,
    on_change: OnceLock<OnChange>,
    on_wait: OnceLock<OnWait>,
}

type OnChange = Box<dyn Fn(&LockedBank) + Send + Sync>;
type OnWait = fn(&(dyn Fn() + Sync));

impl core::fmt::Debug for LockedBank {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("LockedBank").field("locked", &self.locked).finish_non_exhaustive()
    }
}

impl From<Bank> for LockedBank {
    /// Every VM is open.
    fn from(bank: Bank) -> Self {
        let locked = Mutex::new(Locked::new(ManagedBank::from(bank)));
        Self { locked, on_change: OnceLock::new(), on_wait: OnceLock::new() }
    }
}

impl LockedBank {
    /// Creates an empty bank: see [`Bank::new`].
    #[must_use]
    pub fn new(frequency: Frequency, el2: bool) -> Self {
        Self::from(Bank::new(frequency, el2))
    }

    /// Sets the callback for changes. It is called outside the lock, after every call that may have changed something,
    /// except `expire`. Only the first callback counts.
    pub fn on_change(&self, tell: impl Fn(&Self) + Send + Sync + 'static) {
        let _ = self.on_change.set(Box::new(tell));
    }

    /// Sets the function by which a thread waits for the bank. It is given a function that blocks until the bank is free,
    /// and can give up another lock for as long. Only the first one counts.
    pub fn on_wait(&self, wait: fn(&(dyn Fn() + Sync))) {
        let _ = self.on_wait.set(wait);
    }

    fn changed(&self) {
        if let Some(tell) = self.on_change.get() {
            tell(self);
        }
    }

    /// Works on the bank, and publishes the changed offsets, whether or not the work succeeds.
    pub fn with<T>(&self, work: impl FnOnce(&mut ManagedBank) -> T) -> T {
        let result = {
            let mut locked = self.lock();
            let result = work(&mut locked.bank);
            locked.publish();
            result
        };
        self.changed();
        result
    }

    /// Runs a query that changes neither guest-visible state nor the next deadline, so nothing is published.
    pub fn ask<T>(&self, ask: impl FnOnce(&mut Bank) -> T) -> T {
        ask(self.lock().bank.bank_mut())
    }

    /// Runs a query like [`ask`](Self::ask), or returns `None` where that would wait for the bank.
    pub fn try_ask<T>(&self, ask: impl FnOnce(&mut Bank) -> T) -> Option<T> {
        match self.locked.try_lock() {
            Ok(mut locked) => Some(ask(locked.bank.bank_mut())),
            Err(TryLockError::Poisoned(error)) => Some(ask(error.into_inner().bank.bank_mut())),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Memory of the bank in bytes: that of [`ManagedBank::bytes`], and of the offsets that [`LockedVm`]s read.
    pub fn bytes(&self) -> usize {
        self.lock().bytes()
    }

    /// Runs a query on the bank.
    pub fn look<T>(&self, look: impl FnOnce(&Bank) -> T) -> T {
        look(self.lock().bank.bank())
    }

    /// Returns whether any VM is still in this pause, or another thread has the lock: this call never waits.
    pub fn holds(&self, pauses: &OpenPauses) -> bool {
        self.locked.try_lock().map_or(true, |locked| locked.bank.holds(pauses))
    }

    fn lock(&self) -> MutexGuard<'_, Locked> {
        // A panic under the lock leaves no rule half applied: each is checked before it is written.
        let block = || self.locked.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(wait) = self.on_wait.get() else { return block() };
        loop {
            match self.locked.try_lock() {
                Ok(locked) => return locked,
                Err(TryLockError::Poisoned(error)) => return error.into_inner(),
                // A guard can't be handed out of the wait, so the lock is taken again after it.
                Err(TryLockError::WouldBlock) => wait(&|| drop(block())),
            }
        }
    }
}

/// Model VM that threads share: a VM of a [`LockedBank`], in a bank with others or in one of its own.
pub struct LockedVm<C: Counter> {
    counter: C,
    behaviours: Behaviours,
    config: Config,
    published: Arc<PublishedVm>,
    bank: Arc<LockedBank>,
    handle: Handle,
}

impl<C: Counter + core::fmt::Debug> core::fmt::Debug for LockedVm<C> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("LockedVm").field("counter", &self.counter).field("handle", &self.handle).finish_non_exhaustive()
    }
}

impl<C: Counter> LockedVm<C> {
    /// Creates a VM with `vcpus` vCPUs, all created now, in a bank of its own.
    pub fn new(counter: C, behaviours: Behaviours, config: Config, vcpus: usize) -> Result<Self, VmError> {
        let (bank, slot) = Bank::of_one(counter.frequency(), behaviours, config)?;
        let (handle, bank) = (bank.handle_of_vm(slot), Arc::new(LockedBank::from(bank)));
        let vm = Self::of(bank, handle, counter).map_err(|_| VmError::Removed)?;
        vm.create_vcpus(vcpus, None)?;
        Ok(vm)
    }

    /// Returns a VM of this bank. `counter` is the bank's, or a [`ScaledCounter`](crate::scaled::ScaledCounter) of it
    /// at the VM's frequency.
    pub fn of(bank: Arc<LockedBank>, handle: Handle, counter: C) -> Result<Self, BankError> {
        let (behaviours, config) = bank.look(|bank| bank.vm(handle).map(|vm| (vm.behaviours(), vm.config())))?;
        let published = bank.lock().published(handle)?;
        Ok(Self { counter, behaviours, config, published, bank, handle })
    }

    /// The VM's counter.
    pub const fn counter(&self) -> &C {
        &self.counter
    }

    /// Number of vCPUs.
    pub fn vcpus(&self) -> usize {
        self.look(|vm| Ok(vm.vcpus())).unwrap_or(0)
    }

    /// Returns whether the VM has opted in to one offset.
    pub fn opted_in(&self) -> bool {
        self.look(|vm| Ok(vm.vm_offset().is_some())).unwrap_or(false)
    }

    /// Behaviours of the VM's kernel.
    pub const fn behaviours(&self) -> Behaviours {
        self.behaviours
    }

    /// Configuration of the VM.
    pub const fn config(&self) -> Config {
        self.config
    }

    /// Capabilities of the VM as a backend.
    pub fn abilities(&self) -> Abilities {
        backend::abilities(self.behaviours, self.config)
    }

    /// The count that the vCPU's guest reads from a counter, now or at an injected host count. Takes no lock.
    #[inline]
    pub fn count(&self, vcpu: usize, view: View, now: Option<HostCount>) -> Result<GuestCount, VmError> {
        let offset = self.published.get(vcpu)?.of(view);
        let guest = match now {
            Some(now) => now.guest(offset.offset()),
            None => offset.count(&self.counter),
        };
        Ok(self.config.width.count(guest))
    }

    /// See [`ModelVm::create_vcpu`].
    pub fn create_vcpu(&self, now: Option<HostCount>) -> Result<usize, VmError> {
        self.change(|vm| vm.create_vcpu(self.now(now)))
    }

    /// See [`ModelVm::create_vcpus`].
    pub fn create_vcpus(&self, vcpus: usize, now: Option<HostCount>) -> Result<(), VmError> {
        self.change(|vm| vm.create_vcpus(vcpus, self.now(now)))
    }

    /// See [`ModelVm::init_vcpu`].
    pub fn init_vcpu(&self, vcpu: usize) -> Result<(), VmError> {
        self.change(|vm| vm.init_vcpu(vcpu))
    }

    /// See [`ModelVm::set_counter_offset`].
    pub fn set_counter_offset(&self, offset: Offset, reserved: u64) -> Result<(), VmError> {
        self.change(|vm| vm.set_counter_offset(offset, reserved))
    }

    /// See [`ModelVm::reg_list`].
    pub fn reg_list(&self, vcpu: usize) -> Result<std::vec::Vec<u64>, VmError> {
        self.look(|vm| vm.reg_list(vcpu))
    }

    /// See [`ModelVm::get_one_reg`].
    pub fn get_one_reg(&self, vcpu: usize, id: u64, now: Option<HostCount>) -> Result<u64, VmError> {
        self.look(|vm| vm.get_one_reg(vcpu, id, self.now(now)))
    }

    /// See [`ModelVm::set_one_reg`].
    pub fn set_one_reg(&self, vcpu: usize, id: u64, value: u64, now: Option<HostCount>) -> Result<(), VmError> {
        self.change(|vm| vm.set_one_reg(vcpu, id, value, self.now(now)))
    }

    /// See [`ModelVm::access`].
    pub fn access(&self, vcpu: usize, encoding: Encoding, write: bool, from: Origin) -> Result<Access, VmError> {
        self.look(|vm| vm.access(vcpu, encoding, write, from))
    }

    /// See [`ModelVm::read_sysreg`].
    pub fn read_sysreg(
        &self,
        vcpu: usize,
        encoding: Encoding,
        from: Origin,
        now: Option<HostCount>,
    ) -> Result<u64, VmError> {
        self.look(|vm| vm.read_sysreg(vcpu, encoding, from, self.now(now)))
    }

    /// See [`ModelVm::write_sysreg`].
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

    /// See [`ModelVm::wake`].
    pub fn wake(&self, vcpu: usize, wfit: Option<u64>, from: Origin, now: Option<HostCount>) -> Result<u64, VmError> {
        self.look(|vm| vm.wake(vcpu, wfit, from, self.now(now)))
    }

    /// See [`ModelVm::device_irq_level`].
    pub fn device_irq_level(&self, vcpu: usize, now: Option<HostCount>) -> Result<u64, VmError> {
        self.look(|vm| vm.device_irq_level(vcpu, self.now(now)))
    }

    /// KVM_GET_DEVICE_ATTR of KVM_ARM_VCPU_TIMER_CTRL.
    pub fn irq(&self, attribute: u64) -> Result<u8, VmError> {
        self.look(|vm| Ok(vm.irqs().get(attribute)?))
    }

    /// See [`ModelVm::set_irq`].
    pub fn set_irq(&self, attribute: u64, id: i32) -> Result<(), VmError> {
        self.change(|vm| vm.set_irq(attribute, id))
    }

    /// See [`ModelVm::timer`].
    pub fn timer(&self, vcpu: usize, timer: Timer, now: Option<HostCount>) -> Result<TimerState, VmError> {
        self.look(|vm| vm.timer(vcpu, timer, self.now(now)))
    }

    /// See [`ModelVm::next_deadline`].
    pub fn next_deadline(&self, vcpu: usize, now: Option<HostCount>) -> Result<u64, VmError> {
        self.look(|vm| vm.next_deadline(vcpu, self.now(now)))
    }

    /// Lets the vCPU enter the guest. Refused while a restore or pause isn't finished.
    pub fn enter(&self, vcpu: usize) -> Result<(), LockedError> {
        self.one(|run_state, vm| {
            run_state.check_open()?;
            Ok(vm.enter(vcpu)?)
        })
        .unwrap_or(Err(OperationError::Removed))
    }

    /// Lets the vCPU leave the guest.
    pub fn exit(&self, vcpu: usize) -> Result<(), VmError> {
        self.change(|vm| vm.exit(vcpu, self.counter.count()))
    }

    /// See [`RunState::checkpoint`].
    pub fn checkpoint(&self, now: Option<Now>, saving: &Saving) -> Result<Checkpoint, LockedError> {
        self.operate(now, |run_state, backend| run_state.checkpoint(backend, saving))
    }

    /// See [`RunState::plan`].
    pub fn plan(&self, checkpoint: &Checkpoint, request: Request, now: Option<Now>) -> Result<Plan, LockedError> {
        self.operate(now, |run_state, backend| run_state.plan(backend, checkpoint, request))
    }

    /// See [`RunState::prepare`].
    pub fn prepare(
        &self,
        plan: Plan,
        checkpoint: Arc<Checkpoint>,
        now: Option<Now>,
    ) -> Result<OpenRestore, LockedError> {
        self.operate(now, |run_state, backend| run_state.prepare(backend, plan, checkpoint))
    }

    /// See [`RunState::apply`].
    pub fn apply(&self, open: &mut OpenRestore, now: Option<Now>) -> Result<(), LockedError> {
        self.operate(now, |run_state, backend| run_state.apply(backend, open))
    }

    /// See [`RunState::release`].
    pub fn release(&self, open: &mut OpenRestore, now: Option<Now>) -> Result<Report, LockedError> {
        self.operate(now, |run_state, backend| run_state.release(backend, open, None))
    }

    /// See [`RunState::give_up`].
    pub fn give_up(&self, open: &mut OpenRestore) -> Result<Condition, LockedError> {
        self.operate(None, |run_state, backend| run_state.give_up(backend, open))
    }

    /// See [`RunState::abandon`]. False too where another thread has the VM's lock: this call never waits. True for a VM
    /// that was removed: nothing of it stays closed.
    pub fn abandon(&self, open: &OpenRestore) -> bool {
        let abandoned = self.at_once(true, |run_state| run_state.abandon(open)).unwrap_or(false);
        if abandoned {
            self.bank.changed();
        }
        abandoned
    }

    /// Returns whether the VM is still in this pause, or another thread has the VM's lock: this call never waits.
    pub fn holds(&self, pause: &OpenPause) -> bool {
        self.at_once(false, |run_state| pause.holds(run_state)).unwrap_or(true)
    }

    /// State of the VM. A VM that was removed from its bank is open to nobody.
    pub fn state(&self) -> Result<State, BankError> {
        Ok(self.bank.lock().bank.vm_and_state(self.handle)?.0.state())
    }

    /// See [`RunState::opt_in`].
    pub fn opt_in(&self, offset: Option<Offset>) -> Result<(), LockedError> {
        self.operate(None, |run_state, backend| run_state.opt_in(backend, offset))
    }

    /// See [`RunState::pause`].
    pub fn pause(&self, request: Request) -> Result<OpenPause, LockedError> {
        self.operate(None, |run_state, backend| run_state.pause(backend, request))
    }

    /// See [`RunState::resume`].
    pub fn resume(&self, pause: &OpenPause) -> Result<Report, LockedError> {
        self.operate(None, |run_state, backend| run_state.resume(backend, pause, pause.policy()))
    }

    /// See [`RunState::next_step`].
    pub fn next_step(&self) -> Option<Step> {
        self.one(|run_state, _| run_state.next_step(self.counter.frequency())).ok().flatten()
    }

    /// See [`RunState::step`].
    pub fn step(&self, step: Step, now: Option<Now>) -> Result<u64, LockedError> {
        self.operate(now, |run_state, backend| run_state.step(backend, step))
    }

    /// Runs `work` on the VM over its counter, or over one instant of it, and publishes the changed offsets, whether or
    /// not it succeeds.
    ///
    /// `work` runs under the VM's lock. Its error type is its own: a backend around this one may fail for other
    /// reasons.
    pub fn operate<T, E>(
        &self,
        now: Option<Now>,
        work: impl FnOnce(&mut RunState, &mut dyn Backend<Error = VmError>) -> Result<T, OperationError<E>>,
    ) -> Result<T, OperationError<E>> {
        // Outside the lock: reading the counter may take long.
        let instant = now.map(|now| now.instant(&self.counter)).transpose()?;
        let done = self.one(|run_state, vm| match instant {
            None => work(run_state, &mut Model { vm, counter: &self.counter }),
            Some(instant) => work(run_state, &mut Model { vm, counter: &instant }),
        });
        done.unwrap_or(Err(OperationError::Removed))
    }

    fn now(&self, now: Option<HostCount>) -> HostCount {
        now.unwrap_or_else(|| self.counter.count())
    }

    fn look<T>(&self, look: impl FnOnce(ModelVm<&Bank>) -> Result<T, VmError>) -> Result<T, VmError> {
        self.bank.look(|bank| look(bank.vm(self.handle).map_err(|_| VmError::Removed)?))
    }

    fn change<T>(&self, change: impl FnOnce(&mut ModelVm<&mut Bank>) -> Result<T, VmError>) -> Result<T, VmError> {
        self.one(|_, vm| change(vm)).unwrap_or(Err(VmError::Removed))
    }

    /// Works on the run state alone, and returns `removed` for a VM that was removed; `None` where that would wait for the
    /// lock.
    fn at_once<T>(&self, removed: T, work: impl FnOnce(&mut RunState) -> T) -> Option<T> {
        let mut locked = self.bank.locked.try_lock().ok()?;
        let Ok((run_state, _)) = locked.bank.vm_and_state(self.handle) else { return Some(removed) };
        let result = work(run_state);
        locked.bank.settle(self.handle.slot());
        Some(result)
    }

    /// Works on the VM, and publishes the changed offsets, whether or not the work succeeds.
    fn one<T>(&self, work: impl FnOnce(&mut RunState, &mut ModelVm<&mut Bank>) -> T) -> Result<T, BankError> {
        let result = {
            let mut locked = self.bank.lock();
            let (run_state, mut vm) = locked.bank.vm_and_state(self.handle)?;
            let result = work(run_state, &mut vm);
            locked.publish();
            locked.bank.settle(self.handle.slot());
            result
        };
        self.bank.changed();
        Ok(result)
    }
}
