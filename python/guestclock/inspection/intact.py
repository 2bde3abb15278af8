"""Verification that files are intact checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from guestclock._core import Checkpoint
from guestclock.errors import InvalidFile
from guestclock.inspection.checkpoint import other_registers

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike


class FileRecord(TypedDict):
    """Findings about one file."""

    file: str
    intact: bool | None
    """None where the file couldn't be read, or this is a folder whose files can't be joined."""
    error: str | None
    """The error's class: Corrupt, Malformed and so on, or an OSError."""
    message: str | None
    size_bytes: int | None
    vms: int | None
    vcpus: int | None
    """Number of all VMs' vCPUs."""
    notes: list[str]
    """Parts that this version doesn't know: a restore passes it on with a warning, or refuses with `strict=True`."""


class Verification(TypedDict):
    """`guestclock.verify/1`."""

    schema: str
    files: list[FileRecord]


def verify(paths: Iterable[str | PathLike[str]]) -> Verification:
    """Read each file, and each of a folder's, by every step of docs/checkpoint-format.md: for damage, not forgery.

    A folder has a row besides where its files are intact, and can't be joined.
    """
    records: list[FileRecord] = []
    for path in map(Path, paths):
        own = [_verify(file) for file in checkpoint_files(path)] if path.is_dir() else []
        joined = _verify(path)
        records += own
        if not own or (joined["error"] is not None and all(record["intact"] for record in own)):
            records.append(joined)
    return {"schema": "guestclock.verify/1", "files": records}


def checkpoint_files(path: Path) -> list[Path]:
    """Return the files that `Checkpoint.load` reads: one, or those of a folder whose names don't begin with a dot."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.is_file() and file.name[:1] != ".")


def _verify(path: Path) -> FileRecord:
    record: FileRecord = {
        "file": str(path),
        "intact": True,
        "error": None,
        "message": None,
        "size_bytes": None,
        "vms": None,
        "vcpus": None,
        "notes": [],
    }
    try:
        record["size_bytes"] = path.stat().st_size if path.is_file() else None
        checkpoint = Checkpoint.load(path)
    except (ValueError, OSError) as error:
        record["intact"] = False if isinstance(error, InvalidFile) else None
        record["error"] = type(error).__name__
        record["message"] = ": ".join([*getattr(error, "__notes__", ()), str(error)])
        return record
    record["vms"], record["vcpus"] = len(checkpoint), len(checkpoint.vcpu_columns()["vcpu"])
    record["notes"] = [f"the key {key!r} isn't known to this version" for key in checkpoint.unknown]
    record["notes"] += [f"the register {reg} isn't known to this version" for reg in other_registers(checkpoint)]
    return record
