//! The calls on the operating system that every build makes: by `guestclock-linux`.

use crate::errors::os_error;
use crate::process::heard;
pub(crate) use guestclock_linux::clock::monotonic_ns;
use guestclock_linux::file::{self, FileError};
pub(crate) use guestclock_linux::file::{Contents, NEW_FILE_MODE};
use pyo3::exceptions::{PyMemoryError, PyOSError, PyValueError};
use pyo3::prelude::*;
use std::ffi::OsStr;
use std::io;
use std::path::Path;

/// `file::read_at_most`, with Python's own errors; a signal's handler is heard.
pub(crate) fn read_at_most(path: &Path, limit: usize) -> PyResult<Contents> {
    file::read_at_most(path, limit, &mut heard).map_err(|error| raised(error, path.as_os_str()))
}

/// `file::write_atomically`, with Python's own errors; a signal's handler is heard.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> PyResult<Option<io::Error>> {
    file::write_atomically(path, bytes, mode, &mut heard).map_err(|error| raised(error, path.as_os_str()))
}

fn raised(error: FileError<PyErr>, path: &OsStr) -> PyErr {
    let errno = error.errno();
    match error {
        FileError::Stopped(error) => error,
        FileError::Os(error) => os_error(error, Some(path)),
        FileError::NoMemory { .. } => PyMemoryError::new_err(error.to_string()),
        // The kernel's words say less than ours.
        _ => match errno {
            Some(errno) => PyOSError::new_err((errno, error.to_string(), path.to_owned())),
            None => PyValueError::new_err(error.to_string()),
        },
    }
}
