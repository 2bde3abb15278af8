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
    """None where the file couldn't be read."""
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
    """Read each file by every step of docs/checkpoint-format.md. It finds damage, not forgery."""
    return {"schema": "guestclock.verify/1", "files": [_verify(Path(path)) for path in paths]}


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
        record["size_bytes"] = path.stat().st_size
        checkpoint = Checkpoint.load(path)
    except (InvalidFile, OSError) as error:
        record["intact"] = False if isinstance(error, InvalidFile) else None
        record["error"], record["message"] = type(error).__name__, str(error)
        return record
    record["vms"], record["vcpus"] = len(checkpoint), len(checkpoint.vcpu_columns()["vcpu"])
    record["notes"] = [f"the key {key!r} isn't known to this version" for key in checkpoint.unknown]
    record["notes"] += [f"the register {reg} isn't known to this version" for reg in other_registers(checkpoint)]
    return record
