#![doc = include_str!("../README.md")]
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]
extern crate alloc;

// The rooms, in order: a room imports only from those above it.
#[doc(hidden)]
pub mod sync;

pub mod time;

pub mod arch;

pub mod checkpoint;

pub mod guest;

pub mod restore;

pub mod drive;

pub use arch::Abilities;
pub use checkpoint::{Checkpoint, GuestTime, codec};
pub use drive::{Backend, Condition, Restore, RestoreError, Saving, capture};
pub use restore::{Diagnostic, Plan, Policy, Refusal, Report, Request, Target, plan};
pub use time::{Counter, Frequency, GuestCount, HostCount, Offset, Stamp, SyncBound};
