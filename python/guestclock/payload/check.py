"""The judge of the payload's log: it says whether the guest's clocks kept their promises.

Almost every judgement is of what can't be otherwise. Two counts that a guest reads one after the other bound what it
could have read between them. Two readings of the host's counter bound the host's count at a guest's reading, and so the
offset between the two counters. Offsets that should be one must have a number in common. An interrupt that the VMM
looked for, and that wasn't there, came after that look. Such a finding is wrong by at least the number of ticks that it
gives, and has no tolerance to tune. Where nobody looked, an interrupt may be late, and a guest silent, for a grace.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Final

from guestclock.inspection.words import signed
from guestclock.payload.layout import Kind
from guestclock.payload.verdict import Finding, FindingKind, GapFigures, Host, Looks, Skew, VcpuFigures, Verdict
from guestclock.promise import Interval, expected_shift
from guestclock.units import S

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from guestclock.payload.log import Log, Record, VcpuLog

VIEWS: Final = ("cntvct", "cntpct")
GRACE_NS: Final = 1_000_000_000
"""The longest that an interrupt may be late or a guest silent, where nothing bounds it better."""

_SPECIAL: Final = 1020
"""The first of the interrupt ids that are no interrupt's (Arm IHI 0069); a late alarm may leave one behind."""
_CONDITION: Final = 0b101
"""CNTV_CTL_EL0 of a timer that asks for its interrupt: ENABLE and ISTATUS, without IMASK."""
_U32: Final = 2**32 - 1
_READS_PER_S: Final = 100_000_000
"""More pairs of readings than a guest logs in a second: a record is two ISBs, two counters and four stores."""
_STOPPED_TICKS: Final = 4
"""The ticks that must have passed before a counter that shows none counts as stopped."""


@dataclass(frozen=True, slots=True)
class _Stretch:
    """The time of a guest's life from one pause, or one step of a catch-up, to the next."""

    since: Interval | None
    """The host's count around its beginning; None for the first."""
    base: int
    """The stretch from which its promise counts: the one before the pause."""
    pause: int
    step: int
    promised: Interval | None
    """The ticks that the guest's counters are to be behind the base's; None if nobody promised."""

    @property
    def when(self) -> str:
        if not self.pause:
            return "before any pause"
        after = f"after pause {self.pause}"
        return f"{after} and step {self.step}" if self.step else after


def _stretches(host: Host | None) -> list[_Stretch]:
    stretches = [_Stretch(None, 0, 0, 0, None)]
    for number, pause in enumerate(host.pauses if host else (), start=1):
        base = len(stretches) - 1
        for step, since in enumerate([pause.released, *pause.steps]):
            promised = None
            if pause.policy is not None and host is not None:
                promised = expected_shift(
                    pause.policy,
                    pause.max_ns,
                    host.frequency_hz,
                    taken=pause.taken,
                    released=pause.released,
                    step_ns=pause.step_ns,
                    steps=step,
                )
            stretches.append(_Stretch(since, base, number, step, promised))
    return stretches


@dataclass(slots=True)
class _Judge:
    log: Log
    host: Host | None
    views: Sequence[str]
    grace_ns: int
    findings: list[Finding] = field(default_factory=list)
    stretches: list[_Stretch] = field(default_factory=list)
    origins: dict[str, int] = field(default_factory=dict)
    """The number near which a view's offsets are, modulo 2^64."""
    offsets: dict[tuple[str, int, int], Interval] = field(default_factory=dict)
    """Host's counter less the guest's, less the view's origin: by view, stretch and vCPU."""
    latest: dict[int, int] = field(default_factory=dict)
    """The longest time from when an interrupt was due until it was taken, by vCPU."""

    def finds(self, kind: FindingKind, vcpu: int | None, ticks: int | None, what: str) -> None:
        self.findings.append(Finding(kind, vcpu, ticks, what))

    def started(self) -> Iterator[tuple[int, VcpuLog]]:
        return ((number, vcpu) for number, vcpu in enumerate(self.log.vcpus) if vcpu is not None)

    def grace_ticks(self, frequency_hz: int) -> int:
        return self.grace_ns * (self.host.frequency_hz if self.host else frequency_hz) // S

    def offset(self, view: str, number: int, vcpu: int) -> Interval | None:
        """The offset of a vCPU's counter in a stretch: as promised, or where nothing is, as it was seen to be."""
        stretch = self.stretches[number]
        before = self.offsets.get((view, stretch.base, vcpu))
        if stretch.promised is None:
            return self.offsets.get((view, number, vcpu))
        return None if before is None else before.plus(stretch.promised)


