//! Counters, wall clocks and error bounds by worked numbers: each expected value is written out, or follows from the
//! definition in integers without bounds.

use guestclock_core::time::{
    Amount, Counter, ErrorBound, Frequency, GuestCount, HostCount, Instant, Intent, Leap, NO_DEADLINE, NamespaceTicks,
    Offset, OffsetInterval, PublishedOffset, Quality, Ratio, SourceName, Stamp, StampCount, SyncBound, Unvouched,
    deadline, elapsed, wall_clock::SATURATED_NS,
};
use std::sync::atomic::{AtomicU64, Ordering};

fn hz(hz: u64) -> Frequency {
    Frequency::new(hz).unwrap()
}

/// A stamp of a known machine, at 250 MHz: 4 ns a tick.
fn stamp(count: u64, realtime_ns: i64) -> Stamp {
    Stamp {
        tai_offset_s: Some(37),
        machine_id: Some([1; 16]),
        boot_id: Some([2; 16]),
        ..Stamp::unvouched(StampCount(count), hz(250_000_000), SourceName::fixed("cntvct_el0"), realtime_ns, 0)
    }
}

fn declared(max_error_ns: u64) -> SyncBound {
    SyncBound { max_error_ns, age_ns: 0, holdover_ppb: 0, quality: Quality::Declared, tai_offset_s: None }
}

/// Each term once, of values that no other sum of them gives.
const BOUND: ErrorBound = ErrorBound {
    reads_ticks: 3,
    by_value_ticks: 5,
    rounding_ticks: 1,
    rate_ticks: 30,
    saved_bracket_ns: 10,
    here_bracket_ns: 20,
    saved_sync_ns: 100,
    here_sync_ns: 200,
    // One and a half nanoseconds, and half a one with a billionth.
    saved_holdover: 1_500_000_000,
    here_holdover: 500_000_001,
    assumed_ns: 1000,
    sleep_ns: 0,
    slew_ns: 0,
    beyond_cap_ticks: 0,
};

#[test]
fn a_bound_rounds_its_time_up_once() {
    // 1332.000000001 ns are 333 ticks of 4 ns and a part of one; a tick for rounding, 30 for the rate, and 8 of the counters.
    assert_eq!(BOUND.ticks(hz(250_000_000)), 334 + 1 + 30 + 8);
    // Without the billionth they are 333 ticks.
    assert_eq!(ErrorBound { here_holdover: 500_000_000, ..BOUND }.ticks(hz(250_000_000)), 333 + 1 + 30 + 8);
    assert_eq!(ErrorBound::default().ticks(hz(1)), 0);
}

#[test]
fn a_cap_hides_the_error_of_the_time_alone() {
    for (beyond_cap_ticks, left) in [(1, 364), (364, 1), (365, 0), (366, 0), (u64::MAX, 0)] {
        assert_eq!(ErrorBound { beyond_cap_ticks, ..BOUND }.ticks(hz(250_000_000)), left + 8);
    }
}

#[test]
fn a_bound_stops_at_the_end_of_its_range() {
    for bound in [
        ErrorBound { assumed_ns: u64::MAX, ..BOUND },
        ErrorBound { sleep_ns: u64::MAX, ..BOUND },
        ErrorBound { slew_ns: u64::MAX, ..BOUND },
        ErrorBound { saved_holdover: u128::MAX, ..BOUND },
        ErrorBound { reads_ticks: u64::MAX, ..BOUND },
        ErrorBound { rounding_ticks: u64::MAX, ..BOUND },
        ErrorBound { rate_ticks: u64::MAX, ..BOUND },
    ] {
        assert_eq!(bound.ticks(hz(u64::MAX)), u64::MAX);
    }
}

#[test]
fn a_bounds_terms_are_its_fields() {
    let amounts =
        ErrorBound { beyond_cap_ticks: 7, sleep_ns: 11, slew_ns: 12, ..BOUND }.terms().map(|term| term.amount);
    let (ticks, ns) = (Amount::Ticks, Amount::Ns);
    // A hold-over is shown in whole nanoseconds, rounded up.
    let counted = [ticks(3), ticks(5), ticks(1), ticks(30)];
    let timed = [ns(10), ns(20), ns(100), ns(200), ns(2), ns(1), ns(1000), ns(11), ns(12)];
    let expected = [&counted[..], &timed, &[Amount::LessTicks(7)]].concat();
    assert_eq!(amounts.as_slice(), expected);
}

