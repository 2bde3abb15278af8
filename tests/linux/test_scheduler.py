"""A real Linux guest's scheduler after a jump: the plan says what a task that ran is charged, and what a quota does."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from guestclock import MS, Advance, Elapsed, Freeze, S
from guestclock.types import LinuxGuest
from kvm_vmm import PSTATE
from linux_guest import campaign
from linux_guest.campaign import in_a_child
from linux_guest.session import ask
from linux_vmm import VCPUS, LinuxVm

if TYPE_CHECKING:
    from linux_vmm import Policy

JUMP_S = 8
QUOTA_US = (80_000, 100_000)
LOOP = "sh -c 'while :; do :; done' & echo loop $!"
PAIR = f"for each in 1 2; do taskset 2 {LOOP}; done"
"""Two busy loops on the second CPU."""
LIMITED = (
    "mkdir -p /tmp/cgroup; mount -t cgroup2 none /tmp/cgroup; echo +cpu >/tmp/cgroup/cgroup.subtree_control;"
    f" mkdir /tmp/cgroup/one; echo {QUOTA_US[0]} {QUOTA_US[1]} >/tmp/cgroup/one/cpu.max;"
    f" taskset 1 {LOOP}; echo $! >/tmp/cgroup/one/cgroup.procs"
)
"""A busy loop on the first CPU, in a group with a quota."""
URGENT = "chrt -f -p 50 $$"
"""Has the shell answer at once, whatever else runs."""
FAIR_NS = 300 * MS
"""Distance of the pair's times where the scheduler has made them equal: slices, and what happens between two reads."""
pytestmark = pytest.mark.nightly


@dataclass(frozen=True)
class Account:
    """The guest's account at one moment, in nanoseconds: the CPU time of the pair and of the loop with a quota, and the
    time for which that was throttled.
    """

    pair: tuple[int, int]
    limited: int
    throttled: int

    def __sub__(self, earlier: Account) -> Account:
        pair = self.pair[0] - earlier.pair[0], self.pair[1] - earlier.pair[1]
        return Account(pair, self.limited - earlier.limited, self.throttled - earlier.throttled)


@dataclass(frozen=True)
class Saved:
    """A guest that was saved while loops ran on both CPUs, its account of some seconds before, and the loops' ids."""

    directory: Path
    account: Account
    loops: tuple[int, int, int]


def accounted(vm: LinuxVm, loops: tuple[int, int, int]) -> Account:
    files = " ".join(f"/proc/{pid}/schedstat" for pid in loops)
    told = ask(vm, f"cat {files} /tmp/cgroup/one/cpu.stat").text.replace("\r", "")
    one, other, limited = map(int, re.findall(r"^(\d+) \d+ \d+$", told, re.MULTILINE))
    (throttled_us,) = map(int, re.findall(r"^throttled_usec (\d+)", told, re.MULTILINE))
    return Account((one, other), limited, throttled_us * 1000)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    place = tmp_path_factory.mktemp("scheduler")

    def work() -> Saved:
        vm = campaign.boot(Path("/guest/6.12").read_bytes())
        one, other = map(int, re.findall(r"^loop (\d+)", ask(vm, PAIR).text, re.MULTILINE))
        (limited,) = map(int, re.findall(r"^loop (\d+)", ask(vm, LIMITED).text, re.MULTILINE))
        ask(vm, URGENT)
        told = accounted(vm, (one, other, limited))
        for _ in range(60):
            time.sleep(1)
            vm.pause()
            # At EL0 is a loop. The other programs sleep nearly all the time.
            if not any(vm.machine.get_one_reg(vcpu, PSTATE) & 0xC for vcpu in range(VCPUS)):
                vm.save(place)
                vm.close()
                return Saved(place, told, (one, other, limited))
            vm.resume()
        raise RuntimeError("no pause found the loops running on both CPUs")

    yield in_a_child(work)
    shutil.rmtree(place)


def restored(saved: Saved, policy: Policy) -> tuple[dict[str, Any], list[Account]]:
    """Restores the guest, and returns the plan and three accounts, each less the saved one: two soon, and one later."""
    elapsed = Elapsed.given(JUMP_S * S, error_ns=0)
    vm = LinuxVm.restore(saved.directory, policy, elapsed=elapsed, guest=LinuxGuest(cpu_max_us=QUOTA_US))
    vm.resume()
    accounts = []
    for pause_s in (0, 0, 2 * JUMP_S):
        time.sleep(pause_s)
        accounts.append(accounted(vm, saved.loops) - saved.account)
    vm.close()
    return dict(vm.plan.to_dict()), accounts


def test_a_jump_is_charged_to_the_loops_that_ran(saved: Saved) -> None:
    plan, (first, second, later) = in_a_child(partial(restored, saved, Advance()))
    print(plan["jump_ns"], plan["throttled_ns"], first, second, later)
    assert plan["jump_ns"] >= JUMP_S * S
    # The one of the pair that ran is charged, and gets nothing until the other one has had as much.
    less, more = (0, 1) if first.pair[0] < first.pair[1] else (1, 0)
    assert first.pair[more] >= plan["jump_ns"]
    assert second.pair[more] == first.pair[more]
    assert second.pair[less] > first.pair[less]
    assert later.pair[more] > second.pair[more]
    assert abs(later.pair[less] - later.pair[more]) < FAIR_NS
    # The quota's loop is charged too, and its group is throttled until the quota has made that up, at least.
    assert first.limited >= plan["jump_ns"]
    assert second.limited == first.limited
    assert later.limited > second.limited
    assert later.throttled >= plan["throttled_ns"] - 2 * QUOTA_US[1] * 1000


def test_nobody_is_charged_under_freeze(saved: Saved) -> None:
    plan, accounts = in_a_child(partial(restored, saved, Freeze()))
    print(accounts)
    assert (plan["jump_ns"], plan["throttled_ns"]) == (0, 0)
    for told in accounts:
        assert abs(told.pair[0] - told.pair[1]) < FAIR_NS
    assert accounts[1].limited > accounts[0].limited
