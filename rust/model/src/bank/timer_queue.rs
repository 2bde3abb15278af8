//! Timer queue of a bank: the timers of its rows that are yet to raise their lines.
//!
//! A VM's timers are a group of the deadline queue, so that a changed offset re-times them at the cost of one: all of
//! them where both counters have one offset, as every VM has that opted in, else one group for each counter. A vCPU
//! whose offset differs from its VM's has groups of its own: it has a CNTVOFF_EL2, or runs with the offset that it was
//! loaded with.

use crate::bank::rows::{Rows, TimerColumns};
use crate::deadlines::queue::KEPT;
use crate::deadlines::{DeadlineQueue, Fired, NotTaken};
use guestclock_core::arch::arm64::{Offsets, Timer, View, timer, view_of};
use guestclock_core::time::{HostCount, Offset};
use std::collections::{BTreeMap, TryReserveError};
use std::ops::Range;

/// Ids never run out, since a bank has fewer rows ([`MAX_ROWS`](super::vms::MAX_ROWS)).
const ENOUGH: &str = "the queue has a group of each VM, and ids for the timers of all rows";

const NO_GROUP: u32 = u32::MAX;

const VIEWS: [View; 2] = [View::Virtual, View::Physical];

/// Timers of a vCPU that a group has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    /// All timers.
    Whole,
    /// Those that go by this counter.
    Of(View),
}

impl Part {
    /// Returns the timers, as indices of [`Timer::ALL`], of vCPUs that have `timers` of them.
    const fn lanes(self, timers: u16) -> Range<u16> {
        match self {
            Self::Whole => 0..timers,
            Self::Of(View::Virtual) => 0..1,
            Self::Of(View::Physical) => 1..timers,
        }
    }
}

/// Owner of a group's timers.
#[derive(Clone, Copy, Debug)]
struct Member {
    slot: u32,
    /// The one vCPU that owns them, or [`ALL`].
    vcpu: u16,
    part: Part,
}

/// All of a VM's vCPUs, in place of one vCPU's number, which is below 512.
const ALL: u16 = u16::MAX;

/// Position of a VM's rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) slot: u32,
    pub(crate) first: usize,
    pub(crate) vcpus: u16,
    /// True while the VM is paused or being restored: it gives out no timer.
    pub(crate) held: bool,
}

/// A timer that fired, with its vCPU and its deadline.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Due {
    pub(crate) deadline: u64,
    pub(crate) slot: u32,
    pub(crate) vcpu: u16,
    pub(crate) timer: Timer,
}

#[derive(Clone, Debug)]
pub(crate) struct TimerQueue {
    queue: DeadlineQueue,
    /// Number of a vCPU's timers: 2 or 4.
    timers: u16,
    /// Groups of each VM's timers by its counters, by its slot; one and the same where both counters have one offset.
    groups: Vec<[u32; 2]>,
    /// Owner of each group, by the group's number.
    members: Vec<Member>,
    apart: BTreeMap<(u32, u16, usize), u32>,
    /// VMs whose offsets have changed: some of their fired timers may be in the future again.
    moved: Vec<u32>,
    /// True of each of these VMs, by its slot.
    has_moved: Vec<bool>,
    fired: Vec<Fired>,
}

impl TimerQueue {
    /// Creates the queue of VMs as of `now`. Exactly the memory that they take is reserved.
    pub(crate) fn new(now: HostCount, vms: impl Iterator<Item = (Place, Offsets)> + Clone, rows: &Rows) -> Self {
        let mut queue = Self {
            queue: DeadlineQueue::as_of(now),
            timers: if rows.el2() { 4 } else { 2 },
            groups: Vec::new(),
            members: Vec::new(),
            apart: BTreeMap::new(),
            moved: Vec::new(),
            has_moved: Vec::new(),
            fired: Vec::new(),
        };
        let each = queue.timers;
        let with_vcpus = || vms.clone().filter(|(place, _)| place.vcpus > 0);
        let sizes = with_vcpus().flat_map(|(Place { vcpus, .. }, shared)| {
            parts(shared).iter().map(move |part| u32::from(vcpus) * lanes(*part, each))
        });
        queue.queue.reserve(sizes).expect("memory for the timers of the bank's rows");
        let slots = with_vcpus().map(|(place, _)| place.slot as usize + 1).max().unwrap_or(0);
        queue.groups.resize(slots, [NO_GROUP; 2]);
        queue.has_moved.resize(slots, false);
        queue.members.reserve_exact(with_vcpus().map(|(_, shared)| parts(shared).len()).sum());
        for (place, shared) in vms {
            queue.enrol_one_of_many(place, shared, rows, &[]);
        }
        queue.queue.settle();
        queue
    }

