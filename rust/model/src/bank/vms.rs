//! VMs of a bank, and the positions of their rows.

use crate::bank::handle::{Handle, MAX_VMS};
use crate::bank::isa::Isa;
use crate::bank::rows::{NOBODY, Rows};
use crate::bank::timer_queue::{Place, TimerQueue};
use crate::config::Config;
use crate::deadlines::queue::KEPT;
use crate::error::VmError;
use guestclock_core::arch::arm64::{Behaviours, El2, IrqIds, Offsets, Timer, timer};
use guestclock_core::time::{Frequency, HostCount, Offset, Ratio};
use std::collections::{BTreeMap, TryReserveError};
use std::ops::Range;

/// Maximum number of vCPUs of one frequency, so that the deadline queue's ids suffice.
pub const MAX_ROWS: usize = 1 << 28;

/// Refusal of a bank, which stays as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BankError {
    /// The bank has no VM with this handle, or no longer.
    #[error("the bank has no VM {handle}: it was removed, or this is no handle of the bank's")]
    NoSuchVm {
        /// The handle.
        handle: i64,
    },
    /// The VM doesn't have this vCPU.
    #[error("the bank has no vCPU {handle}: vCPU n of a VM is its handle + n, and this VM has {vcpus}")]
    NoSuchVcpu {
        /// The handle.
        handle: i64,
        /// Number of the VM's vCPUs.
        vcpus: u16,
    },
    /// The same handle is given twice.
    #[error("handle {handle} is there twice: each VM or vCPU is selected once")]
    Duplicate {
        /// The handle.
        handle: i64,
    },
    /// The mask's length isn't the number of vCPUs.
    #[error("a mask has a bool for each vCPU: this one has {rows} of them, and the bank {vcpus} vCPUs")]
    Mask {
        /// Number of bools in the mask.
        rows: usize,
        /// Number of vCPUs in the bank.
        vcpus: usize,
    },
    /// The guest has EL2, and the bank only has room for guests without it.
    #[error("a guest with EL2 has up to four timers, and the bank keeps two of each vCPU: make a bank of four")]
    TwoTimers,
    /// The bank is full.
    #[error("a bank has at most {MAX_VMS} VMs, {MAX_ROWS} vCPUs of one frequency, and VMs of 65536 frequencies")]
    Full,
    /// There is no memory for so many VMs.
    #[error("there is no memory for {vms} VMs of {vcpus} vCPUs each")]
    NoMemory {
        /// Number of VMs.
        vms: usize,
        /// Number of vCPUs of each.
        vcpus: usize,
    },
    /// A VM of a batch refuses.
    #[error("VM {handle}: {error}")]
    OfVm {
        /// The VM's handle.
        handle: i64,
        /// The VM's refusal.
        error: VmError,
    },
    /// The VM refuses.
    #[error(transparent)]
    Vm(#[from] VmError),
}

/// Properties that equal VMs have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct VmClass {
    pub(crate) behaviours: Behaviours,
    pub(crate) config: Config,
}

impl VmClass {
    pub(crate) fn new(behaviours: Behaviours, config: Config) -> Result<Self, VmError> {
        if config.el2 != El2::Absent && !behaviours.el2 {
            return Err(VmError::NoEl2);
        }
        Ok(Self { behaviours, config })
    }
}

/// State of a VM, besides its vCPUs'.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct Seat {
    generation: u32,
    /// The VM's first row; its other rows follow.
    first: u32,
    pub(crate) vcpus: u16,
    taken: bool,
    domain: u16,
    class: u16,
    /// True once the VM has opted in (KVM_ARCH_FLAG_VM_COUNTER_OFFSET): the first written offset sets it, and nothing
    /// clears it.
    pub(crate) opted_in: bool,
    /// True once a vCPU has run: from then on CNTHCTL_EL2 lacks the bits that no guest has (`kvm_init_nv_sysregs`).
    pub(crate) sanitised: bool,
    pub(crate) irqs: IrqIds,
    /// The VM's own offsets. A guest with EL2 uses only the physical one.
    pub(crate) offsets: Offsets,
    /// Number of changes of the VM's state: a plan made at another number is stale.
    pub(crate) changes: u64,
    /// True while the VM is paused or being restored: it gives out no timer, and no change of a line.
    held: bool,
    /// True if the VM is among those that moved.
    moved: bool,
}

