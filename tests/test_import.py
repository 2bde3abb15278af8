from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest

import guestclock
from guestclock import Reg, Timer, _core

# What an import must leave alone: the extras, and what takes long to load.
KEPT_OUT = {"asyncio", "keystone", "matplotlib", "rich", "typer", "unicorn"}
# And what is loaded with the first call that needs it.
LATER = {"dataclasses", "inspect", "numpy"}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def test_the_import_leaves_the_extras_alone() -> None:
    loaded = json.loads(run("import guestclock, json, sys; print(json.dumps(sorted(sys.modules)))"))
    assert (KEPT_OUT | LATER).isdisjoint(loaded)
    assert "guestclock._core" in loaded


@pytest.mark.parametrize(
    ("made", "expired"),
    [
        ("m.DeadlineQueue(); q.add_group(1); q.arm(0, 7)", "q.expire(9)"),
        ("m.DeadlineQueue(); q.add_group(1); q.arm(0, 7); a = m.DeadlineAlarm(q, host)", "a.expire()"),
        ("m.ClockBank(host); vm = q.vm(q.add(1)); vm.set_one_reg(0, g.Reg.TIMER_CVAL, 7)", "q.expire(9)"),
    ],
    ids=["queue", "alarm", "bank"],
)
def test_the_first_expiry_of_a_process_loads_nothing(made: str, expired: str) -> None:
    """numpy and its C API come with the queue: a timer that is due doesn't wait for them."""
    loaded, by_expiry = json.loads(
        run(
            "import json, sys, guestclock as g, guestclock.model as m; host = g.ManualCounter(10); "
            f"q = {made}; loaded = set(sys.modules); {expired}; "
            "print(json.dumps(['numpy._core.multiarray' in loaded or 'numpy.core.multiarray' in loaded, "
            "sorted(set(sys.modules) - loaded)]))"
        )
    )
    assert (loaded, by_expiry) == (True, [])


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


# The names that a program begins with: everything else stands in a room.
TOP = """
    ModelVm KvmVm Fleet Checkpoint Freeze Advance CatchUp Elapsed SyncBound Options Plan Restore Report HostCounter
    MonotonicCounter ManualCounter Stamp Reg Timer MS S GuestClockError Refused Interrupted VcpuRunning __version__
"""
ROOMS = (
    *("aio", "errors", "fleet", "guest", "inspection", "kvm", "model", "snapshots", "sync", "testing", "tracing"),
    "types",
)


def test_the_top_has_these_names() -> None:
    assert sorted(guestclock.__all__) == sorted(TOP.split())
    for name in guestclock.__all__:
        assert getattr(guestclock, name) is not None


def public(room: ModuleType) -> set[str]:
    """The names that a module offers: its `__all__`, or what it defines itself."""
    own = {
        name
        for name, value in vars(room).items()
        if isinstance(value, type) and value.__module__ == room.__name__ and not name.startswith("_")
    }
    return set(getattr(room, "__all__", own))


def test_each_name_stands_in_one_place() -> None:
    places = defaultdict(list)
    for room in [guestclock, *(getattr(guestclock, name) for name in ROOMS)]:
        for name in public(room):
            assert getattr(room, name) is not None
            places[name].append(room.__name__)
    # The family of errors is one page, and its four best known stand at the top too.
    known = {"GuestClockError", "Interrupted", "Refused", "VcpuRunning"}
    assert {name for name, where in places.items() if len(where) > 1} == known
    native = {name for name in dir(_core) if not name.startswith("_")}
    # The package's own: the doctor's two probes, the table behind `Reg`, and the mark that makes the import warn.
    assert native - set(places) == {"DEBUG_BUILD", "kvm_probe", "read_cost_ns", "reg_id"}


PACKAGE = Path(guestclock.__file__).parent
SOURCES = [
    ast.parse(path.read_text())
    for room in ("__init__", "_core", *ROOMS)
    for path in (*PACKAGE.glob(f"{room}.py*"), *PACKAGE.glob(f"{room}/*.py"))
]


def types_of(source: ast.Module) -> set[str]:
    """The classes and the aliases that a module defines."""
    classes = {node.name for node in source.body if isinstance(node, ast.ClassDef)}
    aliases = [node for node in source.body if isinstance(node, ast.AnnAssign)]
    return classes | {ast.unparse(node.target) for node in aliases if ast.unparse(node.annotation) == "TypeAlias"}


def mentioned(node: ast.stmt) -> set[str]:
    """The names in the annotations of a public function, and of a class's public members."""
    if isinstance(node, ast.ClassDef):
        return set().union(*map(mentioned, node.body))
    annotations: list[ast.expr | None] = []
    if isinstance(node, ast.AnnAssign) and not ast.unparse(node.target).startswith("_"):
        annotations = [node.annotation]
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        annotations = [node.returns, *(argument.annotation for argument in given)]
    return {
        part.id
        for annotation in annotations
        if annotation
        for part in ast.walk(unquoted(annotation))
        if isinstance(part, ast.Name)
    }


def unquoted(annotation: ast.expr) -> ast.AST:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return ast.parse(annotation.value, mode="eval")
    return annotation


def test_each_type_in_a_public_signature_has_a_public_place() -> None:
    """Who writes annotations names the types that a call takes and returns."""
    places = set().union(public(guestclock), *(public(getattr(guestclock, name)) for name in ROOMS))
    ours = set().union(*map(types_of, SOURCES))
    used = {
        name
        for source in SOURCES
        for node in source.body
        if getattr(node, "name", None) in places
        for name in mentioned(node)
    }
    assert {"FleetPlan", "Entry", "Policy", "Stamp", "Capabilities"} <= used
    # A parameter's own protocols have no name at run time.
    assert {name for name in used & ours if not name.startswith("_")} <= places


def test_a_native_class_names_its_room() -> None:
    # So that help(), a pickle and a traceback lead to where a program imports it from.
    for name, value in vars(_core).items():
        if isinstance(value, type) and not name.startswith("_"):
            assert getattr(importlib.import_module(value.__module__), name) is value
            assert value.__module__ == "guestclock" or name not in guestclock.__all__


def test_a_room_is_an_attribute_and_costs_nothing_before_its_use() -> None:
    assert set(ROOMS) < set(dir(guestclock))
    loaded = "print(sorted(name for name in sys.modules if name.startswith('guestclock.')))"
    first = run(f"import guestclock, sys; {loaded}")
    rooms = {f"guestclock.{room}" for room in ROOMS} - {"guestclock.errors"}
    assert rooms.isdisjoint(ast.literal_eval(first))
    assert run("from guestclock import Fleet, Stamp; print(Fleet.__name__)") == "Fleet\n"
    for room in ROOMS:
        assert run(f"import guestclock; print(guestclock.{room}.__name__)") == f"guestclock.{room}\n"
    pytest.importorskip("unicorn")
    assert run("import guestclock; print(guestclock.adapters.unicorn.__name__)") == "guestclock.adapters.unicorn\n"


def test_a_name_that_is_nowhere_is_an_attribute_error() -> None:
    for name in ("clocks", "_rooms", "DEBUG"):
        with pytest.raises(AttributeError, match=f"module 'guestclock' has no attribute '{name}'"):
            getattr(guestclock, name)


def test_the_tests_run_on_a_release_build() -> None:
    assert _core.DEBUG_BUILD is False


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
