"""The shape of the demonstration's document, `guestclock.demo/1`: plain JSON values.

All ticks are of `frequency_hz`. Host times are readings that the VMM made itself, not guestclock: of CLOCK_MONOTONIC
under Unicorn, and on KVM of the host's counter.
"""

from __future__ import annotations

from typing import TypeAlias, TypedDict

Interval: TypeAlias = list[int]
"""Two numbers, low and high, both included."""


class PolicyRecord(TypedDict):
    """The restore's policy."""

    name: str
    max_ns: int | None


class CounterRecord(TypedDict):
    """One of the guest's counters across the pause, from its last sample before to its first after."""

    guest_gap_ticks: int
    """The gap that the guest measured."""
    expected_gap_ticks: Interval
    """The gap that the policy promises, given the host's clock."""
    error_ticks: int
    """The distance of the measured gap from the promised one: 0 inside."""


class SampleRecord(TypedDict):
    """One reading of CNTVCT_EL0 by the guest."""

    host_ticks: Interval
    """The host's clock just before and just after."""
    cntvct: int


class RunRecord(TypedDict):
    """One guest, saved and restored, or on KVM one vCPU of it."""

    policy: PolicyRecord
    backend: str
    """The backend that the guest ran on: unicorn or kvm."""
    mode: str
    """Under Unicorn the mode in which the guest reads its counters, fast or exact; on KVM the name of the vCPU."""
    counter_source: str
    frequency_hz: int
    pause_ns: int
    """Time from the checkpoint to the release."""
    irq_delivered: int
    """Timer interrupts that the guest took, in both processes; the guest's own count agrees."""
    irq_delivered_after_restore: int
    counters: dict[str, CounterRecord]
    """Counters by name: cntvct and cntpct; cntvct alone where the kernel can't set the other (Linux before 6.4)."""
    taken_at: Interval
    """The host's clock around the checkpoint."""
    released_at: Interval
    """The host's clock around the release."""
    samples: list[SampleRecord]
    same_counter: bool
    """True if the plan took the host's counter for the checkpoint's counter."""
    attempts: int
    """Number of runs until the interval was narrow enough, this one included."""


class Document(TypedDict):
    """The document that `guestclock demo --json` prints."""

    schema: str
    runs: list[RunRecord]
