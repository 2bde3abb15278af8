//! Operations of a VM that depend on its run state, on any backend.
//!
//! They take no lock: a caller that shares the VM between threads holds the VM's lock.

use crate::arch::arm64::{Registers, View};
use crate::checkpoint::{BuildError, Checkpoint, GuestTime, NotOneVm, SavedVm, VmName};
use crate::drive::backend::{Backend, Facts};
use crate::drive::capture::{capture, capture_registers};
use crate::drive::driver::drive;
use crate::drive::machine::{Failed, Io, What};
use crate::drive::restore::{Condition, Restore, RestoreError, Stage, at_step};
use crate::drive::verify::{Expected, Verified, verify};
use crate::restore::refusal::NeedsCounterOffset;
use crate::restore::run_state::{Hold, RunState, State, Step};
use crate::restore::{Late, Plan, Policy, Refusal, Report, Request, Saved, planning};
use crate::time::{
    Evidence, Frequency, GuestCount, HostCount, NamespaceTicks, Offset, OffsetInterval, Stamp, StampCount, SyncBound,
};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Tolerance of a counter that is set by value, as a divisor of a second: 1 us.
const BY_VALUE_TOLERANCE: u64 = 1_000_000;

/// Error of an operation on a VM.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperationError<E> {
    /// The backend failed.
    #[error("{0}")]
    Backend(E),
    /// A restore was refused or failed.
    #[error(transparent)]
    Restore(#[from] RestoreError<E>),
    /// The VMs don't make a checkpoint.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The checkpoint isn't of one VM.
    #[error(transparent)]
    NotOneVm(#[from] NotOneVm),
    /// The VM was removed from its bank.
    #[error("the VM was removed from its bank")]
    Removed,
    /// The VM's offset isn't the remembered one.
    #[error(
        "the VM's offset is remembered as {remembered}, and vCPU 0's counter is offset by {found}: it was set elsewhere, or \
         the VM has never opted in. Nothing was written. Make the object anew with the offset that the VM has"
    )]
    OffsetElsewhere {
        /// The remembered offset.
        remembered: u64,
        /// The lowest offset that the read allows.
        found: u64,
    },
    /// A restore or pause isn't finished.
    #[error("a restore or pause of this VM isn't finished: release it before any vCPU runs, or a checkpoint is taken")]
    Closed,
    /// The backlog has no step left to take.
    #[error("the guest is owed nothing: there is no step to make")]
    NoBacklog,
    /// The step isn't the backlog's next one.
    #[error("this step was taken already, or a restore has changed the backlog: take the next one")]
    StepOver,
    /// The step isn't due.
    #[error(
        "the step is due at the count {due}, and the counter reads {now}: wait, since an early step makes the guest's \
             time faster than was planned"
    )]
    StepEarly {
        /// The count from which on it is due.
        due: u64,
        /// The counter's count.
        now: u64,
    },
    /// The VM has opted in before.
    #[error("the VM has opted in already, for good: a restore moves its clock")]
    OptedIn,
    /// The claimed stop of the vCPUs is later than the checkpoint.
    #[error("the vCPUs can't have stopped at the count {stopped}: the checkpoint is of {saved}")]
    StoppedLater {
        /// The claimed count of the stop.
        stopped: u64,
        /// The checkpoint's count.
        saved: u64,
    },
    /// An injected stamp is of a counter of another frequency.
    #[error("now is a Stamp at {} Hz, and the VM's counter runs at {} Hz", .stamp.hz(), .here.hz())]
    OtherFrequency {
        /// Frequency of the stamp.
        stamp: Frequency,
        /// Frequency of the counter.
        here: Frequency,
    },
    /// The wall clock at an injected count can't be derived.
    #[error("the count {count} is too far from the counter's {here} to tell the wall clock there")]
    TooFar {
        /// The injected count.
        count: u64,
        /// The counter's own count.
        here: u64,
    },
}

impl<E> From<Failed<E>> for OperationError<E> {
    /// The failure of a step that reads.
    fn from(failed: Failed<E>) -> Self {
        match failed {
            Failed::Call(error) | Failed::Register { error, .. } => Self::Backend(error),
            differs @ Failed::Differs { .. } => Self::Restore(at_step(Condition::Partial, String::new)(differs)),
        }
    }
}

impl<E> From<Refusal> for OperationError<E> {
    fn from(refusal: Refusal) -> Self {
        Self::Restore(refusal.into())
    }
}

