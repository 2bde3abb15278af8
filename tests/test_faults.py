"""A fault at every call of a restore, a checkpoint and a pause: nothing was touched, or the error says what is left.

And then the way on that it names leads to what a restore without the fault leads to.
"""

from __future__ import annotations

import copy
import errno
import pickle
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestclock import (
    Advance,
    CatchUp,
    Checkpoint,
    Elapsed,
    Freeze,
    HostCounter,
    ManualCounter,
    ModelVm,
    Reg,
    Report,
    Timer,
)
from guestclock.errors import (
    Crashed,
    GuestClockError,
    Interrupted,
    KvmError,
    RestoreOpen,
    UnknownRegister,
    VcpuRunning,
)
from guestclock.testing import Fault, FaultyVm
from guestclock.types import Policy, Step
from vms import NS, SECOND, busy, host, owned, state, texts

ERRNOS = [errno.EBUSY, errno.EINVAL, errno.ENOENT, errno.EIO]
PAUSE = 3 * 10**9
CTL_ISTATUS = 4
MADE_AGAIN = {"set_counter_offset", "stopped"}
"""The calls that are made again after EBUSY."""


@dataclass(frozen=True)
class Case:
    """A guest, where it is restored, and how that comes out."""

    name: str
    policy: Policy
    method: str
    source: Callable[[ManualCounter], ModelVm]
    target: Callable[[ManualCounter], ModelVm]

    def saved(self) -> tuple[Checkpoint, ManualCounter]:
        """The guest's checkpoint, and its host's counter a while later."""
        counter = host()
        checkpoint = self.source(counter).checkpoint()
        counter.advance(PAUSE)
        return checkpoint, counter


