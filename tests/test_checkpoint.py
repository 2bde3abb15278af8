"""Checkpoints of any number of VMs as values and as files; what is in their bytes, test_format.py says."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from golden import make
from guestclock import Advance, CatchUp, Checkpoint, Elapsed, Fleet, Freeze, ManualCounter, ModelVm, Reg, Timer
from guestclock.errors import NotACheckpoint, TooLarge
from guestclock.model import ClockBank, ScaledCounter
from guestclock.testing import FaultyVm
from guestclock.types import Backlog, Deadlines, Policy
from vms import HZ, NS, SECOND, START_NS, busy, host, owned

CATCH_UP = CatchUp(10**6, 10**7)


@pytest.fixture
def checkpoint() -> Checkpoint:
    vm = ModelVm(3, counter=ManualCounter(10**12, realtime_ns=10**18), name="web-1")
    vm.set_counter_offset(10**12 - 5)
    vm.set_one_reg(2, Reg.TIMER_CVAL, 99)
    return vm.checkpoint()


@pytest.fixture
def mixed() -> Checkpoint:
    """Two kinds of guests: "a", with a backlog and a stop, and "web-10"; "deep" has EL2, "db" counters by value."""
    counter = host()
    a, web = owned(counter, name="a"), owned(counter, vcpus=1, cntvct=7, name="web-10")
    db = ModelVm(1, counter=counter, name="db")
    deep = owned(counter, name="deep", nested=True)
    deep.set_one_reg(1, Reg.CNTVOFF_EL2, 2**64 - 4096)
    deep.set_one_reg(1, Reg.CNTHV_CTL_EL2, 3)
    web.set_one_reg(0, Reg.TIMER_CVAL, 2**64 - 1)
    with a.pause(CATCH_UP):
        counter.advance(HZ)
    stopped = counter.read()
    counter.advance(100)
    saved = [
        deep.checkpoint(),
        web.checkpoint(stolen_time=[0x4000_0040]),
        db.checkpoint(),
        a.checkpoint(stopped_at=stopped, vmclock_address=0x4000_0000),
    ]
    return Checkpoint.join(saved)


def test_it_says_what_it_holds(checkpoint: Checkpoint) -> None:
    assert (checkpoint.name, checkpoint.vcpus, checkpoint.opted_in) == ("web-1", 3, True)
    assert (checkpoint.cntvct, checkpoint.cntpct) == (5, 5)
    assert (checkpoint.frequency_hz, checkpoint.stopped_at) == (62_500_000, None)
    assert (checkpoint.virtual_width_ticks, checkpoint.physical_width_ticks) == (0, 0)
    assert checkpoint.cntvoff is None
    cval = checkpoint.cval(Timer.VTIMER)
    assert cval.dtype == np.uint64
    assert cval.tolist() == [0, 0, 99]
    # Its own memory: writing to it changes nothing.
    cval[0] = 1
    assert checkpoint.cval(Timer.VTIMER).tolist() == [0, 0, 99]
    with pytest.raises(KeyError, match="hvtimer"):
        checkpoint.cval(Timer.HVTIMER)
    with pytest.raises(ValueError, match="timer 4"):
        checkpoint.ctl(4)
    said: Any = checkpoint.to_dict()
    (group,) = said["groups"]
    assert group["registers"][Reg.TIMER_CVAL] == [0, 0, 99]
    assert group["registers"][Reg.TIMER_CTL] == [0, 0, 0]
    assert said["stamp"]["realtime_ns"] == checkpoint.stamp.realtime_ns == 10**18


def test_many_say_all_that_they_hold(mixed: Checkpoint) -> None:
    said: Any = json.loads(json.dumps(mixed.to_dict()))
    plain, deep = said["groups"]
    assert (said["arch"], said["unknown"]) == ("arm64", [])
    assert (plain["names"], plain["vcpus"]) == (["a", "db", "web-10"], [2, 1, 1])
    assert (plain["opted_in"], plain["timeline"]) == ([True, False, True], [1100, HZ + 100, HZ + 107])
    assert plain["physical_displacement_ticks"] == [0, 10**12, 0]
    assert plain["backlog"] == {"rows": [0], "remaining_ticks": [HZ], "step_ns": [10**6], "interval_ns": [10**7]}
    assert plain["stopped_at"] == {"rows": [0], "count": [10**12 + HZ]}
    assert plain["vmclock"] == {"rows": [0], "address": [0x4000_0000]}
    assert plain["stolen_time"] == {"rows": [3], "address": [0x4000_0040]}
    assert plain["registers"][str(int(Reg.TIMER_CVAL))] == [0, 0, 0, 2**64 - 1]
    assert (deep["names"], deep["registers"][str(int(Reg.CNTVOFF_EL2))]) == (["deep"], [0, 2**64 - 4096])
    assert (deep["vmclock"], deep["stolen_time"], deep["backlog"]) == (None, None, None)


def test_it_is_a_value(checkpoint: Checkpoint, mixed: Checkpoint, tmp_path: Path) -> None:
    assert checkpoint != mixed
    for one in (checkpoint, mixed, mixed["deep"], mixed[1:], mixed[:0]):
        data = one.to_bytes()
        assert len(data) == one.nbytes
        one.save(tmp_path / "guests.time")
        for twin in (
            Checkpoint.from_bytes(data),
            Checkpoint.from_bytes(bytearray(data)),
            Checkpoint.from_bytes(memoryview(data)),
            Checkpoint.load(str(tmp_path / "guests.time")),
            pickle.loads(pickle.dumps(one)),
            copy.copy(one),
            copy.deepcopy(one),
        ):
            assert twin == one
            assert twin.to_bytes() == data


# The sequence of its VMs.


def test_it_is_a_sequence_of_checkpoints(mixed: Checkpoint) -> None:
    # By registers, then shorter names first.
    names = ["a", "db", "web-10", "deep"]
    assert (len(mixed), mixed.names) == (4, names)
    assert [vm.name for vm in mixed] == names
    assert "4 VMs with 6 vCPUs" in repr(mixed)
    assert repr(mixed["db"]).startswith('<Checkpoint "db" of 1 vCPUs at 62500000 Hz')
    for index, name in enumerate(names):
        vm = mixed[name]
        assert isinstance(vm, Checkpoint)
        assert (vm.names, len(vm), vm.stamp) == ([name], 1, mixed.stamp)
        assert vm == mixed[index] == mixed[index - 4] == mixed[index : index + 1] == vm[0] == vm[name]
        assert (name in mixed, "x" + name in mixed) == (True, False)
    assert mixed[:] == mixed[0:99] == mixed
    for part in (slice(1, 3), slice(None, None, 2), slice(1, None, 2), slice(-1, None), slice(-3, -1), slice(3, 1)):
        assert mixed[part].names == names[part]
    assert (len(mixed[4:]), len(mixed[2:1]), list(mixed[4:])) == (0, 0, [])
    assert mixed[1:][1:] == mixed[2:]


def test_a_sequence_refuses_what_it_does_not_have(mixed: Checkpoint) -> None:
    for index in (4, -5, 2**62, 2**70):
        with pytest.raises(IndexError, match=f"there is no VM {index}: the checkpoint has 4"):
            mixed[index]
    with pytest.raises(KeyError, match='no VM named "web"'):
        mixed["web"]
    with pytest.raises(KeyError):
        mixed[""]
    with pytest.raises(ValueError, match="one order"):
        mixed[::-1]
    for key in (1.0, None, b"db"):
        with pytest.raises(TypeError, match="name, its index, or a slice"):
            mixed[key]  # type: ignore[index]


def test_a_part_is_without_what_nobody_knows() -> None:
    data = make.encode(make.HOST_PLAIN | {"later": 1})
    whole = Checkpoint.from_bytes(data)
    assert whole.unknown == whole[:].unknown == ["later"]
    assert whole.to_bytes() == data
    assert whole[0].unknown == whole[1:].unknown == []
    alone = Checkpoint.from_bytes(make.encode(make.BARE | {"later": 1}))
    assert alone[0].unknown == ["later"]


SCALARS: dict[str, Callable[[Checkpoint], object]] = {
    name: (lambda one, name=name: getattr(one, name))
    for name in (
        *(
            "name",
            "vcpus",
            "frequency_hz",
            "cntvct",
            "cntpct",
            "opted_in",
            "virtual_width_ticks",
            "physical_width_ticks",
        ),
        *("stopped_at", "backlog", "interrupts", "vmclock_address", "stolen_time", "cntvoff"),
    )
} | {
    "cval": lambda one: one.cval(Timer.VTIMER),
    "ctl": lambda one: one.ctl(Timer.VTIMER),
    "timers": lambda one: one.timers(),
    "to_one_regs": lambda one: one.to_one_regs(),
    "plan": lambda one: ModelVm(1, counter=host()).plan(one),
    "restore": lambda one: ModelVm(1, counter=host()).restore(one),
}


@pytest.mark.parametrize("ask", SCALARS.values(), ids=SCALARS)
def test_what_one_vm_has_is_asked_of_exactly_one(mixed: Checkpoint, ask: Callable[[Checkpoint], object]) -> None:
    for checkpoint, vms in ((mixed, 4), (mixed[:2], 2), (mixed[:0], 0)):
        with pytest.raises(ValueError, match=f"the checkpoint is of {vms} VMs"):
            ask(checkpoint)
    ask(mixed["web-10"])


# Columns.


def test_a_row_each_vm(mixed: Checkpoint) -> None:
    columns = mixed.columns()
    assert columns["name"].dtype.kind == "U"
    assert columns["name"].tolist() == mixed.names
    for name in ("vcpus", "frequency_hz", "opted_in", "virtual_width_ticks", "physical_width_ticks"):
        assert columns[name].tolist() == [getattr(vm, name) for vm in mixed]
        assert not isinstance(columns[name], np.ma.MaskedArray)
    assert columns["opted_in"].dtype == np.bool_
    assert columns["timeline"].dtype == np.uint64
    assert columns["timeline"].tolist() == [vm.cntvct for vm in mixed]
    displaced = columns["timeline"] + columns["physical_displacement_ticks"]
    assert displaced.tolist() == [vm.cntpct for vm in mixed]
    for name, value in (
        ("backlog_remaining_ticks", HZ),
        ("backlog_step_ns", 10**6),
        ("backlog_interval_ns", 10**7),
        ("vmclock_address", 0x4000_0000),
    ):
        column = columns[name]
        assert isinstance(column, np.ma.MaskedArray)
        assert (column.dtype, column.shape) == (np.dtype(np.uint64), (4,))
        assert column.tolist() == [value, None, None, None]
    # Those that were saved before the last have stopped at their own checkpoints, here at one instant.
    assert columns["stopped_at_count"].tolist() == [10**12 + HZ, None, None, None]
    for timer in Timer:
        column = columns[f"interrupts_{timer.name.lower()}"]
        assert column.tolist() == [(vm.interrupts or {}).get(timer, 0) for vm in mixed]
    columns["timeline"][0] = 0
    assert mixed.columns()["timeline"][0] == 1100
    for absent in ("reading_count", "stolen_time_address"):
        assert absent not in columns
    assert "backlog_step_ns" not in mixed["db"].columns()
    assert not isinstance(mixed["a"].columns()["backlog_step_ns"], np.ma.MaskedArray)


def test_a_row_each_vcpu(mixed: Checkpoint) -> None:
    columns = mixed.vcpu_columns()
    assert columns["name"].tolist() == ["a", "a", "db", "web-10", "deep", "deep"]
    assert columns["vcpu"].tolist() == [0, 1, 0, 0, 0, 1]
    for timer in Timer:
        for part, rows in (("cval", Checkpoint.cval), ("ctl", Checkpoint.ctl)):
            column = columns[f"{timer.name.lower()}_{part}"]
            assert (column.dtype, column.shape) == (np.dtype(np.uint64), (6,))
            el2 = timer in {Timer.HVTIMER, Timer.HPTIMER}
            have = [vm for vm in mixed if not el2 or vm.name == "deep"]
            missing = [None] * 4 if el2 else []
            assert column.tolist() == missing + [value for vm in have for value in rows(vm, timer).tolist()]
            assert isinstance(column, np.ma.MaskedArray) == el2
    assert columns["cntvoff"].tolist() == [None] * 4 + [0, 2**64 - 4096]
    assert columns["stolen_time_address"].tolist() == [None, None, None, 0x4000_0040, None, None]
    assert "cntvoff" not in mixed[:3].vcpu_columns()


def test_columns_of_no_vm_are_empty(mixed: Checkpoint) -> None:
    assert [len(column) for column in mixed[:0].columns().values()] == [0]
    assert [len(column) for column in mixed[:0].vcpu_columns().values()] == [0, 0]


def test_the_facts_of_one_vm(mixed: Checkpoint, tmp_path: Path) -> None:
    mixed.save(tmp_path / "guests.time")
    for checkpoint in (mixed, Checkpoint.load(tmp_path / "guests.time")):
        a, web, deep = (checkpoint[name] for name in ("a", "web-10", "deep"))
        assert a.backlog == Backlog(HZ, 10**6, 10**7)
        assert asdict(a.backlog) == {"remaining_ticks": HZ, "step_ns": 10**6, "interval_ns": 10**7}
        assert (a.vmclock_address, a.stolen_time, a.stopped_at) == (0x4000_0000, [None, None], 10**12 + HZ)
        assert (web.backlog, web.vmclock_address, web.stolen_time) == (None, None, [0x4000_0040])
        assert deep.interrupts == {Timer.VTIMER: 27, Timer.PTIMER: 30, Timer.HVTIMER: 28, Timer.HPTIMER: 26}
        assert a.interrupts == {Timer.VTIMER: 27, Timer.PTIMER: 30}
        assert deep.cntvoff is not None
        assert deep.cntvoff.tolist() == [0, 2**64 - 4096]


@pytest.mark.parametrize("faulty", [False, True])
def test_addresses_are_carried_as_they_are_given(faulty: bool) -> None:
    model = owned(host())
    vm = FaultyVm(model, []) if faulty else model
    saved = vm.checkpoint(vmclock_address=0, stolen_time=[None, 2**64 - 1])
    again = Checkpoint.from_bytes(saved.to_bytes())
    assert (again.vmclock_address, again.stolen_time) == (0, [None, 2**64 - 1])
    assert vm.checkpoint(stolen_time=[]).stolen_time == vm.checkpoint(stolen_time=[None, None]).stolen_time
    for wrong in ([1], [1, 2, 3]):
        with pytest.raises(ValueError, match=f"{len(wrong)} addresses .* for 2 vCPUs"):
            vm.checkpoint(stolen_time=wrong)
    with pytest.raises(OverflowError):
        vm.checkpoint(vmclock_address=2**64)


# Names.

GOOD_NAMES = ["", "web-1", "x" * 64, "é" * 32, "a b", "名前", "[bold]", "200"]
BAD_NAMES = ["x" * 65, "é" * 33, "a\n", "\x1b[2J", "\x7f", "\x85", "\u2028", "\u202e", "\u2066"]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_vms_name_is_its_checkpoints(name: str) -> None:
    vm = ModelVm(1, counter=host(), name=name)
    saved = Checkpoint.from_bytes(vm.checkpoint().to_bytes())
    assert vm.name == FaultyVm(vm, []).name == saved.name == name
    assert (saved.names, saved[name]) == ([name], saved)
    stamp = vm.counter.stamp()
    listed = Checkpoint.from_one_regs(saved.to_one_regs(physical_count=True), frequency_hz=HZ, host=stamp, name=name)
    assert listed.name == name
    bank = ClockBank(host())
    bank.add()
    assert Fleet(bank, names=[name]).checkpoint().names == [name]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_can_be_printed(name: str) -> None:
    bank = ClockBank(host())
    bank.add()
    saved = ModelVm(1, counter=host()).checkpoint()
    stamp = saved.stamp
    for make_it in (
        lambda: ModelVm(1, counter=host(), name=name),
        lambda: Checkpoint.from_one_regs(
            saved.to_one_regs(physical_count=True), frequency_hz=HZ, host=stamp, name=name
        ),
        lambda: Fleet(bank, names=[name]),
        lambda: Fleet({name: ModelVm(1, counter=host())}),
        lambda: ModelVm(1, counter=host()).checkpoint(name=name),
    ):
        with pytest.raises(ValueError, match="can't name a VM") as caught:
            make_it()
        assert name not in str(caught.value) or name.isprintable()


def test_a_name_is_no_key_of_a_restore() -> None:
    counter = host()
    saved = owned(counter, name="web-1").checkpoint()
    target = ModelVm(2, counter=counter, name="web-2")
    target.restore(saved)
    assert target.checkpoint().name == "web-2"


# Joining.


def scene() -> tuple[ManualCounter, list[Checkpoint]]:
    """VMs of every kind, each saved 1000 ticks after the one before, and a second that passes."""
    counter = host()
    vms = [
        owned(counter, name="owned"),
        ModelVm(2, counter=counter, name="by value"),
        ModelVm(2, counter=counter, name="old", kernel="6.1"),
        owned(counter, name="nested", nested=True),
        owned(counter, name="owing"),
        owned(counter, name="stopped"),
    ]
    for vm in vms:
        busy(vm)
    with vms[4].pause(CATCH_UP):
        counter.advance(HZ // 4)
    checkpoints = []
    for vm in vms:
        stopped = counter.read()
        counter.advance(1000)
        # A deadline that is to come at the VM's own checkpoint, and has passed at the latest.
        vm.set_one_reg(0, Reg.TIMER_CVAL, vm.get_one_reg(0, Reg.TIMER_CNT) + 500)
        vm.set_one_reg(0, Reg.TIMER_CTL, 1)
        checkpoints.append(vm.checkpoint(stopped_at=stopped if vm.name == "stopped" else None))
    counter.advance(HZ)
    return counter, checkpoints


def target(checkpoint: Checkpoint, counter: ManualCounter) -> ModelVm:
    kernel = "6.1" if checkpoint.name == "old" else None
    return ModelVm(2, counter=counter, nested=checkpoint.cntvoff is not None, kernel=kernel)


@pytest.mark.parametrize("policy", [Freeze(), Advance(), Advance(SECOND // 2), CATCH_UP], ids=repr)
@pytest.mark.parametrize("timers", ["absolute", "relative"])
@pytest.mark.parametrize("order", [1, -1])
def test_each_gets_what_its_own_would_have_given_it(policy: Policy, timers: Deadlines, order: int) -> None:
    counter, checkpoints = scene()
    joined = Checkpoint.from_bytes(Checkpoint.join(checkpoints[::order]).to_bytes())
    assert joined.stamp == checkpoints[-1].stamp
    assert sorted(joined.names) == sorted(own.name for own in checkpoints)
    for own in checkpoints:
        if policy == CATCH_UP and own.name in {"by value", "old"}:
            # It needs one offset, and a VM that is restored by value has none.
            continue
        one = joined[own.name]
        stopped = own.stamp.count if own.stopped_at is None else own.stopped_at
        assert one.stopped_at == (None if own is checkpoints[-1] and own.stopped_at is None else stopped)
        assert one.to_one_regs() != own.to_one_regs() or own is checkpoints[-1]
        alone, together = target(own, counter), target(own, counter)
        reports = [vm.restore(saved, policy, timers=timers) for saved, vm in ((own, alone), (one, together))]
        for view in ("cntvct", "cntpct", "added_ticks", "backlog_ticks", "error_bound_ticks", "capped"):
            assert getattr(reports[0], view) == getattr(reports[1], view), (own.name, view)
        assert reports[0].timers() == reports[1].timers(), own.name
        assert alone.checkpoint() == together.checkpoint()


def test_a_joined_vm_of_another_frequency() -> None:
    counter = host()
    bank = ClockBank(counter)
    bank.add(1, frequency_hz=24_000_000)
    slow = Fleet(bank, names=["slow"])
    own = slow.checkpoint()
    counter.advance(12_345)
    joined = Checkpoint.join([own, owned(counter, name="last").checkpoint()])
    assert joined["slow"].cntvct == bank.cntvct()[0]
    counter.advance(HZ + 1)
    for policy, missed in ((Freeze(), 0), (Advance(), HZ + 12_346)):
        counts = []
        for saved in (own, joined["slow"]):
            slow.restore(saved, policy)
            counts.append(int(bank.cntvct()[0]))
        assert counts[0] == counts[1]
        assert abs(counts[0] - own.cntvct - missed * 24_000_000 // HZ) <= 1


def test_joining_one_or_many_at_a_time() -> None:
    _, checkpoints = scene()
    whole = Checkpoint.join(checkpoints)
    assert Checkpoint.join([whole]) == whole
    assert Checkpoint.join(list(whole)) == whole
    assert Checkpoint.join([Checkpoint.join(checkpoints[:3]), Checkpoint.join(checkpoints[3:])]) == whole
    assert Checkpoint.join([whole[:0], whole]) == whole


def refused(*checkpoints: Checkpoint) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the caller looks at the message
        Checkpoint.join(checkpoints)
    return str(caught.value)


def test_what_cannot_be_joined(mixed: Checkpoint) -> None:
    counter = host()
    here = owned(counter, name="here").checkpoint()
    assert refused() == "there is no checkpoint to join"
    assert 'two VMs of the checkpoint have the name "a"' in refused(mixed, mixed["a"])
    unnamed = [ModelVm(1, counter=counter).checkpoint(), ModelVm(1, counter=counter, nested=True).checkpoint()]
    assert 'the name ""' in refused(*unnamed)
    for elsewhere in (host(realtime_ns=START_NS + SECOND), ManualCounter(10**12, frequency_hz=HZ + 1)):
        message = refused(here, owned(elsewhere, name="there").checkpoint())
        assert "0 and 1 aren't shown to be of one host counter" in message
        assert "restore them apart" in message
    scaled = ModelVm(1, counter=ScaledCounter(counter, frequency_hz=24_000_000), name="scaled")
    assert "same frequency: no" in refused(here, scaled.checkpoint())
    nobody = Checkpoint.from_one_regs(here.to_one_regs(), frequency_hz=HZ, host=None, name="unknown")
    assert "aren't shown" in refused(here, nobody)
    later = Checkpoint.from_bytes(make.encode(make.BARE | {"later": 1}))
    assert 'checkpoint 1 has the key "later"' in refused(here, later)
    with pytest.raises(TypeError):
        Checkpoint.join([here, "there"])  # type: ignore[list-item]


@pytest.mark.parametrize("change", [{"boot_id": "22" * 16}, {"boot_id": None}])
def test_another_boot_is_another_counter(change: dict[str, Any]) -> None:
    counter = host()
    registers = owned(counter).checkpoint().to_one_regs()
    stamp = replace(counter.stamp(), source="cntvct_el0", machine_id="11" * 16, boot_id="11" * 16)
    saved = [
        Checkpoint.from_one_regs(registers, frequency_hz=HZ, host=each, name=str(number))
        for number, each in enumerate((stamp, stamp, replace(stamp, **change)))
    ]
    assert Checkpoint.join(saved[:2]).names == ["0", "1"]
    assert "aren't shown to be of one host counter" in refused(*saved[1:])


# The stop.


@given(
    ran=st.integers(0, 2**40),
    late=st.integers(0, 2**40),
    away=st.integers(0, 2**40),
    opted_in=st.booleans(),
)
def test_a_restore_goes_on_from_the_stop(ran: int, late: int, away: int, opted_in: bool) -> None:
    counter = host()
    vm = owned(counter) if opted_in else ModelVm(2, counter=counter)
    counter.advance(ran)
    stopped = counter.read()
    at_stop = vm.cntvct(0), vm.cntpct(0)
    counter.advance(late)
    saved = Checkpoint.from_bytes(vm.checkpoint(stopped_at=stopped).to_bytes())
    assert (saved.stopped_at, saved.cntvct) == (stopped, (at_stop[0] + late) % 2**64)
    counter.advance(away)
    most = away // 2
    cases: list[tuple[Policy, int]] = [(Freeze(), 0), (Advance(), late + away), (Advance(most * NS), most)]
    for policy, added in [*cases, (CATCH_UP, 0)] if opted_in else cases:
        back = ModelVm(2, counter=counter)
        report = back.restore(saved, policy)
        assert report.added_ticks == added
        assert (back.cntvct(0), back.cntpct(1)) == tuple((count + added) % 2**64 for count in at_stop)
        assert report.backlog_ticks == back.backlog_ticks == (late + away if policy == CATCH_UP else 0)
        assert report.to_dict()["stopped_before_ticks"] == late


def test_without_a_stop_a_restore_goes_on_from_the_checkpoint() -> None:
    counter = host()
    vm = owned(counter)
    counter.advance(50)
    saved = vm.checkpoint()
    counter.advance(7)
    back = ModelVm(2, counter=counter)
    back.restore(saved, Freeze())
    assert back.cntvct(0) == 1050
    back.restore(saved, Advance())
    assert back.cntvct(0) == 1057


def test_the_stop_is_carried_by_steps_and_wall_clocks() -> None:
    counter = host()
    vm = owned(counter)
    stopped = counter.read()
    counter.advance(HZ)
    saved = vm.checkpoint(stopped_at=stopped)
    elsewhere = ManualCounter(5, frequency_hz=HZ, realtime_ns=START_NS + 3 * SECOND)
    back = ModelVm(2, counter=elsewhere)
    report = back.restore(saved, Advance(), elapsed=Elapsed.by_wall_clocks(error_ns=0))
    # A second before the checkpoint, by the counter; two since, by the wall clocks.
    assert report.added_ticks == pytest.approx(3 * HZ, abs=1)
    steps = ModelVm(2, counter=elsewhere).restoring(saved, Freeze()).__enter__()
    steps.apply()
    assert steps.release().cntvct == 1000


@pytest.mark.parametrize("of", ["alone", "fleet", "bank"])
def test_a_paused_vm_has_stopped_at_its_pause(of: str) -> None:
    """A backup in a pause is of the guest as it goes on afterwards: neither sees the time that it took."""
    counter = host()
    bank = ClockBank(counter)
    bank.add_many(2)
    vms = {"a": ModelVm(1, counter=counter, name="a"), "b": ModelVm(1, counter=counter, name="b")}
    fleet = Fleet(bank, names=["a", "b"]) if of == "bank" else Fleet(vms)
    for vm in fleet.values():
        vm.opt_in()
    counter.advance(1000)
    paused_at = counter.read()
    pause = fleet.pause(only=["a"]) if of != "alone" else fleet["a"].pause()
    counter.advance(10 * HZ)
    saved = fleet.checkpoint() if of != "alone" else Checkpoint.join([vm.checkpoint() for vm in fleet.values()])
    assert saved["a"].stopped_at == paused_at
    assert saved["b"].stopped_at in (None, counter.read())
    told = fleet["a"].checkpoint(stopped_at=paused_at + 5)
    assert "checkpoint" not in str(pause.resume())
    back = ModelVm(1, counter=counter)
    for policy, passed in ((Freeze(), 0), (Advance(), 10 * HZ)):
        back.restore(saved["a"], policy)
        assert back.cntvct(0) == 1000 + passed
    # The caller's word comes first, and a pause that is over says nothing.
    assert (told.stopped_at, fleet["a"].checkpoint().stopped_at) == (paused_at + 5, None)
    back.restore(saved["b"], Freeze())
    assert back.cntvct(0) == 1000 + 10 * HZ


@pytest.mark.parametrize("gap", ["reboot", "suspend", "counts-on"])
def test_a_counter_that_did_not_count_all_of_a_pause_tells_no_stop(gap: str) -> None:
    """Then the checkpoint is as of its own instant, as one of a VM that isn't paused."""
    counter = host()
    vm = owned(counter)
    pause = vm.pause()
    counter.advance_ns(SECOND)
    if gap == "reboot":
        counter.reboot(counter="counts-on")
    else:
        counter.suspend(SECOND, counter="stops" if gap == "suspend" else "counts-on")
    counter.advance_ns(SECOND)
    assert vm.checkpoint().stopped_at is None
    pause.resume()


