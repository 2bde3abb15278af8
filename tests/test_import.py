from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import guestclock
from guestclock import Reg, Timer, _core

# What an import must leave alone: the extras, and what takes long to load.
KEPT_OUT = {"asyncio", "keystone", "matplotlib", "rich", "typer", "unicorn"}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def test_the_import_leaves_the_extras_alone() -> None:
    loaded = json.loads(run("import guestclock, json, sys; print(json.dumps(sorted(sys.modules)))"))
    assert KEPT_OUT.isdisjoint(loaded)
    assert "guestclock._core" in loaded


def test_the_package_uses_nothing_of_the_lab() -> None:
    root = Path(__file__).parent.parent
    lab = {path.name for path in (root / "lab").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert "study" in lab
    for module in (root / "python/guestclock").rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Import):
                imported = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{module}: a relative import hides where it leads"
                imported = {node.module or ""}
            else:
                continue
            assert lab.isdisjoint(name.partition(".")[0] for name in imported), module


def test_the_doctor_needs_no_extra() -> None:
    loaded = json.loads(
        run(
            "import json, sys; from guestclock import doctor; doctor.to_document(doctor.examine());"
            "print(json.dumps(sorted(sys.modules)))"
        )
    )
    assert KEPT_OUT.isdisjoint(loaded)


def test_all_is_sorted_and_there() -> None:
    assert len(set(guestclock.__all__)) == len(guestclock.__all__)
    for name in guestclock.__all__:
        assert getattr(guestclock, name) is not None


def test_the_native_modules_public_names_are_the_packages() -> None:
    # The doctor's two probes are its own.
    native = {name for name in dir(_core) if not name.startswith("_")} - {"kvm_probe", "read_cost_ns"}
    assert native <= set(guestclock.__all__)
    for name in native:
        assert getattr(guestclock, name) is getattr(_core, name)


def test_every_error_and_record_is_the_packages() -> None:
    for module in (guestclock.errors, guestclock.types, guestclock.registers):
        public = {
            name
            for name, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__ and not name.startswith("_")
        }
        assert public
        # A type for annotations, with no second use.
        public -= {"OptionKeywords"}
        assert public <= set(guestclock.__all__)


def test_the_tests_run_on_a_release_build() -> None:
    assert guestclock.DEBUG_BUILD is False


def test_a_debug_build_warns() -> None:
    # The native module is what it is, so a copy of its names stands in for a debug build's.
    code = """
import sys, types, warnings
from guestclock import _core
debug = types.ModuleType("guestclock._core")
debug.__dict__.update({**vars(_core), "DEBUG_BUILD": True})
for name in [name for name in sys.modules if name.startswith("guestclock")]:
    del sys.modules[name]
sys.modules["guestclock._core"] = debug
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import guestclock
print([warning.category.__name__ for warning in caught if "debug build" in str(warning.message)])
"""
    assert run(code).strip() == "['RuntimeWarning']"


def test_the_version_is_cargos() -> None:
    from importlib.metadata import version

    assert guestclock.__version__ == _core.__version__ == version("guestclock")


def test_register_ids_are_kvms() -> None:
    # Linux: arch/arm64/include/uapi/asm/kvm.h, worked out by hand from each register's encoding.
    assert {reg.name: hex(reg) for reg in Reg} == {
        "TIMER_CTL": "0x603000000013df19",
        "TIMER_CNT": "0x603000000013df1a",
        "TIMER_CVAL": "0x603000000013df02",
        "PTIMER_CTL": "0x603000000013df11",
        "PTIMER_CNT": "0x603000000013df01",
        "PTIMER_CVAL": "0x603000000013df12",
        "CNTKCTL_EL1": hex(sysreg_id(3, 0, 14, 1, 0)),
        "CNTVOFF_EL2": hex(sysreg_id(3, 4, 14, 0, 3)),
        "CNTHCTL_EL2": hex(sysreg_id(3, 4, 14, 1, 0)),
        "CNTHP_CTL_EL2": hex(sysreg_id(3, 4, 14, 2, 1)),
        "CNTHP_CVAL_EL2": hex(sysreg_id(3, 4, 14, 2, 2)),
        "CNTHV_CTL_EL2": hex(sysreg_id(3, 4, 14, 3, 1)),
        "CNTHV_CVAL_EL2": hex(sysreg_id(3, 4, 14, 3, 2)),
    }


def sysreg_id(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """ARM64_SYS_REG() of the same header."""
    return 0x6030_0000_0013_0000 | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


@pytest.mark.parametrize("member", [*Reg, *Timer])
def test_a_registers_and_a_timers_repr_evaluates(member: Reg | Timer) -> None:
    assert eval(repr(member), {"Reg": Reg, "Timer": Timer}) is member  # noqa: S307 - that is what a repr promises


def test_timers_are_numbered_as_kvm_numbers_them() -> None:
    assert [(timer.name, timer.value) for timer in Timer] == [
        ("VTIMER", 0),
        ("PTIMER", 1),
        ("HVTIMER", 2),
        ("HPTIMER", 3),
    ]
