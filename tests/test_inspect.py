"""Looking at checkpoints: the documents to the value, the tables for their facts, the picture by its parts."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import matplotlib.image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from golden import make
from guestclock import Advance, CatchUp, Checkpoint, Elapsed, Fleet, Freeze, ModelVm, Reg, SyncBound, inspection
from guestclock.cli.app import app
from guestclock.cli.shared import flags
from guestclock.inspection.words import duration, instant
from guestclock.model import ClockBank
from test_cli import guestclock_command
from vms import HZ, NS, SECOND, START_NS, host, owned

DAY = 86_400 * SECOND


def time(ns: int) -> str:
    """A time for the command line."""
    return f"{ns}ns"


@pytest.fixture
def saved() -> Checkpoint:
    """Two vCPUs at 1000 ticks: one has a deadline ahead, the other a past one and a masked physical timer."""
    vm = owned(host(), name="web-1")
    for reg, value in ((Reg.TIMER_CVAL, 1000 + HZ), (Reg.TIMER_CTL, 1)):
        vm.set_one_reg(0, reg, value)
    for reg, value in ((Reg.TIMER_CVAL, 400), (Reg.TIMER_CTL, 1), (Reg.PTIMER_CVAL, 2**64 - 1), (Reg.PTIMER_CTL, 3)):
        vm.set_one_reg(1, reg, value)
    return vm.checkpoint(stopped_at=host().read() - 7, vmclock_address=0x4000_0000, stolen_time=[0x4000_1000, None])


@pytest.fixture
def many() -> Checkpoint:
    """A nested guest, one that is paid back a second, and one whose timer is due in a second."""
    counter = host()
    web_1, web_2 = (owned(counter, name=name) for name in ("web-1", "web-2"))
    web_1.set_one_reg(0, Reg.TIMER_CVAL, 1000 + 2 * HZ)
    web_1.set_one_reg(0, Reg.TIMER_CTL, 1)
    with web_2.pause(CatchUp(10**6, 10**7)):
        counter.advance(HZ)
    deep = owned(counter, vcpus=1, nested=True, name="deep")
    return Checkpoint.join([vm.checkpoint() for vm in (web_1, web_2, deep)])


@pytest.fixture
def journey() -> list[Checkpoint]:
    """Frozen for 5 s, on for 3 s; advanced over 2 s, on for 1 s; then set back to the first, and on for 4 s."""
    counter = host()
    checkpoints = [owned(counter).checkpoint()]
    for policy, away, on, back_to in ((Freeze(), 5, 3, 0), (Advance(), 2, 1, 1), (Freeze(), 0, 4, 0)):
        counter.advance(away * HZ)
        vm = ModelVm(2, counter=counter)
        vm.restore(checkpoints[back_to], policy)
        counter.advance(on * HZ)
        checkpoints.append(vm.checkpoint())
    return checkpoints


def run(*arguments: object, width: int = 150) -> Result:
    return CliRunner(env={"COLUMNS": str(width), "NO_COLOR": "1"}).invoke(
        app, [str(argument) for argument in arguments]
    )


def save(checkpoint: Checkpoint, path: Path) -> Path:
    checkpoint.save(path)
    return path


def record(vcpu: int, timer: str, state: str, ctl: int, cval: int, remaining: int) -> dict[str, object]:
    return {
        "vcpu": vcpu,
        "timer": timer,
        "state": state,
        "ctl": ctl,
        "cval": cval,
        "remaining_ticks": remaining,
        "remaining_ns": remaining * NS,
    }


def test_an_inspection_says_it_all(saved: Checkpoint) -> None:
    ahead = record(0, "vtimer", "armed", 1, 1000 + HZ, HZ)
    assert [lack["code"] for lack in inspection.inspect(saved)["lacks"]] == ["no-bound", "no-tai"]
    document: Any = inspection.inspect(saved)
    assert document == {
        "lacks": [{"code": lack.code, "text": lack.text} for lack in saved.lacks],
        "schema": "guestclock.inspect/1",
        "snapshot": None,
        "size_bytes": len(saved.to_bytes()),
        "stamp": {
            "count": 10**12,
            "frequency_hz": HZ,
            "source": "manual",
            "realtime_ns": START_NS,
            "realtime": "2025-06-15 15:06:40.000000000 UTC",
            "width_ns": 0,
            "tai_offset_s": None,
            "synchronized": None,
            "max_error_ns": None,
            "leap": "unknown",
            "machine_id": False,
            "boot_id": True,
            "sync": None,
            "rate_ppb": None,
            "boottime_ns": 0,
            "slept_ns": 0,
            "slept_width_ns": 0,
        },
        "vcpus": 2,
        "vms": [
            {
                "name": "web-1",
                "frequency_hz": HZ,
                "vcpus": 2,
                "nested": False,
                "opted_in": True,
                "cntvct": 1000,
                "cntpct": 1000,
                "skew_ticks": 0,
                "virtual_width_ticks": 0,
                "physical_width_ticks": 0,
                "stopped_before_ticks": 7,
                "backlog": None,
                "reading": None,
                "interrupts": {"vtimer": 27, "ptimer": 30},
                "vmclock_address": 0x4000_0000,
                "stolen_time": [0x4000_1000, None],
                "cntvoff": None,
                "timers": [
                    ahead,
                    record(0, "ptimer", "off", 0, 0, -1000),
                    record(1, "vtimer", "overdue", 1, 400, -600),
                    record(1, "ptimer", "masked", 3, 2**64 - 1, 2**64 - 1001),
                ],
                "next_deadline": ahead,
                "other_registers": {},
            }
        ],
        "unknown": [],
    }


def test_an_inspection_of_many_has_a_record_each(many: Checkpoint) -> None:
    document = inspection.inspect(many)
    assert (document["size_bytes"], document["vcpus"], len(document["vms"])) == (many.nbytes, 5, 3)
    assert [vm["name"] for vm in document["vms"]] == many.names
    for vm in document["vms"]:
        alone = inspection.inspect(many[vm["name"]])
        assert alone["vms"] == [vm]
        assert alone["stamp"] == document["stamp"]
    owing = document["vms"][many.names.index("web-2")]
    assert owing["backlog"] == {"remaining_ticks": HZ, "step_ns": 10**6, "interval_ns": 10**7}
    nested = document["vms"][many.names.index("deep")]
    assert (nested["nested"], nested["cntvoff"], len(nested["timers"])) == (True, [0], 4)
    empty = inspection.inspect(many[:0])
    assert (empty["vcpus"], empty["vms"], empty["stamp"]) == (0, [], document["stamp"])


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.booleans())
def test_a_timer_is_what_its_vm_says(count: int, cval: int, cntvoff: int, nested: bool) -> None:
    vm = ModelVm(2, counter=host(), kernel="7.3", nested=nested)
    vm.set_counter_offset((10**12 - count) % 2**64)
    if nested:
        vm.set_one_reg(1, Reg.CNTVOFF_EL2, cntvoff)
    for reg in vm.reg_list(1):
        if "CVAL" in Reg(reg).name:
            vm.set_one_reg(1, reg, cval)
        elif "_CTL" in Reg(reg).name and not Reg(reg).name.startswith("CNTHCTL"):
            vm.set_one_reg(1, reg, 1)
    found = [timer for timer in inspection.timers(vm.checkpoint()) if timer["vcpu"] == 1]
    assert len(found) == (4 if nested else 2)
    for number, timer in enumerate(found):
        state = vm.timer(1, number)
        assert (timer["state"] == "overdue", timer["cval"]) == (state.line, cval)
        assert (timer["remaining_ticks"] <= 0) is state.istatus
        assert (timer["remaining_ticks"] - state.tval) % 2**32 == 0


def test_a_host_that_nobody_knows_is_none() -> None:
    registers: dict[int, int] = {Reg.TIMER_CNT: 3, Reg.TIMER_CVAL: 0, Reg.TIMER_CTL: 0, Reg.PTIMER_CNT: 3}
    registers |= {Reg.PTIMER_CVAL: 0, Reg.PTIMER_CTL: 0}
    unknown = Checkpoint.from_one_regs([registers], frequency_hz=HZ, host=None)
    assert inspection.inspect(unknown)["stamp"] is None
    document = inspection.dry_run(
        unknown, inspection.target(unknown, elapsed_ns=5), policy=Advance(), elapsed=Elapsed.by_wall_clocks(error_ns=0)
    )
    assert document["refused"]
    assert document["refused"]["error"] == "ElapsedUnknown"
    assert inspection.dry_run(unknown, inspection.target(unknown, elapsed_ns=5), policy=Freeze())["plan"]
    known = owned(host()).checkpoint()
    assert inspection.diff(unknown, known)["vms"][0]["elapsed"]["host_ns"] is None
    with pytest.raises(ValueError, match=r"mine: .*no place on a time line"):
        inspection.timeline([("mine", unknown), ("other", known)])


def test_no_document_names_the_host(tmp_path: Path) -> None:
    vm = ModelVm(1)
    one, other = vm.checkpoint(), ModelVm(1, counter=host(hz=10**9)).checkpoint()
    ids = [found for found in (one.stamp.machine_id, one.stamp.boot_id) if found]
    assert ids
    paths = save(one, tmp_path / "one"), save(other, tmp_path / "other")
    for command in (("inspect", paths[0]), ("plan", paths[0], "--policy", "freeze"), ("diff", *paths)):
        for said in (run(*command).output, run(*command, "--json").output):
            assert said
            assert not [found for found in ids if found in said]


def test_a_plan_is_a_dry_run(saved: Checkpoint) -> None:
    vm = inspection.target(saved, elapsed_ns=5 * SECOND)
    document = inspection.dry_run(saved, vm, policy=Advance(2 * SECOND))
    assert document["target"] == {
        "counter": "manual",
        "frequency_hz": HZ,
        "kernel": "6.12",
        "vcpus": 2,
        "nested": False,
    }
    planned = document["plan"]
    assert planned
    # The guest goes on from its stop, 7 ticks before the checkpoint.
    assert (planned["cntvct"], planned["capped"], planned["same_counter"]) == (993 + 2 * HZ, True, True)
    assert document["timers"][0] == record(0, "vtimer", "overdue", 1, 1000 + HZ, 7 - HZ)
    assert not vm.opted_in
    refused = inspection.dry_run(saved, inspection.target(saved, frequency_hz=HZ + 1), policy=Freeze())
    assert refused["plan"] is None
    assert refused["refused"]
    assert refused["refused"]["error"] == "FrequencyMismatch"
    assert refused["refused"]["facts"] == {"saved_hz": HZ, "host_hz": HZ + 1}
    assert inspection.target(saved, kernel="7.3").counter.source != "manual"


def values(entries: Iterable[Any]) -> dict[str, tuple[Any, Any, Any]]:
    return {entry["what"]: (entry["one"], entry["other"], entry["difference"]) for entry in entries}


def test_a_difference_is_every_value(saved: Checkpoint) -> None:
    assert inspection.diff(saved, saved)["equal"]
    assert inspection.diff(saved, saved)["differences"] == []
    assert inspection.diff(saved, saved)["vms"][0]["differences"] == []
    vm = ModelVm(2, counter=host(count=10**12 + 8 * HZ, realtime_ns=START_NS + 8 * SECOND))
    vm.restore(saved)
    vm.set_one_reg(1, Reg.TIMER_CVAL, 300)
    document = inspection.diff(saved, vm.checkpoint())
    assert not document["equal"]
    assert values(document["differences"]) == {
        "stamp.count": (10**12, 10**12 + 8 * HZ, 8 * HZ),
        "stamp.realtime_ns": (START_NS, START_NS + 8 * SECOND, 8 * SECOND),
    }
    # Of one VM each, they are compared whatever the names.
    (found,) = document["vms"]
    assert found["name"] == "web-1"
    assert (document["only_in_one"], document["only_in_other"]) == ([], [])
    assert values(found["differences"]) == {
        "name": ("web-1", "", None),
        # A Freeze gave the guest its count at the stop, 7 ticks before the checkpoint.
        "timeline": (1000, 993, -7),
        "stopped_at_count": (10**12 - 7, None, None),
        "vmclock_address": (0x4000_0000, None, None),
        "vtimer_cval[1]": (400, 300, -100),
        "stolen_time_address[0]": (0x4000_1000, None, None),
    }
    assert found["elapsed"] == {
        "host_ns": 8 * SECOND,
        "host_by": "counter",
        "guest_ticks": 0,
        "guest_ns": 0,
        "hidden_ns": 8 * SECOND,
        "known_to_ns": 3,
    }


def test_many_are_compared_by_name(many: Checkpoint) -> None:
    other = Checkpoint.join(
        [many["web-1"], many["deep"], owned(host(10**12 + HZ, START_NS + SECOND), name="web-3").checkpoint()]
    )
    document = inspection.diff(many, other)
    assert [found["name"] for found in document["vms"]] == ["web-1", "deep"]
    assert not any(found["differences"] for found in document["vms"])
    assert (document["only_in_one"], document["only_in_other"]) == (["web-2"], ["web-3"])
    assert not document["equal"]
    restored = ModelVm(2, counter=host(10**12 + HZ, START_NS + SECOND), name="web-1")
    restored.restore(many["web-1"])
    restored.set_one_reg(0, Reg.TIMER_CTL, 3)
    changed = Checkpoint.join([many["deep"], many["web-2"], restored.checkpoint()])
    document = inspection.diff(many, changed)
    assert document["equal"] is False
    assert {found["name"]: values(found["differences"]) for found in document["vms"] if found["differences"]} == {
        "web-1": {"vtimer_ctl[0]": (1, 3, 2)}
    }
    assert inspection.diff(many, many)["equal"]
    # One of many is one VM, and has its name still.
    document = inspection.diff(many["web-1"], many)
    assert [found["name"] for found in document["vms"]] == ["web-1"]
    assert document["only_in_other"] == [name for name in many.names if name != "web-1"]


def test_an_unknown_keys_value_is_a_difference() -> None:
    one, other = (Checkpoint.from_bytes(make.encode(make.BARE | {"later": value})) for value in (1, 2))
    (entry,) = inspection.diff(one, other)["differences"]
    assert entry["what"] == "the value of an unknown key"
    (entry,) = inspection.diff(one, Checkpoint.from_bytes(make.encode(make.BARE)))["differences"]
    assert (entry["what"], entry["one"], entry["other"]) == ("the key 'later'", True, None)


def test_counts_differ_the_nearer_way() -> None:
    before, after = (owned(host(), cntvct=count).checkpoint() for count in (2**64 - 5, 5))
    (found,) = inspection.diff(before, after)["vms"]
    assert [entry["difference"] for entry in found["differences"] if entry["what"] == "timeline"] == [10]
    assert inspection.diff(after, before)["vms"][0]["elapsed"]["guest_ticks"] == -10


def test_another_machines_counter_is_not_compared() -> None:
    registers = owned(host(), vcpus=1).checkpoint().to_one_regs()
    stamp = replace(host().stamp(), source="cntvct_el0", boot_id="11" * 16, width_ns=10)
    later = replace(stamp, count=0, realtime_ns=START_NS + SECOND, boot_id="22" * 16)
    one, other = (Checkpoint.from_one_regs(registers, frequency_hz=HZ, host=when) for when in (stamp, later))
    document = inspection.diff(one, other)
    passed = document["vms"][0]["elapsed"]
    assert (passed["host_ns"], passed["host_by"]) == (SECOND, "wall clock")
    # Both brackets, 500 ppm of a second, three roundings.
    assert passed["known_to_ns"] == 20 + 500_000 + 3
    assert values(document["differences"])["stamp.boot_id"] == ("another", "another", None)


def test_a_time_line(journey: list[Checkpoint]) -> None:
    names = "abcd"
    document = inspection.timeline(reversed(list(zip(names, journey, strict=True))))
    assert [point["name"] for point in document["points"]] == list(names)
    assert [(point["host_ns"] // SECOND, point["guest_ns"] // SECOND) for point in document["points"]] == [
        (0, 0),
        (8, 3),
        (11, 6),
        (15, 4),
    ]
    assert [(stretch["kind"], stretch["hidden_ns"]) for stretch in document["stretches"]] == [
        ("paused", 5 * SECOND),
        ("ran", 0),
        ("went back", 6 * SECOND),
    ]
    ahead = owned(host(count=10**12 + HZ, realtime_ns=START_NS + SECOND), cntvct=1000 + 3 * HZ).checkpoint()
    (stretch,) = inspection.timeline([("a", journey[0]), ("b", ahead)])["stretches"]
    assert (stretch["kind"], stretch["hidden_ns"]) == ("gained", -2 * SECOND)
    with pytest.raises(ValueError, match="at least two"):
        inspection.timeline([("a", journey[0])])
    with pytest.raises(ValueError, match="not of one guest"):
        inspection.timeline([("a", journey[0]), ("b", ModelVm(1, counter=host(hz=5)).checkpoint())])


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_picture_shows_each_stretch(journey: list[Checkpoint], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"line.{suffix}"
    # Dollar signs are mathematics to matplotlib, unless it is told otherwise.
    inspection.draw(inspection.timeline(zip(["$a$", "b", "c", "d"], journey, strict=True)), path)
    if suffix == "png":
        assert matplotlib.image.imread(path).shape == (900, 1500, 4)
        return
    svg = path.read_text()
    parts = re.findall(r'<g id="(checkpoints|paused|hidden|ran)"', svg)
    assert sorted(parts) == ["checkpoints", "hidden", "hidden", "paused", "ran", "ran", "ran"]
    comments = re.findall(r"<!-- (.*?) -->", svg)
    assert {"$a$", "b", "c", "d", "5 s", "went back"} <= set(comments)


def test_verify_tells_damage_from_absence(saved: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = save(saved, tmp_path / "good")
    bad, none = tmp_path / "bad", tmp_path / "none"
    bad.write_bytes(saved.to_bytes()[:-1])
    records = inspection.verify([good, bad, none])["files"]
    assert [(found["intact"], found["error"]) for found in records] == [
        (True, None),
        (False, "Corrupt"),
        (None, "FileNotFoundError"),
    ]
    assert (records[0]["vms"], records[0]["vcpus"], records[0]["notes"]) == (1, 2, [])
    assert records[0]["size_bytes"] == good.stat().st_size
    for files, status in (([good], 0), ([good, bad], 1), ([bad, none], 2), ([], 2)):
        assert run("verify", *files).exit_code == status
    monkeypatch.chdir(tmp_path)
    said = run("verify", "good", "bad", "none").output
    assert re.search(r"good +intact", said)
    assert re.search(r"bad +not intact", said)
    assert re.search(r"none +unreadable", said)


def test_a_folder_is_verified_as_its_files_are_loaded(saved: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "host"
    folder.mkdir()
    one = save(saved, folder / "one")
    other = save(owned(host(10**12), name="other").checkpoint(), folder / "other")
    save(saved, folder / ".hidden")
    (folder / "deeper").mkdir()
    found = inspection.verify([folder])["files"]
    assert [(row["file"], row["intact"], row["size_bytes"]) for row in found] == [
        (str(file), True, file.stat().st_size) for file in (one, other)
    ]
    save(saved, folder / "again")
    *files, whole = inspection.verify([folder])["files"]
    assert [row["intact"] for row in files] == [True] * 3
    assert (whole["file"], whole["intact"], whole["error"]) == (str(folder), None, "ValueError")
    assert str(whole["message"]).startswith('in the folder\'s "again" and "one": ')
    done = run("verify", folder)
    assert (done.exit_code, type(done.exception)) == (2, SystemExit)
    for name in ("again", "other"):
        (folder / name).write_bytes(b"")
    found = inspection.verify([folder])["files"]
    assert [(row["file"], row["intact"]) for row in found] == [
        (str(folder / name), name == "one") for name in ("again", "one", "other")
    ]
    assert run("verify", folder).exit_code == 1
    (empty := tmp_path / "empty").mkdir()
    assert run("verify", empty).exit_code == 2


def test_a_backup_in_a_pause_is_of_the_guest_at_its_stop() -> None:
    counter = host(10**12)
    vm = owned(counter)
    first = vm.checkpoint()
    counter.advance_ns(SECOND)
    pause = vm.pause()
    counter.advance_ns(3 * SECOND)
    backup = vm.checkpoint()
    pause.resume()
    after = vm.checkpoint()
    found = inspection.timeline([("first", first), ("backup", backup), ("after", after)])
    assert [(stretch["kind"], stretch["guest_ns"], stretch["hidden_ns"]) for stretch in found["stretches"]] == [
        ("paused", SECOND, 3 * SECOND),
        ("ran", 0, 0),
    ]
    assert [point["cntvct"] for point in found["points"]] == [1000, 1000 + HZ, 1000 + HZ]
    (of_vm,) = inspection.diff(backup, after)["vms"]
    assert of_vm["elapsed"]["guest_ns"] == 0


def test_what_this_version_does_not_know_is_noted(tmp_path: Path) -> None:
    later = 0x6030_0000_0013_DF1D
    registers: dict[int, int] = {Reg.TIMER_CNT: 3, Reg.TIMER_CVAL: 0, Reg.TIMER_CTL: 1, later: 9}
    stamp = host().stamp()
    checkpoint = Checkpoint.from_one_regs([registers], frequency_hz=HZ, host=stamp)
    (found,) = inspection.verify([save(checkpoint, tmp_path / "file")])["files"]
    assert found["notes"] == ["the register 0x603000000013df1d isn't known to this version"]
    assert inspection.inspect(checkpoint)["vms"][0]["other_registers"] == {"0x603000000013df1d": [9]}
    assert "0x603000000013df1d" in run("inspect", tmp_path / "file").output
    changed = Checkpoint.from_one_regs([registers | {later: 8}], frequency_hz=HZ, host=stamp)
    (vm,) = inspection.diff(checkpoint, changed)["vms"]
    assert values(vm["differences"]) == {"0x603000000013df1d[0]": (9, 8, -1)}


def test_the_commands_print_what_the_library_returns(journey: list[Checkpoint], tmp_path: Path) -> None:
    a, b = (save(checkpoint, tmp_path / name) for checkpoint, name in zip(journey, ("a", "b"), strict=False))
    picture = tmp_path / "new" / "line.svg"
    target = inspection.target(journey[0], elapsed_ns=SECOND)
    away = ("plan", a, "--policy", "advance", "--elapsed", time(SECOND), "--elapsed-by", "wall-clocks")
    options = ("--elapsed-error", time(9), "--views", "refuse", "--kernel", "7.3", "--frequency-hz", HZ)
    full = (*away, *options, "--max", time(5))
    # The way out of a refusal is in the reader's words.
    with flags():
        for command, status, document in (
            (("inspect", a), 0, inspection.inspect(journey[0])),
            (("diff", a, b), 1, inspection.diff(journey[0], journey[1])),
            (("diff", a, a), 0, inspection.diff(journey[0], journey[0])),
            (("verify", a), 0, inspection.verify([a])),
            (("plot", a, b, "--out", picture), 0, inspection.timeline(zip("ab", journey, strict=False))),
            (
                full,
                0,
                inspection.dry_run(
                    journey[0],
                    inspection.target(journey[0], elapsed_ns=SECOND, kernel="7.3"),
                    policy=Advance(5),
                    elapsed=Elapsed.by_wall_clocks(error_ns=9),
                    views="refuse",
                ),
            ),
            (
                (
                    *(
                        "plan",
                        a,
                        "--policy",
                        "catch-up",
                        "--step",
                        time(5),
                        "--interval",
                        time(7),
                        "--at-once",
                        time(3),
                        "--within",
                        time(SECOND * 9),
                    ),
                    *("--elapsed", time(SECOND), "--timers", "relative", "--intent", "clone", "--max-error", time(3)),
                    *("--elapsed-error", time(4), "--rate-error-ppb", 6),
                ),
                0,
                inspection.dry_run(
                    journey[0],
                    target,
                    policy=CatchUp(5, 7, at_once_ns=3, within_ns=9 * SECOND),
                    timers="relative",
                    intent="clone",
                    sync=SyncBound(3),
                    elapsed=Elapsed.given(SECOND, error_ns=4),
                    rate_error_ppb=6,
                ),
            ),
            (
                away,
                1,
                inspection.dry_run(journey[0], target, policy=Advance(), elapsed=Elapsed.by_wall_clocks()),
            ),
        ):
            done = run(*command, "--json")
            assert done.exit_code == status, command
            assert json.loads(done.stdout) == json.loads(json.dumps(document))
    assert picture.exists()


def test_people_read_the_facts(saved: Checkpoint, journey: list[Checkpoint], tmp_path: Path) -> None:
    path = save(saved, tmp_path / "a[b]")
    said = run("inspect", path).output
    for fact in ("1,000: 16 µs from 0", "2025-06-15 15:06:40", "The next interrupt is due in 1 s", "1 timer off"):
        assert fact in said
    # What is overdue comes first, whichever vCPU's it is.
    assert re.search(r"1 +vtimer +overdue +400 +-600 +9\.6 µs ago\s+0 +vtimer +armed", said)
    said = run("plan", path, "--policy", "advance", "--elapsed", time(5 * SECOND)).output
    for fact in ("nothing is restored", "elapsed time by +given", "312,500,007 ticks, 5 s", "overdue"):
        assert re.search(fact, said), fact
    said = run("plan", path, "--policy", "advance", "--elapsed", time(25 * SECOND)).output
    assert re.search(r"soft lockup of a Linux guest, from 22\.5\d* s: certain for a busy vCPU", said)
    assert re.search(r"charges it to the task that ran", said)
    assert re.search(r"sched_clock wrap of a Linux guest, from 1 h 13 min: not crossed", said)
    catch_up = ("--policy", "catch-up", "--step", time(SECOND), "--interval", time(4 * SECOND))
    # With the 7 ticks since the stop, 25 s.
    said = run("plan", path, *catch_up, "--elapsed", time(25 * SECOND - 7 * NS)).output
    assert re.search(r"in at least 25 steps of 1 s, one every 4 s: 1 min 40 s, at 1\.250 times the speed", said)
    assert "Refused: FrequencyMismatch" in run("plan", path, "--policy", "freeze", "--frequency-hz", 5).output
    other = save(journey[1], tmp_path / "other")
    first = save(journey[0], tmp_path / "c[d]")
    said = run("diff", first, other).output
    assert re.search(r"hidden from it +5 s", said)
    assert re.search(r"vtimer_cval\[1\] +400 +0 +-400", run("diff", path, other).output)
    assert "They are equal." in run("diff", path, path).output
    said = run("inspect", path).output
    for fact in ("web-1", "vtimer 27, ptimer 30", "at 0x40000000", "1 record, the first at 0x40001000"):
        assert fact in said
    assert re.search(r"last vCPU stopped +7 ticks, 112 ns before", said)
    assert re.search(r"lacks +the wall clock has no bound", said)
    assert re.search(r"lacks +TAI - UTC isn't known", said), said
    said = run("plot", first, other, "--out", tmp_path / "line.svg").output
    assert re.search(r"c\[d\] +other +8 s +3 s +5 s +3 ns +paused", said)


def test_people_read_the_facts_of_many(many: Checkpoint, tmp_path: Path) -> None:
    path = save(many, tmp_path / "many")
    said = run("inspect", path).output
    assert re.search(r"guests +3 VMs, 5 vCPUs", said)
    assert re.search(r"web-1 +2 +62,500,000 +62,501,000 +yes +1 +in 1 s *\n", said)
    assert re.search(r"web-2 +2 +62,500,000 +1,000 +yes +0 +1 s *\n", said)
    assert re.search(r"deep +1, with EL2", said)
    changed = owned(host(10**12 + HZ, START_NS + SECOND), name="web-2")
    other = save(Checkpoint.join([many["deep"], changed.checkpoint()]), tmp_path / "other")
    said = run("diff", path, other).output
    assert "Only in A: web-1." in said
    assert re.search(r"deep +0 ns +0 ns +0 ns +3 ns +0 *\n", said)
    assert re.search(r"web-2 +backlog_remaining_ticks +62,500,000 +none", said)
    assert re.search(r"intact +[\d,]+ +3 +5", run("verify", path).output)


def test_a_row_each_up_to_forty(tmp_path: Path) -> None:
    counter = host()
    vms = [owned(counter, vcpus=1, name=f"vm-{number}") for number in range(50)]
    one = save(Checkpoint.join([vm.checkpoint() for vm in vms]), tmp_path / "one")
    said = run("inspect", one).output
    assert (said.count("vm-"), "10 more VMs" in said) == (40, True)
    counter.advance(1)
    other = save(Checkpoint.join([vm.checkpoint() for vm in vms[::2]]), tmp_path / "other")
    said = run("diff", one, other, width=400).output
    assert "Only in A: vm-1, vm-3," in said
    assert len(json.loads(run("diff", one, other, "--json").stdout)["vms"]) == 25


def test_one_of_many_is_chosen_by_name(many: Checkpoint, tmp_path: Path) -> None:
    path, picture = save(many, tmp_path / "many"), tmp_path / "line.svg"
    web_2, counter = many["web-2"], host(10**12 + 3 * HZ, START_NS + 3 * SECOND)
    vm = ModelVm(2, counter=counter, name="web-2")
    vm.restore(web_2)
    later = vm.checkpoint()
    after = save(later, tmp_path / "after")
    target = inspection.target(web_2, elapsed_ns=SECOND)
    for command, status, document in (
        (("inspect", path), 0, inspection.inspect(web_2)),
        (("diff", path, after), 1, inspection.diff(web_2, later)),
        (
            ("plan", path, "--policy", "advance", "--elapsed", time(SECOND)),
            0,
            inspection.dry_run(web_2, target, policy=Advance(), elapsed=Elapsed.given(SECOND, error_ns=0)),
        ),
        (
            ("plot", path, after, "--out", picture),
            0,
            inspection.timeline([("many", web_2), ("after", later)]),
        ),
    ):
        done = run(*command, "--vm", "web-2", "--json")
        assert done.exit_code == status, command
        assert json.loads(done.stdout) == json.loads(json.dumps(document))
        missing = run(*command, "--vm", "db")
        assert (missing.exit_code, missing.stdout) == (2, "")
        assert "there is no VM named 'db'" in missing.stderr
    for choosing in (("plan", path, "--policy", "freeze"), ("plot", path, after, "--out", picture)):
        done = run(*choosing)
        assert (done.exit_code, done.stdout) == (2, "")
        assert "of 3 VMs: choose one with --vm" in done.stderr
    unnamed = save(owned(host()).checkpoint(), tmp_path / "unnamed")
    assert run("inspect", unnamed, "--vm", "").exit_code == 0


def rows(done: Result) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(done.stdout)))


def test_a_plan_of_many_is_a_row_each(many: Checkpoint, tmp_path: Path) -> None:
    """In one file, or in a folder with a file each: the same numbers."""
    (tmp_path / "folder").mkdir()
    for one in many:
        one.save(tmp_path / "folder" / one.name)
    whole = save(many, tmp_path / "whole")
    for policy, code in (("freeze", 0), ("advance", 0)):
        arguments = ("--policy", policy, "--elapsed", time(3 * SECOND), "--csv")
        one_file, folder = run("plan", whole, *arguments), run("plan", str(tmp_path / "folder"), *arguments)
        assert (one_file.exit_code, folder.exit_code, one_file.stderr) == (code, code, "")
        assert rows(one_file) == rows(folder)
        assert [row["name"] for row in rows(folder)] == many.names
        assert {row["added_ticks"] for row in rows(folder) if row["name"] != "web-2"} == {
            "0" if policy == "freeze" else str(3 * HZ)
        }
        assert {(row["accepted"], row["evidence"]) for row in rows(folder)} == {("true", "given")}
    web_1 = run("plan", whole, "--vm", "web-1", "--policy", "advance", "--elapsed", time(3 * SECOND), "--csv")
    (row,) = rows(web_1)
    assert (row["overdue"], row["refused"]) == ("1", "")
    refused = run("plan", whole, "--policy", "advance", "--frequency-hz", str(HZ + 1), "--elapsed", time(5), "--csv")
    assert refused.exit_code == 1
    assert {row["refused"] for row in rows(refused)} == {"FrequencyMismatch"}
    assert {(row["accepted"], row["added_ticks"]) for row in rows(refused)} == {("false", "")}
    both = run("plan", whole, "--policy", "freeze", "--csv", "--json")
    assert (both.exit_code, both.stdout) == (2, "")
    assert "or a row each with --csv" in run("plan", whole, "--policy", "freeze").stderr


def test_a_folder_that_cannot_be_read_says_which_file(many: Checkpoint, tmp_path: Path) -> None:
    many.save(tmp_path / "good")
    (tmp_path / "notes").write_text("not one")
    done = run("plan", str(tmp_path), "--policy", "freeze", "--csv")
    assert (done.exit_code, done.stdout) == (2, "")
    assert 'in the folder\'s "notes"' in done.stderr


def test_a_dry_run_of_a_vm_over_a_scaled_counter() -> None:
    """A bank's stamp is of its own counter, and the VM's frequency is made from it."""
    bank = ClockBank(host())
    bank.add(1, frequency_hz=24_000_000)
    (checkpoint,) = Fleet(bank).checkpoint()
    target = inspection.target(checkpoint, elapsed_ns=SECOND)
    planned = inspection.dry_run(checkpoint, target, policy=Advance())["plan"]
    assert planned
    assert (planned["same_counter"], planned["added_ticks"]) == (True, 24_000_000)


def test_many_timers_are_counted(tmp_path: Path) -> None:
    vm = owned(host(), vcpus=60)
    for vcpu in range(60):
        vm.set_one_reg(vcpu, Reg.TIMER_CTL, 1)
    path = save(vm.checkpoint(), tmp_path / "many")
    said = run("inspect", path).output
    assert said.count("overdue") == 40
    assert "20 more timers" in said
    assert len(json.loads(run("inspect", path, "--json").stdout)["vms"][0]["timers"]) == 120


def wrong_usage(path: Path, good: Path) -> Iterator[tuple[object, ...]]:
    junk = path / "junk"
    junk.write_bytes(b"no checkpoint")
    for command in (("inspect",), ("plan", "--policy", "freeze"), ("diff", good), ("plot", good)):
        yield (*command, junk)
        yield (*command, path / "nowhere")
    yield "plan", good
    yield "plan", good, "--policy", "freeze", "--max", time(5)
    yield "plan", good, "--policy", "freeze", "--step", time(5)
    yield "plan", good, "--policy", "catch-up", "--step", time(5)
    yield "plan", good, "--policy", "advance", "--chrony", "--max-error", time(5)
    yield "plan", good, "--policy", "freeze", "--kernel", "5.10"
    yield "plan", good, "--policy", "freeze", "--frequency-hz", 2**32
    yield "plan", good, "--policy", "freeze", "--elapsed", time(2**63)
    yield "plan", good, "--policy", "freeze", "--elapsed", time(-1)
    yield "plan", good, "--policy", "freeze", "--elapsed-error", time(5)
    yield "plan", good, "--policy", "freeze", "--elapsed-by", "counter", "--elapsed-error", time(5)
    yield "plan", good, "--policy", "freeze", "--elapsed-by", "counter", "--refuse-over", time(5)
    yield "plan", good, "--policy", "freeze", "--rate-error-ppb", 250_001
    yield "plot", good, "--out", path / "line.svg"
    yield "plot", good, good, "--out", path / "line.nothing"


def test_wrong_usage_exits_2_and_says_why(saved: Checkpoint, tmp_path: Path) -> None:
    good = save(saved, tmp_path / "good")
    for command in wrong_usage(tmp_path, good):
        done = run(*command)
        assert (done.exit_code, done.stdout) == (2, ""), command
        assert done.stderr
        assert not isinstance(done.exception, ValueError), command


def test_checkpoints_of_two_guests_exit_1(saved: Checkpoint, tmp_path: Path) -> None:
    other = save(ModelVm(1, counter=host(hz=5)).checkpoint(), tmp_path / "other")
    done = run("plot", save(saved, tmp_path / "one"), other, "--out", tmp_path / "line.svg")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "not of one guest" in done.stderr


def test_plot_names_its_extra(saved: Checkpoint, tmp_path: Path) -> None:
    path = save(saved, tmp_path / "file")
    done = guestclock_command("plot", str(path), str(path), blocked=("matplotlib",))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "guestclock: this command needs extra packages: pip install 'guestclock[plot]'\n"


def test_looking_needs_no_extra() -> None:
    code = "import json, sys, guestclock.inspection; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert {"matplotlib", "rich", "typer"}.isdisjoint(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("ns", "said"),
    [
        (0, "0 ns"),
        (16, "16 ns"),
        (-16, "-16 ns"),
        (62_500, "62.5 µs"),
        (1_999_999, "1.999 ms"),
        (SECOND, "1 s"),
        (59 * SECOND + 999_999_999, "59.999 s"),
        (60 * SECOND, "1 min"),
        (3_723 * SECOND, "1 h 2 min"),
        (DAY + 59 * SECOND, "1 d"),
        (31_557_600 * SECOND * 584 + 3 * DAY, "584 y 3 d"),
    ],
)
def test_durations_in_words(ns: int, said: str) -> None:
    assert duration(ns) == said


def test_instants_in_words() -> None:
    assert instant(START_NS + 1) == "2025-06-15 15:06:40.000000001 UTC"
    assert instant(-1) == "1969-12-31 23:59:59.999999999 UTC"
    assert instant(2**63 - 1).startswith("2262-04-11")
    beyond: Any = 10**30
    assert instant(beyond) == f"{beyond} ns since 1970"


@pytest.mark.parametrize(
    "read",
    [
        inspection.inspect,
        lambda saved: inspection.diff(saved, saved),
        lambda saved: inspection.plan_each(
            {vm.name: vm for vm in saved}, {vm.name: inspection.target(vm) for vm in saved}, policy=Freeze()
        ),
        lambda saved: inspection.timeline((vm.name, vm) for vm in saved),
        lambda saved: [vm.to_one_regs() for vm in saved],
    ],
    ids=["inspect", "diff", "plan", "plot", "register lists"],
)
def test_the_work_of_a_reader_grows_as_its_file(
    read: Callable[[Checkpoint], object], capsys: pytest.CaptureFixture[str]
) -> None:
    """By the bytecodes that the interpreter executes: the time that they take is the machine's load."""

    def executed(vms: int) -> int:
        bank = ClockBank(host())
        for number in range(vms):
            bank.add(1 + number % 3)
        saved = Checkpoint.from_bytes(Fleet(bank).checkpoint().to_bytes())
        count = 0

        def counts(frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal count
            frame.f_trace_lines, frame.f_trace_opcodes = False, True
            count += event == "opcode"
            return counts

        sys.settrace(counts)
        try:
            read(saved)
        finally:
            sys.settrace(None)
        return count

    few, more, most = map(executed, (30, 60, 120))
    assert most - more <= 2.2 * (more - few) + 1000
    capsys.readouterr()
