//! The clock equation: real time by the guest's counter, `time + (count - counter_value) * period`, and its error
//! bounds.
//!
//! All values are integers, as in the page: times are in seconds and 2^-64 of a second, and a period is `frac / 2^(64 +
//! shift)` seconds.

use crate::guest::vmclock::layout::TimeType;
use crate::time::{GuestCount, Leap, NS_PER_S, Stamp};
use thiserror::Error;

/// Largest slew of a clock by Linux, in parts per billion (kernel/time/ntp.c, MAXFREQ).
const MAX_SLEW_PPB: u128 = 500_000;

const PPB: u128 = 1_000_000_000;

/// Reason why there is no equation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum EquationError {
    /// Nobody vouches for the wall clock.
    #[error(
        "nobody says that the wall clock is synchronised: update the page without a clock, or declare it if you know it \
         to be"
    )]
    Unsynchronized,
    /// UTC is ambiguous now.
    #[error("a leap second is being inserted, and CLOCK_REALTIME shows it twice: take the equation a second later")]
    InLeapSecond,
    /// TAI was requested, and the kernel doesn't know TAI - UTC.
    #[error(
        "the kernel doesn't know TAI - UTC, so there is no TAI to give: give UTC, or let chrony or ptp4l \
         set it"
    )]
    TaiUnknown,
    /// TAI - UTC doesn't fit in the page.
    #[error("TAI - UTC of {seconds} s doesn't fit in the page's 16 bits")]
    TaiOutOfRange {
        /// The offset.
        seconds: i32,
    },
    /// The wall clock is before 1970, when the page's time begins.
    #[error("the wall clock reads {realtime_ns} ns, and the page has no time before 1970")]
    BeforeEpoch {
        /// The wall clock.
        realtime_ns: i64,
    },
    /// The period is a second or more.
    #[error("a period of a second or more doesn't fit in the page: {ns} ns in {ticks} ticks")]
    Period {
        /// The length of the window.
        ns: u64,
        /// The ticks of the window.
        ticks: u64,
    },
    /// The two ends of the window aren't readings of one counter.
    #[error(
        "the rate can't be measured between two counters, of {since_hz} Hz ({since} ticks) and {here_hz} Hz \
         ({here} ticks)"
    )]
    OtherCounter {
        /// The frequency at the window's start.
        since_hz: u64,
        /// The count at the window's start.
        since: u64,
        /// The frequency at the window's end.
        here_hz: u64,
        /// The count at the window's end.
        here: u64,
    },
    /// The wall clock was set in the window.
    #[error(
        "{ns} ns of the wall clock passed in {ticks} ticks of {hz} Hz: more than 500 ppm apart, so it was stepped, or \
         isn't that counter's: measure the rate over a window without a step"
    )]
    Stepped {
        /// Time that passed on the wall clock.
        ns: i128,
        /// Ticks that passed on the counter.
        ticks: u64,
        /// The counter's frequency.
        hz: u64,
    },
}

/// Seconds since 1970, and 2^-64 of a second.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Time {
    /// Whole seconds.
    pub sec: u64,
    /// The rest, in 2^-64 of a second.
    pub frac: u64,
}

impl Time {
    /// Converts nanoseconds, rounded up to 2^-64 of a second, so that rounding down to nanoseconds gives the same
    /// again.
    #[must_use]
    pub const fn from_ns(ns: u64) -> Self {
        let frac = (((ns % NS_PER_S) as u128) << 64).div_ceil(NS_PER_S as u128);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "below 2^64, since the remainder is a whole one below the divisor"
        )]
        let frac = frac as u64;
        Self { sec: ns / NS_PER_S, frac }
    }

    /// The rest of the second in whole nanoseconds, rounded down, as in `tv_nsec`.
    #[must_use]
    pub const fn nanoseconds(self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "below 10^9")]
        let ns = ((self.frac as u128 * NS_PER_S as u128) >> 64) as u32;
        ns
    }

    /// The time `units` of 2^-64 of a second later; `None` if it is out of range.
    #[must_use]
    pub const fn plus(self, units: u128) -> Option<Self> {
        let now = (self.sec as u128) << 64 | self.frac as u128;
        match now.checked_add(units) {
            #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
            Some(later) => Some(Self { sec: (later >> 64) as u64, frac: later as u64 }),
            None => None,
        }
    }
}

