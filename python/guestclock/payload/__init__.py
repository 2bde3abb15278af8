"""A bare-metal guest that logs its clocks, for any VMM, and the judge of its log."""

from __future__ import annotations

from guestclock.payload.image import elf, image
from guestclock.payload.layout import Command, Doorbell, Kind
from guestclock.payload.log import Fault, Guest, Log, NotALog, Record, VcpuLog, read_log

__all__ = [
    "Command",
    "Doorbell",
    "Fault",
    "Guest",
    "Kind",
    "Log",
    "NotALog",
    "Record",
    "VcpuLog",
    "elf",
    "image",
    "read_log",
]
