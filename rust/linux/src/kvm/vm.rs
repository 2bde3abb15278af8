//! A VM on KVM: the same operations as the model's, over ioctls.

use crate::kvm::error::{GET_DISTRIBUTOR, GET_REDISTRIBUTOR, KvmError, SET_COUNTER_OFFSET, TIMER_IRQ};
use crate::kvm::ioctls::Ioctls;
use guestclock_core::arch::Abilities;
use guestclock_core::arch::arm64::{
    CTL_ENABLE, CTL_ISTATUS, CtlReadback, Encoding, ListOrder, Registers, Role, Timer, TimerState, View, count_reg,
    is_timers, one_reg_id, view_of,
};
use guestclock_core::checkpoint::{Checkpoint, Interrupts};
use guestclock_core::drive::{
    Backend, Condition, Expected, OpenPause, OpenRestore, OperationError, Saving, Verified, await_stopped, retry_busy,
};
use guestclock_core::restore::{self, Plan, Report, Request, RunState, Step, Written};
use guestclock_core::time::{Counter, GuestCount, HostCount, Offset, OffsetInterval, PublishedOffset};
use kvm_bindings::KVM_CAP_COUNTER_OFFSET;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// KVM's register id of a vCPU's affinity.
const MPIDR_EL1: u64 = Encoding(3, 0, 0, 0, 5).one_reg_id();

/// GICD_CTLR.EnableGrp1, by which a vGICv3 keeps whether it forwards interrupts at all (Arm IHI 0069, GICD_CTLR with DS
/// set; `vgic_mmio_read_v3_misc`, arch/arm64/kvm/vgic/vgic-mmio-v3.c).
const GICD_CTLR_ENABLE_GRP1: u32 = 1 << 1;

/// The private interrupts that are enabled, in the same frame (GICR_ISENABLER0).
const GICR_ISENABLER0: u32 = 0x1_0100;

/// The pending latches of SGIs and PPIs, in the second 64 KiB frame of a redistributor (Arm IHI 0069, GICR_ISPENDR0).
const GICR_ISPENDR0: u32 = 0x1_0200;

/// Attribute of a redistributor's register in `KVM_DEV_ARM_VGIC_GRP_REDIST_REGS`, for the vCPU with this MPIDR_EL1:
/// Aff3 to Aff0 in bits 63:32, the offset below (Documentation/virt/kvm/devices/arm-vgic-v3.rst).
const fn redistributor_attr(mpidr: u64, offset: u32) -> u64 {
    let (aff3, aff2_to_0) = (mpidr >> 32 & 0xff, mpidr & 0xff_ffff);
    aff3 << 56 | aff2_to_0 << 32 | offset as u64
}

/// Facts that KVM can't be asked for, and choices of the VMM's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct KvmOptions {
    /// The offset that the VMM has opted this VM in with already: KVM can't be asked for it.
    pub counter_offset: Option<Offset>,
    /// Time for which EBUSY is waited out: a thread that is in an ioctl on a vCPU causes it too, and is soon out.
    pub busy_timeout: Duration,
    /// True if a physical offset leaves CNTPCT_EL0 untrapped ([`Abilities::physical_offset_untrapped`]); `None` if that
    /// isn't known.
    pub physical_offset_untrapped: Option<bool>,
}

impl Default for KvmOptions {
    fn default() -> Self {
        let busy_timeout = Duration::from_millis(50);
        Self { counter_offset: None, busy_timeout, physical_offset_untrapped: None }
    }
}

impl KvmOptions {
    /// The options with this offset, which the VMM has opted the VM in with.
    #[must_use]
    pub const fn with_counter_offset(mut self, offset: Offset) -> Self {
        self.counter_offset = Some(offset);
        self
    }

    /// The options with this time for which EBUSY is waited out.
    #[must_use]
    pub const fn with_busy_timeout(mut self, busy_timeout: Duration) -> Self {
        self.busy_timeout = busy_timeout;
        self
    }

