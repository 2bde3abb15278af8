//! The small records of `guestclock.types`.

use crate::arguments::{Int, Part, quoted, record};
use crate::errors::OrRaise;
use crate::words;
use core::num::NonZeroU64;

use guestclock_core::arch::arm64::{CTL_ISTATUS, Timer, TimerState};
use guestclock_core::checkpoint::{Backlog, Reading};
use guestclock_core::drive::{self, CallTotals, Mismatch, TracedCall, Verb, Verified};
use guestclock_core::guest::{CpuQuota, Limit, LinuxGuest, Reached, Softdog};
use guestclock_core::restore::{Diagnostic, LatchMismatch, State, TimerStatus, Words};
use guestclock_core::time::{
    BootTime, Counter, Frequency, GuestCount, HostCount, Leap, NO_DEADLINE, OffsetInterval, Quality, SourceName, Stamp,
    StampCount, SyncBound,
};
use guestclock_model::VmError;
use guestclock_model::deadlines::Lateness;
use guestclock_model::locked::Now;
use numpy::{PyArray1, PyArrayDyn};
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyInt, PyList, PyTuple};

/// A class of `guestclock.types`, looked up once.
struct Class(&'static str, PyOnceLock<Py<PyAny>>);

impl Class {
    const fn new(name: &'static str) -> Self {
        Self(name, PyOnceLock::new())
    }

    fn get<'a, 'py>(&'a self, py: Python<'py>) -> PyResult<&'a Bound<'py, PyAny>> {
        self.1.import(py, "guestclock.types", self.0)
    }
}

/// Loads the records, before anything is there that may be lost for want of one: what has to be loaded first may fail for
/// want of a descriptor. Importing `guestclock` takes less time without them.
pub(crate) fn ready(py: Python<'_>) -> PyResult<()> {
    CROSS_TIMESTAMP.get(py).map(drop)
}

static CROSS_TIMESTAMP: Class = Class::new("Stamp");
static DIAGNOSTIC: Class = Class::new("Diagnostic");
static SYNC_BOUND: Class = Class::new("SyncBound");
static TIMER: Class = Class::new("Timer");
static BACKLOG: Class = Class::new("Backlog");
static READING: Class = Class::new("Reading");
static TIMER_OUTLOOK: Class = Class::new("TimerStatus");
static LATCH_MISMATCH: Class = Class::new("LatchMismatch");
static GUEST_LIMIT: Class = Class::new("GuestLimit");
static SUPPORT: Class = Class::new("Support");
static TRACED_CALL: Class = Class::new("TracedCall");
static CALL_TOTALS: Class = Class::new("CallTotals");
static LINES: Class = Class::new("Lines");
static CHANGES: Class = Class::new("Changes");
static EXPIRED: Class = Class::new("Expired");
static LATENESS: Class = Class::new("Lateness");
static MISMATCH: Class = Class::new("Mismatch");
static VERIFIED: Class = Class::new("Verified");
static CAPABILITIES: Class = Class::new("Capabilities");

/// `types.Lateness`, in ticks of this frequency.
pub(crate) fn lateness<'py>(py: Python<'py>, frequency: Frequency, lateness: &Lateness) -> PyResult<Bound<'py, PyAny>> {
    let by_length = PyTuple::new(py, lateness.by_length())?;
    LATENESS.get(py)?.call1((frequency.hz(), lateness.total_ticks(), lateness.max_ticks(), by_length))
}

