//! The time stamp counter and kvmclock as KVM gives them to a guest on x86-64.

pub mod registers;
pub mod saved;

pub use registers::{IA32_TSC_ADJUST, IA32_TSC_DEADLINE, KVMCLOCK, TSC_OFFSET, name, tsc_offset};
pub use saved::SavedClocks;
