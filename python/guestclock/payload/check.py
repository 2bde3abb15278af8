"""The judge of the payload's log: it says whether the guest's clocks kept their promises.

Every judgement is of what can't be otherwise. Two counts that a guest reads one after the other bound what it could
have read between them. Two readings of the host's counter bound the host's count at a guest's reading, and so the
offset between the two counters. Offsets that should be one must have a number in common. There is no tolerance to tune:
a finding is wrong by at least the number of ticks that it gives.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Final

from guestclock.inspection.words import signed
from guestclock.payload.layout import Kind
from guestclock.payload.verdict import Finding, FindingKind, GapFigures, Host, Skew, VcpuFigures, Verdict
from guestclock.promise import Interval, expected_shift

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from guestclock.payload.log import Log, Record, VcpuLog

VIEWS: Final = ("cntvct", "cntpct")
GRACE_NS: Final = 1_000_000_000
"""The longest that an interrupt may be missing after its deadline before it counts as lost."""

_NS_PER_S: Final = 1_000_000_000
_SPECIAL: Final = 1020
"""The first of the interrupt ids that are no interrupt's (Arm IHI 0069); a late alarm may leave one behind."""


@dataclass(slots=True)
class _Judge:
    log: Log
    host: Host | None
    views: Sequence[str]
    grace_ns: int
    findings: list[Finding] = field(default_factory=list)

    def finds(self, kind: FindingKind, vcpu: int | None, ticks: int | None, what: str) -> None:
        self.findings.append(Finding(kind, vcpu, ticks, what))

    def started(self) -> Iterator[tuple[int, VcpuLog]]:
        return ((number, vcpu) for number, vcpu in enumerate(self.log.vcpus) if vcpu is not None)


def check_log(log: Log, *, host: Host | None = None, views: Sequence[str] = VIEWS, grace_ns: int = GRACE_NS) -> Verdict:
    """Judges a log.

    host: the VMM's readings. Without them the gap across a pause isn't judged, and skew between vCPUs only as far as
    one vCPU read less than another had read before it.
    views: the counters to judge, "cntvct", "cntpct" or both: Linux before 6.4 can restore only the first.
    grace_ns: the longest that an interrupt may be missing after its deadline before it counts as lost.

    Raises ValueError where `host` isn't of this log: another frequency, or other numbers of vCPUs or samples.
    """
    judge = _Judge(log, host, views, grace_ns)
    frequencies = {vcpu.frequency_hz for _, vcpu in judge.started()}
    frequency_hz = min(frequencies, default=0)
    if host is not None:
        _match(log, host, frequency_hz)
    if len(frequencies) > 1:
        judge.finds("frequency", None, None, f"vCPUs read different CNTFRQ_EL0: {sorted(frequencies)} Hz")
    for number, vcpu in enumerate(log.vcpus):
        if vcpu is None:
            judge.finds("not-started", number, None, "it never started")
        else:
            _check_state(judge, number, vcpu)
            _check_order(judge, number, vcpu)
            _check_interrupts(judge, number, vcpu)
    skews = [_between_views(judge)] if len(views) > 1 else []
    gaps: list[GapFigures] = []
    if host is not None:
        offsets = _offsets(judge, host)
        skews += _between_vcpus(judge, host, offsets)
        gaps += _across_pauses(judge, host, offsets)
    figures = [_figures(number, vcpu) for number, vcpu in judge.started()]
    return Verdict(frequency_hz, judge.findings, figures, skews, gaps)


def _check_state(judge: _Judge, number: int, vcpu: VcpuLog) -> None:
    if vcpu.fault:
        fault = vcpu.fault
        what = f"an exception by vector {fault.vector}, ESR {fault.esr:#x}, ELR {fault.elr:#x}, FAR {fault.far:#x}"
        judge.finds("fault", number, None, what)
    if vcpu.damaged:
        judge.finds("damaged", number, None, f"{vcpu.damaged} records don't hold what their place says")


def _check_order(judge: _Judge, number: int, vcpu: VcpuLog) -> None:
    for view in judge.views:
        for before, after in pairwise(_read(vcpu.records, view)):
            step = signed(after - before)
            if step < 0:
                judge.finds("backward", number, -step, f"{view.upper()} went from {before} to {after}")
    for sample in vcpu.samples:
        step = signed(sample.cntvct - sample.last_cntvct)
        if step < 0 and sample.last_cntvct:
            what = f"it read CNTVCT {sample.cntvct} after {sample.last_cntvct} had been read"
            judge.finds("vcpu-skew", number, -step, what)