/// `types.Stamp`.
pub(crate) fn stamp<'py>(py: Python<'py>, here: &Stamp) -> PyResult<Bound<'py, PyAny>> {
    let hex = |id: Option<[u8; 16]>| id.map(|id| format!("{:032x}", u128::from_be_bytes(id)));
    let vouched = PyDict::new(py);
    vouched.set_item("sync", here.sync.map(|sync| sync_bound(py, sync)).transpose()?)?;
    vouched.set_item("rate_ppb", here.rate_ppb)?;
    if let Some(BootTime { boottime_ns, slept_ns, width_ns }) = here.boot_time {
        vouched.set_item("boottime_ns", boottime_ns)?;
        vouched.set_item("slept_ns", slept_ns)?;
        vouched.set_item("slept_width_ns", width_ns)?;
    }
    let args = (
        here.count.0,
        here.frequency.hz(),
        here.source.as_str(),
        here.realtime_ns,
        here.width_ns,
        here.tai_offset_s,
        here.synchronized,
        here.max_error_ns,
        here.leap.name(),
        hex(here.machine_id),
        hex(here.boot_id),
    );
    CROSS_TIMESTAMP.get(py)?.call(args, Some(&vouched))
}

/// Distance of a stamp's wall clock from UTC at its count at most, in nanoseconds, and who says so; without a
/// bound, why there is none.
#[pyfunction]
pub(crate) fn _vouched(here: AnyStamp) -> PyResult<(Option<u64>, String)> {
    let here = here.stamp("here")?;
    Ok(match here.vouched() {
        Ok(sync) => (here.error_bound_ns(), sync.quality.name().to_owned()),
        Err(why) => (None, why.to_string()),
    })
}

/// True if nobody knows the clocks of a checkpoint's host.
#[pyfunction]
pub(crate) fn _is_unknown_host(host: AnyStamp) -> PyResult<bool> {
    host.stamp("host").map(|host| host.is_of_unknown_host())
}

/// A list of `types.Diagnostic`; of assumptions, with their ground.
pub(crate) fn diagnostics<'py>(
    py: Python<'py>,
    diagnostics: &[Diagnostic],
    assumptions: bool,
) -> PyResult<Bound<'py, PyList>> {
    let (class, list) = (DIAGNOSTIC.get(py)?, PyList::empty(py));
    for diagnostic in diagnostics {
        let ground = assumptions.then(|| diagnostic.ground().name());
        list.append(class.call1((diagnostic.code(), words::Python.diagnostic(diagnostic), ground))?)?;
    }
    Ok(list)
}

/// A list of `types.Diagnostic`: the evidence that a stamp lacks.
pub(crate) fn lacks<'py>(py: Python<'py>, stamp: &Stamp) -> PyResult<Bound<'py, PyList>> {
    let (class, list) = (DIAGNOSTIC.get(py)?, PyList::empty(py));
    for lack in stamp.lacks() {
        list.append(class.call1((lack.code(), lack.to_string(), None::<&str>))?)?;
    }
    Ok(list)
}

/// `types.SyncBound`.
pub(crate) fn sync_bound(py: Python<'_>, sync: SyncBound) -> PyResult<Bound<'_, PyAny>> {
    let SyncBound { max_error_ns, age_ns, holdover_ppb, quality, tai_offset_s } = sync;
    SYNC_BOUND.get(py)?.call1((max_error_ns, age_ns, holdover_ppb, quality.name(), tai_offset_s))
}

record! {
    /// `types.SyncBound` as an argument.
    #[derive(Clone)]
    pub(crate) struct AnySyncBound: "SyncBound" {
        max_error_ns: u64,
        age_ns: u64,
        holdover_ppb: u64,
        quality: String,
        tai_offset_s: Option<i32>,
    }
}

impl Part for AnySyncBound {
    fn part(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        value.extract()
    }
}

impl AnySyncBound {
    /// The core's.
    pub(crate) fn sync_bound(self) -> PyResult<SyncBound> {
        let Self { max_error_ns, age_ns, holdover_ppb, quality, tai_offset_s } = self;
        let quality = named("quality", &quality, &Quality::NAMES)?;
        Ok(SyncBound { max_error_ns, age_ns, holdover_ppb, quality, tai_offset_s })
    }
}

record! {
    /// `types.LinuxGuest` as an argument.
    pub(crate) struct AnyLinuxGuest: "LinuxGuest" {
        watchdog_thresh_s: u32,
        rcu_stall_s: u32,
        workqueue_s: u32,
        hung_task_s: u32,
        softdog_s: Option<(u32, u32)>,
        cpu_max_us: Option<(NonZeroU64, NonZeroU64)>,
    }
}

impl AnyLinuxGuest {
    /// The core's.
    pub(crate) fn guest(self) -> LinuxGuest {
        let Self { watchdog_thresh_s, rcu_stall_s, workqueue_s, hung_task_s, softdog_s, cpu_max_us } = self;
        LinuxGuest {
            watchdog_thresh_s,
            rcu_stall_s,
            workqueue_s,
            hung_task_s,
            softdog: softdog_s.map(|(timeout_s, fed_every_s)| Softdog { timeout_s, fed_every_s }),
            cpu_quota: cpu_max_us.map(|(quota_us, period_us)| CpuQuota { quota_us, period_us }),
        }
    }
}

/// An instant that a caller injects: a count as `read` gives it, with which the wall clock moves along, or a whole
/// stamp, which is host-wide.
#[derive(Clone)]
pub(crate) struct AnyNow(pub(crate) Now);

impl<'py> FromPyObject<'_, 'py> for AnyNow {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if object.hasattr(intern!(object.py(), "realtime_ns"))? {
            let instant: AnyStamp = object.extract()?;
            return Ok(Self(Now::Stamp(Box::new(instant.stamp("now")?))));
        }
        Ok(Self(Now::Count(HostCount(object.extract::<Int<_>>()?.0))))
    }
}

