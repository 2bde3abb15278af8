"""A snapshot: a guest's time goes into a file, and comes back an hour later, as if the guest had never stopped."""

from pathlib import Path
from tempfile import TemporaryDirectory

from guestclock import Advance, Checkpoint, Freeze, ManualCounter, ModelVm, S
from guestclock.types import GuestVm, Policy


def save(clock: GuestVm, path: Path) -> None:
    """Saves the clocks of a VM whose vCPUs are stopped."""
    clock.checkpoint().save(path)


def load(clock: GuestVm, path: Path, policy: Policy) -> int:
    """Restores them, and returns the nanoseconds that the guest sees of the time between."""
    report = clock.restore(Checkpoint.load(path), policy)
    for warning in report.warnings:
        print("warning:", warning)
    return report.added_ns


def main() -> None:
    """Takes a snapshot of a model; on KVM only `clock` is another: `KvmVm(vm_fd, vcpu_fds, gic_fd=gic_fd)`."""
    host = ManualCounter()
    clock = ModelVm(vcpus=2, counter=host, name="web-1")
    clock.opt_in()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "web-1.time"
        save(clock, path)
        host.advance_ns(3600 * S)
        print("under Freeze the guest sees", load(clock, path, Freeze()) // S, "s of an hour")
        print("under Advance it sees", load(clock, path, Advance()) // S, "s")


if __name__ == "__main__":
    main()
