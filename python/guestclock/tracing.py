"""Restores as an operator of many VMs sees them: a line in the log each, and counters and gauges for a host.

Every restore and every pause that ends, is refused or is interrupted goes to `logging.getLogger("guestclock")`:

- at INFO, or at WARNING where the report has warnings;
- a refusal at WARNING, an interruption at ERROR.

The record's attributes are the fields of `Ended`, each under the key "guestclock." and the field's name. Nothing is
made of a restore where the logger is off and no `Monitor` is open.

A `Monitor` counts the same events, reads gauges of the VMs that it is given, and hands out both as `Metric`s.
`write_calls` writes the calls of a `TracedVm` as JSON lines.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from guestclock._core import GuestVm, TracedVm, _monitored
from guestclock.errors import GuestClockError, Interrupted, Misuse, NoSuchVm, Refused, VcpuRunning
from guestclock.fleet.verbs import Fleet
from guestclock.live import live
from guestclock.units import S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType
    from typing import IO, Self

    from guestclock._core import ClockEquation, Report
    from guestclock.fleet import FleetReport
    from guestclock.types import TracedCall

__all__ = ["Ended", "Metric", "Monitor", "write_calls"]

_LOGGER: Final = logging.getLogger("guestclock")
_LOGGER.addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One restore or pause that ended, or a step of it that was refused or failed. Times are nanoseconds."""

    vm: str
    """The VM's name: in a monitor's event as the monitor knows it."""
    verb: Literal["restore", "pause"]
    outcome: Literal["done", "refused", "interrupted", "failed"]
    """Refused: nothing was written. Interrupted: the error says the VM's state. Failed: an errno, or another error."""
    vms: int = 1
    """Number of VMs: a bank is restored whole, as one event."""
    policy: str | None = None
    """The policy, as an expression; this and all below are None where the restore wasn't done."""
    method: str | None = None
    """The counters were set by "offset", "by-value" or "virtual-only"."""
    evidence: str | None = None
    """The clock that told the time that had passed: `Report.elapsed_by`; None where nobody knew it."""
    elapsed_ns: int | None = None
    """Time that the guest had missed: what was added, and what it falls behind by; None where nobody knows."""
    added_ns: int | None = None
    """Guest time that the policy added; of a bank the most."""
    bound_ns: int | None = None
    """Error bound of the counters; of a bank the largest."""
    behind_ns: int | None = None
    """Time by which the guest's wall clock falls behind; of a bank the most."""
    backlog_ns: int | None = None
    """Guest time that is still to be paid back; of a bank the most."""
    blackout_ns: int | None = None
    """Time that the VM was closed, by this host's CLOCK_MONOTONIC: from the first step to the end of the last."""
    window_ns: int | None = None
    """Time from the last sample to the end of the call that released, which a guest under Freeze sees."""
    limits: tuple[str, ...] = ()
    """Limits of a Linux guest that the jump crosses, or may cross."""
    warnings: tuple[str, ...] = ()
    """Codes of the report's warnings."""
    error: str | None = None
    """Class of the error."""
    step: str | None = None
    """Step that failed, of an interruption."""
    state: str | None = None
    """State that the VM is in, of an interruption."""
    message: str | None = None
    """The error's message."""

    def __str__(self) -> str:
        """For people: one line."""
        whose = f"VM {self.vm!r}" if self.vms == 1 else f"{self.vms} VMs"
        if self.outcome != "done":
            return f"{self.verb} of {whose} {self.outcome}: {self.error}: {self.message}"
        said = [f"{self.policy} by {self.method}", f"added {self.added_ns} ns", f"within {self.bound_ns} ns"]
        if self.behind_ns:
            said.append(f"behind {self.behind_ns} ns")
        if self.blackout_ns is not None:
            said.append(f"closed {self.blackout_ns} ns")
        said += [
            f"{what}: {', '.join(names)}"
            for what, names in (("limits", self.limits), ("warnings", self.warnings))
            if names
        ]
        return f"{self.verb} of {whose} done, {', '.join(said)}"


_FIELDS: Final = tuple(field.name for field in fields(Ended))


class Metric(NamedTuple):
    """One number of a `Monitor`."""

    name: str
    """Such as "guestclock_restores_total": the unit, where it has one, is in it."""
    kind: Literal["counter", "gauge"]
    labels: dict[str, str]
    value: int
    text: str
    """The number in words: a line of help."""


