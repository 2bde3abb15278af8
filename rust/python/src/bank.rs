//! Many VMs as columns.

use crate::alarms::Alarms;
use crate::arguments::{Int, count, int, plain};
use crate::arrays::{
    Column, FEW, Named, Room, as_array, column, extent, new_array, output, ready, same_rows, writable,
};
use crate::checkpoint::{PyCheckpoint, vm_name};
use crate::columns::chosen_isa;
use crate::counters::{AnyCounter, Asks, PyScaledCounter};
use crate::errors::{IntoPyErr, OrRaise, noted, typed};
use crate::foreign::Sampled;
use crate::host_counters::PyHostCounter;
use crate::policy::AnyPolicy;
use crate::process::detached;
use crate::records::{self, AnyNow, AnySyncBound};
use crate::sets::{PyPausedSet, PySetPlan, PySetReport, Sets};
use crate::vm::{Guest, PyModelVm};
use crate::wishes::Wishes;
use crate::{registers, words};
use guestclock_core::arch::arm64::{Timer, View};
use guestclock_core::checkpoint::Checkpoint;
use guestclock_core::checkpoint::VmName;
use guestclock_core::restore::Request;
use guestclock_core::time::{Counter, Frequency, HostCount, NO_DEADLINE};
use guestclock_model::bank::{Bank, BankError, Handle, Selection};
use guestclock_model::deadlines::NotTaken;
use guestclock_model::locked::{LockedBank, LockedVm};
use guestclock_model::sets::{SetSaving, handles_named};
use numpy::{PyArray1, PyArrayDyn};
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use std::ops::Range;
use std::slice::from_ref;
use std::sync::Arc;

/// Number of vCPUs from which a call lets other Python threads run: the call takes 3 us or more then, and giving up the
/// GIL and taking it again 50 ns. The call works on the bank's own columns and on an array that nobody else knows yet,
/// so no Python object can change either meanwhile; into the caller's `out=` it writes under the GIL.
const RELEASE_GIL_FROM: usize = 8192;

/// Many VMs with their vCPUs, as columns over one counter: a query of all of them costs a pass over columns.
///
/// `counter` is the host's by default. `timers` is the most timers that a vCPU has: 2, or 4 for guests with EL2. VMs
/// and vCPUs are named by int64 handles, which are never given to others: vCPU n of the VM `h` is `h + n`.
///
/// `now` is a count of `counter` as its `read` gives it, by default its present one. All counts and deadlines are in its
/// ticks, except those of the counters that guests read. `select` is an int64 array of vCPU handles, each once, in any
/// order, or a bool array over `vcpus()`; without `select`, a result is in the order of `vcpus()`. `out` is a
/// C-contiguous array of exactly the result's dtype and shape that overlaps with no input; without `out`, the result is
/// a new array. Inputs may be strided; they are copied. All arguments are checked before anything is written: TypeError for another dtype,
/// ValueError for a shape or an overlap, IndexError for a handle that the bank hasn't got. Safe to use from many
/// threads.
#[pyclass(frozen, name = "ClockBank", module = "guestclock.model")]
pub(crate) struct PyClockBank {
    bank: Arc<LockedBank>,
    counter: AnyCounter,
    counter_object: Py<PyAny>,
    alarms: Arc<Alarms>,
}

/// The selected vCPUs.
enum Chosen {
    All,
    Some(Vec<Handle>),
    Mask(Vec<bool>),
}

impl Chosen {
    /// Reads `select`, and returns the array's extent in memory with it.
    fn new(select: Option<&Bound<'_, PyAny>>) -> PyResult<(Self, Range<usize>)> {
        let Some(select) = select else { return Ok((Self::All, 0..0)) };
        if select.cast::<PyArray1<bool>>().is_ok() {
            let Column { values, bytes } = column(select, "select")?;
            return Ok((Self::Mask(values), bytes));
        }
        let what = "select (or a mask: one of bool)";
        let Column { values, bytes } = column(select, what)?;
        Ok((Self::Some(values.into_iter().map(Handle).collect()), bytes))
    }

    /// Number of rows of a result.
    fn rows(&self, bank: &Bank) -> usize {
        match self {
            Self::All => bank.vcpus(),
            Self::Some(vcpus) => vcpus.len(),
            Self::Mask(mask) => mask.iter().filter(|chosen| **chosen).count(),
        }
    }

