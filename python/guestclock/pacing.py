"""Steps of a catch-up at the right times: the rule of `catch_up` of a VM, of a fleet, and of `guestclock.aio`."""

from __future__ import annotations

import reprlib
import time
from typing import TYPE_CHECKING, Final

from guestclock._core import ManualCounter, ScaledCounter
from guestclock.units import S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from guestclock.types import Counter, GuestVm, Step

LEAST_NS: Final = 10**6
"""The shortest sleep: no interval is so short that waiting for it becomes a busy loop."""
MOST_NS: Final = S
"""The longest sleep before the counter is read again: a sleep goes by another clock, which may be slewed or stop."""
BACK_OFF_NS: Final = 10 * LEAST_NS
"""The shortest time until a step that wasn't applied comes again: each try stops all vCPUs."""


def steps(vm: GuestVm, sleep: Callable[[float], object] | None) -> Iterator[Step]:
    """Yields the steps of the VM's backlog, each when it is due: the result of `vm.catch_up(sleep=sleep)`."""
    return (step for _, step in fleet_steps({vm.name: vm}, sleep))


def fleet_steps(vms: Mapping[str, GuestVm], sleep: Callable[[float], object] | None) -> Iterator[tuple[str, Step]]:
    """Returns the steps of the VMs' backlogs, each when it is due, with its VM's name: an iterator.

    A sleep ends at a signal, as `time.sleep` does. TypeError for a `sleep` that can't be called.
    """
    if sleep is not None and not callable(sleep):
        raise TypeError(f"sleep is a function of seconds, and {reprlib.repr(sleep)} is none")
    return _fleet_steps(vms, sleep)


def _fleet_steps(vms: Mapping[str, GuestVm], sleep: Callable[[float], object] | None) -> Iterator[tuple[str, Step]]:
    waits = sleep is not None or all(moves_by_itself(vm.counter) for vm in vms.values())
    for ns_or_step in rhythm(vms, waits=waits):
        if isinstance(ns_or_step, int):
            (sleep or time.sleep)(ns_or_step / S)
        else:
            yield ns_or_step


def rhythm(vms: Mapping[str, GuestVm], *, waits: bool) -> Iterator[int | tuple[str, Step]]:
    """Yields the next action: a sleep, in nanoseconds, or a step that is due and its VM's name.

    The wait is computed again after each sleep: a restore may have changed a backlog. A sleep lasts 1 ms at least and
    1 s at most, and there is one between any two steps of a VM. A step that wasn't applied comes again after 10 ms at
    least. Without `waits` there is no sleep, and the iteration ends where no VM has a step that is due and new.
    """
    given: dict[str, tuple[int, int]] = {}
    held: dict[str, int] = {}
    while True:
        first: tuple[int, str, Step] | None = None
        for name, vm in vms.items():
            if (step := vm.next_step()) is None:
                continue
            this = (step.due_at, step.backlog_ticks)
            last, left_ns = given.get(name), step.wait_ns()
            if not waits:
                if left_ns > 0 or this == last:
                    continue
                left_ns = 0
            elif last is not None:
                held[name] = BACK_OFF_NS if this == last else LEAST_NS
                del given[name]
            left_ns = max(left_ns, held.get(name, 0))
            if first is None or left_ns < first[0]:
                first = left_ns, name, step
        if first is None:
            return
        left_ns, name, step = first
        if left_ns > 0:
            slept_ns = min(max(left_ns, LEAST_NS), MOST_NS)
            yield slept_ns
            held = {name: ns - slept_ns for name, ns in held.items() if ns > slept_ns}
        else:
            given[name] = step.due_at, step.backlog_ticks
            yield name, step


def moves_by_itself(counter: Counter) -> bool:
    """Returns whether the counter moves without being moved by hand."""
    while isinstance(counter, ScaledCounter):
        counter = counter.counter
    by_itself: bool = getattr(counter, "moves_by_itself", True)
    return by_itself and not isinstance(counter, ManualCounter)
