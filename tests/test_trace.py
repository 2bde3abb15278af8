"""A trace has every primitive call of every verb, in order, with what was written, read and answered."""

from __future__ import annotations

import errno
from itertools import pairwise
from typing import Any

import pytest

from guestclock import Advance, CatchUp, Freeze, ManualCounter, ModelVm, Reg
from guestclock.errors import Interrupted, KvmError, ReadBackMismatch
from guestclock.testing import Fault, FaultyVm, TracedVm
from guestclock.types import TracedCall
from vms import HZ, host, owned


def of_verb(vm: TracedVm, verb: str | None) -> list[TracedCall]:
    return [call for call in vm.calls if call.verb == verb]


def names(calls: list[TracedCall]) -> list[str]:
    return [str(call) for call in calls]


def test_a_restore_is_recorded_call_by_call() -> None:
    counter = host()
    checkpoint = owned(counter, 1, cntvct=77, name="web-1").checkpoint()
    counter.advance(5)
    vm = TracedVm(ModelVm(1, counter=counter, name="web-1"))
    vm.restore(checkpoint)
    offset = checkpoint.stamp.count - 77
    # A fresh timer's CTL reads with ISTATUS.
    assert [(call.verb, str(call), call.value) for call in vm.calls if call.verb in {"prepare", "apply"}] == [
        ("prepare", "stopped", None),
        ("prepare", "get_one_reg 0 TIMER_CTL", 4),
        ("prepare", "set_counter_offset", offset + 5),
        ("prepare", "get_one_reg 0 TIMER_CNT", 77),
        ("apply", "stopped", None),
        ("apply", "set_one_reg 0 TIMER_CVAL", 0),
        ("apply", "get_one_reg 0 TIMER_CVAL", 0),
        ("apply", "set_one_reg 0 TIMER_CTL", 0),
        ("apply", "get_one_reg 0 TIMER_CTL", 4),
        ("apply", "set_one_reg 0 PTIMER_CVAL", 0),
        ("apply", "get_one_reg 0 PTIMER_CVAL", 0),
        ("apply", "set_one_reg 0 PTIMER_CTL", 0),
        ("apply", "get_one_reg 0 PTIMER_CTL", 4),
        ("apply", "get_one_reg 0 TIMER_CNT", 77),
    ]
    last = of_verb(vm, "release")[-2]
    assert (last.vm, last.operation, last.vcpu, last.reg) == ("web-1", "set_counter_offset", None, None)
    assert {call.errno for call in vm.calls} == {0}
    assert vm.dropped == 0
    assert all(one.began_ns + one.took_ns <= other.began_ns for one, other in pairwise(vm.calls))


def test_every_verb_is_named() -> None:
    counter = host()
    vm = TracedVm(ModelVm(1, counter=counter))
    vm.opt_in()
    vm.get_one_reg(0, Reg.TIMER_CVAL)
    with vm.pause(CatchUp(10**6, 10**6)):
        counter.advance(HZ)
    step = vm.next_step()
    assert step is not None
    counter.advance(HZ)
    step.apply()
    checkpoint = vm.checkpoint()
    with pytest.raises(ZeroDivisionError), vm.restoring(checkpoint):
        raise ZeroDivisionError
    vm.restore(checkpoint)
    begun = list(dict.fromkeys(call.verb for call in vm.calls))
    verbs = [
        "opt_in",
        None,
        "pause",
        "resume",
        "catch_up",
        "checkpoint",
        "plan",
        "prepare",
        "give_up",
        "apply",
        "release",
    ]
    assert begun == verbs
    assert vm.cntvct(0) == vm.vm.cntvct(0)


def test_the_ring_keeps_the_latest_calls() -> None:
    vm = TracedVm(ModelVm(1, counter=host()), most_calls=3)
    for value in range(5):
        vm.set_one_reg(0, Reg.TIMER_CVAL, value)
    assert ([call.value for call in vm.calls], vm.dropped) == ([2, 3, 4], 2)
    vm.clear()
    assert (vm.calls, vm.dropped) == ([], 0)
    vm.reg_list(0)
    assert [(str(call), call.value) for call in vm.calls] == [("reg_list 0", len(ModelVm(1).reg_list(0)))]
    for most_calls in (0, 2**20 + 1):
        with pytest.raises(ValueError, match="most_calls"):
            TracedVm(ModelVm(1), most_calls=most_calls)


