"""Sequences as they were taken, in a file: lines of JSON, compressed, the same bytes for the same steps.

The first line is the `Header`; `null` begins a sequence; every other line is a step: the operation's fields, the counts
before and after it, the answer. An error is its name in a map.
"""

from __future__ import annotations

import errno
import gzip
import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from differential.operations import Answer, Kind, Operation, Refused, Step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Header:
    """Where the sequences were taken, and what is known of the kernel there.

    kernel: the model's preset that it matches. vhe: it runs at EL2.
    """

    leg: str
    release: str
    kernel: str
    vhe: bool
    nested: bool
    frequency_hz: int
    seed: int

    def __str__(self) -> str:
        guest = "guests with EL2" if self.nested else "plain guests"
        host = "" if self.vhe else " without VHE"
        return f"{self.leg}, Linux {self.release}, {guest}, as the model's {self.kernel}{host}, seed {self.seed}"


class Writer:
    """Writes a trace."""

    def __init__(self, file: gzip.GzipFile, header: Header) -> None:
        self.file = file
        self.line({"trace": 1, **asdict(header)})

    def line(self, content: object) -> None:
        """Writes one line of JSON."""
        self.file.write(json.dumps(content, separators=(",", ":")).encode() + b"\n")

    def begin(self) -> None:
        """A sequence begins."""
        self.line(None)

    def step(self, step: Step) -> None:
        """One step of it."""
        operation, before, after, answer = step
        encoded = {"errno": errno.errorcode[answer.errno]} if isinstance(answer, Refused) else answer
        self.line([*operation, before, after, encoded])


@contextmanager
def write(path: Path, header: Header) -> Iterator[Writer]:
    """Opens a trace to be written."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        yield Writer(file, header)


def read(path: Path) -> tuple[Header, Iterator[list[Step]]]:
    """A trace's header and its sequences, which are read on the way."""
    file = gzip.open(path, "rt", encoding="utf-8")  # noqa: SIM115 - it is open for as long as the sequences are read.
    fields = json.loads(file.readline())
    if fields.pop("trace", None) != 1:
        raise ValueError(f"{path} isn't a trace that this version reads")

    def sequences() -> Iterator[list[Step]]:
        steps: list[Step] = []
        with file:
            file.readline()
            for line in file:
                content = json.loads(line)
                if content is None:
                    yield steps
                    steps = []
                else:
                    steps.append(decoded(content))
        yield steps

    return Header(**fields), sequences()


def decoded(line: list[Any]) -> Step:
    """The step in a line."""
    kind, vcpu, reg, value, reserved, before, after, encoded = line
    answer: Answer = Refused(getattr(errno, encoded["errno"])) if isinstance(encoded, dict) else encoded
    return Step(Operation(Kind(kind), vcpu, reg, value, reserved), before, after, answer)