/// Result of an operation by a machine.
pub type By<T, E> = Result<T, OperationError<E>>;

/// Result of an operation on a backend.
pub type Operated<T, B> = Result<T, OperationError<<B as Backend>::Error>>;

/// Facts about a checkpoint that the VM doesn't know.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Saving {
    /// Name of the VM.
    pub name: VmName,
    /// Guest-physical address of the vmclock page.
    pub vmclock_address: Option<u64>,
    /// Guest-physical addresses of the vCPUs' stolen-time records, in the vCPUs' order; none where nobody named them.
    pub stolen_time: Vec<Option<u64>>,
    /// The host's count when the last vCPU left its guest, as this process read it. Without it a paused VM has stopped at
    /// the beginning of its pause, where the counter tells.
    pub stopped_at: Option<HostCount>,
    /// Bound of the wall clock that somebody vouches for.
    pub sync: Option<SyncBound>,
}

impl Saving {
    /// Returns the stop as a checkpoint of this instant has it, host-wide: the claimed one, and else the beginning of the
    /// pause that the VM is in, where this counter has counted all the time since. Refuses a claim that is later than the
    /// checkpoint.
    pub fn stopped_before<E>(
        claimed: Option<HostCount>,
        paused_at: Option<&Stamp>,
        stamp: &Stamp,
        namespace: NamespaceTicks,
    ) -> Result<Option<StampCount>, OperationError<E>> {
        let saved = stamp.count.own(namespace);
        match claimed {
            Some(stopped) if stopped.is_after(saved) => {
                Err(OperationError::StoppedLater { stopped: stopped.0, saved: saved.0 })
            }
            Some(stopped) => Ok(Some(stopped.stamped(namespace))),
            None => Ok(paused_at.filter(|paused| Evidence::between(paused, stamp).kept_count()).map(|at| at.count)),
        }
    }

    /// Returns the stamp with somebody to vouch for its wall clock, where that was said.
    #[must_use]
    pub fn vouched(&self, stamp: Stamp) -> Stamp {
        self.sync.map_or(stamp, |sync| stamp.vouched_by(sync))
    }
}

/// Looks whether all vCPUs are stopped, and whether the VM has the offset that is remembered. Nothing is written.
async fn look_at<E>(io: &Io<'_, E>, facts: &Facts) -> Result<(), OperationError<E>> {
    io.look().await?;
    let Some(remembered) = facts.vm_offset.filter(|_| facts.vcpus > 0) else { return Ok(()) };
    // Both counters: the physical one of a VM that never opted in is the host's, so a small offset would pass for its.
    let views: &[View] = if facts.nested { &[View::Physical] } else { &[View::Virtual, View::Physical] };
    for view in views {
        let read = io.bracket(0, *view).await?;
        if !read.contains(remembered) {
            return Err(OperationError::OffsetElsewhere { remembered: remembered.0, found: read.low.0 });
        }
    }
    Ok(())
}

/// Describes the look whether all vCPUs are stopped, as a part of this step.
fn look(step: &str) -> String {
    format!("{step}: looking whether the vCPUs are stopped")
}

/// A restore under way. The VM stays closed until it is released or given up; a new restore takes over.
#[derive(Debug)]
pub struct OpenRestore {
    restore: Restore,
    checkpoint: Arc<Checkpoint>,
    hold: Hold,
}

/// A pause in place.
#[derive(Debug)]
pub struct OpenPause {
    stamp: Stamp,
    time: GuestTime,
    request: Request,
    hold: Hold,
}

impl OpenPause {
    /// Policy for the end of the pause.
    #[must_use]
    pub const fn policy(&self) -> Policy {
        self.request.policy
    }

    /// Returns whether the VM is still in this pause.
    #[must_use]
    pub fn holds(&self, run_state: &RunState) -> bool {
        run_state.held(self.hold).is_ok()
    }
}

/// Operations by machines: each asks for its steps over [`Io`], and takes the VM's [`Facts`] as they are at its beginning.
/// The caller holds the VM's lock until the machine has ended.
impl RunState {
    /// Refuses a VM whose restore or pause isn't finished.
    pub fn check_open<E>(&self) -> Result<(), OperationError<E>> {
        if self.state() == State::Open { Ok(()) } else { Err(OperationError::Closed) }
    }

