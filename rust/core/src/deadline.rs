//! The deadline queue: which timers of which VMs are due, and when the next one is.
//!
//! A timer belongs to a group, which is a VM: its compare value is in the guest's ticks, and the group's offset leads
//! from the host's counter to them. The comparison is KVM's: unsigned, on guest counts, without a wrap
//! (`kvm_timer_compute_delta` and `kvm_timer_pending` in arch/arm64/kvm/arch_timer.c). So a timer is due while
//! `now - offset`, modulo 2^64, is at or past its compare value, and its deadline is a distance from `now` and not the sum
//! of both: where a guest's count wraps, timers that were due no longer are.
//!
//! Two tournament trees, one in the other. A group has its compare values in rows of eight, a cache line each; a group
//! of more than one row has a tree of the rows' least values, in guest ticks. Another tree holds each group's next deadline,
//! in host ticks, so that an offset moves one leaf of it. docs/performance.md says why it is these, with figures.

mod winners;

use crate::bank::NO_DEADLINE;
use crate::counter::{GuestCount, HostCount, Offset};
use crate::timer::ticks_until;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;
use winners::{LANES, NONE, ROW, Row, Winners, each};

/// A timer that fired.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Fired {
    /// When it was due, as a count of the host's counter: 0 where that was before its first count.
    pub deadline: u64,
    /// Which one.
    pub timer: u32,
}

/// What the queue refuses. It is as it was then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// No group has this number, or it was removed.
    #[error("the queue has no group {group}: add_group gives the numbers of those that it has")]
    NoSuchGroup {
        /// The number.
        group: u32,
    },
    /// No group has this timer.
    #[error("timer {timer} is in no group of the queue: timers(group) gives the ids of a group's")]
    NoSuchTimer {
        /// The id.
        timer: u32,
    },
    /// A batch whose columns belong to no common rows.
    #[error("a batch has as many values as it names, and these are {values} for {named}")]
    Unequal {
        /// How many timers or groups.
        named: usize,
        /// How many compare values or offsets.
        values: usize,
    },
    /// A group of nothing.
    #[error("a group has at least one timer")]
    EmptyGroup,
    /// Ids have 32 bits.
    #[error("the ids of {timers} more timers don't fit in 32 bits: the queue has handed out {ids}")]
    TooManyTimers {
        /// How many were to be added.
        timers: u32,
        /// How many ids there are.
        ids: usize,
    },
}

/// The timers of a VM.
#[derive(Clone, Debug)]
struct Group {
    offset: Offset,
    /// Its first id.
    first: u32,
    /// How many timers: 0 where the group was removed.
    timers: u32,
    /// How many of them are armed.
    armed: u32,
    /// The least compare value of each row, where there are many.
    tree: Option<Box<Winners>>,
}

impl Group {
    /// Its rows.
    fn rows(&self) -> Range<usize> {
        let first = self.first as usize / ROW;
        first..first + (self.timers as usize).div_ceil(ROW)
    }

    /// The places of its timers in a row: the whole of it, or the part that it has of its only one.
    fn lanes(&self) -> u8 {
        let spare = (LANES).saturating_sub(self.timers);
        u8::MAX >> spare << (self.first % LANES)
    }

    /// Its least compare value; [`NONE`] where it has none.
    fn least(&self, cvals: &[Row]) -> u64 {
        match &self.tree {
            Some(tree) => tree.least(),
            None => cvals[self.rows()].iter().fold(NONE, |least, row| least.min(row.least_of(self.lanes()))),
        }
    }

    /// Its next deadline as a host count, seen from `now`; [`NONE`] where it has none, or none within 64 bits.
    fn deadline(&self, cvals: &[Row], now: HostCount) -> u64 {
        if self.armed == 0 { NONE } else { self.deadline_of(self.least(cvals), now) }
    }

    /// The same for one compare value.
    fn deadline_of(&self, cval: u64, now: HostCount) -> u64 {
        now.0.checked_add(ticks_until(cval, now.guest(self.offset))).unwrap_or(NONE)
    }
}

