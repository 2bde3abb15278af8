//! Timer conditions and interrupt lines, and which lines have changed.

use super::TimerSlices;
use crate::counter::{HostCount, Offset};
use crate::timer;

/// Rows that are taken together, so that what is written of them stays in the first-level cache. Of most blocks no line
/// has changed, and one look passes over all of it.
const BLOCK: usize = 64;
const BLOCK_ROWS: i64 = 64;

/// Of one timer on each row when the host's counter reads `now`: ISTATUS ([`condition_met`](timer::condition_met)) and
/// the level of its line ([`line`](timer::line())).
///
/// # Panics
///
/// Where the columns differ in length.
pub fn evaluate<C: Copy + Into<u64>>(
    now: HostCount,
    columns: TimerSlices<'_, C>,
    istatus: &mut [bool],
    line: &mut [bool],
) {
    let TimerSlices { offsets, cval, ctl } = columns;
    let rows = [offsets.len(), cval.len(), ctl.len(), istatus.len(), line.len()];
    assert_eq!(rows, [offsets.len(); 5], "rows of the offsets, CVAL, CTL, ISTATUS and the lines");
    // A block's conditions, then its lines: a vector has room for more lines than for counts.
    let outputs = istatus.chunks_mut(BLOCK).zip(line.chunks_mut(BLOCK));
    let inputs = offsets.chunks(BLOCK).zip(cval.chunks(BLOCK)).zip(ctl.chunks(BLOCK));
    for ((istatus, line), ((offsets, cval), ctl)) in outputs.zip(inputs) {
        for (istatus, (&offset, &cval)) in istatus.iter_mut().zip(offsets.iter().zip(cval)) {
            *istatus = timer::condition_met(cval, now.guest(Offset(offset)));
        }
        for (line, (&istatus, &ctl)) in line.iter_mut().zip(istatus.iter().zip(ctl)) {
            *line = istatus & timer::can_raise(ctl.into());
        }
    }
}

/// The rows whose line isn't as it was `before`, in ascending order into the beginning of `rows`; returns how many.
///
/// The numbers are `i64`, the array library's own index type. `rows` has as many elements as there are lines, since all
/// of them may have changed; those past the returned number are left or overwritten.
///
/// # Panics
///
/// Where the columns differ in length.
#[expect(clippy::needless_bitwise_bool, reason = "a branch for each row would keep it from being vector code")]
pub fn changes(before: &[bool], line: &[bool], rows: &mut [i64]) -> usize {
    assert_eq!([line.len(), rows.len()], [before.len(); 2], "rows of both columns of lines, and of the output");
    let mut found = 0;
    let mut first = 0_i64;
    for (before, line) in before.chunks(BLOCK).zip(line.chunks(BLOCK)) {
        if before.iter().zip(line).fold(false, |any, (before, line)| any | (before ^ line)) {
            for (row, (before, line)) in (first..).zip(before.iter().zip(line)) {
                if before != line {
                    rows[found] = row;
                    found += 1;
                }
            }
        }
        first += BLOCK_ROWS;
    }
    found
}