    fn selection(&self, bank: &mut Bank) -> Result<Selection, BankError> {
        match self {
            Self::All => Ok(bank.all()),
            Self::Some(vcpus) => bank.select(vcpus),
            Self::Mask(mask) => bank.select_mask(mask),
        }
    }
}

fn handles(array: &Bound<'_, PyAny>, what: &str) -> PyResult<Vec<Handle>> {
    Ok(column(array, what)?.values.into_iter().map(Handle).collect())
}

/// VM handles: one, or an array.
fn vm_handles(vms: &Bound<'_, PyAny>) -> PyResult<Vec<Handle>> {
    // An array isn't tried as an integer: the error that says that it is none has its repr.
    let one = if vms.cast::<PyArray1<i64>>().is_ok() { None } else { int(vms).ok() };
    one.map_or_else(|| handles(vms, "vms (or one int)"), |vm| Ok(vec![Handle(vm)]))
}

impl PyClockBank {
    /// The alarms that wait for the bank's next deadline.
    pub(crate) fn alarms(&self) -> &Arc<Alarms> {
        &self.alarms
    }

    /// Changes the bank, then updates its VMs' published offsets and its alarms.
    fn with<T: Send>(&self, py: Python<'_>, rows: usize, work: impl FnOnce(&mut Bank) -> T + Send) -> T {
        about(py, rows, || self.bank.with(|bank| work(bank.bank_mut())))
    }

    /// Runs a query on the bank.
    fn ask<T: Send>(&self, py: Python<'_>, rows: usize, ask: impl FnOnce(&mut Bank) -> T + Send) -> T {
        about(py, rows, || self.bank.ask(ask))
    }

    /// Reads a Python counter before the bank's lock is taken.
    fn sampled(&self, py: Python<'_>, now: Option<Int<u64>>) -> PyResult<Sampled> {
        self.counter.sampled(py, count(now))
    }

    fn now(&self, now: Option<Int<u64>>) -> HostCount {
        count(now).unwrap_or_else(|| self.counter.count())
    }

    /// Works on the selected vCPUs at one instant. Returns false, for the caller to begin again, if there aren't `rows` of
    /// them any more, since the arrays were made outside of the bank's lock; and if another thread has the bank, with
    /// `into_out`.
    fn at_once(
        &self,
        py: Python<'_>,
        (chosen, rows): (&Chosen, usize),
        into_out: bool,
        now: Option<Int<u64>>,
        work: impl FnOnce(&Bank, HostCount, &Selection) + Send,
    ) -> PyResult<bool> {
        let _sample = self.sampled(py, now)?;
        let once = |bank: &mut Bank| {
            if chosen.rows(bank) != rows {
                return Ok(false);
            }
            let selection = chosen.selection(bank)?;
            work(bank, self.now(now), &selection);
            Ok::<bool, BankError>(true)
        };
        // Waiting would give up the GIL, and let others write to the caller's array meanwhile.
        let done = if into_out { self.bank.try_ask(once).unwrap_or(Ok(false)) } else { self.ask(py, rows, once) };
        done.or_raise()
    }

    /// Computes a result of the shape `shape(rows)` for the selected vCPUs, into `out` or a new array.
    fn compute<'py, T: Named + Send>(
        &self,
        py: Python<'py>,
        select: Option<&Bound<'py, PyAny>>,
        out: Option<&Bound<'py, PyAny>>,
        shape: impl Fn(usize) -> Vec<usize>,
        now: Option<Int<u64>>,
        work: impl Fn(&Bank, HostCount, &Selection, &mut [T]) + Send + Sync,
    ) -> PyResult<Bound<'py, PyArrayDyn<T>>> {
        let (chosen, input) = Chosen::new(select)?;
        loop {
            let rows = self.bank.look(|bank| chosen.rows(bank));
            let array = output::<T>(py, out, &shape(rows), from_ref(&input))?;
            let mut column = writable(&array)?;
            let values = column.as_slice_mut()?;
            if self
                .at_once(py, (&chosen, rows), out.is_some(), now, |bank, now, vcpus| work(bank, now, vcpus, values))?
            {
                return Ok(array);
            }
        }
    }
}

