"""Makes the golden checkpoints, from docs/checkpoint-format.md and cbor2 alone: no guestclock is in it.

`python tests/golden/make.py` writes them; with `--check` it only says whether they are as they should be.
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


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, 12.1), bit by bit: reflected polynomial 0x82f63b78, all ones before and after."""
    crc = U32_MAX
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ U32_MAX


def seal(payload: bytes, version: int = 1) -> bytes:
    """The file: the envelope round these bytes, with the right checksum."""
    envelope = cbor2.CBORTag(55799, ["guestclock", version, cbor2.CBORTag(24, payload), bytes(4)])
    body = cbor2.dumps(envelope)[:-4]
    return body + struct.pack(">I", crc32c(body))


def u64s(*values: int) -> cbor2.CBORTag:
    """A typed array of u64, little endian (RFC 8746)."""
    return cbor2.CBORTag(71, struct.pack(f"<{len(values)}Q", *values))


def u16s(*values: int) -> cbor2.CBORTag:
    """A typed array of u16, little endian (RFC 8746)."""
    return cbor2.CBORTag(69, struct.pack(f"<{len(values)}H", *values))


def u8s(*values: int) -> cbor2.CBORTag:
    """A typed array of u8 (RFC 8746)."""
    return cbor2.CBORTag(64, bytes(values))


def timer(ctl: cbor2.CBORTag, *cval: int) -> dict[str, Any]:
    return {"cval": u64s(*cval), "ctl": ctl}


HOST: dict[str, Any] = {
    "count": 0x0000_00E8_D4A5_1000,
    "frequency_hz": 1_000_000_000,
    "source": "clock_monotonic_raw",
    "realtime_ns": 1_750_000_000_123_456_789,
    "width_ns": 84,
    "leap": "none",
}

BARE_HOST: dict[str, Any] = {
    "count": 300,
    "frequency_hz": 62_500_000,
    "source": "manual",
    "realtime_ns": 0,
    "width_ns": 0,
    "leap": "unknown",
}

# One vCPU and nothing that may be left out: the worked example of docs/checkpoint-format.md.
BARE: dict[str, Any] = {
    "cntfrq_hz": 62_500_000,
    "cntvct": 200,
    "cntpct": 200,
    "owned": True,
    "width_ticks": 0,
    "host": BARE_HOST,
    "vcpus": 1,
    "timers": {"vtimer": timer(u8s(1), 1000)},
}

TWO_VCPUS: dict[str, Any] = {
    "cntfrq_hz": 24_000_000,
    "cntvct": 0x1_0000_0000,
    "cntpct": 0x1_0000_0000,
    "owned": True,
    "width_ticks": 0,
    "host": HOST
    | {
        "source": "cntvct_el0",
        "frequency_hz": 24_000_000,
        "tai_offset_s": 37,
        "synchronized": True,
        "max_error_ns": 1_500_000,
        "leap": "insert",
        "machine_id": bytes(range(16)),
        "boot_id": bytes(range(0xF0, 0x100)),
    },
    "stopped_at": 0x0000_00E8_D4A5_0F00,
    "vcpus": 2,
    "timers": {
        "vtimer": timer(u8s(1, 3), 0x1_0000_1000, U64_MAX),
        "ptimer": timer(u8s(0, 2), 0, 0x1_0000_2000),
    },
}

UNOWNED: dict[str, Any] = TWO_VCPUS | {
    "owned": False,
    "cntvct": 5_000_000,
    "cntpct": 0x0000_00E8_D4A5_1000,
    "width_ticks": 17,
    "host": HOST | {"synchronized": False, "leap": "in-progress"},
}

# Owed time on its way back, on a host whose wall clock somebody vouches for.
OWING: dict[str, Any] = TWO_VCPUS | {
    "debt": {"owed_ticks": 0x10_0000_0000, "step_ns": 5_000_000_000, "interval_ns": 10_000_000_000},
    "sync": {"max_error_ns": 250_000, "age_ns": 64_000_000_000, "holdover_ppb": 1_000, "quality": "chrony"},
    "rate_ppb": -3_820,
}

NESTED: dict[str, Any] = TWO_VCPUS | {
    "cntvoff": u64s(0, 2**64 - 4096),
    "timers": {
        "vtimer": timer(u8s(1, 0), 10, 11),
        "ptimer": timer(u8s(2, 1), 20, 21),
        "hvtimer": timer(u8s(3, 2), 30, 31),
        "hptimer": timer(u8s(0, 3), 40, 41),
    },
}

WIDE_CTL: dict[str, Any] = TWO_VCPUS | {
    "timers": {
        "vtimer": timer(u64s(1, 0xFFFF_FFFF_FFFF_FFF8), 100, 200),
        "ptimer": timer(u8s(1, 0), 300, 400),
    },
}

UNKNOWN: dict[str, Any] = BARE | {
    "a": -1,
    "crib": None,
    "dusk": [True, False, -(2**64), U64_MAX, b"\x00\xff", "Zeit", {1: [], b"k": {}}],
    "zzzzzz": cbor2.CBORTag(1000, u64s(7)),
    "an unknown key longer than any known one": 2**32,
}

# CNTPOFF_EL2, and a register that has no name yet.
OTHER_REGS: dict[str, Any] = TWO_VCPUS | {
    "other_regs": {0x6030_0000_0013_E706: u64s(0, U64_MAX), 0x6030_0000_0013_E730: u64s(5, 6)}
}

NO_VCPUS: dict[str, Any] = BARE | {"vcpus": 0, "timers": {"vtimer": timer(u8s())}}

