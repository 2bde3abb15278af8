//! Saved guest time of any number of VMs as plain data, its bytes, and register lists of other VMMs as such data.

pub mod backlog;
pub mod builder;
pub mod codec;
pub mod column;
pub mod fields;
pub mod group;
pub mod guest_time;
pub mod join;
pub mod names;
pub mod register_lists;
pub mod sparse;
pub mod vms;

pub use backlog::Backlog;
pub use builder::{BuildError, GroupBuilder, Name};
pub use column::Column;
pub use group::{Group, Held, MAX_OTHER_REGS, RegisterColumn, VmColumn};
pub use guest_time::{GuestTime, GuestTimes, Interrupts, MAX_VM_VCPUS, Reading};
pub use join::JoinError;
pub use names::{MAX_NAME_BYTES, Names, VmName};
pub use register_lists::{Ids, InterchangeError, Known};
pub use sparse::Sparse;
pub use vms::{
    Checkpoint, MAX_GROUPS, MAX_VCPUS, NotOneVm, SavedRows, SavedTimer, SavedVm, Unknown, UnknownKey, Values,
};
