//! The kernel's knowledge of its wall clock: TAI offset, synchronisation, leap second (adjtimex(2)).
#![expect(unsafe_code, reason = "adjtimex fills in a structure through a pointer")]

use core::mem;
use guestclock_core::time::Leap;
use std::io;

/// The wall clock's state, as the kernel and the daemon that disciplines it (chronyd, ntpd) believe it to be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub struct ClockState {
    /// TAI - UTC in seconds; `None` where no daemon has set it, which the kernel shows as 0.
    pub tai_offset_s: Option<i32>,
    /// True if the clock is synchronised: neither STA_UNSYNC nor TIME_ERROR. `None` where the kernel couldn't be asked.
    pub synchronized: Option<bool>,
    /// The maximum error (`maxerror`) in nanoseconds; `None` unless synchronised, when it means nothing.
    pub max_error_ns: Option<u64>,
    /// Excess of the counter's rate over its nominal frequency, in parts per billion, by the kernel's correction
    /// (`freq` and `tick`); `None` unless synchronised.
    pub rate_ppb: Option<i64>,
    /// The leap second that is announced, in progress or just over. The kernel hides it while there is an error.
    pub leap: Leap,
}

impl ClockState {
    /// The state of which nothing is known.
    pub const UNKNOWN: Self =
        Self { tai_offset_s: None, synchronized: None, max_error_ns: None, rate_ppb: None, leap: Leap::Unknown };

    /// Reads the state. Needs no privilege; a sandbox may forbid it nevertheless (EPERM).
    pub fn read() -> io::Result<Self> {
        // SAFETY: timex is made of integers alone, for which zero is a value.
        let mut timex: libc::timex = unsafe { mem::zeroed() };
        // SAFETY: `timex` is valid for reads and writes, and with `modes` 0 the call changes nothing else.
        let state = unsafe { libc::adjtimex(&raw mut timex) };
        if state == -1 { Err(io::Error::last_os_error()) } else { Ok(Self::decode(state, &timex)) }
    }

    fn decode(state: libc::c_int, timex: &libc::timex) -> Self {
        let synchronized = state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0;
        Self {
            tai_offset_s: (timex.tai != 0).then_some(timex.tai),
            synchronized: Some(synchronized),
            max_error_ns: u64::try_from(timex.maxerror)
                .ok()
                .and_then(|us| us.checked_mul(1000))
                .filter(|_| synchronized),
            rate_ppb: synchronized.then(|| rate_ppb(timex.freq, timex.tick)),
            leap: match state {
                libc::TIME_OK => Leap::None,
                libc::TIME_INS => Leap::Insert,
                libc::TIME_DEL => Leap::Delete,
                libc::TIME_OOP => Leap::InProgress,
                libc::TIME_WAIT => Leap::Passed,
                _ => Leap::Unknown,
            },
        }
    }
}

/// The counter's rate, from the kernel's correction: a clock that has to be sped up comes from a slow counter.
///
/// `freq` is in 2^-16 ppm, `tick` in microseconds for each 10 000 of the counter's (adjtimex(2), at USER_HZ 100). With
/// the correction c, real time is the counter's times 1 + c, so the counter's rate is 1 / (1 + c). Rounded towards
/// zero.
fn rate_ppb(freq: i64, tick: i64) -> i64 {
    const PPB: i128 = 1_000_000_000;
    const NOMINAL_TICK: i128 = 10_000;
    let faster = i128::from(freq) * 1000 / (1 << 16) + (i128::from(tick) - NOMINAL_TICK) * PPB / NOMINAL_TICK;
    // The kernel allows a tick from 9 000 to 11 000, so the divisor is far from 0; the `max` is for values that it
    // never gives.
    i64::try_from(-faster * PPB / (PPB + faster).max(1)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timex(status: libc::c_int, maxerror: libc::c_long, tai: libc::c_int) -> libc::timex {
        // SAFETY: timex is made of integers alone, for which zero is a value.
        let zeroed: libc::timex = unsafe { mem::zeroed() };
        libc::timex { status, maxerror, tai, tick: 10_000, ..zeroed }
    }

    #[test]
    fn synchronised_host() {
        assert_eq!(
            ClockState::decode(libc::TIME_OK, &timex(libc::STA_PLL, 1_234, 37)),
            ClockState {
                tai_offset_s: Some(37),
                synchronized: Some(true),
                max_error_ns: Some(1_234_000),
                rate_ppb: Some(0),
                leap: Leap::None,
            }
        );
    }

    #[test]
    fn a_slow_counter_is_made_up_for() {
        // 100 ppm more on the clock: the counter is slow by a ten-thousandth of what it would be at that speed.
        assert_eq!(rate_ppb(100 << 16, 10_000), -99_990);
        assert_eq!(rate_ppb(-100 << 16, 10_000), 100_010);
        assert_eq!(rate_ppb(0, 10_001), -99_990);
        assert_eq!(rate_ppb(100 << 16, 9_999), 0);
        assert_eq!(rate_ppb(i64::MAX, i64::MIN), 0);
    }

    #[test]
    fn an_unsynchronised_host_claims_nothing() {
        let expected = ClockState { synchronized: Some(false), ..ClockState::UNKNOWN };
        assert_eq!(ClockState::decode(libc::TIME_ERROR, &timex(libc::STA_UNSYNC, 16_000_000, 0)), expected);
        // Each of the two signs suffices.
        assert_eq!(ClockState::decode(libc::TIME_ERROR, &timex(0, 500, 0)), expected);
        let unsync = ClockState::decode(libc::TIME_OK, &timex(libc::STA_UNSYNC, 500, 0));
        assert_eq!((unsync.synchronized, unsync.max_error_ns), (Some(false), None));
    }

    #[test]
    fn every_leap_state_has_its_name() {
        for (state, leap) in [
            (libc::TIME_OK, Leap::None),
            (libc::TIME_INS, Leap::Insert),
            (libc::TIME_DEL, Leap::Delete),
            (libc::TIME_OOP, Leap::InProgress),
            (libc::TIME_WAIT, Leap::Passed),
            (libc::TIME_ERROR, Leap::Unknown),
            (99, Leap::Unknown),
        ] {
            assert_eq!(ClockState::decode(state, &timex(0, 0, 37)).leap, leap);
        }
    }

    #[test]
    fn a_negative_error_is_none() {
        assert_eq!(ClockState::decode(libc::TIME_OK, &timex(0, -1, 0)).max_error_ns, None);
    }

    #[test]
    fn the_kernel_answers_or_refuses() {
        match ClockState::read() {
            Ok(state) => {
                assert!(state.synchronized.is_some());
                assert!(state.synchronized == Some(true) || state.max_error_ns.is_none());
            }
            Err(error) => assert!(error.raw_os_error().is_some()),
        }
    }
}
