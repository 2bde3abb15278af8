//! Linux, for guestclock: the host's counters, its clock's state, its identity, and the cross-timestamp of them all.
//!
//! - [`counter::HostCounter`] and [`monotonic::MonotonicCounter`] implement [`guestclock_core::time::Counter`].
//! - [`cross`] pairs a count with the wall clock and bounds their distance.
//! - [`clock_state`] is what the kernel knows about the wall clock; [`host_id`] is which installation and boot this is.
//! - [`mod@file`] writes a checkpoint whole or not at all.
//! - [`alarm`] is a descriptor that becomes readable when it is time to look at a counter.
//! - [`pages`] stores into guest memory what tells a guest of its time.
//! - [`kvm`] and [`read_cost`] are for `guestclock doctor`: facts for people, on which no time depends.
//!
//! ```
//! use guestclock_core::time::Counter;
//! use guestclock_linux::counter::{HostCounter, Source};
//!
//! let counter = HostCounter::new(Source::Auto)?;
//! let before = counter.count();
//! let here = counter.cross_timestamp();
//! let after = counter.count();
//!
//! assert!(before <= here.count && here.count <= after);
//! println!("{} read {} within {} ns of the wall clock", here.source, here.count.0, here.width_ns);
//! # Ok::<(), guestclock_linux::counter::CounterError>(())
//! ```
//!
//! This is the only crate of guestclock with unsafe code: one block for each system call or instruction that has no
//! safe form. What runs on other systems is guestclock-core, which reads no clock.
#![deny(missing_docs, missing_debug_implementations, unsafe_code, unsafe_op_in_unsafe_fn)]
#![deny(clippy::multiple_unsafe_ops_per_block)]

// Counts are made from a 64-bit `timespec`, and the KVM bindings are generated for these architectures alone.
#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "aarch64", target_arch = "riscv64", all(target_arch = "x86_64", target_pointer_width = "64"))
)))]
compile_error!(
    "guestclock-linux reads Linux's clocks and KVM, on aarch64, riscv64 and x86-64; elsewhere use guestclock-core alone"
);

pub mod alarm;
mod clock;
pub mod clock_state;
#[cfg(target_arch = "aarch64")]
mod cntvct;
pub mod counter;
pub mod cross;
pub mod file;
pub mod host_id;
pub mod kvm;
pub mod monotonic;
pub mod pages;
pub mod read_cost;
#[cfg(target_arch = "x86_64")]
mod tsc;