    /// The options with this CPU's answer, such as that of
    /// [`physical_offset_untrapped`](crate::kvm::cpu::physical_offset_untrapped).
    #[must_use]
    pub const fn with_physical_offset_untrapped(mut self, untrapped: Option<bool>) -> Self {
        self.physical_offset_untrapped = untrapped;
        self
    }
}

/// KVM's behaviour, found out by reads. KVM is never asked for its version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Probed {
    /// KVM has the KVM_REG_ARM_PTIMER_* registers.
    pub physical_timer: bool,
    /// The guest has EL2.
    pub nested: bool,
    /// Order in which the timer registers are listed; `None` where there are too few for an order.
    pub list_order: Option<ListOrder>,
    /// Source of ISTATUS when CTL is read; `None` where the timers of vCPU 0 don't show it.
    pub ctl_readback: Option<CtlReadback>,
}

/// Look that tells whether a vCPU of a VM runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Looks {
    /// On the VM's descriptor.
    OnTheVm,
    /// On a register of a vGICv3.
    AtTheVgic,
    /// None: the caller vouches.
    Nowhere,
}

/// The clocks of a VM on KVM. They hold no descriptor: every call takes the VM's [`Ioctls`].
///
/// Safe to share between threads, and without a thread of its own.
#[derive(Debug)]
pub struct KvmVm<C> {
    counter: C,
    cntfrq_hz: u32,
    options: KvmOptions,
    /// KVM_CAP_COUNTER_OFFSET on this VM.
    counter_offset: bool,
    probed: OnceLock<Probed>,
    /// The owned offset: set once the VM has opted in, and read without the lock.
    opted_in: OnceLock<PublishedOffset>,
    locked: Mutex<Locked>,
}

#[derive(Debug, Default)]
struct Locked {
    run_state: RunState,
    state: State,
}

#[derive(Debug, Default)]
struct State {
    /// True for each vCPU in its `running()` block. A vCPU past the end has never been in one.
    running: Vec<bool>,
    /// Number of changes made through this VM.
    generation: u64,
    /// Counters that a restore set by value.
    by_value: Option<Written>,
    /// Number of vCPUs when a vCPU entered its guest and found them there; 0 before.
    looked_with: usize,
}

impl State {
    fn is_running(&self, vcpu: usize) -> bool {
        self.running.get(vcpu).copied().unwrap_or(false)
    }
}

impl<C: Counter> KvmVm<C> {
    /// Makes the clocks of a VM over the host's counter. Writes nothing to KVM.
    pub fn new(io: &(impl Ioctls + ?Sized), counter: C, options: KvmOptions) -> Result<Self, KvmError> {
        let frequency = counter.frequency();
        let cntfrq_hz = frequency.cntfrq().ok_or(KvmError::FrequencyTooHigh { hz: frequency.hz() })?;
        let answer = io.check_extension(KVM_CAP_COUNTER_OFFSET);
        let counter_offset = answer.map_err(|error| KvmError::of("KVM_CHECK_EXTENSION", &error))? > 0;
        let vm = Self {
            counter,
            cntfrq_hz,
            options,
            counter_offset,
            probed: OnceLock::new(),
            opted_in: OnceLock::new(),
            locked: Mutex::default(),
        };
        if let Some(offset) = options.counter_offset {
            if !counter_offset {
                return Err(KvmError::NoCounterOffset);
            }
            vm.own(&mut vm.lock().state, offset);
        }
        if io.vcpus() > 0 {
            vm.probed(io)?;
        }
        Ok(vm)
    }

    /// The host's counter.
    pub const fn counter(&self) -> &C {
        &self.counter
    }

    /// Returns whether the VM has opted in to one offset, as far as guestclock knows.
    pub fn has_opted_in(&self) -> bool {
        self.opted_in.get().is_some()
    }

    /// Operations that this kernel allows on the VM's clocks.
    pub fn abilities(&self) -> Abilities {
        Abilities {
            counter_offset: self.counter_offset,
            physical_offset_untrapped: self.options.physical_offset_untrapped,
            counter_bits: None,
        }
    }

