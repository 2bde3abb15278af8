//! Published offset: one thread writes it and any number read it without a lock, as the hardware holds CNTVOFF_EL2.
//!
//! A read returns `count - offset` with an offset that was in force both before and after the count was taken. Each
//! ordering has its reason:
//!
//! - *Offset, then count.* A reader that loads an offset must take a count no older than the one that the offset was
//!   made from: under Freeze an older count lies in the guest's past. The Release store and the Acquire load order the
//!   writer's sample before the reader's.
//! - *Count, then offset again.* A count from after a change, under the offset from before it, is a time that the guest
//!   never reaches. Here the counter orders: [`Counter::count`] is an acquire load, or as good as one. A reader whose
//!   count was advanced by some thread after a change sees that change at the second load.
//! - *The second load* is an Acquire too, since it is the first load of the next round.
//!
//! A change that is undone in the middle of a read goes unnoticed. The result then lies between the guest's reads
//! before and after it, so no reader sees the counter go backwards.
//!
//! Sources: C++20 [intro.races] and [atomics.order], which define Rust's orderings; Arm ARM DDI 0487, B2.3 (an acquire
//! is ordered before all accesses that follow it). No fence is used here: a counter that isn't an atomic has to provide
//! the ordering in its `count`.

use crate::sync::{AtomicU64, Ordering};
use crate::time::count::{GuestCount, Offset};
use crate::time::counter::Counter;

/// Offset of one counter of a vCPU, as its readers see it.
#[derive(Debug, Default)]
pub struct PublishedOffset(AtomicU64);

impl PublishedOffset {
    /// Returns an offset that readers see from the start.
    #[must_use]
    pub fn new(offset: Offset) -> Self {
        Self(AtomicU64::new(offset.0))
    }

    /// Publishes a new offset. One thread at a time may do so.
    pub fn publish(&self, offset: Offset) {
        self.0.store(offset.0, Ordering::Release);
    }

    /// The offset in force.
    #[inline]
    pub fn offset(&self) -> Offset {
        Offset(self.0.load(Ordering::Acquire))
    }

    /// Returns the guest's count now. It repeats the read only if the offset has changed meanwhile.
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
