//! A count and a wall-clock reading of one instant, and who vouches for them.

use crate::time::count::StampCount;
use crate::time::frequency::{Frequency, NS_PER_S};
use crate::time::source::SourceName;
use crate::time::wall_clock::{Quality, SATURATED_NS, SyncBound, Unvouched};
use alloc::vec::Vec;
use core::fmt;

/// State of a pending leap second, from the kernel's clock state (adjtimex(2)).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Leap {
    /// None is announced.
    None,
    /// The day ends with 23:59:60 (TIME_INS).
    Insert,
    /// The day ends with 23:59:58 (TIME_DEL).
    Delete,
    /// It is 23:59:60 now (TIME_OOP).
    InProgress,
    /// One has just passed (TIME_WAIT).
    Passed,
    /// Nobody said.
    Unknown,
}

impl Leap {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::None, Self::Insert, Self::Delete, Self::InProgress, Self::Passed, Self::Unknown];

    /// Name of the state: `none`, `insert`, `delete`, `in-progress`, `passed` or `unknown`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Insert => "insert",
            Self::Delete => "delete",
            Self::InProgress => "in-progress",
            Self::Passed => "passed",
            Self::Unknown => "unknown",
        }
    }

    /// The state of that name; `None` where there is none.
    ///
    /// ```
    /// use guestclock_core::time::Leap;
    /// assert_eq!(Leap::from_name("insert"), Some(Leap::Insert));
    /// assert_eq!(Leap::from_name("TIME_INS"), None);
    /// ```
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|leap| leap.name() == name)
    }
}

/// The time since the host's boot, with the part of it that the host slept, as the initial time namespace reads it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BootTime {
    /// CLOCK_BOOTTIME in nanoseconds: at the stamp's count it read this, or up to `width_ns` less.
    pub boottime_ns: u64,
    /// CLOCK_BOOTTIME - CLOCK_MONOTONIC in nanoseconds, which is the kernel's own sum of the time that the host was
    /// suspended: it is this, or up to `width_ns` more.
    pub slept_ns: u64,
    /// Distance of the two reads of CLOCK_MONOTONIC that the count and CLOCK_BOOTTIME were read between, in nanoseconds,
    /// and a tick of the counter, which may have come to its count that much earlier.
    pub width_ns: u64,
}

impl BootTime {
    /// Returns the boot time `ns` later, or earlier if negative, with no sleep in between; `None` before the boot.
    fn moved(self, ns: i128) -> Option<Self> {
        let boottime_ns = u64::try_from(i128::from(self.boottime_ns) + ns).ok()?;
        Some(Self { boottime_ns, ..self })
    }
}

/// Evidence that a stamp lacks, and that a later `Advance` would go by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Lack {
    /// A bound of the wall clock.
    Bound(Unvouched),
    /// Somebody who vouches for the wall clock: its only bound is the kernel's claim.
    Voucher {
        /// The kernel's maximum error.
        max_error_ns: u64,
    },
    /// TAI - UTC.
    Tai,
    /// The boot id.
    BootId,
    /// The boot time.
    BootTime,
}

impl Lack {
    /// Code by which programs and pages name the lack.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Bound(_) => "no-bound",
            Self::Voucher { .. } => "nobody-vouches",
            Self::Tai => "no-tai",
            Self::BootId => "no-boot-id",
            Self::BootTime => "no-boot-time",
        }
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bound(why) => write!(
                f,
                "the wall clock has no bound ({why}): on another host the time that has passed won't be known"
            ),
            Self::Voucher { max_error_ns } => write!(
                f,
                "the wall clock's only bound is the kernel's maximum error of {max_error_ns} ns, which nobody verified: on \
                 another host the time that has passed will be known by that alone"
            ),
            Self::Tai => f.write_str(
                "TAI - UTC isn't known: over the end of a UTC month, where a leap second may be, the wall clocks won't tell \
                 the time that has passed",
            ),
            Self::BootId => {
                f.write_str("the boot id isn't known: no counter will be shown to be this one, not even on this host")
            }
            Self::BootTime => f.write_str("the boot time isn't known: a later sleep of this host won't be seen"),
        }
    }
}

