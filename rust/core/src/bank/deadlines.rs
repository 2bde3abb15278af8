//! The next deadline: of each row, of each VM, of all.

use super::NO_DEADLINE;
use crate::counter::{HostCount, Offset};
use crate::timer;
use core::ops::Range;

/// How many rows are taken through all their timers at a time, so that what is written stays in the first-level cache.
const BLOCK: usize = 512;

/// One timer of every row.
///
/// CTL may be kept as it is stored, or as a byte: the bits that a timer goes by are the lowest two.
#[derive(Clone, Copy, Debug)]
pub struct TimerSlices<'a, C = u64> {
    /// The offsets of the counter that the timer compares with.
    pub offsets: &'a [u64],
    /// The compare values.
    pub cval: &'a [u64],
    /// The controls.
    pub ctl: &'a [C],
}

impl<C> TimerSlices<'_, C> {
    fn same_rows(&self, rows: usize) {
        let columns = [self.offsets.len(), self.cval.len(), self.ctl.len()];
        assert_eq!(columns, [rows; 3], "rows of the offsets, CVAL and CTL");
    }

    fn block(&self, rows: Range<usize>) -> impl Iterator<Item = (u64, u64, C)>
    where
        C: Copy,
    {
        let (offsets, cval, ctl) = (&self.offsets[rows.clone()], &self.cval[rows.clone()], &self.ctl[rows]);
        offsets.iter().zip(cval).zip(ctl).map(|((&offset, &cval), &ctl)| (offset, cval, ctl))
    }
}

/// The host count at which the first of each row's lines goes high by itself: [`deadline`](super::deadline) of the
/// least [`ticks_to_line`](timer::ticks_to_line) of its timers. `now` where a line is high, [`NO_DEADLINE`] for none,
/// and a deadline past the counter's last count is held just below that.
///
/// # Panics
///
/// Where the columns differ in length.
pub fn next_deadlines<C: Copy + Into<u64>>(now: HostCount, timers: &[TimerSlices<'_, C>], out: &mut [u64]) {
    for timer in timers {
        timer.same_rows(out.len());
    }
    // A real deadline is `soonest` and at most `room` more, so that nothing is left to saturate in the loop.
    let soonest = now.0.min(NO_DEADLINE - 1);
    let room = NO_DEADLINE - 1 - soonest;
    let deadline = |(offset, cval, ctl): (u64, u64, C)| {
        let guest = now.guest(Offset(offset));
        // All bits set, which is NO_DEADLINE, where the line never goes high.
        let never = u64::from(timer::can_raise(ctl.into())).wrapping_sub(1);
        soonest.wrapping_add(timer::ticks_until(cval, guest).min(room)) | never
    };
    for (number, out) in out.chunks_mut(BLOCK).enumerate() {
        let rows = number * BLOCK..number * BLOCK + out.len();
        out.fill(NO_DEADLINE);
        for timer in timers {
            for (out, timer) in out.iter_mut().zip(timer.block(rows.clone())) {
                *out = deadline(timer).min(*out);
            }
        }
    }
}

/// The earliest deadline of each VM's rows, [`NO_DEADLINE`] for a VM without any: `vm_of` is the VM of each row, in any
/// order, and `out` has an element for each VM.
///
/// # Panics
///
/// Where the columns differ in length, and at a row whose VM isn't in `out`: the rows before it have been looked at
/// then.
pub fn deadlines_by_vm(deadlines: &[u64], vm_of: &[u32], out: &mut [u64]) {
    assert_eq!(vm_of.len(), deadlines.len(), "rows of the deadlines and of their VMs");
    out.fill(NO_DEADLINE);
    for (&deadline, &vm) in deadlines.iter().zip(vm_of) {
        let earliest = &mut out[vm as usize];
        *earliest = deadline.min(*earliest);
    }
}

/// The earliest deadline of all: [`NO_DEADLINE`] for none.
#[must_use]
pub fn earliest(deadlines: &[u64]) -> u64 {
    deadlines.iter().fold(NO_DEADLINE, |earliest, &deadline| earliest.min(deadline))
}
