"""Time in an event loop.

`expiries` yields what expires on a `DeadlineAlarm`, and `catch_up` yields the steps of `vm.catch_up()`, each when it is
due.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

from guestclock._core import _claim, _release
from guestclock.errors import CapabilityMissing
from guestclock.live import live
from guestclock.pacing import moves_by_itself, rhythm
from guestclock.units import S

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from typing import Self

    from guestclock.model import DeadlineAlarm
    from guestclock.types import GuestVm, Step

_Expired_co = TypeVar("_Expired_co", bound=tuple[object, ...], covariant=True)

_IN_A_TURN = 64
"""The most that an iterator gives out in one turn of the loop, before other tasks have theirs."""


@live("its alarm is waited for here")
class expiries(Generic[_Expired_co]):  # noqa: N801 - called like a function, as `enumerate` is
    """Yields what expires on an alarm to an `async for`, when it does: `alarm.expire(at_most=at_most)`, never empty.

    What has expired is given out at the first look, without a wait, as by `asyncio.Queue.get`: under a timeout of 0
    too. After 64 times in one turn of the loop, other tasks have their turn first.

    The alarm's descriptor is in the loop only while the iterator waits. A task that is cancelled, while it waits or in
    the loop's body, has taken no more from the alarm than what the body was given: one timer, or `at_most`. This or
    another iterator goes on with the others. The iterator ends when the alarm is closed.

    AlarmInUse where another consumer waits on the alarm; CapabilityMissing where the event loop has no `add_reader`.
    """

    def __init__(self, alarm: DeadlineAlarm[_Expired_co], *, at_most: int = 1) -> None:
        self._alarm = alarm
        self._at_most = at_most
        self._given = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _Expired_co:
        if self._given >= _IN_A_TURN:
            # A guest that sets its timers into the past must not keep the loop from its other tasks.
            await asyncio.sleep(0)
        while _is_open(self._alarm):
            try:
                expired = self._alarm.expire(at_most=self._at_most)
                if not len(expired[-1]):  # type: ignore[arg-type]
                    await _readable(self._alarm)
                    continue
            except ValueError:
                # Another thread may have closed it meanwhile.
                if _is_open(self._alarm):
                    raise
                break
            if not self._given:
                asyncio.get_running_loop().call_soon(self._turn)
            self._given += 1
            return expired
        raise StopAsyncIteration

    def _turn(self) -> None:
        self._given = 0


def _is_open(alarm: DeadlineAlarm[tuple[object, ...]]) -> bool:
    return not alarm.closed


async def _readable(alarm: DeadlineAlarm[tuple[object, ...]]) -> None:
    """Waits until the alarm's descriptor is readable, or the alarm is closed."""
    _claim(alarm)
    try:
        loop, fd = asyncio.get_running_loop(), alarm.fileno()
        readable = loop.create_future()
        _add_reader(loop, fd, readable)
        try:
            await readable
        finally:
            loop.remove_reader(fd)
    finally:
        # Closing waits for this, so the descriptor can't have become another file's before its reader was removed.
        _release(alarm)


def _add_reader(loop: asyncio.AbstractEventLoop, fd: int, readable: asyncio.Future[None]) -> None:
    def wake() -> None:
        # A loop may call this again before the task that waits has run, or after it was cancelled.
        if not readable.done():
            readable.set_result(None)

    try:
        loop.add_reader(fd, wake)
    except NotImplementedError as error:
        raise CapabilityMissing(
            f"{type(loop).__name__} has no add_reader: run a loop that has one (asyncio.SelectorEventLoop, uvloop), or "
            "wait on the alarm with select in a thread, and call alarm.expire()",
            capability="add_reader",
        ) from error


async def catch_up(
    vm: GuestVm, *, sleep: Callable[[float], Awaitable[object]] | None = None
) -> AsyncGenerator[Step, None]:
    """Yields the steps that pay the VM's backlog back, each when it is due, to an `async for`.

    For each, stop all vCPUs, `step.apply()`, and let them go on. The generator waits as `vm.catch_up()` does: `sleep`
    takes seconds and waits instead of `asyncio.sleep`, and the VM's counter alone says whether a step is due; a step
    that wasn't applied comes again after 10 ms at least. The generator ends when there is no backlog, and over a
    counter that is moved by hand, without `sleep`, at the first step that isn't due or wasn't applied. A task that is
    cancelled here leaves the backlog as it is, and a later `catch_up` goes on with it.
    """
    for ns_or_step in rhythm({vm.name: vm}, waits=sleep is not None or moves_by_itself(vm.counter)):
        if isinstance(ns_or_step, int):
            await (sleep or asyncio.sleep)(ns_or_step / S)
        else:
            yield ns_or_step[1]
