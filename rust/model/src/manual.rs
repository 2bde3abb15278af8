//! A counter that moves only by its methods, with the clocks of the host that it belongs to: for tests, simulation,
//! instruction counts and replay.

use crate::sync::{Mutex, MutexGuard};
use guestclock_core::drive::faults::MovableHost;
use guestclock_core::sync::{AtomicU64, Ordering};
use guestclock_core::time::{BootTime, Counter, Frequency, HostCount, NS_PER_S, NamespaceTicks, SourceName, Stamp};
use std::hash::{BuildHasher, RandomState};
use std::sync::PoisonError;

/// Behaviour of a counter while its host sleeps or boots.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Meanwhile {
    /// It stands still, as CLOCK_MONOTONIC and CLOCK_MONOTONIC_RAW do in a sleep.
    Stops,
    /// It counts on, as most arm64 counters do in a sleep, and any counter over a kexec.
    CountsOn,
    /// It starts again at 0, as the TSC does in an S3 sleep, and most counters with a boot.
    Restarts,
}

impl Meanwhile {
    /// All of them with their names.
    pub const NAMES: [(&'static str, Self); 3] =
        [("stops", Self::Stops), ("counts-on", Self::CountsOn), ("restarts", Self::Restarts)];
}

/// Counter moved by [`advance`](Self::advance), with a wall clock and a boot time that move along.
///
/// Its host booted when it was made, with a boot id of its own: two of them are two hosts.
#[derive(Debug)]
pub struct ManualCounter {
    frequency: Frequency,
    count: AtomicU64,
    host: Mutex<Host>,
}

/// Clocks of the host at the count `origin`.
#[derive(Clone, Copy, Debug)]
struct Host {
    origin: u64,
    realtime_ns: i64,
    boottime_ns: u64,
    slept_ns: u64,
    boot_id: [u8; 16],
    /// Part of a tick that has passed since the counter's last one, in billionths.
    part: u64,
}

impl ManualCounter {
    /// Name of the counter in [`Stamp::source`].
    pub const SOURCE: SourceName = SourceName::MANUAL;

    /// Returns a counter that reads `count` when its wall clock reads `realtime_ns`, on a host that boots now.
    #[must_use]
    pub fn new(count: HostCount, frequency: Frequency, realtime_ns: i64) -> Self {
        let boot_id = new_boot_id();
        let host = Host { origin: count.0, realtime_ns, boottime_ns: 0, slept_ns: 0, boot_id, part: 0 };
        Self { frequency, count: AtomicU64::new(count.0), host: Mutex::new(host) }
    }

    /// Returns the counter with this boot id, so that its stamps are the same in every run.
    #[must_use]
    pub fn with_boot_id(self, boot_id: [u8; 16]) -> Self {
        self.host().boot_id = boot_id;
        self
    }

    /// Moves the counter forward by `ticks`, modulo 2^64, and returns the new count.
    pub fn advance(&self, ticks: u64) -> HostCount {
        HostCount(self.count.fetch_add(ticks, Ordering::AcqRel).wrapping_add(ticks))
    }

    /// Moves the counter forward by `ns` nanoseconds, and returns the new count. The part of a tick that is left counts
    /// in the next call.
    pub fn advance_ns(&self, ns: u64) -> HostCount {
        let mut host = self.host();
        // Below 2^128: a part is less than a tick.
        let parts = u128::from(ns) * u128::from(self.frequency.hz()) + u128::from(host.part);
        host.part = u64::try_from(parts % u128::from(NS_PER_S)).unwrap_or(0);
        let ticks = u64::try_from((parts / u128::from(NS_PER_S)) & u128::from(u64::MAX)).unwrap_or(0);
        self.advance(ticks)
    }

    /// Moves the counter back by `ticks`, modulo 2^64, and returns the new count. No other method moves it backwards,
    /// except a sleep or a boot in which it restarts.
    pub fn rewind(&self, ticks: u64) -> HostCount {
        HostCount(self.count.fetch_sub(ticks, Ordering::AcqRel).wrapping_sub(ticks))
    }

    /// Suspends the host for `ns` nanoseconds: its wall clock and boot time go on, its sum of sleeps grows. Returns the
    /// new count.
    pub fn suspend(&self, ns: u64, counter: Meanwhile) -> HostCount {
        let mut host = self.host();
        let slept = self.at(&host, self.count());
        let count = match counter {
            Meanwhile::Stops => self.count(),
            Meanwhile::CountsOn => {
                let ticks = self.frequency.ns_to_ticks(ns) & u128::from(u64::MAX);
                self.count().after(u64::try_from(ticks).unwrap_or(0))
            }
            Meanwhile::Restarts => HostCount(0),
        };
        *host = Host {
            origin: count.0,
            realtime_ns: slept.realtime_ns.saturating_add_unsigned(ns),
            boottime_ns: slept.boottime_ns.saturating_add(ns),
            slept_ns: slept.slept_ns.saturating_add(ns),
            ..slept
        };
        self.count.store(count.0, Ordering::Release);
        count
    }

    /// Boots the host anew: another boot id, and a boot time and a sum of sleeps of 0. Its wall clock goes on. Returns
    /// the new count.
    pub fn reboot(&self, counter: Meanwhile) -> HostCount {
        let mut host = self.host();
        let count = if counter == Meanwhile::Restarts { HostCount(0) } else { self.count() };
        let realtime_ns = self.at(&host, self.count()).realtime_ns;
        let boot_id = new_boot_id();
        *host = Host { origin: count.0, realtime_ns, boottime_ns: 0, slept_ns: 0, boot_id, part: host.part };
        self.count.store(count.0, Ordering::Release);
        count
    }

    /// Steps the wall clock by `ns`, as setting it would, and returns the new time. Nothing else moves.
    pub fn step_realtime(&self, ns: i64) -> i64 {
        let mut host = self.host();
        host.realtime_ns = host.realtime_ns.saturating_add(ns);
        self.at(&host, self.count()).realtime_ns
    }

    /// The wall clock at `count`: exact to the nanosecond (rounded towards the start), and saturating.
    #[must_use]
    pub fn realtime_ns(&self, count: HostCount) -> i64 {
        self.at(&self.host(), count).realtime_ns
    }

    /// The host's boot id.
    #[must_use]
    pub fn boot_id(&self) -> [u8; 16] {
        self.host().boot_id
    }

    /// Returns the host's clocks when its counter reads `count`.
    fn at(&self, host: &Host, count: HostCount) -> Host {
        // Signed, so that a counter rewound past its origin reads earlier clocks.
        let passed = self.frequency.signed_ticks_to_ns(count.0.wrapping_sub(host.origin).cast_signed());
        let (realtime, boottime) = (passed + i128::from(host.realtime_ns), passed + i128::from(host.boottime_ns));
        Host {
            origin: count.0,
            realtime_ns: i64::try_from(realtime).unwrap_or(if realtime < 0 { i64::MIN } else { i64::MAX }),
            boottime_ns: u64::try_from(boottime).unwrap_or(if boottime < 0 { 0 } else { u64::MAX }),
            ..*host
        }
    }

    fn host(&self) -> MutexGuard<'_, Host> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns a boot id that no other host has, as a kernel makes one.
fn new_boot_id() -> [u8; 16] {
    let random = || RandomState::new().hash_one(());
    let mut boot_id = [0; 16];
    boot_id[..8].copy_from_slice(&random().to_be_bytes());
    boot_id[8..].copy_from_slice(&random().to_be_bytes());
    boot_id
}

impl Counter for ManualCounter {
    fn frequency(&self) -> Frequency {
        self.frequency
    }

    fn count(&self) -> HostCount {
        HostCount(self.count.load(Ordering::Acquire))
    }

    fn stamp(&self) -> Stamp {
        let host = self.host();
        let count = self.count();
        let Host { realtime_ns, boottime_ns, slept_ns, boot_id, .. } = self.at(&host, count);
        let stamped = count.stamped(self.namespace_ticks());
        Stamp {
            boot_id: Some(boot_id),
            boot_time: Some(BootTime { boottime_ns, slept_ns, width_ns: 0 }),
            ..Stamp::unvouched(stamped, self.frequency, Self::SOURCE, realtime_ns, 0)
        }
    }

    fn namespace_ticks(&self) -> NamespaceTicks {
        NamespaceTicks::NONE
    }
}

impl MovableHost for ManualCounter {
    fn pass(&self, ticks: u64) {
        self.advance(ticks);
    }

    fn step_realtime(&self, ns: i64) {
        Self::step_realtime(self, ns);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const S: u64 = NS_PER_S;

    fn host() -> ManualCounter {
        ManualCounter::new(HostCount(5_000), Frequency::new(1_000).unwrap(), 7)
    }

    fn clocks(of: &ManualCounter) -> (u64, i64, BootTime) {
        let stamp = of.stamp();
        (stamp.count.0, stamp.realtime_ns, stamp.boot_time.unwrap())
    }

    const fn boot(boottime_ns: u64, slept_ns: u64) -> BootTime {
        BootTime { boottime_ns, slept_ns, width_ns: 0 }
    }

    #[test]
    fn a_sleep_is_in_the_boot_time_and_the_wall_clock() {
        for (counter, count) in [(Meanwhile::Stops, 7_000), (Meanwhile::CountsOn, 10_000), (Meanwhile::Restarts, 0)] {
            let host = host();
            let before = host.boot_id();
            assert_eq!(host.advance_ns(2 * S), HostCount(7_000));
            assert_eq!(host.suspend(3 * S, counter), HostCount(count));
            assert_eq!(clocks(&host), (count, 5_000_000_007, boot(5 * S, 3 * S)), "{counter:?}");
            host.advance(1_000);
            assert_eq!(clocks(&host), (count + 1_000, 6_000_000_007, boot(6 * S, 3 * S)), "{counter:?}");
            assert_eq!(host.boot_id(), before);
        }
    }

    #[test]
    fn a_boot_starts_all_but_the_wall_clock_anew() {
        for (counter, count) in [(Meanwhile::Restarts, 0), (Meanwhile::CountsOn, 7_000)] {
            let host = host();
            let before = host.boot_id();
            host.suspend(S, Meanwhile::Stops);
            host.advance_ns(2 * S);
            assert_eq!(host.reboot(counter), HostCount(count));
            assert_eq!(clocks(&host), (count, 3_000_000_007, boot(0, 0)));
            assert_ne!(host.boot_id(), before);
        }
        assert_ne!(host().boot_id(), host().boot_id());
        assert_eq!(host().with_boot_id([3; 16]).stamp().boot_id, Some([3; 16]));
    }

    #[test]
    fn parts_of_a_tick_add_up() {
        let host = ManualCounter::new(HostCount(0), Frequency::new(3).unwrap(), 0);
        let counts: Vec<_> = (0..6).map(|_| host.advance_ns(200_000_000).0).collect();
        assert_eq!(counts, [0, 1, 1, 2, 3, 3]);
        let fast = ManualCounter::new(HostCount(1), Frequency::new(u64::MAX).unwrap(), 0);
        assert_eq!(fast.advance_ns(S), HostCount(0), "modulo 2^64");
    }

    #[test]
    fn a_step_moves_the_wall_clock_alone() {
        let host = host();
        assert_eq!(host.step_realtime(-10), -3);
        assert_eq!(clocks(&host), (5_000, -3, boot(0, 0)));
        host.rewind(1);
        assert_eq!(clocks(&host), (4_999, -1_000_003, boot(0, 0)), "before its boot it reads 0");
    }
}
