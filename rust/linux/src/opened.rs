//! A counter that was opened.

use guestclock_core::time::{Frequency, HostCount};

/// A counter's frequency, and the function that reads it.
pub(crate) type Opened = (Frequency, fn() -> HostCount);
