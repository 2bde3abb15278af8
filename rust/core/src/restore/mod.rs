//! Policy -> plan -> report: the guest time that a restore gives, computed without touching anything.

pub(crate) mod advice;
pub mod diagnostics;
pub mod display;
pub mod late;
pub mod plan;
pub mod planning;
pub mod plans;
pub mod policy;
pub mod refusal;
pub mod report;
pub mod run_state;
pub mod saved;
pub mod state;
pub mod target;
pub mod timer_status;
pub mod words;

pub use diagnostics::{Diagnostic, Side};
pub use late::Late;
pub use plan::{Behind, Method, Outcome, Plan};
pub use planning::{plan, same_topology};
pub use plans::{ManyFacts, Origins, Plans, VmFacts};
pub use policy::{AtOnce, Deadlines, MAX_RATE_ERROR_PPB, Policy, Repay, Request, Rest, Views};
pub use refusal::{NeedsCounterOffset, NotThen, Refusal, Skew};
pub use report::{Released, Report, Writes, Written};
pub use run_state::{DueBacklog, Hold, RunState, State, Step};
pub use saved::Saved;
pub use state::PlanState;
pub use target::Target;
pub use timer_status::{LatchMismatch, TimerStatus};
pub use words::{Plain, Words};
