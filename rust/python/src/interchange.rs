//! Arguments and errors of the interchange with other VMMs' register lists.

use crate::errors::IntoPyErr;
use guestclock_core::counter::{CrossTimestamp, Frequency, HostCount, Leap};
use guestclock_core::interchange::{InterchangeError, is_timers};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::collections::BTreeMap;

impl IntoPyErr for InterchangeError {
    fn into_pyerr(self) -> PyErr {
        PyValueError::new_err(self.to_string())
    }
}

/// The timers' registers in one vCPU's list. Of the others not even the value is looked at: some are of 128 bits and more.
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

/// `types.CrossTimestamp` as an argument: whatever has its attributes.
#[derive(FromPyObject)]
pub(crate) struct HostArgument {
    count: u64,
    frequency_hz: u64,
    source: String,
    realtime_ns: i64,
    width_ns: u64,
    tai_offset_s: Option<i32>,
    synchronized: Option<bool>,
    max_error_ns: Option<u64>,
    leap: String,
    machine_id: Option<String>,
    boot_id: Option<String>,
}

impl HostArgument {
    /// The core's.
    pub(crate) fn cross_timestamp(self) -> PyResult<CrossTimestamp> {
        let wrong = |what: &str, value: &dyn std::fmt::Debug| {
            PyValueError::new_err(format!(
                "host.{what} is {value:?}: give a CrossTimestamp as a counter's cross_timestamp() does"
            ))
        };
        let id = |what, hex: Option<String>| hex.map(|hex| id(&hex).ok_or_else(|| wrong(what, &hex))).transpose();
        Ok(CrossTimestamp {
            count: HostCount(self.count),
            frequency: Frequency::new(self.frequency_hz).ok_or_else(|| wrong("frequency_hz", &0))?,
            source: self.source,
            realtime_ns: self.realtime_ns,
            width_ns: self.width_ns,
            tai_offset_s: self.tai_offset_s,
            synchronized: self.synchronized,
            max_error_ns: self.max_error_ns,
            leap: Leap::from_name(&self.leap).ok_or_else(|| wrong("leap", &self.leap))?,
            machine_id: id("machine_id", self.machine_id)?,
            boot_id: id("boot_id", self.boot_id)?,
        })
    }
}

/// An id as `records::cross_timestamp` spells it: 32 hexadecimal digits.
fn id(hex: &str) -> Option<[u8; 16]> {
    let digits = hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u128::from_str_radix(hex, 16).ok().map(u128::to_be_bytes))?
}
