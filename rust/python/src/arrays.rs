//! Numpy arrays as arguments and results: one contract for every batch call.
//!
//! An input may be strided. It is copied, so that other threads may write to it meanwhile, or read in place under the
//! GIL ([`Input`]). A result is written to an array that nobody else knows yet, or to the caller's `out=`, which has
//! exactly the result's dtype and shape, is contiguous and writable, and overlaps with no input. All arrays are checked
//! before anything is written.

use crate::process::asking;
use guestclock_model::bank::Handle;
use numpy::ndarray::Dimension;
use numpy::{
    Element, PyArray, PyArray1, PyArrayDyn, PyArrayMethods, PyReadonlyArray1, PyReadwriteArrayDyn, PyUntypedArray,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PySlice, PyTuple};
use std::ops::Range;

/// A dtype's name.
pub(crate) trait Named: Element + Copy + Default {
    const NAME: &'static str;
}

impl Named for u64 {
    const NAME: &'static str = "uint64";
}
impl Named for i64 {
    const NAME: &'static str = "int64";
}
impl Named for u16 {
    const NAME: &'static str = "uint16";
}
impl Named for u8 {
    const NAME: &'static str = "uint8";
}
impl Named for bool {
    const NAME: &'static str = "bool";
}

/// A copy of a one-dimensional array.
pub(crate) struct Column<T> {
    /// The array's values.
    pub(crate) values: Vec<T>,
    /// The array's extent in memory.
    pub(crate) bytes: Range<usize>,
}

/// Copies an array of exactly this dtype. rust-numpy's list of borrows isn't used, as it takes longer than a short
/// copy: nothing here writes to an array except under the GIL.
pub(crate) fn column<T: Named>(array: &Bound<'_, PyAny>, what: &str) -> PyResult<Column<T>> {
    let array = array.cast::<PyArray1<T>>().map_err(|_| refused::<T>(what))?;
    let values = match array.to_vec() {
        Ok(copy) => copy,
        Err(_) if array.is_aligned() => array.to_owned_array().into_iter().collect(),
        Err(_) => return Err(refused::<T>(what)),
    };
    Ok(Column { values, bytes: extent(array) })
}

fn refused<T: Named>(what: &str) -> PyErr {
    PyTypeError::new_err(format!("{what} must be a one-dimensional, aligned numpy array of {}", T::NAME))
}

/// A one-dimensional array to read under the GIL: in its own memory if its elements follow each other, else a copy.
pub(crate) struct Input<'py, T: Element> {
    values: Values<'py, T>,
    /// The extent of the array's elements in memory.
    pub(crate) bytes: Range<usize>,
}

enum Values<'py, T: Element> {
    Own(PyReadonlyArray1<'py, T>),
    Copied(Vec<T>),
}

/// Takes an array of exactly this dtype.
pub(crate) fn input<'py, T: Named>(array: &Bound<'py, PyAny>, what: &str) -> PyResult<Input<'py, T>> {
    let array = array.cast::<PyArray1<T>>().map_err(|_| refused::<T>(what))?;
    let (bytes, own) = (extent(array), array.try_readonly().map_err(|_| refused::<T>(what))?);
    let values = match own.as_slice() {
        Ok(_) => Values::Own(own),
        Err(_) if own.is_aligned() => Values::Copied(own.as_array().iter().copied().collect()),
        Err(_) => return Err(refused::<T>(what)),
    };
    Ok(Input { values, bytes })
}

impl<T: Element> Input<'_, T> {
    /// The array's elements.
    pub(crate) fn as_slice(&self) -> &[T] {
        match &self.values {
            Values::Own(array) => array.as_slice().unwrap_or_default(),
            Values::Copied(values) => values,
        }
    }
}

/// Imports numpy, whose C API the first array, and the first borrow of one, would otherwise import: that takes a while and
/// may fail, for want of descriptors for instance, and then isn't an error but a panic. So it is done before anything is
/// taken from a queue, or added.
pub(crate) fn ready(py: Python<'_>) -> PyResult<()> {
    static READY: PyOnceLock<()> = PyOnceLock::new();
    READY.get_or_try_init(py, || {
        py.import("numpy")?;
        // rust-numpy looks its two capsules up in this one, whose name depends on numpy's version.
        py.import("numpy._core.multiarray").or_else(|_| py.import("numpy.core.multiarray"))?;
        let array = PyArray1::<u8>::zeros(py, 0, false);
        drop(array.try_readwrite().map_err(|error| PyValueError::new_err(error.to_string()))?);
        Ok::<(), PyErr>(())
    })?;
    Ok(())
}

