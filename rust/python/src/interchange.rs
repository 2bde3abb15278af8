//! Arguments and errors of the interchange with other VMMs' register lists.

use crate::errors::IntoPyErr;
use crate::words::said;
use guestclock_core::arch::arm64::{Role, Sysreg, View, is_timers};
use guestclock_core::checkpoint::{BuildError, InterchangeError};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::collections::BTreeMap;

impl IntoPyErr for InterchangeError {
    fn into_pyerr(self) -> PyErr {
        let way_out = match &self {
            Self::NotKvms { .. } => said(" with ids=\"kvm\" or ids=\"arm\"", " with --ids kvm or --ids arm"),
            Self::Missing { id, .. } => match Sysreg::with_one_reg_id(*id).map(|row| row.role) {
                Some(Role::Count(View::Virtual)) => {
                    said("; or say what it read: cntvct=", "; or say what it read: --cntvct")
                }
                Some(Role::Count(View::Physical)) => {
                    said("; or say what it read: cntpct=", "; or say what it read: --cntpct")
                }
                _ => "",
            },
            Self::HostUnknown { .. } => said(" with host=, or a count with cntpct=", ", or a count with --cntpct"),
            _ => "",
        };
        PyValueError::new_err(format!("{self}{way_out}"))
    }
}

impl IntoPyErr for BuildError {
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
