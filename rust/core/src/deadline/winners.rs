//! A tournament tree of eight to a match: the least of many values at hand, whichever of them changes.
//!
//! The values, the least of every eight of them, the least of every eight of those, and so on. It holds no positions and
//! no links, so it is a seventh larger than the values alone, and a change that isn't a new least of its eight ends there.

use alloc::vec;
use alloc::vec::Vec;

/// How many values are in a row: a cache line's.
pub(super) const ROW: usize = 8;
/// The same, for indices of 32 bits.
pub(super) const LANES: u32 = 8;
/// The largest value, which stands for none: it loses against every other.
pub(super) const NONE: u64 = u64::MAX;

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
    pub(super) fn least(&self) -> u64 {
        self.0.iter().copied().fold(NONE, u64::min)
    }

    /// The least of those whose bit is set.
    pub(super) fn least_of(&self, lanes: u8) -> u64 {
        let masked = self.0.iter().enumerate().map(|(lane, value)| {
            // The others become NONE, without a branch.
            value | u64::from(lanes >> lane & 1).wrapping_sub(1)
        });
        masked.fold(NONE, u64::min)
    }

    /// A bit for each that `limit` has reached.
    pub(super) fn due(&self, limit: u64) -> u8 {
        self.0.iter().enumerate().fold(0, |due, (lane, value)| due | u8::from(*value <= limit) << lane)
    }
}

/// Calls with the index of each bit that is set.
pub(super) fn each(mut bits: u8, mut call: impl FnMut(u32)) {
    while bits != 0 {
        call(bits.trailing_zeros());
        bits &= bits - 1;
    }
}

/// The tree. The first level is the values', the last one is a single row.
#[derive(Clone, Debug)]
pub(super) struct Winners {
    levels: Vec<Vec<Row>>,
    least: u64,
    values: usize,
}

impl Default for Winners {
    fn default() -> Self {
        Self::of(0)
    }
}

impl Winners {
    /// A tree of so many, all of them [`NONE`].
    pub(super) fn of(values: usize) -> Self {
        let mut levels = vec![vec![Row::default(); values.div_ceil(ROW).max(1)]];
        while let Some(rows) = levels.last().map(Vec::len).filter(|rows| *rows > 1) {
            levels.push(vec![Row::default(); rows.div_ceil(ROW)]);
        }
        Self { levels, least: NONE, values }
    }

    /// Adds a value, [`NONE`].
    pub(super) fn push(&mut self) {
        let mut needed = self.values;
        self.values += 1;
        for level in &mut self.levels {
            needed /= ROW;
            if needed < level.len() {
                return;
            }
            level.push(Row::default());
        }
        // The last level has two rows now: it needs one above.
        let mut top = Row::default();
        if let Some(level) = self.levels.last() {
            for (winner, row) in top.0.iter_mut().zip(level) {
                *winner = row.least();
            }
        }
        self.levels.push(vec![top]);
    }

    /// The least of all.
    pub(super) const fn least(&self) -> u64 {
        self.least
    }

    /// One of the values.
    pub(super) fn value(&self, index: usize) -> u64 {
        self.levels[0][index / ROW].0[index % ROW]
    }

    /// Changes a value, and returns whether the least of all changed.
    ///
    /// A row that was written to is read only where its least went up: reading it at once waits for the write.
    pub(super) fn set(&mut self, index: usize, value: u64) -> bool {
        let (mut index, mut value) = (index, value);
        let mut old = core::mem::replace(&mut self.levels[0][index / ROW].0[index % ROW], value);
        for level in 0..self.levels.len() {
            index /= ROW;
            let (lower, upper) = self.levels.split_at_mut(level + 1);
            let held = match upper.first_mut() {
                Some(above) => &mut above[index / ROW].0[index % ROW],
                None => &mut self.least,
            };
            if value >= *held {
                if old != *held {
                    return false;
                }
                value = lower[level][index].least();
                if value == *held {
                    return false;
                }
            }
            old = core::mem::replace(held, value);
        }
        true
    }

    /// The first of the least.
    pub(super) fn first(&self) -> usize {
        self.levels.iter().rev().fold(0, |index, level| {
            let lane = level[index].0.iter().position(|value| *value == self.least);
            index * ROW + lane.unwrap_or(0)
        })
    }

    /// The indices of all values that `limit` has reached, in order, as `found`; `spare` is memory to work with.
    ///
    /// Level by level instead of value by value: the reads of one level don't wait for each other.
    pub(super) fn due(&self, limit: u64, found: &mut Vec<u32>, spare: &mut Vec<u32>) {
        found.clear();
        found.push(0);
        for (level, rows) in self.levels.iter().enumerate().rev() {
            spare.clear();
            for row in found.iter() {
                each(rows[*row as usize].due(limit), |lane| spare.push(*row * LANES + lane));
            }
            // A limit of NONE reaches the places behind the last one, too.
            let end = if level == 0 { self.values } else { self.levels[level - 1].len() };
            spare.retain(|index| (*index as usize) < end);
            core::mem::swap(found, spare);
        }
    }

    /// Sets many values, whose indices are in order, and works them off `indices`.
    pub(super) fn renew(&mut self, indices: &mut Vec<u32>, mut value: impl FnMut(usize) -> u64) {
        for index in indices.iter() {
            self.levels[0][*index as usize / ROW].0[*index as usize % ROW] = value(*index as usize);
        }
        for level in 0..self.levels.len() {
            for index in indices.iter_mut() {
                *index /= LANES;
            }
            indices.dedup();
            let (lower, upper) = self.levels.split_at_mut(level + 1);
            for index in indices.iter() {
                let least = lower[level][*index as usize].least();
                match upper.first_mut() {
                    Some(above) => above[*index as usize / ROW].0[*index as usize % ROW] = least,
                    None => self.least = least,
                }
            }
        }
    }

    /// The bytes that it holds.
    pub(super) fn bytes(&self) -> usize {
        let rows: usize = self.levels.iter().map(Vec::capacity).sum();
        rows * size_of::<Row>() + self.levels.capacity() * size_of::<Vec<Row>>() + size_of::<Self>()
    }
}
