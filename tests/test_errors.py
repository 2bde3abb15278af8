from __future__ import annotations

import copy
import errno
import inspect
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from guestclock import errors
from guestclock.errors import (
    GuestClockError,
    Interrupted,
    InvalidFile,
    KvmError,
    Misuse,
    Refused,
    UnknownRegister,
    VcpuRunning,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ALL = [
    error
    for _, error in inspect.getmembers(errors, inspect.isclass)
    if issubclass(error, GuestClockError) and error.__module__ == errors.__name__
]

COPIES: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    *(lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol)) for protocol in range(6)),
]


def fields_of(kind: type[GuestClockError]) -> dict[str, Any]:
    """A value for every attribute that the class or one of its bases declares, each another one."""
    names = [
        name for base in kind.__mro__ for name in inspect.get_annotations(base) if base.__module__ == errors.__name__
    ]
    fields: dict[str, Any] = {name: 2**64 - 1 - index for index, name in enumerate(names)}
    if issubclass(kind, Interrupted):
        fields |= {"state": "paused", "retry": "resume"}
    if issubclass(kind, KvmError):
        fields["errno"] = errno.EBUSY
    return fields


def test_the_list_is_not_empty() -> None:
    assert {error.__name__ for error in ALL} > {"GuestClockError", "Corrupt", "StalePlan", "VcpuRunning"}


@pytest.mark.parametrize("again", COPIES)
@pytest.mark.parametrize("kind", ALL)
def test_an_error_survives_a_copy(kind: type[GuestClockError], again: Callable[[Any], Any]) -> None:
    fields = fields_of(kind)
    error = kind("the message", **fields)
    got = again(error)
    assert type(got) is kind
    more = "; the VM is still paused, and must not run: call resume() again" if issubclass(kind, Interrupted) else ""
    assert str(got) == str(error) == f"the message{more} [{kind.code}]"
    assert got.__dict__ == error.__dict__
    for name, value in fields.items():
        assert getattr(got, name) == value


@pytest.mark.parametrize("kind", ALL)
def test_a_second_copy_is_as_good_as_the_first(kind: type[GuestClockError]) -> None:
    error = kind("the message", **fields_of(kind))
    twice = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(error))))
    assert twice.__dict__ == error.__dict__
    assert twice.args == error.args


@pytest.mark.parametrize("kind", [kind for kind in ALL if issubclass(kind, KvmError)])
def test_a_kvm_error_is_an_oserror_with_its_errno(kind: type[KvmError]) -> None:
    error = kind("the message", **(fields_of(kind) | {"errno": errno.ENXIO}))
    with pytest.raises(OSError, match="the message") as caught:
        raise error
    assert caught.value.errno == errno.ENXIO
    again = pickle.loads(pickle.dumps(error))
    assert again.errno == errno.ENXIO


@pytest.mark.parametrize(
    ("base", "names"),
    [
        (
            InvalidFile,
            {
                "NotACheckpoint",
                "TooLarge",
                "Corrupt",
                "Malformed",
                "UnsupportedVersion",
                "UnsupportedArch",
                "UnsupportedFeature",
            },
        ),
        (
            Refused,
            {
                "CapabilityMissing",
                "FrequencyMismatch",
                "CounterSkew",
                "CountersMoved",
                "ClockWentBackwards",
                "ClocksDisagree",
                "DeadlineMissed",
                "ElapsedTooLong",
                "ElapsedUnknown",
                "FleetRefused",
                "NamesDiffer",
                "OtherInstant",
                "RestoreOpen",
                "TopologyMismatch",
                "StalePlan",
                "UnknownState",
                "VcpuRunning",
            },
        ),
        (Interrupted, {"FleetInterrupted", "InterruptsOff", "ReadBackMismatch"}),
        (Misuse, {"NoBacklog", "NoSuchVm", "OutOfOrder"}),
        (KvmError, {"VcpuRunning", "UnknownRegister"}),
    ],
)
def test_the_tree(base: type[GuestClockError], names: set[str]) -> None:
    assert {kind.__name__ for kind in ALL if issubclass(kind, base) and kind is not base} == names


def test_a_checkpoint_error_is_a_valueerror_and_nothing_else_is() -> None:
    for kind in ALL:
        assert issubclass(kind, ValueError) == issubclass(kind, InvalidFile)
        assert issubclass(kind, OSError) == issubclass(kind, KvmError)


def test_an_error_takes_notes_and_a_cause() -> None:
    error = VcpuRunning("vCPU 3 runs", errno=errno.EBUSY, vcpu=3)
    error.add_note("while restoring")
    with pytest.raises(VcpuRunning) as caught:
        raise error from UnknownRegister("no such register", errno=errno.ENOENT, reg=1)
    assert isinstance(caught.value.__cause__, UnknownRegister)
    assert pickle.loads(pickle.dumps(caught.value)).__notes__ == ["while restoring"]
