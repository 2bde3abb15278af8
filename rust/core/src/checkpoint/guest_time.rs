//! The guest time of one VM at one instant as plain data, apart from the registers of its vCPUs.

use crate::checkpoint::backlog::Backlog;
use crate::time::{Frequency, GuestCount, StampCount};
use alloc::vec::Vec;
use core::num::NonZeroU32;
use core::ops::Range;

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

/// Guest times of many VMs, in their order.
///
/// VMs that follow each other and are alike, except for their timelines, are a run: what they have in common is kept, and
/// looked at, once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GuestTimes {
    timelines: Vec<u64>,
    /// Guest time of the first VM of each run, and the place behind the last.
    runs: Vec<(GuestTime, usize)>,
}

impl GuestTimes {
    /// No guest times yet, with room for those of so many VMs.
    #[must_use]
    pub fn with_capacity(vms: usize) -> Self {
        Self { timelines: Vec::with_capacity(vms), runs: Vec::new() }
    }

    /// Adds a VM, with which a run begins.
    pub fn push(&mut self, time: GuestTime) {
        self.runs.push((time, self.timelines.len()));
        self.push_alike(time.timeline);
    }

    /// Adds a VM to the last run: one that is as the one before, except for its timeline.
    ///
    /// # Panics
    /// If there is none before.
    pub fn push_alike(&mut self, timeline: GuestCount) {
        self.timelines.push(timeline.0);
        self.runs.last_mut().expect("a VM before").1 = self.timelines.len();
    }

    /// Returns the guest time of a VM.
    #[must_use]
    pub fn get(&self, vm: usize) -> Option<GuestTime> {
        let (time, _) = self.runs.get(self.runs.partition_point(|(_, end)| *end <= vm))?;
        Some(GuestTime { timeline: GuestCount(self.timelines[vm]), ..*time })
    }

    /// The runs: the guest time of the first VM of each, and the places and the timelines of all.
    pub fn runs(&self) -> impl Iterator<Item = (&GuestTime, Range<usize>, &[u64])> {
        let mut first = 0;
        self.runs.iter().map(move |(time, end)| {
            let vms = core::mem::replace(&mut first, *end)..*end;
            (time, vms.clone(), &self.timelines[vms])
        })
    }
}

impl FromIterator<GuestTime> for GuestTimes {
    fn from_iter<T: IntoIterator<Item = GuestTime>>(times: T) -> Self {
        let mut all = Self::default();
        times.into_iter().for_each(|time| all.push(time));
        all
    }
}
