//! Batches: reads of many vCPUs at one instant, and writes to many.
//!
//! `now` is always a count of the bank's counter. VMs of another frequency have a `now` of their own, by their exact
//! ratio, and their deadlines are converted back to the bank's counter.

use crate::bank::counts;
use crate::bank::deadlines::{deadlines_by_vm, earliest, evaluate_and_deadlines, next_deadlines};
use crate::bank::handle::Handle;
use crate::bank::lines::{changes, evaluate};
use crate::bank::selection::{Part, Selection};
use crate::bank::timer_block::TimerSlices;
use crate::bank::timer_queue::{Due, TimerQueue};
use crate::bank::vms::{Bank, BankError, FrequencyDomain, narrow};
use crate::deadlines::NotTaken;
use crate::error::VmError;
use guestclock_core::arch::arm64::timer::can_raise;
use guestclock_core::arch::arm64::{CTL_ISTATUS, Timer, View};
use guestclock_core::time::{HostCount, NO_DEADLINE};
use std::borrow::Cow;

/// A line that has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// The timer's vCPU.
    pub vcpu: Handle,
    /// The timer.
    pub timer: Timer,
    /// The line's new level.
    pub level: bool,
}

/// A timer that has fired.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Expired {
    /// Count of the bank's counter at the deadline; 0 if it was before the first count.
    pub deadline: u64,
    /// The timer's vCPU.
    pub vcpu: Handle,
    /// The timer.
    pub timer: Timer,
}

impl Bank {
    /// Reads the vCPUs' counters at `now` into `out`, which has room for each selected vCPU.
    pub fn counts(&self, now: HostCount, view: View, vcpus: &Selection, out: &mut [u64]) {
        for (part, domain, now) in self.parts(vcpus, now) {
            let offsets = part.of(domain.rows.offsets_in(view));
            part.write(out, |out| counts(self.isa, now, &offsets, out));
        }
    }

    /// Reads the offsets in force of one of the vCPUs' counters.
    pub fn offsets(&self, view: View, vcpus: &Selection, out: &mut [u64]) {
        for (part, domain, _) in self.parts(vcpus, HostCount(0)) {
            part.write(out, |out| out.copy_from_slice(&part.of(domain.rows.offsets_in(view))));
        }
    }

    /// Reads which vCPUs are in their guests.
    pub fn running(&self, vcpus: &Selection, out: &mut [bool]) {
        for (part, domain, _) in self.parts(vcpus, HostCount(0)) {
            part.write(out, |out| out.copy_from_slice(&part.of(&domain.rows.running)));
        }
    }

    /// Computes ISTATUS and the line of every timer at `now`, and [`next_deadlines`](Self::next_deadlines). `istatus`
    /// and `line` have a column for each of [`timers`](Self::timers), one after the other.
    pub fn evaluate(
        &self,
        now: HostCount,
        vcpus: &Selection,
        istatus: &mut [bool],
        line: &mut [bool],
        deadlines: &mut [u64],
    ) {
        for (part, domain, here) in self.parts(vcpus, now) {
            let picked = Picked::all(part, domain);
            let slices = picked.each_ref().map(Picked::slices);
            let timers = &slices[..domain.rows.kept().len()];
            part.write_all(istatus, line, deadlines, |istatus, line, deadlines| {
                evaluate_and_deadlines(self.isa, here, timers, istatus, line, deadlines);
                domain.lead_back(now, deadlines);
            });
        }
    }

    /// Computes the count of the bank's counter at which the first of each vCPU's lines goes high: `now` if one is
    /// high, [`NO_DEADLINE`] if none ever will be.
    pub fn next_deadlines(&self, now: HostCount, vcpus: &Selection, out: &mut [u64]) {
        for (part, domain, here) in self.parts(vcpus, now) {
            let picked = Picked::all(part, domain);
            let slices = picked.each_ref().map(Picked::slices);
            let timers = &slices[..domain.rows.kept().len()];
            part.write(out, |out| {
                next_deadlines(self.isa, here, timers, out);
                domain.lead_back(now, out);
            });
        }
    }

    /// Computes the earliest of the [`next_deadlines`](Self::next_deadlines) of each VM: of these VMs, or of all in the
    /// order of [`handles`](Self::handles).
    pub fn next_deadlines_of_vms(
        &mut self,
        now: HostCount,
        vms: Option<&[Handle]>,
        out: &mut [u64],
    ) -> Result<(), BankError> {
        let Some(vms) = vms else {
            let all = self.all();
            let mut deadlines = vec![NO_DEADLINE; all.len()];
            self.next_deadlines(now, &all, &mut deadlines);
            let vm_of: Vec<u32> = self.domains.iter().flat_map(|domain| domain.rows.vm.iter().copied()).collect();
            let mut by_slot = vec![NO_DEADLINE; self.seats.len()];
            deadlines_by_vm(&deadlines, &vm_of, &mut by_slot);
            for (out, vm) in out.iter_mut().zip(self.handles()) {
                *out = by_slot[vm.slot() as usize];
            }
            return Ok(());
        };
        let slots = self.slots(vms)?;
        let mut deadlines = [0; crate::config::MAX_VCPUS];
        for (out, slot) in out.iter_mut().zip(slots) {
            let (rows, domain) = (self.rows_of(slot), self.domain_of(slot));
            let deadlines = &mut deadlines[..rows.len()];
            let timers: Vec<TimerSlices> =
                domain.rows.kept().iter().map(|timer| domain.rows.slices(*timer, rows.clone())).collect();
            next_deadlines(self.isa, domain.ratio.at(now), &timers, deadlines);
            domain.lead_back(now, deadlines);
            *out = earliest(self.isa, deadlines);
        }
        Ok(())
    }

