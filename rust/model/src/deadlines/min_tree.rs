//! A tournament tree of eight to a match: the least of many values at hand, whichever of them changes.
//!
//! The values, the least of every eight of them, the least of every eight of those, and so on, until a few rows are
//! left: all levels in one slice of rows, the values' first. It holds no positions and no links, so it is a seventh
//! larger than the values alone, and a change that isn't a new least of its eight ends there.

use std::ops::Range;

/// How many values are in a row: a cache line's.
pub(super) const ROW: usize = 8;

/// The largest value, which stands for none: it loses against every other.
pub(super) const NONE: u64 = u64::MAX;

/// How many rows have no level above them.
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
    /// In pairs: in a row LLVM makes branches of it, and nothing foretells those.
    pub(super) fn least(&self) -> u64 {
        let pairs = [0, 2, 4, 6].map(|lane| self.0[lane].min(self.0[lane + 1]));
        pairs[0].min(pairs[1]).min(pairs[2].min(pairs[3]))
    }

    /// A bit for each that `limit` has reached.
    pub(super) fn due(&self, limit: u64) -> u8 {
        self.0.iter().enumerate().fold(0, |due, (lane, value)| due | u8::from(*value <= limit) << lane)
    }

    /// Puts the indices of those that `limit` has reached behind `end` and returns the new one; `row` is the row's own
    /// index. There is no branch in it: nothing foretells which of eight are due.
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

/// Calls with the index of each bit that is set.
pub(super) fn each(mut bits: u8, mut call: impl FnMut(u32)) {
    while bits != 0 {
        call(bits.trailing_zeros());
        bits &= bits - 1;
    }
}

/// Reads a word of each of many rows or records that may be far away, and does nothing else, so that many are on their
/// way at once: of a loop that does more than read, a core looks only a few rounds ahead.
pub(super) fn touch(words: impl Iterator<Item = u64>) {
    core::hint::black_box(words.fold(0, |all, word| all ^ word));
}

/// The least of a part of a row.
pub(super) fn least(values: &[u64]) -> u64 {
    values.iter().copied().fold(NONE, u64::min)
}

/// How many rows the tree over so many rows of values takes, they included.
pub(super) fn size(leaves: usize) -> usize {
    top(leaves).end
}

/// The rows without a level above them.
pub(super) fn top(leaves: usize) -> Range<usize> {
    let mut level = 0..leaves;
    while level.len() > TOP {
        level = above(&level);
    }
    level
}

/// The level above one.
fn above(level: &Range<usize>) -> Range<usize> {
    level.end..level.end + level.len().div_ceil(ROW)
}

/// Changes a value, and returns what it was, and whether one in the top rows changed.
///
/// A row that was written to is read only where its least may have gone up.
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

/// The first of the least values.
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

/// The way from the top of a tree to what is due in it.
///
/// Level by level instead of value by value: the reads of one level don't wait for each other.
#[derive(Clone, Debug, Default)]
pub(super) struct Path {
    /// The levels, the values' first.
    levels: Vec<Range<usize>>,
    /// The rows on the way, counted within their levels, level after level from the top, and where those of each level
    /// end. What is behind the last end is memory to work with.
    rows: Vec<u32>,
    ends: Vec<usize>,
    /// The values that are due, and how many they are.
    found: Vec<u32>,
    count: usize,
}

impl Path {
    /// Takes the way to all values that `limit` has reached, and returns their indices, in order.
    pub(super) fn take(&mut self, rows: &[Row], leaves: usize, limit: u64) -> &[u32] {
        let Self { levels, rows: way, ends, found, count } = self;
        levels.clear();
        levels.push(0..leaves);
        while let Some(level) = levels.last().filter(|level| level.len() > TOP) {
            levels.push(above(level));
        }
        let mut level = top(leaves);
        way.resize(way.len().max(TOP), 0);
        way[..TOP].copy_from_slice(&[0, 1, 2, 3]);
        ends.clear();
        let (mut begin, mut end) = (0, level.len());
        for below in levels.iter().rev().skip(1) {
            ends.push(end);
            way.resize(way.len().max(end + (end - begin) * ROW), 0);
            let (passed, next) = way.split_at_mut(end);
            let mut reached = all_reached(&rows[level], limit, &passed[begin..], next);
            // A limit of NONE reaches the places behind the last one, too.
            while reached > 0 && next[reached - 1] as usize >= below.len() {
                reached -= 1;
            }
            (begin, end, level) = (end, end + reached, below.clone());
        }
        ends.push(end);
        found.resize(found.len().max((end - begin) * ROW), 0);
        *count = all_reached(rows, limit, &way[begin..end], found);
        self.found()
    }

    /// What the last call of `take` returned. Places behind the last value may be in it, where the limit was [`NONE`].
    pub(super) fn found(&self) -> &[u32] {
        &self.found[..self.count]
    }

    /// Has the levels above know that the values found have others now.
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

    /// The bytes that it holds.
    pub(super) fn bytes(&self) -> usize {
        let levels = self.levels.capacity() * size_of::<Range<usize>>() + self.ends.capacity() * size_of::<usize>();
        levels + (self.rows.capacity() + self.found.capacity()) * 4
    }
}

/// [`Row::reached`] of many rows of a level; returns how many values were.
fn all_reached(level: &[Row], limit: u64, rows: &[u32], found: &mut [u32]) -> usize {
    touch(rows.iter().map(|row| level[*row as usize].0[0]));
    rows.iter().fold(0, |end, row| level[*row as usize].reached(limit, *row, found, end))
}

/// A tree of its own, which grows.
#[derive(Clone, Debug, Default)]
pub(super) struct MinTree {
    pub(super) rows: Vec<Row>,
    pub(super) leaves: usize,
}

impl MinTree {
    /// Makes room for so many values; new ones are [`NONE`].
    pub(super) fn grow(&mut self, values: usize) {
        let needed = values.div_ceil(ROW);
        if needed > self.leaves {
            let leaves = needed.max(self.leaves + self.leaves / 4);
            let mut rows = std::vec![Row::default(); size(leaves)];
            rows[..self.leaves].copy_from_slice(&self.rows[..self.leaves]);
            *self = Self { rows, leaves };
            self.rebuild();
        }
    }

    /// Makes all levels anew from the values.
    pub(super) fn rebuild(&mut self) {
        let mut level = 0..self.leaves;
        while level.len() > TOP {
            let above = above(&level);
            for (index, row) in level.enumerate() {
                self.rows[above.start + index / ROW].0[index % ROW] = self.rows[row].least();
            }
            level = above;
        }
    }

    /// The least of all.
    pub(super) fn least(&self) -> u64 {
        self.rows[top(self.leaves)].iter().fold(NONE, |least, row| least.min(row.least()))
    }

    /// One of the values.
    pub(super) fn value(&self, index: usize) -> u64 {
        self.rows[index / ROW].0[index % ROW]
    }

    /// Changes a value.
    pub(super) fn set(&mut self, index: usize, value: u64) {
        set(&mut self.rows, self.leaves, index, value);
    }
}
