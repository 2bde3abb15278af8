//! The Arm generic timer as KVM gives it to a guest: registers, timers, traps, interrupts, and differences between
//! kernels.

pub(crate) mod arithmetic;
pub mod ctl;
pub mod el2;
pub mod interrupts;
pub mod quirks;
pub mod register_set;
pub mod registers;
pub mod timer;
pub mod traps;
pub mod view;
pub mod wake;

pub use ctl::{CTL_ENABLE, CTL_IMASK, CTL_ISTATUS};
pub use el2::El2;
pub use interrupts::{IrqError, IrqIds};
pub use quirks::{Behaviours, CtlReadback, KERNELS, ListOrder};
pub use register_set::{Registers, count_reg};
pub use registers::{Encoding, Role, SYSREGS, Sysreg, is_timers, is_unknown_timers, one_reg_id};
pub use timer::{Timer, TimerState, Width, view_of};
pub use traps::{Access, Controls, El};
pub use view::{Offsets, View};
