//! Scaled counter: a counter at another frequency than the one that it is made from.
//!
//! Only the model can have one: KVM gives every guest the host's counter, at the host's frequency. Over a
//! [`ScaledCounter`] with the frequency that a guest was saved at, a restore is exact to the tick, as on any counter.

use guestclock_core::time::{Counter, Frequency, HostCount, Instant, NamespaceTicks, Ratio, Stamp};

/// Counter that reads `floor(inner * n / d)` modulo 2^64, where `n / d` is its frequency over the inner counter's.
///
/// Each read is scaled by itself, in 128 bits, so nothing drifts. The count never goes backwards unless the inner
/// counter does, with one exception: when the inner counter wraps at 2^64 this one jumps, unless `d` is 1 (at 1 GHz
/// that is after 584 years).
#[derive(Clone, Debug)]
pub struct ScaledCounter<C> {
    inner: C,
    ratio: Ratio,
}

impl<C: Counter> ScaledCounter<C> {
    /// `inner` as a counter of `frequency`.
    ///
    /// ```
    /// use guestclock_core::time::{Counter, Frequency, HostCount};
    /// use guestclock_model::manual::ManualCounter;
    /// use guestclock_model::scaled::ScaledCounter;
    /// let host = ManualCounter::new(HostCount(62_500_001), Frequency::new(62_500_000).unwrap(), 0);
    /// let guest = ScaledCounter::new(host, Frequency::new(24_000_000).unwrap());
    /// assert_eq!(guest.count(), HostCount(24_000_000));
    /// assert_eq!(guest.inner_count(HostCount(24_000_001)), Some(HostCount(62_500_003)));
    /// ```
    #[must_use]
    pub fn new(inner: C, frequency: Frequency) -> Self {
        let ratio = Ratio::new(inner.frequency(), frequency);
        Self { inner, ratio }
    }

    /// The inner counter.
    pub const fn inner(&self) -> &C {
        &self.inner
    }

    /// The count when the inner counter reads `inner`.
    #[must_use]
    pub const fn at(&self, inner: HostCount) -> HostCount {
        self.ratio.at(inner)
    }

    /// Returns [`Ratio::inner_count`] as of the inner counter's present count.
    #[must_use]
    pub fn inner_count(&self, count: HostCount) -> Option<HostCount> {
        self.ratio.inner_count(count, self.inner.count())
    }
}

impl<C: Counter> Counter for ScaledCounter<C> {
    fn frequency(&self) -> Frequency {
        self.ratio.frequency()
    }

    #[inline]
    fn count(&self) -> HostCount {
        self.at(self.inner.count())
    }

    fn stamp(&self) -> Stamp {
        self.ratio.instant(&Instant::of(self.inner.stamp(), &self.inner)).stamp
    }

    fn namespace_ticks(&self) -> NamespaceTicks {
        self.ratio.namespace_ticks(self.inner.namespace_ticks())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manual::ManualCounter;
    use guestclock_core::time::Evidence;
    use guestclock_core::time::StampCount;
    use proptest::prelude::*;

    fn hz(hz: u64) -> Frequency {
        Frequency::new(hz).unwrap()
    }

    fn scaled(inner: u64, inner_hz: u64, frequency_hz: u64) -> ScaledCounter<ManualCounter> {
        ScaledCounter::new(ManualCounter::new(HostCount(inner), hz(inner_hz), 0), hz(frequency_hz))
    }

    fn frequencies() -> impl Strategy<Value = u64> {
        prop_oneof![
            1..=u64::MAX,
            1..=u64::from(u32::MAX),
            1..=100_u64,
            prop::sample::select(vec![24_000_000, 62_500_000, 83_333_333, 1_000_000_000, 1_050_000_000, u64::MAX]),
        ]
    }

    fn counts() -> impl Strategy<Value = u64> {
        prop_oneof![0..=u64::MAX, 0..=1000_u64, u64::MAX - 1000..=u64::MAX]
    }

    proptest! {
        #[test]
        fn its_own_frequency_changes_nothing(inner in counts(), frequency in frequencies()) {
            let counter = scaled(inner, frequency, frequency);
            prop_assert_eq!(counter.count(), HostCount(inner));
            prop_assert_eq!(counter.stamp(), counter.inner().stamp());
        }

        /// A whole multiple continues where the inner counter wraps.
        #[test]
        fn a_multiple_wraps_with_the_inner(inner in counts(), ticks in 0..1000_u64, factor in 1..1_u64 << 32) {
            let counter = scaled(inner, 3, 3 * factor);
            let before = counter.count();
            counter.inner().advance(ticks);
            prop_assert_eq!(counter.count().since(before), ticks.wrapping_mul(factor));
        }

        /// Two stamps of one counter never contradict each other: the width covers the tick that rounding hides.
        #[test]
        fn is_the_same_counter_as_itself(
            inner in 0..1_u64 << 40, ticks in 0..1_u64 << 40, host in 1..1_u64 << 32, guest in 1..1_u64 << 32,
        ) {
            let counter = scaled(inner, host, guest);
            let saved = counter.stamp();
            counter.inner().advance(ticks);
            let here = counter.stamp();
            // The rest is for the rate, which is the nominal one here.
            let mut evidence = Evidence::between(&saved, &here);
            evidence.allowed_ns = 2 + u128::from(saved.width_ns) + u128::from(here.width_ns);
            prop_assert!(!evidence.forward || evidence.one_boot() && !evidence.contradicted(), "{}", evidence);
        }
    }

    #[test]
    fn big_integers_agree() {
        // Python: [(c * n // d) % 2**64 for ...], with the frequencies themselves, not reduced.
        let rows = [
            (u64::MAX, 62_500_000, 24_000_000, 7_083_549_724_304_467_820),
            (u64::MAX, 24_000_000, 62_500_000, 11_144_907_877_866_187_432),
            (u64::MAX, 1_000_000_000, 1_050_000_000, 922_337_203_685_477_579),
            (u64::MAX, 1_050_000_000, 83_333_333, 1_464_027_301_581_156_771),
            (123_456_789_012_345_678, 1_000_000_000, 83_333_333, 10_288_065_709_876_543),
            (1 << 63, u64::MAX, u64::MAX - 1, (1 << 63) - 1),
        ];
        for (inner, host, guest, expected) in rows {
            assert_eq!(scaled(inner, host, guest).count(), HostCount(expected), "{inner} at {host} Hz as {guest} Hz");
        }
    }

    #[test]
    fn the_width_is_wider_by_a_tick() {
        let of = |host, guest| scaled(1000, host, guest).stamp().width_ns;
        assert_eq!(of(62_500_000, 24_000_000), 42);
        assert_eq!(of(24_000_000, 62_500_000), 16);
        assert_eq!(of(31_250_000, 62_500_000), 0);
        assert_eq!(of(3, 1), 1_000_000_000);
    }

    #[test]
    fn counters_can_be_scaled_again() {
        let counter = ScaledCounter::new(scaled(62_500_001, 62_500_000, 24_000_000), hz(1_000_000));
        let here = counter.stamp();
        assert_eq!((here.count, here.frequency, here.width_ns), (StampCount(1_000_000), hz(1_000_000), 42 + 1000));
        assert_eq!(counter.inner_count(HostCount(1_000_001)), Some(HostCount(24_000_024)));
    }
}
