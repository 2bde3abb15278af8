"""On a real kernel: the calls of every verb are the model's, and a fault at each of them ends as on the model."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from guestclock import Checkpoint, KvmVm, ManualCounter, ModelVm, Reg
from guestclock.errors import Crashed, Interrupted, KvmError, ReadBackMismatch
from guestclock.testing import Fault, FaultyVm, TracedVm
from kvm_vmm import Machine
from vms import texts

CVAL = 2**40


@contextmanager
def fresh() -> Iterator[tuple[Machine, KvmVm]]:
    machine = Machine(2)
    try:
        yield machine, KvmVm(machine.vm_fd, machine.vcpu_fds, gic_fd=machine.gic_fd)
    finally:
        machine.close()


def has_offset(vm: KvmVm) -> bool:
    return bool(vm.capabilities.counter_offset)


@pytest.fixture
def checkpoint() -> Iterator[Checkpoint]:
    """Of a guest that has opted in where it can, 10 s behind its host, with a timer that isn't due."""
    with fresh() as (machine, vm):
        if has_offset(vm):
            vm.set_counter_offset(10 * vm.frequency_hz)
        machine.set_one_reg(1, Reg.TIMER_CVAL, CVAL)
        yield vm.checkpoint()


def test_the_calls_are_the_models(checkpoint: Checkpoint) -> None:
    with fresh() as (_, vm):
        traced = TracedVm(vm)
        traced.restore(checkpoint)
        traced.checkpoint()
        model = TracedVm(ModelVm(2, counter=ManualCounter(), kernel="6.12" if has_offset(vm) else "6.1"))
        model.restore(model.vm.checkpoint() if not has_offset(vm) else saved_by_a_model())
        model.checkpoint()
        # By value each counter is set until it is near enough, so that real time decides how often.
        assert once(traced) == once(model)
        assert all(call.errno == 0 and call.took_ns > 0 for call in traced.calls)


def saved_by_a_model() -> Checkpoint:
    vm = ModelVm(2, counter=ManualCounter())
    vm.opt_in()
    return vm.checkpoint()


def once(vm: TracedVm) -> list[tuple[str | None, str]]:
    """The calls, but for those that are made again for a narrower bracket or a nearer count."""
    calls = [(call.verb, str(call)) for call in vm.calls]
    repeated = ("TIMER_CNT", "PTIMER_CNT")
    return [call for call in calls if not call[1].endswith(repeated)]


def test_a_fault_at_any_call_leaves_a_way_on(checkpoint: Checkpoint) -> None:
    with fresh() as (_, vm):
        plain = TracedVm(vm)
        plain.restore(checkpoint)
        calls = texts(plain)
    failed = 0
    for call in dict.fromkeys(calls):
        with fresh() as (machine, vm):
            faulty = FaultyVm(vm, [Fault(call, errno=errno.EIO)])
            with pytest.raises((KvmError, Interrupted), match="injected"):
                faulty.restore(checkpoint)
            failed += 1
            report = faulty.restore(checkpoint)
            assert machine.get_one_reg(1, Reg.TIMER_CVAL) == CVAL
            assert report.method == ("offset" if has_offset(vm) else "virtual-only")
            with vm.running(0):
                pass
    assert failed > 12


def test_a_write_that_the_kernel_never_saw_is_found(checkpoint: Checkpoint) -> None:
    with fresh() as (machine, vm):
        faulty = FaultyVm(vm, [Fault("set_one_reg 1 TIMER_CVAL", dropped=True)])
        with pytest.raises(ReadBackMismatch, match="CNTV_CVAL_EL0"):
            faulty.restore(checkpoint)
        assert machine.get_one_reg(1, Reg.TIMER_CVAL) != CVAL
    with fresh() as (_, vm):
        if not has_offset(vm):
            return
        faulty = FaultyVm(vm, [Fault("set_counter_offset", dropped=True)])
        with pytest.raises(ReadBackMismatch):
            faulty.restore(checkpoint)
        assert not vm.opted_in


def test_busy_is_tried_again_with_a_newer_sample(checkpoint: Checkpoint) -> None:
    with fresh() as (_, vm):
        if not has_offset(vm):
            pytest.skip("this kernel has no VM-wide offset")
        faulty = FaultyVm(vm, [Fault("set_counter_offset", nth=1, times=2, errno=errno.EBUSY)], busy_retries=2)
        faulty.restore(checkpoint)
        offsets = [call for call in faulty.calls if str(call) == "set_counter_offset"]
        assert [call.errno for call in offsets] == [0, errno.EBUSY, errno.EBUSY, 0]
        samples = [call.value or 0 for call in offsets]
        assert samples == sorted(samples), "under Freeze the offset grows with the sample"
        assert len(set(samples)) == 4


def test_a_process_that_is_gone_calls_nothing_more(checkpoint: Checkpoint) -> None:
    with fresh() as (machine, vm):
        faulty = FaultyVm(vm, [Fault("release", crash=True)])
        with pytest.raises(Crashed):
            faulty.restore(checkpoint)
        made = len(faulty.calls)
        with pytest.raises(Crashed):
            faulty.checkpoint()
        assert len(faulty.calls) == made
        assert machine.get_one_reg(1, Reg.TIMER_CVAL) == CVAL, "the timers were restored before it"
