//! Bounds on the distance of a host's wall clock from the truth, and who says so.
//!
//! Nobody can see that in the clock itself. A bound is declared, by the caller or by the daemon that disciplines the
//! clock; the kernel's own figure is a claim that nobody verified.

use core::fmt;

/// Parts per billion.
pub(crate) const PPB: u128 = 1_000_000_000;

/// Nanoseconds from billionths of them, rounded up; held at the end of their range.
pub(crate) fn whole_ns(billionths: u128) -> u64 {
    u64::try_from(billionths.div_ceil(PPB)).unwrap_or(u64::MAX)
}

/// Where the kernel's maximum error stops growing: NTP_PHASE_LIMIT, 16 s (include/linux/timex.h). It means nothing
/// then.
pub const SATURATED_NS: u64 = 16_000_000_000;

/// Origin of a bound.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Quality {
    /// The caller.
    Declared,
    /// chrony.
    Chrony,
    /// ClockBound.
    ClockBound,
    /// The kernel's `maxerror`. Daemons set it, some to 0 at each update, so it is no proof of anything.
    KernelUnverified,
}

impl Quality {
    /// All of them with their names.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("declared", Self::Declared),
        ("chrony", Self::Chrony),
        ("clockbound", Self::ClockBound),
        ("kernel-unverified", Self::KernelUnverified),
    ];

    /// Name of the origin.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Declared => "declared",
            Self::Chrony => "chrony",
            Self::ClockBound => "clockbound",
            Self::KernelUnverified => "kernel-unverified",
        }
    }
}

/// Distance of the wall clock from UTC at most, when that was last known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SyncBound {
    /// The bound then, in nanoseconds.
    pub max_error_ns: u64,
    /// Age of the bound, in nanoseconds.
    pub age_ns: u64,
    /// Growth of the error since, at most, in parts per billion of the age.
    pub holdover_ppb: u64,
    /// Origin of the bound.
    pub quality: Quality,
    /// TAI - UTC in seconds, from who knows it better than the kernel.
    pub tai_offset_s: Option<i32>,
}

impl SyncBound {
    /// Growth of the bound with its age, in billionths of a nanosecond: exact.
    pub(crate) fn held_over(&self) -> u128 {
        u128::from(self.age_ns) * u128::from(self.holdover_ppb)
    }

    /// Growth of the bound with its age, in nanoseconds, rounded up; held at the end of its range.
    #[must_use]
    pub fn held_over_ns(&self) -> u64 {
        whole_ns(self.held_over())
    }

    /// Distance of the wall clock from UTC now, at most, in nanoseconds.
    #[must_use]
    pub fn error_ns(&self) -> u64 {
        self.max_error_ns.saturating_add(self.held_over_ns())
    }

    /// The same, so much later.
    #[must_use]
    pub const fn aged(self, ns: u64) -> Self {
        Self { age_ns: self.age_ns.saturating_add(ns), ..self }
    }
}

/// Why nobody knows how far a wall clock is from the truth.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Unvouched {
    /// The checkpoint was made of what another VMM saved, and says nothing of its host's clocks.
    UnknownHost,
    /// Without TAI - UTC a leap second may lie between two readings that the end of a UTC month lies between.
    TaiUnknown,
    /// The kernel says so.
    Unsynchronized,
    /// The kernel's maximum error has reached the end of its range.
    Saturated,
    /// Nobody was asked.
    Nobody,
}

impl fmt::Display for Unvouched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownHost => "nothing is known of that host's clocks",
            Self::TaiUnknown => {
                "TAI - UTC isn't known, and the end of a month, where a leap second may be, lies between"
            }
            Self::Unsynchronized => "the kernel says that it isn't synchronised",
            Self::Saturated => "the kernel's maximum error has reached its end of 16 s",
            Self::Nobody => "nobody says how far it may be off",
        })
    }
}
