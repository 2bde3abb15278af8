"""The payload in guest memory: its commands, its state, and its log, in a VMM's mapping or in a file of the memory."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from guestclock.payload import layout
from guestclock.payload.layout import Command, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from mmap import mmap

Memory: TypeAlias = "bytes | bytearray | memoryview | mmap"

_PAGE = 0x1000
_WORD = struct.Struct("<Q")


class NotALog(ValueError):
    """The memory has no payload, or one of another version."""


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a vCPU's log."""

    kind: Kind
    cntvct: int
    cntpct: int
    cval: int = 0
    """The deadline of the alarm that was set, or of the alarm whose interrupt was taken."""
    last_cntvct: int = 0
    """For a sample: a count of CNTVCT_EL0 that a vCPU, this one or another, had read before this one was read."""
    interrupt: int = 0
    ctl: int = 0
    """CNTV_CTL_EL0 when the interrupt was taken."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An exception that the guest didn't expect: its vector's number from 1, ESR_EL1, ELR_EL1 and FAR_EL1."""

    vector: int
    esr: int
    elr: int
    far: int


@dataclass(frozen=True, slots=True)
class VcpuLog:
    """The log of one vCPU."""

    frequency_hz: int
    """CNTFRQ_EL0 as the vCPU reads it."""
    mpidr: int
    written: int
    """Records written since the vCPU started; the oldest are gone where there are more than the log holds."""
    records: list[Record]
    """The records that are still there, oldest first."""
    damaged: int
    """Number of records that are there, with contents that don't match their place."""
    fault: Fault | None = None

    @property
    def samples(self) -> list[Record]:
        """The samples among the records."""
        return [record for record in self.records if record.kind is Kind.SAMPLED]


@dataclass(frozen=True, slots=True)
class Log:
    """The log of a guest: for each vCPU by its number, or None for a vCPU that never started."""

    vcpus: list[VcpuLog | None]
    image_at: int
    """The image's place in the memory, in bytes."""


class Guest:
    """The payload as a VMM reaches it, while it runs or while it doesn't.

    memory: the guest's memory from the image on, `layout.IMAGE_SIZE` bytes or more. It isn't copied.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def command(self, vcpu: int, command: Command) -> None:
        """Gives a vCPU a command. It looks for one between samples' rounds, between beats, and once parked."""
        _WORD.pack_into(self._memory, layout.COMMANDS + 8 * _checked(vcpu), command)

    def state(self, vcpu: int) -> int:
        """The vCPU's state: the number of a `Command`, 0 before it started, or `layout.FAULTED_STATE`."""
        return self._area(vcpu)[1]

    def beat(self, vcpu: int) -> tuple[int, int, int]:
        """Number of counter reads of a spinning vCPU, and its last pair of CNTVCT_EL0 and CNTPCT_EL0."""
        while True:
            beats, *pairs = self._area(vcpu)[5:10]
            # The vCPU writes the other pair next, and this one only after that.
            if self._area(vcpu)[5] == beats:
                cntvct, cntpct = pairs[beats % 2 * 2 :][:2]
                return beats, cntvct, cntpct

    def log(self) -> Log:
        """Reads the log. Records that a running vCPU writes meanwhile may count as damaged."""
        return _read(self._memory, 0)

    def _area(self, vcpu: int) -> tuple[int, ...]:
        at = layout.AREAS + _checked(vcpu) * layout.AREA_SIZE
        _, *words = layout.AREA_FORMAT.unpack_from(self._memory, at)
        return (0, *words)


def read_log(memory: Memory, *, parts: Sequence[tuple[int, int]] | None = None) -> Log:
    """Finds the payload in a piece of guest memory, and reads its log.

    memory: any file or mapping with the image in it, at a multiple of 4 KiB from its start, such as a dump of all RAM.
    parts: the parts of it to look for the image in, as (start, end) in bytes, such as those of a sparse file that
    aren't holes; all of it by default.

    Raises NotALog where there is no log, or one of another version, or one that is cut off.
    """
    last = len(memory) - layout.AREAS
    for image_at in _pages([(0, last + 1)] if parts is None else parts):
        if image_at > last:
            break
        start = image_at + layout.PARAMETERS
        if (
            memory[start : start + 8] == layout.PARAMETERS_MAGIC
            and memory[image_at + layout.LOG : image_at + layout.LOG + 8] == layout.LOG_MAGIC
        ):
            return _read(memory, image_at)
    msg = (
        f"these {len(memory)} bytes hold no payload's log: it starts, at a multiple of 4 KiB, with the image that"
        " `guestclock payload` wrote"
    )
    raise NotALog(msg)


def _pages(parts: Iterable[tuple[int, int]]) -> Iterator[int]:
    for start, end in parts:
        yield from range(start - start % _PAGE, end, _PAGE)


def _read(memory: Memory, image_at: int) -> Log:
    _, vcpus, *_ = layout.PARAMETERS_FORMAT.unpack_from(memory, image_at + layout.PARAMETERS)
    shape = layout.LOG_FORMAT.unpack_from(memory, image_at + layout.LOG)[1:]
    expected = (layout.MAX_VCPUS, layout.AREA_SIZE, layout.RECORDS, layout.RECORD_FORMAT.size)
    if shape != expected or not 1 <= vcpus <= layout.MAX_VCPUS:
        msg = f"a log of {vcpus} vCPUs with the shape {shape}, but this version knows the shape {expected}"
        raise NotALog(msg)
    needed = image_at + layout.AREAS + vcpus * layout.AREA_SIZE
    if len(memory) < needed:
        msg = f"the log is cut off: it needs {needed} bytes, but there are {len(memory)}"
        raise NotALog(msg)
    areas = range(image_at + layout.AREAS, needed, layout.AREA_SIZE)
    return Log([_read_area(memory, at) for at in areas], image_at)


def _read_area(memory: Memory, at: int) -> VcpuLog | None:
    magic, state, written, frequency_hz, mpidr, _, _, _, _, _, *fault = layout.AREA_FORMAT.unpack_from(memory, at)
    if magic != layout.AREA_MAGIC:
        return None
    records = []
    damaged = 0
    for number in range(max(0, written - layout.RECORDS), written):
        record = _read_record(memory, at, number)
        if record is None:
            damaged += 1
        else:
            records.append(record)
    faulted = Fault(*fault) if state == layout.FAULTED_STATE else None
    return VcpuLog(frequency_hz, mpidr, written, records, damaged, faulted)


def _read_record(memory: Memory, at: int, number: int) -> Record | None:
    start = at + layout.RECORDS_AT + number % layout.RECORDS * layout.RECORD_FORMAT.size
    kind, interrupt, ctl, sequence, cntvct, cntpct, third = layout.RECORD_FORMAT.unpack_from(memory, start)
    if sequence != number % 2**32 or kind not in Kind._value2member_map_:
        return None
    kind = Kind(kind)
    if kind is Kind.SAMPLED:
        return Record(kind, cntvct, cntpct, last_cntvct=third)
    return Record(kind, cntvct, cntpct, cval=third, interrupt=interrupt, ctl=ctl)


def _checked(vcpu: int) -> int:
    if not 0 <= vcpu < layout.MAX_VCPUS:
        msg = f"vCPU {vcpu} of {layout.MAX_VCPUS}"
        raise IndexError(msg)
    return vcpu