/// `types.Backlog`.
pub(crate) fn backlog<'py>(py: Python<'py>, backlog: &Backlog) -> PyResult<Bound<'py, PyAny>> {
    BACKLOG.get(py)?.call1((backlog.remaining_ticks.get(), backlog.step_ns.get(), backlog.interval_ns.get()))
}

/// `types.Reading`.
pub(crate) fn reading<'py>(py: Python<'py>, reading: &Reading) -> PyResult<Bound<'py, PyAny>> {
    READING.get(py)?.call1((reading.count.0, reading.realtime_ns, reading.width_ns))
}

record! {
    /// `types.Reading` as an argument.
    pub(crate) struct AnyReading: "Reading" {
        count: u64,
        realtime_ns: u64,
        width_ns: u64,
    }
}

impl From<AnyReading> for Reading {
    fn from(AnyReading { count, realtime_ns, width_ns }: AnyReading) -> Self {
        Self { count: GuestCount(count), realtime_ns, width_ns }
    }
}

/// `types.Timer`.
pub(crate) fn timer_of(py: Python<'_>, timer: Timer) -> PyResult<Bound<'_, PyAny>> {
    TIMER.get(py)?.call1((timer.index(),))
}

/// A count that a caller injects into a read: as `read` gives it, or that of a stamp.
pub(crate) enum AnyCount {
    /// As the counter's `read` gives it.
    Count(HostCount),
    /// Host-wide.
    Stamp(Box<Stamp>),
}

impl<'py> FromPyObject<'_, 'py> for AnyCount {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        // An int is told by its class: this is on the path of a read.
        if !object.is_exact_instance_of::<PyInt>() && object.hasattr(intern!(object.py(), "realtime_ns"))? {
            return Ok(Self::Stamp(Box::new(object.extract::<AnyStamp>()?.stamp("now")?)));
        }
        Ok(Self::Count(HostCount(object.extract::<Int<_>>()?.0)))
    }
}

impl AnyCount {
    /// The count as the counter's `read` gives it. ValueError for a stamp of another frequency.
    pub(crate) fn own(self, counter: &impl Counter) -> PyResult<HostCount> {
        match self {
            Self::Count(count) => Ok(count),
            Self::Stamp(stamp) => Ok(Now::Stamp(stamp).instant::<VmError>(counter).or_raise()?.count()),
        }
    }
}

/// The value of that name, or a ValueError that lists them.
pub(crate) fn named<T: Copy>(what: &str, name: &str, values: &[(&'static str, T)]) -> PyResult<T> {
    let found = values.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = values.iter().map(|(known, _)| *known).collect();
        PyValueError::new_err(format!("no {what}={}: one of {}", quoted(name), names.join(", ")))
    })
}

