//! The stamp: a count, the wall clock and the boot time of one instant, and a bound on the time between them.
//!
//! Without hardware that latches all at once, the wall clock is read between two reads of the counter. An interrupt, a
//! preemption or a cold cache widens such a bracket. Those are rare, so the narrowest of a few brackets is kept.
//!
//! A stamp is host-wide: what the time namespace of this process adds is taken off here, and nowhere else.

use guestclock_core::time::{BootTime, Frequency, HostCount, NamespaceTicks, SourceName, Stamp};

use crate::clock_state::ClockState;
use crate::time_namespace::TimeNamespace;
use crate::{clock, host_id};

/// Number of brackets that the narrowest is chosen from.
const BRACKETS: usize = 8;

/// The stamps of a counter: their source, and what is taken off its counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamping {
    source: SourceName,
    namespace: Option<TimeNamespace>,
    /// True if the counter is one of the clocks that the namespace shifts.
    shifted: bool,
}

impl Stamping {
    /// Returns the stamping of a counter that no time namespace shifts.
    #[must_use]
    pub const fn of_hardware(source: SourceName, namespace: Option<TimeNamespace>) -> Self {
        Self { source, namespace, shifted: false }
    }

    /// Returns the stamping of CLOCK_MONOTONIC or CLOCK_MONOTONIC_RAW. `local` is the source where the namespace isn't
    /// known: counts of two such counters may differ by anything.
    #[must_use]
    pub fn of_a_clock(source: SourceName, local: SourceName, namespace: Option<TimeNamespace>) -> Self {
        Self { source: if namespace.is_some() { source } else { local }, namespace, shifted: true }
    }

    /// Name of the counter in its stamps.
    #[must_use]
    pub const fn source(&self) -> SourceName {
        self.source
    }

    /// Ticks that the namespace adds to the counter's counts.
    #[must_use]
    pub fn namespace_ticks(&self, frequency: Frequency) -> NamespaceTicks {
        self.shift().ticks(frequency)
    }

    /// The offsets that the counter has, as far as they are known.
    fn shift(&self) -> TimeNamespace {
        self.namespace.filter(|_| self.shifted).unwrap_or(TimeNamespace::INITIAL)
    }
}

/// The clocks of a stamp, as this process reads them. Each read must be ordered: none may be taken ahead of another.
pub trait Clocks {
    /// The counter.
    fn count(&self) -> HostCount;
    /// CLOCK_REALTIME, in nanoseconds since 1970.
    fn realtime_ns(&self) -> i64;
    /// CLOCK_MONOTONIC in nanoseconds.
    fn monotonic_ns(&self) -> u64;
    /// CLOCK_BOOTTIME in nanoseconds.
    fn boottime_ns(&self) -> u64;
}

/// The kernel's clocks beside a counter.
struct Kernels<F>(F);

impl<F: Fn() -> HostCount> Clocks for Kernels<F> {
    fn count(&self) -> HostCount {
        (self.0)()
    }

    fn realtime_ns(&self) -> i64 {
        clock::realtime_ns()
    }

    fn monotonic_ns(&self) -> u64 {
        clock::monotonic().unsigned_ns()
    }

    fn boottime_ns(&self) -> u64 {
        clock::boottime().unsigned_ns()
    }
}

/// A reading of CLOCK_BOOTTIME between two of CLOCK_MONOTONIC, as this process reads them, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct BootBracket {
    /// CLOCK_MONOTONIC before.
    pub before_ns: u64,
    /// CLOCK_BOOTTIME.
    pub boottime_ns: u64,
    /// CLOCK_MONOTONIC after.
    pub after_ns: u64,
}

impl BootBracket {
    fn of(clocks: &impl Clocks) -> Self {
        let (before_ns, boottime_ns) = (clocks.monotonic_ns(), clocks.boottime_ns());
        Self { before_ns, boottime_ns, after_ns: clocks.monotonic_ns() }
    }

    /// Distance of the two reads of CLOCK_MONOTONIC.
    const fn width_ns(&self) -> u64 {
        self.after_ns.saturating_sub(self.before_ns)
    }

    /// CLOCK_BOOTTIME - CLOCK_MONOTONIC at the least.
    fn least_ns(&self) -> i128 {
        i128::from(self.boottime_ns) - i128::from(self.after_ns)
    }

    /// Returns whether the host may have slept as long at one bracket as at the other.
    fn agrees(&self, other: &Self) -> bool {
        let apart = self.least_ns() - other.least_ns();
        apart <= other.width_ns().into() && -apart <= self.width_ns().into()
    }

