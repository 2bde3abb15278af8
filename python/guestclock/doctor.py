"""Examination of this host for what guestclock needs, as plain data: `examine` changes nothing."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from guestclock import _core, extras
from guestclock._core import _LINUX
from guestclock.errors import GuestClockError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from guestclock.types import Stamp

_SOURCES: Final[tuple[Literal["cntvct_el0", "clock_monotonic_raw", "tsc"], ...]] = (
    "cntvct_el0",
    "clock_monotonic_raw",
    "tsc",
)
# The initial time namespace's inode number: PROC_TIME_INIT_INO of Linux's include/linux/proc_ns.h.
_INITIAL_TIME_NAMESPACE: Final = "time:[4026531834]"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about the host."""

    subject: str
    """Area of the finding: build, counter, wall_clock, host, kvm or extra."""
    name: str
    """Name of the fact, with its unit."""
    value: str | int | bool | None
    """The value found; None if there is none."""
    ok: bool | None
    """True if guestclock can rely on the fact, False if it can't; None if that is unknown."""
    reason: str
    """The reason, or the consequence."""


def examine() -> list[Finding]:
    """Examines the host, one subject after the other. A missing thing is a finding, not an error."""
    return [*_build(), *_counters(), *_host(), *_kvm(), *_extras()]


def to_document(findings: Iterable[Finding]) -> dict[str, object]:
    """Returns a document for JSON: `{"schema", "findings": [{"subject", "name", "value", "ok", "reason"}, ...]}`."""
    return {"schema": "guestclock.doctor/1", "findings": [asdict(finding) for finding in findings]}


def _build() -> Iterator[Finding]:
    reason = "a debug build: many times slower, never measure it" if _core.DEBUG_BUILD else "a release build"
    yield Finding("build", "guestclock", _core.__version__, not _core.DEBUG_BUILD, reason)
    yield Finding("build", "python", platform.python_version(), True, platform.python_implementation())


def _counters() -> Iterator[Finding]:
    try:
        counter = _core.HostCounter()
        stamp = counter.stamp()
    except (GuestClockError, OSError) as error:
        yield Finding("counter", "source", None, False, str(error))
        return
    yield Finding("counter", "source", counter.source, True, "what HostCounter() reads here")
    yield Finding("counter", "frequency_hz", counter.frequency_hz, True, "as the kernel or the CPU states it")
    yield Finding("counter", "read_cost_ns", _core.read_cost_ns(counter), True, "one read, in native code")
    use = "how far apart the count and the wall clock of one sample may be"
    yield Finding("counter", "cross_timestamp_width_ns", stamp.width_ns, True, use)
    for source in _SOURCES:
        if source != counter.source:
            yield _other_source(source)
    yield from _wall_clock(stamp)


def _other_source(source: Literal["cntvct_el0", "clock_monotonic_raw", "tsc"]) -> Finding:
    try:
        frequency_hz = _core.HostCounter(source=source).frequency_hz
    except (GuestClockError, OSError) as error:
        return Finding("counter", f"{source}_hz", None, False, str(error))
    return Finding("counter", f"{source}_hz", frequency_hz, True, f"HostCounter(source={source!r}) reads it")


