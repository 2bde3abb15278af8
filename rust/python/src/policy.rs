//! Policies.

use crate::arguments::{Int, int, plain, shown};
use guestclock_core::restore::{AtOnce, Policy, Repay, Rest};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple, PyType};
use std::fmt;
use std::num::NonZeroU64;

/// The guest sees nothing of the time it didn't run: its counters go on from where they stopped. The default.
#[pyclass(frozen, eq, hash, name = "Freeze", module = "guestclock")]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct PyFreeze;

#[pymethods]
impl PyFreeze {
    #[new]
    fn new() -> Self {
        Self
    }

    /// Name of the policy: "freeze".
    #[getter]
    fn name(&self) -> &'static str {
        Spelled::new(&Policy::FREEZE).name
    }

    fn __repr__(&self) -> String {
        Spelled::new(&Policy::FREEZE).to_string()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> (Bound<'py, PyAny>, Bound<'py, PyTuple>) {
        (slf.get_type().into_any(), PyTuple::empty(slf.py()))
    }
}

/// The guest sees the time it didn't run, all of it or at most `max_ns` nanoseconds.
#[pyclass(frozen, eq, hash, name = "Advance", module = "guestclock")]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct PyAdvance {
    /// The most guest time that is added, in nanoseconds; None for all.
    #[pyo3(get)]
    max_ns: Option<u64>,
}

impl PyAdvance {
    fn policy(&self) -> Policy {
        self.max_ns.map_or(Policy::ADVANCE, Policy::advance_up_to)
    }
}

#[pymethods]
impl PyAdvance {
    #[new]
    #[pyo3(signature = (max_ns=None))]
    fn new(max_ns: Option<Int<u64>>) -> Self {
        Self { max_ns: plain(max_ns) }
    }

    /// Name of the policy: "advance".
    #[getter]
    fn name(&self) -> &'static str {
        Spelled::new(&self.policy()).name
    }

    fn __repr__(&self) -> String {
        Spelled::new(&self.policy()).to_string()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> (Bound<'py, PyAny>, (Option<u64>,)) {
        (slf.get_type().into_any(), (slf.get().max_ns,))
    }
}

/// The guest sees the time it didn't run later, all of it: its counters go on from where they stopped, and go forward
/// by at most `step_ns`, or one tick if that is longer, every `interval_ns` or more, until they have caught up
/// (`vm.catch_up()`).
///
/// At most `at_once_ns` of the time is given at once, before the first step. The plan is refused where the steps take
/// longer than `within_ns` (DeadlineMissed), and where the VM's counters can only be set by value (CapabilityMissing).
/// All four are in nanoseconds; `step_ns` and `interval_ns` are at least 1, else ValueError.
#[pyclass(frozen, eq, hash, name = "CatchUp", module = "guestclock")]
#[derive(Clone, PartialEq, Eq, Hash)]
#[expect(clippy::struct_field_names, reason = "the attributes' names end in their unit")]
pub(crate) struct PyCatchUp {
    step_ns: NonZeroU64,
    interval_ns: NonZeroU64,
    /// The most that is given at once, before the first step, in nanoseconds.
    #[pyo3(get)]
    at_once_ns: u64,
    /// The longest that all steps may take, in nanoseconds; None for as long as they take.
    #[pyo3(get)]
    within_ns: Option<u64>,
}

impl PyCatchUp {
    fn policy(&self) -> Policy {
        let Self { step_ns, interval_ns, at_once_ns, within_ns } = *self;
        Policy::catch_up(Repay { step_ns, interval_ns, within_ns }, at_once_ns)
    }
}

#[pymethods]
impl PyCatchUp {
    #[new]
    #[pyo3(signature = (step_ns, interval_ns, *, at_once_ns=0, within_ns=None))]
    fn new(
        step_ns: Int<u64>,
        interval_ns: Int<u64>,
        #[pyo3(from_py_with = int)] at_once_ns: u64,
        within_ns: Option<Int<u64>>,
    ) -> PyResult<Self> {
        let within_ns = plain(within_ns);
        match (NonZeroU64::new(step_ns.0), NonZeroU64::new(interval_ns.0)) {
            (Some(step_ns), Some(interval_ns)) => Ok(Self { step_ns, interval_ns, at_once_ns, within_ns }),
            _ => Err(PyValueError::new_err("step_ns and interval_ns must be at least 1")),
        }
    }

    /// Name of the policy: "catch-up".
    #[getter]
    fn name(&self) -> &'static str {
        Spelled::new(&self.policy()).name
    }

    /// The most that one step makes up, in nanoseconds.
    #[getter]
    fn step_ns(&self) -> u64 {
        self.step_ns.get()
    }

    /// The least time between two steps, in nanoseconds.
    #[getter]
    fn interval_ns(&self) -> u64 {
        self.interval_ns.get()
    }

    fn __repr__(&self) -> String {
        Spelled::new(&self.policy()).to_string()
    }

    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<((u64, u64), Bound<'py, PyDict>)> {
        let keywords = PyDict::new(py);
        keywords.set_item("at_once_ns", self.at_once_ns)?;
        keywords.set_item("within_ns", self.within_ns)?;
        Ok(((self.step_ns.get(), self.interval_ns.get()), keywords))
    }
}

