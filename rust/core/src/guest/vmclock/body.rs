//! Content of the page after `seq_count`: markers, flags and the clock equation.

use crate::guest::vmclock::equation::{Equation, Period, Time};
use crate::guest::vmclock::layout::{
    NOTIFICATION_PRESENT, PERIOD_ESTERROR_VALID, PERIOD_MAXERROR_VALID, Status, TAI_OFFSET_VALID, TIME_ESTERROR_VALID,
    TIME_MAXERROR_VALID, TIME_MONOTONIC, VM_GEN_COUNTER_PRESENT, WORDS,
};
use crate::time::GuestCount;

/// Flags that a new equation sets or clears.
const OF_AN_EQUATION: u64 =
    PERIOD_ESTERROR_VALID | PERIOD_MAXERROR_VALID | TIME_ESTERROR_VALID | TIME_MAXERROR_VALID | TIME_MONOTONIC;

/// Content of the page after `seq_count`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Body(pub(super) [u64; WORDS]);

/// Words of the body that hold more than one field, or that this module reads.
const DISRUPTION_MARKER: usize = 0;

const FLAGS: usize = 1;

const STATUS_TO_SHIFT: usize = 2;

const COUNTER_VALUE: usize = 3;

const PERIOD: usize = 4;

const PERIOD_ESTERROR: usize = 5;

const PERIOD_MAXERROR: usize = 6;

const TIME_SEC: usize = 7;

const TIME_FRAC: usize = 8;

const TIME_ESTERROR: usize = 9;

const TIME_MAXERROR: usize = 10;

const VM_GENERATION: usize = 11;

impl Body {
    /// A page without a clock. `notification` tells the guest to expect an interrupt after each update.
    #[must_use]
    pub fn new(disruption_marker: u64, vm_generation: u64, notification: bool) -> Self {
        let mut words = [0; WORDS];
        words[DISRUPTION_MARKER] = disruption_marker;
        words[VM_GENERATION] = vm_generation;
        words[FLAGS] = VM_GEN_COUNTER_PRESENT | if notification { NOTIFICATION_PRESENT } else { 0 };
        Self(words)
    }

    /// The marker that changes when the counter is disrupted.
    #[must_use]
    pub const fn disruption_marker(&self) -> u64 {
        self.0[DISRUPTION_MARKER]
    }

    /// The counter that changes when the guest is a copy.
    #[must_use]
    pub const fn vm_generation(&self) -> u64 {
        self.0[VM_GENERATION]
    }

    /// The flags.
    #[must_use]
    pub const fn flags(&self) -> u64 {
        self.0[FLAGS]
    }

    /// The status; a code that this module doesn't write counts as unreliable.
    #[must_use]
    pub fn status(&self) -> Status {
        let [_, _, code, ..] = self.0[STATUS_TO_SHIFT].to_le_bytes();
        Status::ALL.into_iter().find(|status| status.code() == code).unwrap_or(Status::Unreliable)
    }

    /// The count at which the page's clock begins; `None` if the page has no clock.
    #[must_use]
    pub fn counter_value(&self) -> Option<GuestCount> {
        self.status().is_valid().then_some(GuestCount(self.0[COUNTER_VALUE]))
    }

    /// The time that a guest computes at this count, as Linux's driver does; `None` if the page has no clock.
    #[must_use]
    pub fn time_at(&self, count: GuestCount) -> Option<Time> {
        let [.., shift] = self.0[STATUS_TO_SHIFT].to_le_bytes();
        let period = Period { frac: self.0[PERIOD], shift };
        let time = Time { sec: self.0[TIME_SEC], frac: self.0[TIME_FRAC] };
        if !self.status().is_valid() {
            return None;
        }
        time.plus(period.times(count.since(GuestCount(self.0[COUNTER_VALUE]))))
    }