def _wall_clock(stamp: Stamp) -> Iterator[Finding]:
    synchronised = {
        True: "the kernel says so: Advance on another host can rest on it",
        False: "the kernel says that nothing steers the clock: Advance on another host needs sync=",
        None: "the kernel did not say",
    }[stamp.synchronized]
    yield Finding("wall_clock", "synchronised", stamp.synchronized, stamp.synchronized, synchronised)
    if stamp.max_error_ns is None:
        yield Finding("wall_clock", "max_error_ns", None, None, "the kernel claims no bound")
    else:
        yield Finding("wall_clock", "max_error_ns", stamp.max_error_ns, True, "the kernel's claim, not a proof")
    if stamp.tai_offset_s is None:
        yield Finding("wall_clock", "tai_offset_s", None, None, "the kernel was never told TAI - UTC")
    else:
        yield Finding("wall_clock", "tai_offset_s", stamp.tai_offset_s, True, "TAI - UTC, as the kernel was told")
    bound_ns = stamp.error_bound_ns
    trust = f"how far off one sample's wall clock may be, {stamp.vouched}; sync= declares more"
    why = f"{stamp.vouched}: Advance on another host needs sync= or elapsed="
    yield Finding("wall_clock", "error_bound_ns", bound_ns, bound_ns is not None, why if bound_ns is None else trust)
    if stamp.leap == "unknown":
        yield Finding(
            "wall_clock", "leap", None, None, "the kernel vouches for no leap-second state while unsynchronised"
        )
    else:
        yield Finding("wall_clock", "leap", stamp.leap, stamp.leap in {"none", "passed"}, "the leap-second state")
    yield _identity("machine_id", stamp.machine_id, "/etc/machine-id", "tells this host from another")
    yield _identity(
        "boot_id", stamp.boot_id, "/proc/sys/kernel/random/boot_id", "shown beside the evidence for one counter"
    )


def _identity(name: str, found: str | None, path: str, use: str) -> Finding:
    """Reports that an id is there, and not the id: the doctor's output goes into bug reports."""
    if found is None:
        return Finding("host", name, None, False, f"{path} is missing or empty")
    return Finding("host", name, "present", True, use)


def _host() -> Iterator[Finding]:
    yield Finding("host", "machine", platform.machine(), True, f"{platform.system()} {platform.release()}")
    if _LINUX:
        yield _time_namespace()


def _time_namespace() -> Finding:
    """Looks for a time namespace, which shifts CLOCK_MONOTONIC and CLOCK_MONOTONIC_RAW: time_namespaces(7)."""
    try:
        namespace = str(Path("/proc/self/ns/time").readlink())
        offsets = Path("/proc/self/timens_offsets").read_text(encoding="ascii")
    except FileNotFoundError:
        return Finding("host", "time_namespace", None, True, "this kernel has none")
    except OSError as error:
        return Finding("host", "time_namespace", None, None, str(error))
    if _core.MonotonicCounter().source == "clock_monotonic_local":
        reason = "its offsets can't be known: stamps of the kernel's clocks aren't host-wide"
        return Finding("host", "time_namespace", namespace, False, reason)
    if namespace == _INITIAL_TIME_NAMESPACE:
        return Finding("host", "time_namespace", "initial", True, "the kernel's clocks are not shifted")
    shifted = any(int(number) for line in offsets.splitlines() for number in line.split()[1:])
    if not shifted:
        return Finding("host", "time_namespace", namespace, True, "one of its own, its clocks not shifted")
    reason = "its monotonic clocks are shifted: stamps have it taken off, reads don't"
    return Finding("host", "time_namespace", namespace, True, reason)


def _kvm() -> Iterator[Finding]:
    try:
        probe = _core.kvm_probe()
    except GuestClockError as error:
        yield Finding("kvm", "device", None, False, str(error))
        return
    device = probe["device"]
    yield Finding("kvm", "device", None, device.ok, device.reason)
    capabilities = {
        "counter_offset": (probe["counter_offset"], "one VM-wide offset for both counters"),
        "el2": (probe["el2"], "nested virtualisation, where a vCPU has a CNTVOFF_EL2"),
        "user_irq": (probe["user_irq"], "timer lines for a VMM with an interrupt controller of its own"),
    }
    for name, (support, use) in capabilities.items():
        yield Finding("kvm", name, None, support.ok, f"{use}: {support.reason}")


def _extras() -> Iterator[Finding]:
    for extra in extras.EXTRAS:
        found = extras.installed(extra)
        missing = [name for name, version in found.items() if version is None]
        if missing:
            yield Finding("extra", extra, None, False, f"{', '.join(missing)} missing: {extras.pip_line(extra)}")
        else:
            versions = ", ".join(f"{name} {version}" for name, version in found.items())
            yield Finding("extra", extra, versions, True, "installed")
