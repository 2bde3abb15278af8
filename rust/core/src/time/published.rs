//! An offset that one thread publishes and any number read without a lock, as the hardware holds CNTVOFF_EL2.
//!
//! A read returns `count - offset`, where the offset was in force when the count was taken: both before it and after
//! it. Why each ordering is needed:
//!
//! - *Offset, then count.* A reader that sees an offset must take a count no older than the one it was made from: under
//!   Freeze an older count lies in the guest's past. Storing with Release and loading with Acquire orders the writer's
//!   sample before the reader's.
//! - *Count, then offset again.* A count from after a change under the offset from before it is a time that the guest
//!   never reaches. Here the counter orders: [`Counter::count`] is an acquire load, or as good as one. A reader that
//!   takes a count which some thread moved on to after a change sees that change at the second load.
//! - *The second load* is an Acquire too, since it is the first of the next round.
//!
//! A change that is undone in the middle of a read goes unseen. The result then lies between the guest's reads before
//! and after it, so no reader sees the counter go backwards.
//!
//! Sources: C++20 [intro.races] and [atomics.order], which Rust's orderings are defined by; Arm ARM DDI 0487, B2.3 (an
//! acquire is ordered before all accesses that follow it). No fence stands here: the ordering of a counter that isn't
//! an atomic is the business of its `count`.

use crate::sync::{AtomicU64, Ordering};
use crate::time::count::{GuestCount, Offset};
use crate::time::counter::Counter;

/// The offset that one counter of a vCPU is under, as its readers see it.
#[derive(Debug, Default)]
pub struct PublishedOffset(AtomicU64);

impl PublishedOffset {
    /// An offset that readers see from the start.
    #[must_use]
    pub fn new(offset: Offset) -> Self {
        Self(AtomicU64::new(offset.0))
    }

    /// Shows a new offset to the readers. One thread at a time.
    pub fn publish(&self, offset: Offset) {
        self.0.store(offset.0, Ordering::Release);
    }

    /// The offset in force.
    #[inline]
    pub fn offset(&self) -> Offset {
        Offset(self.0.load(Ordering::Acquire))
    }

    /// The guest's count now. Goes round again only when the offset has changed meanwhile.
    #[inline]
    pub fn count(&self, counter: &impl Counter) -> GuestCount {
        let mut before = self.offset();
        loop {
            let count = counter.count();
            let after = self.offset();
            if before == after {
                return count.guest(after);
            }
            before = after;
        }
    }
}
