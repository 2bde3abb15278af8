//! Diagnostics of a plan, each beside its nearest neighbour that has none.

mod common;

use common::target::{abroad, asks, bare, here, later, not_opted_in, old, plan, target, there};
use common::{Contents, Vm};
use guestclock_core::arch::Abilities;
use guestclock_core::arch::arm64::{Role, Timer, View, one_reg_id};
use guestclock_core::checkpoint::{Backlog, Unknown, UnknownKey};
use guestclock_core::restore::{Diagnostic, Method, Plan, Policy, Refusal, Repay, Request, Side, Target, Views};
use guestclock_core::time::{
    BootTime, Elapsed, Ground, GuestCount, Intent, Quality, Stamp, StampCount, SyncBound, Unvouched,
};

/// Two wall clocks that are so far apart at most.
fn within(error_ns: u64) -> Elapsed {
    Elapsed::ByWallClocks { error_ns: Some(error_ns), refuse_over_ns: None }
}

fn made(saved: &Contents, to: &Target, at: Stamp, request: Request) -> Plan {
    plan(saved, to, at, request).unwrap()
}

fn vouches(quality: Quality) -> SyncBound {
    SyncBound { max_error_ns: 400, age_ns: 0, holdover_ppb: 0, quality, tai_offset_s: None }
}

fn with_ptimer(ctl: u64, cval: u64) -> Contents {
    bare().with(|vm| vm.timer(Timer::Ptimer, &[ctl], &[cval]))
}

/// The checkpoint with both counters at these counts.
fn counters(saved: Contents, virt: u64, phys: u64) -> Contents {
    saved.time(|time| {
        time.timeline = GuestCount(virt);
        time.physical_displacement_ticks = phys.wrapping_sub(virt);
    })
}

/// On hardware that traps a physical offset, as far as is known.
fn trapping(untrapped: Option<bool>) -> Target {
    let abilities = Abilities { physical_offset_untrapped: untrapped, ..target().abilities };
    Target { abilities, ..target() }
}

#[test]
fn assumptions_are_those_of_the_clocks_that_were_asked() {
    let assumes = |saved: &Contents, at, request| made(saved, &target(), at, request).assumptions;
    let measured = bare().time(|time| time.opted_in = false);
    assert_eq!(assumes(&bare(), here(0), asks(Policy::FREEZE)), []);
    assert_eq!(assumes(&measured, here(0), asks(Policy::FREEZE)), [Diagnostic::CountersStoodStill]);
    assert_eq!(assumes(&bare(), here(0), asks(Policy::ADVANCE)), [Diagnostic::SameBoot, Diagnostic::NotSlept]);
    assert_eq!(
        assumes(&measured, here(0), asks(Policy::ADVANCE)),
        [Diagnostic::CountersStoodStill, Diagnostic::SameBoot, Diagnostic::NotSlept]
    );
    let by_word = Request { elapsed: Some(Elapsed::ByCounter), ..asks(Policy::ADVANCE) };
    assert_eq!(assumes(&bare(), here(0), by_word), [Diagnostic::SameCounter]);
    let in_place = Request { in_place: true, ..asks(Policy::ADVANCE) };
    let awake =
        |stamp: Stamp| Stamp { boot_time: Some(BootTime { boottime_ns: 9, slept_ns: 0, width_ns: 0 }), ..stamp };
    assert_eq!(
        assumes(&bare().at(awake(bare().stamp)), awake(here(0)), in_place),
        [Diagnostic::OneCounter, Diagnostic::HostNotSuspended]
    );
    assert_eq!(
        [Diagnostic::OneCounter, Diagnostic::HostNotSuspended, Diagnostic::SameBoot, Diagnostic::NotSlept]
            .map(|diagnostic| diagnostic.ground()),
        [Ground::Proved, Ground::Assumed, Ground::Assumed, Ground::Assumed]
    );
    let told = Request { elapsed: Some(Elapsed::Given { ns: 5, error_ns: 0 }), ..asks(Policy::ADVANCE) };
    let unwatched = [Diagnostic::ElapsedGiven, Diagnostic::NominalRateHere, Diagnostic::NotSlept];
    assert_eq!(assumes(&bare(), here(0), told), unwatched);
    assert_eq!(assumes(&bare(), awake(here(0)), told), unwatched[..2]);

    let declared = vouches(Quality::Declared);
    let saved = abroad().at(abroad().stamp.vouched_by(declared));
    let bound_of = |side, bound| Diagnostic::WallClockWithin { side, bound };
    let both = [bound_of(Side::Saved, Ok(declared)), bound_of(Side::Here, Ok(declared)), Diagnostic::NotSmeared];
    // From the plan to the release the counter counts, and without a boot time nothing says that the host sleeps.
    let elsewhere = |at, request| {
        let found = assumes(&saved, at, request);
        assert_eq!(found[..2], unwatched[1..]);
        found[2..].to_vec()
    };
    assert_eq!(elsewhere(there(5).vouched_by(declared), asks(Policy::ADVANCE)), both);
    let within_9_ns = Request { elapsed: Some(within(9)), ..asks(Policy::ADVANCE) };
    assert_eq!(elsewhere(there(5), within_9_ns), [Diagnostic::WallClocksAgree, Diagnostic::NotSmeared]);
    // Leap seconds over the end of a month, as this is with what the brackets hide, unless both sides know TAI.
    let utc = |stamp| Stamp { tai_offset_s: None, ..stamp };
    let leap = [Diagnostic::WallClocksAgree, Diagnostic::NotSmeared, Diagnostic::NoLeapSecond];
    assert_eq!(elsewhere(utc(there(5)), within_9_ns), leap);
    assert_eq!(assumes(&abroad().at(utc(saved.stamp)), there(5), within_9_ns)[2..], leap);
    let day_after = |stamp: Stamp| Stamp { realtime_ns: stamp.realtime_ns + 86_400_000_000_000, ..stamp };
    let midst = abroad().at(utc(day_after(saved.stamp)));
    assert_eq!(assumes(&midst, utc(day_after(there(5))), within_9_ns)[2..], leap[..2]);
}

