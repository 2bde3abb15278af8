//! The columns that the kernels are measured on: the same in each run.
#![allow(dead_code, reason = "each benchmark takes what it needs")]
#![allow(clippy::cast_possible_truncation, reason = "of numbers that are drawn")]

use guestclock_core::time::{Frequency, HostCount};
use guestclock_model::bank::{Added, Rate, Saved, TimerSlices};

pub(crate) const TIMERS: usize = 4;
pub(crate) const NOW: HostCount = HostCount(1 << 50);
pub(crate) const HZ: [u64; 5] = [24_000_000, 62_500_000, 83_333_333, 1_000_000_000, 1_050_000_000];

/// splitmix64.
pub(crate) fn numbers(seed: u64, rows: usize) -> Vec<u64> {
    let number = |row: u64| {
        let mut x = (seed << 32 | row).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    };
    (0..rows as u64).map(number).collect()
}

/// Offsets below 2^40, so that guests read about 2^50.
pub(crate) fn offsets(seed: u64, rows: usize) -> Vec<u64> {
    numbers(seed, rows).into_iter().map(|x| x >> 24).collect()
}

pub(crate) fn frequencies() -> [Frequency; HZ.len()] {
    HZ.map(|hz| Frequency::new(hz).unwrap())
}

/// One of the frequencies for each row.
pub(crate) fn of(seed: u64, rows: usize) -> Vec<u16> {
    numbers(seed, rows).into_iter().map(|x| (x % HZ.len() as u64) as u16).collect()
}

/// vCPUs with four timers, two of them under each offset.
pub(crate) struct Vcpus {
    offsets: [Vec<u64>; 2],
    cvals: [Vec<u64>; TIMERS],
    ctls: [Vec<u8>; TIMERS],
}

impl Vcpus {
    /// Compare values lie round the guests' counts, half of them in the past. Three of four timers are on, a fourth of
    /// those masked.
    pub(crate) fn new(rows: usize) -> Self {
        let middle = NOW.0 - (1 << 39);
        let cval = |x: u64| (x >> 23) + middle - (1 << 40);
        let ctl = |x: u64| u8::from(x & 3 != 0) | u8::from(x >> 2 & 6 == 0) << 1;
        let column = |seed| numbers(seed, rows).into_iter();
        Self {
            offsets: [offsets(1, rows), offsets(2, rows)],
            cvals: std::array::from_fn(|timer| column(10 + timer as u64).map(cval).collect()),
            ctls: std::array::from_fn(|timer| column(20 + timer as u64).map(ctl).collect()),
        }
    }

    pub(crate) fn offsets(&self) -> [&[u64]; 2] {
        self.offsets.each_ref().map(Vec::as_slice)
    }

    pub(crate) fn timers(&self) -> [TimerSlices<'_>; TIMERS] {
        std::array::from_fn(|timer| TimerSlices {
            offsets: &self.offsets[timer % 2],
            cval: &self.cvals[timer],
            ctl: &self.ctls[timer],
        })
    }
}

/// VMs to restore, of five frequencies: a third of them each frozen, advanced, and advanced up to a cap.
pub(crate) struct Vms {
    columns: [Vec<u64>; 4],
    added: Vec<Added>,
    of: Vec<u16>,
}

impl Vms {
    pub(crate) fn new(rows: usize) -> Self {
        let policies = [Added::Nothing, Added::Elapsed, Added::ElapsedUpTo];
        Self {
            columns: [1, 2, 4, 5].map(|seed| offsets(seed, rows)),
            added: numbers(3, rows).into_iter().map(|x| policies[(x % 3) as usize]).collect(),
            of: of(6, rows),
        }
    }

    pub(crate) fn saved(&self) -> Saved<'_> {
        let [guest, host, elapsed_ns, max_ns] = &self.columns;
        Saved { guest, host, added: &self.added, elapsed_ns, max_ns, rate: &self.of }
    }

    pub(crate) fn rates() -> [Rate; HZ.len()] {
        frequencies().map(|frequency| Rate::new(NOW, frequency))
    }
}