CASES = [
    Case(f"{name}-{policy.name}", policy, method, source, target)
    for policy in (Freeze(), Advance())
    for name, method, source, target in [
        ("owned", "offset", lambda counter: busy(owned(counter)), lambda counter: ModelVm(2, counter=counter)),
        # Its counters differ.
        (
            "by-value",
            "by-value",
            lambda counter: busy(ModelVm(2, counter=counter)),
            lambda counter: ModelVm(2, counter=counter),
        ),
        (
            "Linux 6.1",
            "virtual-only",
            lambda counter: busy(ModelVm(2, counter=counter, kernel="6.1")),
            lambda counter: ModelVm(2, counter=counter, kernel="6.1"),
        ),
        (
            "nested",
            "offset",
            lambda counter: busy(owned(counter, nested=True)),
            lambda counter: ModelVm(2, counter=counter, nested=True),
        ),
    ]
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_errno = pytest.mark.parametrize("number", ERRNOS, ids=errno.errorcode.get)


def registers(vm: ModelVm) -> dict[str, int]:
    """What `apply` writes, by the name of the call that does."""
    values = {}
    for vcpu in range(vm.vcpus):
        for reg in map(Reg, vm.reg_list(vcpu)):
            if reg.name.endswith(("_CVAL", "_CTL", "_CVAL_EL2", "_CTL_EL2", "CNTVOFF_EL2")):
                ctl = ~CTL_ISTATUS if "_CTL" in reg.name else -1
                values[f"set_one_reg {vcpu} {reg.name}"] = vm.get_one_reg(vcpu, reg, now=0) & ctl
    return values


def said(report: Report) -> tuple[dict[str, Any], int, int]:
    """All of a report, with the writes that it counts apart."""
    fields: Any = report.to_dict()
    written = fields["written"]
    return fields, written.pop("offset_writes"), written.pop("register_writes")


@dataclass(frozen=True)
class Outcome:
    """What a restore without a fault comes to."""

    calls: list[str]
    before: dict[str, Any]
    registers_before: dict[str, int]
    after: dict[str, Any]
    registers_after: dict[str, int]
    report: dict[str, Any]


def without_faults(case: Case) -> Outcome:
    checkpoint, counter = case.saved()
    vm = case.target(counter)
    faulty = FaultyVm(vm, [])
    before = state(vm), registers(vm)
    report = faulty.restore(checkpoint, case.policy)
    assert report.method == case.method
    fields, offsets, written = said(report)
    assert offsets == texts(faulty).count("set_counter_offset")
    assert written == sum(call.startswith("set_one_reg") for call in texts(faulty))
    return Outcome(texts(faulty), *before, state(vm), registers(vm), fields)


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", []))


def is_closed(vm: ModelVm) -> bool:
    """Whether a restore of the VM isn't finished: a look that changes nothing."""
    try:
        vm.checkpoint()
    except RestoreOpen:
        with pytest.raises(RestoreOpen), vm.running(0):
            pass
        return True
    return False


Failed = KvmError | Interrupted
"""What a call can fail with: nothing was written, or the VM's state and the call to make again."""


def is_provisional(error: Failed) -> bool:
    """Whether the VM has been left with a provisional offset: its first opt-in, which is for good."""
    return isinstance(error, Interrupted) and error.state == "provisional"


def the_way_on(step: str, error: Failed) -> str:
    """The step that the error says to call next."""
    if isinstance(error, Interrupted):
        assert f"must not run: call {error.retry}() again" in str(error)
        return {"restore": "plan"}.get(error.retry, error.retry)
    assert "must not run" not in notes(error)
    return step


def drive(checkpoint: Checkpoint, vm: FaultyVm, policy: Policy) -> Generator[tuple[str, Failed], None, Report]:
    """A restore by a VMM that does what each error says: it yields each, and the step that failed."""
    step = "plan"
    while True:
        try:
            match step:
                case "plan":
                    intended = vm.restoring(checkpoint, policy)
                    step = "prepare"
                case "prepare":
                    steps = intended.__enter__()
                    step = "apply"
                case "apply":
                    steps.apply()
                    step = "release"
                case _:
                    return steps.release()
        except (KvmError, Interrupted) as error:
            yield step, error
            step = the_way_on(step, error)


def under(faulty: FaultyVm) -> ModelVm:
    assert isinstance(faulty.vm, ModelVm)
    return faulty.vm


def finish(going: Generator[Any, None, Any]) -> Any:
    """What it returns, since no more errors come."""
    with pytest.raises(StopIteration) as done:
        next(going)
    return done.value.value


def check_the_error(error: Failed, number: int, nth: int, call: str) -> None:
    """Its cause is what KVM would give, says that it was injected and where, and is as good as a copy."""
    if isinstance(error, Interrupted):
        assert str(error).startswith(f"{error.step}: {call}: errno {number}, injected at call {nth}; ")
        twin = pickle.loads(pickle.dumps(error))
        assert (str(twin), twin.__dict__) == (str(error), error.__dict__)
        assert isinstance(error.__cause__, KvmError)
        error = error.__cause__
    assert error.errno == number
    assert str(error) == f"{call}: errno {number}, injected at call {nth} [{error.code}]"
    expected: type[KvmError] = KvmError
    if number == errno.EBUSY and call in MADE_AGAIN:
        expected = VcpuRunning
    if number == errno.ENOENT and "_one_reg " in call:
        expected = UnknownRegister
    assert type(error) is expected
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(twin), str(twin), notes(twin)) == (expected, str(error), notes(error))
    if isinstance(error, VcpuRunning):
        assert error.vcpu is None
    if isinstance(error, UnknownRegister):
        assert call.endswith(f" {Reg(error.reg).name}")


def registers_left(plain: Outcome, calls: list[str]) -> dict[str, int]:
    """The registers after these calls: each as it was saved, if it was set, or else as it was."""
    done = {name: plain.registers_after[name] for name in calls if name in plain.registers_after}
    return plain.registers_before | done


@every_errno
@every_case
def test_every_call_of_a_restore_can_fail_and_the_error_names_the_way_on(case: Case, number: int) -> None:
    plain = without_faults(case)
    for nth, call in enumerate(plain.calls):
        checkpoint, counter = case.saved()
        vm = case.target(counter)
        faulty = FaultyVm(vm, [Fault(nth=nth, errno=number)])
        going = drive(checkpoint, faulty, case.policy)

        step, error = next(going)
        check_the_error(error, number, nth, call)
        assert texts(faulty) == plain.calls[: nth + 1]
        assert registers(vm) == registers_left(plain, plain.calls[:nth])
        if is_provisional(error):
            assert (step, case.method) == ("prepare", "offset")
            assert is_closed(vm)
            assert vm.opted_in
            assert isinstance(error, Interrupted)
            assert error.step.startswith("prepare: reading the counter of vCPU ")
        elif step in {"plan", "prepare"}:
            assert state(vm) == plain.before
            assert not is_closed(vm)
            assert not notes(error) or notes(error).endswith("; the VM is as it was")
        else:
            assert is_closed(vm)
            assert vm.opted_in is (case.method == "offset")
            assert isinstance(error, Interrupted)
            assert error.step.startswith(f"{step}: ")
            if error.state == "timers-only":
                assert step == "release"
                assert registers(vm) == plain.registers_after
            else:
                assert error.state == "half-restored"

        fields, offsets, written = said(finish(going))
        assert fields == plain.report
        made = texts(faulty)[:nth] + texts(faulty)[nth + 1 :]
        # A restore that is begun anew counts its own writes.
        assert offsets == made.count("set_counter_offset") - is_provisional(error)
        assert written == sum(name.startswith("set_one_reg") for name in made)
        assert state(vm) == plain.after
        assert not is_closed(vm)


