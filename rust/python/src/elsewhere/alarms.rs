//! The registry of alarms where there is none: nobody waits for a deadline or a counter to be moved.

use guestclock_core::time::HostCount;

/// No alarm.
#[derive(Default)]
pub(crate) struct Alarms;

impl Alarms {
    pub(crate) fn ring(&self) {}

    pub(crate) fn changed(&self, _next_deadline: impl Fn(HostCount) -> u64) {}
}

pub(crate) fn forked() {}
