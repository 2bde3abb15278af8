"""Sets of VMs' checkpoints as values and as files; what is in their bytes, test_format.py says."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest
from typer.testing import CliRunner

from golden import make
from guestclock import Checkpoint, CheckpointSet, Freeze, ManualCounter, ModelVm, ScaledCounter, inspection, restore
from guestclock.cli.app import app
from guestclock.errors import TooLarge, WrongKind

GOLDEN = Path(make.__file__).parent


@pytest.fixture
def mixed() -> CheckpointSet:
    return CheckpointSet.load(GOLDEN / "set-mixed.cbor")


def test_it_is_a_sequence_of_checkpoints(mixed: CheckpointSet) -> None:
    assert (len(mixed), mixed.vcpus) == (4, 6)
    assert mixed.names.dtype == np.uint64
    assert mixed.names.tolist() == [1, 3, 2**64 - 1, 2]
    assert [checkpoint.vcpus for checkpoint in mixed] == [1, 2, 1, 2]
    assert list(mixed) == [mixed[0], mixed[1], mixed[2], mixed[3]]
    assert (mixed[-1], mixed[-4]) == (mixed[3], mixed[0])
    for index in (4, -5, 2**62):
        with pytest.raises(IndexError, match="the set has 4"):
            mixed[index]
    assert (mixed.find(2), mixed.find(4)) == (3, None)
    with pytest.raises(OverflowError):
        mixed.find(2**64)
    # Its own memory: writing to it changes nothing.
    mixed.names[0] = 9
    assert mixed.names[0] == 1
    assert mixed.unknown == ["later"]
    assert "4 VMs with 6 vCPUs" in repr(mixed)


def test_it_is_a_value(mixed: CheckpointSet, tmp_path: Path) -> None:
    data = mixed.to_bytes()
    assert len(data) == mixed.nbytes
    mixed.save(tmp_path / "guests.time")
    for twin in (
        CheckpointSet.from_bytes(data),
        CheckpointSet.from_bytes(bytearray(data)),
        CheckpointSet.from_bytes(memoryview(data)),
        CheckpointSet.load(str(tmp_path / "guests.time")),
        pickle.loads(pickle.dumps(mixed)),
        copy.copy(mixed),
        copy.deepcopy(mixed),
    ):
        assert twin == mixed
        assert twin.to_bytes() == data
    assert mixed != CheckpointSet.load(GOLDEN / "set-plain.cbor")
    with pytest.raises(TooLarge):
        CheckpointSet.from_bytes(bytearray(2**24 + 1))
    with pytest.raises(TypeError):
        CheckpointSet.from_bytes("text")  # type: ignore[arg-type]


def test_it_says_all_that_it_holds(mixed: CheckpointSet) -> None:
    said: Any = json.loads(json.dumps(mixed.to_dict()))
    other, own = said["groups"]
    assert (other["names"], other["vcpus"], other["opted_in"]) == ([1, 3, 2**64 - 1], [1, 2, 1], [True, False, True])
    assert (other["cntvct"], other["cntpct"], own["cntpct"]) == ([10, 20, 30], [10, 21, 30], [40])
    assert other["backlogs"][str(2**64 - 1)] == {"remaining_ticks": 2**64 - 1, "step_ns": 1, "interval_ns": 2}
    assert (other["cntvoff"], own["cntvoff"]) == (None, [0, 2**64 - 4096])
    assert other["timers"]["vtimer"]["ctl"] == [1, 0xFFFF_FFFF_FFFF_FFF8, 0, 3]
    assert list(own["timers"]) == ["vtimer", "ptimer", "hvtimer", "hptimer"]
    assert said["host"]["sync"]["quality"] == "chrony"
    assert (said["stopped_at"], said["unknown"]) == (None, ["later"])


def test_a_vm_of_it_is_as_its_own_checkpoint() -> None:
    """Two VMs of the model, one of them at another frequency, put into a set by another encoder."""
    counter = ManualCounter(10**12 + 1, frequency_hz=62_500_000, realtime_ns=10**18)
    vms = [ModelVm(1, counter=ScaledCounter(counter, frequency_hz=24_000_000)), ModelVm(2, counter=counter)]
    for vm in vms:
        vm.set_counter_offset(vm.counter.read() - 5)
        vm.set_one_reg(0, 0x6030_0000_0013_DF02, 1005)
    checkpoints = [vm.checkpoint() for vm in vms]
    groups = []
    for name, checkpoint in enumerate(checkpoints):
        said = cbor2.loads(cbor2.loads(checkpoint.to_bytes())[2].value)
        group = {key: said[key] for key in ("owned", "vcpus", "timers", "cntfrq_hz")}
        groups.append(group | {"names": make.u64s(name), "cntvct": make.u64s(checkpoint.cntvct)})
        host = said["host"]
    taken = CheckpointSet.from_bytes(make.seal(cbor2.dumps({"host": host, "groups": groups}, canonical=True)))
    assert list(taken) == checkpoints
    counter.advance(62_500_000)
    target = ModelVm(1, counter=ScaledCounter(counter, frequency_hz=24_000_000))
    restore(taken[0], target, policy=Freeze())
    assert target.cntvct(0) == 5


def run(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "150", "NO_COLOR": "1"}).invoke(app, [str(argument) for argument in arguments])


def test_inspect_shows_its_groups_and_one_vm(mixed: CheckpointSet) -> None:
    file = GOLDEN / "set-mixed.cbor"
    document = inspection.inspect_set(mixed)
    assert json.loads(run("inspect", file, "--json").output) == document
    assert (document["vms"], document["vcpus"], document["size_bytes"]) == (4, 6, len(file.read_bytes()))
    assert document["groups"] == [
        {
            "frequency_hz": 24_000_000,
            "vms": 3,
            "vcpus": 4,
            "timers": ["vtimer", "ptimer"],
            "nested": False,
            "opted_in": 2,
            "with_backlog": 2,
        },
        {
            "frequency_hz": 1_000_000_000,
            "vms": 1,
            "vcpus": 2,
            "timers": ["vtimer", "ptimer", "hvtimer", "hptimer"],
            "nested": True,
            "opted_in": 0,
            "with_backlog": 0,
        },
    ]
    said = run("inspect", file).output
    for fact in ("4 VMs, 6 vCPUs", "24,000,000", "vtimer, ptimer", "with EL2", "'later'", "clock_monotonic_raw"):
        assert fact in said
    assert json.loads(run("inspect", file, "--vm", 2, "--json").output) == inspection.inspect(mixed[3])
    plain = CheckpointSet.load(GOLDEN / "set-plain.cbor")
    assert inspection.inspect_set(plain)["stopped_before_ticks"] == 0x100
    assert "256 ticks" in run("inspect", GOLDEN / "set-plain.cbor").output


def test_the_commands_tell_a_set_from_one_vm(mixed: CheckpointSet) -> None:
    file, bare = GOLDEN / "set-mixed.cbor", GOLDEN / "bare.cbor"
    (record,) = inspection.verify([file])["files"]
    assert (record["intact"], record["vcpus"]) == (True, 6)
    assert record["notes"] == ["the key 'later' isn't known to this version"]
    for arguments in (("diff", bare, file), ("plan", file, "--policy", "freeze")):
        result = run(*arguments)
        assert (result.exit_code, "a set of VMs" in result.output) == (2, True)
    for path, name in ((file, 4), (file, -1), (bare, 1)):
        assert run("inspect", path, "--vm", name).exit_code == 2
    assert inspection.load(bare) == Checkpoint.load(bare)
    assert inspection.load(file) == mixed
    with pytest.raises(WrongKind):
        Checkpoint.load(file)
