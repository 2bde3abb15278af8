//! Arguments that several classes take: integers, counts, 64-bit numbers, records.

use guestclock_core::time::{Frequency, HostCount};
use pyo3::exceptions::{PyAttributeError, PyIndexError, PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBool;
use std::fmt::Display;
use std::num::{NonZeroU64, NonZeroUsize};

/// An integer type that an argument can have.
pub(crate) trait Whole: Display + Sized + TryFrom<i64> {
    /// The least value, and the greatest.
    const ENDS: [Self; 2];
}

macro_rules! whole {
    ($($integer:ty),*) => {
        $(impl Whole for $integer {
            const ENDS: [Self; 2] = [Self::MIN, Self::MAX];
        })*
    };
}

whole!(u8, u32, u64, usize, isize, i32, i64);

/// An integer as an argument: an int, or an object with `__index__`. A bool, which Python takes for an int, is none.
#[derive(Clone, Copy)]
pub(crate) struct Int<T>(pub(crate) T);

impl<'a, 'py, T: Whole + FromPyObject<'a, 'py>> FromPyObject<'a, 'py> for Int<T> {
    type Error = PyErr;

    #[inline]
    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if object.is_instance_of::<PyBool>() {
            return Err(no_integer(&object));
        }
        // CPython makes an i64 of most counts and register ids in a tenth of the instructions that it takes for a u64 of more
        // than 30 bits.
        if let Ok(value) = object.extract::<i64>()
            && let Ok(value) = T::try_from(value)
        {
            return Ok(Self(value));
        }
        object.extract::<T>().map(Self).map_err(|_| outside(&object, &T::ENDS[0], &T::ENDS[1]))
    }
}

/// An integer as an argument that has a default, which a signature shows if it is a literal.
pub(crate) fn int<T: for<'a, 'py> FromPyObject<'a, 'py> + Whole>(object: &Bound<'_, PyAny>) -> PyResult<T> {
    object.extract().map(|Int(value)| value)
}

/// A frequency as an argument.
pub(crate) fn frequency(hz: u64) -> PyResult<Frequency> {
    Frequency::new(hz).ok_or_else(|| PyValueError::new_err("frequency_hz must be at least 1"))
}

/// The error of an object that isn't in the range of an integer argument: it is no integer, or lies outside.
#[cold]
fn outside(object: &Bound<'_, PyAny>, least: &dyn Display, most: &dyn Display) -> PyErr {
    match object.call_method0("__index__") {
        Ok(value) => PyOverflowError::new_err(format!("{value} is out of range: an integer from {least} to {most}")),
        Err(error) if error.is_instance_of::<PyAttributeError>(object.py()) => no_integer(object),
        Err(error) if error.is_instance_of::<PyTypeError>(object.py()) => no_integer(object),
        Err(error) => error,
    }
}

#[cold]
fn no_integer(object: &Bound<'_, PyAny>) -> PyErr {
    PyTypeError::new_err(format!("{} isn't an integer", shown(object)))
}

/// An object as a message shows it: its repr, or the name and length of a long one.
pub(crate) fn shown(object: &Bound<'_, PyAny>) -> String {
    let kind = || object.get_type().name().map_or_else(|_| "object".to_owned(), |name| name.to_string());
    match object.len() {
        Ok(length) if length > LONGEST_SHOWN => format!("a {} of length {length}", kind()),
        _ => match object.repr() {
            Ok(repr) if repr.len().is_ok_and(|length| length <= LONGEST_SHOWN) => repr.to_string(),
            _ => format!("a {}", kind()),
        },
    }
}

