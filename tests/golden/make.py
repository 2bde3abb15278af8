"""Makes the golden checkpoints, from docs/checkpoint-format.md and cbor2 alone: no guestclock is in it.

`python tests/golden/make.py` writes the files; with `--check` it only compares them with what it would write.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import cbor2

HERE = Path(__file__).parent
U32_MAX = 2**32 - 1
U64_MAX = 2**64 - 1

TIMERS = {
    "vtimer": (0x6030_0000_0013_DF02, 0x6030_0000_0013_DF19),
    "ptimer": (0x6030_0000_0013_DF12, 0x6030_0000_0013_DF11),
    "hvtimer": (0x6030_0000_0013_E71A, 0x6030_0000_0013_E719),
    "hptimer": (0x6030_0000_0013_E712, 0x6030_0000_0013_E711),
}
"""Each timer's CVAL and CTL by their KVM register ids. KVM exchanges the ids of CNTV_CVAL_EL0 and CNTVCT_EL0."""
CVALS = {cval for cval, _ in TIMERS.values()}
CNTVOFF = 0x6030_0000_0013_E703
CNTPOFF = 0x6030_0000_0013_E706
UNNAMED = 0x6030_0000_0013_E730
"""A register of the generic timer that has no name yet."""


OFTEN_0 = {"virtual_width_ticks", "physical_width_ticks", "physical_displacement_ticks", *TIMERS}
"""The columns of VMs, and the parts of `interrupts`, that are left out where they are 0 in every row."""


def remainder(byte: int) -> int:
    """The remainder of one byte, bit by bit, by CRC-32C's reflected polynomial (RFC 3720, 12.1)."""
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