#[test]
fn conversions_round_as_they_say() {
    // Three ticks a second, and three billion.
    let (slow, fast) = (hz(3), hz(3_000_000_000));
    assert_eq!((slow.ticks_to_ns(2), slow.ticks_to_ns_ceil(2)), (666_666_666, 666_666_667));
    assert_eq!((slow.ticks_to_ns(3), slow.ticks_to_ns_ceil(3)), (1_000_000_000, 1_000_000_000));
    assert_eq!((slow.signed_ticks_to_ns(-2), slow.signed_ticks_to_ns(0)), (-666_666_666, 0));
    assert_eq!(slow.signed_ticks_to_ns(2), 666_666_666);
    assert_eq!((slow.ns_to_ticks(666_666_666), slow.ns_to_ticks_ceil(666_666_666)), (1, 2));
    assert_eq!((slow.ns_to_ticks(1_000_000_000), slow.ns_to_ticks_ceil(1_000_000_000)), (3, 3));
    assert_eq!((fast.ns_to_ticks(7), fast.ns_to_ticks_ceil(7), fast.ticks_to_ns(7)), (21, 21, 2));
    // No input leaves the range.
    let most = u128::from(u64::MAX);
    assert_eq!(hz(1).ticks_to_ns(u64::MAX), most * 1_000_000_000);
    assert_eq!(hz(u64::MAX).ns_to_ticks(u64::MAX), most * most / 1_000_000_000);
    assert_eq!(hz(1).signed_ticks_to_ns(i64::MIN), -(1_i128 << 63) * 1_000_000_000);
    assert_eq!((hz(u64::from(u32::MAX)).cntfrq(), hz(1 << 32).cntfrq()), (Some(u32::MAX), None));
    assert_eq!(Frequency::new(0), None);
}

#[test]
fn a_count_is_after_another_by_less_than_half_of_the_range() {
    let after = |ticks: u64| HostCount(ticks.wrapping_sub(5)).is_after(HostCount(0_u64.wrapping_sub(5)));
    assert!(!after(0));
    assert!(after(1) && after((1 << 63) - 1));
    assert!(!after(1 << 63) && !after(u64::MAX));
}

#[test]
fn a_deadline_is_a_count_or_none() {
    assert_eq!(deadline(HostCount(5), Some(0)), 5);
    assert_eq!(deadline(HostCount(5), Some(7)), 12);
    assert_eq!(deadline(HostCount(5), Some(u64::MAX - 6)), NO_DEADLINE - 1);
    assert_eq!(deadline(HostCount(5), Some(u64::MAX)), NO_DEADLINE - 1);
    assert_eq!(deadline(HostCount(5), None), NO_DEADLINE);
}

#[test]
fn an_interval_goes_by_zero_if_it_may_be_zero() {
    let best = |low, width| OffsetInterval { low: Offset(low), width }.best();
    assert_eq!(best(7, 3), Offset(7));
    assert_eq!((best(0, 0), best(0, 9)), (Offset(0), Offset(0)));
    assert_eq!(best(u64::MAX - 1, 2), Offset(0));
    assert_eq!(best(u64::MAX - 1, 1), Offset(u64::MAX - 1));
}

#[test]
fn intervals_narrow_each_other_down() {
    let interval = |low, width| OffsetInterval { low: Offset(low), width };
    assert_eq!(OffsetInterval::exact(Offset(7)), interval(7, 0));
    // Somewhere between the host's 10 and 16 the guest read 4.
    let read = OffsetInterval::bracketed(HostCount(10), GuestCount(4), HostCount(16));
    assert_eq!(read, interval(6, 6));
    assert!([6, 9, 12].iter().all(|offset| read.contains(Offset(*offset))));
    assert!(![5, 13].iter().any(|offset| read.contains(Offset(*offset))));
    assert_eq!(read.intersect(interval(10, 9)), Some(interval(10, 2)));
    assert_eq!(read.intersect(interval(13, 9)), None);
    assert_eq!([0, 9, 10, 100].map(|wanted| read.farthest(Offset(wanted))), [12, 3, 4, 94]);
}

