"""Real Linux guests, saved once and restored many times: every row is judged by the guest's own account.

The machine counts instructions, so that none of this depends on how busy its host is.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from guestclock import Advance, CatchUp, Freeze
from linux_guest import campaign
from linux_guest.campaign import Outcome, Snapshot, in_a_child, to_ns
from linux_guest.session import HOST_HZ, ask
from linux_vmm import LinuxVm, Policy

S = 1_000_000_000
TICK_NS = -(-S // HOST_HZ)
nightly = pytest.mark.nightly


@dataclass(frozen=True)
class Saved:
    """One guest, idle and busy."""

    idle: Snapshot
    busy: Snapshot


@pytest.fixture(scope="session")
def saved(kernel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    """One boot and two snapshots: the busy guest is the idle one, restored, with a loop for each vCPU."""
    place = tmp_path_factory.mktemp(kernel.name)

    def idle() -> Snapshot:
        return campaign.snapshot(campaign.boot(kernel.read_bytes()), place / "idle", busy=False)

    first = in_a_child(idle)

    def busy() -> Snapshot:
        vm = LinuxVm.restore(first.directory, Freeze())
        vm.resume()
        ask(vm, f"{campaign.LOOP} {campaign.LOOP}")
        return campaign.snapshot(vm, place / "busy", busy=True)

    yield Saved(first, in_a_child(busy))
    shutil.rmtree(place)


def judge(outcome: Outcome) -> None:
    """Assert what holds of every restore that guestclock makes."""
    print(outcome.console)
    for clock in ("monotonic", "boottime", "realtime", "raw"):
        low, high = outcome.after.moved_ns(outcome.before, clock)
        assert low <= high
        assert abs(outcome.after.settled_ns(outcome.before, clock)) <= TICK_NS, clock
    assert {watcher.cpu for watcher in outcome.watchers} == {0, 1}
    assert all(watcher.looks for watcher in outcome.watchers)
    assert [watcher.back for watcher in outcome.watchers] == [0, 0]
    assert outcome.interrupts > 0
    # The guest's clock against the host's, within what the VMM itself can tell of the stop and the release.
    due = outcome.missed
    match outcome.policy:
        case Freeze():
            due = (0, 0)
        case Advance(max_ns=int(most)):
            due = (min(due[0], most * HOST_HZ // S), min(due[1], most * HOST_HZ // S))
    assert due[0] - 1 <= outcome.added <= due[1] + 1
    low = outcome.passed[0] - outcome.paused[1] + due[0]
    high = outcome.passed[1] - outcome.paused[0] + due[1]
    for clock in ("monotonic", "boottime", "realtime"):
        assert to_ns(low) - TICK_NS <= outcome.moved(clock) <= to_ns(high) + TICK_NS, clock
    complain(outcome)


def complain(outcome: Outcome) -> None:
    """Assert that the guest's kernel complains as the plan says."""
    for limit in outcome.limits:
        lines = outcome.complaints.get(limit["name"], [])
        if limit["reached"] == "not crossed":
            assert not lines, limit
        if limit["name"] == "soft lockup" and outcome.busy and limit["reached"] == CERTAIN:
            assert lines, limit


CERTAIN = "certain"


@pytest.mark.parametrize(
    ("policy", "after_s"),
    [
        (Freeze(), 5),
        (Advance(), 5),
        pytest.param(Advance(), 30, marks=nightly),
        pytest.param(Advance(max_ns=10 * S), 40, marks=nightly),
    ],
    ids=repr,
)
def test_an_idle_guest(saved: Saved, policy: Policy, after_s: int) -> None:
    """The time that passed since the snapshot is the evidence's: at least `after_s`."""
    outcome = in_a_child(lambda: campaign.restore(saved.idle, policy, after_s=after_s))
    judge(outcome)
    judge_jump(outcome, to_ns(outcome.added))


@nightly
@pytest.mark.parametrize("at_once_s", [0, 10])
def test_an_idle_guest_in_steps(saved: Saved, at_once_s: int) -> None:
    policy = CatchUp(step_ns=5 * S, interval_ns=6 * S, at_once_ns=at_once_s * S)
    outcome = in_a_child(lambda: campaign.restore(saved.idle, policy, given_ns=20 * S))
    judge(outcome)
    assert outcome.steps >= (20 - at_once_s) // 5
    judge_jump(outcome, max(policy.step_ns, policy.at_once_ns))


def judge_jump(outcome: Outcome, jump: int) -> None:
    """Assert that a timer of 100 ms that was armed before the pause expires at once, as often as the jump has room."""
    for watcher in outcome.watchers:
        assert watcher.most_expired >= jump // watcher.period_ns
        assert watcher.gap_ns >= jump


@pytest.mark.parametrize(
    ("policy", "given_s"),
    [
        pytest.param(Freeze(), 25, marks=nightly),
        pytest.param(Advance(), 5, marks=nightly),
        pytest.param(Advance(), 17, marks=nightly),
        pytest.param(Advance(), 21, marks=nightly),
        (Advance(), 23),
        pytest.param(Advance(), 9000, marks=nightly),
        pytest.param(CatchUp(step_ns=4 * S, interval_ns=5 * S), 24, marks=nightly),
    ],
    ids=repr,
)
def test_a_busy_guest(saved: Saved, policy: Policy, given_s: int) -> None:
    judge(in_a_child(lambda: campaign.restore(saved.busy, policy, given_ns=given_s * S)))


@pytest.mark.parametrize("policy", [pytest.param(Freeze(), marks=nightly), Advance()], ids=repr)
def test_a_pause_in_place(saved: Saved, policy: Freeze | Advance) -> None:
    judge(in_a_child(lambda: campaign.in_place(saved.idle, policy, pause_s=3)))


@nightly
def test_two_vms_of_one_process(saved: Saved) -> None:
    def both() -> list[Outcome]:
        return [campaign.restore(each, Advance(), after_s=1) for each in (saved.idle, saved.busy)]

    for outcome in in_a_child(both):
        judge(outcome)
