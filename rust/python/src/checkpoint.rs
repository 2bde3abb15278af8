//! Checkpoints.

use crate::arguments::{Int, Modular, count, int, plain, quoted};
use crate::arrays::{new_array, ready};
use crate::errors::{IntoPyErr, OrRaise};
use crate::files;
use crate::interchange::timer_regs;
use crate::records::{self, AnyReading, AnyStamp, AnySyncBound, named};
use crate::registers;
use crate::system::NEW_FILE_MODE;
use guestclock_core::arch::arm64::Timer;
use guestclock_core::checkpoint::codec::{self, Key, MAX_BYTES, Plain, WireError};
use guestclock_core::checkpoint::fields::{ADDRESS, Field};
use guestclock_core::checkpoint::{
    Checkpoint, Held, Ids, Interrupts, Known, NotOneVm, Reading, SavedVm, Sparse, Values, VmColumn, VmName,
    register_lists as interchange,
};
use guestclock_core::drive::Saving;
use guestclock_core::restore::timer_status as status;
use guestclock_core::time::{GuestCount, Offset};
use numpy::PyArray1;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyIndexError, PyKeyError, PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PySlice, PyString, PyType};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

/// The facts of a save that the caller knows.
pub(crate) fn saving(
    name: &VmName,
    stopped_at: Option<Int<u64>>,
    sync: Option<AnySyncBound>,
    vmclock_address: Option<Int<u64>>,
    stolen_time: Option<Vec<Option<Int<u64>>>>,
) -> PyResult<Saving> {
    Ok(Saving {
        name: name.clone(),
        stopped_at: count(stopped_at),
        sync: sync.map(AnySyncBound::sync_bound).transpose()?,
        vmclock_address: plain(vmclock_address),
        stolen_time: stolen_time.unwrap_or_default().into_iter().map(plain).collect(),
    })
}

/// The guest time of any number of VMs at one instant: a value that can be saved, sent and restored.
///
/// A sequence of its VMs: `x["web-1"]`, `x[0]` and `x[:2]` are checkpoints too. VMs with the same registers stand
/// together, in the order of their names, shorter ones first. The attributes of a VM work where there is exactly one;
/// `columns()` and `vcpu_columns()` have those of all. Made by `checkpoint()` of a VM or a fleet, `load` or
/// `from_bytes`. Equal checkpoints have equal bytes.
#[pyclass(frozen, eq, name = "Checkpoint", module = "guestclock")]
#[derive(PartialEq)]
pub(crate) struct PyCheckpoint(pub(crate) Arc<Checkpoint>);

impl From<Checkpoint> for PyCheckpoint {
    fn from(checkpoint: Checkpoint) -> Self {
        Self(Arc::new(checkpoint))
    }
}

impl IntoPyErr for NotOneVm {
    fn into_pyerr(self) -> PyErr {
        let way_out = "take one of them, x[\"its name\"] or x[0], or the columns of all";
        PyValueError::new_err(format!("the checkpoint is of {} VMs, and this is asked of one: {way_out}", self.vms))
    }
}

impl PyCheckpoint {
    /// The one VM.
    fn only(&self) -> PyResult<SavedVm<'_>> {
        self.0.only().or_raise()
    }

    fn register(&self, held: Held, name: impl FnOnce() -> String) -> PyResult<Values<'_>> {
        let missing = || PyKeyError::new_err(format!("the checkpoint has no {}", name()));
        self.only()?.register(held).ok_or_else(missing)
    }
}

