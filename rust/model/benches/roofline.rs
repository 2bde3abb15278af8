//! Each kernel on each instruction set, beside what this machine copies, in interleaved rounds of one run: `cargo bench
//! -p guestclock-model --bench roofline`.

mod columns;

use columns::{NOW, TIMERS, Vcpus, Vms, frequencies};
use guestclock_model::bank::{self, Isa, Scale};
use std::hint::black_box;
use std::time::{Duration, Instant};

const ROUNDS: usize = 101;
const ROUND: Duration = Duration::from_millis(1);

/// A kernel on one instruction set, and how many bytes of a row it reads and writes.
struct Case<'a> {
    kernel: &'static str,
    isa: &'static str,
    rows: usize,
    bytes: usize,
    run: Box<dyn FnMut() + 'a>,
    /// Time of a call in each round, in picoseconds.
    times: Vec<u128>,
}

struct Cases<'a> {
    rows: usize,
    cases: Vec<Case<'a>>,
}

impl<'a> Cases<'a> {
    fn add(&mut self, kernel: &'static str, isa: &'static str, bytes: usize, run: impl FnMut() + 'a) {
        self.cases.push(Case { kernel, isa, rows: self.rows, bytes, run: Box::new(run), times: Vec::new() });
    }
}

impl Case<'_> {
    /// Number of calls in a round.
    fn calls(&mut self) -> u128 {
        let started = Instant::now();
        (self.run)();
        (ROUND.as_nanos() / started.elapsed().as_nanos().max(1)).max(1)
    }

    fn time(&mut self, calls: u128) {
        let started = Instant::now();
        for _ in 0..calls {
            (self.run)();
        }
        self.times.push(started.elapsed().as_nanos() * 1000 / calls);
    }

    fn print(&mut self) {
        self.times.sort_unstable();
        let (least, median) = (self.times[0], self.times[ROUNDS / 2]);
        let hundredths = |ps: u128| format!("{}.{:02}", ps / 1_000_000, ps / 10_000 % 100);
        let Self { kernel, isa, rows, bytes, .. } = self;
        let row = least / *rows as u128;
        let rate = (*rows * *bytes) as u128 * 10_000 / least;
        println!(
            "| {kernel} | {isa} | {rows} | {} | {} | {}.{:02} | {bytes} | {}.{} |",
            hundredths(least),
            hundredths(median),
            row / 1000,
            row / 10 % 100,
            rate / 10,
            rate % 10,
        );
    }
}

fn main() {
    // `cargo test --benches` runs it as well.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    println!("| kernel | set | rows | least us | median us | ns a row | bytes a row | GB/s |");
    println!("|---|---|---|---|---|---|---|---|");
    for rows in [4096, 65_536] {
        let (vcpus, vms) = (Vcpus::new(rows), Vms::new(rows));
        let mut cases = Cases { rows, cases: Vec::new() };
        roof(&mut cases);
        for isa in Isa::available() {
            kernels(isa, &mut cases, &vcpus, &vms);
        }
        let mut cases = cases.cases;
        let calls: Vec<u128> = cases.iter_mut().map(Case::calls).collect();
        for _ in 0..ROUNDS {
            for (case, &calls) in cases.iter_mut().zip(&calls) {
                case.time(calls);
            }
        }
        cases.iter_mut().for_each(Case::print);
    }
}

/// As many bytes as both of four timers moves: half of them read, half written.
fn roof(cases: &mut Cases<'_>) {
    let (from, mut to): (Vec<u64>, _) = (vec![1; cases.rows * 34 / 8], vec![0; cases.rows * 34 / 8]);
    cases.add("copy", "any", 68, move || black_box(&mut to[..]).copy_from_slice(black_box(&from)));
}

fn kernels<'a>(isa: Isa, cases: &mut Cases<'a>, vcpus: &'a Vcpus, vms: &'a Vms) {
    let (rows, name, timers, [virt, _]) = (cases.rows, isa.name(), vcpus.timers(), vcpus.offsets());
    let mut out = vec![0; rows];
    cases.add("counts", name, 16, move || bank::counts(isa, black_box(NOW), virt, black_box(&mut out)));
    let (mut istatus, mut line, timer) = (vec![false; rows], vec![false; rows], timers[0]);
    cases.add("evaluate", name, 19, move || {
        bank::evaluate(isa, black_box(NOW), timer, black_box(&mut istatus), black_box(&mut line));
    });
    let mut out = vec![0; rows];
    cases.add("next deadlines of 4 timers", name, 60, move || {
        bank::next_deadlines(isa, black_box(NOW), &timers, black_box(&mut out));
    });
    let (mut istatus, mut line) = (vec![false; rows * TIMERS], vec![false; rows * TIMERS]);
    let mut out = vec![0; rows];
    cases.add("both, of 4 timers", name, 68, move || {
        let (istatus, line) = (black_box(&mut istatus), black_box(&mut line));
        bank::evaluate_and_deadlines(isa, black_box(NOW), &timers, istatus, line, black_box(&mut out));
    });
    let (mut out, scale) = (vec![0; rows], Scale::ticks_to_ns(frequencies()[2]));
    cases.add("ticks to ns", name, 16, move || bank::convert(isa, black_box(scale), virt, black_box(&mut out)));
    let (mut out, mut added, rates) = (vec![0; rows], vec![0; rows], Vms::rates());
    cases.add("recompute offsets", name, 51, move || {
        let (out, added) = (black_box(&mut out), black_box(&mut added));
        bank::recompute_offsets(isa, &rates, vms.saved(), out, added).expect("no counter went backwards");
    });
}
