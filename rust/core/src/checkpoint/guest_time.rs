//! The guest time of one VM at one instant as plain data, apart from the registers of its vCPUs.

use crate::checkpoint::backlog::Backlog;
use crate::time::{Frequency, GuestCount, StampCount};
use core::num::NonZeroU32;

/// The most vCPUs of a VM: what KVM allows on arm64 (`KVM_MAX_VCPUS`).
pub const MAX_VM_VCPUS: u16 = 512;

/// The guest time of one VM at the instant of a stamp, apart from the registers of its vCPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GuestTime {
    /// Number of vCPUs, 1 to [`MAX_VM_VCPUS`].
    pub vcpus: u16,
    /// The guest's CNTFRQ_EL0, in Hz. At another frequency than the stamp's, the guest's counter is the one that a
    /// [`Ratio`](crate::time::Ratio) makes of the host's.
    pub frequency_hz: NonZeroU32,
    /// True if both counters have one VM-wide offset (`KVM_ARM_SET_COUNTER_OFFSET`), false if each is set by value.
    pub opted_in: bool,
    /// The VM's timeline: its virtual counter. On nested vCPUs CNTVOFF_EL2 has been added back.
    pub timeline: GuestCount,
    /// Ticks by which the virtual counter may differ from the timeline: 0 where it was computed, the width of the
    /// bracket where it was read.
    pub virtual_width_ticks: u64,
    /// The physical counter less the timeline, modulo 2^64.
    pub physical_displacement_ticks: u64,
    /// Ticks by which the physical counter may differ from the timeline and its displacement.
    pub physical_width_ticks: u64,
    /// Guest time still to be given back.
    pub backlog: Option<Backlog>,
    /// The host-wide count when the last vCPU left the guest, where the VMM knew it.
    pub stopped_at: Option<StampCount>,
    /// Interrupt ids of the timers, where they were asked for.
    pub interrupts: Option<Interrupts>,
    /// Guest-physical address of the vmclock page, where the VMM named it.
    pub vmclock_address: Option<u64>,
    /// A count and the wall clock of another instant than the registers'.
    pub reading: Option<Reading>,
}

/// A count of the timeline and the wall clock, read together at another instant than the registers.
///
/// Snapshots of other VMMs have one: their register lists were read later.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Reading {
    /// The timeline.
    pub count: GuestCount,
    /// The host's wall clock, in nanoseconds since 1970.
    pub realtime_ns: u64,
    /// Time between the two reads, in nanoseconds, at most.
    pub width_ns: u64,
}

/// Interrupt ids of the timers, in the order of [`Timer::ALL`](crate::arch::arm64::Timer::ALL); 0 for a timer that the
/// guest doesn't have, since no timer's interrupt is an SGI.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Interrupts(pub [u32; 4]);

impl GuestTime {
    /// The guest time of a VM that has opted in, with both counters at `timeline`.
    #[must_use]
    pub const fn opted_in(vcpus: u16, frequency_hz: NonZeroU32, timeline: GuestCount) -> Self {
        Self {
            vcpus,
            frequency_hz,
            opted_in: true,
            timeline,
            virtual_width_ticks: 0,
            physical_displacement_ticks: 0,
            physical_width_ticks: 0,
            backlog: None,
            stopped_at: None,
            interrupts: None,
            vmclock_address: None,
            reading: None,
        }
    }

    /// The guest's counter frequency.
    #[must_use]
    pub fn frequency(&self) -> Frequency {
        self.frequency_hz.into()
    }

    /// The physical counter.
    #[must_use]
    pub const fn physical(&self) -> GuestCount {
        self.timeline.after(self.physical_displacement_ticks)
    }

    /// The wider of the two counters' widths, in ticks.
    #[must_use]
    pub fn width_ticks(&self) -> u64 {
        self.virtual_width_ticks.max(self.physical_width_ticks)
    }
}
