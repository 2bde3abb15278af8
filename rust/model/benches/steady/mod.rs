//! The deadline queue in its steady state.
//!
//! A step is that of benches/benchmarks/steady.py: about 64 timers fire and are armed again, 3 are moved, 3 cancelled,
//! and the 3 of the step before armed again; then the next deadline.

use guestclock_core::time::{HostCount, Offset};
use guestclock_model::deadlines::{DeadlineQueue, Fired};

const FIRING: u64 = 64;
/// Farthest deadline, in ticks from now: up to a second of 1 GHz.
const FARTHEST: u64 = 1 << 30;

/// xorshift64: cheap beside what is measured.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn timer(&mut self, timers: u32) -> u32 {
        u32::try_from(self.below(timers.into())).unwrap()
    }
}

pub(crate) struct Steady {
    pub(crate) queue: DeadlineQueue,
    timers: u32,
    now: u64,
    random: Random,
    fired: Vec<Fired>,
    named: Vec<u32>,
    cvals: Vec<u64>,
    cancelled: [u32; 3],
}

impl Steady {
    pub(crate) fn new(timers: u32, vm: u32) -> Self {
        let (mut queue, mut random) = (DeadlineQueue::new(), Random(0x9e37_79b9_7f4a_7c15));
        for _ in 0..timers / vm {
            queue.add_group(vm, Offset(0)).unwrap();
        }
        for timer in 0..timers {
            // What is left of a distance, seen from a random instant.
            let left = random.below(FARTHEST).min(random.below(FARTHEST));
            queue.arm(&[timer], &[left]).unwrap();
        }
        let (fired, named, cvals) = (Vec::new(), Vec::new(), Vec::new());
        Self { queue, timers, now: 0, random, fired, named, cvals, cancelled: [0; 3] }
    }

    pub(crate) fn step(&mut self) -> u64 {
        self.now += FIRING * (FARTHEST / 2) / u64::from(self.timers);
        self.queue.expire(HostCount(self.now), &mut self.fired);
        self.named.clear();
        self.named.extend(self.fired.iter().map(|fired| fired.timer));
        self.named.extend(self.cancelled);
        self.named.extend([(); 3].map(|()| self.random.timer(self.timers)));
        self.cvals.clear();
        self.cvals.extend(self.named.iter().map(|_| self.now + self.random.below(FARTHEST)));
        self.queue.arm(&self.named, &self.cvals).unwrap();
        self.cancelled = [(); 3].map(|()| self.random.timer(self.timers));
        self.queue.disarm(&self.cancelled).unwrap();
        self.queue.next_deadline(HostCount(self.now))
    }
}