/// Work on many VMs, as the deadline queue has to follow it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Follow {
    Nothing,
    /// VMs were held, or let go.
    Held,
    /// Offsets have changed, too.
    Moved,
    /// All timers count as written, too.
    Rewritten,
}

/// The rows of all VMs whose counters run at one frequency.
#[derive(Clone, Debug)]
pub(crate) struct FrequencyDomain {
    pub(crate) frequency: Frequency,
    pub(crate) ratio: Ratio,
    pub(crate) rows: Rows,
    /// Created at the first query for a deadline.
    pub(crate) queue: Option<TimerQueue>,
    /// Number of VMs. A domain that has lost its last one is another frequency's next.
    vms: u32,
}

impl FrequencyDomain {
    fn new(frequency: Frequency, of: Frequency, el2: bool) -> Self {
        Self { frequency, ratio: Ratio::new(of, frequency), rows: Rows::new(el2), queue: None, vms: 0 }
    }

    /// CNTFRQ_EL0 of its guests: [`Bank::add`] has refused a frequency without one.
    pub(crate) fn cntfrq_hz(&self) -> u32 {
        self.frequency.cntfrq().unwrap_or(u32::MAX)
    }

    /// Updates the queue after the guest or the VMM has written a timer.
    pub(crate) fn wrote(&mut self, slot: u32, vcpu: usize, row: usize, timer: Timer) {
        if let Some(queue) = &mut self.queue {
            let can_raise = timer::can_raise(self.rows.ctl(row, timer));
            queue.write(slot, vcpu, timer, can_raise.then_some(self.rows.cval(row, timer)));
        }
    }
}

/// Many VMs with their vCPUs, as columns over one counter. A [`ModelVm`](crate::vm::ModelVm) is a view of it.
#[derive(Clone, Debug)]
pub struct Bank {
    /// Frequency domains; the counter's own is first.
    pub(crate) domains: Vec<FrequencyDomain>,
    /// Number of each frequency's domain, by its Hz.
    numbers: BTreeMap<u64, u16>,
    /// Domains without VMs, to reuse.
    free_domains: Vec<u16>,
    pub(crate) classes: Vec<VmClass>,
    pub(crate) seats: Vec<Seat>,
    /// Slots to reuse.
    free: Vec<u32>,
    vms: usize,
    /// Slots of the VMs whose vCPUs' offsets or number has changed since [`for_moved`](Self::for_moved), or that were
    /// removed.
    moved: Vec<u32>,
    /// Instruction set of the batches.
    pub(crate) isa: Isa,
}

impl Bank {
    /// Creates a bank over a counter of this frequency. With `el2` its guests may have EL2, and each vCPU takes the
    /// room of four timers.
    #[must_use]
    pub fn new(frequency: Frequency, el2: bool) -> Self {
        let domain = FrequencyDomain::new(frequency, frequency, el2);
        Self {
            domains: vec![domain],
            numbers: BTreeMap::from([(frequency.hz(), 0)]),
            free_domains: Vec::new(),
            classes: Vec::new(),
            seats: Vec::new(),
            free: Vec::new(),
            vms: 0,
            moved: Vec::new(),
            isa: Isa::best(),
        }
    }

    /// Sets the instruction set of the batches, instead of the widest that the CPU has.
    pub const fn set_isa(&mut self, isa: Isa) {
        self.isa = isa;
    }

    /// Frequency of the bank's counter.
    #[must_use]
    pub fn frequency(&self) -> Frequency {
        self.domains[0].frequency
    }

    /// Number of timers of a vCPU that the bank has columns for: 2 or 4.
    #[must_use]
    pub fn timers(&self) -> usize {
        self.domains[0].rows.timers.len()
    }