/// Keyword, value, and the default where there is one.
type Argument = (&'static str, Option<u64>, Option<Option<u64>>);

/// A policy as Python spells it: the one place that names the classes, for their names, their reprs and `to_dict()`.
pub(crate) struct Spelled {
    name: &'static str,
    class: &'static str,
    /// The class's arguments, each with the value of its default where it has one.
    arguments: Vec<Argument>,
}

impl Spelled {
    pub(crate) fn new(policy: &Policy) -> Self {
        let at_once_ns = if let AtOnce::UpTo(ns) = policy.at_once() { Some(ns) } else { None };
        match policy.rest() {
            Rest::Keep => Self { name: "freeze", class: "Freeze", arguments: Vec::new() },
            Rest::Forget => {
                Self { name: "advance", class: "Advance", arguments: vec![("max_ns", at_once_ns, Some(None))] }
            }
            Rest::Repay(Repay { step_ns, interval_ns, within_ns }) => Self {
                name: "catch-up",
                class: "CatchUp",
                arguments: vec![
                    ("step_ns", Some(step_ns.get()), None),
                    ("interval_ns", Some(interval_ns.get()), None),
                    ("at_once_ns", Some(at_once_ns.unwrap_or(0)), Some(Some(0))),
                    ("within_ns", within_ns, Some(None)),
                ],
            },
        }
    }

    /// Name and arguments of the policy, for JSON.
    pub(crate) fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let fields = PyDict::new(py);
        fields.set_item("name", self.name)?;
        for (argument, value, _) in &self.arguments {
            fields.set_item(argument, value)?;
        }
        Ok(fields)
    }
}

/// The policy as an expression, without the arguments that say what the defaults say.
impl fmt::Display for Spelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.class)?;
        let said = self.arguments.iter().filter(|(_, value, default)| *default != Some(*value));
        for (at, (argument, value, _)) in said.enumerate() {
            let value = value.map_or_else(|| "None".to_owned(), |value| value.to_string());
            write!(f, "{}{argument}={value}", if at > 0 { ", " } else { "" })?;
        }
        write!(f, ")")
    }
}

/// The reason why an argument is no policy, and the way out.
fn no_policy(object: &Bound<'_, PyAny>) -> PyResult<String> {
    const CALLS: [(&str, &str); 3] =
        [("freeze", "Freeze()"), ("advance", "Advance()"), ("catchup", "CatchUp(step_ns, interval_ns)")];
    let name =
        if let Ok(class) = object.cast::<PyType>() { class.name()?.to_string() } else { object.str()?.to_string() };
    let plain: String =
        name.chars().filter(char::is_ascii_alphabetic).map(|letter| letter.to_ascii_lowercase()).collect();
    let meant = CALLS.iter().find(|(known, _)| *known == plain);
    let way_out = meant.map_or("Freeze(), Advance() or CatchUp(step_ns, interval_ns)", |(_, call)| call);
    Ok(format!("{} isn't a policy: give {way_out}", shown(object)))
}

/// A policy as an argument.
#[derive(Clone, Copy)]
pub(crate) struct AnyPolicy(Policy);

impl AnyPolicy {
    /// The core's policy.
    pub(crate) const fn policy(self) -> Policy {
        self.0
    }
}

impl<'py> FromPyObject<'_, 'py> for AnyPolicy {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if object.is_instance_of::<PyFreeze>() {
            Ok(Self(Policy::FREEZE))
        } else if let Ok(advance) = object.cast::<PyAdvance>() {
            Ok(Self(advance.get().policy()))
        } else if let Ok(catch_up) = object.cast::<PyCatchUp>() {
            Ok(Self(catch_up.get().policy()))
        } else {
            Err(PyTypeError::new_err(no_policy(&object)?))
        }
    }
}

/// The core's policy as an object.
pub(crate) fn to_python(py: Python<'_>, policy: Policy) -> PyResult<Bound<'_, PyAny>> {
    Ok(match (policy.at_once(), policy.rest()) {
        (_, Rest::Keep) => Bound::new(py, PyFreeze)?.into_any(),
        (AtOnce::UpTo(max_ns), Rest::Forget) => Bound::new(py, PyAdvance { max_ns: Some(max_ns) })?.into_any(),
        (_, Rest::Forget) => Bound::new(py, PyAdvance { max_ns: None })?.into_any(),
        (at_once, Rest::Repay(Repay { step_ns, interval_ns, within_ns })) => {
            let at_once_ns = if let AtOnce::UpTo(ns) = at_once { ns } else { 0 };
            Bound::new(py, PyCatchUp { step_ns, interval_ns, at_once_ns, within_ns })?.into_any()
        }
    })
}