#[test]
fn unsupported_is_what_the_vm_has_no_place_for() {
    let unsupported = |saved: &Contents, to: &Target, request| made(saved, to, here(0), request).unsupported;
    let freeze = asks(Policy::FREEZE);
    let missing = Diagnostic::PhysicalTimerMissing;
    assert_eq!(unsupported(&bare(), &target(), freeze), [missing]);
    assert_eq!(unsupported(&with_ptimer(0, 0), &target(), freeze), []);
    assert_eq!(unsupported(&bare(), &target(), Request { in_place: true, ..freeze }), []);
    let roles = [Role::Count(View::Virtual), Role::Count(View::Physical), Role::Cval(Timer::Vtimer)];
    let without = Target { registers: roles.map(one_reg_id).to_vec().into(), ..target() };
    assert_eq!(unsupported(&bare(), &without, freeze), []);

    assert_eq!(unsupported(&bare(), &old(), freeze), [Diagnostic::OnlyVirtual]);
    let roles = [Role::Count(View::Virtual), Role::Cval(Timer::Vtimer), Role::Cval(Timer::Ptimer)];
    let uncounted = Target { registers: roles.map(one_reg_id).to_vec().into(), ..old() };
    assert_eq!(unsupported(&bare(), &uncounted, freeze), [Diagnostic::OnlyVirtual], "its timer isn't restored");

    let adopt = Request { views: Views::AdoptVirtual, ..freeze };
    let skewed = counters(with_ptimer(0, 0), 200, 900);
    assert_eq!(unsupported(&skewed, &target(), adopt), [Diagnostic::PhysicalJumps { ticks: -700 }]);
    assert_eq!(unsupported(&with_ptimer(0, 0), &target(), adopt), []);
    assert_eq!(unsupported(&skewed, &not_opted_in(), freeze), []);
}

#[test]
fn a_physical_offset_traps_unless_the_hardware_has_one() {
    let degraded = |saved: &Contents, to: &Target, ticks| made(saved, to, here(ticks), asks(Policy::FREEZE)).degraded;
    let traps = [Diagnostic::PhysicalTraps];
    assert_eq!(degraded(&bare(), &trapping(Some(false)), 0), traps);
    assert_eq!(degraded(&bare(), &trapping(None), 0), traps);
    assert_eq!(degraded(&bare(), &trapping(Some(true)), 0), []);
    // The guest's counters are the host's: no offset.
    let unmoved = counters(bare(), 300, 300);
    assert_eq!(degraded(&unmoved, &trapping(None), 0), []);
    assert_eq!(degraded(&unmoved, &trapping(None), 1), traps);
    let abilities = Abilities { physical_offset_untrapped: None, ..old().abilities };
    assert_eq!(degraded(&bare(), &Target { abilities, ..old() }, 0), [], "it isn't set there");
}

