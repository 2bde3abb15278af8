//! A counter that moves only by its methods, for tests, simulation, instruction counts and replay.

use guestclock_core::drive::faults::MovableHost;
use guestclock_core::sync::{AtomicI64, AtomicU64, Ordering};
use guestclock_core::time::{Counter, Frequency, HostCount, NamespaceTicks, SourceName, Stamp};

/// Counter moved by [`advance`](Self::advance), with a wall clock that moves along.
#[derive(Debug)]
pub struct ManualCounter {
    frequency: Frequency,
    count: AtomicU64,
    /// The count at which the wall clock read `epoch_ns`.
    origin: u64,
    epoch_ns: AtomicI64,
}

impl ManualCounter {
    /// Name of the counter in [`Stamp::source`].
    pub const SOURCE: SourceName = SourceName::MANUAL;

    /// Returns a counter that reads `count` when its wall clock reads `realtime_ns`.
    #[must_use]
    pub fn new(count: HostCount, frequency: Frequency, realtime_ns: i64) -> Self {
        Self { frequency, count: AtomicU64::new(count.0), origin: count.0, epoch_ns: AtomicI64::new(realtime_ns) }
    }

    /// Moves the counter forward by `ticks`, modulo 2^64, and returns the new count.
    pub fn advance(&self, ticks: u64) -> HostCount {
        HostCount(self.count.fetch_add(ticks, Ordering::AcqRel).wrapping_add(ticks))
    }

    /// Moves the counter back by `ticks`, modulo 2^64, and returns the new count. No other method moves it backwards.
    pub fn rewind(&self, ticks: u64) -> HostCount {
        HostCount(self.count.fetch_sub(ticks, Ordering::AcqRel).wrapping_sub(ticks))
    }

    /// Steps the wall clock by `ns`, as setting it would, and returns the new time. The counter doesn't move.
    pub fn step_realtime(&self, ns: i64) -> i64 {
        self.epoch_ns.fetch_add(ns, Ordering::AcqRel);
        self.realtime_ns(self.count())
    }

    /// The wall clock at `count`: exact to the nanosecond (rounded towards the start), and saturating.
    #[must_use]
    pub fn realtime_ns(&self, count: HostCount) -> i64 {
        // Signed, so that a counter rewound past its origin reads an earlier wall clock.
        let ticks = count.0.wrapping_sub(self.origin).cast_signed();
        let now = self.frequency.signed_ticks_to_ns(ticks) + i128::from(self.epoch_ns.load(Ordering::Acquire));
        i64::try_from(now).unwrap_or(if now < 0 { i64::MIN } else { i64::MAX })
    }
}

impl Counter for ManualCounter {
    fn frequency(&self) -> Frequency {
        self.frequency
    }

    fn count(&self) -> HostCount {
        HostCount(self.count.load(Ordering::Acquire))
    }

    fn stamp(&self) -> Stamp {
        let count = self.count();
        let stamped = count.stamped(self.namespace_ticks());
        Stamp::unvouched(stamped, self.frequency, Self::SOURCE, self.realtime_ns(count), 0)
    }

    fn namespace_ticks(&self) -> NamespaceTicks {
        NamespaceTicks::NONE
    }
}

impl MovableHost for ManualCounter {
    fn pass(&self, ticks: u64) {
        self.advance(ticks);
    }

    fn step_realtime(&self, ns: i64) {
        Self::step_realtime(self, ns);
    }
}