def _check_interrupts(judge: _Judge, number: int, vcpu: VcpuLog) -> None:
    armed: Record | None = None
    # The alarm of the first interrupt may have been overwritten.
    known = vcpu.written == len(vcpu.records)
    for record in vcpu.records:
        if record.kind is Kind.ARMED:
            if armed is not None:
                judge.finds(
                    "lost-interrupt", number, None, f"none for the alarm at {armed.cval}, before the next was set"
                )
            armed, known = record, True
        elif record.kind is Kind.FIRED:
            if armed is None and known:
                judge.finds("doubled-interrupt", number, None, f"another at {record.cntvct}, for no alarm")
            if armed is not None and record.cval != armed.cval:
                what = f"CVAL was set to {armed.cval}, and is {record.cval} at the interrupt"
                judge.finds("wrong-interrupt", number, abs(signed(record.cval - armed.cval)), what)
            early = signed(record.cval - record.cntvct)
            if early > 0:
                judge.finds("early-interrupt", number, early, f"for {record.cval}, at {record.cntvct}")
            armed, known = None, True
        elif record.kind is Kind.OTHER_IRQ and record.interrupt < _SPECIAL:
            judge.finds("wrong-interrupt", number, None, f"interrupt {record.interrupt}, which nobody enabled")
    if armed is not None:
        _check_pending(judge, number, vcpu, armed)


def _check_pending(judge: _Judge, number: int, vcpu: VcpuLog, armed: Record) -> None:
    # A guest whose interrupt is lost sleeps on, so its own log doesn't say how late the interrupt is. The others' logs
    # and the host's count when the log was read do.
    last = [(other.records[-1].cntvct, f"vCPU {index} went on") for index, other in judge.started() if other.records]
    host = judge.host
    if host is not None and host.ended is not None and host.brackets[number] and vcpu.samples:
        passed = host.ended - host.brackets[number][-1].high
        last.append((vcpu.samples[-1].cntvct + passed, "the host went on"))
    late, who = max(((signed(count - armed.cval), who) for count, who in last), default=(0, ""))
    if late > judge.grace_ns * vcpu.frequency_hz // _NS_PER_S:
        judge.finds("lost-interrupt", number, late, f"none for the alarm at {armed.cval}, though {who}")


def _between_views(judge: _Judge) -> Skew:
    """Checks that CNTPCT - CNTVCT is one number: CNTPCT was read after CNTVCT, and before the next CNTVCT."""
    bounds = [
        (record.cntpct - after.cntvct, record.cntpct - record.cntvct)
        for _, vcpu in judge.started()
        for record, after in pairwise(vcpu.records)
    ]
    common = _common(_about(low, high, origin=bounds[0][1]) for low, high in bounds)
    if common is None:
        return Skew("CNTVCT and CNTPCT", 0, 0)
    error = max(0, common.low - common.high)
    if error:
        judge.finds("view-skew", None, error, "CNTPCT and CNTVCT moved against each other")
    return Skew("CNTVCT and CNTPCT", error, 0 if error else common.width)


def _match(log: Log, host: Host, frequency_hz: int) -> None:
    if host.frequency_hz != frequency_hz:
        msg = f"the host's counter has {host.frequency_hz} Hz, but the guest's {frequency_hz}"
        raise ValueError(msg)
    if len(host.brackets) != len(log.vcpus):
        msg = f"the host saw {len(host.brackets)} vCPUs, but the log is of {len(log.vcpus)}"
        raise ValueError(msg)
    for number, vcpu in enumerate(log.vcpus):
        logged, seen = len(vcpu.samples) if vcpu else 0, len(host.brackets[number])
        if logged > seen or (logged < seen and vcpu is not None and vcpu.written == len(vcpu.records)):
            msg = f"the host saw {seen} samples of vCPU {number}, but the log has {logged}"
            raise ValueError(msg)


_Offsets = dict[tuple[str, int, int], Interval]
"""Host's counter less the guest's, relative to one origin for each view: by view, stretch between pauses, and vCPU."""


