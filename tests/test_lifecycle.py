"""Every way of leaving a restore or a pause, after each of its steps: the VM's state, by reading its counters back.

A VM that had opted in gets its own offset back and may run, and so may one to which nothing was written. A first opt-in
and registers that were written stay closed, are told of, and can be restored again. Nothing ever commits by being left.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import pickle
import signal
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import pytest

from guestclock import Advance, CatchUp, Checkpoint, Freeze, ManualCounter, ModelVm, Options
from guestclock.errors import (
    CapabilityMissing,
    GuestClockError,
    Interrupted,
    KvmError,
    Misuse,
    ReadBackMismatch,
    Refused,
    RestoreOpen,
    VcpuRunning,
)
from guestclock.testing import Fault, FaultyVm
from guestclock.types import GuestVm, OptionKeywords
from vms import busy, host, owned, state, texts

PAUSE = 1000


@dataclass(frozen=True)
class Kind:
    """A guest, and the VM that it is restored into."""

    name: str
    source: Callable[[ManualCounter], ModelVm]
    target: Callable[[ManualCounter], ModelVm]
    goes_back: bool
    """Whether the VM has its own clock again when the restore is left before a register was written."""
    writes: bool
    """Whether the first step writes anything."""


KINDS = [
    Kind("owned", owned, lambda counter: owned(counter, cntvct=77_000), goes_back=True, writes=True),
    Kind("first opt-in", owned, lambda counter: ModelVm(2, counter=counter), goes_back=False, writes=True),
    # Its counters differ, so each is set by value.
    Kind(
        "by value",
        lambda counter: ModelVm(2, counter=counter),
        lambda counter: ModelVm(2, counter=counter),
        goes_back=True,
        writes=False,
    ),
    Kind(
        "nested",
        lambda counter: owned(counter, nested=True),
        lambda counter: owned(counter, cntvct=5, nested=True),
        goes_back=True,
        writes=True,
    ),
]


class Left(Exception):
    """An exception of the VMM's own."""


def returned(vm: GuestVm, saved: Checkpoint, steps: list[str]) -> None:
    with vm.restoring(saved, Advance()) as r:
        for step in steps:
            getattr(r, step)()
        return


def broken_off(vm: GuestVm, saved: Checkpoint, steps: list[str]) -> None:
    for _ in range(3):
        with vm.restoring(saved, Advance()) as r:
            for step in steps:
                getattr(r, step)()
            break


def suspended(vm: GuestVm, saved: Checkpoint, steps: list[str]) -> None:
    """In a generator that is closed."""

    def going() -> Generator[None]:
        with vm.restoring(saved, Advance()) as r:
            for step in steps:
                getattr(r, step)()
            yield

    generator = going()
    next(generator)
    generator.close()


def raised(vm: GuestVm, saved: Checkpoint, steps: list[str]) -> None:
    with vm.restoring(saved, Advance()) as r:
        for step in steps:
            getattr(r, step)()
        raise Left


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """SIGINT raises, even where whoever started the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(vm: GuestVm, saved: Checkpoint, steps: list[str]) -> None:
    with vm.restoring(saved, Advance()) as r:
        for step in steps:
            getattr(r, step)()
        signal.raise_signal(signal.SIGINT)


def cancelled(vm: GuestVm, saved: Checkpoint, steps: list[str]) -> None:
    async def restore(ready: asyncio.Event) -> None:
        with vm.restoring(saved, Advance()) as r:
            for step in steps:
                getattr(r, step)()
            ready.set()
            await asyncio.Event().wait()

    async def main() -> None:
        ready = asyncio.Event()
        task = asyncio.create_task(restore(ready))
        await ready.wait()
        task.cancel()
        await task

    asyncio.run(main())


def dropped(vm: GuestVm, saved: Checkpoint, steps: list[str]) -> None:
    r = vm.restoring(saved, Advance())
    r.__enter__()
    for step in steps:
        getattr(r, step)()
    del r
    gc.collect()


WAYS: list[tuple[Callable[[GuestVm, Checkpoint, list[str]], None], type[BaseException] | None]] = [
    (returned, None),
    (broken_off, None),
    (suspended, None),
    (raised, Left),
    (interrupted, KeyboardInterrupt),
    (cancelled, asyncio.CancelledError),
    (dropped, None),
]
STEPS: list[list[str]] = [[], ["apply"], ["apply", "release"]]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
every_wrap = pytest.mark.parametrize("wrap", [lambda vm: vm, lambda vm: FaultyVm(vm, [])], ids=["model", "faulty"])


def rig(kind: Kind) -> tuple[Checkpoint, ModelVm, dict[str, Any]]:
    """A checkpoint, the VM that it is restored into, and the state that a plain restore leads to."""
    counter = host()
    source = busy(kind.source(counter))
    # A counter that is set by a register's value moves the VM, so that both differ.
    saved = source.checkpoint()
    counter.advance(PAUSE)
    plain = kind.target(counter)
    plain.restore(saved, Advance())
    return saved, kind.target(counter), state(plain)


def state_of(vm: GuestVm) -> str:
    """Its state, of which a type checker doesn't believe that it stays."""
    return vm.state