#[pymethods]
impl PyClockBank {
    #[new]
    #[pyo3(signature = (counter=None, *, timers=2))]
    fn new(
        py: Python<'_>,
        counter: Option<Bound<'_, PyAny>>,
        #[pyo3(from_py_with = int)] timers: u8,
    ) -> PyResult<Self> {
        ready(py)?;
        let el2 = match timers {
            2 => false,
            4 => true,
            _ => {
                return Err(PyValueError::new_err(format!(
                    "timers={timers}: a vCPU has 2, or 4 where its guest has EL2"
                )));
            }
        };
        let counter_object = match counter {
            Some(counter) => counter,
            None => py.get_type::<PyHostCounter>().call0()?,
        };
        let counter = counter_object.extract::<AnyCounter>()?;
        let (isa, bank) = (chosen_isa(py)?, Arc::new(LockedBank::new(counter.frequency(), el2)));
        bank.with(|bank| bank.bank_mut().set_isa(isa));
        bank.on_wait(without_the_gil);
        let alarms = Arc::<Alarms>::default();
        let told = Arc::clone(&alarms);
        bank.on_change(move |bank| told.changed(|now| bank.ask(|bank| bank.next_deadline(now))));
        Ok(Self { bank, counter, counter_object: counter_object.unbind(), alarms })
    }

    /// The counter that the guests' counters are offset from.
    #[getter]
    fn counter(&self, py: Python<'_>) -> Py<PyAny> {
        self.counter_object.clone_ref(py)
    }

    /// The counter's frequency, in Hz.
    #[getter]
    fn frequency_hz(&self) -> u64 {
        self.counter.frequency().hz()
    }

    /// Number of timers of a vCPU that the bank has columns for: 2 or 4.
    #[getter]
    fn timers(&self) -> usize {
        self.bank.look(Bank::timers)
    }

    /// Memory of the bank, in bytes, the deadline queue included.
    #[getter]
    fn nbytes(&self) -> usize {
        self.bank.bytes()
    }

