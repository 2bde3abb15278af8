"""`release(at=stamp)`: a restore that goes on from an instant which another process of the host has taken."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from guestclock import Advance, CatchUp, Fleet, Freeze, ManualCounter, ModelVm, Stamp
from guestclock.errors import OtherInstant
from guestclock.types import Policy

HZ = 62_500_000
S = 10**9


def host() -> ManualCounter:
    return ManualCounter(10**12, frequency_hz=HZ)


def opted_in(counter: ManualCounter, offset: int = 10**12) -> ModelVm:
    vm = ModelVm(2, counter=counter)
    vm.opt_in(offset=offset)
    return vm


def later(stamp: Stamp, **fields: object) -> Stamp:
    return replace(stamp, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "own"),
    [
        *((policy, own) for policy in (Freeze(), Advance(), Advance(max_ns=S)) for own in (True, False)),
        (CatchUp(10**8, 10**9), True),
    ],
    ids=str,
)
def test_a_release_for_an_instant_is_as_one_at_it(policy: Policy, own: bool) -> None:
    counter = host()
    saved = (opted_in(counter) if own else ModelVm(2, counter=counter)).checkpoint()
    counter.advance(2 * HZ)
    vms = [opted_in(counter, 7) if own else ModelVm(2, counter=counter) for _ in range(2)]
    with vms[0].restoring(saved, policy) as first, vms[1].restoring(saved, policy) as second:
        counter.advance(1000)
        first.apply()
        second.apply()
        stamp = pickle.loads(pickle.dumps(counter.stamp()))
        there = first.release()
        counter.advance(12_345)
        here = second.release(at=stamp)
    assert (here.released_at, here.cntvct, here.cntpct) == (there.released_at, there.cntvct, there.cntpct)
    assert (here.added_ticks, here.behind_ns, here.backlog_ticks) == (
        there.added_ticks,
        there.behind_ns,
        there.backlog_ticks,
    )
    # The guest sees what has passed since.
    assert here.returned_at - here.released_at == 12_345
    assert vms[0].cntvct(0) == vms[1].cntvct(0) == here.cntvct + 12_345
    assert vms[0].cntpct(1) == vms[1].cntpct(1)
    assert vms[1].verify(here)


def test_another_instant_is_refused_and_the_release_can_be_called_again() -> None:
    counter = host()
    vm = opted_in(counter)
    saved = vm.checkpoint()
    counter.advance(100)
    early = counter.stamp()
    counter.advance(100)
    with vm.restoring(saved) as r:
        r.apply()
        counter.advance(100)
        stamp = counter.stamp()
        calls = {
            "is of the counter tsc": later(stamp, source="tsc"),
            "or their frequencies differ": later(stamp, frequency_hz=HZ + 1),
            "this host's boot": later(stamp, boot_id="0" * 32),
            "shown to be of this host's boot": later(stamp, boot_id=None),
            "the counter reads": later(stamp, count=stamp.count + 1),
            "has slept since the stamp: not known": later(stamp, boottime_ns=None, slept_ns=None, slept_width_ns=None),
            "take it after all have planned": early,
        }
        for words, at in calls.items():
            with pytest.raises(OtherInstant, match=words) as caught:
                r.release(at=at)
            assert "release() without at= is for now" in str(caught.value)
            assert vm.state == "restoring"
        counter.suspend(5 * S)
        with pytest.raises(OtherInstant, match="has slept since the stamp: 5"):
            r.release(at=stamp)
        report = r.release(at=counter.stamp())
    assert (vm.state, report.added_ticks) == ("open", 0)


def test_a_sleep_before_the_instant_counts() -> None:
    counter = host()
    vm = opted_in(counter)
    other = opted_in(counter)
    saved = vm.checkpoint()
    with vm.restoring(saved, Advance()) as r, other.restoring(saved, Advance()) as same:
        r.apply()
        same.apply()
        counter.suspend(5 * S)
        stamp = counter.stamp()
        expected = same.release()
        counter.advance(77)
        report = r.release(at=stamp)
    assert report.elapsed_by == expected.elapsed_by
    assert report.added_ticks == expected.added_ticks >= 5 * HZ
    assert [one.code for one in report.warnings] == [one.code for one in expected.warnings] != []


def test_a_fleet_goes_on_from_one_instant() -> None:
    counter = host()
    fleet = Fleet({name: opted_in(counter, 10**12 - at) for at, name in enumerate("abc")})
    saved = fleet.checkpoint()
    counter.advance(500)
    with fleet.restoring(saved, Freeze(), threads=3) as r:
        r.apply()
        counter.advance(10)
        stamp = counter.stamp()
        counter.advance(990)
        with pytest.raises(OtherInstant) as caught:
            r.release(at=later(stamp, count=stamp.count + 10**6))
        assert caught.value.__notes__ == ["VM 'a' of the fleet"]
        assert {vm.state for vm in fleet.values()} == {"restoring"}
        reports = r.release(at=stamp)
    assert {report.released_at for report in reports.values()} == {stamp.count}
    assert [fleet[name].cntvct(0) - saved[name].cntvct for name in "abc"] == [990] * 3
