//! Calls that `make instructions` counts, under callgrind: each kernel on each instruction set, a step of the deadline
//! queue, a live update of many VMs, the checkpoint's bytes. The same inputs in each run.
//!
//! callgrind counts in `counted_call` and writes a file each time that it returns; the names of these calls, in their
//! order, go to stdout.

mod columns;
mod steady;

use columns::{HZ, NOW, TIMERS, Vcpus, Vms, frequencies, of};
use guestclock_core::arch::RegId;
use guestclock_core::arch::arm64::{Behaviours, Role, Timer, one_reg_id};
use guestclock_core::checkpoint::{Checkpoint, GroupBuilder, GuestTime, Name, codec};
use guestclock_core::restore::{Late, Policy, Request};
use guestclock_core::time::{Elapsed, Frequency, GuestCount, HostCount, SourceName, Stamp, StampCount};
use guestclock_model::bank::{self, Handle, Isa, Scale};
use guestclock_model::config::Config;
use guestclock_model::managed::ManagedBank;
use guestclock_model::manual::ManualCounter;
use guestclock_model::sets::SetSaving;
use std::hint::black_box;
use std::num::NonZeroU32;
use steady::Steady;

/// Whole blocks, and a rest.
const ROWS: usize = 1000;

#[inline(never)]
fn counted_call(call: &mut dyn FnMut()) {
    call();
}

fn count(name: &str, isa: &str, mut call: impl FnMut()) {
    // Nothing is looked up or allocated for the first time in what is counted.
    call();
    counted_call(&mut call);
    println!("{name}/{isa}");
}

fn main() {
    // `cargo test --benches` runs it as well.
    if !std::env::args().any(|argument| argument == "--count") {
        return;
    }
    for isa in Isa::available() {
        kernels(isa);
    }
    let mut steady = Steady::new(10_000, 8);
    let mut steps = || {
        for _ in 0..100 {
            black_box(steady.step());
        }
    };
    steps();
    count("deadline queue, 100 steps", "any", steps);
    // All that lies between the last sample of a restore and the system call that sets the offset.
    let late = Late { anchor: HostCount(1 << 50), missed: 1 << 40, cap: u128::MAX, saved: GuestCount(1 << 45) };
    count("offset of the last sample", "any", || {
        black_box(black_box(&late).offset_at(black_box(NOW)));
    });
    live_update();
    let checkpoint = checkpoint(ROWS);
    let bytes = codec::encode(&checkpoint);
    count("checkpoint to bytes", "any", || drop(black_box(codec::encode(black_box(&checkpoint)))));
    count("checkpoint from bytes", "any", || drop(black_box(codec::decode(black_box(&bytes)))));
}

fn kernels(isa: Isa) {
    let (vcpus, vms) = (Vcpus::new(ROWS), Vms::new(ROWS));
    let (timers, offsets) = (vcpus.timers(), vcpus.offsets());
    let [mut out, mut other] = [vec![0; ROWS], vec![0; ROWS]];
    let [mut istatus, mut line] = [vec![false; ROWS * TIMERS], vec![false; ROWS * TIMERS]];
    count("counts", isa.name(), || bank::counts(isa, NOW, offsets[0], &mut out));
    count("evaluate", isa.name(), || bank::evaluate(isa, NOW, timers[0], &mut istatus[..ROWS], &mut line[..ROWS]));
    count("next deadlines of 4 timers", isa.name(), || bank::next_deadlines(isa, NOW, &timers, &mut out));
    count("both", isa.name(), || {
        bank::evaluate_and_deadlines(isa, NOW, &timers, &mut istatus, &mut line, &mut out);
    });
    count("earliest", isa.name(), || {
        black_box(bank::earliest(isa, &out));
    });
    let before: Vec<bool> = line[..ROWS].iter().enumerate().map(|(row, line)| line ^ (row % 100 == 0)).collect();
    let mut rows = vec![0; ROWS];
    count("changes", isa.name(), || {
        black_box(bank::changes(isa, &before, &line[..ROWS], &mut rows));
    });
    let scales = frequencies().map(Scale::ticks_to_ns);
    count("ticks to ns", isa.name(), || bank::convert(isa, scales[2], offsets[0], &mut out));
    let of = of(7, ROWS);
    count("ticks to ns, five frequencies", isa.name(), || {
        bank::convert_mixed(isa, &scales, &of, offsets[0], &mut out);
    });
    let rates = Vms::rates();
    count("recompute offsets", isa.name(), || {
        bank::recompute_offsets(isa, &rates, vms.saved(), &mut out, &mut other).expect("no counter went backwards");
    });
}