    /// Refuses a VM that is half restored. A paused VM can be saved: its vCPUs have stopped at the pause.
    pub fn check_whole<E>(&self) -> Result<(), OperationError<E>> {
        if self.state() == State::Restoring { Err(OperationError::Closed) } else { Ok(()) }
    }

    /// The machine of [`checkpoint`](Self::checkpoint).
    pub async fn checkpointing<E>(&self, io: &Io<'_, E>, facts: &Facts, saving: &Saving) -> By<Checkpoint, E> {
        self.check_whole()?;
        look_at(io, facts).await?;
        if facts.vcpus == 0 {
            return Err(BuildError::NoVcpus { name: saving.name.as_str().into() }.into());
        }
        let list = io.list().await?;
        let registers = capture_registers(io, &list).await?;
        let (stamp, time) = self.capture(io, facts, &list).await?;
        let time = GuestTime {
            stopped_at: Saving::stopped_before(saving.stopped_at, self.paused_at(), &stamp, facts.namespace_ticks)?,
            vmclock_address: saving.vmclock_address,
            ..time
        };
        Ok(Checkpoint::of_one(saving.vouched(stamp), &saving.name, &time, &registers, &saving.stolen_time)?)
    }

    /// The machine of [`plan`](Self::plan).
    pub async fn making_plan<E>(
        &self,
        io: &Io<'_, E>,
        facts: &Facts,
        checkpoint: &Checkpoint,
        request: Request,
    ) -> By<Box<Plan>, E> {
        // Reading registers would wait for a vCPU that runs.
        look_at(io, facts).await?;
        let target = facts.target(io.list().await?);
        let vm = checkpoint.only()?;
        let stamp = io.stamp().await?;
        Ok(Box::new(planning::plan(&Saved::from(&vm), &target, stamp, request)?))
    }

    /// The machine of [`close_for_restore`](Self::close_for_restore).
    pub async fn closing<E>(
        &mut self,
        io: &Io<'_, E>,
        facts: &Facts,
        plan: Box<Plan>,
        checkpoint: Arc<Checkpoint>,
    ) -> By<OpenRestore, E> {
        checkpoint.only()?;
        look_at(io, facts).await?;
        let restore = Restore::checking(io, facts, plan).await?;
        Ok(OpenRestore { restore, checkpoint, hold: self.close(State::Restoring) })
    }

    /// The machine of [`begin`](Self::begin).
    pub async fn beginning<E>(&mut self, io: &Io<'_, E>, facts: &Facts, open: &mut OpenRestore) -> By<(), E> {
        self.held(open.hold)?;
        look_at(io, facts).await?;
        self.first_write(io, facts, open).await
    }

    async fn first_write<E>(&mut self, io: &Io<'_, E>, facts: &Facts, open: &mut OpenRestore) -> By<(), E> {
        let begun = open.restore.beginning(io, facts).await;
        if begun.as_ref().is_err_and(|error| error.left() == Condition::Untouched) {
            self.cancel(open.hold)?;
        }
        // Otherwise its clock is at a provisional offset: no vCPU may run with that.
        Ok(begun?)
    }

    /// The machine of [`prepare`](Self::prepare).
    pub async fn preparing<E>(
        &mut self,
        io: &Io<'_, E>,
        facts: &Facts,
        plan: Box<Plan>,
        checkpoint: Arc<Checkpoint>,
    ) -> By<OpenRestore, E> {
        let mut open = self.closing(io, facts, plan, checkpoint).await?;
        self.first_write(io, facts, &mut open).await?;
        Ok(open)
    }

    /// The machine of [`give_up`](Self::give_up).
    pub async fn giving_up<E>(&mut self, io: &Io<'_, E>, open: &mut OpenRestore) -> By<Condition, E> {
        if self.held(open.hold).is_err() {
            return Ok(Condition::Untouched);
        }
        if open.restore.taking_back(io).await? {
            self.cancel(open.hold)?;
            return Ok(Condition::Untouched);
        }
        Ok(match open.restore.stage() {
            _ if !open.restore.has_begun() => Condition::Provisional,
            Stage::Prepared => Condition::Partial,
            _ => Condition::TimersOnly,
        })
    }

    /// Gives a restore up without a call on its VM. Returns false where that would take one: the VM stays closed, and
    /// can be restored again.
    pub fn abandon(&mut self, open: &OpenRestore) -> bool {
        if self.held(open.hold).is_err() {
            return true;
        }
        open.restore.is_untouched() && self.cancel(open.hold).is_ok()
    }

