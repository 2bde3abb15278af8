//! Which vCPUs a batch is about, and where their values go.

use crate::bank::handle::Handle;
use crate::bank::vms::{Bank, BankError, narrow};
use std::borrow::Cow;
use std::ops::Range;

/// vCPUs of a bank: all in the order of their rows, or some in the caller's order. It holds until the bank's VMs
/// change.
#[derive(Clone, Debug)]
pub struct Selection {
    parts: Vec<Part>,
    len: usize,
}

/// Those of one clock.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) domain: usize,
    /// `None` for all.
    rows: Option<Vec<u32>>,
    places: Places,
}

#[derive(Clone, Debug)]
enum Places {
    /// One after the other.
    Run(Range<usize>),
    /// Each where the caller has it.
    Each(Vec<usize>),
}

impl Selection {
    /// How many vCPUs.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }
}

impl Bank {
    /// All vCPUs, in the order of [`vcpu_handles`](Self::vcpu_handles).
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

    /// The vCPUs of these handles, each once.
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

    /// The clock and the row of each of these vCPUs, none of them twice.
    pub(crate) fn find(&self, vcpus: &[Handle]) -> Result<Vec<(usize, u32)>, BankError> {
        each_once(vcpus)?;
        vcpus.iter().map(|vcpu| self.row(*vcpu).map(|(domain, row)| (domain, narrow(row)))).collect()
    }

    /// The vCPUs that `mask` has, a bool for each in the order of [`vcpu_handles`](Self::vcpu_handles).
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

    /// The slots of these VMs, each once.
    pub(crate) fn slots(&self, vms: &[Handle]) -> Result<Vec<u32>, BankError> {
        each_once(vms)?;
        vms.iter().map(|vm| self.slot(*vm)).collect()
    }
}

/// Refuses a handle that is there twice.
fn each_once(handles: &[Handle]) -> Result<(), BankError> {
    // As a bank gives them out itself.
    if handles.is_sorted_by(|one, next| one < next) {
        return Ok(());
    }
    let mut sorted = handles.to_vec();
    sorted.sort_unstable();
    let twice = sorted.windows(2).find(|pair| pair[0] == pair[1]);
    twice.map_or(Ok(()), |pair| Err(BankError::Duplicate { handle: pair[0].0 }))
}

impl Part {
    /// A column's values of these vCPUs.
    pub(crate) fn of<'c, T: Copy>(&self, column: &'c [T]) -> Cow<'c, [T]> {
        match &self.rows {
            None => Cow::Borrowed(column),
            Some(rows) => rows.iter().map(|row| column[*row as usize]).collect(),
        }
    }

    /// Has `compute` write these vCPUs' values, in a column for all that are selected.
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

    /// The same of what a look at the timers gives: several columns of each kind of bools, and one of counts.
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
        // Not all of a column: a run of each, which have to follow each other for the kernel.
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