    /// Returns the timers of a VM that can raise their lines and aren't armed: `expire` has returned them.
    pub(crate) fn reported(&self, place: Place, rows: &Rows) -> Vec<(u16, Timer)> {
        let timers = (0..place.vcpus).flat_map(|vcpu| rows.kept().iter().map(move |timer| (vcpu, *timer)));
        let reported = |&(vcpu, timer): &(u16, Timer)| {
            let can_raise = timer::can_raise(rows.ctl(place.first + usize::from(vcpu), timer));
            can_raise && self.queue.cval(self.id(place.slot, vcpu, timer)).expect(ENOUGH).is_none()
        };
        timers.filter(reported).collect()
    }

    /// Adds a VM, with the timers of its rows that can raise their lines, except those that were reported.
    pub(crate) fn enrol(&mut self, place: Place, shared: Offsets, rows: &Rows, reported: &[(u16, Timer)]) {
        self.enrol_one_of_many(place, shared, rows, reported);
        self.queue.settle();
    }

    fn enrol_one_of_many(&mut self, place: Place, shared: Offsets, rows: &Rows, reported: &[(u16, Timer)]) {
        if place.vcpus == 0 {
            return;
        }
        let index = place.slot as usize;
        if self.groups.len() <= index {
            self.groups.resize(index + 1, [NO_GROUP; 2]);
            self.has_moved.resize(index + 1, false);
        }
        let mut added = parts(shared).iter().map(|part| {
            let timers = u32::from(place.vcpus) * lanes(*part, self.timers);
            let member = Member { slot: place.slot, vcpu: ALL, part: *part };
            self.add(member, timers, shared.of(part_view(*part)), place.held)
        });
        let first = added.next().expect("a VM has one group at least");
        let groups = [first, added.next().unwrap_or(first)];
        self.groups[index] = groups;
        self.fill(place, shared, rows);
        for vcpu in 0..place.vcpus {
            self.follow(place, vcpu, rows.offsets(place.first + usize::from(vcpu)), shared);
        }
        for (vcpu, timer) in reported {
            let id = self.id(place.slot, *vcpu, *timer);
            self.queue.disarm(&[id]).expect(ENOUGH);
        }
    }

    /// Rewrites a VM's own groups as its rows have them; [`DeadlineQueue::settle`] comes after the last VM.
    fn fill(&mut self, place: Place, shared: Offsets, rows: &Rows) {
        let of = place.first..place.first + usize::from(place.vcpus);
        for (group, part) in own(&self.groups[place.slot as usize]).iter().zip(parts(shared)) {
            let lanes = part.lanes(self.timers);
            let columns = &rows.timers[usize::from(lanes.start)..usize::from(lanes.end)];
            let of_row = |row: usize| columns.iter().map(move |TimerColumns { cval, ctl, .. }| (cval[row], ctl[row]));
            let timers = of.clone().flat_map(of_row);
            self.queue.rewrite_one_of_many(*group, shared.of(part_view(*part)), place.held, timers);
        }
    }

    /// Updates a VM all of whose timers and offsets were written, as one of many: [`settle`](Self::settle) comes after
    /// the last.
    pub(crate) fn rewrite_one_of_many(&mut self, place: Place, shared: Offsets, rows: &Rows) {
        let Some(groups) = self.groups.get(place.slot as usize).filter(|groups| groups[0] != NO_GROUP) else { return };
        if (groups[0] == groups[1]) != (shared.virt == shared.phys) || !self.is_whole(place, shared, rows) {
            self.dismiss(place.slot);
            self.enrol_one_of_many(place, shared, rows, &[]);
            return;
        }
        self.fill(place, shared, rows);
    }