    /// Ends a pause as if there had been none, without a call on its VM: the guest's clock has run on, and its backlog is
    /// as it was. A pause that a restore has overtaken holds nothing.
    pub fn cancel_pause(&mut self, pause: &OpenPause) {
        let _ = self.cancel(pause.hold);
    }

    /// The machine of [`opt_in`](Self::opt_in).
    pub async fn opting_in<E>(&mut self, io: &Io<'_, E>, facts: &Facts, offset: Option<Offset>) -> By<(), E> {
        self.check_open()?;
        if facts.vm_offset.is_some() {
            return Err(OperationError::OptedIn);
        }
        if !facts.abilities.counter_offset {
            return Err(Refusal::NoCounterOffset { needed_by: NeedsCounterOffset::OptIn }.into());
        }
        look_at(io, facts).await?;
        let offset = match offset {
            Some(offset) => io.set_offset(offset).await.map(|()| offset)?,
            None => io.set_late(What::VmOffset, Late::at_rest(GuestCount(0))).await.map(|now| Offset(now.0))?,
        };
        let known = OffsetInterval::exact(offset);
        let view = View::of_vm_offset(facts.nested);
        let checked = Restore::check_view(io, facts.vcpus, view, known, "opt_in", Condition::Provisional).await;
        checked.inspect_err(|_| {
            self.close(State::Restoring);
        })?;
        Ok(())
    }

    /// The machine of [`apply`](Self::apply).
    pub async fn applying<'a, E>(&self, io: &Io<'a, E>, open: &'a mut OpenRestore) -> By<(), E> {
        open.restore.expect(Stage::Prepared, "apply")?;
        self.held(open.hold)?;
        // The vCPUs are looked at again: a read of a running vCPU's register would wait for it.
        io.look().await.map_err(at_step(Condition::Partial, || look("apply")))?;
        let OpenRestore { restore, checkpoint, .. } = open;
        Ok(restore.applying(io, &checkpoint.only()?).await?)
    }

    /// The machine of [`release`](Self::release).
    pub async fn releasing<'a, E>(
        &mut self,
        io: &Io<'a, E>,
        facts: &Facts,
        open: &'a mut OpenRestore,
        at: Option<Stamp>,
    ) -> By<Box<Report>, E> {
        open.restore.expect(Stage::Applied, "release")?;
        self.held(open.hold)?;
        if let Some(at) = &at {
            open.restore.instant_of_this_host(at, &io.stamp().await?)?;
        }
        io.look().await.map_err(at_step(Condition::TimersOnly, || look("release")))?;
        let OpenRestore { restore, checkpoint, .. } = open;
        self.finishing(io, facts, restore, Some(&checkpoint.only()?), at).await
    }

    /// The machine of [`pause`](Self::pause).
    pub async fn pausing<E>(&mut self, io: &Io<'_, E>, facts: &Facts, request: Request) -> By<OpenPause, E> {
        self.check_open()?;
        look_at(io, facts).await?;
        let registers = io.list().await?;
        let (stamp, time) = self.capture(io, facts, &registers).await?;
        let request = Request { elapsed: None, in_place: true, ..request };
        // A refusal that would come at the resume comes now, while the VM can still go on without the pause.
        planning::plan(&Saved::in_place(stamp, time), &facts.target(registers), stamp, request)?;
        Ok(OpenPause { stamp, time, request, hold: self.pause_at(Arc::new(stamp)) })
    }

    /// The machine of [`resume`](Self::resume).
    pub async fn resuming<E>(
        &mut self,
        io: &Io<'_, E>,
        facts: &Facts,
        pause: &OpenPause,
        policy: Policy,
    ) -> By<Box<Report>, E> {
        self.held(pause.hold)?;
        let at = |what: &'static str| at_step(Condition::Paused, move || format!("resume: {what}"));
        let target = facts.target(io.list().await.map_err(at("what the VM is"))?);
        let stamp = io.stamp().await.map_err(at("a stamp"))?;
        let saved = Saved::in_place(pause.stamp, pause.time);
        let plan = Box::new(planning::plan(&saved, &target, stamp, Request { policy, ..pause.request })?);
        self.finishing(io, facts, &mut Restore::in_place(plan, facts.vcpus), None, None).await
    }

    /// The machine of [`step`](Self::step).
    pub async fn stepping<E>(&mut self, io: &Io<'_, E>, facts: &Facts, step: Step) -> By<u64, E> {
        self.check_open()?;
        let frequency = facts.frequency;
        if self.next_step(frequency).ok_or(OperationError::NoBacklog)? != step {
            return Err(OperationError::StepOver);
        }
        let now = io.sample().await?;
        if step.due.is_after(now) {
            return Err(OperationError::StepEarly { due: step.due.0, now: now.0 });
        }
        look_at(io, facts).await?;
        let own = facts.vm_offset.ok_or(Refusal::NoCounterOffset { needed_by: NeedsCounterOffset::CatchUpStep })?;
        let moved = Offset(own.0.wrapping_sub(step.ticks));
        let is_there = async |offset| {
            let known = OffsetInterval::exact(offset);
            let view = View::of_vm_offset(facts.nested);
            Restore::check_view(io, facts.vcpus, view, known, "catch_up", Condition::Untouched).await
        };
        io.set_offset(moved).await?;
        if let Err(error) = is_there(moved).await {
            // Its own offset again, so that the step is still to be taken.
            let back = io.set_offset(own).await.is_ok() && is_there(own).await.is_ok();
            if back {
                return Err(error.into());
            }
            self.close(State::Restoring);
            return Err(error.left_as(Condition::Provisional).into());
        }
        self.step_taken(step, io.sample().await?, frequency);
        Ok(step.backlog_ticks - step.ticks)
    }

    async fn capture<E>(&self, io: &Io<'_, E>, facts: &Facts, registers: &Registers) -> By<(Stamp, GuestTime), E> {
        let (stamp, time) = capture(io, facts, registers).await?;
        Ok((stamp, GuestTime { backlog: self.backlog(), ..time }))
    }

    async fn finishing<'a, E>(
        &mut self,
        io: &Io<'a, E>,
        facts: &Facts,
        restore: &mut Restore,
        vm: Option<&SavedVm<'a>>,
        at: Option<Stamp>,
    ) -> By<Box<Report>, E> {
        let tolerance = facts.frequency.hz() / BY_VALUE_TOLERANCE;
        let report = restore.releasing(io, vm, tolerance, at).await?;
        self.open(&report.plan, &report.outcome);
        Ok(report)
    }
}

