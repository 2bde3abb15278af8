//! Checkpoints of sets of VMs.

use crate::checkpoint::{PyCheckpoint, decoded, host_dict, loaded, timers_dict};
use crate::errors::OrRaise;
use crate::records;
use guestclock_core::checkpoint::{CheckpointSet, VmGroup, codec};
use guestclock_linux::file;
use numpy::PyArray1;
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyRange, PyType};
use std::path::PathBuf;
use std::sync::Arc;

/// The guest time of many VMs at one instant: a value that can be saved, sent and restored.
///
/// A sequence of the VMs' checkpoints: `checkpoints[0]`, `len(checkpoints)`, `for checkpoint in checkpoints`. VMs of
/// one frequency with the same timers stand together, in the order of their names. Equal sets have equal bytes.
#[pyclass(frozen, eq, name = "CheckpointSet", module = "guestclock")]
#[derive(PartialEq)]
pub(crate) struct PyCheckpointSet(pub(crate) Arc<CheckpointSet>);

impl From<CheckpointSet> for PyCheckpointSet {
    fn from(set: CheckpointSet) -> Self {
        Self(Arc::new(set))
    }
}

#[pymethods]
impl PyCheckpointSet {
    /// The instant, by the host's counter and wall clock: one for all VMs.
    #[getter]
    fn host<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        records::stamp(py, &self.0.host)
    }

    /// The host's count when the last vCPU of all left its guest, or None.
    #[getter]
    fn stopped_at(&self) -> Option<u64> {
        self.0.stopped_at
    }

    /// How many vCPUs the VMs have together.
    #[getter]
    fn vcpus(&self) -> usize {
        self.0.vcpus()
    }

    /// Who each VM is, in the order of the set: shape (VMs,), uint64. The maker's numbers, each once.
    #[getter]
    fn names<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
        let names: Vec<_> = self.0.groups.iter().flat_map(|group| &group.names).copied().collect();
        PyArray1::from_slice(py, &names)
    }

    /// How many bytes `to_bytes` makes.
    #[getter]
    fn nbytes(&self) -> usize {
        codec::encoded_len(&self.0)
    }

    /// Keys of the file that this version doesn't know. They are the set's: the VMs' own checkpoints are without them.
    #[getter]
    fn unknown(&self) -> Vec<String> {
        self.0.unknown.iter().map(|unknown| unknown.key.clone()).collect()
    }

    /// The index of the VM of that name, or None.
    fn find(&self, name: u64) -> Option<usize> {
        self.0.find(name)
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    /// One VM's checkpoint, as the VM's own would be at that instant. A VM of another frequency than the host counter's
    /// has the instant of its own counter, as over a `ScaledCounter`.
    fn __getitem__(&self, index: isize) -> PyResult<PyCheckpoint> {
        let len = self.0.len();
        let found = if index < 0 { len.checked_add_signed(index) } else { index.try_into().ok() };
        found
            .and_then(|index| self.0.get(index))
            .map(PyCheckpoint::from)
            .ok_or_else(|| PyIndexError::new_err(format!("there is no VM {index}: the set has {len}")))
    }

    fn __iter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let indices = PyRange::new(py, 0, slf.get().0.len().cast_signed())?;
        PyModule::import(py, "builtins")?.getattr("map")?.call1((slf.getattr("__getitem__")?, indices))
    }

    /// Everything in it as plain Python values, for JSON: a group's columns a value each VM or vCPU.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let fields = PyDict::new(py);
        fields.set_item("host", host_dict(py, &self.0.host)?)?;
        fields.set_item("stopped_at", self.0.stopped_at)?;
        let groups = PyList::empty(py);
        for group in &self.0.groups {
            groups.append(group_dict(py, group)?)?;
        }
        fields.set_item("groups", groups)?;
        fields.set_item("unknown", self.unknown())?;
        Ok(fields)
    }

    /// Its bytes: deterministic CBOR with a checksum, as docs/checkpoint-format.md specifies. TooLarge above 16 MiB.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &codec::encode_set(&self.0).or_raise()?))
    }

    /// The set of these bytes; a CheckpointError says what is wrong with them: WrongKind, where they are one VM's.
    ///
    /// Safe on bytes from anywhere, but no proof of who wrote them: the checksum finds damage, not forgery.
    #[classmethod]
    fn from_bytes(_cls: &Bound<'_, PyType>, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<Self> {
        decoded(py, data, codec::decode_set).map(Self::from)
    }

    /// Writes its bytes to a file, whole or not at all: to a temporary file beside it, synced, then renamed.
    fn save(&self, path: PathBuf) -> PyResult<()> {
        Ok(file::write_atomically(&path, &codec::encode_set(&self.0).or_raise()?)?)
    }

    /// The set in a file.
    #[classmethod]
    fn load(_cls: &Bound<'_, PyType>, path: PathBuf) -> PyResult<Self> {
        loaded(&path, codec::decode_set).map(Self::from)
    }

    fn __repr__(&self) -> String {
        let (set, host) = (&self.0, &self.0.host);
        format!("<CheckpointSet of {} VMs with {} vCPUs: {} {}>", set.len(), set.vcpus(), host.source, host.count.0)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        Ok((slf.get_type().getattr("from_bytes")?, (slf.get().to_bytes(slf.py())?,)))
    }
}

fn group_dict<'py>(py: Python<'py>, group: &VmGroup) -> PyResult<Bound<'py, PyDict>> {
    let vms = 0..group.len();
    let fields = PyDict::new(py);
    fields.set_item("frequency_hz", group.cntfrq_hz)?;
    fields.set_item("names", &group.names)?;
    fields.set_item("vcpus", vms.clone().filter_map(|vm| group.vcpus.get(vm)).collect::<Vec<_>>())?;
    fields.set_item("cntvct", &group.cntvct)?;
    fields.set_item("cntpct", group.cntpct.as_ref().unwrap_or(&group.cntvct))?;
    fields.set_item("opted_in", vms.filter_map(|vm| group.opted_in.get(vm)).collect::<Vec<_>>())?;
    let backlogs = PyDict::new(py);
    for (vm, backlog) in &group.backlogs {
        let owed = PyDict::new(py);
        owed.set_item("remaining_ticks", backlog.remaining_ticks.get())?;
        owed.set_item("step_ns", backlog.step_ns.get())?;
        owed.set_item("interval_ns", backlog.interval_ns.get())?;
        backlogs.set_item(group.names[*vm], owed)?;
    }
    fields.set_item("backlogs", backlogs)?;
    let rows = 0..group.total_vcpus();
    let cntvoff = group.cntvoff.as_ref();
    fields.set_item("cntvoff", cntvoff.map(|cntvoff| rows.filter_map(|row| cntvoff.get(row)).collect::<Vec<_>>()))?;
    fields.set_item("timers", timers_dict(py, &group.timers)?)?;
    Ok(fields)
}
