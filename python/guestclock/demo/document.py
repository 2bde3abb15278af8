"""The shape of the demonstration's document, `guestclock.demo/2`: plain JSON values.

All ticks are of `frequency_hz`. Host times are readings that the VMM made itself, not guestclock: of CLOCK_MONOTONIC
under Unicorn, and on KVM of the host's counter.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, TypedDict

Interval: TypeAlias = list[int]
"""Two numbers, low and high, both included."""
Verdict: TypeAlias = Literal["kept", "wrong", "unclear"]


class RowRecord(TypedDict):
    """One way to keep a guest's time."""

    kept: Literal["offset", "value", "replayed"]
    """Means: one offset for the VM, counters set by value, or a VMM without guestclock that replays KVM's registers."""
    policy: Literal["freeze", "advance", "catch-up"]
    """The promise that the row is judged by."""
    max_ns: int | None
    """The most that an advance gives."""
    step_ns: int | None
    interval_ns: int | None
    """The length of a catch-up's steps, and the host's time from one to the next."""


class SampleRecord(TypedDict):
    """One reading of CNTVCT_EL0 by the guest."""

    host_ticks: Interval
    """The host's clock just before and just after."""
    cntvct: int
    ahead_ticks: Interval | None
    """The distance of the guest's clock from the promised one: positive if it is ahead. None before the promise."""


class FindingRecord(TypedDict):
    """One thing that is wrong, as `guestclock check-log` has it, or an interval that is too wide."""

    kind: str
    vcpu: int | None
    ticks: int | None
    what: str


class RunRecord(TypedDict):
    """One guest, saved and restored, and the verdict on it."""

    row: RowRecord
    backend: str
    """The backend that the guest ran on: unicorn or kvm."""
    mode: str
    """Under Unicorn the mode in which the guest reads its counters, fast or exact; on KVM kvm."""
    frequency_hz: int
    pause_ns: int
    """Time from the guest's stop to the release."""
    taken_at: Interval
    """The host's clock around the guest's stop."""
    released_at: Interval
    """The host's clock around the release."""
    steps: int
    """Steps of a catch-up that the VMM took."""
    off_by_ticks: int
    """The distance of the guest's clocks from the promised ones, at least: the worst of all samples after the pause."""
    off_by_known_to_ticks: int
    """The most that they can be off by where they aren't seen to be."""
    apart_ticks: int
    """The distance of the vCPUs' clocks from each other, at least."""
    apart_known_to_ticks: int
    latest_interrupt_ticks: int | None
    """The longest time from when an interrupt was due, and the VMM looked, until the guest took it."""
    interrupts: int
    """Timer interrupts that the guest took, in both processes."""
    lost: int
    stated_ticks: int
    """The error that guestclock states for a restore by value, and that the verdict allows it; 0 for any other."""
    findings: list[FindingRecord]
    verdict: Verdict
    """Wrong if there are findings; unclear if the host's clock couldn't tell closely enough."""
    samples: list[list[SampleRecord]]
    """The readings of each vCPU."""
    attempts: int
    """Number of runs until the host's clock told closely enough, this one included."""


class Document(TypedDict):
    """The document that `guestclock demo --json` prints."""

    schema: str
    ok: bool
    """True if guestclock kept every promise, and the row without it was found wrong."""
    conclusion: str
    """The result in a sentence."""
    load_ms: int
    """The time that the VMM takes to load the guest's memory: the same in each row."""
    runs: list[RunRecord]
