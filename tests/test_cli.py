from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import guestclock
from guestclock import demo, doctor, extras
from guestclock.cli.app import app

# Runs the command with some modules kept from being found, as where they were never installed.
BLOCKED = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from {module} import main
main()
"""


def guestclock_command(
    *arguments: str, blocked: tuple[str, ...] = (), module: str = "guestclock.cli"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED.format(blocked=blocked, module=module), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env=os.environ | {"COLUMNS": "160", "NO_COLOR": "1"},
    )


def test_the_doctor_prints_one_document() -> None:
    done = guestclock_command("doctor", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["schema"] == "guestclock.doctor/1"
    findings = {(finding["subject"], finding["name"]): finding for finding in document["findings"]}
    assert len(findings) == len(document["findings"])
    for finding in findings.values():
        assert set(finding) == {"subject", "name", "value", "ok", "reason"}
        assert finding["reason"]
        assert finding["ok"] in {True, False, None}
    counter = guestclock.HostCounter()
    assert findings["counter", "source"]["value"] == counter.source
    assert findings["counter", "frequency_hz"]["value"] == counter.frequency_hz
    assert findings["counter", "read_cost_ns"]["value"] > 0
    assert findings["build", "guestclock"]["value"] == guestclock.__version__
    assert {name for subject, name in findings if subject == "extra"} == set(extras.EXTRAS)
    assert {"synchronised", "max_error_ns", "tai_offset_s", "error_bound_ns", "leap"} == {
        name for subject, name in findings if subject == "wall_clock"
    }
    assert {("host", "machine_id"), ("host", "boot_id"), ("host", "time_namespace"), ("kvm", "device")} <= set(findings)


def test_the_doctor_tells_no_ids() -> None:
    # Its output goes into bug reports.
    stamp = guestclock.HostCounter().stamp()
    told = guestclock_command("doctor", "--json").stdout
    ids = [found for found in (stamp.machine_id, stamp.boot_id) if found]
    assert ids
    for found in ids:
        assert found not in told.replace("-", "")


def test_the_doctor_prints_every_finding_for_people() -> None:
    done = guestclock_command("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    for finding in doctor.examine():
        words = re.sub(r"_(hz|ns|s)$", "", finding.name).replace("_", " ")
        assert re.search(rf"^ .*{words} ", done.stdout, re.MULTILINE), finding


@pytest.mark.parametrize("blocked", [("typer",), ("rich",), ("typer", "rich")])
@pytest.mark.parametrize("arguments", [("doctor",), ("doctor", "--json"), ("demo",), ("--help",), ()])
def test_without_the_cli_extra_any_command_names_it(blocked: tuple[str, ...], arguments: tuple[str, ...]) -> None:
    done = guestclock_command(*arguments, blocked=blocked)
    assert done.returncode == 2
    assert done.stderr == "guestclock: this command needs extra packages: pip install 'guestclock[cli]'\n"
    assert done.stdout == ""


@pytest.mark.parametrize("module", ["unicorn", "keystone", "matplotlib"])
def test_the_demo_without_one_of_its_modules_names_its_extra(module: str) -> None:
    done = guestclock_command("demo", blocked=(module,))
    assert done.returncode == 2
    assert done.stderr == "guestclock: this command needs extra packages: pip install 'guestclock[demo]'\n"


def test_an_import_that_fails_otherwise_is_not_taken_for_a_missing_extra() -> None:
    done = guestclock_command("doctor", blocked=("json",))
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr
    assert "pip install" not in done.stderr


def test_the_doctor_says_which_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "plot", {"no-such-distribution": "no_such_module"})
    (finding,) = (finding for finding in doctor.examine() if (finding.subject, finding.name) == ("extra", "plot"))
    assert finding.ok is False
    assert finding.reason == "no-such-distribution missing: pip install 'guestclock[plot]'"


def test_the_extras_are_those_of_the_metadata() -> None:
    from importlib.metadata import requires

    for extra, distributions in extras.EXTRAS.items():
        declared = {
            re.split(r"[\[<>=; ]", line, maxsplit=1)[0]
            for line in requires("guestclock") or []
            if re.search(rf"extra == ['\"]{extra}['\"]", line)
        }
        if "guestclock" in declared:
            declared -= {"guestclock"}
            declared |= {name for other in ("unicorn", "plot", "cli") for name in extras.EXTRAS[other]}
        assert declared == set(distributions)


def test_help_and_version() -> None:
    for arguments in ((), ("--help",)):
        done = guestclock_command(*arguments)
        assert "doctor" in done.stdout
        assert "demo" in done.stdout
    assert guestclock_command("--version").stdout == f"guestclock {guestclock.__version__}\n"


def test_an_unknown_command_is_a_usage_error() -> None:
    done = guestclock_command("undo")
    assert done.returncode == 2
    assert "undo" in done.stderr


def test_python_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "guestclock", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"guestclock {guestclock.__version__}\n"


@pytest.mark.parametrize(("ok", "status"), [(True, 0), (False, 1)])
def test_the_demo_fails_where_the_guest_saw_a_wrong_time(
    ok: bool, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    document = {"schema": "guestclock.demo/2", "ok": ok, "runs": []}
    monkeypatch.setattr(demo, "run", lambda **_: document)
    monkeypatch.setattr(demo, "draw", lambda *_: None)
    done = CliRunner().invoke(app, ["demo", "--json", "--plot", str(tmp_path / "picture.svg")])
    assert done.exit_code == status
    assert json.loads(done.stdout) == document
