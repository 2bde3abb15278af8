"""Checkpoints as files: the system's own errors, regular files alone, modes and owners, signals, other threads."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guestclock import Checkpoint, ManualCounter, ModelVm
from guestclock.model import DeadlineAlarm, DeadlineQueue

AS_ROOT = os.geteuid() == 0


@pytest.fixture
def checkpoint() -> Checkpoint:
    return ModelVm(2, counter=ManualCounter(1000)).checkpoint()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_new_file_is_its_owners_alone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """It holds the host's ids."""
    checkpoint.save(tmp_path / "guest.time")
    assert stat.S_IMODE((tmp_path / "guest.time").stat().st_mode) == 0o600
    old = os.umask(0o027)
    try:
        checkpoint.save(tmp_path / "shared.time", mode=0o666)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "shared.time").stat().st_mode) == 0o640
    for mode in (-1, 0o1000, 0o100644):
        with pytest.raises((ValueError, OverflowError)):
            checkpoint.save(tmp_path / "none.time", mode=mode)
    assert names(tmp_path) == ["guest.time", "shared.time"]


def test_an_existing_file_keeps_its_mode_and_owner(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "guest.time"
    path.write_bytes(b"an older file")
    path.chmod(0o640)
    if AS_ROOT:
        os.chown(path, 1234, 77)
    before = path.stat()
    checkpoint.save(path, mode=0o666)
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert Checkpoint.load(path) == checkpoint


@pytest.mark.skipif(not AS_ROOT, reason="only root can give a file away")
def test_an_owner_that_cant_be_kept_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Another user may replace the file, as the folder is his, and can't make one of its owner's."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "guest.time"
    path.write_bytes(b"old")
    os.chown(path, 1234, 77)
    os.chown(folder, 4321, 4321)
    with as_user(4321, folder), pytest.raises(PermissionError, match="belongs to user 1234 and group 77") as caught:
        checkpoint.save("guest.time")
    assert (caught.value.errno, caught.value.filename) == (errno.EPERM, "guest.time")
    assert (path.read_bytes(), names(folder)) == (b"old", ["guest.time"])


@contextmanager
def as_user(uid: int, folder: Path) -> Iterator[None]:
    """In a folder of the user's: he may not look through those above it."""
    here = os.open(".", os.O_RDONLY)
    os.chdir(folder)
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.fchdir(here)
        os.close(here)


@pytest.mark.skipif(
    not AS_ROOT, reason="a folder that can't be read is no obstacle to root, and this needs root to begin"
)
def test_a_folder_that_cant_be_listed_takes_files(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    os.chown(folder, 4321, 4321)
    folder.chmod(0o333)
    with as_user(4321, folder):
        checkpoint.save("guest.time")
        checkpoint.save("guest.time")
    assert Checkpoint.load(folder / "guest.time") == checkpoint


def test_links_are_followed_and_stay(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/guest.time")
    checkpoint.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert Checkpoint.load(tmp_path / "there" / "guest.time") == Checkpoint.load(tmp_path / "link") == checkpoint
    assert names(tmp_path / "there") == ["guest.time"]


def specials(tmp_path: Path) -> dict[str, Path]:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    return {
        "FIFO": tmp_path / "fifo",
        "a FIFO": tmp_path / "link",
        "socket": tmp_path / "socket",
        "device": Path("/dev/null"),
    }


def test_a_special_file_is_refused_at_once(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A FIFO would wait for its other end."""
    for kind, path in specials(tmp_path).items():
        for call in (lambda path=path: checkpoint.save(path), lambda path=path: Checkpoint.load(path)):
            before = path.lstat()
            with pytest.raises(OSError, match=f"{kind}, and a checkpoint is a regular file") as caught:
                call()
            assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, str(path))
            assert (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)
    with pytest.raises(IsADirectoryError):
        checkpoint.save(tmp_path)
    with pytest.raises(OSError, match="a FIFO") as caught:
        Checkpoint.load(tmp_path)
    assert "fifo" in caught.value.__notes__[0]


LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, LIMIT[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, LIMIT)


def test_an_oserror_says_what_the_system_said(checkpoint: Checkpoint, tmp_path: Path) -> None:
    nowhere, long = tmp_path / "nowhere" / "guest.time", tmp_path / ("x" * 300)
    calls: list[tuple[Callable[[], object], type[OSError], int, str | None]] = [
        (lambda: Checkpoint.load(nowhere), FileNotFoundError, errno.ENOENT, str(nowhere)),
        (lambda: checkpoint.save(nowhere), FileNotFoundError, errno.ENOENT, str(nowhere)),
        (lambda: checkpoint.save(str(long)), OSError, errno.ENAMETOOLONG, str(long)),
        (lambda: checkpoint.save(Path(__file__) / "x"), NotADirectoryError, errno.ENOTDIR, f"{__file__}/x"),
    ]
    for call, error, number, name in calls:
        with pytest.raises(error) as caught:
            call()
        assert (caught.value.errno, caught.value.strerror, caught.value.filename) == (number, os.strerror(number), name)
    queue = DeadlineQueue()
    without: list[tuple[Callable[[], object], str | None]] = [
        (lambda: Checkpoint.load(__file__), __file__),
        (lambda: checkpoint.save(tmp_path / "new"), str(tmp_path / "new")),
        (lambda: DeadlineAlarm(queue, ManualCounter(1)), None),
    ]
    for call, name in without:
        with no_descriptor_left(), pytest.raises(OSError, match="Too many open files") as caught:
            call()
        assert (caught.value.errno, caught.value.filename) == (errno.EMFILE, name)
    assert names(tmp_path) == []


@contextmanager
def size_limit(size: int) -> Iterator[None]:
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "guest.time"
    path.write_bytes(b"old")
    for size in (0, 1, 100):
        with size_limit(size), pytest.raises(OSError, match="File too large") as caught:
            checkpoint.save(path)
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
        assert (path.read_bytes(), names(tmp_path)) == (b"old", ["guest.time"])


LEASED = """
import fcntl, os, signal, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
def asked(*_):
    print("asked", flush=True)
signal.signal(signal.SIGIO, asked)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("leased", flush=True)
sys.stdin.readline()
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
"""


@contextmanager
def leased(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process has a lease of the file: whoever opens it waits until that one lets go."""
    with subprocess.Popen(
        [sys.executable, "-c", LEASED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "leased\n"
        try:
            yield holder
        finally:
            holder.kill()


def test_other_threads_run_while_a_file_is_waited_for(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "guest.time"
    checkpoint.save(path)
    loaded: list[Checkpoint] = []
    with leased(path) as holder:
        thread = threading.Thread(target=lambda: loaded.append(Checkpoint.load(path)))
        thread.start()
        assert holder.stdout is not None
        assert holder.stdin is not None
        # Without the interpreter's lock this thread would never get here.
        assert holder.stdout.readline() == "asked\n"
        assert loaded == []
        holder.stdin.write("let go\n")
        holder.stdin.flush()
        thread.join()
    assert loaded == [checkpoint]


class Interrupted(Exception):
    pass


def test_a_signal_ends_the_wait_for_a_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "guest.time"
    checkpoint.save(path)

    def raises(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, raises)
    try:
        with leased(path) as holder:

            def when_asked() -> None:
                assert holder.stdout is not None
                assert holder.stdout.readline() == "asked\n"
                os.kill(os.getpid(), signal.SIGUSR1)

            thread = threading.Thread(target=when_asked)
            thread.start()
            with pytest.raises(Interrupted):
                Checkpoint.load(path)
            thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


SIGNALLED = """
import os, signal, sys, time
from guestclock import Checkpoint, ManualCounter, ModelVm

checkpoint = ModelVm(1, counter=ManualCounter(1)).checkpoint()
path, old = sys.argv[1], b"old"

def raises(*_):
    raise ZeroDivisionError

signal.signal(signal.SIGALRM, raises)
for number in range(60):
    open(path, "wb").write(old)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + 15 * number))
        checkpoint.save(path)
        # Short ones: a signal that comes just before a sleep doesn't end it.
        while True:
            time.sleep(0.001)
    except ZeroDivisionError:
        pass
    assert os.listdir(os.path.dirname(path)) == ["guest.time"], number
    assert open(path, "rb").read() in (old, checkpoint.to_bytes()), number
"""


def test_a_signal_at_any_moment_of_a_save_leaves_one_file(tmp_path: Path) -> None:
    """The old one or the new one: the handler's exception comes from the save, or right after it."""
    # In memory: a busy disk takes a second for each fsync.
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        subprocess.run([sys.executable, "-c", SIGNALLED, f"{folder}/guest.time"], check=True, timeout=250)


def test_names_are_any_that_the_system_takes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for name in (b"\xff\xfe", b"a\x1b[2J", "größe".encode(), b"\n"):
        path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
        checkpoint.save(path)
        assert Checkpoint.load(path) == checkpoint
        with pytest.raises(FileNotFoundError) as caught:
            Checkpoint.load(path + "x")
        assert caught.value.filename == path + "x"
    with pytest.raises(OSError, match=r"Invalid argument|NUL byte"):
        Checkpoint.load("a\0b")


def test_what_is_left_at_another_kill_isnt_a_folders(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "guest.time")
    (tmp_path / ".guestclock-0123456789abcdef").write_bytes(b"half")
    (tmp_path / "folder").mkdir()
    assert Checkpoint.load(tmp_path) == checkpoint