_COUNTERS: Final = {
    "ended": "Restores and pauses that ended, by outcome, policy and evidence",
    "errors": "Refusals, interruptions and failures, by the error's class",
    "warnings": "Warnings of reports, by code",
    "limits_crossed": "Limits of a Linux guest that a jump crossed, or may have crossed",
    "added_nanoseconds": "Guest time that policies added",
    "behind_nanoseconds": "Time by which guests' wall clocks fell behind, where it is known",
    "blackout_nanoseconds": "Time that VMs were closed",
}
_PEAKS: Final = {
    "blackout_max_nanoseconds": "Longest time that a VM was closed since the monitor was made",
    "window_max_nanoseconds": "Longest time from a last sample to the release since the monitor was made",
    "bound_max_nanoseconds": "Largest error bound of a restore since the monitor was made",
}
_CALLS: Final = {
    "calls": ("made", "Primitive calls of traced VMs: on KVM ioctls"),
    "calls_busy": ("busy", "Primitive calls of traced VMs that answered EBUSY, and were made again or given up"),
    "calls_failed": ("failed", "Primitive calls of traced VMs that answered another errno"),
    "call_nanoseconds": ("took_ns", "Time in primitive calls of traced VMs"),
}
_GAUGES: Final = {
    "vms": "VMs, by the state of their clocks",
    "backlog_vms": "VMs that still have a backlog",
    "backlog_max_nanoseconds": "Largest backlog of a VM",
    "equation_age_max_nanoseconds": "Age of the oldest published clock equation, in guest time",
    "verified_vms": "VMs whose clocks were looked at: right, off, or running, which no look waits for",
    "mismatched_clocks": "Clocks that aren't where they are to be, by the side that they contradict",
}
_CONTRADICTED: Final = ("vm-offset", "other-vcpus", "report", "condition")
"""Codes of the mismatches that a look without a checkpoint can find."""
_MONITORS: Final[list[Monitor]] = []
_LOCK: Final = threading.Lock()