/// A count and a wall-clock reading that belong together, and what vouches for them.
///
/// A stamp is host-wide: time namespaces are taken off. A counter whose namespace isn't known has a `source` of its own,
/// which ends in `_local`.
///
/// The wall clock read [`realtime_ns`](Self::realtime_ns) at some instant in the `width_ns` nanoseconds that end or
/// begin at `count`: the whole width of the bracket is the bound on their distance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Stamp {
    /// The host's counter, as the initial time namespace reads it.
    pub count: StampCount,
    /// Frequency of the counter.
    pub frequency: Frequency,
    /// Name of the counter: `cntvct_el0`, `clock_monotonic_raw`, `clock_monotonic`, `tsc` or `manual`; or
    /// `clock_monotonic_raw_local` or `clock_monotonic_local`, whose count may be shifted by a time namespace.
    pub source: SourceName,
    /// CLOCK_REALTIME, in nanoseconds since 1970.
    pub realtime_ns: i64,
    /// Distance of the two reads at most, in nanoseconds.
    pub width_ns: u64,
    /// The kernel's TAI - UTC in seconds; `None` where it isn't known (the kernel says 0 then).
    pub tai_offset_s: Option<i32>,
    /// True if the kernel believes the wall clock to be synchronised; `None` where nobody was asked.
    pub synchronized: Option<bool>,
    /// The kernel's maximum error of the wall clock (adjtimex `maxerror`) in nanoseconds: a claim, not a proof.
    pub max_error_ns: Option<u64>,
    /// Bound of the wall clock by somebody who vouches for it; `None` where nobody was declared to.
    pub sync: Option<SyncBound>,
    /// Rate of the counter over its nominal frequency, in parts per billion, by the kernel's correction of its wall
    /// clock; `None` where that isn't known.
    pub rate_ppb: Option<i64>,
    /// The leap-second state.
    pub leap: Leap,
    /// The installation, as an id made from /etc/machine-id for guestclock alone.
    pub machine_id: Option<[u8; 16]>,
    /// The kernel's random boot id: this boot, or a restored copy of it.
    pub boot_id: Option<[u8; 16]>,
    /// The time since that boot; `None` where it isn't known host-wide.
    pub boot_time: Option<BootTime>,
}

impl Stamp {
    /// A stamp of a host that nobody knows, in the one way that the format has for it.
    ///
    /// Its source is no counter's name, so it is never the same counter; and both its clocks read more than any real
    /// one will, so that a reader which doesn't know of this finds that they went backwards, and refuses. `Freeze` asks
    /// for neither.
    #[must_use]
    pub fn of_unknown_host(frequency: Frequency) -> Self {
        // Counts are compared modulo 2^64: this one lies ahead of everything that a counter reads in centuries.
        let count = StampCount(i64::MAX.cast_unsigned());
        Self::unvouched(count, frequency, SourceName::UNKNOWN, i64::MAX, u64::MAX)
    }

    /// True if nobody knows the host's clocks. A checkpoint of an unknown source may still have a wall clock.
    #[must_use]
    pub fn is_of_unknown_host(&self) -> bool {
        self.source == SourceName::UNKNOWN && self.realtime_ns == i64::MAX
    }

    /// Two readings that belong together within `width_ns`, and nobody to say anything of the clocks.
    #[must_use]
    pub fn unvouched(
        count: StampCount,
        frequency: Frequency,
        source: SourceName,
        realtime_ns: i64,
        width_ns: u64,
    ) -> Self {
        Self {
            count,
            frequency,
            source,
            realtime_ns,
            width_ns,
            tai_offset_s: None,
            synchronized: None,
            max_error_ns: None,
            sync: None,
            rate_ppb: None,
            leap: Leap::Unknown,
            machine_id: None,
            boot_id: None,
            boot_time: None,
        }
    }

    /// The same, moved to the instant at which the counter reads `count`: the wall clock moves by the ticks between.
    ///
    /// `count` may lie before or after. Exact to the nanosecond but for the wall clock's rate, so it is for short
    /// distances: a caller that read the counter itself a moment ago. `None` where the wall clock leaves its range.
    /// The boot time moves too, and is dropped before the boot.
    #[must_use]
    pub fn at(&self, count: StampCount) -> Option<Self> {
        let ticks = count.since(self.count);
        let back = self.count.since(count);
        let moved = if ticks <= back {
            i128::try_from(self.frequency.ticks_to_ns(ticks)).ok()?
        } else {
            -i128::try_from(self.frequency.ticks_to_ns(back)).ok()?
        };
        let realtime_ns = i64::try_from(i128::from(self.realtime_ns) + moved).ok()?;
        let boot_time = self.boot_time.and_then(|boot_time| boot_time.moved(moved));
        Some(Self { count, realtime_ns, boot_time, ..*self })
    }

