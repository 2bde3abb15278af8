//! Timer conditions and interrupt lines, and changes of lines.
#![expect(clippy::inline_always, reason = "what Isa::run asks for")]

use crate::bank::block::BLOCK;
use crate::bank::isa::Isa;
use crate::bank::timer_block::{TimerBlock, TimerSlices, conditions};
use guestclock_core::arch::arm64::timer;
use guestclock_core::time::HostCount;

/// Computes one timer of each row when the host's counter reads `now`: ISTATUS
/// ([`condition_met`](timer::condition_met)) and the level of its line ([`line`](timer::line())).
///
/// # Panics
///
/// If the columns differ in length.
pub fn evaluate(isa: Isa, now: HostCount, timer: TimerSlices<'_>, istatus: &mut [bool], line: &mut [bool]) {
    timer.same_rows(istatus.len());
    assert_eq!(istatus.len(), line.len(), "rows of ISTATUS and of the lines");
    isa.run(
        #[inline(always)]
        |_| {
            let (blocks, rest) = istatus.as_chunks_mut();
            let (line_blocks, line_rest) = line.as_chunks_mut();
            for (number, (istatus, line)) in blocks.iter_mut().zip(line_blocks).enumerate() {
                lines(now, timer.whole(number), istatus, line);
            }
            if !rest.is_empty() {
                let (mut met, mut high) = ([false; BLOCK], [false; BLOCK]);
                lines(now, timer.rest().block(), &mut met, &mut high);
                rest.copy_from_slice(&met[..rest.len()]);
                line_rest.copy_from_slice(&high[..rest.len()]);
            }
        },
    );
}

/// Computes ISTATUS and the line: the conditions first, then the lines from them, since a vector has room for more
/// lines than counts.
#[inline(always)]
fn lines(now: HostCount, timer: TimerBlock<'_>, istatus: &mut [bool; BLOCK], line: &mut [bool; BLOCK]) {
    // Local arrays, which no column can overlap.
    let (mut met, mut high) = ([false; BLOCK], [false; BLOCK]);
    conditions(now, timer, &mut met);
    for row in 0..BLOCK {
        high[row] = met[row] & timer::can_raise(timer.ctl[row].into());
    }
    *istatus = met;
    *line = high;
}

/// Writes the rows with a line that differs from `before` to the beginning of `rows`, in ascending order, and returns
/// their number.
///
/// Row numbers are `i64`, the array library's own index type. `rows` has an element for each line, since all of them
/// may have changed; elements past the returned number are left or overwritten.
///
/// # Panics
///
/// If the columns differ in length.
#[expect(clippy::needless_bitwise_bool, reason = "a branch for each row would keep it from being vector code")]
pub fn changes(isa: Isa, before: &[bool], line: &[bool], rows: &mut [i64]) -> usize {
    assert_eq!([line.len(), rows.len()], [before.len(); 2], "rows of both columns of lines, and of the output");
    isa.run(
        #[inline(always)]
        |_| {
            let mut found = 0;
            // In most blocks no line has changed, and one comparison skips the whole block.
            for (first, (before, line)) in (0..).step_by(BLOCK).zip(before.chunks(BLOCK).zip(line.chunks(BLOCK))) {
                if before.iter().zip(line).fold(false, |any, (before, line)| any | (before ^ line)) {
                    for (row, (before, line)) in (first..).zip(before.iter().zip(line)) {
                        if before != line {
                            rows[found] = row;
                            found += 1;
                        }
                    }
                }
            }
            found
        },
    )
}