    /// Returns whether a look tells, of this VM as it is now, that a vCPU runs: on the VM's descriptor, by a vGICv3's, or
    /// not at all.
    pub fn looks(&self, io: &(impl Ioctls + ?Sized)) -> Looks {
        if self.counter_offset && io.look().is_some() {
            Looks::OnTheVm
        } else if io.distributor().is_some() {
            Looks::AtTheVgic
        } else {
            Looks::Nowhere
        }
    }

    /// KVM's behaviour, found out on vCPU 0, which has to exist and be stopped at the first call.
    pub fn probed(&self, io: &(impl Ioctls + ?Sized)) -> Result<Probed, KvmError> {
        if let Some(probed) = self.probed.get() {
            return Ok(*probed);
        }
        let Locked { state, .. } = &mut *self.lock();
        let probed = self.backend(io, state).probe()?;
        Ok(*self.probed.get_or_init(|| probed))
    }

    /// A counter of every vCPU's guest, now or when the host's reads `now`, without an ioctl or a lock.
    ///
    /// `None` until the offset is owned, and always for the virtual counter of a guest with EL2, whose CNTVOFF_EL2 is
    /// each vCPU's own.
    #[inline]
    pub fn count_by_offset(&self, view: View, now: Option<HostCount>) -> Option<GuestCount> {
        let opted_in = self.opted_in.get()?;
        let plain = view == View::Physical || self.probed.get().is_some_and(|probed| !probed.nested);
        plain.then(|| now.map_or_else(|| opted_in.count(&self.counter), |now| now.guest(opted_in.offset())))
    }

    /// A counter of the vCPU's guest, by [`count_by_offset`](Self::count_by_offset) or else by KVM_GET_ONE_REG, which
    /// reads it at the present alone ([`KvmError::OnlyNow`]).
    pub fn count(
        &self,
        io: &(impl Ioctls + ?Sized),
        vcpu: usize,
        view: View,
        now: Option<HostCount>,
    ) -> Result<GuestCount, KvmError> {
        exists(io, vcpu)?;
        let probed = self.probed(io)?;
        if let Some(guest) = self.count_by_offset(view, now) {
            return Ok(guest);
        }
        if let Some(count) = now {
            return Err(KvmError::OnlyNow { count });
        }
        if view == View::Physical && !probed.physical_timer {
            // Without its registers the physical counter can't have been moved.
            return Ok(self.counter.count().guest(Offset(0)));
        }
        self.get_one_reg(io, vcpu, count_reg(view)).map(GuestCount)
    }

    /// KVM_GET_ONE_REG. Refused while the vCPU runs, since KVM would wait for it.
    pub fn get_one_reg(&self, io: &(impl Ioctls + ?Sized), vcpu: usize, id: u64) -> Result<u64, KvmError> {
        self.ask(io, |backend| backend.get_one_reg(vcpu, id))
    }

    /// KVM_SET_ONE_REG. Refused while the vCPU runs, since KVM would wait for it.
    pub fn set_one_reg(&self, io: &(impl Ioctls + ?Sized), vcpu: usize, id: u64, value: u64) -> Result<(), KvmError> {
        self.ask(io, |backend| backend.set_one_reg(vcpu, id, value))
    }

    /// The timer registers of the vCPU, in KVM_GET_REG_LIST's order.
    pub fn reg_list(&self, io: &(impl Ioctls + ?Sized), vcpu: usize) -> Result<Vec<u64>, KvmError> {
        let mut list = self.ask(io, |backend| backend.reg_list(vcpu))?;
        list.retain(|id| is_timers(*id));
        Ok(list)
    }

    /// KVM_ARM_SET_COUNTER_OFFSET: opts in, for good.
    pub fn set_counter_offset(&self, io: &(impl Ioctls + ?Sized), offset: Offset) -> Result<(), KvmError> {
        self.ask(io, |backend| {
            backend.nobody_runs()?;
            retry_busy(backend, |backend| backend.set_counter_offset(offset))
        })
    }

