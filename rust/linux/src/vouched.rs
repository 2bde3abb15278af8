//! A bound of this host's wall clock, which ages from the instant at which it was given.

use guestclock_core::time::evidence::longest_ns;
use guestclock_core::time::{Frequency, NS_PER_S, SyncBound};

use crate::clock;

/// A bound of this host's wall clock, and the instant at which it was given.
///
/// Its age grows by CLOCK_BOOTTIME, which goes on while the host sleeps, as the wall clock's error does. That clock may
/// be slow by 500 ppm, so the age is rounded up by as much: an age that is too short would make the bound too narrow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vouched {
    sync: SyncBound,
    /// CLOCK_BOOTTIME then, as this process reads it.
    given_ns: u64,
}

impl Vouched {
    /// A bound that is given now.
    #[must_use]
    pub fn now(sync: SyncBound) -> Self {
        Self { sync, given_ns: clock::boottime().unsigned_ns() }
    }

    /// Returns the bound as it is now.
    #[must_use]
    pub fn sync(&self) -> SyncBound {
        self.at(clock::boottime().unsigned_ns())
    }

    fn at(&self, boottime_ns: u64) -> SyncBound {
        let nanoseconds = const { Frequency::new(NS_PER_S).unwrap() };
        self.sync.aged(longest_ns(nanoseconds, boottime_ns.saturating_sub(self.given_ns)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guestclock_core::time::Quality;

    const SYNC: SyncBound = SyncBound {
        max_error_ns: 100,
        age_ns: 7,
        holdover_ppb: 50_000,
        quality: Quality::Declared,
        tai_offset_s: None,
    };

    #[test]
    fn a_bound_ages_from_when_it_was_given() {
        let given = Vouched { sync: SYNC, given_ns: 1_000 };
        assert_eq!(given.at(1_000), SYNC);
        // An hour, and 500 ppm of it more.
        let hour = 3_600 * NS_PER_S;
        let aged = given.at(1_000 + hour);
        assert_eq!(aged, SyncBound { age_ns: 7 + (hour * 10_000).div_ceil(9_995), ..SYNC });
        assert!(aged.error_ns() > 100 + 50_000 * 3_600);
        assert_eq!(given.at(0), SYNC, "no bound gets younger");
    }

    #[test]
    fn now_is_the_kernels_boot_time() {
        let before = clock::boottime().unsigned_ns();
        let given = Vouched::now(SYNC);
        let sync = given.sync();
        let after = clock::boottime().unsigned_ns();
        assert!(before <= given.given_ns && given.given_ns <= after);
        assert!(sync.age_ns - SYNC.age_ns <= (after - before) * 2 + 1, "{sync:?}");
    }
}