def may_run(vm: GuestVm) -> bool:
    try:
        with vm.running(0), vm.running(1):
            return True
    except RestoreOpen:
        return False


@every_wrap
@every_kind
@pytest.mark.parametrize("steps", STEPS, ids=lambda steps: "-".join(["enter", *steps]))
@pytest.mark.parametrize(("leave", "error"), WAYS, ids=lambda way: getattr(way, "__name__", ""))
def test_a_restore_that_is_left_never_commits_and_locks_nobody_out(
    leave: Callable[[GuestVm, Checkpoint, list[str]], None],
    error: type[BaseException] | None,
    steps: list[str],
    kind: Kind,
    wrap: Callable[[ModelVm], GuestVm],
) -> None:
    saved, model, restored = rig(kind)
    vm = wrap(model)
    before, began = state(model), model.counter.read()
    notes = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        try:
            leave(vm, saved, steps)
        except (Left, KeyboardInterrupt, asyncio.CancelledError) as raised:
            assert type(raised) is error
            notes = "\n".join(getattr(raised, "__notes__", []))
        else:
            assert error is None
    told = [str(warning.message) for warning in caught if warning.category is ResourceWarning]
    assert model.counter.read() == began

    if "release" in steps:
        # Released is released, however the block is left.
        assert (state(model), state_of(vm), told, notes) == (restored, "open", [], "")
        assert may_run(vm)
        return
    # A destructor makes no call, so it takes back only what it needs none for.
    goes_back = not steps and (not kind.writes if leave is dropped else kind.goes_back)
    assert may_run(vm) is goes_back
    if goes_back:
        assert (state(model), state_of(vm), told, notes) == (before, "open", [], "")
    else:
        assert state_of(vm) == "restoring"
        assert state(model)["vcpus"] != before["vcpus"]
        said = told if error is None else [notes]
        assert len(said) == 1
        # The way out, which works.
        assert "restored into it" in said[0] or "restore() into it again" in said[0]
    vm.restore(saved, Advance())
    assert state(model) == restored
    assert may_run(vm)


@every_wrap
def test_giving_up_a_restore_of_a_paused_vm_leaves_it_paused(wrap: Callable[[ModelVm], GuestVm]) -> None:
    counter = host()
    vm = wrap(owned(counter))
    saved = vm.checkpoint()
    pause = vm.pause()
    with pytest.raises(Left), vm.restoring(saved, Advance()):
        counter.advance(PAUSE)
        assert state_of(vm) == "restoring"
        raise Left
    assert state_of(vm) == "paused"
    assert not may_run(vm)
    assert pause.resume().added_ticks == 0
    assert (vm.cntvct(0), state_of(vm)) == (1000, "open")


def test_giving_up_is_the_newest_restores_to_do() -> None:
    counter = host()
    vm = owned(counter)
    saved = vm.checkpoint()
    with vm.restoring(saved) as older:
        counter.advance(PAUSE)
        # It is overtaken, and has nothing to give up or to go on with.
        with vm.restoring(saved), pytest.raises(Misuse, match="came after this one"):
            older.apply()
        # The newer one was given up, so the VM is the older one's again.
        assert state_of(vm) == "restoring"
        older.apply()
        older.release()
    assert (state_of(vm), vm.cntvct(0)) == ("open", 1000)
    # And where the older one is left first, the newer one doesn't mind.
    with vm.restoring(saved) as newer:
        counter.advance(PAUSE)
        with vm.restoring(saved) as newest:
            newest.apply()
            newest.release()
        assert state_of(vm) == "open"
        with pytest.raises(Misuse):
            newer.apply()
    assert (state_of(vm), vm.cntvct(0)) == ("open", 1000)