    /// CLOCK_TAI, in nanoseconds; `None` where TAI - UTC isn't known.
    #[must_use]
    pub fn tai_ns(&self) -> Option<i128> {
        let ahead = i128::from(self.tai_offset_s?) * i128::from(NS_PER_S);
        Some(i128::from(self.realtime_ns) + ahead)
    }

    /// The bound of the wall clock: that of whoever vouches for it, else what the kernel claims.
    pub fn vouched(&self) -> Result<SyncBound, Unvouched> {
        if self.is_of_unknown_host() {
            return Err(Unvouched::UnknownHost);
        }
        match (self.sync, self.synchronized, self.max_error_ns) {
            (Some(sync), ..) => Ok(sync),
            (None, Some(false), _) => Err(Unvouched::Unsynchronized),
            (None, Some(true), Some(max_error_ns)) if max_error_ns >= SATURATED_NS => Err(Unvouched::Saturated),
            // It is of now: the kernel makes it grow by 500 ppm itself (second_overflow in kernel/time/ntp.c).
            (None, Some(true), Some(max_error_ns)) => Ok(SyncBound {
                max_error_ns,
                age_ns: 0,
                holdover_ppb: 0,
                quality: Quality::KernelUnverified,
                tai_offset_s: None,
            }),
            (None, ..) => Err(Unvouched::Nobody),
        }
    }

    /// Returns whether somebody vouches for the wall clock. The kernel's maximum error is a claim, which nobody verified.
    #[must_use]
    pub fn is_vouched(&self) -> bool {
        self.vouched().is_ok_and(|sync| sync.quality != Quality::KernelUnverified)
    }

    /// Returns the evidence that the stamp lacks, and that a later `Advance` would go by.
    #[must_use]
    pub fn lacks(&self) -> Vec<Lack> {
        let bound = match self.vouched() {
            Err(why) => Some(Lack::Bound(why)),
            Ok(sync) if !self.is_vouched() => Some(Lack::Voucher { max_error_ns: sync.max_error_ns }),
            Ok(_) => None,
        };
        let others = [
            self.tai_offset_s.is_none().then_some(Lack::Tai),
            self.boot_id.is_none().then_some(Lack::BootId),
            self.boot_time.is_none().then_some(Lack::BootTime),
        ];
        bound.into_iter().chain(others.into_iter().flatten()).collect()
    }

    /// Distance of `realtime_ns` from UTC at the instant of `count` at most, in nanoseconds: the bracket's width, the bound
    /// and what it has grown by. `None` where nobody vouches for it.
    #[must_use]
    pub fn error_bound_ns(&self) -> Option<u64> {
        let sync = self.vouched().ok()?;
        Some(self.width_ns.saturating_add(sync.error_ns()))
    }

    /// The same, with somebody to vouch for its wall clock.
    #[must_use]
    pub fn vouched_by(self, sync: SyncBound) -> Self {
        Self { sync: Some(sync), tai_offset_s: sync.tai_offset_s.or(self.tai_offset_s), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_host_is_ahead_of_every_other() {
        let unknown = Stamp::of_unknown_host(Frequency::new(1).unwrap());
        for count in [0, 1, 1 << 62, (1 << 63) - 2] {
            assert!(unknown.count.is_after(StampCount(count)));
        }
    }

    #[test]
    fn boot_time_moves_with_the_count() {
        let frequency = Frequency::new(1_000).unwrap();
        let boot_time = BootTime { boottime_ns: 2_000_000, slept_ns: 7, width_ns: 3 };
        let stamp = Stamp::unvouched(StampCount(100), frequency, SourceName::MANUAL, 50, 0);
        let stamp = Stamp { boot_time: Some(boot_time), ..stamp };
        let later = stamp.at(StampCount(105)).unwrap();
        assert_eq!(later.boot_time, Some(BootTime { boottime_ns: 7_000_000, ..boot_time }));
        let earlier = stamp.at(StampCount(98)).unwrap();
        assert_eq!(earlier.boot_time, Some(BootTime { boottime_ns: 0, ..boot_time }));
        let before_boot = stamp.at(StampCount(97)).unwrap();
        assert_eq!((before_boot.boot_time, before_boot.realtime_ns), (None, 50 - 3_000_000));
    }
}
