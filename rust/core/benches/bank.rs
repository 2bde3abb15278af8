//! The batch kernels against the scalar law in a plain loop over the same columns: docs/performance.md.
#![allow(clippy::cast_possible_truncation, reason = "of numbers that are drawn, and of counts, which are modulo 2^64")]
#![allow(clippy::cast_possible_wrap, clippy::needless_range_loop, reason = "what one would write first")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use guestclock_core::bank::{self, Added, NO_DEADLINE, Saved, Scale, TimerSlices};
use guestclock_core::counter::{Frequency, GuestCount, HostCount, Offset};
use guestclock_core::timer;
use std::hint::black_box;
use std::time::Duration;

const ROWS: [usize; 2] = [4096, 65_536];
const TIMERS: usize = 4;
const NOW: HostCount = HostCount(1 << 50);

/// splitmix64: the same columns in each run.
fn numbers(seed: u64, rows: usize) -> Vec<u64> {
    let number = |row: u64| {
        let mut x = (seed << 32 | row).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    };
    (0..rows as u64).map(number).collect()
}

/// Offsets below 2^40, so that guests read about 2^50.
fn offsets(seed: u64, rows: usize) -> Vec<u64> {
    numbers(seed, rows).into_iter().map(|x| x >> 24).collect()
}

/// Compare values round the guests' counts, half of them in the past.
fn cvals(seed: u64, rows: usize) -> Vec<u64> {
    let middle = NOW.0 - (1 << 39);
    numbers(seed, rows).into_iter().map(|x| (x >> 23) + middle - (1 << 40)).collect()
}

/// Three of four timers on, a fourth of those masked.
fn ctls(seed: u64, rows: usize) -> Vec<u64> {
    numbers(seed, rows).into_iter().map(|x| u64::from(x & 3 != 0) | u64::from(x >> 2 & 6 == 0) << 1).collect()
}

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
        group.bench_function("kernel", |bench| {
            bench.iter(|| bank::counts(black_box(NOW), black_box(&virt), black_box(&mut one)));
        });
        group.bench_function("kernel, both counters", |bench| {
            bench.iter(|| {
                let out = (black_box(&mut one), black_box(&mut other));
                bank::both_counts(black_box(NOW), black_box(&virt), black_box(&phys), out.0, out.1);
            });
        });
        group.bench_function("both counters in one loop", |bench| {
            bench.iter(|| {
                let out = black_box(&mut one).iter_mut().zip(black_box(&mut other));
                let now = black_box(NOW);
                for ((one, other), (&virt, &phys)) in out.zip(black_box(&virt).iter().zip(black_box(&phys))) {
                    *one = now.guest(Offset(virt)).0;
                    *other = now.guest(Offset(phys)).0;
                }
            });
        });
    }
}

fn lines(criterion: &mut Criterion) {
    for rows in ROWS {
        let (offsets, cval, ctl) = (offsets(1, rows), cvals(2, rows), ctls(3, rows));
        let bytes: Vec<u8> = ctl.iter().map(|&ctl| u8::try_from(ctl).unwrap()).collect();
        let (mut istatus, mut line) = (vec![false; rows], vec![false; rows]);
        let mut group = criterion.benchmark_group(format!("evaluate/{rows}"));
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function("plain", |bench| {
            bench.iter(|| {
                for row in 0..black_box(rows) {
                    let guest = NOW.guest(Offset(offsets[row]));
                    istatus[row] = timer::condition_met(cval[row], guest);
                    line[row] = timer::line(ctl[row], cval[row], guest);
                }
            });
        });
        let wide = TimerSlices { offsets: &offsets, cval: &cval, ctl: &ctl };
        group.bench_function("kernel", |bench| {
            bench.iter(|| bank::evaluate(black_box(NOW), black_box(wide), &mut istatus, &mut line));
        });
        let narrow = TimerSlices { offsets: &offsets, cval: &cval, ctl: &bytes };
        group.bench_function("kernel, CTL as a byte", |bench| {
            bench.iter(|| bank::evaluate(black_box(NOW), black_box(narrow), &mut istatus, &mut line));
        });
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
        group.bench_function("kernel", |bench| {
            bench.iter(|| bank::changes(black_box(&before), black_box(&line), black_box(&mut changed)));
        });
    }
}