@pytest.mark.parametrize("nth", range(4))
def test_giving_up_can_fail_and_the_vm_stays_closed(nth: int) -> None:
    """At each call that giving up makes: the look, the offset, and the count of either vCPU."""
    counter = host()
    model = owned(counter)
    saved = model.checkpoint()
    plain = FaultyVm(model, [])
    with plain.restoring(saved):
        entered = len(texts(plain))
    assert texts(plain)[entered:] == [
        "stopped",
        "set_counter_offset",
        "get_one_reg 0 TIMER_CNT",
        "get_one_reg 1 TIMER_CNT",
    ]
    vm = FaultyVm(model, [Fault(nth=entered + nth, errno=errno.EIO)])
    with pytest.raises(Left) as caught, vm.restoring(saved):
        raise Left
    notes = "\n".join(caught.value.__notes__)
    assert "stays closed" in notes
    assert "giving the restore up failed: Interrupted: giving up: " in notes
    assert (state_of(vm), may_run(vm)) == ("restoring", False)
    vm = FaultyVm(model, [Fault(nth=entered + nth, errno=errno.EIO)])
    with pytest.raises(Interrupted) as failed, vm.restoring(saved):
        pass
    assert (failed.value.state, failed.value.retry) == ("provisional", "restore")
    assert isinstance(failed.value.__cause__, KvmError)
    assert model.restore(saved).cntvct == 1000
    assert may_run(vm)


def test_a_vcpu_that_runs_behind_guestclocks_back_keeps_the_vm_closed() -> None:
    counter = host()
    model = owned(counter)
    saved = model.checkpoint()
    vm = FaultyVm(model, [Fault("stopped", nth=2, errno=errno.EBUSY)])
    with pytest.raises(Left) as caught, vm.restoring(saved):
        raise Left
    assert "VcpuRunning" in "".join(caught.value.__notes__) or "Interrupted" in "".join(caught.value.__notes__)
    assert state_of(vm) == "restoring"


@every_wrap
@pytest.mark.parametrize("policy", [Freeze(), Advance()], ids=["freeze", "advance"])
@pytest.mark.parametrize("leave", ["return", "break", "raise", "interrupt", "cancel", "resume"])
def test_a_pause_resumes_by_its_own_policy_on_every_exit(
    leave: str, policy: Freeze | Advance, wrap: Callable[[ModelVm], GuestVm]
) -> None:
    counter = host()
    vm = wrap(owned(counter))

    def block() -> None:
        for _ in range(2):
            with vm.pause(policy) as pause:
                counter.advance(PAUSE)
                assert state_of(vm) == "paused"
                if leave == "break":
                    break
                if leave == "return":
                    return
                if leave == "raise":
                    raise Left
                if leave == "interrupt":
                    signal.raise_signal(signal.SIGINT)
                if leave == "cancel":
                    raise asyncio.CancelledError
                assert pause.resume() is pause.report
                return

    try:
        block()
    except (Left, KeyboardInterrupt, asyncio.CancelledError):
        assert leave in ("raise", "interrupt", "cancel")
    assert vm.cntvct(0) == 1000 + (PAUSE if policy == Advance() else 0)
    assert (state_of(vm), may_run(vm)) == ("open", True)


@every_wrap
def test_a_dropped_pause_stays_closed_warns_and_can_be_restored_again(wrap: Callable[[ModelVm], GuestVm]) -> None:
    counter = host()
    model = owned(counter, name="web-1")
    vm = wrap(model)
    saved = vm.checkpoint()
    dropping = [vm.pause()]
    counter.advance(PAUSE)
    with pytest.warns(ResourceWarning, match=r'VM "web-1": a pause was dropped without resume\(\)'):
        dropping.clear()
    assert (state_of(vm), may_run(vm)) == ("paused", False)
    assert vm.restore(saved).cntvct == 1000
    assert may_run(vm)
    # One that a restore has overtaken has nothing to warn of.
    pause = vm.pause()
    vm.restore(saved)
    del pause
    gc.collect()
    assert may_run(vm)