REMAINDERS = [remainder(byte) for byte in range(256)]


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, 12.1): all ones before and after."""
    crc = U32_MAX
    for byte in data:
        crc = crc >> 8 ^ REMAINDERS[(crc ^ byte) & 0xFF]
    return crc ^ U32_MAX


def seal(payload: bytes, version: int = 1) -> bytes:
    """The file: the envelope round these bytes, with the right checksum."""
    envelope = cbor2.CBORTag(55799, ["guestclock", version, cbor2.CBORTag(24, payload), bytes(4)])
    body = cbor2.dumps(envelope)[:-4]
    return body + struct.pack(">I", crc32c(body))


def encode(payload: object) -> bytes:
    """The file of this payload."""
    return seal(cbor2.dumps(payload, canonical=True))


def u64s(*values: int) -> cbor2.CBORTag:
    """A typed array of u64, little endian (RFC 8746)."""
    return cbor2.CBORTag(71, struct.pack(f"<{len(values)}Q", *values))


def u8s(*values: int) -> cbor2.CBORTag:
    """A typed array of u8 (RFC 8746)."""
    return cbor2.CBORTag(64, bytes(values))


def column(values: list[int]) -> int | cbor2.CBORTag:
    """The one form that a column of these values has."""
    if len(set(values)) == 1:
        return values[0]
    return u8s(*values) if max(values) < 256 else u64s(*values)


def registers(columns: dict[int, list[int]]) -> dict[int, int | cbor2.CBORTag]:
    """The map of registers: a CVAL is always an array of u64."""
    return {reg: u64s(*values) if reg in CVALS else column(values) for reg, values in columns.items()}


def timers(**columns: tuple[list[int], list[int]]) -> dict[int, list[int]]:
    """The registers of timers, each given as its CTL and its CVAL."""
    return {
        reg: values
        for name, (ctl, cval) in columns.items()
        for reg, values in zip(TIMERS[name], (cval, ctl), strict=True)
    }


def fact(**parts: list[int]) -> dict[str, int | cbor2.CBORTag]:
    """An optional fact's columns; `rows` has the places that they are of, where the fact isn't known of all."""
    return {
        key: u64s(*values) if key == "rows" else column(values)
        for key, values in parts.items()
        if key not in OFTEN_0 or any(values)
    }


def group(
    names: list[str],
    *,
    vcpus: list[int],
    timeline: list[int],
    frequency_hz: list[int],
    regs: dict[int, list[int]],
    columns: dict[str, list[int]] | None = None,
    **facts: dict[str, list[int]],
) -> dict[str, Any]:
    """The group of these VMs. `columns` has those that aren't an exact, opted-in VM's."""
    zeros = [0] * len(names)
    values = {
        "vcpus": vcpus,
        "opted_in": [1] * len(names),
        "timeline": timeline,
        "frequency_hz": frequency_hz,
        "virtual_width_ticks": zeros,
        "physical_width_ticks": zeros,
        "physical_displacement_ticks": zeros,
    }
    all_columns = values | (columns or {})
    made = {key: column(each) for key, each in all_columns.items() if key not in OFTEN_0 or any(each)}
    known = {key: fact(**parts) for key, parts in facts.items()}
    return {"names": "\n".join(names), "registers": registers(regs)} | made | known


def payload(stamp: dict[str, Any], *groups: dict[str, Any]) -> dict[str, Any]:
    return {"arch": "arm64", "stamp": stamp, "groups": list(groups)}


STAMP: dict[str, Any] = {
    "count": 0x0000_00E8_D4A5_1000,
    "frequency_hz": 1_000_000_000,
    "source": "clock_monotonic_raw",
    "realtime_ns": 1_750_000_000_123_456_789,
    "width_ns": 84,
    "leap": "none",
}
STAMP_24_MHZ = STAMP | {
    "source": "cntvct_el0",
    "frequency_hz": 24_000_000,
    "tai_offset_s": 37,
    "synchronized": True,
    "max_error_ns": 1_500_000,
    "leap": "insert",
    "machine_id": bytes(range(16)),
    "boot_id": bytes(range(0xF0, 0x100)),
}
# Somebody vouches for the wall clock, and the host has slept.
SYNC = {"max_error_ns": 250_000, "age_ns": 64_000_000_000, "holdover_ppb": 1_000, "quality": "chrony"}
VOUCHED = {
    "sync": SYNC,
    "rate_ppb": -3_820,
    "slept_ns": 3_600_000_000_000,
    "boottime_ns": 45_266_666_666_666,
    "slept_width_ns": 120,
}
BARE_STAMP: dict[str, Any] = {
    "count": 300,
    "frequency_hz": 62_500_000,
    "source": "manual",
    "realtime_ns": 0,
    "width_ns": 0,
    "leap": "unknown",
}

# One vCPU of a VM that nobody named, and nothing that may be left out: the example of docs/checkpoint-format.md.
BARE_GROUP = group([""], vcpus=[1], timeline=[200], frequency_hz=[62_500_000], regs=timers(vtimer=([1], [1000])))
BARE = payload(BARE_STAMP, BARE_GROUP)

TWO_TIMERS = timers(
    vtimer=([1, 3], [0x1_0000_1000, U64_MAX]),
    ptimer=([0, 2], [0, 0x1_0000_2000]),
)


def two_vcpus(
    regs: dict[int, list[int]] = TWO_TIMERS,
    columns: dict[str, list[int]] | None = None,
    timeline: int = 0x1_0000_0000,
    **facts: dict[str, list[int]],
) -> dict[str, Any]:
    """The group of one VM of two vCPUs at 24 MHz."""
    return group(
        ["web-1"], vcpus=[2], timeline=[timeline], frequency_hz=[24_000_000], regs=regs, columns=columns, **facts
    )


TWO_VCPUS = payload(STAMP_24_MHZ, two_vcpus())

# Both counters were read, and the physical one is the host's.
BY_VALUE = payload(
    STAMP_24_MHZ | {"synchronized": False, "leap": "in-progress"},
    two_vcpus(
        timeline=5_000_000,
        columns={
            "opted_in": [0],
            "virtual_width_ticks": [17],
            "physical_width_ticks": [2_000],
            "physical_displacement_ticks": [0x0000_00E8_D4A5_1000 - 5_000_000],
        },
    ),
)

BACKLOG = payload(
    STAMP_24_MHZ | VOUCHED,
    two_vcpus(
        backlog={
            "remaining_ticks": [0x10_0000_0000],
            "step_ns": [5_000_000_000],
            "interval_ns": [10_000_000_000],
        },
        stopped_at={"count": [0x0000_00E8_D4A5_0F00]},
        interrupts={"ptimer": [30], "vtimer": [27], "hptimer": [0], "hvtimer": [0]},
    ),
)

FOUR_TIMERS = timers(
    vtimer=([1, 0], [10, 11]),
    ptimer=([2, 1], [20, 21]),
    hvtimer=([3, 2], [30, 31]),
    hptimer=([0, 3], [40, 41]),
)
NESTED = payload(STAMP_24_MHZ, two_vcpus(FOUR_TIMERS | {CNTVOFF: [0, 2**64 - 4096]}))

WIDE_CTL = payload(
    STAMP_24_MHZ,
    two_vcpus(timers(vtimer=([1, 0xFFFF_FFFF_FFFF_FFF8], [100, 200]), ptimer=([0xFB, 0], [300, 400]))),
)

UNKNOWN_KEYS = BARE | {
    "a": -1,
    "crib": None,
    "dusk": [True, False, -(2**64), U64_MAX, b"\x00\xff", "Zeit", {1: [], b"k": {}}],
    "zzzzzz": cbor2.CBORTag(1000, u64s(7)),
    "an unknown key longer than any known one": 2**32,
}

# One column in each form.
OTHER_REGS = payload(
    STAMP_24_MHZ, two_vcpus(TWO_TIMERS | {CNTPOFF: [0, U64_MAX], UNNAMED: [5, 6], UNNAMED + 1: [2**40, 2**40]})
)

MIN = payload(
    {
        "count": 0,
        "frequency_hz": 1,
        "source": "a",
        "realtime_ns": -(2**63),
        "width_ns": 0,
        "tai_offset_s": -(2**31),
        "synchronized": False,
        "max_error_ns": 0,
        "leap": "delete",
        "machine_id": bytes(16),
        "boot_id": bytes(16),
        "sync": {"max_error_ns": 0, "age_ns": 0, "holdover_ppb": 0, "quality": "declared", "tai_offset_s": -(2**31)},
        "rate_ppb": -(2**63),
        "slept_ns": 0,
        "boottime_ns": 0,
        "slept_width_ns": 0,
    },
    group(
        [""],
        vcpus=[1],
        timeline=[0],
        frequency_hz=[1],
        regs=timers(**{name: ([0], [0]) for name in TIMERS}) | {CNTVOFF: [0]},
        columns={"opted_in": [0]},
        backlog={"remaining_ticks": [1], "step_ns": [1], "interval_ns": [1]},
        reading={"count": [0], "width_ns": [0], "realtime_ns": [0]},
        vmclock={"address": [0]},
        stopped_at={"count": [0]},
        interrupts={timer: [0] for timer in TIMERS},
        stolen_time={"address": [0]},
    ),
)

MAX = payload(
    {
        "count": U64_MAX,
        "frequency_hz": U64_MAX,
        "source": "abcdefghijklmnopqrstuvwxyz_01239",
        "realtime_ns": 2**63 - 1,
        "width_ns": U64_MAX,
        "tai_offset_s": 2**31 - 1,
        "synchronized": True,
        "max_error_ns": U64_MAX,
        "leap": "passed",
        "machine_id": b"\xff" * 16,
        "boot_id": b"\xff" * 16,
        "sync": {
            "max_error_ns": U64_MAX,
            "age_ns": U64_MAX,
            "holdover_ppb": U64_MAX,
            "quality": "kernel-unverified",
            "tai_offset_s": 2**31 - 1,
        },
        "rate_ppb": 2**63 - 1,
        "slept_ns": U64_MAX,
        "boottime_ns": U64_MAX,
        "slept_width_ns": U64_MAX,
    },
    group(
        ["\U0010ffff" * 16],
        vcpus=[1],
        timeline=[U64_MAX],
        frequency_hz=[U32_MAX],
        regs=timers(**{name: ([U64_MAX & ~4], [U64_MAX]) for name in TIMERS}) | {CNTVOFF: [U64_MAX]},
        columns={
            "virtual_width_ticks": [U64_MAX],
            "physical_width_ticks": [U64_MAX],
            "physical_displacement_ticks": [U64_MAX],
        },
        backlog={"remaining_ticks": [U64_MAX], "step_ns": [U64_MAX], "interval_ns": [U64_MAX]},
        reading={"count": [U64_MAX], "width_ns": [U64_MAX], "realtime_ns": [U64_MAX]},
        vmclock={"address": [U64_MAX]},
        stopped_at={"count": [U64_MAX]},
        interrupts={timer: [U32_MAX] for timer in TIMERS},
        stolen_time={"address": [U64_MAX]},
    ),
)

# Three VMs of two vCPUs that have opted in.
HOST_PLAIN = payload(
    STAMP_24_MHZ,
    group(
        ["db", "web-1", "web-2"],
        vcpus=[2, 2, 2],
        timeline=[0x1_0000_0000, 5, U64_MAX],
        frequency_hz=[24_000_000] * 3,
        regs=timers(
            vtimer=([1, 3, 1, 0, 1, 1], [0x1_0000_1000, U64_MAX, 6, 0, 7, 8]),
            ptimer=([0] * 6, [0, 0x1_0000_2000, 0, 0, 0, 9]),
        ),
        stopped_at={"count": [0x0000_00E8_D4A5_0F00] * 3},
    ),
)

# A VM by value between two that have opted in; frequencies that are made from the host's; facts of some VMs and vCPUs.
HOST_MIXED = payload(
    STAMP | VOUCHED | {"boottime_ns": 4_600_000_000_000},
    group(
        ["a", "dns", "zürich"],
        vcpus=[1, 2, 1],
        timeline=[10, 20, U64_MAX],
        frequency_hz=[24_000_000, 1_000_000_000, 62_500_000],
        regs=timers(
            vtimer=([1, 0xFFFF_FFFF_FFFF_FFF8, 0, 3], [100, 200, 300, 400]),
            ptimer=([1, 0, 0, 0], [500, 600, 700, 800]),
        ),
        columns={
            "opted_in": [1, 0, 1],
            "virtual_width_ticks": [0, 90, 0],
            "physical_width_ticks": [0, 300, 0],
            "physical_displacement_ticks": [0, U64_MAX, 0],
        },
        backlog={
            "rows": [0, 2],
            "remaining_ticks": [0x10_0000_0000, U64_MAX],
            "step_ns": [5_000_000_000, 1],
            "interval_ns": [10, 10],
        },
        reading={"rows": [1], "count": [19], "width_ns": [250], "realtime_ns": [1_749_999_999_000_000_000]},
        vmclock={"rows": [0, 2], "address": [0x4000_0000, 0x8000_0000]},
        stopped_at={"rows": [2], "count": [999_999_999_744]},
        interrupts={"ptimer": [30] * 3, "vtimer": [27, 27, 11], "hptimer": [0] * 3, "hvtimer": [0] * 3},
        stolen_time={"rows": [0, 3], "address": [0x4100_0000, 0x8100_0040]},
    ),
    group(
        ["b"],
        vcpus=[2],
        timeline=[40],
        frequency_hz=[1_000_000_000],
        regs=FOUR_TIMERS | {CNTVOFF: [0, 2**64 - 4096]},
        columns={"opted_in": [0], "virtual_width_ticks": [1], "physical_width_ticks": [1]},
        interrupts={"ptimer": [30], "vtimer": [27], "hptimer": [26], "hvtimer": [28]},
        stolen_time={"rows": [1], "address": [0x4000_0040]},
    ),
) | {"later": [1, "x"]}

# No VM, and VMs of one CNTVOFF_EL2.
HOST_NONE = payload(BARE_STAMP)
HOST_SAME_CNTVOFF = payload(
    BARE_STAMP,
    group(
        ["", "el2"],
        vcpus=[1, 1],
        timeline=[200, 300],
        frequency_hz=[62_500_000, 62_500_000],
        regs=FOUR_TIMERS | {CNTVOFF: [2**40, 2**40]},
    ),
)

# A reader of version 1 takes these.
GOOD: dict[str, dict[str, Any]] = {
    "bare": BARE,
    "two-vcpus": TWO_VCPUS,
    "by-value": BY_VALUE,
    "backlog": BACKLOG,
    "nested": NESTED,
    "wide-ctl": WIDE_CTL,
    "unknown-keys": UNKNOWN_KEYS,
    "other-regs": OTHER_REGS,
    "min": MIN,
    "max": MAX,
    "host-plain": HOST_PLAIN,
    "host-mixed": HOST_MIXED,
    "host-none": HOST_NONE,
    "host-same-cntvoff": HOST_SAME_CNTVOFF,
}

# And refuses these: another version, whose payload is anything; a key that has to be known; another architecture,
# whose groups are anything.
REFUSED = {
    "version-2": seal(cbor2.dumps("of another kind", canonical=True), version=2),
    "crit": encode(BARE | {"arch": "x86_64", "crit": ["scaling"], "scaling": [1, 2]}),
    "arch": encode(BARE | {"arch": "x86_64", "groups": {"tsc": 7}}),
}


def files() -> dict[str, bytes]:
    """Every golden file's name and bytes."""
    made = {name: encode(payload) for name, payload in GOOD.items()} | REFUSED
    return {f"{name}.cbor": data for name, data in made.items()}


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    made = files()
    stale = [name for name, data in made.items() if not (HERE / name).is_file() or (HERE / name).read_bytes() != data]
    strays = [path.name for path in HERE.glob("*.cbor") if path.name not in made]
    if not check:
        for name, data in made.items():
            (HERE / name).write_bytes(data)
        stale = []
    for name in stale + strays:
        print(f"{name} isn't what make.py makes", file=sys.stderr)
    return 1 if stale or strays else 0


if __name__ == "__main__":
    sys.exit(main())
