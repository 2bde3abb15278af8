//! Timer queue of a bank: the timers of its rows that are yet to raise their lines.
//!
//! A VM has two groups in the deadline queue, one for the timers of each offset, so that a changed offset re-times them
//! at the cost of one. A vCPU whose offset differs from its VM's has groups of its own: it has a CNTVOFF_EL2, or runs
//! with the offset that it was loaded with.

use crate::bank::rows::Rows;
use crate::deadlines::queue::KEPT;
use crate::deadlines::{DeadlineQueue, Fired};
use guestclock_core::arch::arm64::{Offsets, Timer, View, timer, view_of};
use guestclock_core::time::{HostCount, Offset};
use std::collections::{BTreeMap, BTreeSet};

/// Ids never run out, since a bank has fewer rows ([`MAX_ROWS`](super::vms::MAX_ROWS)).
const ENOUGH: &str = "the queue has a group of each VM, and ids for the timers of all rows";

const NO_GROUP: u32 = u32::MAX;

const VIEWS: [View; 2] = [View::Virtual, View::Physical];

/// Owner of a group's timers.
#[derive(Clone, Copy, Debug)]
struct Member {
    slot: u32,
    /// The one vCPU that owns them, or [`ALL`].
    vcpu: u16,
    view: View,
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
    /// Number of a vCPU's timers under the physical offset.
    physical: u16,
    /// Groups of each VM, by its slot.
    groups: Vec<[u32; 2]>,
    /// Owner of each group, by the group's number.
    members: Vec<Member>,
    apart: BTreeMap<(u32, u16, usize), u32>,
    /// VMs whose offsets have changed: some of their fired timers may be in the future again.
    moved: BTreeSet<u32>,
    fired: Vec<Fired>,
}

impl TimerQueue {
    /// Creates the queue for rows with `timers` timers.
    pub(crate) fn new(timers: usize) -> Self {
        Self {
            queue: DeadlineQueue::new(),
            physical: if timers == Timer::ALL.len() { 3 } else { 1 },
            groups: Vec::new(),
            members: Vec::new(),
            apart: BTreeMap::new(),
            moved: BTreeSet::new(),
            fired: Vec::new(),
        }
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
        if place.vcpus == 0 {
            return;
        }
        let index = place.slot as usize;
        if self.groups.len() <= index {
            self.groups.resize(index + 1, [NO_GROUP; 2]);
        }
        self.groups[index] = VIEWS.map(|view| {
            let timers = u32::from(place.vcpus) * u32::from(self.timers_under(view));
            self.add(Member { slot: place.slot, vcpu: ALL, view }, timers, shared.of(view), place.held)
        });
        for vcpu in 0..place.vcpus {
            let row = place.first + usize::from(vcpu);
            self.follow(place, vcpu, rows.offsets(row), shared);
            for &timer in rows.kept() {
                let (ctl, cval) = (rows.ctl(row, timer), rows.cval(row, timer));
                if timer::can_raise(ctl) && !reported.contains(&(vcpu, timer)) {
                    self.queue.arm(&[self.id(place.slot, vcpu, timer)], &[cval]).expect(ENOUGH);
                }
            }
        }
    }

    /// Removes a VM.
    pub(crate) fn dismiss(&mut self, slot: u32) {
        let Some(groups) = self.groups.get_mut(slot as usize) else { return };
        for group in core::mem::replace(groups, [NO_GROUP; 2]) {
            if group != NO_GROUP {
                self.queue.remove_group(group).expect(ENOUGH);
            }
        }
        let apart: Vec<_> =
            self.apart.range((slot, 0, 0)..(slot + 1, 0, 0)).map(|(key, group)| (*key, *group)).collect();
        for (key, group) in apart {
            self.apart.remove(&key);
            self.queue.remove_group(group).expect(ENOUGH);
        }
        self.moved.remove(&slot);
    }

