"""A QEMU migration stream of an arm64 machine, as QEMU's own `scripts/analyze-migration.py` prints it.

Each `cpu (N)` has its coprocessor registers as `cpreg_vmstate_indexes` and `cpreg_vmstate_values`. With KVM they are
KVM's, counts among them. The emulator (TCG) has CNTFRQ_EL0 among them, which KVM hasn't, and Arm's encodings. It has no
count: that follows from `cpu_clock_offset` of the section `timer`, the virtual clock in nanoseconds when the VM was
stopped, divided by the whole nanoseconds of a tick (QEMU: `gt_cntfrq_period_ns`, target/arm/helper.c).
"""

from __future__ import annotations

import re
from typing import Any, Final

from guestclock.registers import Reg
from guestclock.snapshots.numbers import named, number, timers, without_idle
from guestclock.snapshots.snapshot import Snapshot
from guestclock.units import S

NAME: Final = "a QEMU migration stream of an arm64 machine, as analyze-migration.py prints it"
_CPU: Final = re.compile(r"cpu \((\d{1,6})\)", re.ASCII)
_TIMER: Final = re.compile(r"timer \(\d{1,6}\)", re.ASCII)
_CNTFRQ: Final = named("CNTFRQ_EL0")
_KNOWN: Final = frozenset(map(int, Reg)) | {_CNTFRQ}


def recognises(document: dict[str, Any]) -> bool:
    """Return whether the document has a CPU with coprocessor registers."""
    return any(
        _CPU.fullmatch(name) and isinstance(section, dict) and "cpreg_vmstate_indexes" in section
        for name, section in document.items()
    )


def parse(document: dict[str, Any]) -> Snapshot:
    """Return the snapshot. ValueError and the like where something has another shape."""
    sections = {int(found[1]): document[name] for name in document if (found := _CPU.fullmatch(name))}
    registers = [_vcpu(sections[section]) for section in sorted(sections)]
    frequencies = {vcpu.get(_CNTFRQ) for vcpu in registers}
    if frequencies == {None}:
        # KVM's, if the registers are: `from_one_regs` looks.
        both = all(Reg.TIMER_CNT in vcpu and Reg.TIMER_CVAL in vcpu for vcpu in registers)
        return Snapshot(format="qemu", registers=registers, ids="kvm" if both else None)
    (hz,) = frequencies
    hz = number(hz, 2**32 - 1)
    if not hz:
        raise ValueError("a frequency of 0")
    registers, idle = without_idle(registers, _KNOWN)
    count = _count(document, hz)
    offsets = {vcpu.get(int(Reg.CNTVOFF_EL2), 0) for vcpu in registers}
    return Snapshot(
        format="qemu",
        registers=registers,
        ids="arm",
        frequency_hz=hz,
        # With EL2 each vCPU's CNTVCT_EL0 is less its own CNTVOFF_EL2.
        cntvct=count if offsets == {0} else None,
        cntpct=count,
        left_out=idle,
    )


def _vcpu(section: dict[str, Any]) -> dict[int, int]:
    ids, values = section["cpreg_vmstate_indexes"], section["cpreg_vmstate_values"]
    if len(ids) != len(values):
        raise ValueError("as many ids as values")
    return timers((number(reg), number(value)) for reg, value in zip(ids, values, strict=True))


def _count(document: dict[str, Any], hz: int) -> int | None:
    """Return the counter at the stop; None where the stream doesn't have it: with -icount another clock tells it."""
    clocks = [section for name, section in document.items() if _TIMER.fullmatch(name)]
    if len(clocks) != 1 or any("icount" in name for name in clocks[0]):
        return None
    ns = number(clocks[0]["cpu_clock_offset"])
    return ns // max(S // hz, 1)
