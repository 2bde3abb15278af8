//! Min-tree with eight children a node: it keeps the least of many values while they change.
//!
//! The levels are the values, the least of every eight of them, the least of every eight of those, and so on, until a
//! few rows are left. All levels are in one slice of rows, the values' first. It holds no positions and no links, so it
//! is a seventh larger than the values alone. A change that doesn't change the least of its eight ends there.

use std::collections::TryReserveError;
use std::ops::Range;

/// Number of values in a row: a cache line's.
pub(super) const ROW: usize = 8;

/// The largest value, which means none: every other value is less.
pub(super) const NONE: u64 = u64::MAX;

/// Largest number of rows without a level above them.
pub(super) const TOP: usize = 4;

/// Eight values in one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Row(pub(super) [u64; ROW]);

impl Default for Row {
    fn default() -> Self {
        Self([NONE; ROW])
    }
}

impl Row {
    /// Returns the least value. It compares in pairs: from a chain LLVM makes branches, which nothing predicts.
    pub(super) fn least(&self) -> u64 {
        let pairs = [0, 2, 4, 6].map(|lane| self.0[lane].min(self.0[lane + 1]));
        pairs[0].min(pairs[1]).min(pairs[2].min(pairs[3]))
    }

    /// Returns a bit for each value that `limit` has reached.
    pub(super) fn due(&self, limit: u64) -> u8 {
        self.0.iter().enumerate().fold(0, |due, (lane, value)| due | u8::from(*value <= limit) << lane)
    }

    /// Puts the indices of the values that `limit` has reached behind `end`, and returns the new end; `row` is the
    /// row's own index. It has no branch: nothing predicts which of eight are due.
    fn reached(&self, limit: u64, row: u32, found: &mut [u32], end: usize) -> usize {
        let places = &mut found[end..end + ROW];
        let mut count = 0;
        for (lane, value) in (0..).zip(&self.0) {
            places[count % ROW] = row << 3 | lane;
            count += usize::from(*value <= limit);
        }
        end + count
    }
}

/// Calls `call` with the index of each bit that is set.
pub(super) fn each(mut bits: u8, mut call: impl FnMut(u32)) {
    while bits != 0 {
        call(bits.trailing_zeros());
        bits &= bits - 1;
    }
}

/// Reads a word of each of many distant rows or records, and does nothing else, so that many reads are in flight at
/// once. In a loop that does more, a core looks only a few rounds ahead.
pub(super) fn touch(words: impl Iterator<Item = u64>) {
    core::hint::black_box(words.fold(0, |all, word| all ^ word));
}

/// Returns the least value of a part of a row.
pub(super) fn least(values: &[u64]) -> u64 {
    values.iter().copied().fold(NONE, u64::min)
}

/// Returns the number of rows of the tree over `leaves` rows of values, including those.
pub(super) fn size(leaves: usize) -> usize {
    top(leaves).end
}

/// Returns the rows without a level above them.
pub(super) fn top(leaves: usize) -> Range<usize> {
    let mut level = 0..leaves;
    while level.len() > TOP {
        level = above(&level);
    }
    level
}

/// Returns the level above one.
fn above(level: &Range<usize>) -> Range<usize> {
    level.end..level.end + level.len().div_ceil(ROW)
}

/// Changes a value. Returns the old value, and whether a value in the top rows changed.
///
/// A written row is read only if its least value may have grown.
pub(super) fn set(rows: &mut [Row], leaves: usize, index: usize, value: u64) -> (u64, bool) {
    let (mut index, mut value, mut level) = (index, value, 0..leaves);
    let was = core::mem::replace(&mut rows[index / ROW].0[index % ROW], value);
    let mut old = was;
    while level.len() > TOP {
        index /= ROW;
        let row = level.start + index;
        level = above(&level);
        let held = rows[level.start + index / ROW].0[index % ROW];
        if value >= held {
            if old != held {
                return (was, false);
            }
            value = rows[row].least();
            if value == held {
                return (was, false);
            }
        }
        old = held;
        rows[level.start + index / ROW].0[index % ROW] = value;
    }
    (was, true)
}

/// Recomputes all levels from the values.
pub(super) fn rebuild(rows: &mut [Row], leaves: usize) {
    let mut level = 0..leaves;
    while level.len() > TOP {
        let above = above(&level);
        for (index, row) in level.enumerate() {
            rows[above.start + index / ROW].0[index % ROW] = rows[row].least();
        }
        level = above;
    }
}

/// Returns the index of the first of the least values.
pub(super) fn first(rows: &[Row], leaves: usize) -> usize {
    first_in(rows, &(0..leaves))
}

fn first_in(rows: &[Row], level: &Range<usize>) -> usize {
    let index = if level.len() > TOP {
        first_in(rows, &above(level))
    } else {
        (0..level.len()).min_by_key(|index| rows[level.start + index].least()).unwrap_or(0)
    };
    let row = &rows[level.start + index];
    let low = row.least();
    index * ROW + row.0.iter().position(|value| *value == low).unwrap_or(0)
}

