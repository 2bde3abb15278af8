"""Sequences taken from this machine's kernel, and left as traces."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from differential import trace
from differential.campaign import Outcome, matching, probe, run
from differential.generator import Shape
from differential.machine import Kvm
from guestclock import HostCounter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LEG = os.environ.get("GUESTCLOCK_LEG", "native")
OUT = Path(os.environ.get("GUESTCLOCK_OUT", "/out"))
"""Where the testbed takes what a machine hands over."""


def probed(*, nested: bool, seed: int) -> tuple[trace.Header, tuple[int, ...]]:
    """The trace's header for this kernel, by its behaviour; and the timer registers that it lists."""
    target = Kvm(nested=nested)
    found = probe(target.do, counter_offset=target.has_counter_offset())
    target.close()
    assert isinstance(found.listed, list)
    kernel, vhe = matching(found, nested=nested)
    hz = HostCounter(source="cntvct_el0").frequency_hz
    return trace.Header(LEG, platform.release(), kernel, vhe, nested, hz, seed), tuple(found.listed)


def take(
    name: str,
    *,
    seed: int,
    sequences: int,
    nested: bool = False,
    vcpus: int = 3,
    runs: Iterable[bool] = (False, False, False, True),
) -> Outcome:
    """Takes and judges so many sequences, says what came of them, and leaves their trace under this name.

    runs: whether vCPUs enter their guests, in the first sequence, the second and so on, and from the start again.
    """
    header, regs = probed(nested=nested, seed=seed)
    # KVM runs no guest that has EL2 without a vGIC, and creates no vCPU once there is one.
    shapes = [Shape(regs, vcpus=vcpus, runs=run, late_vcpus=not nested) for run in runs]
    # Linux patches its own code whenever the number of VMs goes from none to one (`preempt_notifier_inc`), and an
    # emulator that runs each CPU in a thread of its own may go on with the code as it was: the loaded vCPU is then
    # not loaded again, and its guest reads CNTVCT_EL0 with the host's offset. With a VM that stays there is one patch.
    idle = Kvm(nested=nested)
    try:
        with trace.write(OUT / f"{name}.jsonl.gz", header) as writer:
            outcome = run(lambda: Kvm(nested=nested), header, shapes, sequences, writer)
    finally:
        idle.close()
    if outcome.divergences:
        # "registering preempt_notifier while notifiers disabled" would prove that code was stale.
        outcome.divergences[0] += "\n".join(["; the kernel said", *_kernel_messages()])
    print(f"\n{header}: {outcome}")
    return outcome


def _kernel_messages() -> Iterator[str]:
    """The kernel's log, as far as it is still there (Documentation/ABI/testing/dev-kmsg)."""
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            try:
                record = os.read(fd, 8192)
            except BlockingIOError:
                return
            except BrokenPipeError:
                # Records were overwritten while these were read: the next read goes on with the oldest that is left.
                continue
            yield "    " + record.split(b"\n")[0].partition(b";")[2].decode(errors="backslashreplace")
    finally:
        os.close(fd)
