//! Checkpoints.

use crate::errors::{IntoPyErr, OrRaise};
use crate::records;
use crate::registers;
use guestclock_core::checkpoint::{Checkpoint, TimerColumns};
use guestclock_core::wire::{self, MAX_BYTES, WireError};
use guestclock_linux::file;
use numpy::PyArray1;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyType};
use std::path::PathBuf;
use std::sync::Arc;

/// A VM's guest time at one instant: a value that can be saved, sent and restored.
///
/// Made by `Vm.checkpoint`, `load` or `from_bytes`. Equal checkpoints have equal bytes.
#[pyclass(frozen, eq, name = "Checkpoint", module = "guestclock")]
#[derive(PartialEq)]
pub(crate) struct PyCheckpoint(pub(crate) Arc<Checkpoint>);

impl From<Checkpoint> for PyCheckpoint {
    fn from(checkpoint: Checkpoint) -> Self {
        Self(Arc::new(checkpoint))
    }
}

impl PyCheckpoint {
    fn columns(&self, timer: usize) -> PyResult<&TimerColumns> {
        let timer = registers::timer(timer)?;
        self.0
            .timers
            .iter()
            .find(|columns| columns.timer == timer)
            .ok_or_else(|| PyKeyError::new_err(format!("the checkpoint has no {}", timer.name())))
    }

    fn decode(bytes: &[u8]) -> PyResult<Self> {
        wire::decode(bytes).or_raise().map(Self::from)
    }
}

#[pymethods]
impl PyCheckpoint {
    /// The guest's CNTFRQ_EL0, in Hz.
    #[getter]
    fn frequency_hz(&self) -> u32 {
        self.0.cntfrq_hz
    }

    /// The VM's virtual counter at the checkpoint's instant, in ticks.
    #[getter]
    fn cntvct(&self) -> u64 {
        self.0.cntvct.0
    }

    /// The VM's physical counter at the checkpoint's instant, in ticks.
    #[getter]
    fn cntpct(&self) -> u64 {
        self.0.cntpct.0
    }

    /// Whether the VM had opted in to one counter offset.
    #[getter]
    fn owned(&self) -> bool {
        self.0.owned
    }

    /// How far the counters may be from the truth, in ticks: 0 where the VM owned its offset.
    #[getter]
    fn width_ticks(&self) -> u64 {
        self.0.width_ticks
    }

    /// The instant, by the host's counter and wall clock.
    #[getter]
    fn host<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        records::cross_timestamp(py, &self.0.host)
    }

    /// The host's count when the last vCPU left its guest, or None.
    #[getter]
    fn stopped_at(&self) -> Option<u64> {
        self.0.stopped_at
    }

    /// How many vCPUs.
    #[getter]
    fn vcpus(&self) -> usize {
        self.0.vcpus
    }

    /// A nested guest's CNTVOFF_EL2: shape (vcpus,), uint64, ticks. None for a guest without EL2.
    #[getter]
    fn cntvoff<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyArray1<u64>>> {
        self.0.cntvoff.as_ref().map(|cntvoff| PyArray1::from_slice(py, cntvoff))
    }

    /// The compare values of one timer: shape (vcpus,), uint64, guest ticks. KeyError where the guest hasn't got it.
    fn cval<'py>(&self, py: Python<'py>, timer: usize) -> PyResult<Bound<'py, PyArray1<u64>>> {
        Ok(PyArray1::from_slice(py, &self.columns(timer)?.cval))
    }

    /// The controls of one timer without ISTATUS: shape (vcpus,), uint64. KeyError where the guest hasn't got it.
    fn ctl<'py>(&self, py: Python<'py>, timer: usize) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let ctl = &self.columns(timer)?.ctl;
        Ok(PyArray1::from_iter(py, (0..self.0.vcpus).filter_map(|vcpu| ctl.get(vcpu))))
    }

    /// Everything in it as plain Python values, for JSON.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let checkpoint = &self.0;
        let fields = PyDict::new(py);
        fields.set_item("frequency_hz", checkpoint.cntfrq_hz)?;
        fields.set_item("cntvct", checkpoint.cntvct.0)?;
        fields.set_item("cntpct", checkpoint.cntpct.0)?;
        fields.set_item("owned", checkpoint.owned)?;
        fields.set_item("width_ticks", checkpoint.width_ticks)?;
        let asdict = PyModule::import(py, "dataclasses")?.getattr("asdict")?;
        fields.set_item("host", asdict.call1((self.host(py)?,))?)?;
        fields.set_item("stopped_at", checkpoint.stopped_at)?;
        fields.set_item("vcpus", checkpoint.vcpus)?;
        fields.set_item("cntvoff", checkpoint.cntvoff.clone())?;
        let timers = PyDict::new(py);
        for columns in &checkpoint.timers {
            let timer = PyDict::new(py);
            timer.set_item("cval", &columns.cval)?;
            let ctl: Vec<_> = (0..checkpoint.vcpus).filter_map(|vcpu| columns.ctl.get(vcpu)).collect();
            timer.set_item("ctl", ctl)?;
            timers.set_item(columns.timer.name(), timer)?;
        }
        fields.set_item("timers", timers)?;
        let others = PyDict::new(py);
        for column in &checkpoint.others {
            others.set_item(column.id, &column.values)?;
        }
        fields.set_item("other_regs", others)?;
        let unknown: Vec<_> = checkpoint.unknown.iter().map(|unknown| &unknown.key).collect();
        fields.set_item("unknown", unknown)?;
        Ok(fields)
    }

    /// Its bytes: deterministic CBOR with a checksum, as docs/checkpoint-format.md specifies.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &wire::encode(&self.0))
    }

    /// The checkpoint of these bytes; a CheckpointError says what is wrong with them.
    ///
    /// Safe on bytes from anywhere, but no proof of who wrote them: the checksum finds damage, not forgery.
    #[classmethod]
    fn from_bytes(_cls: &Bound<'_, PyType>, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = data.cast::<PyBytes>() {
            return Self::decode(bytes.as_bytes());
        }
        let buffer = PyBuffer::<u8>::get(data)?;
        // Copied, since another thread may write to it; so its size is looked at first.
        if buffer.len_bytes() > MAX_BYTES {
            return Err(WireError::TooLarge { size: buffer.len_bytes(), limit: MAX_BYTES }.into_pyerr());
        }
        Self::decode(&buffer.to_vec(py)?)
    }

    /// Writes its bytes to a file, whole or not at all: to a temporary file beside it, synced, then renamed.
    fn save(&self, path: PathBuf) -> PyResult<()> {
        Ok(file::write_atomically(&path, &wire::encode(&self.0))?)
    }

    /// The checkpoint in a file.
    #[classmethod]
    fn load(_cls: &Bound<'_, PyType>, path: PathBuf) -> PyResult<Self> {
        // One byte more than is allowed, so that the codec sees what is too large.
        Self::decode(&file::read_at_most(&path, MAX_BYTES + 1)?)
    }

    fn __repr__(&self) -> String {
        let host = &self.0.host;
        format!(
            "<Checkpoint of {} vCPUs at {} Hz: CNTVCT {}, CNTPCT {}, {} {}>",
            self.0.vcpus, self.0.cntfrq_hz, self.0.cntvct.0, self.0.cntpct.0, host.source, host.count.0
        )
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        Ok((slf.get_type().getattr("from_bytes")?, (slf.get().to_bytes(slf.py()),)))
    }
}
