"""The verdict on one run: the guest's log and the host's clock as the VMM read it, by the judge of `check-log`.

Nothing that guestclock reports is used, except the error that it states for a restore by value, which is allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from guestclock.payload import Kind, Log, Record, VcpuLog, check_log, deviations
from guestclock.units import S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guestclock.demo.document import FindingRecord, RowRecord, RunRecord, SampleRecord, Verdict
    from guestclock.payload import Host
    from guestclock.payload.verdict import GapFigures
    from guestclock.promise import Interval

GRACE_NS: Final = 10_000_000_000
"""The longest that the guest may be silent: patience for a busy host. Lateness goes by the VMM's looks."""
SHARP_NS: Final = 1_000_000
"""The widest result that a run isn't made again for."""
WIDEST_NS: Final = 5_000_000
"""The widest result that a promise may be called kept by."""
LONGEST_NS: Final = {"unicorn": 250_000_000, "kvm": 900_000_000}
"""The longest that a release or a step may take, by backend: for more a busy host, or an emulated one, is no excuse."""

_BY_VALUE: Final = {"gap": 1, "vcpu-skew": 2, "view-skew": 2}
"""The findings that the stated error of a restore by value excuses, and how often: two things may be off apart."""


def log_of(guest: Sequence[dict[str, Any]]) -> Log:
    """The log that the demonstration's guest wrote under Unicorn, as the payload's."""
    return Log(
        [
            VcpuLog(vcpu["cntfrq"], number, len(vcpu["records"]), [_record(*each) for each in vcpu["records"]], 0)
            for number, vcpu in enumerate(guest)
        ],
        0,
    )


def _record(kind: int, cntvct: int, cntpct: int, third: int) -> Record:
    if kind & 0xFF == Kind.SAMPLED:
        return Record(Kind.SAMPLED, cntvct, cntpct, last_cntvct=third)
    return Record(Kind(kind & 0xFF), cntvct, cntpct, cval=third, ctl=kind >> 24)


def judge(
    log: Log,
    host: Host,
    row: RowRecord,
    *,
    backend: str,
    mode: str,
    views: Sequence[str],
    stated_ticks: int = 0,
    attempts: int = 1,
) -> RunRecord:
    """Judges one run. `stated_ticks` is the error that guestclock states for a restore by value."""
    verdict = check_log(log, host=host, views=views, grace_ns=GRACE_NS)
    hz, (pause,) = host.frequency_hz, host.pauses
    # A replay without guestclock states nothing, and what an offset restores has no error to state.
    stated_ticks = stated_ticks if row["kept"] == "value" else 0
    findings: list[FindingRecord] = [
        {"kind": each.kind, "vcpu": each.vcpu, "ticks": each.ticks, "what": each.what}
        for each in verdict.findings
        if each.ticks is None or each.ticks > stated_ticks * _BY_VALUE.get(each.kind, 0)
    ]
    for what, interval in (("the release", pause.released), *(("a step", step) for step in pause.steps)):
        if _ns(interval.width, hz) > LONGEST_NS[backend]:
            said = f"{what} took so long that nobody can tell when the guest's clock went on"
            findings.append({"kind": "interval", "vcpu": None, "ticks": interval.width, "what": said})
    by_view = {view: deviations(log, host, view=view) for view in views}
    off_by = max((_outside(each) for vcpus in by_view.values() for vcpu in vcpus for each in vcpu), key=abs, default=0)
    known_to = max((_most(gap) for gap in verdict.gaps), default=0)
    apart = [skew for skew in verdict.skews if skew.between.startswith("vCPUs")]
    latest = [each.latest_interrupt_ticks for each in verdict.vcpus if each.latest_interrupt_ticks is not None]
    if not findings:
        findings += _missing(verdict.gaps, pause.steps, vcpus=len(log.vcpus), views=views, row=row)
    said_by: Verdict = "wrong" if findings else "kept"
    if not findings and backend == "unicorn" and _ns(known_to + stated_ticks, hz) > WIDEST_NS:
        said_by = "unclear"
    return {
        "row": row,
        "backend": backend,
        "mode": mode,
        "frequency_hz": hz,
        "pause_ns": _ns(pause.released.low - pause.taken.low, hz),
        "taken_at": [pause.taken.low, pause.taken.high],
        "released_at": [pause.released.low, pause.released.high],
        "steps": len(pause.steps),
        "off_by_ticks": off_by,
        "off_by_known_to_ticks": known_to,
        "apart_ticks": max((skew.error_ticks for skew in apart), default=0),
        "apart_known_to_ticks": max((skew.width_ticks for skew in apart), default=0),
        "latest_interrupt_ticks": max(latest, default=None),
        "interrupts": sum(figures.interrupts for figures in verdict.vcpus),
        "lost": sum(finding["kind"] == "lost-interrupt" for finding in findings),
        "stated_ticks": stated_ticks,
        "findings": findings,
        "verdict": said_by,
        "samples": [
            _samples(vcpu, brackets, ahead)
            for vcpu, brackets, ahead in zip(log.vcpus, host.brackets, by_view["cntvct"], strict=True)
        ],
        "attempts": attempts,
    }


def is_sharp(run: RunRecord) -> bool:
    """True if another run could tell no more: an error was found, or none that is worth a second look can hide."""
    width = run["off_by_known_to_ticks"] + run["stated_ticks"]
    return bool(run["findings"]) or _ns(width, run["frequency_hz"]) <= SHARP_NS


def _missing(
    gaps: Sequence[GapFigures], steps: Sequence[Interval], *, vcpus: int, views: Sequence[str], row: RowRecord
) -> list[FindingRecord]:
    """Finds what wasn't there to be judged: a clock that nobody read at the end, time that was never paid back."""
    seen = {(gap.vcpu, gap.view) for gap in gaps if gap.step == len(steps)}
    found: list[FindingRecord] = [
        {"kind": "unread", "vcpu": vcpu, "ticks": None, "what": f"{view.upper()} wasn't read after the pause"}
        for view in views
        for vcpu in range(vcpus)
        if (vcpu, view) not in seen
    ]
    owed = max((gap.promised_ticks[1] for gap in gaps if gap.step == len(steps) and gap.promised_ticks), default=0)
    if row["policy"] == "catch-up" and owed:
        found.append({"kind": "owed", "vcpu": None, "ticks": owed, "what": "time that was never paid back"})
    return found


def _samples(
    vcpu: VcpuLog | None, brackets: Sequence[Interval], ahead: Sequence[Interval | None]
) -> list[SampleRecord]:
    return [
        {
            "host_ticks": [bracket.low, bracket.high],
            "cntvct": sample.cntvct,
            "ahead_ticks": None if each is None else [each.low, each.high],
        }
        for sample, bracket, each in zip(vcpu.samples if vcpu else (), brackets, ahead, strict=True)
    ]


def _outside(ahead: Interval | None) -> int:
    """The distance from zero, with its sign."""
    return 0 if ahead is None else max(ahead.low, 0) + min(ahead.high, 0)


def _most(gap: GapFigures) -> int:
    """The most that a clock can be off by, from how far it fell behind and how far it was to."""
    if gap.promised_ticks is None:
        return 0
    return max(gap.shift_ticks[1] - gap.promised_ticks[0], gap.promised_ticks[1] - gap.shift_ticks[0])


def _ns(ticks: int, frequency_hz: int) -> int:
    return ticks * S // frequency_hz
