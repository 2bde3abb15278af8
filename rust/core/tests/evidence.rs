//! The table of evidence by worked numbers: which clock tells the time between two stamps, and what is refused.
//!
//! The counter has 16 ns a tick, and read 10^12 at the checkpoint, 100 s after its host's boot.

mod common;

use common::Contents;
use common::target::{asks, bare, plan, target};
use guestclock_core::restore::{Diagnostic, MAX_RATE_ERROR_PPB, Plan, Policy, Refusal, Request};
use guestclock_core::time::elapsed::HostClock;
use guestclock_core::time::{
    BootTime, Elapsed, ElapsedBy, ElapsedError, ErrorBound, Evidence, Frequency, Lack, Leap, Quality, Sleep,
    SourceName, Stamp, StampCount, SyncBound, Unvouched,
};

const S: u64 = 1_000_000_000;
const HZ: u64 = 62_500_000;
const COUNT: u64 = 1_000_000_000_000;
/// 15 June 2025, 12:00 UTC.
const NOON_NS: i64 = 1_749_988_800_000_000_000;

/// The checkpoint's stamp: it knows everything, and the kernel claims 1 ms.
fn saved() -> Stamp {
    Stamp {
        count: StampCount(COUNT),
        frequency: Frequency::new(HZ).unwrap(),
        source: SourceName::fixed("cntvct_el0"),
        realtime_ns: NOON_NS,
        width_ns: 30,
        tai_offset_s: Some(37),
        synchronized: Some(true),
        max_error_ns: Some(1_000_000),
        sync: None,
        rate_ppb: None,
        leap: Leap::None,
        machine_id: Some([1; 16]),
        boot_id: Some([2; 16]),
        boot_time: Some(BootTime { boottime_ns: 100 * S, slept_ns: 7 * S, width_ns: 100 }),
    }
}

/// The same host after so much time awake, and a sleep of so much through which its counter counted on or not.
fn after(awake_ns: u64, slept_ns: u64, counts_on: bool) -> Stamp {
    let (from, counted) = (saved(), if counts_on { awake_ns + slept_ns } else { awake_ns });
    Stamp {
        count: StampCount(COUNT + counted / 16),
        realtime_ns: NOON_NS + i64::try_from(awake_ns + slept_ns).unwrap(),
        boot_time: from.boot_time.map(|boot| BootTime {
            boottime_ns: boot.boottime_ns + awake_ns + slept_ns,
            slept_ns: boot.slept_ns + slept_ns,
            width_ns: 50,
        }),
        ..from
    }
}

fn vouched(stamp: Stamp) -> Stamp {
    let (age_ns, holdover_ppb, quality) = (0, 0, Quality::Declared);
    stamp.vouched_by(SyncBound { max_error_ns: 1_000_000, age_ns, holdover_ppb, quality, tai_offset_s: None })
}

fn unclaimed(stamp: Stamp) -> Stamp {
    Stamp { synchronized: Some(false), ..stamp }
}

fn no_boot_time(stamp: Stamp) -> Stamp {
    Stamp { boot_time: None, ..stamp }
}

fn from(stamp: Stamp) -> Contents {
    let contents = bare().at(stamp);
    contents.time(|time| time.backlog = None)
}

fn planned(saved: Stamp, here: Stamp, request: Request) -> Result<Plan, ElapsedError> {
    plan(&from(saved), &target(), here, request).map_err(|refused| match refused {
        Refusal::Elapsed(error) => error,
        other => panic!("{other}"),
    })
}

fn advance(saved: Stamp, here: Stamp) -> Result<Plan, ElapsedError> {
    planned(saved, here, asks(Policy::ADVANCE))
}

/// Nanoseconds that were added, by which clock, and within how many ticks.
fn told(plan: &Plan) -> (u64, &'static str, u64) {
    let frequency = plan.frequency();
    let by = plan.elapsed_by().map_or("nobody", ElapsedBy::name);
    let added_ns = u64::try_from(frequency.ticks_to_ns(plan.as_of.added_ticks)).unwrap();
    (added_ns, by, plan.as_of.bound.ticks(frequency))
}

fn codes(plan: &Plan) -> Vec<&'static str> {
    plan.warnings.iter().map(Diagnostic::code).filter(|code| *code != "large-jump").collect()
}

