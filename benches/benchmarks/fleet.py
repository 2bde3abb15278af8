"""Many vCPUs whose timers fire and are armed again, a hundredth of them each turn: in a bank, and in numpy's columns.

In each turn time goes on, a hundredth of all timers comes to be due, and everything is looked at. Then those timers are
armed for the next time that it is their turn. Both sides do so by one call a timer, after what is timed: they are not
about writing, and whoever worked anything out while writing would be seen in `Armed`, where it is timed.
"""

from __future__ import annotations

import itertools
import time
from typing import Any, Literal

VCPUS = (1, 64, 4096, 65536)
TURNS = 100
"""After so many each timer has had its turn."""
TICKS = 1 << 20
"""Ticks that pass in a turn."""
BEGIN = 1 << 50
IN_A_VM = 8


class Fleet:
    """The bank, and what happens in each turn; the turns repeat, time goes on."""

    def __init__(self, vcpus: int, timers: Literal[2, 4] = 4, in_a_vm: int = IN_A_VM) -> None:
        import numpy as np

        from guestclock import ManualCounter, Timer
        from guestclock.model import ClockBank

        self.timers = (Timer.VTIMER, Timer.PTIMER, Timer.HVTIMER, Timer.HPTIMER)[:timers]
        self.vcpus = vcpus
        self.host = ManualCounter(BEGIN, frequency_hz=10**9)
        self.bank = ClockBank(self.host, timers=timers)
        in_a_vm = min(vcpus, in_a_vm)
        vms = self.bank.add_many(vcpus // in_a_vm, in_a_vm, nested=timers == 4)
        chance = np.random.default_rng(20261122)
        self.bank.set_offsets(vms, chance.integers(0, BEGIN // 2, vms.size, np.uint64))
        self.vms, self.handles = self.bank.vms(), self.bank.vcpus()
        self.offsets = self.bank.offsets()
        # The first timer goes by the virtual counter, all others by the physical one.
        self.offset_of = [self.offsets[0], *[self.offsets[1]] * (timers - 1)]
        turn = chance.integers(0, TURNS, (timers, vcpus))
        self.deadline = np.uint64(BEGIN + 1) + turn.astype(np.uint64) * np.uint64(TICKS)
        self.deadline += chance.integers(0, TICKS, turn.shape, np.uint64)
        self.cval = np.stack([due - off for due, off in zip(self.deadline, self.offset_of, strict=True)])
        # Of eight one is disabled, and one masked.
        self.ctl = np.array([1, 1, 1, 1, 1, 1, 0, 3], np.uint8)[chance.integers(0, 8, turn.shape)]
        for timer, cval, ctl in zip(self.timers, self.cval, self.ctl, strict=True):
            self.bank.set_timers(timer, self.handles, cval, ctl)
        self.rows = [[np.flatnonzero(one == number) for one in turn] for number in range(TURNS)]
        self.again = [
            [
                (self.handles[some], some, cval[some], ctl[some])
                for some, cval, ctl in zip(rows, self.cval, self.ctl, strict=True)
            ]
            for rows in self.rows
        ]

    def plain(self) -> dict[str, Any]:
        """Columns of a checkpoint of all VMs, except those with one value for all rows."""
        import numpy as np

        first = np.arange(0, self.vcpus, self.vcpus // self.vms.size)
        cntvct = np.uint64(BEGIN) - self.offsets[0, first]
        return {"names": self.vms.view(np.uint64), "cntvct": cntvct, "cval": self.cval, "ctl": self.ctl}


class LiveUpdate:
    """VMs with two vCPUs each go on in another bank, in which they have been made: time arithmetic and the codec.

    Both banks have their deadline queues, and the last phase asks the target's for the next line to go high.
    """

    PHASES = ("pause", "checkpoint", "to bytes", "from bytes", "restore", "next deadlines")
    BLACKOUT = 10**6

    def __init__(self, vcpus: int) -> None:
        import numpy as np

        from guestclock import Fleet as NamedVms

        here, there = (Fleet(vcpus, 2, in_a_vm=2) for _ in range(2))
        self.source, self.target = here.bank, there.bank
        self.hosts, self.vms, self.into = (here.host, there.host), NamedVms(here.bank), NamedVms(there.bank)
        self.now = BEGIN
        for bank in (self.source, self.target):
            bank.expire(BEGIN)
        # Time that goes on leaves the offsets as they were.
        offsets, at = self.source.offsets(), self.now + self.BLACKOUT
        deadlines = self.source.next_deadlines(at)
        self.take()
        np.testing.assert_array_equal(self.target.offsets(), offsets, strict=True)
        np.testing.assert_array_equal(self.target.next_deadlines(at), deadlines, strict=True)

    def take(self) -> list[int]:
        """The ns of each phase. Afterwards the source runs on, for the next time."""
        from guestclock import Advance, Elapsed

        now = self.now
        clock = time.perf_counter_ns
        begin = clock()
        pause = self.vms.pause()
        paused = clock()
        checkpoints = self.vms.checkpoint()
        taken = clock()
        data = checkpoints.to_bytes()
        encoded = clock()
        checkpoints = type(checkpoints).from_bytes(data)
        self.hosts[1].advance(self.BLACKOUT)
        decoded = clock()
        self.into.restore(checkpoints, Advance(), elapsed=Elapsed.by_counter())
        restored = clock()
        self.target.next_deadlines_of_vms(now + self.BLACKOUT)
        self.target.next_deadline(now + self.BLACKOUT)
        stamps = (begin, paused, taken, encoded, decoded, restored, clock())
        self.now += 2 * self.BLACKOUT
        for host in self.hosts:
            host.advance(self.now - host.read())
        pause.resume()
        return [end - start for start, end in itertools.pairwise(stamps)]


class Side:
    """One side's own time."""

    def __init__(self, fleet: Fleet) -> None:
        import numpy as np

        self.fleet, self.now, self.turn, self.uint64 = fleet, BEGIN, 0, np.uint64

    def evaluate(self) -> None:
        """Time goes on; every ISTATUS and line, and each vCPU's next deadline."""
        raise NotImplementedError

    def arm(self, timer: int, handles: Any, rows: Any, cval: Any, ctl: Any) -> None:
        raise NotImplementedError

    def rearm(self) -> None:
        """Arms each timer that was due in this turn for its next one."""
        later = self.uint64((self.turn // TURNS + 1) * TURNS * TICKS)
        for timer, (handles, rows, cval, ctl) in enumerate(self.fleet.again[self.turn % TURNS]):
            self.arm(timer, handles, rows, cval + later, ctl)
        self.turn += 1

    def whole_turn(self) -> None:
        self.evaluate()
        self.rearm()


class InBank(Side):
    def __init__(self, fleet: Fleet) -> None:
        import numpy as np

        super().__init__(fleet)
        self.bank = fleet.bank
        shape = len(fleet.timers), fleet.vcpus
        self.istatus, self.line = np.empty(shape, np.bool_), np.empty(shape, np.bool_)
        self.deadlines = np.empty(fleet.vcpus, np.uint64)
        self.out = self.istatus, self.line, self.deadlines

    def evaluate(self) -> None:
        self.now += TICKS
        self.bank.evaluate(self.now, out=self.out)

    def arm(self, timer: int, handles: Any, rows: Any, cval: Any, ctl: Any) -> None:
        self.bank.set_timers(self.fleet.timers[timer], handles, cval, ctl)


class InNumpy(Side):
    def __init__(self, fleet: Fleet) -> None:
        from baselines import Timers

        super().__init__(fleet)
        self.columns = Timers(fleet.offsets, fleet.cval, fleet.ctl)
        self.istatus, self.line, self.deadlines = self.columns.istatus, self.columns.line, self.columns.deadlines

    def evaluate(self) -> None:
        self.now += TICKS
        self.columns.evaluate(self.now)

    def arm(self, timer: int, handles: Any, rows: Any, cval: Any, ctl: Any) -> None:
        self.columns.arm(timer, rows, cval, ctl)


def agreed(bank: InBank, columns: InNumpy, turns: int = TURNS + 10) -> None:
    """Take turns on both, and see that they come to the same; and that a hundredth changes in each."""
    import numpy as np

    before = columns.istatus.copy()
    changed = 0
    for _ in range(turns):
        for side in (bank, columns):
            side.evaluate()
        for one, other in (
            (bank.istatus, columns.istatus),
            (bank.line, columns.line),
            (bank.deadlines, columns.deadlines),
        ):
            np.testing.assert_array_equal(one, other, strict=True)
        changed += int(np.count_nonzero(columns.istatus != before))
        before = columns.istatus.copy()
        for side in (bank, columns):
            side.rearm()
    if changed < turns * before.size // 100:
        raise AssertionError(f"only {changed} changes in {turns} turns of {before.size} timers")
