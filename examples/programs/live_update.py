"""A live update: one process saves the clocks of all its guests, and the one that follows it restores them."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from guestclock import Advance, Checkpoint, Fleet, ManualCounter, ModelVm, Options, S
from guestclock.errors import FleetInterrupted, FleetRefused

UPDATE = Options(intent="live-update", strict=True)


def host_of(host: ManualCounter) -> Fleet:
    """The clocks of the host's VMs; on KVM each is a `KvmVm`, of descriptors that the old process handed over."""
    return Fleet({name: ModelVm(vcpus=2, counter=host, name=name) for name in ("db", "web-1", "web-2")})


def before(fleet: Fleet, path: Path) -> None:
    """Ends the old process: all vCPUs are stopped."""
    fleet.checkpoint().save(path)


def after(fleet: Fleet, path: Path) -> None:
    """Begins the new process. A VM that can't be restored is named, and no other waits for it."""
    checkpoint = Checkpoint.load(path)
    try:
        report = fleet.restore(checkpoint, Advance(), options=UPDATE)
    except FleetRefused as refused:
        for name, error in refused.refused.items():
            print(name, "is refused:", error, file=sys.stderr)
        report = fleet.restore(checkpoint, Advance(), options=UPDATE, only=refused.accepted)
    except FleetInterrupted as interrupted:
        for name, error in interrupted.failed.items():
            print(name, "failed:", error, file=sys.stderr)
        raise
    for name, one in report.items():
        print(f"{name}: {one.added_ns} ns added, within {one.error_bound_ns} ns")


def main() -> None:
    """Updates a host of three models."""
    host = ManualCounter()
    fleet = host_of(host)
    for clock in fleet.values():
        clock.opt_in()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "host.time"
        before(fleet, path)
        host.advance_ns(S // 4)
        after(fleet, path)


if __name__ == "__main__":
    main()