/// Ticks of so many nanoseconds, rounded up, and of a rounding.
const fn bound(ns: u64) -> u64 {
    ns.div_ceil(16) + 1
}

#[test]
fn one_boot_goes_by_its_counter() {
    for (saved, here) in [
        (saved(), after(5 * S, 0, true)),
        (vouched(saved()), vouched(after(5 * S, 0, true))),
        // Machine ids don't matter: containers have their own, or none.
        (saved(), Stamp { machine_id: Some([9; 16]), ..after(5 * S, 0, true) }),
        (Stamp { machine_id: None, ..saved() }, Stamp { machine_id: None, ..after(5 * S, 0, true) }),
        // Nor does a wall clock that nobody claims anything of, and that agrees.
        (unclaimed(saved()), unclaimed(after(5 * S, 0, true))),
    ] {
        let made = advance(saved, here).unwrap();
        assert_eq!((told(&made), codes(&made)), ((5 * S, "counter", 0), vec![]));
        assert_eq!(made.assumptions, [Diagnostic::SameBoot]);
    }
    // Where a stamp has no boot time, it is assumed that there was no sleep.
    for (saved, here) in
        [(saved(), no_boot_time(after(5 * S, 0, true))), (no_boot_time(saved()), after(5 * S, 0, true))]
    {
        let made = advance(saved, here).unwrap();
        assert_eq!((told(&made), codes(&made)), ((5 * S, "counter", 0), vec![]));
        assert_eq!(made.assumptions, [Diagnostic::SameBoot, Diagnostic::NotSlept]);
    }
}

#[test]
fn a_stepped_wall_clock_moves_no_guest_of_one_boot() {
    let step = |ns: i64| Stamp { realtime_ns: NOON_NS + ns, ..after(S / 2, 0, true) };
    for ns in [30_500_000_000, -30_500_000_000] {
        for (saved, here) in [
            (saved(), step(ns)),
            (vouched(saved()), step(ns)),
            (saved(), vouched(step(ns))),
            (unclaimed(saved()), unclaimed(step(ns))),
        ] {
            let made = advance(saved, here).unwrap();
            assert_eq!((told(&made), codes(&made)), ((S / 2, "counter", 0), vec!["wall-clock-contradicts"]), "{ns}");
        }
        // Both are vouched for: one of the two must be wrong.
        let refused = advance(vouched(saved()), vouched(step(ns))).unwrap_err();
        let ElapsedError::ClocksDisagree(evidence) = &refused else { panic!("{refused}") };
        assert_eq!((evidence.counted_ns, evidence.wall_ns), (i128::from(S) / 2, ns.into()));
        let by = |elapsed| {
            let request = Request { elapsed: Some(elapsed), ..asks(Policy::ADVANCE) };
            planned(vouched(saved()), vouched(step(ns)), request)
        };
        assert_eq!(told(&by(Elapsed::ByCounter).unwrap()).0, S / 2);
        let by_wall_clocks = by(Elapsed::ByWallClocks { error_ns: None, refuse_over_ns: None });
        assert_eq!(by_wall_clocks.is_ok(), ns > 0);
    }
    // 500 ppm of the time by the wall clock, both bounds, both brackets, and two roundings.
    let allowed = 250_000 + 2_000_000 + 60 + 2;
    let at = |ns| Stamp { realtime_ns: NOON_NS + ns, ..after(S / 2, 0, true) };
    let ahead = |ns: i64| advance(vouched(saved()), vouched(at(500_000_000 + ns))).is_ok();
    assert!(ahead(allowed) && !ahead(allowed + 2_000) && ahead(-allowed + 2_000) && !ahead(-allowed - 2_000));
}

