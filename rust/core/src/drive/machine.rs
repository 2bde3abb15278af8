//! Machines: operations of guestclock that ask for one step at a time, and do no I/O themselves.
//!
//! A machine is an async function over [`Io`] that nobody polls but [`Machine`], so that a sequence with its errors reads
//! from top to bottom, and whoever has the VM's descriptors carries the steps out: [`drive`](crate::drive::drive) over a
//! [`Backend`](crate::drive::Backend), or a VMM whose vCPU threads own them.

use crate::arch::arm64::{CTL_ENABLE, CTL_IMASK, Registers, Role, Sysreg, Timer, View, count_reg, one_reg_id, timer};
use crate::checkpoint::{Checkpoint, Held, Interrupts, SavedRows, SavedTimer, SavedVm, Values};
use crate::restore::{Late, Method, Plans};
use crate::time::{GuestCount, HostCount, Offset, OffsetInterval, Stamp};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use core::future::{Future, poll_fn};
use core::ops::Range;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

/// Step that a machine asks for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Op<'a> {
    /// Look whether all vCPUs are stopped. EBUSY is waited out for as long as the driver's budget lasts.
    Look,
    /// Look whether all vCPUs are stopped, once: nobody is waited for.
    Glance,
    /// Read the counter: [`Done::Count`].
    Sample,
    /// Take a stamp of the counter: [`Done::Stamp`].
    Stamp,
    /// List the registers of vCPU 0: [`Done::List`].
    List,
    /// Ask for the interrupt ids of these timers: [`Done::Interrupts`].
    Interrupts(Registers),
    /// Ask whether a timer's interrupt is forwarded: [`Done::Forwards`].
    Forwards {
        /// The timer's vCPU.
        vcpu: usize,
        /// The timer.
        timer: Timer,
    },
    /// Read a register of every vCPU: [`Done::Values`].
    Read {
        /// Id of the register.
        id: u64,
    },
    /// Write these registers, each row's in their order, and read each back.
    Write(Block<'a>),
    /// Read these registers back.
    ReadBack(Block<'a>),
    /// Read a clock between two reads of the host's counter: [`Done::Bracket`].
    Bracket {
        /// The vCPU to read it on. A clock of the VM is asked for on vCPU 0.
        vcpu: usize,
        /// Id of the clock's register.
        id: u64,
    },
    /// Set the VM-wide offset to a value that is known beforehand. EBUSY is waited out.
    SetOffset(Offset),
    /// Set a clock of the VM to a value, once. It isn't read back: it runs.
    SetClock {
        /// Id of the clock.
        id: u64,
        /// The value, in the clock's own unit.
        value: u64,
    },
    /// Sample the counter, and set what follows from the sample, as late as can be: [`Done::Count`], the sample. After
    /// EBUSY the sample is taken anew.
    SetLate(What<'a>, Late),
    /// Sample the counter of many VMs, and set the counters of each as its plan says for the sample: [`Done::Count`], the
    /// sample.
    SetEachLate(Rc<Plans>),
}

/// Written from one sample.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum What<'a> {
    /// The VM-wide offset.
    VmOffset,
    /// The offset of every vCPU. The driver writes it with the architecture's sign.
    VcpuOffsets {
        /// Ticks by which each vCPU's counter is ahead of the VM's.
        displacements: &'a [u64],
    },
    /// A counter's value, on vCPU 0, which moves it on all.
    Count {
        /// Id of the counter's register.
        id: u64,
    },
}

/// Value of a clock, read between two reads of the host's counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bracket {
    /// The host's count before the read.
    pub before: HostCount,
    /// The value.
    pub value: u64,
    /// The host's count after the read: the same as before it, where the kernel tells the count of the read itself.
    pub after: HostCount,
}

impl Bracket {
    /// Returns the interval of the offset, for the value of a counter.
    #[must_use]
    pub const fn offset(self) -> OffsetInterval {
        OffsetInterval::bracketed(self.before, GuestCount(self.value), self.after)
    }
}

/// Answer to a step that was carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Done {
    /// Nothing to tell.
    Ok,
    /// A count of the host's counter.
    Count(HostCount),
    /// A stamp.
    Stamp(Stamp),
    /// The registers of vCPU 0.
    List(Registers),
    /// Interrupt ids of the timers; `None` where nobody can be asked.
    Interrupts(Option<Interrupts>),
    /// False if an interrupt that the guest has enabled isn't forwarded; `None` where nobody can be asked.
    Forwards(Option<bool>),
    /// A register's values, one a vCPU.
    Values(Vec<u64>),
    /// A clock's value.
    Bracket(Bracket),
}