#[test]
fn an_instant_is_a_counter_that_stands_still() {
    fn reads(counter: impl Counter) -> (HostCount, Frequency, Stamp) {
        (counter.count(), counter.frequency(), counter.stamp())
    }
    let at = stamp(77, 5);
    let instant = Instant::from(at);
    assert_eq!(reads(&instant), (HostCount(77), hz(250_000_000), at), "a reference to a counter is that counter");
    assert_eq!(reads(instant), (HostCount(77), hz(250_000_000), at));
}

/// A counter that reads 100, 101 and so on, and whose first read falls into a change of the offset.
struct Changing<'a> {
    offset: &'a PublishedOffset,
    reads: AtomicU64,
}

impl Counter for Changing<'_> {
    fn frequency(&self) -> Frequency {
        hz(1)
    }

    fn count(&self) -> HostCount {
        let before = self.reads.fetch_add(1, Ordering::Relaxed);
        if before == 0 {
            self.offset.publish(Offset(30));
        }
        HostCount(100 + before)
    }

    fn stamp(&self) -> Stamp {
        stamp(self.count().0, 0)
    }

    fn namespace_ticks(&self) -> NamespaceTicks {
        NamespaceTicks::NONE
    }
}

#[test]
fn a_count_is_taken_again_after_a_change_of_the_offset() {
    let offset = PublishedOffset::new(Offset(7));
    let counter = Changing { offset: &offset, reads: AtomicU64::new(0) };
    assert_eq!((offset.count(&counter), offset.offset()), (GuestCount(101 - 30), Offset(30)));
    assert_eq!(offset.count(&counter), GuestCount(102 - 30), "nothing has changed");
}

#[test]
fn a_scaled_instant_hides_a_tick_unless_its_ticks_are_the_inner_ones() {
    let inner = Stamp { width_ns: 100, ..stamp(1000, 5) };
    // 3 of its ticks for 2: a tick lasts 2.67 ns.
    let scaled = Ratio::new(hz(250_000_000), hz(375_000_000)).stamp(inner);
    assert_eq!((scaled.count, scaled.frequency, scaled.width_ns), (StampCount(1500), hz(375_000_000), 103));
    assert_eq!((scaled.realtime_ns, scaled.source), (inner.realtime_ns, inner.source));
    let whole = Ratio::new(hz(250_000_000), hz(500_000_000)).stamp(inner);
    assert_eq!((whole.count, whole.frequency, whole.width_ns), (StampCount(2000), hz(500_000_000), 100));
    assert_eq!(Ratio::new(hz(250_000_000), hz(1)).stamp(Stamp { width_ns: u64::MAX, ..inner }).width_ns, u64::MAX);
    let one = |from, to| Ratio::new(hz(from), hz(to)).is_one();
    assert!(one(6, 6) && !one(6, 3) && !one(3, 6));
    assert_eq!(Ratio::new(hz(6), hz(4)).frequency(), hz(4));
}

#[test]
fn only_a_snapshot_and_a_clone_make_a_copy() {
    let copies = Intent::NAMES.map(|(name, intent)| (name, intent.makes_a_copy()));
    assert_eq!(copies, [("live-migration", false), ("live-update", false), ("snapshot", true), ("clone", true)]);
    assert_eq!(Intent::NAMES.map(|(_, intent)| intent.name()), Intent::NAMES.map(|(name, _)| name));
    assert_eq!(Quality::NAMES.map(|(_, quality)| quality.name()), Quality::NAMES.map(|(name, _)| name));
    let leaps = ["none", "insert", "delete", "in-progress", "passed", "unknown"];
    assert_eq!(Leap::ALL.map(Leap::name), leaps);
    assert_eq!(leaps.map(Leap::from_name), Leap::ALL.map(Some));
}

#[test]
fn a_stamp_moves_with_its_counter_both_ways() {
    let from = stamp(1000, 50);
    assert_eq!(from.at(StampCount(1003)), Some(stamp(1003, 62)));
    assert_eq!(from.at(StampCount(1000)), Some(from));
    assert_eq!(from.at(StampCount(990)), Some(stamp(990, 10)));
    assert_eq!(stamp(1, 0).at(StampCount(u64::MAX)), Some(stamp(u64::MAX, -8)), "the counter wraps");
    assert_eq!(stamp(1000, i64::MAX - 3).at(StampCount(1001)), None);
    assert_eq!(stamp(1000, i64::MIN + 3).at(StampCount(999)), None);
}

