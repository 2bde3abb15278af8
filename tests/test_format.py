"""The checkpoint format, by another implementation: cbor2 writes what guestclock reads, and reads what it writes."""

from __future__ import annotations

import copy
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pycddl  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from golden import make
from guestclock import Checkpoint, CheckpointSet, ManualCounter, ModelVm
from guestclock.errors import (
    CheckpointError,
    Corrupt,
    Malformed,
    NotACheckpoint,
    TooLarge,
    UnsupportedFeature,
    UnsupportedVersion,
    WrongKind,
)

DOCS = Path(__file__).parents[1] / "docs"
GOLDEN = Path(make.__file__).parent
CDDL = (DOCS / "checkpoint.cddl").read_text()
# A schema's first rule is what it validates.
SCHEMA = pycddl.Schema(CDDL)
SCHEMA_OF_SETS = pycddl.Schema(f"start = checkpoint-set\n{CDDL}")
MAX_BYTES = 16 << 20
# In the order of their numbers, by which guestclock's methods ask for them.
TIMERS = ("vtimer", "ptimer", "hvtimer", "hptimer")
KNOWN = {*make.NESTED, "crit", "groups"}
U64 = st.one_of(st.integers(0, make.U64_MAX), st.sampled_from([0, 1, 2**32, 2**63, make.U64_MAX]))


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.cbor").read_bytes()


def payload_bytes(data: bytes) -> bytes:
    """The payload's bytes, with the envelope checked on the way: by cbor2 and a checksum of its own."""
    envelope = cbor2.loads(data)
    magic, version, payload, crc = envelope
    assert (magic, version, payload.tag) == ("guestclock", 1, 24)
    assert struct.unpack(">I", crc)[0] == make.crc32c(data[:-4])
    assert data.endswith(crc)
    assert isinstance(payload.value, bytes)
    return payload.value


def payload(data: bytes) -> dict[str, Any]:
    value = cbor2.loads(payload_bytes(data))
    assert isinstance(value, dict)
    return value


def column(value: Any) -> list[int]:
    """A typed array's values (RFC 8746)."""
    size, code = {64: (1, "B"), 69: (2, "H"), 71: (8, "Q")}[value.tag]
    return list(struct.unpack(f"<{len(value.value) // size}{code}", value.value))


def assert_same(checkpoint: Checkpoint, said: dict[str, Any]) -> None:
    """What guestclock says is what cbor2 reads."""
    assert checkpoint.frequency_hz == said["cntfrq_hz"]
    assert checkpoint.cntvct == said["cntvct"]
    assert checkpoint.cntpct == said["cntpct"]
    assert checkpoint.opted_in is said["owned"]
    assert checkpoint.width_ticks == said["width_ticks"]
    assert checkpoint.stopped_at == said.get("stopped_at")
    assert checkpoint.vcpus == said["vcpus"]
    host, said_host = checkpoint.host, said["host"]
    for name in ("count", "frequency_hz", "source", "realtime_ns", "width_ns", "leap"):
        assert getattr(host, name) == said_host[name], name
    for name in ("tai_offset_s", "synchronized", "max_error_ns"):
        assert getattr(host, name) == said_host.get(name), name
    for name in ("machine_id", "boot_id"):
        said_id = said_host.get(name)
        assert getattr(host, name) == (None if said_id is None else said_id.hex()), name
    for number, timer in enumerate(TIMERS):
        if timer in said["timers"]:
            for array, key in ((checkpoint.cval(number), "cval"), (checkpoint.ctl(number), "ctl")):
                assert array.dtype == np.uint64
                assert array.tolist() == column(said["timers"][timer][key]), (timer, key)


