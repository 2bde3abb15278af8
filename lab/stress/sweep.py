"""The whole public API, called with values that its arguments can't mean.

The calls and their annotations come from the stub and from the Python classes, so a new call is swept as soon as it is
there. A wrong value has to be refused, in words: no panic, no SystemError, and nothing of the binding's insides.
`tests/test_sweep.py` tries each wrong value of each argument; `python -m stress sweep` draws several at once.
"""

from __future__ import annotations

import ast
import inspect
import mmap
import re
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from guestclock import (
    Advance,
    CatchUp,
    Checkpoint,
    Fleet,
    Freeze,
    GuestClockError,
    HostCounter,
    ManualCounter,
    ModelVm,
    MonotonicCounter,
    Options,
    Plan,
    Reg,
    Restore,
    S,
    SyncBound,
    _core,
)
from guestclock.guest import ClockEquation, StolenTime, VmClock
from guestclock.model import ClockBank, DeadlineAlarm, DeadlineQueue, ScaledCounter, sysreg
from guestclock.testing import Fault, FaultyVm, RecordingCounter, ReplayCounter, TracedVm
from guestclock.types import Reading, Step

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Mapping

STUB = Path(_core.__file__ or "").with_name("_core.pyi")
NS = 1_750_000_000 * S


class Case(NamedTuple):
    """A call with valid arguments, made anew each time, and the annotations of its parameters."""

    name: str
    make: Callable[[], tuple[Callable[..., object], dict[str, object]]]
    annotations: Mapping[str, str]


WRONG: dict[str, Callable[[], object]] = {
    "None": lambda: None,
    "-1": lambda: -1,
    "2**64": lambda: 2**64,
    "2**63": lambda: 2**63,
    "2**40": lambda: 2**40,
    "-2**200": lambda: -(2**200),
    "True": lambda: True,
    "1.5": lambda: 1.5,
    "text": lambda: "x",
    "long text": lambda: "x" * 100_000,
    "surrogate": lambda: "\udc80",
    "bytes": lambda: b"",
    "object": object,
    "class": lambda: Freeze,
    "list": list,
    "huge list": lambda: [0] * 100_000,
    "array of floats": lambda: np.zeros(3),
    "array of another shape": lambda: np.zeros((2, 2, 2), dtype=np.uint64),
}

# Integers outside of what a parameter counts that it takes all the same, since they mean something there.
SIGNED = {"offset", "counter_offset", "value", "realtime_ns", "tai_offset_s", "rate_ppb", "step_realtime_ns", "tval"}
SIGNED |= {"ns of step_realtime", "key of __getitem__", "handle of __contains__"}
INTERNALS = re.compile(
    r"Py[A-Z]\w+|cannot be converted|conversion attempted|failed to extract|Downcast|Bound<|Borrowed|unwrap|panic"
)
REFUSALS = (TypeError, ValueError, IndexError, KeyError, OverflowError, GuestClockError, OSError, BufferError)


def may_be(annotation: str, value: object) -> bool:
    """True if a type checker would pass the value."""
    parts = set(kinds_of(ast.parse(annotation, mode="eval").body))
    if value is None:
        return "None" in parts
    if isinstance(value, bool):
        return "bool" in parts
    if isinstance(value, int):
        return bool(parts & {"int", "SupportsIndex"})
    if isinstance(value, str):
        return "str" in parts
    if isinstance(value, bytes):
        return bool(parts & {"bytes", "Buffer", "Sequence", "Iterable"})
    if callable(value):
        return "Callable" in parts
    if isinstance(value, list):
        return bool(parts & {"Sequence", "Iterable"})
    return "object" in parts


def kinds_of(node: ast.expr) -> Iterator[str]:
    """The members of a union, without their parameters."""
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "typing.Optional":
        yield from ["None", *kinds_of(node.slice)]
        return
    if isinstance(node, ast.BinOp):
        yield from kinds_of(node.left)
        yield from kinds_of(node.right)
    else:
        yield ast.unparse(node.value if isinstance(node, ast.Subscript) else node)


def sweep(cases: list[Case], values: Mapping[str, Callable[[], object]]) -> list[str]:
    """Faults of the API, a line each."""
    tried = (
        judged(case, {parameter: make()}, f"{case.name}({parameter}={label})")
        for case in cases
        for parameter in case.annotations
        for label, make in values.items()
    )
    return [finding for finding in tried if finding is not None]


