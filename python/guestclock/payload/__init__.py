"""A bare-metal guest that logs its clocks, for any VMM, and the judge of its log."""

from __future__ import annotations

from guestclock.payload.check import VIEWS, check_log, deviations
from guestclock.payload.image import elf, image
from guestclock.payload.layout import Command, Doorbell, Kind
from guestclock.payload.log import Fault, Guest, Log, NotALog, Record, VcpuLog, read_log
from guestclock.payload.verdict import Finding, Host, Looks, Pause, Verdict

__all__ = [
    "VIEWS",
    "Command",
    "Doorbell",
    "Fault",
    "Finding",
    "Guest",
    "Host",
    "Kind",
    "Log",
    "Looks",
    "NotALog",
    "Pause",
    "Record",
    "VcpuLog",
    "Verdict",
    "check_log",
    "deviations",
    "elf",
    "image",
    "read_log",
]
