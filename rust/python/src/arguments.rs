//! Arguments that several classes take: counts, 64-bit numbers, and the facts of a save.

use crate::records::AnySyncBound;
use guestclock_core::checkpoint::VmName;
use guestclock_core::drive::Saving;
use guestclock_core::time::HostCount;
use pyo3::exceptions::{PyIndexError, PyOverflowError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyBool;

/// The facts of a save that the caller knows.
pub(crate) fn saving(
    name: &VmName,
    stopped_at: Option<u64>,
    sync: Option<AnySyncBound>,
    vmclock_address: Option<u64>,
    stolen_time: Option<Vec<Option<u64>>>,
) -> PyResult<Saving> {
    Ok(Saving {
        name: name.clone(),
        stopped_at: count(stopped_at),
        sync: sync.map(AnySyncBound::sync_bound).transpose()?,
        vmclock_address,
        stolen_time: stolen_time.unwrap_or_default(),
    })
}

/// A count of the host that the caller injects.
pub(crate) fn count(now: Option<u64>) -> Option<HostCount> {
    now.map(HostCount)
}

/// Number of a vCPU. A negative one is an IndexError, as one past the end is.
pub(crate) struct Vcpu(pub(crate) usize);

impl<'py> FromPyObject<'_, 'py> for Vcpu {
    type Error = PyErr;

    #[inline]
    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        object.extract().map(Self).map_err(|error: PyErr| {
            if error.is_instance_of::<PyOverflowError>(object.py()) {
                return PyIndexError::new_err(format!("there is no vCPU {}: they count from 0", object.to_owned()));
            }
            error
        })
    }
}

/// Any integer from -2^63 up to 2^64, reduced modulo 2^64.
pub(crate) fn modular(value: &Bound<'_, PyAny>, what: &str) -> PyResult<u64> {
    let wide = || PyOverflowError::new_err(format!("{what} must be at least -2**63 and below 2**64"));
    if value.is_instance_of::<PyBool>() {
        return Err(PyTypeError::new_err(format!("{what} is an integer, and {value} is a bool")));
    }
    let value: i128 = value.extract()?;
    match (u64::try_from(value), i64::try_from(value)) {
        (Ok(value), _) => Ok(value),
        (_, Ok(value)) => Ok(value.cast_unsigned()),
        _ => Err(wide()),
    }
}