def judged(case: Case, values: dict[str, object], where: str) -> str | None:
    """Calls with these values in place of valid ones; gives what is wrong with what came of it."""
    call, arguments = case.make()
    try:
        result = call(**{**arguments, **values})
        if inspect.isgenerator(result):
            next(result, None)
    except REFUSALS as error:
        # Of the system's errors the file's name is the caller's.
        text = error.strerror or "" if isinstance(error, OSError) and error.filename else str(error)
        if INTERNALS.search(text) or len(text) > 1000:
            return f"{where} speaks of its insides: {error!r:.200}"
    except BaseException as error:  # noqa: BLE001 - a panic is one
        return f"{where} ends in {type(error).__name__}: {error!s:.200}"
    else:
        wrong = [
            one for one, value in values.items() if not taken_rightly(case.name, one, case.annotations[one], value)
        ]
        if wrong:
            return f"{where} is taken in silence: {', '.join(wrong)}"
    return None


def drawn(cases: list[Case], dice: random.Random) -> str | None:
    """A call drawn from these, with one or more of its arguments wrong; gives what is wrong with what came of it."""
    case = dice.choice(cases)
    labels = {
        one: dice.choice([*WRONG]) for one in dice.sample([*case.annotations], dice.randint(1, len(case.annotations)))
    }
    given = ", ".join(f"{one}={label}" for one, label in labels.items())
    return judged(case, {one: WRONG[label]() for one, label in labels.items()}, f"{case.name}({given})")


def taken_rightly(name: str, parameter: str, annotation: str, value: object) -> bool:
    """True if a value that was taken means something there."""
    if not may_be(annotation, value):
        return False
    if not isinstance(value, int) or isinstance(value, bool):
        return True
    signed = parameter in SIGNED or f"{parameter} of {name.rpartition('.')[2]}" in SIGNED
    return (-(2**63) if signed else 0) <= value < 2**64


# Valid objects and arguments, each made anew.


def host() -> ManualCounter:
    return ManualCounter(10**9, realtime_ns=NS)


def vm() -> ModelVm:
    made = ModelVm(vcpus=2, counter=host(), name="web-1")
    made.opt_in()
    return made


def bank() -> ClockBank:
    made = ClockBank(host(), timers=4)
    made.add_many(2, 2)
    return made


def queue() -> DeadlineQueue:
    made = DeadlineQueue()
    made.add_group(2)
    return made


def columns(dtype: type, rows: int = 4) -> Any:
    return np.zeros(rows, dtype=dtype)


def entered(*, applied: bool = False) -> Restore:
    target = vm()
    restore = target.restoring(target.checkpoint(), Advance())
    restore.__enter__()
    if applied:
        restore.apply()
    return restore


def step() -> Step:
    target = vm()
    saved = target.checkpoint()
    counter = target.counter
    assert isinstance(counter, ManualCounter)
    counter.advance_ns(10 * S)
    target.restore(saved, CatchUp(S, S))
    counter.advance_ns(2 * S)
    made = target.next_step()
    assert made is not None
    return made


def equation() -> ClockEquation:
    return ClockEquation(host().stamp(), cntvct=1, max_error_ns=1, synchronized=True)


def memory() -> mmap.mmap:
    return mmap.mmap(-1, 4096)


def page() -> VmClock:
    return VmClock.create(memory(), tai_offset_s=37)


def with_page() -> mmap.mmap:
    made = memory()
    VmClock.create(made, tai_offset_s=37)
    return made


def saved() -> str:
    vm().checkpoint().save("saved.time")
    return "saved.time"


OWNERS: dict[str, Callable[[], object]] = {
    "HostCounter": HostCounter,
    "MonotonicCounter": MonotonicCounter,
    "ManualCounter": host,
    "ScaledCounter": lambda: ScaledCounter(host(), frequency_hz=24_000_000),
    "DeadlineQueue": queue,
    "DeadlineAlarm": lambda: DeadlineAlarm(queue(), host()),
    "ClockBank": bank,
    "GuestVm": vm,
    "ModelVm": vm,
    "TracedVm": lambda: TracedVm(vm()),
    "Pause": lambda: vm().pause(),
    "Checkpoint": lambda: vm().checkpoint(),
    "StolenTime": lambda: StolenTime(memory()),
    "ClockEquation": equation,
    "VmClock": page,
    "VmClockUpdate": lambda: page().update().__enter__(),
    "Plan": lambda: vm().plan(vm().checkpoint()),
    "Restore.apply": entered,
    "Restore.release": lambda: entered(applied=True),
    "GuestVm.opt_in": lambda: ModelVm(vcpus=2, counter=host()),
    "Step": step,
    "Report": lambda: vm().restore(vm().checkpoint()),
    "Fleet": lambda: Fleet({"web-1": vm()}),
    "RecordingCounter": lambda: RecordingCounter(host()),
    "ReplayCounter": lambda: ReplayCounter([1, 2], frequency_hz=1000),
}

