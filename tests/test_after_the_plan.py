"""What passes between a plan and its release is in the report: the jump, its warnings, the steps that it takes.

On one counter of this process, so nothing is refused after the plan.
"""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from guestclock import Advance, CatchUp, Freeze, Interrupted, ModelVm, Reg, Report
from guestclock.testing import Fault, FaultyVm
from guestclock.types import Policy
from vms import SECOND, host, owned


def released(policy: Policy, after_the_plan_s: int = 0, slept_s: int = 0) -> Report:
    """A restore after a second, with so much time between its plan and its release."""
    counter = host()
    checkpoint = owned(counter).checkpoint()
    counter.advance_ns(SECOND)
    with ModelVm(2, counter=counter).restoring(checkpoint, policy) as opened:
        opened.apply()
        counter.advance_ns(after_the_plan_s * SECOND)
        if slept_s:
            counter.suspend(slept_s * SECOND)
        return opened.release()


def codes(report: Report) -> list[str]:
    return [warning.code for warning in report.warnings]


def crossed(report: Report) -> list[str]:
    said: dict[str, Any] = report.to_dict()
    return [limit["name"] for limit in said["limits"] if limit["reached"] != "not crossed"]


def test_a_jump_that_grew_is_told() -> None:
    assert codes(released(Advance())) == []
    report = released(Advance(), after_the_plan_s=24)
    assert codes(report) == ["large-jump"]
    assert report.to_dict()["jump_ns"] == report.added_ns == 25 * SECOND
    assert crossed(report) == ["soft lockup", "RCU stall"]
    assert codes(released(Freeze(), after_the_plan_s=24)) == []


def test_a_cap_that_was_reached_is_told() -> None:
    report = released(Advance(2 * SECOND), after_the_plan_s=100)
    assert (codes(report), report.capped, report.disrupts) == (["capped"], True, True)
    assert report.to_dict()["jump_ns"] == 2 * SECOND


def test_a_backlog_that_grew_too_large_is_told() -> None:
    policy = CatchUp(SECOND, 2 * SECOND, within_ns=100 * SECOND)
    assert codes(released(policy, after_the_plan_s=49)) == []
    assert codes(released(policy, after_the_plan_s=50)) == ["backlog-late"]


def test_a_counter_that_stopped_has_lost_step() -> None:
    kept = released(Advance(), after_the_plan_s=1)
    assert (kept.disrupts, kept.error_bound_ns) == (False, 0)
    report = released(Advance(), slept_s=100)
    assert report.disrupts
    assert report.error_bound_ns > SECOND
    assert codes(report) == ["counter-stopped", "large-jump"]


def test_freeze_gives_the_guest_nothing_of_a_sleep_and_says_nothing_of_it() -> None:
    report = released(Freeze(), slept_s=100)
    assert (codes(report), report.added_ticks) == ([], 0)
    assert report.behind_ns
    assert report.behind_ns >= 101 * SECOND


def test_a_physical_counter_that_got_an_offset_traps() -> None:
    """Planned for a counter that needs no offset, and released later under Freeze, it needs one."""
    counter = host()
    vm = ModelVm(2, counter=counter)
    vm.opt_in(offset=0)
    saved = vm.checkpoint()
    assert not vm.plan(saved).degraded
    with ModelVm(2, counter=counter).restoring(saved) as opened:
        opened.apply()
        counter.advance(700)
        report = opened.release()
    assert [diagnostic.code for diagnostic in report.degraded] == ["physical-traps"]


def test_a_physical_timer_misfires_by_the_offset_of_the_release() -> None:
    counter = host()
    vm = owned(counter)
    vm.set_one_reg(0, Reg.PTIMER_CVAL, 2**64 - 1 - counter.read() + 1000 - 100)
    vm.set_one_reg(0, Reg.PTIMER_CTL, 1)
    saved = vm.checkpoint()
    with ModelVm(2, counter=counter).restoring(saved) as opened:
        opened.apply()
        early = codes(opened.release())
    with ModelVm(2, counter=counter).restoring(saved) as opened:
        opened.apply()
        counter.advance(700)
        late = opened.release()
    assert (early, codes(late)) == ([], ["physical-timer-misfires"])
    assert pickle.loads(pickle.dumps(late)) == late


def test_a_physical_counter_that_is_not_restored_stays_the_hosts() -> None:
    counter = host()
    saved = ModelVm(1, counter=counter, kernel="6.1").checkpoint()
    counter.advance_ns(SECOND)
    vm = ModelVm(1, counter=counter, kernel="6.1")
    for report in (vm.restore(saved), vm.restore(saved, Advance()), vm.pause().resume()):
        assert report.method == "virtual-only"
        assert report.cntpct == vm.cntpct(0, now=report.released_at) == report.to_dict()["cntpct"]


def test_a_report_of_a_plan_that_grew_old_pickles() -> None:
    report = released(Advance(), after_the_plan_s=24)
    again = pickle.loads(pickle.dumps(report))
    assert again == report
    assert (codes(again), again.to_dict()) == (codes(report), report.to_dict())


def test_a_sleep_is_told_once_however_often_the_release_is_tried() -> None:
    counter = host()
    checkpoint = owned(counter).checkpoint()
    vm = FaultyVm(ModelVm(2, counter=counter), [Fault("set_counter_offset", nth=1, errno=5)])
    with vm.restoring(checkpoint, Advance()) as opened:
        opened.apply()
        counter.suspend(2 * SECOND, counter="counts-on")
        with pytest.raises(Interrupted):
            opened.release()
        counter.suspend(3 * SECOND, counter="counts-on")
        report = opened.release()
    assert codes(report) == ["counted-through-sleep"]
    assert "5" in report.warnings[0].text
