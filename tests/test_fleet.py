"""Many VMs by their names: what holds of one VM's verbs holds of a fleet's, and what only a fleet has."""

from __future__ import annotations

import copy
import errno
import gc
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import numpy as np
import pytest

from guestclock import (
    Advance,
    CatchUp,
    Checkpoint,
    Fleet,
    Freeze,
    ManualCounter,
    ModelVm,
    Options,
    Reg,
    Report,
    Stamp,
    SyncBound,
)
from guestclock._core import _each_step
from guestclock.errors import (
    CapabilityMissing,
    CounterSkew,
    FleetInterrupted,
    FleetRefused,
    GuestClockError,
    Interrupted,
    KvmError,
    Misuse,
    NamesDiffer,
    NoSuchVm,
    OutOfOrder,
    Refused,
    RestoreOpen,
    StalePlan,
    TopologyMismatch,
    VcpuRunning,
)
from guestclock.model import ClockBank, ScaledCounter
from guestclock.testing import Fault, FaultyVm
from guestclock.types import GuestVm, Policy, Step
from vms import HZ, SECOND, busy, host, owned, state, texts

PAUSE = 3 * HZ
POLICIES = [Freeze(), Advance(), Advance(max_ns=SECOND), CatchUp(10**8, 10**9, at_once_ns=10**6)]
every_policy = pytest.mark.parametrize("policy", POLICIES, ids=str)


def mixed(counter: ManualCounter) -> dict[str, ModelVm]:
    """VMs of every kind, each with registers of its own."""
    return {
        "owned": busy(owned(counter, 2, 1000)),
        "by value": busy(ModelVm(2, counter=counter)),
        "old": busy(ModelVm(1, counter=counter, kernel="6.1")),
        "nested": busy(owned(counter, 2, 77, nested=True)),
        "other": busy(owned(counter, 3, 2**63)),
    }


def alike(counter: ManualCounter) -> dict[str, ModelVm]:
    """Empty VMs of the same shapes, none of which has opted in."""
    return {
        name: ModelVm(vm.vcpus, counter=counter, kernel=vm.kernel, nested=vm.nested)
        for name, vm in mixed(counter).items()
    }


def states(vms: dict[str, ModelVm]) -> dict[str, Any]:
    return {name: state(vm) for name, vm in vms.items()}


def fitting(policy: Policy) -> list[str]:
    """Those that the policy can restore: a catch-up needs one offset."""
    return ["owned", "nested", "other"] if isinstance(policy, CatchUp) else list(mixed(host()))


def faulty(vms: dict[str, ModelVm], **faults: Fault) -> dict[str, FaultyVm]:
    return {name: FaultyVm(vm, [faults[name]] if name in faults else []) for name, vm in vms.items()}


def plain(counter: ManualCounter, names: Iterable[str] = "abcd") -> dict[str, ModelVm]:
    """VMs that have opted in, each 1000 ticks after the other."""
    return {name: busy(owned(counter, 2, 1000 * number)) for number, name in enumerate(names, 1)}


def writes(vms: dict[str, FaultyVm]) -> list[str]:
    return [call for vm in vms.values() for call in texts(vm) if call.startswith("set_")]


class Stamped:
    """A counter that Python code reads, and that goes on by a tick with each stamp."""

    def __init__(self, counter: ManualCounter) -> None:
        self.counter = counter
        self.frequency_hz, self.source = counter.frequency_hz, "stamped"
        self.stamps = 0

    def read(self) -> int:
        return self.counter.read()

    def stamp(self) -> Stamp:
        self.stamps += 1
        self.counter.advance(1)
        return self.counter.stamp()


class TestAFleetOfOne:
    """It does what its VM does."""

    @every_policy
    def test_a_checkpoint_a_plan_and_a_restore(self, policy: Policy) -> None:
        for name in fitting(policy):
            here, there = host(), host()
            alone, fleet = mixed(here)[name], Fleet({name: mixed(there)[name]})
            stopped = here.read()
            for counter in (here, there):
                counter.advance(50)
            own = alone.checkpoint(name=name, stopped_at=stopped)
            saved = fleet.checkpoint(stopped_at=stopped)
            assert saved == own
            for counter in (here, there):
                counter.advance(PAUSE)
            into, many = alike(here)[name], {name: alike(there)[name]}
            options = Options(intent="snapshot", timers="relative")
            planned = Fleet(many).plan(saved, policy, options=options)
            assert planned.accepted == [name]
            assert planned[name].to_dict() == into.plan(own, policy, options=options).to_dict()
            report = into.restore(own, policy, options=options)
            reports = Fleet(many).restore(saved, policy, options=options)
            assert list(reports) == [name]
            assert reports[name].to_dict() == report.to_dict()
            assert state(many[name]) == state(into)
            assert many[name].state == "open"

    @every_policy
    def test_a_pause(self, policy: Policy) -> None:
        for name in fitting(policy):
            here, there = host(), host()
            alone, one = mixed(here)[name], mixed(there)[name]
            with alone.pause(policy) as own, Fleet({name: one}).pause(policy) as pause:
                assert one.state == "paused"
                for counter in (here, there):
                    counter.advance(PAUSE)
            assert pause.report[name].to_dict() == own.report.to_dict()
            assert state(one) == state(alone)

    def test_the_steps_of_a_backlog(self) -> None:
        here, there = host(), host()
        alone, one = owned(here), owned(there)
        ticks: list[list[int]] = []
        for counter, vm in ((here, alone), (there, one)):
            with vm.pause(CatchUp(10**8, 10**9)):
                counter.advance_ns(SECOND)
        fleet_steps = Fleet({"one": one}).catch_up(sleep=lambda s: there.advance_ns(round(s * 1e9)))
        own_steps = alone.catch_up(sleep=lambda s: here.advance_ns(round(s * 1e9)))
        for took in (own_steps, (step for _, step in fleet_steps)):
            ticks.append([])
            for step in took:
                step.apply()
                ticks[-1].append(step.ticks)
        assert ticks[0] == ticks[1]
        assert len(ticks[0]) == 10
        assert (here.read(), state(alone)) == (there.read(), state(one))

    def test_a_failure(self) -> None:
        for call, nth in (("set_counter_offset", 0), ("set_one_reg 1 TIMER_CTL", 0), ("set_counter_offset", 1)):
            left = []
            for many in (False, True):
                counter = host()
                saved = owned(counter).checkpoint(name="one")
                vm = owned(counter)
                under = FaultyVm(vm, [Fault(call, nth=nth, errno=errno.EIO)])
                with pytest.raises((KvmError, Interrupted)) as caught:
                    if many:
                        Fleet({"one": under}).restore(saved)
                    else:
                        under.restore(saved)
                error: BaseException = caught.value
                if isinstance(error, FleetInterrupted):
                    assert list(error.failed) == ["one"]
                    error = error.failed["one"]
                said = [getattr(error, fact, None) for fact in ("state", "retry", "step", "errno")]
                left.append((type(error), said, vm.state, state(vm)))
            assert left[0] == left[1]


