"""The demonstration's VMM over a guestclock that does something wrong: what PLANT names. For `test_demo.py`."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from guestclock import ModelVm, Reg
from guestclock.adapters.unicorn import UnicornTimer
from guestclock.demo import unicorn_vmm as vmm
from guestclock.model import sysreg

MS = vmm.HZ // 1_000
CNTVOFF = sysreg("CNTVOFF_EL2")


def move(vm: ModelVm, ticks: int) -> None:
    """Moves the guest's clocks forward, or back."""
    vm.set_counter_offset((-vm.cntvct(0, now=0) - ticks) % 2**64)


def move_alarm(vm: ModelVm, ticks: int) -> None:
    vm.set_one_reg(0, Reg.TIMER_CVAL, (vm.get_one_reg(0, Reg.TIMER_CVAL) + ticks) % 2**64)


def once(what: Callable[[], object]) -> None:
    """Does it in the first process that gets here, and never again."""
    done = Path(os.environ["PLANTED"])
    if not done.exists():
        done.touch()
        what()


def lose(vm: ModelVm) -> None:
    vmm.PATIENCE_S = 1
    vm.set_one_reg(1, Reg.TIMER_CTL, 0)


def far(vm: ModelVm) -> None:
    vmm.PATIENCE_S = 1
    move_alarm(vm, 90_000 * MS)


def later(vm: ModelVm) -> None:
    """Moves the clock 40 ms after the restore, between two rounds."""
    released, run = time.monotonic(), vmm.Vmm._run_to_alarm
    moved: list[bool] = []

    def moving(self: vmm.Vmm, number: int, vcpu: vmm.Vcpu) -> None:
        if not moved and time.monotonic() - released > 0.04:
            moved.append(True)
            move(vm, 1_000 * MS)
        run(self, number, vcpu)

    vmm.Vmm._run_to_alarm = moving  # type: ignore[method-assign]


def apart(_vm: ModelVm) -> None:
    """Has vCPU 1 read its own CNTVOFF_EL2."""
    sync = UnicornTimer.sync

    def wrong(self: UnicornTimer) -> None:
        sync(self)
        if self._vcpu == 1:
            self._uc.cpr_write(*CNTVOFF, (self._uc.cpr_read(*CNTVOFF) - MS) % 2**64)

    UnicornTimer.sync = wrong  # type: ignore[method-assign]


def slow(_vm: ModelVm) -> None:
    """Has the guest's counters run slow by a thousandth, as by a wrong CNTFRQ."""
    sync, released = UnicornTimer.sync, vmm.host_ticks()

    def wrong(self: UnicornTimer) -> None:
        sync(self)
        behind = (vmm.host_ticks() - released) // 100
        self._uc.cpr_write(*CNTVOFF, (self._uc.cpr_read(*CNTVOFF) + behind) % 2**64)

    UnicornTimer.sync = wrong  # type: ignore[method-assign]


AFTER: dict[str, Callable[[ModelVm], object]] = {
    "nothing": lambda _: None,
    "release 1 s late": lambda _: time.sleep(1),
    "release 1 s late, the first time": lambda _: once(lambda: time.sleep(1)),
    "release 20 ms late": lambda _: time.sleep(0.02),
    "alarm 250 ms late": lambda vm: move_alarm(vm, 250 * MS),
    "alarm 10 ms early": lambda vm: move_alarm(vm, -10 * MS),
    "alarm 90 s late": far,
    "alarm lost": lose,
    "1 s forward after 40 ms": later,
    "1 s back": lambda vm: move(vm, -1_000 * MS),
    "1 tick forward": lambda vm: move(vm, 1),
    "1 tick back": lambda vm: move(vm, -1),
    "vCPUs apart": apart,
    "slow": slow,
}
"""What is done to a VM that was restored, before `release` comes back."""


class Restore:
    """A restore that goes wrong at its end."""

    def __init__(self, restore: Any, vm: ModelVm) -> None:
        self._restore, self._vm, self.plan = restore, vm, restore.plan

    def __enter__(self) -> Self:
        self._restore.__enter__()
        return self

    def __exit__(self, *raised: object) -> Any:
        return self._restore.__exit__(*raised)

    def apply(self, **options: Any) -> None:
        self._restore.apply(**options)

    def release(self, **options: Any) -> Any:
        report = self._restore.release(**options)
        AFTER[os.environ["PLANT"]](self._vm)
        return report


class Planted:
    """A VM of which each restore goes wrong."""

    def __init__(self, vm: ModelVm) -> None:
        self._vm = vm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vm, name)

    def restoring(self, *arguments: Any, **options: Any) -> Restore:
        return Restore(self._vm.restoring(*arguments, **options), self._vm)


def planted(begin: Callable[..., None], self: vmm.Vmm, *arguments: Any) -> None:
    begin(self, *arguments)
    self.vm = Planted(self.vm)  # type: ignore[assignment]


def paid_twice(pay: Callable[[vmm.Vmm], None], self: vmm.Vmm) -> None:
    before = len(self.steps)
    pay(self)
    if len(self.steps) > before:
        move(self.vm, 5 * MS)
        self.sync()


if __name__ == "__main__":
    if os.environ["PLANT"] == "fails":
        sys.exit("the VMM fell over")
    if os.environ["PLANT"] == "a step gives too much":
        vmm.Vmm._pay = functools.partialmethod(functools.partial(paid_twice, vmm.Vmm._pay))  # type: ignore[assignment]
        os.environ["PLANT"] = "nothing"
    vmm.Vmm.__init__ = functools.partialmethod(functools.partial(planted, vmm.Vmm.__init__))  # type: ignore[method-assign,assignment]
    vmm.main()
