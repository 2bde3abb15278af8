//! The register table, by name.

use crate::arguments::quoted;
use guestclock_core::arch::arm64::{Encoding, Sysreg, Timer};
use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;

/// The KVM register id of `name`, as KVM_GET_ONE_REG takes it: "TIMER_CNT" and so on.
#[pyfunction]
pub(crate) fn reg_id(name: &str) -> PyResult<u64> {
    Sysreg::with_kvm_name(name)
        .and_then(Sysreg::one_reg_id)
        .ok_or_else(|| PyKeyError::new_err(format!("KVM has no timer register {}", quoted(name))))
}

/// The encoding (op0, op1, CRn, CRm, op2) of the system register `name`: "CNTVCT_EL0" and so on.
#[pyfunction]
pub(crate) fn sysreg(name: &str) -> PyResult<(u8, u8, u8, u8, u8)> {
    Sysreg::named(name)
        .map(|Sysreg { encoding: Encoding(op0, op1, crn, crm, op2), .. }| (*op0, *op1, *crn, *crm, *op2))
        .ok_or_else(|| PyKeyError::new_err(format!("there is no timer register {}", quoted(name))))
}

/// The timer of this number.
pub(crate) fn timer(number: usize) -> PyResult<Timer> {
    Timer::ALL
        .get(number)
        .copied()
        .ok_or_else(|| PyValueError::new_err(format!("there is no timer {number}: 0 to 3, as Timer numbers them")))
}