/// A text as a message shows it: in quotes, and cut where it is long.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(LONGEST_SHOWN) {
        Some((end, _)) => format!("{:?} and so on", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// Length of the longest repr that a message shows.
const LONGEST_SHOWN: usize = 200;

/// A value that is an attribute of an argument.
pub(crate) trait Part: Sized {
    /// Takes the attribute for the value.
    fn part(value: &Bound<'_, PyAny>) -> PyResult<Self>;
}

macro_rules! parts {
    ($($integer:ty),*; $($other:ty),*) => {
        $(impl Part for $integer {
            fn part(value: &Bound<'_, PyAny>) -> PyResult<Self> {
                int(value)
            }
        })*
        $(impl Part for $other {
            fn part(value: &Bound<'_, PyAny>) -> PyResult<Self> {
                value.extract().map_err(Into::into)
            }
        })*
    };
}

parts!(u32, u64, usize, i32, i64; bool, String);

impl Part for NonZeroU64 {
    fn part(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        Self::new(int(value)?).ok_or_else(|| PyValueError::new_err("0 is out of range: an integer of at least 1"))
    }
}

impl<T: Part> Part for (T, T) {
    fn part(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        let two: (Bound<'_, PyAny>, Bound<'_, PyAny>) = value
            .extract()
            .map_err(|_| PyTypeError::new_err(format!("{} isn't a tuple of two integers", shown(value))))?;
        Ok((T::part(&two.0)?, T::part(&two.1)?))
    }
}

impl<T: Part> Part for Option<T> {
    fn part(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        if value.is_none() { Ok(None) } else { T::part(value).map(Some) }
    }
}

/// An attribute of an argument that has to be a `class`, or to have its attributes. The error names the attribute.
pub(crate) fn part<T: Part>(object: &Bound<'_, PyAny>, class: &str, name: &str) -> PyResult<T> {
    let lacks = |_| PyTypeError::new_err(format!("{} isn't a {class}: it has no {name}", shown(object)));
    let value = object.getattr(name).map_err(lacks)?;
    T::part(&value).map_err(|error| {
        let py = object.py();
        PyErr::from_type(error.get_type(py), format!("{class}.{name}: {}", error.value(py)))
    })
}

/// A record as an argument: whatever has the attributes of the Python class of that name.
macro_rules! record {
    ($(#[$meta:meta])* $visibility:vis struct $name:ident: $class:literal { $($field:ident: $kind:ty,)* }) => {
        $(#[$meta])*
        $visibility struct $name {
            $($field: $kind,)*
        }

        impl<'py> pyo3::FromPyObject<'_, 'py> for $name {
            type Error = pyo3::PyErr;

            fn extract(object: pyo3::Borrowed<'_, 'py, pyo3::PyAny>) -> pyo3::PyResult<Self> {
                Ok(Self { $($field: $crate::arguments::part(&object, $class, stringify!($field))?,)* })
            }
        }
    };
}
pub(crate) use record;

/// The number that an optional argument has.
pub(crate) fn plain<T>(value: Option<Int<T>>) -> Option<T> {
    value.map(|value| value.0)
}

/// A number that can't be 0.
pub(crate) fn at_least_1(value: &Bound<'_, PyAny>) -> PyResult<NonZeroUsize> {
    NonZeroUsize::new(int(value)?).ok_or_else(|| PyValueError::new_err("0 is out of range: an integer of at least 1"))
}

/// A count of the host that the caller injects.
pub(crate) fn count(now: Option<Int<u64>>) -> Option<HostCount> {
    plain(now).map(HostCount)
}

/// Number of a vCPU. A negative one is an IndexError, as one past the end is.
pub(crate) struct Vcpu(pub(crate) usize);

impl<'py> FromPyObject<'_, 'py> for Vcpu {
    type Error = PyErr;

    #[inline]
    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        object.extract().map(|Int(vcpu)| Self(vcpu)).map_err(|error: PyErr| {
            if error.is_instance_of::<PyOverflowError>(object.py()) {
                return PyIndexError::new_err(format!("there is no vCPU {}: they count from 0", object.to_owned()));
            }
            error
        })
    }
}

/// Any integer from -2^63 up to 2^64, reduced modulo 2^64.
#[derive(Clone, Copy)]
pub(crate) struct Modular(pub(crate) u64);

impl<'py> FromPyObject<'_, 'py> for Modular {
    type Error = PyErr;

    #[inline]
    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(Int(value)) = object.extract::<Int<u64>>() {
            return Ok(Self(value));
        }
        let negative = object.extract::<Int<i64>>().map(|Int(value)| Self(value.cast_unsigned()));
        negative.map_err(|error| {
            if error.is_instance_of::<PyOverflowError>(object.py()) {
                outside(&object, &i64::MIN, &u64::MAX)
            } else {
                error
            }
        })
    }
}
