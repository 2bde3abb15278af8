//! A column: one value a row, in the narrowest form that its values allow.

use alloc::vec::Vec;
use core::ops::{Range, RangeInclusive};

/// One value a row, in the narrowest form that the values allow.
///
/// Equal columns have equal forms, so each column has one encoding. The number of rows belongs to the column's group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Column(Form);

/// Form of a column.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    /// All rows have this value.
    Same(u64),
    /// The rows differ, and all values are below 256.
    Bytes(Vec<u8>),
    /// The rows differ, and some value is 256 or more; or the column is whole.
    Words(Vec<u64>),
}

impl Column {
    /// Makes the column of these values.
    #[must_use]
    pub fn new(values: Vec<u64>) -> Self {
        let Some((first, differing, all)) = survey(&values) else { return Self(Form::Words(values)) };
        Self(if differing == 0 {
            Form::Same(first)
        } else if all < 256 {
            #[expect(clippy::cast_possible_truncation, reason = "all bits that are set anywhere are below 256")]
            Form::Bytes(values.iter().map(|value| *value as u8).collect())
        } else {
            Form::Words(values)
        })
    }

    /// A column that is 0 in every row.
    pub(crate) const ZERO: Self = Self(Form::Same(0));

    /// Makes a column of these values that has eight bytes a row, whatever they are.
    #[must_use]
    pub const fn whole(values: Vec<u64>) -> Self {
        Self(Form::Words(values))
    }

    pub(crate) const fn form(&self) -> &Form {
        &self.0
    }

    /// Returns the column of this form; `None` if its values have a narrower one. `whole` asks for eight bytes a row.
    pub(crate) fn of_form(form: Form, whole: bool) -> Option<Self> {
        let fits = match &form {
            Form::Same(_) => !whole,
            Form::Bytes(values) => !whole && differ(values),
            Form::Words(_) if whole => true,
            Form::Words(values) => survey(values).is_some_and(|(_, differing, all)| differing != 0 && all >= 256),
        };
        fits.then_some(Self(form))
    }

    /// Returns the value that all rows have; `None` where they differ.
    pub(crate) const fn same(&self) -> Option<u64> {
        if let Form::Same(value) = self.0 { Some(value) } else { None }
    }

    /// Returns the row's value; `None` past the end of rows that differ.
    #[must_use]
    pub fn get(&self, row: usize) -> Option<u64> {
        match &self.0 {
            Form::Same(value) => Some(*value),
            Form::Bytes(values) => values.get(row).copied().map(u64::from),
            Form::Words(values) => values.get(row).copied(),
        }
    }