class TestNames:
    def test_the_order_of_names_does_not_matter(self) -> None:
        counter = host()
        vms, into = mixed(counter), alike(counter)
        turned = dict(reversed(vms.items()))
        assert Fleet(vms).checkpoint() == Fleet(turned).checkpoint()
        saved = Fleet(vms).checkpoint()
        counter.advance(PAUSE)
        other = alike(counter)
        reports = Fleet(into).restore(saved, Advance())
        again = Fleet(dict(reversed(other.items()))).restore(saved, Advance())
        assert list(again) == list(reports)[::-1]
        assert {name: report.to_dict() for name, report in again.items()} == reports.to_dict()
        assert states(into) == states(other)

    def test_a_fleet_is_a_mapping_of_its_vms(self) -> None:
        vms = mixed(host())
        fleet = Fleet(vms)
        assert dict(fleet) == vms
        assert (len(fleet), "old" in fleet, fleet["old"]) == (5, True, vms["old"])
        assert repr(fleet) == "<Fleet of 'owned', 'by value', 'old', 'nested', 'other'>"
        assert repr(Fleet(plain(host(), map(str, range(10))))).endswith("'7' and 2 more>")
        assert repr(Fleet({})) == "<Fleet of no VMs>"

    def test_what_makes_no_fleet(self) -> None:
        vm = ModelVm(1, counter=host())
        with pytest.raises(ValueError, match="'a' and 'b' are one VM"):
            Fleet({"a": vm, "b": vm})
        with pytest.raises(ValueError, match="can't name a VM"):
            Fleet({"a\n": vm})
        with pytest.raises(TypeError, match="'a' is a int"):
            Fleet({"a": 5})  # type: ignore[dict-item]

    def test_the_fleets_names_are_what_is_stored(self) -> None:
        counter = host()
        vm = owned(counter, name="its own")
        assert Fleet({"the fleet's": vm}).checkpoint().names == ["the fleet's"]

    def test_names_that_differ_are_listed_and_nothing_is_done(self) -> None:
        counter = host()
        vms = plain(counter)
        fleet, saved = Fleet(vms), Fleet(plain(counter, "bcde")).checkpoint()
        before = states(vms)
        for call in (fleet.plan, fleet.restore, fleet.restoring):
            with pytest.raises(
                NamesDiffer, match=r"the checkpoint has no 'a'; the fleet has no 'e': .*only="
            ) as caught:
                call(saved)
            error = caught.value
            assert (error.missing, error.extra, error.unknown, error.equal) == (["a"], ["e"], [], [])
            with pytest.raises(NamesDiffer, match="the checkpoint has no 'a'") as caught:
                call(saved, only=["a", "b"])
            assert (caught.value.missing, caught.value.extra) == (["a"], [])
            with pytest.raises(NamesDiffer, match="the fleet has no 'e', 'f'; given twice: 'b'") as caught:
                call(saved, only=["e", "f", "b", "b"])
            assert (caught.value.unknown, caught.value.equal) == (["e", "f"], ["b"])
            assert isinstance(caught.value, Refused)
        for only in (lambda: fleet.checkpoint(only=["z"]), lambda: fleet.pause(only=["z"])):
            with pytest.raises(NamesDiffer):
                only()
        with pytest.raises(NamesDiffer):
            fleet.checkpoint(stopped_at={"z": 1})
        assert states(vms) == before
        assert {vm.state for vm in vms.values()} == {"open"}
        assert list(fleet.restore(saved, only=["d", "b"])) == ["b", "d"]

    def test_many_names_are_cut_in_the_message_and_whole_in_the_error(self) -> None:
        counter = host()
        saved = Fleet(plain(counter, map(str, range(20)))).checkpoint()
        with pytest.raises(NamesDiffer, match="'7' and 12 more") as caught:
            Fleet({}).plan(saved)
        assert sorted(caught.value.extra, key=int) == [str(number) for number in range(20)]

    def test_by_position_only_by_word(self) -> None:
        counter = host()
        saved, vms = Fleet(plain(counter, "ab")).checkpoint(), plain(counter, "xy")
        fleet = Fleet(vms)
        with pytest.raises(NamesDiffer, match='by="position"'):
            fleet.restore(saved)
        reports = fleet.restore(saved, by="position")
        assert {name: report.cntvct for name, report in reports.items()} == {"x": 1000, "y": 2000}
        assert list(fleet.restore(saved, by="position", only="y")) == ["y"]
        with pytest.raises(NamesDiffer) as caught:
            Fleet(plain(counter, "xyz")).plan(saved, by="position")
        assert (caught.value.missing, caught.value.extra) == (["z"], [])
        with pytest.raises(ValueError, match="no by='number'"):
            fleet.plan(saved, by="number")  # type: ignore[arg-type]


