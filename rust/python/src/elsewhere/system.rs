//! The calls on the operating system that every build makes, by Rust's standard library; and the refusals of a build
//! without Linux.

use crate::errors::{os_error, typed};
use crate::process::heard;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// The error of a class or a function that is for Linux alone.
pub(crate) fn without_linux(name: &str, way_out: &str) -> PyErr {
    let message = format!("{name} needs Linux, and this guestclock was built without it: {way_out}");
    typed("CapabilityMissing", &message, |fields| fields.set_item("capability", "linux"))
}

/// Defines a class that Linux alone has: its name, with a constructor that raises `without_linux`, and more methods.
macro_rules! refusing_class {
    ($(#[$doc:meta])* $class:ident, $name:literal, $module:literal, $way_out:expr $(, { $($more:tt)* })?) => {
        $(#[$doc])*
        #[pyclass(frozen, name = $name, module = $module)]
        pub(crate) struct $class(pub(crate) std::convert::Infallible);

        #[pymethods]
        impl $class {
            #[new]
            #[pyo3(signature = (*_arguments, **_keywords))]
            fn new(_arguments: &Bound<'_, PyTuple>, _keywords: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
                Err(crate::system::without_linux($name, $way_out))
            }

            $($($more)*)?
        }
    };
}
pub(crate) use refusing_class;

/// Time since the first call, in nanoseconds: for timing what a program does, not for a guest's time.
pub(crate) fn monotonic_ns() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Mode of a new file unless the caller says another, where files have modes.
pub(crate) const NEW_FILE_MODE: u32 = 0o600;

/// Contents of a path.
pub(crate) enum Contents {
    /// Bytes of a regular file, the first ones if there are more than the limit.
    File(Vec<u8>),
    /// The path is a folder's.
    Folder,
}

/// Reads a regular file's bytes, at most `limit` of them; of a folder only that it is one. A signal's handler is heard.
pub(crate) fn read_at_most(path: &Path, limit: usize) -> PyResult<Contents> {
    let failed = |error| os_error(error, Some(path.as_os_str()));
    heard()?;
    let found = fs::metadata(path).map_err(failed)?;
    if found.is_dir() {
        return Ok(Contents::Folder);
    }
    regular(&found, path)?;
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(limit as u64).read_to_end(&mut bytes).map_err(failed)?;
    heard()?;
    Ok(Contents::File(bytes))
}

/// Writes a file by another one beside it, synced and then renamed, so that a crash leaves the old one or the new one. A
/// signal's handler is heard until then.
///
/// The other one's name begins with `.guestclock-`, and a kill leaves it behind. A link stays, and the file that it leads
/// to is replaced. That file keeps its owner and permissions; a new one gets `mode`, less the umask, where files have
/// modes.
/// `Some(_)` is the reason why the folder couldn't be synced, where that can be asked for.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> PyResult<Option<io::Error>> {
    let failed = |error| os_error(error, Some(path.as_os_str()));
    heard()?;
    let old = match fs::metadata(path) {
        Ok(found) => Some(found),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    if let Some(found) = &old {
        regular(found, path)?;
    }
    let place = followed(path);
    let folder = place.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (new, mut file) = NewFile::beside(folder, mode).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    if let Some(found) = old {
        give_to_owner_of(&found, &file).map_err(failed)?;
        file.set_permissions(found.permissions()).map_err(failed)?;
    }
    file.sync_all().map_err(failed)?;
    drop(file);
    heard()?;
    fs::rename(&new.0, &place).map_err(failed)?;
    Ok(synced(folder))
}

/// Follows the symbolic links that the path's last component may be.
fn followed(path: &Path) -> PathBuf {
    let mut path = path.to_path_buf();
    // As many as Linux follows. A circle is refused before this, by looking through it.
    for _ in 0..40 {
        let Ok(target) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    path
}

/// Gives a new file the owner and the group of the old one, where files have them.
#[cfg_attr(not(unix), expect(unused_variables, clippy::unnecessary_wraps))]
fn give_to_owner_of(old: &fs::Metadata, file: &File) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, fchown};
        let new = file.metadata()?;
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            fchown(file, Some(old.uid()), Some(old.gid()))?;
        }
    }
    Ok(())
}

/// A file's hidden name until it is renamed: removed when this is dropped.
struct NewFile(PathBuf);

impl NewFile {
    #[cfg_attr(not(unix), expect(unused_variables))]
    fn beside(folder: &Path, mode: u32) -> io::Result<(Self, File)> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".guestclock-{}-{number}", process::id()));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
        let file = options.open(&path)?;
        Ok((Self(path), file))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // Once it has its own name there is none to remove.
        let _ = fs::remove_file(&self.0);
    }
}

/// Syncs a folder's names, and returns the reason why not. Elsewhere than on Unix a folder can't be opened for it.
fn synced(folder: &Path) -> Option<io::Error> {
    if cfg!(unix) { File::open(folder).and_then(|folder| folder.sync_all()).err() } else { None }
}

/// Refuses whatever isn't a regular file.
fn regular(found: &fs::Metadata, path: &Path) -> PyResult<()> {
    if found.is_file() {
        return Ok(());
    }
    // The errnos of Linux, macOS and Windows.
    let (errno, kind) = if found.is_dir() { (21, "a folder") } else { (22, "no regular file") };
    let message = format!("it is {kind}, and a checkpoint is a regular file: name another one");
    Err(PyOSError::new_err((errno, message, path.to_owned())))
}
