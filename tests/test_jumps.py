"""A plan's account of what a jump does to a Linux guest, as its caller describes the guest."""

from __future__ import annotations

import pytest

from guestclock import MS, Advance, CatchUp, Elapsed, Freeze, ManualCounter, ModelVm, Options, Plan, S
from guestclock.types import LinuxGuest, Policy

DEFAULTS = {
    "soft lockup": "certain",
    "RCU stall": "possible",
    "workqueue lockup": "possible",
    "hung task": "not crossed",
    "timekeeping overflow": "not crossed",
    "sched_clock wrap": "not crossed",
}
"""After a jump of 40 s."""


def planned(policy: Policy, elapsed_ns: int, guest: LinuxGuest | None = None) -> Plan:
    vm = ModelVm(counter=ManualCounter(0))
    vm.opt_in()
    return vm.plan(vm.checkpoint(), policy, elapsed=Elapsed.given(elapsed_ns, error_ns=0), guest=guest)


def reached(plan: Plan) -> dict[str, str]:
    return {limit.name: limit.reached for limit in plan.limits}


@pytest.mark.parametrize("guest", [None, LinuxGuest()])
def test_the_defaults_are_the_kernels(guest: LinuxGuest | None) -> None:
    plan = planned(Advance(), 40 * S, guest)
    assert plan.jump_ns == 40 * S
    assert reached(plan) == DEFAULTS
    assert plan.throttled_ns is None
    limits = [(limit.name, limit.earliest_ns, limit.at_ns) for limit in plan.limits]
    assert limits[:4] == [
        ("soft lockup", 20 * 2**30 + 1 - 4 * S, 21 * 2**30),
        ("RCU stall", 21 * S, 21 * S),
        ("workqueue lockup", 30 * S, 30 * S),
        ("hung task", 120 * S, 120 * S),
    ]


def test_a_guests_own_settings_decide() -> None:
    guest = LinuxGuest(watchdog_thresh_s=30, rcu_stall_s=0, softdog_s=(60, 30), cpu_max_us=(50_000, 100_000))
    assert reached(planned(Advance(), 40 * S, guest)) == {
        "soft lockup": "not crossed",
        "workqueue lockup": "possible",
        "hung task": "not crossed",
        "softdog": "possible",
        "timekeeping overflow": "not crossed",
        "sched_clock wrap": "not crossed",
    }
    options = Options(guest=guest)
    vm = ModelVm(counter=ManualCounter(0))
    vm.opt_in()
    plan = vm.plan(vm.checkpoint(), Advance(), options=options, elapsed=Elapsed.given(60 * S, error_ns=0))
    assert reached(plan)["softdog"] == "certain"
    # Each period gives back half of itself.
    assert plan.throttled_ns == 2 * 60 * S


@pytest.mark.parametrize(
    ("policy", "jump_ns"), [(Freeze(), 0), (CatchUp(400 * MS, S), 400 * MS), (Advance(5 * S), 5 * S)]
)
def test_the_jump_is_what_the_guest_gets_at_once(policy: Policy, jump_ns: int) -> None:
    plan = planned(policy, 40 * S)
    assert plan.jump_ns == jump_ns
    assert set(reached(plan).values()) == {"not crossed"}
    told = str(plan)
    assert ("to the task that ran" in told) == (jump_ns > 0)
    assert ("CatchUp instead" in told) == (jump_ns == 5 * S)
    said = plan.to_dict()
    assert said["in_steps"] == (
        {"step_ns": 400 * MS, "interval_ns": S, "duration_ns": 13 * S} if jump_ns == 5 * S else None
    )


def test_a_large_jump_is_warned_of_with_the_way_out() -> None:
    plan = planned(Advance(), 40 * S)
    (warning,) = [warning for warning in plan.warnings if warning.code == "large-jump"]
    assert "soft lockup, RCU stall, workqueue lockup" in warning.text
    assert "CatchUp(step_ns=400000000, interval_ns=1000000000)" in warning.text


@pytest.mark.parametrize("wrong", [{"softdog_s": 60}, {"cpu_max_us": (0, 100_000)}, {"watchdog_thresh_s": -1}])
def test_a_setting_that_cannot_be_is_named(wrong: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError), match="guest"):
        planned(Advance(), S, LinuxGuest(**wrong))  # type: ignore[arg-type]