class TestOneInstant:
    def test_a_checkpoint_is_of_one_instant_and_costs_no_vm_the_others_time(self) -> None:
        counter = host()
        vms = plain(counter)
        # Each save takes a millisecond.
        slow = Fleet({name: FaultyVm(vm, [Fault("checkpoint", delay_ticks=62_500)]) for name, vm in vms.items()})
        before = counter.read()
        saved = slow.checkpoint()
        assert saved.stamp.count == counter.read() == before + 4 * 62_500
        assert {one.stamp for one in saved} == {saved.stamp}
        assert saved.columns()["timeline"].tolist() == [number * 1000 + 4 * 62_500 for number in range(1, 5)]
        counter.advance(PAUSE)
        reports = Fleet(vms).restore(saved)
        assert [report.cntvct for report in reports.values()] == [n * 1000 + n * 62_500 for n in range(1, 5)]

    def test_each_goes_on_from_its_own_stop(self) -> None:
        counter = host()
        vms = plain(counter)
        stops = {name: counter.read() + 10 * number for number, name in enumerate(vms)}
        counter.advance(500)
        fleet = Fleet(vms)
        each, common = fleet.checkpoint(stopped_at=stops), fleet.checkpoint(stopped_at=stops["b"])
        assert dict(zip(each.names, each.columns()["stopped_at_count"].tolist(), strict=True)) == stops
        counter.advance(PAUSE)
        for saved, ran in ((each, [0, 10, 20, 30]), (common, [10] * 4)):
            reports = fleet.restore(saved)
            assert [report.cntvct for report in reports.values()] == [
                1000 * number + ticks for number, ticks in enumerate(ran, 1)
            ]
        assert [report.added_ticks for report in fleet.restore(each, Advance()).values()] == [
            PAUSE + 500 - ran for ran in (0, 10, 20, 30)
        ]

    def test_facts_are_by_name(self) -> None:
        counter = host()
        fleet = Fleet(plain(counter, "ab"))
        saved = fleet.checkpoint(
            vmclock_address={"b": 0x4000_0000}, stolen_time={"a": [None, 64]}, sync=SyncBound(max_error_ns=10)
        )
        assert (saved["a"].vmclock_address, saved["b"].vmclock_address) == (None, 0x4000_0000)
        assert (saved["a"].stolen_time, saved["b"].stolen_time) == ([None, 64], [None, None])
        assert saved.stamp.sync == SyncBound(max_error_ns=10)

    @pytest.mark.parametrize("of", ["alone", "fleet", "bank"])
    def test_a_stamp_of_another_frequency_is_no_instant(self, of: str) -> None:
        """Its count would be taken for one of this counter's."""
        host = ManualCounter(10**9, frequency_hz=62_500_000)
        here = ScaledCounter(host, frequency_hz=24_000_000)
        bank = ClockBank(here)
        bank.add()
        vm = ModelVm(1, counter=here)
        every: dict[str, ModelVm | Fleet] = {"alone": vm, "fleet": Fleet({"a": vm}), "bank": Fleet(bank)}
        fleet = every[of]
        saved = fleet.checkpoint()
        with pytest.raises(ValueError, match="now is a Stamp at 62500000 Hz, and the VM's counter runs at 24000000 Hz"):
            fleet.checkpoint(now=host.stamp())
        with pytest.raises(ValueError, match="24000000 Hz"):
            fleet.restore(saved, now=host.stamp())
        assert fleet.checkpoint(now=here.stamp()) == fleet.checkpoint()

    def test_an_injected_instant(self) -> None:
        counter = host()
        vms = plain(counter)
        at = counter.read() + 100
        assert Fleet(vms).checkpoint(now=at).columns()["timeline"].tolist() == [1100, 2100, 3100, 4100]

    def test_one_that_cannot_be_saved_is_named(self) -> None:
        counter = host()
        vms = plain(counter)
        with vms["c"].running(1), pytest.raises(VcpuRunning) as caught:
            Fleet(vms).checkpoint()
        assert caught.value.__notes__ == ["VM 'c' of the fleet"]
        with vms["c"].running(1):
            assert Fleet(vms).checkpoint(only=["d", "a", "b"]).names == ["a", "b", "d"]

    def test_two_counters_make_no_checkpoint(self) -> None:
        with pytest.raises(ValueError, match="aren't shown to be of one host counter"):
            Fleet({"a": owned(host()), "b": owned(host(realtime_ns=5))}).checkpoint()


