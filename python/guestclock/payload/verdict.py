"""The input of a log's judge about the host, and its verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from guestclock.promise import Interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    "late-interrupt",
    "wrong-interrupt",
    "spurious-interrupt",
    "stall",
    "stopped",
    "fault",
    "damaged",
    "not-started",
    "frequency",
]


Policy: TypeAlias = Literal["freeze", "advance", "catch-up"]


@dataclass(frozen=True, slots=True)
class Pause:
    """The time of a guest's absence, in the host's ticks, and the policy's promise for it."""

    taken: Interval
    """The host's count around the checkpoint."""
    released: Interval
    """The host's count around the release."""
    policy: Policy | None = None
    """The policy; None to report what the guest saw, and judge nothing."""
    max_ns: int | None = None
    """The most that an advance gives; what a catch-up gives at once, where None is nothing."""
    step_ns: int = 0
    """The length of a catch-up's step."""
    steps: Sequence[Interval] = ()
    """The host's count around each step that the VMM took, in their order."""


@dataclass(frozen=True, slots=True)
class Looks:
    """The looks of a VMM that delivers interrupts itself, for one alarm: the host's count, read before each look."""

    vain: int | None = None
    """Before its last look that found no interrupt due; None if no look was in vain."""
    found: int | None = None
    """Before the look that found it; None if none has."""


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
    looks: Sequence[Sequence[Looks]] = ()
    """The VMM's looks for each alarm, by vCPU, from its first. Empty where KVM delivers."""

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Host:
        """Takes the JSON document that docs/payload.md describes. Raises ValueError for anything else."""
        try:
            document = _object(document, "it")
            hz, ended = document["frequency_hz"], document.get("ended_at")
            return cls(
                _whole(hz, "frequency_hz", least=1, most=_U32),
                [
                    [_interval(pair, f"a sample of vCPU {vcpu}") for pair in _items(samples, f"vCPU {vcpu}")]
                    for vcpu, samples in enumerate(_items(document["vcpus"], "vcpus"))
                ],
                _pauses(document.get("pauses", [])),
                None if ended is None else _whole(ended, "ended_at"),
                [
                    [_looks(each, f"looks of vCPU {vcpu}") for each in _items(alarms, f"looks of vCPU {vcpu}")]
                    for vcpu, alarms in enumerate(_items(document.get("looks", []), "looks"))
                ],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"there is no {error}" if isinstance(error, KeyError) else str(error)
            msg = f"no description of what the host saw (docs/payload.md): {what}"
            raise ValueError(msg) from error


_U32: Final = 2**32 - 1
_U64: Final = 2**64 - 1


def _pauses(document: object) -> list[Pause]:
    pauses: list[Pause] = []
    for entry in _items(document, "pauses"):
        pause = _object(entry, "a pause")
        policy, max_ns = pause.get("policy"), pause.get("max_ns")
        if policy is not None and policy not in get_args(Policy):
            msg = f"policy is {_short(policy)}, not one of {', '.join(get_args(Policy))}, or null"
            raise ValueError(msg)
        steps = [_interval(pair, "a step") for pair in _items(pause.get("steps", []), "steps")]
        taken, released = _interval(pause["taken_at"], "taken_at"), _interval(pause["released_at"], "released_at")
        counts = [pauses[-1].steps[-1] if pauses[-1].steps else pauses[-1].released] if pauses else []
        for before, after in pairwise([*counts, taken, released, *steps]):
            if after.high < before.low:
                msg = f"pauses are in their order, but after {before.low} comes {after.high}"
                raise ValueError(msg)
        most = None if max_ns is None else _whole(max_ns, "max_ns")
        pauses.append(Pause(taken, released, policy, most, _whole(pause.get("step_ns", 0), "step_ns"), tuple(steps)))
    return pauses


def _object(value: object, what: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    msg = f"{what} is {_short(value)}, not an object"
    raise ValueError(msg)


def _items(value: object, what: str) -> list[Any]:
    if isinstance(value, list):
        return value
    msg = f"{what} is {_short(value)}, not a list"
    raise ValueError(msg)


def _interval(value: object, what: str) -> Interval:
    match _items(value, what):
        case [low, high]:
            ends = Interval(_whole(low, what), _whole(high, what))
        case _:
            msg = f"{what} is {_short(value)}, not two counts"
            raise ValueError(msg)
    if ends.high < ends.low:
        msg = f"{what} is {_short(value)}, which ends before it begins"
        raise ValueError(msg)
    return ends


def _looks(value: object, what: str) -> Looks:
    match _items(value, what):
        case [vain, found]:
            counts = [None if count is None else _whole(count, what) for count in (vain, found)]
            return Looks(*counts)
        case _:
            msg = f"{what} is {_short(value)}, not two counts"
            raise ValueError(msg)


def _whole(value: object, what: str, *, least: int = 0, most: int = _U64) -> int:
    # JSON as Python reads it has Infinity, NaN, true and 1e300 too.
    if type(value) is int and least <= value <= most:
        return value
    msg = f"{what} is {_short(value)}, not a whole number from {least} to {most}"
    raise ValueError(msg)


def _short(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > _SHORT_BITS:
        return f"a number of {value.bit_length()} bits"
    said = repr(value) if isinstance(value, int | float | str | None) else f"a {type(value).__name__}"
    return said if len(said) <= _SHORT_CHARACTERS else f"{said[:_SHORT_CHARACTERS]}..."


_SHORT_BITS: Final = 100
_SHORT_CHARACTERS: Final = 60


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
    """The longest time from a deadline to its interrupt.

    It counts from the guest's return if the deadline lay in a pause, and from the VMM's look that found it, unless that
    should have been an earlier one.
    """


@dataclass(frozen=True, slots=True)
class GapFigures:
    """The gap of one of a vCPU's counters across a pause, and across the steps after it."""

    pause: int
    step: int
    """The number of steps of a catch-up before the second reading."""
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