/// Timers of many groups, and when they are due.
///
/// ```
/// use guestclock_core::counter::{HostCount, Offset};
/// use guestclock_core::deadline::{DeadlineQueue, Fired};
///
/// let mut queue = DeadlineQueue::new();
/// let vm = queue.add_group(8, Offset(1000))?;
/// let timer = queue.timers(vm)?.start;
/// queue.arm(&[timer], &[50])?;
/// assert_eq!(queue.next_deadline(HostCount(1000)), 1050);
///
/// queue.set_offset(vm, Offset(3000))?;
/// assert_eq!(queue.next_deadline(HostCount(3000)), 3050);
/// let mut fired = Vec::new();
/// queue.expire(HostCount(3060), &mut fired);
/// assert_eq!(fired, [Fired { deadline: 3050, timer }]);
/// # Ok::<(), guestclock_core::deadline::QueueError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct DeadlineQueue {
    /// Every timer's compare value by id; [`NONE`] where it isn't armed, and where there is none.
    cvals: Vec<Row>,
    /// Which timers of a row are armed: a bit each, since a compare value can be [`NONE`] too.
    armed: Vec<u8>,
    /// Every timer's group; [`NO_GROUP`] where there is no timer.
    home: Vec<u32>,
    groups: Vec<Group>,
    /// Each group's next deadline: a host count at which it may have one due, and before which it has none.
    deadlines: Winners,
    /// What the deadlines are seen from.
    now: HostCount,
    pending: usize,
    seen: Seen,
    /// Ids that are free, by how many there are from each on; and numbers of groups.
    free_ids: BTreeMap<u32, Vec<u32>>,
    free_groups: Vec<u32>,
}

/// What `expire` looks at, kept for its memory.
#[derive(Clone, Debug, Default)]
struct Seen {
    groups: Vec<u32>,
    /// Rows of groups without a tree, each with its group and its guest's count.
    rows: Vec<(u32, u32, GuestCount)>,
    tree_rows: Vec<u32>,
    spare: Vec<u32>,
}

const NO_GROUP: u32 = u32::MAX;
/// Up to how many rows a group's least is looked for, instead of kept in a tree, which would be larger than they are.
const ROWS_WITHOUT_TREE: usize = 4;