    /// Updates a VM that was held, let go or moved, as one of many: [`settle`](Self::settle) comes after the last.
    pub(crate) fn move_one_of_many(&mut self, place: Place, shared: Offsets, rows: &Rows) {
        let Some(groups) = self.groups.get(place.slot as usize).filter(|groups| groups[0] != NO_GROUP) else { return };
        let mut moved = true;
        if (groups[0] == groups[1]) == (shared.virt == shared.phys) {
            moved = self.move_and_hold(place, shared);
            if !self.is_whole(place, shared, rows) {
                moved = true;
                for (vcpu, row) in (0..place.vcpus).zip(place.first..) {
                    self.follow(place, vcpu, rows.offsets(row), shared);
                }
            }
        } else {
            let reported = self.reported(place, rows);
            self.dismiss(place.slot);
            self.enrol_one_of_many(place, shared, rows, &reported);
        }
        if moved && !core::mem::replace(&mut self.has_moved[place.slot as usize], true) {
            self.moved.push(place.slot);
        }
    }

    /// Recomputes the deadlines of VMs that were changed as some of many.
    pub(crate) fn settle(&mut self) {
        self.queue.settle();
    }

    /// Returns whether the VM's offsets were others.
    fn move_and_hold(&mut self, place: Place, shared: Offsets) -> bool {
        let [first, second] = self.groups[place.slot as usize];
        let mut moved = self.queue.move_one_of_many(first, shared.virt);
        if second != first {
            moved |= self.queue.move_one_of_many(second, shared.phys);
        }
        self.hold_one_of_many(place.slot, place.held);
        moved
    }

    /// Holds a VM's timers, or lets them go, as those of one of many: [`settle`](Self::settle) comes after the last.
    pub(crate) fn hold_one_of_many(&mut self, slot: u32, held: bool) {
        let Some(groups) = self.groups.get(slot as usize).filter(|groups| groups[0] != NO_GROUP) else { return };
        for group in own(groups) {
            self.queue.hold_one_of_many(*group, held);
        }
        if !self.apart.is_empty() {
            for (_, group) in self.apart.range((slot, 0, 0)..(slot + 1, 0, 0)) {
                self.queue.hold_one_of_many(*group, held);
            }
        }
    }

    /// Returns whether none of a VM's vCPUs has groups of its own, or has to.
    fn is_whole(&self, place: Place, shared: Offsets, rows: &Rows) -> bool {
        let of = place.first..place.first + usize::from(place.vcpus);
        let mut offsets = rows.virt[of.clone()].iter().zip(&rows.phys[of]);
        let apart = || self.apart.range((place.slot, 0, 0)..(place.slot + 1, 0, 0)).next();
        offsets.all(|(virt, phys)| (*virt, *phys) == (shared.virt.0, shared.phys.0))
            && (self.apart.is_empty() || apart().is_none())
    }

    /// Removes a VM.
    pub(crate) fn dismiss(&mut self, slot: u32) {
        let Some(groups) = self.groups.get_mut(slot as usize).filter(|groups| groups[0] != NO_GROUP) else { return };
        for group in own(&core::mem::replace(groups, [NO_GROUP; 2])) {
            self.queue.remove_group(*group).expect(ENOUGH);
        }
        let apart: Vec<_> =
            self.apart.range((slot, 0, 0)..(slot + 1, 0, 0)).map(|(key, group)| (*key, *group)).collect();
        for (key, group) in apart {
            self.apart.remove(&key);
            self.queue.remove_group(group).expect(ENOUGH);
        }
    }

    /// Holds a VM's timers, or lets them go.
    pub(crate) fn hold(&mut self, slot: u32, held: bool) {
        self.hold_one_of_many(slot, held);
        self.queue.settle();
    }

    /// Updates a timer that was written: its line goes high at this compare value, or not at all.
    pub(crate) fn write(&mut self, slot: u32, vcpu: usize, timer: Timer, cval: Option<u64>) {
        let id = self.id(slot, u16::try_from(vcpu).expect(ENOUGH), timer);
        match cval {
            Some(cval) => self.queue.arm(&[id], &[cval]),
            None => self.queue.disarm(&[id]),
        }
        .expect(ENOUGH);
    }

    /// Updates many timers: the ids from `id` with their compare values, and the ids to disarm.
    pub(crate) fn write_all(&mut self, armed: &[u32], cvals: &[u64], disarmed: &[u32]) {
        self.queue.arm(armed, cvals).expect(ENOUGH);
        self.queue.disarm(disarmed).expect(ENOUGH);
    }

    /// Updates the offsets of a VM and its vCPUs: `shared` are those of vCPUs without offsets of their own.
    pub(crate) fn move_vm(&mut self, place: Place, shared: Offsets, rows: &Rows) {
        self.move_one_of_many(place, shared, rows);
        self.queue.settle();
    }

