//! A queue of timers over many guests: which are due, and when the next one is.

pub(crate) mod lateness;
pub(crate) mod min_tree;
pub(crate) mod queue;
pub(crate) mod timers;

pub use lateness::Lateness;
pub use queue::{DeadlineQueue, Fired, QueueError};
