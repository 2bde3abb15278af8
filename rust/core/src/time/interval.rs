//! Interval of offsets, for an offset that can only be measured.

use crate::time::arithmetic::w64;
use crate::time::count::{GuestCount, HostCount, Offset};

/// Interval known to contain an offset: from `low` to `low + width` (modulo 2^64).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct OffsetInterval {
    /// Lowest possible offset.
    pub low: Offset,
    /// Width of the interval, in ticks.
    pub width: u64,
}

impl OffsetInterval {
    /// Returns the interval of an offset that is known exactly.
    #[must_use]
    pub const fn exact(offset: Offset) -> Self {
        Self { low: offset, width: 0 }
    }

    /// Returns the interval from one read of a guest counter between two reads of the host's.
    #[must_use]
    pub const fn bracketed(before: HostCount, guest: GuestCount, after: HostCount) -> Self {
        Self::from_raw(w64::bracketed(before.0, guest.0, after.0))
    }

    /// Best estimate: 0 if the interval contains it (a counter that nobody moved), else the lower bound, which never
    /// moves the guest back.
    #[must_use]
    pub const fn best(self) -> Offset {
        if self.contains(Offset(0)) { Offset(0) } else { self.low }
    }

    /// Returns whether the offset may be this one.
    #[must_use]
    pub const fn contains(self, offset: Offset) -> bool {
        w64::contains(self.raw(), offset.0)
    }

    /// Returns the intersection; `None` if the intervals are disjoint, so that the offset has moved between them.
    ///
    /// Two very wide intervals can meet at both ends; the result is then one of the two pieces.
    #[must_use]
    pub fn intersect(self, other: Self) -> Option<Self> {
        w64::intersect(self.raw(), other.raw()).map(Self::from_raw)
    }

    /// Returns the longest possible distance of the offset from `wanted`, in ticks, either way.
    #[must_use]
    pub fn farthest(self, wanted: Offset) -> u64 {
        w64::farthest(self.raw(), wanted.0)
    }

    const fn raw(self) -> w64::Interval {
        (self.low.0, self.width)
    }

    const fn from_raw((low, width): w64::Interval) -> Self {
        Self { low: Offset(low), width }
    }
}