#[test]
fn tai_is_the_wall_clock_and_its_offset() {
    assert_eq!(stamp(0, -5).tai_ns(), Some(36_999_999_995));
    assert_eq!(Stamp { tai_offset_s: None, ..stamp(0, 5) }.tai_ns(), None);
}

#[test]
fn a_wall_clock_is_vouched_for_or_the_reason_is_told() {
    let by_kernel = |synchronized, max_error_ns| Stamp { synchronized, max_error_ns, ..stamp(0, 0) }.vouched();
    assert_eq!(by_kernel(None, None), Err(Unvouched::Nobody));
    assert_eq!(by_kernel(Some(true), None), Err(Unvouched::Nobody));
    assert_eq!(by_kernel(None, Some(5)), Err(Unvouched::Nobody));
    assert_eq!(by_kernel(Some(false), Some(5)), Err(Unvouched::Unsynchronized));
    assert_eq!(by_kernel(Some(true), Some(SATURATED_NS)), Err(Unvouched::Saturated));
    let bound = SyncBound { quality: Quality::KernelUnverified, ..declared(SATURATED_NS - 1) };
    assert_eq!(by_kernel(Some(true), Some(SATURATED_NS - 1)), Ok(bound));
    let vouched = Stamp { synchronized: Some(false), sync: Some(declared(7)), ..stamp(0, 0) };
    assert_eq!(vouched.vouched(), Ok(declared(7)), "the caller's word comes before the kernel's");
    assert_eq!(Stamp { tai_offset_s: None, ..vouched }.vouched(), Ok(declared(7)));
    assert!(vouched.is_vouched() && !Stamp { sync: Some(bound), ..vouched }.is_vouched(), "a claim is none");
    assert!(!Stamp { sync: None, ..vouched }.is_vouched());

    let unknown = Stamp { tai_offset_s: Some(37), sync: Some(declared(7)), ..Stamp::of_unknown_host(hz(1)) };
    assert_eq!(unknown.vouched(), Err(Unvouched::UnknownHost));
    assert!(unknown.is_of_unknown_host());
    assert!(!Stamp { realtime_ns: 0, ..unknown }.is_of_unknown_host(), "a wall clock is known");
    assert!(!Stamp { source: SourceName::MANUAL, ..unknown }.is_of_unknown_host(), "a source is known");
}

#[test]
fn a_wall_clocks_error_grows_with_its_age() {
    // 3 ppm of 1.5 ms are 4.5 ns.
    let sync = SyncBound { age_ns: 1_500_000, holdover_ppb: 3000, ..declared(100) };
    assert_eq!((sync.held_over_ns(), sync.error_ns()), (5, 105));
    assert_eq!(sync.aged(500_000).age_ns, 2_000_000);
    assert_eq!((sync.aged(500_000).held_over_ns(), sync.aged(u64::MAX).age_ns), (6, u64::MAX));
    let most = SyncBound { age_ns: u64::MAX, holdover_ppb: u64::MAX, ..declared(1) };
    assert_eq!((most.held_over_ns(), most.error_ns()), (u64::MAX, u64::MAX));

    let vouched = Stamp { width_ns: 20, ..stamp(0, 0) }.vouched_by(sync);
    assert_eq!((vouched.error_bound_ns(), stamp(0, 0).error_bound_ns()), (Some(125), None));
    assert_eq!((vouched.sync, vouched.tai_offset_s), (Some(sync), Some(37)));
    let better = SyncBound { tai_offset_s: Some(38), ..sync };
    assert_eq!(stamp(0, 0).vouched_by(better).tai_offset_s, Some(38), "who vouches knows it better than the kernel");
}

#[test]
fn a_rate_step_needs_both_rates() {
    let rate = |rate_ppb| Stamp { rate_ppb, ..stamp(0, 0) };
    assert_eq!(elapsed::rate_step_ppb(&rate(Some(300)), &rate(Some(-50))), Some(-350));
    assert_eq!(elapsed::rate_step_ppb(&rate(None), &rate(Some(1))), None);
    assert_eq!(elapsed::rate_step_ppb(&rate(Some(1)), &rate(None)), None);
    assert_eq!(elapsed::rate_step_ppb(&rate(Some(1)), &rate(Some(i64::MIN))), None);
}
