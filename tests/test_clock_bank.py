"""The bank of many VMs in Python: its contract for arrays, and each result against the same of each `ModelVm`."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from guestclock import (
    Advance,
    CatchUp,
    Checkpoint,
    Fleet,
    Freeze,
    ManualCounter,
    ModelVm,
    MonotonicCounter,
    Reg,
    Report,
    Timer,
    VcpuRunning,
)
from guestclock.errors import (
    CapabilityMissing,
    ClockWentBackwards,
    CounterSkew,
    FleetInterrupted,
    FleetRefused,
    FrequencyMismatch,
    KvmError,
    Misuse,
    NamesDiffer,
    NoSuchVm,
    RestoreOpen,
    TopologyMismatch,
    UnknownRegister,
)
from guestclock.fleet import FleetPlan, FleetReport
from guestclock.model import (
    NO_DEADLINE,
    Added,
    ClockBank,
    DeadlineAlarm,
    ScaledCounter,
    ns_to_ticks,
    recompute_offsets,
    ticks_to_ns,
)
from guestclock.types import Policy

START = 10**6


@pytest.fixture
def counter() -> ManualCounter:
    return ManualCounter(START)


@pytest.fixture
def bank(counter: ManualCounter) -> ClockBank:
    """Five VMs: three of two vCPUs, a nested one, and one of another frequency."""
    bank = ClockBank(counter, timers=4)
    vms = bank.add_many(3, 2)
    bank.add(2, nested=True)
    bank.add(1, frequency_hz=24_000_000)
    counter.advance(5000)
    bank.set_offsets(vms[1:], np.array([1000, 2**64 - 7], np.uint64))
    for timer in (Timer.VTIMER, Timer.PTIMER):
        vcpus = bank.vcpus()
        cval = np.arange(vcpus.size, dtype=np.uint64) * np.uint64(300_000) + np.uint64(timer)
        bank.set_timers(timer, vcpus, cval, np.arange(vcpus.size, dtype=np.uint8) % np.uint8(4))
    return bank


def each(bank: ClockBank, look: Any) -> list[Any]:
    """What `look` gives of each vCPU's own `ModelVm`, in the order of the rows."""
    return [look(bank.vm(vcpu >> 9 << 9), vcpu & 511) for vcpu in bank.vcpus().tolist()]


def led_back(bank: ClockBank, vcpu: int, deadline: int | None) -> int:
    """A deadline of a VM's own counter, as one of the bank's."""
    counter = bank.vm(vcpu >> 9 << 9).counter
    if deadline is None:
        return NO_DEADLINE
    if not isinstance(counter, ScaledCounter):
        return deadline
    if deadline == counter.read():
        return bank.counter.read()
    inner = counter.inner_count(deadline)
    return NO_DEADLINE - 1 if inner is None else inner


class TestIsItsVms:
    """Every result is what each `ModelVm` gives."""

    def test_counts(self, bank: ClockBank) -> None:
        assert bank.cntvct().tolist() == each(bank, lambda vm, vcpu: vm.cntvct(vcpu))
        assert bank.cntpct().tolist() == each(bank, lambda vm, vcpu: vm.cntpct(vcpu))
        assert bank.counts().tolist() == [bank.cntvct().tolist(), bank.cntpct().tolist()]

    def test_timers(self, bank: ClockBank) -> None:
        lines = bank.evaluate()
        for timer in (Timer.VTIMER, Timer.PTIMER):
            states = each(bank, lambda vm, vcpu, timer=timer: vm.timer(vcpu, timer))
            assert lines.istatus[timer].tolist() == [state.istatus for state in states]
            assert lines.line[timer].tolist() == [state.line for state in states]
        assert lines.deadlines.tolist() == bank.next_deadlines().tolist()
        deadlines = each(bank, lambda vm, vcpu: vm.next_deadline(vcpu))
        expected = [led_back(bank, vcpu, it) for vcpu, it in zip(bank.vcpus().tolist(), deadlines, strict=True)]
        assert bank.next_deadlines().tolist() == expected
        assert bank.next_deadline() == min(expected)
        by_vm = [
            min(it for vcpu, it in zip(bank.vcpus(), expected, strict=True) if vcpu >> 9 << 9 == vm)
            for vm in bank.vms()
        ]
        assert bank.next_deadlines_of_vms().tolist() == by_vm
        assert bank.next_deadlines_of_vms(vms=bank.vms()[::-1]).tolist() == by_vm[::-1]

    def test_an_instant_is_injected(self, bank: ClockBank, counter: ManualCounter) -> None:
        later = counter.read() + 12_345
        injected = bank.cntvct(later), bank.next_deadlines(later), bank.evaluate(later).line
        counter.advance(12_345)
        for there, here in zip(injected, (bank.cntvct(), bank.next_deadlines(), bank.evaluate().line), strict=True):
            assert there.tolist() == here.tolist()

    def test_a_view_and_the_bank_are_one(self, bank: ClockBank) -> None:
        vm = bank.vm(int(bank.vms()[1]))
        vm.set_counter_offset(77)
        assert bank.offsets(select=bank.vms()[1:2]).tolist() == [[77], [77]]
        bank.set_offsets(bank.vms()[1:2], np.array([78], np.uint64))
        assert vm.cntvct(0) == bank.counter.read() - 78
        assert bank.vm(int(bank.vms()[1])).cntvct(1) == vm.cntvct(1)

    def test_running(self, bank: ClockBank) -> None:
        first = int(bank.vms()[0])
        with bank.vm(first).running(1):
            assert bank.running().tolist() == [False, True] + [False] * 7
            with pytest.raises(VcpuRunning) as refused:
                bank.set_offsets(bank.vms(), np.arange(5, dtype=np.uint64))
        assert refused.value.__notes__ == [f"VM {first} of the bank"]

    def test_changes_are_since_the_last_call(self, bank: ClockBank, counter: ManualCounter) -> None:
        before = np.zeros((4, 9), np.bool_)
        for ticks in (0, 0, 600_000, 10**7):
            counter.advance(ticks)
            line = bank.evaluate().line
            changes = bank.changes()
            expected = [
                (int(bank.vcpus()[row]), int(timer), bool(line[timer, row]))
                for timer, row in zip(*np.nonzero(line != before), strict=True)
            ]
            assert list(zip(*(column.tolist() for column in changes), strict=True)) == expected
            before = line

    def test_expire_gives_each_once_in_order(self, bank: ClockBank, counter: ManualCounter) -> None:
        high: set[tuple[int, int]] = set()
        for ticks in (0, 500_000, 500_000, 10**8):
            counter.advance(ticks)
            expired = bank.expire()
            rows = list(zip(expired.deadlines.tolist(), expired.vcpus.tolist(), expired.timers.tolist(), strict=True))
            assert rows == sorted(rows)
            fired = {(vcpu, timer) for _, vcpu, timer in rows}
            assert not fired & high
            high |= fired
            line = bank.evaluate().line
            assert high == {(int(bank.vcpus()[row]), int(timer)) for timer, row in zip(*np.nonzero(line), strict=True)}
            assert bank.next_deadline() > counter.read()
            assert bank.expire().vcpus.size == 0
        # Written again, it fires again.
        one = bank.vcpus()[1:2]
        bank.set_timers(Timer.PTIMER, one, np.zeros(1, np.uint64), np.ones(1, np.uint8))
        assert bank.next_deadline() == counter.read()
        assert bank.expire().vcpus.tolist() == one.tolist()


