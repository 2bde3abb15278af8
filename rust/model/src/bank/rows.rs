//! vCPUs and their timers as columns, one row for each vCPU.

use crate::bank::timer_block::TimerSlices;
use guestclock_core::arch::arm64::{Offsets, Timer, View, timer, view_of};
use guestclock_core::checkpoint::Values;
use guestclock_core::time::Offset;
use std::collections::{BTreeMap, TryReserveError};
use std::ops::Range;

/// Owner of a row that no longer belongs to a VM.
pub(crate) const NOBODY: u32 = u32::MAX;

/// Columns of one timer.
#[derive(Clone, Debug, Default)]
pub(crate) struct TimerColumns {
    /// Compare values.
    pub(crate) cval: Vec<u64>,
    /// Lowest eight bits of the controls: ENABLE, IMASK, and ISTATUS as the last run left it.
    pub(crate) ctl: Vec<u8>,
    /// Level of the lines at the last query for changes; empty until the first.
    pub(crate) seen: Vec<bool>,
}

/// Columns of all rows. The columns of EL2 are empty if no guest may have it.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    /// Owner of the row: the slot of a VM.
    pub(crate) vm: Vec<u32>,
    /// Offset in force of the virtual counter: the VM's, or the one that a running vCPU was loaded with.
    pub(crate) virt: Vec<u64>,
    /// Offset in force of the physical counter.
    pub(crate) phys: Vec<u64>,
    /// True if the vCPU is in its guest.
    pub(crate) running: Vec<bool>,
    pub(crate) cntkctl: Vec<u64>,
    /// Timers in the order of [`Timer::ALL`].
    pub(crate) timers: Vec<TimerColumns>,
    /// CNTVOFF_EL2, which belongs to the guest's hypervisor alone.
    pub(crate) cntvoff: Vec<u64>,
    pub(crate) cnthctl: Vec<u64>,
    el2: bool,
    /// Upper bits of a CTL, which KVM stores until the vCPU's first run. Few timers have any.
    upper_ctl: BTreeMap<(usize, Timer), u64>,
    holes: usize,
}

impl Rows {
    pub(crate) fn new(el2: bool) -> Self {
        Self {
            vm: Vec::new(),
            virt: Vec::new(),
            phys: Vec::new(),
            running: Vec::new(),
            cntkctl: Vec::new(),
            timers: vec![TimerColumns::default(); if el2 { 4 } else { 2 }],
            cntvoff: Vec::new(),
            cnthctl: Vec::new(),
            el2,
            upper_ctl: BTreeMap::new(),
            holes: 0,
        }
    }

    pub(crate) const fn el2(&self) -> bool {
        self.el2
    }

    /// Number of rows, including those without an owner.
    pub(crate) const fn len(&self) -> usize {
        self.vm.len()
    }

    /// Number of rows without an owner.
    pub(crate) const fn holes(&self) -> usize {
        self.holes
    }

    /// Reserves exactly the room for `rows` more rows.
    pub(crate) fn reserve(&mut self, rows: usize) -> Result<(), TryReserveError> {
        self.vm.try_reserve_exact(rows)?;
        self.running.try_reserve_exact(rows)?;
        for column in [&mut self.virt, &mut self.phys, &mut self.cntkctl] {
            column.try_reserve_exact(rows)?;
        }
        if self.el2 {
            self.cntvoff.try_reserve_exact(rows)?;
            self.cnthctl.try_reserve_exact(rows)?;
        }
        for timer in &mut self.timers {
            timer.cval.try_reserve_exact(rows)?;
            timer.ctl.try_reserve_exact(rows)?;
            if !timer.seen.is_empty() {
                timer.seen.try_reserve_exact(rows)?;
            }
        }
        Ok(())
    }