impl DeadlineQueue {
    /// A queue without groups.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many timers are armed.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.pending
    }

    /// Whether no timer is armed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.pending == 0
    }

    /// Adds a group of so many timers, all disarmed, and returns its number.
    ///
    /// Its ids follow each other, but those of two groups needn't: no group's row straddles a cache line.
    pub fn add_group(&mut self, timers: u32, offset: Offset) -> Result<u32, QueueError> {
        if timers == 0 {
            return Err(QueueError::EmptyGroup);
        }
        let first = self.take_ids(timers)?;
        let mut group = Group { offset, first, timers, armed: 0, tree: None };
        if group.rows().len() > ROWS_WITHOUT_TREE {
            group.tree = Some(Box::new(Winners::of(group.rows().len())));
        }
        let number = if let Some(number) = self.free_groups.pop() {
            self.groups[number as usize] = group;
            number
        } else {
            self.groups.push(group);
            self.deadlines.push();
            narrow(self.groups.len() - 1)
        };
        self.home[first as usize..][..timers as usize].fill(number);
        Ok(number)
    }

    /// Removes a group and its timers. Its number and its ids go to groups that are added later.
    pub fn remove_group(&mut self, group: u32) -> Result<(), QueueError> {
        let ids = self.timers(group)?;
        for timer in ids.clone() {
            self.disarm(&[timer])?;
            self.home[timer as usize] = NO_GROUP;
        }
        self.retime(group);
        let gone = &mut self.groups[group as usize];
        gone.tree = None;
        self.free_ids.entry(footprint(gone.timers)).or_default().push(ids.start);
        gone.timers = 0;
        self.free_groups.push(group);
        Ok(())
    }

    /// The ids of a group's timers.
    pub fn timers(&self, group: u32) -> Result<Range<u32>, QueueError> {
        let known = self.group(group)?;
        Ok(known.first..known.first + known.timers)
    }

    /// A group's offset.
    pub fn offset(&self, group: u32) -> Result<Offset, QueueError> {
        self.group(group).map(|group| group.offset)
    }

    /// Sets a group's offset, which moves the deadlines of all its timers; they aren't touched.
    pub fn set_offset(&mut self, group: u32, offset: Offset) -> Result<(), QueueError> {
        self.set_offsets(&[group], &[offset.0])
    }

    /// Sets the offsets of many groups, in this order.
    pub fn set_offsets(&mut self, groups: &[u32], offsets: &[u64]) -> Result<(), QueueError> {
        same_length(groups, offsets)?;
        for group in groups {
            self.group(*group)?;
        }
        for (group, offset) in groups.iter().zip(offsets) {
            self.groups[*group as usize].offset = Offset(*offset);
            self.retime(*group);
        }
        Ok(())
    }

    /// Arms timers with compare values, in this order; one that is armed is moved.
    pub fn arm(&mut self, timers: &[u32], cvals: &[u64]) -> Result<(), QueueError> {
        same_length(timers, cvals)?;
        self.known(timers)?;
        for (timer, cval) in timers.iter().zip(cvals) {
            let (row, lane) = place(*timer);
            let group = self.home[*timer as usize];
            if self.armed[row] & 1 << lane == 0 {
                self.armed[row] |= 1 << lane;
                self.groups[group as usize].armed += 1;
                self.pending += 1;
            }
            self.put(*timer, *cval);
        }
        Ok(())
    }

    /// Disarms timers; one that isn't armed stays so.
    pub fn disarm(&mut self, timers: &[u32]) -> Result<(), QueueError> {
        self.known(timers)?;
        for timer in timers {
            let (row, lane) = place(*timer);
            if self.armed[row] & 1 << lane != 0 {
                self.armed[row] &= !(1 << lane);
                self.groups[self.home[*timer as usize] as usize].armed -= 1;
                self.pending -= 1;
                self.put(*timer, NONE);
            }
        }
        Ok(())
    }

    /// When the next timer is due, as a host count: `now` where one is, [`NO_DEADLINE`] where none is armed. A deadline past
    /// the counter's last count is held just below that, as in [`bank::deadline`](crate::bank::deadline).
    pub fn next_deadline(&mut self, now: HostCount) -> u64 {
        self.look_from(now);
        if self.pending == 0 {
            return NO_DEADLINE;
        }
        while self.deadlines.least() <= now.0 {
            let group = self.deadlines.first();
            // It was to be due by now; it isn't if the guest's count wrapped since, or its timer was moved.
            let actual = self.groups[group].deadline(&self.cvals, now);
            if actual <= now.0 {
                return now.0.min(NO_DEADLINE - 1);
            }
            self.deadlines.set(group, actual);
        }
        self.deadlines.least().min(NO_DEADLINE - 1)
    }

    /// Disarms the timers that are due and puts them in `fired`, in the order of their deadlines and then of their ids. What
    /// it held is gone.
    pub fn expire(&mut self, now: HostCount, fired: &mut Vec<Fired>) {
        self.look_from(now);
        fired.clear();
        let Self { cvals, armed, groups, deadlines, pending, seen, .. } = self;
        let mut fire = |cvals: &mut [Row], group: &mut Group, row: usize, guest: GuestCount| {
            let row_cvals = &mut cvals[row];
            let due = row_cvals.due(guest.0) & armed[row] & group.lanes();
            armed[row] &= !due;
            group.armed -= due.count_ones();
            // Before it is written to: a wide read waits for narrow writes.
            let least = row_cvals.least_of(!due);
            each(due, |lane| {
                let cval = core::mem::replace(&mut row_cvals.0[lane as usize], NONE);
                let deadline = now.0.saturating_sub(guest.0 - cval);
                fired.push(Fired { deadline, timer: narrow(row * ROW) + lane });
            });
            least
        };
        deadlines.due(now.0, &mut seen.groups, &mut seen.spare);
        // In passes, each of them short: what one group or row is waited for to be read, the next ones are read as well.
        seen.rows.clear();
        for number in &seen.groups {
            let group = &mut groups[*number as usize];
            let (guest, rows) = (now.guest(group.offset), group.rows());
            if let Some(mut tree) = group.tree.take() {
                tree.due(guest.0, &mut seen.tree_rows, &mut seen.spare);
                tree.renew(&mut seen.tree_rows, |row| fire(cvals, group, rows.start + row, guest));
                group.tree = Some(tree);
            } else if group.armed > 0 {
                seen.rows.extend(rows.map(|row| (*number, narrow(row), guest)));
            }
        }
        for (number, row, guest) in &seen.rows {
            fire(cvals, &mut groups[*number as usize], *row as usize, *guest);
        }
        *pending -= fired.len();
        deadlines.renew(&mut seen.groups, |number| groups[number].deadline(cvals, now));
        order(fired);
    }

    /// The bytes that it holds, those that are reserved for more included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let columns = self.cvals.capacity() * size_of::<Row>() + self.armed.capacity() + self.home.capacity() * 4;
        let groups = self.groups.capacity() * size_of::<Group>() + self.free_groups.capacity() * 4;
        let rows: usize = self.groups.iter().filter_map(|group| group.tree.as_ref()).map(|tree| tree.bytes()).sum();
        let ids: usize = self.free_ids.values().map(|ids| ids.capacity() * 4).sum();
        let Seen { groups: seen, rows: seen_rows, tree_rows, spare } = &self.seen;
        let seen = (seen.capacity() + tree_rows.capacity() + spare.capacity()) * 4 + seen_rows.capacity() * 16;
        columns + groups + rows + ids + seen + self.deadlines.bytes()
    }

    /// A timer's group, and its number there.
    pub fn place_of(&self, timer: u32) -> Result<(u32, u32), QueueError> {
        self.known(&[timer])?;
        let group = self.home[timer as usize];
        Ok((group, timer - self.groups[group as usize].first))
    }

    /// The compare value that a timer is armed with; `None` for one that isn't.
    pub fn cval(&self, timer: u32) -> Result<Option<u64>, QueueError> {
        self.known(&[timer])?;
        let (row, lane) = place(timer);
        Ok((self.armed[row] >> lane & 1 == 1).then_some(self.cvals[row].0[lane]))
    }

    fn group(&self, group: u32) -> Result<&Group, QueueError> {
        let known = self.groups.get(group as usize).filter(|known| known.timers > 0);
        known.ok_or(QueueError::NoSuchGroup { group })
    }

    fn known(&self, timers: &[u32]) -> Result<(), QueueError> {
        let unknown = timers.iter().find(|timer| self.home.get(**timer as usize).is_none_or(|home| *home == NO_GROUP));
        unknown.map_or(Ok(()), |timer| Err(QueueError::NoSuchTimer { timer: *timer }))
    }

    fn take_ids(&mut self, timers: u32) -> Result<u32, QueueError> {
        let too_many = QueueError::TooManyTimers { timers, ids: self.home.len() };
        if timers > u32::MAX - 7 {
            return Err(too_many);
        }
        let size = footprint(timers);
        if let Some(first) = self.free_ids.get_mut(&size).and_then(Vec::pop) {
            return Ok(first);
        }
        let first = self.home.len();
        let end = first + (size as usize).max(ROW);
        // The last id stays free, so that a range of ids has an end.
        if u32::try_from(end).is_err() {
            return Err(too_many);
        }
        self.cvals.resize(end / ROW, Row::default());
        self.armed.resize(end / ROW, 0);
        self.home.resize(end, NO_GROUP);
        if (size as usize) < ROW {
            // The rest of the row is for more groups of this size, the lowest ids first.
            let rest = (first + size as usize..end).rev().step_by(size as usize);
            self.free_ids.entry(size).or_default().extend(rest.map(|last| narrow(last) + 1 - size));
        }
        Ok(narrow(first))
    }

    /// Writes a compare value, and has the trees know of it as far up as it changes anything.
    fn put(&mut self, timer: u32, cval: u64) {
        let (row, lane) = place(timer);
        let old = core::mem::replace(&mut self.cvals[row].0[lane], cval);
        let number = self.home[timer as usize];
        let group = &mut self.groups[number as usize];
        if let Some(tree) = &mut group.tree {
            let index = row - group.first as usize / ROW;
            let held = tree.value(index);
            let least = if cval < held {
                cval
            } else if old == held {
                self.cvals[row].least()
            } else {
                return;
            };
            if tree.set(index, least) || group.armed <= 1 {
                self.retime(number);
            }
            return;
        }
        // What the deadlines hold may be early where it has passed: whoever looks at it then looks at the group.
        let held = self.deadlines.value(number as usize);
        let armed = self.armed[row] >> lane & 1 == 1;
        let deadline = if armed { group.deadline_of(cval, self.now) } else { NONE };
        if deadline < held {
            self.deadlines.set(number as usize, deadline);
        } else if group.deadline_of(old, self.now) == held {
            self.retime(number);
        }
    }

    fn retime(&mut self, group: u32) {
        let group = group as usize;
        self.deadlines.set(group, self.groups[group].deadline(&self.cvals, self.now));
    }

    /// Time goes on, and deadlines stay where they are; where it went back, every group is looked at anew.
    fn look_from(&mut self, now: HostCount) {
        let back = now < self.now;
        self.now = now;
        if back {
            for group in 0..narrow(self.groups.len()) {
                self.retime(group);
            }
        }
    }
}

