//! The semantics of guest time, for guestclock: counters, timers, the model VM, checkpoints and restore plans.
//!
//! No I/O, no clock and no Python: time comes in as an argument or through the [`Counter`](counter::Counter) trait, so a
//! VMM written in Rust can use this crate alone. `no_std` + `alloc` without the default feature `std`.
//!
//! Data flows one way: counter -> checkpoint -> plan -> report.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]
extern crate alloc;

pub mod access;
pub mod backend;
pub mod bank;
pub mod capture;
pub mod checkpoint;
pub mod counter;
mod display;
pub mod irq;
#[cfg(feature = "std")]
pub mod live;
pub mod manual;
pub mod measure;
pub mod plan;
pub mod restore;
pub mod sysreg;
pub mod timer;
pub mod vm;
pub mod wake;
pub mod wire;
mod word;
