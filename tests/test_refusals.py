"""The command line's refusals are sentences, and no text of a file or of its name acts on a terminal.

A table runs each command with each error that the library has; another makes real ones.
"""

from __future__ import annotations

import errno
import inspect
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from golden import make
from guestclock import ModelVm, cli, errors, inspection, payload, selftest
from guestclock.errors import GuestClockError, Refused
from guestclock.inspection.words import printable
from vms import host, owned


def every_error() -> Iterator[BaseException]:
    """One of each of the library's errors, and of those that a system or a memory can add."""
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, GuestClockError):
            fields: dict[str, Any] = {"errno": errno.EBUSY} if issubclass(kind, errors.KvmError) else {}
            if issubclass(kind, errors.Interrupted):
                fields |= {"state": "paused", "step": "a step", "retry": "resume"}
            yield kind("both \x1b[31msides, and the way out", **fields)
    yield FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "a\x1b[2Jname")
    yield MemoryError("there is no memory for 1 bytes")


ERRORS = list(every_error())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "guest.time"
    owned(host(), name="web-1").checkpoint().save(path)
    return path


def ran(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The status and all output of the command, which ended as a command does."""
    before = sys.argv
    sys.argv = ["guestclock", *arguments]
    try:
        with pytest.raises(SystemExit) as caught:
            cli.main()
    finally:
        sys.argv = before
    code = caught.value.code
    assert code is None or isinstance(code, int)
    captured = capfd.readouterr()
    return code or 0, captured.out + captured.err


# Each command, with the function of the library that does its work.
COMMANDS: dict[str, tuple[object, str, list[str]]] = {
    "inspect": (inspection, "inspect", ["{}"]),
    "plan": (inspection, "dry_run", ["{}", "--policy", "advance"]),
    "plan, of a target": (inspection, "target", ["{}", "--policy", "advance"]),
    "plan --csv": (inspection, "plan_each", ["{}", "--policy", "advance", "--csv"]),
    "diff": (inspection, "diff", ["{}", "{}"]),
    "verify": (inspection, "verify", ["{}"]),
    "plot": (inspection, "timeline", ["{}", "{}", "--out", "{}.svg"]),
    "plot, as it draws": (inspection, "draw", ["{}", "{}", "--out", "{}.svg"]),
    "check-log": (payload, "read_log", ["{}"]),
    "payload": (payload, "image", ["--out", "{}.bin"]),
    "selftest": (selftest, "run", []),
}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("command", COMMANDS)
def test_each_error_is_a_sentence(
    file: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    error: BaseException,
) -> None:
    owner, function, arguments = COMMANDS[command]

    def fails(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(owner, function, fails)
    arguments = [argument.format(file) for argument in arguments]
    status, said = ran(capfd, command.split(",", maxsplit=1)[0].split(maxsplit=1)[0], *arguments)
    # Where there is no arm64 KVM, as the self-test's page says, and an errno: 2.
    usage = isinstance(error, OSError) or (command == "selftest" and isinstance(error, errors.CapabilityMissing))
    assert status == 1 if isinstance(error, Refused) and not usage else status in {1, 2}
    assert said.startswith("guestclock: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said
    assert "\x1b" not in said


def test_the_table_has_every_command() -> None:
    from guestclock.cli.app import app

    names = {command.name for command in app.registered_commands}
    for group in app.registered_groups:
        assert group.typer_instance is not None
        names |= {command.name for command in group.typer_instance.registered_commands}
    # The doctor has findings instead of errors, and the demo is another table's (test_demo.py).
    assert {command.split(",")[0].split()[0] for command in COMMANDS} == names - {"doctor", "demo"}


def never_opted_in(tmp_path: Path) -> Path:
    vm = ModelVm(1, counter=host(), kernel="6.1")
    vm.checkpoint().save(tmp_path / "stock.time")
    return tmp_path / "stock.time"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--policy", "catch-up", "--step", "1000ns", "--interval", "100000ns"],
        ["--policy", "freeze", "--views", "adopt-virtual", "--kernel", "6.1"],
        ["--policy", "freeze", "--views", "refuse"],
        ["--policy", "advance", "--elapsed-by", "wall-clocks", "--refuse-over", "0ns"],
        ["--policy", "advance", "--elapsed-by", "counter"],
        ["--policy", "advance", "--frequency-hz", "4294967296"],
        ["--policy", "advance", "--frequency-hz", "1", "--elapsed", "99999999999999999999999ns"],
        ["--policy", "advance", "--elapsed", "18446744073709551616ns"],
        ["--policy", "advance", "--max-error", "18446744073709551616ns"],
        ["--policy", "advance", "--max", "18446744073709551616ns"],
        ["--policy", "advance", "--elapsed-error", "99999999999999999999ns", "--elapsed", "1ns"],
        ["--policy", "catch-up", "--step", "18446744073709551616ns", "--interval", "1ns"],
        ["--policy", "catch-up", "--step", "1ns", "--interval", "1ns", "--within", "0ns", "--elapsed", "1ns"],
        ["--policy", "advance", "--kernel", "5.10"],
        ["--policy", "advance", "--rate-error-ppb", "250000", "--elapsed-by", "wall-clocks"],
        ["--policy", "advance", "--vm", "\x1b[2J"],
        ["--policy", "advance", "--strict", "--timers", "relative", "--intent", "clone"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]], ids=lambda form: "".join(form) or "table")
def test_real_refusals_of_a_plan(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], form: list[str]
) -> None:
    status, said = ran(capfd, "plan", str(never_opted_in(tmp_path)), *arguments, *form)
    assert status in {0, 1, 2}
    assert "\x1b" not in said


@pytest.mark.parametrize("number", [-1, 0, 1, 9, 2**31, 2**32, 2**63, 2**64, 2**70])
@pytest.mark.parametrize(
    "option", ["--vcpus", "--samples", "--doorbell", "--gicd", "--gicr", "--period-ticks", "--timer-irq", "--address"]
)
@pytest.mark.parametrize("form", ["raw", "elf"])
def test_no_number_of_the_payload_is_a_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], option: str, number: int, form: str
) -> None:
    status, said = ran(capfd, "payload", f"{option}={number}", "--format", form, "--out", str(tmp_path / "payload"))
    assert status in {0, 2}
    assert said


# Texts that somebody else chose.

ACTS = [
    "\x1b]0;title\x07\x1b[2J",
    "line\nguestclock: all is well",
    "\u202egnp.exe",
    "e" + "\u0301" * 99,
    "\u200b\ufeff\u2800",
]
ACTING = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b-\u200f]")


@pytest.mark.parametrize("text", ACTS, ids=range(len(ACTS)))
def test_nothing_in_a_text_acts(text: str) -> None:
    said = printable(text)
    assert said.isprintable()
    assert "\u0301\u0301\u0301" not in said
    assert "\u2800" not in said


@given(st.text())
def test_a_printable_text_is_plain_or_escaped(text: str) -> None:
    said = printable(text)
    assert said.isprintable()
    assert printable(said) == said
    # Ordinary text stays as it is.
    if text.isascii() and text.isprintable():
        assert said == text


def test_words_of_many_scripts_stay() -> None:
    for text in ("größe", "имя", "名前", "नाम", "שם", "ชื่อ", "e\u0301", "a b"):
        assert printable(text) == text


COMMANDS_OF_FILES: list[Callable[[str], list[str]]] = [
    lambda file: ["inspect", file],
    lambda file: ["verify", file, file],
    lambda file: ["diff", file, file],
    lambda file: ["plan", file, "--policy", "freeze"],
    lambda file: ["plan", file, "--policy", "freeze", "--csv"],
    lambda file: ["plot", file, file, "--out", file + ".svg"],
    lambda file: ["check-log", file],
    lambda file: ["check-log", file, "--host", file],
]


def on_a_terminal(arguments: list[str]) -> tuple[int, bytes]:
    """The status, and all that a terminal got from the command."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "guestclock", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"NO_COLOR": "1", "TERM": "dumb"},
    ) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                more = os.read(ours, 65536)
            except OSError:
                # EIO: the other end is closed.
                break
            if not more:
                break
            said += more
    os.close(ours)
    return process.returncode, said


