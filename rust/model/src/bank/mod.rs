//! vCPUs and their timers as columns, and the computations over them.
//!
//! A *column loop* computes a row for each vCPU or VM, with exactly the result of the scalar rule. The rules themselves
//! are in [`count`](guestclock_core::time::count), [`timer`](guestclock_core::arch::arm64::timer) and
//! [`plan`](mod@guestclock_core::restore::plan). Columns are plain `u64` and `bool`, as an array library lays them out.
//! Column loops allocate nothing, and write only to their outputs. All columns of a call must have the same length:
//! otherwise the call panics, before it writes anything.
//!
//! Rows are computed without branches, so that the compiler vectorises the loops (docs/performance.md). Each loop is
//! compiled for several instruction sets, and the caller chooses one with an [`Isa`]. Comparisons are KVM's, of 64
//! bits: no column loop handles a narrow counter ([`Width`](guestclock_core::arch::arm64::Width)).

pub(crate) mod batch;
pub(crate) mod block;
pub(crate) mod counts;
pub(crate) mod deadlines;
pub(crate) mod handle;
pub(crate) mod isa;
pub(crate) mod lines;
pub(crate) mod recompute;
pub(crate) mod rows;
pub(crate) mod scale;
pub(crate) mod selection;
pub(crate) mod timer_block;
pub(crate) mod timer_queue;
pub(crate) mod vms;

pub use batch::{Change, Expired};
pub use counts::{both_counts, counts};
pub use deadlines::{deadlines_by_vm, earliest, evaluate_and_deadlines, next_deadlines};
pub use handle::{Handle, MAX_VMS};
pub use isa::{Isa, NoSuchIsa};
pub use lines::{changes, evaluate};
pub use recompute::{Added, Rate, Saved, WentBackwards, recompute_offsets};
pub use scale::{Scale, convert, convert_mixed};
pub use selection::Selection;
pub use timer_block::TimerSlices;
pub use vms::{Bank, BankError, MAX_ROWS};