/// A new array of these values, which owns its memory.
pub(crate) fn new_array<T: Element>(py: Python<'_>, values: impl Iterator<Item = T>) -> Bound<'_, PyArray1<T>> {
    PyArray1::from_slice(py, &values.collect::<Vec<T>>())
}

/// Number of rows up to which the memory of an array isn't asked for beforehand: a kilobyte or so.
pub(crate) const FEW: usize = 128;

/// Number of values above which a result's memory may be more than there is.
const MANY: usize = 4096;

/// Room for a column of a result that would be lost if its array couldn't be made: it is made beforehand.
pub(crate) struct Room<'py, T: Element>(Option<Bound<'py, PyArray1<T>>>);

impl<'py, T: Named> Room<'py, T> {
    /// Makes room for so many rows: MemoryError where there is none.
    pub(crate) fn new(py: Python<'py>, rows: usize) -> PyResult<Self> {
        let made = (rows > FEW).then(|| zeros::<T>(py, &[rows])?.cast_into::<PyArray1<T>>().map_err(PyErr::from));
        made.transpose().map(Self)
    }

    /// Returns the column with these values, of which there are no more than there is room for.
    pub(crate) fn filled(
        self,
        py: Python<'py>,
        values: impl ExactSizeIterator<Item = T>,
    ) -> PyResult<Bound<'py, PyArray1<T>>> {
        let Some(array) = self.0 else { return Ok(new_array(py, values)) };
        let rows = values.len();
        {
            let mut column = array.readwrite();
            column.as_slice_mut()?.iter_mut().zip(values).for_each(|(place, value)| *place = value);
        }
        if rows == array.len() {
            return Ok(array);
        }
        Ok(array.get_item(PySlice::new(py, 0, rows.try_into()?, 1))?.cast_into()?)
    }
}

/// A new array by numpy's own function, which raises MemoryError where numpy's C API would have us panic.
fn zeros<'py, T: Named>(py: Python<'py>, shape: &[usize]) -> PyResult<Bound<'py, PyAny>> {
    py.import(intern!(py, "numpy"))?.call_method1(intern!(py, "zeros"), (PyTuple::new(py, shape)?, T::NAME))
}

/// Refuses columns of different lengths.
pub(crate) fn same_rows(what: &str, rows: usize, other: &str, others: usize) -> PyResult<()> {
    if rows == others {
        return Ok(());
    }
    Err(PyValueError::new_err(format!("{what} and {other} must be of one length, and are of {rows} and {others}")))
}

/// The range of memory from an array's first byte to its last, with all bytes between them.
pub(crate) fn extent<T: Element, D: Dimension>(array: &Bound<'_, PyArray<T, D>>) -> Range<usize> {
    if array.is_empty() {
        return 0..0;
    }
    let reach = |forward: bool| -> usize {
        let steps = array.shape().iter().zip(array.strides());
        steps
            .filter(|(_, stride)| (**stride > 0) == forward)
            .map(|(rows, stride)| (rows - 1) * stride.unsigned_abs())
            .sum()
    };
    let first = array.data().addr();
    first - reach(false)..first + reach(true) + size_of::<T>()
}

/// The caller's `out=` if it meets the contract, or without one a new array, which owns its memory.
pub(crate) fn output<'py, T: Named>(
    py: Python<'py>,
    out: Option<&Bound<'py, PyAny>>,
    shape: &[usize],
    inputs: &[Range<usize>],
) -> PyResult<Bound<'py, PyArrayDyn<T>>> {
    let Some(out) = out else {
        if shape.iter().product::<usize>() > MANY {
            return Ok(asking(py, || zeros::<T>(py, shape))?.cast_into()?);
        }
        return Ok(asking(py, || PyArrayDyn::zeros(py, shape, false)));
    };
    let Ok(array) = out.cast::<PyArrayDyn<T>>() else {
        let found = out.cast::<PyUntypedArray>().map(|array| array.dtype().to_string());
        let found = found.unwrap_or_else(|_| format!("a {}", out.get_type()));
        return Err(PyTypeError::new_err(format!("out must be a numpy array of {}, and is {found}", T::NAME)));
    };
    if array.shape() != shape {
        return Err(PyValueError::new_err(format!("out must be of shape {shape:?}, and is of {:?}", array.shape())));
    }
    if !array.is_c_contiguous() || !array.is_aligned() {
        return Err(PyValueError::new_err("out must be C-contiguous and aligned: take a copy() of it"));
    }
    let bytes = extent(array);
    if inputs.iter().any(|input| input.start < bytes.end && bytes.start < input.end) {
        return Err(PyValueError::new_err("out overlaps with an input: take another array"));
    }
    Ok(array.clone())
}

/// Borrows an output for writing.
pub(crate) fn writable<'py, T: Named>(array: &Bound<'py, PyArrayDyn<T>>) -> PyResult<PyReadwriteArrayDyn<'py, T>> {
    array.try_readwrite().map_err(|error| PyValueError::new_err(format!("out can't be written to: {error}")))
}

/// Handles as numpy's index type.
pub(crate) fn as_array(py: Python<'_>, handles: impl Iterator<Item = Handle>) -> Bound<'_, PyArray1<i64>> {
    new_array(py, handles.map(|handle| handle.0))
}