    /// Returns the host-wide boot time, wider by `tick_ns`: the counter may have come to its count that much earlier
    /// than it was read. `None` if a clock leaves its range, which a kernel's don't.
    fn boot_time(&self, namespace: TimeNamespace, tick_ns: u64) -> Option<BootTime> {
        let TimeNamespace { monotonic_ns, boottime_ns } = namespace;
        let boottime = i128::from(self.boottime_ns) - i128::from(boottime_ns);
        let slept = self.least_ns() - i128::from(boottime_ns) + i128::from(monotonic_ns);
        Some(BootTime {
            boottime_ns: u64::try_from(boottime).ok()?,
            // Below 0 only within the width: the true sum of sleeps isn't.
            slept_ns: u64::try_from(slept.max(0)).ok()?,
            width_ns: self.width_ns().saturating_add(tick_ns),
        })
    }
}

/// A wall-clock reading with a read of the counter on either side, inside a bracket of the boot time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Bracket {
    /// The read of the counter that followed the wall clock's.
    pub count: HostCount,
    /// The wall clock, in nanoseconds since 1970.
    pub realtime_ns: i64,
    /// Distance between the two reads of the counter, in ticks.
    pub ticks: u64,
    /// The boot time. `count` was read between its first two readings.
    pub boot: BootBracket,
}

impl Bracket {
    fn of(clocks: &impl Clocks) -> Self {
        let before_ns = clocks.monotonic_ns();
        let (before, realtime_ns, count) = (clocks.count(), clocks.realtime_ns(), clocks.count());
        let (boottime_ns, after_ns) = (clocks.boottime_ns(), clocks.monotonic_ns());
        let boot = BootBracket { before_ns, boottime_ns, after_ns };
        Self { count, realtime_ns, ticks: count.since(before), boot }
    }

    /// Longest time before `count` at which the wall clock may have been read, in nanoseconds, rounded up; saturating.
    ///
    /// Adds one tick to the counter's distance, because each of its reads may fall anywhere within a tick: at 24 MHz
    /// two equal reads can be 41 ns apart.
    #[must_use]
    pub fn width_ns(&self, frequency: Frequency) -> u64 {
        ns(frequency, self.ticks.saturating_add(1))
    }
}

/// Returns the duration of `ticks`, rounded up; saturating.
fn ns(frequency: Frequency, ticks: u64) -> u64 {
    u64::try_from(frequency.ticks_to_ns_ceil(ticks)).unwrap_or(u64::MAX)
}

/// Takes a few brackets and returns the one whose wall clock is the narrowest, and of those the one whose boot time is;
/// of equals the latest, which is nearest to the caller's next action.
pub fn bracket(clocks: &impl Clocks) -> Bracket {
    let mut narrowest = Bracket::of(clocks);
    for _ in 1..BRACKETS {
        let bracket = Bracket::of(clocks);
        if (bracket.ticks, bracket.boot.width_ns()) <= (narrowest.ticks, narrowest.boot.width_ns()) {
            narrowest = bracket;
        }
    }
    narrowest
}

/// Takes the stamp of the counter that `count` reads, with the evidence for the wall clock.
///
/// The wall clock read `realtime_ns` at some instant in the `width_ns` nanoseconds before `count` was read. A fact that
/// the kernel doesn't give (a sandbox may forbid adjtimex) is unknown, never an error.
pub fn stamp(stamping: &Stamping, frequency: Frequency, count: impl Fn() -> HostCount) -> Stamp {
    // The slow reads come first, so that the count is fresh when this returns.
    let machine_id = host_id::machine_id();
    let boot_id = host_id::boot_id();
    let clocks = Kernels(count);
    let state = || (ClockState::read().unwrap_or(ClockState::UNKNOWN), BootBracket::of(&clocks));
    let (bracket, state) = undisturbed(state, || bracket(&clocks));
    let ClockState { tai_offset_s, synchronized, max_error_ns, rate_ppb, leap } = state;
    let tick_ns = ns(frequency, 1);
    // The namespace's ticks are rounded, so the count may be ahead of the host-wide clock by less than a tick.
    let rounded_ns = if stamping.shift().is_whole(frequency) { 0 } else { tick_ns };
    Stamp {
        count: bracket.count.stamped(stamping.namespace_ticks(frequency)),
        frequency,
        source: stamping.source,
        realtime_ns: bracket.realtime_ns,
        width_ns: bracket.width_ns(frequency).saturating_add(rounded_ns),
        tai_offset_s,
        synchronized,
        max_error_ns,
        sync: None,
        rate_ppb,
        leap,
        machine_id,
        boot_id,
        boot_time: stamping.namespace.and_then(|namespace| bracket.boot.boot_time(namespace, tick_ns)),
    }
}