#[test]
fn a_method_warns_of_what_it_does_to_the_vm() {
    let warns =
        |to: &Target, in_place| made(&bare(), to, here(0), Request { in_place, ..asks(Policy::FREEZE) }).warnings;
    assert_eq!(warns(&target(), false), []);
    assert_eq!(warns(&not_opted_in(), false), [], "the checkpoint is the word for it");
    let by_view = Request { views: Views::AdoptVirtual, ..asks(Policy::FREEZE) };
    let not_saved_so = bare().time(|time| time.opted_in = false);
    assert_eq!(made(&not_saved_so, &not_opted_in(), here(0), by_view).warnings, [Diagnostic::OptsIn]);
    assert_eq!(made(&not_saved_so, &not_opted_in(), here(0), asks(Policy::FREEZE)).method, Method::ByValue);
    // By value is a fact, and what it assumes is an assumption.
    assert_eq!((warns(&not_opted_in(), true), warns(&old(), false)), (vec![], vec![]));
    let assumes = |to: &Target| made(&bare(), to, here(0), asks(Policy::FREEZE)).assumptions;
    assert_eq!(assumes(&old()), [Diagnostic::NoVcpuLater]);
    assert_eq!(assumes(&target()), []);
}

#[test]
fn an_enabled_physical_timer_misfires_where_its_cval_and_the_offset_leave_64_bits() {
    let misfires = |saved: &Contents, to: &Target| {
        let warnings = made(saved, to, here(0), asks(Policy::FREEZE)).warnings;
        let found = warnings.into_iter().filter_map(|warning| match warning {
            Diagnostic::PhysicalTimerMisfires { vcpu, cval, offset } => Some((vcpu, cval, offset)),
            _ => None,
        });
        found.collect::<Vec<_>>()
    };
    let to = trapping(None);
    // The host is 100 ticks ahead of the guest.
    let last = u64::MAX - 100;
    assert_eq!(misfires(&with_ptimer(1, last), &to), []);
    assert_eq!(misfires(&with_ptimer(1, last + 1), &to), [(0, last + 1, 100)]);
    assert_eq!(misfires(&with_ptimer(3, last + 1), &to), [(0, last + 1, 100)], "masked, and it is on");
    assert_eq!(misfires(&with_ptimer(2, last + 1), &to), []);
    assert_eq!(misfires(&with_ptimer(0, last + 1), &to), []);
    assert_eq!(misfires(&with_ptimer(1, last + 1), &trapping(Some(true))), []);
    let virtual_alone = bare().with(|vm| vm.timer(Timer::Vtimer, &[1], &[u64::MAX]));
    assert_eq!(misfires(&virtual_alone, &to), []);
    // And here it is behind.
    let ahead = |cval| counters(with_ptimer(1, cval), 400, 400);
    assert_eq!(misfires(&ahead(100), &to), []);
    assert_eq!(misfires(&ahead(99), &to), [(0, 99, -100)]);
    // On each vCPU of its own.
    let three = Vm::plain("", 3, 62_500_000, 200).timer(Timer::Ptimer, &[1, 0, 1], &[0, u64::MAX, u64::MAX]);
    let three = Contents { vms: vec![three], ..bare() };
    assert_eq!(misfires(&three, &Target { vcpus: 3, ..to }), [(2, u64::MAX, 100)]);
}

