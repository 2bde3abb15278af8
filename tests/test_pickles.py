"""Every public class is a value, which pickles and copies, or lives in one process, and says what to take instead."""

from __future__ import annotations

import copy
import importlib
import inspect
import mmap
import pickle
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import cbor2
import numpy as np
import pytest

import guestclock
from guestclock import (
    Advance,
    CatchUp,
    Checkpoint,
    Elapsed,
    Fleet,
    Freeze,
    HostCounter,
    KvmVm,
    ManualCounter,
    ModelVm,
    MonotonicCounter,
    Options,
    Plan,
    Reg,
    Report,
    Restore,
    Stamp,
    SyncBound,
    Timer,
    _core,
    aio,
    fleet,
    guest,
    model,
    snapshots,
    testing,
    tracing,
    types,
)
from guestclock.errors import ElapsedUnknown, FleetInterrupted, FleetRefused, Interrupted
from guestclock.model import ClockBank, DeadlineAlarm, DeadlineQueue, ScaledCounter
from guestclock.testing import Fault, FaultyVm
from vms import HZ, SECOND, busy, host, owned

POLICIES: list[types.Policy] = [
    Freeze(),
    Advance(),
    Advance(3 * SECOND),
    CatchUp(SECOND, 2 * SECOND, at_once_ns=5, within_ns=10**15),
]
PROTOCOLS = range(2, 6)


def restored(policy: types.Policy, **options: Any) -> tuple[Plan, Report]:
    counter = host()
    saved = busy(owned(counter, name="web-1")).checkpoint(sync=SyncBound(1000))
    counter.advance_ns(30 * SECOND)
    vm = ModelVm(2, counter=counter)
    return vm.plan(saved, policy, **options), vm.restore(saved, policy, **options)


def paused() -> Report:
    counter = host()
    with owned(counter).pause(Advance()) as pause:
        counter.advance_ns(SECOND)
    return pause.report


def backlog() -> tuple[ModelVm, Checkpoint]:
    counter = host()
    vm = owned(counter)
    with vm.pause(CatchUp(SECOND, SECOND)):
        counter.advance_ns(9 * SECOND)
    return vm, vm.checkpoint()


def next_step() -> types.Step:
    step = backlog()[0].next_step()
    assert step is not None
    return step


def monitor() -> tracing.Monitor:
    with tracing.Monitor() as made:
        return made


def many() -> tuple[Fleet, Checkpoint]:
    counter = host()
    vms = Fleet({name: owned(counter, name=name) for name in ("web-1", "web-2")})
    saved = vms.checkpoint()
    counter.advance_ns(SECOND)
    return vms, saved


def of_a_bank() -> tuple[ClockBank, Fleet]:
    bank = ClockBank(host(), timers=4)
    bank.add_many(3, 2)
    return bank, Fleet(bank)


def bank_report() -> fleet.FleetReport:
    _, vms = of_a_bank()
    return vms.restore(vms.checkpoint(), Advance())


def equation() -> guest.ClockEquation:
    return guest.ClockEquation(host().stamp(), cntvct=1, max_error_ns=1, synchronized=True)


def page() -> guest.VmClock:
    return guest.VmClock.create(mmap.mmap(-1, 4096), tai_offset_s=37)


def queue() -> DeadlineQueue:
    made = DeadlineQueue()
    made.add_group(2)
    return made


def restoring() -> Restore:
    vm = owned(host())
    return vm.restoring(vm.checkpoint())


def ended() -> tuple[tracing.Ended, list[tracing.Metric]]:
    events: list[tracing.Ended] = []
    vm = owned(host())
    with tracing.Monitor({"web-1": vm}, on_end=lambda event, _: events.append(event)) as monitor:
        vm.restore(vm.checkpoint())
        return events[0], monitor.metrics()


def record(kind: type[Any]) -> Any:
    """A record with another value in each field: it holds whatever it is given."""
    return kind(*map(str, range(2, 2 + len(inspect.signature(kind).parameters))))