    /// A timer as its guest sees it, from three registers read one after the other.
    pub fn timer(&self, io: &(impl Ioctls + ?Sized), vcpu: usize, timer: Timer) -> Result<TimerState, KvmError> {
        let cval = self.get_one_reg(io, vcpu, one_reg_id(Role::Cval(timer)))?;
        let ctl = self.get_one_reg(io, vcpu, one_reg_id(Role::Ctl(timer)))?;
        let now = self.counter.count();
        // The count is read after `now`, so the deadline is early by the time between: a waiter looks again, and isn't
        // late.
        let guest = match self.count_by_offset(view_of(timer), Some(now)) {
            Some(guest) => guest,
            None => self.count(io, vcpu, view_of(timer), None)?,
        };
        Ok(TimerState::at(ctl, cval, guest, now))
    }

    /// The host count at which the first of the vCPU's timer lines goes high, or
    /// [`NO_DEADLINE`](guestclock_core::time::NO_DEADLINE).
    pub fn next_deadline(&self, io: &(impl Ioctls + ?Sized), vcpu: usize) -> Result<u64, KvmError> {
        let registers = self.ask(io, |backend| Registers::of(backend))?;
        let mut deadline = guestclock_core::time::NO_DEADLINE;
        for timer in registers.timers() {
            deadline = deadline.min(self.timer(io, vcpu, timer)?.deadline);
        }
        Ok(deadline)
    }

    /// Each vCPU's GICR_ISPENDR0 as a vGICv3 keeps it: the pending latches of its private interrupts, lines apart
    /// (Documentation/virt/kvm/devices/arm-vgic-v3.rst). Every vCPU has to be stopped.
    pub fn pending_latches(&self, io: &(impl Ioctls + ?Sized)) -> Result<Vec<u32>, KvmError> {
        if io.distributor().is_none() {
            return Err(KvmError::NoVgic);
        }
        self.ask(io, |backend| {
            // Reading MPIDR_EL1 would wait for a vCPU that runs.
            await_stopped(backend)?;
            (0..io.vcpus())
                .map(|vcpu| {
                    let attr = redistributor_attr(backend.get_one_reg(vcpu, MPIDR_EL1)?, GICR_ISPENDR0);
                    retry_busy(backend, |kvm| {
                        let answer = kvm.io.redistributor(attr).ok_or(KvmError::NoVgic)?;
                        answer.map_err(|error| kvm.on_vm(GET_REDISTRIBUTOR, &error))
                    })
                })
                .collect()
        })
    }

    /// The timer's interrupt id, on every vCPU (KVM_ARM_VCPU_TIMER_CTRL). Read from vCPU 0, which has to be stopped.
    pub fn timer_irq(&self, io: &(impl Ioctls + ?Sized), timer: Timer) -> Result<i32, KvmError> {
        self.ask(io, |backend| {
            backend.is_stopped(0)?;
            let answer = io.timer_irq(0, timer as u64).ok_or(KvmError::NoTimerIrq)?;
            answer.map_err(|error| KvmError::of(TIMER_IRQ, &error))
        })
    }

    /// Marks the vCPU as in its guest: the VMM calls KVM_RUN after this.
    ///
    /// Refused while a restore or pause isn't finished, and where counters that were restored by value have moved
    /// since.
    pub fn enter(&self, io: &(impl Ioctls + ?Sized), vcpu: usize) -> Result<(), OperationError<KvmError>> {
        let Locked { run_state, state } = &mut *self.lock();
        run_state.check_open()?;
        exists(io, vcpu).map_err(OperationError::Backend)?;
        if state.is_running(vcpu) {
            return Err(OperationError::Backend(KvmError::Running { vcpu }));
        }
        self.still_there(io, state).map_err(OperationError::Backend)?;
        if state.running.len() <= vcpu {
            state.running.resize(vcpu + 1, false);
        }
        state.running[vcpu] = true;
        // Running changes CTL, so a plan from before is stale.
        state.generation += 1;
        Ok(())
    }