class TestPlans:
    def test_a_plan_each_or_its_refusal(self) -> None:
        counter = host()
        saved = Fleet(mixed(counter)).checkpoint()
        counter.advance(PAUSE)
        into = alike(counter)
        into["other"] = ModelVm(2, counter=counter)
        before = states(into)
        planned = Fleet(into).plan(saved, CatchUp(10**8, 10**9))
        assert planned.accepted == list(planned) == ["owned", "nested"]
        assert {name: type(error) for name, error in planned.refused.items()} == {
            "by value": CapabilityMissing,
            "old": CapabilityMissing,
            "other": TopologyMismatch,
        }
        assert "3 refused" in repr(planned)
        assert "other: TopologyMismatch" in str(planned)
        with pytest.raises(FleetRefused, match=r"3 of 5 VMs are refused, .*'by value'.* and 2 more") as caught:
            Fleet(into).restore(saved, CatchUp(10**8, 10**9))
        error = caught.value
        assert (error.accepted, list(error.refused)) == (["owned", "nested"], ["by value", "old", "other"])
        assert states(into) == before
        reports = Fleet(into).restore(saved, CatchUp(10**8, 10**9), only=planned.accepted)
        assert list(reports) == planned.accepted

    def test_columns_of_a_plan(self) -> None:
        counter = host()
        vms = plain(counter)
        # A timer that is to come in 500 ticks.
        vms["a"].set_one_reg(0, Reg.TIMER_CVAL, 1500)
        vms["a"].set_one_reg(0, Reg.TIMER_CTL, 1)
        saved = Fleet(vms).checkpoint()
        counter.advance(30 * 60 * HZ)
        vms["d"] = ModelVm(1, counter=counter)
        columns = Fleet(vms).plan(saved, Advance()).columns()
        assert {column: (array.dtype.kind, array.shape) for column, array in columns.items()} == {
            **dict.fromkeys(("name", "refused", "method", "evidence", "assumptions", "warnings"), ("U", (4,))),
            "limits": ("U", (4,)),
            "accepted": ("b", (4,)),
            **dict.fromkeys(("added_ticks", "added_ns", "backlog_ticks", "overdue"), ("u", (4,))),
            **dict.fromkeys(("behind_ns", "behind_error_ns"), ("u", (4,))),
            **dict.fromkeys(("error_bound_ticks", "error_bound_ns"), ("u", (4,))),
        }
        assert columns["name"].tolist() == ["a", "b", "c", "d"]
        assert columns["accepted"].tolist() == [True, True, True, False]
        assert columns["refused"].tolist() == ["", "", "", "TopologyMismatch"]
        assert columns["added_ticks"].tolist() == [30 * 60 * HZ] * 3 + [None]
        assert columns["added_ns"][:3].tolist() == [1800 * SECOND] * 3
        assert columns["evidence"].tolist() == ["counter"] * 3 + [""]
        assert columns["method"].tolist() == ["offset"] * 3 + [""]
        own = Fleet(vms).plan(saved, Advance())["a"].to_dict()
        crossed = [limit["name"] for limit in own["limits"] if limit["reached"] != "not crossed"]  # type: ignore[attr-defined]
        assert columns["limits"][0] == ",".join(crossed)
        assert crossed
        assert columns["overdue"][0] == 1
        assert "same-boot" in columns["assumptions"][0].split(",")

    def test_columns_of_a_report(self) -> None:
        counter = host()
        vms = plain(counter)
        fleet = Fleet(vms)
        saved = fleet.checkpoint()
        counter.advance(PAUSE)
        report = fleet.restore(saved, Advance(max_ns=SECOND))
        columns = report.columns()
        assert columns["cntvct"].tolist() == [1000 * number + HZ for number in range(1, 5)]
        assert columns["capped"].tolist() == [True] * 4
        assert columns["behind_ns"].tolist() == [2 * SECOND] * 4
        assert columns["warnings"].tolist() == [",".join(w.code for w in report["a"].warnings)] * 4
        for array in columns.values():
            assert array.shape == (4,)
        assert (repr(report), len(report)) == ("<FleetReport of 4 VMs>", 4)
        assert str(report).startswith("a:\n")
        assert columns["released_at"].dtype == np.uint64

    def test_a_clock_that_nobody_knows_is_a_masked_number(self) -> None:
        counter = host()
        saved = owned(counter).checkpoint(name="known")
        lists = owned(counter).checkpoint().to_one_regs()
        nobody = Checkpoint.from_one_regs(lists, frequency_hz=HZ, host=None, name="unknown")
        fleet = {name: Fleet({name: ModelVm(2, counter=counter)}) for name in ("known", "unknown")}
        assert fleet["known"].plan(saved).columns()["behind_ns"].tolist() == [0]
        assert fleet["unknown"].plan(nobody).columns()["behind_ns"].tolist() == [None]