#[test]
fn a_counter_that_stood_still_in_a_sleep_isnt_believed() {
    let (awake, slept) = (2 * S, 4_920 * S);
    let here = after(awake, slept, false);
    let slew = ((awake + slept) * 500).div_ceil(999_500);
    // A second, the slew, and both reads of the boot time.
    let by_boot_time = (awake + slept, "boot-time", bound(S + slew + 150));
    for (saved, here) in [(saved(), here), (vouched(saved()), here), (saved(), vouched(here))] {
        let made = advance(saved, here).unwrap();
        assert_eq!((told(&made), codes(&made)), (by_boot_time, vec!["counter-stopped"]));
        assert_eq!(made.assumptions, [Diagnostic::BootTimeCountedSleep, Diagnostic::NominalRateHere]);
    }
    let made = advance(vouched(saved()), vouched(here)).unwrap();
    assert_eq!(told(&made), (awake + slept, "wall-clocks", bound(2_000_000 + 60)));
    assert_eq!(codes(&made), ["counter-stopped"]);
    // An x86 S3 sleep: the count went back.
    let back = Stamp { count: StampCount(5), ..here };
    let made = advance(saved(), back).unwrap();
    assert_eq!((told(&made), codes(&made)), (by_boot_time, vec!["counter-stopped"]));
    assert_eq!(told(&advance(vouched(saved()), vouched(back)).unwrap()).1, "wall-clocks");
    // Only where a stamp has no boot time is that refused.
    let backwards = ElapsedError::ClockWentBackwards { clock: HostClock::Counter, saved: COUNT.into(), host: 5 };
    assert_eq!(advance(saved(), no_boot_time(back)), Err(backwards));
    assert_eq!(told(&advance(vouched(saved()), vouched(no_boot_time(back))).unwrap()).1, "wall-clocks");
}

#[test]
fn a_counter_that_counted_through_a_sleep_is_believed_and_warned_of() {
    let made = advance(saved(), after(2 * S, 4_920 * S, true)).unwrap();
    assert_eq!((told(&made), codes(&made)), ((4_922 * S, "counter", 0), vec!["counted-through-sleep"]));
    // A sleep that 500 ppm could hide: whether the counter stood still can't be seen, nor by a second how long.
    let made = advance(saved(), after(1_000 * S, 400_000_000, true)).unwrap();
    assert_eq!(told(&made), (1_000_400_000_000, "counter", (1_400_000_050_u64).div_ceil(16)));
    // What two vouched wall clocks contradict is refused as ever.
    let stepped = Stamp { realtime_ns: NOON_NS, ..after(2 * S, 4_920 * S, true) };
    assert!(matches!(advance(vouched(saved()), vouched(stepped)), Err(ElapsedError::ClocksDisagree(_))));
}

#[test]
fn a_sleep_is_told_from_none_by_both_widths() {
    let between = |slept_ns| {
        let here = after(S, 0, true);
        let boot_time = here.boot_time.map(|boot| BootTime { slept_ns, ..boot });
        Evidence::between(&saved(), &Stamp { boot_time, ..here }).sleep
    };
    assert_eq!(
        (between(7 * S), between(7 * S + 100), between(7 * S - 50)),
        (Sleep::Absent, Sleep::Absent, Sleep::Absent)
    );
    assert_eq!(between(7 * S + 101), Sleep::Grew { least_ns: 1, most_ns: 151 });
    assert_eq!(between(7 * S - 51), Sleep::Shrank);
    assert_eq!(Evidence::between(&saved(), &no_boot_time(after(S, 0, true))).sleep, Sleep::Unknown);
    assert_eq!(
        Evidence::between(&saved(), &Stamp { boot_id: Some([9; 16]), ..after(S, 0, true) }).sleep,
        Sleep::Unknown
    );
    // A copy of the host that was restored: its sum of sleeps is smaller, and the boot time tells.
    let copy =
        Stamp { boot_time: Some(BootTime { boottime_ns: 101 * S, slept_ns: 0, width_ns: 0 }), ..after(S, 0, true) };
    let made = advance(saved(), copy).unwrap();
    assert_eq!((told(&made).1, codes(&made)), ("boot-time", vec!["counter-stopped"]));
}

/// A1: the host booted anew, 720 s less were counted than passed, and both wall clocks prove the contrary.
#[test]
fn another_boot_is_another_host() {
    let days = 30 * 86_400;
    let (start, end) = (vouched(saved()), vouched(after(days * S, 0, true)));
    for here in [
        Stamp { count: StampCount((days - 120) * HZ), boot_id: Some([3; 16]), ..end },
        // Golden images without boot ids.
        Stamp { boot_id: None, ..end },
        // Another counter of the same boot.
        Stamp { source: SourceName::fixed("clock_monotonic_raw"), ..end },
    ] {
        let made = advance(start, here).unwrap();
        assert_eq!(told(&made), (days * S, "wall-clocks", bound(2_000_000 + 60)));
        assert_eq!(codes(&made), [] as [&str; 0]);
        assert!(matches!(advance(start, unclaimed(Stamp { sync: None, ..here })), Err(ElapsedError::Unknown(_))));
        let claimed = advance(Stamp { sync: None, ..start }, here).unwrap();
        assert_eq!((told(&claimed), codes(&claimed)), (told(&made), vec!["kernel-unverified"]));
    }
    let local = |stamp| Stamp { source: SourceName::fixed("clock_monotonic_local"), ..stamp };
    assert_eq!(told(&advance(local(start), local(end)).unwrap()).1, "wall-clocks", "of which namespaces?");
}

