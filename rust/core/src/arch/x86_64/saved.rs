//! Saved clocks of a VM.

use crate::time::{Frequency, GuestCount, HostCount};
use alloc::vec::Vec;

/// Clocks of a stopped VM at one instant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SavedClocks {
    /// The frequency of the guest's TSC.
    pub frequency: Frequency,
    /// The host's TSC at the instant.
    pub count: HostCount,
    /// The VM's TSC at the instant: that of a vCPU whose guest never moved it.
    pub tsc: GuestCount,
    /// IA32_TSC_ADJUST of each vCPU: the ticks by which its TSC is ahead of the VM's.
    pub adjust: Vec<u64>,
    /// IA32_TSC_DEADLINE of each vCPU.
    pub deadline: Vec<u64>,
    /// kvmclock in nanoseconds when the VM's TSC read [`kvmclock_tsc`](Self::kvmclock_tsc), or up to
    /// [`kvmclock_width`](Self::kvmclock_width) ticks later.
    pub kvmclock_ns: u64,
    /// The VM's TSC before kvmclock was read.
    pub kvmclock_tsc: GuestCount,
    /// The ticks from there until it had been read: 0 where the kernel told the count of the read itself.
    pub kvmclock_width: u64,
}

impl SavedClocks {
    /// Returns kvmclock when the VM's TSC reads `tsc`: both clocks go at the TSC's rate.
    ///
    /// ```
    /// use guestclock_core::arch::x86_64::SavedClocks;
    /// use guestclock_core::time::{Frequency, GuestCount, HostCount};
    /// let saved = SavedClocks {
    ///     frequency: Frequency::new(2_500_000_000).unwrap(),
    ///     count: HostCount(0),
    ///     tsc: GuestCount(1_000),
    ///     adjust: vec![0],
    ///     deadline: vec![0],
    ///     kvmclock_ns: 70,
    ///     kvmclock_tsc: GuestCount(900),
    ///     kvmclock_width: 0,
    /// };
    /// assert_eq!(saved.kvmclock_at(GuestCount(1_000)), 110);
    /// assert_eq!(saved.kvmclock_at(GuestCount(800)), 30);
    /// ```
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "modulo 2^64, as the clock is")]
    pub const fn kvmclock_at(&self, tsc: GuestCount) -> u64 {
        let ns = self.frequency.signed_ticks_to_ns(tsc.since(self.kvmclock_tsc).cast_signed());
        self.kvmclock_ns.wrapping_add(ns.cast_unsigned() as u64)
    }
}