    /// Marks the vCPU as out of its guest.
    pub fn exit(&self, vcpu: usize) {
        let Locked { state, .. } = &mut *self.lock();
        if let Some(running) = state.running.get_mut(vcpu) {
            *running = false;
        }
        state.generation += 1;
    }

    /// Checks that the counters are where a restore by value set them. A vCPU created since has moved both.
    fn still_there(&self, io: &(impl Ioctls + ?Sized), state: &mut State) -> Result<(), KvmError> {
        let vcpus = io.vcpus();
        let Some(Written::ByValue { virt, phys }) = state.by_value.filter(|_| state.looked_with != vcpus) else {
            return Ok(());
        };
        let mut backend = self.backend(io, state);
        let mut check = |view, name, known: OffsetInterval| {
            let before = self.counter.count();
            let guest = GuestCount(backend.get_one_reg(0, count_reg(view))?);
            let now = OffsetInterval::bracketed(before, guest, self.counter.count());
            known.intersect(now).map(|_| ()).ok_or(KvmError::CountersMoved { view: name })
        };
        if !self.probed.get().is_some_and(|probed| probed.nested) {
            check(View::Virtual, "virtual", virt)?;
        }
        if let Some(phys) = phys {
            check(View::Physical, "physical", phys)?;
        }
        state.looked_with = vcpus;
        Ok(())
    }

    /// See [`RunState::checkpoint`].
    pub fn checkpoint(
        &self,
        io: &(impl Ioctls + ?Sized),
        saving: &Saving,
    ) -> Result<Checkpoint, OperationError<KvmError>> {
        self.operate(io, |run_state, backend| run_state.checkpoint(backend, saving))
    }

    /// See [`RunState::plan`].
    pub fn plan(
        &self,
        io: &(impl Ioctls + ?Sized),
        checkpoint: &Checkpoint,
        request: Request,
    ) -> Result<Plan, OperationError<KvmError>> {
        self.operate(io, |run_state, backend| run_state.plan(backend, checkpoint, request))
    }

    /// See [`RunState::prepare`].
    pub fn prepare(
        &self,
        io: &(impl Ioctls + ?Sized),
        plan: Plan,
        checkpoint: Arc<Checkpoint>,
    ) -> Result<OpenRestore, OperationError<KvmError>> {
        self.operate(io, |run_state, backend| run_state.prepare(backend, plan, checkpoint))
    }

    /// See [`RunState::apply`].
    pub fn apply(&self, io: &(impl Ioctls + ?Sized), open: &mut OpenRestore) -> Result<(), OperationError<KvmError>> {
        self.operate(io, |run_state, backend| run_state.apply(backend, open))
    }

    /// See [`RunState::release`].
    pub fn release(
        &self,
        io: &(impl Ioctls + ?Sized),
        open: &mut OpenRestore,
    ) -> Result<Report, OperationError<KvmError>> {
        self.operate(io, |run_state, backend| run_state.release(backend, open, None))
    }

    /// See [`RunState::give_up`].
    pub fn give_up(
        &self,
        io: &(impl Ioctls + ?Sized),
        open: &mut OpenRestore,
    ) -> Result<Condition, OperationError<KvmError>> {
        self.operate(io, |run_state, backend| run_state.give_up(backend, open))
    }

    /// See [`RunState::abandon`]. False too where another thread has the VM's lock: this call never waits.
    pub fn abandon(&self, open: &OpenRestore) -> bool {
        self.locked.try_lock().is_ok_and(|mut locked| locked.run_state.abandon(open))
    }

    /// Returns whether the VM is still in this pause, or another thread has the VM's lock: this call never waits.
    pub fn holds(&self, pause: &OpenPause) -> bool {
        self.locked.try_lock().map_or(true, |locked| pause.holds(&locked.run_state))
    }

    /// State of the VM.
    pub fn state(&self) -> restore::State {
        self.lock().run_state.state()
    }

    /// See [`RunState::opt_in`].
    pub fn opt_in(&self, io: &(impl Ioctls + ?Sized), offset: Option<Offset>) -> Result<(), OperationError<KvmError>> {
        self.operate(io, |run_state, backend| run_state.opt_in(backend, offset))
    }

