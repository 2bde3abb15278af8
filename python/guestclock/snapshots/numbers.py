"""Integers in JSON documents, and timer registers among others."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from guestclock._core import sysreg

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_BASE: Final = 0x6030_0000_0013_0000
"""KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG (Linux: arch/arm64/include/uapi/asm/kvm.h)."""

_DIGITS: Final = re.compile(r"[0-9]{1,20}|0x[0-9a-fA-F]{1,18}")
"""Written out, since Python takes underscores, spaces, signs and other scripts' digits too."""


def number(value: object, most: int = 2**64 - 1) -> int:
    """Return a non-negative integer: a JSON number, or a string of decimal or hexadecimal (0x) digits."""
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value, 16 if value[:2] == "0x" else 10)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError("not such a number")
    return value


def register_id(encoding: int) -> int:
    """Return the id of a system register with this 16-bit encoding (op0:2, op1:3, CRn:4, CRm:4, op2:3)."""
    return _BASE | encoding


def named(register: str) -> int:
    """Return the id of the register with this architectural name by its encoding, which KVM doesn't exchange."""
    op0, op1, crn, crm, op2 = sysreg(register)
    return register_id(op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2)


def timers(registers: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return the registers among the generic timer's encodings: op0 3, CRn 14, CRm below 8. Each is there once."""
    found: dict[int, int] = {}
    for reg, value in registers:
        if reg & ~0xFFFF == _BASE and reg >> 14 & 3 == 3 and reg >> 7 & 15 == 14 and reg >> 3 & 15 < 8:
            if reg in found:
                raise ValueError("a register is there twice")
            found[reg] = value
    return found


def without_idle(registers: list[dict[int, int]], known: frozenset[int]) -> tuple[list[dict[int, int]], list[int]]:
    """Return the registers without those that aren't `known` and read 0 on every vCPU, and the ids of these."""
    ids = sorted({reg for each in registers for reg in each} - known)
    idle = [reg for reg in ids if not any(each.get(reg, 0) for each in registers)]
    return [_without(each, idle) for each in registers], idle


def _without(registers: Mapping[int, int], idle: list[int]) -> dict[int, int]:
    return {reg: value for reg, value in registers.items() if reg not in idle}