    /// Updates the offsets of a vCPU, which has groups of its own exactly while they differ from the VM's.
    fn follow(&mut self, Place { slot, held, .. }: Place, vcpu: u16, offsets: Offsets, shared: Offsets) {
        for view in VIEWS {
            let (offset, key) = (offsets.of(view), (slot, vcpu, number(view)));
            match self.apart.get(&key).copied() {
                Some(group) if offset != shared.of(view) => self.queue.set_offset(group, offset).expect(ENOUGH),
                Some(group) => {
                    let armed = self.take(slot, vcpu, view);
                    self.apart.remove(&key);
                    self.queue.remove_group(group).expect(ENOUGH);
                    self.give(slot, vcpu, &armed);
                }
                None if offset != shared.of(view) => {
                    let armed = self.take(slot, vcpu, view);
                    let member = Member { slot, vcpu, part: Part::Of(view) };
                    let group = self.add(member, lanes(Part::Of(view), self.timers), offset, held);
                    self.apart.insert(key, group);
                    self.give(slot, vcpu, &armed);
                }
                None => {}
            }
        }
    }

    /// Returns the deadline of the next line to go high, among those that weren't reported yet.
    pub(crate) fn next_deadline(&mut self, now: HostCount) -> u64 {
        self.queue.next_deadline(now)
    }

    /// Returns the VMs whose offsets have changed since the last call.
    pub(crate) fn take_moved(&mut self) -> Vec<u32> {
        let mut moved = core::mem::take(&mut self.moved);
        for slot in &moved {
            self.has_moved[*slot as usize] = false;
        }
        moved.retain(|slot| self.groups[*slot as usize][0] != NO_GROUP);
        moved
    }

    /// Arms a VM's timers again if their condition is no longer met.
    pub(crate) fn look_again(&mut self, place: Place, rows: &Rows, now: HostCount) {
        if self.armed(place.slot) == rows.armed(place.first..place.first + usize::from(place.vcpus)) {
            return;
        }
        for vcpu in 0..place.vcpus {
            let row = place.first + usize::from(vcpu);
            for &timer in rows.kept() {
                let (cval, guest) = (rows.cval(row, timer), now.guest(Offset(rows.offsets_of(timer)[row])));
                let id = self.id(place.slot, vcpu, timer);
                let to_come = timer::can_raise(rows.ctl(row, timer)) && !timer::condition_met(cval, guest);
                if to_come && self.queue.cval(id).expect(ENOUGH).is_none() {
                    self.queue.arm(&[id], &[cval]).expect(ENOUGH);
                }
            }
        }
    }

    /// Removes the timers that are due from the queue, and adds them to `due`, if they are `most` at most. `room` reserves
    /// the caller's own memory for so many timers in all, before they are taken.
    pub(crate) fn expire(
        &mut self,
        most: usize,
        now: HostCount,
        due: &mut Vec<Due>,
        mut room: impl FnMut(usize) -> Result<(), TryReserveError>,
    ) -> Result<(), NotTaken> {
        let mut fired = core::mem::take(&mut self.fired);
        let taken = self.queue.expire_with_room(most, now, &mut fired, |timers| {
            due.try_reserve(timers)?;
            room(due.len() + timers)
        });
        if taken.is_err() {
            fired.clear();
        }
        due.extend(fired.iter().map(|Fired { deadline, timer }| {
            let (group, index) = self.queue.place_of(*timer).expect(ENOUGH);
            let Member { slot, vcpu, part, .. } = self.members[group as usize];
            let Range { start, end } = part.lanes(self.timers);
            let each = u32::from(end - start);
            let (of, lane) = (index / each, usize::from(start) + (index % each) as usize);
            let vcpu = if vcpu == ALL { u16::try_from(of).expect(ENOUGH) } else { vcpu };
            Due { deadline: *deadline, slot, vcpu, timer: Timer::ALL[lane] }
        }));
        self.fired = if fired.capacity() > KEPT { Vec::new() } else { fired };
        taken
    }

    /// Number of timers that are due.
    pub(crate) fn due(&mut self, now: HostCount) -> Result<usize, NotTaken> {
        self.queue.due(now)
    }

    /// Bytes that so many VMs take at most: a row of eight values for each eight of a VM's timers, a group of each counter,
    /// and both once more while a column grows.
    pub(crate) fn most_bytes(vms: usize, vcpus: usize, timers: usize) -> usize {
        let rows = (vcpus * timers).div_ceil(8) * 3 + 2;
        vms.saturating_mul(rows).saturating_mul(2 * 96)
    }

