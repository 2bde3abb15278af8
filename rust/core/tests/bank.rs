//! Each batch kernel against its scalar law, row by row.

mod common;

use common::bare;
use guestclock_core::backend::Model;
use guestclock_core::bank::{self, Added, NO_DEADLINE, Saved, Scale, TimerSlices, WentBackwards};
use guestclock_core::checkpoint::Checkpoint;
use guestclock_core::counter::{Counter, Frequency, GuestCount, HostCount, Offset};
use guestclock_core::kernel::Behaviours;
use guestclock_core::manual::ManualCounter;
use guestclock_core::plan::{Policy, Request, Target, plan};
use guestclock_core::refusal::Refusal;
use guestclock_core::timer;
use guestclock_core::vm::{Config, Vm};
use proptest::collection::vec;
use proptest::prelude::*;

/// Counts, offsets and compare values that meet often, at both ends of the range and in its middle, and any others.
fn near() -> impl Strategy<Value = u64> {
    let around = |middle: u64| (0..6_u64).prop_map(move |more| middle.wrapping_sub(3).wrapping_add(more));
    prop_oneof![around(0), around(1 << 63), around(1 << 32), any::<u64>()]
}

/// Columns of up to 70 rows, so that every remainder of a vector's width is there.
fn rows<T: std::fmt::Debug>(row: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    vec(row, 0..=70)
}

/// CTL with reserved bits, as SET_ONE_REG stores them.
fn ctl() -> impl Strategy<Value = u64> {
    prop_oneof![0..8_u64, any::<u64>()]
}

fn column<T, U>(rows: &[T], of: impl Fn(&T) -> U) -> Vec<U> {
    rows.iter().map(of).collect()
}

proptest! {
    #[test]
    fn counts(now in near(), rows in rows((near(), near()))) {
        let now = HostCount(now);
        let (virt, phys) = (column(&rows, |row| row.0), column(&rows, |row| row.1));
        let mut out = vec![7; rows.len()];
        bank::counts(now, &virt, &mut out);
        prop_assert_eq!(&out, &column(&virt, |&offset| now.guest(Offset(offset)).0));
        let (mut cntvct, mut cntpct) = (vec![7; rows.len()], vec![7; rows.len()]);
        bank::both_counts(now, &virt, &phys, &mut cntvct, &mut cntpct);
        prop_assert_eq!(cntvct, out);
        prop_assert_eq!(cntpct, column(&phys, |&offset| now.guest(Offset(offset)).0));
    }

    #[test]
    fn lines(now in near(), rows in rows((near(), near(), ctl()))) {
        let now = HostCount(now);
        let (offsets, cval, ctl) =
            (column(&rows, |row| row.0), column(&rows, |row| row.1), column(&rows, |row| row.2));
        let met = column(&rows, |&(offset, cval, _)| timer::condition_met(cval, now.guest(Offset(offset))));
        let high = column(&rows, |&(offset, cval, ctl)| timer::line(ctl, cval, now.guest(Offset(offset))));
        let (mut istatus, mut line) = (column(&met, |met| !met), column(&high, |high| !high));
        bank::evaluate(now, TimerSlices { offsets: &offsets, cval: &cval, ctl: &ctl }, &mut istatus, &mut line);
        prop_assert_eq!(&istatus, &met);
        prop_assert_eq!(&line, &high);

        // The low byte has the bits that count.
        let bytes = column(&ctl, |ctl| ctl.to_le_bytes()[0]);
        let (mut istatus, mut line) = (column(&met, |met| !met), column(&high, |high| !high));
        bank::evaluate(now, TimerSlices { offsets: &offsets, cval: &cval, ctl: &bytes }, &mut istatus, &mut line);
        prop_assert_eq!(istatus, met);
        prop_assert_eq!(line, high);
    }

    #[test]
    fn changes(lines in vec((any::<bool>(), prop::bool::weighted(0.02)), 0..300)) {
        let before = column(&lines, |&(before, _)| before);
        let line = column(&lines, |&(before, changes)| before != changes);
        let expected: Vec<i64> =
            (0..).zip(&lines).filter(|(_, (_, changes))| *changes).map(|(row, _)| row).collect();
        let mut out = vec![-1; lines.len()];
        let found = bank::changes(&before, &line, &mut out);
        prop_assert_eq!(&out[..found], &expected);
    }

    #[test]
    fn next_deadlines(
        now in near(),
        rows in rows((vec(near(), 2), vec((near(), ctl()), 4), 0..9_u32)),
        timers in 0..=4_usize,
    ) {
        let now = HostCount(now);
        let offsets: Vec<_> = (0..2).map(|view| column(&rows, |row| row.0[view])).collect();
        let cvals: Vec<_> = (0..4).map(|timer| column(&rows, |row| row.1[timer].0)).collect();
        let ctls: Vec<_> = (0..4).map(|timer| column(&rows, |row| row.1[timer].1)).collect();
        let columns: Vec<_> = (0..timers)
            .map(|timer| TimerSlices { offsets: &offsets[timer % 2], cval: &cvals[timer], ctl: &ctls[timer] })
            .collect();
        let expected: Vec<u64> = (0..rows.len())
            .map(|row| {
                let ticks = columns.iter().map(|timer| {
                    let guest = now.guest(Offset(timer.offsets[row]));
                    timer::ticks_to_line(timer.ctl[row], timer.cval[row], guest)
                });
                bank::deadline(now, ticks.flatten().min())
            })
            .collect();
        let mut out = vec![7; rows.len()];
        bank::next_deadlines(now, &columns, &mut out);
        prop_assert_eq!(&out, &expected);

        let vm_of = column(&rows, |row| row.2);
        let earliest_of = |vm| out.iter().zip(&vm_of).filter(|row| *row.1 == vm).map(|row| *row.0).min();
        let mut by_vm = [7; 9];
        bank::deadlines_by_vm(&out, &vm_of, &mut by_vm);
        for (vm, found) in (0..).zip(by_vm) {
            prop_assert_eq!(found, earliest_of(vm).unwrap_or(NO_DEADLINE));
        }
        prop_assert_eq!(bank::earliest(&out), out.iter().copied().min().unwrap_or(NO_DEADLINE));
    }
}