    /// The values of these rows; of those past the last there are none.
    #[must_use]
    pub fn iter(&self, rows: Range<usize>) -> Iter<'_> {
        match &self.0 {
            Form::Same(value) => Iter::Same(*value, rows.len()),
            Form::Bytes(bytes) => Iter::Bytes(bytes.get(rows).unwrap_or_default().iter()),
            Form::Words(words) => Iter::Words(words.get(rows).unwrap_or_default().iter()),
        }
    }

    /// Copies the values of these rows to `to`, which has an element for each.
    ///
    /// # Panics
    /// Past the last row.
    pub fn copy_to(&self, rows: Range<usize>, to: &mut [u64]) {
        match &self.0 {
            Form::Same(value) => to.fill(*value),
            Form::Bytes(bytes) => {
                for (to, value) in to.iter_mut().zip(&bytes[rows]) {
                    *to = (*value).into();
                }
            }
            Form::Words(words) => to.copy_from_slice(&words[rows]),
        }
    }

    /// Copies the values of these rows to `to`, where all of the column's are below 256: else it returns false.
    ///
    /// # Panics
    /// Past the last row.
    pub fn copy_to_bytes(&self, rows: Range<usize>, to: &mut [u8]) -> bool {
        match &self.0 {
            Form::Same(value) => u8::try_from(*value).is_ok_and(|value| {
                to.fill(value);
                true
            }),
            Form::Bytes(bytes) => {
                to.copy_from_slice(&bytes[rows]);
                true
            }
            Form::Words(_) => false,
        }
    }

    /// Appends the values of these rows to `values`.
    ///
    /// # Panics
    /// Past the last row.
    pub fn append_to(&self, values: &mut Vec<u64>, rows: Range<usize>) {
        match &self.0 {
            Form::Same(value) => values.resize(values.len() + rows.len(), *value),
            Form::Bytes(bytes) => values.extend(bytes[rows].iter().copied().map(u64::from)),
            Form::Words(words) => values.extend_from_slice(&words[rows]),
        }
    }

    /// Returns the values of these rows.
    ///
    /// # Panics
    /// Past the last row.
    #[must_use]
    pub fn values(&self, rows: Range<usize>) -> Vec<u64> {
        let mut values = Vec::with_capacity(rows.len());
        self.append_to(&mut values, rows);
        values
    }

    /// Returns the values of these rows, in the order given.
    ///
    /// # Panics
    /// Past the last row.
    pub(crate) fn picked(&self, rows: &[usize]) -> Vec<u64> {
        rows.iter().map(|row| self.get(*row).expect("a row of the column")).collect()
    }

    /// Returns the sum of the first `rows` values, modulo 2^64.
    #[must_use]
    pub fn sum(&self, rows: usize) -> u64 {
        match &self.0 {
            Form::Same(value) => value.wrapping_mul(rows as u64),
            Form::Bytes(values) => values[..rows].iter().copied().map(u64::from).sum(),
            Form::Words(values) => values[..rows].iter().fold(0, |sum, value| sum.wrapping_add(*value)),
        }
    }

    /// Returns whether every value lies in `range`.
    #[must_use]
    pub fn is_within(&self, range: &RangeInclusive<u64>) -> bool {
        match &self.0 {
            Form::Same(value) => range.contains(value),
            Form::Bytes(values) => values.iter().all(|value| range.contains(&u64::from(*value))),
            // Without an early end, so that it becomes vector code.
            Form::Words(values) => values.iter().fold(true, |all, value| all & range.contains(value)),
        }
    }

    /// Returns whether `call` is true of each of these rows' values and its counterpart in `others`, which has one for each.
    ///
    /// # Panics
    /// Past the last row.
    #[inline]
    pub fn all_with<T: Copy>(&self, rows: Range<usize>, others: &[T], call: impl Fn(u64, T) -> bool) -> bool {
        // Without an early end, so that it becomes vector code.
        match &self.0 {
            Form::Same(value) => others.iter().fold(true, |all, other| all & call(*value, *other)),
            Form::Bytes(bytes) => {
                bytes[rows].iter().zip(others).fold(true, |all, (value, other)| all & call((*value).into(), *other))
            }
            Form::Words(words) => {
                words[rows].iter().zip(others).fold(true, |all, (value, other)| all & call(*value, *other))
            }
        }
    }

    /// Returns all bits that are set in some value.
    #[must_use]
    pub fn bits(&self) -> u64 {
        match &self.0 {
            Form::Same(value) => *value,
            Form::Bytes(values) => values.iter().fold(0, |all, value| all | u64::from(*value)),
            Form::Words(values) => values.iter().fold(0, |all, value| all | value),
        }
    }
}

