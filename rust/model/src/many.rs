//! The driver of a machine over many VMs of a bank: copies and comparisons of columns.

use crate::backend::Model;
use crate::bank::Bank;
use crate::bank::rows::Rows;
use crate::error::VmError;
use crate::vm::ModelVm;
use guestclock_core::arch::arm64::timer::moved_cval;
use guestclock_core::checkpoint::Held;
use guestclock_core::drive::machine::Answer;
use guestclock_core::drive::{Block, BlockColumn, Done, Failed, Op, SavedRegister, set_counters};
use guestclock_core::restore::{Method, Outcome, Plans};
use guestclock_core::time::{Counter, Offset};
use std::ops::Range;

/// VMs of a bank and its counter, as a machine over many of them sees them.
pub(crate) struct Many<'a> {
    pub(crate) bank: &'a mut Bank,
    pub(crate) slots: &'a [u32],
    pub(crate) counter: &'a dyn Counter,
    rows: Runs,
    /// True once something was written.
    pub(crate) written: bool,
    /// Place of the VM that the last step failed for.
    pub(crate) failed: usize,
}

impl<'a> Many<'a> {
    pub(crate) fn new(bank: &'a mut Bank, slots: &'a [u32], counter: &'a dyn Counter) -> Self {
        let rows = Runs::of(bank, slots.iter().copied());
        Self { bank, slots, counter, rows, written: false, failed: 0 }
    }

    /// Carries out a step.
    ///
    /// # Panics
    /// At a step that no machine over many VMs asks for.
    pub(crate) fn carry_out(&mut self, op: &Op<'_>) -> Answer<VmError> {
        match op {
            Op::Look => self.look(),
            Op::Sample => Ok(Done::Count(self.counter.count())),
            Op::Stamp => Ok(Done::Stamp(self.counter.stamp())),
            Op::Write(block) => {
                self.written = true;
                self.each_block(block, write)
            }
            Op::ReadBack(block) => self.each_block(block, |rows, of, column| compare(rows, of, column)),
            Op::SetEachLate(plans) => self.set_each(plans),
            _ => unreachable!("a machine over many VMs asks for no other step"),
        }
    }

    fn look(&mut self) -> Answer<VmError> {
        if self.rows.one_runs(self.bank) {
            for (place, slot) in self.slots.iter().enumerate() {
                let vm = ModelVm::view(&*self.bank, *slot);
                vm.all_stopped().inspect_err(|_| self.failed = place).map_err(Failed::Call)?;
            }
        }
        Ok(Done::Ok)
    }

    /// Takes a step for each column of a block, and in it for all rows of the bank that follow each other.
    fn each_block(
        &mut self,
        block: &Block<'_>,
        step: impl Fn(&mut Rows, Range<usize>, &BlockColumn<'_>) -> Result<(), Failed<VmError>>,
    ) -> Answer<VmError> {
        for (vms, block) in block.runs() {
            let all = vms.len() == self.slots.len();
            let slots = || self.slots[vms.clone()].iter().copied();
            let runs = if all { self.rows.clone() } else { Runs::of(self.bank, slots()) };
            for column in block.columns() {
                let mut begin = 0;
                for (domain, rows) in runs.iter() {
                    let part = column.part(begin..begin + rows.len());
                    let done = step(&mut self.bank.domains[*domain].rows, rows.clone(), &part);
                    done.map_err(|failed| self.failed_at(vms.start, begin, failed))?;
                    begin += rows.len();
                }
            }
        }
        Ok(Done::Ok)
    }

    /// Names the VM of a failure, whose row is counted from `begin` rows after the first VM's.
    fn failed_at(&mut self, first: usize, begin: usize, failed: Failed<VmError>) -> Failed<VmError> {
        let (Failed::Register { vcpu, .. } | Failed::Differs { register: SavedRegister { vcpu, .. }, .. }) = &failed
        else {
            return failed;
        };
        let mut row = begin + vcpu;
        self.failed = first;
        for slot in &self.slots[first..] {
            let vcpus = self.bank.rows_of(*slot).len();
            if row < vcpus {
                break;
            }
            row -= vcpus;
            self.failed += 1;
        }
        match failed {
            Failed::Register { id, reading, error, .. } => Failed::Register { vcpu: row, id, reading, error },
            Failed::Differs { register, read } => {
                Failed::Differs { register: SavedRegister { vcpu: row, ..register }, read }
            }
            failed @ Failed::Call(_) => failed,
        }
    }

    /// Sets the counters of each VM for one sample.
    fn set_each(&mut self, plans: &Plans) -> Answer<VmError> {
        self.written = true;
        // As late as can be: under Freeze every tick after it is seen by the guests.
        let now = self.counter.count();
        let mut done = Ok(Done::Count(now));
        let outcomes: Vec<Outcome> = plans.outcomes(now, self.counter.frequency()).collect();
        for (run, plan, outcome, counters) in plans.runs(&outcomes) {
            for (place, (cntvct, cntpct)) in run.zip(counters) {
                let mut vm = ModelVm::view(&mut *self.bank, self.slots[place]);
                // All were looked at before, and the plan's method is one that the VM has.
                let set = if plan.method == Method::Offset {
                    vm.opt_in_stopped(Offset::between(outcome.count, cntvct));
                    Ok(())
                } else {
                    let outcome = Outcome { cntvct, cntpct, ..*outcome };
                    set_counters(plan, &outcome, &mut Model { vm: &mut vm, counter: &plan.instant_of(&outcome) })
                };
                if let (Err(error), true) = (set, done.is_ok()) {
                    self.failed = place;
                    done = Err(Failed::Call(error));
                }
            }
        }
        done
    }
}

/// Rows of VMs with the number of their domain, those that follow each other together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runs(Vec<(usize, Range<usize>)>);

impl Runs {
    pub(crate) fn of(bank: &Bank, slots: impl IntoIterator<Item = u32>) -> Self {
        let mut runs = Self::default();
        slots.into_iter().for_each(|slot| runs.add(bank, slot));
        runs
    }