    /// Adds a VM with `vcpus` vCPUs, all created at `now`, and returns its handle. See `ModelVm` for the other
    /// arguments.
    ///
    /// `frequency_hz` is the guest's CNTFRQ_EL0, by default the counter's. For a guest that was saved at another
    /// frequency the guest's counters are `floor(count * frequency_hz / counter.frequency_hz)` less its offset, exact
    /// to the tick. KVM can't rescale.
    #[pyo3(signature = (
        vcpus=1, *, frequency_hz=None, kernel=None, nested=false, e2h0=false, irqchip="in-kernel", vhe=true, now=None
    ))]
    fn add(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = int)] vcpus: usize,
        frequency_hz: Option<Int<u64>>,
        kernel: Option<&str>,
        nested: bool,
        e2h0: bool,
        irqchip: &str,
        vhe: bool,
        now: Option<Int<u64>>,
    ) -> PyResult<i64> {
        let vms = self.add_all(py, 1, vcpus, frequency_hz, Guest::new(kernel, nested, e2h0, irqchip, vhe, 64)?, now)?;
        Ok(vms[0].0)
    }

    /// Adds `vms` VMs that are alike, and returns their handles (int64): see `add`.
    #[pyo3(signature = (
        vms, vcpus=1, *, frequency_hz=None, kernel=None, nested=false, e2h0=false, irqchip="in-kernel", vhe=true, now=None
    ))]
    fn add_many<'py>(
        &self,
        py: Python<'py>,
        vms: Int<usize>,
        #[pyo3(from_py_with = int)] vcpus: usize,
        frequency_hz: Option<Int<u64>>,
        kernel: Option<&str>,
        nested: bool,
        e2h0: bool,
        irqchip: &str,
        vhe: bool,
        now: Option<Int<u64>>,
    ) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let guest = Guest::new(kernel, nested, e2h0, irqchip, vhe, 64)?;
        Ok(as_array(py, self.add_all(py, vms.0, vcpus, frequency_hz, guest, now)?.into_iter()))
    }

    /// Removes VMs with their vCPUs: an int, or an int64 array of handles. The handles are never given to another VM.
    fn remove(&self, py: Python<'_>, vms: Bound<'_, PyAny>) -> PyResult<()> {
        let vms = vm_handles(&vms)?;
        self.with(py, vms.len(), |bank| bank.remove_all(&vms)).or_raise()
    }

    /// A VM of the bank, as a `ModelVm`: a view of its rows. IndexError for a handle that the bank hasn't got.
    ///
    /// The `ModelVm` is over the bank's counter, or over a `ScaledCounter` of it for a VM of another frequency: its
    /// `now=` and deadlines are in that counter's ticks. Once the VM is removed, every call on the view is refused.
    fn vm(&self, py: Python<'_>, handle: Int<i64>) -> PyResult<Py<PyModelVm>> {
        let handle = Handle(handle.0);
        let hz = self.bank.look(|bank| bank.vm(handle).map(|vm| u64::from(vm.cntfrq_hz()))).or_raise()?;
        let counter = if hz == self.frequency_hz() {
            self.counter(py).into_bound(py)
        } else {
            Bound::new(py, PyScaledCounter::new(self.counter(py).into_bound(py), Int(hz))?)?.into_any()
        };
        let live = LockedVm::of(Arc::clone(&self.bank), handle, counter.extract::<AnyCounter>()?).or_raise()?;
        let name = VmName::new(&handle.0.to_string()).unwrap_or_default();
        Py::new(py, PyModelVm::new_over(live, counter.unbind(), name))
    }

    /// The handles of all VMs (int64).
    fn vms<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        let vms: Vec<Handle> = self.bank.look(|bank| bank.handles().collect());
        as_array(py, vms.into_iter())
    }

    /// The handles of all vCPUs (int64), in the order of their rows: VM by VM as they were added, VMs of the counter's
    /// own frequency first. A VM that gets another vCPU later may go to the end.
    fn vcpus<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        let vcpus: Vec<Handle> = self.ask(py, 0, |bank| bank.vcpu_handles().collect());
        as_array(py, vcpus.into_iter())
    }

    /// CNTVCT_EL0 as the guests read it, all at one instant: uint64, of shape (n,).
    #[pyo3(signature = (now=None, *, select=None, out=None))]
    fn cntvct<'py>(
        &self,
        py: Python<'py>,
        now: Option<Int<u64>>,
        select: Option<Bound<'py, PyAny>>,
        out: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyArrayDyn<u64>>> {
        self.count(py, View::Virtual, now, select, out)
    }

    /// CNTPCT_EL0 as the guests read it, all at one instant: uint64, of shape (n,).
    #[pyo3(signature = (now=None, *, select=None, out=None))]
    fn cntpct<'py>(
        &self,
        py: Python<'py>,
        now: Option<Int<u64>>,
        select: Option<Bound<'py, PyAny>>,
        out: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyArrayDyn<u64>>> {
        self.count(py, View::Physical, now, select, out)
    }

    /// Both counters at one instant: uint64, of shape (2, n), CNTVCT_EL0 first.
    #[pyo3(signature = (now=None, *, select=None, out=None))]
    fn counts<'py>(
        &self,
        py: Python<'py>,
        now: Option<Int<u64>>,
        select: Option<Bound<'py, PyAny>>,
        out: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyArrayDyn<u64>>> {
        self.compute(
            py,
            select.as_ref(),
            out.as_ref(),
            |rows| vec![2, rows],
            now,
            |bank, now, vcpus, out| {
                let (virt, phys) = out.split_at_mut(vcpus.len());
                bank.counts(now, View::Virtual, vcpus, virt);
                bank.counts(now, View::Physical, vcpus, phys);
            },
        )
    }

    /// The offsets of the vCPUs' counters, in ticks, modulo 2^64: uint64, of shape (2, n), the virtual counter's first.
    /// A running vCPU keeps the offsets that it was loaded with.
    #[pyo3(signature = (*, select=None, out=None))]
    fn offsets<'py>(
        &self,
        py: Python<'py>,
        select: Option<Bound<'py, PyAny>>,
        out: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyArrayDyn<u64>>> {
        self.compute(
            py,
            select.as_ref(),
            out.as_ref(),
            |rows| vec![2, rows],
            Some(Int(0)),
            |bank, _, vcpus, out| {
                let (virt, phys) = out.split_at_mut(vcpus.len());
                bank.offsets(View::Virtual, vcpus, virt);
                bank.offsets(View::Physical, vcpus, phys);
            },
        )
    }

    /// True for each vCPU that is in its guest: bool, of shape (n,).
    #[pyo3(signature = (*, select=None, out=None))]
    fn running<'py>(
        &self,
        py: Python<'py>,
        select: Option<Bound<'py, PyAny>>,
        out: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyArrayDyn<bool>>> {
        self.compute(
            py,
            select.as_ref(),
            out.as_ref(),
            |rows| vec![rows],
            Some(Int(0)),
            |bank, _, vcpus, out| {
                bank.running(vcpus, out);
            },
        )
    }

    /// Opts VMs in to one counter offset each (KVM_ARM_SET_COUNTER_OFFSET): int64 handles, each once, and uint64 ticks.
    ///
    /// Does for each VM what `ModelVm.set_counter_offset` does, for all of them or for none: VcpuRunning (EBUSY) while
    /// a vCPU of any of them runs.
    fn set_offsets(&self, py: Python<'_>, vms: Bound<'_, PyAny>, offsets: Bound<'_, PyAny>) -> PyResult<()> {
        let vms = handles(&vms, "vms")?;
        let offsets = column::<u64>(&offsets, "offsets")?.values;
        same_rows("vms", vms.len(), "offsets", offsets.len())?;
        self.with(py, vms.len(), |bank| bank.set_offsets(&vms, &offsets)).or_raise()
    }

    /// Writes CVAL and CTL of one timer of many vCPUs: int64 handles, each once, uint64 and uint8.
    ///
    /// Does for each vCPU what KVM_SET_ONE_REG does, for all of them or for none: VcpuRunning (EBUSY) for a vCPU that
    /// runs, UnknownRegister (ENOENT) for a guest that hasn't got the timer.
    fn set_timers(
        &self,
        py: Python<'_>,
        timer: Int<usize>,
        vcpus: Bound<'_, PyAny>,
        cval: Bound<'_, PyAny>,
        ctl: Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (timer, vcpus) = (registers::timer(timer.0)?, handles(&vcpus, "vcpus")?);
        let (cval, ctl) = (column::<u64>(&cval, "cval")?.values, column::<u8>(&ctl, "ctl")?.values);
        same_rows("vcpus", vcpus.len(), "cval", cval.len())?;
        same_rows("vcpus", vcpus.len(), "ctl", ctl.len())?;
        self.with(py, vcpus.len(), |bank| bank.set_timers(timer, &vcpus, &cval, &ctl)).or_raise()
    }

    /// Every timer at one instant: `Lines`, of ISTATUS and of the interrupt lines (bool, of shape (timers, n), a row
    /// for each of `Timer`), and of `next_deadlines` (uint64, of shape (n,)). `out` is a tuple of three such arrays.
    ///
    /// A timer that a guest hasn't got is off, and compares with 0.
    #[pyo3(signature = (now=None, *, select=None, out=None))]
    fn evaluate<'py>(
        &self,
        py: Python<'py>,
        now: Option<Int<u64>>,
        select: Option<Bound<'py, PyAny>>,
        out: Option<(Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>)>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (timers, (chosen, input)) = (self.timers(), Chosen::new(select.as_ref())?);
        let given = out.as_ref().map(|(istatus, line, deadlines)| [istatus, line, deadlines]);
        loop {
            let rows = self.bank.look(|bank| chosen.rows(bank));
            let mut taken = vec![input.clone()];
            let istatus = output::<bool>(py, given.map(|out| out[0]), &[timers, rows], &taken)?;
            taken.push(extent(&istatus));
            let line = output::<bool>(py, given.map(|out| out[1]), &[timers, rows], &taken)?;
            taken.push(extent(&line));
            let deadlines = output::<u64>(py, given.map(|out| out[2]), &[rows], &taken)?;
            let (mut met, mut high, mut next) = (writable(&istatus)?, writable(&line)?, writable(&deadlines)?);
            let (met, high, next) = (met.as_slice_mut()?, high.as_slice_mut()?, next.as_slice_mut()?);
            let evaluate = |bank: &Bank, now, vcpus: &Selection| bank.evaluate(now, vcpus, met, high, next);
            if self.at_once(py, (&chosen, rows), given.is_some(), now, evaluate)? {
                return records::lines(py, istatus, line, deadlines);
            }
        }
    }

    /// The count at which the first of each vCPU's lines goes high by itself: uint64, of shape (n,).
    ///
    /// `now` where a line is high, NO_DEADLINE (2^64 - 1) where none will be; a deadline at or past that is one less.
    #[pyo3(signature = (now=None, *, select=None, out=None))]
    fn next_deadlines<'py>(
        &self,
        py: Python<'py>,
        now: Option<Int<u64>>,
        select: Option<Bound<'py, PyAny>>,
        out: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyArrayDyn<u64>>> {
        self.compute(
            py,
            select.as_ref(),
            out.as_ref(),
            |rows| vec![rows],
            now,
            |bank, now, vcpus, out| {
                bank.next_deadlines(now, vcpus, out);
            },
        )
    }

    /// The earliest of `next_deadlines` of each VM: uint64, for the handles `vms` (int64, each once), or for all VMs in
    /// the order of `vms()`.
    #[pyo3(signature = (now=None, *, vms=None))]
    fn next_deadlines_of_vms<'py>(
        &self,
        py: Python<'py>,
        now: Option<Int<u64>>,
        vms: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let vms = vms.map(|vms| handles(&vms, "vms")).transpose()?;
        let rows = self.bank.look(Bank::vcpus);
        let _sample = self.sampled(py, now)?;
        let deadlines = self.ask(py, rows, |bank| {
            let mut deadlines = vec![NO_DEADLINE; vms.as_ref().map_or(bank.len(), Vec::len)];
            bank.next_deadlines_of_vms(self.now(now), vms.as_deref(), &mut deadlines).map(|()| deadlines)
        });
        Ok(PyArray1::from_slice(py, &deadlines.or_raise()?))
    }

    /// The count at which the next line goes high: `now` where a line is high, NO_DEADLINE (2^64 - 1) where none will
    /// be.
    ///
    /// Takes the same time whatever the number of timers. Ignores timers already returned by `expire`, until they are
    /// written again or an offset change of their VM puts them into the future, and those of a VM that is paused or being
    /// restored, until it goes on.
    #[pyo3(signature = (now=None))]
    fn next_deadline(&self, py: Python<'_>, now: Option<Int<u64>>) -> PyResult<u64> {
        let _sample = self.sampled(py, now)?;
        Ok(self.bank.ask(|bank| bank.next_deadline(self.now(now))))
    }

    /// The timers whose lines have gone high: `Expired`, of their vCPUs (int64), timers (uint8) and deadlines (uint64),
    /// in the order of the deadlines, then of the vCPUs' handles and the timers.
    ///
    /// Each timer is returned once, until it is written again or an offset change of its VM puts it into the future.
    /// A VM that is paused or being restored has none until it goes on.
    /// The cost of a call depends on the number of timers that it returns, not on how many are pending. A deadline
    /// before the counter's first count is 0. MemoryError where there is no memory for them: none was returned then.
    #[pyo3(signature = (now=None))]
    fn expire<'py>(&self, py: Python<'py>, now: Option<Int<u64>>) -> PyResult<Bound<'py, PyAny>> {
        let mut most = FEW;
        loop {
            let (vcpus, timers, deadlines) = (Room::new(py, most)?, Room::new(py, most)?, Room::new(py, most)?);
            let pending = self.bank.look(Bank::pending);
            let _sample = self.sampled(py, now)?;
            let fired = match self.ask(py, pending, |bank| bank.expire_at_most(most, self.now(now))) {
                Ok(fired) => fired,
                Err(NotTaken::More { due }) => {
                    most = due;
                    continue;
                }
                Err(error) => return Err(error.into_pyerr()),
            };
            let vcpus = vcpus.filled(py, fired.iter().map(|fired| fired.vcpu.0))?;
            let timers = timers.filled(py, fired.iter().map(|fired| fired.timer as u8))?;
            return records::expired(
                py,
                vcpus,
                timers,
                deadlines.filled(py, fired.iter().map(|fired| fired.deadline))?,
            );
        }
    }

    /// The lines whose level has changed since the last call: `Changes`, of their vCPUs (int64), timers (uint8) and
    /// levels (bool), each timer's in the order of `vcpus()`. A new vCPU's lines are low. Those of a VM that is paused or
    /// being restored stay as they were seen, until it goes on.
    #[pyo3(signature = (now=None))]
    fn changes<'py>(&self, py: Python<'py>, now: Option<Int<u64>>) -> PyResult<Bound<'py, PyAny>> {
        let rows = self.bank.look(Bank::vcpus);
        let _sample = self.sampled(py, now)?;
        let changes = self.ask(py, rows, |bank| bank.changes(self.now(now)));
        let vcpus = as_array(py, changes.iter().map(|change| change.vcpu));
        let timers = numbers(py, changes.iter().map(|change| change.timer));
        records::changes(py, vcpus, timers, new_array(py, changes.iter().map(|change| change.level)))
    }

    /// `Fleet.checkpoint` for a bank: all VMs with the handles `vms` (int64) at one instant, named `names` in the order of
    /// `vms`, by default by the digits of their handles. `stopped_at` is one count, or a list with one for
    /// each, or None.
    #[pyo3(signature = (vms=None, *, names=None, now=None, stopped_at=None, sync=None))]
    fn _checkpoint(
        &self,
        py: Python<'_>,
        vms: Option<Bound<'_, PyAny>>,
        names: Option<Vec<String>>,
        now: Option<AnyNow>,
        stopped_at: Option<Bound<'_, PyAny>>,
        sync: Option<AnySyncBound>,
    ) -> PyResult<PyCheckpoint> {
        let vms = self.vms_or_all(vms.as_ref())?;
        let names: Option<Vec<VmName>> =
            names.map(|names| names.iter().map(|name| vm_name(name)).collect()).transpose()?;
        let stopped_at = match &stopped_at {
            None => Vec::new(),
            Some(stops) => match stops.cast::<PyList>() {
                Ok(stops) => stops.extract::<Vec<Option<Int<u64>>>>()?.into_iter().map(count).collect(),
                Err(_) => vec![count(Some(stops.extract()?))],
            },
        };
        let sync = sync.map(AnySyncBound::sync_bound).transpose()?;
        if sync.asks(now.as_ref().map(|now| &now.0)) {
            self.counter.ask(py)?;
        }
        let checkpoint = self.sets().with(py, now, |bank, counter| {
            let saving = SetSaving { names: names.as_deref(), stopped_at: &stopped_at, sync };
            bank.checkpoint(&vms, counter, saving)
        });
        checkpoint.map(PyCheckpoint::from)
    }

    /// `Fleet.restore` for a bank: all VMs for one instant, or none. `vms` is a handle for each VM of the checkpoint, in
    /// its order (int64), by default the handles that are their names.
    ///
    /// VMs that are alike share a plan. A refusal for one VM refuses all, with a note that names the VM.
    #[pyo3(signature = (checkpoint, policy=None, *, vms=None, options=None, now=None, **keywords))]
    fn _restore(
        &self,
        py: Python<'_>,
        checkpoint: &Bound<'_, PyCheckpoint>,
        policy: Option<AnyPolicy>,
        vms: Option<Bound<'_, PyAny>>,
        options: Option<Bound<'_, PyAny>>,
        now: Option<AnyNow>,
        keywords: Option<Bound<'_, PyDict>>,
    ) -> PyResult<PySetReport> {
        let checkpoint = &checkpoint.get().0;
        let (request, vms) = self.wanted(py, checkpoint, policy, vms, options, now.as_ref(), keywords)?;
        self.sets()
            .with(py, now, |bank, counter| bank.restore(checkpoint, &vms, counter, request))
            .map(|set| PySetReport::restored(set, Arc::clone(checkpoint)))
    }

    /// `Fleet.plan` for a bank, with `_restore`'s arguments. A refusal for one VM refuses all.
    #[pyo3(signature = (checkpoint, policy=None, *, vms=None, options=None, now=None, **keywords))]
    fn _plan(
        &self,
        py: Python<'_>,
        checkpoint: &Bound<'_, PyCheckpoint>,
        policy: Option<AnyPolicy>,
        vms: Option<Bound<'_, PyAny>>,
        options: Option<Bound<'_, PyAny>>,
        now: Option<AnyNow>,
        keywords: Option<Bound<'_, PyDict>>,
    ) -> PyResult<PySetPlan> {
        let checkpoint = &checkpoint.get().0;
        let (request, vms) = self.wanted(py, checkpoint, policy, vms, options, now.as_ref(), keywords)?;
        let plans = self.sets().with(py, now, |bank, counter| bank.plan(checkpoint, &vms, counter, request))?;
        Ok(PySetPlan::new(vms, plans, Arc::clone(checkpoint)))
    }

    /// `Fleet.pause` for a bank: all VMs with the handles `vms` (int64), at one instant, or none.
    #[pyo3(signature = (policy=None, *, vms=None, views="preserve"))]
    fn _pause(
        &self,
        py: Python<'_>,
        policy: Option<AnyPolicy>,
        vms: Option<Bound<'_, PyAny>>,
        views: &str,
    ) -> PyResult<PyPausedSet> {
        let vms = self.vms_or_all(vms.as_ref())?;
        let request = Wishes::of_views(views).request(policy)?;
        let pauses = self.sets().with(py, None, |bank, counter| bank.pause(&vms, counter, request))?;
        Ok(PyPausedSet::new(self.sets(), pauses))
    }

    /// Number of VMs.
    fn __len__(&self) -> usize {
        self.bank.look(Bank::len)
    }

    /// True if the bank has a VM with this handle.
    fn __contains__(&self, handle: Int<i64>) -> bool {
        self.bank.look(|bank| bank.contains(Handle(handle.0)))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let counter = self.counter_object.bind(py).repr()?;
        let (vms, vcpus) = self.bank.look(|bank| (bank.len(), bank.vcpus()));
        Ok(format!("<ClockBank of {vms} VMs with {vcpus} vCPUs over {counter}>"))
    }
}