def acts(shown: str) -> bool:
    """True if something in the text would act on a terminal, or be taken for the command's own words."""
    forged = any(line.startswith("guestclock: all is well") for line in shown.splitlines())
    return bool(ACTING.search(shown)) or forged or "\u0301\u0301\u0301" in shown


def hostile(tmp_path: Path, text: str) -> Iterator[str]:
    """Two files of this name, one after the other: a checkpoint in which the text is a key, and none."""
    path = tmp_path / os.fsdecode(os.fsencode(text)[:200])
    for contents in (make.encode(make.BARE | {text[:20]: 1}), b"no checkpoint"):
        path.write_bytes(contents)
        yield str(path)


@pytest.mark.parametrize("text", ACTS, ids=range(len(ACTS)))
def test_no_command_lets_a_text_act(tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str) -> None:
    for path in hostile(tmp_path, text):
        for command in COMMANDS_OF_FILES:
            status, shown = ran(capfd, *command(path))
            assert status in {0, 1, 2}
            assert not acts(shown), shown


def test_no_text_acts_on_a_real_terminal(tmp_path: Path) -> None:
    for path in hostile(tmp_path, ACTS[0] + ACTS[2]):
        for command in COMMANDS_OF_FILES[:2] + COMMANDS_OF_FILES[4:5]:
            status, said = on_a_terminal(command(path))
            assert status in {0, 1, 2}
            assert not acts(said.decode()), said


