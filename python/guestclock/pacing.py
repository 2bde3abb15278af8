"""Steps of a catch-up at the right times: `for step in paced(vm.catch_up())` waits for each step.

`guestclock.aio.catch_up` does the same in an event loop, by the same rule.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from guestclock import Step

NS_PER_S: Final = 10**9
LEAST_NS: Final = 10**6
"""The shortest sleep: no interval is so short that waiting for it becomes a busy loop."""
MOST_NS: Final = NS_PER_S
"""The longest sleep before the counter is read again: a sleep goes by another clock, which may be slewed or stop."""
BACK_OFF_NS: Final = 10 * LEAST_NS
"""The shortest time until a step that wasn't applied comes again: each try stops all vCPUs."""


def paced(steps: Iterable[Step], *, sleep: Callable[[float], object] = time.sleep) -> Iterator[Step]:
    """Yields the steps, each when it is due.

    `sleep` takes seconds, and is a hint: the VM's counter alone says whether a step is due, and is read again after
    each sleep. A sleep lasts 1 ms at least and 1 s at most, and there is one between any two steps, so shorter
    intervals become 1 ms. A step that wasn't applied (VcpuRunning, RestoreOpen) comes again after 10 ms at least.
    Leaving the loop at any time leaves the backlog that the applied steps haven't paid back.
    """
    for ns_or_step in rhythm(steps):
        if isinstance(ns_or_step, int):
            sleep(ns_or_step / NS_PER_S)
        else:
            yield ns_or_step


def rhythm(steps: Iterable[Step]) -> Iterator[int | Step]:
    """Yields the next action: a sleep, in nanoseconds, or a step that is due.

    `steps` yields the same step until it has been applied, and another when a restore has changed the backlog. So the
    wait is computed again after each sleep.
    """
    given = None
    for step in steps:
        left_ns = step.wait_ns()
        this = (step.due_at, step.backlog_ticks)
        if given is not None:
            yield _clamped(left_ns, least=BACK_OFF_NS if this == given else LEAST_NS)
            given = None
        elif left_ns > 0:
            yield _clamped(left_ns, least=LEAST_NS)
        else:
            given = this
            yield step


def _clamped(ns: int, *, least: int) -> int:
    return min(max(ns, least), MOST_NS)