    /// Holds a VM's timers, or lets them go.
    pub(crate) fn hold(&mut self, slot: u32, held: bool) {
        let Some(groups) = self.groups.get(slot as usize).filter(|groups| groups[0] != NO_GROUP) else { return };
        let apart = self.apart.range((slot, 0, 0)..(slot + 1, 0, 0)).map(|(_, group)| group);
        for group in groups.iter().chain(apart) {
            self.queue.hold(*group, held).expect(ENOUGH);
        }
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
        let Some(groups) = self.groups.get(place.slot as usize).filter(|groups| groups[0] != NO_GROUP) else { return };
        for (group, view) in groups.iter().zip(VIEWS) {
            self.queue.set_offset(*group, shared.of(view)).expect(ENOUGH);
        }
        for vcpu in 0..place.vcpus {
            self.follow(place, vcpu, rows.offsets(place.first + usize::from(vcpu)), shared);
        }
        self.moved.insert(place.slot);
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
                    let member = Member { slot, vcpu, view };
                    let group = self.add(member, self.timers_under(view).into(), offset, held);
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
    pub(crate) fn take_moved(&mut self) -> BTreeSet<u32> {
        core::mem::take(&mut self.moved)
    }

    /// Arms a VM's timers again if their condition is no longer met.
    pub(crate) fn look_again(&mut self, place: Place, rows: &Rows, now: HostCount) {
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

    /// Removes the timers that are due from the queue, and adds them to `due`.
    pub(crate) fn expire(&mut self, now: HostCount, due: &mut Vec<Due>) {
        let mut fired = core::mem::take(&mut self.fired);
        self.queue.expire(now, &mut fired);
        due.extend(fired.iter().map(|Fired { deadline, timer }| {
            let (group, index) = self.queue.place_of(*timer).expect(ENOUGH);
            let Member { slot, vcpu, view } = self.members[group as usize];
            let each = u32::from(self.timers_under(view));
            let (of, lane) = (index / each, (index % each) as usize);
            let vcpu = if vcpu == ALL { u16::try_from(of).expect(ENOUGH) } else { vcpu };
            Due { deadline: *deadline, slot, vcpu, timer: Timer::ALL[number(view) + lane] }
        }));
        self.fired = if fired.capacity() > KEPT { Vec::new() } else { fired };
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
        self.queue.bytes() + places + self.fired.capacity() * size_of::<Fired>()
    }

    /// Returns the timer's id in the queue.
    pub(crate) fn id(&self, slot: u32, vcpu: u16, timer: Timer) -> u32 {
        let view = view_of(timer);
        let lane = timer.index() - number(view);
        let apart = if self.apart.is_empty() { None } else { self.apart.get(&(slot, vcpu, number(view))) };
        let (group, vcpu) = match apart {
            Some(group) => (*group, 0),
            None => (self.groups[slot as usize][number(view)], u32::from(vcpu)),
        };
        let first = self.queue.timers(group).expect(ENOUGH).start;
        first + vcpu * u32::from(self.timers_under(view)) + u32::try_from(lane).expect(ENOUGH)
    }

    fn add(&mut self, member: Member, timers: u32, offset: Offset, held: bool) -> u32 {
        let group = self.queue.add_group(timers, offset).expect(ENOUGH);
        self.queue.hold(group, held).expect(ENOUGH);
        if self.members.len() <= group as usize {
            self.members.resize(group as usize + 1, member);
        }
        self.members[group as usize] = member;
        group
    }

    /// Disarms a vCPU's timers of this view, and returns their compare values.
    fn take(&mut self, slot: u32, vcpu: u16, view: View) -> Vec<(Timer, u64)> {
        let timers = &Timer::ALL[number(view)..][..usize::from(self.timers_under(view))];
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

    const fn timers_under(&self, view: View) -> u16 {
        match view {
            View::Virtual => 1,
            View::Physical => self.physical,
        }
    }
}

/// Returns the number of a view's first timer, and of its group.
const fn number(view: View) -> usize {
    match view {
        View::Virtual => 0,
        View::Physical => 1,
    }
}
