"""Sixteen VMs, each in a process of its own: saved, and restored on one instant.

    python examples/many_processes.py [FOLDER]

KVM answers only the process that created a VM, so most hosts have a process for each. Every process here holds one
`ModelVm`, so that this runs on any machine; a VMM has its `KvmVm(vm_fd, vcpu_fds)` there, and the rest is the same.

The files of the processes make one checkpoint. Sixteen other processes restore it: each plans and loads its own VM,
and says that it is ready. Then one stamp is taken, and all release for it: `release(at=stamp)`. Each guest's clock
stands still from the guest's own stop to that instant and runs from there, however late its process comes.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from guestclock import Checkpoint, Freeze, HostCounter, ModelVm

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

PROCESSES: Final = 16
VCPUS: Final = 2


def save(name: str, folder: Path, _host: Connection) -> None:
    """One process's part of the snapshot."""
    vm = ModelVm(VCPUS, counter=HostCounter(), name=name)
    vm.opt_in()  # its clock starts here, so that no two VMs have the same
    vm.checkpoint().save(folder / f"{name}.time")


def restore(name: str, folder: Path, host: Connection) -> None:
    """One process's part of the restore. `host` says when."""
    vm = ModelVm(VCPUS, counter=HostCounter(), name=name)
    saved = Checkpoint.load(folder)[name]  # the whole folder: all VMs of one instant
    with vm.restoring(saved, Freeze()) as r:
        r.apply()
        host.send("ready")
        report = r.release(at=host.recv())
    verified = vm.verify(report)
    host.send((report.released_at, report.added_ticks, report.returned_at - report.released_at, bool(verified)))


def every(work: Any, names: list[str], folder: Path) -> tuple[list[Any], list[Connection]]:
    """A process for each VM, and the end of its pipe."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in names]
    ends = zip(names, pipes, strict=True)
    processes = [context.Process(target=work, args=(name, folder, there)) for name, (_, there) in ends]
    for process in processes:
        process.start()
    for _, there in pipes:
        there.close()
    return processes, [here for here, _ in pipes]


def ended(processes: list[Any]) -> None:
    """Waits for the processes, and ends this one where one of them failed."""
    for process in processes:
        process.join()
        if process.exitcode:
            sys.exit(f"{process.name} failed: {process.exitcode}")


def main(folder: Path) -> None:
    """Both halves."""
    names = [f"vm-{number}" for number in range(PROCESSES)]
    processes, _ = every(save, names, folder)
    ended(processes)
    processes, vmms = every(restore, names, folder)
    for vmm in vmms:
        vmm.recv()
    stamp = HostCounter().stamp()  # after all have planned
    for vmm in vmms:
        vmm.send(stamp)
    done = {name: vmm.recv() for name, vmm in zip(names, vmms, strict=True)}
    ended(processes)
    for name, (released_at, added, late, verified) in done.items():
        print(f"{name}: goes on from {released_at} with {added} ticks more, written {late} ticks later, ok={verified}")
    if len({(released_at, added) for released_at, added, *_ in done.values()}) != 1:
        sys.exit("the guests aren't on one instant")
    if not all(verified for *_, verified in done.values()):
        sys.exit("a guest isn't where its report put it")
    print(f"{len(done)} guests are on one instant")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made:
            main(Path(made))