class TestHandles:
    def test_a_vcpu_is_its_vm_and_a_number(self, bank: ClockBank) -> None:
        vms = bank.vms()
        assert bank.vcpus()[:6].tolist() == (vms[:3, None] + np.arange(2)).ravel().tolist()

    def test_a_handle_never_is_another_vms(self, counter: ManualCounter) -> None:
        bank = ClockBank(counter)
        seen: set[int] = set()
        for _ in range(100):
            vms = bank.add_many(3, 1)
            assert not seen & set(vms.tolist())
            seen |= set(vms.tolist())
            bank.remove(vms[:2])
            assert int(vms[0]) not in bank
            assert int(vms[2]) in bank
        assert len(bank) == 100

    def test_a_removed_vm_is_gone(self, bank: ClockBank) -> None:
        gone = int(bank.vms()[0])
        view, fleet = bank.vm(gone), Fleet(bank)
        checkpoint, one = view.checkpoint(), np.array([gone])
        restoring, pause = view.restoring(checkpoint), fleet.pause(only=[str(gone)])
        left = bank.vcpus()[2:].tolist()
        bank.remove(gone)
        assert bank.vcpus().tolist() == left
        zero, off = np.zeros(1, np.uint64), np.zeros(1, np.uint8)
        looks: dict[str, Callable[[], object]] = {
            "vm": lambda: bank.vm(gone),
            "remove": lambda: bank.remove(gone),
            "select": lambda: bank.cntvct(select=one),
            "a vCPU's handle": lambda: bank.cntvct(select=one + 1),
            "set_offsets": lambda: bank.set_offsets(one, zero),
            "set_timers": lambda: bank.set_timers(0, one, zero, off),
            "next_deadlines_of_vms": lambda: bank.next_deadlines_of_vms(vms=one),
            "fleet": lambda: fleet[str(gone)],
            "fleet.checkpoint": fleet.checkpoint,
            "fleet.pause": fleet.pause,
            "fleet's resume": pause.resume,
            "cntvct": lambda: view.cntvct(0),
            "cntpct": lambda: view.cntpct(0),
            "vcpus": lambda: view.vcpus,
            "state": lambda: view.state,
            "opted_in": lambda: view.opted_in,
            "backlog_ticks": lambda: view.backlog_ticks,
            "next_step": view.next_step,
            "checkpoint": view.checkpoint,
            "plan": lambda: view.plan(checkpoint),
            "restore": lambda: view.restore(checkpoint),
            "enter": restoring.__enter__,
            "pause": view.pause,
            "opt_in": view.opt_in,
            "set_counter_offset": lambda: view.set_counter_offset(5),
            "running": lambda: view.running(0).__enter__(),
            "get_one_reg": lambda: view.get_one_reg(0, Reg.TIMER_CVAL),
            "set_one_reg": lambda: view.set_one_reg(0, Reg.TIMER_CVAL, 1),
            "reg_list": lambda: view.reg_list(0),
            "timer": lambda: view.timer(0, 0),
            "next_deadline": lambda: view.next_deadline(0),
            "irq": lambda: view.irq(0),
            "create_vcpu": view.create_vcpu,
        }
        for name, look in looks.items():
            with pytest.raises(NoSuchVm, match="removed"):
                pytest.fail(f"{name}: {look()!r}")
        with pytest.raises(IndexError, match=str(gone)):
            bank.cntvct(select=one)

    def test_a_view_goes_with_its_last_reader(self, counter: ManualCounter) -> None:
        bank = ClockBank(counter)
        vms = bank.add_many(500, 2).tolist()
        before = bank.nbytes
        kept = bank.vm(vms[0])
        one = bank.nbytes - before
        for vm in vms:
            bank.vm(vm)
        # What nobody reads any more is removed now and then, not each time.
        assert bank.nbytes - before < 10 * one
        views = [bank.vm(vm) for vm in vms]
        assert bank.nbytes - before > 400 * one
        offsets = np.arange(500, dtype=np.uint64)
        bank.set_offsets(np.array(vms), offsets)
        assert [view.cntvct(1) for view in views] == (counter.read() - offsets).tolist()
        assert kept.cntvct(0) == views[0].cntvct(0)
        bank.remove(np.array(vms[:2]))
        with pytest.raises(NoSuchVm, match="removed"):
            kept.cntvct(0)
        again = bank.add_many(2, 1)
        assert bank.vm(int(again[0])).cntvct(0) == 0
        with pytest.raises(NoSuchVm, match="removed"):
            views[1].cntvct(0)

    def test_a_look_at_each_vm_leaves_none(self, counter: ManualCounter) -> None:
        """Whoever writes has nobody to tell, so that a write costs what it did before."""
        bank = ClockBank(counter)
        vms = bank.add_many(100_000)
        empty = bank.nbytes
        kept = [bank.vm(int(vm)) for vm in vms[:64]]
        each = (bank.nbytes - empty) // len(kept)
        for vm in vms.tolist():
            bank.vm(vm)
        assert bank.nbytes - empty < 3 * len(kept) * each
        del kept
        # The next look that finds it crowded removes what nobody reads any more.
        for vm in vms[:200].tolist():
            bank.vm(vm)
        assert bank.nbytes - empty < 2 * 64 * each

    def test_what_is_open_of_a_removed_vm_is_dropped_without_a_warning(self, bank: ClockBank) -> None:
        vms = bank.vms().tolist()[:2]
        paused, restored = map(bank.vm, vms)
        checkpoint = restored.checkpoint()
        dropping: list[object] = [paused.pause()]
        restoring = restored.restoring(checkpoint)
        restoring.__enter__()
        dropping.append(restoring)
        del restoring
        bank.remove(np.array(vms))
        # A warning would be an error.
        dropping.clear()
        gc.collect()

    def test_all_are_removed_or_none(self, bank: ClockBank) -> None:
        vms = bank.vms()
        with pytest.raises(ValueError, match="twice"):
            bank.remove(np.array([vms[0], vms[1], vms[0]]))
        with pytest.raises(IndexError):
            bank.remove(np.array([vms[0], 5]))
        assert len(bank) == 5

    def test_add_many_adds_all_or_none(self, counter: ManualCounter) -> None:
        bank = ClockBank(counter)
        with pytest.raises(KvmError):
            bank.add_many(3, 513)
        with pytest.raises(ValueError, match="at most"):
            bank.add_many(2**40)
        with pytest.raises(ValueError, match="timers=4"):
            bank.add(nested=True)
        assert len(bank) == 0
        assert bank.vcpus().size == 0