@pytest.mark.parametrize("name", make.GOOD)
def test_a_golden_file_is_read_and_written_again(name: str, tmp_path: Path) -> None:
    data = golden(name)
    checkpoint = Checkpoint.from_bytes(data)
    assert_same(checkpoint, payload(data))
    assert checkpoint.to_bytes() == data
    checkpoint.save(tmp_path / "saved")
    assert (tmp_path / "saved").read_bytes() == data
    assert_same(Checkpoint.load(str(tmp_path / "saved")), payload(data))
    for kind in (bytearray, memoryview):
        assert Checkpoint.from_bytes(kind(data)).to_bytes() == data
    for again in (pickle.loads(pickle.dumps(checkpoint)), copy.copy(checkpoint), copy.deepcopy(checkpoint)):
        assert again.to_bytes() == data


def test_the_golden_files_are_as_they_were_made() -> None:
    there = {path.name: path.read_bytes() for path in GOLDEN.glob("*.cbor")}
    assert there == make.files()


@pytest.mark.parametrize("vcpus", [0, 1, 2, 17])
def test_cbor2_reads_what_a_vm_writes(vcpus: int) -> None:
    counter = ManualCounter(2**40 + 5, frequency_hz=24_000_000, realtime_ns=1_750_000_000_123_456_789)
    vm = ModelVm(vcpus, counter=counter)
    if vcpus == 0:
        # Without an owned offset, counters are read on a vCPU.
        vm.set_counter_offset(1)
    checkpoint = vm.checkpoint()
    data = checkpoint.to_bytes()
    said = payload(data)
    assert_same(checkpoint, said)
    assert said["vcpus"] == vcpus
    assert said["host"]["count"] == 2**40 + 5
    assert cbor2.dumps(said, canonical=True) == payload_bytes(data)
    SCHEMA.validate_cbor(data)


@pytest.mark.parametrize("name", [*make.GOOD, *make.SETS])
def test_the_schema_takes_the_golden_files(name: str) -> None:
    (SCHEMA_OF_SETS if name in make.SETS else SCHEMA).validate_cbor(golden(name))


HOST = make.BARE_HOST
# What the schema and guestclock refuse alike.
BROKEN: dict[str, dict[Any, Any]] = {
    "cntfrq_hz 0": {"cntfrq_hz": 0},
    "cntfrq_hz above 32 bits": {"cntfrq_hz": 2**32},
    "a number as bool": {"owned": 1},
    "a negative counter": {"cntvct": -1},
    "a floating-point counter": {"cntpct": 1.5},
    "an unknown leap state": {"host": HOST | {"leap": "TIME_INS"}},
    "another key in host": {"host": HOST | {"later": 1}},
    "a wall clock above 64 bits": {"host": HOST | {"realtime_ns": 2**63}},
    "a wall clock below 64 bits": {"host": HOST | {"realtime_ns": -(2**63) - 1}},
    "a TAI offset above 32 bits": {"host": HOST | {"tai_offset_s": 2**31}},
    "a host frequency of 0": {"host": HOST | {"frequency_hz": 0}},
    "a machine id of 15 bytes": {"host": HOST | {"machine_id": bytes(15)}},
    "a boot id of 17 bytes": {"host": HOST | {"boot_id": bytes(17)}},
    "null for what is absent": {"stopped_at": None},
    "no other registers": {"other_regs": {}},
    "no vtimer": {"vcpus": 0, "timers": {}},
    "another timer": {"timers": make.BARE["timers"] | {"xtimer": make.timer(make.u8s(1), 1)}},
    "a timer without cval": {"timers": {"vtimer": {"ctl": make.u8s(1)}}},
    "a column without its tag": {"cntvoff": bytes(8)},
    "a column of bytes where words should be": {"cntvoff": make.u8s(*range(8))},
    "an empty crit": {"crit": []},
    "a key that isn't text": {7: 1},
}
# What CDDL can't say; and, first, three that pycddl lets pass: it takes any key for one of a type and a bignum for a
# uint, and doesn't anchor .regexp.
BROKEN_BEYOND_THE_SCHEMA: dict[str, dict[Any, Any]] = {
    "another register by name": {"other_regs": {"CNTPOFF_EL2": make.u64s(0)}},
    "an escape sequence for a source": {"host": HOST | {"source": "\x1b[2J"}},
    "a bignum": {"cntvct": 2**64},
    "a column longer than there are vCPUs": {"cntvoff": make.u64s(1, 2)},
    "more vCPUs than columns": {"vcpus": 2},
    "2^63 vCPUs": {"vcpus": 2**63},
    "ISTATUS": {"timers": {"vtimer": make.timer(make.u64s(12), 1)}},
    "a wide CTL that would be narrow": {"timers": {"vtimer": make.timer(make.u64s(3), 1)}},
    "a narrow CTL that should be wide": {"timers": {"vtimer": make.timer(make.u8s(4), 1)}},
    "a known register among the others": {"other_regs": {0x6030_0000_0013_DF02: make.u64s(1)}},
    "another unit's register": {"other_regs": {0x6030_0000_0013_DF40: make.u64s(1)}},
    "an id that is no system register's": {"other_regs": {5: make.u64s(1)}},
    "another register of too many vCPUs": {"other_regs": {0x6030_0000_0013_E730: make.u64s(1, 2)}},
    "65 other registers": {"other_regs": {0x6030_0000_0013_C720 + n: make.u64s(1) for n in range(65)}},
    "a floating-point number in an unknown key": {"later": [1.5]},
    "a crit of what everyone knows": {"crit": ["host"]},
    "a key of 65 bytes": {"k" * 65: 0},
    "65 keys": {f"later-{n}": n for n in range(57)},
    "values nested 17 deep": {"later": [[[[[[[[[[[[[[[0]]]]]]]]]]]]]]]},
}


