//! Files of checkpoints: read and written by regular files alone, and written whole or not at all.
//!
//! A path's symbolic links are followed, as open(2) follows them, and then a file is a regular one or refused: a FIFO
//! would wait for its other end, and a device or a socket holds no checkpoint. A write replaces the file that a link
//! points to, and the link stays. The names that a write makes are never followed (link(2), rename(2)).
//!
//! A caller passes `heard`, which is called before each system call, and again when a signal has interrupted one. With an
//! error it ends the work, and then the old file is as it was. Once the new file is in its place it isn't called any
//! more: from there a write can't fail.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid, fchmod, fchown, fstat, fsync, linkat, openat,
    readlinkat, renameat, renameat_with, stat, statat, syncfs, unlinkat,
};
use rustix::io::{Errno, read, write};
use rustix::path::DecInt;
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;

/// Mode of a new file unless the caller says another: a checkpoint names its host, by machine id and boot id.
pub const NEW_FILE_MODE: u32 = 0o600;

/// Bytes of a read or a write between two looks at the caller's signals.
const CHUNK: usize = 1 << 18;
/// Most symbolic links of a path, as the kernel has it (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;
/// Times that a write begins again because somebody changed its directory meanwhile.
const ATTEMPTS: usize = 64;
/// Time between two attempts at opening a file whose holder of a lease (fcntl(2)) has to let go of it first.
const LEASE_WAIT: Duration = Duration::from_millis(5);

/// Failure of a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError<E> {
    /// A system call failed.
    #[error("{0}")]
    Os(io::Error),
    /// The path isn't a regular file's.
    #[error("{kind}, and a checkpoint is a regular file: name another one")]
    Special {
        /// errno of the refusal: EISDIR for a folder, else EINVAL.
        errno: i32,
        /// Kind of the file, with its article.
        kind: &'static str,
    },
    /// The file's owner can't be kept.
    #[error(
        "it belongs to user {uid} and group {gid}, and a new file of theirs can't be made: remove it, or name another"
    )]
    OtherOwner {
        /// errno of the attempt.
        errno: i32,
        /// User id of the file's owner.
        uid: u32,
        /// Id of the file's group.
        gid: u32,
    },
    /// There is no memory for the file's bytes.
    #[error("there is no memory for {bytes} bytes")]
    NoMemory {
        /// Number of bytes.
        bytes: usize,
    },
    /// The caller has ended the work.
    #[error("stopped")]
    Stopped(E),
}

impl<E> FileError<E> {
    /// errno of the failure; `None` where it isn't the file's.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Os(error) => error.raw_os_error(),
            Self::Special { errno, .. } | Self::OtherOwner { errno, .. } => Some(*errno),
            Self::NoMemory { .. } | Self::Stopped(_) => None,
        }
    }
}

impl<E> From<Errno> for FileError<E> {
    fn from(errno: Errno) -> Self {
        Self::Os(errno.into())
    }
}

/// Contents of a path.
#[derive(Debug)]
pub enum Contents {
    /// Bytes of a regular file, the first ones if there are more than the limit.
    File(Vec<u8>),
    /// The path is a folder's.
    Folder,
}

/// Reads a regular file's bytes, at most `limit` of them; of a folder only that it is one.
pub fn read_at_most<E>(
    path: &Path,
    limit: usize,
    heard: &mut dyn FnMut() -> Result<(), E>,
) -> Result<Contents, FileError<E>> {
    // Without O_NONBLOCK the open of a FIFO waits for a writer. With it, so that a lease's holder is asked to let go, the
    // kernel answers EAGAIN where it would wait (fcntl(2)).
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    // The name is looked at first: opening a device may do something.
    let found = calm(heard, || stat(path))?;
    if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
        return Ok(Contents::Folder);
    }
    regular(&found)?;
    let file = loop {
        match calm(heard, || openat(CWD, path, flags, Mode::empty())) {
            Err(FileError::Os(error)) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => sleep(LEASE_WAIT),
            opened => break opened?,
        }
    };
    let size = regular(&calm(heard, || fstat(&file))?)?;
    let mut bytes = Vec::new();
    reserve(&mut bytes, size.min(limit))?;
    let mut chunk = vec![0; CHUNK.min(limit)];
    while bytes.len() < limit {
        let room = chunk.len().min(limit - bytes.len());
        let count = calm(heard, || read(&file, &mut chunk[..room]))?;
        if count == 0 {
            break;
        }
        reserve(&mut bytes, count)?;
        bytes.extend_from_slice(&chunk[..count]);
    }
    Ok(Contents::File(bytes))
}

