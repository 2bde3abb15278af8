"""The accuracy of a restore as a guest reads it, on models: the judge passes what is right, and sees planted faults."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from guestclock import Advance, CatchUp, Checkpoint, Elapsed, Freeze, HostCounter, ManualCounter, ModelVm, Reg, selftest
from guestclock.cli.app import app
from guestclock.selftest import accuracy
from guestclock.selftest.accuracy import DELAYS_MS, POLICIES, VCPUS, Row, restored, rows
from guestclock.testing import Fault, FaultyVm
from vms import HZ, SECOND, host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from guestclock import Report
    from guestclock.types import GuestVm

OFFSET, BY_VALUE = "offset", "by value"
TICK_MS = HZ // 1000


class ModelSeat:
    """A model VM whose guest's reads are exact."""

    def __init__(self, vm: Any, counter: ManualCounter) -> None:
        self.vm: GuestVm = vm
        self._counter = counter

    def seen(self) -> list[accuracy.Offsets]:
        self._counter.advance(40)
        now = self._counter.read()
        model = self.vm.vm if isinstance(self.vm, FaultyVm) else getattr(self.vm, "model", self.vm)
        offsets = [(now - model.cntvct(vcpu), now - model.cntpct(vcpu)) for vcpu in range(VCPUS)]
        return [((virtual - 3, virtual + 3), (physical - 3, physical + 3)) for virtual, physical in offsets]


class ModelBench:
    """A host whose every read of its counter takes 5 ticks, and whose second machine may have a fault."""

    frequency_hz = HZ

    def __init__(self, *, kernel: str = "6.12", target: Callable[[ModelVm], Any] = lambda vm: vm) -> None:
        self.counter = host()
        self._kernel, self._target, self._made = kernel, target, 0

    def read(self) -> int:
        return self.counter.advance(5)

    def wait(self, ms: int) -> None:
        self.counter.advance(ms * TICK_MS)

    @contextmanager
    def machine(self) -> Iterator[ModelSeat]:
        self._made += 1
        vm = ModelVm(VCPUS, counter=self.counter, kernel=self._kernel)
        yield ModelSeat(self._target(vm) if self._made == 2 else vm, self.counter)


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.3"])
def test_every_policy_is_as_it_promises_on_each_kernel(kernel: str) -> None:
    measured = list(rows(ModelBench(kernel=kernel)))
    assert [row.wrong for row in measured] == [None] * len(measured)
    methods = [BY_VALUE] if kernel == "6.1" else [OFFSET, BY_VALUE]
    assert len(measured) == len(DELAYS_MS) * sum(
        method == OFFSET or not isinstance(policy, CatchUp) for policy in POLICIES for method in methods
    )
    for row in measured:
        assert row.held_up[0] >= 2 * row.delay_ms * TICK_MS
        assert row.behind[1] - row.behind[0] < 1000
        # Freeze hides the delays from the guest, and Advance nothing.
        if row.policy == "Freeze()":
            assert row.seen[1] < 1000
        if row.policy == "Advance()":
            assert row.seen[0] >= 2 * row.delay_ms * TICK_MS


class Faulty:
    """A VM whose restore is wrong."""

    def __init__(
        self,
        model: ModelVm,
        *,
        plan: Callable[..., Any] | None = None,
        after: Callable[[ModelVm], None] = lambda _: None,
    ) -> None:
        self.model = model
        self._plan, self._after = plan, after

    def restoring(self, checkpoint: Checkpoint, policy: Any) -> Any:
        steps = self._plan(self.model, checkpoint, policy) if self._plan else self.model.restoring(checkpoint, policy)
        after, model = self._after, self.model

        class Steps:
            def __enter__(self) -> Any:
                steps.__enter__()
                return self

            def __exit__(
                self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
            ) -> None:
                steps.__exit__(kind, error, traceback)

            def apply(self) -> None:
                steps.apply()

            def release(self) -> Report:
                report: Report = steps.release()
                after(model)
                return report

        return Steps()


def a_second_more(model: ModelVm, checkpoint: Checkpoint, policy: Any) -> Any:
    """The plan takes the guest's counters for a second more than they were."""
    registers = [
        {reg: (value + HZ if reg in {Reg.TIMER_CNT, Reg.PTIMER_CNT} else value) for reg, value in vcpu.items()}
        for vcpu in checkpoint.to_one_regs(physical_count=True)
    ]
    offset = (checkpoint.stamp.count - checkpoint.cntvct - HZ) % 2**64 if checkpoint.opted_in else None
    wrong = Checkpoint.from_one_regs(registers, frequency_hz=HZ, host=checkpoint.stamp, counter_offset=offset)
    return model.restoring(wrong, policy)


def a_second_passed(model: ModelVm, checkpoint: Checkpoint, policy: Any) -> Any:
    """The plan takes a second to have passed."""
    return model.restoring(checkpoint, policy, elapsed=Elapsed.given(SECOND, error_ns=0))


