//! Counters: frequencies, counts, offsets, and where counts come from.
//!
//! A *count* is what a counter reads, and wraps at 2^64. The counter of the host and that of a guest are two
//! types, [`HostCount`] and [`GuestCount`], and an [`Offset`] is what leads from one to the other:
//! `guest = host - offset` modulo 2^64, as `KVM_ARM_SET_COUNTER_OFFSET` defines it
//! (Documentation/virt/kvm/api.rst, 4.138).

use crate::wall_clock::SyncBound;
use crate::word::w64;
use alloc::string::String;
use core::num::NonZeroU64;

/// Nanoseconds in a second.
pub const NS_PER_S: u64 = 1_000_000_000;

/// A counter's frequency: a whole number of ticks a second, never zero.
///
/// A host's is any `u64`; a guest's CNTFRQ_EL0 has 32 bits ([`Frequency::cntfrq`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
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

    /// The value for CNTFRQ_EL0, or `None` where it doesn't fit in its 32 bits.
    #[must_use]
    pub fn cntfrq(self) -> Option<u32> {
        u32::try_from(self.hz()).ok()
    }

    /// The nanoseconds that `ticks` last, rounded down.
    ///
    /// Exact for every input: the product is below 2^94. Convert differences, not running sums, and nothing drifts.
    ///
    /// ```
    /// use guestclock_core::counter::Frequency;
    /// let a1_metal = Frequency::new(83_333_333).unwrap();
    /// assert_eq!(a1_metal.ticks_to_ns(83_333_333), 1_000_000_000);
    /// assert_eq!(a1_metal.ticks_to_ns(1), 12);
    /// ```
    #[must_use]
    pub const fn ticks_to_ns(self, ticks: u64) -> u128 {
        ticks as u128 * NS_PER_S as u128 / self.hz() as u128
    }

    /// The same for ticks either way, rounded towards zero.
    #[must_use]
    pub const fn signed_ticks_to_ns(self, ticks: i64) -> i128 {
        // Below 2^93, so that the sign bit is free.
        let ns = self.ticks_to_ns(ticks.unsigned_abs()).cast_signed();
        if ticks < 0 { -ns } else { ns }
    }

    /// The nanoseconds that `ticks` last, rounded up: how long to wait until they have passed.
    #[must_use]
    pub const fn ticks_to_ns_ceil(self, ticks: u64) -> u128 {
        (ticks as u128 * NS_PER_S as u128).div_ceil(self.hz() as u128)
    }

    /// The whole ticks in `ns` nanoseconds, rounded down; not reduced modulo 2^64.
    ///
    /// ```
    /// use guestclock_core::counter::Frequency;
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

/// What the host's physical counter read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct HostCount(pub u64);

/// What a guest's counter (CNTVCT_EL0 or CNTPCT_EL0) reads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct GuestCount(pub u64);

/// A counter offset: what is *subtracted* from the host's count to give the guest's, modulo 2^64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Offset(pub u64);

impl HostCount {
    /// What a guest with this offset reads at this host count.
    #[must_use]
    pub const fn guest(self, offset: Offset) -> GuestCount {
        GuestCount(w64::guest(self.0, offset.0))
    }

    /// The ticks since `earlier`, modulo 2^64.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        w64::since(self.0, earlier.0)
    }

    /// Whether it lies after `other`: ahead of it by less than half of the range. A counter takes centuries to wrap.
    #[must_use]
    pub const fn is_after(self, other: Self) -> bool {
        self.since(other).cast_signed() > 0
    }

    /// The count `ticks` later, modulo 2^64.
    #[must_use]
    pub const fn after(self, ticks: u64) -> Self {
        Self(w64::after(self.0, ticks))
    }
}

impl GuestCount {
    /// The ticks since `earlier`, modulo 2^64.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        w64::since(self.0, earlier.0)
    }

    /// The count `ticks` later, modulo 2^64.
    #[must_use]
    pub const fn after(self, ticks: u64) -> Self {
        Self(w64::after(self.0, ticks))
    }
}

impl Offset {
    /// The offset under which a guest reads `guest` when the host reads `host`.
    #[must_use]
    pub const fn between(host: HostCount, guest: GuestCount) -> Self {
        Self(w64::offset_between(host.0, guest.0))
    }

    /// Both offsets together: a VM's and that of a nested guest's hypervisor (CNTVOFF_EL2).
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(w64::plus(self.0, other.0))
    }
}

