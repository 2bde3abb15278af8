//! vCPUs and their timers as columns, and what is computed over them.
//!
//! A kernel is a loop over columns, a row each vCPU or VM, and gives row by row just what the scalar law gives: the
//! rules themselves stay in [`counter`](guestclock_core::time::count), [`timer`](guestclock_core::arch::arm64::timer)
//! and [`plan`](guestclock_core::restore::plan). Columns are plain `u64` and `bool`, as an array library lays them out.
//! Kernels allocate nothing, and write only to what they are given to write to. All columns of a call have as many
//! rows: a kernel panics where they don't, before it writes anything.
//!
//! Rows are computed without branches, so that the compiler makes vector code of the loops (docs/performance.md).
//! Each loop is compiled for several instruction sets; a call says on which of them, an [`Isa`], it is to run.
//! Comparisons are KVM's, of 64 bits: a narrow counter ([`Width`](guestclock_core::arch::arm64::Width)) has no kernel.

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