record! {
    /// `types.Stamp` as an argument.
    pub(crate) struct AnyStamp: "Stamp" {
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
        sync: Option<AnySyncBound>,
        rate_ppb: Option<i64>,
        boottime_ns: Option<u64>,
        slept_ns: Option<u64>,
        slept_width_ns: Option<u64>,
    }
}

impl AnyStamp {
    /// The core's. `argument` is what Python calls it.
    pub(crate) fn stamp(self, argument: &str) -> PyResult<Stamp> {
        let wrong = |what: &str, value: &str| {
            let value = quoted(value);
            PyValueError::new_err(format!("{argument}.{what} is {value}: give a Stamp as a counter's stamp() does"))
        };
        let id = |what, hex: Option<String>| hex.map(|hex| id(&hex).ok_or_else(|| wrong(what, &hex))).transpose();
        Ok(Stamp {
            count: StampCount(self.count),
            frequency: Frequency::new(self.frequency_hz).ok_or_else(|| wrong("frequency_hz", "0"))?,
            source: SourceName::new(&self.source).ok_or_else(|| wrong("source", &self.source))?,
            realtime_ns: self.realtime_ns,
            width_ns: self.width_ns,
            tai_offset_s: self.tai_offset_s,
            synchronized: self.synchronized,
            max_error_ns: self.max_error_ns,
            sync: self.sync.map(AnySyncBound::sync_bound).transpose()?,
            rate_ppb: self.rate_ppb,
            leap: Leap::from_name(&self.leap).ok_or_else(|| wrong("leap", &self.leap))?,
            machine_id: id("machine_id", self.machine_id)?,
            boot_id: id("boot_id", self.boot_id)?,
            boot_time: match (self.boottime_ns, self.slept_ns, self.slept_width_ns) {
                (Some(boottime_ns), Some(slept_ns), Some(width_ns)) => {
                    Some(BootTime { boottime_ns, slept_ns, width_ns })
                }
                (None, None, None) => None,
                (_, slept_ns, _) => return Err(wrong("slept_ns", &format!("{slept_ns:?}"))),
            },
        })
    }
}

/// An id as `stamp` spells it: 32 hexadecimal digits.
pub(crate) fn id(hex: &str) -> Option<[u8; 16]> {
    let digits = hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u128::from_str_radix(hex, 16).ok().map(u128::to_be_bytes))?
}

/// One timer at one instant, as its guest would see it: `GuestVm.timer`.
// A class of its own, since an emulator makes one at every exit: its numbers become objects when they are asked for.
#[pyclass(frozen, eq, hash, name = "TimerState", module = "guestclock.types")]
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct PyTimerState(TimerState);

impl From<TimerState> for PyTimerState {
    fn from(state: TimerState) -> Self {
        Self(state)
    }
}

#[pymethods]
impl PyTimerState {
    #[new]
    #[pyo3(signature = (*, ctl, cval, tval, line, deadline))]
    fn new(ctl: Int<u64>, cval: Int<u64>, tval: Int<i32>, line: bool, deadline: Option<Int<u64>>) -> Self {
        let deadline = deadline.map_or(NO_DEADLINE, |Int(count)| count);
        Self(TimerState { ctl: ctl.0, cval: cval.0, tval: tval.0.cast_unsigned(), line, deadline })
    }

    /// CTL as a guest reads it: ENABLE, IMASK, and ISTATUS where the condition is met.
    #[getter]
    fn ctl(&self) -> u64 {
        self.0.ctl
    }

    /// Compare value, in guest ticks.
    #[getter]
    fn cval(&self) -> u64 {
        self.0.cval
    }

    /// CVAL - count as a signed 32-bit number: ticks left, negative when overdue.
    #[getter]
    fn tval(&self) -> i32 {
        self.0.tval.cast_signed()
    }

    /// True if the condition is met: the guest's count has reached CVAL.
    #[getter]
    fn istatus(&self) -> bool {
        self.0.ctl & CTL_ISTATUS != 0
    }