    /// See [`RunState::pause`].
    pub fn pause(&self, io: &(impl Ioctls + ?Sized), request: Request) -> Result<OpenPause, OperationError<KvmError>> {
        self.operate(io, |run_state, backend| run_state.pause(backend, request))
    }

    /// See [`RunState::resume`].
    pub fn resume(&self, io: &(impl Ioctls + ?Sized), pause: &OpenPause) -> Result<Report, OperationError<KvmError>> {
        self.operate(io, |run_state, backend| run_state.resume(backend, pause, pause.policy()))
    }

    /// See [`RunState::next_step`].
    pub fn next_step(&self) -> Option<Step> {
        self.lock().run_state.next_step(self.counter.frequency())
    }

    /// See [`RunState::verify`].
    pub fn verify(
        &self,
        io: &(impl Ioctls + ?Sized),
        expected: Expected<'_>,
    ) -> Result<Verified, OperationError<KvmError>> {
        self.operate(io, |run_state, backend| run_state.verify(backend, expected))
    }

    /// See [`RunState::step`].
    pub fn step(&self, io: &(impl Ioctls + ?Sized), step: Step) -> Result<u64, OperationError<KvmError>> {
        self.operate(io, |run_state, backend| run_state.step(backend, step))
    }

    /// Runs `work` under the VM's lock, on its primitive calls.
    ///
    /// The error type of `work` is its own: a backend around this one may fail for other reasons.
    pub fn operate<I: Ioctls + ?Sized, T, E>(
        &self,
        io: &I,
        work: impl FnOnce(&mut RunState, &mut dyn Backend<Error = KvmError>) -> Result<T, OperationError<E>>,
    ) -> Result<T, OperationError<E>> {
        let Locked { run_state, state } = &mut *self.lock();
        work(run_state, &mut self.backend(io, state))
    }

    fn ask<I: Ioctls + ?Sized, T>(
        &self,
        io: &I,
        work: impl FnOnce(&mut Kvm<'_, I, C>) -> Result<T, KvmError>,
    ) -> Result<T, KvmError> {
        work(&mut self.backend(io, &mut self.lock().state))
    }

    fn backend<'a, I: ?Sized>(&'a self, io: &'a I, state: &'a mut State) -> Kvm<'a, I, C> {
        Kvm { vm: self, io, state, busy_since: None }
    }

    fn own(&self, state: &mut State, offset: Offset) {
        state.generation += 1;
        // KVM ignores counts that are set from now on.
        state.by_value = None;
        self.opted_in.get_or_init(|| PublishedOffset::new(offset)).publish(offset);
    }

    fn lock(&self) -> MutexGuard<'_, Locked> {
        // A panic under the lock leaves KVM's own state, which is read again.
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn exists(io: &(impl Ioctls + ?Sized), vcpu: usize) -> Result<(), KvmError> {
    let vcpus = io.vcpus();
    if vcpu < vcpus { Ok(()) } else { Err(KvmError::NoSuchVcpu { vcpu, vcpus }) }
}

/// A VM on KVM as a backend.
struct Kvm<'a, I: ?Sized, C> {
    vm: &'a KvmVm<C>,
    io: &'a I,
    state: &'a mut State,
    /// Instant of the first EBUSY of a call.
    busy_since: Option<Instant>,
}

