"""guestclock's errors, which carry their facts as attributes and survive pickle and copy with them.

Wrong arguments stay TypeError, ValueError, IndexError and OverflowError.
"""

from __future__ import annotations

import os
from typing import Any


class GuestClockError(Exception):
    """The root of guestclock's own errors.

    `fields` become attributes: the numbers of both sides, for a program to act on. The message states them for people.
    """

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.__dict__.update(fields)

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {name: value for name, value in self.__dict__.items() if name != "message"}
        return _rebuild, (type(self), self.message, fields)

    def __str__(self) -> str:
        return self.message


def _rebuild(cls: type[GuestClockError], message: str, fields: dict[str, Any]) -> GuestClockError:
    return cls(message, **fields)


class CheckpointError(GuestClockError, ValueError):
    """Bytes that don't make a checkpoint."""


class NotACheckpoint(CheckpointError):
    """The bytes don't begin as a guestclock checkpoint does."""


class TooLarge(CheckpointError):
    """More bytes than a checkpoint may have."""

    size: int
    limit: int


class Corrupt(CheckpointError):
    """The checksum doesn't match: the bytes were damaged or cut short."""

    stored: int
    computed: int


class Malformed(CheckpointError):
    """Intact bytes that break the format's rules."""

    offset: int


class UnsupportedVersion(CheckpointError):
    """An intact checkpoint of a version that this guestclock can't read."""

    found: int
    supported: int


class UnsupportedArch(CheckpointError):
    """The checkpoint is of guests of another architecture than this version reads."""

    found: str
    """The architecture in the file."""


class UnsupportedFeature(CheckpointError):
    """An intact checkpoint that needs a feature this guestclock doesn't know."""

    feature: str


class RestoreRefused(GuestClockError):
    """The restore would have had to guess; the VM is as it was."""


class FrequencyMismatch(RestoreRefused):
    """The guest was saved with another counter frequency than this VM has."""

    saved_hz: int
    host_hz: int


class CounterSkew(RestoreRefused):
    """The guest's two counters differ, and one offset can't reproduce both."""

    cntvct: int
    cntpct: int


class ClockWentBackwards(RestoreRefused):
    """A clock here reads less than it did at the checkpoint: `clock` names the clock and its unit."""

    clock: str
    saved: int
    host: int


class ElapsedUnknown(RestoreRefused):
    """Nobody vouches for the time that has passed since the checkpoint: `saved` and `host` say what each side knows."""

    saved: str
    host: str
    evidence: str


class ElapsedTooLong(RestoreRefused):
    """The wall clocks say that more time has passed than they are trusted with."""

    elapsed_ns: int
    longest_ns: int


class ClocksDisagree(RestoreRefused):
    """The counter says that `counter_ns` have passed, and two wall clocks that are vouched for say `wall_clocks_ns`."""

    counter_ns: int
    wall_clocks_ns: int
    allowed_ns: int
    """Largest distance of the two that is allowed."""
    evidence: str


class DeadlineMissed(RestoreRefused):
    """The backlog can't be paid back within the `within_ns` of `CatchUp`."""

    remaining_ns: int
    needed_ns: int
    within_ns: int


class TopologyMismatch(RestoreRefused):
    """The VM doesn't have as many of `what` as the checkpoint."""

    what: str
    saved: int
    host: int


class UnknownState(RestoreRefused):
    """The checkpoint has something that this version doesn't know, under `strict=True`."""

    what: str


class StalePlan(RestoreRefused):
    """The VM changed after the plan was made."""


class OutOfOrder(RestoreRefused):
    """The steps of a restore weren't taken in their order, once each."""

    called: str


class ReadBackMismatch(GuestClockError):
    """A register doesn't read back as the restore wrote it: the VM must not run."""

    vcpu: int
    register: str
    wrote: int
    read: int


class CountersMoved(GuestClockError):
    """The guest's `view` counter isn't where a restore by value left it: a vCPU was created, or a counter set."""

    view: str


class RestoreOpen(GuestClockError):
    """A restore or pause of this VM isn't finished, so none of its vCPUs may run yet."""


class Crashed(GuestClockError):
    """A fault of a `FaultyVm` has ended the process that held the VM."""


class AlarmInUse(GuestClockError):
    """A `DeadlineAlarm` has a consumer already, and takes no second one."""


class NoBacklog(GuestClockError):
    """The guest has no backlog, so there is no step to make."""


class SysregTrap(GuestClockError):
    """A guest's access to a register traps to its EL1 or EL2 instead of taking place."""

    reg: int
    to_el: int


class NotSynchronised(GuestClockError):
    """Nobody vouches for the host's wall clock: `reason` is what `source` (chrony, clockbound) says, or its failure."""

    source: str
    reason: str


class CapabilityMissing(GuestClockError):
    """The backend or host lacks a capability that the call needs."""

    capability: str


class KvmError(GuestClockError, OSError):
    """An errno from KVM."""

    def __init__(self, message: str, *, errno: int, **fields: Any) -> None:
        OSError.__init__(self, errno, os.strerror(errno))
        super().__init__(message, **fields)
        self.errno = errno

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {name: value for name, value in self.__dict__.items() if name != "message"}
        return _rebuild, (type(self), self.message, {**fields, "errno": self.errno})


class VcpuRunning(KvmError):
    """A vCPU is in the guest (EBUSY). `vcpu` is None where only KVM says so: it doesn't name the vCPU."""

    vcpu: int | None


class UnknownRegister(KvmError):
    """The register isn't there (ENOENT)."""

    reg: int
