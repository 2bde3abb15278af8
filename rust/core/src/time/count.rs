//! Counters: frequencies, counts, offsets, and where counts come from.
//!
//! A *count* is what a counter reads, and wraps at 2^64. The counter of the host and that of a guest are two
//! types, [`HostCount`] and [`GuestCount`], and an [`Offset`] is what leads from one to the other:
//! `guest = host - offset` modulo 2^64, as `KVM_ARM_SET_COUNTER_OFFSET` defines it
//! (Documentation/virt/kvm/api.rst, 4.138).

use crate::time::arithmetic::w64;

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

/// "No deadline", where a count is expected. A real deadline there is moved one tick earlier.
pub const NO_DEADLINE: u64 = u64::MAX;

/// The host count that many ticks from `now`: `now` itself for none to wait, [`NO_DEADLINE`] for never. One past the
/// counter's last count is held just below that.
#[must_use]
pub fn deadline(now: HostCount, ticks: Option<u64>) -> u64 {
    match ticks {
        Some(ticks) => now.0.saturating_add(ticks).min(NO_DEADLINE - 1),
        None => NO_DEADLINE,
    }
}
