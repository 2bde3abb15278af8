"""The gate of counted instructions: it fails where it can't compare, and where a count is too far off."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
WAS = {"rustc": "rustc 1.95.0 (a)", "target": "x86_64-unknown-linux-gnu", "counts": {"evaluate": 1000, "counts": 100}}


@pytest.fixture(name="gate")
def fixture_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    from tools import instructions

    (tmp_path / "instructions.json").write_text(json.dumps(WAS))
    monkeypatch.setattr(instructions, "TREE", tmp_path)
    monkeypatch.setattr(instructions, "FILE", tmp_path / "instructions.json")
    monkeypatch.setattr(sys, "argv", ["instructions.py"])
    return instructions


@pytest.mark.parametrize(
    ("rustc", "target"),
    [
        ("rustc 1.96.0 (b)", "x86_64-unknown-linux-gnu"),
        ("rustc 1.95.0 (b)", "x86_64-unknown-linux-gnu"),
        ("rustc 1.95.0 (a)", "aarch64-unknown-linux-gnu"),
    ],
)
def test_another_compiler_or_target_fails_before_the_build(
    gate: ModuleType, rustc: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "compiler", lambda: (rustc, target))
    monkeypatch.setattr(gate, "counted", lambda: pytest.fail("nothing to count for"))
    with pytest.raises(SystemExit) as ended:
        gate.main()
    told = ended.value.code
    assert isinstance(told, str)  # Python exits with 1 then.
    for part in (f"{WAS['rustc']} for {WAS['target']}", f"{rustc} for {target}", "make instructions-update"):
        assert part in told


@pytest.mark.parametrize(
    ("counts", "status"),
    [
        ({"evaluate": 1000, "counts": 100}, 0),
        ({"evaluate": 1020, "counts": 98}, 0),
        ({"evaluate": 1021, "counts": 100}, 1),
        ({"evaluate": 979, "counts": 100}, 1),
        ({"evaluate": 1000}, 1),
        ({"evaluate": 1000, "counts": 100, "new": 1}, 1),
    ],
)
def test_the_same_compiler_is_compared(
    gate: ModuleType, counts: dict[str, int], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "compiler", lambda: (WAS["rustc"], WAS["target"]))
    monkeypatch.setattr(gate, "counted", lambda: WAS | {"counts": counts})
    assert gate.main() == status


def test_an_update_takes_any_compiler(gate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"rustc": "rustc 1.96.0 (b)", "target": "riscv", "counts": {"evaluate": 5}}
    monkeypatch.setattr(gate, "counted", lambda: now)
    monkeypatch.setattr(sys, "argv", ["instructions.py", "--update"])
    assert gate.main() == 0
    assert json.loads(gate.FILE.read_text()) == now
