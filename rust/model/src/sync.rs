//! Mutex from `std`, or from loom, under which `tests/loom.rs` runs the same code in every order that the memory model
//! allows. Atomics come from the core's module of this kind.

#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use std::sync::{Mutex, MutexGuard};
