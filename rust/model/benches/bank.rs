//! The batch kernels against the scalar law in a plain loop over the same columns: docs/performance.md.
#![allow(clippy::cast_possible_truncation, reason = "of numbers that are drawn, and of counts, which are modulo 2^64")]
#![allow(clippy::cast_possible_wrap, clippy::needless_range_loop, reason = "what one would write first")]

mod columns;

use columns::{NOW, TIMERS, Vcpus, Vms, frequencies, of, offsets};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use guestclock_core::arch::arm64::timer;
use guestclock_core::time::{GuestCount, HostCount, NO_DEADLINE, Offset, deadline};
use guestclock_model::bank::{self, Added, Isa, Scale, TimerSlices};
use std::hint::black_box;
use std::time::Duration;

const ROWS: [usize; 2] = [4096, 65_536];

fn counts(criterion: &mut Criterion) {
    for rows in ROWS {
        let (virt, phys) = (offsets(1, rows), offsets(2, rows));
        let (mut one, mut other) = (vec![0; rows], vec![0; rows]);
        let mut group = criterion.benchmark_group(format!("counts/{rows}"));
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function("copy", |bench| bench.iter(|| black_box(&mut one).copy_from_slice(black_box(&virt))));
        group.bench_function("plain", |bench| {
            bench.iter(|| {
                for row in 0..black_box(rows) {
                    one[row] = NOW.guest(Offset(virt[row])).0;
                }
            });
        });
        for isa in Isa::available() {
            group.bench_function(isa.name(), |bench| {
                bench.iter(|| bank::counts(isa, black_box(NOW), black_box(&virt), black_box(&mut one)));
            });
            group.bench_function(format!("{isa:?}, both counters"), |bench| {
                bench.iter(|| {
                    let out = (black_box(&mut one), black_box(&mut other));
                    bank::both_counts(isa, black_box(NOW), black_box(&virt), black_box(&phys), out.0, out.1);
                });
            });
        }
    }
}

fn lines(criterion: &mut Criterion) {
    for rows in ROWS {
        let vcpus = Vcpus::new(rows);
        let timer = vcpus.timers()[0];
        let TimerSlices { offsets, cval, ctl } = timer;
        let (mut istatus, mut line) = (vec![false; rows], vec![false; rows]);
        let mut group = criterion.benchmark_group(format!("evaluate/{rows}"));
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function("plain", |bench| {
            bench.iter(|| {
                for row in 0..black_box(rows) {
                    let guest = NOW.guest(Offset(offsets[row]));
                    istatus[row] = timer::condition_met(cval[row], guest);
                    line[row] = timer::line(ctl[row].into(), cval[row], guest);
                }
            });
        });
        for isa in Isa::available() {
            group.bench_function(isa.name(), |bench| {
                bench.iter(|| bank::evaluate(isa, black_box(NOW), black_box(timer), &mut istatus, &mut line));
            });
        }
        drop(group);

        let mut group = criterion.benchmark_group(format!("changes/{rows}"));
        group.throughput(Throughput::Elements(rows as u64));
        let mut before = line.clone();
        before.iter_mut().step_by(100).for_each(|line| *line = !*line);
        let mut changed = vec![0; rows];
        group.bench_function("plain", |bench| {
            bench.iter(|| {
                let mut found = 0;
                for row in 0..black_box(rows) {
                    if before[row] != line[row] {
                        changed[found] = row as i64;
                        found += 1;
                    }
                }
                found
            });
        });
        for isa in Isa::available() {
            group.bench_function(isa.name(), |bench| {
                bench.iter(|| bank::changes(isa, black_box(&before), black_box(&line), black_box(&mut changed)));
            });
        }
    }
}

