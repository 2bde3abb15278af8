"""The build that other systems than Linux have: what it refuses, and what works there. `make test-portable` runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from guestclock import (
    Advance,
    Checkpoint,
    Elapsed,
    Fleet,
    Freeze,
    HostCounter,
    KvmVm,
    ManualCounter,
    ModelVm,
    MonotonicCounter,
    _core,
)
from guestclock.cli.app import app
from guestclock.doctor import examine
from guestclock.errors import CapabilityMissing, ElapsedUnknown
from guestclock.guest import StolenTime, VmClock
from guestclock.model import ClockBank, DeadlineAlarm, DeadlineQueue
from vms import SECOND, Running

off_linux = pytest.mark.skipif(_core._LINUX, reason="this build is for Linux: make test-portable has the other")


def test_no_code_for_linux_is_in_it() -> None:
    code = Path(str(_core.__file__)).read_bytes()
    assert (b"/dev/kvm" in code) is _core._LINUX


COUNTER = "counter=ManualCounter"
REFUSED: list[tuple[str, Callable[[], object], str]] = [
    ("HostCounter", HostCounter, COUNTER),
    ("HostCounter", lambda: HostCounter(source="tsc", sync=None), COUNTER),
    ("HostCounter", lambda: ModelVm(2), COUNTER),
    ("HostCounter", ClockBank, COUNTER),
    ("MonotonicCounter", MonotonicCounter, COUNTER),
    ("KvmVm", lambda: KvmVm(3, [4], gic_fd=5), "`ModelVm` models it"),
    ("DeadlineAlarm", lambda: DeadlineAlarm(DeadlineQueue(), ManualCounter()), "next_deadline"),
    ("StolenTime", lambda: StolenTime(bytearray(64)), "reads no pages"),
    ("VmClock", lambda: VmClock(bytearray(4096)), "reads no pages"),
    ("VmClock", lambda: VmClock.create(bytearray(4096), tai_offset_s=None), "reads no pages"),
]


@off_linux
@pytest.mark.parametrize(("name", "make", "way_out"), REFUSED)
def test_it_is_refused_with_the_way_out(name: str, make: Callable[[], object], way_out: str) -> None:
    with pytest.raises(CapabilityMissing, match=f"{name} needs Linux.*{way_out}.*capability-missing") as caught:
        make()
    assert caught.value.capability == "linux"


@off_linux
def test_a_guests_time_is_saved_and_restored_over_a_python_counter(tmp_path: Path) -> None:
    counter = Running(boot_id=None)
    saved, again = ModelVm(2, counter=counter, name="web"), ModelVm(2, counter=counter, name="web")
    saved.opt_in()
    path = tmp_path / "host.time"
    Fleet({"web": saved}).checkpoint().save(path)
    Fleet({"web": saved}).checkpoint().save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["host.time"]
    checkpoint = Checkpoint.load(path)
    # Nothing says that a counter is this host's, so nothing is believed.
    assert isinstance(Fleet({"web": again}).plan(checkpoint, Advance()).refused["web"], ElapsedUnknown)
    passed = Elapsed.given(SECOND, error_ns=0)
    report = Fleet({"web": again}).restore(checkpoint, Advance(), elapsed=passed)["web"]
    assert SECOND <= report.added_ns < 60 * SECOND
    assert again.cntvct(0) <= again.cntvct(1)
    assert again.restore(checkpoint, Freeze()).added_ns == 0


@off_linux
def test_the_doctor_says_what_is_missing() -> None:
    found = {(finding.subject, finding.name): finding for finding in examine()}
    for what in (("counter", "source"), ("kvm", "device")):
        assert found[what].ok is False
        assert "needs Linux" in found[what].reason
    assert found["host", "machine"].ok


@off_linux
def test_the_command_line_looks_at_files(tmp_path: Path) -> None:
    path = tmp_path / "guest.time"
    ModelVm(2, counter=ManualCounter(10**12, realtime_ns=10**18)).checkpoint().save(path)
    run = CliRunner().invoke
    assert run(app, ["inspect", str(path)]).exit_code == 0
    assert run(app, ["verify", str(path)]).exit_code == 0
    assert run(app, ["plan", str(path), "--policy", "advance", "--elapsed", "30s"]).exit_code == 0
    here = run(app, ["plan", str(path), "--policy", "advance"])
    assert isinstance(here.exception, CapabilityMissing)
    assert "say what has passed with --elapsed" in str(here.exception)
