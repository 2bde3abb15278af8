"""Keeps a guest's clocks right when its virtual machine is paused, snapshotted, restored, live-updated or migrated.

A `ModelVm` models the Arm generic timer of a virtual machine over a host counter. `ModelVm.checkpoint` saves the VM's
guest time as a portable value, `ModelVm.plan` says what a restore would do, and `ModelVm.restore` does it; `KvmVm` has
the same verbs, and `Fleet` has them for many VMs. Counts are ticks, and times are integer nanoseconds: no float.

The rooms, each an attribute that is imported when it is first used:

- `errors`: every error, in families.
- `types`: the records that calls return, the objects that verbs return, and the aliases for annotations.
- `fleet`: the plans, reports and looks of a fleet, its restores and pauses.
- `kvm`: a probe of this host's KVM.
- `model`: many VMs as columns, deadlines and the alarm that waits for them, arithmetic on arrays.
- `guest`: pages that tell a guest about its time.
- `sync`: bounds of the host's wall clock, from chrony or ClockBound.
- `aio`: steps and deadlines in an asyncio event loop.
- `testing`: VMs with faults, traced VMs, counters that record a run and replay it.
- `inspection`: checkpoints as records, differences and timelines.
- `snapshots`: saved guest time in other VMMs' files.
- `tracing`: restores in the log, counters and gauges for an operator.
- `adapters`: `adapters.unicorn` puts a VM's time into an emulated guest; it needs the extra `unicorn`.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Final

from guestclock import live as _live  # noqa: F401 - imported for what it does
from guestclock._core import (
    DEBUG_BUILD,
    Advance,
    CatchUp,
    Checkpoint,
    Elapsed,
    Freeze,
    HostCounter,
    KvmVm,
    ManualCounter,
    ModelVm,
    MonotonicCounter,
    Plan,
    Report,
    Restore,
    __version__,
)
from guestclock.errors import GuestClockError, Interrupted, Refused, VcpuRunning
from guestclock.registers import Reg, Timer
from guestclock.units import MS, S

if TYPE_CHECKING:
    from typing import Any

    from guestclock import adapters as adapters
    from guestclock import aio as aio
    from guestclock import errors as errors
    from guestclock import fleet as fleet
    from guestclock import guest as guest
    from guestclock import inspection as inspection
    from guestclock import kvm as kvm
    from guestclock import model as model
    from guestclock import snapshots as snapshots
    from guestclock import sync as sync
    from guestclock import testing as testing
    from guestclock import tracing as tracing
    from guestclock import types as types
    from guestclock.fleet.verbs import Fleet
    from guestclock.types import Options, Stamp, SyncBound

if DEBUG_BUILD:
    warnings.warn(
        "guestclock's native module is a debug build, many times slower than a release build: "
        "don't measure it, and build with `maturin develop --release` or `pip install`",
        RuntimeWarning,
        stacklevel=2,
    )

__all__ = [
    "MS",
    "Advance",
    "CatchUp",
    "Checkpoint",
    "Elapsed",
    "Fleet",
    "Freeze",
    "GuestClockError",
    "HostCounter",
    "Interrupted",
    "KvmVm",
    "ManualCounter",
    "ModelVm",
    "MonotonicCounter",
    "Options",
    "Plan",
    "Refused",
    "Reg",
    "Report",
    "Restore",
    "S",
    "Stamp",
    "SyncBound",
    "Timer",
    "VcpuRunning",
    "__version__",
]

_ROOMS: Final = (
    "adapters",
    "aio",
    "errors",
    "fleet",
    "guest",
    "inspection",
    "kvm",
    "model",
    "snapshots",
    "sync",
    "testing",
    "tracing",
    "types",
)
_LATER: Final = {"Fleet": "fleet.verbs", "Options": "types", "Stamp": "types", "SyncBound": "types"}
"""Names of this module that are imported when they are first used, and where they stand."""


if not TYPE_CHECKING:
    # A type checker that saw it would pass any name.
    def __getattr__(name: str) -> "Any":
        if name in _ROOMS:
            return importlib.import_module(f"guestclock.{name}")
        if name in _LATER:
            globals()[name] = value = getattr(importlib.import_module(f"guestclock.{_LATER[name]}"), name)
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS})