fn deadlines(criterion: &mut Criterion) {
    for rows in ROWS {
        let vcpus = Vcpus::new(rows);
        let timers = vcpus.timers();
        let mut out = vec![0; rows];
        let mut group = criterion.benchmark_group(format!("next deadlines of {TIMERS} timers/{rows}"));
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function("plain", |bench| {
            bench.iter(|| {
                for row in 0..black_box(rows) {
                    let deadline = |timer: &TimerSlices<'_>| {
                        let guest = NOW.guest(Offset(timer.offsets[row]));
                        deadline(NOW, timer::ticks_to_line(timer.ctl[row].into(), timer.cval[row], guest))
                    };
                    out[row] = timers.iter().map(deadline).min().unwrap_or(NO_DEADLINE);
                }
            });
        });
        let (mut istatus, mut line) = (vec![false; rows * TIMERS], vec![false; rows * TIMERS]);
        for isa in Isa::available() {
            group.bench_function(isa.name(), |bench| {
                bench.iter(|| bank::next_deadlines(isa, black_box(NOW), black_box(&timers), black_box(&mut out)));
            });
            group.bench_function(format!("{isa:?}, with lines"), |bench| {
                bench.iter(|| {
                    let (now, timers) = (black_box(NOW), black_box(&timers));
                    bank::evaluate_and_deadlines(isa, now, timers, &mut istatus, &mut line, &mut out);
                });
            });
        }
        drop(group);

        let mut group = criterion.benchmark_group(format!("earliest/{rows}"));
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function("plain", |bench| {
            bench.iter(|| {
                let mut earliest = NO_DEADLINE;
                for row in 0..black_box(rows) {
                    earliest = earliest.min(out[row]);
                }
                earliest
            });
        });
        for isa in Isa::available() {
            group.bench_function(isa.name(), |bench| bench.iter(|| bank::earliest(isa, black_box(&out))));
        }
        // Two vCPUs a VM.
        let vm_of: Vec<u32> = (0..u32::try_from(rows).unwrap()).map(|row| row / 2).collect();
        let mut by_vm = vec![0; rows / 2];
        group.bench_function("by VM", |bench| {
            bench.iter(|| bank::deadlines_by_vm(black_box(&out), black_box(&vm_of), black_box(&mut by_vm)));
        });
    }
}

fn conversions(criterion: &mut Criterion) {
    let frequencies = frequencies();
    let scales = frequencies.map(Scale::ticks_to_ns);
    for rows in ROWS {
        let ticks = offsets(1, rows);
        let of = of(2, rows);
        let mut out = vec![0; rows];
        let mut group = criterion.benchmark_group(format!("ticks to ns/{rows}"));
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function("plain", |bench| {
            bench.iter(|| {
                let frequency = black_box(frequencies[2]);
                for row in 0..black_box(rows) {
                    out[row] = u64::try_from(frequency.ticks_to_ns(ticks[row])).unwrap_or(u64::MAX);
                }
            });
        });
        group.bench_function("plain, five frequencies", |bench| {
            bench.iter(|| {
                for row in 0..black_box(rows) {
                    let frequency = frequencies[usize::from(of[row])];
                    out[row] = u64::try_from(frequency.ticks_to_ns(ticks[row])).unwrap_or(u64::MAX);
                }
            });
        });
        for isa in Isa::available() {
            group.bench_function(isa.name(), |bench| {
                bench.iter(|| bank::convert(isa, black_box(scales[2]), black_box(&ticks), black_box(&mut out)));
            });
            group.bench_function(format!("{isa:?}, five frequencies"), |bench| {
                let out = &mut out;
                bench.iter(|| bank::convert_mixed(isa, black_box(&scales), &of, black_box(&ticks), black_box(out)));
            });
        }
    }
}

/// Five frequencies; of the rows a third each are frozen, advanced and advanced up to a cap.
fn recompute(criterion: &mut Criterion) {
    let (frequencies, rates) = (frequencies(), Vms::rates());
    for rows in ROWS {
        let vms = Vms::new(rows);
        let saved = vms.saved();
        let (mut offsets, mut added) = (vec![0; rows], vec![0; rows]);
        let mut group = criterion.benchmark_group(format!("recompute offsets/{rows}"));
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function("plain", |bench| {
            bench.iter(|| {
                for row in 0..black_box(rows) {
                    let frequency = frequencies[usize::from(saved.rate[row])];
                    let ticks = |ns| frequency.ns_to_ticks(ns);
                    let (elapsed_ns, max_ns) = (saved.elapsed_ns[row], saved.max_ns[row]);
                    let counted = || u128::from(NOW.since(HostCount(saved.host[row])));
                    let wide = match saved.added[row] {
                        Added::Nothing => 0,
                        Added::Counted => counted(),
                        Added::CountedUpTo => counted().min(ticks(max_ns)),
                        Added::Elapsed => ticks(elapsed_ns),
                        Added::ElapsedUpTo => ticks(elapsed_ns).min(ticks(max_ns)),
                    };
                    added[row] = wide as u64;
                    offsets[row] = Offset::between(NOW, GuestCount(saved.guest[row]).after(added[row])).0;
                }
            });
        });
        for isa in Isa::available() {
            group.bench_function(isa.name(), |bench| {
                bench.iter(|| {
                    bank::recompute_offsets(isa, &rates, black_box(saved), &mut offsets, &mut added).unwrap();
                });
            });
        }
    }
}

criterion_group! {
    name = bank;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .sample_size(50);
    targets = counts, lines, deadlines, conversions, recompute
}
criterion_main!(bank);
