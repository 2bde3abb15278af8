//! Selections of vCPUs for a batch, and the places of their values.

use crate::bank::handle::Handle;
use crate::bank::vms::{Bank, BankError, narrow};
use std::borrow::Cow;
use std::ops::Range;

/// vCPUs of a bank: all in the order of their rows, or some in the caller's order. It is valid until the bank's VMs
/// change.
#[derive(Clone, Debug)]
pub struct Selection {
    parts: Vec<Part>,
    len: usize,
}

/// The vCPUs of one frequency domain.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) domain: usize,
    /// `None` for all rows.
    rows: Option<Vec<u32>>,
    places: Places,
}

#[derive(Clone, Debug)]
enum Places {
    /// Consecutive places.
    Run(Range<usize>),
    /// One place for each vCPU, in the caller's order.
    Each(Vec<usize>),
}

impl Selection {
    /// Number of vCPUs.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the selection is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }
}

impl Bank {
    /// Selects all vCPUs, in the order of [`vcpu_handles`](Self::vcpu_handles).
    pub fn all(&mut self) -> Selection {
        self.close_gaps();
        let mut len = 0;
        let parts = self.domains.iter().enumerate().map(|(domain, columns)| {
            let run = len..len + columns.rows.len();
            len = run.end;
            Part { domain, rows: None, places: Places::Run(run) }
        });
        Selection { parts: parts.collect(), len }
    }

    /// Selects the vCPUs of these handles, each given once.
    pub fn select(&self, vcpus: &[Handle]) -> Result<Selection, BankError> {
        let found = self.find(vcpus)?;
        let one = found.first().map_or(0, |(domain, _)| *domain);
        if found.iter().all(|(domain, _)| *domain == one) {
            let rows = Some(found.iter().map(|(_, row)| *row).collect());
            return Ok(Selection {
                parts: vec![Part { domain: one, rows, places: Places::Run(0..found.len()) }],
                len: found.len(),
            });
        }
        let parts = (0..self.domains.len()).map(|domain| {
            let here = found.iter().enumerate().filter(|(_, (of, _))| *of == domain);
            let places = Places::Each(here.clone().map(|(place, _)| place).collect());
            Part { domain, rows: Some(here.map(|(_, (_, row))| *row).collect()), places }
        });
        Ok(Selection { parts: parts.collect(), len: found.len() })
    }

    /// Returns the frequency domain and the row of each of these vCPUs, none of which is given twice.
    pub(crate) fn find(&self, vcpus: &[Handle]) -> Result<Vec<(usize, u32)>, BankError> {
        each_once(vcpus)?;
        vcpus.iter().map(|vcpu| self.row(*vcpu).map(|(domain, row)| (domain, narrow(row)))).collect()
    }

    /// Selects vCPUs by `mask`, a bool for each in the order of [`vcpu_handles`](Self::vcpu_handles).
    pub fn select_mask(&mut self, mask: &[bool]) -> Result<Selection, BankError> {
        self.close_gaps();
        let vcpus = self.vcpus();
        if mask.len() != vcpus {
            return Err(BankError::Mask { rows: mask.len(), vcpus });
        }
        let (mut len, mut rest) = (0, mask);
        let parts = self.domains.iter().enumerate().map(|(domain, columns)| {
            let (here, after) = rest.split_at(columns.rows.len());
            rest = after;
            let rows: Vec<u32> = (0..).zip(here).filter(|(_, chosen)| **chosen).map(|(row, _)| row).collect();
            let run = len..len + rows.len();
            len = run.end;
            Part { domain, rows: Some(rows), places: Places::Run(run) }
        });
        Ok(Selection { parts: parts.collect(), len })
    }

    /// Returns the slots of these VMs, each given once.
    pub(crate) fn slots(&self, vms: &[Handle]) -> Result<Vec<u32>, BankError> {
        each_once(vms)?;
        vms.iter().map(|vm| self.slot(*vm)).collect()
    }
}

/// Refuses a handle that is given twice.
fn each_once(handles: &[Handle]) -> Result<(), BankError> {
    // A bank itself gives handles in ascending order.
    if handles.is_sorted_by(|one, next| one < next) {
        return Ok(());
    }
    let mut sorted = handles.to_vec();
    sorted.sort_unstable();
    let twice = sorted.windows(2).find(|pair| pair[0] == pair[1]);
    twice.map_or(Ok(()), |pair| Err(BankError::Duplicate { handle: pair[0].0 }))
}

impl Part {
    /// Returns a column's values of these vCPUs.
    pub(crate) fn of<'c, T: Copy>(&self, column: &'c [T]) -> Cow<'c, [T]> {
        match &self.rows {
            None => Cow::Borrowed(column),
            Some(rows) => rows.iter().map(|row| column[*row as usize]).collect(),
        }
    }

    /// Writes the values that `compute` gives for these vCPUs, in a column for all selected ones.
    pub(crate) fn write<T: Copy + Default>(&self, out: &mut [T], compute: impl FnOnce(&mut [T])) {
        match &self.places {
            Places::Run(run) => compute(&mut out[run.clone()]),
            Places::Each(places) => {
                let mut values = vec![T::default(); places.len()];
                compute(&mut values);
                for (place, value) in places.iter().zip(values) {
                    out[*place] = value;
                }
            }
        }
    }

    /// Writes the results of `evaluate` for these vCPUs: several columns each of ISTATUS and of lines, and one of
    /// deadlines.
    pub(crate) fn write_all(
        &self,
        istatus: &mut [bool],
        line: &mut [bool],
        deadlines: &mut [u64],
        compute: impl FnOnce(&mut [bool], &mut [bool], &mut [u64]),
    ) {
        let all = deadlines.len();
        if let Places::Run(run) = &self.places
            && *run == (0..all)
        {
            return compute(istatus, line, deadlines);
        }
        // Only a part of each column: the column loop needs the parts to follow each other.
        let (rows, columns) = (self.places.len(), istatus.len().checked_div(all).unwrap_or(0));
        let (mut met, mut high) = (vec![false; columns * rows], vec![false; columns * rows]);
        self.write(deadlines, |deadlines| compute(&mut met, &mut high, deadlines));
        for (out, found) in [(istatus, met), (line, high)] {
            for (out, found) in out.chunks_mut(all.max(1)).zip(found.chunks(rows.max(1))) {
                self.write(out, |out| out.copy_from_slice(found));
            }
        }
    }
}

impl Places {
    fn len(&self) -> usize {
        match self {
            Self::Run(run) => run.len(),
            Self::Each(places) => places.len(),
        }
    }
}
