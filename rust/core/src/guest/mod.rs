//! Guest memory that tells a guest of its time, and what a Linux guest makes of a jump of its counter.

pub mod linux;
pub mod pvtime;
pub mod vmclock;

pub use linux::{Limit, Reached, limits};
