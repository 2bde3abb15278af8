"""The payload as an image for a VMM to load: raw, which is an arm64 boot image too, or ELF."""

from __future__ import annotations

import struct
from importlib import resources
from typing import Final, Literal

from guestclock.payload import layout

PSCI: Final = {"none": 0, "hvc": 1, "smc": 2}
_ADDRESS: Final = 0x4020_0000


def image(
    *,
    vcpus: int = 2,
    samples: int = 8,
    doorbell: int = 0,
    gicd: int = 0x0800_0000,
    gicr: int = 0x080A_0000,
    period_ticks: int = 0,
    psci: Literal["none", "hvc", "smc"] = "hvc",
    timer_irq: int = 27,
    command: layout.Command = layout.Command.ALARM,
) -> bytes:
    """Returns the payload with these parameters. docs/payload.md says what a VMM does with it.

    vcpus: the number of vCPUs that log, 1 to 8.
    samples: the number of samples in a round.
    doorbell: the guest-physical address of no memory at which the guest stores a word around each sample; 0: none.
    gicd, gicr: the GICv3's distributor, and the redistributor of the first vCPU; with a gicd of 0 there are no alarms.
    period_ticks: the time from setting an alarm to its deadline; 0 for 20 ms.
    psci: the instruction by which the first vCPU starts the others; "none" where the VMM starts them all.
    timer_irq: the virtual timer's interrupt id, a PPI (16 to 31).
    command: the first command of each vCPU.

    Raises ValueError for a parameter out of its range.
    """
    for name, value, low, high in (
        ("vcpus", vcpus, 1, layout.MAX_VCPUS),
        ("samples", samples, 1, 2**32 - 1),
        ("doorbell", doorbell, 0, 2**39 - 4),
        ("gicd", gicd, 0, 2**39 - 4),
        ("gicr", gicr, 0, 2**39 - 4),
        ("period_ticks", period_ticks, 0, 2**63 - 1),
        ("timer_irq", timer_irq, 16, 31),
    ):
        if not low <= value <= high:
            msg = f"{name} is {value}, but has to be from {low} to {high}"
            raise ValueError(msg)
    guest = bytearray(resources.files(__package__).joinpath("guest.bin").read_bytes())
    layout.PARAMETERS_FORMAT.pack_into(
        guest,
        layout.PARAMETERS,
        layout.PARAMETERS_MAGIC,
        vcpus,
        samples,
        doorbell,
        gicd,
        gicr,
        period_ticks,
        PSCI[psci],
        timer_irq,
    )
    struct.pack_into(f"<{layout.MAX_VCPUS}Q", guest, layout.COMMANDS, *[command] * layout.MAX_VCPUS)
    return bytes(guest)


def elf(raw: bytes, address: int = _ADDRESS) -> bytes:
    """Wraps a raw image into a static ELF executable, loaded and entered at `address`, its log zeroed behind it.

    Raises ValueError for an address that isn't a multiple of 4 KiB, or is past the end of 64 bits.
    """
    if address % 0x1000 or not 0 <= address < 2**64:
        msg = f"address is {address:#x}, but has to be a multiple of 4 KiB, and below 2**64"
        raise ValueError(msg)
    # ELF-64 (System V ABI): EM_AARCH64, ET_EXEC, one PT_LOAD with all rights.
    start = 0x1000
    header = struct.pack("<4s5B7x2HI3QI6H", b"\x7fELF", 2, 1, 1, 0, 0, 2, 183, 1, address, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<2I6Q", 1, 7, start, address, address, len(raw), layout.IMAGE_SIZE, 0x1000)
    return (header + segment).ljust(start, b"\0") + raw
