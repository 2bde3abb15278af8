//! Counts of a counter at another frequency, exact to the tick.

use crate::time::count::{HostCount, NamespaceTicks, StampCount};
use crate::time::counter::{Counter, Instant};
use crate::time::frequency::Frequency;
use crate::time::stamp::{BootTime, Stamp};

/// Conversion of a counter's counts to another frequency: the arithmetic of a scaled counter, without the counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ratio {
    to: Frequency,
    /// `to` over the frequency of the inner counter, reduced.
    n: u64,
    d: u64,
}

impl Ratio {
    /// Returns the conversion from counts at the frequency `from` to counts at the frequency `to`.
    #[must_use]
    pub const fn new(from: Frequency, to: Frequency) -> Self {
        let divisor = greatest_common_divisor(to.hz(), from.hz());
        Self { to, n: to.hz() / divisor, d: from.hz() / divisor }
    }

    /// Frequency of the converted counts.
    #[must_use]
    pub const fn frequency(self) -> Frequency {
        self.to
    }

    /// Returns the count when the inner counter reads `inner`: `floor(inner * n / d)` modulo 2^64.
    #[must_use]
    pub const fn at(self, inner: HostCount) -> HostCount {
        #[expect(clippy::cast_possible_truncation, reason = "a count is modulo 2^64")]
        HostCount(self.scaled(inner) as u64)
    }

    /// Returns whether both frequencies are equal.
    #[must_use]
    pub const fn is_one(self) -> bool {
        self.n == self.d
    }

    /// Returns the first inner count at which the converted count is `count` or more: the end of a wait for a deadline.
    /// The inner counter reads `now`; `None` if it wraps first.
    ///
    /// Above the inner counter's frequency the converted count wraps while the inner one doesn't. So `count` belongs to
    /// its present pass through 2^64, as a deadline does.
    #[must_use]
    pub fn inner_count(self, count: HostCount, now: HostCount) -> Option<HostCount> {
        let passes = self.scaled(now) >> 64;
        let scaled = passes << 64 | u128::from(count.0);
        // If the product leaves 128 bits, the quotient leaves 64.
        let inner = scaled.checked_mul(self.d.into())?.div_ceil(self.n.into());
        u64::try_from(inner).ok().map(HostCount)
    }

    /// Returns the ticks that the inner counter's namespace adds to the converted counts, rounded down: a converted
    /// count less these may be ahead of the conversion of the host-wide count, by less than a tick.
    #[must_use]
    pub fn namespace_ticks(self, inner: NamespaceTicks) -> NamespaceTicks {
        let scaled = (i128::from(inner.0) * i128::from(self.n)).div_euclid(i128::from(self.d));
        #[expect(clippy::cast_possible_truncation, reason = "a count is modulo 2^64, and so is a distance of counts")]
        NamespaceTicks(scaled as i64)
    }

    /// Returns the stamp of the same instant and source, with the converted count. It is wider by a tick, and so is its
    /// boot time: rounding a count down can hide as much.
    #[must_use]
    pub fn stamp(self, inner: Stamp) -> Stamp {
        Stamp {
            count: StampCount(self.at(HostCount(inner.count.0)).0),
            frequency: self.to,
            width_ns: inner.width_ns.saturating_add(self.hidden_ns()),
            boot_time: inner.boot_time.map(|boot_time| BootTime {
                width_ns: boot_time.width_ns.saturating_add(self.hidden_ns()),
                ..boot_time
            }),
            ..inner
        }
    }

    /// Returns the same instant of the converted counter. Its own count is the conversion of the inner counter's own
    /// count, exactly, since that is what guests are offset from.
    #[must_use]
    pub fn instant(self, inner: &Instant) -> Instant {
        let namespace_ticks = self.namespace_ticks(inner.namespace_ticks);
        let count = self.at(inner.count()).stamped(namespace_ticks);
        Instant { stamp: Stamp { count, ..self.stamp(inner.stamp) }, namespace_ticks }
    }

    /// Returns the product before it is reduced modulo 2^64.
    const fn scaled(self, inner: HostCount) -> u128 {
        inner.0 as u128 * self.n as u128 / self.d as u128
    }