def test_what_was_answered_is_recorded_too() -> None:
    vm = ModelVm(1, counter=host())
    faulty = FaultyVm(vm, [Fault("set_one_reg", errno=errno.EIO)])
    with pytest.raises(KvmError):
        faulty.set_one_reg(0, Reg.TIMER_CVAL, 5)
    with pytest.raises(KvmError):
        faulty.set_one_reg(0, 0x6030_0000_0013_0000, 5)
    assert [(call.value, call.errno) for call in faulty.calls] == [(5, errno.EIO), (5, errno.ENOENT)]


def test_only_a_vm_with_calls_of_its_own_is_traced() -> None:
    traced: Any = TracedVm(ModelVm(1))
    with pytest.raises(TypeError, match="a ModelVm or a KvmVm"):
        TracedVm(traced)
    with pytest.raises(TypeError, match="a ModelVm or a KvmVm"):
        FaultyVm(traced, [])


@pytest.mark.parametrize("vcpus", [1, 2, 8])
@pytest.mark.parametrize("policy", [Freeze(), Advance(), Advance(max_ns=1000)], ids=["freeze", "advance", "capped"])
def test_the_calls_of_a_restore_are_within_their_budget(vcpus: int, policy: Freeze | Advance) -> None:
    """docs/faults.md: a plan and three steps on the VM, and on each vCPU 2 calls a register and 4 more."""
    counter = host()
    checkpoint = owned(counter, vcpus).checkpoint()
    vm = TracedVm(ModelVm(vcpus, counter=counter))
    vm.restore(checkpoint, policy)
    whole = [call for call in names(vm.calls) if call in {"stopped", "set_counter_offset", "reg_list 0"}]
    assert sorted(whole) == ["reg_list 0", *["set_counter_offset"] * 2, *["stopped"] * 4]
    per_vcpu = [call for call in vm.calls if call.vcpu is not None and call.operation != "reg_list"]
    assert len(per_vcpu) == vcpus * (4 + 3 * 4)


def test_a_dropped_write_and_a_wrong_read_are_found() -> None:
    counter = ManualCounter(10**12)
    checkpoint = owned(counter).checkpoint()
    # The guest would see the time until the release, if the last offset weren't written.
    slow = Fault("release", delay_ticks=HZ)
    for fault, step in (
        (Fault("set_counter_offset", dropped=True), "reading the counters back"),
        (Fault("set_one_reg 1 PTIMER_CVAL", dropped=True), "reading back"),
        (Fault("get_one_reg 1 TIMER_CVAL", flipped=1 << 40), "reading back"),
        (Fault("get_one_reg 0 TIMER_CNT", nth=2, flipped=1 << 40), "reading the counters back"),
        (Fault("set_counter_offset", nth=1, dropped=True), "reading the counters back"),
    ):
        vm = owned(counter, cntvct=5)
        vm.set_one_reg(1, Reg.PTIMER_CVAL, 3)
        counter.advance(HZ)
        faulty = FaultyVm(vm, [fault, slow])
        with pytest.raises(ReadBackMismatch) as caught:
            faulty.restore(checkpoint)
        assert caught.value.step == step, fault
        assert isinstance(caught.value, Interrupted)
        # Who restores again gets there.
        faulty.restore(checkpoint)
        assert (vm.cntvct(0), vm.get_one_reg(1, Reg.PTIMER_CVAL)) == (1000, 0)


def test_a_fault_that_lies_has_to_be_where_there_is_something_to_lie_about() -> None:
    vm = ModelVm(1)
    for fault in (Fault(dropped=True), Fault("get_one_reg", dropped=True), Fault("apply", dropped=True)):
        with pytest.raises(ValueError, match="only a write can be dropped"):
            FaultyVm(vm, [fault])
    for fault in (Fault(flipped=1), Fault("set_one_reg", flipped=1), Fault("stopped", flipped=1)):
        with pytest.raises(ValueError, match="only a register is read wrongly"):
            FaultyVm(vm, [fault])