/// Values of a column's rows.
#[derive(Clone, Debug)]
pub enum Iter<'a> {
    /// The value, and the number of rows that have it.
    Same(u64, usize),
    /// Values below 256.
    Bytes(core::slice::Iter<'a, u8>),
    /// Values of 64 bits.
    Words(core::slice::Iter<'a, u64>),
}

impl Iterator for Iter<'_> {
    type Item = u64;

    #[inline]
    fn next(&mut self) -> Option<u64> {
        match self {
            Self::Same(value, rows) => {
                *rows = rows.checked_sub(1)?;
                Some(*value)
            }
            Self::Bytes(values) => values.next().copied().map(u64::from),
            Self::Words(values) => values.next().copied(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let rows = match self {
            Self::Same(_, rows) => *rows,
            Self::Bytes(values) => values.len(),
            Self::Words(values) => values.len(),
        };
        (rows, Some(rows))
    }
}

impl ExactSizeIterator for Iter<'_> {}

/// A column in the making: most columns of many VMs have one value for all, and take no memory a row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Growing {
    first: u64,
    rows: usize,
    /// The values, from the first that differs on.
    values: Vec<u64>,
}

impl Growing {
    #[inline]
    pub(crate) fn push(&mut self, value: u64) {
        if self.rows == 0 {
            self.first = value;
        }
        if self.values.is_empty() {
            if value == self.first {
                self.rows += 1;
                return;
            }
            self.values.resize(self.rows, self.first);
        }
        self.values.push(value);
        self.rows += 1;
    }

    /// Adds rows.
    pub(crate) fn extend(&mut self, mut values: &[u64]) {
        while let (true, Some((value, rest))) = (self.values.is_empty(), values.split_first()) {
            self.push(*value);
            values = rest;
        }
        self.values.extend_from_slice(values);
        self.rows += values.len();
    }

    /// Adds so many rows of one value.
    pub(crate) fn push_many(&mut self, value: u64, rows: usize) {
        if rows == 0 {
            return;
        }
        self.push(value);
        if self.values.is_empty() {
            self.rows += rows - 1;
        } else {
            self.values.resize(self.values.len() + rows - 1, value);
            self.rows += rows - 1;
        }
    }

    /// The values so far.
    pub(crate) fn iter(&self) -> Iter<'_> {
        if self.values.is_empty() { Iter::Same(self.first, self.rows) } else { Iter::Words(self.values.iter()) }
    }

    pub(crate) fn column(self) -> Column {
        if self.values.is_empty() && self.rows > 0 { Column(Form::Same(self.first)) } else { Column::new(self.values) }
    }
}

/// Returns the first value, the bits by which others differ from it, and all bits that are set; `None` if there is no
/// value.
fn survey(values: &[u64]) -> Option<(u64, u64, u64)> {
    let first = *values.first()?;
    // Without an early end, so that it becomes vector code.
    let (differing, all) =
        values.iter().fold((0, 0), |(differing, all), value| (differing | (value ^ first), all | value));
    Some((first, differing, all))
}

fn differ(values: &[u8]) -> bool {
    values.first().is_some_and(|first| values.iter().fold(0, |differing, value| differing | (value ^ first)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn a_column_is_as_narrow_as_its_values() {
        assert_eq!(*Column::new(vec![7; 3]).form(), Form::Same(7));
        assert_eq!(*Column::new(vec![0, 255]).form(), Form::Bytes(vec![0, 255]));
        assert_eq!(*Column::new(vec![0, 256]).form(), Form::Words(vec![0, 256]));
        assert_eq!(*Column::new(vec![u64::MAX]).form(), Form::Same(u64::MAX));
        assert_eq!(*Column::whole(vec![1]).form(), Form::Words(vec![1]));
    }

    #[test]
    fn another_form_is_no_column() {
        for (form, whole) in [
            (Form::Bytes(vec![1, 1]), false),
            (Form::Bytes(vec![]), false),
            (Form::Words(vec![1, 2]), false),
            (Form::Words(vec![256, 256]), false),
            (Form::Words(vec![]), false),
            (Form::Same(1), true),
            (Form::Bytes(vec![1, 2]), true),
        ] {
            assert_eq!(Column::of_form(form.clone(), whole), None, "{form:?} {whole}");
        }
        for values in [vec![1], vec![1, 2], vec![1, 256]] {
            let column = Column::new(values.clone());
            assert_eq!(Column::of_form(column.form().clone(), false).as_ref(), Some(&column));
            assert_eq!(column.values(0..values.len()), values);
            assert_eq!(column.sum(values.len()), values.iter().sum::<u64>());
        }
    }
}
