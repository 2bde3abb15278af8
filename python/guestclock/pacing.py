"""Steps of a catch-up at the right times: the rule of `GuestVm.catch_up` and of `guestclock.aio.catch_up`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from guestclock._core import ManualCounter, ScaledCounter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from guestclock import Counter, GuestVm, Step

NS_PER_S: Final = 10**9
LEAST_NS: Final = 10**6
"""The shortest sleep: no interval is so short that waiting for it becomes a busy loop."""
MOST_NS: Final = NS_PER_S
"""The longest sleep before the counter is read again: a sleep goes by another clock, which may be slewed or stop."""
BACK_OFF_NS: Final = 10 * LEAST_NS
"""The shortest time until a step that wasn't applied comes again: each try stops all vCPUs."""


def steps(vm: GuestVm, sleep: Callable[[float], object] | None) -> Iterator[Step]:
    """Yields the steps of the VM's backlog, each when it is due: the result of `vm.catch_up(sleep=sleep)`.

    A sleep ends at a signal, as `time.sleep` does.
    """
    for ns_or_step in rhythm(vm, waits=sleep is not None or moves_by_itself(vm.counter)):
        if isinstance(ns_or_step, int):
            (sleep or time.sleep)(ns_or_step / NS_PER_S)
        else:
            yield ns_or_step


def rhythm(vm: GuestVm, *, waits: bool) -> Iterator[int | Step]:
    """Yields the next action: a sleep, in nanoseconds, or a step that is due.

    The wait is computed again after each sleep: a restore may have changed the backlog. A sleep lasts 1 ms at least and
    1 s at most, and there is one between any two steps. A step that wasn't applied comes again after 10 ms at least.
    Without `waits` there is no sleep, and the first step that isn't due, or wasn't applied, ends the iteration.
    """
    given = None
    while (step := vm.next_step()) is not None:
        left_ns = step.wait_ns()
        this = (step.due_at, step.backlog_ticks)
        if not waits:
            if left_ns > 0 or this == given:
                return
            given = this
            yield step
        elif given is not None:
            yield _clamped(left_ns, least=BACK_OFF_NS if this == given else LEAST_NS)
            given = None
        elif left_ns > 0:
            yield _clamped(left_ns, least=LEAST_NS)
        else:
            given = this
            yield step


def moves_by_itself(counter: Counter) -> bool:
    """Returns whether the counter moves without being moved by hand."""
    while isinstance(counter, ScaledCounter):
        counter = counter.counter
    by_itself: bool = getattr(counter, "moves_by_itself", True)
    return by_itself and not isinstance(counter, ManualCounter)


def _clamped(ns: int, *, least: int) -> int:
    return min(max(ns, least), MOST_NS)
