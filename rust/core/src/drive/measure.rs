//! Counters by value: finding out an offset that can't be read, and setting one that can't be written.
//!
//! For a VM that never opted in: Linux before 6.4, and every VM whose VMM doesn't call `KVM_ARM_SET_COUNTER_OFFSET`.

use crate::arch::arm64::{View, count_reg};
use crate::drive::backend::Backend;
use crate::time::{GuestCount, Offset, OffsetInterval};

/// How many bracketed reads one measurement intersects.
const ROUNDS: usize = 8;

/// How many times a count is set before its offset is taken as it is.
const ATTEMPTS: usize = 16;

/// Measures the offset of one of the VM's counters by bracketed reads on vCPU 0.
pub fn measure<B: Backend + ?Sized>(backend: &mut B, view: View) -> Result<OffsetInterval, B::Error> {
    let mut known: Option<OffsetInterval> = None;
    for _ in 0..ROUNDS {
        let before = backend.counter().count();
        let guest = GuestCount(backend.get_one_reg(0, count_reg(view))?);
        let after = backend.counter().count();
        let round = OffsetInterval::bracketed(before, guest, after);
        // A contradiction means that the offset moved: what was known before is no longer true.
        let now = known.and_then(|known| known.intersect(round)).unwrap_or(round);
        known = Some(now);
        if now.width == 0 {
            break;
        }
    }
    Ok(known.unwrap_or(OffsetInterval { low: Offset(0), width: u64::MAX }))
}

/// Brings a counter's offset to within `tolerance` ticks of `wanted` by setting the count on vCPU 0, and returns what
/// the offset is known to be afterwards. Each write is counted in `writes`.
///
/// Nothing is written where the offset may be right already, so that a counter which need not move doesn't: a
/// stray physical offset of a few ticks would make CNTPCT_EL0 trap for good.
pub fn set_offset_by_value<B: Backend + ?Sized>(
    backend: &mut B,
    view: View,
    wanted: Offset,
    tolerance: u64,
    writes: &mut u64,
) -> Result<OffsetInterval, B::Error> {
    let mut known = measure(backend, view)?;
    // How far the guest is ahead of the host's count by the time that the kernel uses it: learnt from the last attempt.
    let mut lead = 0;
    for attempt in 0..ATTEMPTS {
        if known.contains(wanted) || attempt > 0 && known.farthest(wanted) <= tolerance {
            break;
        }
        let value = backend.counter().count().after(lead).guest(wanted);
        backend.set_one_reg(0, count_reg(view), value.0)?;
        *writes += 1;
        known = measure(backend, view)?;
        // The kernel subtracts from a later count than ours, so the offset comes out too large by the delay.
        lead = known.low.0.wrapping_sub(wanted.0).wrapping_add(lead);
    }
    Ok(known)
}