@live("take its metrics()")
class Monitor:
    """Counters and gauges of a host's VMs: `with Monitor(fleet) as monitor: ...; monitor.metrics()`.

    `vms` are the VMs by the names under which they are counted: a mapping, such as a `Fleet`, read at each sample. The
    counters are about all restores and pauses of this process from `__init__` to `close()`. With `per_vm` each sample
    has the label "vm"; without it a host of thousands has as many samples as a host of one.

    `on_end` is called with each `Ended` after the fact, in the thread that restored, and gets the calls that a
    `TracedVm` has recorded since the last event; this empties its ring. An error of it is logged, and changes nothing.
    `equations` are the clock equations that were last published, by the VM's name: the VMM puts them there.

    With `verify` each sample is a look at the clocks of all VMs as well (`GuestVm.verify`): some reads of each vCPU's
    registers, and on KVM ioctls. Each VM is compared with the report of its last restore or pause, which the monitor
    keeps; a bank's VMs, whose restores are one event, with each other's vCPUs alone.
    """

    def __init__(
        self,
        vms: Mapping[str, GuestVm] | None = None,
        *,
        per_vm: bool = False,
        verify: bool = False,
        on_end: Callable[[Ended, list[TracedCall]], object] | None = None,
    ) -> None:
        self.vms: Mapping[str, GuestVm] = {} if vms is None else vms
        """The VMs."""
        self.equations: dict[str, ClockEquation] = {}
        """The clock equation that was last published for each VM that has a vmclock page."""
        self._known: dict[int, tuple[str, GuestVm]] = {}
        self._per_vm = per_vm
        self._verify = verify
        self._reports: dict[str, tuple[int, Report]] = {}
        self._on_end = on_end
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        self._peaks: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {}
        with _LOCK:
            _MONITORS.append(self)
            _monitored(True)  # noqa: FBT003 - the native module's

    def close(self) -> None:
        """Ends the counting."""
        with _LOCK:
            if self in _MONITORS:
                _MONITORS.remove(self)
            _monitored(bool(_MONITORS))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def metrics(self) -> list[Metric]:
        """Return every counter and gauge now. A counter that has counted nothing yet isn't there.

        A gauge of a VM that can't be asked, such as one that was removed, is left out.
        """
        with self._lock:
            counts, peaks = dict(self._counts), dict(self._peaks)
        made = [
            Metric(f"guestclock_{name}_total", "counter", dict(labels), value, _COUNTERS[name])
            for (name, labels), value in counts.items()
        ]
        made += [
            Metric(f"guestclock_{name}", "gauge", dict(labels), value, _PEAKS[name])
            for (name, labels), value in peaks.items()
        ]
        return made + self._calls() + self._gauges()

    def _calls(self) -> list[Metric]:
        sums: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        for vm_name, vm in self._there():
            if isinstance(vm, TracedVm):
                for operation, totals in vm.totals.items():
                    labels = (*self._of(vm_name), ("operation", operation))
                    for name, (attribute, _) in _CALLS.items():
                        sums[name, labels] += getattr(totals, attribute)
        return [
            Metric(f"guestclock_{name}_total", "counter", dict(labels), value, _CALLS[name][1])
            for (name, labels), value in sums.items()
        ]

    def _gauges(self) -> list[Metric]:
        states: Counter[tuple[tuple[str, str], ...]] = Counter()
        owing: Counter[tuple[tuple[str, str], ...]] = Counter()
        backlogs: dict[tuple[tuple[str, str], ...], int] = {}
        ages: dict[tuple[tuple[str, str], ...], int] = {}
        for name, vm in self._there():
            labels = self._of(name)
            try:
                state, ticks = vm.state, vm.backlog_ticks
                equation = self.equations.get(name)
                age = None if equation is None else (vm.cntvct(0) - equation.counter_value) % 2**64
            except (GuestClockError, OSError):
                continue
            states[*labels, ("state", state)] += 1
            owing[labels] += bool(ticks)
            backlogs[labels] = max(backlogs.get(labels, 0), ticks * S // vm.frequency_hz)
            if age is not None:
                ages[labels] = max(ages.get(labels, 0), age * S // vm.frequency_hz)
        columns: dict[str, Mapping[tuple[tuple[str, str], ...], int]] = {
            "vms": states,
            "backlog_vms": owing,
            "backlog_max_nanoseconds": backlogs,
            "equation_age_max_nanoseconds": ages,
        }
        if self._verify:
            columns["verified_vms"], columns["mismatched_clocks"] = self._looks()
        return [
            Metric(f"guestclock_{name}", "gauge", dict(labels), value, _GAUGES[name])
            for name, column in columns.items()
            for labels, value in column.items()
        ]

    def _looks(self) -> tuple[Counter[tuple[tuple[str, str], ...]], Counter[tuple[tuple[str, str], ...]]]:
        """The VMs by what a look found, and the clocks that are off. Each series is there, at 0 too."""
        found: Counter[tuple[tuple[str, str], ...]] = Counter()
        mismatched: Counter[tuple[tuple[str, str], ...]] = Counter()
        for name, vm in self._there():
            labels = self._of(name)
            with self._lock:
                identity, report = self._reports.get(name, (None, None))
            try:
                # Under this name there may have been another VM when the report was kept.
                verified = vm.verify(report if identity == vm._identity else None)  # noqa: SLF001 - native half
            except VcpuRunning:
                word = "running"
            except (GuestClockError, OSError):
                continue
            else:
                word = "right" if verified else "off"
                for code in _CONTRADICTED:
                    found_off = sum(mismatch.code == code for mismatch in verified.mismatches)
                    mismatched[*labels, ("code", code)] += found_off
            for each in ("right", "off", "running"):
                found[*labels, ("found", each)] += each == word
        return found, mismatched

    def _there(self) -> Iterator[tuple[str, GuestVm]]:
        """The VMs by their names, except for those that were removed from their bank, or from the mapping meanwhile."""
        for name in list(self.vms):
            try:
                vm = self.vms[name]
            except (KeyError, NoSuchVm):
                continue
            yield name, vm

    def _find(self, identity: int) -> tuple[str, GuestVm] | None:
        """The VM with this identity, and the name under which it is counted."""
        if isinstance(self.vms, Fleet) and self.vms.is_of_bank:
            # Its VMs are views that are made anew each time.
            return None
        with self._lock:
            known = self._known.get(identity)
            if known is None or len(self._known) != len(self.vms) or self.vms.get(known[0]) is not known[1]:
                self._known = {vm._identity: (name, vm) for name, vm in self._there()}  # noqa: SLF001 - native half
            return self._known.get(identity)

    def _keep(self, identity: int, name: str, report: Report | None) -> None:
        """Keep the report that a VM goes by from now on; None where its restore was interrupted."""
        with self._lock:
            if report is None:
                self._reports.pop(name, None)
            else:
                self._reports[name] = identity, report

    def _of(self, name: str) -> tuple[tuple[str, str], ...]:
        return (("vm", name),) if self._per_vm else ()

    def _count(self, identity: int | None, ended: Ended, report: Report | None) -> None:
        found = None if identity is None else self._find(identity)
        if found is not None and found[0] != ended.vm:
            ended = Ended(**{**asdict(ended), "vm": found[0]})
        if self._verify and identity is not None and found is not None and ended.outcome != "refused":
            self._keep(identity, found[0], report)
        of = self._of(ended.vm)
        labels = (*of, ("verb", ended.verb), ("outcome", ended.outcome))
        done = (*labels, ("policy", _kind(ended.policy)), ("evidence", ended.evidence or "none"))
        with self._lock:
            self._counts["ended", done if ended.outcome == "done" else labels] += ended.vms
            if ended.error is not None:
                self._counts["errors", (*labels, ("error", ended.error))] += 1
            for code in ended.warnings:
                self._counts["warnings", (*of, ("code", code))] += 1
            for limit in ended.limits:
                self._counts["limits_crossed", (*of, ("limit", limit))] += 1
            for name in ("added", "behind", "blackout"):
                self._counts[f"{name}_nanoseconds", of] += getattr(ended, f"{name}_ns") or 0
            for name in ("blackout", "window", "bound"):
                ns = getattr(ended, f"{name}_ns")
                if ns is not None:
                    key = f"{name}_max_nanoseconds", of
                    self._peaks[key] = max(self._peaks.get(key, 0), ns)
        if self._on_end is not None:
            vm = None if found is None else found[1]
            self._on_end(ended, vm.take() if isinstance(vm, TracedVm) else [])


def write_calls(vm: TracedVm, file: IO[str]) -> int:
    """Write the calls that a VM has recorded as JSON lines, each a `TracedCall`, and return their number.

    Its ring is empty then.
    """
    calls = vm.take()
    for call in calls:
        file.write(json.dumps(call._asdict()) + "\n")
    return len(calls)


def _done(identity: int, name: str, verb: Literal["restore", "pause"], report: Report, closed_ns: int) -> None:
    """Called by the native module once a restore or a pause is done."""
    said: dict[str, Any] = report.to_dict()
    hz, backlog = said["frequency_hz"], said["backlog"]
    behind_ns = report.behind_ns
    _emit(
        identity,
        Ended(
            vm=name,
            verb=verb,
            outcome="done",
            policy=repr(report.policy),
            method=report.method,
            evidence=report.elapsed_by,
            elapsed_ns=None if behind_ns is None else report.added_ns + behind_ns,
            added_ns=report.added_ns,
            bound_ns=report.error_bound_ns,
            behind_ns=behind_ns,
            backlog_ns=0 if backlog is None else backlog["remaining_ns"],
            blackout_ns=closed_ns,
            window_ns=(report.returned_at - report.released_at) % 2**64 * S // hz,
            limits=tuple(limit["name"] for limit in said["limits"] if limit["reached"] != "not crossed"),
            warnings=tuple(warning["code"] for warning in said["warnings"]),
        ),
        report,
    )


def _failed(identity: int | None, name: str, verb: Literal["restore", "pause"], error: BaseException) -> None:
    """Called by the native module where a step was refused or failed. A call out of its order is the caller's bug."""
    if isinstance(error, Misuse):
        return
    outcome: Literal["refused", "interrupted", "failed"] = (
        "interrupted" if isinstance(error, Interrupted) else "refused" if isinstance(error, Refused) else "failed"
    )
    _emit(
        identity,
        Ended(
            vm=name,
            verb=verb,
            outcome=outcome,
            error=type(error).__name__,
            step=getattr(error, "step", None) if outcome == "interrupted" else None,
            state=getattr(error, "state", None) if outcome == "interrupted" else None,
            message=str(error),
        ),
    )


def _of_bank(verb: Literal["restore", "pause"], report: FleetReport, policy: str) -> None:
    """Called by `Fleet` once a bank's VMs are restored, or go on: one event for all."""
    if not _MONITORS and not _LOGGER.isEnabledFor(logging.INFO):
        return
    columns = report.columns()

    def most(name: str) -> int | None:
        known = [value for value in columns[name].tolist() if value is not None]
        return max(known, default=None)

    def codes(name: str) -> tuple[str, ...]:
        return tuple(sorted({code for row in columns[name].tolist() for code in row.split(",") if code}))

    _emit(
        None,
        Ended(
            vm="",
            verb=verb,
            outcome="done",
            vms=len(report),
            policy=policy,
            method=",".join(codes("method")),
            evidence=",".join(codes("evidence")) or None,
            added_ns=most("added_ns"),
            bound_ns=most("error_bound_ns"),
            behind_ns=most("behind_ns"),
            warnings=codes("warnings"),
        ),
    )


def _emit(identity: int | None, ended: Ended, report: Report | None = None) -> None:
    level = logging.INFO
    if ended.outcome == "interrupted":
        level = logging.ERROR
    elif ended.outcome != "done" or ended.warnings:
        level = logging.WARNING
    if _LOGGER.isEnabledFor(level):
        extra = {f"guestclock.{name}": getattr(ended, name) for name in _FIELDS}
        # The line is made by the handler that wants one.
        _LOGGER.log(level, "%s", ended, extra=extra)
    for monitor in (*_MONITORS,):
        try:
            monitor._count(identity, ended, report)  # noqa: SLF001 - of this module
        except Exception:
            _LOGGER.exception("a monitor failed: the %s isn't counted by it", ended.verb)


def _kind(policy: str | None) -> str:
    """Return the policy without its numbers, which would be a label each."""
    return (policy or "none").partition("(")[0]