def test_an_empty_bank(counter: ManualCounter) -> None:
    bank = ClockBank(counter)
    assert bank.next_deadline() == NO_DEADLINE
    assert bank.cntvct().shape == (0,)
    assert bank.evaluate().line.shape == (2, 0)
    assert [column.size for column in bank.expire()] == [0, 0, 0]
    assert len(Fleet(bank)) == 0
    assert repr(bank) == f"<ClockBank of 0 VMs with 0 vCPUs over {counter!r}>"


class TestArrays:
    """dtype, shape, contiguity and overlap, all of it before anything is written."""

    def test_results_own_their_memory(self, bank: ClockBank) -> None:
        expired, changes = bank.expire(), bank.changes()
        results = [bank.cntvct(), bank.counts(), bank.vms(), bank.vcpus(), bank.next_deadlines_of_vms()]
        for array in [*results, *bank.evaluate(), *expired, *changes]:
            assert array.flags.owndata

    def test_out_is_what_is_returned(self, bank: ClockBank) -> None:
        expected = bank.counts()
        out = np.zeros((2, 9), np.uint64)
        assert bank.counts(out=out) is out
        assert out.tolist() == expected.tolist()
        lines = bank.evaluate()
        into = np.ones((4, 9), np.bool_), np.ones((4, 9), np.bool_), np.zeros(9, np.uint64)
        result = bank.evaluate(out=into)
        assert all(given is taken for given, taken in zip(result, into, strict=True))
        assert [column.tolist() for column in into] == [column.tolist() for column in lines]

    @pytest.mark.parametrize(
        ("out", "error"),
        [
            (np.zeros(9, np.int64), TypeError),
            (np.zeros(9, ">u8"), TypeError),
            (np.zeros(9), TypeError),
            ([0] * 9, TypeError),
            (np.zeros(8, np.uint64), ValueError),
            (np.zeros((9, 1), np.uint64), ValueError),
            (np.zeros(18, np.uint64)[::2], ValueError),
            (np.frombuffer(bytearray(73), np.uint8)[1:].view(np.uint64), ValueError),
        ],
    )
    def test_another_out_is_refused(self, bank: ClockBank, out: Any, error: type[Exception]) -> None:
        before = np.array(out).tolist()
        with pytest.raises(error, match="out"):
            bank.cntvct(out=out)
        assert np.array(out).tolist() == before

    def test_a_read_only_out_is_refused(self, bank: ClockBank) -> None:
        out = np.zeros(9, np.uint64)
        out.flags.writeable = False
        with pytest.raises(ValueError, match="written"):
            bank.cntvct(out=out)

    def test_no_out_is_written_where_a_later_one_is_refused(self, bank: ClockBank) -> None:
        istatus, deadlines = np.zeros((4, 9), np.bool_), np.zeros(9, np.uint64)
        for line in (np.zeros((2, 9), np.bool_), istatus):
            with pytest.raises(ValueError, match="out"):
                bank.evaluate(out=(istatus, line, deadlines))
        assert not istatus.any()

    def test_an_overlap_is_refused(self, bank: ClockBank) -> None:
        memory = np.zeros(20, np.int64)
        memory[:9] = bank.vcpus()
        for select, out in ((memory[:9], memory[8:17]), (memory[:9][::-1], memory[:9]), (memory[:17:2], memory[10:19])):
            before = memory.tolist()
            with pytest.raises(ValueError, match="overlap"):
                bank.cntvct(select=select, out=out.view(np.uint64))
            assert memory.tolist() == before
        assert bank.cntvct(select=memory[:9], out=memory[9:18].view(np.uint64)).tolist() == bank.cntvct().tolist()

    def test_select_is_of_any_order_and_strided(self, bank: ClockBank) -> None:
        every, counts = bank.vcpus(), bank.cntvct()
        for rows in (np.arange(9)[::-1], np.arange(0, 9, 2), np.array([8, 0, 6, 3]), np.array([], np.int64)):
            assert bank.cntvct(select=every[rows]).tolist() == counts[rows].tolist()
            assert bank.evaluate(select=every[rows]).line.tolist() == bank.evaluate().line[:, rows].tolist()
        assert bank.cntvct(select=every[::-3]).tolist() == counts[::-3].tolist()

    def test_a_mask_is_bool(self, bank: ClockBank) -> None:
        mask = np.arange(9) % 3 == 1
        assert bank.cntvct(select=mask).tolist() == bank.cntvct()[mask].tolist()
        assert bank.evaluate(select=mask).istatus.tolist() == bank.evaluate().istatus[:, mask].tolist()
        with pytest.raises(ValueError, match="mask"):
            bank.cntvct(select=mask[:8])
        for other in (mask.astype(np.uint8), mask.astype(np.int32), mask.tolist()):
            with pytest.raises(TypeError, match="select"):
                bank.cntvct(select=other)

    def test_a_handle_twice_is_refused(self, bank: ClockBank) -> None:
        twice = bank.vcpus()[[0, 3, 0]]
        with pytest.raises(ValueError, match="twice"):
            bank.cntvct(select=twice)
        cval = bank.vm(int(bank.vms()[0])).timer(0, 0).cval
        with pytest.raises(ValueError, match="twice"):
            bank.set_timers(0, twice, np.full(3, 9, np.uint64), np.zeros(3, np.uint8))
        assert bank.vm(int(bank.vms()[0])).timer(0, 0).cval == cval

    def test_inputs_of_another_dtype_or_length_are_refused(self, bank: ClockBank) -> None:
        vms = bank.vms()
        with pytest.raises(TypeError, match="uint64"):
            bank.set_offsets(vms, np.zeros(5, np.int64))
        with pytest.raises(TypeError, match="int64"):
            bank.set_offsets(vms.astype(np.uint64), np.zeros(5, np.uint64))
        with pytest.raises(ValueError, match="5 and 4"):
            bank.set_offsets(vms, np.zeros(4, np.uint64))
        with pytest.raises(TypeError, match="uint8"):
            bank.set_timers(0, bank.vcpus(), np.zeros(9, np.uint64), np.zeros(9, np.uint64))

    def test_a_timer_that_a_guest_has_not_got(self, bank: ClockBank) -> None:
        before = bank.evaluate().istatus.tolist()
        with pytest.raises(UnknownRegister):
            bank.set_timers(Timer.HVTIMER, bank.vcpus(), np.full(9, 1, np.uint64), np.zeros(9, np.uint8))
        assert bank.evaluate().istatus.tolist() == before