class TestRestores:
    @every_policy
    def test_every_kind_of_vm_in_fresh_vms(self, policy: Policy) -> None:
        counter = host()
        only = fitting(policy)
        vms = mixed(counter)
        blob = Fleet(vms).checkpoint(only=only).to_bytes()
        expected = {}
        for name in only:
            expected[name] = vms[name].checkpoint()
        counter.advance(PAUSE)
        into, alone = alike(counter), alike(counter)
        reports = Fleet(into).restore(Checkpoint.from_bytes(blob), policy, only=only)
        for name in only:
            own = alone[name].restore(expected[name], policy)
            assert reports[name].to_dict() == own.to_dict()
            assert state(into[name]) == state(alone[name])

    def test_all_are_closed_before_the_first_write(self) -> None:
        counter = host()
        vms = plain(counter)
        saved = Fleet(vms).checkpoint()
        del vms["d"]
        before = states(vms)
        vms["d"] = last = owned(counter)
        under = faulty(vms)
        opened = Fleet(under).restoring(saved)
        with last.running(0), pytest.raises(VcpuRunning) as caught, opened:
            pytest.fail("entered")
        assert caught.value.__notes__ == ["VM 'd' of the fleet"]
        assert writes(under) == []
        assert {name: state(vm) for name, vm in vms.items() if vm is not last} == before
        assert {vm.state for vm in vms.values()} == {"open"}
        # The run of a vCPU since the plan is enough.
        opened = Fleet(under).restoring(saved)
        with last.running(0):
            pass
        with pytest.raises(StalePlan), opened:
            pytest.fail("entered")
        assert writes(under) == []
        assert {vm.state for vm in vms.values()} == {"open"}

    def test_none_can_be_entered_while_one_is_restored(self) -> None:
        counter = host()
        vms = plain(counter)
        fleet = Fleet(vms)
        with fleet.restoring(fleet.checkpoint()) as opened:
            for vm in vms.values():
                assert vm.state == "restoring"
                with pytest.raises(RestoreOpen), vm.running(0):
                    pass
            opened.apply()
            opened.release()
        for vm in vms.values():
            with vm.running(0):
                pass

    @pytest.mark.parametrize("opted_in", [True, False])
    def test_leaving_the_block_gives_all_up(self, opted_in: bool) -> None:
        counter = host()
        saved = Fleet(plain(counter)).checkpoint()
        make: Callable[[str], ModelVm] = lambda _: owned(counter) if opted_in else ModelVm(2, counter=counter)  # noqa: E731
        vms = {name: make(name) for name in "abcd"}
        before = states(vms)
        with pytest.raises(TimeoutError) as caught, Fleet(vms).restoring(saved):
            raise TimeoutError
        # A first opt-in is for good.
        assert {vm.state for vm in vms.values()} == {"open" if opted_in else "restoring"}
        assert len(getattr(caught.value, "__notes__", [])) == (0 if opted_in else 4)
        if opted_in:
            assert states(vms) == before
        Fleet(vms).restore(saved)
        assert [vm.cntvct(0) for vm in vms.values()] == [1000, 2000, 3000, 4000]

    def test_a_paused_vm_is_paused_again_after_giving_up(self) -> None:
        counter = host()
        vms = plain(counter)
        fleet = Fleet(vms)
        saved, pause = fleet.checkpoint(), vms["b"].pause(Advance())
        with fleet.restoring(saved):
            assert {vm.state for vm in vms.values()} == {"restoring"}
        assert [vm.state for vm in vms.values()] == ["open", "paused", "open", "open"]
        counter.advance(5)
        pause.resume()
        assert [vm.cntvct(0) for vm in vms.values()] == [1005, 2005, 3005, 4005]

    def test_a_restore_that_is_dropped_reopens_what_it_only_closed(self) -> None:
        vm = owned(host())
        restore = vm.restoring(vm.checkpoint())
        assert _each_step([restore], ["close"], 1, stop=True) == (({0: None}, {}), "close")
        assert (vm.state, repr(restore)) == ("restoring", "<Restore Freeze(), closed>")
        with pytest.raises(Misuse, match="inside the block"):
            restore.apply()
        (_, failed), _ = _each_step([restore], ["close"], 1, stop=True)
        assert isinstance(failed.pop(0), Misuse)
        del restore
        gc.collect()
        assert vm.state == "open"

    def test_the_vmm_finds_each_vms_steps_done(self) -> None:
        counter = host()
        vms = plain(counter)
        fleet = Fleet(vms)
        saved = fleet.checkpoint()
        counter.advance(PAUSE)
        with fleet.restoring(saved, Advance()) as opened:
            assert opened.plan.accepted == list(vms)
            opened.apply()
            counter.advance(7)
            report = opened.release()
            with pytest.raises(Misuse):
                opened._restores["a"].release()
        assert {one.added_ticks for one in report.values()} == {PAUSE + 7}
        assert repr(opened) == "<FleetRestore of 'a', 'b', 'c', 'd'>"

    def test_a_step_out_of_order_changes_nothing(self) -> None:
        """As it does not for one VM: the steps that are due can still be made."""
        counter = host()
        vms = plain(counter)
        fleet = Fleet(vms)
        saved = fleet.checkpoint()
        counter.advance(PAUSE)
        for on_failure in ("finish", "stop"):
            opened = fleet.restoring(saved, on_failure=on_failure)
            for step in (opened.apply, opened.release):
                with pytest.raises(Misuse, match="inside the block"):
                    step()
            with opened:
                with pytest.raises(Misuse, match="entered once"), opened:
                    pass
                with pytest.raises(OutOfOrder):
                    opened.release()
                opened.apply()
                with pytest.raises(OutOfOrder):
                    opened.apply()
                assert {vm.state for vm in vms.values()} == {"restoring"}
                assert opened.failed == {}
                report = opened.release()
                for step in (opened.apply, opened.release):
                    with pytest.raises(Misuse, match="has ended"):
                        step()
            assert [one.cntvct for one in report.values()] == [1000, 2000, 3000, 4000]
            assert [vm.cntvct(0) for vm in vms.values()] == [1000, 2000, 3000, 4000]
        with fleet.restoring(saved) as opened:
            pass
        for step in (opened.apply, opened.release):
            with pytest.raises(Misuse, match="given up"):
                step()

    def test_a_word_that_is_no_choice(self) -> None:
        fleet = Fleet(plain(host()))
        with pytest.raises(ValueError, match="no on_failure='go on'"):
            fleet.restore(fleet.checkpoint(), on_failure="go on")  # type: ignore[arg-type]

    def test_options_and_refusals_are_one_vms(self) -> None:
        counter = host()
        vms = mixed(counter)
        saved = Fleet(vms).checkpoint()
        planned = Fleet(vms).plan(saved, views="refuse")
        assert {name: type(error) for name, error in planned.refused.items()} == {
            "by value": CounterSkew,
            "old": CounterSkew,
        }


PLANTED = {
    "prepare": Fault("set_counter_offset", errno=errno.EIO),
    "apply": Fault("set_one_reg 1 TIMER_CTL", errno=errno.EIO),
    "release": Fault("set_counter_offset", nth=1, errno=errno.EIO),
    "crash": Fault("release", crash=True),
}