/// Writes a file, so that a crash at any moment leaves the old one or the new one.
///
/// The bytes go to a file without a name in the same directory (`O_TMPFILE`), which the kernel removes if the process
/// dies, and are synced; then the file gets its name. An existing file keeps its mode and owner; a new one gets `mode`,
/// less the umask. Where a file is replaced, the new one has a hidden name for the moment between two system calls. A
/// name that a kill leaves behind there, `.guestclock-` and 16 digits, goes at the next write to the same file. Where the
/// file system has no such files, or /proc isn't mounted, the file has a hidden name from the beginning.
///
/// `Ok(Some(_))` says that the new file is in its place, and why its directory couldn't be synced: it may be the old
/// one again after a loss of power.
pub fn write_atomically<E>(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    heard: &mut dyn FnMut() -> Result<(), E>,
) -> Result<Option<io::Error>, FileError<E>> {
    write_by(true, path, bytes, mode, heard)
}

/// Writes a file, by one that is `nameless` where there are such, or by one with a hidden name.
fn write_by<E>(
    mut nameless: bool,
    path: &Path,
    bytes: &[u8],
    mode: u32,
    heard: &mut dyn FnMut() -> Result<(), E>,
) -> Result<Option<io::Error>, FileError<E>> {
    for _ in 0..ATTEMPTS {
        let place = Place::of(path, heard)?;
        let new = if nameless { NewFile::nameless(&place, mode, heard) } else { NewFile::hidden(&place, mode, heard) };
        let new = match new {
            Err(FileError::Os(error)) if nameless && unsupported(&error) => {
                nameless = false;
                continue;
            }
            new => new?,
        };
        new.fill(bytes, &place, heard)?;
        match new.put(&place, heard)? {
            Put::Done => return Ok(place.sync(&new)),
            Put::Changed => {}
            Put::NoProc => nameless = false,
        }
    }
    Err(Errno::AGAIN.into())
}

