"""Whether files are intact checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from guestclock._core import Checkpoint, CheckpointSet
from guestclock.errors import CheckpointError, WrongKind

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike


class FileRecord(TypedDict):
    """What is to be said of one file."""

    file: str
    intact: bool | None
    """None where the file couldn't be read."""
    error: str | None
    """The error's class: Corrupt, Malformed and so on, or an OSError."""
    message: str | None
    size_bytes: int | None
    vcpus: int | None
    """Of a set of VMs those of all together."""
    notes: list[str]
    """What this version doesn't know in it: a restore passes it on with a warning, or refuses with `strict=True`."""


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
        "vcpus": None,
        "notes": [],
    }
    try:
        record["size_bytes"] = path.stat().st_size
        checkpoint = load(path)
    except (CheckpointError, OSError) as error:
        record["intact"] = False if isinstance(error, CheckpointError) else None
        record["error"], record["message"] = type(error).__name__, str(error)
        return record
    record["vcpus"] = checkpoint.vcpus
    registers: Iterable[int] = ()
    if isinstance(checkpoint, CheckpointSet):
        unknown = checkpoint.unknown
    else:
        said: dict[str, Any] = checkpoint.to_dict()
        unknown, registers = said["unknown"], said["other_regs"]
    record["notes"] = [f"the key {key!r} isn't known to this version" for key in unknown]
    record["notes"] += [f"the register {reg:#018x} isn't known to this version" for reg in registers]
    return record


def load(path: str | PathLike[str]) -> Checkpoint | CheckpointSet:
    """Read a file as what it is of: one VM or a set of them."""
    try:
        return Checkpoint.load(path)
    except WrongKind:
        return CheckpointSet.load(path)
