//! vCPUs and their timers as columns, and what is computed over them.
//!
//! A kernel is a loop over columns, a row each vCPU or VM, and gives row by row just what the scalar law gives: the
//! rules themselves stay in [`counter`](crate::counter), [`timer`](crate::timer) and [`plan`](crate::plan). Columns are
//! plain `u64` and `bool`, as an array library lays them out. Kernels allocate nothing, and write only to what they are
//! given to write to. All columns of a call have as many rows: a kernel panics where they don't, before it writes
//! anything.
//!
//! Rows are computed without branches, so that the compiler makes vector code of the loops (docs/performance.md).
//! Each loop is compiled for several instruction sets; a call says on which of them, an [`Isa`], it is to run.
//! Comparisons are KVM's, of 64 bits: a narrow counter ([`Width`](crate::timer::Width)) has no kernel.

mod armed;
mod batch;
mod block;
mod counts;
mod deadlines;
mod gated;
mod handle;
mod isa;
mod lines;
mod recompute;
pub(crate) mod rows;
mod scale;
mod selection;
mod sets;
pub(crate) mod vms;

pub use batch::{Change, Expired};
pub use counts::{both_counts, counts};
pub use deadlines::{TimerSlices, deadlines_by_vm, earliest, evaluate_and_deadlines, next_deadlines};
pub use gated::GatedBank;
pub use handle::{Handle, MAX_VMS};
pub use isa::{Isa, NoSuchIsa};
pub use lines::{changes, evaluate};
pub use recompute::{Added, Rate, Saved, WentBackwards, recompute_offsets};
pub use scale::{Scale, convert, convert_mixed};
pub use selection::Selection;
pub use sets::{OpenPauses, SetError, SetReport, handle_named, own_names};
pub use vms::{Bank, BankError, MAX_ROWS};

use crate::counter::HostCount;

/// "No deadline", where a count is expected. A real deadline there is moved one tick earlier.
pub const NO_DEADLINE: u64 = u64::MAX;

/// The host count that many ticks from `now`: `now` itself for none to wait, [`NO_DEADLINE`] for never. One past the
/// counter's last count is held just below that.
#[must_use]
pub fn deadline(now: HostCount, ticks: Option<u64>) -> u64 {
    match ticks {
        Some(ticks) => now.0.saturating_add(ticks).min(NO_DEADLINE - 1),
        None => NO_DEADLINE,
    }
}
