//! The deadline queue: timers of many VMs, those that are due, and the next deadline.
//!
//! A timer belongs to a group, which is a VM. Its compare value is in guest ticks, and the group's offset converts the
//! host's counter to them. The comparison is KVM's: unsigned, on guest counts, without a wrap
//! (`kvm_timer_compute_delta` and `kvm_timer_pending` in arch/arm64/kvm/arch_timer.c). So a timer is due while `now -
//! offset`, modulo 2^64, is at or past its compare value. Its deadline is a distance from `now`, not the sum of offset
//! and compare value: when a guest's count wraps, timers that were due no longer are.
//!
//! The queue is two levels of min-trees. A group's compare values are in rows of eight, a cache line each. A large
//! group has a min-tree over these rows behind them, in guest ticks. Another min-tree holds each group's next deadline
//! in host ticks, so a change of an offset updates one leaf of it. docs/performance.md has the reasons for this layout,
//! with figures.

use crate::deadlines::min_tree::{self, MinTree, NONE, Path, ROW, Row, each, touch};
use crate::deadlines::timers::{Group, TimerRows, grow, place};
use guestclock_core::time::{GuestCount, HostCount, NO_DEADLINE, Offset};
use std::collections::{BTreeMap, TryReserveError};
use std::ops::Range;

/// A timer that fired.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Fired {
    /// Deadline as a count of the host's counter; 0 if it was before the first count.
    pub deadline: u64,
    /// Id of the timer.
    pub timer: u32,
}

/// Refusal of the queue, which stays as it was.
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
    /// The columns of a batch differ in length.
    #[error("a batch has as many values as it names, and these are {values} for {named}")]
    Unequal {
        /// Number of timers or groups.
        named: usize,
        /// Number of compare values or offsets.
        values: usize,
    },
    /// The group has no timers.
    #[error("a group has at least one timer")]
    EmptyGroup,
    /// Ids would exceed 32 bits.
    #[error("the ids of {timers} more timers don't fit in 32 bits: the queue has handed out {ids}")]
    TooManyTimers {
        /// Number of timers to add.
        timers: u32,
        /// Number of ids in use.
        ids: usize,
    },
    /// There is no memory for the group.
    #[error("there is no memory for {timers} more timers")]
    NoMemory {
        /// Number of timers to add.
        timers: u32,
    },
}

/// Refusal of [`DeadlineQueue::expire_at_most`]: every timer is still armed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotTaken {
    /// More timers are due than the caller has room for.
    #[error("{due} timers are due, for which there is no room")]
    More {
        /// Number of timers that are due.
        due: usize,
    },
    /// There is no memory for the timers.
    #[error("there is no memory for the timers that are due, and each of them is still armed")]
    NoMemory(#[from] TryReserveError),
}

/// Timers of many groups, and their deadlines.
///
/// ```
/// use guestclock_core::time::{HostCount, Offset};
/// use guestclock_model::deadlines::{DeadlineQueue, Fired};
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
/// # Ok::<(), guestclock_model::deadlines::QueueError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct DeadlineQueue {
    timers: TimerRows,
    groups: Vec<Group>,
    /// Next deadline of each group: a host count before which none of its timers is due, and at which one may be.
    deadlines: MinTree,
    /// Host count as of which the deadlines were computed.
    now: HostCount,
    pending: usize,
    seen: Seen,
    /// Groups whose deadline has to be recomputed; none between two calls of other modules' code.
    stale: Vec<u32>,
    /// Removed groups' numbers to reuse, by the number of ids of the group.
    free: BTreeMap<usize, Vec<u32>>,
}

/// Largest number of timers, or of groups or rows that are looked through for them, for which the scratch memory of a call
/// is kept. A call with more frees it, since later calls rarely need as much.
pub(crate) const KEPT: usize = 1024;

/// Scratch memory of `expire`.
#[derive(Clone, Debug, Default)]
struct Seen {
    groups: Path,
    /// Rows of groups without a tree.
    rows: Vec<SeenRow>,
    /// Groups with a tree.
    trees: Vec<u32>,
    timers: Path,
    words: Vec<u64>,
}

/// Result of [`DeadlineQueue::find`].
struct Found {
    /// Number of timers that are due in groups without a tree.
    in_rows: usize,
    /// Number of armed timers in groups with a tree that has one which is due.
    in_trees: usize,
}

