"""The claims of docs/accuracy.md, each as an interval that has to hold the truth: no figure is judged."""

from __future__ import annotations

import pytest

from accuracy.measure import DELAYS_MS, Row, machine, restored
from guestclock import Advance, Freeze


def row(policy: Freeze | Advance, method: str, delay_ms: int) -> Row:
    with machine() as (_, vm):
        if not vm.capabilities.counter_offset:
            pytest.skip("this kernel has no VM-wide offset, and no physical counter that could be set")
    return restored(policy, "offset" if method == "offset" else "by value", delay_ms)


def holds(interval: tuple[int, int], low: int, high: int | None = None) -> bool:
    """Whether something from `low` to `high` may be the truth."""
    return interval[0] <= (low if high is None else high) and low <= interval[1]


@pytest.mark.parametrize("delay_ms", DELAYS_MS)
@pytest.mark.parametrize("method", ["offset", "by value"])
def test_advance(method: str, delay_ms: int) -> None:
    """A delay between the sample and the setting is nothing to an offset, and the whole of a value's error."""
    seen = row(Advance(), method, delay_ms)
    if method == "offset":
        assert holds(seen.behind, 0), seen
    else:
        assert holds(seen.behind, *seen.held_up), seen
        assert not holds(seen.behind, 0), "a delay of a millisecond and more is seen"


@pytest.mark.parametrize("delay_ms", DELAYS_MS)
@pytest.mark.parametrize("method", ["offset", "by value"])
def test_freeze(method: str, delay_ms: int) -> None:
    """Either way the guest sees what comes after the last sample, and no more."""
    assert holds(row(Freeze(), method, delay_ms).behind, 0)


@pytest.mark.parametrize("method", ["offset", "by value"])
def test_skew(method: str) -> None:
    seen = row(Advance(), method, 1)
    assert holds(seen.vcpu_skew, 0), "a counter is the VM's, however it is set"
    assert method == "by value" or holds(seen.view_skew, 0), "one offset is both counters'"
    assert seen.view_skew[1] >= 0, "by value the physical counter is set later, and so behind"
