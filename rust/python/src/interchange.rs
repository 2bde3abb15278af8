//! Arguments and errors of the interchange with other VMMs' register lists.

use crate::errors::IntoPyErr;
use guestclock_core::arch::arm64::is_timers;
use guestclock_core::checkpoint::InterchangeError;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::collections::BTreeMap;

impl IntoPyErr for InterchangeError {
    fn into_pyerr(self) -> PyErr {
        PyValueError::new_err(self.to_string())
    }
}

/// The timers' registers in one vCPU's list. Other registers' values aren't even looked at: some are of 128 bits and
/// more.
pub(crate) fn timer_regs(list: &Bound<'_, PyDict>) -> PyResult<BTreeMap<u64, u64>> {
    let mut regs = BTreeMap::new();
    for (id, value) in list {
        let id = id.extract()?;
        if is_timers(id) {
            regs.insert(id, value.extract()?);
        }
    }
    Ok(regs)
}
