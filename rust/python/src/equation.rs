//! Real time by a guest's counter: as a vmclock page's equation, and for an agent that sets the guest's clock.

use crate::arguments::{Int, plain};
use crate::errors::{IntoPyErr, OrRaise};
use crate::records::{self, AnyStamp, named};
use crate::words;
use guestclock_core::guest::vmclock::{Declared, Equation, EquationError, TimeType, realtime_at};
use guestclock_core::time::{GuestCount, Stamp};
use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

impl IntoPyErr for EquationError {
    #[cold]
    fn into_pyerr(self) -> PyErr {
        PyValueError::new_err(words::equation_error(&self))
    }
}

pub(crate) const TIME_TYPES: [(&str, TimeType); 2] = [("utc", TimeType::Utc), ("tai", TimeType::Tai)];

pub(crate) fn time_type_name(time_type: TimeType) -> &'static str {
    match time_type {
        TimeType::Utc => "utc",
        TimeType::Tai => "tai",
    }
}

/// Real time by the guest's counter: `time + (CNTVCT_EL0 - counter_value) * period`, with the claimed bounds of its
/// errors.
///
/// `here` is a stamp of the host's counter. `cntvct` is the guest's CNTVCT_EL0 at the instant of the stamp:
/// `vm.cntvct(0, now=here)`. The rate is measured since the earlier stamp `since` of the same
/// counter, or nominal without one. The caller vouches for the errors, in nanoseconds and parts per billion; they are
/// claimed together with the widths of the brackets, and without a number there is no claim. `max_error_ns` and
/// `est_error_ns` have to hold at both ends of the window; the errors of the rate say how far the counter may go from
/// the measured, or nominal, rate.
///
/// ValueError where there is no honest equation: the wall clock isn't known to be synchronised (`synchronized=True` or
/// False overrides the stamp), a leap second is being inserted, TAI isn't known and `time_type` is "tai", the wall
/// clock was stepped in the window, the counter is no faster than 1 Hz. A smeared clock can't be detected: don't make
/// an equation from one.
#[pyclass(frozen, eq, name = "ClockEquation", module = "guestclock.guest")]
pub(crate) struct PyClockEquation {
    pub(crate) equation: Equation,
    /// The arguments besides the count and the type of time, of which a pickle makes it again.
    here: Stamp,
    since: Option<Stamp>,
    declared: Declared,
}

/// Equal equations tell the same time, whatever they were made of.
impl PartialEq for PyClockEquation {
    fn eq(&self, other: &Self) -> bool {
        self.equation == other.equation
    }
}

