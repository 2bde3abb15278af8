//! Next deadlines: of each row, of each VM, of all.
#![expect(clippy::inline_always, reason = "what Isa::run asks for")]
#![expect(clippy::needless_range_loop, reason = "a row is an index of several arrays")]

use crate::bank::block::{BLOCK, Lanes, block_at, widened};
use crate::bank::isa::Isa;
use crate::bank::timer_block::{TimerBlock, TimerSlices, least_ticks};
use guestclock_core::arch::arm64::timer;
use guestclock_core::time::{HostCount, NO_DEADLINE};

/// Computes the host count at which the first of each row's lines goes high by itself:
/// [`deadline`](guestclock_core::time::deadline) of the least [`ticks_to_line`](timer::ticks_to_line) of its timers.
///
/// The result is `now` if a line is high, and [`NO_DEADLINE`] for none. A deadline past the counter's last count is
/// held just below that.
///
/// # Panics
///
/// If the columns differ in length.
pub fn next_deadlines(isa: Isa, now: HostCount, timers: &[TimerSlices<'_>], out: &mut [u64]) {
    for timer in timers {
        timer.same_rows(out.len());
    }
    isa.run(
        #[inline(always)]
        |_| {
            let (blocks, rest) = out.as_chunks_mut();
            for (number, out) in blocks.iter_mut().enumerate() {
                let mut soonest = Soonest::none();
                for timer in timers {
                    soonest.add(now, timer.whole(number));
                }
                soonest.deadlines(now, out);
            }
            if !rest.is_empty() {
                let mut soonest = Soonest::none();
                for timer in timers {
                    soonest.add(now, timer.rest().block());
                }
                let mut deadlines = [0; BLOCK];
                soonest.deadlines(now, &mut deadlines);
                rest.copy_from_slice(&deadlines[..rest.len()]);
            }
        },
    );
}

/// Computes [`evaluate`](super::evaluate()) of each timer and [`next_deadlines`] of all of them, in one pass over the
/// columns. In `istatus` and `line` each timer's rows follow those of the timer before it.
///
/// # Panics
///
/// If the columns differ in length.
pub fn evaluate_and_deadlines(
    isa: Isa,
    now: HostCount,
    timers: &[TimerSlices<'_>],
    istatus: &mut [bool],
    line: &mut [bool],
    out: &mut [u64],
) {
    let rows = out.len();
    for timer in timers {
        timer.same_rows(rows);
    }
    assert_eq!([istatus.len(), line.len()], [timers.len() * rows; 2], "rows of ISTATUS and the lines of all timers");
    isa.run(
        #[inline(always)]
        |isa| {
            let (blocks, rest) = out.as_chunks_mut();
            for (number, out) in blocks.iter_mut().enumerate() {
                let mut soonest = Soonest::none();
                let mut first = number * BLOCK;
                for timer in timers {
                    let timer = timer.whole(number);
                    soonest.add_with_lines(isa, now, timer, block_at(istatus, first), block_at(line, first));
                    first += rows;
                }
                soonest.deadlines(now, out);
            }
            if !rest.is_empty() {
                let mut soonest = Soonest::none();
                let mut last = rows;
                let (mut met, mut high) = ([false; BLOCK], [false; BLOCK]);
                for timer in timers {
                    let timer = timer.rest();
                    soonest.add_with_lines(isa, now, timer.block(), &mut met, &mut high);
                    istatus[last - rest.len()..last].copy_from_slice(&met[..rest.len()]);
                    line[last - rest.len()..last].copy_from_slice(&high[..rest.len()]);
                    last += rows;
                }
                let mut deadlines = [0; BLOCK];
                soonest.deadlines(now, &mut deadlines);
                rest.copy_from_slice(&deadlines[..rest.len()]);
            }
        },
    );
}

/// First line of each row of a block to go high.
#[derive(Debug)]
#[repr(align(64))]
struct Soonest {
    /// Ticks until then. Both "never" and the largest number are all ones.
    ticks: [u64; BLOCK],
    /// All ones if no line ever goes high.
    silent: [u8; BLOCK],
}

impl Soonest {
    #[inline(always)]
    fn none() -> Self {
        Self { ticks: [u64::MAX; BLOCK], silent: [u8::MAX; BLOCK] }
    }

    #[inline(always)]
    fn add(&mut self, now: HostCount, timer: TimerBlock<'_>) {
        let never = self.never(timer);
        least_ticks(now, timer, &never, &mut self.ticks);
    }

    /// Adds a timer as `add` does, and computes its ISTATUS and line.
    #[inline(always)]
    fn add_with_lines(
        &mut self,
        isa: Isa,
        now: HostCount,
        timer: TimerBlock<'_>,
        istatus: &mut [bool; BLOCK],
        line: &mut [bool; BLOCK],
    ) {
        let never = self.never(timer);
        // Local arrays, which no column can overlap.
        let (mut met, mut high) = (Lanes([false; BLOCK]), Lanes([false; BLOCK]));
        isa.conditions_and_ticks(now, timer, &never, &mut met, &mut self.ticks);
        for row in 0..BLOCK {
            let can_raise = never.0[row] == 0;
            high.0[row] = met.0[row] & can_raise;
        }
        *istatus = met.0;
        *line = high.0;
    }

    /// Returns all ones if the timer never raises its line.
    #[inline(always)]
    fn never(&mut self, timer: TimerBlock<'_>) -> Lanes<u8> {
        let mut never = Lanes([0; BLOCK]);
        for row in 0..BLOCK {
            never.0[row] = u8::from(timer::can_raise(timer.ctl[row].into())).wrapping_sub(1);
            self.silent[row] &= never.0[row];
        }
        never
    }

    #[inline(always)]
    fn deadlines(&self, now: HostCount, out: &mut [u64; BLOCK]) {
        // A real deadline is `soonest` and at most `room` more, so that nothing is left to saturate in the loop.
        let soonest = now.0.min(NO_DEADLINE - 1);
        let room = NO_DEADLINE - 1 - soonest;
        for row in 0..BLOCK {
            out[row] = soonest.wrapping_add(self.ticks[row].min(room)) | widened(self.silent[row]);
        }
    }
}

/// Computes the earliest deadline of each VM's rows; [`NO_DEADLINE`] for a VM without rows. `vm_of` is the VM of each
/// row, in any order, and `out` has an element for each VM.
///
/// # Panics
///
/// If the columns differ in length, or at a row whose VM isn't in `out`: then the rows before it have been processed.
pub fn deadlines_by_vm(deadlines: &[u64], vm_of: &[u32], out: &mut [u64]) {
    assert_eq!(vm_of.len(), deadlines.len(), "rows of the deadlines and of their VMs");
    out.fill(NO_DEADLINE);
    for (&deadline, &vm) in deadlines.iter().zip(vm_of) {
        let earliest = &mut out[vm as usize];
        *earliest = deadline.min(*earliest);
    }
}

/// Returns the earliest of all deadlines; [`NO_DEADLINE`] for none.
#[must_use]
pub fn earliest(isa: Isa, deadlines: &[u64]) -> u64 {
    isa.run(
        #[inline(always)]
        |_| deadlines.iter().fold(NO_DEADLINE, |earliest, &deadline| earliest.min(deadline)),
    )
}
