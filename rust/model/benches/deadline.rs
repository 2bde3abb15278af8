//! The deadline queue in its steady state: `cargo bench -p guestclock-core --bench deadline`.
#![allow(missing_docs, reason = "criterion's macros make public functions without any")]

mod steady;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use guestclock_core::time::Offset;
use std::hint::black_box;
use std::time::Duration;
use steady::{Steady, TOUCHED};

fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("steady state");
    group.throughput(Throughput::Elements(TOUCHED));
    for timers in [1000, 100_000, 1_000_000] {
        for (name, vm) in [("VMs of 8", 8), ("one VM", timers)] {
            let mut state = Steady::new(timers, vm);
            group.bench_function(BenchmarkId::new(name, timers), |bencher| bencher.iter(|| black_box(state.step())));
        }
    }
}

fn offset(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("set_offset");
    for (name, vm) in [("VMs of 8", 8), ("one VM", 100_000)] {
        let mut queue = Steady::new(100_000, vm).queue;
        let mut offset = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                offset += 1;
                queue.set_offset(0, Offset(offset))
            });
        });
    }
}

criterion_group! {
    name = deadline;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2));
    targets = steps, offset
}
criterion_main!(deadline);
