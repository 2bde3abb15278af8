//! The deadline queue.

use crate::alarms::Alarms;
use crate::arguments::{Int, Modular};
use crate::arrays::{FEW, Room, column, ready};
use crate::errors::{IntoPyErr, OrRaise};
use crate::process::{detached, locked};
use guestclock_core::time::{HostCount, Offset};
use guestclock_model::deadlines::{DeadlineQueue, NotTaken};
use numpy::PyArray1;
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::PyRange;
use std::slice::from_ref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Number of timers from which a call lets other Python threads run: the call takes 100 us, and giving up the GIL and
/// taking it again 50 ns. The columns are copied before that, so nobody can write to them meanwhile.
const RELEASE_GIL_FROM: usize = 4096;

/// Ids and deadlines of the timers that were taken.
type Taken<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<u64>>);

/// Timers of many VMs, and which of them are due: the next deadline is always at hand, and no call looks at other
/// timers than its own.
///
/// A VM is a group of timers with one counter offset. Compare values (CVAL) are guest ticks; deadlines and `now` are
/// ticks of the host's counter, and the caller gives `now`. A timer is due while the guest's count, `now - offset`
/// modulo 2^64, is at or past its compare value, unsigned and without a wrap, as KVM compares (kvm_timer_pending in
/// arch/arm64/kvm/arch_timer.c). The queue doesn't know which timers are enabled and not masked: the caller arms those.
///
/// Timers and groups are named by ints, or by int64 arrays in the calls whose names end in `_many` and in
/// `set_offsets`; counts in arrays are uint64. Arrays are one-dimensional and may be strided; they are copied, and
/// refused as a whole before anything changes: TypeError for another dtype, ValueError for lengths that differ,
/// IndexError for a timer or a group that the queue hasn't got.
#[pyclass(frozen, name = "DeadlineQueue", module = "guestclock.model")]
pub(crate) struct PyDeadlineQueue {
    // A call for many timers works on the queue without the GIL.
    queue: Mutex<DeadlineQueue>,
    alarms: Arc<Alarms>,
}

impl PyDeadlineQueue {
    /// The alarms that wait for the queue's next deadline.
    pub(crate) fn alarms(&self) -> &Arc<Alarms> {
        &self.alarms
    }

    /// Notifies the alarms, after a call that may have made the next deadline an earlier one.
    fn changed(&self, py: Python<'_>) {
        self.alarms.changed(|now| self.lock(py).next_deadline(now));
    }

