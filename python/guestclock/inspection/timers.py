"""A checkpoint's timers at one instant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

from guestclock._core import ModelVm
from guestclock.inspection.words import signed, to_ns

if TYPE_CHECKING:
    from guestclock._core import Checkpoint, Plan
    from guestclock.types import Counter

_ENABLE = 1
_IMASK = 2


class TimerRecord(TypedDict):
    """One timer of one vCPU."""

    vcpu: int
    timer: str
    """vtimer, ptimer, hvtimer or hptimer."""
    state: Literal["off", "masked", "armed", "overdue"]
    """Armed: its deadline is to come. Overdue: it has come, so its interrupt is pending. Masked: it has none."""
    ctl: int
    """CTL as it was saved, without ISTATUS."""
    cval: int
    """In guest ticks."""
    remaining_ticks: int
    """From the counter to CVAL; 0 or below where it has been reached."""
    remaining_ns: int
    """The same, rounded towards zero."""


def model_like(checkpoint: Checkpoint, counter: Counter, *, kernel: str | None = None) -> ModelVm:
    """Return a model VM with the vCPUs, EL2 and timers of the checkpoint, its state not yet restored.

    ValueError for a kernel that isn't a preset; KvmError for one that can't have such a guest.
    """
    nested = checkpoint.cntvoff is not None
    return ModelVm(
        checkpoint.vcpus,
        counter=counter,
        kernel=kernel,
        nested=nested,
        e2h0=nested and "hvtimer_cval" not in checkpoint.vcpu_columns(),
    )


def timers(checkpoint: Checkpoint, intended: Plan | None = None) -> list[TimerRecord]:
    """Return every timer of every vCPU, as of the checkpoint, or as its guest would find it at the plan's instant."""
    return [
        {
            "vcpu": outlook.vcpu,
            "timer": outlook.timer.name.lower(),
            "state": _state(outlook.ctl, line=outlook.line),
            "ctl": outlook.ctl,
            "cval": outlook.cval,
            # Reached is an unsigned comparison: a CVAL far ahead isn't one that has long passed.
            "remaining_ticks": outlook.cval - outlook.guest_count,
            "remaining_ns": to_ns(outlook.cval - outlook.guest_count, checkpoint.frequency_hz),
        }
        for outlook in (checkpoint if intended is None else intended).timers()
    ]


def skew_ticks(checkpoint: Checkpoint) -> int:
    """Return how far the virtual counter is ahead of the physical one; negative where it is behind."""
    return signed(checkpoint.cntvct - checkpoint.cntpct)


def _state(ctl: int, *, line: bool) -> Literal["off", "masked", "armed", "overdue"]:
    if not ctl & _ENABLE:
        return "off"
    if ctl & _IMASK:
        return "masked"
    return "overdue" if line else "armed"