impl<I: Ioctls + ?Sized, C: Counter> Kvm<'_, I, C> {
    fn exists(&self, vcpu: usize) -> Result<(), KvmError> {
        exists(self.io, vcpu)
    }

    /// Refuses a vCPU in its guest, since its ioctls would wait until it leaves.
    fn is_stopped(&self, vcpu: usize) -> Result<(), KvmError> {
        self.exists(vcpu)?;
        if self.state.is_running(vcpu) { Err(KvmError::Running { vcpu }) } else { Ok(()) }
    }

    fn nobody_runs(&self) -> Result<(), KvmError> {
        let running = self.state.running.iter().position(|running| *running);
        running.map_or(Ok(()), |vcpu| Err(KvmError::Running { vcpu }))
    }

    fn probe(&mut self) -> Result<Probed, KvmError> {
        self.exists(0)?;
        let list = self.reg_list(0)?;
        let place = |role| list.iter().position(|id| *id == one_reg_id(role));
        let list_order = place(Role::Count(View::Virtual))
            .zip(place(Role::Ctl(Timer::Vtimer)))
            .map(|(count, ctl)| if ctl < count { ListOrder::Grouped } else { ListOrder::ByEncoding });
        let registers = Registers::of(self)?;
        let mut readback = || {
            let cval = self.get_one_reg(0, one_reg_id(Role::Cval(Timer::Vtimer))).ok()?;
            // Before CTL: what is due by this count is due when CTL is read.
            let due = cval <= self.get_one_reg(0, count_reg(View::Virtual)).ok()?;
            let ctl = self.get_one_reg(0, one_reg_id(Role::Ctl(Timer::Vtimer))).ok()?;
            match ctl & (CTL_ENABLE | CTL_ISTATUS) {
                // Stored, ISTATUS of a timer that is off is whatever the CPU had there (Arm ARM, CNTV_CTL_EL0: UNKNOWN). So
                // this says computed only beside the order of the kernels that compute.
                CTL_ISTATUS if due && list_order == Some(ListOrder::Grouped) => Some(CtlReadback::Computed),
                0 | CTL_ENABLE if due => Some(CtlReadback::Stored),
                _ => None,
            }
        };
        Ok(Probed {
            physical_timer: registers.has(Role::Count(View::Physical)),
            nested: registers.has(Role::Cntvoff),
            ctl_readback: readback(),
            list_order,
        })
    }

    /// The error of a call on the whole VM: [`KvmError::Busy`] for EBUSY.
    fn on_vm(&self, call: &'static str, error: &io::Error) -> KvmError {
        if error.raw_os_error() == Some(libc::EBUSY) {
            let waited_ms = self.busy_since.map_or(0, |since| since.elapsed().as_millis());
            return KvmError::Busy { call, waited_ms };
        }
        KvmError::of(call, error)
    }
}