/// Failure of a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failed<E> {
    /// A call on the VM failed, or on a vCPU that the step names.
    Call(E),
    /// A call on a register failed. What came before it in its block was done.
    Register {
        /// The vCPU.
        vcpu: usize,
        /// Id of the register.
        id: u64,
        /// True for a read.
        reading: bool,
        /// The reason.
        error: E,
    },
    /// A register reads back another value than was written.
    Differs {
        /// The register, with the value that was written.
        register: SavedRegister,
        /// The value read back.
        read: u64,
    },
}

impl<E> Failed<E> {
    /// Returns the reason of a failed call; a register that differs isn't one.
    pub(crate) fn error(self) -> Option<E> {
        match self {
            Self::Call(error) | Self::Register { error, .. } => Some(error),
            Self::Differs { .. } => None,
        }
    }
}

/// Answer of a driver.
pub type Answer<E> = Result<Done, Failed<E>>;

/// Registers with their values, as a restore writes them: rows are vCPUs.
#[derive(Clone, Debug)]
pub struct Block<'a>(Rows<'a>);

#[derive(Clone, Debug)]
enum Rows<'a> {
    Timers(Timers<'a>),
    Listed(Rc<[SavedRegister]>),
    /// Runs of VMs, each with their places.
    Many(Rc<[(Range<usize>, Timers<'a>)]>),
}

/// The timers' registers on arm64 of a saved VM, or of VMs that follow each other.
#[derive(Clone, Debug)]
struct Timers<'a> {
    saved: SavedRows<'a>,
    method: Method,
    /// Ticks by which each CVAL moves.
    cval_shift: u64,
}

/// A register of a VM's vCPUs, as a restore writes it.
#[derive(Clone, Debug)]
pub struct BlockColumn<'a> {
    /// Id of the register.
    pub id: u64,
    /// Meaning of the register.
    pub held: Held,
    /// The saved values, one a vCPU.
    pub values: Values<'a>,
    /// Ticks by which each value moves: see [`timer::moved_cval`]. 0 for a register that isn't a compare value.
    pub shift: u64,
    /// Bits that have to read back.
    pub seen: u64,
}

impl BlockColumn<'_> {
    /// Returns the column of some of the vCPUs.
    #[must_use]
    pub fn part(&self, vcpus: Range<usize>) -> Self {
        Self { values: self.values.part(vcpus), ..*self }
    }

    /// The values as they are written, in the order of the vCPUs.
    pub fn written(&self) -> impl Iterator<Item = u64> {
        self.values.iter().map(|value| timer::moved_cval(value, self.shift))
    }

    fn register(&self, vcpu: usize) -> Option<SavedRegister> {
        let value = timer::moved_cval(self.values.get(vcpu)?, self.shift);
        Some(SavedRegister { vcpu, id: self.id, value, seen: self.seen })
    }
}

impl<'a> Timers<'a> {
    /// CNTVOFF_EL2, those that nobody knows, then each timer's CVAL before its CTL. Registers that stand together are
    /// written together on each vCPU.
    fn columns(self) -> impl Iterator<Item = [Option<BlockColumn<'a>>; 2]> + use<'a> {
        let Self { saved, method, cval_shift } = self;
        let whole = |id, held, values| [Some(BlockColumn { id, held, values, shift: 0, seen: u64::MAX }), None];
        let cntvoff =
            saved.register(Held::Cntvoff).map(|values| whole(one_reg_id(Role::Cntvoff), Held::Cntvoff, values));
        let others = saved.others().map(move |(id, values)| whole(id, Held::Unknown, values));
        let timers = saved
            .timers()
            .filter(move |saved| method != Method::VirtualOnly || saved.timer != Timer::Ptimer)
            .map(move |SavedTimer { timer, cval, ctl }| {
                let (held, id) = (Held::Cval(timer), one_reg_id(Role::Cval(timer)));
                let cval = BlockColumn { id, held, values: cval, shift: cval_shift, seen: u64::MAX };
                let (held, id) = (Held::Ctl(timer), one_reg_id(Role::Ctl(timer)));
                // The guest owns no other bits of CTL: ISTATUS is computed, and the rest are gone at the first run.
                let ctl = BlockColumn { id, held, values: ctl, shift: 0, seen: CTL_ENABLE | CTL_IMASK };
                [Some(cval), Some(ctl)]
            });
        cntvoff.into_iter().chain(others).chain(timers)
    }

    fn registers(self) -> impl Iterator<Item = SavedRegister> + use<'a> {
        let vcpus = self.saved.len();
        self.columns().flat_map(move |columns| {
            (0..vcpus)
                .flat_map(move |vcpu| columns.clone().into_iter().flatten().filter_map(move |it| it.register(vcpu)))
        })
    }
}