/// The same operations on a VM's primitive calls, to their end. The caller holds the VM's lock.
impl RunState {
    /// Saves the VM's guest time. Refused while a vCPU runs or a restore isn't finished.
    pub fn checkpoint<B: Backend + ?Sized>(&self, backend: &mut B, saving: &Saving) -> Operated<Checkpoint, B> {
        let facts = Facts::of(backend);
        drive(backend, async |io| self.checkpointing(&io, &facts, saving).await)
    }

    /// Plans the restore of a checkpoint into this VM.
    pub fn plan<B: Backend + ?Sized>(
        &self,
        backend: &mut B,
        checkpoint: &Checkpoint,
        request: Request,
    ) -> Operated<Plan, B> {
        let facts = Facts::of(backend);
        drive(backend, async |io| self.making_plan(&io, &facts, checkpoint, request).await).map(|plan| *plan)
    }

    /// Closes the VM for a restore, and writes nothing: no vCPU can run until the release. A restore of many VMs closes all
    /// of them before the first write.
    pub fn close_for_restore<B: Backend + ?Sized>(
        &mut self,
        backend: &mut B,
        plan: Plan,
        checkpoint: Arc<Checkpoint>,
    ) -> Operated<OpenRestore, B> {
        let (facts, plan) = (Facts::of(backend), Box::new(plan));
        drive(backend, async |io| self.closing(&io, &facts, plan, checkpoint).await)
    }

    /// Makes the first step of a restore that has closed its VM: see [`Restore::prepare`]. A failure that left the VM as
    /// it was has taken the close back.
    pub fn begin<B: Backend + ?Sized>(&mut self, backend: &mut B, open: &mut OpenRestore) -> Operated<(), B> {
        let facts = Facts::of(backend);
        drive(backend, async |io| self.beginning(&io, &facts, open).await)
    }