def arrays(kind: type[Any]) -> Any:
    return kind(*(np.arange(n, n + 3) for n in range(3)))


RECORDS: list[type[Any]] = [
    types.Backlog,
    types.CallTotals,
    types.Capabilities,
    types.Diagnostic,
    types.GuestLimit,
    types.LatchMismatch,
    types.Mismatch,
    types.Reading,
    types.Support,
    types.TimerStatus,
    types.TracedCall,
    snapshots.Lack,
]
VALUES: dict[type[Any], Callable[[], Any]] = {
    Advance: lambda: Advance(5),
    CatchUp: lambda: CatchUp(1, 2, within_ns=3),
    Freeze: Freeze,
    Elapsed: lambda: Elapsed.given(5, error_ns=1),
    Checkpoint: lambda: owned(host()).checkpoint(),
    Plan: lambda: restored(Advance())[0],
    Report: lambda: restored(Advance())[1],
    Options: lambda: Options(elapsed=Elapsed.by_counter(), guest=types.LinuxGuest(softdog_s=(60, 30))),
    Stamp: lambda: HostCounter(sync=SyncBound(5)).stamp(),
    SyncBound: lambda: SyncBound(5, 6, 7, "chrony", 37),
    Reg: lambda: Reg.TIMER_CVAL,
    Timer: lambda: Timer.PTIMER,
    fleet.FleetPlan: lambda: many()[0].plan(many()[1], Advance()),
    fleet.FleetReport: lambda: many()[0].restore(many()[1], Advance()),
    fleet.FleetVerified: lambda: Fleet(many()[0]).verify(),
    guest.ClockEquation: equation,
    model.Added: lambda: model.Added.COUNTED,
    snapshots.Snapshot: lambda: snapshots.Snapshot(format="registers", registers=[{1: 2}], frequency_hz=5),
    testing.Fault: lambda: Fault("apply", delay_ticks=5),
    tracing.Ended: lambda: ended()[0],
    tracing.Metric: lambda: ended()[1][0],
    types.Changes: lambda: arrays(types.Changes),
    types.Expired: lambda: arrays(types.Expired),
    types.Lateness: lambda: types.Lateness(HZ, 7, 5, (0, 1, 2)),
    types.Verified: lambda: owned(host()).verify(),
    types.LinuxGuest: lambda: types.LinuxGuest(cpu_max_us=(1, 2)),
    types.Lines: lambda: arrays(types.Lines),
    types.TimerState: lambda: owned(host()).timer(0, 0),
    **{kind: lambda kind=kind: record(kind) for kind in RECORDS},  # type: ignore[misc]
}


LIVE: dict[type[Any], Callable[[], Any]] = {
    Fleet: lambda: many()[0],
    fleet.FleetPause: lambda: Fleet(many()[0]).pause(),
    fleet.FleetRestore: lambda: many()[0].restoring(many()[1]),
    HostCounter: HostCounter,
    MonotonicCounter: MonotonicCounter,
    ManualCounter: host,
    ScaledCounter: lambda: ScaledCounter(host(), frequency_hz=HZ),
    ModelVm: lambda: owned(host()),
    Restore: restoring,
    ClockBank: lambda: of_a_bank()[0],
    DeadlineQueue: queue,
    DeadlineAlarm: lambda: DeadlineAlarm(queue(), host()),
    aio.expiries: lambda: aio.expiries(DeadlineAlarm(queue(), host())),
    guest.GuestPages: lambda: guest.GuestPages(page(), [], []),
    guest.StolenTime: lambda: guest.StolenTime(mmap.mmap(-1, 4096)),
    guest.VmClock: page,
    guest.VmClockUpdate: lambda: page().update(),
    guest.keep_fresh: lambda: guest.keep_fresh(page(), owned(host())),
    testing.FaultyVm: lambda: FaultyVm(owned(host()), []),
    testing.RecordingCounter: lambda: testing.RecordingCounter(host()),
    testing.ReplayCounter: lambda: testing.ReplayCounter([1], frequency_hz=HZ),
    testing.TracedVm: lambda: testing.TracedVm(owned(host())),
    tracing.Monitor: monitor,
    types.Pause: lambda: owned(host()).pause(),
    types.Running: lambda: owned(host()).running(0),
    types.Step: next_step,
}
# A KvmVm needs KVM: that it refuses is tested by its class. GuestVm has no objects of its own.
NOT_MADE_HERE = {KvmVm, types.GuestVm}


