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
    """What the guest measured."""
    expected_gap_ticks: Interval
    """What the policy promises, given the host's clock."""
    error_ticks: int
    """The distance of the one from the other: 0 inside."""


class SampleRecord(TypedDict):
    """One reading of CNTVCT_EL0 by the guest."""

    host_ticks: Interval
    """The host's clock just before and just after."""
    cntvct: int


class RunRecord(TypedDict):
    """One guest, saved and restored, or on KVM one vCPU of it."""

    policy: PolicyRecord
    backend: str
    """What it ran on: unicorn or kvm."""
    mode: str
    """Under Unicorn how the guest reads its counters: fast or exact; on KVM which vCPU it is."""
    counter_source: str
    frequency_hz: int
    pause_ns: int
    """From the checkpoint to the release."""
    irq_delivered: int
    """Timer interrupts that the guest took, in both processes; the guest's own count agrees."""
    irq_delivered_after_restore: int
    counters: dict[str, CounterRecord]
    """By name: cntvct and cntpct; cntvct alone where the kernel can't set the other (Linux before 6.4)."""
    taken_at: Interval
    """The host's clock around the checkpoint."""
    released_at: Interval
    """The host's clock around the release."""
    samples: list[SampleRecord]
    same_counter: bool
    """Whether the plan took the host's counter for the one of the checkpoint."""
    attempts: int
    """How often it was run until the interval was narrow enough, this run included."""


class Document(TypedDict):
    """What `guestclock demo --json` prints."""

    schema: str
    runs: list[RunRecord]