    /// Changes the marker: the counter was disrupted.
    pub fn disrupt(&mut self) {
        self.0[DISRUPTION_MARKER] = self.0[DISRUPTION_MARKER].wrapping_add(1);
    }

    /// Changes the generation: the guest is a copy.
    pub fn new_generation(&mut self) {
        self.0[VM_GENERATION] = self.0[VM_GENERATION].wrapping_add(1);
    }

    /// Gives the page UTC - TAI in seconds, which stays until an equation has another.
    ///
    /// From 7.3 on, Linux's driver decides at its probe, for the device's life, whether a page of UTC has a clock: by
    /// TAI_OFFSET_VALID ("ptp: ptp_vmclock: return TAI not UTC", 562f59fe3291). So a page has it from its creation on.
    pub fn set_utc_minus_tai(&mut self, seconds: i16) {
        let [.., status, clock, _, _, leap, shift] = self.0[STATUS_TO_SHIFT].to_le_bytes();
        let [low, high] = seconds.to_le_bytes();
        self.0[STATUS_TO_SHIFT] = u64::from_le_bytes([0, 0, status, clock, low, high, leap, shift]);
        self.0[FLAGS] |= TAI_OFFSET_VALID;
    }

    /// Writes the word that begins with the status, and leaves UTC - TAI in it.
    ///
    /// The smearing hint stays 0: this time isn't smeared, and the other clocks around the guest aren't known here.
    fn set_status(&mut self, status: Status, leap_indicator: u8, shift: u8) {
        let [_, _, _, _, low, high, _, _] = self.0[STATUS_TO_SHIFT].to_le_bytes();
        self.0[STATUS_TO_SHIFT] = u64::from_le_bytes([0, 0, status.code(), 0, low, high, leap_indicator, shift]);
    }

    /// Removes the clock, and leaves UTC - TAI. The whole equation is 0, so that a guest that ignores the status reads a clock that stands
    /// still in 1970, not one that is nearly right.
    pub fn without_clock(&mut self, status: Status) {
        self.0[FLAGS] &= !OF_AN_EQUATION;
        self.set_status(status, 0, 0);
        self.0[COUNTER_VALUE..=TIME_MAXERROR].fill(0);
    }

    /// Moves the equation along with a counter that went forward by `ticks` while real time didn't. The clock shows the
    /// same time as before, with the same error. The counter was disrupted all the same.
    pub fn step(&mut self, ticks: u64) {
        self.disrupt();
        if self.status().is_valid() {
            self.0[COUNTER_VALUE] = self.0[COUNTER_VALUE].wrapping_add(ticks);
        }
    }

    /// Gives the page this clock.
    pub fn with_clock(&mut self, equation: &Equation, status: Status, monotonic: bool) {
        let mut flags = self.0[FLAGS] & !OF_AN_EQUATION;
        let mut claim = |value: Option<u64>, flag| {
            flags |= if value.is_some() { flag } else { 0 };
            value.unwrap_or(0)
        };
        self.0[PERIOD_ESTERROR] = claim(equation.rate_est_error, PERIOD_ESTERROR_VALID);
        self.0[PERIOD_MAXERROR] = claim(equation.rate_max_error, PERIOD_MAXERROR_VALID);
        self.0[TIME_ESTERROR] = claim(equation.est_error_ns, TIME_ESTERROR_VALID);
        self.0[TIME_MAXERROR] = claim(equation.max_error_ns, TIME_MAXERROR_VALID);
        self.0[FLAGS] = flags | if monotonic { TIME_MONOTONIC } else { 0 };
        self.set_status(status, equation.leap_indicator, equation.period.shift);
        if let Some(seconds) = equation.utc_minus_tai_s {
            self.set_utc_minus_tai(seconds);
        }
        self.0[COUNTER_VALUE] = equation.counter_value.0;
        self.0[PERIOD] = equation.period.frac;
        self.0[TIME_SEC] = equation.time.sec;
        self.0[TIME_FRAC] = equation.time.frac;
    }
}
