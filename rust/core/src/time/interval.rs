//! An interval of offsets: where an offset lies that can only be measured.

use crate::time::arithmetic::w64;
use crate::time::count::{GuestCount, HostCount, Offset};

/// An offset known to lie between `low` and `low + width` (modulo 2^64).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OffsetInterval {
    /// The lowest it can be.
    pub low: Offset,
    /// How much more it can be, in ticks.
    pub width: u64,
}

impl OffsetInterval {
    /// The offset, known exactly.
    #[must_use]
    pub const fn exact(offset: Offset) -> Self {
        Self { low: offset, width: 0 }
    }

    /// From one read of a guest counter, bracketed by two of the host's.
    #[must_use]
    pub const fn bracketed(before: HostCount, guest: GuestCount, after: HostCount) -> Self {
        Self::from_raw(w64::bracketed(before.0, guest.0, after.0))
    }

    /// The offset to go by: zero where it may be zero, since that is what a counter has which nobody moved; else the
    /// lowest, under which a guest may find itself further on, never back.
    #[must_use]
    pub const fn best(self) -> Offset {
        if self.contains(Offset(0)) { Offset(0) } else { self.low }
    }

    /// Whether the offset may be this one.
    #[must_use]
    pub const fn contains(self, offset: Offset) -> bool {
        w64::contains(self.raw(), offset.0)
    }

    /// What both allow; `None` where they contradict each other, so that the offset has moved between them. Where two
    /// very wide intervals meet at both ends, the piece that begins one of them.
    #[must_use]
    pub fn intersect(self, other: Self) -> Option<Self> {
        w64::intersect(self.raw(), other.raw()).map(Self::from_raw)
    }

    /// The farthest that the offset can be from `wanted`, in ticks, either way.
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
