"""The input of a log's judge about the host, and its verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from guestclock.promise import Interval

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA: Final = "guestclock.check-log/1"

FindingKind = Literal[
    "backward",
    "vcpu-skew",
    "view-skew",
    "moved",
    "gap",
    "lost-interrupt",
    "doubled-interrupt",
    "early-interrupt",
    "wrong-interrupt",
    "fault",
    "damaged",
    "not-started",
    "frequency",
]


@dataclass(frozen=True, slots=True)
class Pause:
    """The time of a guest's absence, in the host's ticks, and the policy's promise for it."""

    taken: Interval
    """The host's count around the checkpoint."""
    released: Interval
    """The host's count around the release."""
    policy: Literal["freeze", "advance"] | None = None
    """The policy; None to report what the guest saw, and judge nothing."""
    max_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """The VMM's readings of the host's counter, which must be the counter that the guest's counters are offset from."""

    frequency_hz: int
    brackets: Sequence[Sequence[Interval]]
    """The host's count around each sample, by vCPU, from its first sample."""
    pauses: Sequence[Pause] = ()
    """The pauses, in their order."""
    ended: int | None = None
    """The host's count when the log was read, with the guest still there."""

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Host:
        """Takes the JSON document that docs/payload.md describes. Raises ValueError for anything else."""
        try:
            return cls(
                int(document["frequency_hz"]),
                [[Interval(*map(int, pair)) for pair in vcpu] for vcpu in document["vcpus"]],
                [
                    Pause(
                        Interval(*map(int, pause["taken_at"])),
                        Interval(*map(int, pause["released_at"])),
                        pause.get("policy"),
                        pause.get("max_ns"),
                    )
                    for pause in document.get("pauses", [])
                ],
                document.get("ended_at"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            msg = f"no description of what the host saw (docs/payload.md): {type(error).__name__}: {error}"
            raise ValueError(msg) from error


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    kind: FindingKind
    vcpu: int | None
    ticks: int | None
    """Guest ticks that the clock is wrong by, at least; None where it isn't a matter of ticks."""
    what: str


@dataclass(frozen=True, slots=True)
class VcpuFigures:
    """The numbers of a vCPU. Nothing here is judged."""

    vcpu: int
    samples: int
    alarms: int
    interrupts: int
    special_interrupts: int
    """Readings of ICC_IAR1_EL1 that were no interrupt: 1023 where the line had gone low again."""
    longest_step_ticks: int
    """The longest step of CNTVCT_EL0 between two records."""
    latest_interrupt_ticks: int | None
    """The longest time from a deadline to its interrupt."""


@dataclass(frozen=True, slots=True)
class GapFigures:
    """The gap of one of a vCPU's counters across a pause."""

    pause: int
    vcpu: int
    view: str
    guest_gap_ticks: int
    """The guest's gap, from its last reading before the pause to its first after."""
    shift_ticks: tuple[int, int]
    """Ticks by which the counter fell behind the host's, at least and at most."""
    promised_ticks: tuple[int, int] | None
    """The fall behind that the policy promises, at least and at most."""
    error_ticks: int | None
    """The distance of the two intervals; None where nothing was promised."""


@dataclass(frozen=True, slots=True)
class Skew:
    """The distance of two things that should be one: 0 where they may be, known to so many ticks."""

    between: str
    error_ticks: int
    width_ticks: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of `check_log`."""

    frequency_hz: int
    findings: list[Finding]
    vcpus: list[VcpuFigures]
    skews: list[Skew]
    gaps: list[GapFigures]

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Returns the verdict as plain JSON values."""
        return {"schema": SCHEMA, "ok": self.ok, **asdict(self)}