impl<'a> Block<'a> {
    /// Makes the block of a saved VM's timers on arm64; each CVAL moves by `cval_shift` ticks.
    pub(crate) fn timers(vm: &SavedVm<'a>, method: Method, cval_shift: u64) -> Self {
        Self(Rows::Timers(Timers { saved: vm.registers(), method, cval_shift }))
    }

    /// Makes the block of the timers of all VMs of a checkpoint: how each plan's VMs are written, and the plan of each VM.
    pub(crate) fn of_many(checkpoint: &'a Checkpoint, plans: &[(Method, u64)], plan_of: &[u32]) -> Self {
        let mut runs: Vec<(Range<usize>, Timers<'a>)> = Vec::new();
        let (mut plan_of, mut first) = (plan_of, 0);
        for group in checkpoint.groups() {
            let of_group = plan_of.split_off(..group.len()).unwrap_or_default();
            let (mut vm, mut row) = (0, 0);
            for run in of_group.chunk_by(|one, next| one == next || plans[*one as usize] == plans[*next as usize]) {
                let (method, cval_shift) = plans[run[0] as usize];
                let vms = vm..vm + run.len();
                let rows = row..row + group.vcpus_among(vms.clone());
                (vm, row) = (vms.end, rows.end);
                let saved = SavedRows::new(group, rows);
                runs.push((first + vms.start..first + vms.end, Timers { saved, method, cval_shift }));
            }
            first += group.len();
        }
        Self(Rows::Many(runs.into()))
    }

    /// Makes a block of these registers, in their order.
    pub(crate) fn listed(registers: impl IntoIterator<Item = SavedRegister>) -> Self {
        Self(Rows::Listed(registers.into_iter().collect()))
    }

    /// The registers, in the order in which they are written. The rows of many VMs are counted through all of them.
    pub fn registers(&self) -> impl Iterator<Item = SavedRegister> + use<'a> {
        let (timers, listed, many) = match &self.0 {
            Rows::Timers(timers) => (Some(timers.clone()), None, None),
            Rows::Listed(listed) => (None, Some(Rc::clone(listed)), None),
            Rows::Many(runs) => (None, None, Some(Rc::clone(runs))),
        };
        let listed = listed.into_iter().flat_map(|listed| (0..listed.len()).map(move |at| listed[at]));
        let mut end = 0;
        let many = many.into_iter().flat_map(|runs| (0..runs.len()).map(move |run| runs[run].1.clone()));
        timers
            .into_iter()
            .chain(many)
            .flat_map(move |timers| {
                let first = end;
                end += timers.saved.len();
                timers.registers().map(move |register| SavedRegister { vcpu: first + register.vcpu, ..register })
            })
            .chain(listed)
    }

    /// Blocks of the VMs that follow each other in one group of columns and are written alike, with their places; of a
    /// block of one VM, itself.
    pub fn runs(&self) -> impl Iterator<Item = (Range<usize>, Self)> + use<'a> {
        let (one, many) = match &self.0 {
            Rows::Many(runs) => (None, Some(Rc::clone(runs))),
            _ => (Some((0..1, self.clone())), None),
        };
        let many = many.into_iter().flat_map(|runs| (0..runs.len()).map(move |run| runs[run].clone()));
        one.into_iter().chain(many.map(|(vms, timers)| (vms, Self(Rows::Timers(timers)))))
    }

    /// The registers of a run as columns, in the order in which those of a vCPU are written; none of another block.
    pub fn columns(&self) -> impl Iterator<Item = BlockColumn<'a>> + use<'a> {
        let timers = if let Rows::Timers(timers) = &self.0 { Some(timers.clone()) } else { None };
        timers.into_iter().flat_map(|timers| timers.columns().flatten().flatten())
    }

    /// Number of registers that were written, by the answer to [`Op::Write`].
    pub(crate) fn written<E>(&self, answer: &Result<(), Failed<E>>) -> usize {
        let place = |vcpu, id| self.registers().position(|register| (register.vcpu, register.id) == (vcpu, id));
        match answer {
            Ok(()) => self.registers().count(),
            Err(Failed::Call(_)) => 0,
            Err(Failed::Register { vcpu, id, reading, .. }) => place(*vcpu, *id).unwrap_or(0) + usize::from(*reading),
            Err(Failed::Differs { register, .. }) => place(register.vcpu, register.id).unwrap_or(0) + 1,
        }
    }

    /// The registers of one vCPU, in their order: for a driver that hands each row to the thread of its vCPU.
    pub fn row(&self, vcpu: usize) -> impl Iterator<Item = SavedRegister> + use<'a> {
        self.registers().filter(move |register| register.vcpu == vcpu)
    }
}