@every_case
@given(
    script=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 4), st.sampled_from(ERRNOS)), max_size=6),
    busy_retries=st.integers(0, 3),
)
def test_however_much_fails_a_vmm_that_goes_on_as_it_is_told_gets_there(
    case: Case, script: list[tuple[int, int, int]], busy_retries: int
) -> None:
    plain = without_faults(case)
    checkpoint, counter = case.saved()
    faults = [Fault(nth=nth, times=times, errno=number) for nth, times, number in script]
    faulty = FaultyVm(case.target(counter), faults, busy_retries=busy_retries)
    going = drive(checkpoint, faulty, case.policy)
    begun_anew = 0
    while True:
        try:
            step, error = next(going)
        except StopIteration as done:
            report = done.value
            break
        begun_anew += is_provisional(error)
        assert is_closed(under(faulty)) is (step in {"apply", "release"} or begun_anew > 0)
    hit = {nth + more for nth, times, _ in script for more in range(times)}
    made = [call for nth, call in enumerate(texts(faulty)) if nth not in hit]
    fields, offsets, written = said(report)
    assert (fields, state(under(faulty))) == (plain.report, plain.after)
    assert offsets == made.count("set_counter_offset") - begun_anew
    assert written == sum(name.startswith("set_one_reg") for name in made)


@every_errno
@every_case
def test_a_restore_in_one_call_fails_whole_or_says_what_it_left_and_a_new_one_takes_over(
    case: Case, number: int
) -> None:
    plain = without_faults(case)
    for nth, call in enumerate(plain.calls):
        checkpoint, counter = case.saved()
        faulty = FaultyVm(case.target(counter), [Fault(nth=nth, errno=number)])
        with pytest.raises((KvmError, Interrupted)) as caught:
            faulty.restore(checkpoint, case.policy)
        error = caught.value
        assert isinstance(error, KvmError | Interrupted)
        check_the_error(error, number, nth, call)
        if is_closed(under(faulty)):
            assert isinstance(error, Interrupted)
            assert error.retry == "restore"
            assert "must not run: call restore() again" in str(error)
        else:
            assert state(under(faulty)) == plain.before
            assert "must not run" not in str(error) + notes(error)
        faulty.restore(checkpoint, case.policy)
        assert state(under(faulty)) == plain.after
        assert not is_closed(under(faulty))


@every_errno
@every_case
def test_every_call_of_a_checkpoint_can_fail_and_a_second_one_is_the_same(case: Case, number: int) -> None:
    vm = case.source(host())
    before = state(vm)
    faulty = FaultyVm(vm, [])
    saved = faulty.checkpoint().to_bytes()
    for nth, call in enumerate(texts(faulty)):
        faulty = FaultyVm(vm, [Fault(nth=nth, errno=number)])
        if call == "interrupts":
            # Nothing depends on the ids: they are unknown where KVM doesn't tell.
            assert faulty.checkpoint().interrupts is None
            assert faulty.checkpoint().to_bytes() == saved
            continue
        with pytest.raises(KvmError) as caught:
            faulty.checkpoint()
        check_the_error(caught.value, number, nth, call)
        assert not notes(caught.value)
        assert state(vm) == before
        assert faulty.checkpoint().to_bytes() == saved


Paused = Generator[tuple[FaultyVm, bool, Failed], None, tuple[list[str], dict[str, Any], dict[str, Any]]]


def pause(case: Case, faults: list[Fault]) -> Paused:
    """A pause that is begun, and ended, again after each error: it yields each, and whether the pause was to end."""
    counter = host()
    faulty = FaultyVm(case.source(counter), faults)
    pause = None
    counter.advance(PAUSE)
    while not pause:
        try:
            pause = faulty.pause(case.policy)
        except KvmError as error:
            yield faulty, False, error
    counter.advance(PAUSE)
    report = None
    while not report:
        try:
            report = pause.resume()
        except (KvmError, Interrupted) as error:
            yield faulty, True, error
    fields, *_ = said(report)
    calls = texts(faulty)
    with faulty.running(0):
        pass
    return calls, fields, state(under(faulty))


