//! The timers of the queue by their ids, and the blocks of ids that VMs have.

use crate::deadlines::min_tree::{self, NONE, ROW, Row, each};
use guestclock_core::arch::arm64::timer::ticks_until;
use guestclock_core::time::{HostCount, Offset};
use std::ops::Range;

/// The timers of a VM: a part of a row that doesn't straddle it, or whole rows, and behind them those of their tree.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) offset: Offset,
    /// Its first id, which it keeps when it is removed.
    pub(super) first: u32,
    /// How many timers: 0 where the group was removed.
    pub(super) timers: u32,
}

impl Group {
    /// How many rows its timers are in.
    pub(super) const fn leaves(&self) -> usize {
        (self.timers as usize).div_ceil(ROW)
    }

    /// The rows that it has a part of, those of its tree included.
    pub(super) fn rows(&self) -> Range<usize> {
        let first = self.first as usize / ROW;
        first..first + min_tree::size(self.leaves())
    }

    /// The row that counts what is armed: the first above its timers.
    pub(super) const fn counting(&self) -> usize {
        self.first as usize / ROW + self.leaves()
    }

    /// Whether its tree has levels above the timers.
    pub(super) const fn has_tree(&self) -> bool {
        self.timers as usize > min_tree::TOP * ROW
    }

    /// The places of its timers in a row: the whole of it, or the part that it has of its only one.
    pub(super) const fn lanes(&self) -> u8 {
        let lanes: u32 = if self.timers < 8 { (1 << self.timers) - 1 } else { 0xff };
        (lanes << (self.first % 8) & 0xff) as u8
    }

    /// When a compare value of its is reached, as a host count seen from `now`; [`NONE`] where that isn't within 64
    /// bits.
    pub(super) fn deadline_of(&self, cval: u64, now: HostCount) -> u64 {
        now.0.saturating_add(ticks_until(cval, now.guest(self.offset)))
    }
}

/// Whose the timers of a row are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Home {
    /// Their group, or the first of them. In the first row of a tree: how many are armed below it.
    pub(super) number: u32,
    /// Which of them are armed: a bit each, since a compare value can be [`NONE`] too.
    pub(super) armed: u8,
    /// How many places each group has, as a power of two.
    pub(super) width: u8,
}

impl Home {
    /// The group of a place of the row.
    pub(super) const fn group(self, lane: usize) -> usize {
        self.number as usize + (lane >> self.width)
    }
}

/// The columns of all timers.
#[derive(Clone, Debug, Default)]
pub(super) struct TimerRows {
    /// Compare values by id; [`NONE`] where a timer isn't armed, and where there is none. Behind a group's, its tree.
    pub(super) cvals: Vec<Row>,
    pub(super) homes: Vec<Home>,
}

impl TimerRows {
    /// A group's next deadline as a host count, seen from `now`; [`NONE`] where it has none, or none within 64 bits.
    pub(super) fn deadline(&self, group: &Group, now: HostCount) -> u64 {
        let least = self.least(group);
        if least == NONE && !self.any_armed(group) { NONE } else { group.deadline_of(least, now) }
    }

    /// A group's least compare value.
    fn least(&self, group: &Group) -> u64 {
        let (row, lane) = place(group.first);
        match group.timers {
            5..=8 => self.cvals[row].least(),
            timers @ 0..5 => min_tree::least(&self.cvals[row].0[lane..lane + timers as usize]),
            _ => {
                let top = min_tree::top(group.leaves());
                self.cvals[row..][top].iter().fold(NONE, |least, row| least.min(row.least()))
            }
        }
    }

    fn any_armed(&self, group: &Group) -> bool {
        let rows = group.rows();
        if group.has_tree() {
            return self.homes[group.counting()].number > 0;
        }
        self.homes[rows].iter().any(|home| home.armed & group.lanes() != 0)
    }

    /// Counts timers that are armed, or no longer, where a group's are too many to look at.
    pub(super) fn count(&mut self, group: &Group, armed: u32, disarmed: u32) {
        if group.has_tree() {
            let counted = &mut self.homes[group.counting()].number;
            *counted = *counted + armed - disarmed;
        }
    }

    /// Adds rows for a block of groups, the first of them of this number, each of so many ids.
    pub(super) fn grow(&mut self, rows: usize, number: u32, size: usize) {
        let more = rows - self.cvals.len();
        grow(&mut self.cvals, more);
        grow(&mut self.homes, more);
        self.cvals.resize(rows, Row::default());
        let width = (size.min(ROW).ilog2() & 3) as u8;
        self.homes.resize(rows, Home { number, armed: 0, width });
    }

    /// Begins to count what a group has armed.
    pub(super) fn add(&mut self, group: &Group) {
        if group.has_tree() {
            self.homes[group.counting()].number = 0;
        }
    }

    /// Disarms a group, and returns how many of its timers were armed.
    pub(super) fn clear(&mut self, group: &Group) -> usize {
        let mut armed = 0;
        for (row, home) in self.cvals[group.rows()].iter_mut().zip(&mut self.homes[group.rows()]) {
            armed += (home.armed & group.lanes()).count_ones() as usize;
            home.armed &= !group.lanes();
            each(group.lanes(), |lane| row.0[lane as usize] = NONE);
        }
        armed
    }

    /// The bytes that it holds.
    pub(super) fn bytes(&self) -> usize {
        self.cvals.capacity() * size_of::<Row>() + self.homes.capacity() * size_of::<Home>()
    }

    /// Writes a compare value into its row and its group's tree; returns what it was, and whether the group's least may
    /// be another.
    pub(super) fn put(&mut self, group: &Group, timer: u32, cval: u64) -> (u64, bool) {
        let rows = &mut self.cvals[group.first as usize / ROW..];
        min_tree::set(rows, group.leaves(), (timer - group.first) as usize + group.first as usize % ROW, cval)
    }
}

/// A timer's row, and its place there.
pub(super) const fn place(timer: u32) -> (usize, usize) {
    (timer as usize / ROW, timer as usize % ROW)
}

/// Makes room for more, and for a quarter of what there is: doubling would leave half of the memory for nothing.
pub(super) fn grow<T>(column: &mut Vec<T>, more: usize) {
    if column.capacity() - column.len() < more {
        column.reserve_exact(more.max(column.len() / 4));
    }
}