    /// Adds a vCPU's row in the state of a reset: timers disabled, with a CVAL of 0.
    pub(crate) fn push(&mut self, vm: u32) {
        self.vm.push(vm);
        self.running.push(false);
        for column in [&mut self.virt, &mut self.phys, &mut self.cntkctl] {
            column.push(0);
        }
        if self.el2 {
            self.cntvoff.push(0);
            self.cnthctl.push(0);
        }
        for timer in &mut self.timers {
            timer.cval.push(0);
            timer.ctl.push(0);
            if timer.seen.len() + 1 == self.vm.len() {
                timer.seen.push(false);
            }
        }
    }

    /// Marks these rows as having no owner.
    pub(crate) fn vacate(&mut self, rows: Range<usize>) {
        self.holes += rows.len();
        for row in rows {
            self.vm[row] = NOBODY;
            self.clear_upper_ctl(row);
        }
    }

    /// Moves rows to the end.
    pub(crate) fn move_to_end(&mut self, rows: Range<usize>) {
        let end = self.len();
        for (row, to) in rows.clone().zip(end..) {
            self.push(self.vm[row]);
            self.running[to] = self.running[row];
            for column in [&mut self.virt, &mut self.phys, &mut self.cntkctl, &mut self.cntvoff, &mut self.cnthctl] {
                if let Some(&value) = column.get(row) {
                    column[to] = value;
                }
            }
            for timer in &mut self.timers {
                timer.cval[to] = timer.cval[row];
                timer.ctl[to] = timer.ctl[row];
                if let Some(&seen) = timer.seen.get(row) {
                    timer.seen[to] = seen;
                }
            }
            for timer in Timer::ALL {
                if let Some(upper) = self.upper_ctl.get(&(row, timer)) {
                    self.upper_ctl.insert((to, timer), *upper);
                }
            }
        }
        self.vacate(rows);
    }

    /// Closes the gaps, and keeps the order of the rows.
    pub(crate) fn close_gaps(&mut self) {
        let vm = core::mem::take(&mut self.vm);
        keep(&mut self.running, &vm);
        for column in [&mut self.virt, &mut self.phys, &mut self.cntkctl, &mut self.cntvoff, &mut self.cnthctl] {
            keep(column, &vm);
        }
        for timer in &mut self.timers {
            keep(&mut timer.cval, &vm);
            keep(&mut timer.ctl, &vm);
            keep(&mut timer.seen, &vm);
        }
        let upper = core::mem::take(&mut self.upper_ctl);
        let mut gaps = (0, 0);
        self.upper_ctl = upper
            .into_iter()
            .map(|((row, timer), value)| {
                let (from, before) = gaps;
                gaps = (row, before + vm[from..row].iter().filter(|vm| **vm == NOBODY).count());
                ((row - gaps.1, timer), value)
            })
            .collect();
        self.vm = vm;
        self.vm.retain(|vm| *vm != NOBODY);
        self.holes = 0;
    }

    pub(crate) fn offsets(&self, row: usize) -> Offsets {
        Offsets { virt: Offset(self.virt[row]), phys: Offset(self.phys[row]) }
    }

    pub(crate) fn set_offsets(&mut self, row: usize, offsets: Offsets) {
        self.virt[row] = offsets.virt.0;
        self.phys[row] = offsets.phys.0;
    }

    /// Returns the offsets in force of a counter.
    pub(crate) fn offsets_in(&self, view: View) -> &[u64] {
        match view {
            View::Virtual => &self.virt,
            View::Physical => &self.phys,
        }
    }

    /// Returns the offsets in force of the counter that a timer compares with.
    pub(crate) fn offsets_of(&self, timer: Timer) -> &[u64] {
        self.offsets_in(view_of(timer))
    }