    fn lock(&self, py: Python<'_>) -> MutexGuard<'_, DeadlineQueue> {
        locked(py, &self.queue)
    }

    /// Does `work` on the queue, without the GIL where it is about many timers.
    fn with<T: Send>(&self, py: Python<'_>, timers: usize, work: impl FnOnce(&mut DeadlineQueue) -> T + Send) -> T {
        if timers < RELEASE_GIL_FROM {
            return work(&mut self.lock(py));
        }
        detached(py, || work(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// Timer ids or group numbers as the model's queue counts them.
fn indices(array: &Bound<'_, PyAny>, what: &str) -> PyResult<Vec<u32>> {
    let indices: Vec<i64> = column(array, what)?.values;
    // An index that is too large or negative has a bit up there.
    if indices.iter().fold(0, |all, index| all | index) >> 32 != 0 {
        indices.iter().try_for_each(|index| narrow(*index, what).map(|_| ()))?;
    }
    Ok(indices.iter().map(|index| (index.cast_unsigned() & 0xffff_ffff) as u32).collect())
}

fn narrow(index: i64, what: &str) -> PyResult<u32> {
    u32::try_from(index).map_err(|_| PyIndexError::new_err(format!("{what} are from 0 up to 2**32, and {index} isn't")))
}

#[pymethods]
impl PyDeadlineQueue {
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        ready(py)?;
        Ok(Self { queue: Mutex::new(DeadlineQueue::new()), alarms: Arc::default() })
    }

    /// Adds a VM with `timers` timers, none of them armed, and returns the group's number.
    ///
    /// `offset` is the guest's counter offset: the ticks by which its counter lies behind the host's, any int from
    /// -2^63 up to 2^64, modulo 2^64.
    #[pyo3(signature = (timers, *, offset=None))]
    fn add_group(&self, py: Python<'_>, timers: Int<u32>, offset: Option<Modular>) -> PyResult<u32> {
        let offset = offset.map_or(0, |Modular(offset)| offset);
        self.lock(py).add_group(timers.0, Offset(offset)).or_raise()
    }

    /// Removes a group with its timers. Groups that are added later get its number and its ids.
    fn remove_group(&self, py: Python<'_>, group: Int<i64>) -> PyResult<()> {
        self.lock(py).remove_group(narrow(group.0, "groups")?).or_raise()
    }

    /// The ids of a group's timers: a range. The ranges of two groups needn't follow each other.
    fn timers<'py>(&self, py: Python<'py>, group: Int<i64>) -> PyResult<Bound<'py, PyRange>> {
        let timers = self.lock(py).timers(narrow(group.0, "groups")?).or_raise()?;
        PyRange::new(py, isize::try_from(timers.start)?, isize::try_from(timers.end)?)
    }

    /// A group's counter offset, in ticks, from 0 up to 2^64.
    fn offset(&self, py: Python<'_>, group: Int<i64>) -> PyResult<u64> {
        self.lock(py).offset(narrow(group.0, "groups")?).or_raise().map(|offset| offset.0)
    }

    /// Sets a group's counter offset. All its deadlines move with it, at the cost of one.
    fn set_offset(&self, py: Python<'_>, group: Int<i64>, offset: Modular) -> PyResult<()> {
        let offset = Offset(offset.0);
        self.lock(py).set_offset(narrow(group.0, "groups")?, offset).or_raise()?;
        self.changed(py);
        Ok(())
    }

    /// Sets the offsets of many groups, in this order: int64 numbers, uint64 ticks.
    fn set_offsets(&self, py: Python<'_>, groups: Bound<'_, PyAny>, offsets: Bound<'_, PyAny>) -> PyResult<()> {
        let groups = indices(&groups, "groups")?;
        let offsets: Vec<u64> = column(&offsets, "offsets")?.values;
        self.with(py, groups.len(), |queue| queue.set_offsets(&groups, &offsets)).or_raise()?;
        self.changed(py);
        Ok(())
    }

    /// Arms a timer with a compare value in guest ticks; an armed timer is moved.
    fn arm(&self, py: Python<'_>, timer: Int<i64>, cval: Int<u64>) -> PyResult<()> {
        self.lock(py).arm(&[narrow(timer.0, "timers")?], from_ref(&cval.0)).or_raise()?;
        self.changed(py);
        Ok(())
    }

    /// Arms many timers, in this order: int64 ids, uint64 compare values. An armed timer is moved.
    fn arm_many(&self, py: Python<'_>, timers: Bound<'_, PyAny>, cvals: Bound<'_, PyAny>) -> PyResult<()> {
        let timers = indices(&timers, "timers")?;
        let cvals: Vec<u64> = column(&cvals, "cvals")?.values;
        self.with(py, timers.len(), |queue| queue.arm(&timers, &cvals)).or_raise()?;
        self.changed(py);
        Ok(())
    }

    /// Disarms a timer; a timer that isn't armed stays so.
    fn disarm(&self, py: Python<'_>, timer: Int<i64>) -> PyResult<()> {
        self.lock(py).disarm(&[narrow(timer.0, "timers")?]).or_raise()
    }

    /// Disarms many timers, by their int64 ids; timers that aren't armed stay so.
    fn disarm_many(&self, py: Python<'_>, timers: Bound<'_, PyAny>) -> PyResult<()> {
        let timers = indices(&timers, "timers")?;
        self.with(py, timers.len(), |queue| queue.disarm(&timers)).or_raise()
    }

    /// The host count at which the next timer is due: `now` where a timer is due, 2^64 - 1 where none is armed. A
    /// deadline past the counter's last count is 2^64 - 2.
    fn next_deadline(&self, py: Python<'_>, now: Int<u64>) -> u64 {
        self.lock(py).next_deadline(HostCount(now.0))
    }

    /// Disarms the timers that are due, and returns their ids (int64) and deadlines (uint64), in the order of the
    /// deadlines and then of the ids.
    ///
    /// A deadline is the host count at which the timer became due: 0 where that was before the counter's first count.
    /// MemoryError where there is no memory for them: every timer is still armed then.
    fn expire<'py>(&self, py: Python<'py>, now: Int<u64>) -> PyResult<Taken<'py>> {
        let mut most = FEW;
        loop {
            let (ids, deadlines) = (Room::new(py, most)?, Room::new(py, most)?);
            let pending = self.lock(py).len();
            let taken = self.with(py, pending, |queue| {
                let mut fired = Vec::with_capacity(FEW);
                queue.expire_at_most(most, HostCount(now.0), &mut fired).map(|()| fired)
            });
            let fired = match taken {
                Ok(fired) => fired,
                Err(NotTaken::More { due }) => {
                    most = due;
                    continue;
                }
                Err(error) => return Err(error.into_pyerr()),
            };
            let ids = ids.filled(py, fired.iter().map(|fired| i64::from(fired.timer)))?;
            return Ok((ids, deadlines.filled(py, fired.iter().map(|fired| fired.deadline))?));
        }
    }

    /// Memory of the queue, in bytes.
    #[getter]
    fn nbytes(&self, py: Python<'_>) -> usize {
        self.lock(py).bytes()
    }

    /// Number of armed timers.
    fn __len__(&self, py: Python<'_>) -> usize {
        self.lock(py).len()
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        format!("<DeadlineQueue with {} timers armed>", self.lock(py).len())
    }
}