/// A register of a block, and the value that it is to have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SavedRegister {
    /// The vCPU.
    pub vcpu: usize,
    /// Id of the register: on arm64 KVM's own for ONE_REG, on x86-64 an index of an MSR or an id of its own.
    pub id: u64,
    /// The value.
    pub value: u64,
    /// Bits that have to read back.
    pub seen: u64,
}

impl SavedRegister {
    /// Returns the failure, if the register reads back another value in the bits that have to.
    pub const fn check<E>(self, read: u64) -> Result<(), Failed<E>> {
        if (read ^ self.value) & self.seen == 0 { Ok(()) } else { Err(Failed::Differs { register: self, read }) }
    }
}

/// Returns the name of a register for messages.
pub(crate) fn register_name(id: u64) -> &'static str {
    Sysreg::with_one_reg_id(id).map_or("a register unknown to guestclock", |row| row.name)
}

/// The step that is asked for, and its answer.
struct Slot<'a, E> {
    op: Option<Op<'a>>,
    answer: Option<Answer<E>>,
}

/// The machine's end of its steps.
pub struct Io<'a, E> {
    slot: Rc<RefCell<Slot<'a, E>>>,
}

impl<E> fmt::Debug for Io<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Io").finish_non_exhaustive()
    }
}

impl<E> Clone for Io<'_, E> {
    fn clone(&self) -> Self {
        Self { slot: Rc::clone(&self.slot) }
    }
}

impl<'a, E> Io<'a, E> {
    /// Asks for a step, and goes on with its answer.
    pub(crate) async fn ask(&self, op: Op<'a>) -> Answer<E> {
        self.slot.borrow_mut().op = Some(op);
        poll_fn(|_| {
            let slot = &mut *self.slot.borrow_mut();
            slot.answer.take().map_or(Poll::Pending, |answer| {
                slot.op = None;
                Poll::Ready(answer)
            })
        })
        .await
    }

    pub(crate) async fn look(&self) -> Result<(), Failed<E>> {
        self.ask(Op::Look).await.map(drop)
    }

    pub(crate) async fn glance(&self) -> Result<(), Failed<E>> {
        self.ask(Op::Glance).await.map(drop)
    }

    pub(crate) async fn write(&self, block: Block<'a>) -> Result<(), Failed<E>> {
        self.ask(Op::Write(block)).await.map(drop)
    }

    pub(crate) async fn read_back(&self, block: Block<'a>) -> Result<(), Failed<E>> {
        self.ask(Op::ReadBack(block)).await.map(drop)
    }

    pub(crate) async fn set_offset(&self, offset: Offset) -> Result<(), Failed<E>> {
        self.ask(Op::SetOffset(offset)).await.map(drop)
    }

    /// Returns the sample that the value followed from.
    pub(crate) async fn set_late(&self, what: What<'a>, late: Late) -> Result<HostCount, Failed<E>> {
        let Done::Count(count) = self.ask(Op::SetLate(what, late)).await? else { wrong_answer() };
        Ok(count)
    }

    /// Returns the sample that the counters were set for.
    pub(crate) async fn set_each_late(&self, plans: Rc<Plans>) -> Result<HostCount, Failed<E>> {
        let Done::Count(count) = self.ask(Op::SetEachLate(plans)).await? else { wrong_answer() };
        Ok(count)
    }

    pub(crate) async fn set_clock(&self, id: u64, value: u64) -> Result<(), Failed<E>> {
        self.ask(Op::SetClock { id, value }).await.map(drop)
    }

    pub(crate) async fn sample(&self) -> Result<HostCount, Failed<E>> {
        let Done::Count(count) = self.ask(Op::Sample).await? else { wrong_answer() };
        Ok(count)
    }

    pub(crate) async fn stamp(&self) -> Result<Stamp, Failed<E>> {
        let Done::Stamp(stamp) = self.ask(Op::Stamp).await? else { wrong_answer() };
        Ok(stamp)
    }

