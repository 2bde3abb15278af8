//! One timer of many rows: its columns, a block of them, and the two loops over a block that [`Isa`](super::isa::Isa)
//! implements by hand for some instruction sets.
#![expect(clippy::inline_always, reason = "what Isa::run asks for")]
#![expect(clippy::needless_range_loop, reason = "a row is an index of several arrays")]

use crate::bank::block::{BLOCK, Lanes, rest, whole, widened};
use guestclock_core::arch::arm64::timer;
use guestclock_core::time::{HostCount, Offset};

/// Columns of one timer.
#[derive(Clone, Copy, Debug)]
pub struct TimerSlices<'a> {
    /// Offsets of the counter that the timer compares with.
    pub offsets: &'a [u64],
    /// Compare values.
    pub cval: &'a [u64],
    /// Controls. Only the lowest two bits matter.
    pub ctl: &'a [u8],
}

impl TimerSlices<'_> {
    pub(super) fn same_rows(&self, rows: usize) {
        let columns = [self.offsets.len(), self.cval.len(), self.ctl.len()];
        assert_eq!(columns, [rows; 3], "rows of the offsets, CVAL and CTL");
    }

    #[inline(always)]
    pub(super) fn whole(&self, number: usize) -> TimerBlock<'_> {
        let Self { offsets, cval, ctl } = self;
        TimerBlock { offsets: whole(offsets, number), cval: whole(cval, number), ctl: whole(ctl, number) }
    }

    #[inline(always)]
    pub(super) fn rest(&self) -> TimerRest {
        TimerRest { offsets: rest(self.offsets, 0), cval: rest(self.cval, 0), ctl: rest(self.ctl, 0) }
    }
}

/// One timer of a block of rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimerBlock<'a> {
    pub(super) offsets: &'a [u64; BLOCK],
    pub(super) cval: &'a [u64; BLOCK],
    pub(super) ctl: &'a [u8; BLOCK],
}

/// One timer of the rows after the whole blocks.
#[derive(Debug)]
pub(super) struct TimerRest {
    offsets: [u64; BLOCK],
    cval: [u64; BLOCK],
    ctl: [u8; BLOCK],
}

impl TimerRest {
    #[inline(always)]
    pub(super) fn block(&self) -> TimerBlock<'_> {
        TimerBlock { offsets: &self.offsets, cval: &self.cval, ctl: &self.ctl }
    }
}

/// Computes ISTATUS of each row.
#[inline(always)]
pub(super) fn conditions(now: HostCount, timer: TimerBlock<'_>, met: &mut [bool; BLOCK]) {
    for row in 0..BLOCK {
        met[row] = timer::condition_met(timer.cval[row], now.guest(Offset(timer.offsets[row])));
    }
}

/// Lowers `ticks`, row by row, to [`ticks_until`](timer::ticks_until) the timer's compare value.
#[inline(always)]
pub(super) fn least_ticks(now: HostCount, timer: TimerBlock<'_>, never: &Lanes<u8>, ticks: &mut [u64; BLOCK]) {
    for row in 0..BLOCK {
        let guest = now.guest(Offset(timer.offsets[row]));
        let until = timer::ticks_until(timer.cval[row], guest) | widened(never.0[row]);
        ticks[row] = until.min(ticks[row]);
    }
}
