//! Saves, restores and pauses on a VM's primitive calls: the trait of those calls, retry, and faults on purpose.

pub mod backend;
pub mod capture;
pub mod faults;
pub mod measure;
pub mod operations;
pub mod restore;

pub use backend::{Backend, patiently};
pub use capture::{Timers, capture};
pub use faults::{Call, Fault, Faults, Faulty, FaultyError, Kind, On};
pub use operations::{GateError, Gated, OpenPause, OpenRestore, Saving};
pub use restore::{Condition, Restore, RestoreError, set_counters};