    /// Returns the lines that have changed since the last call, timer by timer in the order of the rows. A new vCPU's
    /// lines are low. Those of a VM that is paused or being restored stay as they were seen, until it goes on.
    pub fn changes(&mut self, now: HostCount) -> Vec<Change> {
        self.close_gaps();
        let mut found = Vec::new();
        let held: Vec<_> = self.held().map(|slot| (self.domain_and_class(slot).0, self.rows_of(slot))).collect();
        for number in 0..self.domains.len() {
            let here = self.now_of(number, now);
            let rows = &mut self.domains[number].rows;
            let (mut istatus, mut line) = (vec![false; rows.len()], vec![false; rows.len()]);
            let mut changed = vec![0; rows.len()];
            for &timer in rows.kept() {
                evaluate(self.isa, here, rows.slices(timer, 0..rows.len()), &mut istatus, &mut line);
                let seen = &mut rows.timers[timer.index()].seen;
                seen.resize(line.len(), false);
                for (_, held) in held.iter().filter(|(domain, _)| usize::from(*domain) == number) {
                    line[held.clone()].copy_from_slice(&seen[held.clone()]);
                }
                let count = changes(self.isa, seen, &line, &mut changed);
                seen.copy_from_slice(&line);
                let rows = changed[..count].iter().map(|row| usize::try_from(*row).unwrap_or(usize::MAX));
                found.extend(rows.map(|row| (number, row, timer, line[row])));
            }
        }
        let handle = |domain: usize, row: usize| self.handle_of(self.domains[domain].rows.vm[row], narrow(row));
        found
            .into_iter()
            .map(|(domain, row, timer, level)| Change { vcpu: handle(domain, row), timer, level })
            .collect()
    }

    /// Writes CVAL and CTL of one timer of many vCPUs, as SET_ONE_REG of each does: of all, or of none.
    ///
    /// # Panics
    ///
    /// If the columns differ in length.
    pub fn set_timers(&mut self, timer: Timer, vcpus: &[Handle], cval: &[u64], ctl: &[u8]) -> Result<(), BankError> {
        assert_eq!([cval.len(), ctl.len()], [vcpus.len(); 2], "vCPUs, CVAL and CTL");
        let found = self.find(vcpus)?;
        for (vcpu, (domain, row)) in vcpus.iter().zip(&found) {
            let refused = if !self.class_of(vcpu.slot()).config.el2.timers().contains(&timer) {
                VmError::NoSuchTimer { timer }
            } else if self.domains[*domain].rows.running[*row as usize] {
                VmError::Running { vcpu: vcpu.number().into() }
            } else {
                continue;
            };
            return Err(BankError::OfVm { handle: vcpu.vm().0, error: refused });
        }
        let mut queued: Vec<Queued> = self.domains.iter().map(|_| Queued::default()).collect();
        for ((vcpu, (number, row)), (cval, ctl)) in vcpus.iter().zip(found).zip(cval.iter().zip(ctl)) {
            let (slot, row, ctl) = (vcpu.slot(), row as usize, u64::from(*ctl) & !CTL_ISTATUS);
            let FrequencyDomain { rows, queue, .. } = &mut self.domains[number];
            rows.set_cval(row, timer, *cval);
            rows.set_ctl(row, timer, ctl);
            if let Some(queue) = queue {
                queued[number].add(queue.id(slot, vcpu.number(), timer), can_raise(ctl).then_some(*cval));
            }
            self.seats[slot as usize].changes += 1;
        }
        for (domain, queued) in self.domains.iter_mut().zip(queued) {
            if let Some(queue) = &mut domain.queue {
                queue.write_all(&queued.queue, &queued.cvals, &queued.disarmed);
            }
        }
        Ok(())
    }

    /// Returns the count of the bank's counter at which the next line goes high: `now` if one is high, [`NO_DEADLINE`]
    /// if none will be.
    ///
    /// Ignores timers already returned by [`expire`](Self::expire), until they are written again or an offset change
    /// puts them into the future.
    pub fn next_deadline(&mut self, now: HostCount) -> u64 {
        self.look_again(now);
        let deadlines = self.queue(now).map(|domain| {
            let mut deadline =
                [domain.queue.as_mut().map_or(NO_DEADLINE, |queue| queue.next_deadline(domain.ratio.at(now)))];
            domain.lead_back(now, &mut deadline);
            deadline[0]
        });
        deadlines.fold(NO_DEADLINE, u64::min)
    }

