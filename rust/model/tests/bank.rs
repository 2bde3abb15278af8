//! Each batch kernel against its scalar law, row by row, on every instruction set that this CPU has.

#[path = "../../core/tests/common/mod.rs"]
mod common;

use common::target::plan;
use common::{Contents, Vm, bare};
use guestclock_core::arch::arm64::{Behaviours, timer};
use guestclock_core::restore::{Policy, Refusal, Request, Target};
use guestclock_core::time::{
    Counter, Elapsed, ElapsedError, Frequency, GuestCount, HostCount, NO_DEADLINE, Offset, Stamp, StampCount, deadline,
};
use guestclock_model::backend::Model;
use guestclock_model::bank::{self, Added, Isa, Rate, Saved, Scale, TimerSlices, WentBackwards};
use guestclock_model::config::Config;
use guestclock_model::manual::ManualCounter;
use guestclock_model::vm::ModelVm;
use proptest::collection::vec;
use proptest::prelude::*;

/// Counts, offsets and compare values that meet often, at both ends of the range and in its middle, and any others.
fn near() -> impl Strategy<Value = u64> {
    let around = |middle: u64| (0..6_u64).prop_map(move |more| middle.wrapping_sub(3).wrapping_add(more));
    prop_oneof![around(0), around(1 << 63), around(1 << 32), any::<u64>()]
}

/// Up to two blocks and a rest of them, so that every remainder of a block and of a vector's width is there.
fn rows<T: std::fmt::Debug>(row: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    vec(row, 0..=200)
}

/// CTL, with bits that a timer doesn't go by.
fn ctl() -> impl Strategy<Value = u8> {
    prop_oneof![0..8_u8, any::<u8>()]
}

fn column<T, U>(rows: &[T], of: impl Fn(&T) -> U) -> Vec<U> {
    rows.iter().map(of).collect()
}

/// The last elements of a longer column: wherever that one begins, not all lengths have these on a vector's boundary.
struct Unaligned<T>(Vec<T>);

impl<T: Copy> Unaligned<T> {
    fn new(rows: usize, value: T) -> Self {
        Self(vec![value; rows + 1])
    }

    fn of(column: &[T]) -> Self {
        Self(column.first().into_iter().chain(column).copied().collect())
    }
}

impl<T> std::ops::Deref for Unaligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.get(1..).unwrap_or_default()
    }
}

impl<T> std::ops::DerefMut for Unaligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.0.get_mut(1..).unwrap_or_default()
    }
}

