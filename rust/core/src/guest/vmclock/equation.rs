//! The clock equation: real time by the guest's counter, `time + (count - counter_value) * period`, and how far it may
//! be off.
//!
//! Integers throughout. Times are seconds and 2^-64 of a second, a period is `frac / 2^(64 + shift)` seconds, as the
//! page has them.

use crate::guest::vmclock::layout::TimeType;
use crate::time::{GuestCount, Leap, NS_PER_S, Stamp};
use thiserror::Error;

/// The most by which Linux slews a clock, in parts per billion: kernel/time/ntp.c, MAXFREQ.
const MAX_SLEW_PPB: u128 = 500_000;

const PPB: u128 = 1_000_000_000;

/// Why there is no equation.
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
    /// TAI was asked for.
    #[error(
        "the kernel doesn't know TAI - UTC, so there is no TAI to give: give UTC, or let chrony or ptp4l \
         set it"
    )]
    TaiUnknown,
    /// TAI - UTC doesn't fit.
    #[error("TAI - UTC of {seconds} s doesn't fit in the page's 16 bits")]
    TaiOutOfRange {
        /// The offset.
        seconds: i32,
    },
    /// The page's time begins in 1970.
    #[error("the wall clock reads {realtime_ns} ns, and the page has no time before 1970")]
    BeforeEpoch {
        /// The wall clock.
        realtime_ns: i64,
    },
    /// A period has to be below a second.
    #[error("a period of a second or more doesn't fit in the page: {ns} ns in {ticks} ticks")]
    Period {
        /// The length of the window.
        ns: u64,
        /// Its ticks.
        ticks: u64,
    },
    /// The window is no window of one counter.
    #[error(
        "the rate can't be measured between two counters, of {since_hz} Hz ({since} ticks) and {here_hz} Hz \
         ({here} ticks)"
    )]
    OtherCounter {
        /// The frequency at the window's start.
        since_hz: u64,
        /// The count there.
        since: u64,
        /// The frequency at its end.
        here_hz: u64,
        /// The count there.
        here: u64,
    },
    /// The wall clock was set in the window.
    #[error(
        "{ns} ns of the wall clock passed in {ticks} ticks of {hz} Hz: more than 500 ppm apart, so it was stepped, or \
         isn't that counter's: measure the rate over a window without a step"
    )]
    Stepped {
        /// The wall clock's.
        ns: i128,
        /// The counter's.
        ticks: u64,
        /// Its frequency.
        hz: u64,
    },
}

/// Seconds since 1970, and 2^-64 of a second.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Time {
    /// Whole seconds.
    pub sec: u64,
    /// The rest.
    pub frac: u64,
}

impl Time {
    /// From nanoseconds, rounded up to 2^-64 of a second, so that rounding down to nanoseconds gives the same again.
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

    /// Whole nanoseconds, rounded down, of the seconds' rest: what `tv_nsec` is.
    #[must_use]
    pub const fn nanoseconds(self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "below 10^9")]
        let ns = ((self.frac as u128 * NS_PER_S as u128) >> 64) as u32;
        ns
    }

    /// So many 2^-64 of a second later; `None` past the end of its range.
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

/// How long a tick lasts: `frac / 2^(64 + shift)` seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Period {
    /// The mantissa: its top bit is set, so that it has 64 significant bits.
    pub frac: u64,
    /// The exponent.
    pub shift: u8,
}

impl Period {
    /// That of a counter which counts `ticks` in `ns` nanoseconds, rounded to the nearest, half up: within 2^-64 of
    /// itself, so that a clock by it is off by less than a nanosecond in 500 years. `None` for a second or more.
    #[must_use]
    pub fn new(ns: u64, ticks: u64) -> Option<Self> {
        let whole = u128::from(ticks) * u128::from(NS_PER_S);
        let mut rest = u128::from(ns);
        if ns == 0 || rest >= whole {
            return None;
        }
        // Division bit by bit: the first 64 are those after the binary point, then as many more as there are zeros
        // ahead. There are at most 94 of those, and `rest` stays below 2^94, so neither overflows.
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

    /// How long `ticks` of it last, in 2^-64 of a second, rounded down: as Linux's driver reckons.
    #[must_use]
    pub fn times(self, ticks: u64) -> u128 {
        (u128::from(self.frac) * u128::from(ticks)).checked_shr(self.shift.into()).unwrap_or(0)
    }

    /// `ppb` parts per billion of it, in units of `frac`, rounded up; held at the end of its range.
    #[must_use]
    pub fn part(self, ppb: u64) -> u64 {
        u64::try_from((u128::from(self.frac) * u128::from(ppb)).div_ceil(PPB)).unwrap_or(u64::MAX)
    }
}

/// What somebody vouches for: the caller, chrony, ClockBound. Without a number there is no claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Declared {
    /// How far the wall clock probably is from the truth, in nanoseconds.
    pub est_error_ns: Option<u64>,
    /// How far it is at most.
    pub max_error_ns: Option<u64>,
    /// How far the counter's rate probably is, or goes, from the one that is given, in parts per billion.
    pub rate_est_error_ppb: Option<u64>,
    /// How far at most.
    pub rate_max_error_ppb: Option<u64>,
    /// That the wall clock is synchronised, or isn't, whatever the stamp says.
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
    /// How long a tick lasts.
    pub period: Period,
    /// How far `time` probably is off, in nanoseconds.
    pub est_error_ns: Option<u64>,
    /// How far at most.
    pub max_error_ns: Option<u64>,
    /// How far the period probably is off, in units of its `frac`.
    pub rate_est_error: Option<u64>,
    /// How far at most.
    pub rate_max_error: Option<u64>,
    /// UTC - TAI in seconds, which is below 0: the sign that Linux's driver reads. `None` where it isn't known.
    pub utc_minus_tai_s: Option<i16>,
    /// VMCLOCK_LEAP_*.
    pub leap_indicator: u8,
}

