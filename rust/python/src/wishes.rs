//! The choices of a restore besides its policy.

use crate::arguments::Int;
use crate::elapsed::PyElapsed;
use crate::policy::AnyPolicy;
use crate::records::{AnyLinuxGuest, AnySyncBound, named};
use guestclock_core::restore::{Deadlines, MAX_RATE_ERROR_PPB, Request, Views};
use guestclock_core::time::Intent;
use pyo3::conversion::FromPyObjectOwned;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The choices of a caller besides the policy: the attributes of `types.Options`.
pub(crate) struct Wishes {
    views: String,
    elapsed: Option<PyElapsed>,
    sync: Option<AnySyncBound>,
    rate_error_ppb: u32,
    timers: String,
    intent: Option<String>,
    guest: Option<AnyLinuxGuest>,
    strict: bool,
}

impl Wishes {
    /// The choices of `options`, changed by `keywords`: the one list of both is `types.Options`.
    pub(crate) fn new(
        py: Python<'_>,
        options: Option<Bound<'_, PyAny>>,
        keywords: Option<Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let class = || PyModule::import(py, "guestclock.types")?.getattr("Options");
        let options = match (options, keywords) {
            (None, keywords) => class()?.call((), keywords.as_ref())?,
            (Some(options), None) => options,
            (Some(options), keywords) => {
                let replace = PyModule::import(py, "dataclasses")?.getattr("replace")?;
                replace.call((options,), keywords.as_ref())?
            }
        };
        if !options.is_instance(&class()?)? {
            let kind = options.get_type();
            return Err(PyTypeError::new_err(format!("options is an Options(...), and this is a {}", kind.name()?)));
        }
        Ok(Self {
            views: field(&options, "views")?,
            elapsed: field(&options, "elapsed")?,
            sync: field(&options, "sync")?,
            rate_error_ppb: field::<Int<_>>(&options, "rate_error_ppb")?.0,
            timers: field(&options, "timers")?,
            intent: field(&options, "intent")?,
            guest: field(&options, "guest")?,
            strict: field(&options, "strict")?,
        })
    }

    /// No choice but the views.
    pub(crate) fn of_views(views: &str) -> Self {
        Self {
            views: views.to_owned(),
            elapsed: None,
            sync: None,
            rate_error_ppb: 0,
            timers: String::from("absolute"),
            intent: None,
            guest: None,
            strict: false,
        }
    }

    /// The core's request.
    pub(crate) fn request(self, policy: Option<AnyPolicy>) -> PyResult<Request> {
        if self.rate_error_ppb > MAX_RATE_ERROR_PPB {
            return Err(PyValueError::new_err(format!(
                "rate_error_ppb is at most {MAX_RATE_ERROR_PPB}: a guest's clock that is further off is of no use"
            )));
        }
        Ok(Request {
            policy: policy.map(AnyPolicy::policy).unwrap_or_default(),
            views: named("views", &self.views, &Views::NAMES)?,
            elapsed: self.elapsed.map(PyElapsed::word),
            sync: self.sync.map(AnySyncBound::sync_bound).transpose()?,
            rate_error_ppb: self.rate_error_ppb,
            deadlines: named("timers", &self.timers, &Deadlines::NAMES)?,
            intent: self.intent.map(|name| named("intent", &name, &Intent::NAMES)).transpose()?,
            guest: self.guest.map(AnyLinuxGuest::guest).unwrap_or_default(),
            strict: self.strict,
            in_place: false,
        })
    }
}

/// A field of the options. The error names it.
fn field<'py, T: FromPyObjectOwned<'py>>(options: &Bound<'py, PyAny>, name: &str) -> PyResult<T> {
    let py = options.py();
    options.getattr(name)?.extract::<T>().map_err(|error| {
        let error: PyErr = error.into();
        PyErr::from_type(error.get_type(py), format!("{name}: {}", error.value(py)))
    })
}