/// A live update of 4 000 VMs of 2 vCPUs that have opted in, with the deadline queue in use on both sides.
fn live_update() {
    let (mut here, vms) = host(4000);
    let (mut there, into) = host(4000);
    let counter = ManualCounter::new(HostCount(1 << 50), Frequency::new(HZ[1]).expect("not 0"), 0);
    let request = Request { policy: Policy::ADVANCE, elapsed: Some(Elapsed::ByCounter), ..Request::default() };
    let in_place = Request { elapsed: None, ..request };
    count("live update of 4 000 x 2, pause and resume", "any", || {
        let mut pauses = here.pause(&vms, &counter, in_place).expect("all are open");
        here.resume(&mut pauses, &counter).expect("all are paused");
        black_box(here.bank_mut().next_deadline(HostCount(1 << 50)));
    });
    let checkpoint = here.checkpoint(&vms, &counter, SetSaving::default()).expect("all are stopped");
    count("live update of 4 000 x 2, checkpoint", "any", || {
        drop(black_box(here.checkpoint(&vms, &counter, SetSaving::default())));
    });
    count("live update of 4 000 x 2, restore", "any", || {
        drop(black_box(there.restore(&checkpoint, &into, &counter, request).expect("all are alike")));
        black_box(there.bank_mut().next_deadline(HostCount(1 << 50)));
    });
}

/// VMs of two vCPUs with an offset each, every timer armed, and a deadline queue.
fn host(vms: usize) -> (ManagedBank, Vec<Handle>) {
    let frequency = Frequency::new(HZ[1]).expect("not 0");
    let mut bank = ManagedBank::new(frequency, false);
    let kernel = Behaviours::named("6.12").expect("a kernel that is known");
    let made = bank.add_many(vms, 2, frequency, kernel, Config::default(), HostCount(0)).expect("there is room");
    let offsets = columns::offsets(1, vms);
    bank.bank_mut().set_offsets(&made, &offsets).expect("all are stopped");
    let vcpus: Vec<Handle> = bank.bank_mut().vcpu_handles().collect();
    for timer in [Timer::Vtimer, Timer::Ptimer] {
        let cvals: Vec<u64> =
            columns::offsets(2 + timer.index() as u64, vcpus.len()).iter().map(|it| 1 << 51 | it).collect();
        bank.bank_mut().set_timers(timer, &vcpus, &cvals, &vec![1; vcpus.len()]).expect("all are stopped");
    }
    bank.bank_mut().next_deadline(HostCount(1 << 50));
    (bank, made)
}

/// Two VMs of half of the vCPUs each, since one has at most 512.
fn checkpoint(vcpus: usize) -> Checkpoint {
    let frequency = Frequency::new(HZ[1]).expect("not 0");
    let stamp = Stamp::unvouched(StampCount(1 << 50), frequency, SourceName::MANUAL, 0, 0);
    let of_each = u16::try_from(vcpus / 2).expect("two VMs hold as many");
    let hz = NonZeroU32::new(62_500_000).expect("not 0");
    let time = GuestTime::opted_in(of_each, hz, GuestCount(1 << 40));
    let timers = [Timer::Vtimer, Timer::Ptimer];
    let (ctls, cvals) =
        (timers.map(|timer| one_reg_id(Role::Ctl(timer))), timers.map(|timer| one_reg_id(Role::Cval(timer))));
    let column =
        |id: RegId| cvals.iter().position(|cval| *cval == id.0).map(|timer| columns::offsets(timer as u64, vcpus));
    let mut group = GroupBuilder::new(ctls.into_iter().chain(cvals).map(RegId)).expect("those of a guest");
    for (vm, rows) in [0..vcpus / 2, vcpus / 2..vcpus].into_iter().enumerate() {
        group.push(Name::Number(vm as u64), &time, |id, values| match column(id) {
            Some(cvals) => values.extend_from_slice(&cvals[rows.clone()]),
            None => values.resize(values.len() + rows.len(), 1),
        });
    }
    Checkpoint::of(stamp, [group]).expect("two VMs of two names")
}
