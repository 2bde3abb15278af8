//! The cost of one read of a counter: a measurement for people, on which nothing depends.

use core::hint::black_box;
use guestclock_core::time::Counter;
use std::time::Instant;

/// Number of reads in a batch: enough that the clock's own cost vanishes in them.
const READS: u32 = 1000;

/// Number of batches. The quickest is the least disturbed.
const BATCHES: usize = 32;

/// The cost of one `counter.count()` in nanoseconds, to the nearest: the quickest of a few batches, in about 1 ms.
#[must_use]
pub fn read_cost_ns(counter: &dyn Counter) -> u64 {
    quickest(|| {
        let start = Instant::now();
        for _ in 0..READS {
            black_box(black_box(counter).count());
        }
        start.elapsed().as_nanos()
    })
}

/// The cost of one read, from a function that times a batch of [`READS`] in nanoseconds.
fn quickest(mut batch_ns: impl FnMut() -> u128) -> u64 {
    let ns = (0..BATCHES).map(|_| batch_ns()).min().unwrap_or_default();
    u64::try_from((ns + u128::from(READS) / 2) / u128::from(READS)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::{AtomicU32, Ordering};
    use guestclock_core::time::{Frequency, HostCount, NamespaceTicks, Stamp};

    #[test]
    fn the_quickest_batch_counts_to_the_nearest_nanosecond() {
        let mut batches = [90_000, 70_000, 80_000].into_iter().cycle();
        assert_eq!(quickest(|| batches.next().unwrap()), 70);
        assert_eq!(quickest(|| 24_499), 24);
        assert_eq!(quickest(|| 24_500), 25);
    }

    struct Counted(AtomicU32);

    impl Counter for Counted {
        fn frequency(&self) -> Frequency {
            Frequency::new(1).unwrap()
        }

        fn count(&self) -> HostCount {
            HostCount(self.0.fetch_add(1, Ordering::Relaxed).into())
        }

        fn stamp(&self) -> Stamp {
            unreachable!("only reads are measured")
        }

        fn namespace_ticks(&self) -> NamespaceTicks {
            NamespaceTicks::NONE
        }
    }

    #[test]
    fn every_read_is_made() {
        let counter = Counted(AtomicU32::new(0));
        let _ = read_cost_ns(&counter);
        assert_eq!(usize::try_from(counter.0.into_inner()), Ok(READS as usize * BATCHES));
    }
}
