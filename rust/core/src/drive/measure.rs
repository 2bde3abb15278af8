//! Counters by value: measuring an offset that can't be read, and setting one that can't be written.
//!
//! This serves a VM that never opted in: Linux before 6.4, and every VM whose VMM doesn't call
//! `KVM_ARM_SET_COUNTER_OFFSET`.

use crate::arch::arm64::{View, count_reg};
use crate::drive::machine::{Failed, Io, What};
use crate::restore::Late;
use crate::time::{HostCount, Offset, OffsetInterval};

/// Number of bracketed reads that one measurement intersects.
const ROUNDS: usize = 8;

/// Number of times that a count is set before its offset is accepted as it is.
const ATTEMPTS: usize = 16;

/// Measures the offset of one of the VM's counters by bracketed reads on vCPU 0.
pub(crate) async fn measure<E>(io: &Io<'_, E>, view: View) -> Result<OffsetInterval, Failed<E>> {
    let mut known: Option<OffsetInterval> = None;
    for _ in 0..ROUNDS {
        let round = io.bracket(0, view).await?;
        // A contradiction means that the offset has moved, and invalidates the earlier reads.
        let now = known.and_then(|known| known.intersect(round)).unwrap_or(round);
        known = Some(now);
        if now.width == 0 {
            break;
        }
    }
    Ok(known.unwrap_or(OffsetInterval { low: Offset(0), width: u64::MAX }))
}

/// Outcome of setting a counter by value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Set {
    /// Interval of the resulting offset.
    pub(crate) known: OffsetInterval,
    /// True if the counter is where it was before, and that isn't where it was to be: KVM ignored the values.
    pub(crate) ignored: bool,
}

/// Sets the count on vCPU 0 until the counter's offset is within `tolerance` ticks of `wanted`. Counts each write in
/// `writes`. `anchor` is an earlier sample.
///
/// If the offset may be right already, nothing is written: a stray physical offset of a few ticks would make CNTPCT_EL0
/// trap for good.
pub(crate) async fn set_offset_by_value<E>(
    io: &Io<'_, E>,
    view: View,
    wanted: Offset,
    anchor: HostCount,
    tolerance: u64,
    writes: &mut u64,
) -> Result<Set, Failed<E>> {
    let before = measure(io, view).await?;
    let mut known = before;
    // The guest's lead over the host's count by the time that the kernel uses it, learnt from the last attempt.
    let mut lead = 0;
    for attempt in 0..ATTEMPTS {
        if known.contains(wanted) || attempt > 0 && known.farthest(wanted) <= tolerance {
            break;
        }
        let late = Late::of_offset(Offset(wanted.0.wrapping_sub(lead)), anchor);
        io.set_late(What::Count { id: count_reg(view) }, late).await?;
        *writes += 1;
        known = measure(io, view).await?;
        // The kernel subtracts from a later count than ours, so the offset comes out too large by the delay.
        lead = known.low.0.wrapping_sub(wanted.0).wrapping_add(lead);
    }
    let reached = known.contains(wanted) || known.farthest(wanted) <= tolerance;
    Ok(Set { known, ignored: !reached && known.intersect(before).is_some() })
}
