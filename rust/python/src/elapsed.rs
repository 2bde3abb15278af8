//! The caller's word on the time that has passed.

use crate::arguments::{Int, plain};
use guestclock_core::time::Elapsed;
use pyo3::prelude::*;

/// The caller's word on how much time has passed since a checkpoint: `elapsed=` of `plan` and `restore`.
///
/// Without a word the evidence decides: docs/time-model.md has its table. One of `given`, `by_counter` and
/// `by_wall_clocks` makes it.
#[pyclass(frozen, eq, hash, name = "Elapsed", module = "guestclock")]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PyElapsed(Elapsed);

#[pymethods]
impl PyElapsed {
    /// So many nanoseconds, as of the plan, within `error_ns`: no clock is asked up to there.
    #[staticmethod]
    #[pyo3(signature = (ns, *, error_ns))]
    fn given(ns: Int<u64>, error_ns: Int<u64>) -> Self {
        Self(Elapsed::Given { ns: ns.0, error_ns: error_ns.0 })
    }

    /// The VM's counter tells: it is the checkpoint's, and has counted all the time.
    #[staticmethod]
    fn by_counter() -> Self {
        Self(Elapsed::ByCounter)
    }

    /// The wall clocks of both hosts tell, even where the evidence says that they have one counter.
    ///
    /// The two are within `error_ns` of each other; without it each is within what is vouched or claimed for it. More
    /// than `refuse_over_ns` is refused (ElapsedTooLong): by default 366 days.
    #[staticmethod]
    #[pyo3(signature = (*, error_ns=None, refuse_over_ns=None))]
    fn by_wall_clocks(error_ns: Option<Int<u64>>, refuse_over_ns: Option<Int<u64>>) -> Self {
        Self(Elapsed::ByWallClocks { error_ns: plain(error_ns), refuse_over_ns: plain(refuse_over_ns) })
    }

    /// Evidence to go by: "given", "counter" or "wall-clocks".
    #[getter]
    fn by(&self) -> &'static str {
        match self.0 {
            Elapsed::Given { .. } => "given",
            Elapsed::ByCounter => "counter",
            Elapsed::ByWallClocks { .. } => "wall-clocks",
        }
    }

    /// The time, in nanoseconds; None unless it is given.
    #[getter]
    fn ns(&self) -> Option<u64> {
        if let Elapsed::Given { ns, .. } = self.0 { Some(ns) } else { None }
    }

    /// The error of the time that is given, or of the wall clocks' distance, in nanoseconds; None for neither.
    #[getter]
    fn error_ns(&self) -> Option<u64> {
        match self.0 {
            Elapsed::Given { error_ns, .. } => Some(error_ns),
            Elapsed::ByCounter => None,
            Elapsed::ByWallClocks { error_ns, .. } => error_ns,
        }
    }

    /// The longest time that the wall clocks are believed, in nanoseconds; None for the default.
    #[getter]
    fn refuse_over_ns(&self) -> Option<u64> {
        if let Elapsed::ByWallClocks { refuse_over_ns, .. } = self.0 { refuse_over_ns } else { None }
    }

    fn __repr__(&self) -> String {
        match self.0 {
            Elapsed::Given { ns, error_ns } => format!("Elapsed.given({ns}, error_ns={error_ns})"),
            Elapsed::ByCounter => "Elapsed.by_counter()".to_owned(),
            Elapsed::ByWallClocks { error_ns, refuse_over_ns } => {
                let said = [("error_ns", error_ns), ("refuse_over_ns", refuse_over_ns)];
                let said = said.into_iter().filter_map(|(name, ns)| Some(format!("{name}={}", ns?)));
                format!("Elapsed.by_wall_clocks({})", said.collect::<Vec<_>>().join(", "))
            }
        }
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, Fields)> {
        let this = slf.get();
        Ok((slf.get_type().getattr("_of")?, (this.by(), this.ns(), this.error_ns(), this.refuse_over_ns())))
    }

    /// The word with these attributes, from a pickle.
    #[classmethod]
    fn _of(
        _cls: &Bound<'_, pyo3::types::PyType>,
        by: &str,
        ns: Option<Int<u64>>,
        error_ns: Option<Int<u64>>,
        refuse_over_ns: Option<Int<u64>>,
    ) -> Self {
        match by {
            "given" => Self::given(ns.unwrap_or(Int(0)), error_ns.unwrap_or(Int(0))),
            "counter" => Self::by_counter(),
            _ => Self::by_wall_clocks(error_ns, refuse_over_ns),
        }
    }
}

type Fields = (&'static str, Option<u64>, Option<u64>, Option<u64>);

impl PyElapsed {
    /// The core's.
    pub(crate) const fn word(self) -> Elapsed {
        self.0
    }
}

impl<'py> FromPyObject<'_, 'py> for PyElapsed {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let word = object.cast::<Self>().map_err(|_| {
            pyo3::exceptions::PyTypeError::new_err(
                "elapsed= takes Elapsed.given(ns, error_ns=), Elapsed.by_counter() or Elapsed.by_wall_clocks()",
            )
        })?;
        Ok(*word.get())
    }
}
