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
        records += _verify_folder(path) if path.is_dir() else [_verify(path)]
    return {"schema": "guestclock.verify/1", "files": records}


def _verify_folder(folder: Path) -> list[FileRecord]:
    # The files that `Checkpoint.load` reads: those whose names don't begin with a dot.
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name[:1] != ".")
    records = [_verify(file) for file in files]
    # A broken file's row says already why the folder doesn't load.
    if all(record["intact"] for record in records):
        joined = _verify(folder)
        if not records or joined["error"] is not None:
            records.append(joined)
    return records


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