/// A row with its group's guest count.
#[derive(Clone, Copy, Debug)]
struct SeenRow {
    guest: GuestCount,
    row: u32,
    lanes: u8,
}

impl DeadlineQueue {
    /// Returns a queue without groups.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a queue without groups whose deadlines are computed as of `now`.
    pub(crate) fn as_of(now: HostCount) -> Self {
        Self { now, ..Self::default() }
    }

    /// Number of armed timers, without those of held groups.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.pending
    }

    /// Returns whether no timer is armed, but for those of held groups.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.pending == 0
    }

    /// Adds a group of `timers` disarmed timers, and returns its number.
    ///
    /// The ids of a group are consecutive, but those of two groups may have a gap between them: no group's row
    /// straddles a cache line.
    pub fn add_group(&mut self, timers: u32, offset: Offset) -> Result<u32, QueueError> {
        if timers == 0 {
            return Err(QueueError::EmptyGroup);
        }
        let number = match self.free.get_mut(&footprint(timers)).and_then(Vec::pop) {
            Some(number) => number,
            None => self.add_block(timers)?,
        };
        let group = &mut self.groups[number as usize];
        (group.timers, group.offset) = (timers, offset);
        self.timers.add(group);
        Ok(number)
    }

    /// Removes a group and its timers. Groups that are added later reuse its number and its ids.
    pub fn remove_group(&mut self, group: u32) -> Result<(), QueueError> {
        self.group(group)?;
        self.hold(group, true)?;
        let gone = &mut self.groups[group as usize];
        self.timers.clear(gone);
        self.timers.hold(gone, false);
        self.free.entry(footprint(gone.timers)).or_default().push(group);
        gone.timers = 0;
        Ok(())
    }

    /// Holds a group, or lets it go. A held group's timers can be armed and disarmed, and none is due until it is let go.
    pub fn hold(&mut self, group: u32, held: bool) -> Result<(), QueueError> {
        self.group(group)?;
        self.hold_one_of_many(group, held);
        self.settle();
        Ok(())
    }

    /// Reserves exactly the room for groups of so many timers each.
    pub(crate) fn reserve(&mut self, groups: impl Iterator<Item = u32>) -> Result<(), TryReserveError> {
        let mut by_size: BTreeMap<usize, usize> = BTreeMap::new();
        for timers in groups {
            *by_size.entry(footprint(timers)).or_default() += 1;
        }
        let (mut rows, mut more) = (0, 0);
        for (size, groups) in by_size {
            let in_a_block = (ROW / size).max(1);
            let blocks = groups.div_ceil(in_a_block);
            rows += blocks * size.div_ceil(ROW);
            more += blocks * in_a_block;
        }
        self.timers.reserve(rows)?;
        self.groups.try_reserve_exact(more)?;
        self.deadlines.grow(self.groups.len() + more)
    }

    /// Holds a group, or lets it go, as one of many: [`settle`](Self::settle) comes after the last.
    pub(crate) fn hold_one_of_many(&mut self, group: u32, held: bool) {
        let known = &self.groups[group as usize];
        if let Some(armed) = self.timers.hold(known, held) {
            self.pending = if held { self.pending - armed } else { self.pending + armed };
            self.is_stale(group);
        }
    }

    /// Sets the offset of a group, as one of many: [`settle`](Self::settle) comes after the last. Returns whether it was
    /// another.
    pub(crate) fn move_one_of_many(&mut self, group: u32, offset: Offset) -> bool {
        let moved = core::mem::replace(&mut self.groups[group as usize].offset, offset) != offset;
        if moved {
            self.is_stale(group);
        }
        moved
    }

    /// Sets the offset of a group, holds it or lets it go, and rewrites every timer from its compare value and its
    /// control, in the order of the ids, as one of many: [`settle`](Self::settle) comes after the last.
    pub(crate) fn rewrite_one_of_many(
        &mut self,
        group: u32,
        offset: Offset,
        held: bool,
        timers: impl Iterator<Item = (u64, u8)>,
    ) {
        let known = &mut self.groups[group as usize];
        known.offset = offset;
        let (before, now) = self.timers.fill(known, held, timers);
        self.pending = self.pending + now - before;
        self.is_stale(group);
    }

    fn is_stale(&mut self, group: u32) {
        if self.stale.last() != Some(&group) {
            self.stale.push(group);
        }
    }

    /// Number of a group's armed timers, held or not.
    pub(crate) fn armed(&self, group: u32) -> usize {
        self.timers.armed(&self.groups[group as usize])
    }

    /// Recomputes the deadlines of the groups that were changed as some of many.
    pub(crate) fn settle(&mut self) {
        // Then the levels above them are computed once, and not up from each.
        let many = self.stale.len() * ROW > self.groups.len();
        for group in &self.stale {
            let number = *group as usize;
            let deadline = self.timers.deadline(&self.groups[number], self.now);
            if many {
                self.deadlines.rows[number / ROW].0[number % ROW] = deadline;
            } else {
                self.deadlines.set(number, deadline);
            }
        }
        if many {
            self.deadlines.rebuild();
        }
        self.stale.clear();
        self.stale.shrink_to(KEPT);
    }

    /// Returns a timer's group, and the timer's index in it.
    pub fn place_of(&self, timer: u32) -> Result<(u32, u32), QueueError> {
        let home = self.timers.homes.get(timer as usize / ROW).map(|home| home.group(timer as usize % ROW));
        let found = home.and_then(|number| {
            let group = self.groups.get(number)?;
            let index = timer.wrapping_sub(group.first);
            (index < group.timers).then_some((narrow(number), index))
        });
        found.ok_or(QueueError::NoSuchTimer { timer })
    }

    /// The compare value of an armed timer; `None` if it isn't armed.
    pub fn cval(&self, timer: u32) -> Result<Option<u64>, QueueError> {
        self.place_of(timer)?;
        let (row, lane) = place(timer);
        let armed = self.timers.homes[row].armed >> lane & 1 == 1;
        Ok(armed.then_some(self.timers.cvals[row].0[lane]))
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

    /// Sets a group's offset. This moves the deadlines of all its timers, without writing to the timers.
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
            self.move_one_of_many(*group, Offset(*offset));
        }
        self.settle();
        Ok(())
    }

    /// Arms timers with compare values, in this order. A timer that is already armed gets the new value.
    pub fn arm(&mut self, timers: &[u32], cvals: &[u64]) -> Result<(), QueueError> {
        same_length(timers, cvals)?;
        self.known(timers)?;
        for (timer, cval) in timers.iter().zip(cvals) {
            self.put::<true>(*timer, *cval);
        }
        Ok(())
    }

    /// Disarms timers. A timer that isn't armed stays disarmed.
    pub fn disarm(&mut self, timers: &[u32]) -> Result<(), QueueError> {
        self.known(timers)?;
        for timer in timers {
            self.put::<false>(*timer, NONE);
        }
        Ok(())
    }

    /// Returns the next deadline as a host count: `now` if a timer is due, [`NO_DEADLINE`] if none is armed. A deadline
    /// past the counter's last count is held just below that, as in [`deadline`](guestclock_core::time::deadline).
    pub fn next_deadline(&mut self, now: HostCount) -> u64 {
        self.look_from(now);
        if self.pending == 0 {
            return NO_DEADLINE;
        }
        while self.deadlines.least() <= now.0 {
            let group = min_tree::first(&self.deadlines.rows, self.deadlines.leaves);
            // The known deadline has passed. No timer is due, though, if the guest's count has wrapped or the timer was
            // moved since.
            let actual = self.timers.deadline(&self.groups[group], now);
            if actual <= now.0 {
                return now.0.min(NO_DEADLINE - 1);
            }
            self.deadlines.set(group, actual);
        }
        self.deadlines.least().min(NO_DEADLINE - 1)
    }

    /// Disarms the timers that are due, and replaces the content of `fired` with them, in the order of their deadlines
    /// and then of their ids.
    ///
    /// # Panics
    ///
    /// Without memory for them. [`expire_at_most`](Self::expire_at_most) takes none then.
    pub fn expire(&mut self, now: HostCount, fired: &mut Vec<Fired>) {
        self.expire_at_most(usize::MAX, now, fired).expect("there is memory for the timers that are due");
    }

    /// Does as [`expire`](Self::expire) does, if no more than `most` timers are due. All memory is reserved first, so
    /// that a refusal leaves every timer armed.
    pub fn expire_at_most(&mut self, most: usize, now: HostCount, fired: &mut Vec<Fired>) -> Result<(), NotTaken> {
        self.expire_with_room(most, now, fired, |_| Ok(()))
    }

    /// Does as [`expire_at_most`](Self::expire_at_most) does; `room` reserves the caller's own memory for so many timers
    /// in all, before they are taken.
    pub(crate) fn expire_with_room(
        &mut self,
        most: usize,
        now: HostCount,
        fired: &mut Vec<Fired>,
        mut room: impl FnMut(usize) -> Result<(), TryReserveError>,
    ) -> Result<(), NotTaken> {
        let Found { in_rows, in_trees } = self.find(now)?;
        let counts = in_rows + in_trees > most;
        if counts {
            let due = in_rows + self.due_in_trees(now)?;
            if due > most {
                return Err(NotTaken::More { due });
            }
        }
        fired.clear();
        fired.try_reserve(in_rows)?;
        room(in_rows)?;
        // The path into the only tree is known then.
        let known = counts && self.seen.trees.len() == 1;
        self.take(now, fired, known, room)
    }

    /// Number of timers that are due.
    pub fn due(&mut self, now: HostCount) -> Result<usize, NotTaken> {
        Ok(self.find(now)?.in_rows + self.due_in_trees(now)?)
    }

    /// Finds the rows and trees with timers that are due.
    fn find(&mut self, now: HostCount) -> Result<Found, NotTaken> {
        self.look_from(now);
        let Self { timers, groups, deadlines, seen, .. } = self;
        // Several short passes: the reads of many groups or rows overlap, instead of waiting for each other.
        seen.rows.clear();
        seen.trees.clear();
        let numbers = seen.groups.take(&deadlines.rows, deadlines.leaves, now.0)?;
        // At the last count, the places behind the last group are due too.
        let due = || numbers.iter().map_while(|number| Some((*number, groups.get(*number as usize)?)));
        // At the last count, so are held groups.
        let held = |timers: &TimerRows, group: &Group| now.0 == NONE && group.timers > 0 && timers.is_held(group);
        let (mut in_rows, mut in_trees) = (0, 0);
        touch(due().map(|(_, group)| group.timers.into()));
        for (number, group) in due() {
            if held(timers, group) {
                continue;
            }
            if group.has_tree() {
                in_trees += timers.armed(group);
                seen.trees.try_reserve(1)?;
                seen.trees.push(number);
                continue;
            }
            let (guest, lanes) = (now.guest(group.offset), group.lanes());
            for row in group.rows() {
                seen.rows.try_reserve(1)?;
                seen.rows.push(SeenRow { guest, row: narrow(row), lanes });
            }
        }
        touch(
            seen.rows
                .iter()
                .map(|it| timers.cvals[it.row as usize].0[0] ^ u64::from(timers.homes[it.row as usize].armed)),
        );
        for it in &mut seen.rows {
            let row = it.row as usize;
            it.lanes &= timers.cvals[row].due(it.guest.0) & timers.homes[row].armed;
            in_rows += it.lanes.count_ones() as usize;
        }
        Ok(Found { in_rows, in_trees })
    }

    /// Number of timers that are due in the trees that [`find`](Self::find) has found.
    fn due_in_trees(&mut self, now: HostCount) -> Result<usize, NotTaken> {
        let Self { timers, groups, seen, .. } = self;
        let mut due = 0;
        for number in &seen.trees {
            let group = &groups[*number as usize];
            let rows = group.rows();
            let homes = &timers.homes[rows.clone()];
            let found = seen.timers.take(&timers.cvals[rows], group.leaves(), now.guest(group.offset).0)?;
            let places = found.iter().map(|index| place(*index));
            due += places.filter(|(row, lane)| homes[*row].armed >> lane & 1 == 1).count();
        }
        Ok(due)
    }

    /// Disarms the timers that are due in what [`find`](Self::find) has found: `fired` has room for those of rows, and
    /// `known` says that the path into the only tree is known. A tree for which there is no memory keeps its timers, which
    /// stay due: an error only if no other timer was taken.
    fn take(
        &mut self,
        now: HostCount,
        fired: &mut Vec<Fired>,
        known: bool,
        mut room: impl FnMut(usize) -> Result<(), TryReserveError>,
    ) -> Result<(), NotTaken> {
        let Self { timers, groups, deadlines, pending, seen, .. } = self;
        let mut left = Ok(());
        let fire = |fired: &mut Vec<Fired>, timer: u32, cval: &mut u64, guest: GuestCount| {
            let late = guest.0 - core::mem::replace(cval, NONE);
            fired.push(Fired { deadline: now.0.saturating_sub(late), timer });
        };
        for SeenRow { guest, row, lanes: due } in &seen.rows {
            let cvals = &mut timers.cvals[*row as usize].0;
            timers.homes[*row as usize].armed &= !due;
            each(*due, |lane| fire(fired, row << 3 | lane, &mut cvals[lane as usize], *guest));
        }
        for number in &seen.trees {
            let group = &groups[*number as usize];
            let (guest, rows) = (now.guest(group.offset), group.rows());
            let (cvals, homes) = (&mut timers.cvals[rows.clone()], &mut timers.homes[rows]);
            let ready = if known { Ok(()) } else { seen.timers.take(cvals, group.leaves(), guest.0).map(|_| ()) };
            let due = seen.timers.found();
            let ready = ready.and_then(|()| fired.try_reserve(due.len())).and_then(|()| room(fired.len() + due.len()));
            if let Err(error) = ready {
                left = Err(error.into());
                continue;
            }
            touch(due.iter().map(|index| homes[*index as usize / ROW].armed.into()));
            let mut disarmed = 0;
            for index in due {
                let (row, lane) = place(*index);
                if homes[row].armed >> lane & 1 == 1 {
                    homes[row].armed &= !(1 << lane);
                    disarmed += 1;
                    fire(fired, group.first + index, &mut cvals[row].0[lane], guest);
                }
            }
            seen.timers.renew(cvals);
            timers.count(group, 0, disarmed);
        }
        *pending -= fired.len();
        let numbers = seen.groups.found();
        for (number, group) in numbers.iter().map_while(|number| Some((*number, groups.get(*number as usize)?))) {
            let (row, lane) = place(number);
            deadlines.rows[row].0[lane] = timers.deadline(group, now);
        }
        seen.groups.renew(&mut deadlines.rows);
        order(fired, &mut seen.words);
        if fired.len().max(seen.groups.found().len()).max(seen.rows.len()) > KEPT {
            *seen = Seen::default();
        }
        if fired.is_empty() { left } else { Ok(()) }
    }

    /// Memory of the queue in bytes, including reserved capacity.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let groups = self.groups.capacity() * size_of::<Group>() + self.deadlines.rows.capacity() * size_of::<Row>();
        let free: usize = self.free.values().map(|numbers| numbers.capacity() * 4).sum();
        let Seen { groups: seen, rows, trees, timers, words } = &self.seen;
        let lists = rows.capacity() * size_of::<SeenRow>() + trees.capacity() * 4 + words.capacity() * 8;
        let lists = lists + self.stale.capacity() * 4;
        self.timers.bytes() + groups + free + seen.bytes() + timers.bytes() + lists
    }

    fn group(&self, group: u32) -> Result<&Group, QueueError> {
        let known = self.groups.get(group as usize).filter(|known| known.timers > 0);
        known.ok_or(QueueError::NoSuchGroup { group })
    }

    fn known(&self, timers: &[u32]) -> Result<(), QueueError> {
        timers.iter().try_for_each(|timer| self.place_of(*timer).map(|_| ()))
    }

    /// Adds a block of ids for a group of `timers` timers, and returns its number. For small groups the block is a row
    /// of them.
    fn add_block(&mut self, timers: u32) -> Result<u32, QueueError> {
        let (first, size) = (self.timers.homes.len() * ROW, footprint(timers));
        let end = first + size.next_multiple_of(ROW);
        // The last id stays free, so that a range of ids has an end.
        if u32::try_from(end).is_err() {
            return Err(QueueError::TooManyTimers { timers, ids: first });
        }
        let number = narrow(self.groups.len());
        let blocks = (first..end).step_by(size);
        // All of the memory first, so that without it the queue stays as it was.
        let no_memory = |_| QueueError::NoMemory { timers };
        self.deadlines.grow(self.groups.len() + blocks.len()).map_err(no_memory)?;
        grow(&mut self.groups, blocks.len()).map_err(no_memory)?;
        self.timers.grow(end / ROW, number, size).map_err(no_memory)?;
        self.groups.extend(blocks.map(|first| Group { offset: Offset(0), first: narrow(first), timers: 0 }));
        let rest = number + 1..narrow(self.groups.len());
        if !rest.is_empty() {
            self.free.entry(size).or_default().extend(rest.rev());
        }
        Ok(number)
    }

    /// Arms a timer with a compare value, or disarms it, with [`NONE`]. Updates the trees as far up as the change
    /// reaches.
    fn put<const ARM: bool>(&mut self, timer: u32, cval: u64) {
        let (row, lane) = place(timer);
        let home = &mut self.timers.homes[row];
        let number = home.group(lane);
        let was = home.armed >> lane & 1 == 1;
        if ARM && !was {
            home.armed |= 1 << lane;
        } else if was && !ARM {
            home.armed &= !(1 << lane);
        } else if !ARM {
            return;
        }
        let group = &self.groups[number];
        let held = self.timers.is_held(group);
        if !held {
            self.pending = self.pending + usize::from(ARM && !was) - usize::from(!ARM);
        }
        let old = if group.has_tree() {
            self.timers.count(group, u32::from(ARM && !was), u32::from(!ARM));
            let (old, changed) = self.timers.put(group, timer, cval);
            // The tree can't tell an armed NONE from a disarmed timer.
            if !(changed || ARM && cval == NONE || was && old == NONE) {
                return;
            }
            old
        } else {
            core::mem::replace(&mut self.timers.cvals[row].0[lane], cval)
        };
        if held {
            return;
        }
        // The known deadline may be early once it has passed: readers then recompute it from the group.
        let known = self.deadlines.value(number);
        let deadline = if ARM { group.deadline_of(cval, self.now) } else { NONE };
        if deadline < known {
            self.deadlines.set(number, deadline);
        } else if was && group.deadline_of(old, self.now) == known {
            self.retime(number);
        }
    }

    fn retime(&mut self, group: usize) {
        self.deadlines.set(group, self.timers.deadline(&self.groups[group], self.now));
    }

    /// Advances the queue's time; deadlines stay valid. If time went back, every group's deadline is recomputed.
    fn look_from(&mut self, now: HostCount) {
        let back = now < self.now;
        self.now = now;
        if back {
            for (number, group) in self.groups.iter().enumerate() {
                self.deadlines.rows[number / ROW].0[number % ROW] = self.timers.deadline(group, now);
            }
            self.deadlines.rebuild();
        }
    }
}