    /// Adds the rows of a VM.
    pub(crate) fn add(&mut self, bank: &Bank, slot: u32) {
        let (domain, rows) = (bank.domain_and_class(slot).0.into(), bank.rows_of(slot));
        match self.0.last_mut() {
            Some((of, before)) if (*of, before.end) == (domain, rows.start) => before.end = rows.end,
            _ => self.0.push((domain, rows)),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(usize, Range<usize>)> {
        self.0.iter()
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|(_, rows)| rows.len()).sum()
    }

    /// Returns whether one of the vCPUs runs.
    pub(crate) fn one_runs(&self, bank: &Bank) -> bool {
        self.0.iter().any(|(domain, rows)| bank.domains[*domain].rows.running[rows.clone()].contains(&true))
    }
}

/// Writes a register of a VM's rows, none of which runs.
fn write(rows: &mut Rows, of: Range<usize>, column: &BlockColumn<'_>) -> Result<(), Failed<VmError>> {
    match column.held {
        Held::Cval(timer) => {
            let cvals = &mut rows.timers[timer.index()].cval[of];
            let (values, from) = column.values.column();
            values.copy_to(from.clone(), cvals);
            if column.shift != 0 {
                for cval in cvals {
                    *cval = moved_cval(*cval, column.shift);
                }
            }
        }
        Held::Ctl(timer) => rows.set_ctls(of, timer, &column.values),
        Held::Cntvoff => of.zip(column.written()).for_each(|(row, cntvoff)| rows.set_cntvoff(row, cntvoff)),
        Held::Unknown => return Err(unknown(column.id)),
    }
    Ok(())
}

/// Compares a register of a VM's rows with what was written.
fn compare(rows: &Rows, of: Range<usize>, column: &BlockColumn<'_>) -> Result<(), Failed<VmError>> {
    let (values, from) = column.values.column();
    let from = from.clone();
    let same = match column.held {
        Held::Cval(timer) => {
            let cvals = &rows.timers[timer.index()].cval[of.clone()];
            values.all_with(from, cvals, |value, cval| moved_cval(value, column.shift) == cval)
        }
        Held::Ctl(timer) => {
            let ctls = &rows.timers[timer.index()].ctl[of.clone()];
            values.all_with(from, ctls, |value, ctl| (value ^ u64::from(ctl)) & column.seen == 0)
        }
        Held::Cntvoff => values.all_with(from, &rows.cntvoff[of.clone()], |value, cntvoff| value == cntvoff),
        Held::Unknown => false,
    };
    if same {
        return Ok(());
    }
    let differs = |vcpu, value, read| SavedRegister { vcpu, id: column.id, value, seen: column.seen }.check(read);
    let mut written = column.written().enumerate().zip(of);
    written.try_for_each(|((vcpu, value), row)| match column.held {
        Held::Cval(timer) => differs(vcpu, value, rows.cval(row, timer)),
        Held::Ctl(timer) => differs(vcpu, value, rows.ctl(row, timer)),
        Held::Cntvoff => differs(vcpu, value, rows.cntvoff[row]),
        Held::Unknown => Err(unknown(column.id)),
    })
}

const fn unknown(id: u64) -> Failed<VmError> {
    Failed::Register { vcpu: 0, id, reading: false, error: VmError::NoSuchOneReg { id } }
}