#[test]
fn a_reset_is_proved_by_the_count_at_the_boot() {
    let other = |count, awake_s, slept_s| {
        let boot_time = BootTime { boottime_ns: (awake_s + slept_s) * S, slept_ns: slept_s * S, width_ns: 0 };
        let here = after(5 * S, 0, true);
        Stamp { count: StampCount(count), boot_id: Some([3; 16]), boot_time: Some(boot_time), ..here }
    };
    let reset = |stamp: Stamp| Evidence::between(&saved(), &stamp).reset;
    // At its boot the counter read less than at the checkpoint.
    assert!(reset(other(COUNT + 100 * HZ, 101, 0)) && reset(other(COUNT - 1, 0, 0)));
    // And here more, or nearly as much: the rate may account for it. A sleep may not have been counted.
    for stamp in
        [other(COUNT + 100 * HZ, 99, 0), other(COUNT + 99_960_000 * HZ / 1_000_000, 100, 0), other(COUNT + HZ, 1, 50)]
    {
        assert!(!reset(stamp), "{stamp:?}");
    }
    assert!(!reset(no_boot_time(other(COUNT + 100 * HZ, 0, 0))) && !reset(after(S, 0, true)));
    let by_counter = Request { elapsed: Some(Elapsed::ByCounter), ..asks(Policy::ADVANCE) };
    let made = planned(saved(), other(COUNT + 100 * HZ, 101, 0), by_counter).unwrap();
    assert_eq!((told(&made), codes(&made)), ((100 * S, "counter", 0), vec!["counter-was-reset"]));
    // A kexec.
    let made = planned(saved(), other(COUNT + 100 * HZ, 50, 0), by_counter).unwrap();
    assert_eq!((told(&made), codes(&made)), ((100 * S, "counter", 0), vec![]));
}

#[test]
fn tai_is_needed_only_over_the_end_of_a_month() {
    let utc = |stamp: Stamp, at_ns| Stamp { tai_offset_s: None, realtime_ns: at_ns, ..vouched(stamp) };
    let elsewhere = |at_ns| Stamp { boot_id: Some([3; 16]), ..utc(after(10 * S, 0, true), at_ns) };
    // 10 s at noon of 15 June; and the first instant of July.
    let july_ns = 1_751_328_000_000_000_000;
    let made = advance(utc(saved(), NOON_NS), elsewhere(NOON_NS + 10_000_000_000)).unwrap();
    assert_eq!(told(&made), (10 * S, "wall-clocks", bound(2_000_000 + 60)));
    // The bound of 1 ms, the bracket, and the second that may be read twice.
    let margin = 1_001_000_030;
    let to = |end_ns: i64| advance(utc(saved(), end_ns - 10_000_000_000), elsewhere(end_ns)).map(|made| told(&made).0);
    assert_eq!(to(july_ns - margin - 1), Ok(10 * S));
    let Err(ElapsedError::Unknown(unknown)) = to(july_ns - margin) else { panic!() };
    assert_eq!((unknown.saved, unknown.here), (Err(Unvouched::TaiUnknown), Err(Unvouched::TaiUnknown)));
    let from_ns = |start_ns: i64| advance(utc(saved(), start_ns), elsewhere(start_ns + 10_000_000_000)).is_ok();
    assert!(from_ns(july_ns + 1_000_030) && !from_ns(july_ns + 1_000_029));
    // One that knows it is not enough: the other's clock may be a second off that.
    let known = Stamp { realtime_ns: july_ns - 5_000_000_000, ..vouched(saved()) };
    let Err(ElapsedError::Unknown(unknown)) = advance(known, elsewhere(july_ns + 5_000_000_000)) else { panic!() };
    assert!(unknown.saved.is_ok() && unknown.here == Err(Unvouched::TaiUnknown));
}

