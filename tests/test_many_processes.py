"""One process a VM, as on most hosts: each saves its own VM, and what they saved is one checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from guestclock import Advance, Checkpoint, Fleet, Freeze, HostCounter, ManualCounter, ModelVm, Stamp
from guestclock.errors import Corrupt, NotACheckpoint
from guestclock.types import Policy
from vms import host, owned

PROCESSES = 16

# A process with one VM: it says that the VM runs, and is told when to save it, or the instant.
SAVES = """
import json, sys
from guestclock import HostCounter, ModelVm, Stamp
name, path = sys.argv[1:]
vm = ModelVm(2, counter=HostCounter(), name=name)
vm.opt_in(offset=int(name))
with vm.running(0):
    print("runs", flush=True)
    told = json.loads(sys.stdin.readline())
stopped = vm.counter.read()
now = Stamp(**told) if told else None
vm.checkpoint(now=now, stopped_at=None if told else stopped).save(path)
print(stopped)
"""

# Another one, that restores it.
RESTORES = """
import json, sys
from guestclock import Advance, Checkpoint, Freeze, HostCounter, ModelVm
folder, name, policy = sys.argv[1:]
vm = ModelVm(2, counter=HostCounter(), name=name)
saved = Checkpoint.load(folder)[name]
report = vm.restore(saved, {"freeze": Freeze(), "advance": Advance()}[policy])
before = vm.counter.read()
print(json.dumps([report.to_dict(), before, vm.cntvct(1), vm.counter.read()]))
"""


def saved_by_processes(folder: Path, *, at_one_instant: bool) -> tuple[dict[str, int], Stamp | None]:
    """Each VM's stop as its own process read it, and the instant if it was one."""
    names = [str(number) for number in range(PROCESSES)]
    vmms = {
        name: subprocess.Popen(
            [sys.executable, "-c", SAVES, name, str(folder / f"{name}.time")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    }
    for vmm in vmms.values():
        assert vmm.stdout
        assert vmm.stdout.readline() == "runs\n"
    stamp = HostCounter().stamp() if at_one_instant else None
    told = json.dumps(asdict(stamp) if stamp else None)
    stops = {name: int(vmm.communicate(told + "\n", timeout=60)[0]) for name, vmm in vmms.items()}
    assert [vmm.returncode for vmm in vmms.values()] == [0] * PROCESSES
    return stops, stamp


def test_processes_save_one_vm_each_on_one_instant(tmp_path: Path) -> None:
    _, stamp = saved_by_processes(tmp_path, at_one_instant=True)
    checkpoint = Checkpoint.load(tmp_path)
    assert checkpoint.stamp == stamp
    assert sorted(checkpoint.names, key=int) == [str(number) for number in range(PROCESSES)]
    assert {one.stamp for one in checkpoint} == {stamp}
    for one in checkpoint:
        assert one == Checkpoint.load(tmp_path / f"{one.name}.time")
        assert one.cntvct == (stamp.count - int(one.name)) % 2**64


@pytest.mark.parametrize("policy", [Freeze(), Advance()], ids=str)
def test_processes_save_one_vm_each_and_others_restore_them(tmp_path: Path, policy: Policy) -> None:
    stops, _ = saved_by_processes(tmp_path, at_one_instant=False)
    checkpoint = Checkpoint.load(tmp_path)
    for one in checkpoint:
        assert one.stopped_at == stops[one.name]
        # One count for all: each VM's own, moved to it.
        assert one.cntvct == (checkpoint.stamp.count - int(one.name)) % 2**64
    # Here by one process, and there by one for each.
    vms = {name: ModelVm(2, counter=HostCounter()) for name in checkpoint.names}
    reports = Fleet(vms).restore(checkpoint, policy)
    for name, report in reports.items():
        added = 0 if policy == Freeze() else report.released_at - stops[name]
        assert (report.added_ticks, report.cntvct) == (added, (stops[name] + added - int(name)) % 2**64)
    done = [
        subprocess.Popen(
            [sys.executable, "-c", RESTORES, str(tmp_path), name, policy.name], stdout=subprocess.PIPE, text=True
        )
        for name in checkpoint.names
    ]
    for name, process in zip(checkpoint.names, done, strict=True):
        report, before, count, after = json.loads(process.communicate(timeout=60)[0])
        assert process.returncode == 0
        begin = (stops[name] + report["added_ticks"] - int(name)) % 2**64
        assert report["cntvct"] == begin
        assert before <= report["host_count"] + count - begin <= after


def folder_of(tmp_path: Path, **files: bytes) -> Path:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_a_folders_files_are_one(tmp_path: Path) -> None:
    counter = host()
    parts = []
    for name in ("b", "a", "c"):
        parts.append(owned(counter, name=name).checkpoint())
        parts[-1].save(tmp_path / f"{name}.time")
        counter.advance(100)
    (tmp_path / ".guestclock-left").write_bytes(b"by a save that was killed")
    (tmp_path / "older").mkdir()
    assert Checkpoint.load(tmp_path) == Checkpoint.load(str(tmp_path)) == Checkpoint.join(parts)
    only = tmp_path / "older"
    parts[0].save(only / "one")
    assert Checkpoint.load(only) == parts[0]


def test_a_folder_that_is_no_checkpoint_names_its_files(tmp_path: Path) -> None:
    counter = host()
    one, other = (owned(counter, name=name).checkpoint() for name in "ab")
    with pytest.raises(ValueError, match="has no files"):
        Checkpoint.load(tmp_path)
    with pytest.raises(OSError, match="No such file"):
        Checkpoint.load(tmp_path / "missing")
    folder_of(tmp_path, **{"1.time": one.to_bytes(), "2.txt": b"notes"})
    with pytest.raises(NotACheckpoint) as caught:
        Checkpoint.load(tmp_path)
    assert caught.value.__notes__ == ['in the folder\'s "2.txt"']
    folder_of(tmp_path, **{"2.txt": other.to_bytes()[:-1]})
    with pytest.raises(Corrupt) as damaged:
        Checkpoint.load(tmp_path)
    assert damaged.value.__notes__ == ['in the folder\'s "2.txt"']
    folder_of(tmp_path, **{"2.txt": other.to_bytes(), "3.time": one.to_bytes()})
    with pytest.raises(ValueError, match='the name "a"') as twice:
        Checkpoint.load(tmp_path)
    assert twice.value.__notes__ == ['in the folder\'s "1.time" and "3.time"']
    elsewhere = owned(ManualCounter(5, frequency_hz=host().frequency_hz), name="c").checkpoint()
    folder_of(tmp_path, **{"3.time": elsewhere.to_bytes()})
    with pytest.raises(ValueError, match="aren't shown to be of one host counter") as apart:
        Checkpoint.load(tmp_path)
    assert '"3.time"' in apart.value.__notes__[0]
    odd = tmp_path / "\x1b[2J"
    odd.write_bytes(b"")
    with pytest.raises(NotACheckpoint) as raw:
        Checkpoint.load(tmp_path)
    assert "\x1b" not in raw.value.__notes__[0]


def test_the_example_restores_its_vms_on_one_instant(tmp_path: Path) -> None:
    example = Path(__file__).parent.parent / "examples" / "many_processes.py"
    done = subprocess.run(
        [sys.executable, str(example), str(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    *vms, last = done.stdout.splitlines()
    assert (len(vms), last) == (PROCESSES, f"{PROCESSES} guests are on one instant")
    assert len(list(tmp_path.iterdir())) == PROCESSES