/// How many ids a group takes: a part of a row that doesn't straddle it, or rows.
const fn footprint(timers: u32) -> u32 {
    if timers as usize <= ROW { timers.next_power_of_two() } else { timers.next_multiple_of(LANES) }
}

/// A timer's row, and its place there.
const fn place(timer: u32) -> (usize, usize) {
    (timer as usize / ROW, timer as usize % ROW)
}

/// An index that stands for an id or a group: `take_ids` has seen that it fits.
fn narrow(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(NO_GROUP)
}

const fn same_length(named: &[u32], values: &[u64]) -> Result<(), QueueError> {
    if named.len() == values.len() {
        Ok(())
    } else {
        Err(QueueError::Unequal { named: named.len(), values: values.len() })
    }
}

/// By deadline, then by id: as one word each where the deadlines lie near each other, since words sort without branches.
fn order(fired: &mut [Fired]) {
    let low = fired.iter().map(|fired| fired.deadline).min().unwrap_or(0);
    let high = fired.iter().map(|fired| fired.deadline).max().unwrap_or(0);
    if (high - low) >> 32 != 0 {
        fired.sort_unstable();
        return;
    }
    let mut words: Vec<u64> = fired.iter().map(|it| (it.deadline - low) << 32 | u64::from(it.timer)).collect();
    words.sort_unstable();
    for (it, word) in fired.iter_mut().zip(words) {
        *it = Fired { deadline: low + (word >> 32), timer: (word & 0xffff_ffff) as u32 };
    }
}
