//! Checkpoints.

use crate::arguments::modular;
use crate::errors::{IntoPyErr, OrRaise};
use crate::interchange::timer_regs;
use crate::records::{self, AnyStamp};
use crate::registers;
use guestclock_core::checkpoint::codec::{self, MAX_BYTES, WireError};
use guestclock_core::checkpoint::{Checkpoint, Known, TimerColumns, register_lists as interchange};
use guestclock_core::restore::timer_status as status;
use guestclock_core::time::{Offset, Stamp};
use guestclock_linux::file;
use numpy::PyArray1;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyType};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A VM's guest time at one instant: a value that can be saved, sent and restored.
///
/// Made by `ModelVm.checkpoint`, `load` or `from_bytes`. Equal checkpoints have equal bytes.
#[pyclass(frozen, eq, name = "Checkpoint", module = "guestclock")]
#[derive(PartialEq)]
pub(crate) struct PyCheckpoint(pub(crate) Arc<Checkpoint>);

impl From<Checkpoint> for PyCheckpoint {
    fn from(checkpoint: Checkpoint) -> Self {
        Self(Arc::new(checkpoint))
    }
}

impl PyCheckpoint {
    fn timer_columns(&self, timer: usize) -> PyResult<&TimerColumns> {
        let timer = registers::timer(timer)?;
        self.0
            .timers
            .iter()
            .find(|columns| columns.timer == timer)
            .ok_or_else(|| PyKeyError::new_err(format!("the checkpoint has no {}", timer.name())))
    }
}

/// What these bytes are read as: any object with a buffer of bytes.
pub(crate) fn decoded<T>(
    py: Python<'_>,
    data: &Bound<'_, PyAny>,
    decode: fn(&[u8]) -> Result<T, WireError>,
) -> PyResult<T> {
    if let Ok(bytes) = data.cast::<PyBytes>() {
        return decode(bytes.as_bytes()).or_raise();
    }
    let buffer = PyBuffer::<u8>::get(data)?;
    // Copied, since another thread may write to it; so its size is looked at first.
    if buffer.len_bytes() > MAX_BYTES {
        return Err(WireError::TooLarge { size: buffer.len_bytes(), limit: MAX_BYTES }.into_pyerr());
    }
    decode(&buffer.to_vec(py)?).or_raise()
}

/// What a file is read as.
pub(crate) fn loaded<T>(path: &Path, decode: fn(&[u8]) -> Result<T, WireError>) -> PyResult<T> {
    // One byte more than is allowed, so that the codec sees what is too large.
    decode(&file::read_at_most(path, MAX_BYTES + 1)?).or_raise()
}

/// The timers as plain Python values.
pub(crate) fn timers_dict<'py>(py: Python<'py>, timers: &[TimerColumns]) -> PyResult<Bound<'py, PyDict>> {
    let all = PyDict::new(py);
    for columns in timers {
        let timer = PyDict::new(py);
        timer.set_item("cval", &columns.cval)?;
        let ctl: Vec<_> = (0..columns.ctl.len()).filter_map(|vcpu| columns.ctl.get(vcpu)).collect();
        timer.set_item("ctl", ctl)?;
        all.set_item(columns.timer.name(), timer)?;
    }
    Ok(all)
}