class TestFailures:
    @pytest.mark.parametrize("step", PLANTED)
    def test_the_others_finish(self, step: str) -> None:
        counter = host()
        vms = plain(counter)
        saved = Fleet(vms).checkpoint()
        counter.advance(PAUSE)
        under = Fleet(faulty(vms, b=PLANTED[step]))
        with pytest.raises(FleetInterrupted, match="1 of 4 VMs aren't restored") as caught:
            under.restore(saved)
        error = caught.value
        assert list(error.failed) == ["b"]
        assert {name: report.cntvct for name, report in error.reports.items()} == {"a": 1000, "c": 3000, "d": 4000}
        assert [vms[name].state for name in "acd"] == ["open"] * 3
        left = error.failed["b"]
        closed = {"prepare": "open", "apply": "restoring", "release": "restoring", "crash": "restoring"}
        assert vms["b"].state == closed[step]
        if isinstance(left, Interrupted):
            assert left.state == {"prepare": "as-it-was", "apply": "half-restored", "release": "timers-only"}[step]
            # The way on that it names.
            reports = Fleet(vms).restore(saved, only=error.failed)
            assert (list(reports), vms["b"].cntvct(0)) == (["b"], 2000)

    @pytest.mark.parametrize("step", PLANTED)
    def test_the_others_stop(self, step: str) -> None:
        counter = host()
        vms = plain(counter)
        saved = Fleet(vms).checkpoint()
        before = states(vms)
        counter.advance(PAUSE)
        with pytest.raises(FleetInterrupted) as caught:
            Fleet(faulty(vms, b=PLANTED[step])).restore(saved, on_failure="stop")
        error = caught.value
        done = ["a"] if step in ("release", "crash") else []
        assert (list(error.reports), list(error.failed)) == (done, [n for n in "bacd" if n not in done])
        assert error.__cause__ is error.failed["b"]
        for name in "acd":
            left = error.failed.get(name)
            if name in done:
                assert vms[name].state == "open"
            elif step == "prepare":
                # Their own offsets are back, and their clocks went on.
                assert isinstance(left, Interrupted)
                assert (left.state, vms[name].state, state(vms[name])) == ("as-it-was", "open", before[name])
                assert "since VM 'b' failed" in str(left)
            else:
                assert isinstance(left, Interrupted)
                wrote = name == "a" or step != "apply"
                assert left.state == ("timers-only" if wrote else "as-it-was")
                assert vms[name].state == ("restoring" if wrote else "open")
        Fleet(vms).restore(saved)
        assert [vm.cntvct(0) for vm in vms.values()] == [1000, 2000, 3000, 4000]

    def test_several_failures_are_all_named(self) -> None:
        counter = host()
        vms = plain(counter)
        saved = Fleet(vms).checkpoint()
        under = faulty(vms, a=PLANTED["apply"], c=PLANTED["release"], d=PLANTED["prepare"])
        with pytest.raises(FleetInterrupted, match=r"3 of 4 VMs.*, and 2 more") as caught:
            Fleet(under).restore(saved)
        assert sorted(caught.value.failed) == ["a", "c", "d"]
        assert list(caught.value.reports) == ["b"]

    def test_the_error_survives_a_copy_with_its_reports(self) -> None:
        counter = host()
        vms = plain(counter)
        saved = Fleet(vms).checkpoint()
        with pytest.raises(FleetInterrupted) as caught:
            Fleet(faulty(vms, b=PLANTED["apply"])).restore(saved)
        error = caught.value
        for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
            assert (str(twin), list(twin.failed), dict(twin.reports)) == (str(error), ["b"], dict(error.reports))
            assert str(twin.failed["b"]) == str(error.failed["b"])
        assert str(error).endswith("call restore(only=error.failed) again [fleet-interrupted]")
        assert isinstance(error, Interrupted)
        assert isinstance(error, GuestClockError)

    def test_a_callers_mistake_is_no_vms_failure(self) -> None:
        counter = host()
        vms = plain(counter)
        fleet = Fleet(vms)
        saved, before = fleet.checkpoint(), states(vms)
        with pytest.raises(TypeError):
            fleet.restore(saved, Advance(), now="now")  # type: ignore[arg-type]
        with pytest.raises(TypeError), fleet.restoring(saved) as opened:
            opened.apply(now="now")  # type: ignore[arg-type]
        assert states(vms) == before
        assert {vm.state for vm in vms.values()} == {"open"}


class TestThreads:
    """The work of a fleet is shared, and comes to the same."""

    @every_policy
    @pytest.mark.parametrize("threads", [2, 3, 100])
    def test_every_verb_comes_to_the_same(self, policy: Policy, threads: int) -> None:
        counter = host()
        only = fitting(policy)
        fleet = Fleet(mixed(counter))
        saved = fleet.checkpoint(only=only)
        assert fleet.checkpoint(only=only, threads=threads) == saved
        counter.advance(PAUSE)
        alone, into = alike(counter), alike(counter)
        one, many = Fleet(alone), Fleet(into)
        planned = one.plan(saved, policy, only=only).to_dict()
        assert many.plan(saved, policy, only=only, threads=threads).to_dict() == planned
        reports = one.restore(saved, policy, only=only)
        assert many.restore(saved, policy, only=only, threads=threads).to_dict() == reports.to_dict()
        assert list(reports) == only
        assert [state(into[name]) for name in only] == [state(alone[name]) for name in only]
        assert many.verify(reports, only=only, threads=threads)
        pauses = [fleet.pause(Freeze(), only=only, threads=share) for fleet, share in ((one, 1), (many, threads))]
        counter.advance(5)
        first, second = (pause.resume().to_dict() for pause in pauses)
        assert first == second

    def test_all_fail_alike(self) -> None:
        counter = host()
        vms = plain(counter)
        saved = Fleet(vms).checkpoint()
        for on_failure, left in (("finish", 2), ("stop", None)):
            under = {
                name: FaultyVm(vm, [Fault("apply", crash=True)] if name in "bd" else []) for name, vm in vms.items()
            }
            with pytest.raises(FleetInterrupted) as caught:
                Fleet(under).restore(saved, on_failure=on_failure, threads=4)  # type: ignore[arg-type]
            error = caught.value
            assert sorted([*error.failed, *error.reports]) == list("abcd")
            assert left in (None, len(error.failed))
            Fleet(vms).restore(saved)

    def test_there_is_at_least_one(self) -> None:
        fleet = Fleet(plain(host()))
        for call in (fleet.checkpoint, fleet.pause, fleet.verify):
            with pytest.raises((ValueError, OverflowError)):
                call(threads=0)