#[test]
fn freeze_is_never_refused_and_says_how_far_the_guest_falls_behind() {
    let behind = |saved, here, elapsed| {
        let made = planned(saved, here, Request { elapsed, ..asks(Policy::FREEZE) }).unwrap();
        assert_eq!((made.as_of.added_ticks, made.as_of.bound, codes(&made)), (0, ErrorBound::default(), vec![]));
        made.as_of.behind.map(|behind| (behind.ns(made.frequency()), behind.error_ns(made.frequency())))
    };
    let start = saved();
    assert_eq!(behind(start, after(5 * S, 0, true), None), Some((5 * S, 0)));
    let elsewhere = Stamp { boot_id: Some([3; 16]), ..after(5 * S, 0, true) };
    // In whole ticks, rounded up.
    assert_eq!(behind(start, elsewhere, None), Some((5 * S, bound(2_000_060) * 16)));
    assert_eq!(behind(start, unclaimed(elsewhere), None), None);
    assert_eq!(behind(start, unclaimed(elsewhere), Some(Elapsed::ByCounter)), Some((5 * S, 0)));
    let given = Elapsed::Given { ns: 9 * S, error_ns: 160 };
    assert_eq!(behind(start, elsewhere, Some(given)), Some((9 * S, 176)));
    let back = Stamp { count: StampCount(1), realtime_ns: 0, ..no_boot_time(after(S, 0, true)) };
    assert_eq!(behind(start, back, None), None);
    let unknown = Stamp::of_unknown_host(start.frequency);
    assert_eq!(behind(unknown, elsewhere, None), None);
    let disagree = vouched(Stamp { realtime_ns: NOON_NS + 30_000_000_000, ..after(S, 0, true) });
    assert_eq!(behind(vouched(start), disagree, None), None);
    let asleep = after(2 * S, 4_920 * S, false);
    assert_eq!(behind(start, asleep, None).unwrap().0, 4_922 * S);
}

#[test]
fn the_guest_falls_behind_by_what_no_policy_gives_at_once() {
    let here = after(5 * S, 0, true);
    let behind = |policy| advance_by(policy, here);
    assert_eq!(behind(Policy::ADVANCE), (0, 0));
    assert_eq!(behind(Policy::advance_up_to(2 * S)), (3 * S, 0));
    assert_eq!(behind(Policy::advance_up_to(9 * S)), (0, 0));
    // By the clocks' bound, which a cap hides from the counters only.
    let elsewhere = Stamp { boot_id: Some([3; 16]), ..here };
    assert_eq!(advance_by(Policy::advance_up_to(2 * S), elsewhere), (3 * S, bound(2_000_060) * 16));
    // What was missed before the stop of the last vCPU, and an old backlog, are behind too.
    let saved = from(saved()).time(|time| {
        time.backlog = guestclock_core::checkpoint::Backlog::new(62, 160, 320);
    });
    let made = plan(&saved, &target(), here, asks(Policy::FREEZE)).unwrap();
    assert_eq!(made.as_of.behind.unwrap().ticks, u128::from(5 * HZ) + 62);
    // Under Freeze time goes on.
    let later = made.at(guestclock_core::time::HostCount(here.count.0 + 10));
    assert_eq!((later.added_ticks, later.behind.unwrap().ticks), (0, u128::from(5 * HZ) + 72));
}

fn advance_by(policy: Policy, here: Stamp) -> (u64, u64) {
    let made = planned(saved(), here, asks(policy)).unwrap();
    let behind = made.as_of.behind.unwrap();
    (behind.ns(made.frequency()), behind.error_ns(made.frequency()))
}

