"""Keeps a guest's clocks right when its virtual machine is paused, snapshotted, restored, live-updated or migrated.

A `Vm` models the Arm generic timer of a virtual machine over a host counter. `Vm.checkpoint` takes its time along as a
portable value, `plan` says what a restore would do, and `restore` does it. Counts are ticks, times are integer
nanoseconds, and nothing here is a float.
"""

import warnings

from guestclock._core import (
    DEBUG_BUILD,
    Advance,
    Checkpoint,
    Freeze,
    HostCounter,
    ManualCounter,
    MonotonicCounter,
    Paused,
    Plan,
    Report,
    Restore,
    Running,
    Vm,
    __version__,
    plan,
    reg_id,
    restore,
    sysreg,
)
from guestclock.errors import (
    CapabilityMissing,
    CheckpointError,
    ClockWentBackwards,
    Corrupt,
    CounterSkew,
    ElapsedUnknown,
    FrequencyMismatch,
    GuestClockError,
    KvmError,
    Malformed,
    NotACheckpoint,
    OutOfOrder,
    ReadBackMismatch,
    RestoreOpen,
    RestoreRefused,
    StalePlan,
    SysregTrap,
    TooLarge,
    TopologyMismatch,
    UnknownRegister,
    UnknownState,
    UnsupportedFeature,
    UnsupportedVersion,
    VcpuRunning,
)
from guestclock.registers import Reg, Timer
from guestclock.types import Capabilities, Counter, CrossTimestamp, Policy, Support, TimerState, Views

if DEBUG_BUILD:
    warnings.warn(
        "guestclock's native module is a debug build, many times slower than a release build: "
        "don't measure it, and build with `maturin develop --release` or `pip install`",
        RuntimeWarning,
        stacklevel=2,
    )

__all__ = [
    "DEBUG_BUILD",
    "Advance",
    "Capabilities",
    "CapabilityMissing",
    "Checkpoint",
    "CheckpointError",
    "ClockWentBackwards",
    "Corrupt",
    "Counter",
    "CounterSkew",
    "CrossTimestamp",
    "ElapsedUnknown",
    "Freeze",
    "FrequencyMismatch",
    "GuestClockError",
    "HostCounter",
    "KvmError",
    "Malformed",
    "ManualCounter",
    "MonotonicCounter",
    "NotACheckpoint",
    "OutOfOrder",
    "Paused",
    "Plan",
    "Policy",
    "ReadBackMismatch",
    "Reg",
    "Report",
    "Restore",
    "RestoreOpen",
    "RestoreRefused",
    "Running",
    "StalePlan",
    "Support",
    "SysregTrap",
    "Timer",
    "TimerState",
    "TooLarge",
    "TopologyMismatch",
    "UnknownRegister",
    "UnknownState",
    "UnsupportedFeature",
    "UnsupportedVersion",
    "VcpuRunning",
    "Views",
    "Vm",
    "__version__",
    "plan",
    "reg_id",
    "restore",
    "sysreg",
]