/// Path from the top of a tree to the values that are due in it.
///
/// It goes level by level instead of value by value: the reads of one level don't wait for each other.
#[derive(Clone, Debug, Default)]
pub(super) struct Path {
    /// The levels, the values' first.
    levels: Vec<Range<usize>>,
    /// The rows on the path, counted within their levels, level after level from the top, and where those of each level
    /// end. Beyond the last end is scratch memory.
    rows: Vec<u32>,
    ends: Vec<usize>,
    /// The values that are due, and their number.
    found: Vec<u32>,
    count: usize,
}

impl Path {
    /// Finds all values that `limit` has reached, and returns their indices, in order.
    pub(super) fn take(&mut self, rows: &[Row], leaves: usize, limit: u64) -> Result<&[u32], TryReserveError> {
        let Self { levels, rows: way, ends, found, count } = self;
        levels.clear();
        levels.push(0..leaves);
        while let Some(level) = levels.last().filter(|level| level.len() > TOP) {
            levels.push(above(level));
        }
        let mut level = top(leaves);
        lengthen(way, TOP)?;
        way[..TOP].copy_from_slice(&[0, 1, 2, 3]);
        ends.clear();
        let (mut begin, mut end) = (0, level.len());
        for below in levels.iter().rev().skip(1) {
            ends.push(end);
            lengthen(way, end + (end - begin) * ROW)?;
            let (passed, next) = way.split_at_mut(end);
            let mut reached = all_reached(&rows[level], limit, &passed[begin..], next);
            // A limit of NONE also reaches the places behind the last value.
            while reached > 0 && next[reached - 1] as usize >= below.len() {
                reached -= 1;
            }
            (begin, end, level) = (end, end + reached, below.clone());
        }
        ends.push(end);
        lengthen(found, (end - begin) * ROW)?;
        *count = all_reached(rows, limit, &way[begin..end], found);
        Ok(self.found())
    }

    /// Returns the result of the last `take`. If the limit was [`NONE`], it may contain places behind the last value.
    pub(super) fn found(&self) -> &[u32] {
        &self.found[..self.count]
    }

    /// Updates the levels above the found values, which have changed.
    pub(super) fn renew(&self, rows: &mut [Row]) {
        let levels = self.levels.iter().zip(self.levels.iter().skip(1));
        let begins = self.ends.iter().rev().skip(1);
        for (((level, above), end), begin) in levels.zip(self.ends.iter().rev()).zip(begins) {
            for row in &self.rows[*begin..*end] {
                let row = *row as usize;
                rows[above.start + row / ROW].0[row % ROW] = rows[level.start + row].least();
            }
        }
    }

    /// Memory of the path in bytes.
    pub(super) fn bytes(&self) -> usize {
        let levels = self.levels.capacity() * size_of::<Range<usize>>() + self.ends.capacity() * size_of::<usize>();
        levels + (self.rows.capacity() + self.found.capacity()) * 4
    }
}

/// Lengthens scratch memory to so many places at least.
fn lengthen(places: &mut Vec<u32>, least: usize) -> Result<(), TryReserveError> {
    if places.len() < least {
        places.try_reserve(least - places.len())?;
        places.resize(least, 0);
    }
    Ok(())
}

/// Calls [`Row::reached`] on many rows of a level, and returns the number of values found.
fn all_reached(level: &[Row], limit: u64, rows: &[u32], found: &mut [u32]) -> usize {
    touch(rows.iter().map(|row| level[*row as usize].0[0]));
    rows.iter().fold(0, |end, row| level[*row as usize].reached(limit, *row, found, end))
}

/// Min-tree with rows of its own, which grows.
#[derive(Clone, Debug, Default)]
pub(super) struct MinTree {
    pub(super) rows: Vec<Row>,
    pub(super) leaves: usize,
}

impl MinTree {
    /// Makes room for `values` values; new ones are [`NONE`].
    pub(super) fn grow(&mut self, values: usize) -> Result<(), TryReserveError> {
        let needed = values.div_ceil(ROW);
        if needed > self.leaves {
            let leaves = needed.max(self.leaves + self.leaves / 4);
            let mut rows = Vec::new();
            rows.try_reserve_exact(size(leaves))?;
            rows.extend_from_slice(&self.rows[..self.leaves]);
            rows.resize(size(leaves), Row::default());
            *self = Self { rows, leaves };
            self.rebuild();
        }
        Ok(())
    }

    /// Recomputes all levels from the values.
    pub(super) fn rebuild(&mut self) {
        rebuild(&mut self.rows, self.leaves);
    }

    /// Returns the least value.
    pub(super) fn least(&self) -> u64 {
        self.rows[top(self.leaves)].iter().fold(NONE, |least, row| least.min(row.least()))
    }

    /// Returns a value.
    pub(super) fn value(&self, index: usize) -> u64 {
        self.rows[index / ROW].0[index % ROW]
    }

    /// Changes a value.
    pub(super) fn set(&mut self, index: usize, value: u64) {
        set(&mut self.rows, self.leaves, index, value);
    }
}
