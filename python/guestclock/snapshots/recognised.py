"""Files and documents of other VMMs: which of the known kinds they are."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from guestclock.errors import InvalidFile, TooLarge
from guestclock.snapshots import cloud_hypervisor, plain, qemu

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from guestclock._core import Checkpoint
    from guestclock.snapshots.snapshot import Snapshot

MAX_BYTES: Final = 16 << 20
"""The most bytes that are read of a file: as many as a checkpoint's may have."""


class _Kind(Protocol):
    """One kind of document: a module."""

    NAME: str

    def recognises(self, document: dict[str, Any], /) -> bool: ...
    def parse(self, document: dict[str, Any], /) -> Snapshot: ...


_KINDS: Final[tuple[_Kind, ...]] = (plain, cloud_hypervisor, qemu)
_MISSHAPEN: Final = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""Errors of reading a document that has another shape: a list for an object, a number for text."""


def read(path: str | PathLike[str]) -> Snapshot:
    """Return what another VMM's file has of its guest's time.

    OSError where it can't be read, InvalidFile where it isn't a regular file of a kind that is known, TooLarge for one
    over 16 MiB, of which nothing is read.
    """
    data = _contents(Path(path))
    try:
        document = json.loads(data, object_pairs_hook=_distinct, parse_constant=_no_number)
    except InvalidFile:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidFile("the file is neither a checkpoint nor a JSON document that can be read") from error
    return parse(document)


def parse(document: object) -> Snapshot:
    """Return what a JSON document of another VMM has of its guest's time. InvalidFile where it is of no known kind."""
    if isinstance(document, dict):
        for kind in _KINDS:
            if kind.recognises(document):
                try:
                    return kind.parse(document)
                except InvalidFile:
                    raise
                except _MISSHAPEN as error:
                    raise InvalidFile(f"{kind.NAME}: the document hasn't the shape that was recognised") from error
    known = "; ".join(kind.NAME for kind in _KINDS)
    raise InvalidFile(f"the document is of no kind that is known: {known}")


def export(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the time of a checkpoint's one VM as plain JSON of registers: `parse` makes a snapshot of it again.

    Refused for a guest that has a backlog, for which the document has no place.
    """
    return plain.export(checkpoint)


def _contents(path: Path) -> bytes:
    # Without waiting for whoever would write to a FIFO, which Windows doesn't have.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise InvalidFile("it isn't a regular file")
        if found.st_size > MAX_BYTES:
            _too_large(found.st_size)
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        _too_large(len(data))
    return data


def _too_large(size: int) -> NoReturn:
    raise TooLarge(f"the file has {size} bytes, and at most {MAX_BYTES} are read", size=size, limit=MAX_BYTES)


def _distinct(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    """Return the object, if each of its keys is there once: two values for one register are none."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise InvalidFile("a key is there twice in one object, so its value isn't known")
    return made


def _no_number(_text: str) -> NoReturn:
    raise InvalidFile("NaN and infinities aren't numbers of JSON (RFC 8259, 6)")