@every_errno
@every_case
def test_every_call_of_a_pause_can_fail_and_it_is_begun_or_ended_again(case: Case, number: int) -> None:
    before = case.source(host())
    calls, report, after = finish(pause(case, []))
    endings = set()
    for nth, call in enumerate(calls):
        going = pause(case, [Fault(nth=nth, errno=number)])
        if call == "interrupts":
            assert finish(going)[1:] == (report, after)
            continue

        faulty, ending, error = next(going)
        endings.add(ending)
        check_the_error(error, number, nth, call)
        assert registers(under(faulty)) == registers(before)
        if ending:
            with pytest.raises(RestoreOpen), faulty.running(0):
                pass
            assert isinstance(error, Interrupted)
            assert (error.state, error.retry) == ("paused", "resume")
            assert str(error).endswith("the VM is still paused, and must not run: call resume() again [interrupted]")
        else:
            assert state(under(faulty)) == state(before)
            assert not notes(error)

        assert finish(going)[1:] == (report, after)
    assert endings == {False, True}


@every_case
def test_a_pause_that_doesnt_end_is_taken_over_by_a_restore(case: Case) -> None:
    counter = host()
    faulty = FaultyVm(case.source(counter), [])
    with faulty.pause(case.policy):
        begun = len(texts(faulty))
    for nth in range(begun, len(texts(faulty))):
        vm = case.source(counter)
        saved = vm.checkpoint()
        wanted = both_counters(vm, saved.stamp.count, case.method)
        pause = FaultyVm(vm, [Fault(nth=nth, errno=errno.EIO)]).pause()
        counter.advance(PAUSE)
        with pytest.raises(Interrupted, match="injected"):
            pause.resume()
        vm.restore(saved)
        assert both_counters(vm, counter.read(), case.method) == wanted
        with vm.running(0):
            pass


@every_case
def test_ebusy_is_waited_out_for_as_long_as_it_was_said(case: Case) -> None:
    plain = without_faults(case)
    tried = 0
    for nth, call in enumerate(plain.calls):
        checkpoint, counter = case.saved()
        vm = case.target(counter)
        fault = Fault(nth=nth, times=2, errno=errno.EBUSY)
        if call not in MADE_AGAIN:
            # A register's ioctl waits for a running vCPU, and doesn't answer EBUSY: nothing makes it again.
            with pytest.raises((KvmError, Interrupted), match="injected at call"):
                FaultyVm(vm, [fault], busy_retries=2).restore(checkpoint, case.policy)
            continue
        tried += 1
        faulty = FaultyVm(vm, [fault], busy_retries=2)
        fields, *_ = said(faulty.restore(checkpoint, case.policy))
        assert (fields, state(vm)) == (plain.report, plain.after)
        assert texts(faulty) == [*plain.calls[:nth], call, call, *plain.calls[nth:]]
        with pytest.raises((VcpuRunning, Interrupted)) as caught:
            FaultyVm(case.target(counter), [fault], busy_retries=1).restore(checkpoint, case.policy)
        cause = caught.value.__cause__ if isinstance(caught.value, Interrupted) else caught.value
        assert isinstance(cause, VcpuRunning)
    assert tried == 4 + 2 * (case.method == "offset")


@pytest.mark.parametrize("waited", [1, 1000])
def test_an_offset_that_is_written_again_is_of_a_newer_sample(waited: int) -> None:
    checkpoint, counter = CASES[0].saved()
    slow = Fault("set_counter_offset", nth=1, times=3, errno=errno.EBUSY, delay_ticks=waited)
    faulty = FaultyVm(ModelVm(2, counter=counter), [slow], busy_retries=3)
    began = counter.read()
    report = faulty.restore(checkpoint)
    assert report.released_at == counter.read() == began + 3 * waited
    assert faulty.cntvct(0) == checkpoint.cntvct


def test_under_freeze_the_guest_sees_what_the_last_call_takes() -> None:
    checkpoint, counter = CASES[0].saved()
    faulty = FaultyVm(ModelVm(2, counter=counter), [Fault("set_counter_offset", nth=1, delay_ticks=77)])
    report = faulty.restore(checkpoint)
    assert report.cntvct == checkpoint.cntvct == faulty.cntvct(0, report.released_at)
    assert faulty.cntvct(0) == checkpoint.cntvct + 77