impl Equation {
    /// The equation of a guest that reads `cntvct` when the host reads `here.count`.
    ///
    /// The rate is measured between `since` and `here`, two readings of one counter with the wall clock running
    /// undisturbed between them; without `since` it is the counter's nominal one. What is declared of the wall clock
    /// has to hold at both ends. The width of each bracket is added to what is declared. Where `here` has somebody to
    /// vouch for it, what isn't declared of the time is taken from there.
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
            // Who vouches for a bound says that it is synchronised.
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
        let ahead_s = match time_type {
            TimeType::Utc => 0,
            TimeType::Tai => here.tai_offset_s.ok_or(EquationError::TaiUnknown)?,
        };
        let ns = i128::from(realtime_ns) + i128::from(ahead_s) * i128::from(NS_PER_S);
        let ns = u64::try_from(ns).map_err(|_| EquationError::BeforeEpoch { realtime_ns })?;
        let utc_minus_tai_s = match here.tai_offset_s {
            None => None,
            Some(seconds) => {
                let there = seconds.checked_neg().and_then(|seconds| i16::try_from(seconds).ok());
                Some(there.ok_or(EquationError::TaiOutOfRange { seconds })?)
            }
        };
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
                // After one the kernel doesn't say which it was.
                Leap::None | Leap::InProgress | Leap::Passed | Leap::Unknown => 0,
            },
        })
    }

    /// The time at a count that isn't before `counter_value`; `None` past the end of its range.
    #[must_use]
    pub fn time_at(&self, count: GuestCount) -> Option<Time> {
        self.time.plus(self.period.times(count.since(self.counter_value)))
    }

    /// How far the time may be off when the clock is `age` ticks old, in nanoseconds, rounded up; `None` where nobody
    /// vouched for the time or for the rate.
    ///
    /// UAPI.13, "Time error calculation": the time's error, and the period's for each tick. One more for the reader's
    /// rounding.
    #[must_use]
    pub fn max_error_ns_at(&self, age: u64) -> Option<u128> {
        let rate = Period { frac: self.rate_max_error?, ..self.period }.times(age) + 1;
        let (seconds, frac) = (rate >> 64, rate & u128::from(u64::MAX));
        let ns = seconds * u128::from(NS_PER_S) + ((frac * u128::from(NS_PER_S)) >> 64) + 1;
        Some(u128::from(self.max_error_ns?) + ns + 1)
    }
}

/// What the rate is taken from: so many nanoseconds in so many ticks.
struct Window {
    ns: u64,
    ticks: u64,
    /// How far the wall clock's part may be off by the brackets, in nanoseconds; `None` for the nominal rate.
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
        // A leap second between them is no time of UTC's.
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

    /// How far the rate may be off by the errors of the times at both ends, in parts per billion, rounded up.
    fn error_ppb(&self, time_error_ns: Option<u64>) -> Option<u64> {
        let Some(width_ns) = self.width_ns else { return Some(0) };
        let ns = u128::from(time_error_ns?) * 2 + u128::from(width_ns);
        u64::try_from((ns * PPB).div_ceil(u128::from(self.ns))).ok()
    }
}

/// What an agent in the guest passes to `clock_settime(CLOCK_REALTIME)` when the guest's counter reads `at`: the host's
/// wall clock then, at the counter's nominal rate, rounded down to the nanosecond. `cntvct` is what the guest reads
/// when the host reads `here.count`; `at` may lie before or after it.
///
/// `None` for a time before 1970, to which Linux sets no clock, or past the end of `realtime_ns`.
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
