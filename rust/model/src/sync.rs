//! The lock, from `std`, or from loom, under which `tests/loom.rs` runs the same code in every order that the memory
//! model allows. Atomics come from the core's own such module.

#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use std::sync::{Mutex, MutexGuard};
