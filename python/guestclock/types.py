"""Small immutable records that the native module returns, and names for what it takes."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, SupportsIndex, TypeAlias

from guestclock._core import (
    Advance,
    Checkpoint,
    Freeze,
    HostCounter,
    ManualCounter,
    MonotonicCounter,
    Paused,
    Running,
)
from guestclock.registers import Timer

Counter: TypeAlias = HostCounter | MonotonicCounter | ManualCounter
"""Whatever a `Vm` can run over."""

Policy: TypeAlias = Freeze | Advance
"""What a guest is to see of a pause."""

Views: TypeAlias = Literal["preserve", "adopt-virtual", "refuse"]
"""What becomes of two counters that differ."""


@dataclass(frozen=True, slots=True)
class Support:
    """Whether something is to be had here, and why or why not. `ok` is None where nothing can tell."""

    ok: bool | None
    reason: str

    def __bool__(self) -> bool:
        """Only a certain yes counts as one."""
        return self.ok is True


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a VM's backend can do for its clocks."""

    counter_offset: Support
    """One VM-wide offset for both counters (KVM_CAP_COUNTER_OFFSET)."""
    physical_timer: Support
    """The physical counter and timer can be saved and set (KVM_REG_ARM_PTIMER_*)."""
    physical_offset_untrapped: Support
    """A physical offset costs nothing: the CPU has CNTPOFF_EL2. Without it CNTPCT and the physical timer trap."""
    quiescence_check: Support
    """A running vCPU is found out before anything is read or written."""
    nested: Support
    """A guest may have EL2 (KVM_CAP_ARM_EL2)."""


class TimerState(NamedTuple):
    """One timer at one instant, as its guest would see it. A tuple, since an emulator makes one at every exit."""

    ctl: int
    """CTL as a guest reads it: ENABLE, IMASK, and ISTATUS where the condition is met."""
    cval: int
    """The compare value, in guest ticks."""
    tval: int
    """CVAL - count as a signed 32-bit number: ticks left, negative when overdue."""
    istatus: bool
    """The condition is met: the guest's count has reached CVAL."""
    line: bool
    """The interrupt line: enabled, not masked, and the condition met."""
    deadline: int | None
    """The host count at which the line goes high by itself (now, if it is high); None if it never does."""


class TimerOutlook(NamedTuple):
    """One timer of one vCPU at one instant, from a checkpoint: as its guest finds it. KVM's rules, on 64 bits."""

    vcpu: int
    timer: Timer
    ctl: int
    """CTL as it was saved, without ISTATUS."""
    cval: int
    """The compare value, in guest ticks."""
    guest_count: int
    """What the counter that it compares with reads on this vCPU, in guest ticks."""
    line: bool
    """The level that the interrupt line has to have: enabled, not masked, and CVAL reached."""
    overdue_ticks: int | None
    """Guest ticks since its deadline, for a timer that is on, masked or not; None where the deadline is to come."""
    passed_in_pause: bool
    """It is on, and its deadline lies between the checkpoint and the instant."""


class LatchMismatch(NamedTuple):
    """A timer's interrupt whose pending latch isn't as its line has to be."""

    vcpu: int
    timer: Timer
    irq: int
    """Its interrupt id."""
    line: bool
    """The level that the line has to have."""
    pending: bool
    """The latch: without the line, the guest takes one interrupt that no timer accounts for."""


@dataclass(frozen=True, slots=True)
class CrossTimestamp:
    """A host counter and the host's wall clock at one instant, and what vouches for it."""

    count: int
    """The host's counter, in ticks."""
    frequency_hz: int
    source: str
    """Which counter: cntvct_el0, clock_monotonic_raw, clock_monotonic, tsc or manual."""
    realtime_ns: int
    """CLOCK_REALTIME, nanoseconds since 1970."""
    width_ns: int
    """How far apart the two may be, in nanoseconds: the whole width of the bracket."""
    tai_offset_s: int | None
    """TAI - UTC in seconds by the kernel; None where it doesn't know."""
    synchronized: bool | None
    """Whether the kernel believes its wall clock to be synchronised."""
    max_error_ns: int | None
    """The kernel's maximum error of its wall clock: a claim, not a proof."""
    leap: str
    """The leap-second state: none, insert, delete, in-progress, passed or unknown."""
    machine_id: str | None
    """The installation, made from /etc/machine-id for guestclock alone, as hexadecimal."""
    boot_id: str | None
    """The kernel's boot id, as hexadecimal."""


class GuestVm(Protocol):
    """What `Vm` and `KvmVm` have in common, for annotations: code written for it runs on the model and on KVM.

    `plan` and `restore` take these two, and nothing else that looks like them.
    """

    @property
    def vcpus(self) -> int:
        """How many vCPUs."""

    @property
    def counter(self) -> Counter:
        """The counter that the guest's are offset from."""

    @property
    def frequency_hz(self) -> int:
        """The guest's CNTFRQ_EL0, in Hz."""

    @property
    def nested(self) -> bool:
        """Whether the guest has EL2."""

    @property
    def owned(self) -> bool:
        """Whether the VM has opted in to one counter offset, for good."""

    @property
    def capabilities(self) -> Capabilities:
        """What can be done for this VM's clocks."""

    def set_counter_offset(self, offset: SupportsIndex) -> None:
        """KVM_ARM_SET_COUNTER_OFFSET: one offset for both counters of all vCPUs, in ticks, for good."""

    def cntvct(self, vcpu: int, now: int | None = None) -> int:
        """What the vCPU's guest reads from CNTVCT_EL0, now or when the host's counter reads `now`."""

    def cntpct(self, vcpu: int, now: int | None = None) -> int:
        """What the vCPU's guest reads from CNTPCT_EL0, now or when the host's counter reads `now`."""

    def get_one_reg(self, vcpu: int, reg: int) -> int:
        """KVM_GET_ONE_REG."""

    def set_one_reg(self, vcpu: int, reg: int, value: SupportsIndex) -> None:
        """KVM_SET_ONE_REG."""

    def reg_list(self, vcpu: int) -> list[int]:
        """The timer registers of the vCPU, in KVM_GET_REG_LIST's order."""

    def timer(self, vcpu: int, timer: int) -> TimerState:
        """One timer as its guest sees it now."""

    def next_deadline(self, vcpu: int) -> int | None:
        """The host count at which the first of the vCPU's timer lines goes high by itself; None if none will."""

    def running(self, vcpu: int) -> Running:
        """A context manager for the time that the vCPU spends in its guest."""

    def checkpoint(self, *, stopped_at: int | None = None) -> Checkpoint:
        """Save the VM's guest time."""

    def paused(self, policy: Policy | None = None, *, views: Views = "preserve") -> Paused:
        """Keep the VM from running, and treat the time until the end as `policy` says."""
