"""`CatchUp`: time that is owed, paid back in steps while the guest lives."""

from __future__ import annotations

import mmap
import pickle
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestclock import Advance, CatchUp, Checkpoint, Elapsed, Freeze, ManualCounter, ModelVm, Reg, Timer
from guestclock.errors import (
    CapabilityMissing,
    CounterSkew,
    DeadlineMissed,
    Misuse,
    NoBacklog,
    ReadBackMismatch,
    RestoreOpen,
    VcpuRunning,
)
from guestclock.guest import ClockEquation, VmClock
from guestclock.testing import Fault, FaultyVm
from guestclock.types import Step
from vms import HZ, NS, SECOND, host, owned, state

SLOWLY = CatchUp(step_ns=SECOND // 2, interval_ns=SECOND)


def owing(pause_ticks: int, policy: CatchUp = SLOWLY) -> tuple[ManualCounter, ModelVm]:
    """A VM that was away for so many ticks, restored on its own counter."""
    counter = host()
    checkpoint = owned(counter).checkpoint()
    counter.advance(pause_ticks)
    vm = ModelVm(2, counter=counter)
    vm.restore(checkpoint, policy)
    return counter, vm


def due(vm: ModelVm) -> Step:
    """The next step, when it is due."""
    step = vm.next_step()
    assert step
    counter = vm.counter
    assert isinstance(counter, ManualCounter)
    counter.advance(step.wait_ns() // NS)
    return step


def given_at_once(policy: Advance | CatchUp | Freeze, missed: int, kept: int) -> tuple[int, int, bool]:
    """The plain statement of the policies: ticks added, ticks of backlog, and whether a cap took anything away."""
    match policy:
        case Freeze():
            return 0, kept, False
        case Advance():
            added = missed if policy.max_ns is None else min(missed, policy.max_ns // NS)
            return added, 0, added < missed
        case CatchUp():
            added = min(missed, policy.at_once_ns // NS)
            return added, missed - added, False


nanoseconds = st.integers(0, 2**40)
policies = st.one_of(
    st.just(Freeze()),
    st.builds(Advance, st.none() | nanoseconds),
    st.builds(CatchUp, st.integers(1, 2**40), st.integers(1, 2**40), at_once_ns=nanoseconds),
)


@given(first=policies, second=policies, away=st.tuples(st.integers(0, 2**34), st.integers(0, 2**34)))
def test_a_policy_is_its_plain_statement(
    first: Advance | CatchUp | Freeze, second: Advance | CatchUp | Freeze, away: tuple[int, int]
) -> None:
    """The second restore counts the first one's backlog as missed, unless it is a freeze."""
    counter = host()
    checkpoint, kept, cntvct = owned(counter).checkpoint(), 0, 1000
    for policy, ticks in zip((first, second), away, strict=True):
        counter.advance(ticks)
        vm = ModelVm(2, counter=counter)
        report = vm.restore(checkpoint, policy)
        added, kept, capped = given_at_once(policy, ticks + kept, kept)
        assert (report.added_ticks, report.backlog_ticks, report.capped) == (added, kept, capped)
        cntvct += added
        assert (vm.cntvct(0), vm.backlog_ticks) == (cntvct, kept)
        # Through the bytes: a backlog is data of the checkpoint.
        checkpoint = Checkpoint.from_bytes(vm.checkpoint().to_bytes())


def test_ten_seconds_at_once_and_the_rest_in_steps() -> None:
    policy = CatchUp(step_ns=4 * SECOND // 10, interval_ns=SECOND, at_once_ns=10 * SECOND)
    counter, vm = owing(40 * HZ, policy)
    assert (vm.cntvct(0), vm.backlog_ticks) == (1000 + 10 * HZ, 30 * HZ)
    intended = ModelVm(2, counter=counter).plan(vm.checkpoint(), policy)
    assert intended.to_dict()["policy"] == {
        "name": "catch-up",
        "step_ns": 4 * SECOND // 10,
        "interval_ns": SECOND,
        "at_once_ns": 10 * SECOND,
        "within_ns": None,
    }
    # The jump at once is what a guest's watchdogs may feel, and no step is larger.
    assert intended.to_dict()["jump_ns"] == 10 * SECOND
    steps = 0
    while step := vm.next_step():
        counter.advance(step.due_at - counter.read())
        step.apply()
        steps += 1
    assert (steps, vm.backlog_ticks) == (75, 0)
    assert vm.cntvct(0) == 1000 + 40 * HZ + 75 * HZ


def test_what_is_given_at_once_need_not_be_paid_back_in_time() -> None:
    for at_once_ns, refused in ((10 * SECOND, False), (10 * SECOND - 1, True)):
        counter = host()
        checkpoint = owned(counter).checkpoint()
        counter.advance(40 * HZ)
        policy = CatchUp(SECOND, 2 * SECOND, at_once_ns=at_once_ns, within_ns=60 * SECOND)
        if refused:
            with pytest.raises(DeadlineMissed) as caught:
                ModelVm(2, counter=counter).plan(checkpoint, policy)
            assert (caught.value.needed_ns, caught.value.within_ns) == (62 * SECOND, 60 * SECOND)
        else:
            ModelVm(2, counter=counter).plan(checkpoint, policy)


@given(
    pause=st.integers(0, 2**40),
    step_ns=st.integers(1, 2**50),
    interval_ns=st.integers(1, 2**40),
    late=st.lists(st.integers(0, 2**30), max_size=4),
)
def test_all_is_paid_back_in_bounded_steps(pause: int, step_ns: int, interval_ns: int, late: list[int]) -> None:
    # Not more steps than a test has time for.
    most = max(step_ns, pause * NS // 200)
    counter, vm = owing(pause, CatchUp(most, interval_ns))
    step_ticks = max(most // NS, 1)
    interval = -(-interval_ns // NS)
    last, left, made = counter.read(), pause, 0
    assert (vm.cntvct(0), vm.backlog_ticks) == (1000, pause)
    while step := vm.next_step():
        assert step.backlog_ticks == left
        assert step.ticks == min(step_ticks, left)
        # Never nearer to the one before than the interval.
        assert step.due_at - last == interval
        assert step.wait_ns() == (step.due_at - counter.read()) * NS
        counter.advance(step.due_at - counter.read() + (late[made] if made < len(late) else 0))
        assert step.wait_ns() == 0
        last, before = counter.read(), vm.cntvct(1)
        assert step.apply() == left - step.ticks == vm.backlog_ticks
        assert (vm.cntvct(1), vm.cntpct(0)) == (before + step.ticks,) * 2
        left -= step.ticks
        made += 1
    assert left == 0
    assert made == -(-pause // step_ticks)
    # As if it had never been away.
    assert vm.cntvct(0) == 1000 + counter.read() - 10**12


def test_a_plan_says_what_it_takes() -> None:
    counter = host()
    checkpoint = owned(counter).checkpoint()
    counter.advance(10 * HZ + 1)
    vm = ModelVm(2, counter=counter)
    intended = vm.plan(checkpoint, SLOWLY)
    assert intended.to_dict()["backlog"] == {
        "remaining_ticks": 10 * HZ + 1,
        "remaining_ns": 10 * SECOND + NS,
        "steps": 21,
        "step_ns": SECOND // 2,
        "interval_ns": SECOND,
        "duration_ns": 21 * SECOND,
        "rate_permille": 1500,
    }
    assert "in at least 21 steps of 500000000 ns, one every 1000000000 ns: done after 21000000000 ns, at 1.500" in str(
        intended
    )
    assert not any("steps" in warning.text or "fast" in warning.text for warning in intended.warnings)
    # Until the release the backlog grows, and from there on its steps are counted.
    with vm.restoring(checkpoint, SLOWLY) as restoring:
        restoring.apply()
        counter.advance(HZ)
        report = restoring.release()
    assert "in 23 steps of 500000000 ns" in str(report)
    taken = 0
    while vm.next_step():
        due(vm).apply()
        taken += 1
    assert taken == 23


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (CatchUp(10 * SECOND, 100 * SECOND), "steps of 10000000000 ns are large"),
        (CatchUp(10 * SECOND - 1, 100 * SECOND), None),
        (CatchUp(SECOND + 1, SECOND), "2.001 times as fast"),
        (CatchUp(SECOND, SECOND), None),
    ],
)
def test_what_a_guest_would_mind_is_warned_of(policy: CatchUp, said: str | None) -> None:
    counter = host()
    checkpoint = owned(counter).checkpoint()
    counter.advance(1)
    warnings = ModelVm(2, counter=counter).plan(checkpoint, policy).warnings
    of_it = [warning for warning in warnings if "steps of" in warning.text or "as fast" in warning.text]
    assert [said is not None and said in warning.text for warning in of_it] == [True] * (said is not None)


def test_a_deadline_is_kept_or_refused() -> None:
    counter = host()
    checkpoint = owned(counter).checkpoint()
    counter.advance(3 * HZ)
    vm = ModelVm(2, counter=counter)
    assert vm.restore(checkpoint, CatchUp(SECOND, 2 * SECOND, within_ns=6 * SECOND)).backlog_ticks == 3 * HZ
    with pytest.raises(DeadlineMissed) as caught:
        vm.restore(checkpoint, CatchUp(SECOND, 2 * SECOND, within_ns=6 * SECOND - 1))
    error = caught.value
    assert (error.remaining_ns, error.needed_ns, error.within_ns) == (3 * SECOND, 6 * SECOND, 6 * SECOND - 1)
    # With nothing to pay back there is none to miss.
    assert vm.restore(vm.checkpoint(), Freeze()).backlog_ticks == 3 * HZ
    vm.restore(checkpoint, CatchUp(1, 2**63, within_ns=1), now=checkpoint.stamp.count)


def test_a_deadline_counts_intervals_of_whole_ticks() -> None:
    """An interval of a tenth of a tick is one tick, and the steps take as long as they take."""
    counter = host(hz=1000)
    checkpoint = owned(counter).checkpoint()
    counter.advance(2000)
    vm = ModelVm(2, counter=counter)
    with pytest.raises(DeadlineMissed) as caught:
        vm.plan(checkpoint, CatchUp(10**6, 100_000, within_ns=2 * SECOND - 1))
    assert caught.value.needed_ns == 2 * SECOND
    report = vm.restore(checkpoint, CatchUp(10**6, 100_000, within_ns=2 * SECOND))
    released_at, last = report.released_at, 0
    while (step := vm.next_step()) is not None:
        counter.advance(step.due_at - counter.read())
        step.apply()
        last = counter.read()
    said: dict[str, Any] = report.to_dict()
    assert (last - released_at) * 10**6 == said["backlog"]["duration_ns"] == 2 * SECOND


@pytest.mark.parametrize("vcpus", [1, 3])
def test_a_step_is_read_back_from_every_vcpu(vcpus: int) -> None:
    """A step that KVM didn't take is still owed, and the guest's clock is where it was."""
    counter = host()
    checkpoint = owned(counter, vcpus).checkpoint()
    counter.advance(10 * HZ)
    vm = ModelVm(vcpus, counter=counter)
    vm.restore(checkpoint, CatchUp(5 * SECOND, SECOND))
    counter.advance(HZ)
    faulty = FaultyVm(vm, [Fault("set_counter_offset", dropped=True)])
    before = faulty.cntvct(0)
    step = faulty.next_step()
    assert step
    with pytest.raises(ReadBackMismatch) as caught:
        step.apply()
    assert (caught.value.state, caught.value.step) == ("as-it-was", "reading the counters back")
    assert (faulty.cntvct(0), faulty.backlog_ticks, faulty.state) == (before, 10 * HZ, "open")
    assert faulty.verify()
    assert step.apply() == 5 * HZ
    assert faulty.cntvct(0) == before + 5 * HZ
    # One that can't be taken back leaves the VM closed. The look before the step reads two counts.
    counter.advance(HZ)
    misread, lost = Fault("get_one_reg", nth=2, flipped=1 << 40), Fault("set_counter_offset", nth=1, dropped=True)
    faulty = FaultyVm(vm, [misread, lost])
    step = faulty.next_step()
    assert step
    with pytest.raises(ReadBackMismatch) as caught:
        step.apply()
    assert (caught.value.state, caught.value.retry, faulty.state) == ("provisional", "restore", "restoring")


def test_it_takes_an_owned_offset() -> None:
    counter = host()
    vm = ModelVm(2, counter=counter, kernel="6.1")
    before = state(vm)
    with pytest.raises(CapabilityMissing, match="moving the VM-wide counter offset"):
        vm.plan(owned(counter).checkpoint(), SLOWLY)
    assert state(vm) == before
    # Two counters that differ are kept by value, and in place a VM isn't opted in.
    apart = ModelVm(2, counter=counter)
    with pytest.raises(CapabilityMissing):
        ModelVm(2, counter=counter).plan(apart.checkpoint(), SLOWLY)


def test_a_vcpu_that_runs_leaves_the_debt_as_it_was() -> None:
    counter, vm = owing(HZ)
    counter.advance(HZ)
    steps = vm.catch_up()
    step = next(steps)
    with vm.running(1):
        before = (vm.cntvct(0), vm.backlog_ticks)
        with pytest.raises(VcpuRunning) as caught:
            step.apply()
        assert (vm.cntvct(0), vm.backlog_ticks) == before
    assert caught.value.vcpu == 1
    # The same step again, by another iterator: over a counter that is moved by hand this one would never wait.
    assert list(steps) == []
    again = next(vm.catch_up())
    assert (again.ticks, again.due_at, again.backlog_ticks) == (step.ticks, step.due_at, step.backlog_ticks)
    assert again.apply() == HZ // 2
    counter.advance(HZ)
    assert [left.apply() for left in vm.catch_up()] == [0]


def test_a_step_is_paid_once_and_not_before_it_is_due() -> None:
    counter, vm = owing(300 * HZ, CatchUp(step_ns=SECOND // 10, interval_ns=SECOND))
    assert list(vm.catch_up()) == []
    step = vm.next_step()
    assert step
    before = state(vm)
    for early in (1, HZ - 1):
        counter.advance(early - (counter.read() - (step.due_at - HZ)))
        with pytest.raises(Misuse, match=f"due at the count {step.due_at}, and the counter reads {counter.read()}"):
            step.apply()
    assert state(vm) == before
    counter.advance(1)
    cntvct = vm.cntvct(0)
    assert step.apply() == 300 * HZ - HZ // 10
    assert vm.cntvct(0) == cntvct + HZ // 10
    before = state(vm)
    counter.advance(HZ)
    with pytest.raises(Misuse, match="taken already"):
        step.apply()
    # Neither does one pay that a restore has made obsolete.
    obsolete = vm.next_step()
    assert obsolete
    with vm.pause(SLOWLY):
        counter.advance(HZ)
    counter.advance(10 * HZ)
    with pytest.raises(Misuse, match="a restore has changed the backlog"):
        obsolete.apply()
    assert state(vm)["owed"] == before["owed"] + HZ
    # All that is due is one step, however late.
    assert [step.ticks for step in vm.catch_up() if step.apply()] == [HZ // 2]


def test_nothing_is_owed_by_default() -> None:
    counter, vm = owing(HZ, CatchUp(SECOND, SECOND))
    step = due(vm)
    assert step.apply() == vm.backlog_ticks == 0
    before = state(vm)
    with pytest.raises(NoBacklog):
        step.apply()
    assert state(vm) == before
    fresh = ModelVm(counter=counter)
    assert list(fresh.catch_up()) == []
    assert fresh.checkpoint().to_bytes() == ModelVm(counter=counter).checkpoint().to_bytes()


def test_no_step_while_a_restore_is_open() -> None:
    counter, vm = owing(HZ)
    step = due(vm)
    with vm.restoring(vm.checkpoint(), Freeze()) as steps:
        with pytest.raises(RestoreOpen):
            step.apply()
        steps.apply()
        steps.release()
    assert vm.backlog_ticks == HZ
    with vm.pause(), pytest.raises(RestoreOpen):
        step.apply()
    assert vm.backlog_ticks == HZ
    assert counter.read() > 0


@pytest.mark.parametrize(
    ("policy", "added", "left"),
    [
        (Freeze(), 0, 10 * HZ),
        (Advance(), 13 * HZ, 0),
        (Advance(max_ns=4 * SECOND), 4 * HZ, 0),
        (SLOWLY, 0, 13 * HZ),
    ],
)
def test_the_debt_travels_with_the_checkpoint(policy: Freeze | Advance | CatchUp, added: int, left: int) -> None:
    counter, vm = owing(10 * HZ, CatchUp(step_ns=2 * SECOND, interval_ns=5 * SECOND))
    checkpoint = Checkpoint.from_bytes(vm.checkpoint().to_bytes())
    cntvct = vm.cntvct(0)
    counter.advance(3 * HZ)
    there = ModelVm(2, counter=counter)
    report = there.restore(checkpoint, policy)
    assert (report.added_ticks, report.backlog_ticks, there.backlog_ticks) == (added, left, left)
    assert there.cntvct(0) == cntvct + added
    assert report.capped == (policy == Advance(max_ns=4 * SECOND))
    if policy == Freeze():
        # It is paid back as it was going to be.
        step = there.next_step()
        assert step
        assert (step.ticks, step.due_at) == (2 * HZ, counter.read() + 5 * HZ)


def test_what_disrupts_the_counter() -> None:
    """What a vmclock page has to say: whether the counter went on as if nothing had been."""
    counter = host()
    checkpoint = owned(counter).checkpoint()
    counter.advance(HZ)
    for policy, same, disrupts in (
        (Advance(), True, False),
        (Advance(max_ns=SECOND), True, False),
        (Advance(max_ns=SECOND - NS), True, True),
        (Advance(), False, True),
        (Freeze(), True, True),
        (SLOWLY, True, True),
    ):
        vm = ModelVm(2, counter=counter)
        word = None if same else Elapsed.by_wall_clocks(error_ns=0)
        intended = vm.restoring(checkpoint, policy, elapsed=word)
        steps = intended.__enter__()
        steps.apply()
        assert intended.plan.disrupts is steps.release().disrupts is disrupts, policy
    # Paid back at once, too, and by reads that are sure to no tick.
    assert vm.plan(vm.checkpoint(), Advance()).disrupts
    assert ModelVm(2, counter=counter).plan(ModelVm(2, counter=counter).checkpoint(), Advance()).disrupts is False


def test_a_pause_in_place_can_be_owed_too() -> None:
    counter = host()
    vm = owned(counter)
    with vm.pause(SLOWLY) as pause:
        counter.advance(HZ)
    assert (pause.report.backlog_ticks, vm.backlog_ticks, vm.cntvct(0)) == (HZ, HZ, 1000)
    with vm.pause(SLOWLY):
        counter.advance(HZ)
    assert vm.backlog_ticks == 2 * HZ
    with vm.pause():
        counter.advance(HZ)
    assert vm.backlog_ticks == 2 * HZ


def test_a_pause_that_could_not_end_does_not_begin() -> None:
    counter = host()
    vm = ModelVm(2, counter=counter)
    counter.advance(5)
    before = state(vm)
    with pytest.raises(CapabilityMissing), vm.pause(SLOWLY):
        pass
    with pytest.raises(CounterSkew), vm.pause(views="refuse"):
        pass
    assert state(vm) == before
    with vm.running(0):
        pass


def test_a_pause_that_took_too_long_ends_nevertheless() -> None:
    counter = host()
    vm = owned(counter)
    with vm.pause(CatchUp(SECOND, 2 * SECOND, within_ns=6 * SECOND - 1)) as pause:
        counter.advance(3 * HZ)
    assert vm.backlog_ticks == 3 * HZ
    warnings = pause.report.to_dict()["warnings"]
    assert isinstance(warnings, list)
    assert any("takes 6000000000 ns in these steps, and 5999999999 ns" in warning["text"] for warning in warnings)


def test_a_late_deadline_is_met_by_steps() -> None:
    """A timer of the guest's fires in the step that passes it, and not before."""
    counter, vm = owing(3 * HZ)
    vm.set_one_reg(0, Reg.TIMER_CTL, 1)
    # The step that passes the deadline, and what the guest sees of it.
    vm.set_one_reg(0, Reg.TIMER_CVAL, 1000 + 5 * HZ // 2)
    assert due(vm).apply() == 5 * HZ // 2
    assert not vm.timer(0, Timer.VTIMER).line
    step = due(vm)
    vm.set_one_reg(0, Reg.TIMER_CVAL, vm.cntvct(0) + step.ticks)
    assert not vm.timer(0, Timer.VTIMER).line
    step.apply()
    assert vm.timer(0, Timer.VTIMER).line
    assert counter.read() > 0


def test_the_page_shows_the_same_time_before_and_after_a_step() -> None:
    counter, vm = owing(HZ)
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    page = VmClock.create(memory, tai_offset_s=None)
    here = replace(counter.stamp(), synchronized=True)
    equation = ClockEquation(here, cntvct=vm.cntvct(0), max_error_ns=10, rate_max_error_ppb=50_000)
    with page.update() as update:
        update.clock(equation)
    marker = page.disruption_marker

    def fields() -> tuple[int, int, int, bytes]:
        """seq_count, disruption_marker, counter_value, and all that is after it (linux/vmclock-abi.h)."""
        seq, marker, value = (int.from_bytes(memory[at:end], "little") for at, end in ((12, 16), (16, 24), (40, 48)))
        return seq, marker, value, memory[48:112]

    seq, _, value, rest = fields()
    step = due(vm)
    with vm.running(0), pytest.raises(VcpuRunning):
        step.apply(page)
    # Nothing happened but that readers looked twice.
    assert fields() == (seq + 2, marker, value, rest)
    assert page.status == "synchronized"
    before = vm.cntvct(0)
    step.apply(page)
    assert vm.cntvct(0) - before == step.ticks == HZ // 2
    assert fields() == (seq + 4, marker + 1, value + step.ticks, rest)
    assert (page.disruption_marker, page.status) == (marker + 1, "synchronized")
    # A page without a clock has only its marker.
    bare = VmClock.create(memory, 1024, tai_offset_s=None, size=112)
    due(vm).apply(bare)
    assert (bare.disruption_marker, bare.status) == (1, "unreliable")
    assert memory[1024 + 40 : 1024 + 48] == bytes(8)


def test_no_step_within_an_update_of_its_page() -> None:
    _, vm = owing(HZ)
    page = VmClock.create(mmap.mmap(-1, mmap.PAGESIZE), tai_offset_s=None)
    with page.update(), pytest.raises(RuntimeError, match="open already"):
        due(vm).apply(page)
    assert vm.backlog_ticks == HZ


def test_a_policy_is_checked() -> None:
    for args in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            CatchUp(*args)
    with pytest.raises(OverflowError):
        CatchUp(-1, 1)
    assert repr(CatchUp(1, 2, within_ns=3)) == "CatchUp(step_ns=1, interval_ns=2, within_ns=3)"
    assert pickle.loads(pickle.dumps(SLOWLY)) == SLOWLY != CatchUp(1, 2)
    both = CatchUp(1, 2, at_once_ns=3, within_ns=4)
    assert pickle.loads(pickle.dumps(both)) == both != CatchUp(1, 2, at_once_ns=3)
    assert repr(both) == "CatchUp(step_ns=1, interval_ns=2, at_once_ns=3, within_ns=4)"