class TestTheInterpretersLock:
    """It is given up once for a call: a thread that takes it then, and keeps it, sees the whole work done."""

    @pytest.mark.parametrize("threads", [1, 3])
    @pytest.mark.parametrize("opted_in", [False, True])
    def test_a_restore(self, threads: int, opted_in: bool) -> None:
        counter, vms, fleet = self.many(opted_in)

        def restore() -> None:
            saved = fleet.checkpoint()
            counter.advance(HZ)
            self.call(lambda: fleet.restore(saved, threads=threads), vms)

        self.until_it_shows(restore)

    @pytest.mark.parametrize("threads", [1, 3])
    def test_the_first_step_of_a_restore(self, threads: int) -> None:
        counter, vms, fleet = self.many(opted_in=True)

        def begin() -> None:
            saved = fleet.checkpoint()
            counter.advance(HZ)
            opened = fleet.restoring(saved, threads=threads)
            self.call(opened.__enter__, vms)
            opened.apply()
            opened.release()

        self.until_it_shows(begin)

    def test_the_end_of_a_pause(self) -> None:
        counter, vms, fleet = self.many(opted_in=True)

        def resume() -> None:
            paused = fleet.pause()
            counter.advance(HZ)
            self.call(paused.resume, vms)

        self.until_it_shows(resume)

    def test_a_counter_of_pythons_is_read_before_each_step(self) -> None:
        counter = Stamped(host())
        fleet = Fleet({name: ModelVm(2, counter=counter) for name in "ab"})
        saved = fleet.checkpoint()
        counter.stamps = 0
        report = fleet.restore(saved, Advance(), threads=2)
        # Planned, closed, prepared, applied and released.
        assert counter.stamps == 5 * len(fleet)
        assert {vm.released_at for vm in report.values()} <= {counter.read() - 1, counter.read()}

    def many(self, opted_in: bool) -> tuple[ManualCounter, list[ModelVm], Fleet]:
        """VMs whose counters stand where the call is to put them back to, an hour or so later."""
        counter = host()
        vms = [owned(counter, 4) if opted_in else ModelVm(4, counter=counter) for _ in range(150)]
        return counter, vms, Fleet({str(number): vm for number, vm in enumerate(vms)})

    def call(self, call: Callable[[], object], vms: list[ModelVm]) -> None:
        """Makes a call under which the guests' counters go back, while another thread waits for the lock."""
        before = [vm.cntvct(0) for vm in vms]
        waits, seen = threading.Lock(), []

        def keep() -> None:
            with waits:
                pass
            end = time.monotonic() + 20
            while True:
                seen.append(all(vm.cntvct(0) < then for vm, then in zip(vms, before, strict=True)))
                if seen[-1] or time.monotonic() > end:
                    return

        thread = threading.Thread(target=keep)
        waits.acquire()
        thread.start()
        waits.release()
        call()
        thread.join()
        self.seen = seen

    def until_it_shows(self, make: Callable[[], None]) -> None:
        """Makes the call again until the other thread came before its end: that one has to see its end, too."""
        interval = sys.getswitchinterval()
        sys.setswitchinterval(3600)
        try:
            for _ in range(100):
                make()
                assert self.seen[-1], "the call waited for the lock before its end"
                if not self.seen[0]:
                    return
        finally:
            sys.setswitchinterval(interval)
        pytest.fail("the other thread never came before the call's end")


class TestPauses:
    def test_each_from_its_own_sample_on(self) -> None:
        counter = host()
        vms = plain(counter)
        under = {name: FaultyVm(vm, [Fault("pause", delay_ticks=100)]) for name, vm in vms.items()}
        pause = Fleet(under).pause()
        with pytest.raises(Misuse):
            pause.report  # noqa: B018 - its getter raises
        for vm in vms.values():
            with pytest.raises(RestoreOpen), vm.running(0):
                pass
        counter.advance(PAUSE)
        report = pause.resume()
        assert [one.cntvct for one in report.values()] == [1100, 2200, 3300, 4400]
        assert report.columns()["added_ticks"].tolist() == [0] * 4
        with pytest.raises(Misuse):
            pause.resume()
        assert repr(pause) == "<FleetPause of 'a', 'b', 'c', 'd'>"

    def test_another_policy_at_the_end(self) -> None:
        counter = host()
        vms = plain(counter)
        pause = Fleet(vms).pause(only=["a", "c"])
        counter.advance(50)
        assert [vm.state for vm in vms.values()] == ["paused", "open", "paused", "open"]
        assert {report.added_ticks for report in pause.resume(Advance()).values()} == {50}

    def test_one_that_cannot_be_paused_lets_the_others_go_on(self) -> None:
        counter = host()
        vms = mixed(counter)
        with vms["owned"].pause(CatchUp(10**8, 10**9)):
            counter.advance(HZ)
        going_on = {name: vm for name, vm in vms.items() if name not in ("owned", "other")}
        before, count, began, step = states(going_on), vms["owned"].cntvct(0), counter.read(), vms["owned"].next_step()
        under = {name: FaultyVm(vm, [Fault("pause", delay_ticks=100)]) for name, vm in vms.items()}
        with vms["other"].running(0), pytest.raises(VcpuRunning) as caught:
            Fleet(under).pause()
        assert caught.value.__notes__ == ["VM 'other' of the fleet"]
        assert states(going_on) == before
        # As if it hadn't been paused: its clock has run on, and what it is owed is due when it was.
        assert writes(under) == []
        assert (vms["owned"].backlog_ticks, vms["owned"].cntvct(0)) == (HZ, count + counter.read() - began)
        assert step is not None
        assert (after := vms["owned"].next_step()) is not None
        assert after.due_at == step.due_at
        assert {vm.state for vm in vms.values()} == {"open"}

    def test_one_that_fails_stays_paused_and_the_others_go_on(self) -> None:
        counter = host()
        vms = plain(counter)
        fault = Fault("set_counter_offset", errno=errno.EIO)
        pause = Fleet(faulty(vms, b=fault)).pause()
        counter.advance(PAUSE)
        with pytest.raises(FleetInterrupted, match="1 of 4 VMs are still paused") as caught:
            pause.resume()
        error = caught.value
        assert (list(error.failed), list(error.reports), error.retry) == (["b"], ["a", "c", "d"], "resume")
        assert [vm.state for vm in vms.values()] == ["open", "paused", "open", "open"]
        counter.advance(PAUSE)
        report = pause.resume()
        assert [one.cntvct for one in report.values()] == [1000, 2000, 3000, 4000]
        assert [vm.state for vm in vms.values()] == ["open"] * 4

    def test_one_that_was_restored_meanwhile_has_left_the_pause(self) -> None:
        counter = host()
        vms = plain(counter)
        fleet = Fleet(faulty(vms, d=Fault("set_counter_offset", errno=errno.EIO)))
        saved = Fleet(vms).checkpoint()
        pause = fleet.pause()
        vms["a"].restore(saved["a"])
        counter.advance(PAUSE)
        with pytest.raises(FleetInterrupted) as caught:
            pause.resume()
        error = caught.value
        assert (list(error.failed), list(error.reports), error.retry) == (["a", "d"], ["b", "c"], "resume")
        assert "1 of 4 VMs are still paused ('d': " in str(error)
        assert "1 of 4 VMs had left the pause ('a': Misuse: another restore" in str(error)
        with pytest.raises(Misuse, match="isn't over"):
            pause.report  # noqa: B018 - its getter raises
        # It was named.
        assert list(pause.resume()) == list(pause.report) == ["b", "c", "d"]
        assert [vm.cntvct(0) for vm in vms.values()] == [1000 + PAUSE, 2000, 3000, 4000]
        assert {vm.state for vm in vms.values()} == {"open"}
        with pytest.raises(Misuse, match="is over"):
            pause.resume()

    def test_the_end_says_once_which_have_left_it(self) -> None:
        counter = host()
        bank = ClockBank(counter)
        handle = bank.add()
        vms = {**plain(counter), "e": bank.vm(handle)}
        fleet, saved = Fleet(vms), vms["b"].checkpoint()
        with pytest.raises(FleetInterrupted, match="2 of 5 VMs had left the pause") as caught, fleet.pause() as pause:
            vms["b"].restore(saved)
            bank.remove(handle)
        assert (list(caught.value.failed), list(caught.value.reports)) == (["b", "e"], ["a", "c", "d"])
        assert caught.value.retry == ""
        assert str(caught.value).endswith("the others are done [fleet-interrupted]")
        assert list(pause.report) == ["a", "c", "d"]

    def test_one_that_is_being_restored_may_come_back(self) -> None:
        counter = host()
        vms = plain(counter)
        saved, pause = vms["b"].checkpoint(), Fleet(vms).pause()
        with vms["b"].restoring(saved):
            for _ in range(2):
                with pytest.raises(FleetInterrupted, match="1 of 4 VMs are still paused"):
                    pause.resume()
        assert vms["b"].state == "paused"
        assert list(pause.resume()) == ["a", "b", "c", "d"]
        assert {vm.state for vm in vms.values()} == {"open"}

    def test_the_block_resumes_on_every_exit(self) -> None:
        vms = plain(host())
        with pytest.raises(TimeoutError), Fleet(vms).pause():
            raise TimeoutError
        assert {vm.state for vm in vms.values()} == {"open"}

    def test_an_error_of_the_end_keeps_the_blocks(self) -> None:
        counter = host()
        vms, bank = plain(counter), ClockBank(counter)
        bank.add_many(2)
        pauses = [Fleet(faulty(vms, b=Fault("set_counter_offset", errno=errno.EIO))).pause(), Fleet(bank).pause()]
        bank.remove(bank.vms())
        for pause in pauses:
            error = KeyError("x")
            with pytest.raises((FleetInterrupted, NoSuchVm)) as caught, pause:
                raise error
            assert caught.value.__context__ is error
        pauses[0].resume()


