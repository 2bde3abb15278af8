"""The layout of the payload's memory, as `guest.s` has it. All values are little endian.

image + 0x0000   arm64 boot header
image + 0x0040   parameters, and a command for each vCPU
image + 0x1000   the log's header
image + 0x2000   an area for each vCPU: its state, then its records
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

MAX_VCPUS: Final = 8
IMAGE_SIZE: Final = 0x9_2000
"""Bytes of guest memory that the image takes, with the log behind it."""

# The parameters.
PARAMETERS: Final = 0x40
PARAMETERS_MAGIC: Final = b"gcparam1"
PARAMETERS_FORMAT: Final = struct.Struct("<8s2I4Q2I")
"""Magic, vCPUs, samples in a round, doorbell, GICD, GICR, ticks to an alarm, PSCI, timer interrupt."""
COMMANDS: Final = 0x80

# The log.
LOG: Final = 0x1000
LOG_MAGIC: Final = b"gcguest1"
LOG_FORMAT: Final = struct.Struct("<8s4I")
"""Magic, areas, bytes in an area, records in an area, bytes in a record."""
AREAS: Final = 0x2000
AREA_SIZE: Final = 0x1_2000
AREA_MAGIC: Final = b"gcvcpu01"
AREA_FORMAT: Final = struct.Struct("<8s4Q5Q4Q")
"""Magic, state, records written, CNTFRQ, MPIDR; beats, two pairs of CNTVCT and CNTPCT; vector, ESR, ELR, FAR."""
RECORDS_AT: Final = 0x2000
RECORDS: Final = 2048
RECORD_FORMAT: Final = struct.Struct("<BHBI3Q")
"""Kind, interrupt, CTL, sequence; CNTVCT, CNTPCT, CVAL (for a sample: the last CNTVCT that any vCPU read before)."""


class Command(IntEnum):
    """The command to a vCPU, and as a state: what it does."""

    IDLE = 1
    """Ring PARKED, and again whenever the VMM enters the vCPU."""
    SPIN = 2
    """Keep a pair of counts fresh, with interrupts masked; don't touch the timers."""
    SAMPLE = 3
    """Log samples."""
    ALARM = 4
    """Log a round of samples, set an alarm, sleep until its interrupt; again."""


FAULTED_STATE: Final = 5
"""The state after an unexpected exception."""


class Doorbell(IntEnum):
    """The word that the guest stores at the doorbell's address, in bits 7:0; its vCPU is in bits 15:8."""

    SAMPLE_BEGINS = 1
    SAMPLE_ENDS = 2
    ALARM_SET = 3
    PARKED = 4
    FAULTED = 5


class Kind(IntEnum):
    """The kind of a record."""

    SAMPLED = 1
    ARMED = 2
    FIRED = 3
    OTHER_IRQ = 4
