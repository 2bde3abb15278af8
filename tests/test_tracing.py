"""Restores in the log, in a monitor's samples, and a traced VM's calls: what is said is what happened."""

from __future__ import annotations

import errno
import io
import json
import logging
import subprocess
import sys
import threading
from typing import Any

import pytest

from guestclock import MS, Advance, CatchUp, Fleet, Freeze, ManualCounter, ModelVm, tracing
from guestclock.errors import Crashed, FleetInterrupted, Interrupted, Misuse, Refused, TopologyMismatch
from guestclock.guest import ClockEquation
from guestclock.model import ClockBank
from guestclock.testing import Fault, FaultyVm, TracedVm
from vms import HZ, SECOND, host, owned


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="guestclock")
    return caplog


def fields(record: logging.LogRecord) -> dict[str, Any]:
    start = "guestclock."
    return {name.removeprefix(start): value for name, value in vars(record).items() if name.startswith(start)}


def counted(monitor: tracing.Monitor, name: str, **labels: str) -> int:
    """The sum of the samples of this name that have these labels."""
    found = [sample for sample in monitor.metrics() if sample.name == f"guestclock_{name}"]
    return sum(sample.value for sample in found if labels.items() <= sample.labels.items())


def test_a_restore_is_one_record_that_its_report_agrees_with(log: pytest.LogCaptureFixture) -> None:
    counter = host()
    checkpoint = owned(counter, name="source").checkpoint()
    counter.advance_ns(30 * SECOND)
    report = ModelVm(2, counter=counter, name="web-1").restore(checkpoint, Advance(max_ns=25 * SECOND))
    (record,) = log.records
    said = fields(record)
    blackout_ns = said.pop("blackout_ns")
    assert blackout_ns > 0
    assert said == {
        "vm": "web-1",
        "verb": "restore",
        "outcome": "done",
        "vms": 1,
        "policy": "Advance(max_ns=25000000000)",
        "method": report.method,
        "evidence": report.elapsed_by,
        "elapsed_ns": 30 * SECOND,
        "added_ns": 25 * SECOND,
        "bound_ns": report.error_bound_ns,
        "behind_ns": 5 * SECOND,
        "backlog_ns": 0,
        "window_ns": 0,
        "limits": ("soft lockup", "RCU stall"),
        "warnings": tuple(warning.code for warning in report.warnings),
        "error": None,
        "step": None,
        "state": None,
        "message": None,
    }
    # It has warnings.
    assert (record.name, record.levelno) == ("guestclock", logging.WARNING)
    assert record.getMessage().startswith(
        "restore of VM 'web-1' done, Advance(max_ns=25000000000) by offset, added 25000"
    )


def test_pauses_and_blocks_are_records_too(log: pytest.LogCaptureFixture) -> None:
    counter = host()
    vm = owned(counter, name="web-1")
    with vm.pause(CatchUp(MS, 2 * MS)):
        counter.advance_ns(10 * MS)
    with vm.restoring(vm.checkpoint()) as r:
        r.apply()
        assert len(log.records) == 1
        r.release()
    with pytest.raises(ZeroDivisionError), vm.restoring(vm.checkpoint()):
        raise ZeroDivisionError
    assert [(fields(record)["verb"], fields(record)["backlog_ns"]) for record in log.records] == [
        ("pause", 10 * MS),
        ("restore", 10 * MS),
    ]


def test_a_refusal_and_an_interruption_say_what_became_of_the_vm(log: pytest.LogCaptureFixture) -> None:
    counter = host()
    checkpoint = owned(counter).checkpoint()
    with pytest.raises(TopologyMismatch):
        ModelVm(1, counter=counter, name="web-1").restore(checkpoint)
    vm = FaultyVm(owned(counter, name="web-2"), [Fault("set_counter_offset", nth=1, errno=errno.EIO)])
    with pytest.raises(Interrupted) as caught:
        vm.restore(checkpoint)
    refused, interrupted = map(fields, log.records)
    assert (refused["vm"], refused["outcome"], refused["error"]) == ("web-1", "refused", "TopologyMismatch")
    assert (interrupted["vm"], interrupted["outcome"]) == ("web-2", "interrupted")
    assert (interrupted["step"], interrupted["state"]) == (caught.value.step, caught.value.state)
    assert [record.levelno for record in log.records] == [logging.WARNING, logging.ERROR]
    assert refused["added_ns"] is None


def test_a_call_out_of_its_order_is_no_event(log: pytest.LogCaptureFixture) -> None:
    vm = owned(host())
    r = vm.restoring(vm.checkpoint())
    with pytest.raises(Misuse):
        r.release()
    with r, pytest.raises(Misuse):
        r.release()
    vm.plan(vm.checkpoint())
    assert log.records == []


