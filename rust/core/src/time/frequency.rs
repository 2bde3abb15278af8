//! Frequencies, and exact conversions between ticks and nanoseconds.

use core::num::{NonZeroU32, NonZeroU64};

/// Nanoseconds in a second.
pub const NS_PER_S: u64 = 1_000_000_000;

/// Frequency of a counter: a whole number of ticks a second, never zero.
///
/// A host's is any `u64`; a guest's CNTFRQ_EL0 has 32 bits ([`Frequency::cntfrq`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Frequency(NonZeroU64);

impl Frequency {
    /// `hz` ticks a second; `None` for zero.
    #[must_use]
    pub const fn new(hz: u64) -> Option<Self> {
        match NonZeroU64::new(hz) {
            Some(hz) => Some(Self(hz)),
            None => None,
        }
    }

    /// Ticks a second.
    #[must_use]
    pub const fn hz(self) -> u64 {
        self.0.get()
    }

    /// The value for CNTFRQ_EL0; `None` if it doesn't fit in 32 bits.
    #[must_use]
    pub fn cntfrq(self) -> Option<u32> {
        u32::try_from(self.hz()).ok()
    }

    /// The nanoseconds that `ticks` last, rounded down.
    ///
    /// Exact for every input: the product is below 2^94. To avoid drift, convert differences rather than running sums.
    ///
    /// ```
    /// use guestclock_core::time::Frequency;
    /// let a1_metal = Frequency::new(83_333_333).unwrap();
    /// assert_eq!(a1_metal.ticks_to_ns(83_333_333), 1_000_000_000);
    /// assert_eq!(a1_metal.ticks_to_ns(1), 12);
    /// ```
    #[must_use]
    pub const fn ticks_to_ns(self, ticks: u64) -> u128 {
        ticks as u128 * NS_PER_S as u128 / self.hz() as u128
    }

    /// The nanoseconds that signed `ticks` last, rounded towards zero.
    #[must_use]
    pub const fn signed_ticks_to_ns(self, ticks: i64) -> i128 {
        // Below 2^93, so the sign bit is free.
        let ns = self.ticks_to_ns(ticks.unsigned_abs()).cast_signed();
        if ticks < 0 { -ns } else { ns }
    }

    /// The nanoseconds that `ticks` last, rounded up: the time to wait until they have passed.
    #[must_use]
    pub const fn ticks_to_ns_ceil(self, ticks: u64) -> u128 {
        (ticks as u128 * NS_PER_S as u128).div_ceil(self.hz() as u128)
    }

    /// The whole ticks in `ns` nanoseconds, rounded down; not reduced modulo 2^64.
    ///
    /// ```
    /// use guestclock_core::time::Frequency;
    /// let m7g_metal = Frequency::new(1_050_000_000).unwrap();
    /// assert_eq!(m7g_metal.ns_to_ticks(1_000_000_000), 1_050_000_000);
    /// assert_eq!(m7g_metal.ns_to_ticks(1), 1);
    /// ```
    #[must_use]
    pub const fn ns_to_ticks(self, ns: u64) -> u128 {
        ns as u128 * self.hz() as u128 / NS_PER_S as u128
    }

    /// The ticks in `ns` nanoseconds, rounded up: a tick count that lasts at least as long.
    #[must_use]
    pub const fn ns_to_ticks_ceil(self, ns: u64) -> u128 {
        (ns as u128 * self.hz() as u128).div_ceil(NS_PER_S as u128)
    }
}

impl From<NonZeroU32> for Frequency {
    /// The frequency of a guest's counter.
    fn from(hz: NonZeroU32) -> Self {
        Self(hz.into())
    }
}