STEPS = ["prepare", "apply", "release"]
ticks = st.integers(0, 2**40)


def both_counters(vm: ModelVm, count: int, method: str) -> list[int]:
    """What each vCPU's guest reads at a host count, as far as a restore sets it."""
    virtual = [vm.cntvct(vcpu, count) for vcpu in range(vm.vcpus)]
    return virtual if method == "virtual-only" else virtual + [vm.cntpct(vcpu, count) for vcpu in range(vm.vcpus)]


@every_case
@given(delays=st.tuples(ticks, ticks, ticks))
def test_delays_between_the_steps_cost_the_guest_nothing(case: Case, delays: tuple[int, int, int]) -> None:
    counter = host()
    source = case.source(counter)
    checkpoint = source.checkpoint()
    counter.advance(PAUSE)
    faults = [Fault(step, delay_ticks=delay) for step, delay in zip(STEPS, delays, strict=True) if delay]
    faulty = FaultyVm(case.target(counter), faults)
    intended = faulty.restoring(checkpoint, case.policy)
    planned = counter.read()
    steps = intended.__enter__()
    steps.apply()
    report = steps.release()
    assert report.released_at == counter.read() == planned + sum(delays)
    now = counter.read() if case.policy == Advance() else checkpoint.stamp.count
    assert both_counters(under(faulty), counter.read(), case.method) == both_counters(source, now, case.method)
    assert report.error_bound_ticks == 0


@every_case
@given(slow=st.integers(1, 1000))
def test_slow_calls_stay_within_the_error_that_is_stated(case: Case, slow: int) -> None:
    counter = host()
    source = case.source(counter)
    checkpoint = source.checkpoint()
    counter.advance(PAUSE)
    faulty = FaultyVm(case.target(counter), [Fault(delay_ticks=slow, times=None)])
    report = faulty.restore(checkpoint, case.policy)
    then = report.released_at if case.policy == Advance() else checkpoint.stamp.count
    promised = both_counters(source, then, case.method)
    for guest, wanted in zip(both_counters(under(faulty), report.released_at, case.method), promised, strict=True):
        assert min((guest - wanted) % 2**64, (wanted - guest) % 2**64) <= report.error_bound_ticks
    if case.method == "offset":
        assert report.error_bound_ticks == 0


@every_case
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("ns", [3600 * SECOND, -3600 * SECOND, 1])
def test_a_clock_step_between_the_steps_is_nothing_on_one_counter(case: Case, step: str, ns: int) -> None:
    plain = without_faults(case)
    checkpoint, counter = case.saved()
    faulty = FaultyVm(case.target(counter), [Fault(step, step_realtime_ns=ns)])
    clock = counter.realtime_ns
    fields, *_ = said(faulty.restore(checkpoint, case.policy))
    assert (fields, state(under(faulty))) == (plain.report, plain.after)
    assert counter.realtime_ns == clock + ns


def test_a_clock_step_after_the_plan_moves_no_guest() -> None:
    checkpoint, counter = CASES[0].saved()
    added = []
    for faults in ([], [Fault("release", step_realtime_ns=SECOND)]):
        faulty = FaultyVm(ModelVm(2, counter=counter), faults)
        report = faulty.restore(checkpoint, Advance(), elapsed=Elapsed.by_wall_clocks(error_ns=0))
        added.append(report.added_ns)
    assert added[1] == added[0]


def everything_asked(vm: FaultyVm, checkpoint: Checkpoint) -> Iterator[Callable[[], object]]:
    yield lambda: vm.set_counter_offset(0)
    yield lambda: vm.get_one_reg(0, Reg.TIMER_CTL)
    yield lambda: vm.set_one_reg(0, Reg.TIMER_CTL, 0)
    yield lambda: vm.reg_list(0)
    yield lambda: vm.cntvct(0)
    yield lambda: vm.cntpct(0)
    yield lambda: vm.timer(0, Timer.VTIMER)
    yield lambda: vm.next_deadline(0)
    yield vm.running(0).__enter__
    yield vm.pause
    yield vm.checkpoint
    yield vm.next_step
    yield vm.opt_in
    yield lambda: vm.plan(checkpoint)
    yield lambda: vm.restore(checkpoint)