/// Frequencies of real counters, the least and the greatest there are, those round a second's nanoseconds, and any
/// others.
fn hz() -> impl Strategy<Value = u64> {
    let real = [19_200_000, 24_000_000, 62_500_000, 83_333_333, 121_875_000, 1_000_000_000, 1_050_000_000];
    let edges = [1, 2, 3, 999_999_999, 1_000_000_001, u32::MAX.into(), 1 << 32, 1 << 63, u64::MAX - 1, u64::MAX];
    prop_oneof![prop::sample::select(real.to_vec()), prop::sample::select(edges.to_vec()), 1..=u64::MAX]
}

fn frequency(hz: u64) -> Frequency {
    Frequency::new(hz).unwrap()
}

fn held(wide: u128) -> u64 {
    u64::try_from(wide).unwrap_or(u64::MAX)
}

/// Numbers on either side of a result's step, and of where the results leave the range.
fn steps(quotient: u64, a: u64, b: u64) -> [u64; 4] {
    let at = |quotient: u128| held((quotient * u128::from(b)).div_ceil(u128::from(a)));
    let (step, end) = (at(quotient.into()), at(1 << 64));
    [step, step.saturating_sub(1), end, end.saturating_sub(1)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn conversions(hzs in vec(hz(), 1..5), rows in rows((near(), any::<u16>(), any::<bool>()))) {
        let second = 1_000_000_000;
        let of: Vec<u16> = column(&rows, |row| row.1 % u16::try_from(hzs.len()).unwrap());
        let frequencies = column(&hzs, |&hz| frequency(hz));
        for (hz, &f) in hzs.iter().zip(&frequencies) {
            let numbers = |a, b| -> Vec<u64> {
                rows.iter().flat_map(|&(n, _, exact)| if exact { [n; 4] } else { steps(n, a, b) }).collect()
            };
            let ticks = numbers(second, *hz);
            let mut out = vec![7; ticks.len()];
            bank::convert(Scale::ticks_to_ns(f), &ticks, &mut out);
            prop_assert_eq!(&out, &column(&ticks, |&ticks| held(f.ticks_to_ns(ticks))), "{} Hz", hz);
            let ns = numbers(*hz, second);
            let mut out = vec![7; ns.len()];
            bank::convert(Scale::ns_to_ticks(f), &ns, &mut out);
            prop_assert_eq!(&out, &column(&ns, |&ns| held(f.ns_to_ticks(ns))), "{} Hz", hz);
        }
        let from = column(&rows, |row| row.0);
        let mut out = vec![7; rows.len()];
        bank::convert_mixed(&column(&frequencies, |&f| Scale::ticks_to_ns(f)), &of, &from, &mut out);
        let one = |row: &(u64, u16)| held(frequencies[usize::from(row.1)].ticks_to_ns(row.0));
        prop_assert_eq!(&out, &from.iter().copied().zip(of.iter().copied()).map(|row| one(&row)).collect::<Vec<_>>());
        bank::convert_mixed(&column(&frequencies, |&f| Scale::ns_to_ticks(f)), &of, &from, &mut out);
        let one = |row: &(u64, u16)| held(frequencies[usize::from(row.1)].ns_to_ticks(row.0));
        prop_assert_eq!(&out, &from.iter().copied().zip(of.iter().copied()).map(|row| one(&row)).collect::<Vec<_>>());
    }
}

/// A VM to restore: its guest's counter, the host's then, what is added, how long it has been, the most, and its Hz.
type Row = (u64, u64, Added, u64, u64, u32);

fn restored() -> impl Strategy<Value = Row> {
    let hz = hz().prop_map(|hz| u32::try_from(hz).unwrap_or(83_333_333));
    (near(), near(), prop::sample::select(Added::ALL.to_vec()), near(), near(), hz)
}

/// What the plan itself says: the offset and the ticks added; `None` where its counter has gone backwards.
fn planned(now: u64, (guest, host, added, elapsed_ns, max_ns, hz): Row) -> Option<(u64, u64)> {
    let counter = ManualCounter::new(HostCount(now), frequency(hz.into()), 0);
    let mut vm = Vm::new(counter.frequency(), Behaviours::named("6.12").unwrap(), Config::default()).unwrap();
    vm.create_vcpu(counter.count()).unwrap();
    let target = Target::of(&mut Model { vm: &mut vm, counter: &counter }).unwrap();
    let mut checkpoint = Checkpoint { cntfrq_hz: hz, cntvct: GuestCount(guest), cntpct: GuestCount(guest), ..bare() };
    checkpoint.host.count = HostCount(host);
    checkpoint.host.frequency = counter.frequency();
    let max_ns = matches!(added, Added::CountedUpTo | Added::ElapsedUpTo).then_some(max_ns);
    let by_counter = matches!(added, Added::Counted | Added::CountedUpTo);
    let policy = if added == Added::Nothing { Policy::Freeze } else { Policy::Advance { max_ns } };
    let elapsed_ns = (!by_counter).then_some(elapsed_ns);
    let request = Request { policy, same_counter: Some(by_counter), elapsed_ns, ..Request::default() };
    match plan(&checkpoint, &target, counter.cross_timestamp(), request) {
        Ok(plan) => Some((plan.as_of.virtual_offset().0, plan.as_of.added_ticks)),
        Err(Refusal::ClockWentBackwards { .. }) => None,
        Err(other) => panic!("{other}"),
    }
}

proptest! {
    #[test]
    fn recomputed_offsets(now in near(), rows in rows(restored())) {
        let expected = column(&rows, |&row| planned(now, row));
        let first = expected.iter().position(Option::is_none);
        // Refused with it, and computed without.
        for refused in [true, false] {
            let rows: Vec<_> = (rows.iter().zip(&expected))
                .filter(|(_, expected)| refused || expected.is_some())
                .map(|(row, _)| *row)
                .collect();
            let scales = column(&rows, |row| Scale::ns_to_ticks(frequency(row.5.into())));
            let saved = Saved {
                guest: &column(&rows, |row| row.0),
                host: &column(&rows, |row| row.1),
                added: &column(&rows, |row| row.2),
                elapsed_ns: &column(&rows, |row| row.3),
                max_ns: &column(&rows, |row| row.4),
                frequency: &(0..u16::try_from(rows.len()).unwrap()).collect::<Vec<_>>(),
            };
            let (mut offsets, mut added) = (vec![7; rows.len()], vec![7; rows.len()]);
            let done = bank::recompute_offsets(HostCount(now), &scales, saved, &mut offsets, &mut added);
            if let Some(row) = first.filter(|_| refused) {
                prop_assert_eq!(done, Err(WentBackwards { row }));
                prop_assert!(offsets.iter().chain(&added).all(|&untouched| untouched == 7));
            } else {
                prop_assert_eq!(done, Ok(()));
                let found: Vec<_> = offsets.into_iter().zip(added).collect();
                prop_assert_eq!(found, expected.iter().copied().flatten().collect::<Vec<_>>());
            }
        }
    }
}

/// More rows than are taken at a time.
#[test]
fn deadlines_of_many_rows() {
    let cval: Vec<u64> = (1000..3000).collect();
    let (offsets, ctl) = (vec![0; cval.len()], vec![timer::CTL_ENABLE; cval.len()]);
    let mut out = vec![0; cval.len()];
    let columns = TimerSlices { offsets: &offsets, cval: &cval, ctl: &ctl };
    bank::next_deadlines(HostCount(1500), &[columns], &mut out);
    assert_eq!(out, column(&cval, |&cval| cval.max(1500)));
}

/// Nothing is written where the columns differ in length.
#[test]
fn columns_of_different_length() {
    let rows = [0_u64; 3];
    let mut out = [7_u64; 2];
    for call in [
        &mut (|out: &mut [u64]| bank::counts(HostCount(0), &rows, out)) as &mut dyn FnMut(&mut [u64]),
        &mut |out| bank::both_counts(HostCount(0), &rows[..2], &rows, out, &mut [0; 2]),
        &mut |out| {
            let timer = TimerSlices { offsets: &rows, cval: &rows, ctl: &rows };
            bank::next_deadlines(HostCount(0), &[timer], out);
        },
        &mut |out| bank::deadlines_by_vm(&rows, &[0; 2], out),
    ] {
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| call(&mut out))).is_err());
        assert_eq!(out, [7; 2]);
    }
}
