"""The part of A64 that a VMM under an emulator without syndromes must decode and build itself.

Source: Arm ARM (DDI 0487), C6.2 for the instructions, D1.3 for taking an exception to AArch64 state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Encoding: TypeAlias = tuple[int, int, int, int, int]
"""op0, op1, CRn, CRm and op2 of a system register."""

WFI = 0xD503207F
"""The instruction word of `wfi`."""

SPSR_EL1: Encoding = (3, 0, 4, 0, 0)
ELR_EL1: Encoding = (3, 0, 4, 0, 1)
VBAR_EL1: Encoding = (3, 0, 12, 0, 0)
HCR_EL2: Encoding = (3, 4, 1, 1, 0)
SCR_EL3: Encoding = (3, 6, 1, 1, 0)

HCR_RW_TWI = 1 << 31 | 1 << 13
"""EL1 is AArch64; WFI traps."""
SCR_RW_HCE_NS = 1 << 10 | 1 << 8 | 1 << 0
"""EL2 and below are AArch64 (else `eret` is illegal), HVC is enabled, EL2's registers take effect."""

PSTATE_I = 1 << 7
"""Interrupts are masked."""
PSTATE_AARCH32 = 1 << 4
PSTATE_EL1H_MASKED = 0x3C5
"""EL1 on its own stack, with D, A, I and F masked: the state after an exception to EL1."""


@dataclass(frozen=True, slots=True)
class SysregMove:
    """One MRS or MSR (register)."""

    read: bool
    encoding: Encoding
    rt: int


def sysreg_move(word: int) -> SysregMove | None:
    """Decodes an instruction word as an MRS or MSR; None for another instruction."""
    if word & 0xFFD0_0000 != 0xD510_0000:
        return None
    encoding = (2 + (word >> 19 & 1), word >> 16 & 7, word >> 12 & 15, word >> 8 & 15, word >> 5 & 7)
    return SysregMove(read=bool(word & 1 << 21), encoding=encoding, rt=word & 31)


def hvc_immediate(word: int) -> int:
    """The 16-bit immediate of an HVC instruction word."""
    return word >> 5 & 0xFFFF


def exception_level(pstate: int) -> int:
    """The exception level that PSTATE names."""
    return pstate >> 2 & 3


def uses_el0_stack(pstate: int) -> bool:
    """True if SP is SP_EL0: at EL0, and at EL1 with SPSel clear."""
    return pstate & 1 == 0


def irq_vector(pstate: int) -> int:
    """The distance of the IRQ vector from VBAR_EL1, for an interrupt taken to EL1 from this PSTATE."""
    if exception_level(pstate) == 0:
        return 0x400 + 0x80
    return 0x80 if uses_el0_stack(pstate) else 0x200 + 0x80