impl<I: Ioctls + ?Sized, C: Counter> Backend for Kvm<'_, I, C> {
    type Error = KvmError;

    fn counter(&self) -> &dyn Counter {
        &self.vm.counter
    }

    fn cntfrq_hz(&self) -> u32 {
        self.vm.cntfrq_hz
    }

    fn vcpus(&self) -> usize {
        self.io.vcpus()
    }

    fn abilities(&self) -> Abilities {
        self.vm.abilities()
    }

    fn reg_list(&mut self, vcpu: usize) -> Result<Vec<u64>, KvmError> {
        self.is_stopped(vcpu)?;
        self.io.reg_list(vcpu).map_err(|error| KvmError::of("KVM_GET_REG_LIST", &error))
    }

    fn nested(&self) -> bool {
        self.vm.probed.get().is_none_or(|probed| probed.nested)
    }

    fn vm_offset(&self) -> Option<Offset> {
        self.vm.opted_in.get().map(PublishedOffset::offset)
    }

    fn computes_istatus(&self) -> bool {
        self.vm.probed.get().is_some_and(|probed| probed.ctl_readback == Some(CtlReadback::Computed))
    }

    fn interrupts(&mut self, registers: &Registers) -> Result<Option<Interrupts>, KvmError> {
        self.is_stopped(0)?;
        let nested = registers.timers().filter(|timer| matches!(timer, Timer::Hvtimer | Timer::Hptimer));
        let mut ids = [0; 4];
        for timer in [Timer::Vtimer, Timer::Ptimer].into_iter().chain(nested) {
            let Some(id) = self.io.timer_irq(0, timer as u64) else { return Ok(None) };
            ids[timer.index()] = id.map_err(|error| KvmError::of(TIMER_IRQ, &error))?.cast_unsigned();
        }
        Ok(Some(Interrupts(ids)))
    }

    fn forwards(&mut self, vcpu: usize, timer: Timer) -> Result<Option<bool>, KvmError> {
        let answer = self.io.distributor().transpose();
        let Some(ctlr) = answer.map_err(|error| self.on_vm(GET_DISTRIBUTOR, &error))? else { return Ok(None) };
        if ctlr & GICD_CTLR_ENABLE_GRP1 != 0 {
            return Ok(Some(true));
        }
        let irq = self.io.timer_irq(0, timer as u64).transpose().map_err(|error| KvmError::of(TIMER_IRQ, &error))?;
        let attr = redistributor_attr(self.get_one_reg(vcpu, MPIDR_EL1)?, GICR_ISENABLER0);
        let enabled = self.io.redistributor(attr).transpose().map_err(|error| self.on_vm(GET_REDISTRIBUTOR, &error))?;
        Ok(irq.zip(enabled).map(|(irq, enabled)| enabled.checked_shr(irq.cast_unsigned()).unwrap_or(0) & 1 == 0))
    }

    fn generation(&self) -> u64 {
        // Both only grow, so their sum changes with each.
        self.state.generation + self.io.vcpus() as u64
    }

    /// Asks in this order: the VMM's own `running()`; the look on the VM's descriptor; a vGICv3's distributor, whose
    /// registers can be had only with every vCPU stopped. Otherwise the caller vouches. Nothing is written.
    fn stopped(&mut self) -> Result<(), KvmError> {
        self.nobody_runs()?;
        let looked = self.vm.counter_offset.then(|| self.io.look()).flatten();
        let (call, answer) = match looked {
            Some(answer) => ("KVM_CREATE_DEVICE, as a look", Some(answer)),
            None => (GET_DISTRIBUTOR, self.io.distributor().map(|answer| answer.map(drop))),
        };
        answer.unwrap_or(Ok(())).map_err(|error| self.on_vm(call, &error))
    }

    fn get_one_reg(&mut self, vcpu: usize, id: u64) -> Result<u64, KvmError> {
        self.is_stopped(vcpu)?;
        self.io.get_one_reg(vcpu, id).map_err(|error| on_register("KVM_GET_ONE_REG", vcpu, id, &error))
    }

    fn set_one_reg(&mut self, vcpu: usize, id: u64, value: u64) -> Result<(), KvmError> {
        self.is_stopped(vcpu)?;
        self.io.set_one_reg(vcpu, id, value).map_err(|error| on_register("KVM_SET_ONE_REG", vcpu, id, &error))?;
        self.state.generation += 1;
        if [View::Virtual, View::Physical].map(count_reg).contains(&id) {
            self.state.by_value = None;
        }
        Ok(())
    }

    fn set_counter_offset(&mut self, offset: Offset) -> Result<(), KvmError> {
        if !self.vm.counter_offset {
            return Err(KvmError::NoCounterOffset);
        }
        self.io.set_counter_offset(offset.0).map_err(|error| self.on_vm(SET_COUNTER_OFFSET, &error))?;
        self.vm.own(self.state, offset);
        Ok(())
    }

    fn retries(&mut self, error: &KvmError, attempt: u32) -> bool {
        if !matches!(error, KvmError::Busy { .. }) {
            return false;
        }
        if attempt == 0 {
            self.busy_since = Some(Instant::now());
        }
        let waits = self.busy_since.is_some_and(|since| since.elapsed() < self.vm.options.busy_timeout);
        if waits {
            std::thread::yield_now();
        }
        waits
    }

    fn restored(&mut self, written: Written) {
        self.state.by_value = matches!(written, Written::ByValue { .. }).then_some(written);
        self.state.looked_with = 0;
    }
}

fn on_register(call: &'static str, vcpu: usize, id: u64, error: &io::Error) -> KvmError {
    if error.raw_os_error() == Some(libc::ENOENT) {
        return KvmError::NoSuchOneReg { vcpu, id };
    }
    KvmError::of(call, error)
}