#[test]
fn instruction_sets() {
    let available: Vec<Isa> = Isa::available().collect();
    assert_eq!((available[0], available.last()), (Isa::BASELINE, Some(&Isa::best())));
    for &isa in &available {
        assert_eq!(Isa::named(isa.name()), Ok(isa));
    }
    let refused = Isa::named("mmx").unwrap_err();
    assert_eq!(refused.available, column(&available, |isa| isa.name()));
    assert!(refused.to_string().starts_with("no instruction set \"mmx\" here: this CPU has baseline"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn counts(now in near(), rows in rows((near(), near()))) {
        let now = HostCount(now);
        let (virt, phys) = (Unaligned::of(&column(&rows, |row| row.0)), Unaligned::of(&column(&rows, |row| row.1)));
        let (of_virt, of_phys) =
            (column(&virt, |&offset| now.guest(Offset(offset)).0), column(&phys, |&offset| now.guest(Offset(offset)).0));
        for isa in Isa::available() {
            let mut out = Unaligned::new(rows.len(), 7);
            bank::counts(isa, now, &virt, &mut out);
            prop_assert_eq!(&out[..], &of_virt, "{:?}", isa);
            let (mut cntvct, mut cntpct) = (Unaligned::new(rows.len(), 7), Unaligned::new(rows.len(), 7));
            bank::both_counts(isa, now, &virt, &phys, &mut cntvct, &mut cntpct);
            prop_assert_eq!(&cntvct[..], &of_virt, "{:?}", isa);
            prop_assert_eq!(&cntpct[..], &of_phys, "{:?}", isa);
        }
    }

    #[test]
    fn changes(lines in vec((any::<bool>(), prop::bool::weighted(0.02)), 0..300)) {
        let before = Unaligned::of(&column(&lines, |&(before, _)| before));
        let line = Unaligned::of(&column(&lines, |&(before, changes)| before != changes));
        let expected: Vec<i64> =
            (0..).zip(&lines).filter(|(_, (_, changes))| *changes).map(|(row, _)| row).collect();
        for isa in Isa::available() {
            let mut out = vec![-1; lines.len()];
            let found = bank::changes(isa, &before, &line, &mut out);
            prop_assert_eq!(&out[..found], &expected, "{:?}", isa);
        }
    }

    #[test]
    fn lines_and_deadlines(
        now in near(),
        rows in rows((vec(near(), 2), vec((near(), ctl()), 4), 0..9_u32)),
        timers in 0..=4_usize,
    ) {
        let now = HostCount(now);
        let offsets: Vec<_> = (0..2).map(|view| Unaligned::of(&column(&rows, |row| row.0[view]))).collect();
        let cvals: Vec<_> = (0..4).map(|timer| Unaligned::of(&column(&rows, |row| row.1[timer].0))).collect();
        let ctls: Vec<_> = (0..4).map(|timer| Unaligned::of(&column(&rows, |row| row.1[timer].1))).collect();
        let columns: Vec<_> = (0..timers)
            .map(|timer| TimerSlices { offsets: &offsets[timer % 2], cval: &cvals[timer], ctl: &ctls[timer] })
            .collect();
        let each = |timer: &TimerSlices<'_>, of: fn(u64, u64, GuestCount) -> bool| -> Vec<bool> {
            let row = |row: usize| of(timer.ctl[row].into(), timer.cval[row], now.guest(Offset(timer.offsets[row])));
            (0..rows.len()).map(row).collect()
        };
        let met = column(&columns, |timer| each(timer, |_, cval, guest| timer::condition_met(cval, guest)));
        let high = column(&columns, |timer| each(timer, timer::line));
        let expected: Vec<u64> = (0..rows.len())
            .map(|row| {
                let ticks = columns.iter().map(|timer| {
                    let guest = now.guest(Offset(timer.offsets[row]));
                    timer::ticks_to_line(timer.ctl[row].into(), timer.cval[row], guest)
                });
                deadline(now, ticks.flatten().min())
            })
            .collect();

        for isa in Isa::available() {
            for ((timer, met), high) in columns.iter().zip(&met).zip(&high) {
                let (mut istatus, mut line) = (Unaligned::of(&column(met, |met| !met)), Unaligned::of(high));
                bank::evaluate(isa, now, *timer, &mut istatus, &mut line);
                prop_assert_eq!(&istatus[..], &met[..], "{:?}", isa);
                prop_assert_eq!(&line[..], &high[..], "{:?}", isa);
            }
            let mut out = Unaligned::new(rows.len(), 7);
            bank::next_deadlines(isa, now, &columns, &mut out);
            prop_assert_eq!(&out[..], &expected, "{:?}", isa);

            let mut out = Unaligned::new(rows.len(), 7);
            let flags = rows.len() * timers;
            let (mut istatus, mut line) = (Unaligned::new(flags, true), Unaligned::new(flags, true));
            bank::evaluate_and_deadlines(isa, now, &columns, &mut istatus, &mut line, &mut out);
            prop_assert_eq!(&out[..], &expected, "{:?}", isa);
            prop_assert_eq!(&istatus[..], &met.concat(), "{:?}", isa);
            prop_assert_eq!(&line[..], &high.concat(), "{:?}", isa);
            prop_assert_eq!(bank::earliest(isa, &out), out.iter().copied().min().unwrap_or(NO_DEADLINE));
        }

        let vm_of = column(&rows, |row| row.2);
        let earliest_of = |vm| expected.iter().zip(&vm_of).filter(|row| *row.1 == vm).map(|row| *row.0).min();
        let mut by_vm = [7; 9];
        bank::deadlines_by_vm(&expected, &vm_of, &mut by_vm);
        for (vm, found) in (0..).zip(by_vm) {
            prop_assert_eq!(found, earliest_of(vm).unwrap_or(NO_DEADLINE));
        }
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
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn conversions(hzs in vec(hz(), 1..5), rows in vec((near(), any::<u16>(), any::<bool>()), 0..=70)) {
        for isa in Isa::available() {
            let second = 1_000_000_000;
            let of: Vec<u16> = column(&rows, |row| row.1 % u16::try_from(hzs.len()).unwrap());
            let frequencies = column(&hzs, |&hz| frequency(hz));
            for (hz, &f) in hzs.iter().zip(&frequencies) {
                let numbers = |a, b| -> Vec<u64> {
                    rows.iter().flat_map(|&(n, _, exact)| if exact { [n; 4] } else { steps(n, a, b) }).collect()
                };
                let ticks = numbers(second, *hz);
                let mut out = vec![7; ticks.len()];
                bank::convert(isa, Scale::ticks_to_ns(f), &ticks, &mut out);
                prop_assert_eq!(&out, &column(&ticks, |&ticks| held(f.ticks_to_ns(ticks))), "{} Hz", hz);
                let ns = numbers(*hz, second);
                let mut out = vec![7; ns.len()];
                bank::convert(isa, Scale::ns_to_ticks(f), &ns, &mut out);
                prop_assert_eq!(&out, &column(&ns, |&ns| held(f.ns_to_ticks(ns))), "{} Hz", hz);
            }
            let from = column(&rows, |row| row.0);
            let mut out = vec![7; rows.len()];
            bank::convert_mixed(isa, &column(&frequencies, |&f| Scale::ticks_to_ns(f)), &of, &from, &mut out);
            let one = |row: &(u64, u16)| held(frequencies[usize::from(row.1)].ticks_to_ns(row.0));
            prop_assert_eq!(&out, &from.iter().copied().zip(of.iter().copied()).map(|row| one(&row)).collect::<Vec<_>>());
            bank::convert_mixed(isa, &column(&frequencies, |&f| Scale::ns_to_ticks(f)), &of, &from, &mut out);
            let one = |row: &(u64, u16)| held(frequencies[usize::from(row.1)].ns_to_ticks(row.0));
            prop_assert_eq!(&out, &from.iter().copied().zip(of.iter().copied()).map(|row| one(&row)).collect::<Vec<_>>());
        }
    }
}

/// A VM to restore: its guest's counter, the host's then, what is added, how long it has been, and the most.
type Row = (u64, u64, Added, u64, u64);

/// And which of the counters is its host's.
fn restored() -> impl Strategy<Value = (Row, u16)> {
    ((near(), near(), prop::sample::select(Added::ALL.to_vec()), near(), near()), any::<u16>())
}

/// A host's count and frequency, which is the guest's as well.
fn host() -> impl Strategy<Value = (u64, u32)> {
    (near(), hz().prop_map(|hz| u32::try_from(hz).unwrap_or(83_333_333)))
}

/// The plan's own answer: the offset and the ticks added; `None` where its counter has gone backwards.
fn planned((now, hz): (u64, u32), (guest, host, added, elapsed_ns, max_ns): Row) -> Option<(u64, u64)> {
    let counter = ManualCounter::new(HostCount(now), frequency(hz.into()), 0);
    let mut vm = ModelVm::new(counter.frequency(), Behaviours::named("6.12").unwrap(), Config::default()).unwrap();
    vm.create_vcpu(counter.count()).unwrap();
    let target = Target::of(&mut Model { vm: &mut vm, counter: &counter }).unwrap();
    let stamp = Stamp { count: StampCount(host), frequency: counter.frequency(), ..bare().stamp };
    let saved = Contents { vms: vec![Vm::plain("", 1, hz, guest)], ..bare() }.at(stamp);
    let max_ns = matches!(added, Added::CountedUpTo | Added::ElapsedUpTo).then_some(max_ns);
    let by_counter = matches!(added, Added::Counted | Added::CountedUpTo);
    let policy =
        if added == Added::Nothing { Policy::FREEZE } else { max_ns.map_or(Policy::ADVANCE, Policy::advance_up_to) };
    let given = Elapsed::Given { ns: elapsed_ns, error_ns: 0 };
    let elapsed = Some(if by_counter { Elapsed::ByCounter } else { given });
    let request = Request { policy, elapsed, ..Request::default() };
    match plan(&saved, &target, counter.stamp(), request) {
        Ok(plan) => Some((plan.as_of.virtual_offset().0, plan.as_of.added_ticks)),
        Err(Refusal::Elapsed(ElapsedError::ClockWentBackwards { .. })) => None,
        Err(other) => panic!("{other}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn recomputed_offsets(hosts in vec(host(), 1..=12), rows in vec(restored(), 0..=140)) {
        let number = |of: u16| usize::from(of) % hosts.len();
        let expected = column(&rows, |&(row, of)| planned(hosts[number(of)], row));
        let first = expected.iter().position(Option::is_none);
        let rates = column(&hosts, |&(now, hz)| Rate::new(HostCount(now), frequency(hz.into())));
        // Refused with it, and computed without.
        for (refused, isa) in [true, false].into_iter().flat_map(|refused| Isa::available().map(move |isa| (refused, isa))) {
            let rows: Vec<_> = (rows.iter().zip(&expected))
                .filter(|(_, expected)| refused || expected.is_some())
                .map(|(row, _)| *row)
                .collect();
            let saved = Saved {
                guest: &Unaligned::of(&column(&rows, |row| row.0.0)),
                host: &Unaligned::of(&column(&rows, |row| row.0.1)),
                added: &Unaligned::of(&column(&rows, |row| row.0.2)),
                elapsed_ns: &Unaligned::of(&column(&rows, |row| row.0.3)),
                max_ns: &Unaligned::of(&column(&rows, |row| row.0.4)),
                rate: &Unaligned::of(&column(&rows, |row| u16::try_from(number(row.1)).unwrap())),
            };
            let (mut offsets, mut added) = (Unaligned::new(rows.len(), 7), Unaligned::new(rows.len(), 7));
            let done = bank::recompute_offsets(isa, &rates, saved, &mut offsets, &mut added);
            if let Some(row) = first.filter(|_| refused) {
                prop_assert_eq!(done, Err(WentBackwards { row }), "{:?}", isa);
                prop_assert!(offsets.iter().chain(&*added).all(|&untouched| untouched == 7), "{:?}", isa);
            } else {
                prop_assert_eq!(done, Ok(()), "{:?}", isa);
                let found: Vec<_> = offsets.iter().copied().zip(added.iter().copied()).collect();
                prop_assert_eq!(found, expected.iter().copied().flatten().collect::<Vec<_>>(), "{:?}", isa);
            }
        }
    }
}

/// Nothing is written where the columns differ in length.
#[test]
fn columns_of_different_length() {
    let rows = [0_u64; 3];
    let mut out = [7_u64; 2];
    for call in [
        &mut (|out: &mut [u64]| bank::counts(Isa::BASELINE, HostCount(0), &rows, out)) as &mut dyn FnMut(&mut [u64]),
        &mut |out| bank::both_counts(Isa::BASELINE, HostCount(0), &rows[..2], &rows, out, &mut [0; 2]),
        &mut |out| {
            let timer = TimerSlices { offsets: &rows, cval: &rows, ctl: &[0; 3] };
            bank::next_deadlines(Isa::BASELINE, HostCount(0), &[timer], out);
        },
        &mut |out| bank::deadlines_by_vm(&rows, &[0; 2], out),
    ] {
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| call(&mut out))).is_err());
        assert_eq!(out, [7; 2]);
    }
}