#[test]
fn a_counter_or_its_offset_reaches_the_width() {
    const TOP: u64 = 1 << 56;
    let reaches = |virt, phys, host, counter_bits| {
        let abilities = Abilities { counter_bits, ..target().abilities };
        let to = Target { opted_in: false, abilities, ..target() };
        let saved = counters(bare(), virt, phys);
        let at = Stamp { count: StampCount(host), ..here(0) };
        let warnings = made(&saved, &to, at, Request { in_place: true, ..asks(Policy::FREEZE) }).warnings;
        warnings.into_iter().find_map(|warning| match warning {
            Diagnostic::ReachesWidth { bits, stated } => Some((bits, stated)),
            _ => None,
        })
    };
    let (stated, maybe) = (Some((56, true)), Some((56, false)));
    assert_eq!(reaches(TOP - 1, TOP - 1, TOP - 1, Some(56)), None);
    assert_eq!(reaches(TOP, TOP - 1, TOP, Some(56)), stated, "the virtual counter");
    assert_eq!(reaches(TOP - 1, TOP, TOP - 1, Some(56)), stated, "the physical one");
    assert_eq!(reaches(0, 0, TOP, Some(56)), stated, "the offset");
    assert_eq!(reaches(0, 0, TOP - 1, Some(56)), None);
    assert_eq!(reaches(5, 5, 0, Some(56)), None, "a small offset below zero");
    assert_eq!(reaches(TOP, TOP, TOP, None), maybe);
    assert_eq!(reaches(TOP, TOP, TOP, Some(57)), None);
    assert_eq!(reaches(u64::MAX, u64::MAX, 1 << 63, Some(64)), None);
}

#[test]
fn a_cap_and_a_large_jump_are_told() {
    let warns = |ticks, policy| later(&bare(), ticks, asks(policy)).unwrap().warnings;
    assert_eq!(warns(1000, Policy::advance_up_to(16_000)), []);
    assert_eq!(warns(1000, Policy::advance_up_to(15_999)), [Diagnostic::Capped { added_ticks: 999 }]);
    let second = 62_500_000;
    assert_eq!(warns(17 * second, Policy::ADVANCE), []);
    for (s, felt) in [(18, 1), (20, 1), (21, 2)] {
        let [Diagnostic::LargeJump { jump_ns, limits }] = &warns(s * second, Policy::ADVANCE)[..] else {
            panic!("{s}")
        };
        let names = ["soft lockup", "RCU stall"];
        assert_eq!((*jump_ns, limits.len()), (u128::from(s) * 1_000_000_000, felt));
        assert!(limits.iter().zip(names).all(|(limit, name)| limit.name == name));
    }
}

#[test]
fn a_wall_clock_that_contradicts_the_rest_is_told() {
    let warns = |at, request| made(&bare(), &target(), at, request).warnings;
    let stepped = Stamp { realtime_ns: 1_000_000_000, ..here(0) };
    let (freeze, advance) = (asks(Policy::FREEZE), asks(Policy::ADVANCE));
    assert_eq!(warns(here(0), advance), []);
    // Both readings are rounded, and 500 ppm of the second are the rate's.
    let said = Diagnostic::WallClockContradicts { disagreement_ns: 1_000_000_000, allowed_ns: 500_002 };
    assert_eq!(warns(stepped, advance), [said]);
    // There may be a leap second in it: a month has just ended, and TAI isn't known.
    let over_new_year = made(&bare().at(Stamp { realtime_ns: -1, ..bare().stamp }), &target(), stepped, advance);
    assert_eq!(over_new_year.warnings, []);
    assert_eq!(warns(stepped, freeze), [], "no clock is asked");
    for word in [Elapsed::ByCounter, within(9), Elapsed::Given { ns: 5, error_ns: 0 }] {
        assert_eq!(warns(stepped, Request { elapsed: Some(word), ..advance }), [], "the caller knows");
    }
    // Another host contradicts nothing.
    let assumed = Request { elapsed: Some(within(9)), ..advance };
    assert_eq!(made(&abroad(), &target(), there(0), assumed).warnings, []);
}

#[test]
fn a_live_update_stays_on_its_counter() {
    let warns = |intent, at, elapsed| {
        let request = Request { intent, elapsed, ..asks(Policy::FREEZE) };
        made(&bare(), &target(), at, request).warnings
    };
    let elsewhere = Stamp { boot_id: Some([9; 16]), ..here(0) };
    let update = Some(Intent::LiveUpdate);
    assert_eq!(warns(update, elsewhere, None), [Diagnostic::LiveUpdateElsewhere]);
    assert_eq!(warns(update, elsewhere, Some(Elapsed::ByCounter)), [], "a kexec, as the caller says");
    assert_eq!(warns(update, here(0), None), []);
    assert_eq!(warns(Some(Intent::LiveMigration), elsewhere, None), []);
    assert_eq!(warns(None, elsewhere, None), []);
}

