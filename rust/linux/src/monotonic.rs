//! CLOCK_MONOTONIC as a counter of any frequency.
//!
//! An emulator whose guest counter is made from the host's CLOCK_MONOTONIC (Unicorn: one tick for every 16 ns) is
//! predicted to the tick by a [`MonotonicCounter`] of the same frequency. The clock is slewed by NTP, so one tick is as
//! long as the kernel believes it to be; it stops while the host is suspended (clock_gettime(2)).

use guestclock_core::time::{Counter, Frequency, HostCount, NS_PER_S, NamespaceTicks, SourceName, Stamp};

use crate::clock;
use crate::stamp::{self, Stamping};
use crate::time_namespace::TimeNamespace;

/// CLOCK_MONOTONIC in ticks: `floor(ns * frequency / 10^9)` modulo 2^64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MonotonicCounter {
    frequency: Frequency,
    stamping: Stamping,
}

impl MonotonicCounter {
    /// Name of this counter in [`Stamp::source`].
    pub const SOURCE: SourceName = SourceName::fixed("clock_monotonic");

    /// Name of this counter in [`Stamp::source`] where the time namespace isn't known.
    pub const LOCAL_SOURCE: SourceName = SourceName::fixed("clock_monotonic_local");

    /// Unicorn's own frequency: one tick for every 16 ns.
    pub const DEFAULT_FREQUENCY: Frequency = Frequency::new(62_500_000).unwrap();

    /// CLOCK_MONOTONIC at `frequency`. Looks up the time namespace, once.
    #[must_use]
    pub fn new(frequency: Frequency) -> Self {
        let namespace = TimeNamespace::of_this_process();
        Self { frequency, stamping: Stamping::of_a_clock(Self::SOURCE, Self::LOCAL_SOURCE, namespace) }
    }

    /// Name of this counter in [`Stamp::source`].
    #[must_use]
    pub const fn source(&self) -> SourceName {
        self.stamping.source()
    }
}

impl Default for MonotonicCounter {
    fn default() -> Self {
        Self::new(Self::DEFAULT_FREQUENCY)
    }
}

impl Counter for MonotonicCounter {
    fn frequency(&self) -> Frequency {
        self.frequency
    }

    #[inline]
    fn count(&self) -> HostCount {
        ticks(self.frequency, clock::monotonic())
    }

    fn stamp(&self) -> Stamp {
        let here = stamp::stamp(&self.stamping, self.frequency, || self.count());
        // CLOCK_MONOTONIC is corrected as the wall clock is, so its rate doesn't differ from the wall clock's.
        Stamp { rate_ppb: here.rate_ppb.map(|_| 0), ..here }
    }

    fn namespace_ticks(&self) -> NamespaceTicks {
        self.stamping.namespace_ticks(self.frequency)
    }
}

/// `floor((s * 10^9 + ns) * f / 10^9)`, modulo 2^64.
///
/// Computed as `s * f + floor(ns * f / 10^9)`, since whole seconds are whole ticks. The only division is by a constant,
/// and of 64 bits up to 18 GHz.
fn ticks(frequency: Frequency, now: clock::Reading) -> HostCount {
    let ns = now.ns.cast_unsigned();
    let within_second = match ns.checked_mul(frequency.hz()) {
        Some(scaled) => scaled / NS_PER_S,
        None => u64::try_from(frequency.ns_to_ticks(ns)).expect("less than a second has less than `hz` ticks"),
    };
    HostCount(now.s.cast_unsigned().wrapping_mul(frequency.hz()).wrapping_add(within_second))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::time::{ClockId, clock_gettime};

    /// The same clock, converted by other code.
    fn monotonic_ns() -> u64 {
        let now = clock_gettime(ClockId::Monotonic);
        u64::try_from(now.tv_sec).unwrap() * NS_PER_S + u64::try_from(now.tv_nsec).unwrap()
    }

    fn low_64_bits(ticks: u128) -> u64 {
        u64::try_from(ticks & u128::from(u64::MAX)).unwrap()
    }

    proptest! {
        #[test]
        fn ticks_are_the_cores(
            ns in 0..=i64::MAX.cast_unsigned(),
            hz in prop_oneof![
                1..=u64::MAX,
                1..=u64::from(u32::MAX),
                prop::sample::select(vec![1, 24_000_000, 62_500_000, 83_333_333, 1_000_000_000, 1_050_000_000]),
            ],
        ) {
            let frequency = Frequency::new(hz).unwrap();
            let now = clock::Reading {
                s: (ns / NS_PER_S).cast_signed(),
                ns: (ns % NS_PER_S).cast_signed(),
            };
            prop_assert_eq!(now.unsigned_ns(), ns);
            prop_assert_eq!(ticks(frequency, now).0, low_64_bits(frequency.ns_to_ticks(ns)));
        }
    }

    #[test]
    fn lies_between_two_readings_of_its_clock() {
        for hz in [1_000, 24_000_000, 62_500_000, 83_333_333, 1_000_000_000] {
            let frequency = Frequency::new(hz).unwrap();
            let counter = MonotonicCounter::new(frequency);
            for _ in 0..200 {
                let before = frequency.ns_to_ticks(monotonic_ns());
                let count = u128::from(counter.count().0);
                let after = frequency.ns_to_ticks(monotonic_ns());
                assert!(before <= count && count <= after, "{before} <= {count} <= {after} at {hz} Hz");
            }
        }
    }

    #[test]
    fn default_ticks_every_16_ns() {
        let counter = MonotonicCounter::default();
        let before = monotonic_ns() / 16;
        let here = counter.stamp();
        let after = monotonic_ns() / 16;
        let own = here.count.own(counter.namespace_ticks()).0;
        assert!(before <= own && own <= after);
        assert_eq!((here.source.as_str(), here.frequency.hz()), ("clock_monotonic", 62_500_000));
    }
}
