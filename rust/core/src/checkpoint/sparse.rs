//! Columns of a fact that is known of some rows, and not of others.

use crate::checkpoint::column::{Column, Growing};
use crate::checkpoint::fields::Parts;
use alloc::vec::Vec;
use core::ops::Range;

/// Columns of a fact that is known of some rows of a group: of one at least.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sparse {
    /// The rows, ascending; `None` where the fact is known of all.
    pub(crate) rows: Option<Vec<u64>>,
    /// The parts of the fact: one value for each of those rows.
    pub(crate) parts: Vec<Column>,
}

impl Sparse {
    /// Returns the fact that all rows have; `None` where it differs, or isn't known of all.
    pub(crate) fn same(&self) -> Option<Parts> {
        let mut parts = Parts::default();
        for (part, column) in parts.iter_mut().zip(&self.parts) {
            *part = column.same().filter(|_| self.rows.is_none())?;
        }
        Some(parts)
    }

    /// Returns the parts of a row's fact; `None` if it isn't known.
    pub(crate) fn get(&self, row: usize) -> Option<Parts> {
        let place = match &self.rows {
            None => row,
            Some(rows) => rows.binary_search(&(row as u64)).ok()?,
        };
        let mut parts = Parts::default();
        for (part, column) in parts.iter_mut().zip(&self.parts) {
            *part = column.get(place)?;
        }
        Some(parts)
    }

    /// The parts of the fact, each with one value for each row that it is known of.
    #[must_use]
    pub fn parts(&self) -> &[Column] {
        &self.parts
    }

    /// Number of rows that the fact is known of, out of `all`.
    #[must_use]
    pub fn known(&self, all: usize) -> usize {
        self.rows.as_ref().map_or(all, Vec::len)
    }

    /// Returns the rows that the fact is known of, out of `all`.
    #[must_use]
    pub fn places(&self, all: usize) -> Vec<u64> {
        self.rows.clone().unwrap_or_else(|| (0..all as u64).collect())
    }

    /// Returns the fact of these rows, in the order given; `None` if it is known of none.
    pub(crate) fn part(&self, rows: &[usize]) -> Option<Self> {
        let mut gathered = Gathered::new(self.parts.len());
        for (to, row) in rows.iter().enumerate() {
            if let Some(parts) = self.get(*row) {
                gathered.push(to, parts);
            }
        }
        gathered.sparse(rows.len())
    }
}

/// A fact being gathered.
#[derive(Clone, Debug)]
pub(crate) struct Gathered {
    /// Number of rows that it is known of.
    known: usize,
    /// The rows, from the first gap on.
    rows: Vec<u64>,
    parts: Vec<Growing>,
}

impl Gathered {
    /// A fact of so many parts.
    pub(crate) fn new(parts: usize) -> Self {
        Self { known: 0, rows: Vec::new(), parts: alloc::vec![Growing::default(); parts] }
    }

    /// Adds the fact of a row, which comes after those that were added.
    pub(crate) fn push(&mut self, row: usize, parts: Parts) {
        self.push_many(row..row + 1, parts);
    }

    /// Adds the fact of rows that follow each other and come after those that were added.
    pub(crate) fn push_many(&mut self, rows: Range<usize>, parts: Parts) {
        if rows.start != self.known && self.rows.is_empty() {
            self.rows = (0..self.known as u64).collect();
        }
        if rows.start != self.known || !self.rows.is_empty() {
            self.rows.extend(rows.clone().map(|row| row as u64));
        }
        self.known += rows.len();
        for (column, part) in self.parts.iter_mut().zip(parts) {
            column.push_many(part, rows.len());
        }
    }

    /// Returns the columns, out of so many rows; `None` if the fact is known of none.
    pub(crate) fn sparse(self, all: usize) -> Option<Sparse> {
        if self.known == 0 {
            return None;
        }
        let rows = match self.rows {
            _ if self.known == all => None,
            rows if rows.is_empty() => Some((0..self.known as u64).collect()),
            rows => Some(rows),
        };
        Some(Sparse { rows, parts: self.parts.into_iter().map(Growing::column).collect() })
    }
}
