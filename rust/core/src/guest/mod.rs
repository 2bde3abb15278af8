//! Guest memory that tells a guest of its time, and the effects of a counter's jump on a Linux guest.

pub mod linux;
pub mod pvtime;
pub mod vmclock;

pub use linux::{Limit, Reached, limits};