def public() -> Iterator[type[Any]]:
    """The classes that a program meets: names of the package and its rooms, and what their verbs return."""
    rooms = [importlib.import_module(f"guestclock.{name}") for name in guestclock._ROOMS if name != "adapters"]
    for place in (guestclock, *rooms, fleet, _core):
        for name in getattr(place, "__all__", None) or dir(place):
            found = getattr(place, name)
            if inspect.isclass(found) and found.__module__.startswith("guestclock") and not name.startswith("_"):
                yield found


def is_a_shape(kind: type[Any]) -> bool:
    """True for a class that only annotations name."""
    return typing.is_typeddict(kind) or getattr(kind, "_is_protocol", False)


def test_no_public_class_is_forgotten() -> None:
    # The errors are in tests/test_errors.py, from a list of the same kind.
    met = {kind for kind in public() if not issubclass(kind, BaseException) and not is_a_shape(kind)}
    assert met == {*VALUES, *LIVE, *NOT_MADE_HERE}
    assert VALUES.keys().isdisjoint(LIVE)


def copies(value: Any) -> Iterator[Any]:
    yield copy.copy(value)
    yield copy.deepcopy(value)
    for protocol in PROTOCOLS:
        yield pickle.loads(pickle.dumps(value, protocol))


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and any(isinstance(part, np.ndarray) for part in one):
        return all(np.array_equal(mine, its) for mine, its in zip(one, other, strict=True))
    return bool(one == other)


@pytest.mark.parametrize("kind", VALUES, ids=lambda kind: kind.__name__)
def test_a_value_pickles_and_copies(kind: type[Any]) -> None:
    value = VALUES[kind]()
    assert isinstance(value, kind)
    for twin in copies(value):
        assert type(twin) is type(value)
        assert alike(twin, value)
        assert repr(twin) == repr(value)
        assert str(twin) == str(value)
        if hasattr(value, "to_dict"):
            assert twin.to_dict() == value.to_dict()


@pytest.mark.parametrize("kind", LIVE, ids=lambda kind: kind.__name__)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_lives_here_says_what_to_take_instead(kind: type[Any]) -> None:
    value = LIVE[kind]()
    assert isinstance(value, kind)
    ways: list[Callable[[], object]] = [lambda: copy.deepcopy(value)]
    ways += [lambda protocol=protocol: pickle.dumps(value, protocol) for protocol in PROTOCOLS]  # type: ignore[misc]
    for way in ways:
        with pytest.raises(TypeError, match=r"^a \w+ lives in this process, and no pickle or copy holds it: \w+"):
            way()


def test_a_kvm_vm_refuses_too() -> None:
    import copyreg

    with pytest.raises(TypeError, match=r"^a KvmVm lives in this process, .*: take its checkpoint\(\)"):
        copyreg.dispatch_table[KvmVm](None)


# Plans and reports: made again of what they were made of.


@cache
def reports() -> dict[str, Report]:
    found = {repr(policy): restored(policy)[1] for policy in POLICIES}
    found["in place"] = paused()
    found["relative"] = restored(Advance(), timers="relative")[1]
    counter = host()
    vm, saved = backlog()
    found["a backlog"] = ModelVm(2, counter=vm.counter).restore(saved, Freeze())
    # By value, on another host, by two wall clocks.
    saved = busy(ModelVm(2, counter=counter)).checkpoint(sync=SyncBound(SECOND))
    other = ManualCounter(5, frequency_hz=HZ, realtime_ns=counter.realtime_ns + 7 * SECOND)
    guest_os = types.LinuxGuest(softdog_s=(6, 3), cpu_max_us=(20_000, 100_000))
    by_value = ModelVm(2, counter=other).restore(
        saved, Advance(), sync=SyncBound(5, 6, 7, "clockbound", 37), guest=guest_os, intent="live-migration"
    )
    found["by value"] = by_value.resumed_at(by_value.returned_at + 9)
    # The host sleeps between the plan and the release: the release looks again.
    saved = owned(counter).checkpoint()
    with ModelVm(2, counter=counter).restoring(saved, Advance()) as r:
        r.apply()
        counter.suspend(3 * SECOND)
        found["a sleep"] = r.release()
    found["of a bank"] = next(iter(bank_report().values()))
    found["nested"] = nested()
    return found