@pytest.mark.parametrize("name", [*BROKEN, *BROKEN_BEYOND_THE_SCHEMA])
def test_a_broken_rule_is_malformed(name: str) -> None:
    changes = (BROKEN | BROKEN_BEYOND_THE_SCHEMA)[name]
    data = make.seal(cbor2.dumps(make.BARE | changes, canonical=True))
    with pytest.raises(Malformed) as caught:
        Checkpoint.from_bytes(data)
    assert 0 < caught.value.offset < len(data)
    if name in BROKEN:
        with pytest.raises(pycddl.ValidationError):
            SCHEMA.validate_cbor(data)


@pytest.mark.parametrize("key", make.BARE)
def test_each_key_must_be_there(key: str) -> None:
    data = make.seal(cbor2.dumps({k: v for k, v in make.BARE.items() if k != key}, canonical=True))
    with pytest.raises(Malformed, match=f"{key} is missing"):
        Checkpoint.from_bytes(data)
    with pytest.raises(pycddl.ValidationError):
        SCHEMA.validate_cbor(data)


def test_keys_out_of_order_are_malformed() -> None:
    unsorted = cbor2.dumps(make.BARE)
    assert unsorted != cbor2.dumps(make.BARE, canonical=True)
    with pytest.raises(Malformed):
        Checkpoint.from_bytes(make.seal(unsorted))


@pytest.mark.parametrize("name", [*make.GOOD, *make.SETS])
def test_every_bit_flip_and_truncation_is_refused(name: str) -> None:
    data = golden(name)
    kind = CheckpointSet if name in make.SETS else Checkpoint
    damaged = bytearray(data)
    for at in range(len(data)):
        expected = NotACheckpoint if at < 15 else Corrupt
        for bit in range(8):
            damaged[at] ^= 1 << bit
            with pytest.raises(expected):
                kind.from_bytes(damaged)
            damaged[at] ^= 1 << bit
        with pytest.raises(expected):
            kind.from_bytes(data[:at])
    assert kind.from_bytes(damaged).to_bytes() == data


def again(error: CheckpointError) -> list[CheckpointError]:
    return [error, pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)]


def caught(read: Callable[[], object]) -> CheckpointError:
    with pytest.raises(CheckpointError) as info:
        read()
    return info.value


