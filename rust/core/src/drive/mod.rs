//! Saves, restores and pauses over a VM's primitive calls: the trait of those calls, retry, and faults on purpose.

pub mod backend;
pub mod capture;
pub mod faults;
pub mod measure;
pub mod operations;
pub mod restore;

pub use backend::{Backend, retry_busy};
pub use capture::{capture, capture_registers};
pub use faults::{Call, CallKind, Fault, Faults, Faulty, FaultyError, On};
pub use operations::{OpenPause, OpenRestore, Operated, OperationError, Saving};
pub use restore::{Cause, Condition, Restore, RestoreError, set_counters};