/// Returns what these bytes are read as: any object with a buffer of bytes.
fn decoded(py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<Checkpoint> {
    if let Ok(bytes) = data.cast::<PyBytes>() {
        return codec::decode(bytes.as_bytes()).or_raise();
    }
    let buffer = PyBuffer::<u8>::get(data)?;
    // Copied, since another thread may write to it; so its size is looked at first.
    if buffer.len_bytes() > MAX_BYTES {
        return Err(WireError::TooLarge { size: buffer.len_bytes(), limit: MAX_BYTES }.into_pyerr());
    }
    codec::decode(&buffer.to_vec(py)?).or_raise()
}

/// Plain values as Python's own, for JSON: bytes as hexadecimal digits.
fn to_python<'py>(py: Python<'py>, value: &Plain) -> PyResult<Bound<'py, PyAny>> {
    let any = match value {
        Plain::Nothing => py.None().into_bound(py),
        Plain::Bool(value) => value.into_pyobject(py)?.to_owned().into_any(),
        Plain::Unsigned(value) => value.into_pyobject(py)?.into_any(),
        Plain::Negative(value) => value.into_pyobject(py)?.into_any(),
        Plain::Text(value) => value.into_pyobject(py)?.into_any(),
        Plain::Bytes(value) => PyBytes::new(py, value).call_method0("hex")?,
        Plain::Numbers(values) => PyList::new(py, values)?.into_any(),
        Plain::Bools(values) => PyList::new(py, values)?.into_any(),
        Plain::List(values) => {
            let list = PyList::empty(py);
            values.iter().try_for_each(|value| list.append(to_python(py, value)?))?;
            list.into_any()
        }
        Plain::Map(entries) => {
            let map = PyDict::new(py);
            for (key, value) in entries {
                let value = to_python(py, value)?;
                match key {
                    Key::Field(key) => map.set_item(key, value)?,
                    Key::Register(id) => map.set_item(id, value)?,
                }
            }
            map.into_any()
        }
    };
    Ok(any)
}

/// Name of a register's column: `vtimer_cval`, `vtimer_ctl`, `cntvoff`, or the id in hexadecimal.
fn column_name(id: u64, held: Held) -> String {
    match held {
        Held::Cval(timer) => format!("{}_cval", timer.name()),
        Held::Ctl(timer) => format!("{}_ctl", timer.name()),
        Held::Cntvoff => "cntvoff".into(),
        Held::Unknown => format!("{id:#018x}"),
    }
}

/// Columns that some groups have, as arrays of equal length: masked where a group, or a row, has no value.
struct Table {
    rows: usize,
    columns: Vec<(String, bool, Vec<u64>, Vec<bool>)>,
}

impl Table {
    const fn new() -> Self {
        Self { rows: 0, columns: Vec::new() }
    }

    /// Adds the values of some of the next rows, by their places among them; `None` means all.
    fn add(&mut self, name: String, flag: bool, values: &[u64], places: Option<&[u64]>) {
        let known = self.columns.iter().position(|(other, ..)| *other == name);
        let index = known.unwrap_or_else(|| {
            self.columns.push((name, flag, Vec::new(), Vec::new()));
            self.columns.len() - 1
        });
        let (_, _, column, missing) = &mut self.columns[index];
        column.resize(self.rows, 0);
        missing.resize(self.rows, true);
        match places {
            None => {
                column.extend_from_slice(values);
                missing.resize(column.len(), false);
            }
            Some(places) => {
                for (value, place) in values.iter().zip(places) {
                    let row = self.rows + usize::try_from(*place).unwrap_or(usize::MAX);
                    column.resize(row, 0);
                    missing.resize(row, true);
                    column.push(*value);
                    missing.push(false);
                }
            }
        }
    }

    /// Ends the rows of a group.
    const fn end(&mut self, rows: usize) {
        self.rows += rows;
    }

    fn add_fact(&mut self, key: &str, parts: &[Field], known: &Sparse, all: usize) {
        let places = known.places(all);
        for (part, column) in parts.iter().zip(known.parts()) {
            let values = column.values(0..places.len());
            self.add(format!("{key}_{}", part.key), part.flag, &values, Some(&places));
        }
    }

    fn fill(mut self, into: &Bound<'_, PyDict>) -> PyResult<()> {
        let py = into.py();
        for (name, flag, mut values, mut missing) in std::mem::take(&mut self.columns) {
            values.resize(self.rows, 0);
            missing.resize(self.rows, true);
            let array = if flag {
                new_array(py, values.iter().map(|value| *value != 0)).into_any()
            } else {
                PyArray1::from_slice(py, &values).into_any()
            };
            let whole = !missing.contains(&true);
            into.set_item(name, if whole { array } else { masked(array, missing)? })?;
        }
        Ok(())
    }
}

