"""VMs of two vCPUs on this machine's KVM: saved into one file by one process, and restored by another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from guestclock import Checkpoint
from guestclock.demo import kvm_vmm
from guestclock.payload import Host, Verdict, check_log, read_log
from kvm import fleet_vmm
from kvm.fleet_vmm import BY_VALUE, MAX_NS, PLANTED, POLICIES, VMS

NAMES = [f"vm-{number}" for number in range(VMS)]


def vmm(*arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, fleet_vmm.__file__, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guests that one process has saved, for others to restore."""
    made = tmp_path_factory.mktemp("host")
    vmm("save", made)
    return made


def judged(out: Path, name: str, *, both: bool) -> tuple[dict[str, Any], Verdict]:
    """A guest's report, and the verdict of its own log."""
    said = json.loads((out / f"{name}.json").read_text())
    log = read_log((out / f"{name}.memory").read_bytes())
    views = ("cntvct", "cntpct") if both else ("cntvct",)
    # An emulated machine may stand still for a second now and then.
    grace_ns = kvm_vmm.PATIENCE_S * 1_000_000_000
    return said, check_log(log, host=Host.from_dict(said["host"]), views=views, grace_ns=grace_ns)


@pytest.mark.parametrize(
    "word", [pytest.param(word, marks=[pytest.mark.nightly] if word != "capped" else []) for word in POLICIES]
)
def test_every_guest_reads_what_its_policy_promised(directory: Path, tmp_path: Path, word: str, both: bool) -> None:
    vmm("restore", directory, tmp_path, word)
    state = json.loads((directory / "host.json").read_text())
    checkpoint = Checkpoint.load(directory / "host.time")
    assert sorted(checkpoint.names) == sorted(NAMES)
    assert checkpoint.columns()["stopped_at_count"].tolist() == [state[name]["stopped_at"] for name in checkpoint.names]
    instants = set()
    for name in NAMES:
        said, verdict = judged(tmp_path, name, both=both)
        assert verdict.findings == [], name
        assert len(verdict.gaps) == 2 * (2 if both else 1)
        assert {gap.error_ticks for gap in verdict.gaps} == {0}, name
        report, (pause,) = said["report"], said["host"]["pauses"]
        assert report["method"] == ("virtual-only" if not both else "by-value" if name in BY_VALUE else "offset")
        before, after = pause["released_at"]
        assert before <= report["host_count"] <= after, name
        instants.add(report["host_count"])
        missed = report["host_count"] - state[name]["stopped_at"]
        cap = MAX_NS * report["frequency_hz"] // 10**9
        assert report["added_ticks"] == {"freeze": 0, "advance": missed, "capped": min(missed, cap)}[word], name
        # Freeze costs no guest the time in which the others ran, stopped and were saved.
        one = checkpoint[name]
        at_stop = (one.cntvct - (checkpoint.stamp.count - state[name]["stopped_at"])) % 2**64
        assert report["cntvct"] == (at_stop + report["added_ticks"]) % 2**64, name
    assert (len(instants) == 1) is (word == "freeze")


def test_a_planted_fault_of_one_is_seen_in_that_one(directory: Path, tmp_path: Path, both: bool) -> None:
    if not both:
        pytest.skip("this kernel has no offset to plant a fault in")
    vmm("restore", directory, tmp_path, "planted")
    assert judged(tmp_path, "vm-4", both=both)[1].findings == []
    _, verdict = judged(tmp_path, PLANTED, both=both)
    assert {finding.kind for finding in verdict.findings} == {"gap"}