def check_log(log: Log, *, host: Host | None = None, views: Sequence[str] = VIEWS, grace_ns: int = GRACE_NS) -> Verdict:
    """Judges a log.

    host: the VMM's readings. Without them the gap across a pause isn't judged: a pause that the guest saw is a stall.
    Skew between vCPUs is judged only as far as one vCPU read less than another had read before it.
    views: the counters to judge, "cntvct", "cntpct" or both: Linux before 6.4 can restore only the first.
    grace_ns: the longest that an interrupt may be late or missing, or a guest silent, where nothing bounds it better.

    Raises ValueError where `host` isn't of this log: other numbers of vCPUs or samples.
    """
    judge = _Judge(log, host, views, grace_ns, stretches=_stretches(host))
    frequency_hz = min((vcpu.frequency_hz for _, vcpu in judge.started()), default=0)
    if host is not None:
        _match(log, host)
    _check_frequencies(judge)
    for number, vcpu in enumerate(log.vcpus):
        if vcpu is None:
            judge.finds("not-started", number, None, "it never started")
        else:
            _check_state(judge, number, vcpu)
            _check_order(judge, number, vcpu)
            _check_running(judge, number, vcpu)
    if host is not None:
        _find_offsets(judge, host)
    for number, vcpu in judge.started():
        _check_interrupts(judge, number, vcpu)
    _check_silence(judge)
    skews = [_between_views(judge)] if len(views) > 1 else []
    gaps: list[GapFigures] = []
    if host is not None:
        skews += _between_vcpus(judge)
        gaps += _across_pauses(judge, host)
    figures = [_figures(judge, number, vcpu) for number, vcpu in judge.started()]
    return Verdict(frequency_hz, judge.findings, figures, skews, gaps)


def deviations(log: Log, host: Host, *, view: str = "cntvct") -> list[list[Interval | None]]:
    """The distance of each vCPU's counter from the promised one at each of its samples, in ticks: positive if ahead.

    None before the first pause, after a pause that nobody promised anything for, and where a counter moved before it.
    Raises ValueError as `check_log` does.
    """
    _match(log, host)
    judge = _Judge(log, host, VIEWS, 0, stretches=_stretches(host))
    _find_offsets(judge, host)
    every: list[list[Interval | None]] = [[] for _ in log.vcpus]
    for number, vcpu in judge.started():
        for bracket, count, stretch in _placed(judge, host, number, vcpu, view):
            promised = judge.offset(view, stretch, number) if judge.stretches[stretch].promised is not None else None
            seen = _about(bracket.low - count, bracket.high - count, origin=judge.origins[view])
            every[number].append(None if promised is None else promised.minus(seen))
    return every


def _check_frequencies(judge: _Judge) -> None:
    frequencies = {vcpu.frequency_hz for _, vcpu in judge.started()}
    if len(frequencies) > 1:
        judge.finds("frequency", None, None, f"vCPUs read different CNTFRQ_EL0: {sorted(frequencies)} Hz")
    for number, vcpu in judge.started():
        read = vcpu.frequency_hz
        if not 0 < read <= _U32:
            judge.finds("frequency", number, None, f"CNTFRQ_EL0 says {read} Hz, which no counter has")
        elif judge.host is not None and read != judge.host.frequency_hz:
            what = (
                f"CNTFRQ_EL0 says {read} Hz, but the host's counter, which it reads, has {judge.host.frequency_hz} Hz"
            )
            judge.finds("frequency", number, None, what)


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