def test_errors_carry_their_facts(tmp_path: Path) -> None:
    for error in again(caught(lambda: Checkpoint.from_bytes(golden("version-2")))):
        assert isinstance(error, UnsupportedVersion)
        assert (error.found, error.supported) == (2, 1)
    for error in again(caught(lambda: Checkpoint.from_bytes(golden("crit")))):
        assert isinstance(error, UnsupportedFeature)
        assert error.feature == "scaling"
    for error in again(caught(lambda: Checkpoint.from_bytes(make.seal(b"\x00")))):
        assert isinstance(error, Malformed)
        assert error.offset == 19
    size = MAX_BYTES + 1
    for error in again(caught(lambda: Checkpoint.from_bytes(bytes(size)))):
        assert isinstance(error, TooLarge)
        assert (error.size, error.limit) == (size, MAX_BYTES)
    # A sparse file, which a reader that believed its size would pay for in memory.
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert isinstance(caught(lambda: Checkpoint.load(tmp_path / "sparse")), TooLarge)
    for data in (b"", b"PK\x03\x04", golden("bare")[:14]):
        with pytest.raises(NotACheckpoint):
            Checkpoint.from_bytes(data)
    assert isinstance(caught(lambda: Checkpoint.from_bytes(golden("bare") + b"\x00")), Corrupt)
    with pytest.raises(FileNotFoundError):
        Checkpoint.load(tmp_path / "nowhere")


@st.composite
def payloads(draw: st.DrawFn) -> dict[str, Any]:
    """Payloads that the format allows."""
    vcpus = draw(st.integers(0, 5))

    def words(values: st.SearchStrategy[int]) -> list[int]:
        return draw(st.lists(values, min_size=vcpus, max_size=vcpus))

    def timer() -> dict[str, Any]:
        ctl = words(draw(st.sampled_from([st.integers(0, 3), U64.map(lambda value: value & ~4)])))
        return make.timer(make.u8s(*ctl) if max(ctl, default=0) < 4 else make.u64s(*ctl), *words(U64))

    host = draw(
        st.fixed_dictionaries(
            {
                "count": U64,
                "frequency_hz": st.integers(1, make.U64_MAX),
                "source": st.from_regex("[a-z0-9_]{1,32}", fullmatch=True),
                "realtime_ns": st.integers(-(2**63), 2**63 - 1),
                "width_ns": U64,
                "leap": st.sampled_from(["none", "insert", "delete", "in-progress", "passed", "unknown"]),
            },
            optional={
                "tai_offset_s": st.integers(-(2**31), 2**31 - 1),
                "synchronized": st.booleans(),
                "max_error_ns": U64,
                "machine_id": st.binary(min_size=16, max_size=16),
                "boot_id": st.binary(min_size=16, max_size=16),
            },
        )
    )
    made: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {
                "cntfrq_hz": st.integers(1, make.U32_MAX),
                "cntvct": U64,
                "cntpct": U64,
                "owned": st.booleans(),
                "width_ticks": U64,
            },
            optional={"stopped_at": U64},
        )
    )
    others = draw(st.lists(st.sampled_from(TIMERS[1:]), unique=True))
    made |= {"host": host, "vcpus": vcpus, "timers": {name: timer() for name in ("vtimer", *others)}}
    if draw(st.booleans()):
        made["cntvoff"] = make.u64s(*words(U64))
    leaves = st.one_of(
        st.integers(-(2**64), make.U64_MAX), st.booleans(), st.none(), st.binary(max_size=9), st.text(max_size=9)
    )
    values = st.recursive(
        leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner), max_leaves=9
    )
    for key, value in draw(st.dictionaries(st.text(max_size=16), values, max_size=4)).items():
        if key not in KNOWN:
            made[key] = value
    return made


@given(payloads())
def test_what_cbor2_writes_is_read_and_written_again(made: dict[str, Any]) -> None:
    data = make.seal(cbor2.dumps(made, canonical=True))
    checkpoint = Checkpoint.from_bytes(data)
    assert_same(checkpoint, made)
    assert checkpoint.to_bytes() == data


def each(value: Any, rows: int) -> list[int]:
    """A value a row, of what may be one for all rows."""
    return column(value) if isinstance(value, cbor2.CBORTag) else [value] * rows


