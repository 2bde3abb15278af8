//! Guest memory that tells a guest of its time, and the effects of a counter's jump on a Linux guest.

pub mod linux;
pub mod pvtime;
pub mod vmclock;

pub use linux::{CpuQuota, InSteps, Limit, LinuxGuest, Reached, SUGGESTED_INTERVAL_NS, SUGGESTED_STEP_NS, Softdog};