def test_a_pause_and_a_checkpoint_of_two_frequencies_do_not_mix() -> None:
    """A bank's counts and those of a VM with a frequency of its own are different numbers."""
    for bank_hz, vm_hz in ((24_000_000, 62_500_000), (62_500_000, 24_000_000)):
        counter = ManualCounter(100 * bank_hz, frequency_hz=bank_hz)
        bank = ClockBank(counter)
        bank.add(frequency_hz=vm_hz)
        fleet = Fleet(bank, names=["a"])
        fleet["a"].opt_in()
        counter.advance_ns(10 * SECOND)
        views: tuple[ModelVm | Fleet, ...] = (fleet, fleet["a"])  # type: ignore[assignment]
        for paused in views:
            for saved in views:
                pause = paused.pause()
                before = fleet["a"].cntvct(0)
                counter.advance_ns(5 * SECOND)
                checkpoint = saved.checkpoint()
                back = ModelVm(1, counter=ScaledCounter(counter, frequency_hz=vm_hz))
                expected = before if paused is saved else before + 5 * vm_hz
                assert back.restore(checkpoint).cntvct == expected
                pause.resume()


def test_a_stop_by_name_leaves_the_pause_of_others() -> None:
    counter = host()
    bank = ClockBank(counter)
    bank.add_many(2)
    fleet = Fleet(bank, names=["a", "b"])
    paused_at = counter.read()
    pause = fleet.pause(only=["a"])
    counter.advance(1000)
    saved = fleet.checkpoint(stopped_at={"b": counter.read() - 5})
    assert (saved["a"].stopped_at, saved["b"].stopped_at) == (paused_at, paused_at + 995)
    pause.resume()


