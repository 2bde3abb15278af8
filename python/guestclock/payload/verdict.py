"""What the judge of a log is told of the host, and what it says."""

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
    """When a guest was away, in the host's ticks, and what it was promised."""

    taken: Interval
    """Around the checkpoint."""
    released: Interval
    """Around the release."""
    policy: Literal["freeze", "advance"] | None = None
    """None: say what the guest saw, and judge nothing."""
    max_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """What the VMM saw on the host's counter. It has to be the counter that the guest's are offset from."""

    frequency_hz: int
    brackets: Sequence[Sequence[Interval]]
    """By vCPU, around each of its samples, from its first."""
    pauses: Sequence[Pause] = ()
    """In their order."""
    ended: int | None = None
    """When the log was read, the guest still being there."""

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Host:
        """Take the JSON document that docs/payload.md describes. Raises ValueError for anything else."""
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
    """By how many guest ticks, at least; None where it isn't a matter of ticks."""
    what: str


@dataclass(frozen=True, slots=True)
class VcpuFigures:
    """What a vCPU did, in numbers. Nothing here is judged."""

    vcpu: int
    samples: int
    alarms: int
    interrupts: int
    special_interrupts: int
    """Readings of ICC_IAR1_EL1 that were no interrupt: 1023 where the line had gone low again."""
    longest_step_ticks: int
    """The most that CNTVCT_EL0 went on between two records."""
    latest_interrupt_ticks: int | None
    """The longest time from a deadline to its interrupt."""


@dataclass(frozen=True, slots=True)
class GapFigures:
    """What a vCPU saw of a pause on one counter."""

    pause: int
    vcpu: int
    view: str
    guest_gap_ticks: int
    """From its last reading before to its first after."""
    shift_ticks: tuple[int, int]
    """How much less the counter went on than the host's: no less than the one, no more than the other."""
    promised_ticks: tuple[int, int] | None
    """What that has to be under the policy."""
    error_ticks: int | None
    """The distance of the one from the other; None where nothing was promised."""


@dataclass(frozen=True, slots=True)
class Skew:
    """How far apart two things are that should be one: 0 where they may be, known to so many ticks."""

    between: str
    error_ticks: int
    width_ticks: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `check_log` found."""

    frequency_hz: int
    findings: list[Finding]
    vcpus: list[VcpuFigures]
    skews: list[Skew]
    gaps: list[GapFigures]

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain JSON values."""
        return {"schema": SCHEMA, "ok": self.ok, **asdict(self)}
