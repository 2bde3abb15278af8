//! The semantics of guest time, for guestclock: counters, timers, the model VM, checkpoints and restore plans.
//!
//! No I/O, no clock and no Python: time comes in as an argument or through the [`Counter`](counter::Counter) trait, so a
//! VMM written in Rust can use this crate alone. `no_std` + `alloc` without the default feature `std`.
//!
//! Data flows one way: counter -> checkpoint -> plan -> report.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]
extern crate alloc;

pub mod backend;
pub mod bank;
pub mod capture;
pub mod checkpoint;
pub mod counter;
mod display;
#[cfg(feature = "std")]
pub mod live;
pub mod manual;
pub mod measure;
#[cfg(feature = "std")]
mod mirror;
pub mod plan;
pub mod restore;
mod sync;
pub mod sysreg;
pub mod timer;
pub mod vm;
pub mod wire;