# Valid arguments by parameter, or by call and parameter where they differ. A parameter with a default needs none.
ARGUMENTS: dict[str, Callable[[], object]] = {
    "reg_id.name": lambda: "TIMER_CNT",
    "sysreg.name": lambda: "CNTVCT_EL0",
    "Checkpoint.__contains__.name": lambda: "web-1",
    "ticks_to_ns.ticks": lambda: columns(np.uint64),
    "ns_to_ticks.ns": lambda: columns(np.uint64),
    "frequency_hz": lambda: 62_500_000,
    **{f"recompute_offsets.{name}": lambda: columns(np.uint64) for name in ("guest", "host", "elapsed_ns", "max_ns")},
    "recompute_offsets.added": lambda: columns(np.uint8),
    "recompute_offsets.frequency": lambda: columns(np.uint16),
    "recompute_offsets.frequencies_hz": lambda: np.full(1, 10**9, dtype=np.uint64),
    "recompute_offsets.now": lambda: 5,
    "read_cost_ns.counter": host,
    "ScaledCounter.__new__.counter": host,
    "RecordingCounter.__init__.counter": host,
    "ticks": lambda: 1,
    "ns": lambda: 1,
    "count": lambda: 10**9,
    "timers": lambda: 2,
    "group": lambda: 0,
    "offset": lambda: 0,
    "DeadlineQueue.set_offsets.groups": lambda: columns(np.int64, 1),
    "DeadlineQueue.set_offsets.offsets": lambda: columns(np.uint64, 1),
    "DeadlineQueue.arm_many.timers": lambda: columns(np.int64, 1),
    "DeadlineQueue.arm_many.cvals": lambda: columns(np.uint64, 1),
    "DeadlineQueue.disarm_many.timers": lambda: columns(np.int64, 1),
    "timer": lambda: 0,
    "cval": lambda: 1,
    "now": lambda: 10**9 + 1,
    "source": queue,
    "DeadlineAlarm.__new__.counter": host,
    "ClockEquation.__new__.synchronized": lambda: True,
    "vms": lambda: 1,
    "handle": lambda: int(bank().vms()[0]),
    "ClockBank.remove.vms": lambda: int(bank().vms()[0]),
    "ClockBank.set_offsets.vms": lambda: bank().vms()[:1],
    "ClockBank.set_offsets.offsets": lambda: columns(np.uint64, 1),
    "ClockBank.set_timers.vcpus": lambda: bank().vcpus()[:1],
    "ClockBank.set_timers.cval": lambda: columns(np.uint64, 1),
    "ClockBank.set_timers.ctl": lambda: columns(np.uint8, 1),
    "step_ns": lambda: S,
    "interval_ns": lambda: S,
    "error_ns": lambda: 1,
    "checkpoint": lambda: vm().checkpoint(),
    "vcpu": lambda: 0,
    "reg": lambda: Reg.TIMER_CVAL,
    "value": lambda: 1,
    "op0": lambda: sysreg("CNTV_CVAL_EL0")[0],
    "op1": lambda: sysreg("CNTV_CVAL_EL0")[1],
    "crn": lambda: sysreg("CNTV_CVAL_EL0")[2],
    "crm": lambda: sysreg("CNTV_CVAL_EL0")[3],
    "op2": lambda: sysreg("CNTV_CVAL_EL0")[4],
    "irq": lambda: 27,
    "vm": vm,
    "faults": lambda: [Fault("apply", errno=None, delay_ticks=1)],
    "key": lambda: 0,
    "checkpoints": lambda: [vm().checkpoint()],
    "registers": lambda: vm().checkpoint().to_one_regs(),
    "host": lambda: host().stamp(),
    "data": lambda: vm().checkpoint().to_bytes(),
    "Checkpoint.save.path": lambda: "other.time",
    "path": saved,
    "memory": memory,
    "VmClock.__new__.memory": with_page,
    "here": lambda: host().stamp(),
    "cntvct": lambda: 1,
    "at": lambda: 1,
    "age_ticks": lambda: 1,
    "equation": equation,
    "tai_offset_s": lambda: 37,
    "pending": lambda: [0, 0],
    "ctl": lambda: 1,
    "tval": lambda: -1,
    "line": lambda: True,
    "deadline": lambda: 1,
    "vm_fd": lambda: 0,
    "vcpu_fds": lambda: [1],
    "Fleet.__init__.vms": lambda: {"web-1": vm()},
    "ReplayCounter.__init__.samples": lambda: [1],
}


def argument(call: str, parameter: str) -> object:
    return (ARGUMENTS.get(f"{call}.{parameter}") or ARGUMENTS[parameter])()


