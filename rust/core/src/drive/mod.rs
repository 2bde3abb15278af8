//! Saves, restores and pauses as machines, and a VM's primitive calls to drive them by: the trait of those calls, retry,
//! and what stands around them, a trace or faults on purpose.

pub mod around;
pub mod backend;
pub mod call;
pub mod capture;
pub mod driver;
pub mod faults;
pub mod machine;
pub mod many;
pub mod measure;
pub mod operations;
pub mod restore;
pub mod trace;
pub mod verify;
#[doc(hidden)]
pub mod x86_64;

pub use around::{Answer, Around, Surrounded};
pub use backend::{Backend, Facts, await_stopped, retry_busy};
pub use call::{Call, CallKind, Verb};
pub use capture::{capture, capture_registers};
pub use driver::{carry_out, drive};
pub use faults::{Fault, Faults, FaultyError, On};
pub use machine::{Block, BlockColumn, Bracket, Done, Failed, Io, Machine, Op, SavedRegister, What};
pub use many::{OfOne, Restored, pausing_many, planning_many, restoring_many};
pub use operations::{OpenPause, OpenRestore, Operated, OperationError, Saving};
pub use restore::{Cause, Condition, Restore, RestoreError, set_counters};
pub use trace::{CallTotals, Errno, Trace, TracedCall};
pub use verify::{Expected, Mismatch, Source, Verified};
