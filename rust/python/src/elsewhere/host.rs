//! The host's facts for `guestclock doctor`, refused.

use crate::counters::AnyCounter;
use crate::system::without_linux;
use pyo3::prelude::*;

#[pyfunction]
pub(crate) fn read_cost_ns(_counter: AnyCounter) -> PyResult<u64> {
    Err(without_linux("read_cost_ns", "time the reads"))
}

#[pyfunction]
pub(crate) fn kvm_probe() -> PyResult<()> {
    Err(without_linux("KVM", "`ModelVm` models it anywhere"))
}
