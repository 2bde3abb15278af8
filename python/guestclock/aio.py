"""Paying a guest back in an event loop: `catch_up` is `vm.catch_up()` with each step when it is due."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from guestclock.pacing import NS_PER_S, rhythm

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from guestclock import GuestVm, Step


async def catch_up(
    vm: GuestVm, *, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
) -> AsyncGenerator[Step, None]:
    """Give the steps that the VM's guest is owed, each when it is due, to an `async for`.

    For each, stop all vCPUs, `step.apply()`, and let them go on. It waits as `guestclock.pacing.paced` does: `sleep`
    takes seconds, and the VM's counter alone says whether a step is due; a step that wasn't applied is given again
    after 10 ms at least. It ends when nothing is owed. A task that is cancelled here leaves the debt as it is, and a
    later `catch_up` goes on with it.
    """
    for ns_or_step in rhythm(vm.catch_up()):
        if isinstance(ns_or_step, int):
            await sleep(ns_or_step / NS_PER_S)
        else:
            yield ns_or_step
