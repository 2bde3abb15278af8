"""guestclock's errors, which carry their facts as attributes and survive pickle and copy with them.

Five families: `Refused` (nothing was written), `Interrupted` (the VM's state, and the call to make again), `Misuse` (a
call that can't come now), `InvalidFile` and `KvmError` (an errno). Wrong arguments stay TypeError, ValueError,
IndexError and OverflowError.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestclock._core import Report


class GuestClockError(Exception):
    """The root of guestclock's own errors.

    `fields` become attributes: the numbers of both sides, for a program to act on. The message states them for people,
    and ends with the class's `code`, which has its place in docs/refused.md.
    """

    code = "guest-clock-error"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__module__.startswith("guestclock."):
            cls.code = re.sub(r"\B(?=[A-Z])", "-", cls.__name__).lower()

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.__dict__.update(fields)

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {name: value for name, value in self.__dict__.items() if name != "message"}
        return _rebuild, (type(self), self.message, fields)

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


def _rebuild(cls: type[GuestClockError], message: str, fields: dict[str, Any]) -> GuestClockError:
    return cls(message, **fields)


class InvalidFile(GuestClockError, ValueError):
    """Bytes that don't make a checkpoint."""


class NotACheckpoint(InvalidFile):
    """The bytes don't begin as a guestclock checkpoint does."""


class TooLarge(InvalidFile):
    """More bytes than a checkpoint may have."""

    size: int
    limit: int


class Corrupt(InvalidFile):
    """The checksum doesn't match: the bytes were damaged or cut short."""

    stored: int
    computed: int


class Malformed(InvalidFile):
    """Intact bytes that break the format's rules."""

    offset: int


class UnsupportedVersion(InvalidFile):
    """An intact checkpoint of a version that this guestclock can't read."""

    found: int
    supported: int


class UnsupportedArch(InvalidFile):
    """The checkpoint is of guests of another architecture than this version reads."""

    found: str
    """The architecture in the file."""


class UnsupportedFeature(InvalidFile):
    """An intact checkpoint that needs a feature this guestclock doesn't know."""

    feature: str


class Refused(GuestClockError):
    """The call would have had to guess, or can't be done here. Nothing was written."""


class FrequencyMismatch(Refused):
    """The guest was saved with another counter frequency than this VM has."""

    saved_hz: int
    host_hz: int


class CounterSkew(Refused):
    """The guest's two counters differ, and one offset can't reproduce both."""

    cntvct: int
    cntpct: int


class ClockWentBackwards(Refused):
    """A clock here reads less than it did at the checkpoint: `clock` names the clock and its unit."""

    clock: str
    saved: int
    host: int


class ElapsedUnknown(Refused):
    """Nobody vouches for the time that has passed since the checkpoint: `saved` and `host` say what each side knows."""

    saved: str
    host: str
    evidence: str


class ElapsedTooLong(Refused):
    """The wall clocks say that more time has passed than they are trusted with."""

    elapsed_ns: int
    longest_ns: int


class ClocksDisagree(Refused):
    """The counter says that `counter_ns` have passed, and two wall clocks that are vouched for say `wall_clocks_ns`."""

    counter_ns: int
    wall_clocks_ns: int
    allowed_ns: int
    """Largest distance of the two that is allowed."""
    evidence: str


class DeadlineMissed(Refused):
    """The backlog can't be paid back within the `within_ns` of `CatchUp`."""

    remaining_ns: int
    needed_ns: int
    within_ns: int


class TopologyMismatch(Refused):
    """The VM doesn't have as many of `what` as the checkpoint."""

    what: str
    saved: int
    host: int


class UnknownState(Refused):
    """The checkpoint has something that this version doesn't know, under `strict=True`."""

    what: str


class OtherInstant(Refused):
    """The stamp of `release(at=)` isn't of this host since the plan. The restore is still open."""


class StalePlan(Refused):
    """The VM changed after the plan was made."""


class CountersMoved(Refused):
    """The guest's `view` counter isn't where it was left: a vCPU was created, or the counter was set elsewhere."""

    view: str


class RestoreOpen(Refused):
    """A restore or pause of this VM isn't finished, so none of its vCPUs may run yet."""


class NamesDiffer(Refused):
    """The names of a fleet, of a checkpoint and of the call don't match."""

    missing: list[str]
    """VMs of the fleet that the checkpoint hasn't got."""
    extra: list[str]
    """VMs of the checkpoint that the fleet hasn't got."""
    unknown: list[str]
    """Names in the call that the fleet hasn't got."""
    equal: list[str]
    """Names that the call gives twice."""