def test_a_warning_in_a_destructor_spoils_no_exception() -> None:
    counter = host()
    vm = owned(counter)

    def drop() -> None:
        pause = vm.pause()
        raise Left(pause.__class__)

    def drop_and_say() -> BaseException:
        try:
            drop()
        except Left as error:
            # The traceback's frames held it.
            return error.with_traceback(None)
        raise AssertionError

    with pytest.warns(ResourceWarning):
        assert isinstance(drop_and_say(), Left)
    assert state_of(vm) == "paused"


def test_an_error_of_a_blocks_end_keeps_the_one_that_ended_it() -> None:
    fault = Fault("set_counter_offset", errno=errno.EIO)
    pause = FaultyVm(owned(host()), [fault]).pause()
    error = KeyError("x")
    with pytest.raises(Interrupted) as caught, pause:
        raise error
    pause.resume()
    # A traceback shows the context of the first cause alone.
    cause = caught.value.__cause__
    assert isinstance(cause, KvmError)
    assert (caught.value.__context__, cause.__context__) == (error, error)
    pause = FaultyVm(owned(host()), [fault]).pause()
    with pytest.raises(Interrupted) as caught, pause:
        pass
    pause.resume()
    assert caught.value.__context__ is None


def test_a_pause_may_end_by_another_policy() -> None:
    counter = host()
    vm = owned(counter)
    pause = vm.pause()
    counter.advance(PAUSE)
    with pytest.raises(TypeError, match=r"give Advance\(\)"):
        pause.resume(Advance)  # type: ignore[arg-type]
    report = pause.resume(CatchUp(10**9, 10**9))
    assert (report.backlog_ticks, vm.backlog_ticks, vm.cntvct(0)) == (PAUSE, PAUSE, 1000)
    with pytest.raises(Misuse, match="the pause is over"):
        pause.resume()
    by_value = ModelVm(2, counter=counter)
    pause = by_value.pause(Advance())
    counter.advance(PAUSE)
    with pytest.raises(CapabilityMissing):
        pause.resume(CatchUp(1, 1))
    # The refusal changed nothing, its own policy included.
    assert pause.resume().added_ticks == PAUSE


# Interrupted: the state, the step and the call to make again.


@every_kind
def test_a_restore_in_one_call_gives_up_what_it_can(kind: Kind) -> None:
    saved, model, restored = rig(kind)
    before = state(model)
    vm = FaultyVm(model, [Fault("apply", delay_ticks=0, errno=None, step_realtime_ns=1)])
    calls = len(texts(vm))
    vm = FaultyVm(model, [Fault("stopped", nth=2, times=1, errno=errno.EBUSY)])
    with pytest.raises(Interrupted) as caught:
        vm.restore(saved, Advance())
    assert calls == 0
    assert isinstance(caught.value.__cause__, VcpuRunning)
    assert caught.value.step == "apply: looking whether the vCPUs are stopped"
    assert caught.value.retry == "restore"
    if kind.goes_back:
        # Found out before a register was written, and its own offset is back.
        assert (caught.value.state, state(model), may_run(vm)) == ("as-it-was", before, True)
        assert str(caught.value).endswith("the VM is as it was: call restore() again [interrupted]")
    else:
        assert (caught.value.state, may_run(vm)) == ("provisional", False)
    vm.restore(saved, Advance())
    assert state(model) == restored


def test_an_interruption_that_leaves_the_block_says_the_state_after_it() -> None:
    counter = host()
    saved = owned(counter).checkpoint()
    vm = FaultyVm(owned(counter, cntvct=5), [Fault("set_one_reg 1", errno=errno.EIO)])
    with pytest.raises(Interrupted) as caught, vm.restoring(saved) as r:
        try:
            r.apply()
        except Interrupted as error:
            assert (error.state, error.retry) == ("half-restored", "apply")
            assert str(error).endswith(
                "some of the VM's registers are restored, and it must not run: call apply() again [interrupted]"
            )
            raise
    assert (caught.value.state, caught.value.retry) == ("half-restored", "restore")
    assert not may_run(vm)
    twin = pickle.loads(pickle.dumps(caught.value))
    assert (twin.state, twin.step, twin.retry, str(twin)) == (
        "half-restored",
        caught.value.step,
        "restore",
        str(caught.value),
    )