#[pymethods]
impl PyClockEquation {
    #[new]
    #[pyo3(signature = (
        here, *, cntvct, since=None, time_type="utc", est_error_ns=None, max_error_ns=None, rate_est_error_ppb=None,
        rate_max_error_ppb=None, synchronized=None
    ))]
    fn new(
        here: AnyStamp,
        cntvct: Int<u64>,
        since: Option<AnyStamp>,
        time_type: &str,
        est_error_ns: Option<Int<u64>>,
        max_error_ns: Option<Int<u64>>,
        rate_est_error_ppb: Option<Int<u64>>,
        rate_max_error_ppb: Option<Int<u64>>,
        synchronized: Option<bool>,
    ) -> PyResult<Self> {
        let time_type = named("time_type", time_type, &TIME_TYPES)?;
        let since = since.map(|since| since.stamp("since")).transpose()?;
        let [est_error_ns, max_error_ns, rate_est_error_ppb, rate_max_error_ppb] =
            [est_error_ns, max_error_ns, rate_est_error_ppb, rate_max_error_ppb].map(plain);
        let declared = Declared { est_error_ns, max_error_ns, rate_est_error_ppb, rate_max_error_ppb, synchronized };
        let here = here.stamp("here")?;
        let equation = Equation::new(time_type, &here, GuestCount(cntvct.0), since.as_ref(), declared).or_raise()?;
        Ok(Self { equation, here, since, declared })
    }

    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<((Bound<'py, PyAny>,), Bound<'py, PyDict>)> {
        let Declared { est_error_ns, max_error_ns, rate_est_error_ppb, rate_max_error_ppb, synchronized } =
            self.declared;
        let keywords = PyDict::new(py);
        keywords.set_item("cntvct", self.counter_value())?;
        keywords.set_item("since", self.since.map(|since| records::stamp(py, &since)).transpose()?)?;
        keywords.set_item("time_type", self.time_type())?;
        keywords.set_item("est_error_ns", est_error_ns)?;
        keywords.set_item("max_error_ns", max_error_ns)?;
        keywords.set_item("rate_est_error_ppb", rate_est_error_ppb)?;
        keywords.set_item("rate_max_error_ppb", rate_max_error_ppb)?;
        keywords.set_item("synchronized", synchronized)?;
        Ok(((records::stamp(py, &self.here)?,), keywords))
    }

    /// Time scale of the equation: "utc" or "tai".
    #[getter]
    fn time_type(&self) -> &'static str {
        time_type_name(self.equation.time_type)
    }

    /// The guest's CNTVCT_EL0 at the equation's time, in ticks.
    #[getter]
    fn counter_value(&self) -> u64 {
        self.equation.counter_value.0
    }

    /// Duration of a tick, as `(frac, shift)`: `frac / 2**(64 + shift)` seconds, rounded to the nearest, half up.
    #[getter]
    fn period(&self) -> (u64, u8) {
        (self.equation.period.frac, self.equation.period.shift)
    }

    /// The time at a count that isn't before `counter_value`, in nanoseconds since 1970, rounded down.
    ///
    /// OverflowError past the end of 64 bits of seconds.
    fn time_ns(&self, count: Int<u64>) -> PyResult<u128> {
        let time = self.equation.time_at(GuestCount(count.0));
        let time = time
            .ok_or_else(|| PyOverflowError::new_err(format!("the time at {} is past the end of its range", count.0)))?;
        Ok(u128::from(time.sec) * 1_000_000_000 + u128::from(time.nanoseconds()))
    }

    /// The most by which the time may be off when the clock is `age_ticks` old, in nanoseconds; None where there is no
    /// claim.
    fn max_error_ns_at(&self, age_ticks: Int<u64>) -> Option<u128> {
        self.equation.max_error_ns_at(age_ticks.0)
    }

    fn __repr__(&self) -> String {
        let (frac, shift) = self.period();
        format!(
            "<ClockEquation {} from {}, {frac:#x} / 2**{} s a tick>",
            self.time_type(),
            self.counter_value(),
            64 + u16::from(shift)
        )
    }
}

/// Time for `clock_settime(CLOCK_REALTIME)` that an agent in the guest sets when its CNTVCT_EL0 reads `at`: `(tv_sec,
/// tv_nsec)`.
///
/// `here` is a stamp of the host's counter, and `cntvct` the guest's CNTVCT_EL0 at the instant of the stamp
/// (`vm.cntvct(0, now=here)`); `at` may lie on either side: `report.cntvct` for the instant of the
/// release. Between the two counts the counter's nominal rate is taken, in integers, rounded down to the nanosecond.
///
/// ValueError for a time that CLOCK_REALTIME can't be set to: before 1970, or past 64 bits of nanoseconds.
#[pyfunction]
#[pyo3(signature = (here, *, cntvct, at))]
pub(crate) fn clock_settime(here: AnyStamp, cntvct: Int<u64>, at: Int<u64>) -> PyResult<(u64, u32)> {
    let time = realtime_at(&here.stamp("here")?, GuestCount(cntvct.0), GuestCount(at.0));
    time.ok_or_else(|| {
        PyValueError::new_err(format!("CLOCK_REALTIME has no such time as it would be when the guest reads {}", at.0))
    })
}
