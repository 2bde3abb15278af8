//! The stamp: a count and the wall clock, and a bound on the time between them.
//!
//! Without hardware that latches both at once, the wall clock is read between two reads of the counter. An interrupt, a
//! preemption or a cold cache widens such a bracket. Those are rare, so the narrowest of a few brackets is kept.

use guestclock_core::time::{Frequency, HostCount, SourceName, Stamp};

use crate::clock_state::ClockState;
use crate::{clock, host_id};

/// Number of brackets that the narrowest is chosen from.
const BRACKETS: usize = 8;

/// A wall-clock reading with a read of the counter on either side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Bracket {
    /// The read of the counter that followed the wall clock's.
    pub count: HostCount,
    /// The wall clock, in nanoseconds since 1970.
    pub realtime_ns: i64,
    /// Distance between the two reads of the counter, in ticks.
    pub ticks: u64,
}

impl Bracket {
    /// Longest time before `count` at which the wall clock may have been read, in nanoseconds, rounded up; saturating.
    ///
    /// Adds one tick to the counter's distance, because each of its reads may fall anywhere within a tick: at 24 MHz
    /// two equal reads can be 41 ns apart.
    #[must_use]
    pub fn width_ns(&self, frequency: Frequency) -> u64 {
        u64::try_from(frequency.ticks_to_ns_ceil(self.ticks.saturating_add(1))).unwrap_or(u64::MAX)
    }
}

/// Takes a few brackets and returns the narrowest; of equals the latest, which is nearest to the caller's next action.
///
/// `count` and `realtime_ns` read the two clocks. Both must be ordered reads: neither may be taken ahead of the other.
pub fn bracket(count: impl Fn() -> HostCount, realtime_ns: impl Fn() -> i64) -> Bracket {
    let mut last = count();
    let mut next = || {
        let (before, realtime_ns) = (last, realtime_ns());
        last = count();
        Bracket { count: last, realtime_ns, ticks: last.since(before) }
    };
    let mut narrowest = next();
    for _ in 1..BRACKETS {
        let bracket = next();
        if bracket.ticks <= narrowest.ticks {
            narrowest = bracket;
        }
    }
    narrowest
}

/// Takes the stamp of the counter that `count` reads, with the evidence for the wall clock.
///
/// The wall clock read `realtime_ns` at some instant in the `width_ns` nanoseconds before `count` was read. A fact that
/// the kernel doesn't give (a sandbox may forbid adjtimex) is unknown, never an error.
pub fn stamp(source: SourceName, frequency: Frequency, count: impl Fn() -> HostCount) -> Stamp {
    // The slow reads come first, so that the count is fresh when this returns.
    let machine_id = host_id::machine_id();
    let boot_id = host_id::boot_id();
    let (bracket, state) =
        undisturbed(|| ClockState::read().unwrap_or(ClockState::UNKNOWN), || bracket(&count, clock::realtime_ns));
    let ClockState { tai_offset_s, synchronized, max_error_ns, rate_ppb, leap } = state;
    Stamp {
        count: bracket.count,
        frequency,
        source,
        realtime_ns: bracket.realtime_ns,
        width_ns: bracket.width_ns(frequency),
        tai_offset_s,
        synchronized,
        max_error_ns,
        sync: None,
        rate_ppb,
        leap,
        machine_id,
        boot_id,
    }
}

/// Most brackets taken while the clock's state changes round each of them. It changes once in years.
const TRIES: usize = 4;