    /// Returns the longest time that rounding down can hide, beyond the inner counter's own ticks: a tick, rounded up.
    /// At a whole multiple of the inner frequency every inner tick is a converted tick, so it is 0.
    fn hidden_ns(self) -> u64 {
        if self.d == 1 {
            return 0;
        }
        u64::try_from(self.to.ticks_to_ns_ceil(1)).expect("a tick lasts at most a second")
    }
}

const fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn ratio(from: u64, to: u64) -> Ratio {
        Ratio::new(Frequency::new(from).unwrap(), Frequency::new(to).unwrap())
    }

    /// Product `a * b` in base 2^32, lowest digit first: unbounded integers, as on paper.
    fn product(a: &[u64], b: &[u64]) -> Vec<u64> {
        let mut digits = std::vec![0; a.len() + b.len()];
        for (i, x) in a.iter().enumerate() {
            let mut carry = 0;
            for (j, y) in b.iter().enumerate() {
                let sum = digits[i + j] + x * y + carry;
                digits[i + j] = sum & 0xffff_ffff;
                carry = sum >> 32;
            }
            digits[i + b.len()] = carry;
        }
        digits
    }

    fn digits(value: u128) -> [u64; 4] {
        [0, 32, 64, 96].map(|shift| u64::try_from(value >> shift & 0xffff_ffff).unwrap())
    }

    /// Returns whether `a * b <= c * d`, for 128 bits each, without overflow.
    fn at_most((a, b): (u128, u128), (c, d): (u128, u128)) -> bool {
        product(&digits(a), &digits(b)).iter().rev().le(product(&digits(c), &digits(d)).iter().rev())
    }

    fn frequencies() -> impl Strategy<Value = u64> {
        prop_oneof![
            1..=u64::MAX,
            1..=u64::from(u32::MAX),
            1..=100_u64,
            prop::sample::select(std::vec![24_000_000, 62_500_000, 83_333_333, 1_000_000_000, 1_050_000_000, u64::MAX]),
        ]
    }

    fn counts() -> impl Strategy<Value = u64> {
        prop_oneof![0..=u64::MAX, 0..=1000_u64, u64::MAX - 1000..=u64::MAX]
    }

    proptest! {
        /// The one count that fits the definition: `count * host <= inner * guest < (count + 1) * host`.
        #[test]
        fn reads_the_whole_ticks(inner in counts(), host in frequencies(), guest in frequencies()) {
            let ratio = ratio(host, guest);
            let all = ratio.scaled(HostCount(inner));
            let exact = (u128::from(inner), u128::from(guest));
            prop_assert!(at_most((all, host.into()), exact));
            prop_assert!(!at_most((all + 1, host.into()), exact));
            prop_assert_eq!(u128::from(ratio.at(HostCount(inner)).0), all & u128::from(u64::MAX));
        }

        #[test]
        fn goes_forward_when_the_inner_does(
            inner in counts(), ticks in 0..1_u64 << 40, host in frequencies(), guest in frequencies(),
        ) {
            let ratio = ratio(host, guest);
            let before = ratio.scaled(HostCount(inner));
            if let Some(later) = inner.checked_add(ticks) {
                prop_assert!(ratio.scaled(HostCount(later)) >= before);
            }
        }

        /// The inner count for a deadline is the first one, on the same pass, or no such count exists within 64 bits.
        #[test]
        fn waits_until_the_first_inner_count(
            inner in counts(), count in counts(), host in frequencies(), guest in frequencies(),
        ) {
            let ratio = ratio(host, guest);
            let wanted = ratio.scaled(HostCount(inner)) >> 64 << 64 | u128::from(count);
            match ratio.inner_count(HostCount(count), HostCount(inner)) {
                Some(first) => {
                    prop_assert!(ratio.scaled(first) >= wanted);
                    prop_assert!(first.0 == 0 || ratio.scaled(HostCount(first.0 - 1)) < wanted);
                }
                None => prop_assert!(ratio.scaled(HostCount(u64::MAX)) < wanted),
            }
        }
    }
}
