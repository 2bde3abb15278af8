//! Plans by worked numbers: how much time each policy gives, by which method, how far off, and what is refused.
//!
//! The counter has 16 ns a tick; the guest's counters read 200 at the checkpoint, when the host's read 300.

mod common;

use common::target::{abroad, asks, bare, here, later, not_opted_in, old, plan, registers, target, there};
use common::{Contents, Vm};
use guestclock_core::arch::arm64::{Encoding, Role, Timer, View};
use guestclock_core::checkpoint::{Backlog, GuestTime, UnknownKey};
use guestclock_core::restore::{
    Deadlines, DueBacklog, Method, NeedsCounterOffset, Plan, PlanState, Policy, Refusal, Released, Repay, Report,
    Request, Rest, RunState, Saved, Skew, State, Target, Views, Written, planning,
};
use guestclock_core::time::elapsed::HostClock;
use guestclock_core::time::{
    Elapsed, ElapsedError, ErrorBound, Frequency, GuestCount, HostCount, MAX_ELAPSED_NS, Offset, OffsetInterval,
    Quality, Stamp, StampCount, SyncBound,
};
use std::num::NonZeroU32;
use std::sync::Arc;

/// So many ticks, 160 ns (10 ticks) in a step, one step every 320 ns (20 ticks).
fn backlog(ticks: u64) -> Option<Backlog> {
    Backlog::new(ticks, 160, 320)
}

/// These steps, after so much at once.
fn repays(at_once_ns: u64, within_ns: Option<u64>) -> Policy {
    let Backlog { step_ns, interval_ns, .. } = backlog(1).unwrap();
    Policy::catch_up(Repay { step_ns, interval_ns, within_ns }, at_once_ns)
}

fn catch_up(within_ns: Option<u64>) -> Policy {
    repays(0, within_ns)
}

fn with(backlog: Option<Backlog>) -> Contents {
    bare().time(|time| time.backlog = backlog)
}

/// The checkpoint with counters that were read, each within so many ticks.
fn read_within(saved: Contents, ticks: u64) -> Contents {
    saved.time(|time| (time.virtual_width_ticks, time.physical_width_ticks) = (ticks, ticks))
}

/// The checkpoint with its physical counter at this count.
fn physical(saved: Contents, count: u64) -> Contents {
    saved.time(|time| time.physical_displacement_ticks = count.wrapping_sub(time.timeline.0))
}

#[test]
fn a_policy_shares_out_the_elapsed_time() {
    // A thousand ticks have passed: 16 us. (added, backlog, beyond the cap)
    for (policy, before, added, remaining, beyond) in [
        (Policy::FREEZE, None, 0, 0, None),
        (Policy::FREEZE, backlog(50), 0, 50, None),
        (Policy::ADVANCE, None, 1000, 0, None),
        (Policy::ADVANCE, backlog(50), 1050, 0, None),
        (Policy::advance_up_to(8000), None, 500, 0, Some(500)),
        (Policy::advance_up_to(16_000), None, 1000, 0, None),
        (Policy::advance_up_to(16_000), backlog(50), 1000, 0, Some(50)),
        (Policy::advance_up_to(16_016), None, 1000, 0, None),
        (catch_up(None), None, 0, 1000, None),
        (catch_up(None), backlog(50), 0, 1050, None),
        (repays(8000, None), backlog(50), 500, 550, None),
        (repays(16_800, None), backlog(50), 1050, 0, None),
    ] {
        let saved = read_within(with(before), 3);
        let made = later(&saved, 1000, asks(policy)).unwrap();
        let outcome = made.as_of;
        assert_eq!((outcome.added_ticks, outcome.backlog_ticks), (added, remaining), "{policy}");
        assert_eq!((outcome.capped, outcome.count), (beyond.is_some(), HostCount(1300)), "{policy}");
        let bound = ErrorBound { reads_ticks: 3, beyond_cap_ticks: beyond.unwrap_or(0), ..ErrorBound::default() };
        assert_eq!(outcome.bound, bound, "{policy}");
        assert_eq!((outcome.cntvct, outcome.cntpct), (GuestCount(200 + added), GuestCount(200 + added)), "{policy}");
        assert_eq!(outcome.virtual_offset(), Offset(1100 - added), "{policy}");
        assert_eq!(outcome.physical_offset(), Offset(1100 - added), "{policy}");
        let from_now = match policy.rest() {
            Rest::Keep => before,
            Rest::Forget => None,
            Rest::Repay(_) => backlog(remaining),
        };
        assert_eq!(made.backlog(&outcome), from_now, "{policy}");
    }
}

#[test]
fn nothing_missed_leaves_no_backlog() {
    let made = later(&bare(), 0, asks(catch_up(None))).unwrap();
    assert_eq!((made.as_of.backlog_ticks, made.backlog(&made.as_of)), (0, None));
}

#[test]
fn another_vm_has_the_plans_time_and_its_own_counters() {
    let made = later(&bare(), 1000, asks(Policy::ADVANCE)).unwrap();
    let other = made.counters_of(&made.as_of, (GuestCount(7), GuestCount(9)));
    assert_eq!(other, (GuestCount(1007), GuestCount(1009)));
    let adopting = later(&bare(), 1000, Request { views: Views::AdoptVirtual, ..asks(Policy::ADVANCE) }).unwrap();
    assert_eq!(adopting.counters_of(&made.as_of, (GuestCount(7), GuestCount(9))).1, GuestCount(1007));
}

