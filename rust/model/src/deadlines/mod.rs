//! Deadline queue: the timers of many guests, those that are due, and the next deadline.

pub(crate) mod lateness;
pub(crate) mod min_tree;
pub(crate) mod queue;
pub(crate) mod timers;

pub use lateness::Lateness;
pub use queue::{DeadlineQueue, Fired, NotTaken, QueueError};
