#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod sync;

pub mod config;
pub mod error;

pub mod deadlines;

pub mod bank;

pub mod vm;

pub mod backend;

pub mod managed;
mod many;

pub mod sets;

pub mod published;

pub mod manual;
pub mod scaled;

pub mod locked;

pub use bank::{Bank, BankError, Handle};
pub use config::{Config, Origin};
pub use deadlines::DeadlineQueue;
pub use error::VmError;
pub use guestclock_core::Saving;
pub use locked::{LockedBank, LockedVm};
pub use manual::ManualCounter;
pub use scaled::ScaledCounter;
pub use vm::ModelVm;