    pub(crate) fn pending(&self) -> usize {
        self.queue.len()
    }

    /// Memory of the queue in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let places = self.groups.capacity() * size_of::<[u32; 2]>() + self.members.capacity() * size_of::<Member>();
        let apart = self.apart.len() * size_of::<((u32, u16, usize), u32)>();
        let moved = self.moved.capacity() * size_of::<u32>() + self.has_moved.capacity();
        let places = places + apart + moved;
        self.queue.bytes() + places + self.fired.capacity() * size_of::<Fired>()
    }

    /// Returns the timer's id in the queue.
    pub(crate) fn id(&self, slot: u32, vcpu: u16, timer: Timer) -> u32 {
        let view = view_of(timer);
        let apart = if self.apart.is_empty() { None } else { self.apart.get(&(slot, vcpu, number(view))) };
        let (group, part, vcpu) = match (apart, self.groups[slot as usize]) {
            (Some(group), _) => (*group, Part::Of(view), 0),
            (None, [first, second]) if first == second => (first, Part::Whole, u32::from(vcpu)),
            (None, groups) => (groups[number(view)], Part::Of(view), u32::from(vcpu)),
        };
        let first = self.queue.timers(group).expect(ENOUGH).start;
        let lane = timer as u32 - u32::from(part.lanes(self.timers).start);
        first + vcpu * lanes(part, self.timers) + lane
    }

    /// Number of a VM's armed timers.
    fn armed(&self, slot: u32) -> usize {
        let apart = self.apart.range((slot, 0, 0)..(slot + 1, 0, 0)).map(|(_, group)| *group);
        own(&self.groups[slot as usize]).iter().copied().chain(apart).map(|group| self.queue.armed(group)).sum()
    }

    fn add(&mut self, member: Member, timers: u32, offset: Offset, held: bool) -> u32 {
        let group = self.queue.add_group(timers, offset).expect(ENOUGH);
        self.queue.hold_one_of_many(group, held);
        if self.members.len() <= group as usize {
            self.members.resize(group as usize + 1, member);
        }
        self.members[group as usize] = member;
        group
    }

    /// Disarms a vCPU's timers of this view, and returns their compare values.
    fn take(&mut self, slot: u32, vcpu: u16, view: View) -> Vec<(Timer, u64)> {
        let lanes = Part::Of(view).lanes(self.timers);
        let timers = &Timer::ALL[lanes.start.into()..lanes.end.into()];
        let ids = timers.iter().map(|timer| (*timer, self.id(slot, vcpu, *timer)));
        let armed: Vec<(Timer, u32, u64)> =
            ids.filter_map(|(timer, id)| Some((timer, id, self.queue.cval(id).expect(ENOUGH)?))).collect();
        for (_, id, _) in &armed {
            self.queue.disarm(&[*id]).expect(ENOUGH);
        }
        armed.into_iter().map(|(timer, _, cval)| (timer, cval)).collect()
    }

    fn give(&mut self, slot: u32, vcpu: u16, armed: &[(Timer, u64)]) {
        for (timer, cval) in armed {
            self.queue.arm(&[self.id(slot, vcpu, *timer)], &[*cval]).expect(ENOUGH);
        }
    }
}

/// Returns the parts of a VM's timers that have a group each.
fn parts(shared: Offsets) -> &'static [Part] {
    const APART: [Part; 2] = [Part::Of(View::Virtual), Part::Of(View::Physical)];
    if shared.virt == shared.phys { &[Part::Whole] } else { &APART }
}

/// The groups of a VM, each once.
fn own(groups: &[u32; 2]) -> &[u32] {
    if groups[0] == groups[1] { &groups[..1] } else { groups }
}

/// Returns the view whose offset a group of this part has.
const fn part_view(part: Part) -> View {
    match part {
        Part::Whole => View::Virtual,
        Part::Of(view) => view,
    }
}

/// Number of a vCPU's timers in a group.
fn lanes(part: Part, timers: u16) -> u32 {
    let Range { start, end } = part.lanes(timers);
    (end - start).into()
}

/// Returns the number of a view's first timer, and of its group.
const fn number(view: View) -> usize {
    match view {
        View::Virtual => 0,
        View::Physical => 1,
    }
}
