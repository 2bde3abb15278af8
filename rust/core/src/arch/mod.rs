//! Facts of an architecture's guest clocks: registers, timers, and a host's capabilities.
//!
//! [`arm64`] is the first architecture; another one is another folder beside it.

pub mod arm64;
pub mod capabilities;
pub mod reg_id;
#[doc(hidden)]
pub mod x86_64;

pub use capabilities::Abilities;
pub use reg_id::RegId;