    /// Number of VMs.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.vms
    }

    /// Returns whether the bank has no VM.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.vms == 0
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.domains.iter().map(|domain| domain.rows.len() - domain.rows.holes()).sum()
    }

    /// Adds a VM without vCPUs, whose counters run at `frequency`: not the bank's own if the VM was saved on another
    /// host. KVM can't rescale; the model does, exact to the tick ([`ScaledCounter`](crate::scaled::ScaledCounter)).
    pub fn add(&mut self, frequency: Frequency, behaviours: Behaviours, config: Config) -> Result<Handle, BankError> {
        if config.el2 != El2::Absent && !self.domains[0].rows.el2() {
            return Err(BankError::TwoTimers);
        }
        if frequency.cntfrq().is_none() {
            return Err(VmError::FrequencyTooHigh { hz: frequency.hz() }.into());
        }
        let class = self.class_index(VmClass::new(behaviours, config)?)?;
        if self.free.is_empty() && self.seats.len() == MAX_VMS {
            return Err(BankError::Full);
        }
        let domain = self.domain_index(frequency)?;
        self.domains[usize::from(domain)].vms += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.seats.push(Seat::vacant());
            narrow(self.seats.len() - 1)
        });
        let seat = &mut self.seats[slot as usize];
        // The attributes came with the physical timer's registers, in Linux 6.4.
        let irqs = IrqIds::new(behaviours.physical_timer);
        let (generation, moved) = (seat.generation + 1, seat.moved);
        *seat = Seat { generation, taken: true, domain, class, irqs, moved, ..Seat::vacant() };
        self.vms += 1;
        Ok(Handle::of_vm(slot, seat.generation))
    }

    /// Removes a VM with its vCPUs. Its handle is never reused.
    pub fn remove(&mut self, vm: Handle) -> Result<(), BankError> {
        let slot = self.slot(vm)?;
        let rows = self.rows_of(slot);
        let seat = &mut self.seats[slot as usize];
        let domain = &mut self.domains[usize::from(seat.domain)];
        if let Some(queue) = &mut domain.queue {
            queue.dismiss(slot);
        }
        domain.rows.vacate(rows);
        seat.taken = false;
        if seat.generation < u32::MAX >> 1 {
            self.free.push(slot);
        }
        self.vms -= 1;
        domain.vms -= 1;
        let (empty, sparse) = (domain.vms == 0, domain.rows.holes() > domain.rows.len() / 2);
        let number = seat.domain;
        self.has_moved(slot);
        if empty && number != 0 {
            self.give_back(number);
        } else if sparse {
            self.close_gaps();
        }
        Ok(())
    }

    /// Removes many VMs, each given once: all of them, or none.
    pub fn remove_all(&mut self, vms: &[Handle]) -> Result<(), BankError> {
        self.slots(vms)?;
        vms.iter().try_for_each(|vm| self.remove(*vm))
    }

    /// Reserves exactly the room for `vms` more VMs of `vcpus` vCPUs each, in the domain of a VM that is there.
    pub(crate) fn reserve(&mut self, like: u32, vms: usize, vcpus: usize) -> Result<(), TryReserveError> {
        let (slots, timers) = (vms.saturating_sub(self.free.len()), self.timers());
        self.seats.try_reserve_exact(slots)?;
        let domain = self.domain_and_seat(like).0;
        domain.rows.reserve(vms * vcpus)?;
        if domain.queue.is_some() {
            // The deadline queue grows VM by VM. It is tried whether there is as much memory as it will need.
            let bytes = TimerQueue::most_bytes(vms, vcpus, timers);
            Vec::<u8>::new().try_reserve_exact(bytes)?;
        }
        Ok(())
    }

    /// Returns whether the bank has this VM.
    #[must_use]
    pub fn contains(&self, vm: Handle) -> bool {
        self.slot(vm).is_ok()
    }

    /// Returns all VMs, in the order of their slots.
    pub fn handles(&self) -> impl Iterator<Item = Handle> {
        let taken = self.seats.iter().enumerate().filter(|(_, seat)| seat.taken);
        taken.map(|(slot, seat)| Handle::of_vm(narrow(slot), seat.generation))
    }

    /// Returns all vCPUs, in the order of their rows: the counter's own frequency first, then the order in which the
    /// VMs were added. A VM that gets another vCPU later may move to the end.
    pub fn vcpu_handles(&mut self) -> impl Iterator<Item = Handle> {
        self.close_gaps();
        self.domains.iter().flat_map(|domain| (0..).zip(&domain.rows.vm)).map(|(row, vm)| self.handle_of(*vm, row))
    }

    /// Returns the slot of a VM's handle.
    pub(crate) fn slot(&self, vm: Handle) -> Result<u32, BankError> {
        let seat = self.seats.get(vm.slot() as usize);
        let there = seat.is_some_and(|seat| seat.taken && Some(seat.generation) == vm.generation());
        if there && vm.number() == 0 { Ok(vm.slot()) } else { Err(BankError::NoSuchVm { handle: vm.0 }) }
    }

    /// Returns the frequency domain and the row of a vCPU's handle.
    pub(crate) fn row(&self, vcpu: Handle) -> Result<(usize, usize), BankError> {
        let slot = self.slot(vcpu.vm()).map_err(|_| BankError::NoSuchVm { handle: vcpu.0 })?;
        let seat = &self.seats[slot as usize];
        if vcpu.number() >= seat.vcpus {
            return Err(BankError::NoSuchVcpu { handle: vcpu.0, vcpus: seat.vcpus });
        }
        Ok((usize::from(seat.domain), seat.first as usize + usize::from(vcpu.number())))
    }

    /// Returns the handle of a row's vCPU.
    pub(crate) fn handle_of(&self, slot: u32, row: u32) -> Handle {
        let seat = &self.seats[slot as usize];
        Handle::of_vm(slot, seat.generation).vcpu(u16::try_from(row - seat.first).expect("at most 512 vCPUs"))
    }

    pub(crate) fn handle_of_vm(&self, slot: u32) -> Handle {
        Handle::of_vm(slot, self.seats[slot as usize].generation)
    }

    pub(crate) fn domain_of(&self, slot: u32) -> &FrequencyDomain {
        &self.domains[usize::from(self.seats[slot as usize].domain)]
    }

    pub(crate) fn domain_and_seat(&mut self, slot: u32) -> (&mut FrequencyDomain, &mut Seat) {
        let seat = &mut self.seats[slot as usize];
        (&mut self.domains[usize::from(seat.domain)], seat)
    }

    pub(crate) fn class_of(&self, slot: u32) -> &VmClass {
        &self.classes[usize::from(self.seats[slot as usize].class)]
    }

    pub(crate) fn rows_of(&self, slot: u32) -> Range<usize> {
        let seat = &self.seats[slot as usize];
        seat.first as usize..seat.first as usize + usize::from(seat.vcpus)
    }

    /// Adds a row to a VM, as its last.
    pub(crate) fn push_row(&mut self, slot: u32) {
        let rows = self.rows_of(slot);
        let (domain, seat) = self.domain_and_seat(slot);
        let end = domain.rows.len();
        if rows.end != end {
            domain.rows.move_to_end(rows.clone());
            seat.first = narrow(end);
        }
        domain.rows.push(slot);
        seat.vcpus += 1;
    }

    /// Returns whether a VM can have `rows` more rows.
    pub(crate) fn has_room(&self, slot: u32, rows: usize) -> bool {
        let domain = self.domain_of(slot);
        domain.rows.len() + usize::from(self.seats[slot as usize].vcpus) + rows <= MAX_ROWS
    }

    /// Closes the gaps that removed VMs have left among the rows.
    pub(crate) fn close_gaps(&mut self) {
        for domain in self.domains.iter_mut().filter(|domain| domain.rows.holes() > 0) {
            domain.rows.close_gaps();
            let mut last = NOBODY;
            for (row, vm) in (0..).zip(&domain.rows.vm) {
                if *vm != last {
                    self.seats[*vm as usize].first = row;
                    last = *vm;
                }
            }
        }
    }

    /// Creates a bank of one VM, and returns the VM's slot too.
    pub(crate) fn of_one(frequency: Frequency, behaviours: Behaviours, config: Config) -> Result<(Self, u32), VmError> {
        let mut bank = Self::new(frequency, config.el2 != El2::Absent);
        match bank.add(frequency, behaviours, config) {
            Ok(vm) => Ok((bank, vm.slot())),
            Err(BankError::Vm(error)) => Err(error),
            Err(error) => unreachable!("it is empty, and has the timers that it needs: {error}"),
        }
    }

    /// Works on the position of a VM's rows. Timers already returned by `expire` stay so.
    pub(crate) fn resettle(&mut self, slot: u32, work: impl FnOnce(&mut Self)) {
        let FrequencyDomain { rows, queue, .. } = self.domain_of(slot);
        let reported = queue.as_ref().map_or_else(Vec::new, |queue| queue.reported(self.place(slot), rows));
        self.unqueued(slot, &reported, work);
    }

    /// Works on many VMs, whose timers the deadline queues follow once at the end, in one pass, as `work` returns beside
    /// its result.
    pub(crate) fn many<T>(&mut self, slots: &[u32], work: impl FnOnce(&mut Self) -> (T, Follow)) -> T {
        let queues: Vec<_> = self.domains.iter_mut().map(|domain| domain.queue.take()).collect();
        let (done, follow) = work(self);
        for (domain, queue) in self.domains.iter_mut().zip(queues) {
            domain.queue = queue;
        }
        if follow != Follow::Nothing {
            let Self { domains, seats, classes, .. } = self;
            for slot in slots {
                let seat = &seats[*slot as usize];
                let FrequencyDomain { rows, queue, .. } = &mut domains[usize::from(seat.domain)];
                let Some(queue) = queue else { continue };
                let (place, shared) = (seat.place(*slot), seat.shared_offsets(classes));
                match follow {
                    Follow::Nothing => {}
                    Follow::Held => queue.hold_one_of_many(*slot, place.held),
                    Follow::Moved => queue.move_one_of_many(place, shared, rows),
                    Follow::Rewritten => queue.rewrite_one_of_many(place, shared, rows),
                }
            }
            for queue in self.domains.iter_mut().filter_map(|domain| domain.queue.as_mut()) {
                queue.settle();
            }
        }
        done
    }

    /// Works on a VM's rows, while the VM is removed from the deadline queue. Afterwards its timers are queued again,
    /// except those that are `reported`.
    fn unqueued(&mut self, slot: u32, reported: &[(u16, Timer)], work: impl FnOnce(&mut Self)) {
        if let Some(queue) = &mut self.domain_and_seat(slot).0.queue {
            queue.dismiss(slot);
        }
        work(self);
        let (place, shared) = (self.place(slot), self.shared_offsets(slot));
        let FrequencyDomain { rows, queue, .. } = self.domain_and_seat(slot).0;
        if let Some(queue) = queue {
            queue.enrol(place, shared, rows, reported);
        }
    }

    /// Updates the deadline queue with the offsets of a VM and its vCPUs.
    pub(crate) fn follow(&mut self, slot: u32) {
        if self.domain_of(slot).queue.is_some() {
            let (place, shared) = (self.place(slot), self.shared_offsets(slot));
            let FrequencyDomain { rows, queue, .. } = self.domain_and_seat(slot).0;
            if let Some(queue) = queue {
                queue.move_vm(place, shared, rows);
            }
        }
        self.has_moved(slot);
    }

    fn has_moved(&mut self, slot: u32) {
        if !core::mem::replace(&mut self.seats[slot as usize].moved, true) {
            self.moved.push(slot);
        }
    }

    /// Calls `tell` with the slot of each VM whose vCPUs' offsets or number has changed since the last call, or that was
    /// removed.
    pub(crate) fn for_moved(&mut self, mut tell: impl FnMut(&Self, u32)) {
        let mut moved = core::mem::take(&mut self.moved);
        for slot in moved.drain(..) {
            self.seats[slot as usize].moved = false;
            tell(self, slot);
        }
        // Most calls move one VM, so its memory is kept.
        moved.shrink_to(KEPT);
        self.moved = moved;
    }

    /// Holds a VM's timers while it is paused or being restored, or lets them go.
    pub(crate) fn hold(&mut self, slot: u32, held: bool) {
        let (FrequencyDomain { queue, .. }, seat) = self.domain_and_seat(slot);
        if core::mem::replace(&mut seat.held, held) != held
            && let Some(queue) = queue
        {
            queue.hold(slot, held);
        }
    }

    /// Slots of the VMs whose timers are held.
    pub(crate) fn held(&self) -> impl Iterator<Item = u32> {
        let held = self.seats.iter().enumerate().filter(|(_, seat)| seat.taken && seat.held);
        held.map(|(slot, _)| narrow(slot))
    }

    /// Returns the domains, after creating missing deadline queues.
    pub(crate) fn queue(&mut self, now: HostCount) -> impl Iterator<Item = &mut FrequencyDomain> {
        let is_new = |domain: &FrequencyDomain| domain.queue.is_none() && domain.vms > 0;
        if self.domains.iter().any(is_new) {
            let mut new: BTreeMap<u16, Vec<u32>> = BTreeMap::new();
            for (slot, seat) in (0..).zip(&self.seats) {
                if seat.taken && is_new(&self.domains[usize::from(seat.domain)]) {
                    new.entry(seat.domain).or_default().push(slot);
                }
            }
            for (number, slots) in new {
                let number = usize::from(number);
                let vms = slots.iter().map(|slot| (self.place(*slot), self.shared_offsets(*slot)));
                let queue = TimerQueue::new(self.now_of(number, now), vms, &self.domains[number].rows);
                self.domains[number].queue = Some(queue);
            }
        }
        self.domains.iter_mut()
    }

    pub(crate) fn place(&self, slot: u32) -> Place {
        self.seats[slot as usize].place(slot)
    }

    /// Returns the frequency domain and the class of a VM: VMs with both in common are alike.
    pub(crate) fn domain_and_class(&self, slot: u32) -> (u16, u16) {
        let seat = &self.seats[slot as usize];
        (seat.domain, seat.class)
    }

    /// Returns the offsets of a VM's vCPUs, except those that run with others or have a CNTVOFF_EL2.
    pub(crate) fn shared_offsets(&self, slot: u32) -> Offsets {
        self.seats[slot as usize].shared_offsets(&self.classes)
    }

    /// Returns whether two VMs that have no backlog have the same guest time, except for their timelines.
    pub(crate) fn are_alike(&self, one: u32, other: u32) -> bool {
        let [one, other] = [one, other].map(|slot| &self.seats[slot as usize]);
        let apart = |seat: &Seat| seat.offsets.virt.0.wrapping_sub(seat.offsets.phys.0);
        let of = |seat: &Seat| (seat.domain, seat.class, seat.vcpus, seat.opted_in, apart(seat));
        of(one) == of(other) && one.irqs == other.irqs
    }

    /// Memory of the bank in bytes, including reserved capacity.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let domain =
            |domain: &FrequencyDomain| domain.rows.bytes() + domain.queue.as_ref().map_or(0, TimerQueue::bytes);
        let slots = self.free.capacity() + self.moved.capacity();
        let kinds =
            self.classes.capacity() * size_of::<VmClass>() + self.domains.capacity() * size_of::<FrequencyDomain>();
        let seats = self.seats.capacity() * size_of::<Seat>() + slots * size_of::<u32>() + kinds;
        self.domains.iter().map(domain).sum::<usize>() + seats
    }

    /// Returns the count of a frequency domain when the bank's counter reads `now`.
    pub(crate) fn now_of(&self, domain: usize, now: HostCount) -> HostCount {
        self.domains[domain].ratio.at(now)
    }

    /// Returns the domain of a frequency, a new one if there is none.
    fn domain_index(&mut self, frequency: Frequency) -> Result<u16, BankError> {
        if let Some(known) = self.numbers.get(&frequency.hz()) {
            return Ok(*known);
        }
        let domain = FrequencyDomain::new(frequency, self.frequency(), self.domains[0].rows.el2());
        let number = if let Some(free) = self.free_domains.pop() {
            self.domains[usize::from(free)] = domain;
            free
        } else {
            let number = u16::try_from(self.domains.len()).map_err(|_| BankError::Full)?;
            self.domains.push(domain);
            number
        };
        self.numbers.insert(frequency.hz(), number);
        Ok(number)
    }

    /// Gives a domain without VMs back, with its memory.
    fn give_back(&mut self, number: u16) {
        let domain = &mut self.domains[usize::from(number)];
        self.numbers.remove(&domain.frequency.hz());
        (domain.rows, domain.queue) = (Rows::new(domain.rows.el2()), None);
        self.free_domains.push(number);
    }

    fn class_index(&mut self, class: VmClass) -> Result<u16, BankError> {
        let known = self.classes.iter().position(|known| *known == class);
        let index = u16::try_from(known.unwrap_or(self.classes.len())).map_err(|_| BankError::Full)?;
        if known.is_none() {
            self.classes.push(class);
        }
        Ok(index)
    }
}