MIN: dict[str, Any] = {
    "cntfrq_hz": 1,
    "cntvct": 0,
    "cntpct": 0,
    "owned": False,
    "width_ticks": 0,
    "host": {
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
    },
    "stopped_at": 0,
    "debt": {"owed_ticks": 1, "step_ns": 1, "interval_ns": 1},
    "sync": {"max_error_ns": 0, "age_ns": 0, "holdover_ppb": 0, "quality": "declared", "tai_offset_s": -(2**31)},
    "rate_ppb": -(2**63),
    "vcpus": 1,
    "cntvoff": u64s(0),
    "timers": {name: timer(u8s(0), 0) for name in ("vtimer", "ptimer", "hvtimer", "hptimer")},
}

MAX: dict[str, Any] = {
    "cntfrq_hz": U32_MAX,
    "cntvct": U64_MAX,
    "cntpct": U64_MAX,
    "owned": True,
    "width_ticks": U64_MAX,
    "host": {
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
    },
    "stopped_at": U64_MAX,
    "debt": {"owed_ticks": U64_MAX, "step_ns": U64_MAX, "interval_ns": U64_MAX},
    "sync": {
        "max_error_ns": U64_MAX,
        "age_ns": U64_MAX,
        "holdover_ppb": U64_MAX,
        "quality": "kernel-unverified",
        "tai_offset_s": 2**31 - 1,
    },
    "rate_ppb": 2**63 - 1,
    "vcpus": 1,
    "cntvoff": u64s(U64_MAX),
    "timers": {name: timer(u64s(U64_MAX & ~4), U64_MAX) for name in ("vtimer", "ptimer", "hvtimer", "hptimer")},
}

# Three VMs of two vCPUs that owned their offsets.
SET_PLAIN: dict[str, Any] = {
    "host": TWO_VCPUS["host"],
    "stopped_at": TWO_VCPUS["stopped_at"],
    "groups": [
        {
            "cntfrq_hz": 24_000_000,
            "names": u64s(0x8000_0000, 0x8000_0200, 0x8000_0400),
            "vcpus": 2,
            "cntvct": u64s(0x1_0000_0000, 5, U64_MAX),
            "owned": True,
            "timers": {
                "vtimer": timer(u8s(1, 3, 1, 0, 1, 1), 0x1_0000_1000, U64_MAX, 6, 0, 7, 8),
                "ptimer": timer(u8s(0, 2, 0, 0, 0, 1), 0, 0x1_0000_2000, 0, 0, 0, 9),
            },
        }
    ],
}

# Two frequencies, the second scaled from the host's; guests with EL2, unowned ones, debts, a wide CTL, another key.
SET_MIXED: dict[str, Any] = {
    "host": HOST,
    "sync": OWING["sync"],
    "rate_ppb": -3_820,
    "later": [1, "x"],
    "groups": [
        {
            "cntfrq_hz": 24_000_000,
            "names": u64s(1, 3, U64_MAX),
            "vcpus": u16s(1, 2, 1),
            "cntvct": u64s(10, 20, 30),
            "cntpct": u64s(10, 21, 30),
            "owned": u8s(1, 0, 1),
            "debts": {
                "rows": u64s(0, 2),
                "step_ns": u64s(5_000_000_000, 1),
                "owed_ticks": u64s(0x10_0000_0000, U64_MAX),
                "interval_ns": u64s(10_000_000_000, 2),
            },
            "timers": {
                "vtimer": timer(u64s(1, 0xFFFF_FFFF_FFFF_FFF8, 0, 3), 100, 200, 300, 400),
                "ptimer": timer(u8s(1, 0, 0, 0), 500, 600, 700, 800),
            },
        },
        {
            "cntfrq_hz": 1_000_000_000,
            "names": u64s(2),
            "vcpus": 2,
            "cntvct": u64s(40),
            "owned": False,
            "cntvoff": u64s(0, 2**64 - 4096),
            "timers": NESTED["timers"],
        },
    ],
}

# No VM, and VMs of the same CNTVOFF_EL2.
SET_NONE: dict[str, Any] = {"host": BARE_HOST, "groups": []}
SET_SAME_CNTVOFF: dict[str, Any] = {
    "host": BARE_HOST,
    "groups": [SET_MIXED["groups"][1] | {"cntfrq_hz": 62_500_000, "cntvoff": 0}],
}

# What a reader of version 1 takes.
GOOD = {
    "bare": BARE,
    "two-vcpus": TWO_VCPUS,
    "unowned": UNOWNED,
    "owing": OWING,
    "nested": NESTED,
    "wide-ctl": WIDE_CTL,
    "unknown-keys": UNKNOWN,
    "other-regs": OTHER_REGS,
    "no-vcpus": NO_VCPUS,
    "min": MIN,
    "max": MAX,
}


SETS = {
    "set-plain": SET_PLAIN,
    "set-mixed": SET_MIXED,
    "set-none": SET_NONE,
    "set-same-cntvoff": SET_SAME_CNTVOFF,
}


def files() -> dict[str, bytes]:
    """Every golden file's name and bytes."""
    made = {name: seal(cbor2.dumps(payload, canonical=True)) for name, payload in (GOOD | SETS).items()}
    # What it refuses: another version, whose payload is anything, and a key that must be known.
    made["version-2"] = seal(cbor2.dumps("of another kind", canonical=True), version=2)
    made["crit"] = seal(cbor2.dumps(BARE | {"crit": ["scaling"], "scaling": [1, 2]}, canonical=True))
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
