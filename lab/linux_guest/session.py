"""A running guest with a shell on its console: what is asked of it, what it answers, and when by the host's counter."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvm_vmm import instruction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from linux_vmm import LinuxVm

host_ticks = instruction(0xD53B_E040)  # CNTVCT_EL0
"""The host's counter as the VMM reads it, outside guestclock."""
HOST_HZ: int = instruction(0xD53B_E000)()  # CNTFRQ_EL0

_numbers: Iterator[int] = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Answer:
    """The guest's answer to a line, and the host's counter before the line and after the answer."""

    text: str
    asked_at: int
    answered_at: int

    @property
    def ns(self) -> int:
        """Nanoseconds of the host from the line to the answer."""
        return (self.answered_at - self.asked_at) * 1_000_000_000 // HOST_HZ


def ask(vm: LinuxVm, command: str, *, seconds: float = 120) -> Answer:
    """Types a command into the guest's shell, and waits until the shell comes back from it."""
    number = next(_numbers)
    # The shell computes the mark, so that the echo of the command isn't taken for its end.
    start = len(vm.uart.output)
    asked_at = host_ticks()
    vm.uart.send(f"{command}\necho =$(({number}+0))=\n")
    end = vm.uart.wait(f"={number}=", after=start, seconds=seconds)
    answered_at = host_ticks()
    text = bytes(vm.uart.output[start:end]).decode(errors="replace").replace("\r", "")
    return Answer(text, asked_at, answered_at)