/// A source of host counts.
///
/// Reading it must be cheap and must never go backwards between two reads on any threads, unless its owner says so
/// (a [`ManualCounter`](crate::manual::ManualCounter) that was rewound).
///
/// A read is ordered as an acquire load is, between the acquire loads before it and everything after it: a count taken
/// earlier or later than the program says would be put under an offset that wasn't in force then.
pub trait Counter: Send + Sync {
    /// Ticks a second: stated by the hardware or the kernel, never measured.
    fn frequency(&self) -> Frequency;

    /// The count now.
    fn count(&self) -> HostCount;

    /// The count now together with the wall clock, and how sure it is that they belong together.
    fn cross_timestamp(&self) -> CrossTimestamp;
}

impl<C: Counter + ?Sized> Counter for &C {
    fn frequency(&self) -> Frequency {
        (**self).frequency()
    }

    fn count(&self) -> HostCount {
        (**self).count()
    }

    fn cross_timestamp(&self) -> CrossTimestamp {
        (**self).cross_timestamp()
    }
}

/// What is known about a pending leap second, from the kernel's clock state (adjtimex(2)).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
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

    /// Its name: `none`, `insert`, `delete`, `in-progress`, `passed` or `unknown`.
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
    /// use guestclock_core::counter::Leap;
    /// assert_eq!(Leap::from_name("insert"), Some(Leap::Insert));
    /// assert_eq!(Leap::from_name("TIME_INS"), None);
    /// ```
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|leap| leap.name() == name)
    }
}

/// A count and a wall-clock reading that belong together, and what vouches for them.
///
/// The wall clock read [`realtime_ns`](Self::realtime_ns) at some instant in the `width_ns` nanoseconds that end or begin
/// at `count`: the whole width of the bracket is the bound on their distance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CrossTimestamp {
    /// The host's counter.
    pub count: HostCount,
    /// Its frequency.
    pub frequency: Frequency,
    /// Which counter it was: `cntvct_el0`, `clock_monotonic_raw`, `clock_monotonic`, `tsc` or `manual`.
    pub source: String,
    /// CLOCK_REALTIME, in nanoseconds since 1970.
    pub realtime_ns: i64,
    /// How far apart the two may be, in nanoseconds.
    pub width_ns: u64,
    /// The kernel's TAI - UTC in seconds; `None` where it isn't known (the kernel says 0 then).
    pub tai_offset_s: Option<i32>,
    /// Whether the kernel believes the wall clock to be synchronised; `None` where nobody was asked.
    pub synchronized: Option<bool>,
    /// The kernel's maximum error of the wall clock (adjtimex `maxerror`) in nanoseconds: a claim, not a proof.
    pub max_error_ns: Option<u64>,
    /// Who vouches for the wall clock, where somebody was declared to.
    pub sync: Option<SyncBound>,
    /// How much faster than at its nominal frequency the counter runs, in parts per billion, by the kernel's correction
    /// of its wall clock; `None` where that isn't known.
    pub rate_ppb: Option<i64>,
    /// The leap-second state.
    pub leap: Leap,
    /// The installation, as an id made from /etc/machine-id for guestclock alone.
    pub machine_id: Option<[u8; 16]>,
    /// The kernel's random boot id: this boot, or a restored copy of it.
    pub boot_id: Option<[u8; 16]>,
}

impl CrossTimestamp {
    /// Two readings that belong together within `width_ns`, and nobody to say anything of the clocks.
    #[must_use]
    pub fn unvouched(count: HostCount, frequency: Frequency, source: &str, realtime_ns: i64, width_ns: u64) -> Self {
        Self {
            count,
            frequency,
            source: String::from(source),
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
        }
    }

    /// The same, moved to the instant at which the counter reads `count`: the wall clock moves by the ticks between.
    ///
    /// `count` may lie before or after. Exact to the nanosecond but for the wall clock's rate, so it is for short
    /// distances: a caller that read the counter itself a moment ago. `None` where the wall clock leaves its range.
    #[must_use]
    pub fn at(&self, count: HostCount) -> Option<Self> {
        let ticks = count.since(self.count);
        let back = self.count.since(count);
        let moved = if ticks <= back {
            i128::try_from(self.frequency.ticks_to_ns(ticks)).ok()?
        } else {
            -i128::try_from(self.frequency.ticks_to_ns(back)).ok()?
        };
        Some(Self { count, realtime_ns: i64::try_from(i128::from(self.realtime_ns) + moved).ok()?, ..self.clone() })
    }
}
