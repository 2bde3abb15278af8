//! Each batch kernel against its scalar law, row by row.

use guestclock_core::bank::{self, NO_DEADLINE, TimerSlices};
use guestclock_core::counter::{HostCount, Offset};
use guestclock_core::timer;
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
