//! Facts of an architecture's guest clocks: its registers, its timers, and what a host can do for them.
//!
//! [`arm64`] is the first; another architecture is another folder beside it.

pub mod arm64;
pub mod capabilities;

pub use capabilities::Abilities;