/// The host's instant as plain Python values.
pub(crate) fn host_dict<'py>(py: Python<'py>, host: &Stamp) -> PyResult<Bound<'py, PyAny>> {
    let asdict = PyModule::import(py, "dataclasses")?.getattr("asdict")?;
    asdict.call1((records::stamp(py, host)?,))
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
    fn opted_in(&self) -> bool {
        self.0.opted_in
    }

    /// How far the counters may be from the truth, in ticks: 0 where the VM owned its offset.
    #[getter]
    fn width_ticks(&self) -> u64 {
        self.0.width_ticks
    }

    /// The instant, by the host's counter and wall clock.
    #[getter]
    fn host<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        records::stamp(py, &self.0.host)
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
        Ok(PyArray1::from_slice(py, &self.timer_columns(timer)?.cval))
    }

    /// The controls of one timer without ISTATUS: shape (vcpus,), uint64. KeyError where the guest hasn't got it.
    fn ctl<'py>(&self, py: Python<'py>, timer: usize) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let ctl = &self.timer_columns(timer)?.ctl;
        Ok(PyArray1::from_iter(py, (0..self.0.vcpus).filter_map(|vcpu| ctl.get(vcpu))))
    }

    /// Every per-vCPU column by its name, each of shape (vcpus,) and uint64, and the caller's own.
    ///
    /// "vtimer_cval" (guest ticks) and "vtimer_ctl" (without ISTATUS), and the same of every timer that the guest has;
    /// "cntvoff" (ticks) where it has EL2; a timer register that this version doesn't know by its KVM id in
    /// hexadecimal.
    fn columns<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let columns = PyDict::new(py);
        for timer in &self.0.timers {
            let ctl = (0..self.0.vcpus).filter_map(|vcpu| timer.ctl.get(vcpu));
            columns.set_item(format!("{}_cval", timer.timer.name()), PyArray1::from_slice(py, &timer.cval))?;
            columns.set_item(format!("{}_ctl", timer.timer.name()), PyArray1::from_iter(py, ctl))?;
        }
        if let Some(cntvoff) = self.cntvoff(py) {
            columns.set_item("cntvoff", cntvoff)?;
        }
        for other in &self.0.others {
            columns.set_item(format!("{:#018x}", other.id), PyArray1::from_slice(py, &other.values))?;
        }
        Ok(columns)
    }

    /// Every timer of every vCPU at the checkpoint's own instant: a list of `TimerStatus`, each vCPU's in their order.
    fn timers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        records::timer_outlooks(py, status::saved(&self.0))
    }

    /// A checkpoint from the registers that another VMM saved: one {KVM register id: value} a vCPU, in the vCPUs'
    /// order.
    ///
    /// Registers that aren't the timers' are passed over. `frequency_hz` is the guest's CNTFRQ_EL0. `host` is the
    /// host's counter and wall clock at the save, and None says that nobody knows them: then `Freeze()` restores the
    /// guest, and `Advance` and `CatchUp` are refused (ElapsedUnknown) unless `elapsed_ns=` says how much time has
    /// passed.
    ///
    /// A list has no word on when its counters were read. The latest count is taken, and `width_ticks` of the
    /// checkpoint is the distance between the vCPUs' counts, plus the argument: how many ticks may lie between `host`
    /// and the reading. `counter_offset` is the offset that the VMM had set with KVM_ARM_SET_COUNTER_OFFSET, any
    /// integer from -2**63 up to 2**64: then the counters are computed from it and `host`, exactly, and the counts in
    /// the lists aren't used.
    ///
    /// ValueError where a register is missing, or the lists need what isn't known.
    #[classmethod]
    #[pyo3(signature = (registers, *, frequency_hz, host, counter_offset=None, width_ticks=0))]
    fn from_one_regs(
        _cls: &Bound<'_, PyType>,
        registers: Vec<Bound<'_, PyDict>>,
        frequency_hz: u32,
        host: Option<AnyStamp>,
        counter_offset: Option<Bound<'_, PyAny>>,
        width_ticks: u64,
    ) -> PyResult<Self> {
        let lists = registers.iter().map(timer_regs).collect::<PyResult<Vec<_>>>()?;
        let counter_offset = counter_offset.map(|offset| modular(&offset, "a counter offset")).transpose()?.map(Offset);
        let host = host.map(|host| host.stamp("host")).transpose()?;
        let known = Known { cntfrq_hz: frequency_hz, host, counter_offset, width_ticks };
        interchange::from_one_regs(&lists, known).or_raise().map(Self::from)
    }

    /// The registers as {KVM register id: value}, one a vCPU, for another VMM to set: in an order in which they can be.
    ///
    /// The counters are those of the checkpoint's instant; ISTATUS is never in CTL.
    fn to_one_regs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let lists = PyList::empty(py);
        for list in interchange::to_one_regs(&self.0) {
            let registers = PyDict::new(py);
            for (id, value) in list {
                registers.set_item(id, value)?;
            }
            lists.append(registers)?;
        }
        Ok(lists)
    }

    /// Everything in it as plain Python values, for JSON.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let checkpoint = &self.0;
        let fields = PyDict::new(py);
        fields.set_item("frequency_hz", checkpoint.cntfrq_hz)?;
        fields.set_item("cntvct", checkpoint.cntvct.0)?;
        fields.set_item("cntpct", checkpoint.cntpct.0)?;
        fields.set_item("opted_in", checkpoint.opted_in)?;
        fields.set_item("width_ticks", checkpoint.width_ticks)?;
        fields.set_item("host", host_dict(py, &checkpoint.host)?)?;
        fields.set_item("stopped_at", checkpoint.stopped_at)?;
        fields.set_item("vcpus", checkpoint.vcpus)?;
        fields.set_item("cntvoff", checkpoint.cntvoff.clone())?;
        fields.set_item("timers", timers_dict(py, &checkpoint.timers)?)?;
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
        PyBytes::new(py, &codec::encode(&self.0))
    }

    /// The checkpoint of these bytes; a CheckpointError says what is wrong with them.
    ///
    /// Safe on bytes from anywhere, but no proof of who wrote them: the checksum finds damage, not forgery.
    #[classmethod]
    fn from_bytes(_cls: &Bound<'_, PyType>, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<Self> {
        decoded(py, data, codec::decode).map(Self::from)
    }

    /// Writes its bytes to a file, whole or not at all: to a temporary file beside it, synced, then renamed.
    fn save(&self, path: PathBuf) -> PyResult<()> {
        Ok(file::write_atomically(&path, &codec::encode(&self.0))?)
    }

    /// The checkpoint in a file.
    #[classmethod]
    fn load(_cls: &Bound<'_, PyType>, path: PathBuf) -> PyResult<Self> {
        loaded(&path, codec::decode).map(Self::from)
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

/// The checksum of checkpoints, for the benchmarks to compare with.
#[pyfunction]
pub(crate) fn _crc32c(data: &[u8]) -> u32 {
    guestclock_core::checkpoint::codec::crc32c(data)
}