@every_case
def test_after_a_crash_at_any_call_the_checkpoint_restores_into_a_new_vm(case: Case) -> None:
    plain = without_faults(case)
    for nth in range(len(plain.calls)):
        checkpoint, counter = case.saved()
        faulty = FaultyVm(case.target(counter), [Fault(nth=nth, crash=True)])
        with pytest.raises(Crashed) as caught:
            faulty.restore(checkpoint, case.policy)
        assert not notes(caught.value)
        assert texts(faulty) == plain.calls[: nth + 1]
        for ask in everything_asked(faulty, checkpoint):
            with pytest.raises(Crashed, match="build a new VM"):
                ask()
        assert texts(faulty) == plain.calls[: nth + 1]
        assert "crashed" in repr(faulty)
        assert registers(under(faulty)) == registers_left(plain, plain.calls[:nth])
        vm = case.target(counter)
        # A new VM's counters begin where the host's stands, which is where it stood.
        assert state(vm) == plain.before
        vm.restore(Checkpoint.from_bytes(checkpoint.to_bytes()), case.policy)
        assert state(vm) == plain.after


@every_case
@pytest.mark.parametrize("step", ["plan", *STEPS])
def test_a_crash_before_each_step(case: Case, step: str) -> None:
    plain = without_faults(case)
    checkpoint, counter = case.saved()
    faulty = FaultyVm(case.target(counter), [Fault(step, crash=True)])
    with pytest.raises(Crashed):
        faulty.restore(checkpoint, case.policy)
    closed = step in {"apply", "release"}
    assert is_closed(under(faulty)) is closed
    assert under(faulty).opted_in is (closed and case.method == "offset")
    assert registers(under(faulty)) == (plain.registers_after if step == "release" else plain.registers_before)
    vm = case.target(counter)
    vm.restore(checkpoint, case.policy)
    assert state(vm) == plain.after


def test_a_crash_around_checkpoints_and_pauses() -> None:
    for step in ("checkpoint", "pause", "resume"):
        vm = busy(owned(host()))
        before = state(vm)
        faulty = FaultyVm(vm, [Fault(step, crash=True)])
        with pytest.raises(Crashed):
            faulty.checkpoint()
            with faulty.pause():
                pass
        assert state(vm) == before


@pytest.mark.parametrize("number", ERRNOS)
def test_a_step_that_fails_leaves_the_debt_as_it_was(number: int) -> None:
    faulty = FaultyVm(owing(), [])
    due(faulty).apply()
    assert "set_counter_offset" in texts(faulty)
    for nth in range(len(texts(faulty))):
        vm = owing()
        before = state(vm)
        faulty = FaultyVm(vm, [Fault(nth=nth, errno=number)])
        with pytest.raises(KvmError):
            due(faulty).apply()
        assert state(vm) == before
        assert due(faulty).apply() == 300
        assert vm.backlog_ticks == 300
    vm = owing()
    faulty = FaultyVm(vm, [Fault("catch_up", crash=True)])
    with pytest.raises(Crashed):
        due(faulty).apply()
    assert vm.backlog_ticks == 1000


def owing() -> ModelVm:
    """A VM with a backlog of 1000 ticks, paid back by 700 a second."""
    counter = host()
    vm = owned(counter)
    with vm.pause(CatchUp(step_ns=700 * NS, interval_ns=SECOND)):
        counter.advance(1000)
    return vm