    /// Returns the timers whose lines have gone high, ordered by deadline, vCPU and timer. A timer is returned once,
    /// until it is written again or an offset change puts it into the future. A VM that is paused or being restored has
    /// none, until it goes on.
    ///
    /// # Panics
    ///
    /// Without memory for them. [`expire_at_most`](Self::expire_at_most) takes none then.
    pub fn expire(&mut self, now: HostCount) -> Vec<Expired> {
        self.expire_at_most(usize::MAX, now).expect("there is memory for the timers that are due")
    }

    /// Does as [`expire`](Self::expire) does, if no more than `most` timers are due. All memory is reserved first, so
    /// that a refusal leaves every timer to be returned.
    pub fn expire_at_most(&mut self, most: usize, now: HostCount) -> Result<Vec<Expired>, NotTaken> {
        self.look_again(now);
        if self.queue(now).filter(|domain| domain.queue.is_some()).count() > 1 {
            let mut due = 0;
            for domain in self.queue(now) {
                let here = domain.ratio.at(now);
                due += domain.queue.as_mut().map_or(Ok(0), |queue| queue.due(here))?;
            }
            if due > most {
                return Err(NotTaken::More { due });
            }
        }
        let (mut fired, mut expired) = (Vec::new(), Vec::new());
        for domain in self.queue(now) {
            let from = fired.len();
            let here = domain.ratio.at(now);
            if let Some(queue) = &mut domain.queue {
                let taken = queue.expire(most, here, &mut fired, |timers| expired.try_reserve(timers));
                // Those that were taken are given out, and the others stay due.
                if fired.is_empty() {
                    taken?;
                }
            }
            if !domain.ratio.is_one() {
                for due in &mut fired[from..] {
                    due.deadline = domain
                        .ratio
                        .inner_count(HostCount(due.deadline), now)
                        .map_or(now.0, |count| count.0.min(now.0));
                }
            }
        }
        let of =
            |Due { deadline, slot, vcpu, timer }| Expired { deadline, vcpu: self.handle_of_vm(slot).vcpu(vcpu), timer };
        expired.extend(fired.into_iter().map(of));
        expired.sort_unstable();
        Ok(expired)
    }

    /// Number of timers that are yet to fire, without those of VMs that are paused or being restored; 0 until the first
    /// query for a deadline.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.domains.iter().filter_map(|domain| domain.queue.as_ref()).map(TimerQueue::pending).sum()
    }

    fn look_again(&mut self, now: HostCount) {
        for number in 0..self.domains.len() {
            let Some(mut queue) = self.domains[number].queue.take() else { continue };
            for slot in queue.take_moved() {
                queue.look_again(self.place(slot), &self.domains[number].rows, self.now_of(number, now));
            }
            self.domains[number].queue = Some(queue);
        }
    }

    fn parts<'a>(
        &'a self,
        vcpus: &'a Selection,
        now: HostCount,
    ) -> impl Iterator<Item = (&'a Part, &'a FrequencyDomain, HostCount)> {
        vcpus.parts().iter().map(move |part| (part, &self.domains[part.domain], self.now_of(part.domain, now)))
    }
}

/// Columns of one timer for the vCPUs of a part.
#[derive(Default)]
struct Picked<'a> {
    offsets: Cow<'a, [u64]>,
    cval: Cow<'a, [u64]>,
    ctl: Cow<'a, [u8]>,
}

impl<'a> Picked<'a> {
    /// Returns the timers; those with columns come first.
    fn all(part: &Part, domain: &'a FrequencyDomain) -> [Self; Timer::ALL.len()] {
        Timer::ALL.map(|timer| match domain.rows.timers.get(timer.index()) {
            None => Self::default(),
            Some(columns) => Self {
                offsets: part.of(domain.rows.offsets_of(timer)),
                cval: part.of(&columns.cval),
                ctl: part.of(&columns.ctl),
            },
        })
    }

    fn slices(&self) -> TimerSlices<'_> {
        TimerSlices { offsets: &self.offsets, cval: &self.cval, ctl: &self.ctl }
    }
}

/// Writes to a deadline queue.
#[derive(Default)]
struct Queued {
    queue: Vec<u32>,
    cvals: Vec<u64>,
    disarmed: Vec<u32>,
}

impl Queued {
    fn add(&mut self, id: u32, cval: Option<u64>) {
        match cval {
            Some(cval) => {
                self.queue.push(id);
                self.cvals.push(cval);
            }
            None => self.disarmed.push(id),
        }
    }
}

impl FrequencyDomain {
    /// Converts deadlines in the domain's counts to counts of the bank's counter. A deadline past the last count is
    /// held just below it.
    fn lead_back(&self, now: HostCount, deadlines: &mut [u64]) {
        if self.ratio.is_one() {
            return;
        }
        let here = self.ratio.at(now);
        for deadline in deadlines.iter_mut().filter(|deadline| **deadline != NO_DEADLINE) {
            *deadline = if *deadline == here.0 {
                now.0
            } else {
                self.ratio
                    .inner_count(HostCount(*deadline), now)
                    .map_or(NO_DEADLINE - 1, |count| count.0.min(NO_DEADLINE - 1))
            };
        }
    }
}