impl PyClockBank {
    /// The request and the VMs of a plan or a restore of many.
    fn wanted(
        &self,
        py: Python<'_>,
        checkpoint: &Checkpoint,
        policy: Option<AnyPolicy>,
        vms: Option<Bound<'_, PyAny>>,
        options: Option<Bound<'_, PyAny>>,
        now: Option<&AnyNow>,
        keywords: Option<Bound<'_, PyDict>>,
    ) -> PyResult<(Request, Vec<Handle>)> {
        let request = Wishes::new(py, options, keywords)?.request(policy)?;
        if request.asks(now.map(|now| &now.0)) {
            self.counter.ask(py)?;
        }
        let vms = match vms {
            Some(vms) => handles(&vms, "vms")?,
            None => handles_named(checkpoint).or_raise()?,
        };
        Ok((request, vms))
    }

    fn count<'py>(
        &self,
        py: Python<'py>,
        view: View,
        now: Option<Int<u64>>,
        select: Option<Bound<'py, PyAny>>,
        out: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyArrayDyn<u64>>> {
        self.compute(
            py,
            select.as_ref(),
            out.as_ref(),
            |rows| vec![rows],
            now,
            |bank, now, vcpus, out| {
                bank.counts(now, view, vcpus, out);
            },
        )
    }

