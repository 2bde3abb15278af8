//! A guest's saved time as plain data, its bytes, and register lists of other VMMs as such data.

pub mod backlog;
pub mod codec;
pub mod columns;
pub mod register_lists;
pub mod set;
pub mod vm;

pub use backlog::Backlog;
pub use columns::{Column, CtlColumn, MAX_OTHER_REGS, RegisterColumn, TimerColumns, Unknown, UnknownKey};
pub use register_lists::{InterchangeError, Known};
pub use set::{CheckpointSet, MAX_GROUPS, VmGroup};
pub use vm::Checkpoint;