def _check_running(judge: _Judge, number: int, vcpu: VcpuLog) -> None:
    """Finds a counter that shows the same count for longer than one can."""
    enough = max(8, -(-_STOPPED_TICKS * _READS_PER_S // max(1, min(vcpu.frequency_hz, _U32))))
    for view in judge.views:
        counts = _read(vcpu.records, view)
        # A spell of one count, in records.
        begin = 0
        for index, count in enumerate([*counts, None]):
            if count == counts[begin] if counts else True:
                continue
            if index - begin >= enough:
                judge.finds("stopped", number, None, f"{view.upper()} is {counts[begin]} in {index - begin} records")
                break
            begin = index


def _check_interrupts(judge: _Judge, number: int, vcpu: VcpuLog) -> None:
    armed: Record | None = None
    # The alarm of the first interrupt may have been overwritten.
    known = vcpu.written == len(vcpu.records)
    stretches = _stretch_of_records(judge, number, vcpu)
    looks = _looks(judge, number, vcpu)
    looked = Looks()
    for record, stretch in zip(vcpu.records, stretches, strict=True):
        if record.kind is Kind.ARMED:
            if armed is not None:
                judge.finds(
                    "lost-interrupt", number, None, f"none for the alarm at {armed.cval}, before the next was set"
                )
            armed, known, looked = record, True, next(looks, Looks())
        elif record.kind is Kind.FIRED:
            if armed is None and known:
                judge.finds("doubled-interrupt", number, None, f"another at {record.cntvct}, for no alarm")
            _check_taken(judge, number, record)
            if armed is not None:
                if record.cval != armed.cval:
                    what = f"CVAL was set to {armed.cval}, and is {record.cval} at the interrupt"
                    judge.finds("wrong-interrupt", number, abs(signed(record.cval - armed.cval)), what)
                _check_lateness(judge, number, armed, record, stretch, looked)
            armed, known = None, True
        elif record.kind is Kind.OTHER_IRQ and record.interrupt < _SPECIAL:
            judge.finds("wrong-interrupt", number, None, f"interrupt {record.interrupt}, which nobody enabled")
    if armed is not None:
        _check_pending(judge, number, vcpu, armed, looked)


def _check_taken(judge: _Judge, number: int, record: Record) -> None:
    early = signed(record.cval - record.cntvct)
    if early > 0:
        judge.finds("early-interrupt", number, early, f"for {record.cval}, at {record.cntvct}")
    if record.ctl != _CONDITION:
        missing = [
            said
            for said, wrong in (
                ("ENABLE is clear", not record.ctl & 1),
                ("IMASK is set", record.ctl & 2),
                ("ISTATUS is clear", not record.ctl & 4),
            )
            if wrong
        ]
        what = f"at {record.cntvct}, while CNTV_CTL_EL0 is {record.ctl:#x}: {', '.join(missing)}"
        judge.finds("spurious-interrupt", number, None, what)


def _check_lateness(judge: _Judge, number: int, armed: Record, fired: Record, stretch: int, looked: Looks) -> None:
    certain = _late_at_look(judge, number, armed.cval, stretch, looked)
    if certain > 0:
        what = f"the VMM looked for the alarm at {armed.cval} when it was due, and there was none"
        judge.finds("late-interrupt", number, certain, what)
    late = _late(judge, number, armed.cval, fired.cntvct, stretch)
    if late is None:
        return
    offset = judge.offset("cntvct", stretch, number)
    if looked.found is not None and offset is not None:
        # The VMM slept for too long, or the host did: no look came earlier.
        found = looked.found - judge.origins["cntvct"] - offset.low
        late = max(certain, min(late, signed(fired.cntvct - found)))
    judge.latest[number] = max(late, judge.latest.get(number, late))
    vcpu = judge.log.vcpus[number]
    if not certain and vcpu is not None and late > judge.grace_ticks(vcpu.frequency_hz):
        judge.finds("late-interrupt", number, late, f"for the alarm at {armed.cval}, at {fired.cntvct}")


def _late(judge: _Judge, number: int, deadline: int, taken: int, stretch: int) -> int | None:
    """The guest's ticks from when an interrupt was due until it was taken; None where nobody knows.

    An alarm whose deadline lay in a pause, or was passed over by a step, was due when the guest came back.
    """
    late = signed(taken - deadline)
    since = judge.stretches[stretch].since
    if since is None:
        return late
    offset = judge.offset("cntvct", stretch, number)
    if offset is None:
        return None
    back = since.high - judge.origins["cntvct"] - offset.low
    return min(late, signed(taken - back))


def _late_at_look(judge: _Judge, number: int, deadline: int, stretch: int, looked: Looks) -> int:
    """The host's ticks from when an interrupt was due, at the latest, until a look that didn't find it; 0 without."""
    offset = judge.offset("cntvct", stretch, number)
    if looked.vain is None or offset is None:
        return 0
    since = judge.stretches[stretch].since
    late = signed(looked.vain - (deadline + judge.origins["cntvct"] + offset.high))
    return max(0, late if since is None else min(late, signed(looked.vain - since.high)))


def _check_pending(judge: _Judge, number: int, vcpu: VcpuLog, armed: Record, looked: Looks) -> None:
    certain = _late_at_look(judge, number, armed.cval, len(judge.stretches) - 1, looked)
    if certain > 0:
        what = f"none for the alarm at {armed.cval}, though the VMM looked for it when it was due"
        judge.finds("lost-interrupt", number, certain, what)
        return
    # A guest whose interrupt is lost sleeps on, so its own log doesn't say how late the interrupt is. The others' logs
    # and the host's count when the log was read do.
    last = [(other.records[-1].cntvct, f"vCPU {index} went on") for index, other in judge.started() if other.records]
    host = judge.host
    if host is not None and host.ended is not None and host.brackets[number] and vcpu.samples:
        passed = host.ended - host.brackets[number][-1].high
        last.append((vcpu.samples[-1].cntvct + passed, "the host went on"))
    late, who = max(((signed(count - armed.cval), who) for count, who in last), default=(0, ""))
    if late > judge.grace_ticks(vcpu.frequency_hz):
        judge.finds("lost-interrupt", number, late, f"none for the alarm at {armed.cval}, though {who}")


def _looks(judge: _Judge, number: int, vcpu: VcpuLog) -> Iterator[Looks]:
    """The VMM's looks for each alarm that the log still has."""
    looked = judge.host.looks[number] if judge.host and judge.host.looks else ()
    alarms = sum(record.kind is Kind.ARMED for record in vcpu.records)
    return iter(looked[max(0, len(looked) - alarms) :])


def _stretch_of_records(judge: _Judge, number: int, vcpu: VcpuLog) -> list[int]:
    """The stretch of each record: that of the next sample, or the last one there is."""
    host = judge.host
    if host is None:
        return [0] * len(vcpu.records)
    placed = [stretch for *_, stretch in _placed(judge, host, number, vcpu, "cntvct")]
    placed.append(len(judge.stretches) - 1)
    stretches, sample = [], 0
    for record in vcpu.records:
        stretches.append(placed[sample])
        sample += record.kind is Kind.SAMPLED
    return stretches


def _check_silence(judge: _Judge) -> None:
    """Finds times in which no vCPU logged anything, though one was to: not in a pause, nor before its alarm."""
    first = next((vcpu.records[0].cntvct for _, vcpu in judge.started() if vcpu.records), 0)
    told: list[tuple[int, int, int, int | None]] = []
    for number, vcpu in judge.started():
        stretches = _stretch_of_records(judge, number, vcpu)
        armed: int | None = None
        for record, stretch in zip(vcpu.records, stretches, strict=True):
            armed = record.cval if record.kind is Kind.ARMED else None if record.kind is Kind.FIRED else armed
            told.append((signed(record.cntvct - first), number, stretch, armed))
    told.sort(key=lambda record: record[0])
    # The alarm of each vCPU that sleeps; None of one that is awake. One that hasn't begun doesn't count.
    asleep: dict[int, int | None] = {}
    worst = (0, 0, 0)
    for (before, last, _, armed), (after, _, stretch, _) in pairwise(told):
        asleep[last] = armed
        alarms = [alarm for alarm in asleep.values() if alarm is not None]
        due = min(signed(alarm - first) for alarm in alarms) if len(alarms) == len(asleep) else before
        silent = _late(judge, last, due + first, after + first, stretch)
        worst = max(worst, (0 if silent is None else min(silent, after - before), before, after))
    frequency_hz = min((vcpu.frequency_hz for _, vcpu in judge.started()), default=0)
    silent, before, after = worst
    if silent > judge.grace_ticks(frequency_hz):
        what = f"no vCPU logged anything from {(before + first) % 2**64} to {(after + first) % 2**64}"
        judge.finds("stall", None, silent, what)


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


def _match(log: Log, host: Host) -> None:
    if len(host.brackets) != len(log.vcpus) or len(host.looks) not in (0, len(log.vcpus)):
        seen = len(host.brackets) if len(host.brackets) != len(log.vcpus) else len(host.looks)
        msg = f"the host saw {seen} vCPUs, but the log is of {len(log.vcpus)}"
        raise ValueError(msg)
    for number, vcpu in enumerate(log.vcpus):
        logged, seen = len(vcpu.samples) if vcpu else 0, len(host.brackets[number])
        if logged > seen or (logged < seen and vcpu is not None and vcpu.written == len(vcpu.records)):
            msg = f"the host saw {seen} samples of vCPU {number}, but the log has {logged}"
            raise ValueError(msg)
        alarms = sum(record.kind is Kind.ARMED for record in vcpu.records) if vcpu else 0
        if host.looks and len(host.looks[number]) < alarms:
            msg = f"the host looked for {len(host.looks[number])} alarms of vCPU {number}, but the log has {alarms}"
            raise ValueError(msg)


def _find_offsets(judge: _Judge, host: Host) -> None:
    for view in VIEWS:
        for number, vcpu in judge.started():
            stretches: dict[int, list[tuple[Interval, int]]] = {}
            for bracket, count, stretch in _placed(judge, host, number, vcpu, view):
                judge.origins.setdefault(view, bracket.low - count)
                stretches.setdefault(stretch, []).append((bracket, count))
            for stretch, seen in stretches.items():
                _find_offset(judge, view, stretch, number, seen)


def _find_offset(judge: _Judge, view: str, stretch: int, number: int, seen: list[tuple[Interval, int]]) -> None:
    origin = judge.origins[view]
    common = _common(_about(bracket.low - count, bracket.high - count, origin=origin) for bracket, count in seen)
    if common is None:
        return
    if common.low <= common.high:
        judge.offsets[view, stretch, number] = common
        return
    if view not in judge.views:
        return
    (first, count), (last, other) = seen[0], seen[-1]
    if len({each for _, each in seen}) == 1:
        what = f"{view.upper()} was {count} for all of the host's time from {first.high} to {last.low}"
        judge.finds("stopped", number, last.low - first.high, what)
        return
    passed, went = last.low - first.high, signed(other - count)
    what = f"{view.upper()} moved against the host's counter with no pause between"
    if passed > 0:
        what += f", by {went} ticks while that went on by {passed} or more"
    judge.finds("moved", number, common.low - common.high, what)


def _placed(judge: _Judge, host: Host, number: int, vcpu: VcpuLog, view: str) -> Iterator[tuple[Interval, int, int]]:
    """Yields for each of a vCPU's samples its bracket, its count, and the stretch that it lies in."""
    brackets = host.brackets[number]
    begins = [stretch.since.low for stretch in judge.stretches if stretch.since is not None]
    for bracket, count in zip(brackets[len(brackets) - len(vcpu.samples) :], _read(vcpu.samples, view), strict=True):
        yield bracket, count, sum(bracket.low >= begin for begin in begins)


def _between_vcpus(judge: _Judge) -> Iterator[Skew]:
    for view in judge.views:
        for number, stretch in enumerate(judge.stretches):
            here = [(vcpu, bound) for (v, s, vcpu), bound in judge.offsets.items() if (v, s) == (view, number)]
            if len(here) < 2:
                continue
            worst, widest = 0, 0
            for (one, low), (other, high) in combinations(here, 2):
                apart = _apart(low, high)
                worst, widest = max(worst, apart), max(widest, low.width + high.width)
                if apart:
                    what = f"{view.upper()} differs from that of vCPU {one}, {stretch.when}"
                    judge.finds("vcpu-skew", other, apart, what)
            yield Skew(f"vCPUs, {view.upper()}, {stretch.when}", worst, widest)


def _across_pauses(judge: _Judge, host: Host) -> Iterator[GapFigures]:
    for index, stretch in enumerate(judge.stretches):
        if stretch.since is None:
            continue
        promised = stretch.promised
        for view in judge.views:
            for number, vcpu in judge.started():
                before = judge.offsets.get((view, stretch.base, number))
                after = judge.offsets.get((view, index, number))
                if before is None or after is None:
                    continue
                shift = after.minus(before)
                error = None if promised is None else _apart(shift, promised)
                if error:
                    step = f" and step {stretch.step}" if stretch.step else ""
                    policy = host.pauses[stretch.pause - 1].policy
                    what = f"{view.upper()} across pause {stretch.pause}{step}: {policy} promises otherwise"
                    judge.finds("gap", number, error, what)
                counts = [(count, place) for _, count, place in _placed(judge, host, number, vcpu, view)]
                last = [count for count, place in counts if place == stretch.base][-1]
                first = next(count for count, place in counts if place == index)
                yield GapFigures(
                    stretch.pause,
                    stretch.step,
                    number,
                    view,
                    signed(first - last),
                    (shift.low, shift.high),
                    None if promised is None else (promised.low, promised.high),
                    error,
                )


def _figures(judge: _Judge, number: int, vcpu: VcpuLog) -> VcpuFigures:
    steps = [signed(after - before) for before, after in pairwise(_read(vcpu.records, "cntvct"))]
    return VcpuFigures(
        number,
        len(vcpu.samples),
        sum(record.kind is Kind.ARMED for record in vcpu.records),
        sum(record.kind is Kind.FIRED for record in vcpu.records),
        sum(record.kind is Kind.OTHER_IRQ and record.interrupt >= _SPECIAL for record in vcpu.records),
        max(steps, default=0),
        judge.latest.get(number),
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
