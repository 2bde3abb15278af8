//! Files of checkpoints, without the interpreter's lock, and with Python's own errors.
//!
//! No lock of ours is held meanwhile, so a fork doesn't wait for a slow disk. The child has the descriptors that were open,
//! and no more: it can save and load at once, and what the parent writes is the parent's.

use crate::errors::{OrRaise, os_error};
use crate::process::heard;
use crate::system::{Contents, read_at_most, write_atomically};
use guestclock_core::checkpoint::codec::{self, MAX_BYTES};
use guestclock_core::checkpoint::{BuildError, Checkpoint, JoinError};
use pyo3::exceptions::{PyRuntimeWarning, PyValueError};
use pyo3::prelude::*;
use std::ffi::{CString, OsString};
use std::fs;
use std::path::Path;

/// Writes a checkpoint's bytes; an OSError has the caller's own name of the file.
pub(crate) fn save(py: Python<'_>, checkpoint: &Checkpoint, path: &Path, mode: u32) -> PyResult<()> {
    let saved = py.detach(|| write_atomically(path, &codec::encode(checkpoint), mode));
    if let Some(error) = saved? {
        let why = format!(
            "{} is saved, and may not outlast a loss of power: syncing its folder failed: {error}",
            path.display()
        );
        PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), &CString::new(why)?, 1)?;
    }
    Ok(())
}

/// Returns the checkpoint in a file, or those in all of a folder's files as one.
pub(crate) fn load(py: Python<'_>, path: &Path) -> PyResult<Checkpoint> {
    py.detach(|| match loaded(path)? {
        Some(checkpoint) => Ok(checkpoint),
        None => joined(path),
    })
}

/// Returns the checkpoint in a file; `None` where the path is a folder's.
fn loaded(path: &Path) -> PyResult<Option<Checkpoint>> {
    // One byte more than is allowed, so that the codec sees what is too large.
    match read_at_most(path, MAX_BYTES + 1)? {
        Contents::File(bytes) => codec::decode(&bytes).or_raise().map(Some),
        Contents::Folder => Ok(None),
    }
}

/// Returns the checkpoints in a folder's files as one. An error has a note that names the files it is about.
fn joined(folder: &Path) -> PyResult<Checkpoint> {
    let failed = |error| os_error(error, Some(folder.as_os_str()));
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        heard()?;
        names.push(entry.map_err(failed)?.file_name());
    }
    // As a file is hidden that an interrupted save has left.
    names.retain(|name| !name.as_encoded_bytes().starts_with(b"."));
    names.sort_unstable();
    let (mut files, mut parts) = (Vec::new(), Vec::new());
    for name in names {
        let part = loaded(&folder.join(&name)).map_err(|error| about(error, &[&name]))?;
        if let Some(part) = part {
            files.push(name);
            parts.push(part);
        }
    }
    if files.is_empty() {
        return Err(PyValueError::new_err(format!("the folder {} has no files", folder.display())));
    }
    Checkpoint::join(&parts.iter().collect::<Vec<_>>()).map_err(|error| {
        let in_files = parts.iter().zip(&files);
        let involved = match &error {
            JoinError::OtherCounter { first, second, .. } => vec![&files[*first], &files[*second]],
            JoinError::UnknownKey { index, .. } => vec![&files[*index]],
            JoinError::Build(BuildError::SameName { name }) => {
                in_files.filter(|(part, _)| part.find(name).is_some()).map(|(_, file)| file).collect()
            }
            _ => Vec::new(),
        };
        about(PyValueError::new_err(error.to_string()), &involved)
    })
}

/// The error, with a note that names files.
fn about(error: PyErr, files: &[&OsString]) -> PyErr {
    let names: Vec<String> = files.iter().map(|file| format!("{:?}", file.to_string_lossy())).collect();
    Python::attach(|py| {
        let note = error.value(py).call_method1("add_note", (format!("in the folder's {}", names.join(" and ")),));
        note.err().unwrap_or(error)
    })
}
