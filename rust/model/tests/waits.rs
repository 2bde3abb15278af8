//! Threads that wait for a bank: how they do is the caller's choice.
#![cfg(not(loom))]

use guestclock_core::time::Frequency;
use guestclock_model::bank::Bank;
use guestclock_model::locked::LockedBank;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

static WAITS: AtomicUsize = AtomicUsize::new(0);

fn counted(block: &(dyn Fn() + Sync)) {
    WAITS.fetch_add(1, Ordering::SeqCst);
    block();
}

#[test]
fn a_thread_waits_for_the_bank_as_it_was_told_to() {
    let bank = Arc::new(LockedBank::new(Frequency::new(62_500_000).unwrap(), false));
    bank.on_wait(counted);
    assert_eq!((bank.look(Bank::len), bank.try_ask(|bank| bank.len())), (0, Some(0)));
    assert_eq!(WAITS.load(Ordering::SeqCst), 0, "nobody has it");

    let (entered, held) = mpsc::channel();
    let (release, until) = mpsc::channel::<()>();
    let holder = {
        let bank = Arc::clone(&bank);
        thread::spawn(move || {
            bank.with(|_| {
                entered.send(()).unwrap();
                until.recv().unwrap();
            });
        })
    };
    held.recv().unwrap();
    assert_eq!(bank.try_ask(|bank| bank.len()), None);
    let waiter = {
        let bank = Arc::clone(&bank);
        thread::spawn(move || bank.look(Bank::len))
    };
    // Only so that a failure ends.
    let end = Instant::now() + Duration::from_mins(1);
    while WAITS.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < end, "it waits otherwise");
        thread::yield_now();
    }
    assert!(!waiter.is_finished());
    release.send(()).unwrap();
    assert_eq!(waiter.join().unwrap(), 0);
    holder.join().unwrap();
    assert_eq!(bank.try_ask(|bank| bank.len()), Some(0));
}