fn deadlines(criterion: &mut Criterion) {
    for rows in ROWS {
        let offsets = [offsets(1, rows), offsets(2, rows)];
        let cvals: [_; TIMERS] = std::array::from_fn(|timer| cvals(10 + timer as u64, rows));
        let ctls: [_; TIMERS] = std::array::from_fn(|timer| ctls(20 + timer as u64, rows));
        let bytes: [Vec<u8>; TIMERS] =
            std::array::from_fn(|timer| ctls[timer].iter().map(|&ctl| u8::try_from(ctl).unwrap()).collect());
        let wide: [_; TIMERS] = std::array::from_fn(|timer| TimerSlices {
            offsets: &offsets[timer % 2],
            cval: &cvals[timer],
            ctl: &ctls[timer],
        });
        let narrow: [_; TIMERS] = std::array::from_fn(|timer| TimerSlices {
            offsets: &offsets[timer % 2],
            cval: &cvals[timer],
            ctl: &bytes[timer],
        });
        let mut out = vec![0; rows];
        let mut group = criterion.benchmark_group(format!("next deadlines of {TIMERS} timers/{rows}"));
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function("plain", |bench| {
            bench.iter(|| {
                for row in 0..black_box(rows) {
                    let deadline = |timer: &TimerSlices<'_>| {
                        let guest = NOW.guest(Offset(timer.offsets[row]));
                        bank::deadline(NOW, timer::ticks_to_line(timer.ctl[row], timer.cval[row], guest))
                    };
                    out[row] = wide.iter().map(deadline).min().unwrap_or(NO_DEADLINE);
                }
            });
        });
        group.bench_function("kernel", |bench| {
            bench.iter(|| bank::next_deadlines(black_box(NOW), black_box(&wide), black_box(&mut out)));
        });
        group.bench_function("kernel, CTL as a byte", |bench| {
            bench.iter(|| bank::next_deadlines(black_box(NOW), black_box(&narrow), black_box(&mut out)));
        });
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
        group.bench_function("kernel", |bench| bench.iter(|| bank::earliest(black_box(&out))));
        // Two vCPUs a VM.
        let vm_of: Vec<u32> = (0..u32::try_from(rows).unwrap()).map(|row| row / 2).collect();
        let mut by_vm = vec![0; rows / 2];
        group.bench_function("kernel, by VM", |bench| {
            bench.iter(|| bank::deadlines_by_vm(black_box(&out), black_box(&vm_of), black_box(&mut by_vm)));
        });
    }
}

const HZ: [u64; 5] = [24_000_000, 62_500_000, 83_333_333, 1_000_000_000, 1_050_000_000];

fn conversions(criterion: &mut Criterion) {
    let frequencies = HZ.map(|hz| Frequency::new(hz).unwrap());
    let scales = frequencies.map(Scale::ticks_to_ns);
    for rows in ROWS {
        let ticks = offsets(1, rows);
        let of: Vec<u16> = numbers(2, rows).into_iter().map(|x| (x % 5) as u16).collect();
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
        group.bench_function("kernel", |bench| {
            bench.iter(|| bank::convert(black_box(scales[2]), black_box(&ticks), black_box(&mut out)));
        });
        group.bench_function("plain, five frequencies", |bench| {
            bench.iter(|| {
                for row in 0..black_box(rows) {
                    let frequency = frequencies[usize::from(of[row])];
                    out[row] = u64::try_from(frequency.ticks_to_ns(ticks[row])).unwrap_or(u64::MAX);
                }
            });
        });
        group.bench_function("kernel, five frequencies", |bench| {
            bench.iter(|| bank::convert_mixed(black_box(&scales), &of, black_box(&ticks), black_box(&mut out)));
        });
    }
}

/// Five frequencies; of the rows a third each are frozen, advanced and advanced up to a cap.
fn recompute(criterion: &mut Criterion) {
    let frequencies = HZ.map(|hz| Frequency::new(hz).unwrap());
    let scales = frequencies.map(Scale::ns_to_ticks);
    for rows in ROWS {
        let policies = [Added::Nothing, Added::Elapsed, Added::ElapsedUpTo];
        let saved = Saved {
            guest: &offsets(1, rows),
            host: &offsets(2, rows),
            added: &numbers(3, rows).into_iter().map(|x| policies[(x % 3) as usize]).collect::<Vec<_>>(),
            elapsed_ns: &offsets(4, rows),
            max_ns: &offsets(5, rows),
            frequency: &numbers(6, rows).into_iter().map(|x| (x % 5) as u16).collect::<Vec<_>>(),
        };
        let (mut offsets, mut added) = (vec![0; rows], vec![0; rows]);
        let mut group = criterion.benchmark_group(format!("recompute offsets/{rows}"));
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function("plain", |bench| {
            bench.iter(|| {
                for row in 0..black_box(rows) {
                    let frequency = frequencies[usize::from(saved.frequency[row])];
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
        group.bench_function("kernel", |bench| {
            bench.iter(|| {
                bank::recompute_offsets(black_box(NOW), &scales, black_box(saved), &mut offsets, &mut added).unwrap();
            });
        });
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