def moved(model: ModelVm) -> None:
    """The offset moves by a millisecond after the release."""
    if model.opted_in:
        model.set_counter_offset(model.counter.read() - model.cntvct(0) + TICK_MS)
    else:
        model.set_one_reg(0, Reg.TIMER_CNT, model.cntvct(0) - TICK_MS)


def torn(model: ModelVm) -> None:
    """The physical counter of a VM that never opted in goes its own way."""
    model.set_one_reg(0, Reg.PTIMER_CNT, model.cntpct(0) + TICK_MS)


VIRTUAL = "the virtual counter isn't where the policy has it"
PHYSICAL = "the physical counter isn't where the policy has it"


@pytest.mark.parametrize(
    ("policy", "method", "fault", "wrong"),
    [
        *[
            (policy, method, {"plan": a_second_more}, VIRTUAL)
            for policy in POLICIES[:3]
            for method in (OFFSET, BY_VALUE)
        ],
        (POLICIES[3], OFFSET, {"plan": a_second_more}, VIRTUAL),
        (Advance(), OFFSET, {"plan": a_second_passed}, VIRTUAL),
        (Advance(), BY_VALUE, {"plan": a_second_passed}, VIRTUAL),
        *[(policy, method, {"after": moved}, VIRTUAL) for policy in POLICIES[:3] for method in (OFFSET, BY_VALUE)],
        (Freeze(), BY_VALUE, {"after": torn}, PHYSICAL),
    ],
)
def test_a_fault_in_the_plan_or_the_release_shows(policy: Any, method: Any, fault: Any, wrong: str) -> None:
    bench = ModelBench(target=lambda vm: Faulty(vm, **fault))
    assert restored(bench, policy, method, 10).wrong == wrong


@pytest.mark.parametrize("policy", [Freeze(), Advance(), CatchUp(10**6, 10**7)])
def test_a_release_that_is_late_stands_in_its_report(policy: Any) -> None:
    """The offset is written a second after its sample: Advance doesn't mind, and Freeze can't hide it."""
    late = [Fault("set_counter_offset", nth=1, delay_ticks=HZ)]
    row = restored(ModelBench(target=lambda vm: FaultyVm(vm, late)), policy, "offset", 1)
    assert HZ <= row.until_return < HZ + 1000
    assert row.wrong == "the release returned long after its last sample"
    plain = restored(ModelBench(), policy, "offset", 1)
    assert plain.until_return < 100
    if policy != Advance():
        assert row.seen[0] - plain.seen[1] > HZ - 1000


def judged(**changes: Any) -> str | None:
    row = restored(ModelBench(), Freeze(), "offset", 1)
    return accuracy._judged(replace(row, **changes), 500 * TICK_MS).wrong


def test_each_thing_that_is_judged_can_fail() -> None:
    assert judged() is None
    assert judged(behind=(1, 9)) == VIRTUAL
    assert judged(behind=(1, 9), bound=1) is None
    assert judged(physical_behind=(-9, -1)) == PHYSICAL
    assert judged(vcpu_skew=(1, 2)) == "the vCPUs are apart"
    assert judged(seen=(10**6, 10**6)) == "the guest sees more than the calls that saved and released it"
    assert judged(until_return=501 * TICK_MS) == "the release returned long after its last sample"
    assert judged(behind=(-300 * TICK_MS, 300 * TICK_MS)) == "the intervals are too wide to show anything"
    assert isinstance(restored(ModelBench(), Freeze(), "offset", 1), Row)


# The document.


def test_the_document_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    document = selftest.run(ModelBench())
    assert (document["schema"], document["ok"], len(document["accuracy"])) == (selftest.SCHEMA, True, 21)
    assert json.loads(json.dumps(document)) == document
    stamp = HostCounter().stamp()
    for known in (stamp.machine_id, stamp.boot_id):
        assert known is None or known not in json.dumps(document)
    assert [cost["call"] for cost in document["costs"]][:3] == ["HostCounter.read", "cntvct", "checkpoint"]
    broken = replace(restored(ModelBench(), Freeze(), "offset", 1), wrong=VIRTUAL)
    monkeypatch.setattr(accuracy, "rows", lambda _: iter([broken]))
    assert not selftest.run(ModelBench())["ok"]


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(app, ["selftest"])
    if not isinstance(done.exception, SystemExit) or done.exit_code != 2:
        pytest.skip("this machine has an arm64 KVM")
    assert "the self-test needs /dev/kvm on an arm64 machine" in done.stderr
    document = selftest.run(ModelBench())
    for ok in (True, False):
        made = {**document, "ok": ok}
        monkeypatch.setattr("guestclock.cli.app.selftest.run", lambda made=made: made)
        done = CliRunner().invoke(app, ["selftest"])
        assert (done.exit_code, json.loads(done.stdout)) == (0 if ok else 1, made)