def assert_same_set(checkpoints: CheckpointSet, said: dict[str, Any]) -> None:
    """What guestclock says of each VM is what cbor2 reads, walking through the columns."""
    names, index, total = [], 0, 0
    for group in said["groups"]:
        hz, host = group["cntfrq_hz"], said["host"]
        vms = len(column(group["names"]))
        vcpus = each(group["vcpus"], vms)
        names += column(group["names"])
        row = 0
        for vm, count in enumerate(vcpus):
            rows = slice(row, row := row + count)
            one = checkpoints[index]
            assert checkpoints.find(names[index]) == index
            assert (one.frequency_hz, one.vcpus, one.width_ticks) == (hz, count, 0)
            assert one.cntvct == column(group["cntvct"])[vm]
            assert one.cntpct == column(group.get("cntpct", group["cntvct"]))[vm]
            assert one.opted_in is bool(each(group["owned"], vms)[vm])
            # The instant is the guest's own counter's: a tick of that may be hidden.
            assert one.host.count == host["count"] * hz // host["frequency_hz"] % 2**64
            assert (one.host.frequency_hz, one.host.realtime_ns) == (hz, host["realtime_ns"])
            hidden = 0 if hz % host["frequency_hz"] == 0 else -(-(10**9) // hz)
            assert one.host.width_ns == host["width_ns"] + hidden
            stopped_at = said.get("stopped_at")
            assert one.stopped_at == (None if stopped_at is None else stopped_at * hz // host["frequency_hz"] % 2**64)
            assert (one.cntvoff is None) == ("cntvoff" not in group)
            if one.cntvoff is not None:
                assert one.cntvoff.tolist() == each(group["cntvoff"], sum(vcpus))[rows]
            columns = one.columns()
            assert set(columns) - {"cntvoff"} == {
                f"{timer}_{key}" for timer in group["timers"] for key in ("ctl", "cval")
            }
            for timer, said_timer in group["timers"].items():
                for key in ("ctl", "cval"):
                    assert columns[f"{timer}_{key}"].tolist() == column(said_timer[key])[rows]
            debts = {key: column(values) for key, values in group.get("debts", {"rows": make.u64s()}).items()}
            owed = zip(debts.pop("rows"), *debts.values(), strict=True)
            debt = next((dict(zip(debts, parts, strict=True)) for place, *parts in owed if place == vm), None)
            assert payload(one.to_bytes()).get("debt") == debt
            index, total = index + 1, total + count
    assert (len(checkpoints), checkpoints.vcpus, checkpoints.names.tolist()) == (index, total, names)
    assert checkpoints.stopped_at == said.get("stopped_at")
    assert checkpoints.host.count == said["host"]["count"]


@pytest.mark.parametrize("name", make.SETS)
def test_a_golden_set_is_read_and_written_again(name: str) -> None:
    data = golden(name)
    checkpoints = CheckpointSet.from_bytes(data)
    assert_same_set(checkpoints, payload(data))
    assert (checkpoints.to_bytes(), checkpoints.nbytes) == (data, len(data))


GROUP = make.SET_PLAIN["groups"][0]
BROKEN_SETS: dict[str, dict[Any, Any]] = {
    "a map of groups": {"groups": {"a": GROUP}},
    "a group without names": {"groups": [{key: value for key, value in GROUP.items() if key != "names"}]},
    "513 vCPUs": {"groups": [GROUP | {"vcpus": 513}]},
    "vCPUs in a column of words": {"groups": [GROUP | {"vcpus": make.u64s(1, 2, 3)}]},
    "names in a column of bytes": {"groups": [GROUP | {"names": make.u8s(1, 2, 3)}]},
    "owned by a number": {"groups": [GROUP | {"owned": 1}]},
    "a debt without steps": {"groups": [GROUP | {"debts": {"rows": make.u64s(0)}}]},
}
# What CDDL can't say; and, first, what pycddl lets pass: it takes any key in a map that stands in an array.
BROKEN_SETS_BEYOND_THE_SCHEMA: dict[str, dict[Any, Any]] = {
    "a group with another key": {"groups": [GROUP | {"later": 1}]},
    "a key of one VM": {"owned": True},
    "names that aren't ascending": {"groups": [GROUP | {"names": make.u64s(2, 1, 3)}]},
    "a column where one would do": {"groups": [GROUP | {"vcpus": make.u16s(2, 2, 2)}]},
    "cntpct as cntvct": {"groups": [GROUP | {"cntpct": GROUP["cntvct"]}]},
    "one kind of VMs twice": {"groups": [GROUP, GROUP | {"names": make.u64s(1, 2, 3)}]},
    "one name twice": {"groups": [GROUP, GROUP | {"cntfrq_hz": 24_000_001}]},
    "groups out of order": {"groups": [GROUP, GROUP | {"cntfrq_hz": 1, "names": make.u64s(1, 2, 3)}]},
}


@pytest.mark.parametrize("name", [*BROKEN_SETS, *BROKEN_SETS_BEYOND_THE_SCHEMA])
def test_a_broken_rule_of_sets_is_malformed(name: str) -> None:
    changes = (BROKEN_SETS | BROKEN_SETS_BEYOND_THE_SCHEMA)[name]
    data = make.seal(cbor2.dumps(make.SET_PLAIN | changes, canonical=True))
    with pytest.raises(Malformed):
        CheckpointSet.from_bytes(data)
    if name in BROKEN_SETS:
        with pytest.raises(pycddl.ValidationError):
            SCHEMA_OF_SETS.validate_cbor(data)


def test_one_kind_isnt_read_as_the_other() -> None:
    for error in again(caught(lambda: Checkpoint.from_bytes(golden("set-plain")))):
        assert isinstance(error, WrongKind)
        assert (error.found, error.wanted) == ("CheckpointSet", "Checkpoint")
        assert "read it as a CheckpointSet" in str(error)
    for error in again(caught(lambda: CheckpointSet.from_bytes(golden("bare")))):
        assert isinstance(error, WrongKind)
        assert (error.found, error.wanted) == ("Checkpoint", "CheckpointSet")
    assert isinstance(caught(lambda: CheckpointSet.from_bytes(golden("version-2"))), UnsupportedVersion)
    assert isinstance(caught(lambda: CheckpointSet.from_bytes(golden("crit"))), UnsupportedFeature)


@given(
    st.sampled_from(sorted(make.GOOD)), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_mended_checksums_dont_help(name: str, changes: list[tuple[int, int]]) -> None:
    changed = bytearray(payload_bytes(golden(name)))
    for at, value in changes:
        changed[at % len(changed)] = value
    data = make.seal(bytes(changed))
    try:
        checkpoint = Checkpoint.from_bytes(data)
    except CheckpointError:
        return
    assert checkpoint.to_bytes() == data


def diagnostic(value: Any) -> str:
    """Diagnostic notation (RFC 8949, 8) of what checkpoints are made of, without spaces."""
    match value:
        case bool() | None:
            return {True: "true", False: "false", None: "null"}[value]
        case int():
            return str(value)
        case str():
            return f'"{value}"'
        case bytes():
            return f"h'{value.hex()}'"
        case dict():
            return "{" + ",".join(f"{diagnostic(key)}:{diagnostic(inner)}" for key, inner in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(map(diagnostic, value)) + "]"
        case cbor2.CBORTag(tag=24):
            return f"24(<<{diagnostic(cbor2.loads(value.value))}>>)"
        case cbor2.CBORTag():
            return f"{value.tag}({diagnostic(value.value)})"
    raise TypeError(value)


def test_the_worked_example_is_the_golden_file() -> None:
    page = (DOCS / "checkpoint-format.md").read_text()
    (hexadecimal,) = re.findall(r"```hex\n(.*?)```", page, re.DOTALL)
    assert bytes.fromhex(re.sub(r"#.*", "", hexadecimal)) == golden("bare")
    (notation,) = re.findall(r"```cbor-diag\n(.*?)```", page, re.DOTALL)
    assert re.sub(r"\s", "", notation) == f"55799({diagnostic(cbor2.loads(golden('bare')))})"
