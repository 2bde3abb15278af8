"""The judge of the payload's log on a real machine that stands still: QEMU, stopped as a host stops a process."""

from __future__ import annotations

import mmap
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guestclock.payload import Kind, Log, NotALog, check_log, image, read_log
from testbed import cache, roots

SIZE = 64 << 20
STOP_S = 25
PATIENCE_S = 100
NS_PER_S = 1_000_000_000


def emulator(*arguments: str) -> list[str]:
    """QEMU's command: the machine's own, or the testbed's where `make kvm-test` has fetched it."""
    if shutil.which("qemu-system-aarch64"):
        return ["qemu-system-aarch64", *arguments]
    there = sorted(cache.folder().glob("emulator-*/usr/bin/qemu-system-aarch64"))
    if not there:
        pytest.skip("there is no qemu-system-aarch64, and `make kvm-test` has fetched none")
    command = roots.command(there[-1].parents[2], "/usr/bin/qemu-system-aarch64", *arguments)
    if subprocess.run([*command[: command.index("sh")], "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user can't make mounts of his own, as the testbed's emulator needs")
    return command


@contextmanager
def machine(directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], mmap.mmap]]:
    """A machine that runs the payload, and its memory."""
    (directory / "guest.bin").write_bytes(image())
    memory = directory / "memory"
    memory.write_bytes(b"")
    with memory.open("r+b") as opened:
        opened.truncate(SIZE)
    own = not shutil.which("qemu-system-aarch64")
    kernel, ram = (roots.inside(path) if own else str(path) for path in (directory / "guest.bin", memory))
    command = emulator(
        *("-machine", "virt,gic-version=3,memory-backend=ram", "-cpu", "neoverse-n1", "-smp", "2", "-m", "64M"),
        *("-object", f"memory-backend-file,id=ram,size=64M,mem-path={ram},share=on"),
        *("-display", "none", "-monitor", "none", "-serial", "none", "-nic", "none", "-kernel", kernel),
    )
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as running:
        try:
            with memory.open("rb") as there, mmap.mmap(there.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                yield running, mapped
        finally:
            running.kill()


def when_it_has_rung(running: subprocess.Popen[bytes], memory: mmap.mmap, times: int) -> Log:
    """The log once each vCPU has taken so many interrupts."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        assert running.poll() is None, running.stderr and running.stderr.read()
        try:
            log = read_log(memory)
        except NotALog:
            time.sleep(0.05)
            continue
        vcpus = [vcpu for vcpu in log.vcpus if vcpu is not None]
        if len(vcpus) == 2 and all(sum(each.kind is Kind.FIRED for each in vcpu.records) >= times for vcpu in vcpus):
            return log
        time.sleep(0.05)
    pytest.fail(f"the guest hasn't taken {times} interrupts in {PATIENCE_S} s")


@pytest.mark.timeout(300)
def test_a_machine_that_was_stopped_is_found(tmp_path: Path) -> None:
    with machine(tmp_path) as (running, memory):
        when_it_has_rung(running, memory, 3)
        running.send_signal(signal.SIGSTOP)
        time.sleep(STOP_S)
        taken = max(sum(each.kind is Kind.FIRED for each in vcpu.records) for vcpu in read_log(memory).vcpus if vcpu)
        running.send_signal(signal.SIGCONT)
        when_it_has_rung(running, memory, taken + 3)
        # While it is stopped again, no record is half written.
        running.send_signal(signal.SIGSTOP)
        log = read_log(memory)
    found = {finding.kind: finding.ticks or 0 for finding in check_log(log).findings}
    hz = check_log(log).frequency_hz
    assert set(found) <= {"stall", "late-interrupt"}
    # Its counters went on, and none of its vCPUs did.
    assert found["stall"] > (STOP_S * hz) * 9 // 10
    # Nothing else is wrong with it: with more patience than the stop took, nothing is found.
    assert check_log(log, grace_ns=PATIENCE_S * NS_PER_S).findings == []