/// Takes a bracket and the clock's state of the same time: a leap second between the two would put them a second apart.
fn undisturbed(state: impl Fn() -> ClockState, bracket: impl Fn() -> Bracket) -> (Bracket, ClockState) {
    let leaps = |state: &ClockState| (state.tai_offset_s, state.leap);
    let mut before = state();
    let mut tries = 0;
    loop {
        let bracket = bracket();
        let after = state();
        tries += 1;
        if leaps(&before) == leaps(&after) || tries == TRIES {
            return (bracket, after);
        }
        before = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::{Cell, RefCell};
    use proptest::prelude::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    /// Two clocks over one true time in picoseconds. Each read of a clock takes the next of the delays.
    struct Clocks {
        ps: Cell<u64>,
        delays_ps: RefCell<Box<dyn Iterator<Item = u64>>>,
        tick_ps: u64,
        counts: RefCell<Vec<(u64, HostCount)>>,
        realtimes: RefCell<Vec<(u64, i64)>>,
    }

    impl Clocks {
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

        fn bracket(&self) -> Bracket {
            bracket(|| self.count(), || self.realtime_ns())
        }

        fn frequency(&self) -> Frequency {
            Frequency::new(1_000_000_000_000 / self.tick_ps).unwrap()
        }
    }

    proptest! {
        #[test]
        fn wall_clock_was_read_within_the_width_before_the_count(
            start_ps in 0..1_000_000_000_u64,
            tick_ps in prop::sample::select(vec![250, 1_000, 16_000, 40_000, 1_000_000]),
            delays_ps in prop::collection::vec(0..100_000_u64, 1..40),
        ) {
            let clocks = Clocks::new(start_ps, tick_ps, delays_ps);
            let bracket = clocks.bracket();
            let width_ps = bracket.width_ns(clocks.frequency()) * 1000;
            let (counts, realtimes) = (clocks.counts.borrow(), clocks.realtimes.borrow());
            let found = realtimes.iter().zip(&counts[1..]).any(|((wall_ps, realtime_ns), (count_ps, count))| {
                (*realtime_ns, *count) == (bracket.realtime_ns, bracket.count)
                    && wall_ps <= count_ps
                    && count_ps - wall_ps <= width_ps
            });
            prop_assert!(found, "{bracket:?} in {counts:?} {realtimes:?}");
            let narrowest = counts.windows(2).map(|pair| pair[1].1.since(pair[0].1)).min();
            prop_assert_eq!(Some(bracket.ticks), narrowest);
        }
    }

    #[test]
    fn a_leap_second_in_the_middle_is_tried_again() {
        let tai = Cell::new(37);
        let brackets = Cell::new(0);
        let state = || ClockState { tai_offset_s: Some(tai.get()), ..ClockState::UNKNOWN };
        let (bracket, state) = undisturbed(state, || {
            brackets.set(brackets.get() + 1);
            tai.set(38);
            Bracket { count: HostCount(brackets.get()), realtime_ns: 0, ticks: 0 }
        });
        assert_eq!((bracket.count, state.tai_offset_s), (HostCount(2), Some(38)));
    }

    #[test]
    fn narrowest_bracket_wins() {
        // Reads take 100 ns each, but for the eighth and the ninth.
        let mut delays_ps = vec![100_000; 2 * BRACKETS + 1];
        delays_ps[7..=8].fill(10_000);
        let clocks = Clocks::new(0, 1_000, delays_ps);
        let bracket = clocks.bracket();
        assert_eq!(bracket.ticks, 20);
        assert_eq!(bracket.width_ns(clocks.frequency()), 21);
        assert_eq!(bracket, Bracket { count: HostCount(720), realtime_ns: 1_700_000_000_000_000_710, ticks: 20 });
    }

    #[test]
    fn latest_of_equals_wins() {
        let clocks = Clocks::new(0, 1_000, vec![10_000]);
        assert_eq!(clocks.bracket().count, HostCount((2 * BRACKETS as u64 + 1) * 10));
    }

    #[test]
    fn a_count_that_wraps_is_no_wider() {
        let counts = Cell::new(u64::MAX - 15);
        let bracket = bracket(
            || {
                counts.set(counts.get().wrapping_add(10));
                HostCount(counts.get())
            },
            || 0,
        );
        assert_eq!(bracket.ticks, 10);
    }

    #[test]
    fn a_count_that_went_backwards_has_no_bound() {
        let bracket = Bracket { count: HostCount(1), realtime_ns: 0, ticks: HostCount(1).since(HostCount(2)) };
        assert_eq!(bracket.width_ns(Frequency::new(1).unwrap()), u64::MAX);
    }

    #[test]
    fn realtime_is_the_systems() {
        let here = stamp(SourceName::MANUAL, Frequency::new(1).unwrap(), HostCount::default);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        // The wall clock may be set at any moment, but not by a day in a test.
        assert_eq!(i128::from(here.realtime_ns).abs_diff(now.as_nanos().cast_signed()) / 86_400_000_000_000, 0);
        assert_eq!((here.count, here.width_ns), (HostCount(0), 1_000_000_000));
    }
}