def nested() -> Report:
    counter = host()
    vm = ModelVm(1, counter=counter, nested=True)
    return vm.restore(vm.checkpoint(), Advance())


@pytest.mark.parametrize("name", reports())
def test_a_report_is_made_again_as_it_was(name: str) -> None:
    report = reports()[name]
    for twin in copies(report):
        assert twin == report
        assert twin.to_dict() == report.to_dict()
        assert str(twin) == str(report)
        assert twin.timers() == report.timers()
        assert (twin.released_at, twin.returned_at) == (report.released_at, report.returned_at)
        assert (twin.warnings, twin.assumptions) == (report.warnings, report.assumptions)
    assert all(report != other for label, other in reports().items() if label != name)


def test_the_reports_are_of_all_kinds() -> None:
    methods = {report.method for report in reports().values()}
    assert methods == {"offset", "by-value"}
    assert "counter-stopped" in {warning.code for warning in reports()["a sleep"].warnings}
    assert reports()["by value"].elapsed_by == "wall-clocks"


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_plan_is_made_again_as_it_was(policy: types.Policy) -> None:
    plan, _ = restored(policy, guest=types.LinuxGuest(softdog_s=(6, 3)))
    for twin in copies(plan):
        assert twin == plan
        assert twin.to_dict() == plan.to_dict()
        assert twin.timers() == plan.timers()
        assert twin.limits == plan.limits
    assert plan != restored(policy)[0]


def test_another_process_reads_them() -> None:
    plan, report = restored(Advance(3 * SECOND))
    bank = bank_report()
    told = pickle.dumps((plan, report, bank))
    code = "import pickle, sys; print([str(it) for it in pickle.load(sys.stdin.buffer)])"
    done = subprocess.run([sys.executable, "-c", code], input=told, capture_output=True, check=True, timeout=60)
    assert done.stdout.decode().strip() == str([str(plan), str(report), str(bank)])


def test_a_banks_plan_pickles_as_a_plan_each() -> None:
    _, vms = of_a_bank()
    plan = vms.plan(vms.checkpoint(), Advance())
    for twin in copies(plan):
        assert dict(twin) == dict(plan)
        assert twin.to_dict() == plan.to_dict()
        assert twin.accepted == plan.accepted


def test_a_banks_report_pickles_as_a_report_each() -> None:
    report = bank_report()
    for twin in copies(report):
        assert dict(twin) == dict(report)
        assert {name: column.tolist() for name, column in twin.columns().items()} == {
            name: column.tolist() for name, column in report.columns().items()
        }


def test_a_refusal_and_an_interruption_of_a_fleet_keep_what_they_carry() -> None:
    vms, saved = many()
    first = vms["web-1"]
    assert isinstance(first, ModelVm)
    faulty = {"web-1": FaultyVm(first, [Fault("apply", errno=None, crash=True)]), "web-2": vms["web-2"]}
    with pytest.raises(FleetInterrupted) as interrupted:
        Fleet(faulty).restore(saved)
    for twin in copies(interrupted.value):
        assert dict(twin.reports) == dict(interrupted.value.reports)
        assert list(twin.reports) == ["web-2"]
        assert isinstance(twin, Interrupted)
    other = ManualCounter(5, frequency_hz=HZ)
    here = Fleet({name: ModelVm(2, counter=other) for name in saved.names})
    with pytest.raises(FleetRefused) as refused:
        here.restore(saved, Advance())
    for twin in copies(refused.value):
        assert [type(error) for error in twin.refused.values()] == [ElapsedUnknown, ElapsedUnknown]
        assert list(map(str, twin.refused.values())) == list(map(str, refused.value.refused.values()))
    planned = here.plan(saved, Advance())
    for plan in copies(planned):
        assert plan.to_dict() == planned.to_dict()
        assert {name: column.tolist() for name, column in plan.columns().items()} == {
            name: column.tolist() for name, column in planned.columns().items()
        }