/// Most brackets taken while the host's state changes round each of them. It changes once in years, or when the host
/// wakes up.
const TRIES: usize = 4;

/// Takes a bracket and the clock's state of the same time: a leap second between the two would put them a second apart,
/// and a sleep within the bracket its readings.
fn undisturbed(state: impl Fn() -> (ClockState, BootBracket), bracket: impl Fn() -> Bracket) -> (Bracket, ClockState) {
    let leaps = |state: &ClockState| (state.tai_offset_s, state.leap);
    let mut before = state();
    let mut tries = 0;
    loop {
        let bracket = bracket();
        let after = state();
        tries += 1;
        let alike = leaps(&before.0) == leaps(&after.0) && before.1.agrees(&after.1);
        if alike || tries == TRIES {
            return (bracket, after.0);
        }
        before = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::{Cell, RefCell};
    use guestclock_core::time::{NS_PER_S, StampCount};
    use proptest::prelude::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    /// Two clocks over one true time in picoseconds. Each read of a clock takes the next of the delays.
    struct Clock {
        ps: Cell<u64>,
        delays_ps: RefCell<Box<dyn Iterator<Item = u64>>>,
        tick_ps: u64,
        counts: RefCell<Vec<(u64, HostCount)>>,
        realtimes: RefCell<Vec<(u64, i64)>>,
    }

    impl Clock {
        fn new(start_ps: u64, tick_ps: u64, delays_ps: Vec<u64>) -> Self {
            Self {
                ps: Cell::new(start_ps),
                delays_ps: RefCell::new(Box::new(delays_ps.into_iter().cycle())),
                tick_ps,
                counts: RefCell::default(),
                realtimes: RefCell::default(),
            }
        }

        fn wait(&self) -> u64 {
            self.ps.set(self.ps.get() + self.delays_ps.borrow_mut().next().unwrap());
            self.ps.get()
        }

        fn frequency(&self) -> Frequency {
            Frequency::new(1_000_000_000_000 / self.tick_ps).unwrap()
        }
    }

    /// Time that the host slept before any of it.
    const SLEPT_NS: u64 = 5_000_000_000;

    impl Clocks for Clock {
        fn count(&self) -> HostCount {
            let ps = self.wait();
            let count = HostCount(ps / self.tick_ps);
            self.counts.borrow_mut().push((ps, count));
            count
        }

        fn realtime_ns(&self) -> i64 {
            let ps = self.wait();
            let realtime_ns = 1_700_000_000_000_000_000 + (ps / 1000).cast_signed();
            self.realtimes.borrow_mut().push((ps, realtime_ns));
            realtime_ns
        }

        fn monotonic_ns(&self) -> u64 {
            self.wait() / 1000
        }

        fn boottime_ns(&self) -> u64 {
            self.wait() / 1000 + SLEPT_NS
        }
    }

    proptest! {
        #[test]
        fn wall_clock_was_read_within_the_width_before_the_count(
            start_ps in 0..1_000_000_000_u64,
            tick_ps in prop::sample::select(vec![250, 1_000, 16_000, 40_000, 1_000_000]),
            delays_ps in prop::collection::vec(0..100_000_u64, 1..40),
        ) {
            let clocks = Clock::new(start_ps, tick_ps, delays_ps);
            let bracket = bracket(&clocks);
            let width_ps = bracket.width_ns(clocks.frequency()) * 1000;
            let boot_time = bracket.boot.boot_time(TimeNamespace::INITIAL, ns(clocks.frequency(), 1)).unwrap();
            let (counts, realtimes) = (clocks.counts.borrow(), clocks.realtimes.borrow());
            let pairs = counts.as_chunks::<2>().0;
            let found = realtimes.iter().zip(pairs).any(|((wall_ps, realtime_ns), [_, (count_ps, count)])| {
                (*realtime_ns, *count) == (bracket.realtime_ns, bracket.count)
                    && wall_ps <= count_ps
                    && count_ps - wall_ps <= width_ps
            });
            prop_assert!(found, "{bracket:?} in {counts:?} {realtimes:?}");
            let narrowest = pairs.iter().map(|[before, after]| after.1.since(before.1)).min();
            prop_assert_eq!(Some(bracket.ticks), narrowest);
            // At the instant at which the counter came to its count.
            let at_count_ns = bracket.count.0 * tick_ps / 1000 + SLEPT_NS;
            let before_ns = boot_time.boottime_ns - at_count_ns;
            prop_assert!(before_ns <= boot_time.width_ns, "{before_ns} {boot_time:?}");
            prop_assert!((boot_time.slept_ns..=boot_time.slept_ns + boot_time.width_ns).contains(&SLEPT_NS));
        }
    }

    const BOOT: BootBracket = BootBracket { before_ns: 100, boottime_ns: 1_150, after_ns: 200 };

    #[test]
    fn a_leap_second_in_the_middle_is_tried_again() {
        let tai = Cell::new(37);
        let brackets = Cell::new(0);
        let state = || (ClockState { tai_offset_s: Some(tai.get()), ..ClockState::UNKNOWN }, BOOT);
        let (bracket, state) = undisturbed(state, || {
            brackets.set(brackets.get() + 1);
            tai.set(38);
            Bracket { count: HostCount(brackets.get()), realtime_ns: 0, ticks: 0, boot: BOOT }
        });
        assert_eq!((bracket.count, state.tai_offset_s), (HostCount(2), Some(38)));
    }

    #[test]
    fn a_sleep_in_the_middle_is_tried_again() {
        let slept_ns = Cell::new(0);
        let brackets = Cell::new(0);
        let boot = || BootBracket { boottime_ns: BOOT.boottime_ns + slept_ns.get(), ..BOOT };
        let (bracket, _) = undisturbed(
            || (ClockState::UNKNOWN, boot()),
            || {
                brackets.set(brackets.get() + 1);
                slept_ns.set(1_000);
                Bracket { count: HostCount(brackets.get()), realtime_ns: 0, ticks: 0, boot: boot() }
            },
        );
        assert_eq!(bracket.count, HostCount(2));
    }

    #[test]
    fn brackets_agree_where_their_intervals_meet() {
        let later = |ns| BootBracket { boottime_ns: BOOT.boottime_ns + ns, ..BOOT };
        // Each sum of sleeps is known within 100 ns.
        for (ns, agrees) in [(0, true), (100, true), (101, false)] {
            assert_eq!((BOOT.agrees(&later(ns)), later(ns).agrees(&BOOT)), (agrees, agrees), "{ns}");
        }
    }

    #[test]
    fn boot_time_is_host_wide() {
        let boot = BootBracket { before_ns: 1_100, boottime_ns: 5_150, after_ns: 1_200 };
        let namespace = TimeNamespace { monotonic_ns: 1_000, boottime_ns: 3_000 };
        // There it is 2_150 since the boot, and between 100 and 200 of those the host was awake.
        let expected = BootTime { boottime_ns: 2_150, slept_ns: 1_950, width_ns: 107 };
        assert_eq!(boot.boot_time(namespace, 7), Some(expected));
        let back = TimeNamespace { monotonic_ns: -10_000, boottime_ns: -10_000 };
        let expected = BootTime { boottime_ns: 15_150, slept_ns: 3_950, width_ns: 100 };
        assert_eq!(boot.boot_time(back, 0), Some(expected));
        // A host that never slept: CLOCK_BOOTTIME was read before the second CLOCK_MONOTONIC.
        let awake = BootBracket { before_ns: 100, boottime_ns: 150, after_ns: 200 };
        let expected = BootTime { boottime_ns: 150, slept_ns: 0, width_ns: 100 };
        assert_eq!(awake.boot_time(TimeNamespace::INITIAL, 0), Some(expected));
        assert_eq!(awake.boot_time(namespace, 0), None, "no boot time is negative");
    }

    #[test]
    fn narrowest_bracket_wins() {
        // Reads take 100 ns each, but for those on either side of the second wall clock.
        let mut delays_ps = vec![100_000; 6 * BRACKETS];
        delays_ps[8..=9].fill(10_000);
        let clocks = Clock::new(0, 1_000, delays_ps);
        let bracket = bracket(&clocks);
        assert_eq!(bracket.ticks, 20);
        assert_eq!(bracket.width_ns(clocks.frequency()), 21);
        let boot = BootBracket { before_ns: 700, boottime_ns: 920 + SLEPT_NS, after_ns: 1_020 };
        let (count, realtime_ns) = (HostCount(820), 1_700_000_000_000_000_810);
        assert_eq!(bracket, Bracket { count, realtime_ns, ticks: 20, boot });
    }

    #[test]
    fn of_equals_the_narrower_boot_time_wins() {
        let mut delays_ps = vec![100_000; 6 * BRACKETS];
        delays_ps[17] = 10_000;
        let bracket = bracket(&Clock::new(0, 1_000, delays_ps));
        assert_eq!((bracket.count, bracket.boot.width_ns()), (HostCount(1_600), 410));
    }

    #[test]
    fn latest_of_equals_wins() {
        let clocks = Clock::new(0, 1_000, vec![10_000]);
        assert_eq!(bracket(&clocks).count, HostCount((6 * BRACKETS as u64 - 2) * 10));
    }

    #[test]
    fn a_count_that_went_backwards_has_no_bound() {
        let ticks = HostCount(1).since(HostCount(2));
        let bracket = Bracket { count: HostCount(1), realtime_ns: 0, ticks, boot: BOOT };
        assert_eq!(bracket.width_ns(Frequency::new(1).unwrap()), u64::MAX);
    }

    #[test]
    fn a_namespace_is_taken_off_a_clock_and_not_off_hardware() {
        const OWN: u64 = 70_000_000_047;
        let hz = Frequency::new(1_000_000_000).unwrap();
        let [source, local] = [SourceName::fixed("clock"), SourceName::fixed("clock_local")];
        let namespace = TimeNamespace { monotonic_ns: 47, boottime_ns: 0 };
        let count = |stamping: Stamping, frequency| {
            let here = stamp(&stamping, frequency, || HostCount(OWN));
            assert_eq!(here.count.own(stamping.namespace_ticks(frequency)), HostCount(OWN));
            (here.source, here.count.0, here.width_ns, here.boot_time.is_some())
        };
        let clock = |namespace| Stamping::of_a_clock(source, local, namespace);
        assert_eq!(count(clock(Some(namespace)), hz), (source, OWN - 47, 1, true));
        assert_eq!(count(clock(Some(TimeNamespace::INITIAL)), hz), (source, OWN, 1, true));
        assert_eq!(count(clock(None), hz), (local, OWN, 1, false));
        assert_eq!(count(Stamping::of_hardware(source, Some(namespace)), hz), (source, OWN, 1, true));
        assert_eq!(count(Stamping::of_hardware(source, None), hz), (source, OWN, 1, false));
        // 47 ns are two ticks and a part, so the stamp is wider by a tick.
        let sixteen = Frequency::new(62_500_000).unwrap();
        assert_eq!(count(clock(Some(namespace)), sixteen), (source, OWN - 2, 32, true));
    }

    /// The sum of sleeps is the kernel's: both clocks are read by other code.
    #[test]
    fn boot_time_is_the_kernels() {
        use rustix::time::{ClockId, clock_gettime};
        let boottime_ns = || {
            let now = clock_gettime(ClockId::Boottime);
            now.tv_sec * NS_PER_S.cast_signed() + now.tv_nsec
        };
        let stamping = Stamping::of_hardware(SourceName::MANUAL, Some(TimeNamespace::INITIAL));
        let before = boottime_ns();
        let here = stamp(&stamping, Frequency::new(NS_PER_S).unwrap(), clock_count);
        let after = boottime_ns();
        let boot_time = here.boot_time.unwrap();
        assert!((before..=after).contains(&boot_time.boottime_ns.cast_signed()), "{before} {boot_time:?} {after}");
        // CLOCK_MONOTONIC is the count: both sums of sleeps are within the width of each other.
        let slept = boot_time.boottime_ns.cast_signed() - here.count.0.cast_signed();
        let bound = boot_time.width_ns.cast_signed();
        assert!((-bound..=bound).contains(&(slept - boot_time.slept_ns.cast_signed())), "{slept} {boot_time:?}");
    }

    fn clock_count() -> HostCount {
        HostCount(clock::monotonic().unsigned_ns())
    }

    #[test]
    fn realtime_is_the_systems() {
        let stamping = Stamping::of_hardware(SourceName::MANUAL, None);
        let here = stamp(&stamping, Frequency::new(1).unwrap(), HostCount::default);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        // The wall clock may be set at any moment, but not by a day in a test.
        assert_eq!(i128::from(here.realtime_ns).abs_diff(now.as_nanos().cast_signed()) / 86_400_000_000_000, 0);
        assert_eq!((here.count, here.width_ns), (StampCount(0), 1_000_000_000));
    }
}