def due(vm: FaultyVm) -> Step:
    """The next step of the backlog, when it is due."""
    step = vm.next_step()
    assert step
    assert isinstance(vm.counter, ManualCounter)
    vm.counter.advance(step.wait_ns() // NS)
    return step


def test_a_vcpu_leaves_its_guest_when_its_process_is_gone() -> None:
    vm = ModelVm(1, counter=host())
    faulty = FaultyVm(vm, [Fault("checkpoint", crash=True)])
    with pytest.raises(Crashed), faulty.running(0):
        faulty.checkpoint()
    with vm.running(0):
        pass


# What a fault is.


def outcomes(faults: list[Fault], calls: int = 6) -> list[int]:
    """The errno of each call, 0 for none: on vCPU 0 and 1 in turn, CTL."""
    faulty = FaultyVm(ModelVm(2, counter=host()), faults)
    numbers = []
    for call in range(calls):
        try:
            faulty.get_one_reg(call % 2, Reg.TIMER_CTL)
            numbers.append(0)
        except KvmError as error:
            numbers.append(error.errno or 0)
    assert texts(faulty) == [f"get_one_reg {call % 2} TIMER_CTL" for call in range(calls)]
    return numbers


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ([], [0, 0, 0, 0, 0, 0]),
        ([Fault(errno=5)], [5, 0, 0, 0, 0, 0]),
        ([Fault(nth=2, errno=5)], [0, 0, 5, 0, 0, 0]),
        ([Fault(nth=2, times=3, errno=5)], [0, 0, 5, 5, 5, 0]),
        ([Fault(nth=4, times=None, errno=5)], [0, 0, 0, 0, 5, 5]),
        ([Fault("get_one_reg", nth=1, errno=5)], [0, 5, 0, 0, 0, 0]),
        ([Fault("get_one_reg 1", times=None, errno=5)], [0, 5, 0, 5, 0, 5]),
        ([Fault("get_one_reg 1 TIMER_CTL", nth=1, errno=5)], [0, 0, 0, 5, 0, 0]),
        ([Fault("get_one_reg 1 0x603000000013df19", errno=5)], [0, 5, 0, 0, 0, 0]),
        ([Fault("get_one_reg 1 TIMER_CVAL", errno=5), Fault("set_one_reg", errno=5)], [0, 0, 0, 0, 0, 0]),
        ([Fault(errno=5), Fault(errno=6, times=2), Fault(nth=2, errno=7)], [5, 6, 7, 0, 0, 0]),
    ],
)
def test_where_a_fault_comes(faults: list[Fault], expected: list[int]) -> None:
    assert outcomes(faults) == expected


def test_every_fault_of_a_call_happens() -> None:
    counter = host()
    faulty = FaultyVm(ModelVm(1, counter=counter), [Fault(errno=errno.EIO, delay_ticks=5), Fault(delay_ticks=7)])
    began = counter.read()
    with pytest.raises(KvmError):
        faulty.reg_list(0)
    assert counter.read() == began + 5 + 7


def test_a_register_that_is_unknown_is_named_by_its_number() -> None:
    faulty = FaultyVm(ModelVm(1, counter=host()), [Fault("set_one_reg 0 0x603000000013e730", errno=errno.EIO)])
    with pytest.raises(KvmError, match="0x603000000013e730: errno 5"):
        faulty.set_one_reg(0, 0x603000000013E730, 1)
    with pytest.raises(UnknownRegister):
        faulty.set_one_reg(0, 0x603000000013E730, 1)
    assert texts(faulty) == ["set_one_reg 0 0x603000000013e730"] * 2


def test_a_call_that_fails_isnt_made() -> None:
    vm = ModelVm(1, counter=host())
    before = state(vm)
    faulty = FaultyVm(vm, [Fault(times=2, errno=errno.EIO)])
    with pytest.raises(KvmError):
        faulty.set_counter_offset(7)
    with pytest.raises(KvmError):
        faulty.set_one_reg(0, Reg.TIMER_CVAL, 7)
    assert state(vm) == before
    faulty.set_counter_offset(7)
    assert vm.opted_in
    with pytest.raises(IndexError):
        faulty.get_one_reg(1, Reg.TIMER_CVAL)