fn masked(array: Bound<'_, PyAny>, missing: Vec<bool>) -> PyResult<Bound<'_, PyAny>> {
    let py = array.py();
    let mask = new_array(py, missing.into_iter());
    PyModule::import(py, "numpy.ma")?.getattr("MaskedArray")?.call1((array, mask))
}

#[pymethods]
impl PyCheckpoint {
    /// The instant, by the host's counter and wall clock: one for all VMs.
    #[getter]
    fn stamp<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        records::stamp(py, self.0.stamp())
    }

    /// Names of the VMs, in their order.
    #[getter]
    fn names<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.0.names().collect::<Vec<_>>())
    }

    /// Number of bytes that `to_bytes` makes.
    #[getter]
    fn nbytes(&self) -> usize {
        codec::encoded_len(&self.0)
    }

    /// Keys of the file that this version doesn't know. They stay with the whole: a part of fewer VMs is without them.
    #[getter]
    fn unknown(&self) -> Vec<String> {
        self.0.unknown().iter().map(|unknown| unknown.key.clone()).collect()
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    /// The checkpoint of one VM, by its name or its index, or of the VMs of a slice, at the same instant.
    fn __getitem__(&self, key: &Bound<'_, PyAny>) -> PyResult<Self> {
        let len = self.0.len();
        if let Ok(name) = key.cast::<PyString>() {
            let name = name.to_str()?;
            let found = self.0.find(name).and_then(|index| self.0.vm(index));
            let vm =
                found.ok_or_else(|| PyKeyError::new_err(format!("the checkpoint has no VM named {}", quoted(name))))?;
            return Ok(Self::from(vm.alone()));
        }
        if let Ok(slice) = key.cast::<PySlice>() {
            let indices = slice.indices(len.cast_signed())?;
            if indices.step < 0 {
                return Err(PyValueError::new_err("a checkpoint's VMs have one order: a slice's step is above 0"));
            }
            let [start, stop, every] = [indices.start, indices.stop, indices.step].map(isize::unsigned_abs);
            let part = self.0.part(|vm| (start..stop).contains(&vm) && (vm - start).is_multiple_of(every));
            return Ok(Self::from(part));
        }
        let no_vm = || PyIndexError::new_err(format!("there is no VM {key}: the checkpoint has {len}"));
        let index = match key.extract::<Int<isize>>().map(|Int(index)| index) {
            Ok(index) => index,
            Err(error) if error.is_instance_of::<PyOverflowError>(key.py()) => return Err(no_vm()),
            Err(_) => {
                return Err(PyTypeError::new_err("a checkpoint is asked for a VM's name, its index, or a slice"));
            }
        };
        let found = if index < 0 { len.checked_add_signed(index) } else { index.try_into().ok() };
        let vm = found.and_then(|index| self.0.vm(index)).ok_or_else(no_vm)?;
        Ok(Self::from(vm.alone()))
    }

    fn __contains__(&self, name: &str) -> bool {
        self.0.find(name).is_some()
    }

    /// The VMs' checkpoints, in their order.
    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let vms = self.0.vms().map(|vm| Py::new(py, Self::from(vm.alone())));
        PyList::new(py, vms.collect::<PyResult<Vec<_>>>()?)?.as_any().call_method0("__iter__")
    }

    /// The evidence that its stamp lacks, and that a later `Advance` would go by: a list of `Diagnostic`, empty where
    /// there is all of it.
    #[getter]
    fn lacks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        records::lacks(py, self.0.stamp())
    }

    /// Joins checkpoints of one host counter into one, of the latest of their instants: each VM's timeline moves to it
    /// by the ticks that the counter took.
    ///
    /// A VM that was saved earlier, and whose stop isn't known, has stopped at its own checkpoint. So a restore gives
    /// each VM what its own checkpoint would have given it. ValueError where the checkpoints aren't shown to be of one
    /// counter, where two VMs have one name, or where one has a key that this version doesn't know.
    #[classmethod]
    fn join(_cls: &Bound<'_, PyType>, checkpoints: Vec<PyRef<'_, Self>>) -> PyResult<Self> {
        let parts: Vec<&Checkpoint> = checkpoints.iter().map(|checkpoint| &*checkpoint.0).collect();
        Checkpoint::join(&parts).map(Self::from).map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// Name of the one VM; empty where nobody named it.
    #[getter]
    fn name(&self) -> PyResult<String> {
        Ok(self.only()?.name().into())
    }

    /// Number of the one VM's vCPUs.
    #[getter]
    fn vcpus(&self) -> PyResult<usize> {
        Ok(self.only()?.vcpus())
    }

    /// CNTFRQ_EL0 of the one VM, in Hz.
    #[getter]
    fn frequency_hz(&self) -> PyResult<u32> {
        Ok(self.only()?.time().frequency_hz.get())
    }

    /// The one VM's virtual counter at the checkpoint's instant, in ticks: its timeline. On nested vCPUs CNTVOFF_EL2
    /// has been added back.
    #[getter]
    fn cntvct(&self) -> PyResult<u64> {
        Ok(self.only()?.time().timeline.0)
    }

    /// The one VM's physical counter at the checkpoint's instant, in ticks.
    #[getter]
    fn cntpct(&self) -> PyResult<u64> {
        Ok(self.only()?.time().physical().0)
    }

    /// True if the one VM had opted in to one counter offset.
    #[getter]
    fn opted_in(&self) -> PyResult<bool> {
        Ok(self.only()?.time().opted_in)
    }

    /// Ticks by which the one VM's virtual counter may be off: 0 where it was computed.
    #[getter]
    fn virtual_width_ticks(&self) -> PyResult<u64> {
        Ok(self.only()?.time().virtual_width_ticks)
    }

    /// Ticks by which the one VM's physical counter may be off: 0 where it was computed.
    #[getter]
    fn physical_width_ticks(&self) -> PyResult<u64> {
        Ok(self.only()?.time().physical_width_ticks)
    }

    /// The host's count when the one VM's last vCPU left its guest, or None. A restore goes on from there.
    #[getter]
    fn stopped_at(&self) -> PyResult<Option<u64>> {
        Ok(self.only()?.time().stopped_at.map(|count| count.0))
    }

    /// `Backlog` of the one VM: guest time still to be given back; None if there is none.
    #[getter]
    fn backlog<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.only()?.time().backlog.map(|backlog| records::backlog(py, &backlog)).transpose()
    }

    /// Interrupt ids of the one VM's timers, by `Timer`; None where nobody asked for them.
    #[getter]
    fn interrupts<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(Interrupts(ids)) = self.only()?.time().interrupts else { return Ok(None) };
        let by_timer = PyDict::new(py);
        for (timer, id) in Timer::ALL.into_iter().zip(ids).filter(|(_, id)| *id != 0) {
            by_timer.set_item(records::timer_of(py, timer)?, id)?;
        }
        Ok(Some(by_timer))
    }

    /// `Reading` of the one VM: a count and the wall clock of another instant than the registers'; None if there is none.
    #[getter]
    fn reading<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.only()?.time().reading.map(|reading| records::reading(py, &reading)).transpose()
    }

    /// Guest-physical address of the one VM's vmclock page, or None.
    #[getter]
    fn vmclock_address(&self) -> PyResult<Option<u64>> {
        Ok(self.only()?.time().vmclock_address)
    }

    /// Guest-physical addresses of the stolen-time records, one a vCPU of the one VM, None where it isn't known.
    #[getter]
    fn stolen_time(&self) -> PyResult<Vec<Option<u64>>> {
        let vm = self.only()?;
        Ok((0..vm.vcpus()).map(|vcpu| vm.stolen_time(vcpu)).collect())
    }

    /// CNTVOFF_EL2 of the one VM: shape (vcpus,), uint64, ticks. None for a guest without EL2.
    #[getter]
    fn cntvoff<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyArray1<u64>>>> {
        ready(py)?;
        Ok(self.only()?.register(Held::Cntvoff).map(|values| new_array(py, values.iter())))
    }

    /// The compare values of one timer of the one VM: shape (vcpus,), uint64, guest ticks. KeyError where the guest
    /// hasn't got it.
    fn cval<'py>(&self, py: Python<'py>, timer: Int<usize>) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let timer = registers::timer(timer.0)?;
        let values = self.register(Held::Cval(timer), || timer.name().into())?;
        ready(py)?;
        Ok(new_array(py, values.iter()))
    }

    /// The controls of one timer of the one VM, without ISTATUS: shape (vcpus,), uint64. KeyError where the guest
    /// hasn't got it.
    fn ctl<'py>(&self, py: Python<'py>, timer: Int<usize>) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let timer = registers::timer(timer.0)?;
        let values = self.register(Held::Ctl(timer), || timer.name().into())?;
        ready(py)?;
        Ok(new_array(py, values.iter()))
    }

    /// One column for each fact of a VM, a row each VM: arrays of shape (VMs,).
    ///
    /// "name" (str), "vcpus", "frequency_hz", "timeline" (guest ticks, uint64 like all numbers), "opted_in" (bool),
    /// "virtual_width_ticks", "physical_width_ticks", "physical_displacement_ticks". What is known of some VMs only is
    /// a masked array, and not there if it is known of none: "stopped_at_count" (host ticks), "backlog_remaining_ticks"
    /// and so on.
    fn columns<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        ready(py)?;
        let columns = PyDict::new(py);
        columns.set_item("name", text_array(py, self.0.names())?)?;
        let mut table = Table::new();
        for group in self.0.groups() {
            let vms = group.len();
            for column in group.vm_columns() {
                match column {
                    VmColumn::All { field, values } => {
                        table.add(field.field.key.into(), field.field.flag, &values.values(0..vms), None);
                    }
                    VmColumn::Known { fact, known } => table.add_fact(fact.key, fact.parts, known, vms),
                }
            }
            table.end(group.len());
        }
        table.fill(&columns)?;
        Ok(columns)
    }

    /// One column for each register, a row each vCPU: arrays of shape (vCPUs of all VMs,), uint64.
    ///
    /// "name" (str) and "vcpu" say whose the row is. "vtimer_cval" (guest ticks) and "vtimer_ctl" (without ISTATUS),
    /// and the same of every timer; "cntvoff" (ticks); "stolen_time_address"; a timer register that this version
    /// doesn't know by its KVM id in hexadecimal. Where some guests don't have a register, its column is a masked
    /// array.
    fn vcpu_columns<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        ready(py)?;
        let columns = PyDict::new(py);
        // Not each VM's `name()`, which looks for it from the first name on.
        let vcpus: Vec<(&str, usize)> = self.0.names().zip(self.0.vms().map(|vm| vm.vcpus())).collect();
        let names = vcpus.iter().flat_map(|(name, vcpus)| std::iter::repeat_n(*name, *vcpus));
        columns.set_item("name", text_array(py, names)?)?;
        columns.set_item("vcpu", new_array(py, vcpus.iter().flat_map(|(_, vcpus)| 0..*vcpus as u64)))?;
        let mut table = Table::new();
        for group in self.0.groups() {
            let rows = group.vcpus();
            for register in group.registers() {
                let Some(held) = register.held() else { continue };
                table.add(column_name(register.id().0, held), false, &register.values().values(0..rows), None);
            }
            if let Some(known) = group.stolen_time() {
                table.add_fact("stolen_time", ADDRESS, known, rows);
            }
            table.end(rows);
        }
        table.fill(&columns)?;
        Ok(columns)
    }

    /// Every timer of the one VM's vCPUs at the checkpoint's own instant: a list of `TimerStatus`, each vCPU's in their
    /// order.
    fn timers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        records::timer_outlooks(py, status::saved(&self.only()?))
    }

    /// A checkpoint from the registers that another VMM saved: one {KVM register id: value} a vCPU, in the vCPUs'
    /// order.
    ///
    /// Registers that aren't the timers' are passed over. `frequency_hz` is the guest's CNTFRQ_EL0. `host` is the
    /// host's counter and wall clock at the save, and None says that nobody knows them: then `Freeze()` restores the
    /// guest, and `Advance` and `CatchUp` are refused (ElapsedUnknown) unless `elapsed=Elapsed.given(...)` says how
    /// much time has passed.
    ///
    /// A list has no word on when its counters were read. The latest count is taken, and the width of each counter in
    /// the checkpoint is the distance between the vCPUs' counts, plus the argument: how many ticks may lie between
    /// `host` and the reading. `counter_offset` is the offset that the VMM had set with KVM_ARM_SET_COUNTER_OFFSET, any
    /// integer from -2**63 up to 2**64: then the counters are computed from it and `host`, exactly, and the counts in
    /// the lists aren't used.
    ///
    /// `reading` is a `Reading`: the guest's virtual counter and the wall clock of one instant, which another VMM saved
    /// beside its lists. With `host=None` the time that has passed counts from there; `Freeze()` gives the guest the lists'
    /// counts.
    ///
    /// `ids` is "kvm" for KVM's ids, and "arm" for those that follow from Arm's encodings, as other hypervisors than KVM
    /// have them: there 0x603000000013df1a is CNTV_CVAL_EL0. Without it the ids are KVM's, and lists that show otherwise
    /// are refused. `cntvct` and `cntpct` are CNTVCT_EL0 and CNTPCT_EL0 at the save, for lists that have no such count.
    ///
    /// ValueError where a register is missing, a list's own CNTFRQ_EL0 isn't `frequency_hz`, or the lists need what isn't
    /// known.
    #[classmethod]
    #[expect(clippy::similar_names, reason = "the registers' names are the keywords")]
    #[pyo3(signature = (
        registers, *, frequency_hz, host, counter_offset=None, width_ticks=0, reading=None, name="", ids=None,
        cntvct=None, cntpct=None,
    ))]
    fn from_one_regs(
        _cls: &Bound<'_, PyType>,
        registers: Vec<Bound<'_, PyDict>>,
        frequency_hz: Int<u32>,
        host: Option<AnyStamp>,
        counter_offset: Option<Modular>,
        #[pyo3(from_py_with = int)] width_ticks: u64,
        reading: Option<AnyReading>,
        name: &str,
        ids: Option<&str>,
        cntvct: Option<Int<u64>>,
        cntpct: Option<Int<u64>>,
    ) -> PyResult<Self> {
        let lists = registers.iter().map(timer_regs).collect::<PyResult<Vec<_>>>()?;
        let counter_offset = counter_offset.map(|Modular(offset)| Offset(offset));
        let host = host.map(|host| host.stamp("host")).transpose()?;
        let zero = || PyValueError::new_err("frequency_hz is 0: give the frequency of the host's counter");
        let frequency_hz = NonZeroU32::new(frequency_hz.0).ok_or_else(zero)?;
        let name = &vm_name(name)?;
        let reading = reading.map(Reading::from);
        let ids = ids.map(|ids| named("ids", ids, &Ids::NAMES)).transpose()?;
        let (cntvct, cntpct) = (plain(cntvct).map(GuestCount), plain(cntpct).map(GuestCount));
        let known = Known { name, frequency_hz, host, counter_offset, reading, width_ticks, ids, cntvct, cntpct };
        interchange::from_one_regs(&lists, known).or_raise().map(Self::from)
    }

    /// The registers of the one VM as {KVM register id: value}, one a vCPU, for another VMM to set: in an order in
    /// which they can be.
    ///
    /// The counters are those of the checkpoint's instant; ISTATUS is never in CTL.
    ///
    /// `physical_count` decides on PTIMER_CNT. Setting it gives the VM an offset of its physical counter, by which
    /// CNTPCT_EL0 and the physical timer trap for good on a CPU without CNTPOFF_EL2. Without a word it is in the lists
    /// of a VM that had such an offset, and left out where CNTPCT_EL0 was the host's own counter, as KVM has it by
    /// default: replayed so, the guest reads the counter of the host that it comes to. ValueError where the host's count
    /// isn't known, so that nobody can tell.
    #[pyo3(signature = (*, physical_count=None))]
    fn to_one_regs<'py>(&self, py: Python<'py>, physical_count: Option<bool>) -> PyResult<Bound<'py, PyList>> {
        let (lists, vm) = (PyList::empty(py), self.only()?);
        let Some(physical) = physical_count.or_else(|| interchange::has_physical_offset(&vm)) else {
            return Err(PyValueError::new_err(
                "the host's count at the save isn't known, so nobody can tell whether CNTPCT_EL0 was the host's own \
                 counter: physical_count=False leaves PTIMER_CNT out, and physical_count=True has it in the lists, by \
                 which CNTPCT_EL0 traps for good on a CPU without CNTPOFF_EL2",
            ));
        };
        for list in interchange::to_one_regs(&vm, physical) {
            let registers = PyDict::new(py);
            for (id, value) in list {
                registers.set_item(id, value)?;
            }
            lists.append(registers)?;
        }
        Ok(lists)
    }

    /// The checkpoint without the timer registers and keys that this version doesn't know: a model VM, and any VM that
    /// doesn't have the registers, can be restored from it.
    fn without_unknown(&self) -> PyResult<Self> {
        self.0.without_unknown().or_raise().map(Self::from)
    }

    /// All that it says as plain Python values, for JSON, under the keys of the file: a column has one value a VM, or a
    /// vCPU; what isn't known is None.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        to_python(py, &codec::plain(&self.0))
    }

    /// Returns its bytes: deterministic CBOR with a checksum, as docs/checkpoint-format.md specifies.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &codec::encode(&self.0))
    }

    /// The checkpoint of these bytes; an InvalidFile says what is wrong with them.
    ///
    /// Safe on bytes from anywhere, but no proof of who wrote them: the checksum finds damage, not forgery.
    #[classmethod]
    fn from_bytes(_cls: &Bound<'_, PyType>, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<Self> {
        decoded(py, data).map(Self::from)
    }

    /// Writes its bytes to a file, whole or not at all: a kill or a crash leaves the old file or the new one.
    ///
    /// `path` is a regular file's or nobody's yet. A symbolic link is followed to its file, which is replaced, and the link
    /// stays; a FIFO, a socket, a device and a folder are refused (OSError). An existing file keeps its mode and its
    /// owner; a new one gets `mode`, less the umask. Other threads run meanwhile, and the exception of a signal's
    /// handler ends the call, which then has changed nothing. Once the file is replaced there is no error any more: a
    /// RuntimeWarning says that its folder couldn't be synced.
    ///
    /// OSError, with errno and the file's name, where the system refuses. See docs/files.md.
    #[pyo3(signature = (path, *, mode=NEW_FILE_MODE), text_signature = "($self, path, *, mode=0o600)")]
    fn save(&self, py: Python<'_>, path: PathBuf, #[pyo3(from_py_with = int)] mode: u32) -> PyResult<()> {
        if mode > 0o777 {
            return Err(PyValueError::new_err(format!("mode={mode:#o}: a mode is from 0 to 0o777")));
        }
        files::save(py, &self.0, &path, mode)
    }

    /// The checkpoint in a file; or those in all files of a folder, joined (see `join`), as many processes that saved
    /// one VM each have left them.
    ///
    /// Files whose names begin with a dot are passed over, and so are folders. Every other file has to be a checkpoint;
    /// an error has a note that names the files it is about. Symbolic links are followed; a FIFO, a socket and a device
    /// are refused (OSError), as they would have the caller wait. Other threads run meanwhile, and the exception of a
    /// signal's handler ends the call.
    #[classmethod]
    fn load(_cls: &Bound<'_, PyType>, py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        files::load(py, &path).map(Self::from)
    }

    fn __repr__(&self) -> String {
        let stamp = self.0.stamp();
        let instant = format!("{} {}", stamp.source, stamp.count.0);
        match self.0.only() {
            Ok(vm) => {
                let time = vm.time();
                let name = if vm.name().is_empty() { String::new() } else { format!(" {:?}", vm.name()) };
                format!(
                    "<Checkpoint{name} of {} vCPUs at {} Hz: CNTVCT {}, CNTPCT {}, {instant}>",
                    time.vcpus,
                    time.frequency_hz,
                    time.timeline.0,
                    time.physical().0
                )
            }
            Err(NotOneVm { vms }) => format!("<Checkpoint of {vms} VMs with {} vCPUs: {instant}>", self.0.vcpus()),
        }
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        Ok((slf.get_type().getattr("from_bytes")?, (slf.get().to_bytes(slf.py()),)))
    }
}

/// The name of a VM, or a ValueError.
pub(crate) fn vm_name(name: &str) -> PyResult<VmName> {
    VmName::new(name).ok_or_else(|| {
        PyValueError::new_err(format!(
            "{} can't name a VM: a name has at most 64 bytes of UTF-8, and no control characters",
            quoted(name)
        ))
    })
}

fn text_array<'py, 'a>(py: Python<'py>, text: impl Iterator<Item = &'a str>) -> PyResult<Bound<'py, PyAny>> {
    let list = PyList::new(py, text.collect::<Vec<_>>())?;
    PyModule::import(py, "numpy")?.getattr("array")?.call1((list, "U"))
}

/// The name, where it can name a VM in a checkpoint; else a ValueError.
#[pyfunction]
pub(crate) fn _vm_name(name: &str) -> PyResult<&str> {
    vm_name(name).map(|_| name)
}

/// The checksum of checkpoints, for the benchmarks to compare with.
#[pyfunction]
pub(crate) fn _crc32c(data: &[u8]) -> u32 {
    guestclock_core::checkpoint::codec::crc32c(data)
}