/// Makes a system call, again after each signal that interrupted it. The caller's signals are heard before each.
fn calm<T, E>(
    heard: &mut dyn FnMut() -> Result<(), E>,
    mut call: impl FnMut() -> Result<T, Errno>,
) -> Result<T, FileError<E>> {
    loop {
        heard().map_err(FileError::Stopped)?;
        match call() {
            Err(Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

fn reserve<E>(bytes: &mut Vec<u8>, more: usize) -> Result<(), FileError<E>> {
    bytes.try_reserve(more).map_err(|_| FileError::NoMemory { bytes: bytes.len().saturating_add(more) })
}

/// Returns a regular file's size, and refuses any other.
fn regular<E>(stat: &Stat) -> Result<usize, FileError<E>> {
    let (errno, kind) = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return Ok(usize::try_from(stat.st_size).unwrap_or(0)),
        FileType::Directory => (Errno::ISDIR, "it is a folder"),
        FileType::Fifo => (Errno::INVAL, "it is a FIFO"),
        FileType::Socket => (Errno::INVAL, "it is a socket"),
        FileType::CharacterDevice | FileType::BlockDevice => (Errno::INVAL, "it is a device"),
        _ => (Errno::INVAL, "it is no regular file"),
    };
    Err(FileError::Special { errno: errno.raw_os_error(), kind })
}

/// Returns whether an O_TMPFILE was refused because the file system, or a kernel before 3.11, has no such files.
fn unsupported(error: &io::Error) -> bool {
    [Errno::OPNOTSUPP, Errno::ISDIR, Errno::INVAL, Errno::NOSYS]
        .iter()
        .any(|errno| Some(errno.raw_os_error()) == error.raw_os_error())
}

/// The place of a file: its directory, its name there, and the file that is there already.
struct Place {
    directory: OwnedFd,
    /// False if the directory can't be read, and so can't be synced.
    readable: bool,
    name: Vec<u8>,
    old: Option<Stat>,
}

impl Place {
    fn of<E>(path: &Path, heard: &mut dyn FnMut() -> Result<(), E>) -> Result<Self, FileError<E>> {
        for _ in 0..ATTEMPTS {
            // The kernel follows the links first, by its own rules (protected_symlinks).
            let there = match calm(heard, || stat(path)) {
                Ok(found) => Some(found),
                Err(FileError::Os(error)) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            if let Some(found) = &there {
                regular(found)?;
            }
            let target = followed(path, heard)?;
            let (parent, name) = parts(&target).ok_or(FileError::from(Errno::ISDIR))?;
            let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = calm(heard, || openat(CWD, parent, flags | OFlags::RDONLY, Mode::empty()));
            let (directory, readable) = match opened {
                Err(FileError::Os(error)) if error.raw_os_error() == Some(Errno::ACCESS.raw_os_error()) => {
                    (calm(heard, || openat(CWD, parent, flags | OFlags::PATH, Mode::empty()))?, false)
                }
                opened => (opened?, true),
            };
            let old = match calm(heard, || statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)) {
                Ok(found) => Some(found),
                Err(FileError::Os(error)) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            let same = |one: &Stat, other: &Stat| (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino);
            match (&there, &old) {
                (None, None) => {}
                (Some(there), Some(old)) if same(there, old) => {}
                // Somebody has just changed it, or a link of /proc has no name that leads to its file.
                _ => continue,
            }
            return Ok(Self { directory, readable, name: name.to_vec(), old });
        }
        Err(Errno::STALE.into())
    }

    /// Syncs the new name. An error is no failure: the file is in its place.
    fn sync(&self, new: &NewFile) -> Option<io::Error> {
        let synced = if self.readable { until_done(|| fsync(&self.directory)) } else { Err(Errno::INVAL) };
        // A directory that can't be read or synced by itself: with the whole file system.
        let synced = if synced == Err(Errno::INVAL) { until_done(|| syncfs(&new.file)) } else { synced };
        synced.err().map(io::Error::from)
    }

    /// The hidden name of a file that is about to replace this one: the same each time, so that one which a kill has left
    /// behind doesn't stay.
    fn hidden(&self) -> Vec<u8> {
        use std::fmt::Write as _;
        let mut name = String::from(".guestclock-");
        for byte in &Sha256::digest(&self.name)[..8] {
            let _ = write!(name, "{byte:02x}");
        }
        name.into_bytes()
    }
}

fn until_done(mut call: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

/// Follows the symbolic links that the path's last component may be. The kernel follows those before it.
fn followed<E>(path: &Path, heard: &mut dyn FnMut() -> Result<(), E>) -> Result<PathBuf, FileError<E>> {
    let mut path = path.to_path_buf();
    for _ in 0..=MAX_LINKS {
        match calm(heard, || readlinkat(CWD, &path, Vec::new())) {
            Ok(target) => {
                let target = PathBuf::from(std::ffi::OsString::from_vec(target.into_bytes()));
                path = parts(&path).map_or_else(PathBuf::new, |(parent, _)| parent.to_path_buf()).join(target);
            }
            // No link, or nothing at all.
            Err(FileError::Os(error))
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) =>
            {
                return Ok(path);
            }
            Err(error) => return Err(error),
        }
    }
    Err(Errno::LOOP.into())
}

/// The directory and the name of a path; `None` where it can be a directory's alone.
fn parts(path: &Path) -> Option<(&Path, &[u8])> {
    let bytes = path.as_os_str().as_bytes();
    let (parent, name) = match bytes.iter().rposition(|byte| *byte == b'/') {
        Some(0) => (b"/".as_slice(), &bytes[1..]),
        Some(slash) => (&bytes[..slash], &bytes[slash + 1..]),
        None => (b".".as_slice(), bytes),
    };
    (!matches!(name, b"" | b"." | b"..")).then(|| (Path::new(OsStr::from_bytes(parent)), name))
}

/// Result of giving a new file its name.
enum Put {
    Done,
    /// Somebody has changed the directory meanwhile.
    Changed,
    /// A file without a name can't be given one, as /proc isn't mounted.
    NoProc,
}

/// A file on its way to its place.
struct NewFile {
    file: OwnedFd,
    /// The directory, and the file's hidden name there: removed when this is dropped.
    hidden: Option<(OwnedFd, Vec<u8>)>,
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some((directory, name)) = &self.hidden {
            let _ = unlinkat(directory, name.as_slice(), AtFlags::empty());
        }
    }
}

impl NewFile {
    fn nameless<E>(place: &Place, mode: u32, heard: &mut dyn FnMut() -> Result<(), E>) -> Result<Self, FileError<E>> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = calm(heard, || openat(&place.directory, ".", flags, place.first_mode(mode)))?;
        Ok(Self { file, hidden: None })
    }

    fn hidden<E>(place: &Place, mode: u32, heard: &mut dyn FnMut() -> Result<(), E>) -> Result<Self, FileError<E>> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let directory = place.directory.as_fd().try_clone_to_owned().map_err(FileError::Os)?;
        loop {
            let name = unique(place);
            match calm(heard, || openat(&directory, name.as_slice(), flags, place.first_mode(mode))) {
                Err(FileError::Os(error)) if error.kind() == io::ErrorKind::AlreadyExists => {}
                file => return Ok(Self { file: file?, hidden: Some((directory, name)) }),
            }
        }
    }

    /// Writes the bytes, gives the file the old one's owner and mode, and syncs it.
    fn fill<E>(
        &self,
        bytes: &[u8],
        place: &Place,
        heard: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<(), FileError<E>> {
        if let Some(old) = &place.old {
            let mine = calm(heard, || fstat(&self.file))?;
            if (mine.st_uid, mine.st_gid) != (old.st_uid, old.st_gid) {
                let owner = (Some(Uid::from_raw(old.st_uid)), Some(Gid::from_raw(old.st_gid)));
                calm(heard, || fchown(&self.file, owner.0, owner.1)).map_err(|error| match error.errno() {
                    Some(errno) => FileError::OtherOwner { errno, uid: old.st_uid, gid: old.st_gid },
                    None => error,
                })?;
            }
            // After the owner, whose change takes some bits of the mode away.
            calm(heard, || fchmod(&self.file, Mode::from_raw_mode(old.st_mode & 0o7777)))?;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = calm(heard, || write(&self.file, &rest[..rest.len().min(CHUNK)]))?;
            rest = &rest[count..];
        }
        calm(heard, || fsync(&self.file))
    }

    /// Gives the file its name.
    fn put<E>(&self, place: &Place, heard: &mut dyn FnMut() -> Result<(), E>) -> Result<Put, FileError<E>> {
        if let Some((directory, hidden)) = &self.hidden {
            let (from, to) = (hidden.as_slice(), place.name.as_slice());
            if place.old.is_none() {
                match calm(heard, || renameat_with(directory, from, directory, to, RenameFlags::NOREPLACE)) {
                    Ok(()) => return Ok(Put::Done),
                    Err(FileError::Os(error)) if error.kind() == io::ErrorKind::AlreadyExists => {
                        return Ok(Put::Changed);
                    }
                    // The file system doesn't know the flag.
                    Err(FileError::Os(error)) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
                    Err(error) => return Err(error),
                }
            }
            calm(heard, || renameat(directory, from, directory, to))?;
            return Ok(Put::Done);
        }
        let fd = self.file.as_fd();
        if place.old.is_none() {
            return match calm(heard, || link(fd, &place.directory, &place.name)) {
                Ok(()) => Ok(Put::Done),
                Err(FileError::Os(error)) => not_linked(error),
                Err(error) => Err(error),
            };
        }
        let mut hidden = place.hidden();
        for attempt in 1.. {
            if attempt == ATTEMPTS {
                // Others write to the same file, or the name is taken by something that can't be removed.
                hidden = unique(place);
            }
            // From the first name to the last no signal is heard, and nothing is waited for.
            heard().map_err(FileError::Stopped)?;
            match until_done(|| link(fd, &place.directory, &hidden)) {
                Ok(()) => {}
                Err(Errno::EXIST) => {
                    // A kill has left it, or another write is just there: that one finds it missing, and begins again.
                    let _ = unlinkat(&place.directory, hidden.as_slice(), AtFlags::empty());
                    continue;
                }
                Err(error) => return not_linked(error.into()),
            }
            match until_done(|| renameat(&place.directory, hidden.as_slice(), &place.directory, place.name.as_slice()))
            {
                Ok(()) => return Ok(Put::Done),
                Err(Errno::NOENT) => {}
                Err(error) => {
                    let _ = unlinkat(&place.directory, hidden.as_slice(), AtFlags::empty());
                    return Err(error.into());
                }
            }
        }
        unreachable!("the attempts have no end")
    }
}

fn not_linked<E>(error: io::Error) -> Result<Put, FileError<E>> {
    match error.kind() {
        io::ErrorKind::AlreadyExists => Ok(Put::Changed),
        io::ErrorKind::NotFound => Ok(Put::NoProc),
        _ => Err(FileError::Os(error)),
    }
}

/// Links an open file that has no name, as open(2) says.
fn link(file: BorrowedFd<'_>, directory: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let mut path = b"/proc/self/fd/".to_vec();
    path.extend_from_slice(DecInt::new(file.as_raw_fd()).as_bytes());
    linkat(CWD, path.as_slice(), directory, name, AtFlags::SYMLINK_FOLLOW)
}

fn unique(place: &Place) -> Vec<u8> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let mut name = place.hidden();
    name.extend(format!("-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)).into_bytes());
    name
}

impl Place {
    /// Mode that the new file is made with: the caller's, or nobody else's until it has the old one's owner.
    fn first_mode(&self, mode: u32) -> Mode {
        Mode::from_raw_mode(if self.old.is_some() { NEW_FILE_MODE } else { mode & 0o7777 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Where the file system has no files without a name, whichever system call the caller stops at, the old file is
    /// there, or none, and no hidden one.
    #[test]
    fn a_hidden_file_goes_with_its_write() {
        let folder = std::env::temp_dir().join(format!("guestclock-hidden-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let path = folder.join("file");
        for old in [None, Some(b"old".to_vec())] {
            let names = || fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
            let before = names();
            for last in 0.. {
                let mut calls = 0;
                let mut heard = || {
                    calls += 1;
                    if calls > last { Err(()) } else { Ok(()) }
                };
                match write_by(false, &path, b"new", 0o600, &mut heard) {
                    Err(FileError::Stopped(())) => {}
                    done => {
                        assert!(done.unwrap().is_none() && last >= 8);
                        break;
                    }
                }
                assert_eq!((names(), fs::read(&path).ok()), (before.clone(), old.clone()));
            }
            assert_eq!((names(), fs::read(&path).unwrap()), (vec!["file".into()], b"new".to_vec()));
            fs::write(&path, b"old").unwrap();
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