/// Duration of a tick: `frac / 2^(64 + shift)` seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Period {
    /// The mantissa: its top bit is set, so that it has 64 significant bits.
    pub frac: u64,
    /// The exponent.
    pub shift: u8,
}

impl Period {
    /// Returns the period of a counter that counts `ticks` in `ns` nanoseconds; `None` for a second or more. It is
    /// rounded to the nearest, half up, and so within 2^-64 of itself: a clock by it is off by less than a nanosecond
    /// in 500 years.
    #[must_use]
    pub fn new(ns: u64, ticks: u64) -> Option<Self> {
        let whole = u128::from(ticks) * u128::from(NS_PER_S);
        let mut rest = u128::from(ns);
        if ns == 0 || rest >= whole {
            return None;
        }
        // Division bit by bit: the first 64 bits are those after the binary point, then as many more follow as there
        // are leading zeros. There are at most 94 of those, and `rest` stays below 2^94, so neither overflows.
        let (mut frac, mut bits) = (0_u64, 0_u8);
        while bits < 64 || frac >> 63 == 0 {
            rest <<= 1;
            frac = frac << 1 | u64::from(rest >= whole);
            rest -= if rest >= whole { whole } else { 0 };
            bits += 1;
        }
        let shift = bits - 64;
        if rest << 1 < whole {
            return Some(Self { frac, shift });
        }
        match frac.checked_add(1) {
            Some(frac) => Some(Self { frac, shift }),
            None => Some(Self { frac: 1 << 63, shift: shift.checked_sub(1)? }),
        }
    }

    /// Returns the duration of `ticks` ticks, in 2^-64 of a second, rounded down as in Linux's driver.
    #[must_use]
    pub fn times(self, ticks: u64) -> u128 {
        (u128::from(self.frac) * u128::from(ticks)).checked_shr(self.shift.into()).unwrap_or(0)
    }

    /// Returns `ppb` parts per billion of the period, in units of `frac`, rounded up; the result saturates.
    #[must_use]
    pub fn part(self, ppb: u64) -> u64 {
        u64::try_from((u128::from(self.frac) * u128::from(ppb)).div_ceil(PPB)).unwrap_or(u64::MAX)
    }
}

/// Errors of the clocks that somebody vouches for: the caller, chrony, ClockBound. Without a number there is no claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Declared {
    /// Probable error of the wall clock, in nanoseconds.
    pub est_error_ns: Option<u64>,
    /// Maximum error of the wall clock, in nanoseconds.
    pub max_error_ns: Option<u64>,
    /// Probable error of the counter's given rate, in parts per billion, including its drift.
    pub rate_est_error_ppb: Option<u64>,
    /// Maximum error of that rate, in parts per billion.
    pub rate_max_error_ppb: Option<u64>,
    /// Declares the wall clock synchronised, or not, whatever the stamp says.
    pub synchronized: Option<bool>,
}

/// Real time by the guest's counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Equation {
    /// UTC or TAI.
    pub time_type: TimeType,
    /// The guest's CNTVCT_EL0 at `time`.
    pub counter_value: GuestCount,
    /// The time at `counter_value`.
    pub time: Time,
    /// Duration of a tick.
    pub period: Period,
    /// Probable error of `time`, in nanoseconds.
    pub est_error_ns: Option<u64>,
    /// Maximum error of `time`, in nanoseconds.
    pub max_error_ns: Option<u64>,
    /// Probable error of the period, in units of its `frac`.
    pub rate_est_error: Option<u64>,
    /// Maximum error of the period, in units of its `frac`.
    pub rate_max_error: Option<u64>,
    /// UTC - TAI in seconds, which is negative: the sign that Linux's driver reads. `None` if it isn't known.
    pub utc_minus_tai_s: Option<i16>,
    /// VMCLOCK_LEAP_*.
    pub leap_indicator: u8,
}

