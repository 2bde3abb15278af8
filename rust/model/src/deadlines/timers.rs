//! Timers of the deadline queue by id, and the blocks of ids that VMs have.

use crate::deadlines::min_tree::{self, NONE, ROW, Row, each};
use guestclock_core::arch::arm64::timer::{can_raise, ticks_until};
use guestclock_core::time::{HostCount, Offset};
use std::collections::TryReserveError;
use std::ops::Range;

/// Group of a VM's timers: a part of a row, which doesn't straddle it, or whole rows followed by those of their tree.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) offset: Offset,
    /// First id of the group, which a removed group keeps.
    pub(super) first: u32,
    /// Number of timers; 0 if the group was removed.
    pub(super) timers: u32,
}

impl Group {
    /// Number of rows with the group's timers.
    pub(super) const fn leaves(&self) -> usize {
        (self.timers as usize).div_ceil(ROW)
    }

    /// The rows of the group, in full or in part, including those of its tree.
    pub(super) fn rows(&self) -> Range<usize> {
        let first = self.first as usize / ROW;
        first..first + min_tree::size(self.leaves())
    }

    /// The row that counts the armed timers: the first row above the timers.
    pub(super) const fn counting(&self) -> usize {
        self.first as usize / ROW + self.leaves()
    }

    /// Returns whether the group's tree has levels above the timers.
    pub(super) const fn has_tree(&self) -> bool {
        self.timers as usize > min_tree::TOP * ROW
    }

    /// Bits of the group's places in a row: the whole row, or the part of its only row.
    pub(super) const fn lanes(&self) -> u8 {
        let lanes: u32 = if self.timers < 8 { (1 << self.timers) - 1 } else { 0xff };
        (lanes << (self.first % 8) & 0xff) as u8
    }

    /// Returns the host count at which a compare value of the group is reached, as of `now`; [`NONE`] if it isn't
    /// within 64 bits.
    pub(super) fn deadline_of(&self, cval: u64, now: HostCount) -> u64 {
        now.0.saturating_add(ticks_until(cval, now.guest(self.offset)))
    }
}

/// Owners of a row's timers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Home {
    /// The row's group, or its first group. In the first row of a tree: the number of armed timers below it.
    pub(super) number: u32,
    /// Armed timers, a bit each, since the compare value of an armed timer can be [`NONE`] too.
    pub(super) armed: u8,
    /// Number of places of each group, as a power of two.
    pub(super) width: u8,
    /// Bit of each held group's first place. A held group gives out no timer.
    held: u8,
}

impl Home {
    /// Returns the group of a place in the row.
    pub(super) const fn group(self, lane: usize) -> usize {
        self.number as usize + (lane >> self.width)
    }
}

const ALL_TIMERS: &str = "a compare value and a control for each timer of the group";

/// Columns of all timers.
#[derive(Clone, Debug, Default)]
pub(super) struct TimerRows {
    /// Compare values by id, followed by the rows of the group's tree; [`NONE`] for a timer that isn't armed, or
    /// doesn't exist.
    pub(super) cvals: Vec<Row>,
    pub(super) homes: Vec<Home>,
}

impl TimerRows {
    /// Returns a group's next deadline as a host count, as of `now`; [`NONE`] if it has none, none within 64 bits, or
    /// is held.
    pub(super) fn deadline(&self, group: &Group, now: HostCount) -> u64 {
        if self.is_held(group) {
            return NONE;
        }
        let least = self.least(group);
        let silent = least == NONE && !self.any_armed(group);
        if silent { NONE } else { group.deadline_of(least, now) }
    }

    /// Returns whether a group is held.
    pub(super) fn is_held(&self, group: &Group) -> bool {
        let (row, lane) = place(group.first);
        self.homes[row].held >> lane & 1 == 1
    }

    /// Holds a group, or lets it go. Returns the number of its timers that are armed; `None` if nothing changes.
    pub(super) fn hold(&mut self, group: &Group, held: bool) -> Option<usize> {
        let (row, lane) = place(group.first);
        let home = &mut self.homes[row];
        let was = home.held >> lane & 1 == 1;
        home.held ^= u8::from(was != held) << lane;
        (was != held).then(|| self.armed(group))
    }

    /// Number of a group's armed timers.
    pub(super) fn armed(&self, group: &Group) -> usize {
        if group.has_tree() {
            return self.homes[group.counting()].number as usize;
        }
        let (row, lanes) = (group.first as usize / ROW, group.lanes());
        let armed = |home: &Home| (home.armed & lanes).count_ones() as usize;
        // Most groups have one row, for which no loop is set up.
        if group.timers as usize <= ROW {
            return armed(&self.homes[row]);
        }
        self.homes[row..row + group.leaves()].iter().map(armed).sum()
    }

    /// Rewrites every timer of a group from its compare value and its control, in the order of the ids: it is armed where
    /// the control lets it raise its line. Holds the group, or lets it go. Returns the numbers of timers that were armed
    /// and not held before, and that are now.
    pub(super) fn fill(
        &mut self,
        group: &Group,
        held: bool,
        timers: impl Iterator<Item = (u64, u8)>,
    ) -> (usize, usize) {
        if group.timers as usize <= ROW {
            return self.fill_row(group, held, timers);
        }
        let before = if self.is_held(group) { 0 } else { self.armed(group) };
        let (first, _) = place(group.first);
        let (mut at, mut armed) = (0, 0);
        timers.for_each(|(cval, ctl)| {
            let (row, lane, arms) = (first + at / ROW, at % ROW, can_raise(ctl.into()));
            self.cvals[row].0[lane] = if arms { cval } else { NONE };
            let home = &mut self.homes[row].armed;
            *home = *home & !(1 << lane) | u8::from(arms) << lane;
            armed += usize::from(arms);
            at += 1;
        });
        assert_eq!(at, group.timers as usize, "{ALL_TIMERS}");
        if group.has_tree() {
            min_tree::rebuild(&mut self.cvals[group.rows()], group.leaves());
            self.homes[group.counting()].number = u32::try_from(armed).unwrap_or(group.timers);
        }
        self.hold(group, held);
        (before, if held { 0 } else { armed })
    }

