"""The judge of the payload's log, on logs that tell a whole story, and on the same with one thing wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from guestclock.cli.app import app
from guestclock.payload import (
    Host,
    Kind,
    Log,
    Looks,
    NotALog,
    Pause,
    Record,
    Verdict,
    check_log,
    image,
    layout,
    read_log,
)
from guestclock.payload.verdict import FindingKind
from guestclock.promise import Interval

HZ = 62_500_000
PERIOD = HZ // 50
AWAY = 2 * HZ
CAP_NS = 500_000_000
STEP_NS = 750_000_000
STEP = STEP_NS * HZ // 10**9
ROUND = 4


def later(interval: Interval, ticks: int) -> Interval:
    return Interval(interval.low + ticks, interval.high + ticks)


@dataclass
class Story:
    """What happened on a host: two vCPUs take turns, are away in the middle, and go on."""

    policy: str = "freeze"
    start: int = 7_000_000_000
    """Where the guest's counters begin: below 2^64 by less than the story takes, they wrap."""
    records: list[list[Record]] = field(default_factory=lambda: [[], []])
    brackets: list[list[Interval]] = field(default_factory=lambda: [[], []])
    pauses: list[Pause] = field(default_factory=list)
    looks: list[list[Looks]] = field(default_factory=lambda: [[], []])
    """The VMM's looks for each alarm. Nobody has looked for the last one yet."""
    offset: int = 0
    first_offset: int = 0
    now: int = 90_000_000_000
    last: int = 0

    def __post_init__(self) -> None:
        self.offset = self.first_offset = self.now - self.start
        self._rounds()
        self._pause()
        self._fire()
        self._rounds()

    def count(self) -> int:
        self.now += 3
        return (self.now - self.offset) % 2**64

    def _rounds(self) -> None:
        for number in range(3):
            for vcpu in (0, 1):
                for _ in range(ROUND):
                    low = self.now = self.now + 1_000
                    self.now += 40
                    sample = Record(Kind.SAMPLED, cntvct := self.count(), self.count(), last_cntvct=self.last)
                    self.last = cntvct
                    self.now += 60
                    self.records[vcpu].append(sample)
                    self.brackets[vcpu].append(Interval(low, self.now))
                cntvct = self.count()
                armed = Record(Kind.ARMED, cntvct, self.count(), cval=(cntvct + PERIOD) % 2**64)
                self.records[vcpu].append(armed)
            if number < 2:
                self._fire()

    def _fire(self) -> None:
        for vcpu in (0, 1):
            deadline = self.records[vcpu][-1].cval
            wait = (deadline - self.count() + 2**63) % 2**64 - 2**63
            vain = self.now if wait > 0 else None
            self.now += max(0, wait) + 500
            self.looks[vcpu].append(Looks(vain, self.now - 400))
            fired = Record(Kind.FIRED, self.count(), self.count(), cval=deadline, interrupt=27, ctl=5)
            self.records[vcpu].append(fired)

    def _pause(self) -> None:
        taken = Interval(self.now, self.now + 50)
        self.now += 25 + AWAY
        released = Interval(self.now - 10, self.now + 10)
        hidden = {"advance": 0, "capped": AWAY - CAP_NS * HZ // 10**9}.get(self.policy, AWAY)
        self.offset += hidden
        policy, max_ns = ("advance", CAP_NS) if self.policy == "capped" else (self.policy, None)
        pause = Pause(taken, released, policy, max_ns)  # type: ignore[arg-type]
        if self.policy == "catch-up":
            pause = dataclasses.replace(pause, step_ns=STEP_NS, steps=tuple(self._steps()))
        self.pauses.append(pause)

    def _steps(self) -> Iterator[Interval]:
        """Rounds with a step after each, until nothing of the pause is left."""
        for left in range(AWAY, 0, -STEP):
            self._fire()
            self._rounds()
            self.offset -= min(left, STEP)
            yield Interval(self.now, self.now + 20)
            self.now += 30

    def host(self) -> Host:
        return Host(HZ, self.brackets, self.pauses, ended=self.now, looks=[[*looks, Looks()] for looks in self.looks])

    def memory(self, *, at: int = 0) -> bytearray:
        memory = bytearray(at + layout.IMAGE_SIZE)
        raw = image()
        memory[at : at + len(raw)] = raw
        for vcpu, records in enumerate(self.records):
            area = at + layout.AREAS + vcpu * layout.AREA_SIZE
            state = (layout.AREA_MAGIC, layout.Command.ALARM, len(records), HZ, 0x8000_0000 + vcpu, *[0] * 9)
            layout.AREA_FORMAT.pack_into(memory, area, *state)
            for number, record in enumerate(records):
                layout.RECORD_FORMAT.pack_into(
                    memory,
                    area + layout.RECORDS_AT + number % layout.RECORDS * layout.RECORD_FORMAT.size,
                    record.kind,
                    record.interrupt,
                    record.ctl,
                    number,
                    record.cntvct,
                    record.cntpct,
                    record.last_cntvct if record.kind is Kind.SAMPLED else record.cval,
                )
        return memory

    def log(self) -> Log:
        return read_log(self.memory())

    def judged(self, **options: Any) -> Verdict:
        return check_log(self.log(), host=self.host(), **options)

    def change(self, vcpu: int, index: int, **fields: Any) -> None:
        self.records[vcpu][index] = dataclasses.replace(self.records[vcpu][index], **fields)

    def move(self, vcpu: int, ticks: int, *views: str, since: int = 0) -> None:
        """Have counters of a vCPU read otherwise from a record on."""
        for index in range(since % len(self.records[vcpu]), len(self.records[vcpu])):
            record = self.records[vcpu][index]
            moved = {view: (getattr(record, view) + ticks) % 2**64 for view in views}
            # The interrupt of an alarm that was set before keeps its deadline.
            if "cntvct" in views and (record.kind is Kind.ARMED or (record.kind is Kind.FIRED and index > since)):
                moved["cval"] = (record.cval + ticks) % 2**64
            self.change(vcpu, index, **moved)

    def move_both(self, ticks: int, *views: str) -> None:
        """Have counters of both read otherwise since the pause."""
        for vcpu in (0, 1):
            self.move(vcpu, ticks, *views, since=self.after_pause(vcpu))

    def delay(self, ticks: int) -> None:
        """Have the pause, and the end, come later."""
        self.now += ticks
        self.pauses = [
            dataclasses.replace(pause, taken=later(pause.taken, ticks), released=later(pause.released, ticks))
            for pause in self.pauses
        ]

    def index(self, vcpu: int, kind: Kind, which: int = 0) -> int:
        return [index for index, record in enumerate(self.records[vcpu]) if record.kind is kind][which]

    def after_pause(self, vcpu: int) -> int:
        """The first record after the pause: the interrupt of an alarm that was set before."""
        return self.index(vcpu, Kind.FIRED, 2)


@pytest.mark.parametrize("policy", ["freeze", "advance", "capped"])
@pytest.mark.parametrize("start", [7_000_000_000, 2**64 - PERIOD])
def test_a_sound_log_has_nothing_wrong(policy: str, start: int) -> None:
    story = Story(policy, start)
    assert story.log().vcpus[0].records == story.records[0]  # type: ignore[union-attr]
    verdict = story.judged()
    assert verdict.findings == []
    assert verdict.ok
    assert [(figures.samples, figures.alarms, figures.interrupts) for figures in verdict.vcpus] == [(24, 6, 5)] * 2
    assert [(gap.pause, gap.vcpu, gap.view, gap.error_ticks) for gap in verdict.gaps] == [
        (1, vcpu, view, 0) for view in ("cntvct", "cntpct") for vcpu in (0, 1)
    ]
    hidden = {"freeze": AWAY, "advance": 0, "capped": AWAY - HZ // 2}[policy]
    for gap in verdict.gaps:
        assert gap.shift_ticks[0] <= hidden <= gap.shift_ticks[1]
    assert {skew.error_ticks for skew in verdict.skews} == {0}
    assert len(verdict.skews) == 5
    # Without the host's side the rest is still judged. Nothing tells a pause that the guest saw from a stall then.
    alone = check_log(story.log())
    assert {finding.kind for finding in alone.findings} == (
        {"late-interrupt", "stall"} if policy == "advance" else set()
    )
    assert check_log(story.log(), grace_ns=3_000_000_000).ok
    assert alone.gaps == []
    assert json.loads(json.dumps(verdict.to_dict()))["schema"] == "guestclock.check-log/1"


def lose(story: Story) -> None:
    del story.records[0][story.index(0, Kind.FIRED, 1)]


def lose_the_last(story: Story) -> None:
    story.now += 2 * HZ


def double(story: Story) -> None:
    index = story.index(1, Kind.FIRED, 1)
    story.records[1].insert(index, story.records[1][index])


def ring_early(story: Story) -> None:
    index = story.index(0, Kind.FIRED, 0)
    cntvct = story.records[0][index].cval - 1
    story.change(0, index, cntvct=cntvct, cntpct=cntvct + 3)


def another_deadline(story: Story) -> None:
    story.change(0, story.after_pause(0), cval=story.records[0][story.after_pause(0)].cval - 100)


def clear_istatus(story: Story) -> None:
    story.change(0, story.index(0, Kind.FIRED, 1), ctl=1)


def mask(story: Story) -> None:
    story.change(1, story.index(1, Kind.FIRED, 3), ctl=7)


def ring_late(story: Story, ticks: int = 90 * HZ, *, looks: bool = False) -> None:
    """Have an interrupt come late: all goes on late from there, and nobody but the host can say that nobody slept."""
    at = story.index(0, Kind.FIRED, 1)
    due = (story.records[0][at].cval + story.first_offset) % 2**64
    for vcpu in (0, 1):
        story.move(vcpu, ticks, "cntvct", "cntpct", since=at)
    story.change(0, at, cval=story.records[0][at - 1].cval)
    story.change(1, at, cval=story.records[1][at - 1].cval)
    for brackets in story.brackets:
        brackets[:] = [later(b, ticks) if b.low > due else b for b in brackets]
    story.delay(ticks)
    for seen in story.looks:
        seen[:] = [
            Looks(*(count + ticks if count is not None and count > due else count for count in (each.vain, each.found)))
            for each in seen
        ]
    if looks:
        story.looks[0][1] = dataclasses.replace(story.looks[0][1], vain=due + ticks - 1_000)


def stop_the_machine(story: Story) -> None:
    ring_late(story, 25 * HZ)


def stop_awake(story: Story) -> None:
    """Have the machine stop between two samples of vCPU 1, while vCPU 0 sleeps: its alarm is late too."""
    ticks = 25 * HZ
    at = story.index(1, Kind.ARMED, 1) - 1
    then = story.brackets[1][ROUND * 2 - 1].low
    story.move(1, ticks, "cntvct", "cntpct", since=at)
    asleep = story.index(0, Kind.FIRED, 1)
    deadline = story.records[0][asleep].cval
    story.move(0, ticks, "cntvct", "cntpct", since=asleep)
    story.change(0, asleep, cval=deadline)
    for index, record in enumerate(story.records[0][asleep:], asleep):
        if record.kind is Kind.SAMPLED:
            story.change(0, index, last_cntvct=0)
    for brackets in story.brackets:
        brackets[:] = [later(b, ticks) if b.low >= then else b for b in brackets]
    story.delay(ticks)
    story.looks = [[Looks()] * len(looks) for looks in story.looks]


def stop_a_counter(story: Story) -> None:
    first = story.records[1][0].cntpct
    for index in range(len(story.records[1])):
        story.change(1, index, cntpct=first)


def stop_both_counters(story: Story) -> None:
    """Have a guest whose counters are zero sample, set its alarm, and sleep for ever."""
    for vcpu in (0, 1):
        story.records[vcpu][:] = [*story.records[vcpu][:ROUND] * 2, story.records[vcpu][ROUND]]
        story.brackets[vcpu][2 * ROUND :] = []
        for index in range(2 * ROUND + 1):
            story.change(vcpu, index, cntvct=0, cntpct=0, last_cntvct=0)
        story.change(vcpu, 2 * ROUND, cval=PERIOD)
    story.looks = [[], []]
    story.pauses = []


def slow_down(story: Story) -> None:
    """Have both counters run at half of the rate that CNTFRQ says."""
    for vcpu in (0, 1):
        for index, record in enumerate(story.records[vcpu]):
            fields = {name: getattr(record, name) // 2 for name in ("cntvct", "cntpct", "cval", "last_cntvct")}
            story.change(vcpu, index, **fields)


def another_interrupt(story: Story) -> None:
    index = story.index(0, Kind.FIRED, 1)
    story.records[0].insert(index, dataclasses.replace(story.records[0][index], kind=Kind.OTHER_IRQ, interrupt=30))


FAULTS: list[tuple[str, str, Callable[[Story], None], int | None, bool]] = [
    ("virtual steps back", "backward", lambda s: s.change(0, 2, cntvct=s.records[0][1].cntvct - 1), 1, True),
    ("physical steps back", "backward", lambda s: s.change(1, 2, cntpct=s.records[1][1].cntpct - 7), 7, True),
    (
        "it steps back across the pause",
        "backward",
        lambda s: s.move(0, -AWAY - 3 * PERIOD, "cntvct", "cntpct", since=s.after_pause(0)),
        None,
        True,
    ),
    ("one vCPU behind", "vcpu-skew", lambda s: s.move(1, -2_000, "cntvct", "cntpct"), None, True),
    ("one vCPU ahead", "vcpu-skew", lambda s: s.move(1, 2_000, "cntvct", "cntpct"), None, False),
    (
        "one vCPU ahead since the pause",
        "vcpu-skew",
        lambda s: s.move(1, 2_000, "cntvct", "cntpct", since=s.after_pause(1)),
        None,
        False,
    ),
    (
        "the views part at the pause",
        "view-skew",
        lambda s: s.move_both(150, "cntpct"),
        None,
        True,
    ),
    ("the views differ by vCPU", "view-skew", lambda s: s.move(1, 150, "cntpct"), None, True),
    ("it jumps without a pause", "moved", lambda s: s.move(0, 4_000, "cntvct", "cntpct", since=7), None, False),
    (
        "too much of the pause",
        "gap",
        lambda s: s.move_both(5_000, "cntvct", "cntpct"),
        None,
        False,
    ),
    (
        "too little of it",
        "gap",
        lambda s: s.move_both(-5_000, "cntvct", "cntpct"),
        None,
        False,
    ),
    ("an interrupt is lost", "lost-interrupt", lose, None, True),
    ("the last interrupt is lost", "lost-interrupt", lose_the_last, None, False),
    ("an interrupt comes twice", "doubled-interrupt", double, None, True),
    ("an interrupt comes early", "early-interrupt", ring_early, 1, True),
    ("the deadline changes", "wrong-interrupt", another_deadline, 100, True),
    ("another interrupt", "wrong-interrupt", another_interrupt, None, True),
    ("an interrupt is 90 s late", "late-interrupt", ring_late, None, True),
    ("an interrupt is 0.2 s late", "late-interrupt", lambda s: ring_late(s, HZ // 5, looks=True), None, False),
    ("the machine stops for 25 s, asleep", "stall", stop_the_machine, None, True),
    ("the machine stops for 25 s, awake", "stall", stop_awake, None, True),
    ("an interrupt with ISTATUS clear", "spurious-interrupt", clear_istatus, None, True),
    ("an interrupt with IMASK set", "spurious-interrupt", mask, None, True),
    ("a counter stops", "stopped", stop_a_counter, None, True),
    ("both counters are zero", "stopped", stop_both_counters, None, True),
    ("the counters run at half the rate", "moved", slow_down, None, False),
]


@pytest.mark.parametrize(
    ("kind", "plant", "ticks", "alone"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS]
)
def test_each_planted_fault_is_found(
    kind: str,
    plant: Callable[[Story], None],
    ticks: int | None,
    alone: bool,
) -> None:
    story = Story()
    plant(story)
    found = [finding for finding in story.judged().findings if finding.kind == kind]
    assert found
    if ticks is not None:
        assert found[0].ticks == ticks
    # What the guest alone can tell, and what needs the host's counter.
    assert any(finding.kind == kind for finding in check_log(story.log()).findings) is alone


def test_a_fault_is_found_by_no_more_than_it_is() -> None:
    story = Story("advance")
    story.move_both(5_000, "cntvct", "cntpct")
    errors = {gap.error_ticks for gap in story.judged().gaps}
    assert all(error is not None and 5_000 - 200 <= error <= 5_000 for error in errors)


def test_every_step_of_a_catch_up_is_judged() -> None:
    story = Story("catch-up")
    verdict = story.judged()
    assert verdict.findings == []
    assert [(gap.step, gap.vcpu) for gap in verdict.gaps if gap.view == "cntpct"] == [
        (step, vcpu) for step in range(4) for vcpu in (0, 1)
    ]
    owed = [AWAY, AWAY - STEP, AWAY - 2 * STEP, 0]
    for gap in verdict.gaps:
        assert gap.shift_ticks[0] <= owed[gap.step] <= gap.shift_ticks[1]
    # A step that isn't taken, or is another's length.
    (pause,) = story.pauses
    for wrong in (dataclasses.replace(pause, step_ns=STEP_NS // 2), dataclasses.replace(pause, steps=pause.steps[:-1])):
        story.pauses = [wrong]
        assert {finding.kind for finding in story.judged().findings} & {"gap", "moved"}


def test_without_a_policy_the_gap_is_told_and_not_judged() -> None:
    story = Story()
    (pause,) = story.pauses
    story.pauses = [dataclasses.replace(pause, policy=None)]
    story.move_both(5_000, "cntvct", "cntpct")
    story.looks = [[Looks()] * len(looks) for looks in story.looks]  # The looks were for the alarms as they were.
    verdict = story.judged()
    assert verdict.ok
    assert {(gap.promised_ticks, gap.error_ticks) for gap in verdict.gaps} == {(None, None)}


def test_a_cap_that_the_pause_stays_under_hides_nothing() -> None:
    story = Story("advance")
    story.pauses = [dataclasses.replace(story.pauses[0], max_ns=10_000_000_000)]
    verdict = story.judged()
    assert verdict.ok
    assert {gap.promised_ticks for gap in verdict.gaps} == {(0, 0)}


def test_one_view_alone_can_be_judged() -> None:
    story = Story()
    story.move_both(AWAY, "cntpct")
    assert {finding.kind for finding in story.judged().findings} == {"view-skew", "gap"}
    assert story.judged(views=("cntvct",)).ok


def test_special_interrupts_are_counted_and_no_fault() -> None:
    story = Story()
    index = story.index(0, Kind.FIRED, 1)
    special = dataclasses.replace(story.records[0][index], kind=Kind.OTHER_IRQ, interrupt=1023)
    story.records[0].insert(index + 1, special)
    verdict = story.judged()
    assert verdict.ok
    assert verdict.vcpus[0].special_interrupts == 1


def test_a_sample_around_a_pause_is_no_fault() -> None:
    story = Story()
    (pause,) = story.pauses
    number = 3 * ROUND - 1
    story.brackets[1][number] = Interval(story.brackets[1][number].low, pause.released.high + 10)
    assert story.judged().ok


def test_a_vcpu_that_never_started_one_that_failed_and_damage() -> None:
    memory = Story().memory()
    memory[layout.AREAS : layout.AREAS + 8] = bytes(8)
    one = layout.AREAS + layout.AREA_SIZE
    state = list(layout.AREA_FORMAT.unpack_from(memory, one))
    state[1], state[-4:] = layout.FAULTED_STATE, [5, 0x9600_0000, 0x4000_0100, 0xDEAD]
    layout.AREA_FORMAT.pack_into(memory, one, *state)
    memory[one + layout.RECORDS_AT + 4 * layout.RECORD_FORMAT.size + 4] ^= 1
    verdict = check_log(read_log(memory))
    # The damaged record is the first alarm's: whose interrupt the first one is, isn't known then.
    assert [(finding.kind, finding.vcpu) for finding in verdict.findings] == [
        ("not-started", 0),
        ("fault", 1),
        ("damaged", 1),
    ]
    assert "FAR 0xdead" in verdict.findings[1].what


@pytest.mark.parametrize(("frequency_hz", "alone"), [(HZ // 2, False), (HZ + 1, False), (0, True), (2**64 - 1, True)])
def test_a_frequency_that_the_counter_hasnt(frequency_hz: int, alone: bool) -> None:
    story = Story()
    memory = story.memory()
    for vcpu in (0, 1):
        at = layout.AREAS + vcpu * layout.AREA_SIZE + 0x18
        memory[at : at + 8] = frequency_hz.to_bytes(8, "little")
    log = read_log(memory)
    found = check_log(log, host=story.host()).findings
    assert [(finding.kind, finding.vcpu) for finding in found] == [("frequency", 0), ("frequency", 1)]
    assert f" {frequency_hz} Hz" in found[0].what
    # Alone, a guest can't be told how fast its counter runs; only what no counter does is found.
    assert ("frequency" in {finding.kind for finding in check_log(log).findings}) is alone


def test_vcpus_of_different_frequencies() -> None:
    memory = Story().memory()
    at = layout.AREAS + layout.AREA_SIZE + 0x18
    memory[at : at + 8] = (HZ + 1).to_bytes(8, "little")
    assert [finding.kind for finding in check_log(read_log(memory)).findings] == ["frequency"]


def test_a_log_that_has_overwritten_its_beginning() -> None:
    story = Story()
    while len(story.records[0]) < layout.RECORDS + 50:
        story._fire()
        story._rounds()
    del story.records[0][-ROUND:], story.brackets[0][1 - ROUND :]
    # Now the oldest that is left is the interrupt of an alarm that is gone.
    assert story.records[0][-layout.RECORDS].kind is Kind.FIRED
    log = story.log()
    vcpu = log.vcpus[0]
    assert vcpu is not None
    assert len(vcpu.records) == layout.RECORDS < vcpu.written
    assert vcpu.records == story.records[0][-layout.RECORDS :]
    assert story.judged().findings == []


def test_the_image_is_found_wherever_it_is() -> None:
    story = Story()
    memory = story.memory(at=0x5000) + bytes(0x3000)
    log = read_log(memory)
    assert log.image_at == 0x5000
    assert log.vcpus == story.log().vcpus


def test_what_is_no_log() -> None:
    memory = Story().memory()
    for wrong in (b"", b"guest", bytes(0x10_0000), memory[0x40:], memory[: layout.AREAS + layout.AREA_SIZE]):
        with pytest.raises(NotALog):
            read_log(wrong)
    memory[layout.LOG + 8] += 1
    with pytest.raises(NotALog, match="shape"):
        read_log(memory)


def test_the_host_of_another_log_is_refused() -> None:
    story = Story()
    host = story.host()
    for wrong, words in (
        (dataclasses.replace(host, looks=[[], []]), "0 alarms of vCPU 0"),
        (dataclasses.replace(host, looks=[[]]), "1 vCPUs"),
        (dataclasses.replace(host, brackets=host.brackets[:1]), "1 vCPUs"),
        (dataclasses.replace(host, brackets=[host.brackets[0], host.brackets[1][1:]]), "23 samples of vCPU 1"),
        (dataclasses.replace(host, brackets=[host.brackets[0], [*host.brackets[1], Interval(0, 1)]]), "25 samples"),
    ):
        with pytest.raises(ValueError, match=words):
            check_log(story.log(), host=wrong)


def host_document(story: Story) -> dict[str, Any]:
    def pair(interval: Interval) -> list[int]:
        return [interval.low, interval.high]

    return {
        "frequency_hz": HZ,
        "vcpus": [[pair(bracket) for bracket in brackets] for brackets in story.brackets],
        "pauses": [
            {
                "taken_at": pair(pause.taken),
                "released_at": pair(pause.released),
                "policy": pause.policy,
                "max_ns": pause.max_ns,
                "step_ns": pause.step_ns,
                "steps": [pair(step) for step in pause.steps],
            }
            for pause in story.pauses
        ],
        "ended_at": story.now,
        "looks": [[[each.vain, each.found] for each in [*looks, Looks()]] for looks in story.looks],
    }


@pytest.mark.parametrize("policy", ["freeze", "capped", "catch-up"])
def test_the_hosts_document(policy: str) -> None:
    story = Story(policy)
    assert Host.from_dict(json.loads(json.dumps(host_document(story)))) == story.host()


def test_the_documentations_document() -> None:
    page = (Path(__file__).parent.parent / "docs/payload.md").read_text()
    (example,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    host = Host.from_dict(json.loads(example))
    assert (host.brackets[1][1], host.pauses[0].policy, host.ended) == (Interval(2020, 2110), "advance", 12000)
    # Every kind of finding is explained there.
    assert set(get_args(FindingKind)) == set(
        re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^`[^|\n]*\|", page, re.MULTILINE)))
    )


def a_pause(**wrong: object) -> dict[str, object]:
    return {"pauses": [{"taken_at": [1, 2], "released_at": [3, 4], "policy": "freeze", **wrong}]}


WRONG_DOCUMENTS: list[tuple[str, str]] = [
    ("{}", "there is no 'frequency_hz'"),
    ("[]", "it is a list, not an object"),
    ("3", "it is 3"),
    ("null", "it is None"),
    ('{"frequency_hz": "x", "vcpus": []}', "frequency_hz is 'x', not a whole number"),
    *(
        (json.dumps({"frequency_hz": HZ, "vcpus": [], **wrong}), words)
        for wrong, words in (
            ({"frequency_hz": float("inf")}, "frequency_hz is inf, not a whole number from 1"),
            ({"frequency_hz": 0}, "frequency_hz is 0"),
            ({"frequency_hz": 2**32}, "frequency_hz is 4294967296"),
            ({"frequency_hz": True}, "frequency_hz is True"),
            ({"vcpus": {}}, "vcpus is a dict, not a list"),
            ({"vcpus": [3]}, "vCPU 0 is 3, not a list"),
            ({"vcpus": [[[1]]]}, "a sample of vCPU 0 is a list, not two counts"),
            ({"vcpus": [[[1, float("inf")]]]}, "a sample of vCPU 0 is inf"),
            ({"vcpus": [[], [[float("nan"), 1]]]}, "a sample of vCPU 1 is nan"),
            ({"vcpus": [[[-1, 1]]]}, "is -1"),
            ({"vcpus": [[[2, 1]]]}, "ends before it begins"),
            ({"vcpus": [[[1.5, 2]]]}, "is 1.5"),
            ({"vcpus": [[[1, 10**4000]]]}, "is a number of 13288 bits"),
            ({"ended_at": float("-inf")}, "ended_at is -inf"),
            ({"pauses": [[]]}, "a pause is a list"),
            ({"pauses": [{}]}, "there is no 'taken_at'"),
            (a_pause(policy="hibernate" * 100), "policy is 'hibernatehi"),
            (a_pause(policy=[]), "policy is a list"),
            (a_pause(max_ns=float("inf")), "max_ns is inf"),
            (a_pause(released_at=[0, 0]), "pauses are in their order, but after 1 comes 0"),
            (a_pause(steps=[[1, 1]]), "pauses are in their order"),
            (a_pause(step_ns=None), "step_ns is None"),
            ({"looks": [[[1e300, None]]]}, "looks of vCPU 0 is 1e"),
            ({"looks": [[[1]]]}, "looks of vCPU 0 is a list, not two counts"),
        )
    ),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG_DOCUMENTS, ids=[words for _, words in WRONG_DOCUMENTS])
def test_a_document_that_is_none_gets_a_sentence(wrong: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        Host.from_dict(json.loads(wrong))
    assert "no description of what the host saw (docs/payload.md)" in str(caught.value)
    assert len(str(caught.value)) < 250
    (tmp_path / "log").write_bytes(Story().memory())
    (tmp_path / "host.json").write_text(wrong)
    done = CliRunner().invoke(app, ["check-log", str(tmp_path / "log"), "--host", str(tmp_path / "host.json")])
    assert (done.exit_code, done.stderr.strip()) == (2, f"guestclock: {caught.value}")


@pytest.mark.parametrize("wrong", [b"[" * 100_000, b"\xff\xfe", b"", b"1" * 5_000, b"Infinity"])
def test_what_is_no_json_of_ours_gets_a_sentence(wrong: bytes, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(Story().memory())
    (tmp_path / "host.json").write_bytes(wrong)
    done = CliRunner().invoke(app, ["check-log", str(tmp_path / "log"), "--host", str(tmp_path / "host.json")])
    assert done.exit_code == 2
    assert done.stderr.startswith("guestclock: ")
    assert done.stderr.count("\n") == 1


def test_a_dump_larger_than_any_memory(tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dump.write_bytes(Story().memory(at=0x5000))
    with dump.open("r+b") as opened:
        opened.truncate(2**40)  # A hole: nothing of it is read once the log is found.
    assert CliRunner().invoke(app, ["check-log", str(dump)]).exit_code == 0


def test_a_log_from_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(Story().memory(),))
    writer.start()
    assert CliRunner().invoke(app, ["check-log", str(pipe)]).exit_code == 0
    writer.join()


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    def run(*arguments: str | Path) -> Any:
        return CliRunner().invoke(app, ["check-log", *map(str, arguments)])

    sound, wrong = Story(), Story()
    wrong.move_both(5_000, "cntvct", "cntpct")
    for name, story in (("sound", sound), ("wrong", wrong)):
        (tmp_path / name).write_bytes(story.memory())
    host = tmp_path / "host.json"
    host.write_text(json.dumps(host_document(sound)))
    done = run(tmp_path / "sound", "--host", host)
    assert (done.exit_code, "Nothing is wrong." in done.stdout) == (0, True)
    # Whoever doesn't say what the host saw can't be told of the gap.
    assert run(tmp_path / "wrong").exit_code == 0
    done = run(tmp_path / "wrong", "--host", host)
    assert done.exit_code == 1
    assert "gap: vCPU 0: CNTVCT across pause 1" in done.stdout
    done = run(tmp_path / "wrong", "--host", host, "--json")
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert document == check_log(wrong.log(), host=sound.host()).to_dict() | {"gaps": document["gaps"], "ok": False}
    assert {finding["kind"] for finding in document["findings"]} == {"gap"}

    (tmp_path / "none").write_bytes(b"no log")
    for arguments in (
        (tmp_path / "none",),
        (tmp_path / "not there",),
        (tmp_path / "sound", "--host", tmp_path / "none"),
        (tmp_path / "sound", "--host", tmp_path / "not there"),
    ):
        assert run(*arguments).exit_code == 2, arguments


def test_the_command_can_judge_one_counter(tmp_path: Path) -> None:
    story = Story()
    story.move_both(AWAY, "cntpct")
    (tmp_path / "log").write_bytes(story.memory())
    (tmp_path / "host.json").write_text(json.dumps(host_document(story)))
    command = ["check-log", str(tmp_path / "log"), "--host", str(tmp_path / "host.json")]
    assert CliRunner().invoke(app, command).exit_code == 1
    assert CliRunner().invoke(app, [*command, "--virtual-only"]).exit_code == 0


def test_the_grace_of_an_interrupt() -> None:
    story = Story()
    lose_the_last(story)
    assert {finding.kind for finding in story.judged().findings} == {"lost-interrupt"}
    assert story.judged(grace_ns=2_100_000_000).ok