impl Equation {
    /// Returns the equation of a guest that reads `cntvct` when the host reads `here.count`.
    ///
    /// The rate is measured between `since` and `here`, two readings of one counter between which the wall clock ran
    /// undisturbed; without `since` it is the counter's nominal rate. The declared errors of the wall clock have to
    /// hold at both ends, and the width of each bracket is added to them. If `here` has a vouched bound, it supplies
    /// the error of the time that isn't declared.
    pub fn new(
        time_type: TimeType,
        here: &Stamp,
        cntvct: GuestCount,
        since: Option<&Stamp>,
        declared: Declared,
    ) -> Result<Self, EquationError> {
        let vouched = here.sync;
        let declared = Declared {
            max_error_ns: declared.max_error_ns.or(vouched.map(|sync| sync.error_ns())),
            // A vouched bound implies a synchronised clock.
            synchronized: declared.synchronized.or(vouched.map(|_| true)),
            ..declared
        };
        if declared.synchronized.or(here.synchronized) != Some(true) {
            return Err(EquationError::Unsynchronized);
        }
        if here.leap == Leap::InProgress {
            return Err(EquationError::InLeapSecond);
        }
        let realtime_ns = here.realtime_ns;
        // Who vouches for the clock may know TAI better than the kernel.
        let tai_offset_s = vouched.and_then(|sync| sync.tai_offset_s).or(here.tai_offset_s);
        let ahead_s = match time_type {
            TimeType::Utc => 0,
            TimeType::Tai => tai_offset_s.ok_or(EquationError::TaiUnknown)?,
        };
        let ns = i128::from(realtime_ns) + i128::from(ahead_s) * i128::from(NS_PER_S);
        let ns = u64::try_from(ns).map_err(|_| EquationError::BeforeEpoch { realtime_ns })?;
        let utc_minus_tai_s = tai_offset_s.map(utc_minus_tai).transpose()?;
        let window = Window::new(since, here)?;
        let period =
            Period::new(window.ns, window.ticks).ok_or(EquationError::Period { ns: window.ns, ticks: window.ticks })?;
        let time_error = |declared: Option<u64>| {
            // The rounding of the time is less than a nanosecond.
            declared.map(|ns| ns.saturating_add(here.width_ns).saturating_add(1))
        };
        let rate_error = |rate: Option<u64>, time: Option<u64>| {
            // One unit more for the rounding of the period.
            Some(period.part(window.error_ppb(time)?.saturating_add(rate?)).saturating_add(1))
        };
        Ok(Self {
            time_type,
            counter_value: cntvct,
            time: Time::from_ns(ns),
            period,
            est_error_ns: time_error(declared.est_error_ns),
            max_error_ns: time_error(declared.max_error_ns),
            rate_est_error: rate_error(declared.rate_est_error_ppb, declared.est_error_ns),
            rate_max_error: rate_error(declared.rate_max_error_ppb, declared.max_error_ns),
            utc_minus_tai_s,
            leap_indicator: match here.leap {
                Leap::Insert => 1,
                Leap::Delete => 2,
                // After a leap second the kernel doesn't say which kind it was.
                Leap::None | Leap::InProgress | Leap::Passed | Leap::Unknown => 0,
            },
        })
    }

    /// The time at a count that isn't before `counter_value`; `None` if it is out of range.
    #[must_use]
    pub fn time_at(&self, count: GuestCount) -> Option<Time> {
        self.time.plus(self.period.times(count.since(self.counter_value)))
    }

    /// Maximum error of the time when the clock is `age` ticks old, in nanoseconds, rounded up; `None` if nobody
    /// vouched for the time or for the rate.
    ///
    /// UAPI.13, "Time error calculation": the time's error, and the period's for each tick. One nanosecond is added for
    /// the reader's rounding.
    #[must_use]
    pub fn max_error_ns_at(&self, age: u64) -> Option<u128> {
        let rate = Period { frac: self.rate_max_error?, ..self.period }.times(age) + 1;
        let (seconds, frac) = (rate >> 64, rate & u128::from(u64::MAX));
        let ns = seconds * u128::from(NS_PER_S) + ((frac * u128::from(NS_PER_S)) >> 64) + 1;
        Some(u128::from(self.max_error_ns?) + ns + 1)
    }
}