/// Returns the number of ids that a group takes: a part of a row, which doesn't straddle it, or whole rows.
fn footprint(timers: u32) -> usize {
    let timers = timers as usize;
    if timers <= ROW { timers.next_power_of_two() } else { min_tree::size(timers.div_ceil(ROW)) * ROW }
}

/// Returns the index of an id or a group as `u32`: `add_block` has checked that it fits.
fn narrow(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

const fn same_length(named: &[u32], values: &[u64]) -> Result<(), QueueError> {
    if named.len() == values.len() {
        Ok(())
    } else {
        Err(QueueError::Unequal { named: named.len(), values: values.len() })
    }
}

/// Sorts by deadline, then by id. If the deadlines are close, each pair is packed into one word, since words sort
/// without branches.
fn order(fired: &mut [Fired], words: &mut Vec<u64>) {
    let low = fired.iter().map(|fired| fired.deadline).min().unwrap_or(0);
    let high = fired.iter().map(|fired| fired.deadline).max().unwrap_or(0);
    if (high - low) >> 32 != 0 {
        fired.sort_unstable();
        return;
    }
    words.clear();
    if words.try_reserve(fired.len()).is_err() {
        fired.sort_unstable();
        return;
    }
    words.extend(fired.iter().map(|it| (it.deadline - low) << 32 | u64::from(it.timer)));
    words.sort_unstable();
    for (it, word) in fired.iter_mut().zip(words) {
        *it = Fired { deadline: low + (*word >> 32), timer: (*word & 0xffff_ffff) as u32 };
    }
}