def test_many_rows_are_computed_beside_other_threads(counter: ManualCounter) -> None:
    """Without the GIL, on what no Python object can change: results stay those of one instant."""
    bank = ClockBank(counter)
    vms = bank.add_many(5000, 2)
    bank.set_offsets(vms, np.zeros(5000, np.uint64))
    stop = threading.Event()
    wrong: list[NDArray[np.uint64]] = []

    def look() -> None:
        while not stop.is_set():
            counts = bank.counts()
            if not (counts == counts[0, 0]).all():
                wrong.append(counts)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(200):
        counter.advance(1000)
        extra = bank.add_many(10, 2)
        bank.set_offsets(extra, np.zeros(10, np.uint64))
        bank.set_offsets(vms, np.full(5000, number, np.uint64)[:5000])
        bank.set_offsets(bank.vms(), np.full(len(bank), number, np.uint64))
        bank.remove(extra)
        gc.collect(0)
    stop.set()
    for thread in threads:
        thread.join()
    # In between, old and new VMs are under different offsets; at rest all are under one.
    assert (bank.counts() == counter.read() - 199).all()
    assert len(bank) == 5000
    assert all(set(np.unique(counts).tolist()) for counts in wrong)


def said(report: Report) -> dict[str, Any]:
    """All of a report but the writes, which a bank makes as columns."""
    fields = report.to_dict()
    return {
        name: value for name, value in fields.items() if name not in ("written", "offset_writes", "register_writes")
    }