    /// Rewrites every timer of a group that has a part of a row: see [`fill`](Self::fill).
    fn fill_row(&mut self, group: &Group, held: bool, timers: impl Iterator<Item = (u64, u8)>) -> (usize, usize) {
        let (row, first) = place(group.first);
        let (values, home, lanes) = (&mut self.cvals[row].0, &mut self.homes[row], group.lanes());
        let (mut at, mut armed) = (first, 0_u8);
        timers.for_each(|(cval, ctl)| {
            // The modulus changes nothing, as the assertion says, and spares a check for each timer.
            let (lane, arms) = (at % ROW, can_raise(ctl.into()));
            values[lane] = if arms { cval } else { NONE };
            armed |= u8::from(arms) << lane;
            at += 1;
        });
        assert_eq!(at - first, group.timers as usize, "{ALL_TIMERS}");
        let (was_armed, was_held) = (home.armed & lanes, home.held >> first & 1 == 1);
        home.armed = home.armed & !lanes | armed;
        home.held = home.held & !(1 << first) | u8::from(held) << first;
        let pending = |armed: u8, held: bool| if held { 0 } else { armed.count_ones() as usize };
        (pending(was_armed, was_held), pending(armed, held))
    }

    /// Returns a group's least compare value.
    fn least(&self, group: &Group) -> u64 {
        let (row, lane) = place(group.first);
        if group.timers as usize > ROW {
            let top = min_tree::top(group.leaves());
            return self.cvals[row..][top].iter().fold(NONE, |least, row| least.min(row.least()));
        }
        let values = &self.cvals[row];
        match group.timers {
            5.. => values.least(),
            // Of three timers the fourth place is NONE.
            3.. => min_tree::least(&values.0[lane..lane + 4]),
            timers => min_tree::least(&values.0[lane..lane + timers as usize]),
        }
    }

    fn any_armed(&self, group: &Group) -> bool {
        let rows = group.rows();
        if group.has_tree() {
            return self.homes[group.counting()].number > 0;
        }
        self.homes[rows].iter().any(|home| home.armed & group.lanes() != 0)
    }

    /// Updates the number of armed timers of a group that is too large to look through.
    pub(super) fn count(&mut self, group: &Group, armed: u32, disarmed: u32) {
        if group.has_tree() {
            let counted = &mut self.homes[group.counting()].number;
            *counted = *counted + armed - disarmed;
        }
    }

    /// Adds rows for a block of groups of `size` ids each. The first group gets the number `number`.
    pub(super) fn grow(&mut self, rows: usize, number: u32, size: usize) -> Result<(), TryReserveError> {
        let more = rows - self.cvals.len();
        grow(&mut self.cvals, more)?;
        grow(&mut self.homes, more)?;
        self.cvals.resize(rows, Row::default());
        let width = (size.min(ROW).ilog2() & 3) as u8;
        self.homes.resize(rows, Home { number, armed: 0, width, held: 0 });
        Ok(())
    }

    pub(super) fn reserve(&mut self, rows: usize) -> Result<(), TryReserveError> {
        self.cvals.try_reserve_exact(rows)?;
        self.homes.try_reserve_exact(rows)
    }

    /// Starts the count of a group's armed timers.
    pub(super) fn add(&mut self, group: &Group) {
        if group.has_tree() {
            self.homes[group.counting()].number = 0;
        }
    }

    /// Disarms a group.
    pub(super) fn clear(&mut self, group: &Group) {
        for (row, home) in self.cvals[group.rows()].iter_mut().zip(&mut self.homes[group.rows()]) {
            home.armed &= !group.lanes();
            each(group.lanes(), |lane| row.0[lane as usize] = NONE);
        }
    }

    /// Memory of the columns in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.cvals.capacity() * size_of::<Row>() + self.homes.capacity() * size_of::<Home>()
    }

    /// Writes a compare value into its row and its group's tree. Returns the old value, and whether the group's least
    /// value may have changed.
    pub(super) fn put(&mut self, group: &Group, timer: u32, cval: u64) -> (u64, bool) {
        let rows = &mut self.cvals[group.first as usize / ROW..];
        min_tree::set(rows, group.leaves(), (timer - group.first) as usize + group.first as usize % ROW, cval)
    }
}

/// Returns a timer's row, and its place in the row.
pub(super) const fn place(timer: u32) -> (usize, usize) {
    (timer as usize / ROW, timer as usize % ROW)
}

/// Reserves room for `more` rows, and at least for a quarter of the present ones: doubling would waste half of the
/// memory.
pub(super) fn grow<T>(column: &mut Vec<T>, more: usize) -> Result<(), TryReserveError> {
    if column.capacity() - column.len() < more {
        column.try_reserve_exact(more.max(column.len() / 4))?;
    }
    Ok(())
}