    /// Returns a timer's columns for some rows.
    pub(crate) fn slices(&self, timer: Timer, rows: Range<usize>) -> TimerSlices<'_> {
        let TimerColumns { cval, ctl, .. } = &self.timers[timer.index()];
        TimerSlices { offsets: &self.offsets_of(timer)[rows.clone()], cval: &cval[rows.clone()], ctl: &ctl[rows] }
    }

    pub(crate) fn cval(&self, row: usize, timer: Timer) -> u64 {
        self.timers[timer.index()].cval[row]
    }

    pub(crate) fn set_cval(&mut self, row: usize, timer: Timer, cval: u64) {
        self.timers[timer.index()].cval[row] = cval;
    }

    /// Returns the stored CTL.
    pub(crate) fn ctl(&self, row: usize, timer: Timer) -> u64 {
        let upper = self.upper_ctl.get(&(row, timer)).copied().unwrap_or(0);
        upper | u64::from(self.timers[timer.index()].ctl[row])
    }

    pub(crate) fn set_ctl(&mut self, row: usize, timer: Timer, ctl: u64) {
        let [lowest, ..] = ctl.to_le_bytes();
        self.timers[timer.index()].ctl[row] = lowest;
        match ctl & !u64::from(u8::MAX) {
            0 if self.upper_ctl.is_empty() => {}
            0 => {
                self.upper_ctl.remove(&(row, timer));
            }
            upper => {
                self.upper_ctl.insert((row, timer), upper);
            }
        }
    }

    /// Number of timers of these rows that can raise their lines.
    pub(crate) fn armed(&self, rows: Range<usize>) -> usize {
        let each = |columns: &TimerColumns| {
            columns.ctl[rows.clone()].iter().filter(|ctl| timer::can_raise(u64::from(**ctl))).count()
        };
        self.timers.iter().map(each).sum()
    }

    /// Sets CTL of these rows to saved values.
    pub(crate) fn set_ctls(&mut self, rows: Range<usize>, timer: Timer, values: &Values<'_>) {
        let (column, of) = values.column();
        let bytes = &mut self.timers[timer.index()].ctl[rows.clone()];
        if self.upper_ctl.is_empty() && column.copy_to_bytes(of.clone(), bytes) {
            return;
        }
        rows.zip(values.iter()).for_each(|(row, ctl)| self.set_ctl(row, timer, ctl));
    }

    /// Appends the stored CTLs of these rows. `seen` maps a row's, where any has upper bits.
    pub(crate) fn append_ctls(
        &self,
        rows: Range<usize>,
        timer: Timer,
        to: &mut Vec<u64>,
        seen: impl Fn(u32, u64) -> u64,
    ) {
        if self.upper_ctl.is_empty() {
            to.extend(self.timers[timer.index()].ctl[rows].iter().copied().map(u64::from));
        } else {
            to.extend(rows.map(|row| seen(self.vm[row], self.ctl(row, timer))));
        }
    }

    /// Sets CNTVOFF_EL2, which takes effect at once.
    pub(crate) fn set_cntvoff(&mut self, row: usize, cntvoff: u64) {
        self.cntvoff[row] = cntvoff;
        self.virt[row] = Offset(self.phys[row]).plus(Offset(cntvoff)).0;
    }

    /// Returns the timers that have columns.
    pub(crate) fn kept(&self) -> &'static [Timer] {
        &Timer::ALL[..self.timers.len()]
    }

    /// Memory of the columns in bytes, including reserved capacity.
    pub(crate) fn bytes(&self) -> usize {
        let words = [&self.virt, &self.phys, &self.cntkctl, &self.cntvoff, &self.cnthctl].map(Vec::capacity);
        let timers = self.timers.iter().map(|it| it.cval.capacity() * 8 + it.ctl.capacity() + it.seen.capacity());
        let upper = self.upper_ctl.len() * size_of::<((usize, Timer), u64)>();
        let columns = words.iter().sum::<usize>() * 8 + self.vm.capacity() * 4 + self.running.capacity();
        columns + timers.sum::<usize>() + upper
    }

    fn clear_upper_ctl(&mut self, row: usize) {
        if !self.upper_ctl.is_empty() {
            self.upper_ctl.retain(|(of, _), _| *of != row);
        }
    }
}

fn keep<T>(column: &mut Vec<T>, vm: &[u32]) {
    let mut vms = vm.iter();
    column.retain(|_| vms.next().is_none_or(|vm| *vm != NOBODY));
}