def native() -> Iterator[Case]:
    """The calls of the native module that have parameters, from its stub."""
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield from case(node.name, node, partial(getattr, _core, node.name))
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    yield from method(node.name, member)


def method(owner: str, node: ast.FunctionDef) -> Iterator[Case]:
    name = node.name
    static = any(
        isinstance(mark, ast.Name) and mark.id in {"staticmethod", "classmethod"} for mark in node.decorator_list
    )
    if name == "__new__":
        yield from case(f"{owner}.{name}", node, lambda: getattr(_core, owner))
    elif static and not name.startswith("_"):
        yield from case(f"{owner}.{name}", node, lambda: getattr(getattr(_core, owner), name))
    elif owner != "KvmVm" and (name in {"__getitem__", "__contains__"} or not name.startswith("_")):
        # A KvmVm can't be made here.
        yield from case(
            f"{owner}.{name}", node, lambda: getattr((OWNERS.get(f"{owner}.{name}") or OWNERS[owner])(), name)
        )


def case(name: str, node: ast.FunctionDef, call: Callable[[], Callable[..., object]]) -> Iterator[Case]:
    given = node.args
    parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    annotations = {one.arg: ast.unparse(one.annotation) for one in parameters if one.annotation is not None}
    if not annotations:
        return
    defaults = [one.arg for one in [*given.posonlyargs, *given.args][-len(given.defaults) :] if given.defaults]
    defaults += [one.arg for one, value in zip(given.kwonlyargs, given.kw_defaults, strict=True) if value is not None]
    required = [one for one in annotations if one not in defaults or f"{name}.{one}" in ARGUMENTS]
    positional = {one.arg for one in given.posonlyargs} & set(annotations) or (
        set(annotations) if name.endswith(("__getitem__", "__contains__")) else set()
    )

    def make() -> tuple[Callable[..., object], dict[str, object]]:
        function = call()
        arguments = {one: argument(name, one) for one in required}
        if positional:
            return (lambda **keywords: function(*keywords.values())), arguments
        return function, arguments

    yield Case(name, make, annotations)


PYTHON = (Fleet, RecordingCounter, ReplayCounter)


def pure() -> Iterator[Case]:
    """The methods of the Python classes."""
    for owner in PYTHON:
        for name, member in vars(owner).items():
            if not inspect.isfunction(member) or (name.startswith("_") and name != "__init__"):
                continue
            parameters = list(inspect.signature(member).parameters.values())[1:]
            kinds = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
            annotations = {one.name: str(one.annotation) for one in parameters if one.kind in kinds}
            required = [one.name for one in parameters if one.kind in kinds and one.default is one.empty]
            path = f"{owner.__name__}.{name}"

            def make(
                owner: type = owner, name: str = name, path: str = path, required: list[str] = required
            ) -> tuple[Callable[..., object], dict[str, object]]:
                arguments = {one: argument(path, one) for one in required}
                made = owner if name == "__init__" else getattr(OWNERS[owner.__name__](), name)
                return made, arguments

            if annotations:
                yield Case(path, make, annotations)


def records() -> Iterator[Case]:
    """Each field of the records that calls take, as the call finds it."""
    stamp, bound, reading = host().stamp(), SyncBound(1), Reading(1, NS)
    lists = vm().checkpoint().to_one_regs()

    def planned(**given: Any) -> Plan:
        target = vm()
        return target.plan(target.checkpoint(), Advance(), **given)

    takers: list[tuple[Any, Callable[..., object]]] = [
        (stamp, lambda **given: vm().checkpoint(now=replace(stamp, **given))),
        (bound, lambda **given: MonotonicCounter(sync=replace(bound, **given)).stamp()),
        (
            Fault("apply", delay_ticks=1),
            lambda **given: FaultyVm(vm(), [replace(Fault("apply", delay_ticks=1), **given)]),
        ),
        (
            reading,
            lambda **given: Checkpoint.from_one_regs(
                lists, frequency_hz=62_500_000, host=stamp, reading=replace(reading, **given)
            ),
        ),
        (Options(), lambda **given: planned(options=Options(**given))),
        (Options(), planned),
    ]
    for record, take in takers:
        annotations = {one.name: annotation(one.type) for one in fields(record)}
        yield Case(type(record).__name__, partial(given, take), annotations)


def given(call: Callable[..., object], **arguments: object) -> tuple[Callable[..., object], dict[str, object]]:
    return call, arguments


def annotation(kind: object) -> str:
    return kind if isinstance(kind, str) else kind.__name__ if isinstance(kind, type) else str(kind)


def cases() -> list[Case]:
    return [*native(), *pure(), *records()]
