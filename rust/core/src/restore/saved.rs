//! The guest time that a plan starts from.

use crate::checkpoint::{GuestTime, Reading, SavedVm};
use crate::time::Stamp;

/// The guest time that a plan starts from: a VM of a checkpoint, or a VM that is paused in place.
#[derive(Clone, Debug)]
pub struct Saved<'a> {
    /// The instant from which time counts as passed, by the counter at the guest's frequency.
    pub stamp: Stamp,
    /// The guest time, with the counts that the registers belong to.
    pub time: GuestTime,
    /// Ticks from the stop of the last vCPU to the instant of `time`; 0 where the stop isn't known.
    pub hidden_ticks: u64,
    /// Ticks from the instant of `stamp` to that of `time`: 0 where they are one, negative where `time` is the earlier.
    pub later_ticks: i64,
    /// The VM with its registers; `None` in place, where they stay.
    pub vm: Option<SavedVm<'a>>,
}

impl<'a> From<&SavedVm<'a>> for Saved<'a> {
    fn from(vm: &SavedVm<'a>) -> Self {
        let (stamp, time) = (vm.stamp(), vm.time());
        // Where nobody knows the host's clocks at the registers' instant, those of another instant may be known.
        let (stamp, later_ticks) = match time.reading.filter(|_| stamp.is_of_unknown_host()) {
            Some(Reading { count, realtime_ns, width_ns }) => {
                let realtime_ns = i64::try_from(realtime_ns).unwrap_or(i64::MAX);
                (Stamp { realtime_ns, width_ns, ..stamp }, time.timeline.since(count).cast_signed())
            }
            None => (stamp, 0),
        };
        Self { stamp, time, hidden_ticks: vm.hidden_ticks(), later_ticks, vm: Some(vm.clone()) }
    }
}

impl Saved<'_> {
    /// The guest time of a VM that stays where it is.
    #[must_use]
    pub const fn in_place(stamp: Stamp, time: GuestTime) -> Self {
        Self { stamp, time, hidden_ticks: 0, later_ticks: 0, vm: None }
    }
}