#[test]
fn a_pause_is_never_refused_for_a_clock() {
    let paused = |here| planned(saved(), here, Request { in_place: true, ..asks(Policy::ADVANCE) }).unwrap();
    let plain = paused(after(2 * S, 0, true));
    assert_eq!(
        (told(&plain), codes(&plain), plain.assumptions),
        ((2 * S, "counter", 0), vec![], vec![Diagnostic::OneCounter, Diagnostic::HostNotSuspended])
    );
    let slept = after(2 * S, 4_920 * S, false);
    let made = paused(slept);
    assert_eq!((told(&made).0, told(&made).1, codes(&made)), (4_922 * S, "boot-time", vec!["counter-stopped"]));
    let vouched_for = planned(vouched(saved()), vouched(slept), Request { in_place: true, ..asks(Policy::ADVANCE) });
    assert_eq!(told(&vouched_for.unwrap()), (4_922 * S, "wall-clocks", bound(2_000_060)));
    // A clock that was stepped, vouched for or not.
    let stepped = vouched(Stamp { realtime_ns: 0, ..after(2 * S, 0, true) });
    let made = planned(vouched(saved()), stepped, Request { in_place: true, ..asks(Policy::ADVANCE) }).unwrap();
    assert_eq!((told(&made), codes(&made)), ((2 * S, "counter", 0), vec!["wall-clock-contradicts"]));
    // A count that went back, and nothing else to go by.
    let back = Stamp { count: StampCount(5), ..no_boot_time(after(S, 0, true)) };
    let made = paused(back);
    assert_eq!((told(&made), codes(&made)), ((0, "counter", 0), vec!["counter-stopped"]));
}

#[test]
fn a_frequency_that_differs_is_accepted_by_word_and_stated() {
    let of = |hz: u32| from(saved()).time(|time| time.frequency_hz = hz.try_into().unwrap());
    let here = Stamp { boot_id: Some([3; 16]), ..vouched(after(100 * S, 0, true)) };
    let ask = |hz, rate_error_ppb| {
        plan(&of(hz).at(vouched(saved())), &target(), here, Request { rate_error_ppb, ..asks(Policy::ADVANCE) })
    };
    // 62 499 999 Hz: 16.0000003 ppb slower.
    assert!(matches!(
        ask(62_499_999, 16),
        Err(Refusal::FrequencyMismatch { saved_hz: 62_499_999, host_hz: 62_500_000 })
    ));
    let made = ask(62_499_999, 17).unwrap();
    // The guest's own seconds: 100 of them.
    assert_eq!(made.as_of.added_ticks, 100 * 62_499_999);
    assert_eq!(made.unsupported[0], Diagnostic::WrongRate { saved_hz: 62_499_999, host_hz: 62_500_000 });
    assert_eq!(
        made.unsupported[0].to_string(),
        "the guest takes its counters for 62499999 Hz, and they run at 62500000 Hz: a drift of +1/62499999, which is +0.016 ppm"
    );
    // From the plan to the release: 500 ppm, and 16 ppb more.
    let later = made.at(guestclock_core::time::HostCount(here.count.0 + 62_500_000));
    let rate = |ticks: u64| (ticks * 500).div_ceil(999_500);
    assert_eq!(later.bound.rate_ticks, rate(62_500_000) + 1);
    assert!(ask(62_484_375, MAX_RATE_ERROR_PPB).is_err(), "250.06 ppm");
    assert!(ask(62_484_380, u32::MAX).is_ok() && ask(62_484_375, u32::MAX).is_err(), "no word accepts more");
    let equal = plan(&from(vouched(saved())), &target(), here, asks(Policy::ADVANCE)).unwrap();
    assert!(!equal.unsupported.iter().any(|fact| matches!(fact, Diagnostic::WrongRate { .. })));
    let rated = |rate_ppb| Stamp { rate_ppb: Some(rate_ppb), ..here };
    let saved = of(62_499_999).at(Stamp { rate_ppb: Some(-4), ..vouched(saved()) });
    let request = Request { rate_error_ppb: 17, ..asks(Policy::ADVANCE) };
    assert_eq!(plan(&saved, &target(), rated(6), request).unwrap().rate_step_ppb, Some(26));
}

#[test]
fn a_stamp_says_what_it_lacks() {
    assert_eq!(vouched(saved()).lacks(), []);
    assert_eq!(saved().lacks(), [Lack::Voucher { max_error_ns: 1_000_000 }]);
    let poor = Stamp { tai_offset_s: None, boot_id: None, ..no_boot_time(unclaimed(saved())) };
    let expected = [Lack::Bound(Unvouched::Unsynchronized), Lack::Tai, Lack::BootId, Lack::BootTime];
    assert_eq!(poor.lacks(), expected);
    assert_eq!(expected.map(|lack| lack.code()), ["no-bound", "no-tai", "no-boot-id", "no-boot-time"]);
}
