#![doc = include_str!("../README.md")]
//!
//! # Modules
//! - [`counter`] and [`monotonic`] are the host's counters, as [`Counter`](guestclock_core::time::Counter)s.
//! - [`stamp`] pairs a count with the wall clock and bounds the time between them.
//! - [`time_namespace`] has the offsets that are taken off a stamp.
//! - [`vouched`] has a bound of the wall clock that ages.
//! - [`clock_state`] has the kernel's knowledge of the wall clock; [`host_id`] names the installation and the boot.
//! - [`mod@file`] writes a checkpoint whole or not at all.
//! - [`alarm`] is a descriptor that becomes readable when it is time to look at a counter.
//! - [`pages`] stores the time into the pages of a guest's memory.
//! - [`kvm`] has the clocks of a VM on KVM, and probes /dev/kvm.
//! - [`read_cost`] measures a read of a counter.
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
pub mod clock;
pub mod clock_state;
#[cfg(target_arch = "aarch64")]
mod cntvct;
pub mod counter;
pub mod file;
pub mod host_id;
pub mod kvm;
pub mod monotonic;
mod opened;
pub mod pages;
pub mod read_cost;
pub mod stamp;
pub mod time_namespace;
#[cfg(target_arch = "x86_64")]
mod tsc;
pub mod vouched;

pub use alarm::{Alarm, AlarmError};
pub use clock_state::ClockState;
pub use counter::{CounterError, HostCounter, Source};
pub use kvm::error::KvmError;
pub use kvm::fds::Fds;
pub use kvm::ioctls::Ioctls;
pub use kvm::number::FdNumber;
pub use kvm::vm::{KvmOptions, KvmVm};
pub use monotonic::MonotonicCounter;
pub use pages::{Memory, PageError, StolenTime, VmClock};
pub use time_namespace::TimeNamespace;
pub use vouched::Vouched;