class TestCatchUp:
    def test_steps_come_as_they_are_due(self) -> None:
        counter = host()
        vms = plain(counter, "ab")
        fleet = Fleet(vms)
        for name, interval_ns in (("a", SECOND), ("b", 3 * SECOND)):
            with vms[name].pause(CatchUp(10**8, interval_ns)):
                counter.advance_ns(3 * 10**8)
        begin = counter.read()
        seen: list[tuple[str, int]] = []
        step: Step
        for name, step in fleet.catch_up(sleep=lambda s: counter.advance_ns(round(s * 1e9))):
            step.apply()
            seen.append((name, (counter.read() - begin) * 10 // HZ))
        assert [name for name, _ in seen] == ["a", "a", "a", "b", "b", "b"]
        # a's first is due a second after its pause, and b's pause came 0.3 s later.
        assert [tenths for _, tenths in seen] == [7, 17, 27, 30, 60, 90]
        assert [vm.backlog_ticks for vm in vms.values()] == [0, 0]
        assert list(fleet.catch_up()) == []

    def test_one_that_is_not_applied_holds_up_no_other(self) -> None:
        counter = host()
        vms = plain(counter, "ab")
        with Fleet(vms).pause(CatchUp(10**8, 10**8)):
            counter.advance_ns(3 * 10**8)
        seen: list[str] = []
        for name, step in Fleet(vms).catch_up(sleep=lambda s: counter.advance_ns(round(s * 1e9))):
            seen.append(name)
            if name == "b":
                step.apply()
            elif len(seen) > 40:
                break
        assert seen.count("b") == 3
        assert vms["a"].backlog_ticks == 3 * HZ // 10
        # It comes again after 10 ms at least.
        assert seen[:2] in (["a", "b"], ["b", "a"])

    def test_over_a_counter_that_is_moved_by_hand(self) -> None:
        counter = host()
        vms = plain(counter, "ab")
        with Fleet(vms).pause(CatchUp(10**8, 10**8)):
            counter.advance_ns(3 * 10**8)
        assert list(Fleet(vms).catch_up()) == []
        counter.advance_ns(10**8)
        assert [name for name, _ in Fleet(vms).catch_up()] == ["a", "b"]
        for _, step in Fleet(vms).catch_up():
            step.apply()
        assert {vm.backlog_ticks for vm in vms.values()} == {2 * HZ // 10}


def test_a_vm_by_any_backend_is_a_member() -> None:
    vms: dict[str, GuestVm] = {"model": owned(host(), 1, name="x")}
    vms["faulty"] = FaultyVm(owned(vms["model"].counter, 1), [])  # type: ignore[arg-type]
    fleet = Fleet(vms)
    reports = fleet.restore(fleet.checkpoint())
    assert all(isinstance(report, Report) for report in reports.values())


def test_an_array_of_handles_is_never_printed() -> None:
    """An attempt to take it for one integer would fail with its repr, which takes longer than the call itself."""
    bank = ClockBank(host())
    bank.add_many(100, 1)
    fleet = Fleet(bank)
    called: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            called.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        with fleet.pause():
            checkpoint = fleet.checkpoint()
        fleet.restore(checkpoint, Freeze())
        fleet.plan(checkpoint, Freeze())
    finally:
        sys.setprofile(None)
    assert any("fleet" in path for path in called)
    assert not any("arrayprint" in path for path in called)