def test_the_offset_is_written_again_after_ebusy() -> None:
    fault = Fault("set_counter_offset", times=2, errno=errno.EBUSY)
    faulty = FaultyVm(ModelVm(1, counter=host()), [fault], busy_retries=2)
    faulty.set_counter_offset(10**12)
    assert (faulty.cntvct(0), texts(faulty)) == (0, ["set_counter_offset"] * 3)
    # A vCPU that is known to run won't stop for being asked again.
    with faulty.running(0), pytest.raises(VcpuRunning, match="vCPU 0 is running"):
        faulty.set_counter_offset(0)
    assert len(texts(faulty)) == 4


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (Fault(), "does nothing"),
        (Fault(errno=5, times=0), "does nothing"),
        (Fault("apply", errno=5), "a step has no errno"),
        (Fault(errno=0), "at least 1"),
        (Fault(errno=-5), "at least 1"),
        (Fault("", errno=5), "`on` is"),
        (Fault("ioctl", errno=5), "`on` is"),
        (Fault("set_one_reg zero", errno=5), "`on` is"),
        (Fault("set_one_reg 0 CNTV_CVAL_EL0", errno=5), "`on` is"),
        (Fault("set_one_reg 0 TIMER_CVAL 7", errno=5), "`on` is"),
        (Fault("stopped 0", errno=5), "`on` is"),
        (Fault("Apply", crash=True), "`on` is"),
    ],
)
def test_a_fault_without_sense_is_refused(fault: Fault, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        FaultyVm(ModelVm(1, counter=host()), [Fault(errno=5), fault])
    assert repr(fault) in str(caught.value)


@pytest.mark.parametrize("fault", [Fault(delay_ticks=1), Fault("apply", step_realtime_ns=-1)])
def test_time_is_moved_only_where_it_can_be(fault: Fault) -> None:
    FaultyVm(ModelVm(1, counter=host()), [fault])
    with pytest.raises(ValueError, match="ManualCounter"):
        FaultyVm(ModelVm(1, counter=HostCounter()), [fault])


NO_FAULTS: list[Any] = [5, [5], [Fault(nth="1")], [Fault(errno="EIO")], [Fault(5, crash=True)]]  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", NO_FAULTS)
def test_what_isnt_a_fault_is_refused(wrong: Any) -> None:
    with pytest.raises((TypeError, AttributeError)):
        FaultyVm(ModelVm(1, counter=host()), wrong)


@pytest.mark.parametrize("fault", [Fault(nth=-1, crash=True), Fault(delay_ticks=-1), Fault(errno=2**31)])
def test_numbers_out_of_range_are_refused(fault: Fault) -> None:
    with pytest.raises(OverflowError, match=r"Fault\.\w+: -?\d+ is out of range: an integer from "):
        FaultyVm(ModelVm(1, counter=host()), [fault])


def test_a_fault_is_a_value() -> None:
    fault = Fault("apply", nth=1, times=None, delay_ticks=5)
    assert eval(repr(fault)) == fault == pickle.loads(pickle.dumps(fault))  # noqa: S307 - that is what a repr promises
    assert len({fault, copy.copy(fault)}) == 1
    with pytest.raises(AttributeError):
        fault.nth = 2  # type: ignore[misc]


def test_it_is_the_vm_under_it() -> None:
    counter = host()
    vm = busy(owned(counter, nested=True))
    faulty = FaultyVm(vm, [])
    assert under(faulty) is vm
    assert faulty.counter is counter
    for name in ("vcpus", "frequency_hz", "nested", "opted_in", "capabilities"):
        assert getattr(faulty, name) == getattr(vm, name)
    assert repr(faulty) == f"<FaultyVm of {vm!r}>"
    counter.advance(5)
    for now in (None, 0, 10**12 + 7):
        assert (faulty.cntvct(1, now), faulty.cntpct(1, now)) == (vm.cntvct(1, now), vm.cntpct(1, now))
        assert faulty.timer(1, Timer.HVTIMER, now=now) == vm.timer(1, Timer.HVTIMER, now=now)
        assert faulty.next_deadline(1, now=now) == vm.next_deadline(1, now=now)
        for reg in faulty.reg_list(1):
            assert faulty.get_one_reg(1, reg, now=now) == vm.get_one_reg(1, reg, now=now)
        assert faulty.checkpoint(now=now).to_bytes() == vm.checkpoint(now=now).to_bytes()
    assert texts(faulty)[0] == "reg_list 1"
    faulty.set_one_reg(0, Reg.TIMER_CVAL, 99)
    assert vm.get_one_reg(0, Reg.TIMER_CVAL) == 99


def test_a_restore_at_an_injected_instant() -> None:
    checkpoint, counter = CASES[0].saved()
    later = counter.read() + 1000
    reports = []
    for wrap in (lambda vm: vm, lambda vm: FaultyVm(vm, [])):
        vm = wrap(ModelVm(2, counter=counter))
        reports.append(vm.restore(checkpoint, Advance(), now=later).to_dict())
        assert vm.cntvct(0, later) == checkpoint.cntvct + PAUSE + 1000
    assert reports[0] == reports[1]


def test_two_wrappers_of_one_vm_have_scripts_of_their_own() -> None:
    vm = ModelVm(1, counter=host())
    one, other = (FaultyVm(vm, [Fault(errno=number)]) for number in (5, 6))
    for faulty, number in ((one, 5), (other, 6)):
        with pytest.raises(KvmError) as caught:
            faulty.reg_list(0)
        assert caught.value.errno == number
    assert texts(one) == texts(other) == ["reg_list 0"]
    assert issubclass(Crashed, GuestClockError)