impl Seat {
    fn place(&self, slot: u32) -> Place {
        Place { slot, first: self.first as usize, vcpus: self.vcpus, held: self.held }
    }

    fn shared_offsets(&self, classes: &[VmClass]) -> Offsets {
        let nested = classes[usize::from(self.class)].config.el2 != El2::Absent;
        self.offsets.on_vcpu(nested.then_some(Offset(0)))
    }

    /// Returns the seat of an unused slot.
    fn vacant() -> Self {
        Self {
            generation: 0,
            first: 0,
            vcpus: 0,
            taken: false,
            domain: 0,
            class: 0,
            opted_in: false,
            sanitised: false,
            irqs: IrqIds::new(true),
            offsets: Offsets::default(),
            changes: 0,
            held: false,
            moved: false,
        }
    }
}

/// Returns a slot or a row as `u32`: [`MAX_VMS`] and [`MAX_ROWS`] are below 2^32.
pub(crate) fn narrow(index: usize) -> u32 {
    u32::try_from(index).expect("below 2^32")
}

#[cfg(test)]
mod tests {
    use super::*;
    use guestclock_core::arch::arm64::{Role, one_reg_id};

    /// Cost of a write is that of its row: whoever publishes offsets is told of none.
    #[test]
    fn a_timers_write_moves_no_vm() {
        let frequency = Frequency::new(1_000_000_000).expect("not 0");
        let kernel = Behaviours::named("6.12").expect("a kernel that is known");
        let mut bank = Bank::new(frequency, false);
        let vm = bank.add(frequency, kernel, Config::default()).expect("there is room");
        bank.vm_mut(vm).expect("it is there").create_vcpus(512, HostCount(7)).expect("there is room");
        let moved = |bank: &mut Bank| {
            let mut moved = Vec::new();
            bank.for_moved(|_, slot| moved.push(slot));
            moved
        };
        assert_eq!(moved(&mut bank), [vm.slot()], "vCPUs have offsets");
        for (role, value) in [(Role::Cval(Timer::Vtimer), 9), (Role::Ctl(Timer::Vtimer), 1), (Role::Cntkctl, 3)] {
            bank.vm_mut(vm)
                .expect("it is there")
                .set_one_reg(3, one_reg_id(role), value, HostCount(8))
                .expect("stopped");
        }
        bank.set_timers(Timer::Ptimer, &[vm.vcpu(5)], &[1], &[1]).expect("stopped");
        bank.expire(HostCount(1 << 40));
        assert_eq!(moved(&mut bank), [0; 0]);
        bank.set_offsets(&[vm], &[5]).expect("stopped");
        assert_eq!(moved(&mut bank), [vm.slot()]);
    }
}