    pub(crate) async fn list(&self) -> Result<Registers, Failed<E>> {
        let Done::List(registers) = self.ask(Op::List).await? else { wrong_answer() };
        Ok(registers)
    }

    pub(crate) async fn interrupts(&self, registers: &Registers) -> Result<Option<Interrupts>, Failed<E>> {
        let Done::Interrupts(ids) = self.ask(Op::Interrupts(registers.clone())).await? else { wrong_answer() };
        Ok(ids)
    }

    pub(crate) async fn forwards(&self, vcpu: usize, timer: Timer) -> Result<Option<bool>, Failed<E>> {
        let Done::Forwards(forwards) = self.ask(Op::Forwards { vcpu, timer }).await? else { wrong_answer() };
        Ok(forwards)
    }

    pub(crate) async fn read(&self, id: u64) -> Result<Vec<u64>, Failed<E>> {
        let Done::Values(values) = self.ask(Op::Read { id }).await? else { wrong_answer() };
        Ok(values)
    }

    pub(crate) async fn bracket(&self, vcpu: usize, view: View) -> Result<OffsetInterval, Failed<E>> {
        Ok(self.clock(vcpu, count_reg(view)).await?.offset())
    }

    pub(crate) async fn clock(&self, vcpu: usize, id: u64) -> Result<Bracket, Failed<E>> {
        let Done::Bracket(bracket) = self.ask(Op::Bracket { vcpu, id }).await? else { wrong_answer() };
        Ok(bracket)
    }
}

/// A driver's mistake, which no VM and no file can cause.
fn wrong_answer() -> ! {
    panic!("the driver answers a step with what it wasn't asked for")
}

/// An operation under way: an iterator of the steps that it asks for, each of which is answered before the next.
///
/// A step that is answered with something else than it asks for makes the next one panic: that is the driver's mistake.
///
/// ```
/// use guestclock_core::arch::arm64::{Registers, Role, Timer, one_reg_id};
/// use guestclock_core::drive::{Done, Machine, Op, capture_registers};
///
/// let ctl = one_reg_id(Role::Ctl(Timer::Vtimer));
/// let registers = Registers::from(vec![ctl]);
/// let mut machine = Machine::<(), _>::new(|io| async move { capture_registers(&io, &registers).await });
/// while let Some(op) = machine.next() {
///     // A driver has the VM's descriptors. This one makes an answer up.
///     assert!(matches!(op, Op::Read { .. }));
///     machine.done(Ok(Done::Values(vec![1, 3])));
/// }
/// let captured = machine.end().expect("it has ended").unwrap();
/// assert_eq!(captured[0].1, [1, 3]);
/// ```
pub struct Machine<'a, E, T> {
    run: Pin<Box<dyn Future<Output = T> + 'a>>,
    slot: Rc<RefCell<Slot<'a, E>>>,
    end: Option<T>,
}

impl<E, T> fmt::Debug for Machine<'_, E, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("ended", &self.end.is_some()).finish_non_exhaustive()
    }
}

impl<'a, E: 'a, T: 'a> Machine<'a, E, T> {
    /// Makes a machine of an async function.
    pub fn new<F: Future<Output = T> + 'a>(begin: impl FnOnce(Io<'a, E>) -> F) -> Self {
        let slot = Rc::new(RefCell::new(Slot { op: None, answer: None }));
        Self { run: Box::pin(begin(Io { slot: Rc::clone(&slot) })), slot, end: None }
    }

    /// Runs to the end with a driver that carries each step out at once.
    ///
    /// # Panics
    /// Where the driver answers a step with something else than it asks for.
    pub fn run(mut self, mut carry_out: impl FnMut(Op<'a>) -> Answer<E>) -> T {
        while let Some(op) = self.next() {
            self.done(carry_out(op));
        }
        self.end.expect("a machine that asks for nothing has ended")
    }

    /// Answers the step that was asked for last.
    pub fn done(&mut self, answer: Answer<E>) {
        self.slot.borrow_mut().answer = Some(answer);
    }

    /// Returns the result; `None` before the end.
    pub fn end(self) -> Option<T> {
        self.end
    }
}

impl<'a, E, T> Iterator for Machine<'a, E, T> {
    type Item = Op<'a>;

    /// Returns the next step; the same again, if it hasn't been answered; `None` at the end.
    fn next(&mut self) -> Option<Op<'a>> {
        if self.end.is_some() {
            return None;
        }
        match self.run.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(end) => {
                self.end = Some(end);
                None
            }
            Poll::Pending => self.slot.borrow().op.clone(),
        }
    }
}
