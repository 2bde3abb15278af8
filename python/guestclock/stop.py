"""Stop of a guest's vCPUs, from which its time goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guestclock._core import Checkpoint


def hidden_ticks(checkpoint: Checkpoint) -> int:
    """Return the ticks of the guest's counters from its vCPUs' stop to the checkpoint; 0 where it isn't known."""
    stopped = checkpoint.stopped_at
    if stopped is None:
        return 0
    now = stopped + (checkpoint.stamp.count - stopped) % 2**64
    here, there = (count * checkpoint.frequency_hz // checkpoint.stamp.frequency_hz for count in (now, stopped))
    return here - there


def cntvct_at_the_stop(checkpoint: Checkpoint) -> int:
    """Return the guest's virtual counter from which a restore goes on."""
    return (checkpoint.cntvct - hidden_ticks(checkpoint)) % 2**64
