//! Files: whole or not at all, whenever the caller ends the work, and regular ones alone.

use core::convert::Infallible;
use guestclock_linux::file::{Contents, FileError, NEW_FILE_MODE, read_at_most, write_atomically};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder of the test's own, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("guestclock-file-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the signature is the callback's")]
fn deaf() -> Result<(), Infallible> {
    Ok(())
}

fn save(path: &Path, bytes: &[u8]) -> Result<(), FileError<Infallible>> {
    let synced = write_atomically(path, bytes, NEW_FILE_MODE, &mut deaf)?;
    assert!(synced.is_none(), "{synced:?}");
    Ok(())
}

fn load(path: &Path) -> Vec<u8> {
    match read_at_most(path, 1 << 20, &mut deaf).unwrap() {
        Contents::File(bytes) => bytes,
        Contents::Folder => panic!("{} is a folder", path.display()),
    }
}

/// Whichever system call the caller stops at, the old file or none is there, and nothing else.
#[test]
fn stopped_anywhere_it_has_changed_nothing() {
    for old in [None, Some(b"old".as_slice())] {
        let folder = Folder::new();
        let path = folder.0.join("file");
        if let Some(old) = old {
            fs::write(&path, old).unwrap();
        }
        let before = folder.names();
        let mut stops = 0;
        for last in 0.. {
            let mut calls = 0;
            let mut heard = || {
                calls += 1;
                if calls > last { Err(last) } else { Ok(()) }
            };
            match write_atomically(&path, &vec![7; 600_000], NEW_FILE_MODE, &mut heard) {
                Ok(_) => break,
                Err(FileError::Stopped(at)) => assert_eq!(at, last),
                Err(error) => panic!("{error}"),
            }
            stops += 1;
            assert_eq!(folder.names(), before);
            assert_eq!(fs::read(&path).ok().as_deref(), old);
        }
        // A look at the name, its links, its folder and the file there; an open, three writes and a sync; the name.
        assert!(stops >= 9, "{stops}");
        assert_eq!((load(&path).len(), folder.names()), (600_000, vec!["file".to_owned()]));
    }
}

#[test]
fn a_read_can_be_stopped_at_each_call() {
    let folder = Folder::new();
    let path = folder.0.join("file");
    save(&path, &vec![1; 600_000]).unwrap();
    let mut calls = 0;
    let mut heard = || {
        calls += 1;
        Ok::<(), ()>(())
    };
    assert!(matches!(read_at_most(&path, 1 << 20, &mut heard), Ok(Contents::File(_))));
    for last in 0..calls {
        let mut left = last;
        let mut heard = || {
            left -= 1;
            if left < 0 { Err(()) } else { Ok(()) }
        };
        assert!(matches!(read_at_most(&path, 1 << 20, &mut heard), Err(FileError::Stopped(()))), "{last}");
    }
    assert!(calls >= 6, "{calls}");
}

#[test]
fn modes_and_links_are_kept() {
    let folder = Folder::new();
    let path = folder.0.join("file");
    save(&path, b"one").unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777 & !0o600, 0, "nobody else's");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o1640)).unwrap();
    symlink("file", folder.0.join("link")).unwrap();
    symlink(folder.0.join("link"), folder.0.join("link-to-link")).unwrap();
    save(&folder.0.join("link-to-link"), b"two").unwrap();
    assert_eq!((load(&path), fs::metadata(&path).unwrap().mode() & 0o7777), (b"two".to_vec(), 0o1640));
    assert_eq!(folder.names(), ["file", "link", "link-to-link"]);
    assert!(fs::symlink_metadata(folder.0.join("link")).unwrap().is_symlink());
    // A link to nothing yet is followed too, as open(2) does.
    symlink("new", folder.0.join("dangling")).unwrap();
    save(&folder.0.join("dangling"), b"three").unwrap();
    assert_eq!(load(&folder.0.join("new")), b"three");
    symlink("loop", folder.0.join("loop")).unwrap();
    assert_eq!(save(&folder.0.join("loop"), b"").unwrap_err().errno(), Some(40), "ELOOP");
}

#[test]
fn special_files_stay_and_are_refused() {
    let folder = Folder::new();
    let fifo = folder.0.join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let socket = folder.0.join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for (path, said) in [(fifo.clone(), "a FIFO"), (socket, "a socket"), ("/dev/null".into(), "a device")] {
        let refused = save(&path, b"").unwrap_err();
        assert!(refused.to_string().contains(said) && refused.errno() == Some(22), "{refused}");
        assert!(matches!(read_at_most(&path, 9, &mut deaf), Err(FileError::Special { errno: 22, .. })));
    }
    assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo());
    assert_eq!(save(&folder.0, b"").unwrap_err().errno(), Some(21), "EISDIR");
    assert!(matches!(read_at_most(&folder.0, 9, &mut deaf), Ok(Contents::Folder)));
    for folder_like in ["new/", "new/.", "new/.."] {
        assert!(save(&folder.0.join(folder_like), b"").is_err(), "{folder_like}");
    }
    assert_eq!(folder.names(), ["fifo", "socket"]);
}

/// A name that a kill has left behind, between two system calls, goes at the next write to the same file.
#[test]
fn a_leftover_goes_at_the_next_write() {
    let folder = Folder::new();
    let path = folder.0.join("file");
    save(&path, b"one").unwrap();
    // The first bytes of SHA-256 of "file".
    let left = folder.0.join(".guestclock-3b9c358f36f0a31b");
    fs::write(&left, b"left").unwrap();
    save(&path, b"two").unwrap();
    assert_eq!((load(&path), folder.names()), (b"two".to_vec(), vec!["file".to_owned()]));
    // What can't be removed is passed by.
    fs::create_dir(&left).unwrap();
    save(&path, b"three").unwrap();
    assert_eq!((load(&path), folder.names().len()), (b"three".to_vec(), 2));
}

/// Many threads write to one file: each is done, the file is one of theirs, and nothing else is left.
#[test]
fn writers_pass_each_other() {
    let folder = Folder::new();
    let path = folder.0.join("file");
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let path = &path;
            scope.spawn(move || {
                for _ in 0..50 {
                    save(path, &[thread; 100]).unwrap();
                }
            });
        }
    });
    let bytes = load(&path);
    assert!(bytes.len() == 100 && bytes.iter().all(|byte| *byte == bytes[0]), "{bytes:?}");
    assert_eq!(folder.names(), ["file"]);
}

/// A file system without O_TMPFILE has the hidden name from the beginning: /proc has none, and takes no file at all.
#[test]
fn a_folder_that_takes_no_file() {
    assert!(save(Path::new("/proc/guestclock"), b"").unwrap_err().errno().is_some());
}