def _offsets(judge: _Judge, host: Host) -> _Offsets:
    offsets: _Offsets = {}
    for view in judge.views:
        origin: int | None = None
        for number, vcpu in judge.started():
            stretches: dict[int, list[Interval]] = {}
            for bracket, count, stretch in _placed(host, number, vcpu, view):
                if origin is None:
                    origin = bracket.low - count
                offset = _about(bracket.low - count, bracket.high - count, origin=origin)
                stretches.setdefault(stretch, []).append(offset)
            for stretch, bounds in stretches.items():
                common = _common(bounds)
                if common is None:
                    continue
                if common.low > common.high:
                    what = f"{view.upper()} moved against the host's counter with no pause between"
                    judge.finds("moved", number, common.low - common.high, what)
                else:
                    offsets[view, stretch, number] = common
    return offsets


def _placed(host: Host, number: int, vcpu: VcpuLog, view: str) -> Iterator[tuple[Interval, int, int]]:
    """Yields for each of a vCPU's samples its bracket, its count, and the stretch between pauses that it lies in."""
    brackets = host.brackets[number]
    for bracket, count in zip(brackets[len(brackets) - len(vcpu.samples) :], _read(vcpu.samples, view), strict=True):
        yield bracket, count, sum(bracket.low >= pause.released.low for pause in host.pauses)


def _between_vcpus(judge: _Judge, host: Host, offsets: _Offsets) -> Iterator[Skew]:
    for view in judge.views:
        for stretch in range(len(host.pauses) + 1):
            here = [(vcpu, bound) for (v, s, vcpu), bound in offsets.items() if (v, s) == (view, stretch)]
            if len(here) < 2:
                continue
            worst, widest = 0, 0
            for (one, low), (other, high) in combinations(here, 2):
                apart = _apart(low, high)
                worst, widest = max(worst, apart), max(widest, low.width + high.width)
                if apart:
                    what = f"{view.upper()} differs from that of vCPU {one}, {_when(stretch)}"
                    judge.finds("vcpu-skew", other, apart, what)
            yield Skew(f"vCPUs, {view.upper()}, {_when(stretch)}", worst, widest)


def _across_pauses(judge: _Judge, host: Host, offsets: _Offsets) -> Iterator[GapFigures]:
    for index, pause in enumerate(host.pauses):
        promised = None
        if pause.policy is not None:
            promised = expected_shift(
                pause.policy, pause.max_ns, host.frequency_hz, taken=pause.taken, released=pause.released
            )
        for view in judge.views:
            for number, vcpu in judge.started():
                before, after = offsets.get((view, index, number)), offsets.get((view, index + 1, number))
                if before is None or after is None:
                    continue
                shift = after.minus(before)
                error = None if promised is None else _apart(shift, promised)
                if error:
                    what = f"{view.upper()} across pause {index + 1}: {pause.policy} promises otherwise"
                    judge.finds("gap", number, error, what)
                counts = [(count, stretch) for _, count, stretch in _placed(host, number, vcpu, view)]
                last = [count for count, stretch in counts if stretch == index][-1]
                first = next(count for count, stretch in counts if stretch == index + 1)
                yield GapFigures(
                    index + 1,
                    number,
                    view,
                    signed(first - last),
                    (shift.low, shift.high),
                    None if promised is None else (promised.low, promised.high),
                    error,
                )


def _figures(number: int, vcpu: VcpuLog) -> VcpuFigures:
    fired = [record for record in vcpu.records if record.kind is Kind.FIRED]
    steps = [signed(after - before) for before, after in pairwise(_read(vcpu.records, "cntvct"))]
    return VcpuFigures(
        number,
        len(vcpu.samples),
        sum(record.kind is Kind.ARMED for record in vcpu.records),
        len(fired),
        sum(record.kind is Kind.OTHER_IRQ and record.interrupt >= _SPECIAL for record in vcpu.records),
        max(steps, default=0),
        max((signed(record.cntvct - record.cval) for record in fired), default=None),
    )


def _read(records: Iterable[Record], view: str) -> list[int]:
    return [record.cntvct if view == "cntvct" else record.cntpct for record in records]


def _common(bounds: Iterable[Interval]) -> Interval | None:
    """The intersection of all the bounds; its ends are in the wrong order where it is empty."""
    common: Interval | None = None
    for bound in bounds:
        common = bound if common is None else Interval(max(common.low, bound.low), min(common.high, bound.high))
    return common


def _about(low: int, high: int, *, origin: int) -> Interval:
    """The bounds of a number modulo 2^64, as integers near the origin's. In the wrong order they bound nothing."""
    near = signed(low - origin)
    return Interval(near, near + (high - low) % 2**64)


def _apart(one: Interval, other: Interval) -> int:
    return max(0, one.low - other.high, other.low - one.high)


def _when(stretch: int) -> str:
    return f"after pause {stretch}" if stretch else "before any pause"
