//! Atomics from `core`, or from loom, under which `tests/loom.rs` runs the same code in every order that the memory
//! model allows.

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence};