    /// True if the interrupt line is high: enabled, not masked, and the condition met.
    #[getter]
    fn line(&self) -> bool {
        self.0.line
    }

    /// Host count at which the line goes high by itself (now, if it is high); None if it never does.
    #[getter]
    fn deadline(&self) -> Option<u64> {
        deadline(self.0.deadline)
    }

    fn __repr__(&self) -> String {
        let (line, none) = (if self.0.line { "True" } else { "False" }, || "None".to_owned());
        format!(
            "TimerState(ctl={}, cval={}, tval={}, line={line}, deadline={})",
            self.0.ctl,
            self.0.cval,
            self.tval(),
            self.deadline().map_or_else(none, |count| count.to_string())
        )
    }

    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyDict>)> {
        let keywords = PyDict::new(py);
        keywords.set_item("ctl", self.0.ctl)?;
        keywords.set_item("cval", self.0.cval)?;
        keywords.set_item("tval", self.tval())?;
        keywords.set_item("line", self.0.line)?;
        keywords.set_item("deadline", self.deadline())?;
        Ok((PyTuple::empty(py), keywords))
    }
}

/// `types.TracedCall`.
pub(crate) fn traced_call<'py>(py: Python<'py>, vm: &str, traced: &TracedCall) -> PyResult<Bound<'py, PyAny>> {
    let TracedCall { verb, call, value, errno, began_ns, took_ns } = *traced;
    let (verb, operation, text) = (verb.map(Verb::name), call.kind.name(), call.to_string());
    TRACED_CALL.get(py)?.call1((vm, verb, text, operation, call.vcpu, call.reg, value, errno, began_ns, took_ns))
}

/// `types.CallTotals`.
pub(crate) fn call_totals(py: Python<'_>, totals: CallTotals) -> PyResult<Bound<'_, PyAny>> {
    let CallTotals { made, busy, failed, took_ns } = totals;
    CALL_TOTALS.get(py)?.call1((made, busy, failed, took_ns))
}

/// `registers.Timer`, each in its number's place.
fn timers(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyAny>>> {
    let class = TIMER.get(py)?;
    Timer::ALL.iter().map(|timer| class.call1((timer.index(),))).collect()
}

/// A list of `types.TimerStatus`.
pub(crate) fn timer_outlooks(
    py: Python<'_>,
    statuses: impl Iterator<Item = TimerStatus>,
) -> PyResult<Bound<'_, PyList>> {
    let (class, timers, list) = (TIMER_OUTLOOK.get(py)?, timers(py)?, PyList::empty(py));
    for status in statuses {
        list.append(class.call1((
            status.vcpu,
            &timers[status.timer.index()],
            status.ctl,
            status.cval,
            status.count.0,
            status.line,
            status.overdue_ticks,
            status.passed_in_pause,
        ))?)?;
    }
    Ok(list)
}

/// A list of `types.LatchMismatch`.
pub(crate) fn latch_mismatches(
    py: Python<'_>,
    mismatches: impl Iterator<Item = LatchMismatch>,
) -> PyResult<Bound<'_, PyList>> {
    let (class, timers, list) = (LATCH_MISMATCH.get(py)?, timers(py)?, PyList::empty(py));
    for found in mismatches {
        list.append(class.call1((found.vcpu, &timers[found.timer.index()], found.irq, found.line, found.pending))?)?;
    }
    Ok(list)
}

/// A list of `types.GuestLimit`.
pub(crate) fn guest_limits(
    py: Python<'_>,
    limits: impl Iterator<Item = (Limit, Reached)>,
) -> PyResult<Bound<'_, PyList>> {
    let (class, list) = (GUEST_LIMIT.get(py)?, PyList::empty(py));
    for (Limit { name, earliest_ns, at_ns, of, .. }, reached) in limits {
        list.append(class.call1((name, earliest_ns, at_ns, of, reached.name()))?)?;
    }
    Ok(list)
}

/// A deadline, or None for none.
pub(crate) fn deadline(count: u64) -> Option<u64> {
    (count != NO_DEADLINE).then_some(count)
}