    fn add_all(
        &self,
        py: Python<'_>,
        vms: usize,
        vcpus: usize,
        frequency_hz: Option<Int<u64>>,
        Guest { behaviours, config, .. }: Guest,
        now: Option<Int<u64>>,
    ) -> PyResult<Vec<Handle>> {
        let hz = plain(frequency_hz).unwrap_or_else(|| self.frequency_hz());
        let frequency = Frequency::new(hz).ok_or_else(|| PyValueError::new_err("frequency_hz must be at least 1"))?;
        let _sample = self.sampled(py, now)?;
        let add = || self.bank.with(|bank| bank.add_many(vms, vcpus, frequency, behaviours, config, self.now(now)));
        let added = about(py, vms, add);
        added.or_raise()
    }
}

impl PyClockBank {
    fn sets(&self) -> Sets {
        Sets { bank: Arc::clone(&self.bank), counter: self.counter.clone() }
    }

    fn vms_or_all(&self, vms: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<Handle>> {
        match vms {
            Some(vms) => vm_handles(vms),
            None => Ok(self.bank.look(|bank| bank.handles().collect())),
        }
    }
}

/// Blocks without the GIL: another thread may hold the bank for milliseconds.
fn without_the_gil(block: &(dyn Fn() + Sync)) {
    if Python::try_attach(|py| detached(py, block)).is_none() {
        block();
    }
}

/// Does `work`, without the GIL where it is about many rows.
fn about<T: Send>(py: Python<'_>, rows: usize, work: impl FnOnce() -> T + Send) -> T {
    if rows < RELEASE_GIL_FROM { work() } else { detached(py, work) }
}

fn numbers(py: Python<'_>, timers: impl Iterator<Item = Timer>) -> Bound<'_, PyArray1<u8>> {
    new_array(py, timers.map(|timer| timer as u8))
}

impl IntoPyErr for BankError {
    #[cold]
    fn into_pyerr(self) -> PyErr {
        let message = words::bank_error(&self);
        match self {
            Self::NoSuchVm { .. } | Self::NoSuchVcpu { .. } => typed("NoSuchVm", &message, |_| Ok(())),
            Self::OfVm { handle, error } => noted(error.into_pyerr(), handle),
            Self::Vm(error) => error.into_pyerr(),
            Self::NoMemory { .. } => PyMemoryError::new_err(message),
            _ => PyValueError::new_err(message),
        }
    }
}
