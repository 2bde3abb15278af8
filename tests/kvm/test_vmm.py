"""The VMM of examples/kvm_vmm.py on this machine's KVM: two processes, two vCPUs, and a guest that logs its clocks."""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from guestclock import demo
from guestclock.cli.app import app
from guestclock.demo import kvm_vmm, runner
from guestclock.payload import Command, Doorbell, Guest, Host, Verdict, check_log, image, layout, read_log

if TYPE_CHECKING:
    from guestclock.demo.document import RowRecord, RunRecord

ROUNDS = 3
YIELD = struct.pack("<I", 0xD503_203F)
FREEZE = runner.row("freeze")
ADVANCE = runner.row("advance")
CAPPED = runner.row("advance", max_ns=100_000_000)
FAULT_TICKS = 62_500_000
"""More than any bracket is wide: an emulated machine may take a second now and then, on both sides of a sample."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guest that one process has saved, for others to restore."""
    directory = tmp_path_factory.mktemp("vm")
    done = vmm("save", directory)
    assert done.returncode == 0, done.stderr
    return directory


def vmm(command: str, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", runner.VMMS["kvm"], command, str(directory), "--rounds", str(ROUNDS), *options],
        capture_output=True,
        text=True,
        check=False,
    )


def restore(saved: Path, into: Path, row: RowRecord, *options: str) -> subprocess.CompletedProcess[str]:
    for name in ("vm.json", "memory.bin", "guest.time"):
        (into / name).write_bytes((saved / name).read_bytes())
    cap = [] if row["max_ns"] is None else ["--max-ns", str(row["max_ns"])]
    return vmm("restore", into, "--policy", row["policy"], *cap, *options)


def judged(directory: Path, row: RowRecord) -> RunRecord:
    """The demonstration's verdict."""
    return runner.judged_on_kvm(directory, row)


def checked(directory: Path, *views: str) -> Verdict:
    """The log's own verdict."""
    host = Host.from_dict(json.loads((directory / "host.json").read_text()))
    # An emulated machine may stand still for a second now and then.
    grace_ns = kvm_vmm.PATIENCE_S * 1_000_000_000
    return check_log(read_log((directory / "memory.bin").read_bytes()), host=host, views=views, grace_ns=grace_ns)


@pytest.mark.parametrize("policy", [FREEZE, ADVANCE, CAPPED], ids=["freeze", "advance", "capped"])
def test_every_policy_keeps_its_promise(saved: Path, tmp_path: Path, policy: RowRecord, both: bool) -> None:
    done = restore(saved, tmp_path, policy)
    assert done.returncode == 0, done.stderr
    views = ("cntvct", "cntpct") if both else ("cntvct",)
    run = judged(tmp_path, policy)
    assert run["findings"] == []
    assert (run["verdict"], run["row"]["kept"]) == ("kept", "offset" if both else "value")
    # Every alarm but the last rang once, the one that was set before the checkpoint included.
    assert (run["interrupts"], run["lost"]) == ((2 * ROUNDS - 1) * kvm_vmm.VCPUS, 0)
    verdict = checked(tmp_path, *views)
    assert verdict.findings == []
    assert {gap.error_ticks for gap in verdict.gaps} == {0}
    assert len(verdict.gaps) == 2 * len(views)
    if not both and policy == FREEZE:
        # What is lost there: the guest's physical counter went on through the pause.
        assert {finding.kind for finding in checked(tmp_path, "cntvct", "cntpct").findings} == {"view-skew", "gap"}


def test_a_planted_fault_is_seen(saved: Path, tmp_path: Path, both: bool) -> None:
    done = restore(saved, tmp_path, ADVANCE, "--plant-fault-ticks", str(FAULT_TICKS))
    if not both:
        # Counters that were restored by value are looked at again before a vCPU runs.
        assert done.returncode == 1
        assert "CountersMoved" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    run = judged(tmp_path, ADVANCE)
    assert run["verdict"] == "wrong"
    assert 0 < run["off_by_ticks"] <= FAULT_TICKS
    assert {finding.kind for finding in checked(tmp_path, "cntvct", "cntpct").findings} == {"gap"}


def test_the_command_prints_the_models_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run", partial(runner.run, rounds=ROUNDS, rows=[CAPPED], progress=False))
    done = CliRunner().invoke(app, ["demo", "--backend", "kvm", "--pause-ms", "150", "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["schema"], document["ok"]) == (runner.SCHEMA, True)
    (run,) = document["runs"]
    assert (run["backend"], run["row"]["policy"], run["row"]["max_ns"]) == ("kvm", "advance", CAPPED["max_ns"])
    assert run["pause_ns"] >= 150_000_000
    assert len(run["samples"]) == kvm_vmm.VCPUS
    demo.print_table(document)


def test_an_exception_in_the_guest_is_written_down_and_rung() -> None:
    raw = bytearray(image(vcpus=1, doorbell=kvm_vmm.DOORBELL, psci="none", command=Command.IDLE))
    # No instruction, in place of the one that comes after the doorbell.
    at = raw.index(YIELD)
    raw[at : at + 4] = bytes(4)
    with contextlib.closing(kvm_vmm.Machine(1)) as machine:
        machine.ram[: len(raw)] = bytes(raw)
        machine.set_one_reg(0, kvm_vmm.PC, kvm_vmm.RAM)
        assert machine.run(0).data == Doorbell.PARKED
        assert machine.run(0).data == Doorbell.FAULTED
        guest = Guest(machine.ram)
        assert guest.state(0) == layout.FAULTED_STATE
        log = guest.log()
    (vcpu,) = log.vcpus
    assert vcpu is not None
    assert vcpu.fault is not None
    assert vcpu.fault.elr == kvm_vmm.RAM + at
    assert [finding.kind for finding in check_log(log).findings] == ["fault"]


def test_a_vcpu_spins_until_it_is_told_to_leave() -> None:
    with contextlib.closing(kvm_vmm.Machine(1, gic=False)) as machine:
        raw = image(vcpus=1, gicd=0, doorbell=kvm_vmm.DOORBELL, psci="none", command=Command.SPIN)
        machine.ram[: len(raw)] = raw
        machine.set_one_reg(0, kvm_vmm.PC, kvm_vmm.RAM)
        guest = Guest(machine.ram)
        with ThreadPoolExecutor() as pool:
            running = pool.submit(machine.run, 0)
            try:
                # A vCPU that has come out says why in its result; nobody waits for its beat.
                while guest.state(0) != Command.SPIN and not running.done():
                    time.sleep(0.001)
                first = guest.beat(0)
                while guest.beat(0)[0] == first[0] and not running.done():
                    time.sleep(0.001)
                assert all(later > earlier for later, earlier in zip(guest.beat(0), first, strict=True))
                assert not running.done()
            finally:
                guest.command(0, Command.IDLE)
            assert running.result().data == Doorbell.PARKED
        assert guest.state(0) == Command.IDLE