# What isn't a pickle of this version's.


def state(value: Plan | Report) -> tuple[Callable[..., Any], list[Any]]:
    reduced: Any = value.__reduce__()
    again, arguments = reduced
    return again, list(arguments)


def test_another_version_is_refused_with_the_way_out() -> None:
    for value in restored(Advance()):
        again, arguments = state(value)
        for version in ("0.0.9", "x" * 10**6, ""):
            with pytest.raises(ValueError, match=r"^the pickle is of guestclock \".*to_dict\(\) by any$") as caught:
                again(version, *arguments[1:])
            assert len(str(caught.value)) < 500


def test_a_plans_state_makes_no_report_and_no_part_is_missed() -> None:
    plan, report = restored(Advance())
    again, _ = state(report)
    with pytest.raises(ValueError, match="is of a plan"):
        again(*state(plan)[1])
    with pytest.raises(ValueError, match="damaged"):
        again(*state(report)[1][:3], None)
    with pytest.raises(ValueError, match="damaged"):
        again(*state(paused())[1][:3], owned(host()).checkpoint())
    with pytest.raises(ValueError, match="of 2 VMs"):
        again(*state(report)[1][:3], many()[1])


def test_each_damaged_byte_is_found() -> None:
    again, (version, values, checksum, checkpoint) = state(restored(Advance())[1])
    for at in range(len(values)):
        damaged = values[:at] + bytes([values[at] ^ 0x11]) + values[at + 1 :]
        with pytest.raises(ValueError, match="damaged"):
            again(version, damaged, checksum, checkpoint)
    for end in range(len(values)):
        with pytest.raises(ValueError, match="damaged"):
            again(version, values[:end], _core._crc32c(values[:end]), checkpoint)


EDGES: list[Any] = [0, 1, 2**16, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63)]
EDGES += [None, "", b"", [], {}, True, 1.5]


def variants(value: Any) -> Iterator[Any]:
    """A document with one part of it changed."""
    yield from EDGES
    if isinstance(value, dict):
        for key in value:
            for other in variants(value[key]):
                yield {**value, key: other}
    elif isinstance(value, list):
        for at, part in enumerate(value):
            for other in variants(part):
                yield [*value[:at], other, *value[at + 1 :]]


@pytest.mark.parametrize("name", ["a sleep", "by value", "in place", repr(POLICIES[3])])
def test_a_state_that_somebody_made_up_is_refused_or_is_a_report(name: str) -> None:
    again, (version, values, _, checkpoint) = state(reports()[name])
    made = 0
    for other in variants(cbor2.loads(values)):
        data = cbor2.dumps(other)
        try:
            report = again(version, data, _core._crc32c(data), checkpoint)
        except (ValueError, guestclock.GuestClockError):
            continue
        made += 1
        assert report.to_dict()
        assert str(report)
        assert report.timers() is not None
        assert report == pickle.loads(pickle.dumps(report))
    assert made > 100


def test_a_number_of_parts_that_isnt_there_costs_nothing() -> None:
    again, (version, _, _, checkpoint) = state(restored(Advance())[1])
    # An array, a map and a text of 2^62 parts each.
    for data in (b"\x9b\x40" + bytes(7), b"\xbb\x40" + bytes(7), b"\x7b\x40" + bytes(7), b"\x81" * 10**6):
        with pytest.raises(ValueError, match="damaged"):
            again(version, data, _core._crc32c(data), checkpoint)