fn vouches(max_error_ns: u64, age_ns: u64) -> SyncBound {
    SyncBound { max_error_ns, age_ns, holdover_ppb: 100, quality: Quality::Declared, tai_offset_s: None }
}

/// A checkpoint of another machine, and a stamp of this one, both vouched for.
fn vouched() -> (Contents, Stamp) {
    let saved = abroad().at(abroad().stamp.vouched_by(vouches(400, 7)));
    (read_within(saved, 3), there(1_600_000).vouched_by(vouches(500, 11)))
}

/// Two wall clocks that are so far apart at most.
fn within(error_ns: u64) -> Elapsed {
    Elapsed::ByWallClocks { error_ns: Some(error_ns), refuse_over_ns: None }
}

/// So much time, within so much.
fn given(ns: u64, error_ns: u64) -> Elapsed {
    Elapsed::Given { ns, error_ns }
}

fn error(refused: Result<Plan, Refusal>) -> ElapsedError {
    match refused {
        Err(Refusal::Elapsed(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_wall_clocks_bound_what_they_say() {
    let (saved, now) = vouched();
    let made = plan(&saved, &target(), now, asks(Policy::ADVANCE)).unwrap();
    assert!(!made.same_counter() && made.by_wall_clocks());
    assert_eq!(made.as_of.added_ticks, 100_000);
    let brackets = ErrorBound {
        reads_ticks: 3,
        rounding_ticks: 1,
        saved_bracket_ns: 30,
        here_bracket_ns: 50,
        ..ErrorBound::default()
    };
    let by_both =
        ErrorBound { saved_sync_ns: 400, here_sync_ns: 500, saved_holdover: 700, here_holdover: 1100, ..brackets };
    assert_eq!(made.as_of.bound, by_both);

    // The caller's word replaces both, and either may then be unknown.
    let assumes = Request { elapsed: Some(within(900)), ..asks(Policy::ADVANCE) };
    for (saved, now) in [(&saved, now), (&abroad(), now), (&saved, there(1_600_000))] {
        let bound = plan(saved, &target(), now, assumes).unwrap().as_of.bound;
        let width = saved.vms[0].time.virtual_width_ticks;
        assert_eq!(bound, ErrorBound { reads_ticks: width, assumed_ns: 900, ..brackets });
    }
    // Except where nothing at all is known of the host.
    let frequency = Frequency::new(62_500_000).unwrap();
    let of_nobody = bare().at(Stamp::of_unknown_host(frequency));
    assert!(matches!(error(plan(&of_nobody, &target(), now, assumes)), ElapsedError::Unknown(_)));
    for (saved, now) in [(&abroad(), now), (&saved, there(1_600_000))] {
        assert!(matches!(error(plan(saved, &target(), now, asks(Policy::ADVANCE))), ElapsedError::Unknown(_)));
    }
}

#[test]
fn wall_clocks_are_believed_for_a_year() {
    let (saved, now) = vouched();
    let longest = i64::try_from(MAX_ELAPSED_NS).unwrap();
    assert_eq!(MAX_ELAPSED_NS, 31_622_400_000_000_000, "366 days");
    let at = |realtime_ns| Stamp { realtime_ns, ..now };
    let planned = |realtime_ns, request| plan(&saved, &target(), at(realtime_ns), request);
    assert!(planned(longest, asks(Policy::ADVANCE)).is_ok());
    let too_long = ElapsedError::TooLong { elapsed_ns: MAX_ELAPSED_NS + 1, longest_ns: MAX_ELAPSED_NS };
    assert_eq!(error(planned(longest + 1, asks(Policy::ADVANCE))), too_long);
    assert_eq!(error(planned(longest + 1, asks(repays(1600, None)))), too_long);
    // The caller decides otherwise, or caps the time.
    let shorter = Request {
        elapsed: Some(Elapsed::ByWallClocks { error_ns: None, refuse_over_ns: Some(1000) }),
        ..asks(Policy::ADVANCE)
    };
    assert!(planned(1000, shorter).is_ok());
    assert_eq!(error(planned(1001, shorter)), ElapsedError::TooLong { elapsed_ns: 1001, longest_ns: 1000 });
    let made = planned(longest + 1, asks(Policy::advance_up_to(1600))).unwrap();
    assert_eq!((made.as_of.added_ticks, made.as_of.capped), (100, true));
    let backwards = ElapsedError::ClockWentBackwards { clock: HostClock::Realtime, saved: 0, host: -1 };
    assert_eq!(error(planned(-1, asks(Policy::ADVANCE))), backwards);
    assert_eq!(planned(0, asks(Policy::ADVANCE)).unwrap().as_of.added_ticks, 0);
    assert!(planned(-1, asks(Policy::FREEZE)).is_ok(), "it asks no clock");
}

#[test]
fn one_counter_is_exact_and_never_goes_back() {
    let forced = Request { elapsed: Some(Elapsed::ByCounter), ..asks(Policy::ADVANCE) };
    let made = plan(&abroad(), &target(), Stamp { count: StampCount(305), ..there(-1) }, forced).unwrap();
    assert_eq!((made.as_of.added_ticks, made.as_of.bound, made.rate_step_ppb), (5, ErrorBound::default(), Some(0)));
    let backwards = ElapsedError::ClockWentBackwards { clock: HostClock::Counter, saved: 300, host: 299 };
    let before = Stamp { count: StampCount(299), ..there(0) };
    assert_eq!(error(plan(&abroad(), &target(), before, forced)), backwards);
    let denied = Request { elapsed: Some(within(0)), ..asks(Policy::ADVANCE) };
    let made = later(&bare(), 1000, denied).unwrap();
    assert_eq!((made.same_counter(), made.as_of.bound.rounding_ticks), (false, 1));
}

#[test]
fn the_callers_word_is_of_the_plan_and_the_counter_goes_on_from_there() {
    let told = Request { elapsed: Some(given(1615, 0)), ..asks(Policy::ADVANCE) };
    let made = plan(&abroad(), &target(), there(0), told).unwrap();
    // 1615 ns are 100 ticks and a part of one.
    let bound = ErrorBound { rounding_ticks: 1, ..ErrorBound::default() };
    assert_eq!((made.as_of.added_ticks, made.as_of.bound), (100, bound));
    assert!(!made.by_wall_clocks());
    assert_eq!(made.at(HostCount(5 + 7)).added_ticks, 107);
    assert_eq!(made.at(HostCount(4)).added_ticks, 100, "a counter that was rewound adds nothing, and refuses nothing");
    let assumed = Request { elapsed: Some(given(1615, 900)), ..told };
    let bound = ErrorBound { assumed_ns: 900, ..bound };
    assert_eq!(plan(&abroad(), &target(), there(0), assumed).unwrap().as_of.bound, bound);
}

#[test]
fn only_time_by_two_wall_clocks_needs_them() {
    let (saved, now) = vouched();
    for policy in [Policy::FREEZE, Policy::ADVANCE, catch_up(None)] {
        for elapsed in [None, Some(within(5)), Some(Elapsed::ByCounter), Some(given(5, 0))] {
            let request = Request { elapsed, ..asks(policy) };
            let needs = policy != Policy::FREEZE && matches!(elapsed, None | Some(Elapsed::ByWallClocks { .. }));
            let now = Stamp { count: StampCount(400), ..now };
            assert_eq!(plan(&saved, &target(), now, request).unwrap().by_wall_clocks(), needs, "{request:?}");
        }
    }
}

#[test]
fn after_the_plan_this_counter_counts_and_its_rate_is_a_term_of_the_bound() {
    let (saved, now) = vouched();
    let later = HostCount(5 + 2_000_001);
    let made = plan(&saved, &target(), now, asks(Policy::ADVANCE)).unwrap();
    let outcome = made.at(later);
    assert_eq!(outcome.added_ticks, made.as_of.added_ticks + 2_000_001);
    // 500 ppm of 2 000 001 ticks, rounded up.
    assert_eq!(outcome.bound, ErrorBound { rate_ticks: 1001, ..made.as_of.bound });
    let told = Request { elapsed: Some(given(1615, 0)), ..asks(Policy::ADVANCE) };
    assert_eq!(plan(&saved, &target(), now, told).unwrap().at(later).bound.rate_ticks, 1001);
    let one_counter = Request { elapsed: Some(Elapsed::ByCounter), ..asks(Policy::ADVANCE) };
    let now = Stamp { count: StampCount(400), ..now };
    assert_eq!(plan(&saved, &target(), now, one_counter).unwrap().at(later).bound.rate_ticks, 0);
    assert_eq!(plan(&saved, &target(), now, asks(Policy::FREEZE)).unwrap().at(later).bound.rate_ticks, 0);
}

#[test]
fn a_method_follows_from_the_counters_the_vm_and_the_request() {
    use Method::{ByValue, Offset, VirtualOnly};
    let no_offset = |of: Target| {
        let abilities = guestclock_core::arch::Abilities { counter_offset: false, ..of.abilities };
        Target { abilities, ..of }
    };
    let equal = bare();
    let skewed = physical(bare(), 900);
    let unasked = bare().time(|time| time.opted_in = false);
    let skew = |why| Err(Refusal::CounterSkew { cntvct: 200, cntpct: 900, why });
    let needs = Err(Refusal::NoCounterOffset { needed_by: NeedsCounterOffset::AdoptedView });
    let with_el2 = || Target { registers: registers(&[Role::Cntvoff]), ..not_opted_in() };
    let read_apart = |ticks| {
        let apart = physical(bare().time(|time| time.opted_in = false), 200_u64.wrapping_add(ticks));
        let vms = read_within(apart, 20).vms.into_iter().map(|vm| vm.cntvoff(&[0])).collect();
        Contents { vms, ..bare() }
    };
    let el2 = |cntpct| Err(Refusal::CounterSkew { cntvct: 200, cntpct, why: Skew::El2 });
    let (preserve, refuse, adopt) = (Views::Preserve, Views::Refuse, Views::AdoptVirtual);
    for (saved, to, views, in_place, expected) in [
        // A VM that has opted in has one offset for both counters.
        (&equal, target(), preserve, false, Ok(Offset)),
        (&equal, target(), preserve, true, Ok(Offset)),
        (&equal, target(), refuse, false, Ok(Offset)),
        (&skewed, target(), preserve, false, skew(Skew::OptedIn)),
        (&skewed, target(), preserve, true, skew(Skew::OptedIn)),
        (&skewed, target(), refuse, false, skew(Skew::OptedIn)),
        (&skewed, target(), adopt, false, Ok(Offset)),
        // Another is opted in by the word of the checkpoint, unless that would change more than was asked for.
        (&equal, not_opted_in(), preserve, false, Ok(Offset)),
        (&equal, not_opted_in(), preserve, true, Ok(ByValue)),
        (&equal, not_opted_in(), refuse, true, Ok(ByValue)),
        (&equal, not_opted_in(), adopt, true, Ok(Offset)),
        (&unasked, not_opted_in(), preserve, false, Ok(ByValue)),
        (&skewed, not_opted_in(), preserve, false, Ok(ByValue)),
        (&skewed, not_opted_in(), refuse, false, skew(Skew::RefusalAskedFor)),
        (&skewed, not_opted_in(), refuse, true, skew(Skew::RefusalAskedFor)),
        (&skewed, not_opted_in(), adopt, false, Ok(Offset)),
        // Without the ioctl there is no offset.
        (&equal, no_offset(not_opted_in()), preserve, false, Ok(ByValue)),
        (&equal, no_offset(not_opted_in()), refuse, false, Ok(ByValue)),
        (&skewed, no_offset(not_opted_in()), preserve, false, Ok(ByValue)),
        (&equal, no_offset(not_opted_in()), adopt, false, needs.clone()),
        (&equal, old(), preserve, false, Ok(VirtualOnly)),
        (&skewed, old(), preserve, true, Ok(VirtualOnly)),
        (&skewed, old(), adopt, false, needs),
        // A guest with EL2 has one offset for both. Its counters were each read within 20 ticks.
        (&read_apart(40), with_el2(), preserve, false, Ok(ByValue)),
        (&read_apart(41), with_el2(), preserve, false, el2(241)),
        (&read_apart(40_u64.wrapping_neg()), with_el2(), preserve, false, Ok(ByValue)),
        (&read_apart(41_u64.wrapping_neg()), with_el2(), preserve, false, el2(159)),
        (&read_apart(41), with_el2(), preserve, true, Ok(ByValue)),
        (&read_apart(41), with_el2(), adopt, false, Ok(Offset)),
    ] {
        let request = Request { views, in_place, ..Request::default() };
        let case = format!("{} {views:?} {in_place} {to:?}", saved.vms[0].time.physical().0);
        assert_eq!(plan(saved, &to, here(0), request).map(|made| made.method), expected, "{case}");
    }
    assert_eq!([Offset, ByValue, VirtualOnly].map(Method::name), ["offset", "by-value", "virtual-only"]);
}

#[test]
fn adopting_gives_the_physical_counter_up() {
    let skewed = physical(bare(), 900);
    let adopting = Request { views: Views::AdoptVirtual, ..asks(Policy::ADVANCE) };
    let made = later(&skewed, 10, adopting).unwrap();
    assert_eq!((made.as_of.cntvct, made.as_of.cntpct), (GuestCount(210), GuestCount(210)));
    assert_eq!([View::Virtual, View::Physical].map(|view| made.saved_counter(view)), [GuestCount(200); 2]);
    let kept = plan(&skewed, &not_opted_in(), here(10), asks(Policy::ADVANCE)).unwrap();
    assert_eq!((kept.as_of.cntvct, kept.as_of.cntpct), (GuestCount(210), GuestCount(910)));
    assert_eq!([View::Virtual, View::Physical].map(|view| kept.saved_counter(view).0), [200, 900]);
    assert_eq!((kept.saved_at(), kept.target.generation, kept.frequency().hz()), (&bare().stamp, 7, 62_500_000));
}

#[test]
fn another_frequency_is_refused_with_what_the_guest_would_take_it_for() {
    let told = |saved_hz: u32, vm_hz: u32, host_hz: u64| {
        let saved = bare().time(|time| time.frequency_hz = NonZeroU32::new(saved_hz).unwrap());
        let sample = Stamp { frequency: Frequency::new(host_hz).unwrap(), ..here(0) };
        plan(&saved, &Target { cntfrq_hz: vm_hz, ..target() }, sample, Request::default()).map(drop)
    };
    assert_eq!(told(62_500_000, 62_500_000, 62_500_000), Ok(()));
    let mismatch = |saved_hz, host_hz| Err(Refusal::FrequencyMismatch { saved_hz, host_hz });
    assert_eq!(told(62_500_000, 50_000_000, 62_500_000), mismatch(62_500_000, 50_000_000));
    assert_eq!(told(62_500_000, 62_500_000, 50_000_000), mismatch(62_500_000, 50_000_000));
    for (saved_hz, host_hz, words) in [
        (50_000_000, 62_500_000, "for 1250 ms, a drift of +12500000/50000000, which is +250000.000 ppm"),
        (62_500_000, 50_000_000, "for 800 ms, a drift of -12500000/62500000, which is -200000.000 ppm"),
        (83_333_333, 83_333_334, "for 1000 ms, a drift of +1/83333333, which is +0.012 ppm"),
        (1_000_000_000, 999_999_999, "for 999 ms, a drift of -1/1000000000, which is -0.001 ppm"),
    ] {
        let refused = Refusal::FrequencyMismatch { saved_hz, host_hz }.to_string();
        assert!(refused.contains(words), "{refused}");
    }
}

#[test]
fn another_topology_is_refused_by_what_differs() {
    const NEW: u64 = Encoding(3, 4, 14, 6, 0).one_reg_id();
    let fits = |saved: &Contents, to: &Target| match planning::same_topology(&saved.made().only().unwrap(), to) {
        Ok(()) => None,
        Err(Refusal::TopologyMismatch { what, saved, host }) => Some((what, saved, host)),
        Err(other) => panic!("{other}"),
    };
    let of = |more: &[Role]| Target { registers: registers(more), ..target() };
    let (hv, hp) = (Role::Cval(Timer::Hvtimer), Role::Cval(Timer::Hptimer));
    let nested = bare().with(|vm| vm.timer(Timer::Hptimer, &[1], &[1000]).cntvoff(&[4]));
    let others = bare().with(|vm| vm.register(NEW, &[5]));

    assert_eq!(fits(&bare(), &target()), None);
    // The physical timer's absence is a warning, on either side.
    assert_eq!(fits(&bare().with(|vm| vm.timer(Timer::Ptimer, &[1], &[1000])), &target()), None);
    assert_eq!(fits(&bare(), &old()), None);
    assert_eq!(fits(&nested, &of(&[Role::Cntvoff, hp])), None);
    assert_eq!(fits(&bare(), &Target { vcpus: 2, ..target() }), Some(("vCPUs", 1, 2)));
    assert_eq!(fits(&nested, &of(&[hp])), Some(("vCPUs with EL2", 1, 0)));
    assert_eq!(fits(&bare(), &of(&[Role::Cntvoff])), Some(("vCPUs with EL2", 0, 1)));
    let timers = "timers besides the physical one on each vCPU";
    assert_eq!(fits(&nested, &of(&[Role::Cntvoff, hv, hp])), Some((timers, 2, 3)));
    assert_eq!(fits(&bare(), &of(&[hp])), Some((timers, 1, 2)));
    let unknown = "timer registers unknown to guestclock";
    assert_eq!(fits(&others, &target()), Some((unknown, 1, 0)));
    let has_it = Target { registers: vec![NEW].into(), ..target() };
    assert_eq!(fits(&others, &has_it), None);
    assert_eq!(fits(&bare(), &has_it), None, "a register more than was saved");
}

#[test]
fn strictness_refuses_what_is_unknown() {
    let unknown = UnknownKey { key: "later".into(), value: vec![0] };
    let saved = Contents { unknown: vec![unknown], ..bare() };
    let strict = Request { strict: true, ..Request::default() };
    assert!(matches!(later(&saved, 0, strict), Err(Refusal::Unknown { .. })));
    assert!(later(&saved, 0, Request::default()).is_ok());
    assert!(later(&bare(), 0, strict).is_ok());
}

#[test]
fn timers_are_told_at_the_sample() {
    let saved = bare().with(|vm| vm.timer(Timer::Vtimer, &[1], &[210]).timer(Timer::Ptimer, &[1], &[190]));
    let overdue = |made: &Plan| {
        let of = made.overdue.iter().map(|late| (late.timer, late.overdue_ticks.unwrap(), late.passed_in_pause));
        of.collect::<Vec<_>>()
    };
    let (v, p) = (Timer::Vtimer, Timer::Ptimer);
    assert_eq!(overdue(&later(&saved, 15, asks(Policy::ADVANCE)).unwrap()), [(v, 5, true), (p, 25, false)]);
    assert_eq!(overdue(&later(&saved, 9, asks(Policy::ADVANCE)).unwrap()), [(p, 19, false)]);
    // In place nobody looks at them.
    assert_eq!(overdue(&later(&saved, 15, Request { in_place: true, ..asks(Policy::ADVANCE) }).unwrap()), []);
    // With what was left to them.
    let relative = Request { deadlines: Deadlines::Relative, ..asks(Policy::ADVANCE) };
    let made = later(&saved, 15, relative).unwrap();
    assert_eq!((made.cval_shift(&made.as_of), overdue(&made)), (15, vec![(p, 10, false)]));
    let absolute = later(&saved, 15, asks(Policy::ADVANCE)).unwrap();
    assert_eq!(absolute.cval_shift(&absolute.as_of), 0);
    // Without the one that isn't restored.
    let made = plan(&saved, &old(), here(15), asks(Policy::ADVANCE)).unwrap();
    assert_eq!((made.method, overdue(&made)), (Method::VirtualOnly, vec![(v, 5, true)]));
    let by_value =
        plan(&saved, &not_opted_in(), here(15), Request { in_place: true, ..asks(Policy::ADVANCE) }).unwrap();
    let checkpoint = saved.made();
    let vm = checkpoint.only().unwrap();
    let told = by_value.timers_at(&vm, &by_value.as_of, 0).map(|status| status.timer);
    assert_eq!((by_value.method, told.collect::<Vec<_>>()), (Method::ByValue, vec![v, p]));
}

#[test]
fn only_all_of_the_time_on_one_counter_disrupts_nothing() {
    let disrupts = |saved: &Contents, request| later(saved, 1000, request).unwrap().disrupts();
    let (saved, now) = vouched();
    assert!(!disrupts(&bare(), asks(Policy::ADVANCE)));
    assert!(!disrupts(&bare(), asks(Policy::advance_up_to(16_000))));
    assert!(disrupts(&bare(), asks(Policy::advance_up_to(15_999))));
    assert!(disrupts(&bare(), asks(Policy::FREEZE)));
    assert!(disrupts(&bare(), asks(catch_up(None))));
    assert!(disrupts(&bare(), Request { elapsed: Some(given(0, 0)), ..asks(Policy::ADVANCE) }));
    assert!(disrupts(&with(backlog(50)), asks(Policy::ADVANCE)));
    assert!(disrupts(&read_within(bare(), 1), asks(Policy::ADVANCE)));
    let elsewhere = read_within(saved, 0);
    assert!(plan(&elsewhere, &target(), now, asks(Policy::ADVANCE)).unwrap().disrupts());
}

#[test]
fn a_jump_is_the_added_time_or_one_step() {
    let jump = |saved: &Contents, ticks, policy| {
        let made = later(saved, ticks, asks(policy)).unwrap();
        (made.jump_ticks(), made.jump_ns())
    };
    assert_eq!(jump(&bare(), 1000, Policy::FREEZE), (0, 0));
    assert_eq!(jump(&bare(), 1000, Policy::ADVANCE), (1000, 16_000));
    assert_eq!(jump(&bare(), 1000, catch_up(None)), (10, 160));
    assert_eq!(jump(&bare(), 4, catch_up(None)), (4, 64), "the last step is smaller");
    assert_eq!(jump(&with(backlog(50)), 1000, Policy::FREEZE), (10, 160));
    let limits = |ticks| {
        later(&bare(), ticks, asks(Policy::ADVANCE)).unwrap().limits().map(|(_, reached)| reached.name()).next()
    };
    let second = 62_500_000;
    assert_eq!([1, 19, 23].map(|s| limits(s * second).unwrap()), ["not crossed", "possible", "certain"]);
}

#[test]
fn a_backlog_has_to_be_paid_by_its_deadline() {
    // 100 ticks in steps of 10: 3200 ns.
    let planned = |within_ns, in_place| later(&bare(), 100, Request { in_place, ..asks(catch_up(within_ns)) });
    assert!(planned(None, false).is_ok());
    assert!(planned(Some(3200), false).is_ok());
    let missed = Refusal::DeadlineMissed { remaining_ns: 1600, needed_ns: 3200, within_ns: 3199 };
    assert_eq!(planned(Some(3199), false), Err(missed));
    assert!(planned(Some(3199), true).is_ok(), "the pause is over");
    let needs = Refusal::NoCounterOffset { needed_by: NeedsCounterOffset::CatchUpPlan };
    assert_eq!(plan(&bare(), &old(), here(100), asks(catch_up(None))), Err(needs));
    assert!(plan(&bare(), &old(), here(100), asks(Policy::ADVANCE)).is_ok());
}

#[test]
fn a_run_state_is_open_to_the_last_one_that_closed_it() {
    let made = later(&bare(), 1000, asks(Policy::ADVANCE)).unwrap();
    let mut run = RunState::default();
    assert_eq!((run.state(), run.holds(State::Open, 0)), (State::Open, Ok(())));
    let pause = run.close(State::Paused);
    assert_eq!((run.state(), run.held(pause)), (State::Paused, Ok(())));
    let restore = run.close(State::Restoring);
    assert_ne!(pause, restore);
    assert_eq!((run.state(), run.held(restore)), (State::Restoring, Ok(())));
    assert_eq!(run.held(pause), Err(Refusal::Overtaken));
    let again = run.close(State::Restoring);
    assert_eq!(run.held(restore), Err(Refusal::Overtaken), "overtaken");
    run.open(&made, &made.as_of);
    assert_eq!((run.state(), run.backlog(), run.held(again)), (State::Open, None, Err(Refusal::Overtaken)));
    let epoch = run.begin_pause(Arc::new(here(0)));
    assert_eq!((run.state(), run.holds(State::Paused, epoch)), (State::Paused, Ok(())));
    assert_eq!(run.holds(State::Restoring, epoch), Err(Refusal::Overtaken));
    run.go_on(DueBacklog::of(&made, &made.as_of));
    assert_eq!((run.state(), run.holds(State::Open, epoch)), (State::Open, Err(Refusal::Overtaken)));
    let next = run.close(State::Paused);
    assert!(![pause, restore, again].contains(&next));
}

#[test]
fn a_close_that_is_taken_back_gives_the_vm_to_whoever_held_it_before() {
    let made = later(&bare(), 25, asks(catch_up(None))).unwrap();
    let mut run = RunState::default();
    run.close(State::Restoring);
    run.open(&made, &made.as_of);
    let backlog = run.backlog();
    let pause = run.close(State::Paused);
    let restore = run.close(State::Restoring);
    assert_eq!(run.cancel(pause), Err(Refusal::Overtaken), "it holds the VM no more");
    assert_eq!(run.cancel(restore), Ok(()));
    assert_eq!((run.state(), run.held(pause)), (State::Paused, Ok(())));
    assert_eq!(run.cancel(restore), Err(Refusal::Overtaken), "once");
    assert_eq!(run.cancel(pause), Ok(()));
    assert_eq!((run.state(), run.backlog()), (State::Open, backlog));
    assert!(backlog.is_some());
}

#[test]
fn steps_are_an_interval_apart_and_end_with_the_backlog() {
    // 25 ticks, in steps of 10 with 20 between them.
    let made = later(&bare(), 25, asks(catch_up(None))).unwrap();
    let hz = made.frequency();
    let mut run = RunState::default();
    assert_eq!(run.next_step(hz), None);
    run.close(State::Restoring);
    run.open(&made, &made.as_of);
    let left = |run: &RunState| run.backlog().map(|backlog| backlog.remaining_ticks.get());
    let next = |run: &RunState| run.next_step(hz).map(|step| (step.ticks, step.due.0, step.backlog_ticks));
    assert_eq!((left(&run), next(&run)), (Some(25), Some((10, 325 + 20, 25))));
    // On time, early, and late: no two are nearer than the interval.
    run.step_taken(run.next_step(hz).unwrap(), HostCount(345), hz);
    assert_eq!((left(&run), next(&run)), (Some(15), Some((10, 365, 15))));
    let mut early = RunState::default();
    early.go_on(DueBacklog::of(&made, &made.as_of));
    early.step_taken(early.next_step(hz).unwrap(), HostCount(340), hz);
    assert_eq!(next(&early), Some((10, 365, 15)));
    run.step_taken(run.next_step(hz).unwrap(), HostCount(400), hz);
    assert_eq!((left(&run), next(&run)), (Some(5), Some((5, 420, 5))));
    run.step_taken(run.next_step(hz).unwrap(), HostCount(420), hz);
    assert_eq!((left(&run), next(&run)), (None, None));
}

#[test]
fn a_report_learns_when_the_guest_went_on() {
    let made = later(&bare(), 1000, asks(Policy::ADVANCE)).unwrap();
    let released = Released {
        count: made.as_of.count,
        written: Written::ByValue { virt: OffsetInterval::exact(Offset(0)), phys: None },
        by_value_ticks: 0,
        writes: guestclock_core::restore::Writes::default(),
        cval_shift: 0,
        stopped_before_ticks: None,
        returned_at: HostCount(1300),
        after_release_ticks: None,
    };
    let report = Report::new(made, released, None);
    assert_eq!(Report::new(report.plan.clone(), report.released(), None), report);
    let resumed = |count| report.resumed_at(HostCount(count));
    assert_eq!(resumed(1299), None);
    assert_eq!(resumed(1300).map(|report| report.after_release_ticks), Some(Some(0)));
    assert_eq!(resumed(1307), Some(Report { after_release_ticks: Some(7), ..report.clone() }));
}

/// A VM whose vCPUs had stopped 40 ticks before its checkpoint: its counters read 160 then.
fn stopped() -> Contents {
    bare().time(|time| time.stopped_at = Some(StampCount(260)))
}

#[test]
fn where_the_stop_is_known_a_restore_goes_on_from_it() {
    // 1000 ticks after the checkpoint, 1040 after the stop. (counters, added, backlog, beyond the cap)
    for (policy, before, count, added, remaining, beyond) in [
        (Policy::FREEZE, None, 160, 0, 0, 0),
        (Policy::FREEZE, backlog(50), 160, 0, 50, 0),
        (Policy::ADVANCE, None, 1200, 1040, 0, 0),
        (Policy::ADVANCE, backlog(50), 1250, 1090, 0, 0),
        (Policy::advance_up_to(8000), None, 660, 500, 0, 540),
        (Policy::advance_up_to(16_640), None, 1200, 1040, 0, 0),
        (Policy::advance_up_to(16_624), None, 1199, 1039, 0, 1),
        (catch_up(None), None, 160, 0, 1040, 0),
        (repays(8000, None), backlog(50), 660, 500, 590, 0),
    ] {
        let saved = stopped().time(|time| time.backlog = before);
        let made = later(&saved, 1000, asks(policy)).unwrap();
        let outcome = made.as_of;
        assert_eq!((outcome.cntvct, outcome.cntpct), (GuestCount(count), GuestCount(count)), "{policy}");
        assert_eq!((outcome.added_ticks, outcome.backlog_ticks), (added, remaining), "{policy}");
        let bound = ErrorBound { beyond_cap_ticks: beyond, ..ErrorBound::default() };
        assert_eq!((outcome.bound, outcome.capped), (bound, beyond > 0), "{policy}");
        assert_eq!([View::Virtual, View::Physical].map(|view| made.saved_counter(view)), [GuestCount(160); 2]);
        // The checkpoint is of its own instant all the same.
        assert_eq!(made.saved_at(), &bare().stamp);
    }
}

#[test]
fn a_stop_at_the_checkpoint_is_no_stop() {
    let at_once = bare().time(|time| time.stopped_at = Some(StampCount(300)));
    for policy in [Policy::FREEZE, Policy::ADVANCE, Policy::advance_up_to(8000), catch_up(None)] {
        let [stopped, running] = [&at_once, &bare()].map(|saved| later(saved, 1000, asks(policy)).unwrap());
        assert_eq!((stopped.as_of, stopped.late), (running.as_of, running.late), "{policy}");
        assert_eq!((stopped.warnings, stopped.assumptions), (running.warnings, running.assumptions), "{policy}");
    }
}

/// The time since the stop, by two wall clocks and by the caller's word, which tell the time since the checkpoint.
#[test]
fn the_time_since_the_stop_is_added_to_whatever_tells_the_rest() {
    let (saved, now) = vouched();
    let stopped = saved.clone().time(|time| time.stopped_at = Some(StampCount(260)));
    for request in [asks(Policy::ADVANCE), Request { elapsed: Some(given(1600, 0)), ..asks(Policy::ADVANCE) }] {
        let (without, with) =
            [&saved, &stopped].map(|saved| plan(saved, &target(), now, request).unwrap().as_of).into();
        assert_eq!(with.added_ticks, without.added_ticks + 40);
        assert_eq!((with.cntvct, with.cntpct, with.bound), (without.cntvct, without.cntpct, without.bound));
    }
    let frozen = plan(&stopped, &target(), now, asks(Policy::FREEZE)).unwrap();
    assert_eq!(frozen.as_of.cntvct, GuestCount(160));
}

/// 300 ticks of the host are 115 at 24 MHz, and 260 are 99.
#[test]
fn the_stop_is_counted_at_the_guests_frequency() {
    let saved = stopped().time(|time| time.frequency_hz = NonZeroU32::new(24_000_000).unwrap());
    let to = Target { cntfrq_hz: 24_000_000, ..target() };
    let frequency = Frequency::new(24_000_000).unwrap();
    let now = Stamp { count: StampCount(499), frequency, realtime_ns: 16_000, ..here(0) };
    let planned = |policy| {
        let request = Request { elapsed: Some(Elapsed::ByCounter), ..asks(policy) };
        plan(&saved, &to, now, request).unwrap().as_of
    };
    assert_eq!(planned(Policy::FREEZE).cntvct, GuestCount(200 - 16));
    let advanced = planned(Policy::ADVANCE);
    assert_eq!((advanced.added_ticks, advanced.cntvct), (499 - 99, GuestCount(200 - 16 + 400)));
}

#[test]
fn a_deadline_between_the_stop_and_the_checkpoint_passed_in_the_pause() {
    let timers = |vm: Vm| vm.timer(Timer::Vtimer, &[1], &[190]).timer(Timer::Ptimer, &[1], &[150]);
    let overdue = |saved: Contents, ticks, policy| {
        let made = later(&saved.with(timers), ticks, asks(policy)).unwrap();
        let of = made.overdue.iter().map(|late| (late.timer, late.overdue_ticks.unwrap(), late.passed_in_pause));
        of.collect::<Vec<_>>()
    };
    let (v, p) = (Timer::Vtimer, Timer::Ptimer);
    assert_eq!(overdue(bare(), 0, Policy::FREEZE), [(v, 10, false), (p, 50, false)]);
    // From the stop, at 160, the one is still to come.
    assert_eq!(overdue(stopped(), 0, Policy::FREEZE), [(p, 10, false)]);
    assert_eq!(overdue(stopped(), 0, Policy::ADVANCE), [(v, 10, true), (p, 50, false)]);
    // Deadlines that stay as far off as they were move by all that was added since the stop.
    let relative = Request { deadlines: Deadlines::Relative, ..asks(Policy::ADVANCE) };
    let made = later(&stopped().with(timers), 5, relative).unwrap();
    assert_eq!(made.cval_shift(&made.as_of), 45);
}

#[test]
fn another_vm_goes_on_from_its_own_stop() {
    for policy in [Policy::FREEZE, Policy::ADVANCE] {
        let made = later(&stopped(), 1000, asks(policy)).unwrap();
        let added = made.as_of.added_ticks;
        let other = made.counters_of(&made.as_of, (GuestCount(7), GuestCount(9)));
        let after = |count: u64| GuestCount(count.wrapping_sub(40).wrapping_add(added));
        assert_eq!(other, (after(7), after(9)), "{policy}");
    }
}

#[test]
fn a_plan_is_made_again_of_its_state() {
    let relative = Request { deadlines: Deadlines::Relative, ..asks(Policy::ADVANCE) };
    let vouched = Request { sync: Some(vouches(9, 5)), ..asks(Policy::ADVANCE) };
    for request in [asks(Policy::FREEZE), relative, asks(catch_up(None)), vouched] {
        for in_place in [false, true] {
            let saved = with(backlog(50)).time(|time| time.physical_width_ticks = 3);
            let made = later(&saved, 1000, Request { in_place, ..request }).unwrap();
            let (state, checkpoint) = (PlanState::of(&made), saved.made());
            let vm = checkpoint.only().unwrap();
            let (given, other) = if in_place { (None, Some(&vm)) } else { (Some(&vm), None) };
            assert_eq!(state.plan(&state.saved(given).unwrap()).as_ref(), Ok(&made));
            assert!(state.saved(other).is_none(), "a plan in place is of no checkpoint, and any other is of one");
        }
    }
}

/// In place the registers stay: a plan looks at no timer, and there is nothing unknown.
#[test]
fn a_plan_in_place_is_of_the_time_alone() {
    let time = |change: fn(&mut GuestTime)| bare().time(change).vms[0].time;
    let in_place = |time: GuestTime, ticks, policy| {
        let request = Request { in_place: true, ..asks(policy) };
        planning::plan(&Saved::in_place(bare().stamp, time), &target(), here(ticks), request).unwrap()
    };
    for policy in [Policy::FREEZE, Policy::ADVANCE, Policy::advance_up_to(8000), catch_up(None)] {
        let made = in_place(time(|_| {}), 1000, policy);
        let restored = later(&bare(), 1000, Request { elapsed: Some(Elapsed::ByCounter), ..asks(policy) }).unwrap();
        assert_eq!((made.as_of, made.saved_at()), (restored.as_of, restored.saved_at()), "{policy}");
        assert_eq!((made.overdue, made.unsupported), (Vec::new(), Vec::new()), "{policy}");
        assert_eq!(restored.unsupported.len(), 1, "a restore has no physical timer to write");
    }
    // A pause begins at its own instant, whatever the VMM said of an earlier stop.
    let made = in_place(time(|time| time.stopped_at = Some(StampCount(260))), 1000, Policy::FREEZE);
    assert_eq!(made.as_of.cntvct, GuestCount(200));
    let made = in_place(time(|time| time.backlog = backlog(50)), 1000, Policy::ADVANCE);
    assert_eq!((made.as_of.added_ticks, made.as_of.backlog_ticks), (1050, 0));
    let apart = time(|time| time.physical_displacement_ticks = 5);
    let refused = planning::plan(&Saved::in_place(bare().stamp, apart), &target(), here(0), asks(Policy::FREEZE));
    assert_eq!(refused, Err(Refusal::CounterSkew { cntvct: 200, cntpct: 205, why: Skew::OptedIn }));
}

#[test]
fn the_wider_counter_bounds_the_error() {
    for (virt, phys) in [(3, 0), (0, 3), (2, 3)] {
        let saved = bare().time(|time| (time.virtual_width_ticks, time.physical_width_ticks) = (virt, phys));
        assert_eq!(later(&saved, 0, asks(Policy::FREEZE)).unwrap().as_of.bound.reads_ticks, 3);
    }
}
