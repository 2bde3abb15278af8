//! Counts of a host and of its guests, and the offsets between them.
//!
//! A *count* is the value of a counter, and wraps at 2^64. [`HostCount`] and [`GuestCount`] are two types, and an
//! [`Offset`] leads from one to the other: `guest = host - offset` modulo 2^64, as `KVM_ARM_SET_COUNTER_OFFSET` defines
//! it (Documentation/virt/kvm/api.rst, 4.138).
//!
//! A time namespace shifts the kernel's monotonic clocks for the processes in it (time_namespaces(7)), so processes of
//! one host may read one counter with constant differences. A [`HostCount`] is in the frame of the process: guests,
//! deadlines and `now=` are of it. A [`StampCount`] is in the frame of the host, which is that of the initial time
//! namespace: stamps and checkpoints are of it. [`NamespaceTicks`] leads from one to the other, and nothing else does.

use crate::time::arithmetic::w64;

/// Value of the host's physical counter, as this process reads it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HostCount(pub u64);

/// Value of the host's physical counter, as a process in the initial time namespace reads it: the count of a stamp.
///
/// An offset can't be made from it by mistake:
/// ```compile_fail
/// use guestclock_core::time::{GuestCount, Offset, StampCount};
/// let offset = Offset::between(StampCount(5), GuestCount(1));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct StampCount(pub u64);

/// Ticks that the process's time namespace adds to a counter: constant, and 0 outside of one.
///
/// ```
/// use guestclock_core::time::{HostCount, NamespaceTicks, StampCount};
/// let namespace = NamespaceTicks(1_000);
/// assert_eq!(HostCount(1_005).stamped(namespace), StampCount(5));
/// assert_eq!(StampCount(5).own(namespace), HostCount(1_005));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct NamespaceTicks(pub i64);

impl NamespaceTicks {
    /// Ticks of a counter that no time namespace shifts.
    pub const NONE: Self = Self(0);
}

/// Value of a guest's counter (CNTVCT_EL0 or CNTPCT_EL0).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GuestCount(pub u64);

/// Counter offset, which is *subtracted* from the host's count to give the guest's, modulo 2^64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Offset(pub u64);

impl HostCount {
    /// Returns the count that a guest with this offset reads at this host count.
    #[must_use]
    pub const fn guest(self, offset: Offset) -> GuestCount {
        GuestCount(w64::guest(self.0, offset.0))
    }

    /// The ticks since `earlier`, modulo 2^64.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        w64::since(self.0, earlier.0)
    }

    /// Returns whether the count lies after `other`: ahead by less than half of the range. A counter takes centuries to
    /// wrap.
    #[must_use]
    pub const fn is_after(self, other: Self) -> bool {
        self.since(other).cast_signed() > 0
    }

    /// The count `ticks` later, modulo 2^64.
    #[must_use]
    pub const fn after(self, ticks: u64) -> Self {
        Self(w64::after(self.0, ticks))
    }

    /// The count that a stamp of this instant has, modulo 2^64.
    #[must_use]
    pub const fn stamped(self, namespace: NamespaceTicks) -> StampCount {
        StampCount(w64::since(self.0, namespace.0.cast_unsigned()))
    }
}

impl StampCount {
    /// The count that this process reads at the stamp's instant, modulo 2^64.
    #[must_use]
    pub const fn own(self, namespace: NamespaceTicks) -> HostCount {
        HostCount(w64::after(self.0, namespace.0.cast_unsigned()))
    }

    /// The ticks since `earlier`, modulo 2^64.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        w64::since(self.0, earlier.0)
    }

    /// Returns whether the count lies after `other`, as [`HostCount::is_after`] does.
    #[must_use]
    pub const fn is_after(self, other: Self) -> bool {
        self.since(other).cast_signed() > 0
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

    /// Returns the sum of two offsets: a VM's, and CNTVOFF_EL2 of a nested guest's hypervisor.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(w64::plus(self.0, other.0))
    }
}

/// "No deadline", where a count is expected. A real deadline at this count is moved one tick earlier.
pub const NO_DEADLINE: u64 = u64::MAX;

/// Returns the host count `ticks` after `now`, or [`NO_DEADLINE`] for `None`. A result past the counter's last count is
/// held just below [`NO_DEADLINE`].
#[must_use]
pub fn deadline(now: HostCount, ticks: Option<u64>) -> u64 {
    match ticks {
        Some(ticks) => now.0.saturating_add(ticks).min(NO_DEADLINE - 1),
        None => NO_DEADLINE,
    }
}