/// UTC - TAI as the page has it, of TAI - UTC in seconds.
pub fn utc_minus_tai(tai_offset_s: i32) -> Result<i16, EquationError> {
    let there = tai_offset_s.checked_neg().and_then(|seconds| i16::try_from(seconds).ok());
    there.ok_or(EquationError::TaiOutOfRange { seconds: tai_offset_s })
}

/// Window over which the rate is measured: `ns` nanoseconds in `ticks` ticks.
struct Window {
    ns: u64,
    ticks: u64,
    /// Error of `ns` by the brackets, in nanoseconds; `None` for the nominal rate.
    width_ns: Option<u64>,
}

impl Window {
    fn new(since: Option<&Stamp>, here: &Stamp) -> Result<Self, EquationError> {
        let hz = here.frequency.hz();
        let Some(since) = since else { return Ok(Self { ns: NS_PER_S, ticks: hz, width_ns: None }) };
        if (since.source, since.frequency) != (here.source, here.frequency) || !here.count.is_after(since.count) {
            return Err(EquationError::OtherCounter {
                since_hz: since.frequency.hz(),
                since: since.count.0,
                here_hz: hz,
                here: here.count.0,
            });
        }
        let ticks = here.count.since(since.count);
        // UTC's difference doesn't count a leap second between them.
        let leapt_s = match (since.tai_offset_s, here.tai_offset_s) {
            (Some(before), Some(after)) => i128::from(after) - i128::from(before),
            _ => 0,
        };
        let ns = i128::from(here.realtime_ns) - i128::from(since.realtime_ns) + leapt_s * i128::from(NS_PER_S);
        let stepped = EquationError::Stepped { ns, ticks, hz };
        let passed = u64::try_from(ns).ok().filter(|passed| *passed > 0).ok_or(stepped)?;
        let width_ns = since.width_ns.saturating_add(here.width_ns);
        let nominal = here.frequency.ticks_to_ns(ticks);
        if u128::from(passed).abs_diff(nominal) > nominal * MAX_SLEW_PPB / PPB + u128::from(width_ns) {
            return Err(stepped);
        }
        Ok(Self { ns: passed, ticks, width_ns: Some(width_ns) })
    }

    /// Returns the error of the rate by the errors of the times at both ends, in parts per billion, rounded up.
    fn error_ppb(&self, time_error_ns: Option<u64>) -> Option<u64> {
        let Some(width_ns) = self.width_ns else { return Some(0) };
        let ns = u128::from(time_error_ns?) * 2 + u128::from(width_ns);
        u64::try_from((ns * PPB).div_ceil(u128::from(self.ns))).ok()
    }
}

/// Returns the arguments of an in-guest agent's `clock_settime(CLOCK_REALTIME)` when the guest's counter reads `at`:
/// the host's wall clock then, at the counter's nominal rate, rounded down to the nanosecond. `cntvct` is the guest's
/// counter when the host reads `here.count`; `at` may lie before or after it.
///
/// `None` for a time before 1970, which Linux refuses to set, or past the end of `realtime_ns`.
#[must_use]
pub fn realtime_at(here: &Stamp, cntvct: GuestCount, at: GuestCount) -> Option<(u64, u32)> {
    let (ticks, back) = (at.since(cntvct), cntvct.since(at));
    let moved = if ticks <= back {
        i128::try_from(here.frequency.ticks_to_ns(ticks)).ok()?
    } else {
        -i128::try_from(here.frequency.ticks_to_ns_ceil(back)).ok()?
    };
    let ns = u64::try_from(i64::try_from(i128::from(here.realtime_ns) + moved).ok()?).ok()?;
    u32::try_from(ns % NS_PER_S).ok().map(|rest| (ns / NS_PER_S, rest))
}
