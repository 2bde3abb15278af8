"""Error bounds from the host's own time daemon: `chrony` and `clockbound` each return a `SyncBound`.

Both raise NotSynchronised where nobody vouches for the wall clock. Integers only, and every rounding is up.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, NoReturn

from guestclock.errors import NotSynchronised
from guestclock.types import SyncBound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NS: Final = 10**9
_END: Final = 2**64
_PPB_IN_PPM: Final = 1_000


def chrony(
    tracking: str | None = None,
    *,
    command: Sequence[str] = ("chronyc", "-c", "tracking"),
    timeout_s: int = 5,
    max_clock_error_ppb: int = 1_000,
    tai_offset_s: int | None = None,
) -> SyncBound:
    """The bound that chrony vouches for, from `tracking` (a line of `chronyc -c tracking`) or from `command`, run now.

    The bound is the sum that chronyc(1) states under "Root dispersion", for a stratum-1 server that is right: `|system
    time offset| + root dispersion + root delay / 2`. Each printed number counts as the largest that is printed so.
    chronyd lets the dispersion grow by skew + |residual frequency| + maxclockerror (`get_root_dispersion` in its
    reference.c), and that sum is `holdover_ppb`. maxclockerror isn't in the line, so `max_clock_error_ppb` has to be
    the value in chrony.conf(5), 1 ppm unless it is set there. The bound holds while chronyd steers the clock, and as
    long as the clock keeps the frequency that chronyd gave it last. It doesn't hold under `chronyd -x`, which steers
    nothing.

    `age_ns` is the most time that the command took: take the stamp next. The age of a given line is known only to its
    owner: `dataclasses.replace(bound, age_ns=...)`.

    Raises NotSynchronised where chronyd isn't synchronised, is its own reference (the `local` directive), or doesn't
    answer, and ValueError where `tracking` isn't such a line.
    """
    began = time.monotonic_ns()
    age_ns = 0
    if tracking is None:
        tracking = _output(command, timeout_s)
        age_ns = time.monotonic_ns() - began
    # print_report in chrony's client.c prints the fields of process_cmd_tracking in order, "%R (%s)" as two.
    fields = tracking.strip().split(",")
    if len(fields) != 14:
        raise ValueError(f"not a line of `chronyc -c tracking`, which has 14 fields: {tracking!r}")
    refid, leap = fields[0], fields[13]
    if leap not in ("Normal", "Insert second", "Delete second"):
        _refuse("chrony", f"its leap status is {leap!r}", "wait until it is (`chronyc waitsync`)")
    if refid == "7F7F0101":
        _refuse(
            "chrony",
            "it is its own reference (the `local` directive): nobody compares it with UTC",
            "give it a time source",
        )
    offset, residual, skew, delay, dispersion = (_largest(fields[n]) for n in (4, 8, 9, 10, 11))
    return _believable(
        max_error_ns=_up((offset + dispersion + delay / 2) * _NS),
        age_ns=age_ns,
        holdover_ppb=_up((skew + residual) * _PPB_IN_PPM) + max_clock_error_ppb,
        quality="chrony",
        tai_offset_s=tai_offset_s,
    )


_SEGMENT: Final = struct.Struct("=IIIHH qq qq q Q I i ? 7x")
_MAGIC: Final = (0x414D5A4E, 0x43420200)
_VERSION: Final = 2
_GENERATION_AT: Final = 14
_SYNCHRONIZED, _FREE_RUNNING = 1, 2
# More than enough for a writer that takes a microsecond once a second; a writer that died halfway never finishes.
_TRIES: Final = 1_000


def clockbound(
    segment: bytes | None = None,
    *,
    path: str | os.PathLike[str] = "/var/run/clockbound/shm0",
    now_ns: int | None = None,
    tai_offset_s: int | None = None,
) -> SyncBound:
    """The bound that ClockBound vouches for, from `segment` (a copy of its shared memory) or from `path`, read now.

    The layout is version 2 of docs/PROTOCOL.md (github.com/aws/clock-bound). The bound is the one that ClockBound's
    clients compute, `bound + max_drift * (now - as_of)`, and the `SyncBound` has its parts. The clients take `now` from
    CLOCK_MONOTONIC_COARSE, which lags by up to a jiffy; here `now` is CLOCK_MONOTONIC, the same clock without the lag,
    so that the bound is never too narrow. `now_ns` gives `now` for a copy; by default it is the present time.

    Raises NotSynchronised where the status is neither Synchronized nor FreeRunning, where the daemon hasn't written for
    so long that the bound is void, and where there is no segment or the daemon is writing it; ValueError where the
    bytes aren't a segment of that version. A disruption of the host itself shows when the daemon has noticed it: the
    host's own vmclock page isn't read.
    """
    if segment is None:
        segment = _settled(path)
    # Read after the segment: a later `now` is a wider bound.
    now = time.monotonic_ns() if now_ns is None else now_ns
    seen = _parsed(segment)
    if seen.status not in (_SYNCHRONIZED, _FREE_RUNNING):
        names = {0: "Unknown", 3: "Disrupted"}
        _refuse(
            "clockbound", f"its status is {names.get(seen.status, seen.status)}", "see whether chronyd is synchronised"
        )
    if now >= seen.void_ns:
        _refuse("clockbound", f"its bound was void {now - seen.void_ns} ns ago", "see whether its daemon runs")
    # The clients tolerate a microsecond, because they have met an as_of that far ahead.
    if seen.as_of_ns - now >= 1_000:
        raise ValueError(f"a ClockBound segment from the future: as_of is {seen.as_of_ns} ns, and it is {now} ns now")
    return _believable(
        max_error_ns=seen.bound_ns,
        age_ns=max(now - seen.as_of_ns, 0),
        holdover_ppb=seen.max_drift_ppb,
        quality="clockbound",
        tai_offset_s=tai_offset_s,
    )


class _Segment(NamedTuple):
    as_of_ns: int
    void_ns: int
    bound_ns: int
    max_drift_ppb: int
    status: int


def _parsed(segment: bytes) -> _Segment:
    if len(segment) < _SEGMENT.size:
        raise ValueError(f"a ClockBound segment has {_SEGMENT.size} bytes, not {len(segment)}")
    (*magic, size, version, generation, as_of_s, as_of, void_s, void, bound, _marker, drift, status, _support) = (
        _SEGMENT.unpack_from(segment)
    )
    if tuple(magic) != _MAGIC:
        raise ValueError("not a ClockBound segment: it begins with other magic numbers")
    if version == 0 or generation == 0:
        _refuse("clockbound", "its daemon is starting", "ask again when it has begun")
    if version != _VERSION:
        raise ValueError(f"a ClockBound segment of version {version}: only {_VERSION} is known here")
    if generation % 2:
        raise ValueError("a ClockBound segment that was copied while it was written (an odd generation): copy it again")
    if size < _SEGMENT.size or not 0 <= as_of < _NS or not 0 <= void < _NS or bound < 0 or drift >= _NS:
        raise ValueError("a damaged ClockBound segment: its numbers are out of range")
    return _Segment(as_of_s * _NS + as_of, void_s * _NS + void, bound, drift, status)


def _believable(
    *,
    max_error_ns: int,
    age_ns: int,
    holdover_ppb: int,
    quality: Literal["chrony", "clockbound"],
    tai_offset_s: int | None,
) -> SyncBound:
    """The bound of these numbers, refused where one is beyond what a stamp can carry: 584 years, in nanoseconds."""
    for name, number in (("error", max_error_ns), ("age", age_ns), ("holdover", holdover_ppb)):
        if number >= _END:
            _refuse(quality, f"its {name} is {number}, which is absurd", "see what it goes by")
    return SyncBound(max_error_ns, age_ns, holdover_ppb, quality, tai_offset_s)


def _refuse(source: str, reason: str, instead: str, cause: BaseException | None = None) -> NoReturn:
    message = f"{source} doesn't vouch for the wall clock: {reason}. {instead[:1].upper()}{instead[1:]}"
    way_out = ", or say yourself how far it may be off: SyncBound(max_error_ns=...)"
    raise NotSynchronised(message + way_out, source=source, reason=reason) from cause


def _output(command: Sequence[str], timeout_s: int) -> str:
    """Runs the command, and returns its standard output."""
    name = command[0]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=True
        )
    except FileNotFoundError as error:
        _refuse("chrony", f"there is no {name} here", "install it", error)
    except subprocess.TimeoutExpired as error:
        _refuse("chrony", f"{name} didn't answer within {timeout_s} s", "see whether chronyd runs", error)
    except subprocess.CalledProcessError as error:
        # chronyc says why on its standard output ("506 Cannot talk to daemon").
        why = (error.stdout or error.stderr).strip()
        _refuse("chrony", f"{name} failed with {error.returncode} ({why})", "see whether chronyd runs", error)
    return done.stdout


def _largest(printed: str) -> Fraction:
    """The largest magnitude of a number that is printed so: a decimal fraction is rounded to its last digit."""
    if not re.fullmatch(r"-?[0-9]+\.[0-9]+", printed, re.ASCII):
        raise ValueError(f"not a line of `chronyc -c tracking`: {printed!r} isn't a decimal fraction")
    return abs(Fraction(printed)) + Fraction(1, 2 * 10 ** len(printed.partition(".")[2]))


def _up(value: Fraction) -> int:
    return -(-value.numerator // value.denominator)


def _settled(path: str | os.PathLike[str]) -> bytes:
    """A whole copy of the segment, under its writer's protocol: the generation is even, and the same before and after.

    Python can't order two reads of memory as the protocol wants it. So the function takes two whole copies, each by one
    system call, and they have to be the same, byte for byte.
    """
    try:
        with Path(path).open("rb", buffering=0) as file:
            return _agreed(lambda: os.pread(file.fileno(), _SEGMENT.size, 0))
    except OSError as error:
        _refuse("clockbound", f"its shared memory can't be read ({error})", "see whether its daemon runs", error)


def _agreed(read: Callable[[], bytes]) -> bytes:
    last = read()
    for _ in range(_TRIES):
        segment = read()
        generation = int.from_bytes(segment[_GENERATION_AT : _GENERATION_AT + 2], sys.byteorder)
        if segment == last and generation % 2 == 0:
            return segment
        last = segment
    _refuse("clockbound", "its daemon doesn't finish writing", "see whether it runs")