def test_nothing_is_made_where_nobody_asks(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    for function in ("_done", "_failed", "_of_bank"):
        monkeypatch.setattr(tracing, function, lambda *_, function=function: called.append(function))
    vm = owned(host())
    caplog.set_level(logging.WARNING, logger="guestclock")
    vm.restore(vm.checkpoint())
    assert called == []
    caplog.set_level(logging.INFO, logger="guestclock")
    vm.restore(vm.checkpoint())
    assert called == ["_done"]
    caplog.set_level(logging.CRITICAL, logger="guestclock")
    with tracing.Monitor():
        vm.restore(vm.checkpoint())
    vm.restore(vm.checkpoint())
    with pytest.raises(Refused):
        ModelVm(1, counter=host()).restore(vm.checkpoint())
    assert called == ["_done", "_done"]


def test_a_process_without_logging_restores_without_it() -> None:
    code = """
import sys
from guestclock import ManualCounter, ModelVm
vm = ModelVm(1, counter=ManualCounter(5))
vm.restore(vm.checkpoint())
print("guestclock.tracing" in sys.modules)
import logging
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
vm.restore(vm.checkpoint())
print("guestclock.tracing" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    first, line, last = done.stdout.splitlines()
    assert (first, last) == ("False", "True")
    assert line.startswith("restore of VM '' done, Freeze() by ")


def test_a_monitor_counts_what_happens() -> None:
    counter = host()
    vms = {name: owned(counter, name=name) for name in ("web-1", "web-2")}
    checkpoint = Fleet(vms).checkpoint()
    counter.advance_ns(30 * SECOND)
    before = tracing.Monitor()
    with tracing.Monitor(vms) as monitor, tracing.Monitor(vms, per_vm=True) as each:
        Fleet(vms).restore(checkpoint, Advance())
        with vms["web-1"].pause(CatchUp(MS, 2 * MS)):
            counter.advance_ns(10 * MS)
        with pytest.raises(Refused):
            vms["web-2"].restore(ModelVm(1, counter=counter).checkpoint())
        assert (
            counted(monitor, "ended_total", verb="restore", outcome="done", policy="Advance", evidence="counter") == 2
        )
        assert counted(monitor, "ended_total", verb="pause", policy="CatchUp") == 1
        assert counted(monitor, "errors_total", outcome="refused", error="TopologyMismatch") == 1
        assert counted(monitor, "added_nanoseconds_total") == 60 * SECOND
        assert counted(monitor, "behind_nanoseconds_total") == 10 * MS
        assert counted(monitor, "limits_crossed_total", limit="soft lockup") == 2
        assert counted(monitor, "warnings_total", code="large-jump") == 2
        assert counted(monitor, "backlog_vms") == 1
        assert counted(monitor, "backlog_max_nanoseconds") == 10 * MS
        assert counted(each, "added_nanoseconds_total", vm="web-1") == 30 * SECOND
        assert counted(each, "backlog_max_nanoseconds", vm="web-2") == 0
        with vms["web-2"].pause():
            assert counted(monitor, "vms", state="paused") == counted(monitor, "vms", state="open") == 1
        assert counted(before, "ended_total") == counted(monitor, "ended_total")
    before.close()
    total = counted(monitor, "ended_total")
    vms["web-1"].restore(checkpoint["web-1"])
    assert counted(monitor, "ended_total") == total
    assert all(type(sample.value) is int and sample.text for sample in monitor.metrics())


def test_the_series_of_a_host_dont_grow_with_its_vms() -> None:
    def series(number: int) -> set[tuple[str, ...]]:
        counter = host()
        fleet = Fleet({str(vm): owned(counter, 1, name=str(vm)) for vm in range(number)})
        with tracing.Monitor(fleet) as monitor:
            fleet.restore(fleet.checkpoint(), Freeze())
            return {(sample.name, *sample.labels.values()) for sample in monitor.metrics()}

    assert series(1) == series(20)


def test_a_bank_is_one_event(log: pytest.LogCaptureFixture) -> None:
    counter = host()
    bank = ClockBank(counter)
    bank.add_many(3)
    fleet = Fleet(bank)
    checkpoint = fleet.checkpoint()
    counter.advance_ns(2 * SECOND)
    with tracing.Monitor(fleet) as monitor:
        report = fleet.restore(checkpoint, Advance())
        with fleet.pause():
            counter.advance_ns(MS)
        with pytest.raises(Refused):
            fleet.restore(checkpoint, Advance(), views="refuse", strict=True, elapsed=None, timers="absolute", now=5)
        assert counted(monitor, "ended_total", verb="restore", policy="Advance") == 3
        assert counted(monitor, "ended_total", verb="pause", policy="Freeze") == 3
        assert counted(monitor, "vms", state="open") == 3
    done, paused, refused = map(fields, log.records)
    assert (done["vms"], done["added_ns"], done["evidence"]) == (3, 2 * SECOND, "counter")
    assert done["bound_ns"] == max(one.error_bound_ns for one in report.values())
    assert (paused["verb"], paused["policy"]) == ("pause", "Freeze()")
    assert (refused["outcome"], refused["error"]) == ("refused", "FleetRefused")


def test_retries_and_times_of_calls_are_summed() -> None:
    counter = host()
    checkpoint = owned(counter).checkpoint()
    busy = FaultyVm(owned(counter), [Fault("set_counter_offset", errno=errno.EBUSY, times=2)], busy_retries=5)
    with tracing.Monitor({"web-1": busy, "web-2": owned(counter)}, per_vm=True) as monitor:
        busy.restore(checkpoint)
        assert counted(monitor, "calls_busy_total", vm="web-1", operation="set_counter_offset") == 2
        assert counted(monitor, "calls_busy_total") == 2
        for operation, totals in busy.totals.items():
            calls = [call for call in busy.calls if call.operation == operation]
            assert totals.made == len(calls)
            assert totals.took_ns == sum(call.took_ns for call in calls)
            assert counted(monitor, "calls_total", operation=operation) == len(calls)
        assert counted(monitor, "calls_total", vm="web-2") == 0
    made = sum(totals.made for totals in busy.totals.values())
    busy.clear()
    assert sum(totals.made for totals in busy.totals.values()) == made
    assert busy.calls == []


def test_calls_come_after_the_fact_and_as_json_lines() -> None:
    counter = host()
    vm = TracedVm(owned(counter))
    told: list[tuple[str, str, list[str | None]]] = []
    checkpoint = vm.checkpoint()
    vm.clear()
    with tracing.Monitor(
        {"web-1": vm}, on_end=lambda ended, calls: told.append((ended.vm, ended.verb, [call.verb for call in calls]))
    ):
        vm.restore(checkpoint)
        with vm.pause():
            pass
    ((first, _, restored), (_, verb, paused)) = told
    assert (first, list(dict.fromkeys(restored))) == ("web-1", ["plan", "prepare", "apply", "release"])
    assert (verb, list(dict.fromkeys(paused))) == ("pause", ["pause", "resume"])
    vm.restore(checkpoint)
    calls, out = vm.calls, io.StringIO()
    assert tracing.write_calls(vm, out) == len(calls) > 0
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [call._asdict() for call in calls]
    assert vm.calls == []


def test_an_error_of_a_callback_changes_nothing(log: pytest.LogCaptureFixture) -> None:
    vm = owned(host())

    def fails(*_: object) -> None:
        raise ZeroDivisionError

    with tracing.Monitor({"web-1": vm}, on_end=fails) as monitor:
        assert vm.restore(vm.checkpoint()).method == "offset"
        assert counted(monitor, "ended_total") == 1
    assert log.records[-1].exc_info is not None
    assert log.records[-1].exc_info[0] is ZeroDivisionError


def test_the_age_of_a_published_equation_is_guest_time() -> None:
    counter = host()
    vm = owned(counter)
    stamp = counter.stamp()
    with tracing.Monitor({"web-1": vm}) as monitor:
        assert counted(monitor, "equation_age_max_nanoseconds") == 0
        monitor.equations["web-1"] = ClockEquation(stamp, cntvct=vm.cntvct(0, stamp), synchronized=True)
        counter.advance_ns(7 * SECOND)
        assert counted(monitor, "equation_age_max_nanoseconds") == 7 * SECOND


def test_a_monitor_looks_at_the_clocks() -> None:
    counter = host()
    vms = {name: owned(counter, name=name) for name in ("web-1", "web-2")}
    checkpoint = Fleet(vms).checkpoint()
    with tracing.Monitor(vms, verify=True) as monitor, tracing.Monitor(vms) as blind:
        assert counted(monitor, "verified_vms", found="right") == 2
        Fleet(vms).restore(checkpoint, Advance())
        counter.advance_ns(SECOND)
        assert counted(monitor, "verified_vms", found="right") == 2
        assert counted(monitor, "mismatched_clocks") == 0
        vms["web-1"].set_counter_offset(7)
        found = {word: counted(monitor, "verified_vms", found=word) for word in ("right", "off", "running")}
        assert found == {"right": 1, "off": 1, "running": 0}
        # Both counters.
        assert counted(monitor, "mismatched_clocks", code="report") == counted(monitor, "mismatched_clocks") == 2
        with vms["web-1"].running(0):
            assert counted(monitor, "verified_vms", found="running") == 1
            assert counted(monitor, "mismatched_clocks", code="report") == 0
        # A pause goes on from where the guest is: its report is the word from then on.
        with vms["web-1"].pause():
            counter.advance_ns(SECOND)
        assert counted(monitor, "verified_vms", found="right") == 2
        assert not [sample for sample in blind.metrics() if "verified" in sample.name]


def test_a_restore_that_failed_leaves_no_report_to_go_by() -> None:
    counter = host()
    # The first restore writes eight registers: CVAL and CTL of two timers on two vCPUs.
    vm = FaultyVm(owned(counter), [Fault("set_one_reg", nth=8, errno=errno.EIO)])
    checkpoint = vm.checkpoint()
    counter.advance_ns(SECOND)
    with tracing.Monitor({"web-1": vm}, verify=True) as monitor:
        vm.restore(checkpoint, Advance())
        with pytest.raises(Interrupted):
            vm.restore(checkpoint, Freeze())
        # It has the provisional offset of a Freeze, a second from where the first report put it.
        assert counted(monitor, "verified_vms", found="right") == 1


def test_a_removed_vm_is_left_out() -> None:
    bank = ClockBank(host())
    one, other = bank.add(), bank.add()
    with tracing.Monitor({"one": bank.vm(one), "other": bank.vm(other)}) as monitor:
        bank.remove(one)
        assert counted(monitor, "vms", state="open") == 1


def test_vms_that_were_removed_from_a_banks_fleet_are_left_out() -> None:
    bank = ClockBank(host())
    bank.add_many(3)
    fleet = Fleet(bank, names=["a", "b", "c"])
    with tracing.Monitor(fleet, verify=True) as monitor:
        bank.remove(int(bank.vms()[1]))
        assert counted(monitor, "vms", state="open") == 2
        assert counted(monitor, "verified_vms", found="right") == 2


def test_a_vm_whose_process_has_crashed_is_left_out() -> None:
    counter = host()
    vm = FaultyVm(owned(counter), [Fault("set_counter_offset", crash=True)])
    checkpoint = vm.checkpoint()
    with tracing.Monitor({"one": vm, "other": owned(counter)}) as monitor:
        with pytest.raises(Crashed):
            vm.restore(checkpoint)
        assert counted(monitor, "vms", state="open") == 1


def test_another_vm_under_the_same_name_is_another_vm() -> None:
    """A mapping is read at each sample and for each event: nothing of the VM before is the new one's."""
    counter = host()
    vms = {"web-1": owned(counter), "web-2": owned(counter)}
    events: list[tracing.Ended] = []
    with tracing.Monitor(vms, verify=True, on_end=lambda ended, _: events.append(ended)) as monitor:
        for vm in vms.values():
            with vm.pause():
                counter.advance(5)
        vms["web-1"] = owned(counter, 2, 777, name="zz")
        # By the report of the VM before it, it would be off.
        assert counted(monitor, "verified_vms", found="right") == 2
        assert counted(monitor, "mismatched_clocks") == 0
        with vms["web-1"].pause():
            counter.advance(5)
        assert [ended.vm for ended in events] == ["web-1", "web-2", "web-1"]
        counter.advance(5)
        vms["web-1"].set_counter_offset(counter.read() - 5)
        assert counted(monitor, "mismatched_clocks", code="report") == 2


def test_a_fleet_that_is_interrupted_counts_each_vm() -> None:
    counter = host()
    failing = FaultyVm(owned(counter), [Fault("set_counter_offset", nth=1, errno=errno.EIO)])
    vms = {"good": owned(counter), "bad": failing}
    fleet = Fleet(vms)
    checkpoint = fleet.checkpoint()
    with tracing.Monitor(fleet) as monitor:
        with pytest.raises(FleetInterrupted):
            fleet.restore(checkpoint)
        assert counted(monitor, "ended_total", outcome="done") == 1
        assert counted(monitor, "ended_total", outcome="interrupted") == 1


def test_threads_are_counted_together() -> None:
    counter = ManualCounter(10**12, frequency_hz=HZ)
    vms = {str(number): owned(counter, 1) for number in range(4)}

    def work(vm: ModelVm) -> None:
        for _ in range(50):
            vm.restore(vm.checkpoint())

    with tracing.Monitor(vms) as monitor:
        threads = [threading.Thread(target=work, args=(vm,)) for vm in vms.values()]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            monitor.metrics()
        assert counted(monitor, "ended_total", outcome="done") == 200