#[test]
fn a_bound_that_nobody_verified_is_told() {
    let unverified = |stamp| Stamp { synchronized: Some(true), max_error_ns: Some(400), ..stamp };
    let declared = |stamp: Stamp| stamp.vouched_by(vouches(Quality::Declared));
    let unsynchronized = |stamp| declared(Stamp { synchronized: Some(false), ..stamp });
    let warns = |saved: Stamp, at, request| made(&abroad().at(saved), &target(), at, request).warnings;
    let (host, now) = (abroad().stamp, there(5));
    let kernel = |side| Diagnostic::KernelUnverified { side, max_error_ns: 400 };
    let unsync = |side| Diagnostic::Unsynchronized { side };
    let (saved, side) = (Side::Saved, Side::Here);
    let advance = asks(Policy::ADVANCE);
    assert_eq!(warns(declared(host), declared(now), advance), []);
    assert_eq!(warns(unverified(host), declared(now), advance), [kernel(saved)]);
    assert_eq!(warns(declared(host), unverified(now), advance), [kernel(side)]);
    assert_eq!(warns(unsynchronized(host), declared(now), advance), [unsync(saved)]);
    assert_eq!(warns(declared(host), unsynchronized(now), advance), [unsync(side)]);
    let sure = |stamp| declared(unverified(stamp));
    assert_eq!(warns(sure(host), sure(now), advance), [], "declared, and synchronised");
    // Where the wall clocks aren't asked, or the caller assumes, nobody has to.
    for request in [
        asks(Policy::FREEZE),
        Request { elapsed: Some(within(9)), ..advance },
        Request { elapsed: Some(Elapsed::Given { ns: 9, error_ns: 0 }), ..advance },
    ] {
        assert_eq!(warns(unverified(host), unsynchronized(now), request), []);
    }
    assert_eq!(now.vouched(), Err(Unvouched::Nobody));
}

#[test]
fn a_backlog_warns_where_it_is_late_large_or_fast() {
    let catch_up = |step_ns, interval_ns, within_ns| {
        let Backlog { step_ns, interval_ns, .. } = Backlog::new(1, step_ns, interval_ns).unwrap();
        Policy::catch_up(Repay { step_ns, interval_ns, within_ns }, 0)
    };
    let warns = |ticks, policy| {
        let request = Request { in_place: true, ..asks(policy) };
        let all = made(&bare(), &target(), here(ticks), request).warnings;
        all.into_iter().filter(|warning| !matches!(warning, Diagnostic::LargeJump { .. })).collect::<Vec<_>>()
    };
    assert_eq!(warns(100, catch_up(160, 320, Some(3200))), []);
    let late = Refusal::DeadlineMissed { remaining_ns: 1600, needed_ns: 3200, within_ns: 3199 };
    assert_eq!(warns(100, catch_up(160, 320, Some(3199))), [Diagnostic::BacklogLate(late)]);
    // Without a backlog there is nothing to warn of.
    assert_eq!(warns(0, catch_up(20_000_000_000, 1, Some(0))), []);
    let large = 10_000_000_000;
    assert_eq!(warns(100, catch_up(large - 1, large, None)), []);
    assert_eq!(warns(100, catch_up(large, large, None)), [Diagnostic::LargeStep { step_ns: large }]);
    assert_eq!(warns(100, catch_up(1000, 1000, None)), []);
    assert_eq!(warns(100, catch_up(1001, 1000, None)), [Diagnostic::FastCatchUp { rate_permille: 2001 }]);

    let saved = bare().time(|time| time.backlog = Backlog::new(50, 160, 320));
    assert_eq!(made(&saved, &target(), here(0), asks(Policy::FREEZE)).warnings, []);
    assert_eq!(made(&saved, &old(), here(0), asks(Policy::FREEZE)).warnings, [Diagnostic::BacklogByValue]);
}

#[test]
fn what_is_unknown_is_passed_on() {
    let unknown = vec![UnknownKey { key: "later".into(), value: vec![0] }];
    let saved = Contents { unknown, ..bare() };
    let passed_on = [Diagnostic::PassedOn(Unknown::Key("later".into()))];
    assert_eq!(later(&saved, 0, asks(Policy::FREEZE)).unwrap().warnings, passed_on);
}