    /// Closes the VM for a restore, and makes the first step: see [`Restore::prepare`].
    pub fn prepare<B: Backend + ?Sized>(
        &mut self,
        backend: &mut B,
        plan: Plan,
        checkpoint: Arc<Checkpoint>,
    ) -> Operated<OpenRestore, B> {
        let (facts, plan) = (Facts::of(backend), Box::new(plan));
        drive(backend, async |io| self.preparing(&io, &facts, plan, checkpoint).await)
    }

    /// Gives a restore up, and returns the VM's condition.
    ///
    /// A VM that had opted in before gets its own offset back, and one to which nothing was written has its own clock
    /// still: it is open, paused or in an older restore, as it was before. After a first opt-in, and once registers were
    /// written, the VM stays closed, and can be restored again. So it does after an error. A restore that a newer one has
    /// overtaken has nothing to give up.
    pub fn give_up<B: Backend + ?Sized>(&mut self, backend: &mut B, open: &mut OpenRestore) -> Operated<Condition, B> {
        drive(backend, async |io| self.giving_up(&io, open).await)
    }

    /// Opts the VM in to one offset for both counters of all its vCPUs, for good, and reads it back from every vCPU.
    ///
    /// Without an `offset` the guest's counters begin at 0.
    pub fn opt_in<B: Backend + ?Sized>(&mut self, backend: &mut B, offset: Option<Offset>) -> Operated<(), B> {
        let facts = Facts::of(backend);
        drive(backend, async |io| self.opting_in(&io, &facts, offset).await)
    }

    /// Writes the timers: see [`Restore::apply`].
    pub fn apply<B: Backend + ?Sized>(&self, backend: &mut B, open: &mut OpenRestore) -> Operated<(), B> {
        drive(backend, async |io| self.applying(&io, open).await)
    }

    /// Ends the restore, after which the VM's vCPUs may run again: see [`Restore::release`].
    ///
    /// With `at`, a stamp of this host that another process may have taken, the guest goes on as if it had been released
    /// then, and sees what has passed since: so VMs of many processes go on from one instant. Refused, so that the
    /// release can be called again, for a stamp that isn't shown to be of this counter, boot and time without a sleep,
    /// for one before the plan's and for one to come.
    pub fn release<B: Backend + ?Sized>(
        &mut self,
        backend: &mut B,
        open: &mut OpenRestore,
        at: Option<Stamp>,
    ) -> Operated<Report, B> {
        let facts = Facts::of(backend);
        let report = drive(backend, async |io| self.releasing(&io, &facts, open, at).await)?;
        backend.restored(report.written);
        Ok(*report)
    }

    /// Pauses the VM in place: no vCPU can run until [`resume`](Self::resume).
    pub fn pause<B: Backend + ?Sized>(&mut self, backend: &mut B, request: Request) -> Operated<OpenPause, B> {
        let facts = Facts::of(backend);
        drive(backend, async |io| self.pausing(&io, &facts, request).await)
    }

    /// Ends a pause under a policy, with the plan and report of a restore. The timers have stayed in place.
    pub fn resume<B: Backend + ?Sized>(
        &mut self,
        backend: &mut B,
        pause: &OpenPause,
        policy: Policy,
    ) -> Operated<Report, B> {
        let facts = Facts::of(backend);
        let report = drive(backend, async |io| self.resuming(&io, &facts, pause, policy).await)?;
        backend.restored(report.written);
        Ok(*report)
    }

    /// Looks at the VM's clocks, and changes nothing: whether each vCPU's counters are where the VM's offset puts them, or
    /// where the other vCPUs' are; whether the timers' conditions are as their registers tell; and whether the guest is
    /// where `expected` says. Nobody is waited for: an error where a vCPU runs.
    pub fn verify<B: Backend + ?Sized>(&self, backend: &mut B, expected: Expected<'_>) -> Operated<Verified, B> {
        let facts = Facts::of(backend);
        Ok(drive(backend, async |io| verify(&io, &facts, self, expected).await)??)
    }

    /// Takes a step of the backlog once it is due, with all vCPUs stopped: it lowers the VM-wide offset by the step.
    /// Returns the remaining ticks. A failure leaves the backlog as it was.
    ///
    /// A late step delays those after it: the time between two steps is never shorter than the interval.
    pub fn step<B: Backend + ?Sized>(&mut self, backend: &mut B, step: Step) -> Operated<u64, B> {
        let facts = Facts::of(backend);
        drive(backend, async |io| self.stepping(&io, &facts, step).await)
    }
}
