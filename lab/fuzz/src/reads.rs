//! Reads of a live VM's counters without a lock, beside a thread that moves its offset and its host's counter: `make reads`.
//!
//! The guest's count shows both: the number of changes of the offset in its upper half, the host's count in the lower. The
//! offset is changed first, then the count. So a read has a lower half that the counter had during the call, an upper
//! half that is as large or one more, and never less than the read before it.

use guestclock_core::arch::arm64::{Behaviours, View};
use guestclock_core::time::{Counter, Frequency, HostCount, Offset};
use guestclock_fuzz::dice::asked;
use guestclock_model::{Config, LockedVm, ManualCounter};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Bit from which the guest's count shows the changes of the offset.
const CHANGES: u32 = 32;

/// Counters that are read, each by a thread of its own.
const VIEWS: [View; 2] = [View::Virtual, View::Physical];

fn main() {
    let (runs, mut dice) = asked();
    let counter = ManualCounter::new(HostCount(0), Frequency::new(1_000_000_000).expect("not 0"), 0);
    let kernel = Behaviours::named("6.12").expect("the model has it");
    let vm = LockedVm::new(counter, kernel, Config::default(), 1).expect("the model has such VMs");
    vm.set_counter_offset(Offset(0), 0).expect("the vCPU is stopped");
    let over = AtomicBool::new(false);
    let each = runs.div_ceil(VIEWS.len() as u64);
    let changes = thread::scope(|scope| {
        let (vm, over) = (&vm, &over);
        let readers = VIEWS.map(|view| scope.spawn(move || reads(vm, view, each)));
        let writer = scope.spawn(move || {
            let mut changes = 0_u64;
            while !over.load(Ordering::Relaxed) && changes >> CHANGES == 0 {
                changes += 1;
                vm.set_counter_offset(Offset((changes << CHANGES).wrapping_neg()), 0).expect("the vCPU is stopped");
                vm.counter().advance(1);
                // Changes that follow each other at once, and those with reads between them.
                for _ in 0..dice.below(256) {
                    std::hint::spin_loop();
                }
            }
            changes
        });
        let read = readers.map(thread::ScopedJoinHandle::join);
        over.store(true, Ordering::Relaxed);
        assert!(read.into_iter().all(|read| read.is_ok()), "a reader saw what never was");
        writer.join().expect("the writer ends")
    });
    println!("count: racing reads of a VM = {}", each * VIEWS.len() as u64);
    println!("count: changes beside them = {changes}");
}

/// Reads a counter so many times, and panics where a read isn't one of its moments, or an earlier one than before.
fn reads(vm: &LockedVm<ManualCounter>, view: View, times: u64) {
    let mut last = 0;
    for _ in 0..times {
        let begin = vm.counter().count().0;
        let read = vm.count(0, view, None).expect("the vCPU is there").0;
        let end = vm.counter().count().0;
        let (changes, count) = (read >> CHANGES, read & ((1 << CHANGES) - 1));
        assert!((begin..=end).contains(&count), "{count} isn't from {begin} to {end}");
        assert!((count..=count + 1).contains(&changes), "the offset of change {changes} at {count}");
        assert!(read >= last, "{read:#x} after {last:#x}");
        last = read;
    }
}