ROOT = Path(__file__).parent.parent
CORPORA = sorted(
    file
    for folder in ("tests/golden", "tests/golden/snapshots", "lab/fuzz/corpus/checkpoint", "docs")
    for file in (ROOT / folder).iterdir()
    if file.is_file() and file.suffix in {"", ".cbor", ".json", ".shm"}
)


@pytest.mark.parametrize("file", CORPORA, ids=lambda file: f"{file.parent.name}-{file.name}")
def test_no_file_of_the_corpora_is_a_traceback(capfd: pytest.CaptureFixture[str], tmp_path: Path, file: Path) -> None:
    whole = file.read_bytes()
    for contents in (whole, whole[: len(whole) // 2]):
        path = tmp_path / file.name
        path.write_bytes(contents)
        for command in COMMANDS_OF_FILES:
            status, said = ran(capfd, *command(str(path)))
            assert status in {0, 1, 2}
            assert "Traceback" not in said
            assert said


@pytest.mark.parametrize(
    "number", ["Infinity", "-Infinity", "NaN", "1e999", "1e400", "-1", "1.5", "true", '"1"', "null", "9" * 5000]
)
@pytest.mark.parametrize(
    "where", ['{"frequency_hz": %s, "vcpus": []}', '{"frequency_hz": 1, "vcpus": [[[%s, 1]]]}', "%s", "[%s]"]
)
def test_a_number_of_the_hosts_that_is_none(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, number: str, where: str
) -> None:
    log = tmp_path / "memory"
    log.write_bytes(payload.image(vcpus=1))
    seen = tmp_path / "host.json"
    seen.write_text(where % number)
    status, said = ran(capfd, "check-log", str(log), "--host", str(seen))
    assert status == 2
    assert said.startswith("guestclock: ")
    assert said.count("\n") == 1


def test_a_large_dump_is_not_read_whole(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A sparse one of 64 GiB, with the log near its end: its holes are passed over."""
    dump = tmp_path / "memory"
    with dump.open("wb") as opened:
        opened.truncate(64 << 30)
    status, said = ran(capfd, "check-log", str(dump))
    assert (status, "hold no payload's log" in said) == (2, True)
    image = payload.image(vcpus=1)
    with dump.open("r+b") as opened:
        opened.seek((64 << 30) - (64 << 20))
        opened.write(image)
    _, said = ran(capfd, "check-log", str(dump), "--json")
    assert "hold no payload's log" not in said
