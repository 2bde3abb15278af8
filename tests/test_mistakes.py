"""Common mistakes: each gets one sentence with the way out, and nothing of the binding's insides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from guestclock import Advance, CatchUp, Checkpoint, Freeze, ManualCounter, ModelVm, Options, Reg, S
from guestclock.errors import NoSuchVm
from guestclock.model import ClockBank, DeadlineQueue
from guestclock.types import GuestVm

CHECKPOINT = ModelVm(counter=ManualCounter()).checkpoint()


def vm() -> ModelVm:
    return ModelVm(vcpus=2, counter=ManualCounter())


Wrong = Callable[[], object]
MISTAKES: dict[str, tuple[Wrong, type[Exception], str]] = {
    "a policy's class": (
        lambda: vm().restore(CHECKPOINT, Freeze),  # type: ignore[arg-type]
        TypeError,
        "<class 'guestclock.Freeze'> isn't a policy: give Freeze() [while processing 'policy']",
    ),
    "a policy's name": (
        lambda: vm().plan(CHECKPOINT, "advance"),  # type: ignore[arg-type]
        TypeError,
        "'advance' isn't a policy: give Advance() [while processing 'policy']",
    ),
    "a number for a counter": (
        lambda: ModelVm(counter=5),  # type: ignore[arg-type]
        TypeError,
        (
            "5 isn't a counter, since it has no frequency_hz: give a HostCounter, MonotonicCounter, ManualCounter or "
            "ScaledCounter, or an object with frequency_hz, read() and stamp()"
        ),
    ),
    "a negative time": (
        lambda: Advance(-1),
        OverflowError,
        "-1 is out of range: an integer from 0 to 18446744073709551615",
    ),
    "a time that is a float": (
        lambda: CatchUp(1e6, S),  # type: ignore[arg-type]
        TypeError,
        "1000000.0 isn't an integer [while processing 'step_ns']",
    ),
    "no such vCPU": (lambda: vm().cntvct(2), IndexError, "there is no vCPU 2: the VM has 2"),
    "a negative vCPU": (lambda: vm().cntvct(-1), IndexError, "there is no vCPU -1: they count from 0"),
    "an offset that is a bool": (
        lambda: vm().set_counter_offset(True),
        TypeError,
        "True isn't an integer [while processing 'offset']",
    ),
    "an option that isn't one": (
        lambda: vm().plan(CHECKPOINT, Freeze(), view="refuse"),  # type: ignore[call-arg]
        TypeError,
        "unexpected keyword argument 'view'",
    ),
    "an option of another type": (
        lambda: vm().plan(CHECKPOINT, options=Options(rate_error_ppb=True)),
        TypeError,
        "rate_error_ppb: True isn't an integer",
    ),
    "a path for a checkpoint": (
        lambda: vm().restore("web-1.time"),  # type: ignore[arg-type]
        TypeError,
        "'str' object is not an instance of 'Checkpoint' [while processing 'checkpoint']",
    ),
    "a huge list": (
        lambda: vm().cntvct([0] * 1_000_000),  # type: ignore[arg-type]
        TypeError,
        "a list of length 1000000 isn't an integer [while processing 'vcpu']",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_a_sentence(mistake: str) -> None:
    wrong, error, sentence = MISTAKES[mistake]
    with pytest.raises(error) as raised:
        wrong()
    assert raised.type is error
    # The name of the argument stands in a note, which a traceback shows below the message.
    named = "".join(f" [{note}]" for note in getattr(raised.value, "__notes__", []))
    assert sentence in str(raised.value) + named


class Index:
    """An integer by its protocol alone."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def test_an_integer_is_whatever_has_an_index() -> None:
    opted = vm()
    opted.opt_in(offset=Index(-5))
    opted.set_one_reg(1, Reg.TIMER_CVAL, Index(7))
    assert opted.get_one_reg(1, Reg.TIMER_CVAL) == 7
    vm().set_counter_offset(np.uint64(2**64 - 1))
    queue = DeadlineQueue()
    queue.set_offset(queue.add_group(1, offset=Index(-1)), Index(3))
    assert queue.offset(0) == 3
    bank = ClockBank(ManualCounter())
    handle = Index(bank.add())
    assert handle in bank
    assert bank.vm(handle).vcpus == 1
    bank.remove(handle)
    assert handle not in bank
    assert CHECKPOINT[Index(0)].vcpus == 1
    lists = CHECKPOINT.to_one_regs()
    made = Checkpoint.from_one_regs(lists, frequency_hz=62_500_000, host=CHECKPOINT.stamp, counter_offset=Index(-1))
    assert made.opted_in


class Broken:
    """An object whose protocol fails."""

    def __index__(self) -> int:
        raise KeyboardInterrupt


def test_an_index_that_is_interrupted_stays_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        vm().get_one_reg(0, Broken())  # type: ignore[arg-type]


def removed() -> GuestVm:
    bank = ClockBank(ManualCounter())
    handle = bank.add(2)
    view = bank.vm(handle)
    bank.remove(handle)
    return view


USES: dict[str, Callable[[GuestVm], object]] = {
    "cntvct": lambda view: view.cntvct(0),
    "cntvct at an instant": lambda view: view.cntvct(0, 5),
    "timer": lambda view: view.timer(0, 0),
    "get_one_reg": lambda view: view.get_one_reg(0, Reg.TIMER_CVAL),
    "set_one_reg": lambda view: view.set_one_reg(0, Reg.TIMER_CVAL, 1),
    "reg_list": lambda view: view.reg_list(0),
    "next_deadline": lambda view: view.next_deadline(0),
    "opt_in": lambda view: view.opt_in(),
    "set_counter_offset": lambda view: view.set_counter_offset(1),
    "checkpoint": lambda view: view.checkpoint(),
    "plan": lambda view: view.plan(CHECKPOINT),
    "restore": lambda view: view.restore(CHECKPOINT),
    "pause": lambda view: view.pause(),
    "running": lambda view: view.running(0).__enter__(),
    "next_step": lambda view: view.next_step(),
    "state": lambda view: view.state,
    "opted_in": lambda view: view.opted_in,
    "vcpus": lambda view: view.vcpus,
    "backlog_ticks": lambda view: view.backlog_ticks,
}


@pytest.mark.parametrize("use", USES)
def test_a_removed_vm_is_one_error_everywhere(use: str) -> None:
    with pytest.raises(NoSuchVm) as raised:
        USES[use](removed())
    assert "removed" in str(raised.value)