class TestSets:
    """A bank's VMs together: `Fleet(bank)`."""

    def test_there_and_back_in_one_blob(self, bank: ClockBank, counter: ManualCounter) -> None:
        blob = Fleet(bank).checkpoint().to_bytes()
        before, lines = bank.counts(), bank.evaluate()
        at = counter.read()
        counter.advance(10**9)
        report = Fleet(bank).restore(Checkpoint.from_bytes(blob))
        columns = report.columns()
        # Each in ticks of its own counter.
        assert columns["released_at"].tolist() == [bank.vm(int(name)).counter.read() for name in report]
        assert list(report) == columns["name"].tolist() == [str(vm) for vm in bank.vms()]
        assert columns["added_ticks"].tolist() == [0] * 5
        assert bank.counts().tolist() == before.tolist()
        after = bank.evaluate()
        assert after.line.tolist() == lines.line.tolist()
        later = after.deadlines != NO_DEADLINE
        assert later.tolist() == (lines.deadlines != NO_DEADLINE).tolist()
        plain = later & (bank.vcpus() < bank.vms()[4])
        assert (after.deadlines - lines.deadlines)[plain].tolist() == [counter.read() - at] * int(plain.sum())

    def test_each_is_what_its_own_checkpoint_is(self, bank: ClockBank) -> None:
        handles = bank.vms().tolist()
        checkpoint = Fleet(bank).checkpoint()
        assert sorted(map(int, checkpoint.names)) == handles
        for vm in handles:
            one, alone = checkpoint[str(vm)], bank.vm(vm).checkpoint()
            assert one.to_dict()["groups"] == alone.to_dict()["groups"]
            # The bank's counter is the stamp's, and the VM's own is made from it.
            assert (one == alone) == (alone.frequency_hz == bank.frequency_hz)
        named = Fleet(bank, names=["a", "b", "c", "d", "e"]).checkpoint()
        assert sorted(named.names) == ["a", "b", "c", "d", "e"]
        for name, vm in zip("abcde", handles, strict=True):
            assert named[name].to_one_regs() == checkpoint[str(vm)].to_one_regs()

    def test_each_goes_on_from_its_own_stop(self, counter: ManualCounter) -> None:
        bank = ClockBank(counter)
        bank.set_offsets(bank.add_many(3, 2), np.array([0, 1, 2], np.uint64))
        fleet = Fleet(bank, names=["a", "b", "c"])
        at_stop = bank.cntvct()[::2].tolist()
        stops = {name: counter.read() + ran for name, ran in (("a", 0), ("b", 5), ("c", 40))}
        counter.advance(100)
        each = fleet.checkpoint(stopped_at=stops)
        assert each.columns()["stopped_at_count"].tolist() == list(stops.values())
        common = fleet.checkpoint(stopped_at=stops["c"])
        assert common.columns()["stopped_at_count"].tolist() == [stops["c"]] * 3
        some = fleet.checkpoint(stopped_at={"b": stops["b"]})
        assert some.columns()["stopped_at_count"].tolist() == [None, stops["b"], None]
        counter.advance(1000)
        assert fleet.restore(each, Freeze()).columns()["added_ticks"].tolist() == [0, 0, 0]
        assert bank.cntvct()[::2].tolist() == [at_stop[0], at_stop[1] + 5, at_stop[2] + 40]
        assert fleet.restore(each, Advance()).columns()["added_ticks"].tolist() == [1100, 1095, 1060]
        assert bank.cntvct()[::2].tolist() == [count + 1100 for count in at_stop]
        fleet.restore(common, Freeze())
        assert bank.cntvct()[::2].tolist() == [count + 40 for count in at_stop]
        fleet.restore(some, Freeze())
        assert bank.cntvct()[::2].tolist() == [at_stop[0] + 100, at_stop[1] + 5, at_stop[2] + 100]

    @pytest.mark.parametrize("policy", [Freeze(), Advance(), Advance(max_ns=1000), CatchUp(10**6, 10**7)])
    def test_a_report_of_many_says_of_each_what_its_own_says(
        self, counter: ManualCounter, policy: Freeze | Advance | CatchUp
    ) -> None:
        names = ["a", "b", "c"]
        bank = ClockBank(counter)
        bank.set_offsets(bank.add_many(3, 2), np.array([0, 1, 2], np.uint64))
        fleet = Fleet(bank, names=names)
        stops = {name: counter.read() + ran for name, ran in zip(names, (0, 5, 40), strict=True)}
        counter.advance(100)
        checkpoint = fleet.checkpoint(stopped_at=stops)
        counter.advance(10**6)
        report = fleet.restore(checkpoint, policy)
        alone = [ModelVm(2, counter=counter) for _ in names]
        for vm in alone:
            vm.opt_in()
        own = [vm.restore(one, policy) for vm, one in zip(alone, checkpoint, strict=True)]
        columns = report.columns()
        assert list(columns["behind_ns"]) == [each.behind_ns for each in own]
        assert list(columns["behind_error_ns"]) == [each.behind_error_ns for each in own]
        assert [report[name].returned_at for name in names] == [each.returned_at for each in own]
        assert report["c"].assumptions == own[2].assumptions
        assert {each.ground for each in report["a"].assumptions} == ({"assumed"} if policy != Freeze() else set())
        # A pause knows it by its own counter; on another host nobody does.
        with fleet.pause(policy) as paused:
            counter.advance(7)
        assert paused.report is not None
        assert [(it.code, it.ground) for it in paused.report["a"].assumptions] == [
            ("one-counter", "proved"),
            ("host-not-suspended", "assumed"),
        ][: 2 * (policy != Freeze())]
        elsewhere = ClockBank(ManualCounter(5, frequency_hz=counter.frequency_hz))
        elsewhere.add_many(3, 2)
        unknown = Fleet(elsewhere, names=names).restore(checkpoint, Freeze()).columns()
        assert unknown["behind_ns"].tolist() == unknown["behind_error_ns"].tolist() == [None] * 3

    def test_stops_that_cannot_be_are_refused(self, bank: ClockBank, counter: ManualCounter) -> None:
        now, fleet = counter.read(), Fleet(bank)
        with pytest.raises(ValueError, match="can't have stopped at the count"):
            fleet.checkpoint(stopped_at=now + 1)
        with pytest.raises(NamesDiffer):
            fleet.checkpoint(stopped_at={"web": now})
        first = next(iter(fleet))
        assert fleet.checkpoint(stopped_at={first: now}, now=counter.stamp())[first].stopped_at == now

    @pytest.mark.parametrize("policy", [Freeze(), Advance(), Advance(max_ns=1000), CatchUp(10**6, 10**7)])
    def test_paused_together(self, counter: ManualCounter, policy: Freeze | Advance | CatchUp) -> None:
        bank = ClockBank(counter)
        vms = bank.add_many(3, 2)
        bank.set_offsets(vms, np.array([1, 2, 3], np.uint64))
        alone = ClockBank(counter)
        one = alone.add(2)
        alone.set_offsets(np.array([one]), np.array([2], np.uint64))
        with Fleet(bank).pause(policy) as pause, alone.vm(one).pause(policy) as own:
            with pytest.raises(RestoreOpen), bank.vm(int(vms[0])).running(0):
                pass
            with pytest.raises(Misuse):
                pause.report  # noqa: B018 - its getter raises
            counter.advance(10**6)
        assert bank.cntvct()[2] == alone.cntvct()[0]
        assert bank.vm(int(vms[1])).backlog_ticks == alone.vm(one).backlog_ticks
        assert said(pause.report[str(vms[1])]) == said(own.report)
        with bank.vm(int(vms[0])).running(0):
            pass
        with pytest.raises(Misuse, match="over"):
            pause.resume()

    def test_a_part_of_the_vms(self, bank: ClockBank, counter: ManualCounter) -> None:
        vms = bank.vms()
        pause = Fleet(bank).pause(Advance(), only=[str(vms[2]), str(vms[1])])
        assert [bank.vm(vm).state for vm in vms.tolist()] == ["open", "paused", "paused", "open", "open"]
        counter.advance(500)
        report = pause.resume()
        assert list(report) == [str(vms[1]), str(vms[2])]
        assert report.columns()["added_ticks"].tolist() == [500, 500]
        assert bank.offsets(select=vms[1:3]).tolist() == [[1000, 2**64 - 7]] * 2

    def test_what_is_refused_for_one_is_refused_for_all(self, bank: ClockBank, counter: ManualCounter) -> None:
        vms, names = bank.vms(), ["a", "b", "c", "d", "e"]
        fleet = Fleet(bank, names=names)
        checkpoint = fleet.checkpoint(only=["a", "b", "c"])
        # One of another shape, under a name that was saved.
        others = Fleet({"a": fleet["a"], "b": fleet["b"], "c": fleet["d"]})
        for wrong in (Fleet(bank, names=["a", "b", "d", "c", "e"]), others):
            before = bank.counts().tolist()
            with pytest.raises(FleetRefused) as refused:
                wrong.restore(checkpoint, only=["a", "b", "c"])
            assert refused.value.accepted == ["a", "b"]
            assert {name: type(error) for name, error in refused.value.refused.items()} == {"c": TopologyMismatch}
            assert bank.counts().tolist() == before
        with pytest.raises(FleetRefused) as refused:
            fleet.restore(checkpoint, only=["a", "b", "c"], views="refuse")
        assert {type(error) for error in refused.value.refused.values()} == {CounterSkew}
        other = ClockBank(counter)
        other.add_many(3, 2, frequency_hz=10**9)
        with pytest.raises(FleetRefused) as refused:
            Fleet(other, names=["a", "b", "c"]).restore(checkpoint)
        assert {type(error) for error in refused.value.refused.values()} == {FrequencyMismatch}
        with bank.vm(int(vms[2])).running(0):
            for call in (fleet.checkpoint, fleet.pause):
                with pytest.raises(VcpuRunning) as running:
                    call()
                assert running.value.__notes__ == [f"VM {vms[2]} of the bank"]
            with pytest.raises(FleetRefused) as refused:
                fleet.restore(checkpoint, only=["a", "b", "c"])
            assert list(refused.value.refused) == ["c"]
        with pytest.raises(ValueError, match="given to two VMs: 'a'"):
            Fleet(bank, names=["a", "b", "a", "c", "d"])
        with pytest.raises(ValueError, match="1 names are given for 5 VMs"):
            Fleet(bank, names=["a"])
        with pytest.raises(ValueError, match="control characters"):
            Fleet(bank, names=["a", "b\n", "c", "d", "e"])
        with pytest.raises(TypeError, match="names= is for a bank"):
            Fleet({"a": fleet["a"]}, names=["a"])
        with pytest.raises(NamesDiffer):
            Fleet(bank).restore(checkpoint)
        with pytest.raises(ValueError, match="no on_failure"):
            fleet.restore(checkpoint, on_failure="hope")  # type: ignore[arg-type]
        empty = bank.add(0)
        with pytest.raises(ValueError, match="no vCPUs"):
            Fleet(bank).checkpoint()
        bank.remove(empty)

    def test_by_names_and_by_position(self, bank: ClockBank, counter: ManualCounter) -> None:
        """In any order of the handles, each guest gets its own clock."""
        fleet = Fleet(bank, names=["a", "b", "c", "d", "e"])
        alike = fleet.checkpoint(only=["c", "b"])
        counts = {name: fleet[name].cntvct(0) for name in "bc"}
        counter.advance(50)
        other = ClockBank(counter)
        other.add_many(2, 2)
        cases: list[tuple[Fleet, Literal["name", "position"], dict[str, str]]] = [
            (Fleet(other, names=["c", "b"]), "name", {"c": "c", "b": "b"}),
            (Fleet(other, names=["x", "y"]), "position", {"x": "b", "y": "c"}),
        ]
        for target, by, into in cases:
            report = target.restore(alike, by=by)
            assert {name: one.cntvct for name, one in report.items()} == {x: counts[of] for x, of in into.items()}
            assert {name: target[name].cntvct(1) for name in into} == {x: counts[of] for x, of in into.items()}
        assert len(Fleet(ClockBank(counter)).restore(alike, only=[])) == 0
        every, before = fleet.checkpoint(), bank.cntvct().tolist()
        counter.advance(50)
        assert list(fleet.restore(every, only=["d", "a"])) == ["a", "d"]
        # Two vCPUs each, and the third and fourth handles are of "b".
        assert bank.cntvct().tolist()[:4] == [*before[:2], before[2] + 50, before[3] + 50]

    def test_a_fleet_of_a_bank_is_of_the_vms_that_it_had(self, bank: ClockBank) -> None:
        fleet = Fleet(bank)
        checkpoint = fleet.checkpoint()
        handle = bank.add(2)
        assert len(fleet) == 5
        assert list(fleet.restore(checkpoint)) == list(fleet)
        bank.remove(handle)
        gone = int(next(iter(fleet)))
        bank.remove(gone)
        bank.add(2)
        with pytest.raises(FleetRefused, match=str(gone)) as caught:
            fleet.restore(checkpoint)
        assert list(caught.value.refused) == [str(gone)]
        with pytest.raises(NamesDiffer):
            fleet.restore(Fleet(bank).checkpoint())

    def test_arguments_are_checked_as_a_fleet_of_vms_does(self, bank: ClockBank) -> None:
        banks = Fleet(bank, names=["a", "b", "c", "d", "e"])
        checkpoint, of_vms, of_digits = banks.checkpoint(), Fleet(dict(banks)), Fleet(bank)

        def errors(fleet: Fleet) -> list[tuple[type[Exception], str]]:
            raised = []
            stops: list[Any] = [1.5, "3", True, np.float64(2), -1, 2**64]
            calls: list[Callable[[], object]] = [partial(fleet.checkpoint, stopped_at={"a": stop}) for stop in stops]
            for threads in (0, "x", True, 1.5):
                calls += [
                    partial(fleet.checkpoint, threads=threads),  # type: ignore[arg-type]
                    partial(fleet.plan, checkpoint, threads=threads),  # type: ignore[arg-type]
                    partial(fleet.restore, checkpoint, threads=threads),  # type: ignore[arg-type]
                    partial(fleet.pause, threads=threads),  # type: ignore[arg-type]
                ]
            for call in calls:
                with pytest.raises((TypeError, OverflowError, ValueError)) as caught:
                    call()
                raised.append((caught.type, str(caught.value)))
            return raised

        assert errors(banks) == errors(of_vms)
        stopped_at = np.uint64(bank.counter.read())
        assert banks.checkpoint(stopped_at={"a": stopped_at})["a"].stopped_at == stopped_at  # type: ignore[dict-item]
        for call in (of_digits.restore, of_digits.plan, of_digits.restoring):
            with pytest.raises(NamesDiffer) as differ:
                call(checkpoint)
            assert (differ.value.missing, differ.value.extra) == (list(of_digits), checkpoint.names)

    def test_a_vm_that_was_removed_is_one_vms_failure(self, bank: ClockBank) -> None:
        """As it is in a fleet of VMs."""
        banks = Fleet(bank, names=["a", "b", "c", "d", "e"])
        checkpoint, of_vms = banks.checkpoint(), Fleet(dict(banks))
        bank.remove(int(bank.vms()[1]))
        for fleet in (banks, of_vms):
            assert "b" in fleet
            verified, plan = fleet.verify(), fleet.plan(checkpoint)
            assert list(verified) == list(plan) == plan.accepted == ["a", "c", "d", "e"]
            assert [*map(type, verified.failed.values()), *map(type, plan.refused.values())] == [NoSuchVm] * 2
            assert list(verified.failed) == list(plan.refused) == ["b"]
            for refused in (fleet.restore, fleet.restoring):
                with pytest.raises(FleetRefused) as caught:
                    refused(checkpoint)
                assert (caught.value.accepted, list(caught.value.refused)) == (["a", "c", "d", "e"], ["b"])
            with pytest.raises(NoSuchVm) as missing:
                fleet.checkpoint(vmclock_address={"a": 0})
            assert missing.value.__notes__ == ["VM 'b' of the fleet"]
            assert list(fleet.restore(checkpoint, only=plan.accepted)) == ["a", "c", "d", "e"]

    @pytest.mark.parametrize("policy", [Freeze(), Advance(), Advance(max_ns=1000)])
    def test_a_report_each_is_what_its_own_restore_says(self, counter: ManualCounter, policy: Policy) -> None:
        kinds: list[dict[str, Any]] = [{}, {"nested": True}, {"kernel": "6.1"}, {"frequency_hz": 24_000_000}]
        banks = [ClockBank(counter, timers=4) for _ in range(2)]
        for one in banks:
            for kind in kinds:
                for vm in one.add_many(2, 2, **kind).tolist():
                    if "kernel" not in kind:
                        one.vm(vm).set_counter_offset(vm % 1000)
                    for vcpu in range(2):
                        one.vm(vm).set_one_reg(vcpu, Reg.TIMER_CVAL, 2**40 + vm)
                        one.vm(vm).set_one_reg(vcpu, Reg.TIMER_CTL, 1)
        names = [f"vm-{number}" for number in range(8)]
        fleet, alone = (Fleet(one, names=names) for one in banks)
        stops = {name: counter.read() + number for number, name in enumerate(names)}
        counter.advance(100)
        checkpoint = fleet.checkpoint(stopped_at=stops)
        counter.advance(10**6)
        report = fleet.restore(checkpoint, policy, timers="relative")
        for name, vm in alone.items():
            own = vm.restore(checkpoint[name], policy, timers="relative")
            assert said(report[name]) == said(own), name
            assert report[name].timers() == own.timers()
            assert str(report[name]).splitlines()[0] == str(own).splitlines()[0]
        assert banks[0].counts().tolist() == banks[1].counts().tolist()
        columns = report.columns()
        rows = FleetReport(dict(report)).columns()
        assert list(columns) == list(rows)
        for column, values in rows.items():
            assert values.tolist() == columns[column].tolist(), column
            assert values.dtype.kind == columns[column].dtype.kind
        with pytest.raises(KeyError):
            report["vm-8"]
        assert (len(report), list(report)) == (8, names)

    def test_a_report_each_has_the_warnings_of_its_own_registers(self) -> None:
        bank = ClockBank(ManualCounter(10**12))
        bank.add_many(3)
        fleet = Fleet(bank, names=["a", "b", "c"])
        for vm in fleet.values():
            vm.opt_in()
        fleet["b"].set_one_reg(0, Reg.PTIMER_CVAL, 2**64 - 1)
        fleet["b"].set_one_reg(0, Reg.PTIMER_CTL, 1)
        report = fleet.restore(fleet.checkpoint())
        assert report.columns()["warnings"].tolist() == ["", "physical-timer-misfires", ""]
        assert [warning.code for warning in report["b"].warnings] == ["physical-timer-misfires"]

    def test_a_report_has_the_deadlines_that_were_written(self) -> None:
        """Over a counter that runs: between the registers and the counters some time passes."""
        bank = ClockBank(MonotonicCounter())
        bank.add_many(500, vcpus=2)
        bank.set_offsets(bank.vms(), np.full(500, bank.counter.read(), np.uint64))
        bank.set_timers(0, bank.vcpus(), np.full(1000, 10**9, np.uint64), np.ones(1000, np.uint8))
        fleet = Fleet(bank)
        report = fleet.restore(fleet.checkpoint(), Advance(), timers="relative")
        for name, vm in fleet.items():
            for timer in report[name].timers():
                if timer.timer == Timer.VTIMER:
                    assert timer.cval == vm.get_one_reg(timer.vcpu, Reg.TIMER_CVAL)

    @pytest.mark.parametrize("policy", [Freeze(), Advance(), Advance(max_ns=1000)])
    def test_a_plan_each_is_what_its_own_says(self, counter: ManualCounter, policy: Policy) -> None:
        """By one pass: a bank's VMs of one to three vCPUs, with timers that are overdue, and some that aren't."""
        bank = ClockBank(counter, timers=4)
        kinds: list[dict[str, Any]] = [{}, {"nested": True}, {"kernel": "6.1"}, {"frequency_hz": 24_000_000}]
        vms = [bank.add(1 + number % 3, **kinds[number // 3]) for number in range(12)]
        for number, vm in enumerate(vms):
            view = bank.vm(vm)
            for vcpu in range(view.vcpus):
                view.set_one_reg(vcpu, Reg.TIMER_CVAL, number * (vcpu + 1) * 10**4)
                view.set_one_reg(vcpu, Reg.TIMER_CTL, number % 2)
        names = [f"vm-{number}" for number in range(12)]
        fleet = Fleet(bank, names=names)
        alone = Fleet(dict(fleet))
        now = counter.read()
        checkpoint = fleet.checkpoint()
        before = bank.counts().tolist()
        counter.advance(10**6)
        for only in (None, names[3:9:2]):
            plan = fleet.plan(checkpoint, policy, only=only)
            own = alone.plan(checkpoint, policy, only=only)
            assert type(plan) is not FleetPlan, "each was planned alone"
            assert (list(plan), plan.accepted, len(plan), plan.refused) == (list(own), own.accepted, len(own), {})
            assert plan.to_dict() == own.to_dict()
            columns, rows = plan.columns(), own.columns()
            assert list(columns) == list(rows)
            for column, values in rows.items():
                assert values.tolist() == columns[column].tolist(), column
                assert values.dtype == columns[column].dtype
            assert (rows["overdue"] > 0).any()
            assert only or not (rows["overdue"] > 0).all()
            with pytest.raises(KeyError):
                plan["vm-0" if only else "vm-12"]
        assert (counter.read(), bank.counts(now).tolist()) == (now + 10**6, before)
        # Where one is refused, each is planned alone: with the fourth VM's place goes another shape.
        shifted = Fleet(bank, names=[*names[1:], names[0]]).plan(checkpoint, policy)
        assert 0 < len(shifted.refused) <= 12

    def test_reports_of_vms_with_different_numbers_of_vcpus(self, counter: ManualCounter) -> None:
        """The VMs share a plan, whose target is the first one's."""
        bank = ClockBank(counter)
        vms = [bank.add(vcpus) for vcpus in (1, 2, 3)]
        fleet = Fleet(bank)
        counter.advance(10)
        report = fleet.restore(fleet.checkpoint())
        assert [report[str(vm)].cntvct for vm in vms] == bank.cntvct()[[0, 1, 3]].tolist()

    @pytest.mark.parametrize("policy", [Freeze(), Advance(), Advance(max_ns=1000), CatchUp(10**6, 10**7)])
    @pytest.mark.parametrize("asked", ["before", "in the pause"])
    def test_a_paused_vm_gives_out_no_timer(
        self, counter: ManualCounter, policy: Freeze | Advance | CatchUp, asked: str
    ) -> None:
        bank = ClockBank(counter)
        vms = bank.add_many(4, 2)
        bank.set_offsets(vms, np.array([counter.read()] * 4, np.uint64))
        vcpus = bank.vcpus()
        # One that was given out before, and is no news.
        bank.set_timers(Timer.PTIMER, vcpus[:1], np.array([0], np.uint64), np.array([1], np.uint8))
        if asked == "before":
            assert bank.expire().vcpus.tolist() == vcpus[:1].tolist()
            bank.changes()
        cval = np.arange(100, 900, 100, dtype=np.uint64)
        bank.set_timers(Timer.VTIMER, vcpus, cval, np.ones(8, np.uint8))
        alarm = DeadlineAlarm(bank)
        one = bank.vm(int(vms[2]))
        with Fleet(bank).pause(policy, only=map(str, vms[:2])) as pause, one.pause(policy):
            counter.advance(10_000)
            # The fourth VM goes on.
            assert alarm.expire().vcpus.tolist() == vcpus[6:].tolist()
            assert bank.next_deadline() == NO_DEADLINE
            assert set(bank.changes().vcpus.tolist()) == set(vcpus[6:].tolist())
            assert len(bank.expire().vcpus) == 0
            # A timer that is set in the pause waits as the others do.
            bank.set_timers(Timer.VTIMER, vcpus[:1], np.array([50], np.uint64), np.ones(1, np.uint8))
        before = {(int(vcpus[0]), Timer.PTIMER)} if asked == "in the pause" else set()
        assert {report.released_at for report in pause.report.values()} == {counter.read()}
        given = []
        for _ in range(3):
            expired = alarm.expire()
            given += list(zip(expired.vcpus.tolist(), expired.timers.tolist(), strict=True))
            counter.advance(5_000)
        assert set(given) == before | {(vcpu, Timer.VTIMER) for vcpu in vcpus[:6].tolist()}
        assert len(given) == len(set(given))

    def test_a_vm_that_is_half_restored_gives_out_no_timer(self, counter: ManualCounter) -> None:
        bank = ClockBank(counter)
        vm = bank.vm(bank.add(1))
        vm.set_counter_offset(counter.read())
        vm.set_one_reg(0, Reg.TIMER_CVAL, 100)
        vm.set_one_reg(0, Reg.TIMER_CTL, 1)
        checkpoint = vm.checkpoint()
        assert bank.next_deadline() == counter.read() + 100
        steps = vm.restoring(checkpoint).__enter__()
        counter.advance(500)
        assert len(bank.expire().vcpus) == 0
        steps.apply()
        assert (len(bank.expire().vcpus), bank.next_deadline()) == (0, NO_DEADLINE)
        steps.release()
        assert bank.next_deadline() == counter.read() + 100
        counter.advance(100)
        assert bank.expire().vcpus.tolist() == bank.vcpus().tolist()
        # A restore gives again what it restores: the guest that it goes on from hadn't taken it.
        vm.restore(checkpoint, Advance())
        assert bank.expire().vcpus.tolist() == bank.vcpus().tolist()

    def test_a_restore_ends_a_pause(self, bank: ClockBank) -> None:
        checkpoints = Fleet(bank).checkpoint()
        pause = Fleet(bank).pause()
        Fleet(bank).restore(checkpoints)
        with pytest.raises(Misuse, match="came after"):
            pause.resume()

    def test_vms_that_were_restored_meanwhile_have_left_the_pause(
        self, bank: ClockBank, counter: ManualCounter
    ) -> None:
        fleet = Fleet(bank, names=["a", "b", "c", "d", "e"])
        saved, pause = fleet.checkpoint(), fleet.pause()
        counts = {name: vm.cntvct(0) for name, vm in fleet.items()}
        fleet["a"].restore(saved["a"])
        with fleet["c"].restoring(saved["c"]), pytest.raises(Misuse, match="came after"):
            pause.resume()
        # It is paused again, and may be overtaken for good.
        fleet["c"].restore(saved["c"])
        bank.remove(int(bank.vms()[3]))
        counter.advance(500)
        with pytest.raises(CapabilityMissing):
            pause.resume(CatchUp(1, 1))
        with pytest.raises(FleetInterrupted, match="2 of 5 VMs had left the pause") as caught:
            pause.resume()
        error = caught.value
        assert (list(error.failed), list(error.reports), error.retry) == (["a", "c"], ["b", "e"], "")
        assert [type(each) for each in error.failed.values()] == [Misuse, Misuse]
        assert list(pause.report) == ["b", "e"]
        assert said(pause.report["b"])["added_ticks"] == 0
        assert [fleet[name].cntvct(0) - counts[name] for name in "abc"] == [500, 0, 500]
        assert [fleet[name].state for name in "abce"] == ["open"] * 4
        with pytest.raises(Misuse, match="is over"):
            pause.resume()

    def test_a_pause_may_end_by_another_policy(self, bank: ClockBank, counter: ManualCounter) -> None:
        before = bank.cntvct().tolist()
        pause = Fleet(bank).pause()
        counter.advance(500)
        with pytest.raises(CapabilityMissing):
            pause.resume(CatchUp(1, 1))
        # The last VM has a frequency of its own.
        assert pause.resume(Advance()).columns()["added_ticks"].tolist() == [500, 500, 500, 500, 192]
        assert bank.cntvct()[:8].tolist() == [count + 500 for count in before[:8]]
        with pytest.raises(Misuse):
            pause.resume()

    def test_a_vm_that_is_removed_has_left_the_pause(self, bank: ClockBank, counter: ManualCounter) -> None:
        vms, pause = bank.vms(), Fleet(bank).pause()
        bank.remove(vms[1:2])
        counter.advance(500)
        report = pause.resume(Advance())
        assert list(report) == list(Fleet(bank))
        assert report.columns()["added_ticks"].tolist() == [500, 500, 500, 192]
        assert [bank.vm(int(vm)).state for vm in bank.vms()] == ["open"] * 4
        pause = Fleet(bank).pause()
        bank.remove(bank.vms())
        with pytest.raises(NoSuchVm):
            pause.resume()

    def test_a_pause_that_is_dropped_warns_and_leaves_its_vms_closed(self, bank: ClockBank) -> None:
        vms, checkpoints = bank.vms(), Fleet(bank).checkpoint()
        dropping = [Fleet(bank).pause(only=map(str, vms[:2]))]
        with pytest.warns(ResourceWarning, match=f'VM "{vms[0]}, {vms[1]}": a pause of a bank'):
            dropping.clear()
        with pytest.raises(RestoreOpen), bank.vm(int(vms[0])).running(0):
            pass
        Fleet(bank).restore(checkpoints)
        with bank.vm(int(vms[0])).running(0):
            pass


class TestColumns:
    """Conversions and recomputed offsets, against Python's integers."""

    HZ = np.array([24_000_000, 62_500_000, 10**9, 1, 2**64 - 1], np.uint64)
    EDGES = np.array([0, 1, 2**32, 2**63, 2**64 - 1, 10**9, 24_000_001], np.uint64)

    def test_conversions_are_exact(self) -> None:
        counts, hz = np.repeat(self.EDGES, self.HZ.size), np.tile(self.HZ, self.EDGES.size)
        exact = [min(n * 10**9 // f, 2**64 - 1) for n, f in zip(counts.tolist(), hz.tolist(), strict=True)]
        assert ticks_to_ns(counts, hz).tolist() == exact
        back = [min(n * f // 10**9, 2**64 - 1) for n, f in zip(counts.tolist(), hz.tolist(), strict=True)]
        assert ns_to_ticks(counts, hz).tolist() == back
        for frequency in self.HZ.tolist():
            alike = np.full(self.EDGES.size, frequency, np.uint64)
            assert ticks_to_ns(self.EDGES, frequency).tolist() == ticks_to_ns(self.EDGES, alike).tolist()
            out = np.empty(self.EDGES.size, np.uint64)
            assert ns_to_ticks(self.EDGES, frequency, out=out) is out
        with pytest.raises(ValueError, match="1 Hz"):
            ticks_to_ns(self.EDGES, 0)
        with pytest.raises(ValueError, match="overlap"):
            ticks_to_ns(self.EDGES, 5, out=self.EDGES)
        with pytest.raises(ValueError, match="7 and 5"):
            ticks_to_ns(self.EDGES, self.HZ)

    def test_offsets_are_the_restore_table(self) -> None:
        now, frequencies = 10**12, self.HZ[:3]
        guest = np.array([5, 6, 7, 8, 9, 2**64 - 1], np.uint64)
        host = np.array([0, now - 1000, now - 10**9, 0, 2**64 - 1, now], np.uint64)
        added = np.array([Added.NOTHING, 1, Added.COUNTED_UP_TO, 3, Added.ELAPSED_UP_TO, 1], np.uint8)
        elapsed, most = np.full(6, 10**9, np.uint64), np.full(6, 10**6, np.uint64)
        frequency = np.array([0, 0, 1, 1, 2, 0], np.uint16)
        offsets, ticks = recompute_offsets(now, guest, host, added, elapsed, most, frequency, frequencies)
        assert ticks.tolist() == [0, 1000, 62_500, 62_500_000, 10**6, 0]
        assert offsets.tolist() == [(now - g - t) % 2**64 for g, t in zip(guest.tolist(), ticks.tolist(), strict=True)]
        each = np.array([now, now, 77], np.uint64)
        assert (
            recompute_offsets(each, guest, host, added, elapsed, most, frequency, frequencies)[0][4]
            == (77 - 9 - 10**6) % 2**64
        )
        out = np.zeros(6, np.uint64), np.zeros(6, np.uint64)
        backwards = np.full(6, now + 1, np.uint64)
        with pytest.raises(ClockWentBackwards, match="row 1") as refused:
            recompute_offsets(now, guest, backwards, added, elapsed, most, frequency, frequencies, out=out)
        assert (refused.value.saved, refused.value.host) == (now + 1, now)
        with pytest.raises(ValueError, match="added has 6"):
            recompute_offsets(now, guest, host, added + np.uint8(2), elapsed, most, frequency, frequencies, out=out)
        with pytest.raises(IndexError, match="frequency 3"):
            recompute_offsets(now, guest, host, added, elapsed, most, frequency + np.uint16(1), frequencies, out=out)
        assert not out[0].any()
        assert not out[1].any()

    def test_the_instruction_set_can_be_forced(self) -> None:
        for name, code in (("baseline", 0), ("z80", 1)):
            ran = subprocess.run(
                [sys.executable, "-c", "import guestclock; print(guestclock.model.isa())"],
                env={**os.environ, "GUESTCLOCK_ISA": name},
                capture_output=True,
                text=True,
                check=False,
            )
            assert ran.returncode == code
            assert name in ran.stdout + ran.stderr