def test_a_look_goes_by_the_stop() -> None:
    """A guest that goes on from its stop isn't behind its checkpoint."""
    counter = host()
    vm = owned(counter)
    pause = vm.pause()
    counter.advance_ns(SECOND)
    saved = vm.checkpoint()
    pause.resume()
    assert vm.verify(saved)
    assert not owned(counter, cntvct=999).verify(saved)


def test_a_stop_after_the_checkpoint_is_refused() -> None:
    vm = owned(host())
    with pytest.raises(ValueError, match="can't have stopped at the count 1000000000001"):
        vm.checkpoint(stopped_at=10**12 + 1)
    assert vm.checkpoint(stopped_at=10**12).stopped_at == 10**12


# As files.


def test_saving_replaces_whole_files_and_leaves_nothing_else(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "guest.time"
    path.write_bytes(b"an older file")
    checkpoint.save(path)
    assert Checkpoint.load(str(path)) == checkpoint
    assert [entry.name for entry in tmp_path.iterdir()] == ["guest.time"]


def test_a_save_that_fails_leaves_the_old_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match=r"taken|directory"):
        checkpoint.save(tmp_path / "taken")
    with pytest.raises(FileNotFoundError):
        checkpoint.save(tmp_path / "nowhere" / "guest.time")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


def test_a_relative_path_is_saved_beside_itself(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint.save("guest.time")
    assert Checkpoint.load(tmp_path / "guest.time") == checkpoint


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    with pytest.raises(NotACheckpoint):
        Checkpoint.load(path)
    # Sparse: it takes no room, and must not be read whole.
    os.truncate(path, 2**40)
    with pytest.raises(TooLarge) as caught:
        Checkpoint.load(path)
    assert caught.value.size > caught.value.limit
    with pytest.raises(TypeError):
        Checkpoint.from_bytes("text")  # type: ignore[arg-type]