def test_the_families() -> None:
    assert issubclass(ReadBackMismatch, Interrupted)
    assert issubclass(VcpuRunning, Refused)
    assert issubclass(VcpuRunning, KvmError)
    families: tuple[type[GuestClockError], ...] = (Refused, Interrupted, Misuse)
    for family in families:
        assert issubclass(family, GuestClockError)
        assert sum(issubclass(family, other) for other in families) == 1


def test_opting_in_is_once_and_begins_the_guests_counters_at_zero() -> None:
    counter = host()
    vm = ModelVm(2, counter=counter)
    vm.opt_in()
    counter.advance(5)
    assert (vm.opted_in, vm.cntvct(0), vm.cntpct(1)) == (True, 5, 5)
    with pytest.raises(Misuse, match="opted in already"):
        vm.opt_in()
    other = ModelVm(2, counter=counter)
    other.opt_in(offset=counter.read() - 77)
    assert other.cntpct(0) == 77
    assert vm.cntvct(0) == 5
    # What was written is read back from every vCPU: one that answers nothing leaves the VM closed.
    model = ModelVm(2, counter=counter)
    faulty = FaultyVm(model, [Fault("get_one_reg 1 TIMER_CNT", errno=errno.EIO)])
    with pytest.raises(Interrupted) as caught:
        faulty.opt_in()
    assert (caught.value.state, model.opted_in, may_run(model)) == ("provisional", True, False)
    model.restore(vm.checkpoint())
    assert may_run(model)


# Options.


def test_options_are_the_keywords() -> None:
    names = {field.name for field in fields(Options)}
    assert names == set(OptionKeywords.__annotations__)
    assert get_type_hints(OptionKeywords) == get_type_hints(Options)
    options = Options(views="adopt-virtual", timers="relative", intent="snapshot")
    assert pickle.loads(pickle.dumps(options)) == options
    with pytest.raises(AttributeError):
        options.strict = True  # type: ignore[misc]
    counter = host()
    vm, saved = ModelVm(2, counter=counter), owned(counter).checkpoint()
    for plan in (vm.plan(saved, Advance(), options=options), vm.restoring(saved, Advance(), options=options).plan):
        assert (plan.to_dict()["intent"], plan.method) == ("snapshot", "offset")
    # Keywords beside it change single fields.
    assert vm.plan(saved, options=options, intent="clone").to_dict()["intent"] == "clone"
    assert options.intent == "snapshot"
    with pytest.raises(TypeError, match="options is an Options"):
        vm.plan(saved, options={"views": "refuse"})  # type: ignore[arg-type]
    with pytest.raises(OverflowError, match="rate_error_ppb: "):
        vm.plan(saved, Advance(), options=Options(rate_error_ppb=-1))


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        (Freeze, r"<class 'guestclock.Freeze'> isn't a policy: give Freeze()"),
        ("advance", "'advance' isn't a policy: give Advance()"),
        ("catch-up", "'catch-up' isn't a policy: give CatchUp(step_ns, interval_ns)"),
        (5, "5 isn't a policy: give Freeze(), Advance() or CatchUp(step_ns, interval_ns)"),
    ],
)
def test_a_common_mistake_gets_one_sentence(policy: Any, sentence: str) -> None:
    vm = owned(host())
    saved = vm.checkpoint()
    for verb in (lambda: vm.plan(saved, policy), lambda: vm.pause(policy), lambda: vm.restore(saved, policy)):
        with pytest.raises(TypeError) as caught:
            verb()
        assert str(caught.value).removeprefix("argument 'policy': ") == sentence


def test_the_other_mistakes() -> None:
    with pytest.raises(TypeError, match="5 isn't a counter, since it has no frequency_hz: give a HostCounter"):
        ModelVm(counter=5)  # type: ignore[arg-type]
    with pytest.raises(OverflowError, match="-1 is out of range: an integer from 0"):
        Advance(-1)
    vm = owned(host())
    for vcpu in (-1, 2, 10**30):
        with pytest.raises(IndexError, match=f"there is no vCPU {vcpu}: "):
            vm.cntvct(vcpu)
    with pytest.raises(TypeError, match="True isn't an integer"):
        vm.set_counter_offset(True)
    with pytest.raises(TypeError, match="polcy"):
        vm.plan(vm.checkpoint(), polcy=Advance())  # type: ignore[call-arg]
