"""A checkpoint's timers at one instant. The rules are the model's: each vCPU is put into it, and asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

from guestclock._core import ManualCounter, Vm
from guestclock.inspection.words import signed, to_ns
from guestclock.registers import Reg, Timer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guestclock._core import Checkpoint
    from guestclock.types import Counter

_ENABLE = 1
_IMASK = 2


class TimerRecord(TypedDict):
    """One timer of one vCPU."""

    vcpu: int
    timer: str
    """vtimer, ptimer, hvtimer or hptimer."""
    state: Literal["off", "masked", "armed", "overdue"]
    """Armed: its deadline is to come. Overdue: it has come, so its interrupt is pending. Masked: it has none."""
    ctl: int
    """CTL as it was saved, without ISTATUS."""
    cval: int
    """In guest ticks."""
    remaining_ticks: int
    """From the counter to CVAL; 0 or below where it has been reached."""
    remaining_ns: int
    """The same, rounded towards zero."""


def model_like(checkpoint: Checkpoint, counter: Counter, *, vcpus: int | None = None, kernel: str | None = None) -> Vm:
    """Return a model VM with the vCPUs (or so many), EL2 and timers of the checkpoint, its state not yet restored.

    ValueError for a kernel that isn't a preset; KvmError for one that can't have such a guest.
    """
    nested = checkpoint.cntvoff is not None
    return Vm(
        checkpoint.vcpus if vcpus is None else vcpus,
        counter=counter,
        kernel=kernel,
        nested=nested,
        e2h0=nested and "hvtimer_cval" not in checkpoint.columns(),
    )


def timers(checkpoint: Checkpoint, *, cntvct: int | None = None, cntpct: int | None = None) -> list[TimerRecord]:
    """Return every timer of every vCPU, as of the checkpoint, or when the VM's counters read `cntvct` and `cntpct`."""
    columns = checkpoint.columns()
    present = [timer for timer in Timer if f"{timer.name.lower()}_cval" in columns]
    ctls = {timer: columns[f"{timer.name.lower()}_ctl"].tolist() for timer in present}
    # CNTVOFF_EL2 is the same before and after, so both counts of a vCPU move as the VM's do.
    moved = {
        Reg.TIMER_CNT: 0 if cntvct is None else cntvct - checkpoint.cntvct,
        Reg.PTIMER_CNT: 0 if cntpct is None else cntpct - checkpoint.cntpct,
    }
    records: list[TimerRecord] = []
    for vcpu, vm in enumerate(_one_by_one(checkpoint, moved)):
        for timer in present:
            state = vm.timer(0, timer)
            ctl = ctls[timer][vcpu]
            # Reached is an unsigned comparison: a CVAL far ahead isn't one that has long passed.
            count = vm.cntvct(0) if timer is Timer.VTIMER else vm.cntpct(0)
            remaining = state.cval - count
            records.append(
                {
                    "vcpu": vcpu,
                    "timer": timer.name.lower(),
                    "state": _state(ctl, line=state.line),
                    "ctl": ctl,
                    "cval": state.cval,
                    "remaining_ticks": remaining,
                    "remaining_ns": to_ns(remaining, checkpoint.frequency_hz),
                }
            )
    return records


def skew_ticks(checkpoint: Checkpoint) -> int:
    """Return how far the virtual counter is ahead of the physical one; negative where it is behind."""
    return signed(checkpoint.cntvct - checkpoint.cntpct)


def _one_by_one(checkpoint: Checkpoint, moved: dict[Reg, int]) -> Iterator[Vm]:
    """Yield a VM of one vCPU that is each of the checkpoint's in turn: a file may have more than KVM allows a VM."""
    vm = model_like(checkpoint, ManualCounter(frequency_hz=checkpoint.frequency_hz), vcpus=1)
    known = set(vm.reg_list(0))
    for registers in checkpoint.to_one_regs():
        for reg, value in registers.items():
            if reg in known:
                vm.set_one_reg(0, reg, (value + moved.get(Reg(reg), 0)) % 2**64)
        yield vm


def _state(ctl: int, *, line: bool) -> Literal["off", "masked", "armed", "overdue"]:
    if not ctl & _ENABLE:
        return "off"
    if ctl & _IMASK:
        return "masked"
    return "overdue" if line else "armed"