/// `types.Verified`.
pub(crate) fn verified<'py>(py: Python<'py>, verified: &Verified) -> PyResult<Bound<'py, PyAny>> {
    let interval = |known: Option<OffsetInterval>| known.map(|known| (known.low.0, known.width));
    let mismatches = verified.mismatches.iter().map(|mismatch| {
        let (code, vcpu, clock) = match *mismatch {
            Mismatch::Counter { vcpu, view, by, .. } => {
                let code = match by {
                    drive::Source::OtherVcpus => "other-vcpus",
                    drive::Source::Report => "report",
                    _ => "vm-offset",
                };
                (code, Some(vcpu), words::count_name(view))
            }
            Mismatch::Condition { vcpu, timer, .. } => ("condition", Some(vcpu), timer.name()),
            Mismatch::BeforeCheckpoint { view, .. } => ("checkpoint", None, words::count_name(view)),
            _ => ("unknown", None, ""),
        };
        MISMATCH.get(py)?.call1((code, words::mismatch(mismatch), vcpu, clock, mismatch.ahead_ticks()))
    });
    let mismatches = mismatches.collect::<PyResult<Vec<_>>>()?;
    VERIFIED.get(py)?.call1((
        state_name(verified.state),
        verified.count.0,
        verified.vcpus,
        interval(verified.virt),
        interval(verified.phys),
        verified.conditions,
        PyTuple::new(py, mismatches)?,
    ))
}

/// Name of a VM's state.
pub(crate) const fn state_name(state: State) -> &'static str {
    match state {
        State::Open => "open",
        State::Paused => "paused",
        State::Restoring => "restoring",
    }
}

/// `types.Support`.
pub(crate) fn support<'py>(py: Python<'py>, ok: Option<bool>, reason: &str) -> PyResult<Bound<'py, PyAny>> {
    SUPPORT.get(py)?.call1((ok, reason))
}

/// `types.Capabilities`, its fields in order.
pub(crate) fn capabilities<'py>(py: Python<'py>, fields: [Bound<'py, PyAny>; 5]) -> PyResult<Bound<'py, PyAny>> {
    CAPABILITIES.get(py)?.call1(pyo3::types::PyTuple::new(py, fields)?)
}

/// A `NamedTuple` of these fields: as the class itself makes it, but without its Python code, which takes longer than a
/// look at a thousand timers.
fn named_tuple<'py>(
    py: Python<'py>,
    class: &'static Class,
    fields: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error = PyErr>,
) -> PyResult<Bound<'py, PyAny>> {
    static NEW: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let new = NEW.get_or_try_init(py, || py.get_type::<PyTuple>().getattr("__new__").map(Bound::unbind))?;
    new.bind(py).call1((class.get(py)?, fields.into_pyobject(py)?))
}

/// `types.Lines`.
pub(crate) fn lines<'py>(
    py: Python<'py>,
    istatus: Bound<'py, PyArrayDyn<bool>>,
    line: Bound<'py, PyArrayDyn<bool>>,
    deadlines: Bound<'py, PyArrayDyn<u64>>,
) -> PyResult<Bound<'py, PyAny>> {
    named_tuple(py, &LINES, (istatus, line, deadlines))
}

/// `types.Changes`.
pub(crate) fn changes<'py>(
    py: Python<'py>,
    vcpus: Bound<'py, PyArray1<i64>>,
    timers: Bound<'py, PyArray1<u8>>,
    levels: Bound<'py, PyArray1<bool>>,
) -> PyResult<Bound<'py, PyAny>> {
    named_tuple(py, &CHANGES, (vcpus, timers, levels))
}

/// `types.Expired`.
pub(crate) fn expired<'py>(
    py: Python<'py>,
    vcpus: Bound<'py, PyArray1<i64>>,
    timers: Bound<'py, PyArray1<u8>>,
    deadlines: Bound<'py, PyArray1<u64>>,
) -> PyResult<Bound<'py, PyAny>> {
    named_tuple(py, &EXPIRED, (vcpus, timers, deadlines))
}