class FleetRefused(Refused):
    """Some VMs of a fleet can't be restored so. Nothing was written to any VM."""

    accepted: list[str]
    """VMs that can be: for `only=`."""
    refused: dict[str, Exception]
    """The error of each of the others."""


class CapabilityMissing(Refused):
    """The backend or host lacks a capability that the call needs."""

    capability: str


_STATES = {
    "as-it-was": "the VM is as it was",
    "provisional": "the VM has opted in with a provisional offset, and must not run",
    "half-restored": "some of the VM's registers are restored, and it must not run",
    "timers-only": "the VM's timers are restored, its counters aren't, and it must not run",
    "paused": "the VM is still paused, and must not run",
    "partly": "`failed` has the error of each of these, and the others are done",
}


class Interrupted(GuestClockError):
    """A call that had begun to write didn't end. Its `__cause__` is the error that stopped it, such as VcpuRunning."""

    state: str
    """State of the VM: "as-it-was", or "provisional", "half-restored", "timers-only" or "paused", in which its vCPUs
    can't run; of a fleet "partly"."""
    step: str
    """The step that failed. Everything before it was done."""
    retry: str
    """The call to make again: "apply", "release", "resume", or "restore" for a new restore; empty where there is none.
    """

    def __str__(self) -> str:
        again = f": call {self._again()} again" if self.retry else ""
        return f"{self.message}; {_STATES.get(self.state, self.state)}{again} [{self.code}]"

    def _again(self) -> str:
        return f"{self.retry}()"


class ReadBackMismatch(Interrupted):
    """A register doesn't read back as the restore wrote it."""

    vcpu: int
    register: str
    wrote: int
    read: int


class InterruptsOff(Interrupted):
    """A timer's interrupt is enabled and its line high, and the vGIC's distributor is off: KVM would lose it for good.

    Restore GICD_CTLR first, the redistributors after it, and call release() again. Where the guest itself had it off
    when it was saved, give the `KvmVm` no `gic_fd`: then nobody looks.
    """

    vcpu: int
    timer: str
    """Name of the timer: "vtimer" or "ptimer"."""


class FleetInterrupted(Interrupted):
    """Some VMs of a fleet weren't restored, are still paused, or had left a pause. The others are done, and may run."""

    failed: dict[str, Exception]
    """The error of each VM that isn't done. It says the state of the VM."""

    @property
    def reports(self) -> Mapping[str, Report]:
        """The report of each VM that is done."""
        found: Mapping[str, Report] = self.__dict__.get("_reports", {})
        return found

    def _again(self) -> str:
        # A restore of all would take the guests back that have gone on.
        return "restore(only=error.failed)" if self.retry == "restore" else super()._again()


class Misuse(GuestClockError):
    """A call that can't come now: out of order, too early, or a second time. It changed nothing."""


class OutOfOrder(Misuse):
    """The steps of a restore weren't taken in their order, once each."""

    called: str


class Crashed(GuestClockError):
    """A fault of a `FaultyVm` has ended the process that held the VM."""


class AlarmInUse(GuestClockError):
    """A `DeadlineAlarm` has a consumer already, and takes no second one."""


class NoSuchVm(Misuse, IndexError):
    """The VM was removed from its bank, or the handle is none of the bank's."""


class PageOverwritten(GuestClockError):
    """No vmclock page or stolen-time record begins at this place of the memory, which the guest can write.

    It changes nothing for the VM: restore it without the page, or make the page again by `VmClock.create`.
    """

    offset: int


class NoBacklog(Misuse):
    """The guest has no backlog, so there is no step to make."""


class SysregTrap(GuestClockError):
    """A guest's access to a register traps to its EL1 or EL2 instead of taking place."""

    reg: int
    to_el: int


class NotSynchronised(GuestClockError):
    """Nobody vouches for the host's wall clock: `reason` is what `source` (chrony, clockbound) says, or its failure."""

    source: str
    reason: str


class KvmError(GuestClockError, OSError):
    """An errno from KVM."""

    def __init__(self, message: str, *, errno: int, **fields: Any) -> None:
        OSError.__init__(self, errno, os.strerror(errno))
        super().__init__(message, **fields)
        self.errno = errno

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {name: value for name, value in self.__dict__.items() if name != "message"}
        return _rebuild, (type(self), self.message, {**fields, "errno": self.errno})


class VcpuRunning(KvmError, Refused):
    """A vCPU is in the guest (EBUSY). `vcpu` is None where only KVM says so: it doesn't name the vCPU.

    Raised where nothing was written; the `__cause__` of Interrupted where something was.
    """

    vcpu: int | None


class UnknownRegister(KvmError):
    """The register isn't there (ENOENT)."""

    reg: int
